"""Flows at which a book may turn out bad: what an operation takes in them, beside the usual flow.

    one long queue    100,000 orders at one price; half are cancelled, then takers eat the holed queue
    thin levels       10,000 levels of one order each: the best is taken, any is cancelled, new ones come
    far orders        orders far from the market that come and are cancelled, a million times
    drained book      more cancels than orders, so that the book is empty again and again

    python benchmarks/hostile.py [--size N] [--operations N] [--pairs N] [--json FILE]

Time is processor time of the whole state machine and of our books alone (`benchmarks/core.py`). Memory is
that of the books after the far orders: they must not remember what is gone.
"""

import gc
import os
import random
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from rich.console import Console
from sortedcontainers import SortedDict

from benchmarks.book_worker import FIRST_ID
from benchmarks.core import BATCH, BookLayer, Flow, run_engine, run_layer
from benchmarks.figures import Figure, alone, paired
from benchmarks.processes import resident_bytes
from benchmarks.report import console
from benchmarks.standalone import standalone
from engine.commands import AddInstrument, CancelOrder, Command, EpochStarted, NewOrder
from engine.terms import OrderType, Side, TimeInForce

PART: Final = "Hostile flows"
SYMBOL: Final = "S0"
CLIENTS: Final = 50
MIDDLE: Final = 1_000_000


class Sizes(msgspec.Struct, frozen=True):
    """How much is done: `size` orders in the long queue, a tenth as many thin levels."""

    size: int = 100_000
    operations: int = 200_000
    far: int = 1_000_000
    pairs: int = 5


QUICK: Final = Sizes(size=5_000, operations=8_000, far=10_000, pairs=2)


class Made(msgspec.Struct, frozen=True):
    """A flow: what is there before, and the operations that are timed."""

    opening: list[Command]
    operations: list[Command]


class Writer:
    """Writes commands and numbers the orders as an engine will."""

    def __init__(self) -> None:
        self.random = random.Random(1)
        self.count = 0
        self.commands: list[Command] = [EpochStarted(1), AddInstrument(SYMBOL, "0.01", "1")]

    def order(self, side: Side, price: int, quantity: int, *, ioc: bool = False) -> int:
        """A limit order; its number."""
        self.count += 1
        force = TimeInForce.IOC if ioc else TimeInForce.GTC
        self.commands.append(
            NewOrder(
                *(self._client(self.count), f"o{self.count}", SYMBOL, int(side)),
                *(int(OrderType.LIMIT), int(force), price, quantity),
            )
        )
        return self.count

    def cancel(self, number: int) -> None:
        """Cancel an order that rests."""
        self.commands.append(CancelOrder(self._client(number), FIRST_ID + number))

    def cut(self) -> list[Command]:
        """What was written since the last cut."""
        made, self.commands = self.commands, []
        return made

    @staticmethod
    def _client(number: int) -> str:
        return f"client{number % CLIENTS}"


def usual(sizes: Sizes) -> Made:
    """The flow that the others stand beside."""
    flow = Flow(1, 1)
    operations = flow.commands(sizes.operations)
    return Made(flow.opening, operations)


