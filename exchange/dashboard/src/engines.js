// One card for each engine: who it is, whether it lives, how much it does, and who stands by for it.

import { colour, colourName, count, element, say } from "./format.js";
import { Strip } from "./strip.js";

const ACTIONS = [
  ["kill", "kill -9 its process"],
  ["freeze", "stop its process for three seconds"],
  ["restart", "end its process in order; it is started again"],
];

export class EngineCards {
  #node;
  #controls;
  #say;
  #cards = new Map();

  /** `controls` is null unless this market's launcher lets the page strike its engines. */
  constructor(node, controls, tell) {
    this.#node = node;
    this.#controls = controls;
    this.#say = tell;
  }

  /** Draw what was shown last. */
  draw() {
    this.#cards.forEach((card) => card.strip.draw());
  }

  /** Draw in the colours of now. */
  redraw() {
    this.#cards.forEach((card) => card.strip.redraw());
  }

  show({ engines }) {
    const primaries = engines.filter(({ role }) => role === "primary");
    for (const status of primaries) {
      if (!this.#cards.has(status.engine)) {
        const card = new Card(status.engine, this.#controls, this.#say);
        this.#cards.set(status.engine, card);
        this.#node.append(card.node);
      }
      const standbys = engines.filter(({ role, engine }) => role === "standby" && engine === status.engine);
      this.#cards.get(status.engine).show(status, standbys);
    }
    const known = new Set(primaries.map(({ engine }) => engine));
    for (const [engine, card] of this.#cards) {
      if (!known.has(engine)) {
        card.node.remove();
        this.#cards.delete(engine);
      }
    }
  }
}

class Card {
  node = element("article", "card");
  #state = element("span", "state");
  #reason = element("span", "reason");
  #standby = element("p", "standby");
  #facts = {};
  strip;

  constructor(engine, controls, tell) {
    this.node.dataset.engine = engine;
    this.node.style.setProperty("--colour", colour(engine));
    this.node.setAttribute("aria-label", `Engine ${engine}`);
    const head = element("div", "head");
    head.append(element("h2", "", `E${engine}`), this.#state, this.#reason);
    if (controls !== null) {
      head.append(buttons(engine, controls, tell));
    }
    const facts = element("dl");
    for (const [key, name] of [
      ["epoch", "epoch"],
      ["orders", "orders/s"],
      ["trades", "trades/s"],
      ["journal", "journal"],
      ["commit", "commit"],
      ["lag", "lag"],
      ["resyncs", "resyncs"],
    ]) {
      const pair = element("div", `fact ${key}`);
      this.#facts[key] = element("dd");
      pair.append(element("dt", "", name), this.#facts[key]);
      facts.append(pair);
    }
    this.strip = new Strip(colourName(engine));
    this.node.append(head, facts, this.strip.node, this.#standby);
  }

  show(status, standbys) {
    this.node.dataset.state = status.state;
    this.node.dataset.epoch = status.epoch;
    say(this.#state, status.state);
    say(this.#facts.epoch, count(status.epoch));
    say(this.#facts.orders, count(status.orders_per_s));
    say(this.#facts.trades, count(status.trades_per_s));
    say(this.#facts.journal, count(status.batch_number));
    const { commit_p50_ms: median = null, commit_max_ms: longest = null } = status;
    say(this.#facts.commit, median === null ? "–" : `${short(median)} / ${short(longest)} ms`);
    this.strip.add(median, longest, status.lag_ms);
    say(this.#facts.lag, status.lag_ms === null ? "–" : `${count(status.lag_ms)} ms`);
    say(this.#facts.resyncs, count(status.resyncs));
    say(this.#reason, status.reason);
    const words = standbys.map(({ address, lag_batches: lag }) => {
      const behind = lag === 0 ? "up to date" : `${count(lag)} batches behind`;
      return `standby at ${address}, ${behind}`;
    });
    say(this.#standby, words.join("; "));
  }
}

/** Milliseconds, with a decimal where there are few. */
function short(ms) {
  return ms < 10 ? ms.toFixed(1) : count(ms);
}

function buttons(engine, controls, tell) {
  const row = element("div", "buttons");
  for (const [action, meaning] of ACTIONS) {
    const button = element("button", "", action);
    button.type = "button";
    button.title = meaning;
    button.setAttribute("aria-label", `${action} engine ${engine}`);
    button.addEventListener("click", async () => tell(await controls.strike(engine, action)));
    row.append(button);
  }
  return row;
}
