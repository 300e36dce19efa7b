"""How many operations a second the pure core does, with every event made.

The flow is seeded: 65 % limit orders of which a fifth trade on arrival, 5 % market orders, 30 % cancels of
live orders, about 4,000 orders live. Commands are made beforehand. Three layers are measured in turns on the
same commands, and their final books compared. Time is processor time: one thread that waits for nothing, and
what else the machine does is not counted.

    least    the least that matches in price-time order with one event per fact: plain dicts and lists
    book     our books and matching alone, likewise one event per fact
    engine   the whole state machine: checks, client order ids, accounts, fill histories, answers, batches

    python benchmarks/core.py [--operations N] [--runs N] [--seed N] [--json FILE]
"""

import random
import time
from bisect import bisect_left, insort

import msgspec

from benchmarks.book_worker import settled
from benchmarks.figures import Figure, named, paired
from benchmarks.standalone import standalone
from engine.book import ANY_PRICE, Book
from engine.commands import AddInstrument, CancelOrder, Command, EpochStarted, NewOrder
from engine.events import Accepted, Cancelled, Event, Fill
from engine.matching import take
from engine.orders import Account, Order
from engine.state import State
from engine.terms import OrderType, Side, TimeInForce

PART = "Core"
BUY = int(Side.BUY)
MARKET = int(OrderType.MARKET)
LIVE_ORDERS = 4_000
BATCH = 100
CLIENTS = 50
MIDDLE = 10_000
HALF_SPREAD = 5
DEPTH = 200
"""Levels a side on which orders come to rest."""


class Sizes(msgspec.Struct, frozen=True):
    """How much is done."""

    operations: int = 200_000
    runs: int = 5
    seed: int = 1
    symbols: tuple[int, ...] = (1, 100)


QUICK = Sizes(operations=10_000, runs=2)


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
            self.place[event.order_id] = len(self.live)
            self.live.append(event.order_id)
        elif isinstance(event, Fill | Cancelled) and not event.leaves and event.order_id in self.place:
            at, last = self.place.pop(event.order_id), self.live.pop()
            if last != event.order_id:
                self.live[at] = last
                self.place[last] = at


class Entered(msgspec.Struct, frozen=True, gc=False):
    """An order came to a book."""

    order_id: int
    side: int
    price: int
    quantity: int


class Traded(msgspec.Struct, frozen=True, gc=False):
    """Two orders traded."""

    execution_id: int
    taker_id: int
    maker_id: int
    price: int
    quantity: int


class Left(msgspec.Struct, frozen=True, gc=False):
    """An order left its book, or never rested, with this quantity untraded."""

    order_id: int
    quantity: int


class BookLayer:
    """Books and matching with nothing around them; stands where the engine has its accounts."""

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}
        self.orders: dict[int, Order] = {}
        self.events: list[Entered | Traded | Left] = []
        self.last_id = 1 << 48
        self.last_execution_id = 0
        self.nobody = Account("")

    def apply(self, command: Command) -> None:
        """Apply one command of the flow."""
        if type(command) is NewOrder:
            self.enter(command)
        elif type(command) is CancelOrder:
            order = self.orders.pop(command.order_id)
            self.books[order.request.symbol].side(order.side).remove(order)
            self.events.append(Left(order.id, order.open))
        elif type(command) is AddInstrument:
            self.books[command.symbol] = Book(command.symbol)

    def enter(self, command: NewOrder) -> None:
        """Match an order and let the rest of it rest."""
        self.last_id = order_id = self.last_id + 1
        book = self.books[command.symbol]
        side, price, quantity = command.side, command.price, command.quantity
        if side == BUY:
            own_side, opposite, worst = book.bids, book.asks, -price
        else:
            own_side, opposite, worst = book.asks, book.bids, price
        if command.type == MARKET:
            worst = ANY_PRICE
        order = Order(order_id, self.nobody, command, side, price, quantity, quantity, worst)
        self.events.append(Entered(order_id, side, price, quantity))
        keys = opposite.keys
        if keys and keys[-1] >= worst:
            take(opposite, order, worst, quantity, self)
        if order.open:
            if command.type == MARKET:
                self.events.append(Left(order_id, order.open))
            else:
                own_side.add(order)
                self.orders[order_id] = order

    def prevent(self, taker: Order, maker: Order, quantity: int) -> None:
        """Nobody asks for self-trade prevention in this flow."""
        raise AssertionError(taker, maker, quantity)

    def cancel(self, order: Order, quantity: int) -> None:
        """Likewise."""
        raise AssertionError(order, quantity)

    def trade(self, taker: Order, maker: Order, price: int, quantity: int) -> None:
        """What `take` reports for each trade."""
        taker.open -= quantity
        self.last_execution_id += 1
        self.events.append(Traded(self.last_execution_id, taker.id, maker.id, price, quantity))
        if not maker.open:
            del self.orders[maker.id]


