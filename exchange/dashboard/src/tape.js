// The trade tape, newest first: where each trade was made, and where its taker came from.

import { colour, element, say, units } from "./format.js";

const KEPT = 80;
const BUY = 1;

export class Tape {
  #body;
  #note;
  #waiting = [];
  #leftOut = 0;
  /** The price of the newest trade in ticks, null before there is one. */
  last = null;

  constructor(body, note) {
    this.#body = body;
    this.#note = note;
  }

  clear() {
    this.#body.replaceChildren();
    this.#waiting = [];
    this.#leftOut = 0;
    this.last = null;
    say(this.#note, "");
  }

  add(view) {
    const { price, quantity } = units(view);
    for (const trade of view.trades) {
      this.#waiting.push([trade, price, quantity]);
    }
    this.#waiting = this.#waiting.slice(-KEPT);
    this.#leftOut += view.left_out;
    this.last = view.trades.at(-1)?.[2] ?? this.last;
  }

  draw() {
    if (this.#waiting.length === 0) {
      return;
    }
    const rows = this.#waiting.map(([trade, price, quantity]) => row(trade, price, quantity)).reverse();
    this.#waiting = [];
    this.#body.prepend(...rows);
    while (this.#body.rows.length > KEPT) {
      this.#body.lastElementChild.remove();
    }
    say(this.#note, this.#leftOut > 0 ? `${this.#leftOut} more in bursts` : "");
  }
}

function row([engine, home, ticks, lots, side, time], price, quantity) {
  const made = element("tr");
  const isBuy = side === BUY;
  const at = new Date(time / 1e6);
  const clock = `${at.toTimeString().slice(0, 8)}.${String(at.getMilliseconds()).padStart(3, "0")}`;
  const where = element("td", "text");
  if (home !== engine) {
    where.append(chip(home), element("span", "arrow", " → "));
    made.className = "routed";
    made.title = `routed: came to E${home} and traded on E${engine}`;
  }
  where.append(chip(engine));
  made.append(
    element("td", "text muted", clock),
    element("td", isBuy ? "up" : "down", price(ticks)),
    element("td", "", quantity(lots)),
    element("td", "text muted", isBuy ? "buys" : "sells"),
    where,
  );
  return made;
}

function chip(engine) {
  const made = element("span", "chip", `E${engine}`);
  made.style.setProperty("--colour", colour(engine));
  return made;
}
