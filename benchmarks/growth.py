"""What an order costs as the work grows: more engines, more symbols, a longer history.

    python benchmarks/growth.py [--engines N ...] [--symbols N ...] [--commands N] [--pairs N] [--json FILE]

The load is OrderEntry in batches of 100, beside an echo in turns. The cost of an order is the processor time
of all engines: on two cores the rate says little about four engines. A history is one of steady trading, in
which orders are cancelled as others come, so that about as many rest at any time. In the end it takes turns
with an engine that has none.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from matchbus.v1 import matchbus_pb2 as pb
from rich.console import Console
from rich.progress import Progress

from benchmarks.child import in_child
from benchmarks.figures import Figure, alone, named, paired, percentile
from benchmarks.order_entry import batched, stream
from benchmarks.peers import Peer, orders, venue
from benchmarks.processes import cpu_seconds, resident_bytes
from benchmarks.report import console, show, write_json
from benchmarks.unary import latencies

PART: Final = "Growth"
BATCH: Final = 100
LONG_BATCH: Final = 500
"""Messages of a history's load between two marks."""
LIVE: Final = 2_000
"""An order is cancelled once so many have come after it."""


class Sizes(msgspec.Struct, frozen=True):
    """How much is done: orders a turn, and where the history is looked at."""

    engines: tuple[int, ...] = (1, 2, 4)
    symbols: tuple[int, ...] = (1, 100, 10_000)
    marks: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    pairs: int = 5
    orders: int = 20_000


QUICK: Final = Sizes(engines=(2,), symbols=(100,), marks=(1_000, 4_000), pairs=1, orders=2_000)
LONG: Final = Sizes(marks=(1_000, 10_000, 100_000, 1_000_000, 10_000_000))


class Cost(msgspec.Struct, frozen=True):
    """One turn."""

    per_second: float
    cpu_us: float


async def turn(peers: Sequence[Peer], loads: Sequence[Sequence[pb.OrderEntryRequest]]) -> Cost:
    """All clients send their load at once."""
    servers = {peer.pid for peer in peers}
    used = sum(map(cpu_seconds, servers))
    began = time.perf_counter()
    answered = sum(
        await asyncio.gather(*(stream(peer, load) for peer, load in zip(peers, loads, strict=True)))
    )
    elapsed = time.perf_counter() - began
    return Cost(answered / elapsed, (sum(map(cpu_seconds, servers)) - used) / answered * 1e6)


def beside_echo(name: str, ours: Sequence[Cost], bare: Sequence[Cost]) -> list[Figure]:
    """Rate and cost of an order."""
    return [
        paired(
            *(PART, name, "orders/s", [one.per_second for one in ours]),
            *("echo", [one.per_second for one in bare]),
        ),
        paired(
            *(PART, name, "engine CPU µs an order", [one.cpu_us for one in ours]),
            *("echo", [one.cpu_us for one in bare]),
            lower_is_better=True,
        ),
    ]


# ---------------------------------------------------------------- engines


