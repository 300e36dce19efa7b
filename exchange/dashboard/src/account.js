// How the account of who is signed in stands: open orders, fills, positions, and what of them is marked elsewhere.

import { element, more, plain, rounded, say } from "./format.js";

const KEPT = 50;

export class Account {
  /** Called with the id of an order that is to be cancelled. */
  onCancel = () => {};
  #node;
  #onChange;
  #orders;
  #fills;
  #positions;
  #rows = new Map(); // order id to its row
  #told = "";

  /** `onChange` is told the open orders, and the fills that are new. */
  constructor(node, onChange) {
    this.#node = node;
    this.#onChange = onChange;
    [this.#orders, this.#fills, this.#positions] = ["orders", "fills", "positions"].map(
      (name) => node.querySelector(`#${name}`).tBodies[0],
    );
  }

  open() {
    this.close();
    this.#node.hidden = false;
  }

  close() {
    this.#node.hidden = true;
    this.#rows.clear();
    this.#told = "";
    for (const body of [this.#orders, this.#fills, this.#positions]) {
      body.replaceChildren();
    }
    this.#onChange([], null);
  }

  show({ orders, orders_left_out: leftOut, fills, positions, trouble }) {
    this.trouble(trouble);
    this.#showOrders(orders);
    say(this.#node.querySelector("#orders-note"), more(leftOut));
    this.#fills.prepend(...fills.map(fillRow).reverse());
    while (this.#fills.rows.length > KEPT) {
      this.#fills.lastElementChild.remove();
    }
    const told = JSON.stringify(positions);
    if (told !== this.#told) {
      this.#told = told;
      this.#positions.replaceChildren(...positions.map(positionRow));
    }
    this.#onChange(orders, fills);
  }

  /** Why what is shown may be old; empty when it is not. */
  trouble(text) {
    say(this.#node.querySelector("#account-note"), text);
  }

  /** Rows stay where they are, so that a button that has the focus keeps it. */
  #showOrders(orders) {
    const open = new Set(orders.map((order) => order.order_id));
    for (const [id, row] of this.#rows) {
      if (!open.has(id)) {
        row.remove();
        this.#rows.delete(id);
      }
    }
    for (const order of orders) {
      let row = this.#rows.get(order.order_id);
      if (row === undefined) {
        row = this.#orderRow(order);
        this.#rows.set(order.order_id, row);
        this.#orders.prepend(row);
      }
      const [, , quantity, price, status] = row.cells;
      say(quantity, `${plain(order.leaves_quantity)} of ${plain(order.quantity)}`);
      say(price, order.price);
      say(status, order.status.replaceAll("_", " "));
    }
  }

  #orderRow(order) {
    const button = element("button", "", "cancel");
    button.type = "button";
    button.setAttribute("aria-label", `cancel order ${order.order_id}`);
    button.addEventListener("click", () => this.onCancel(order.order_id));
    const cell = element("td");
    cell.append(button);
    const row = element("tr");
    row.title = `order ${order.order_id}, ${order.type}, ${order.time_in_force}`;
    row.append(
      element("td", "text", order.symbol),
      side(order.side),
      element("td"),
      element("td"),
      element("td", "text muted"),
      cell,
    );
    return row;
  }
}

function side(name) {
  return element("td", `text ${name === "buy" ? "up" : "down"}`, name);
}

function fillRow(fill) {
  const row = element("tr");
  row.title = `fill ${fill.sequence} of order ${fill.order_id}`;
  row.append(
    element("td", "text muted", new Date(fill.time_ns / 1e6).toTimeString().slice(0, 8)),
    element("td", "text", fill.symbol),
    side(fill.side),
    element("td", "", plain(fill.quantity)),
    element("td", "", fill.price),
    element("td", "text muted", `${fill.liquidity} on E${fill.engine}`),
  );
  return row;
}

function positionRow(position) {
  const row = element("tr");
  row.append(
    element("td", "text", position.symbol),
    element("td", "", plain(position.quantity)),
    element("td", "", rounded(position.average_price)),
    element("td", position.realized_pnl.startsWith("-") ? "down" : "up", plain(position.realized_pnl)),
  );
  return row;
}