class LeastLayer:
    """A book as small as it can be: the limit that the other layers are read against.

    A side is (price key -> order id -> quantity, sorted keys); a dict's order is time order.
    """

    def __init__(self) -> None:
        self.sides: dict[tuple[str, int], tuple[dict[int, dict[int, int]], list[int]]] = {}
        self.places: dict[int, tuple[dict[int, dict[int, int]], list[int], int]] = {}
        self.events: list[Entered | Traded | Left] = []
        self.last_id = 1 << 48

    def apply(self, command: Command) -> None:
        """Apply one command of the flow."""
        if type(command) is NewOrder:
            self.enter(command)
        elif type(command) is CancelOrder:
            levels, keys, key = self.places.pop(command.order_id)
            queue = levels[key]
            self.events.append(Left(command.order_id, queue.pop(command.order_id)))
            if not queue:
                del levels[key], keys[bisect_left(keys, key)]
        elif type(command) is AddInstrument:
            for side in Side:
                self.sides[command.symbol, int(side)] = {}, []

    def enter(self, command: NewOrder) -> None:
        """Match an order and let the rest of it rest."""
        self.last_id = order_id = self.last_id + 1
        side, price, quantity = command.side, command.price, command.quantity
        key = price if side == BUY else -price
        worst = ANY_PRICE if command.type == MARKET else -key
        self.events.append(Entered(order_id, side, price, quantity))
        levels, keys = self.sides[command.symbol, 3 - side]
        while quantity and keys and keys[-1] >= worst:
            best = keys[-1]
            queue = levels[best]
            while quantity and queue:
                maker_id = next(iter(queue))
                open_quantity = queue[maker_id]
                if open_quantity <= quantity:
                    traded = open_quantity
                    del queue[maker_id], self.places[maker_id]
                else:
                    traded = quantity
                    queue[maker_id] = open_quantity - quantity
                quantity -= traded
                self.events.append(Traded(0, order_id, maker_id, abs(best), traded))
            if not queue:
                del levels[best]
                keys.pop()
        if quantity and command.type == MARKET:
            self.events.append(Left(order_id, quantity))
        elif quantity:
            levels, keys = self.sides[command.symbol, side]
            if key not in levels:
                levels[key] = {}
                insort(keys, key)
            levels[key][order_id] = quantity
            self.places[order_id] = levels, keys, key


def run_engine(opening: list[Command], batches: list[list[Command]]) -> tuple[float, State]:
    """Seconds of processor time that a fresh engine takes for the batches after the opening."""
    state = State(1)
    state.begin_batch(1, 1)
    for command in opening:
        state.apply(command)
    state.end_batch()
    with settled():
        started = time.process_time()
        for number, batch in enumerate(batches, start=2):
            state.begin_batch(number, number)
            for command in batch:
                state.apply(command)
            state.end_batch()
        return time.process_time() - started, state


def run_layer(layer: BookLayer | LeastLayer, opening: list[Command], batches: list[list[Command]]) -> float:
    """Seconds of processor time that a fresh layer takes for the batches after the opening."""
    for command in opening:
        layer.apply(command)
    with settled():
        started = time.process_time()
        for batch in batches:
            layer.events = []
            for command in batch:
                layer.apply(command)
        return time.process_time() - started


def measure(seed: int, symbols: int, operations: int, runs: int) -> list[Figure]:
    """Rates of `runs` turns with the same commands, and of each layer its share of the least's."""
    flow = Flow(seed, symbols)
    commands = flow.commands(operations)
    batches = [commands[start : start + BATCH] for start in range(0, operations, BATCH)]
    opening, live_orders = flow.opening, len(flow.live)
    del flow
    rates: dict[str, list[float]] = {"least": [], "book": [], "engine": []}
    for _ in range(runs):
        least, books = LeastLayer(), BookLayer()
        least_seconds, book_seconds = (run_layer(layer, opening, batches) for layer in (least, books))
        engine_seconds, state = run_engine(opening, batches)
        for layer, seconds in zip(rates, (least_seconds, book_seconds, engine_seconds), strict=True):
            rates[layer].append(operations / seconds)
        check_equal(least, books, state)
    return [
        paired(
            *(PART, f"{layer}, {named(symbols, 'symbol')}", "operations/s", made, "least", rates["least"]),
            note=f"{live_orders:,} orders live at the end" if layer == "least" else "",
        )
        for layer, made in rates.items()
    ]


def check_equal(least: LeastLayer, books: BookLayer, state: State) -> None:
    """The three layers must have come to the same orders."""
    for symbol, book in state.books.items():
        for side in Side:
            orders = list(book.orders(side))
            assert orders == list(books.books[symbol].orders(side)), "book and engine disagree"
            queues = least.sides[symbol, int(side)][0].values()
            resting = {order_id: quantity for queue in queues for order_id, quantity in queue.items()}
            assert resting == {order_id: quantity for _, order_id, quantity in orders}, "least and engine"


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part."""
    return [
        figure
        for symbols in sizes.symbols
        for figure in measure(sizes.seed, symbols, sizes.operations, sizes.runs)
    ]


if __name__ == "__main__":
    standalone(PART, __doc__, Sizes(), run, operations="", runs="", seed="")
