// The order ticket: signing in, trading by hand, and how the account stands, through HTTP at the page's own origin.
//
// The token that a sign-in brings stays in this module's memory: closing or reloading the page forgets it.

import { plain, rounded, spelled } from "./format.js";

const PERIOD_MS = 500;
const PAUSE = 10; // times as long as the answer took: an engine goes through all open orders for it
const LONGEST_PAUSE_MS = 5000;
const AFTER_A_FAILURE_MS = 2000;
const UNAUTHENTICATED = 401;

export class Ticket {
  #node;
  #signIn;
  #order;
  #account;
  #token = "";
  #isOpening = false;
  #since = 0;
  #timer = 0;
  #symbol = "";
  #client = "";
  #unanswered = new Map(); // order as it was sent, and by whom, to its id

  /** `introduce` gives a demo's ready user, and is null where there is none; `best` the price of a side now. */
  constructor(node, account, introduce, best) {
    this.#node = node;
    this.#account = account;
    this.#signIn = node.querySelector("#sign-in");
    this.#order = node.querySelector("#order");
    // One press is one order: a key that is held down, and the second half of a double click, are none.
    node.addEventListener("keydown", (event) => {
      if (event.repeat && event.key === "Enter") {
        event.preventDefault();
      }
    });
    node.querySelector("#send").addEventListener("click", (event) => {
      if (event.detail > 1) {
        event.preventDefault();
      }
    });
    this.#signIn.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#open(Object.fromEntries(new FormData(this.#signIn)));
    });
    this.#order.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#order.addEventListener("change", ({ target }) => {
      if (target.type === "number") {
        target.value = spelled(target.value);
      }
      this.#showChoices();
    });
    node.querySelector("#sign-out").addEventListener("click", () => this.#close("Signed out. Your orders stay."));
    const demo = node.querySelector("#as-demo");
    demo.hidden = introduce === null;
    demo.addEventListener("click", async () => {
      const who = await introduce();
      if (who === null) {
        this.#say("The launcher of this market does not answer.", "refused");
      } else {
        this.#open(who);
      }
    });
    for (const button of node.querySelectorAll("[data-best]")) {
      button.addEventListener("click", () => this.quote(best(button.dataset.best)));
    }
    addEventListener("pagehide", () => this.#token && this.#ask("sign-out", {}, { keepalive: true }));
    account.onCancel = (orderId) => this.#cancel(orderId);
  }

  /** Trade this from now on: a price of another symbol is none, and before the first there is nothing to order. */
  select({ symbol, tick_size: tick, lot_size: lot }) {
    if (symbol !== this.#symbol) {
      this.#symbol = symbol;
      this.#node.hidden = false;
      const { price, quantity } = this.#order.elements;
      price.step = price.min = tick;
      quantity.step = quantity.min = lot;
      price.value = quantity.value = "";
      this.#showChoices();
    }
  }

  /** Put a price into the form. */
  quote(price) {
    const { type, price: field, quantity } = this.#order.elements;
    type.value = "limit";
    field.value = price;
    this.#showChoices();
    if (this.#token) {
      (quantity.value === "" ? quantity : field).focus({ preventScroll: true });
    }
  }

  /** Sign in, one person at a time: a late answer would put somebody in the place of who came meanwhile. */
  async #open(who) {
    if (this.#isOpening || this.#token) {
      return;
    }
    this.#isOpening = true;
    this.#say("Signing in…");
    const { status, content } = await this.#ask("sign-in", who);
    this.#isOpening = false;
    if (status !== 200) {
      this.#say(content.error, "refused");
      return;
    }
    this.#token = content.token;
    this.#since = 0;
    this.#client = content.client;
    this.#signIn.reset();
    this.#show(`${content.client}, at home on E${content.engine}`);
    this.#say("");
    this.#account.open();
    this.#order.elements.quantity.focus({ preventScroll: true });
    this.#refresh();
  }

  #close(text) {
    this.#ask("sign-out", {});
    this.#token = "";
    clearTimeout(this.#timer);
    this.#show("");
    this.#account.close();
    this.#say(text);
  }

  async #submit() {
    const { type, quantity, price, time_in_force: time, post_only: post } = this.#order.elements;
    if (quantity.value === "") {
      this.#say("Enter a quantity.", "refused");
      quantity.focus({ preventScroll: true });
      return;
    }
    const isLimit = type.value === "limit";
    const order = {
      symbol: this.#symbol,
      side: this.#order.elements.side.value,
      type: type.value,
      quantity: quantity.value,
      price: isLimit ? price.value || null : null,
      time_in_force: time.value,
      post_only: isLimit && post.checked,
    };
    // Until the engine answers, the same order keeps its id, so that it is not entered twice.
    const key = JSON.stringify([this.#client, order]);
    const isRepeated = this.#unanswered.has(key);
    const id = this.#unanswered.get(key) ?? crypto.randomUUID();
    this.#unanswered.set(key, id);
    this.#say("Sent…");
    const { status, content } = await this.#ask("submit", { ...order, client_order_id: id });
    if (status === 200 && this.#unanswered.get(key) === id) {
      this.#unanswered.delete(key);
    }
    const words = `${order.side} ${order.quantity} ${order.symbol} ${isLimit ? `at ${order.price}` : "at market"}`;
    // An order sent once may be a duplicate too: the exchange's client repeats it where an answer is lost.
    this.#answer(status, content, isRepeated && content.duplicate ? `${words} (entered before)` : words);
  }

  async #cancel(orderId) {
    const { status, content } = await this.#ask("cancel", { order_id: orderId });
    this.#answer(status, content, `order ${orderId}`);
  }

  /** What became of a command, in the engine's own words where it refused. */
  #answer(status, content, words) {
    if (status === 0) {
      this.#say(`${content.error} What was sent may have been done.`, "refused");
    } else if (status !== 200) {
      this.#say(content.error, "refused");
    } else if (content.reject_reason !== null) {
      this.#say(`${content.status}: ${content.reject_reason}: ${content.reject_text}`, "refused");
    } else {
      const parts = [`${content.status}: ${words}`];
      if (Number(content.cumulative_quantity) > 0) {
        parts.push(`${plain(content.cumulative_quantity)} filled at ${rounded(content.average_price)}`);
      }
      if (Number(content.leaves_quantity) > 0) {
        parts.push(`${plain(content.leaves_quantity)} left`);
      }
      this.#say(parts.join(", "));
    }
    this.#refresh();
  }

  /** How the account stands, now and then again and again. */
  async #refresh() {
    clearTimeout(this.#timer);
    const token = this.#token;
    if (!token) {
      return;
    }
    const asked = performance.now();
    const { status, content } = await this.#ask("account", { since: this.#since });
    const tookMs = performance.now() - asked;
    if (token !== this.#token) {
      return;
    }
    clearTimeout(this.#timer);
    if (status === UNAUTHENTICATED) {
      this.#close(content.error);
      return;
    }
    if (status === 200) {
      // Two questions may have been on their way at once, and have told the same fills.
      const fills = content.fills.filter(({ sequence }) => sequence > this.#since);
      this.#since = fills.at(-1)?.sequence ?? this.#since;
      this.#account.show({ ...content, fills });
    } else {
      this.#account.trouble(content.error);
    }
    const pauseMs = Math.min(LONGEST_PAUSE_MS, Math.max(PERIOD_MS, PAUSE * tookMs));
    this.#timer = setTimeout(() => this.#refresh(), status === 200 ? pauseMs : AFTER_A_FAILURE_MS);
  }

  async #ask(act, body, options = {}) {
    try {
      const answer = await fetch(`ticket/${act}`, {
        method: "POST",
        headers: { "content-type": "application/json", "x-matchbus-ticket": this.#token },
        body: JSON.stringify(body),
        ...options,
      });
      return { status: answer.status, content: await answer.json() };
    } catch {
      return { status: 0, content: { error: "No answer from the exchange." } };
    }
  }

  #show(name) {
    const isOpen = name !== "";
    this.#node.querySelector("#trader").textContent = name;
    this.#node.querySelector("#sign-out").hidden = !isOpen;
    this.#signIn.hidden = isOpen;
    this.#order.hidden = !isOpen;
  }

  #showChoices() {
    const { type, price, post_only: post, side } = this.#order.elements;
    const isLimit = type.value === "limit";
    price.disabled = post.disabled = !isLimit;
    const button = this.#order.querySelector("#send");
    button.dataset.side = side.value;
    button.textContent = `${side.value} ${this.#symbol}`;
  }

  #say(text, kind = "") {
    const said = this.#node.querySelector("#ticket-said");
    said.textContent = text;
    said.dataset.kind = kind;
  }
}