async def engines(count: int, sizes: Sizes, output: Console) -> list[Figure]:
    """A client at home on each engine, with a symbol of its own; all load at once."""
    symbols = ("AAPL", "MSFT", "GOOG", "AMZN")
    ours, bare = [], []
    async with venue(engines=count) as market:
        clients = [await market.client(number) for number in range(1, count + 1)]
        echoes = [market.echo() for _ in clients]
        share = max(BATCH, sizes.orders // count)
        for number in range(sizes.pairs + 1):
            with output.status(f"{named(count, 'engine')}, turn {number + 1} of {sizes.pairs + 1}"):
                loads = [batched(share, BATCH, [symbols[at % len(symbols)]]) for at in range(count)]
                ours.append(await turn(clients, loads))
                bare.append(await turn(echoes, loads))
    return beside_echo(named(count, "engine"), ours[1:], bare[1:])


# ---------------------------------------------------------------- symbols


async def symbols(count: int, sizes: Sizes, output: Console) -> list[Figure]:
    """One engine; the orders go round all symbols."""
    names = [f"S{number}" for number in range(count)]
    ours, bare = [], []
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        for name in names:
            file.write(f'[[instrument]]\nsymbol = "{name}"\ntick_size = "0.01"\nlot_size = "1"\n')
        file.flush()
        async with AsyncExitStack() as stack:
            began = time.perf_counter()
            with output.status(f"starting with {named(count, 'symbol')}"):
                market = await stack.enter_async_context(venue(instruments=Path(file.name)))
            started_s = time.perf_counter() - began
            client, echo = await market.client(), market.echo()
            for number in range(sizes.pairs + 1):
                with output.status(f"{named(count, 'symbol')}, turn {number + 1} of {sizes.pairs + 1}"):
                    ours.append(await turn([client], [batched(sizes.orders, BATCH, names)]))
                    bare.append(await turn([echo], [batched(sizes.orders, BATCH, names)]))
            memory = resident_bytes(client.pid) / 2**20
    name = named(count, "symbol")
    return [
        *beside_echo(name, ours[1:], bare[1:]),
        alone(PART, name, "s until the market is up", [started_s], lower_is_better=True),
        alone(PART, name, "MiB of the engine after that", [memory], lower_is_better=True),
    ]


# ---------------------------------------------------------------- history


def steady() -> Iterator[pb.Command]:
    """For ever: an order comes, and one that came LIVE orders before is cancelled (many have traded)."""
    waiting: list[str] = []
    run = uuid.uuid4().hex[:8]
    for number in itertools.count():
        for order in orders(10_000):
            order.client_order_id = f"{run}-{number}-{order.client_order_id.partition('-')[2]}"
            yield pb.Command(new=order)
            waiting.append(order.client_order_id)
            if len(waiting) > LIVE:
                yield pb.Command(cancel=pb.CancelOrderRequest(client_order_id=waiting.pop(0)))


def messages(commands: Iterator[pb.Command], count: int, size: int) -> Iterator[pb.OrderEntryRequest]:
    """The next `count` commands in messages that begin with an order: the reply to it is looked at."""
    for _ in range(-(-count // size)):
        made = list(itertools.islice(commands, size))
        made.sort(key=lambda command: command.WhichOneof("command") != "new")
        yield pb.OrderEntryRequest(commands=made)


async def history(sizes: Sizes, output: Console) -> list[Figure]:
    """One engine; from each mark on, turns of the same load beside an echo, at the last also a new engine.

    The turns are part of the history: a mark that lies within those of the one before begins behind them.
    """
    figures: list[Figure] = []
    commands, bare_commands = steady(), steady()
    async with venue() as new_market, venue() as market:
        client, echo = await market.client(), market.echo()
        journaled = 0
        with Progress(console=output, transient=True) as progress:
            bar = progress.add_task("journaled commands", total=sizes.marks[-1])
            for mark in sizes.marks:
                while journaled < mark:
                    part = min(mark - journaled, 20 * LONG_BATCH)
                    load = list(messages(commands, part, min(part, LONG_BATCH)))
                    journaled += await stream(client, load)
                    progress.update(bar, completed=journaled)
                begun, memory = journaled, resident_bytes(client.pid) / 2**20
                ours, bare = [], []
                for _ in range(sizes.pairs + 1):
                    ours.append(await turn([client], [list(messages(commands, sizes.orders, BATCH))]))
                    bare.append(await turn([echo], [list(messages(bare_commands, sizes.orders, BATCH))]))
                    journaled += sizes.orders
                figures.append(
                    alone(
                        PART, f"after {begun:,} commands", "MiB of the engine", [memory], lower_is_better=True
                    )
                )
                figures += beside_echo(f"from {begun:,} to {journaled:,} commands", ours[1:], bare[1:])
        new = await new_market.client()
        return figures + await beside_new(named(sizes.marks[-1], "command"), client, commands, new, sizes)


async def beside_new(
    name: str, client: Peer, commands: Iterator[pb.Command], new: Peer, sizes: Sizes
) -> list[Figure]:
    """Turns of an engine with a history and of one without, short ones: it must stay new."""
    new_commands = steady()
    await stream(new, list(messages(new_commands, sizes.marks[0], BATCH)))
    rates: tuple[list[float], list[float]] = [], []
    medians: tuple[list[float], list[float]] = [], []
    for _ in range(2 * sizes.pairs):
        for at, (peer, made) in enumerate(((client, commands), (new, new_commands))):
            load = list(messages(made, sizes.orders // 4, BATCH))
            rates[at].append((await turn([peer], [load])).per_second)
            medians[at].append(percentile(await latencies(peer, orders(BATCH)), 0.5))
    return [
        paired(PART, f"after {name}", "orders/s", rates[0], "new engine", rates[1]),
        paired(
            *(PART, f"after {name}", "ms an order, p50", medians[0], "new engine", medians[1]),
            lower_is_better=True,
        ),
    ]


# ---------------------------------------------------------------- all of it


def run_engines(count: int, sizes: Sizes) -> list[Figure]:
    """In a process of its own: a market is not started where gRPC runs already."""
    return uvloop.run(engines(count, sizes, console()))


def run_symbols(count: int, sizes: Sizes) -> list[Figure]:
    """Likewise."""
    return uvloop.run(symbols(count, sizes, console()))


def run_history(sizes: Sizes) -> list[Figure]:
    """Likewise."""
    return uvloop.run(history(sizes, console()))


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part."""
    figures: list[Figure] = []
    for count in sizes.engines:
        figures += in_child(run_engines, count, sizes)
    for count in sizes.symbols:
        figures += in_child(run_symbols, count, sizes)
    if sizes.marks:
        figures += in_child(run_history, sizes)
    return figures


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    full = Sizes()
    parser.add_argument("--engines", type=int, nargs="*", default=full.engines)
    parser.add_argument("--symbols", type=int, nargs="*", default=full.symbols)
    parser.add_argument("--commands", type=int, default=full.marks[-1], help="length of the history")
    parser.add_argument("--pairs", type=int, default=full.pairs)
    parser.add_argument("--orders", type=int, default=full.orders, help="a turn")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    marks = tuple(mark for mark in LONG.marks if mark <= options.commands)
    sizes = Sizes(tuple(options.engines), tuple(options.symbols), marks, options.pairs, options.orders)
    figures = run(sizes)
    show(PART, figures, console())
    write_json(options.json, " ".join(sys.argv), figures)


if __name__ == "__main__":
    main()
