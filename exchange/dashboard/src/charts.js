// Best prices and spread over time, and the depth of the book, by uPlot.

import uPlot from "uplot";
import { decimals, say, units } from "./format.js";

const KEPT_S = 300;
const SAMPLE_S = 0.2;
export const CLOCK = "{HH}:{mm}:{ss}";
const ROUND = [1, 2, 5];
const amounts = new Intl.NumberFormat("en", { maximumSignificantDigits: 9 });

const colours = new Map(); // asking the browser makes it work out all styles anew

/** A variable of the style sheet. */
export function css(name) {
  if (!colours.has(name)) {
    colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  }
  return colours.get(name);
}

/** The style sheet's variables have other values now. */
export function forgetColours() {
  colours.clear();
}

/** An axis in the colours of the page. */
export function axis(extra) {
  return {
    stroke: () => css("--muted"),
    grid: { stroke: () => css("--line"), width: 1 },
    ticks: { show: false },
    font: "11px system-ui, sans-serif",
    // A number that is cut reads as another one.
    size: (_, written) => Math.max(62, ...(written ?? []).map((text) => 12 + 7 * text.length)),
    ...extra,
  };
}

/** Round distances between the marks of an axis of prices with so many digits. */
export function steps(digits) {
  const powers = Array.from({ length: 12 }, (_, power) => 10 ** (power - digits));
  return powers.flatMap((power) => ROUND.map((factor) => factor * power));
}

/** A chart that has always the size of the element it is in. */
export function chart(node, options, data) {
  const size = () => ({ width: Math.max(node.clientWidth, 50), height: Math.max(node.clientHeight, 50) });
  const room = [8, 40, 6, 0]; // at the right for half of what is written below the last mark
  const quiet = { legend: { show: false }, cursor: { show: false }, padding: room };
  const made = new uPlot({ ...size(), ...quiet, ...options }, data, node);
  node.classList.add("blank");
  new ResizeObserver(() => made.setSize(size())).observe(node);
  return made;
}

/** Give a chart its data. Without any it has no axes either: those of nothing look like those of prices near 0. */
export function fill(made, data) {
  const isBlank = !data.slice(1).some((column) => column.some((value) => value !== null));
  made.root.parentElement.classList.toggle("blank", isBlank);
  made.setData(data);
}

/** Draw in the colours of now. An empty chart has no scales yet, and uPlot cannot draw that again. */
export function redraw(made) {
  if (made.data[0].length > 0) {
    made.redraw(false);
  }
}

export class PriceChart {
  #history = new Map(); // symbol to {seconds, bids, asks, spreads}
  #symbol = "";
  #view = null;
  #isNew = false;
  #price;
  #spread;
  #priceNow;
  #spreadNow;

