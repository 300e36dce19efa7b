// Candles of the trades that this page has seen since it was opened: open, high, low and close of an interval.

import uPlot from "uplot";
import { axis, CLOCK, chart, css, fill, redraw, steps } from "./charts.js";
import { decimals, say, units } from "./format.js";

const INTERVALS_S = [1, 10, 60];
const KEPT = 90;
const KEPT_AS = "candles";

export class CandleChart {
  #series = new Map(); // symbol to {interval to columns}
  #symbol = "";
  #interval = INTERVALS_S[0];
  #isNew = false;
  #digits = 2;
  #chart;
  #node;
  #note;

  constructor(node, chooser, note) {
    this.#node = node;
    this.#note = note;
    const hidden = { paths: () => null, points: { show: false } };
    this.#chart = chart(
      node,
      {
        series: [{}, hidden, hidden, hidden, hidden],
        scales: {
          x: { range: (_, __, last) => [last - (KEPT - 1) * this.#interval, last + this.#interval] },
          y: { range: (_, lowest, highest) => this.#around(lowest ?? 0, highest ?? 0) },
        },
        axes: [
          axis({ space: 80, size: 26, values: CLOCK }),
          axis({
            values: (_, splits) => splits.map((value) => value.toFixed(this.#digits)),
            incrs: () => steps(this.#digits),
          }),
        ],
        hooks: { draw: [(plot) => this.#drawCandles(plot)] },
      },
      emptyColumns(),
    );
    for (const radio of chooser.elements) {
      radio.checked = Number(radio.value) === Number(localStorage.getItem(KEPT_AS) ?? INTERVALS_S[0]);
      radio.addEventListener("change", () => this.#choose(Number(radio.value)));
      if (radio.checked) {
        this.#interval = Number(radio.value);
      }
    }
  }

  select({ symbol, tick_size: tick }) {
    this.#symbol = symbol;
    this.#digits = decimals(tick);
    this.#isNew = true;
  }

  /** Take in trades. Every symbol's are kept, so that another choice has a past. */
  add(view) {
    const { value } = units(view);
    const kept = this.#series.get(view.symbol) ?? new Map(INTERVALS_S.map((interval) => [interval, emptyColumns()]));
    this.#series.set(view.symbol, kept);
    for (const [, , ticks, , , time] of view.trades) {
      for (const [interval, columns] of kept) {
        count(columns, Math.floor(time / 1e9 / interval) * interval, value(ticks));
      }
    }
    if (view.symbol === this.#symbol) {
      this.#isNew = true;
    }
  }

  draw() {
    if (this.#isNew) {
      this.#isNew = false;
      const columns = this.#series.get(this.#symbol)?.get(this.#interval) ?? emptyColumns();
      fill(this.#chart, columns);
      this.#node.dataset.candles = columns[0].length;
      say(this.#note, columns[0].length > 0 ? "since opening" : "no trade since opening");
    }
  }

  redraw() {
    redraw(this.#chart);
  }

  #choose(interval) {
    localStorage.setItem(KEPT_AS, interval);
    this.#interval = interval;
    this.#isNew = true;
    this.draw();
  }

  /** Some room above and below, a few ticks where all prices are one. */
  #around(lowest, highest) {
    const room = Math.max(0.08 * (highest - lowest), 3 / 10 ** this.#digits);
    return [lowest - room, highest + room];
  }

  #drawCandles(plot) {
    const [seconds, opens, highs, lows, closes] = plot.data;
    const { ctx, bbox } = plot;
    const ratio = uPlot.pxRatio;
    const width = Math.max(ratio, Math.floor((0.7 * bbox.width) / KEPT));
    const [up, down] = [css("--bid"), css("--ask")];
    ctx.save();
    // After a pause in trading the oldest candles kept lie left of the plot, where the prices are.
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    seconds.forEach((second, index) => {
      const at = (price) => Math.round(plot.valToPos(price, "y", true));
      const middle = Math.round(plot.valToPos(second + this.#interval / 2, "x", true));
      const [top, bottom] = [at(Math.max(opens[index], closes[index])), at(Math.min(opens[index], closes[index]))];
      ctx.fillStyle = closes[index] >= opens[index] ? up : down;
      ctx.fillRect(middle - ratio / 2, at(highs[index]), ratio, at(lows[index]) - at(highs[index]));
      ctx.fillRect(middle - width / 2, top, width, Math.max(ratio, bottom - top));
    });
    ctx.restore();
  }
}

function emptyColumns() {
  return [[], [], [], [], []];
}

/** Let one price count in the candle that begins at this second; the oldest candle makes room. */
function count([seconds, opens, highs, lows, closes], second, price) {
  const last = seconds.length - 1;
  // Engines' trades come in no common order: one of an older interval counts in the newest.
  if (last >= 0 && second <= seconds[last]) {
    highs[last] = Math.max(highs[last], price);
    lows[last] = Math.min(lows[last], price);
    closes[last] = price;
    return;
  }
  for (const [column, value] of [
    [seconds, second],
    [opens, price],
    [highs, price],
    [lows, price],
    [closes, price],
  ]) {
    column.push(value);
    if (column.length > KEPT) {
      column.shift();
    }
  }
}
