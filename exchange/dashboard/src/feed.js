// The page's one connection to NATS: subscriptions that outlive it, and what became of it in words.

import { wsconnect } from "@nats-io/nats-core";

const RETRY_MS = 500;
const PING_MS = 2000;

/** A symbol as it is written in a subject. */
export function token(symbol) {
  return symbol.replaceAll(".", "=");
}

export class Feed {
  #urls;
  #onState;
  #onMessage;
  #followed = []; // [subject, callback], also before there is a connection
  #replaceable = new Map(); // name to {subject, callback, terms, subscription}
  #connection = null;

  constructor(urls, { onState, onMessage }) {
    this.#urls = urls;
    this.#onState = onState;
    this.#onMessage = onMessage;
  }

  /** Call back with every view on the subject, for as long as the page lives. */
  follow(subject, callback) {
    this.#followed.push([subject, callback]);
  }

  /** Follow this subject from now on instead of the one of the same name before. */
  instead(name, subject, callback, terms = {}) {
    this.#replaceable.get(name)?.subscription?.unsubscribe();
    const subscription = this.#connection && this.#subscribe(subject, callback, terms);
    this.#replaceable.set(name, { subject, callback, terms, subscription });
  }

  /** Call back with the next view on the subject alone, and with one more after each loss of the connection. */
  next(subject, callback) {
    this.instead(subject, subject, callback, { max: 1 });
  }

  /** Connect, and again whenever the connection is lost. */
  async run() {
    for (;;) {
      try {
        this.#connection = await wsconnect({
          servers: this.#urls,
          name: "dashboard",
          maxReconnectAttempts: -1,
          reconnectTimeWait: RETRY_MS,
          reconnectJitter: RETRY_MS,
          pingInterval: PING_MS,
          maxPingOut: 2,
          ignoreServerUpdates: true,
        });
      } catch {
        this.#onState("away", "NATS is away; trying again");
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
        continue;
      }
      this.#begin();
      await Promise.race([this.#tell(), this.#connection.closed()]);
      this.#connection = null;
      this.#onState("away", "connection closed; trying again");
    }
  }

  #begin() {
    this.#onState("connected", "connected");
    for (const [subject, callback] of this.#followed) {
      this.#subscribe(subject, callback);
    }
    this.#renew();
  }

  #renew() {
    for (const [name, { subject, callback, terms }] of this.#replaceable) {
      this.instead(name, subject, callback, terms);
    }
  }

  async #tell() {
    for await (const status of this.#connection.status()) {
      if (status.type === "reconnect") {
        this.#onState("connected", "connected again");
        this.#renew();
      } else if (status.type === "disconnect" || status.type === "reconnecting") {
        this.#onState("away", "connection lost; reconnecting");
      }
    }
  }

  #subscribe(subject, callback, terms = {}) {
    return this.#connection.subscribe(subject, {
      ...terms,
      callback: (error, message) => {
        if (error === null || error === undefined) {
          callback(message.json());
          this.#onMessage();
        }
      },
    });
  }
}
