// Wires the page: what arrives is kept, and drawn at most once a frame.

import "uplot/dist/uPlot.min.css";
import "./style.css";
import { PriceChart, DepthChart } from "./charts.js";
import { findControls } from "./controls.js";
import { EngineCards } from "./engines.js";
import { Feed, token } from "./feed.js";
import { units } from "./format.js";
import { Ladder } from "./ladder.js";
import { SymbolChooser } from "./symbols.js";
import { Tape } from "./tape.js";
import { startTheme } from "./theme.js";

const SILENCE_MS = 2000;
const SLOW_MS = 200; // charts and trades are the dear parts of a frame, and nobody sees more of them

const byId = (id) => document.getElementById(id);
const connection = byId("connection");
const notice = byId("notice");
const price = new PriceChart(byId("price"), byId("spread"), byId("price-now"), byId("spread-now"));
const depth = new DepthChart(byId("depth"));
const ladder = new Ladder(byId("asks"), byId("bids"), byId("middle"), byId("legend"));
const tape = new Tape(byId("tape").tBodies[0], byId("trades-note"));
const controls = findControls();
const cards = new EngineCards(byId("engines"), controls, (text) => (byId("said").textContent = text));
const chooser = new SymbolChooser(byId("symbols"), choose);

let book = null;
let heardAt = 0;
let isDirty = false;
let slowAt = 0;

startTheme(byId("theme"), () => {
  price.redraw();
  depth.redraw();
});

const { nats } = await (await fetch("config.json")).json();
const feed = new Feed(nats, { onState: showConnection, onMessage: note });
feed.follow("view.symbols", (view) => chooser.list(view.symbols));
feed.follow("view.engines", (view) => {
  heardAt = performance.now();
  cards.show(view);
});
feed.follow("nbbo.>", (view) => {
  price.add(view);
  chooser.show(view);
});
setInterval(showSilence, 500);
feed.run();

function choose(symbol) {
  book = null;
  price.select(symbol);
  depth.clear();
  ladder.clear();
  tape.clear();
  feed.instead("book", `view.book.${token(symbol)}`, (view) => (book = view));
  feed.instead("trades", `view.trades.${token(symbol)}`, (view) => tape.add(view));
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
    price.draw();
    tape.draw();
  }
  if (book !== null) {
    const { price: asPrice, quantity: asQuantity } = units(book);
    ladder.show(book, asPrice, asQuantity, tape.last);
    if (isSlowDue) {
      depth.show(book);
    }
  }
}

function showConnection(state, text) {
  connection.dataset.state = state;
  connection.textContent = text;
  if (state !== "connected") {
    price.interrupt();
  }
  showSilence();
}

// NATS may be there while the exchange, which makes the views, is not.
function showSilence() {
  const isConnected = connection.dataset.state === "connected";
  const silent = performance.now() - heardAt;
  const isStale = !isConnected || silent > SILENCE_MS;
  document.body.classList.toggle("stale", isStale && heardAt > 0);
  notice.hidden = !(isConnected && heardAt > 0 && silent > SILENCE_MS);
  if (!notice.hidden) {
    notice.textContent = `The exchange has been silent for ${Math.round(silent / 1000)} s: what is shown is old.`;
  }
}
