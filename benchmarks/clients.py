"""Many clients: what following fills costs, what idle clients cost, and memory.

    python benchmarks/clients.py [--followers N] [--idle N] [--pairs N] [--json FILE]

Followers each trade over OrderEntry and, in turns, have a GetFills stream open or not. A fill's way is
measured from when its order was sent until it came over the stream, beside the order's own answer. Idle
clients have a connection and a quiet GetFills stream each; another client trades meanwhile, beside an echo.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

import msgspec
import uvloop
from matchbus.v1 import matchbus_pb2 as pb
from rich.console import Console
from rich.progress import track

from benchmarks.figures import Figure, alone, paired, percentile
from benchmarks.order_entry import rate
from benchmarks.peers import Peer, Venue, orders, venue
from benchmarks.processes import resident_bytes
from benchmarks.report import console
from benchmarks.standalone import standalone
from benchmarks.unary import latencies
from benchmarks.waiting import until

PART: Final = "Many clients"
BATCH: Final = 16
REGISTERING: Final = 4
"""Clients that register at once: each costs the exchange 50 ms of hashing, on purpose."""
SETTLE_S: Final = 5.0


class Sizes(msgspec.Struct, frozen=True):
    """How much is done: orders of all followers together a turn, orders one after the other a turn."""

    followers: int = 100
    idle: int = 1_000
    pairs: int = 5
    orders: int = 20_000
    single: int = 500


QUICK: Final = Sizes(followers=8, idle=12, pairs=1, orders=1_600, single=100)


class Follower:
    """A client's GetFills stream: how many fills came, and when each order's first one did."""

    def __init__(self, peer: Peer, since: int) -> None:
        self.fills = since
        self.came: dict[str, float] = {}
        self._call = peer.stub.GetFills(
            pb.GetFillsRequest(since_sequence=since, follow=True), metadata=peer.metadata
        )
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        with suppress(asyncio.CancelledError):
            async for batch in self._call:
                now = time.perf_counter()
                self.fills += len(batch.fills)
                for fill in batch.fills:
                    self.came.setdefault(fill.client_order_id, now)

    async def stop(self) -> int:
        """End the stream; the sequence of the last fill."""
        self._call.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return self.fills


async def clients(market: Venue, count: int, output: Console, what: str) -> list[Peer]:
    """So many new clients."""
    gate = asyncio.Semaphore(REGISTERING)

    async def register() -> Peer:
        async with gate:
            return await market.client()

    waiting = [asyncio.create_task(register()) for _ in range(count)]
    return [await task for task in track(waiting, f"registering {what}", console=output, transient=True)]


async def last_sequence(peer: Peer) -> int:
    """The sequence of a client's last fill."""
    call = peer.stub.GetFills(pb.GetFillsRequest(), metadata=peer.metadata)
    return max([fill.sequence async for batch in call for fill in batch.fills], default=0)


async def follow_fills(market: Venue, sizes: Sizes, output: Console) -> list[Figure]:
    """Rates with and without streams, in turns, and a fill's way beside its order's answer."""
    peers = await clients(market, sizes.followers, output, f"{sizes.followers} clients")
    sequences = [0] * len(peers)
    with_streams: list[tuple[float, float]] = []
    without: list[tuple[float, float]] = []
    for turn in range(sizes.pairs + 1):
        with output.status(f"{sizes.followers} clients, turn {turn + 1} of {sizes.pairs + 1}"):
            without.append(await rate(peers, sizes.orders, BATCH))
            sequences = list(await asyncio.gather(*map(last_sequence, peers)))
            followers = [Follower(peer, since) for peer, since in zip(peers, sequences, strict=True)]
            with_streams.append(await rate(peers, sizes.orders, BATCH))
            sequences = await _settled(peers, followers)
    rates, costs = zip(*with_streams[1:], strict=True)
    bare_rates, bare_costs = zip(*without[1:], strict=True)
    name = f"{sizes.followers} clients follow their fills, batch {BATCH}"
    figures = [
        paired(PART, name, "orders/s", rates, "nobody follows", bare_rates),
        paired(
            *(PART, name, "server CPU µs an order", costs, "nobody follows", bare_costs), lower_is_better=True
        ),
    ]
    with output.status("a fill's way"):
        figures += await fill_way(peers, sequences, sizes)
    return figures


