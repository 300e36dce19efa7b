"""Runs one order book on a flow, in a process of its own: one of ours or one from PyPI.

Here: how each book is called, a few lines each, and the timing, which is the same for all. It imports nothing
but the standard library and the book it runs, because the books from PyPI live in an environment of their own
(`make bench` makes it). Not here: who is compared with whom (`benchmarks/books.py`).

    python -P benchmarks/book_worker.py BOOK FLOW.json      then one JSON request a line: {"do": "rate", ...}

What a caller would have in hand before the call (our commands, their order objects) is made beforehand; the
call itself, and the trades as the book delivers them, are in the time.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from importlib import metadata
from typing import Any, Final

LIMIT, MARKET, CANCEL = range(3)
BUY: Final = 1
BATCH: Final = 100
"""Our engine works in batches; every so many operations it begins a new one."""
FIRST_ID: Final = 1 << 48
OPENING_S: Final = 30.0
"""How long a book may take for the orders that are there at first; the flow itself has its own bound."""
LOOK_EVERY: Final = 64
"""Operations between two looks at the clock: a slow book is stopped in time."""

Operation = tuple[int, int, int, int, int, int]
"""(what, number of the order, symbol, side, price, quantity); a cancel repeats what its order was."""
Trade = tuple[int, int, int, int]
"""(taker, maker, price, quantity)."""
Step = tuple[Callable[..., Any], tuple[Any, ...]]


class Adapter(ABC):
    """One library's books, one a symbol. `step` says what to call for an operation."""

    package = ""
    delivers = "call by call"

    made: list[Trade]
    """The trades noted, where `keep` notes them."""

    @abstractmethod
    def __init__(self, symbols: int) -> None:
        """Make the books."""

    @abstractmethod
    def step(self, operation: Operation) -> Step:
        """The call that does this operation."""

    def keep(self, operation: Operation, returned: Any) -> None:  # noqa: B027 -- some note trades by themselves
        """Note the trades of a call; only when trades are compared."""

    def trades(self) -> list[Trade] | None:
        """All trades noted; None for a book that reports none."""
        return self.made

    def live(self, numbers: Iterable[int]) -> list[int] | None:  # noqa: ARG002 -- for those that tell no trades
        """Which of these orders rest; None where trades are compared instead."""
        return None


class Ours(Adapter):
    """What our three layers have in common."""

    package = "matchbus"

    def __init__(self, symbols: int) -> None:
        self.commands = importlib.import_module("engine.commands")
        self.made: list[Trade] = []
        self.count = 0
        self.open(symbols)

    @abstractmethod
    def open(self, symbols: int) -> None:
        """Make the layer and its books."""

    @abstractmethod
    def call(self) -> Callable[[Any], Any]:
        """What takes a command."""

    @abstractmethod
    def next_batch(self, command: Any) -> Any:
        """The same at the end of a batch."""

    def step(self, operation: Operation) -> Step:
        self.count += 1
        what, number, symbol, side, price, quantity = operation
        if what == CANCEL:
            command = self.commands.CancelOrder(f"client{number % 50}", FIRST_ID + number)
        else:
            command = self.commands.NewOrder(
                f"client{number % 50}", f"o{number}", f"S{symbol}", side, what + 1, 1, price, quantity
            )
        return (self.next_batch if self.count % BATCH == 0 else self.call()), (command,)


class Engine(Ours):
    """The whole state machine."""

    def open(self, symbols: int) -> None:
        self.state = importlib.import_module("engine.state").State(1)
        self.fill = importlib.import_module("engine.events").Fill
        self.batch = 1
        self.state.begin_batch(1, 1)
        self.state.apply(self.commands.EpochStarted(1))
        for symbol in range(symbols):
            self.state.apply(self.commands.AddInstrument(f"S{symbol}", "0.01", "1"))

    def call(self) -> Callable[[Any], Any]:
        return self.state.apply  # type: ignore[no-any-return]  # imported by name

    def next_batch(self, command: Any) -> Any:
        self.state.end_batch()
        self.batch += 1
        self.state.begin_batch(self.batch, self.batch)
        return self.state.apply(command)

    def keep(self, operation: Operation, returned: Any) -> None:
        taker = operation[1]
        for event in returned:
            if type(event) is self.fill and event.order_id == FIRST_ID + taker:
                self.made.append((taker, event.contra_order_id - FIRST_ID, event.price, event.quantity))


