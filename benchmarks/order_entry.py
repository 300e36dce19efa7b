"""How many orders a second one engine takes over OrderEntry, journal fsynced, beside a bare gRPC echo.

python benchmarks/order_entry.py [--orders N] [--pairs N] [--json FILE]
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import uvloop
from matchbus.v1 import matchbus_pb2 as pb
from rich.console import Console
from rich.table import Table

from benchmarks.peers import Peer, median, orders, peers, write_json

BATCHES = (1, 16, 100, 500)
IN_FLIGHT = 8
"""Messages sent ahead of their answers."""


async def rate(peer: Peer, messages: list[pb.OrderEntryRequest]) -> float:
    """Orders a second over one stream; checks that every command got a reply that is no refusal."""
    window = asyncio.Semaphore(IN_FLIGHT)
    call = peer.stub.OrderEntry(metadata=peer.metadata)

    async def send() -> None:
        for message in messages:
            await window.acquire()
            await call.write(message)
        await call.done_writing()

    started = time.perf_counter()
    sending = asyncio.create_task(send())
    answered = 0
    async for response in call:
        window.release()
        answered += len(response.replies)
        assert response.replies[0].status != pb.ORDER_STATUS_REJECTED, response.replies[0].reject_text
    elapsed = time.perf_counter() - started
    await sending
    expected = sum(len(message.commands) for message in messages)
    assert answered == expected, f"{answered} replies to {expected} orders"
    return answered / elapsed


def batched(count: int, size: int) -> list[pb.OrderEntryRequest]:
    """`count` new orders in messages of `size`."""
    made = [pb.Command(new=order) for order in orders(count)]
    return [pb.OrderEntryRequest(commands=made[at : at + size]) for at in range(0, count, size)]


async def measure(count: int, pairs: int) -> list[dict[str, Any]]:
    """Medians over `pairs` turns for each batch size."""
    results = []
    async with peers() as (engine, echo):
        for size in BATCHES:
            number = max(size * 20, min(count, size * 600))
            rates: dict[str, list[float]] = {engine.name: [], echo.name: []}
            for _ in range(pairs + 1):
                for peer in (engine, echo):
                    rates[peer.name].append(await rate(peer, batched(number, size)))
            # The first turn opens connections and fills caches.
            ours, bare = (rates[peer.name][1:] for peer in (engine, echo))
            results.append(
                {
                    "batch": size,
                    "orders": number,
                    "engine_per_second": round(median(ours)),
                    "echo_per_second": round(median(bare)),
                    "ratio": round(median([mine / its for mine, its in zip(ours, bare, strict=True)]), 3),
                }
            )
    return results


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--orders", type=int, default=30_000, help="at most this many a turn")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = uvloop.run(measure(options.orders, options.pairs))
    table = Table(
        "batch", "engine, orders/s", "echo, orders/s", "engine / echo", title="OrderEntry, journaled"
    )
    for row in results:
        table.add_row(
            str(row["batch"]),
            f"{row['engine_per_second']:,}",
            f"{row['echo_per_second']:,}",
            f"{row['ratio']:.2f}",
        )
    Console().print(table)
    write_json(options.json, results)


if __name__ == "__main__":
    main()