def long_queue(sizes: Sizes) -> Made:
    """All at one price: half are cancelled anywhere in the queue, then takers eat what is left."""
    writer = Writer()
    queue = [writer.order(Side.SELL, MIDDLE, 10) for _ in range(sizes.size)]
    opening = writer.cut()
    gone = set(writer.random.sample(queue, len(queue) // 2))
    for number in writer.random.sample(sorted(gone), len(gone)):
        writer.cancel(number)
    for _ in range(len(queue) - len(gone)):
        writer.order(Side.BUY, MIDDLE, 10)
    return Made(opening, writer.cut())


def thin_levels(sizes: Sizes) -> Made:
    """One order a level: best ones are taken, others are cancelled, and new levels take their place."""
    writer = Writer()
    levels = max(10, sizes.size // 10)
    prices = writer.random.sample(range(MIDDLE, MIDDLE + 10 * levels), levels)
    live = SortedDict({price: writer.order(Side.SELL, price, 10) for price in prices})
    opening = writer.cut()
    while len(writer.commands) < sizes.operations:
        if writer.random.random() < 0.5:
            best, _ = live.popitem(0)
            writer.order(Side.BUY, best, 10)
        else:
            price = writer.random.choice(prices)
            if price in live:
                writer.cancel(live.pop(price))
        free = writer.random.choice(prices)
        if free not in live:
            live[free] = writer.order(Side.SELL, free, 10)
    return Made(opening, writer.cut())


def far_orders(sizes: Sizes) -> Made:
    """Orders nobody will ever trade with come and go, each at a price of its own."""
    writer = Writer()
    for place in range(1_000):
        writer.order(Side.BUY, MIDDLE - 1 - place % 100, 10)
        writer.order(Side.SELL, MIDDLE + 1 + place % 100, 10)
    opening = writer.cut()
    for _ in range(sizes.operations // 2):
        away = writer.random.randrange(1_000, 900_000)
        writer.cancel(writer.order(Side.BUY, MIDDLE - away, 10))
    return Made(opening, writer.cut())


def drained(sizes: Sizes) -> Made:
    """Two cancels for an order, while there is one to cancel."""
    writer = Writer()
    live: list[int] = []
    for place in range(1_000):
        side = Side.BUY if place % 2 else Side.SELL
        live.append(_resting(writer, side))
    opening = writer.cut()
    while len(writer.commands) < sizes.operations:
        if live and writer.random.random() < 2 / 3:
            at = writer.random.randrange(len(live))
            live[at], live[-1] = live[-1], live[at]
            writer.cancel(live.pop())
        else:
            live.append(_resting(writer, writer.random.choice((Side.BUY, Side.SELL))))
    return Made(opening, writer.cut())


def _resting(writer: Writer, side: Side) -> int:
    away = writer.random.randrange(1, 100)
    return writer.order(side, MIDDLE - away if side is Side.BUY else MIDDLE + away, 10)


FLOWS: Final[dict[str, Callable[[Sizes], Made]]] = {
    "one long queue": long_queue,
    "thin levels": thin_levels,
    "far orders": far_orders,
    "drained book": drained,
}


def engine_ns(flow: Made) -> float:
    """Nanoseconds that the whole state machine takes for an operation."""
    seconds, _ = run_engine(flow.opening, _batches(flow))
    return seconds / len(flow.operations) * 1e9


def book_ns(flow: Made) -> float:
    """Nanoseconds that our books alone take for an operation."""
    return run_layer(BookLayer(), flow.opening, _batches(flow)) / len(flow.operations) * 1e9


def _batches(flow: Made) -> list[list[Command]]:
    return [flow.operations[at : at + BATCH] for at in range(0, len(flow.operations), BATCH)]


LAYERS: Final[dict[str, Callable[[Made], float]]] = {"engine": engine_ns, "book": book_ns}


def measure(sizes: Sizes, output: Console) -> list[Figure]:
    """Each flow beside the usual one, in turns, and what is left of a million far orders."""
    figures = []
    base = usual(sizes)
    for name, make in FLOWS.items():
        with output.status(f"hostile flow: {name}"):
            flow = make(sizes)
            for layer, nanoseconds in LAYERS.items():
                turns, base_turns = [], []
                for _ in range(sizes.pairs):
                    base_turns.append(nanoseconds(base))
                    turns.append(nanoseconds(flow))
                figures.append(
                    paired(
                        *(PART, f"{name}, {layer}", "ns an operation", turns, "usual flow", base_turns),
                        lower_is_better=True,
                    )
                )
    with output.status(f"{sizes.far:,} far orders come and go"):
        figures.append(leak(sizes.far))
    return figures


def leak(count: int) -> Figure:
    """Bytes of memory that each far order leaves behind in the books alone."""
    layer = BookLayer()
    layer.apply(AddInstrument(SYMBOL, "0.01", "1"))
    warm_up = max(1_000, count // 10)
    before = 0
    for number, (order, cancel) in enumerate(_far_pairs(count + warm_up)):
        layer.apply(order)
        layer.apply(cancel)
        layer.events.clear()
        layer.books[SYMBOL].take_changes()
        if number == warm_up:
            gc.collect()
            before = resident_bytes(os.getpid())
    gc.collect()
    left = max(0, resident_bytes(os.getpid()) - before) / count
    return alone(PART, f"{count:,} far orders, book", "bytes left an order", [left], lower_is_better=True)


def _far_pairs(count: int) -> Iterator[tuple[NewOrder, CancelOrder]]:
    for number in range(1, count + 1):
        price = 1 + number * 7919 % 900_000
        yield (
            NewOrder("client", f"o{number}", SYMBOL, int(Side.BUY), 1, 1, price, 10),
            CancelOrder("client", FIRST_ID + number),
        )


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part."""
    return measure(sizes, console())


if __name__ == "__main__":
    standalone(PART, __doc__, Sizes(), run, size="", operations="", far="", pairs="")