async def _settled(peers: Sequence[Peer], followers: Sequence[Follower]) -> list[int]:
    """End the streams once each has all of its client's fills; a fill that does not come is an error."""
    ends = await asyncio.gather(*map(last_sequence, peers))
    pairs = list(zip(followers, ends, strict=True))
    await until(lambda: all(follower.fills >= end for follower, end in pairs), SETTLE_S)
    return list(await asyncio.gather(*(follower.stop() for follower in followers)))


async def fill_way(peers: Sequence[Peer], sequences: Sequence[int], sizes: Sizes) -> list[Figure]:
    """Market orders of the clients in turns, one at a time, while all follow; the book is full of quotes."""
    followers = [Follower(peer, since) for peer, since in zip(peers, sequences, strict=True)]
    ways: list[list[float]] = []
    answers: list[list[float]] = []
    for _ in range(sizes.pairs):
        way, answer = [], []
        for number, order in enumerate(orders(sizes.single)):
            taker, follower = peers[number % len(peers)], followers[number % len(peers)]
            order.type, order.price, order.quantity = pb.ORDER_TYPE_MARKET, 0, 1
            began = time.perf_counter()
            await taker.stub.SubmitOrder(order, metadata=taker.metadata)
            answer.append((time.perf_counter() - began) * 1e3)
            await until(partial(follower.came.__contains__, order.client_order_id), SETTLE_S, every_s=0)
            way.append((follower.came[order.client_order_id] - began) * 1e3)
        ways.append(sorted(way))
        answers.append(sorted(answer))
    await asyncio.gather(*(follower.stop() for follower in followers))
    return [
        paired(
            *(PART, "a fill over GetFills", f"ms after its order was sent, {label}"),
            [percentile(turn, share) for turn in ways],
            *("the order's answer", [percentile(turn, share) for turn in answers]),
            lower_is_better=True,
        )
        for label, share in (("p50", 0.5), ("p99", 0.99))
    ]


@asynccontextmanager
async def quiet_streams(peers: Sequence[Peer]) -> AsyncIterator[None]:
    """A GetFills stream each, on which nothing comes."""
    followers = [Follower(peer, 0) for peer in peers]
    await asyncio.gather(*(peer.channel.channel_ready() for peer in peers))
    await asyncio.sleep(0.5)
    try:
        yield
    finally:
        await asyncio.gather(*(follower.stop() for follower in followers))


async def idle_clients(market: Venue, sizes: Sizes, output: Console) -> list[Figure]:
    """Turns of engine and echo without idle clients and then with them; memory of each in the engine."""
    active, echo = await market.client(), market.echo()
    figures = await _beside_echo(active, echo, "no idle clients", sizes, output)
    before = resident_bytes(active.pid)
    idle = await clients(market, sizes.idle, output, f"{sizes.idle:,} idle clients")
    async with quiet_streams(idle):
        took = (resident_bytes(active.pid) - before) / sizes.idle / 1024
        figures += await _beside_echo(active, echo, f"{sizes.idle:,} idle clients", sizes, output)
    figures.append(
        alone(PART, f"{sizes.idle:,} idle clients", "KiB of the engine each", [took], lower_is_better=True)
    )
    return figures


async def _beside_echo(active: Peer, echo: Peer, name: str, sizes: Sizes, output: Console) -> list[Figure]:
    times: dict[str, list[float]] = {"engine": [], "echo": []}
    rates: dict[str, list[float]] = {"engine": [], "echo": []}
    for turn in range(sizes.pairs + 1):
        for peer in (active, echo):
            with output.status(f"{name}, turn {turn + 1} of {sizes.pairs + 1}"):
                times[peer.name].append(percentile(await latencies(peer, orders(sizes.single)), 0.5))
                per_second, _ = await rate([peer], sizes.orders, 100)
                rates[peer.name].append(per_second)
    return [
        paired(
            *(PART, name, "ms an order, p50", times["engine"][1:], "echo", times["echo"][1:]),
            lower_is_better=True,
        ),
        paired(PART, name, "orders/s, batch 100", rates["engine"][1:], "echo", rates["echo"][1:]),
    ]


async def measure(sizes: Sizes, output: Console) -> list[Figure]:
    """Idle clients on a market that nobody has used before the followers' own."""
    async with venue() as market:
        figures = await idle_clients(market, sizes, output)
        return figures + await follow_fills(market, sizes, output)


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part."""
    return uvloop.run(measure(sizes, console()))


if __name__ == "__main__":
    standalone(PART, __doc__, Sizes(), run, followers="", idle="", pairs="")
