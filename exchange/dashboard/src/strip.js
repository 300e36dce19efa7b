// A minute of one engine's latency: how long its journal takes to store a batch, and how old its heartbeats are.

import { css } from "./charts.js";
import { element } from "./format.js";

const KEPT = 240; // views of engines come four times a second
const LEAST_MS = 0.1;
const MOST_MS = 1000;
const MARKS_MS = [1, 10, 100];
const LEFT = 20; // of it stand the marks
const MEANING =
  "The last minute, in milliseconds on a logarithmic scale. Band: commit, from the median to the longest. " +
  "Line: age of the newest heartbeat.";

export class Strip {
  node = element("div", "strip");
  #canvas = element("canvas");
  #colour;
  #samples = []; // [median, longest, age], null where there was none
  #isNew = true;
  #size = { width: 0, height: 0 };

  /** `colour` is the name of a variable of the style sheet. */
  constructor(colour) {
    this.#colour = colour;
    this.node.title = MEANING;
    this.#canvas.setAttribute("role", "img");
    this.#canvas.setAttribute("aria-label", `Latency. ${MEANING}`);
    this.node.append(this.#canvas);
    // Its size is told once, because asking in the middle of changes makes the browser lay out twice.
    new ResizeObserver(([{ contentRect }]) => {
      this.#size = contentRect;
      this.redraw();
    }).observe(this.node);
  }

  add(...sample) {
    this.#samples.push(sample);
    if (this.#samples.length > KEPT) {
      this.#samples.shift();
    }
    this.#isNew = true;
  }

  redraw() {
    this.#isNew = true;
    this.draw();
  }

  draw() {
    if (!this.#isNew) {
      return;
    }
    this.#isNew = false;
    const ratio = devicePixelRatio;
    const { width, height } = this.#size;
    Object.assign(this.#canvas, { width: width * ratio, height: height * ratio });
    const pen = this.#canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const step = (width - LEFT) / KEPT;
    const x = (index) => width - (this.#samples.length - 1 - index) * step;
    const y = (ms) => {
      const part = Math.log(Math.min(Math.max(ms, LEAST_MS), MOST_MS) / LEAST_MS) / Math.log(MOST_MS / LEAST_MS);
      return (height - 1) * (1 - part);
    };
    this.#drawMarks(pen, width, y);
    pen.fillStyle = css(this.#colour);
    this.#samples.forEach(([median, longest], index) => {
      if (median !== null) {
        pen.fillRect(x(index) - step, y(longest), step, Math.max(1.5, y(median) - y(longest)));
      }
    });
    pen.strokeStyle = css("--text");
    pen.beginPath();
    this.#samples.forEach(([, , age], index) => {
      const isFirst = index === 0 || this.#samples[index - 1][2] === null;
      if (age !== null) {
        pen[isFirst ? "moveTo" : "lineTo"](x(index), y(age));
      }
    });
    pen.stroke();
  }

  #drawMarks(pen, width, y) {
    pen.strokeStyle = css("--line");
    pen.fillStyle = css("--muted");
    pen.font = "9px system-ui, sans-serif";
    for (const mark of MARKS_MS) {
      pen.fillText(String(mark), 0, y(mark) + 3);
      pen.beginPath();
      pen.moveTo(LEFT, y(mark));
      pen.lineTo(width, y(mark));
      pen.stroke();
    }
  }
}
