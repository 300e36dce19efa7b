"""Clients that trade as fast as they are told and write down everything they do and hear.

A command that gets no answer within the library's deadline is given again under the same id until there is
one, as a careful client would. Each order is cancelled at most once and replaced at most once, so that no two
commands are alike.
"""

import asyncio
import itertools
import random
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from bus.messages import ReportedFill
from client import Client, Fill, MatchbusError, OrderResult, Unavailable
from client.results import Position
from client.terms import (
    LIQUIDITIES,
    ORDER_TYPE_NUMBERS,
    REJECT_REASONS,
    SELF_TRADE_PREVENTION_NUMBERS,
    SIDE_NUMBERS,
    STATUSES,
    TIME_IN_FORCE_NUMBERS,
)
from client.units import Instrument
from engine.commands import CancelOrder, NewOrder, OrderCommand, ReplaceOrder
from simulation.witness import ClientLog, StillOpen, Told

TICK_S: Final = 0.01
MAX_OUTSTANDING: Final = 400
"""How many commands of one client may wait for their answers; beyond that it holds its orders back."""

LIVE_ORDERS: Final = 60
"""About how many orders a client keeps in the market; beyond, it cancels rather than adds."""

OLD_SILENCE_NS: Final = 250_000_000
"""A silence older than this when a fault strikes is not its doing."""

CANCELS_WHEN_CROWDED: Final = 0.4
"""Share of cancels among the commands of a client that has as many orders as it keeps."""

REPLACES: Final = 0.07
"""Share of replaces."""

_START_PRICE: Final = 10_000
_LARGEST_ORDER: Final = 20
_BUY: Final = SIDE_NUMBERS["buy"]
_STATUS_NUMBERS: Final = {word: number for number, word in STATUSES.items()}
_REASON_NUMBERS: Final = {word: number for number, word in REJECT_REASONS.items()}
_LIQUIDITY_NUMBERS: Final = {word: number for number, word in LIQUIDITIES.items()}


@dataclass(frozen=True, slots=True)
class Form:
    """What an order asks besides price and quantity."""

    type: str = "limit"
    time_in_force: str = "gtc"
    post_only: bool = False
    do_not_route: bool = False


FORMS: Final = (
    *(Form(), Form(time_in_force="ioc"), Form(type="market"), Form(post_only=True)),
    *(Form(do_not_route=True), Form(time_in_force="ioc", do_not_route=True)),
)
FORM_WEIGHTS: Final = (70, 12, 6, 6, 4, 2)
PREVENTIONS: Final = ("none", "none", "cancel_newest", "cancel_oldest", "cancel_both", "decrement")


class Middles:
    """Where each symbol trades, in ticks: a slow seeded walk that all clients see."""

    def __init__(self, symbols: Sequence[str], seed: int) -> None:
        self.prices = dict.fromkeys(symbols, _START_PRICE)
        self._chance = random.Random(f"{seed} middles")

    def step(self) -> None:
        """Every price may move a tick."""
        for symbol in self.prices:
            self.prices[symbol] += self._chance.choice((-1, 0, 0, 1))


@dataclass(slots=True)
class Acknowledgements:
    """When an engine answered its clients, on the monotonic clock."""

    times_ns: dict[int, "array[int]"] = field(default_factory=dict)

    def note(self, engine: int, now_ns: int) -> None:
        """An answer came."""
        self.times_ns.setdefault(engine, array("q")).append(now_ns)

    def longest_silence_s(self, engine: int, start_ns: int, end_ns: int) -> float | None:
        """The longest time without an answer that began at `start_ns`, or just before, or until `end_ns`.

        None when there was silence already: what came of it is then not due to the fault alone.
        """
        times = self.times_ns.get(engine, array("q"))
        first, last = bisect_right(times, start_ns), bisect_left(times, end_ns)
        if not first or times[first - 1] < start_ns - OLD_SILENCE_NS or last == len(times):
            return None
        marks = times[first - 1 : last + 1]
        return max(later - earlier for earlier, later in itertools.pairwise(marks)) / 1e9


