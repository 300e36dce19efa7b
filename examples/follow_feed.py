"""Follow a book with nothing but nats-py, docs/feed.md in code. Arguments: nats://HOST:PORT AAPL [engine]."""

import asyncio
import json
import sys
import zlib

import nats


def checksum(book: dict[int, dict[int, int]]) -> int:
    """CRC-32 of the ten best levels a side, best first."""
    best = sorted(book[1].items(), reverse=True)[:10], sorted(book[2].items())[:10]
    text = "|".join("".join(f"{price}:{quantity};" for price, quantity in side) for side in best)
    return zlib.crc32(text.encode())


async def main(url: str, symbol: str, engine: str = "1") -> None:
    """Print sequence, checksum, best bid and ask at every change; `unsynced` while nobody can know."""
    nc, subject, shown = await nats.connect(url), f"md.{engine}.book.{symbol.replace('.', '=')}", ""
    feed = await nc.subscribe(f"md.{engine}.>")  # ONE subscription: two would reorder against each other
    book, epoch, sequence = dict[int, dict[int, int]]({1: {}, 2: {}}), 0, -1  # sequence -1: unsynced
    got = (0, 0)  # the sequence of a snapshot and how many of its parts are in the book
    while True:
        try:
            message = await feed.next_msg(timeout=0.3)
            kind, *fields = json.loads(message.data)
        except nats.errors.TimeoutError:  # three heartbeats missing: the engine is down
            kind, fields, sequence = "silence", [epoch], -1
        its_epoch = fields[1] if kind == "heartbeat" else fields[0]
        if its_epoch < epoch:
            continue  # a replaced primary
        if its_epoch > epoch:
            epoch, sequence = its_epoch, -1  # a new one: nothing known counts
        if kind == "heartbeat" and fields[4].get(symbol, 0) > sequence:
            sequence = -1  # the last delta was lost
        if kind in ("snapshot", "delta") and message.subject == subject and fields[1] > sequence:
            if kind == "snapshot":
                # Later versions may add fields.
                _, new_sequence, _, _, levels, check, part, parts = fields[:8]
                book = {1: {}, 2: {}} if part == 1 else book
                got = (new_sequence, part) if part == 1 or got == (new_sequence, part - 1) else (0, 0)
                new_sequence = new_sequence if got == (new_sequence, parts) else -1  # -1: not whole yet
            else:
                _, new_sequence, previous, _, _, levels, check = fields[:7]
                new_sequence = new_sequence if previous == sequence else -1  # -1: a gap
                got = (0, 0)
            for side, price, quantity, *_ in levels:
                book[side].update({price: quantity}) if quantity else book[side].pop(price, None)
            sequence = new_sequence if checksum(book) == check else -1
        if sequence < 0 and kind in ("heartbeat", "silence"):
            await nc.publish(f"snapshot.{engine}", json.dumps(["snapshot_request", [symbol]]).encode())
        best = f"{max(book[1].items(), default=None)} {min(book[2].items(), default=None)}"
        if (now := "unsynced" if sequence < 0 else f"{sequence} {checksum(book)} {best}") != shown:
            print(shown := now, flush=True)


asyncio.run(main(*sys.argv[1:]))
