"""Follow a book with nothing but nats-py, docs/feed.md in code. Arguments: nats://HOST:PORT AAPL [engine]."""

import json
import sys
import zlib
from asyncio import Queue, run, wait_for
from typing import Any

import nats


def checksum(book: dict[int, dict[int, int]]) -> int:
    """CRC-32 of the ten best levels a side, best first."""
    best = sorted(book[1].items(), reverse=True)[:10], sorted(book[2].items())[:10]
    return zlib.crc32("|".join("".join(f"{p}:{q};" for p, q in side) for side in best).encode())


async def main(url: str, symbol: str, engine: str = "1") -> None:
    """Print sequence, checksum, best bid and ask at every change; `unsynced` while nobody can know."""
    nc = await wait_for(nats.connect(url, error_cb=Queue[Exception]().put, max_reconnect_attempts=-1), 5)
    subject, feed = f"md.{engine}.book.{symbol.replace('.', '=')}", await nc.subscribe(f"md.{engine}.>")
    book, epoch, sequence, shown = dict[int, dict[int, int]]({1: {}, 2: {}}), 0, -1, ""  # -1: unsynced
    parts, waiting = list[Any](), list[Any]()  # of a snapshot that is not whole yet; deltas before it is
    while True:  # ONE subscription for all: two would reorder against each other
        try:
            msg = await feed.next_msg(timeout=0.3)
            kind, *fields = json.loads(msg.data)  # later versions may add fields
        except nats.errors.TimeoutError:  # three heartbeats missing: the engine is down
            kind, fields, sequence = "silence", [epoch], -1
        its_epoch = fields[kind == "heartbeat"]  # in a heartbeat the engine's number stands before it
        if its_epoch < epoch:
            continue  # a replaced primary
        if its_epoch > epoch or (kind == "heartbeat" and fields[4].get(symbol, 0) > sequence):
            epoch, sequence = its_epoch, -1  # a new primary, or the last delta was lost
        news: list[Any] = [fields[1:3] + fields[5:7]] if kind == "delta" and msg.subject == subject else []
        if kind == "snapshot" and msg.subject == subject and fields[1] > sequence:
            follows = fields[6] == len(parts) + 1 and all(part[1] == fields[1] for part in parts)
            parts = [*parts, fields] if follows else [fields] if fields[6] == 1 else []
            if len(parts) == fields[7]:  # whole: it builds on nothing, and what waited for it on it
                book, levels = {1: {}, 2: {}}, [level for part in parts for level in part[4]]
                news, parts, waiting = [(fields[1], sequence, levels, fields[5]), *waiting], [], []
        for new_sequence, previous, levels, check in news:
            if new_sequence > sequence != previous:  # a gap, or the snapshot is still to come
                sequence, waiting = -1, [*waiting[-255:], (new_sequence, previous, levels, check)]
            elif new_sequence > sequence:
                for side, price, quantity, *_ in levels:
                    book[side].update({price: quantity}) if quantity else book[side].pop(price, None)
                sequence = new_sequence if checksum(book) == check else -1
        if sequence < 0 and kind in ("heartbeat", "silence"):
            await nc.publish(f"snapshot.{engine}", json.dumps(["snapshot_request", [symbol]]).encode())
        best = f"{max(book[1].items(), default=None)} {min(book[2].items(), default=None)}"
        if (now := "unsynced" if sequence < 0 else f"{sequence} {checksum(book)} {best}") != shown:
            print(shown := now, flush=True)


try:
    run(main(*sys.argv[1:])) if len(sys.argv) > 2 else sys.exit(__doc__)
except (KeyboardInterrupt, TimeoutError) as end:
    sys.exit(f"no NATS answers at {sys.argv[1]}" if isinstance(end, TimeoutError) else 0)