class Layer(Ours):
    """A layer of `benchmarks/core.py` that collects its events."""

    name = ""

    def open(self, symbols: int) -> None:
        core = importlib.import_module("benchmarks.core")
        self.layer = getattr(core, self.name)()
        self.traded = core.Traded
        for symbol in range(symbols):
            self.layer.apply(self.commands.AddInstrument(f"S{symbol}", "0.01", "1"))

    def call(self) -> Callable[[Any], Any]:
        return self.layer.apply  # type: ignore[no-any-return]  # likewise

    def next_batch(self, command: Any) -> None:
        self.layer.events = []
        self.layer.apply(command)

    def keep(self, operation: Operation, returned: Any) -> None:  # noqa: ARG002 -- the layer has events
        self.made += [
            (event.taker_id - FIRST_ID, event.maker_id - FIRST_ID, event.price, event.quantity)
            for event in self.layer.events
            if type(event) is self.traded
        ]
        self.layer.events = []


class Book(Layer):
    """Our books and matching alone."""

    name = "BookLayer"


class Least(Layer):
    """The least that matches."""

    name = "LeastLayer"


class BySide(Adapter):
    """Books that have a call for each side of a limit order and of a market order."""

    books: list[Any]

    def step(self, operation: Operation) -> Step:
        what, number, symbol, side, price, quantity = operation
        book = self.books[symbol]
        if what == CANCEL:
            return book.cancel, (number,)
        if what == MARKET:
            return (book.market_buy if side == BUY else book.market_sell), (number, quantity)
        return (book.limit_buy if side == BUY else book.limit_sell), (number, quantity, price)


class OrderlyChaos(BySide):
    """C++; trades come through a callback."""

    package = "orderly-chaos"

    def __init__(self, symbols: int) -> None:
        module = importlib.import_module("orderly_chaos")
        self.reported: list[Any] = []
        self.books = [module.LimitOrderBook(on_trade=self.reported.append) for _ in range(symbols)]

    def trades(self) -> list[Trade]:
        return [(trade.taker_id, trade.maker_id, trade.price, trade.quantity) for trade in self.reported]


class LimitOrderBook(BySide):
    """C++; says nothing of trades."""

    package = "limit-order-book"
    delivers = "never"

    def __init__(self, symbols: int) -> None:
        module = importlib.import_module("limit_order_book")
        self.books = [module.LimitOrderBook() for _ in range(symbols)]

    def trades(self) -> None:
        return None

    def live(self, numbers: Iterable[int]) -> list[int]:
        return [number for number in numbers if any(book.has(number) for book in self.books)]


class Bourse(Adapter):
    """Rust; trades are a list that is read at the end.

    Orders of one time and price replace each other there, so every order gets a time of its own.
    """

    package = "bourse"
    delivers = "as a list at the end"

    def __init__(self, symbols: int) -> None:
        module = importlib.import_module("bourse")
        self.books = [module.core.OrderBook(0, 1, True) for _ in range(symbols)]
        self.ids: dict[int, int] = {}
        self.numbers: list[list[int]] = [[] for _ in range(symbols)]

    def step(self, operation: Operation) -> Step:
        what, number, symbol, side, price, quantity = operation
        book = self.books[symbol]
        if what == CANCEL:
            return book.cancel_order, (self.ids[number],)
        self.ids[number] = len(self.numbers[symbol])
        self.numbers[symbol].append(number)
        return self._place, (book, number, side == BUY, quantity, None if what == MARKET else price)

    def _place(self, book: Any, now: int, is_bid: bool, quantity: int, price: int | None) -> Any:
        book.set_time(now)
        return book.place_order(is_bid, quantity, 0, price)

    def trades(self) -> list[Trade]:
        return [
            (numbers[trade[4]], numbers[trade[5]], trade[2], trade[3])
            for book, numbers in zip(self.books, self.numbers, strict=True)
            for trade in book.get_trades()
        ]


