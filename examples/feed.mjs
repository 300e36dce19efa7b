// Follow a book from Node, docs/feed.md in code. `npm ci --prefix examples` once, then
// node examples/feed.mjs nats://127.0.0.1:4222 AAPL [engine]
import { crc32 } from "node:zlib";
import { connect } from "@nats-io/transport-node";
const [url, symbol, engine = "1"] = process.argv.slice(2);
const UNSYNCED = -1, DOWN_MS = 300, subject = `md.${engine}.book.${symbol.replaceAll(".", "=")}`;
const exact = (json) => JSON.parse(json.replace(/(?<=[[,] *)\d{16,}(?= *[\],])/g, '"$&"')); // as text
const empty = () => ({ 1: new Map(), 2: new Map() });
let epoch, sequence, book, parts, waiting, smallestLag, shown, heardAt = 0, askAt = 0, patience = 50; // ms
const best = (side) => [...book[side]].sort(([a], [b]) => (side === 1 ? b - a : a - b)).slice(0, 10);
const text = (side) => best(side).map(([price, quantity]) => `${price}:${quantity};`).join("");
const checksum = () => crc32(`${text(1)}|${text(2)}`);
function begin(its) { // nothing known of an epoch before counts
  [epoch, sequence, book, parts, waiting, smallestLag] = [its, UNSYNCED, empty(), [], [], Infinity];
}
function put(levels, leadsTo, check) { // absolute values; quantity 0 removes
  for (const [side, price, quantity] of levels) book[side][quantity ? "set" : "delete"](price, quantity);
  sequence = checksum() === check ? leadsTo : UNSYNCED;
}
function delta(fields) {
  const [, its, previous, , , levels, check] = fields;
  if (its <= sequence) return; // a duplicate
  if (previous === sequence) return put(levels, its, check);
  [sequence, waiting] = [UNSYNCED, [...waiting, fields].slice(-256)]; // a gap, or no snapshot yet
}
function snapshot(fields) {
  const [, its, , , , check, part, all] = fields;
  if (part !== parts.length + 1 || (part > 1 && parts[0][1] !== its)) parts = []; // one before it is missing
  if (its <= sequence || part !== parts.length + 1 || parts.push(fields) < all) return;
  book = empty();
  put(parts.splice(0).flatMap((one) => one[4]), its, check);
  waiting.splice(0).forEach(delta);
}
function heartbeat([, , , sent_ns, sequences]) {
  const lag = performance.now() - sent_ns / 1e6;
  smallestLag = Math.min(smallestLag + (performance.now() - heardAt) / 5_000, lag); // no two clocks run alike
  heardAt = performance.now() - lag + smallestLag; // an old one can arrive late
  if ((sequences[symbol] ?? 0) > sequence) sequence = UNSYNCED; // the last delta was lost
}
function look() { // say where the book stands, ask for it where that is nowhere
  if (performance.now() - heardAt > DOWN_MS) sequence = UNSYNCED; // the engine is down
  if (sequence !== UNSYNCED) patience = 50;
  else if (performance.now() > askAt) {
    nc.publish(`snapshot.${engine}`, JSON.stringify(["snapshot_request", [symbol]]));
    askAt = performance.now() + (patience = Math.min(2 * patience, 1000)) * Math.random();
  }
  const line = sequence === UNSYNCED ? "unsynced" : `${sequence} ${checksum()} ${best(1)[0]} ${best(2)[0]}`;
  if (line !== shown) console.log((shown = line));
}
begin(0);
const nc = await connect({ servers: url, maxReconnectAttempts: -1 });
setInterval(look, 20);
for await (const message of nc.subscribe(`md.${engine}.>`)) { // ONE: two would reorder against each other
  const [kind, ...fields] = exact(message.string()), itsEpoch = fields[kind === "heartbeat" ? 1 : 0];
  if (itsEpoch < epoch || (kind !== "heartbeat" && message.subject !== subject)) continue;
  if (itsEpoch > epoch) begin(itsEpoch);
  ({ delta, snapshot, heartbeat })[kind](fields);
  look();
}
