// What a demo's launcher lets its page do, through HTTP: striking engines, and trading as a ready user.
//
// The launcher prints the page's address with `#controls=PORT.TOKEN`. The token stays in this tab: it is taken
// out of the address bar, so that a copied address does not give it away.

const KEPT_AS = "controls";

/** The controls that the address names, or named in this tab before; null without any. */
export function findControls() {
  const given = new URLSearchParams(location.hash.slice(1)).get("controls");
  if (given !== null) {
    sessionStorage.setItem(KEPT_AS, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  const [port, token] = (sessionStorage.getItem(KEPT_AS) ?? "").split(".");
  return token ? new Controls(`http://127.0.0.1:${Number(port)}`, token) : null;
}

class Controls {
  #url;
  #token;

  constructor(url, token) {
    this.#url = url;
    this.#token = token;
  }

  /** Do it; in words, what was done or why not. */
  async strike(engine, action) {
    try {
      return await this.#ask(`engines/${engine}/${action}`);
    } catch {
      return "The launcher of this market does not answer.";
    }
  }

  /** Who may sign in at the order ticket; null where the launcher is away. */
  async introduce() {
    try {
      return JSON.parse(await this.#ask("trader"));
    } catch {
      return null;
    }
  }

  async #ask(path) {
    const answer = await fetch(`${this.#url}/${path}`, {
      method: "POST",
      headers: { "x-matchbus-token": this.#token },
    });
    return await answer.text();
  }
}
