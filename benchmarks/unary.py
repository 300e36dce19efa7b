"""How long one SubmitOrder takes, journal fsynced, beside a bare gRPC echo and one that stores each order.

One after the other; with 64 under way; and, beside the bare echo alone, at fixed rates that wait for nobody,
where the time counts from when an order was meant to leave (`benchmarks/open_loop.py`).

    python benchmarks/unary.py [--orders N] [--pairs N] [--seconds N] [--json FILE]
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec
import uvloop
from matchbus.v1 import matchbus_pb2 as pb
from rich.console import Console

from benchmarks.figures import Figure, alone, missing, paired, percentile
from benchmarks.open_loop import Outcome, at_rate
from benchmarks.peers import Peer, orders, venue
from benchmarks.processes import cpu_seconds
from benchmarks.report import console
from benchmarks.standalone import standalone

PART: Final = "SubmitOrder, journaled"
CONCURRENT: Final = 64
SHARES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


class Sizes(msgspec.Struct, frozen=True):
    """How much is done: orders one after the other in a turn, four times as many with 64 under way."""

    orders: int = 1_000
    pairs: int = 5
    seconds: float = 5.0
    """How long a turn at a fixed rate takes."""
    rates: tuple[int, ...] = (100, 1_000, 3_000)


QUICK: Final = Sizes(orders=100, pairs=1, seconds=0.3)


async def latencies(peer: Peer, made: list[pb.NewOrder]) -> list[float]:
    """Milliseconds of each order, one after the other, sorted."""
    times = []
    for order in made:
        started = time.perf_counter()
        await submit(peer, order)
        times.append((time.perf_counter() - started) * 1e3)
    return sorted(times)


async def submit(peer: Peer, order: pb.NewOrder) -> None:
    """One order that must not be refused."""
    reply = await peer.stub.SubmitOrder(order, metadata=peer.metadata)
    assert reply.status != pb.ORDER_STATUS_REJECTED, reply.reject_text


async def rate(peer: Peer, made: list[pb.NewOrder]) -> tuple[float, float]:
    """Orders a second with CONCURRENT of them under way, and the server's processor time an order in µs."""
    waiting = iter(made)

    async def work() -> None:
        for order in waiting:
            await submit(peer, order)

    used = cpu_seconds(peer.pid)
    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CONCURRENT)))
    elapsed = time.perf_counter() - started
    return len(made) / elapsed, (cpu_seconds(peer.pid) - used) / len(made) * 1e6


async def measure(sizes: Sizes, output: Console) -> list[Figure]:
    """Turns of engine and echoes; the first opens connections and fills caches, and does not count."""
    turns: defaultdict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    loads = [(peer, fixed) for fixed in sizes.rates for peer in ("engine", "echo")]
    outcomes: dict[tuple[str, int], list[Outcome]] = {load: [] for load in loads}
    async with venue() as market:
        engine, echo, storing_echo = await market.client(), market.echo(), market.storing_echo()
        for turn in range(sizes.pairs + 1):
            for peer in (engine, echo, storing_echo):
                with output.status(f"SubmitOrder, {peer.name}, turn {turn + 1} of {sizes.pairs + 1}"):
                    times = await latencies(peer, orders(sizes.orders))
                    per_second, cost = await rate(peer, orders(4 * sizes.orders))
                    if turn == 0:
                        continue
                    for name, share in SHARES.items():
                        turns["one after the other", f"ms, {name}"][peer.name].append(
                            percentile(times, share)
                        )
                    turns[f"{CONCURRENT} at once", "orders/s"][peer.name].append(per_second)
                    turns[f"{CONCURRENT} at once", "server CPU µs an order"][peer.name].append(cost)
                    if peer is storing_echo:
                        continue
                    for fixed in sizes.rates:
                        made = orders(round(fixed * sizes.seconds))
                        outcomes[peer.name, fixed].append(await at_rate(partial(submit, peer), made, fixed))
    figures = [
        paired(*(PART, name, unit, made["engine"], beside, made[beside]), lower_is_better=unit != "orders/s")
        for (name, unit), made in turns.items()
        for beside in ("echo", "storing echo")
    ]
    for fixed in sizes.rates:
        figures += at_fixed_rate(fixed, outcomes["engine", fixed], outcomes["echo", fixed])
    return figures


def at_fixed_rate(per_second: int, engine: Sequence[Outcome], echo: Sequence[Outcome]) -> list[Figure]:
    """Latencies at one rate, and how late the load itself was; a rate that was not sustained has none."""
    name = f"{per_second:,} a second"
    failed = {"engine": sum(turn.failed for turn in engine), "echo": sum(turn.failed for turn in echo)}
    for peer, count in failed.items():
        if count:
            return [
                missing(PART, name, "ms", f"not sustained: {peer} took {count:,} of the orders not at all")
            ]
    figures = [
        paired(
            *(PART, name, f"ms, {label}", [ms(turn.answered, share) for turn in engine]),
            *("echo", [ms(turn.answered, share) for turn in echo]),
            lower_is_better=True,
        )
        for label, share in SHARES.items()
    ]
    late = [ms(turn.late, SHARES["p99"]) for turn in (*engine, *echo)]
    figures.append(alone(PART, name, "ms that the load was late, p99", late, lower_is_better=True))
    return figures


def ms(histogram: Any, share: float) -> float:
    """A percentile in milliseconds."""
    return float(histogram.get_value_at_percentile(100 * share) / 1e3)


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part."""
    return uvloop.run(measure(sizes, console()))


if __name__ == "__main__":
    standalone(
        PART,
        __doc__,
        Sizes(),
        run,
        orders="one after the other, a turn",
        pairs="",
        seconds="of a turn at a fixed rate",
    )
