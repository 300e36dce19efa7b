// Wires the page: what arrives is kept, and drawn at most once a frame.

import "uplot/dist/uPlot.min.css";
import "./style.css";
import { Account } from "./account.js";
import { CandleChart } from "./candles.js";
import { DepthChart, forgetColours, PriceChart } from "./charts.js";
import { findControls } from "./controls.js";
import { EngineCards } from "./engines.js";
import { Feed, token } from "./feed.js";
import { say, units } from "./format.js";
import { Ladder } from "./ladder.js";
import { SymbolChooser } from "./symbols.js";
import { Tape } from "./tape.js";
import { startTheme } from "./theme.js";
import { Ticket } from "./ticket.js";

const SILENCE_MS = 2000;
const SLOW_MS = 200; // charts and trades are the dear parts of a frame, and nobody sees more of them

const byId = (id) => document.getElementById(id);
const connection = byId("connection");
const price = new PriceChart(byId("price"), byId("spread"), byId("price-now"), byId("spread-now"));
const candles = new CandleChart(byId("candles"), byId("intervals"), byId("candles-note"));
const depth = new DepthChart(byId("depth"));
const ladder = new Ladder(byId("asks"), byId("bids"), byId("middle"), byId("legend"), (text) => ticket?.quote(text));
const tape = new Tape(byId("tape").tBodies[0], byId("trades-note"));
const controls = findControls();
const cards = new EngineCards(byId("engines"), controls, (text) => (byId("said").textContent = text));
const chooser = new SymbolChooser(byId("symbols"), choose);
const account = new Account(byId("account"), showOwn);

let chosen = "";
let listed = new Map(); // symbol to its sizes
let isListDue = false;
let book = null;
let isBookNew = false;
let ownOrders = [];
let heardAt = 0;
let isDirty = false;
let slowAt = 0;
let isDepthNew = false;
let ticket = null;

startTheme(byId("theme"), () => {
  forgetColours();
  cards.redraw();
  price.redraw();
  candles.redraw();
  depth.redraw();
});

const { nats, ticket: canTrade } = await (await fetch("config.json")).json();
if (canTrade) {
  ticket = new Ticket(byId("ticket"), account, controls && (() => controls.introduce()), bestPrice);
}
const feed = new Feed(nats, { onState: showConnection, onMessage: note });
readList();
feed.follow("view.engines", (view) => {
  heardAt = performance.now();
  cards.show(view);
});
feed.follow("nbbo.>", (view) => {
  price.add(view);
  chooser.show(view);
  if (!listed.has(view.symbol)) {
    readList();
  }
});
feed.follow("view.trades.>", (view) => {
  candles.add(view);
  if (view.symbol === chosen) {
    tape.add(view);
  }
});
setInterval(showSilence, 500);
feed.run();

/** Take the list of symbols, once: it is long, comes every second, and no symbol ever leaves it. */
function readList() {
  if (isListDue) {
    return;
  }
  isListDue = true;
  feed.next("view.symbols", (view) => {
    isListDue = false;
    listed = new Map(view.symbols.map((entry) => [entry.symbol, entry]));
    chooser.list(view.symbols);
  });
}

function choose(symbol) {
  chosen = symbol;
  book = null;
  isDepthNew = false;
  price.select(symbol);
  candles.select(listed.get(symbol));
  ticket?.select(listed.get(symbol));
  depth.clear();
  ladder.clear();
  tape.clear();
  feed.instead("book", `view.book.${token(symbol)}`, (view) => {
    book = view;
    isBookNew = true;
  });
}

/** The best price of a side as it is written, nothing where there is none. */
function bestPrice(side) {
  const level = book?.[side][0];
  return level === undefined ? "" : units(book).price(level[0]);
}

/** Mark what is ours: these orders are open, these fills are new; null where nobody is signed in. */
function showOwn(orders, fills) {
  ownOrders = orders;
  isBookNew = true;
  if (fills === null) {
    tape.unmark();
  } else if (fills.length > 0) {
    tape.mark(fills);
  }
  note();
}

/** The lots of our open orders of a symbol at each price as it is written, by side. */
function ownAt(symbol, asLots) {
  const sums = { buy: new Map(), sell: new Map() };
  for (const order of ownOrders.filter((order) => order.symbol === symbol)) {
    const side = sums[order.side];
    side.set(order.price, (side.get(order.price) ?? 0) + asLots(order.leaves_quantity));
  }
  return sums;
}

function note() {
  if (!isDirty) {
    isDirty = true;
    requestAnimationFrame(draw);
  }
}

function draw(now) {
  isDirty = false;
  const isSlowDue = now - slowAt >= SLOW_MS;
  if (isSlowDue) {
    slowAt = now;
    cards.draw();
    price.draw();
    candles.draw();
    tape.draw();
  }
  if (book !== null && isBookNew) {
    const written = units(book);
    ladder.show(book, written, tape.last, ownAt(book.symbol, written.lots), ticket !== null);
    isBookNew = false;
    isDepthNew = true;
  }
  if (isDepthNew && isSlowDue) {
    isDepthNew = false;
    depth.show(book);
  }
}

function showConnection(state, text) {
  connection.dataset.state = state;
  say(connection, text);
  showSilence();
}

// NATS may be there while the exchange, which makes the views, is not.
function showSilence() {
  const isConnected = connection.dataset.state === "connected";
  const isSilent = performance.now() - heardAt > SILENCE_MS;
  const isStale = heardAt > 0 && (!isConnected || isSilent);
  document.body.classList.toggle("stale", isStale);
  byId("notice").hidden = !(isStale && isConnected);
  if (isStale) {
    price.interrupt();
  }
}
