// The price ladder: asks above bids, each level's quantity as a bar of the engines' shares.

import { colour, element, say } from "./format.js";

const DEPTH = 20;
const LEVELS_OF_SIZES = [8, 13, 16];

export class Ladder {
  #asks;
  #bids;
  #middle;
  #legend;
  #legendText = "";

  /** `onPrice` is called with the price of a level that was clicked. */
  constructor(asks, bids, middle, legend, onPrice) {
    for (const body of [asks, bids]) {
      body.addEventListener("click", ({ target }) => {
        const text = target.closest("tr")?.querySelector(".price").textContent;
        if (text) {
          onPrice(text);
        }
      });
    }
    this.#asks = Array.from({ length: DEPTH }, (_, index) => new Row(asks, index, true));
    this.#bids = Array.from({ length: DEPTH }, (_, index) => new Row(bids, index, false));
    this.#middle = middle.rows[0].cells[0];
    this.#legend = legend;
  }

  clear() {
    for (const row of [...this.#asks, ...this.#bids]) {
      row.clear();
    }
    say(this.#middle, "");
  }

  /** `own` has the lots of our open orders by price as it is written; `canTrade` says whether the page has a ticket. */
  show(book, written, last, own, canTrade) {
    const { price } = written;
    const most = Math.max(1, ...book.bids.map((level) => level[1]), ...book.asks.map((level) => level[1]));
    this.#side(this.#asks, book.asks, most, written, own.sell);
    this.#side(this.#bids, book.bids, most, written, own.buy);
    const [ask, bid] = [book.asks[0], book.bids[0]];
    const parts = ask && bid ? [`spread ${price(ask[0] - bid[0])}`] : ["no spread"];
    if (last !== null) {
      parts.push(`last ${price(last)}`);
    }
    // An engine that is not counted may have many.
    const areAllCounted = book.engines.length > 0 && book.engines.every(({ trusted }) => trusted);
    if (!ask && !bid && last === null && areAllCounted) {
      parts[0] = `No orders: use ${canTrade ? "the ticket or " : ""}\`matchbus submit\``;
    }
    say(this.#middle, parts.join("  ·  "));
    this.#showLegend(book.engines);
  }

  #side(rows, levels, most, written, own) {
    rows.forEach((row, index) => {
      if (index < levels.length) {
        row.show(levels[index], most, written, own);
      } else {
        row.clear();
      }
    });
  }

  #showLegend(engines) {
    const text = engines.map(({ engine, trusted }) => `${engine}${trusted}`).join();
    if (text === this.#legendText) {
      return;
    }
    this.#legendText = text;
    this.#legend.replaceChildren(
      ...engines.map(({ engine, trusted }) => {
        const key = element("span", "key", trusted ? `E${engine}` : `E${engine} not counted`);
        key.style.setProperty("--colour", trusted ? colour(engine) : "var(--line)");
        return key;
      }),
    );
  }
}

class Row {
  #row = element("tr");
  #bar = element("td", "shares");
  #fill = element("div", "bar");
  #own = element("span", "own");
  #quantity = element("td");
  #price = element("td", "price");
  #orders = element("td", "orders");

  /** Rows of asks stand in reverse, so that the best is next to the middle. */
  constructor(body, index, isReversed) {
    this.#bar.append(this.#own, this.#fill);
    this.#row.append(this.#bar, this.#quantity, this.#price, this.#orders);
    // The style sheet leaves out the levels that a small window has no room for.
    this.#row.className = ["", "deep", "deeper", "deepest"][LEVELS_OF_SIZES.filter((most) => index >= most).length];
    if (isReversed) {
      body.prepend(this.#row);
    } else {
      body.append(this.#row);
    }
  }

  clear() {
    for (const cell of [this.#quantity, this.#price, this.#orders, this.#own]) {
      say(cell, "");
    }
    this.#fill.style.background = "none";
    delete this.#fill.dataset.shares;
    this.#bar.removeAttribute("aria-label");
    this.#bar.removeAttribute("title");
  }

  show([ticks, lots, orders, shares], most, { price, quantity, exact }, own) {
    const written = price(ticks);
    say(this.#price, written);
    const mine = own.has(written) ? `you ${exact(own.get(written))}` : "";
    say(this.#own, mine);
    say(this.#quantity, quantity(lots));
    say(this.#orders, String(orders));
    const words = shares.map(([engine, part]) => `E${engine} ${quantity(part)}`).join(", ");
    const label = mine ? `${mine}: ${words}` : words;
    if (this.#bar.ariaLabel !== label) {
      this.#bar.title = words;
      this.#bar.ariaLabel = label;
    }
    // From the right, where the price is: one engine's share beside the other's.
    let at = 0;
    const stops = shares.map(([engine, part]) => {
      const from = at;
      at += (100 * part) / most;
      return `${colour(engine)} ${from.toFixed(2)}% ${at.toFixed(2)}%`;
    });
    stops.push(`transparent ${at.toFixed(2)}%`);
    const background = `linear-gradient(to left, ${stops.join(", ")})`;
    if (this.#fill.dataset.shares !== background) {
      this.#fill.dataset.shares = background;
      this.#fill.style.background = background;
    }
  }
}
