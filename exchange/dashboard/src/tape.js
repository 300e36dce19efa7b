// The trade tape, newest first: where each trade was made, and where its taker came from.

import { colour, element, say, units } from "./format.js";

const KEPT = 80;
const BUY = 1;

export class Tape {
  #body;
  #note;
  #waiting = [];
  #leftOut = 0;
  #own = new Set(); // keys of the trades that were ours
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
    const written = units(view);
    for (const trade of view.trades) {
      this.#waiting.push([trade, written]);
    }
    this.#waiting = this.#waiting.slice(-KEPT);
    this.#leftOut += view.left_out;
    this.last = view.trades.at(-1)?.[2] ?? this.last;
  }

  /** Mark the trades that these fills are of, now or when they come. */
  mark(fills) {
    for (const fill of fills) {
      this.#own.add(key(fill.engine, fill.price, Number(fill.quantity), fill.time_ns));
    }
    this.#own = new Set([...this.#own].slice(-KEPT));
    for (const made of this.#body.rows) {
      made.classList.toggle("own", this.#own.has(made.dataset.key));
    }
  }

  /** Nobody's trades are ours. */
  unmark() {
    this.#own.clear();
    this.mark([]);
  }

  draw() {
    if (this.#waiting.length === 0) {
      return;
    }
    const rows = this.#waiting.map(([trade, written]) => row(trade, written, this.#own)).reverse();
    this.#waiting = [];
    this.#body.prepend(...rows);
    while (this.#body.rows.length > KEPT) {
      this.#body.lastElementChild.remove();
    }
    say(this.#note, this.#leftOut > 0 ? `${this.#leftOut} more in bursts` : "");
  }
}

// What a trade and our fill of it have in common.
function key(engine, price, amount, time) {
  return `${engine} ${price} ${amount} ${time}`;
}

function row([engine, home, ticks, lots, side, time], { price, quantity, amount }, own) {
  const made = element("tr");
  made.dataset.key = key(engine, price(ticks), amount(lots), time);
  const isBuy = side === BUY;
  const at = new Date(time / 1e6);
  const clock = `${at.toTimeString().slice(0, 8)}.${String(at.getMilliseconds()).padStart(3, "0")}`;
  const where = element("td", "text");
  if (home !== engine) {
    where.append(chip(home), element("span", "arrow", " → "));
    made.classList.add("routed");
    made.title = `routed: came to E${home} and traded on E${engine}`;
  }
  where.append(chip(engine));
  made.classList.toggle("own", own.has(made.dataset.key));
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
