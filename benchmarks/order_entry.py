"""How many orders a second one engine takes over OrderEntry, journal fsynced, beside a bare gRPC echo.

With one client also beside an echo that stores each message. Beside the rates stands what an order costs in
processor time of the servers: a busy machine disturbs it less.

    python benchmarks/order_entry.py [--orders N] [--pairs N] [--clients N] [--json FILE]
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec
import uvloop
from matchbus.v1 import matchbus_pb2 as pb
from rich.console import Console

from benchmarks.figures import Figure, alone, named, paired
from benchmarks.peers import SYMBOL, Peer, Venue, orders, venue
from benchmarks.processes import cpu_seconds
from benchmarks.report import console
from benchmarks.standalone import standalone
from client import Client

PART: Final = "OrderEntry, journaled"
IN_FLIGHT: Final = 8
"""Messages sent ahead of their answers, a stream."""


class Sizes(msgspec.Struct, frozen=True):
    """How much is done; the orders are at most so many a turn."""

    orders: int = 30_000
    pairs: int = 5
    clients: tuple[int, ...] = (1, 8)
    batches: tuple[int, ...] = (1, 16, 100, 500)
    tasks: tuple[int, ...] = (8, 64, 1_000)
    """How many tasks each await one order of the client library after the other."""


QUICK: Final = Sizes(orders=2_000, pairs=1, batches=(16, 100), tasks=(64,))


async def stream(peer: Peer, messages: Sequence[pb.OrderEntryRequest]) -> int:
    """Send all over one stream; checks that every command got a reply that is no refusal."""
    window = asyncio.Semaphore(IN_FLIGHT)
    call = peer.stub.OrderEntry(metadata=peer.metadata)

    async def send() -> None:
        for message in messages:
            await window.acquire()
            await call.write(message)
        await call.done_writing()

    sending = asyncio.create_task(send())
    answered = 0
    async for response in call:
        window.release()
        answered += len(response.replies)
        assert response.replies[0].status != pb.ORDER_STATUS_REJECTED, response.replies[0].reject_text
    await sending
    expected = sum(len(message.commands) for message in messages)
    assert answered == expected, f"{answered} replies to {expected} orders"
    return answered


async def rate(peers: Sequence[Peer], count: int, size: int) -> tuple[float, float]:
    """Orders a second of all clients together, and microseconds of the server's processor time an order."""
    share = max(size, count // len(peers))
    made = [batched(share, size) for _ in peers]
    used = cpu_seconds(peers[0].pid)
    started = time.perf_counter()
    answered = sum(
        await asyncio.gather(*(stream(peer, messages) for peer, messages in zip(peers, made, strict=True)))
    )
    elapsed = time.perf_counter() - started
    return answered / elapsed, (cpu_seconds(peers[0].pid) - used) / answered * 1e6


def batched(count: int, size: int, symbols: Sequence[str] = (SYMBOL,)) -> list[pb.OrderEntryRequest]:
    """`count` new orders in messages of `size`."""
    made = [pb.Command(new=order) for order in orders(count, symbols)]
    return [pb.OrderEntryRequest(commands=made[at : at + size]) for at in range(0, count, size)]


async def measure(sizes: Sizes, output: Console) -> list[Figure]:
    """Figures for each number of clients and each size of a batch, and for the client library."""
    figures: list[Figure] = []
    async with venue() as market:
        for clients in sizes.clients:
            peers = {
                "engine": [await market.client() for _ in range(clients)],
                "echo": [market.echo() for _ in range(clients)],
            }
            if clients == 1:
                peers["storing echo"] = [market.storing_echo()]
            name = named(clients, "client")
            for size in sizes.batches:
                with output.status(f"OrderEntry, {name}, batches of {size}"):
                    number = max(size * 20, min(sizes.orders, size * 600))
                    figures += await compare(peers, number, size, sizes.pairs, f"{name}, batch {size}")
        for tasks in sizes.tasks:
            with output.status(f"client library, {tasks} tasks"):
                figures.append(await library(market, tasks, sizes))
    return figures


async def compare(
    peers: Mapping[str, Sequence[Peer]], number: int, size: int, pairs: int, name: str
) -> list[Figure]:
    """Turns of engine and echoes; the first opens connections and fills caches, and does not count."""
    rates: dict[str, list[float]] = {peer: [] for peer in peers}
    costs: dict[str, list[float]] = {peer: [] for peer in peers}
    for turn in range(pairs + 1):
        for peer, connections in peers.items():
            per_second, cost = await rate(connections, number, size)
            if turn:
                rates[peer].append(per_second)
                costs[peer].append(cost)
    figures = []
    for beside in [peer for peer in peers if peer != "engine"]:
        figures += [
            paired(PART, name, "orders/s", rates["engine"], beside, rates[beside]),
            paired(
                *(PART, name, "server CPU µs an order", costs["engine"], beside, costs[beside]),
                lower_is_better=True,
            ),
        ]
    return figures


async def library(market: Venue, tasks: int, sizes: Sizes) -> Figure:
    """Orders a second of `await client.submit(...)` in a loop, from many tasks of one client."""
    turns = []
    count = max(tasks, sizes.orders // 3)
    async with Client.connect(
        market.cluster.exchange.address, client_id=f"library{tasks}", password="password", secret="bench"
    ) as client:
        for _ in range(sizes.pairs + 1):
            made = iter(orders(count))

            async def work(waiting: Iterator[pb.NewOrder] = made) -> None:
                for order in waiting:
                    side = "buy" if order.side == pb.SIDE_BUY else "sell"
                    await client.submit(SYMBOL, side, order.quantity, f"{order.price / 100:.2f}")

            started = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(tasks)))
            turns.append(count / (time.perf_counter() - started))
    return alone(PART, f"client library, {tasks:,} tasks", "orders/s", turns[1:])


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part."""
    return uvloop.run(measure(sizes, console()))


if __name__ == "__main__":
    standalone(PART, __doc__, Sizes(), run, orders="at most this many a turn", pairs="", clients="")