  constructor(priceNode, spreadNode, priceNow, spreadNow) {
    const colours = { bid: () => css("--bid"), ask: () => css("--ask"), mid: () => css("--text") };
    const line = { width: 1.25, points: { show: false }, spanGaps: false, paths: uPlot.paths.stepped({ align: 1 }) };
    const values = (_, splits) => splits.map((value) => value.toFixed(this.#digits()));
    // From zero up, or from below where engines crossed each other for a moment.
    const spreads = (_, least, most) => (most == null ? [null, null] : [Math.min(0, least), most > 0 ? most * 1.1 : 1]);
    const incrs = () => steps(this.#digits());
    this.#price = chart(
      priceNode,
      {
        series: [
          {},
          { ...line, stroke: colours.bid },
          { ...line, stroke: colours.ask },
          { ...line, stroke: colours.mid, width: 1, dash: [2, 3] },
        ],
        axes: [axis({ space: 80, size: 26, values: CLOCK }), axis({ values, incrs })],
      },
      [[], [], [], []],
    );
    this.#spread = chart(
      spreadNode,
      {
        series: [{}, { ...line, stroke: colours.mid, fill: () => css("--band") }],
        scales: { y: { range: spreads } },
        // Below the same moments of the price.
        axes: [
          axis({ space: 80, show: false }),
          axis({ space: 22, size: () => this.#price.bbox.left / uPlot.pxRatio, values, incrs }),
        ],
      },
      [[], []],
    );
    this.#priceNow = priceNow;
    this.#spreadNow = spreadNow;
  }

  select(symbol) {
    this.#symbol = symbol;
    this.#view = null;
    this.#isNew = true;
    this.#history.set(symbol, this.#history.get(symbol) ?? emptyHistory());
  }

  /** Take in one best bid and ask. Every symbol's are kept, so that another choice has a past. */
  add(view) {
    const history = this.#history.get(view.symbol) ?? emptyHistory();
    this.#history.set(view.symbol, history);
    const { value } = units(view);
    const now = Date.now() / 1000;
    const [bid, ask] = [view.bid, view.ask].map((quote) => (quote === null ? null : value(quote[0])));
    history.push(now, bid, ask, bid === null || ask === null ? null : value(view.ask[0] - view.bid[0]));
    history.forget(now - KEPT_S);
    if (view.symbol === this.#symbol) {
      this.#view = view;
      this.#isNew = true;
    }
  }

  /** Nothing is known for a while: the lines have a gap. */
  interrupt() {
    for (const history of this.#history.values()) {
      if ((history.bids.at(-1) ?? history.asks.at(-1) ?? null) !== null) {
        history.push(Date.now() / 1000, null, null, null);
      }
    }
  }

  draw() {
    const history = this.#history.get(this.#symbol);
    if (!this.#isNew || history === undefined) {
      return;
    }
    this.#isNew = false;
    const mids = history.bids.map((bid, index) => {
      const ask = history.asks[index];
      return bid === null || ask === null ? null : (bid + ask) / 2;
    });
    fill(this.#price, [history.seconds, history.bids, history.asks, mids]);
    fill(this.#spread, [history.seconds, history.spreads]);
    const { bid, ask } = this.#view ?? { bid: null, ask: null };
    if (bid !== null && ask !== null) {
      const { price } = units(this.#view);
      say(this.#priceNow, `${price(bid[0])} / ${price(ask[0])}`);
      say(this.#spreadNow, price(ask[0] - bid[0]));
    } else {
      say(this.#priceNow, "");
      say(this.#spreadNow, "");
    }
  }

  redraw() {
    redraw(this.#price);
    redraw(this.#spread);
  }

  #digits() {
    return decimals(this.#view?.tick_size ?? "0.01");
  }
}

function emptyHistory() {
  const history = { seconds: [], bids: [], asks: [], spreads: [] };
  const columns = [history.seconds, history.bids, history.asks, history.spreads];
  const sample = (seconds) => Math.floor(seconds / SAMPLE_S);
  history.push = (...values) => {
    // One of the same moment makes room, and so does what a clock that was set back has left in the future.
    while (sample(history.seconds.at(-1)) >= sample(values[0])) {
      columns.forEach((column) => column.pop());
    }
    columns.forEach((column, index) => column.push(values[index]));
  };
  history.forget = (before) => {
    const first = history.seconds.findIndex((seconds) => seconds >= before);
    if (first > 100) {
      columns.forEach((column) => column.splice(0, first));
    }
  };
  return history;
}

export class DepthChart {
  #chart;
  #digits = 2;

  constructor(node) {
    const side = (name, align) => ({
      stroke: () => css(`--${name}`),
      fill: () => css(`--${name}-area`),
      width: 1.25,
      points: { show: false },
      paths: uPlot.paths.stepped({ align }),
    });
    this.#chart = chart(
      node,
      {
        scales: { x: { time: false }, y: { range: (_, __, most) => [0, (most ?? 1) * 1.08] } },
        series: [{}, side("bid", -1), side("ask", 1)],
        axes: [
          axis({
            space: 90,
            size: 26,
            values: (_, splits) => splits.map((value) => value.toFixed(this.#digits)),
            incrs: () => steps(this.#digits),
          }),
          axis({ values: (_, splits) => splits.map((amount) => amounts.format(amount)) }),
        ],
      },
      [[], [], []],
    );
  }

  show(book) {
    const { value, amount } = units(book);
    this.#digits = decimals(book.tick_size);
    const sums = (levels) => {
      let sum = 0;
      return levels.map((level) => amount((sum += level[1])));
    };
    const bids = book.bids.map((level) => value(level[0])).reverse();
    const asks = book.asks.map((level) => value(level[0]));
    const blank = (count) => new Array(count).fill(null);
    fill(this.#chart, [
      [...bids, ...asks],
      [...sums(book.bids).reverse(), ...blank(asks.length)],
      [...blank(bids.length), ...sums(book.asks)],
    ]);
  }

  clear() {
    fill(this.#chart, [[], [], []]);
  }

  redraw() {
    redraw(this.#chart);
  }
}