class Loader:
    """One client under load."""

    def __init__(
        self, client: Client, log: ClientLog, middles: Middles, acks: Acknowledgements, seed: int
    ) -> None:
        self.client = client
        self.log = log
        self.unavailable = 0
        self.held_back = 0
        self.outstanding = 0
        self.middles = middles
        self.acks = acks
        self._chance = random.Random(f"{seed} {log.name} flow")
        self._live: dict[str, str] = {}
        self._replaced: set[str] = set()
        self._names = 0

    async def trade(self, rate: float, stop: asyncio.Event) -> None:
        """Give `rate` commands a second until told to stop; returns when each has its answer."""
        due = 0.0
        last = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                await asyncio.sleep(TICK_S)
                now = time.monotonic()
                due += rate * (now - last)
                last = now
                while due >= 1:
                    due -= 1
                    if self.outstanding < MAX_OUTSTANDING:
                        self.outstanding += 1
                        group.create_task(self._step())
                    else:
                        self.held_back += 1

    async def follow(self) -> None:
        """Take every fill as it comes, until cancelled."""
        followed = self.log.followed
        while True:
            try:
                async for fill in self.client.fills(since=len(followed)):
                    followed.append(as_reported(self.log.name, fill, self.client.instruments[fill.symbol]))
                    if not fill.leaves_quantity:
                        self._live.pop(fill.client_order_id, None)
            except Unavailable:
                self.unavailable += 1
            except MatchbusError as error:
                self.log.errors.append(f"following its fills: {error!r}")
                return

    def held(self) -> dict[str, Decimal]:
        """What the fills of the history add up to, by symbol, where it is not nothing."""
        lots: Counter[str] = Counter()
        for fill in self.log.fills:
            lots[fill.symbol] += fill.quantity if fill.side == _BUY else -fill.quantity
        instruments = self.client.instruments
        return {symbol: instruments[symbol].quantity(total) for symbol, total in lots.items() if total}

    async def close_books(self) -> dict[str, Position]:
        """Read the history and the open orders as they are now; returns the positions."""
        log, instruments = self.log, self.client.instruments
        log.fills = [
            as_reported(log.name, fill, instruments[fill.symbol])
            async for fill in self.client.fills(follow=False)
        ]
        log.open_orders = [
            StillOpen(
                order.order_id,
                order.client_order_id,
                _STATUS_NUMBERS[order.status],
                instruments[order.symbol].ticks(order.price),
                instruments[order.symbol].lots(order.quantity),
                instruments[order.symbol].lots(order.cumulative_quantity),
                instruments[order.symbol].lots(order.leaves_quantity),
                instruments[order.symbol].lots(order.cancelled_quantity),
            )
            for order in await self.client.open_orders()
        ]
        return await self.client.positions()

    async def _step(self) -> None:
        try:
            draw = self._chance.random()
            if draw < REPLACES and (name := self._not_yet_replaced()):
                await self._replace(name)
            elif self._live and draw < REPLACES + CANCELS_WHEN_CROWDED * len(self._live) / LIVE_ORDERS:
                await self._cancel()
            else:
                await self._submit()
        finally:
            self.outstanding -= 1

    async def _submit(self) -> None:
        chance = self._chance
        symbol = chance.choice(tuple(self.middles.prices))
        instrument = self.client.instruments[symbol]
        side = chance.choice(("buy", "sell"))
        self._names += 1
        name = f"o{self._names}"
        (form,) = chance.choices(FORMS, FORM_WEIGHTS)
        is_market = form.type == "market"
        price = 0 if is_market else self._price(symbol, side)
        prevention = chance.choice(PREVENTIONS)
        quantity = chance.randint(1, _LARGEST_ORDER)
        result = await self._insist(
            NewOrder(
                *(self.log.name, name, symbol, SIDE_NUMBERS[side], ORDER_TYPE_NUMBERS[form.type]),
                *(TIME_IN_FORCE_NUMBERS[form.time_in_force], price, quantity),
                post_only=form.post_only,
                self_trade_prevention=SELF_TRADE_PREVENTION_NUMBERS[prevention],
                do_not_route=form.do_not_route,
            ),
            lambda: self.client.submit(
                symbol,
                side,
                instrument.quantity(quantity),
                None if is_market else instrument.price(price),
                type=form.type,
                time_in_force=form.time_in_force,
                post_only=form.post_only,
                do_not_route=form.do_not_route,
                self_trade_prevention=prevention,
                client_order_id=name,
            ),
            instrument,
        )
        if result is not None and result.leaves_quantity:
            self._live[name] = symbol

    def _price(self, symbol: str, side: str) -> int:
        """Most orders stand some way off the middle, some reach over it."""
        away = self._chance.randint(-4, 14)
        middle = self.middles.prices[symbol]
        return middle - away if side == "buy" else middle + away

    async def _cancel(self) -> None:
        name = self._chance.choice(tuple(self._live))
        instrument = self.client.instruments[self._live.pop(name)]
        await self._insist(
            CancelOrder(self.log.name, 0, name),
            lambda: self.client.cancel(client_order_id=name),
            instrument,
        )

    def _not_yet_replaced(self) -> str:
        """One of our orders for which no replace was given yet; empty when none is at hand."""
        name = self._chance.choice(tuple(self._live)) if self._live else ""
        return "" if name in self._replaced else name

    async def _replace(self, name: str) -> None:
        self._replaced.add(name)
        symbol = self._live[name]
        instrument = self.client.instruments[symbol]
        price = self._price(symbol, self._chance.choice(("buy", "sell")))
        quantity = self._chance.randint(1, 2 * _LARGEST_ORDER)
        await self._insist(
            ReplaceOrder(self.log.name, 0, name, price, quantity),
            lambda: self.client.replace(
                client_order_id=name, price=instrument.price(price), quantity=instrument.quantity(quantity)
            ),
            instrument,
        )

    async def _insist(
        self, command: OrderCommand, give: Callable[[], Awaitable[OrderResult]], instrument: Instrument
    ) -> OrderResult | None:
        """Give a command until it has an answer, and write that down."""
        told = Told(command, time.monotonic_ns())
        self.log.commands.append(told)
        while True:
            try:
                result = await give()
            except Unavailable:
                self.unavailable += 1
                told.given_again = True
            except MatchbusError as error:
                self.log.errors.append(f"{told.name}: {error!r}")
                return None
            else:
                break
        told.acked_ns = time.monotonic_ns()
        self.acks.note(self.log.engine, told.acked_ns)
        told.order_id = result.order_id
        told.status = _STATUS_NUMBERS[result.status]
        told.reason = 0 if result.reject_reason is None else _REASON_NUMBERS[result.reject_reason]
        told.cumulative = instrument.lots(result.cumulative_quantity)
        told.leaves = instrument.lots(result.leaves_quantity)
        told.fills = tuple(as_reported(self.log.name, fill, instrument) for fill in result.fills)
        told.fills_omitted = result.fills_omitted
        told.duplicate = result.duplicate
        told.inferred = result.state is not None
        return result


def as_reported(client: str, fill: Fill, instrument: Instrument) -> ReportedFill:
    """A client's fill in the form of the execution reports, so that they compare."""
    return ReportedFill(
        client,
        fill.sequence,
        fill.execution_id,
        fill.order_id,
        fill.client_order_id,
        fill.symbol,
        SIDE_NUMBERS[fill.side],
        instrument.ticks(fill.price),
        instrument.lots(fill.quantity),
        _LIQUIDITY_NUMBERS[fill.liquidity],
        instrument.lots(fill.cumulative_quantity),
        instrument.lots(fill.leaves_quantity),
        fill.engine,
        fill.timestamp_ns,
        fill.contra_order_id,
    )