class LightMatchingEngine(Adapter):
    """Pure Python; a market order has price 0, and what is left of it would rest there."""

    package = "lightmatchingengine"

    def __init__(self, symbols: int) -> None:  # noqa: ARG002 -- it makes books by itself
        module = importlib.import_module("lightmatchingengine.lightmatchingengine")
        self.engine = module.LightMatchingEngine()
        self.ids: dict[int, int] = {}
        self.numbers = [0]
        self.made: list[Trade] = []

    def step(self, operation: Operation) -> Step:
        what, number, symbol, side, price, quantity = operation
        if what == CANCEL:
            return self.engine.cancel_order, (self.ids[number], symbol)
        self.ids[number] = len(self.numbers)
        self.numbers.append(number)
        if what == MARKET:
            return self._market, (symbol, quantity, side)
        return self.engine.add_order, (symbol, price, quantity, side)

    def _market(self, symbol: int, quantity: int, side: int) -> Any:
        order, trades = self.engine.add_order(symbol, 0, quantity, side)
        if order.leaves_qty:
            self.engine.cancel_order(order.order_id, symbol)
        return order, trades

    def keep(self, operation: Operation, returned: Any) -> None:
        if operation[0] != CANCEL:
            order, trades = returned
            self.made += [
                (operation[1], self.numbers[trade.order_id], trade.trade_price, trade.trade_qty)
                for trade in trades
                if trade.order_id != order.order_id
            ]


class PyOrderBook(Adapter):
    """Pure Python; no market orders, so they are limits that take any price, and the rest is cancelled."""

    package = "pyorderbook"

    def __init__(self, symbols: int) -> None:
        self.module = importlib.import_module("pyorderbook")
        self.book = self.module.Book()
        self.names = [f"S{symbol}" for symbol in range(symbols)]
        self.orders: dict[int, Any] = {}
        self.numbers: dict[Any, int] = {}
        self.made: list[Trade] = []

    def step(self, operation: Operation) -> Step:
        what, number, symbol, side, price, quantity = operation
        if what == CANCEL:
            return self.book.cancel, (self.orders.pop(number),)
        make = self.module.bid if side == BUY else self.module.ask
        worst = 10**9 if side == BUY else 0
        order = make(self.names[symbol], worst if what == MARKET else price, quantity)
        self.numbers[order.id] = number
        if what == MARKET:
            return self._market, (order,)
        self.orders[number] = order
        return self.book.match, (order,)

    def _market(self, order: Any) -> Any:
        blotter = self.book.match(order)
        if order.quantity:
            self.book.cancel(order)
        return blotter

    def keep(self, operation: Operation, returned: Any) -> None:
        if operation[0] != CANCEL:
            self.made += [
                (
                    operation[1],
                    self.numbers[trade.standing_order_id],
                    int(trade.fill_price),
                    trade.fill_quantity,
                )
                for trade in returned.trades
            ]


class LiteBook(Adapter):
    """Rust; ids are its own, and there are no market orders."""

    package = "litebook"

    def __init__(self, symbols: int) -> None:
        self.module = importlib.import_module("litebook")
        self.books = [self.module.OrderBook(tick_size=1.0) for _ in range(symbols)]
        self.ids: dict[int, str] = {}
        self.numbers: dict[str, int] = {}
        self.made: list[Trade] = []

    def step(self, operation: Operation) -> Step:
        what, number, symbol, side, price, quantity = operation
        book = self.books[symbol]
        if what == CANCEL:
            return book.cancel, (self.ids.pop(number),)
        buy, sell = self.module.OrderType.Buy, self.module.OrderType.Sell
        worst = 10.0**9 if side == BUY else 1.0
        order = book.create_order(
            buy if side == BUY else sell, worst if what == MARKET else float(price), float(quantity)
        )
        self.numbers[order.id] = number
        if what == MARKET:
            return self._market, (book, order, order.id)
        self.ids[number] = order.id
        return book.add, (order,)

    def _market(self, book: Any, order: Any, order_id: str) -> Any:
        fills = book.add(order)
        book.cancel(order_id)
        return fills

    def keep(self, operation: Operation, returned: Any) -> None:
        what, number, _, side, _, _ = operation
        if what != CANCEL:
            for fill in returned:
                maker = self.numbers[fill.sell_id if side == BUY else fill.buy_id]
                self.made.append((number, maker, round(fill.price), round(fill.quantity)))


