// Striking engines of a demo, through the HTTP endpoint of its launcher.
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
      const answer = await fetch(`${this.#url}/engines/${engine}/${action}`, {
        method: "POST",
        headers: { "x-matchbus-token": this.#token },
      });
      return await answer.text();
    } catch {
      return "The launcher of this market does not answer.";
    }
  }
}
