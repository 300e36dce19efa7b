"""How many operations a second the pure core does, with every event made.

The flow is seeded: 65 % limit orders of which a fifth trade on arrival, 5 % market orders, 30 % cancels of
live orders, about 4,000 orders live. Commands are made beforehand; the clock sees `State.apply` and the
batch marks alone.

    python benchmarks/core.py [--operations N] [--runs N] [--seed N] [--json FILE]
"""

import argparse
import gc
import json
import platform
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engine.commands import AddInstrument, CancelOrder, Command, EpochStarted, NewOrder
from engine.events import Accepted, Answered, Cancelled, Event, Fill
from engine.state import State
from engine.terms import OrderType, Side, TimeInForce

LIVE_ORDERS = 4_000
BATCH = 100
CLIENTS = 50
MIDDLE = 10_000
HALF_SPREAD = 5
DEPTH = 200
"""Levels a side on which orders come to rest."""


@dataclass(frozen=True)
class Result:
    """What one flow gave: medians over the runs."""

    symbols: int
    operations: int
    operations_per_second: int
    runs: list[int]
    events: int
    trades: int
    live_orders: int


class Flow:
    """Makes commands beside an engine of its own, so that cancels name live orders and prices fit."""

    def __init__(self, seed: int, symbols: int) -> None:
        self.random = random.Random(seed)
        self.symbols = [f"S{number}" for number in range(symbols)]
        self.state = State(1)
        self.count = 0
        self.clients: dict[int, str] = {}
        self.live: list[int] = []
        self.place: dict[int, int] = {}
        self.batch_number = 0
        listing = [AddInstrument(symbol, "0.01", "1") for symbol in self.symbols]
        self.opening: list[Command] = [EpochStarted(1), *listing]
        self._apply_all(self.opening)
        while len(self.live) < LIVE_ORDERS:
            self.opening.append(self._resting())
            self._apply_all(self.opening[-1:])

    def commands(self, count: int) -> list[Command]:
        """The next `count` commands of the flow."""
        made = []
        for _ in range(count):
            draw = self.random.random()
            if draw < 0.52:
                command: Command = self._resting()
            elif draw < 0.65:
                command = self._taking(OrderType.LIMIT)
            elif draw < 0.70:
                command = self._taking(OrderType.MARKET)
            else:
                order_id = self.random.choice(self.live)
                command = CancelOrder(self.clients[order_id], order_id)
            made.append(command)
            self._apply_all([command])
        return made

    def _resting(self) -> NewOrder:
        side = self.random.choice((Side.BUY, Side.SELL))
        distance = HALF_SPREAD + min(int(self.random.expovariate(1 / 20)), DEPTH)
        price = MIDDLE - distance if side is Side.BUY else MIDDLE + distance
        return self._order(side, OrderType.LIMIT, price, self.random.randint(1, 100))

    def _taking(self, order_type: OrderType) -> NewOrder:
        """An order that trades: with about one resting order, with more while too many are live."""
        side = self.random.choice((Side.BUY, Side.SELL))
        limit = MIDDLE + DEPTH if side is Side.BUY else MIDDLE - DEPTH
        largest = 220 if len(self.live) > LIVE_ORDERS else 60
        price = limit if order_type is OrderType.LIMIT else 0
        return self._order(side, order_type, price, self.random.randint(1, largest))

    def _order(self, side: Side, order_type: OrderType, price: int, quantity: int) -> NewOrder:
        self.count += 1
        return NewOrder(
            f"client{self.random.randrange(CLIENTS)}",
            f"o{self.count}",
            self.random.choice(self.symbols),
            int(side),  # as it comes over the wire
            int(order_type),
            int(TimeInForce.GTC),
            price,
            quantity,
        )

    def _apply_all(self, commands: list[Command]) -> None:
        self.batch_number += 1
        self.state.begin_batch(self.batch_number, self.batch_number)
        for command in commands:
            for event in self.state.apply(command):
                self._follow(event)
        self.state.end_batch()

    def _follow(self, event: Event) -> None:
        """Keep the list of live orders."""
        if isinstance(event, Accepted):
            self.clients[event.order_id] = event.client
        elif isinstance(event, Answered) and event.leaves:
            if event.order_id not in self.place:
                self.place[event.order_id] = len(self.live)
                self.live.append(event.order_id)
        elif isinstance(event, Fill | Cancelled) and not event.leaves and event.order_id in self.place:
            at, last = self.place.pop(event.order_id), self.live.pop()
            if last != event.order_id:
                self.live[at] = last
                self.place[last] = at


def run(opening: list[Command], batches: list[list[Command]]) -> float:
    """Seconds that a fresh engine takes for the batches after the opening."""
    state = State(1)
    state.begin_batch(1, 1)
    for command in opening:
        state.apply(command)
    state.end_batch()
    gc.collect()
    gc.freeze()  # as the engine does once it has recovered
    started = time.perf_counter()
    for number, batch in enumerate(batches, start=2):
        state.begin_batch(number, number)
        for command in batch:
            state.apply(command)
        state.end_batch()
    elapsed = time.perf_counter() - started
    gc.unfreeze()
    return elapsed


def measure(seed: int, symbols: int, operations: int, runs: int) -> Result:
    """The medians over `runs` fresh engines with the same commands."""
    flow = Flow(seed, symbols)
    commands = flow.commands(operations)
    batches = [commands[start : start + BATCH] for start in range(0, operations, BATCH)]
    opening, live_orders = flow.opening, len(flow.live)
    del flow
    rates = [round(operations / run(opening, batches)) for _ in range(runs)]
    events, trades = count_events(opening, batches)
    return Result(symbols, operations, round(statistics.median(rates)), rates, events, trades, live_orders)


def count_events(opening: list[Command], batches: list[list[Command]]) -> tuple[int, int]:
    """Events and trades of the measured commands, counted apart so that counting costs the clock nothing."""
    state = State(1)
    events: list[Event] = []
    for number, batch in enumerate([opening, *batches], start=1):
        state.begin_batch(number, number)
        made = [event for command in batch for event in state.apply(command)]
        made += state.end_batch()
        if number > 1:
            events += made
    return len(events), sum(isinstance(event, Fill) for event in events) // 2


def main() -> None:
    """Measure with 1 and with 100 symbols and print a table."""
    parser = argparse.ArgumentParser(description="Operations a second of the pure core.")
    parser.add_argument("--operations", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    arguments = parser.parse_args()
    results = [measure(arguments.seed, symbols, arguments.operations, arguments.runs) for symbols in (1, 100)]
    table = Table(title=f"Core, {arguments.runs} runs of {arguments.operations:,} operations, events made")
    for column in ("symbols", "operations/s", "slowest", "fastest", "events", "trades", "live orders"):
        table.add_column(column, justify="right")
    for result in results:
        counts = (
            result.operations_per_second,
            min(result.runs),
            max(result.runs),
            result.events,
            result.trades,
            result.live_orders,
        )
        table.add_row(str(result.symbols), *(f"{count:,}" for count in counts))
    Console().print(table)
    if arguments.json:
        report = {
            "benchmark": "core",
            "python": platform.python_version(),
            "seed": arguments.seed,
            "results": [asdict(result) for result in results],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
