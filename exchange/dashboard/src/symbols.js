// Choosing what to look at: a row of symbols with their middle prices, a list where there are many.

import { element, say, units } from "./format.js";

const MOST_IN_A_ROW = 8;
const KEPT_AS = "symbol";

export class SymbolChooser {
  #node;
  #onChoice;
  #listed = "";
  #chosen = "";
  #prices = new Map();

  constructor(node, onChoice) {
    this.#node = node;
    this.#onChoice = onChoice;
  }

  list(symbols) {
    const names = symbols.map(({ symbol }) => symbol);
    if (names.join() === this.#listed || names.length === 0) {
      return;
    }
    this.#listed = names.join();
    this.#prices.clear();
    const wanted = this.#chosen || localStorage.getItem(KEPT_AS);
    const chosen = names.includes(wanted) ? wanted : names[0];
    this.#node.replaceChildren(names.length <= MOST_IN_A_ROW ? this.#row(names, chosen) : this.#menu(names, chosen));
    this.#choose(chosen);
  }

  show(view) {
    const node = this.#prices.get(view.symbol);
    if (node !== undefined) {
      const { price } = units(view);
      const quote = view.bid ?? view.ask;
      say(node, quote === null ? "–" : price(quote[0]));
    }
  }

  #choose(symbol) {
    if (symbol !== this.#chosen) {
      this.#chosen = symbol;
      localStorage.setItem(KEPT_AS, symbol);
      this.#onChoice(symbol);
    }
  }

  #row(names, chosen) {
    const group = element("fieldset");
    group.append(element("legend", "hidden", "Symbol"));
    for (const name of names) {
      const label = element("label");
      const radio = element("input");
      Object.assign(radio, { type: "radio", name: "symbol", value: name, checked: name === chosen });
      radio.addEventListener("change", () => this.#choose(name));
      const price = element("small", "", "–");
      this.#prices.set(name, price);
      label.append(radio, element("span", "", name), price);
      group.append(label);
    }
    return group;
  }

  #menu(names, chosen) {
    const menu = element("select");
    menu.setAttribute("aria-label", "Symbol");
    menu.append(...names.map((name) => new Option(name, name, name === chosen, name === chosen)));
    menu.addEventListener("change", () => this.#choose(menu.value));
    return menu;
  }
}