class LiquiBook(Adapter):
    """C++ through SWIG; trades come to a listener."""

    package = "liquibook"

    def __init__(self, symbols: int) -> None:
        self.module = importlib.import_module("liquibook")
        reported: list[Any] = []

        class Listener(self.module.OrderListener):  # type: ignore[name-defined, misc]  # it has no stubs
            """Collects what traded; the other calls have to be there, or adding an order fails."""

            def on_fill(self, order: Any, matched: Any, quantity: int, cost: int) -> None:
                reported.append((order.order_id_, matched.order_id_, cost, quantity))

            def on_accept(self, order: Any) -> None:
                """Not of interest."""

            on_cancel = on_reject = on_accept

            def on_cancel_reject(self, order: Any, reason: str) -> None:
                """Likewise: what is gone cannot be cancelled."""

        self.reported = reported
        self.listener = Listener()
        self.books = [self.module.DepthOrderBook() for _ in range(symbols)]
        for book in self.books:
            book.set_order_listener(self.listener)
        self.orders: dict[int, Any] = {}
        self.first_id: int | None = None

    def step(self, operation: Operation) -> Step:
        what, number, symbol, side, price, quantity = operation
        book = self.books[symbol]
        if what == CANCEL:
            return book.cancel, (self.orders[number],)
        at_once = self.module.oc_immediate_or_cancel
        order = (
            self.module.SimpleOrder(side == BUY, 0, quantity, 0, at_once)
            if what == MARKET
            else self.module.SimpleOrder(side == BUY, price, quantity)
        )
        if self.first_id is None:
            self.first_id = order.order_id_ - number
        self.orders[number] = order
        return book.add, (order,)

    def trades(self) -> list[Trade]:
        first = self.first_id or 0
        return [
            (taker - first, maker - first, price, quantity) for taker, maker, price, quantity in self.reported
        ]


class OrderMatching(Adapter):
    """Pure Python; every call names a time."""

    package = "order-matching"

    def __init__(self, symbols: int) -> None:
        importlib.import_module("loguru").logger.remove()  # it would print a line an order
        self.order = importlib.import_module("order_matching.order")
        self.side = importlib.import_module("order_matching.enums").Side
        self.orders = importlib.import_module("order_matching.orders").Orders
        engine = importlib.import_module("order_matching.matching_engine").MatchingEngine
        self.engines = [engine(seed=1) for _ in range(symbols)]
        self.made: list[Trade] = []
        self.now = datetime(2026, 1, 1)  # noqa: DTZ001 -- its own times are naive

    def step(self, operation: Operation) -> Step:
        what, number, symbol, side, price, quantity = operation
        engine = self.engines[symbol]
        if what == CANCEL:
            return engine.cancel_order, (str(number),)
        self.now += timedelta(microseconds=1)
        fields = {
            "side": self.side.BUY if side == BUY else self.side.SELL,
            "size": quantity,
            "timestamp": self.now,
            "order_id": str(number),
            "trader_id": "trader",
        }
        if what == MARKET:
            order = self.order.MarketOrder(**fields)
            return self._market, (engine, self.orders([order]), order)
        return self._place, (engine, self.orders([self.order.LimitOrder(price=price, **fields)]), self.now)

    def _place(self, engine: Any, orders: Any, now: datetime) -> Any:
        engine.place(orders=orders)
        return engine.match(timestamp=now)

    def _market(self, engine: Any, orders: Any, order: Any) -> Any:
        trades = self._place(engine, orders, order.timestamp)
        if order.size:
            engine.cancel_order(order.order_id)
        return trades

    def keep(self, operation: Operation, returned: Any) -> None:
        if operation[0] != CANCEL:
            self.made += [
                (
                    int(trade.incoming_order_id),
                    int(trade.book_order_id),
                    round(trade.price),
                    round(trade.size),
                )
                for trade in returned.trades
            ]


OURS: Final[dict[str, type[Adapter]]] = {"engine": Engine, "book": Book, "least": Least}
PEERS: Final[dict[str, type[Adapter]]] = {
    adapter.package: adapter
    for adapter in (
        *(OrderMatching, LightMatchingEngine, PyOrderBook, LiteBook),
        *(LiquiBook, Bourse, OrderlyChaos, LimitOrderBook),
    )
}
BOOKS: Final = OURS | PEERS


