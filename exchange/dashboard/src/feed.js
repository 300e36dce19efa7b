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
  #replaceable = new Map(); // name to {subject, callback, subscription}
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
  instead(name, subject, callback) {
    this.#replaceable.get(name)?.subscription?.unsubscribe();
    const subscription = this.#connection && this.#subscribe(subject, callback);
    this.#replaceable.set(name, { subject, callback, subscription });
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
    for (const entry of this.#replaceable.values()) {
      entry.subscription = this.#subscribe(entry.subject, entry.callback);
    }
  }

  async #tell() {
    for await (const status of this.#connection.status()) {
      if (status.type === "reconnect") {
        this.#onState("connected", "connected again");
      } else if (status.type === "disconnect" || status.type === "reconnecting") {
        this.#onState("away", "connection lost; reconnecting");
      }
    }
  }

  #subscribe(subject, callback) {
    return this.#connection.subscribe(subject, {
      callback: (error, message) => {
        if (error === null || error === undefined) {
          callback(message.json());
          this.#onMessage();
        }
      },
    });
  }
}
