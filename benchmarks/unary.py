"""How long one SubmitOrder takes, journal fsynced, beside a bare gRPC echo.

python benchmarks/unary.py [--orders N] [--pairs N] [--json FILE]
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

CONCURRENT = 64


async def latencies(peer: Peer, made: list[pb.NewOrder]) -> list[float]:
    """Milliseconds of each order, one after the other, sorted."""
    times = []
    for order in made:
        started = time.perf_counter()
        reply = await peer.stub.SubmitOrder(order, metadata=peer.metadata)
        times.append((time.perf_counter() - started) * 1e3)
        assert reply.status != pb.ORDER_STATUS_REJECTED, reply.reject_text
    return sorted(times)


async def rate(peer: Peer, made: list[pb.NewOrder]) -> float:
    """Orders a second with CONCURRENT of them under way."""
    waiting = iter(made)

    async def work() -> None:
        for order in waiting:
            await peer.stub.SubmitOrder(order, metadata=peer.metadata)

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CONCURRENT)))
    return len(made) / (time.perf_counter() - started)


async def measure(count: int, pairs: int) -> list[dict[str, Any]]:
    """Medians over `pairs` turns."""
    figures: dict[str, dict[str, list[float]]] = {}
    async with peers() as (engine, echo):
        for turn in range(pairs + 1):
            for peer in (engine, echo):
                times = await latencies(peer, orders(count))
                per_second = await rate(peer, orders(4 * count))
                if turn == 0:
                    continue  # opens connections and fills caches
                mine = figures.setdefault(
                    peer.name, {"p50 ms": [], "p99 ms": [], f"per second, {CONCURRENT} at once": []}
                )
                for name, value in zip(
                    mine, (times[count // 2], times[count * 99 // 100], per_second), strict=True
                ):
                    mine[name].append(value)
    return [
        {
            "figure": name,
            "engine": round(median(ours), 3),
            "echo": round(median(figures["echo"][name]), 3),
            "ratio": round(median([a / b for a, b in zip(ours, figures["echo"][name], strict=True)]), 3),
        }
        for name, ours in figures["engine"].items()
    ]


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--orders", type=int, default=1_000, help="one after the other, a turn")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = uvloop.run(measure(options.orders, options.pairs))
    table = Table("", "engine", "echo", "engine / echo", title="SubmitOrder, journaled")
    for row in results:
        table.add_row(row["figure"], f"{row['engine']:,.2f}", f"{row['echo']:,.2f}", f"{row['ratio']:.2f}")
    Console().print(table)
    write_json(options.json, results)


if __name__ == "__main__":
    main()