class Run:
    """A fresh book after the flow's opening, and the steps that come next."""

    def __init__(self, adapter: type[Adapter], flow: dict[str, Any]) -> None:
        self.adapter = adapter(flow["symbols"])
        self.opening = [tuple(operation) for operation in flow["opening"]]
        self.operations = [tuple(operation) for operation in flow["operations"]]

    def open(self, *, keep: bool = False) -> bool:
        """Do the opening; False when the time is up before."""
        until = time.perf_counter() + OPENING_S
        for number, operation in enumerate(self.opening):
            call, arguments = self.adapter.step(operation)
            returned = call(*arguments)
            if keep:
                self.adapter.keep(operation, returned)
            if number % LOOK_EVERY == 0 and time.perf_counter() > until:
                return False
        return True

    def pieces(self, seconds: float) -> Iterator[list[Step]]:
        """The steps of the flow in short pieces, made just before they are done, for `seconds` at most."""
        until = time.perf_counter() + seconds
        for start in range(0, len(self.operations), LOOK_EVERY):
            if time.perf_counter() > until:
                return
            yield [self.adapter.step(operation) for operation in self.operations[start : start + LOOK_EVERY]]


def compare(adapter: type[Adapter], flow: dict[str, Any], seconds: float) -> dict[str, Any]:
    """All trades of the flow, or which orders are left; with how many operations there was time for."""
    run = Run(adapter, flow)
    if not run.open(keep=True):
        return {"done": 0, "trades": [], "live": None}
    done = 0
    for piece, start in zip(run.pieces(seconds), range(0, len(run.operations), LOOK_EVERY), strict=False):
        for operation, (call, arguments) in zip(run.operations[start:], piece, strict=False):
            run.adapter.keep(operation, call(*arguments))
            done += 1
    trades = run.adapter.trades()
    everyone = sorted({operation[1] for operation in (*run.opening, *run.operations[:done])})
    return {"done": done, "trades": trades, "live": run.adapter.live(everyone)}


def rate(adapter: type[Adapter], flow: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Operations a second of processor time."""
    run = Run(adapter, flow)
    if not run.open():
        return {"done": 0, "per_second": 0.0}
    done, taken = 0, 0.0
    with settled():
        for steps in run.pieces(seconds):
            began = time.process_time()
            for call, arguments in steps:
                call(*arguments)
            taken += time.process_time() - began
            done += len(steps)
    return {"done": done, "per_second": done / taken if taken else 0.0}


def latency(adapter: type[Adapter], flow: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Nanoseconds of each operation, in the order of size at 50, 99 and 99.9 %."""
    run = Run(adapter, flow)
    if not run.open():
        return {"done": 0}
    times: list[int] = []
    clock = time.perf_counter_ns
    with settled():
        for steps in run.pieces(seconds):
            for call, arguments in steps:
                began = clock()
                call(*arguments)
                times.append(clock() - began)
    times.sort()
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
    return {"done": len(times), **{name: nearest(times, share) for name, share in shares.items()}}


def memory(adapter: type[Adapter], orders: int, seconds: float) -> dict[str, Any]:
    """Bytes that each of so many resting orders takes of the process's memory, once all are there."""
    book = adapter(1)
    until = time.perf_counter() + seconds
    gc.collect()
    before = resident_bytes()
    done = 0
    for number in range(1, orders + 1):
        side = 1 + number % 2
        away = 1 + number * 7919 % 2_000
        price = 10_000 - away if side == BUY else 10_000 + away
        call, arguments = book.step((LIMIT, number, 0, side, price, 1 + number % 9))
        call(*arguments)
        done += 1
        if number % LOOK_EVERY == 0 and time.perf_counter() > until:
            break
    gc.collect()
    return {"done": done, "bytes": (resident_bytes() - before) / done}


def nearest(ascending: list[int], share: float) -> int:
    """The value that so many of the sorted ones do not exceed."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))]


def resident_bytes() -> int:
    """What the process has in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 -- read between two measurements
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """With nothing for the garbage collector to walk, as in an engine that has recovered."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def main() -> None:
    """Answer requests until there are no more."""
    name, flow_file = sys.argv[1:]
    adapter = BOOKS[name]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a library that prints does not write into our answers
    try:
        adapter(1)
        release = "" if name in OURS else metadata.version(adapter.package)
    except Exception as error:  # noqa: BLE001 -- whatever a foreign library raises is the reason to show
        answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        return
    answers.write(json.dumps({"version": release, "delivers": adapter.delivers}) + "\n")
    with open(flow_file, encoding="utf-8") as file:  # noqa: PTH123 -- nothing more is loaded than a book needs
        flow = json.load(file)
    tasks = {"compare": compare, "rate": rate, "latency": latency}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "memory":
                answer = memory(adapter, request["orders"], request["seconds"])
            else:
                answer = tasks[request["do"]](adapter, flow, request["seconds"])
        except Exception as error:  # noqa: BLE001 -- likewise
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
