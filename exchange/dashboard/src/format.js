// Ticks and lots as people write them.

const MAX_QUANTITY_DIGITS = 4;
const SMALL = 0.01; // of less than this, so few digits would leave little or nothing
const grouped = new Map();

/** How many decimals a size has. */
export function decimals(size) {
  return size.includes(".") ? size.split(".")[1].length : 0;
}

function mantissa(size) {
  return Number(size.replace(".", ""));
}

/** A number without the exponent that browsers write into a field when it is stepped by little. */
export function spelled(number) {
  const [digits, power] = number.toLowerCase().split("e");
  return power === undefined ? number : Number(number).toFixed(Math.min(Math.max(decimals(digits) - power, 0), 100));
}

/** The format with so many decimals at least and at most. */
function digits(least, most) {
  const key = `${least} ${most}`;
  if (!grouped.has(key)) {
    const options = { minimumFractionDigits: least, maximumFractionDigits: most };
    grouped.set(key, new Intl.NumberFormat("en", options));
  }
  return grouped.get(key);
}

/** How a view's prices and quantities are written, each as a function of an integer; `lots` reads what is written. */
export function units({ tick_size: tick, lot_size: lot }) {
  const priceDigits = decimals(tick);
  const lotDigits = decimals(lot);
  const shown = Math.min(lotDigits, MAX_QUANTITY_DIGITS);
  const priceFactor = mantissa(tick);
  const lotFactor = mantissa(lot);
  const amount = (lots) => (lots * lotFactor) / 10 ** lotDigits;
  return {
    price: (ticks) => ((ticks * priceFactor) / 10 ** priceDigits).toFixed(priceDigits),
    value: (ticks) => (ticks * priceFactor) / 10 ** priceDigits,
    quantity: (lots) => digits(shown, amount(lots) < SMALL ? lotDigits : shown).format(amount(lots)),
    exact: (lots) => plain(amount(lots).toFixed(lotDigits)),
    amount,
    lots: (written) => Math.round((Number(written) * 10 ** lotDigits) / lotFactor),
  };
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A count or a rate, without decimals. */
export function count(number) {
  return whole.format(number);
}

/** The variable of the style sheet with an engine's colour: one for each, eight in turn. */
export function colourName(engine) {
  return `--e${((engine - 1) % 8) + 1}`;
}

/** The colour of an engine, for the style of an element. */
export function colour(engine) {
  return `var(${colourName(engine)})`;
}

/** An element with a class and a text. */
export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Set a text only where it is another one: the browser lays out less. */
export function say(node, text) {
  if (node.textContent !== text) {
    node.textContent = text;
  }
}

/** A decimal without zeros at its end. */
export function plain(number) {
  return number.includes(".") ? number.replace(/\.?0+$/, "") : number;
}

const precise = new Intl.NumberFormat("en", { maximumSignificantDigits: 15, useGrouping: false });

/** An average with all the digits that a double is sure of: one fill's is its price. */
export function rounded(number) {
  return precise.format(number);
}

/** How many more there are, where there are more. */
export function more(number) {
  return number > 0 ? `and ${count(number)} more` : "";
}
