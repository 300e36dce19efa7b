"""Carries one agent's intents to the market and keeps what came back; `agents` decide what to do."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final

from bus.messages import ReportedOrder
from client import Fill, MatchbusError, OrderResult, Unavailable
from client.terms import RejectReason
from engine.terms import OrderType, Side
from simulation.agents.cast import Player
from simulation.agents.terms import REFERENCE_PRICE, Cancel, Intent, OpenOrder, Replace, Submit, View
from simulation.market import MarketWatch
from simulation.recording import OPEN, SentChange, SentOrder
from simulation.venues import Account

_GONE: Final = (RejectReason.UNKNOWN_ORDER, RejectReason.ORDER_CLOSED)


class AgentFailed(Exception):
    """An agent's own code raised `__cause__`, or wanted what cannot be sent, which that says.

    `symbol` is empty where the agent looked at several. `at_s` counts from the start of the run.
    """

    def __init__(self, client: str, kind: str, symbol: str, at_s: float, what: str) -> None:
        super().__init__(client, kind, symbol, at_s, what)  # all of them: it may come out of another process
        self.client = client
        self.kind = kind
        self.symbol = symbol
        self.at_s = at_s
        self.what = what

    def __str__(self) -> str:
        """One line."""
        about = f", {self.symbol}" if self.symbol else ""
        return f"agent {self.client} ({self.kind}{about}) after {self.at_s:.3f} s: {self.what}"


@dataclass(slots=True)
class Trader:
    """One client of the market with the agent that drives it.

    `submitted` counts the orders it sent, `refusals` what was refused, by reason; `fills` is its history
    as GetFills gave it. `value` tells a symbol's fundamental value so many seconds after the start,
    `reference` is where an empty market starts.
    """

    name: str
    player: Player
    client: Account
    market: MarketWatch
    symbols: Sequence[str]
    log: logging.Logger
    on_fill: Callable[["Trader", Fill], None] = lambda _trader, _fill: None
    on_order: Callable[[SentOrder], None] = lambda _order: None
    on_change: Callable[[SentChange], None] = lambda _change: None
    value: Callable[[str, float], float | None] = lambda _symbol, _at_s: None
    reference: int = REFERENCE_PRICE
    phase: float = 0.0
    """The share of its first wait after which it steps first, so that not all step at once."""

    fills: list[Fill] = field(default_factory=list)
    """All of the client's, those of earlier runs too."""

    acknowledged: dict[int, ReportedOrder] = field(default_factory=dict)
    """The orders that were answered and not refused, by order id: what was sent, as it must be reported."""

    submitted: int = 0
    cancels: int = 0
    replaces: int = 0
    failures: int = 0
    steps: int = 0
    wanted_steps: int = 0
    """How many its arrivals asked for, reckoned from those that there was time for."""

    refusals: Counter[str] = field(default_factory=Counter)
    _started: float = 0.0
    _recalled: int = 0
    _order_ids: dict[str, int] = field(default_factory=dict)
    _open: dict[str, OpenOrder] = field(default_factory=dict)
    _closed: set[str] = field(default_factory=set)
    _traded: dict[str, Decimal] = field(default_factory=dict)
    _positions: Counter[str] = field(default_factory=Counter)
    _last_prices: dict[str, int] = field(default_factory=dict)

    async def trade(self, started: float, duration_s: float) -> None:
        """Step whenever the agent's arrivals say, for so long. A late step pushes the later ones back.

        Raises `AgentFailed`.
        """
        self._started = started
        clock = asyncio.get_running_loop().time
        planned = due = started + self._wait_s() * self.phase
        while (due := max(due, clock())) < started + duration_s:
            await asyncio.sleep(due - clock())
            pause = self._wait_s()
            due, planned = due + pause, planned + pause
            self.steps += 1
            for intent in self._decided():
                await self._carry(intent)
        if self.steps:
            self.wanted_steps = max(self.steps, round(self.steps * duration_s / (planned - started)))

    def _decided(self) -> list[Intent]:
        views = self._views()
        with self._blaming(views[0].symbol if len(views) == 1 else ""):
            return list(self.player.agent.decide(views))

    def _wait_s(self) -> float:
        with self._blaming(""):
            wait_s = float(self.player.arrival.wait_s())  # which None, of a forgotten return, is not
        if not wait_s >= 0:  # nor NaN
            raise self._failed("", f"its next step would come after {wait_s} s")
        return wait_s

    @contextlib.contextmanager
    def _blaming(self, symbol: str) -> Iterator[None]:
        """Around the code of whoever wrote the agent, which may raise anything.

        Nothing is awaited there, so nobody cancels us meanwhile: a `CancelledError` is the agent's too, of a
        task of its own, and would end this one without a word.
        """
        try:
            yield
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- by others
            trace = error.__traceback__
            below = trace and trace.tb_next and trace.tb_next.tb_next  # without our frames
            own = error.with_traceback(below)
            raise self._failed(symbol, f"{type(error).__name__}: {error}") from own

    def _failed(self, symbol: str, what: str) -> AgentFailed:
        at_s = asyncio.get_running_loop().time() - self._started
        return AgentFailed(self.name, self.player.kind, symbol, at_s, what)

    async def recall(self) -> None:
        """Take in what earlier runs under this name filled: it counts for positions, not for this run."""
        async for fill in self.client.fills(follow=False):
            self._hold(fill)
        self._recalled = len(self.fills)

    async def follow(self) -> None:
        """Collect this client's fills until cancelled; a fault may last longer than the client waits."""
        while True:
            try:
                async for fill in self.client.fills(since=len(self.fills)):
                    self._take(fill)
            except Unavailable as error:
                self.log.warning("%s", error)

    @property
    def fill_count(self) -> int:
        """Fills of this run."""
        return len(self.fills) - self._recalled

    def positions(self) -> dict[str, int]:
        """Lots held per symbol, by the fills received."""
        return dict(self._positions)

    def _views(self) -> list[View]:
        resting: dict[str, list[OpenOrder]] = {}
        for order in self._open.values():
            resting.setdefault(order.symbol, []).append(order)
        views = []
        now = asyncio.get_running_loop().time()
        for symbol in self.symbols:
            bid, ask = self.market.quotes(symbol)
            views.append(
                View(
                    symbol=symbol,
                    best_bid=bid,
                    best_ask=ask,
                    last_price=self._last_prices.get(symbol),
                    position=self._positions[symbol],
                    open_orders=tuple(resting.get(symbol, ())),
                    engines=self.market.engine_quotes(symbol, now),
                    fundamental=self.value(symbol, now - self._started),
                    reference=self.reference,
                )
            )
        return views

    async def _carry(self, intent: Intent) -> None:
        if not isinstance(intent, Intent):
            raise self._failed("", f"{intent!r} is no Submit, Cancel or Replace")
        try:
            match intent:
                case Submit():
                    await self._submit(intent)
                case Cancel():
                    self.cancels += 1
                    await self._change(intent, self.client.cancel(client_order_id=intent.client_order_id))
                case Replace():
                    await self._replace(intent)
        except MatchbusError as error:
            # The market is away for a moment; the next step tries anew, the final check sees what was lost.
            self.failures += 1
            self.log.warning("%s", error)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            symbol, why = str(getattr(intent, "symbol", "")), f"{type(error).__name__}: {error}"
            raise self._failed(symbol, f"{intent!r} cannot be sent: {why}") from error

    async def _submit(self, intent: Submit) -> None:
        instrument = self.client.instruments[intent.symbol]
        self.submitted += 1
        clock = asyncio.get_running_loop().time
        sent = clock()
        result = None
        try:
            result = await self.client.submit(
                intent.symbol,
                side=intent.side.name.lower(),
                type=intent.type.name.lower(),
                time_in_force=intent.time_in_force.name.lower(),
                price=None if intent.type is OrderType.MARKET else instrument.price(intent.price),
                quantity=instrument.quantity(intent.quantity),
                post_only=intent.post_only,
                self_trade_prevention="cancel_newest",
            )
        finally:
            self.on_order(self._sent_order(intent, sent, result, clock()))
        self.log.info(
            "submitted %s %s %s %d @ %d: order %d %s",
            *(result.client_order_id, intent.side.name, intent.symbol, intent.quantity, intent.price),
            *(result.order_id, result.reject_reason or result.status),
        )
        leaves = instrument.lots(result.leaves_quantity)
        if result.rejected:
            self.refusals[str(result.reject_reason)] += 1
            return
        self.acknowledged[result.order_id] = ReportedOrder(
            *(self.name, result.order_id, result.client_order_id, intent.symbol, intent.side, intent.type),
            *(intent.time_in_force, 0 if intent.type is OrderType.MARKET else intent.price, intent.quantity),
        )
        self._order_ids[result.client_order_id] = result.order_id
        if result.status in OPEN and leaves and result.client_order_id not in self._closed:
            self._open[result.client_order_id] = OpenOrder(
                result.client_order_id, intent.symbol, intent.side, intent.price, leaves
            )

    def _sent_order(
        self, intent: Submit, sent: float, result: OrderResult | None, answered: float
    ) -> SentOrder:
        instrument = self.client.instruments[intent.symbol]
        return SentOrder(
            sent_s=sent - self._started,
            answered_s=None if result is None else answered - self._started,
            client=self.name,
            kind=self.player.kind,
            engine=self.client.engine,
            symbol=intent.symbol,
            side=intent.side.name.lower(),
            type=intent.type.name.lower(),
            time_in_force=intent.time_in_force.name.lower(),
            price=None if intent.type is OrderType.MARKET else instrument.price(intent.price),
            quantity=instrument.quantity(intent.quantity),
            status="" if result is None else str(result.status),
            reason="" if result is None else str(result.reject_reason or ""),
            order_id=0 if result is None else result.order_id,
            post_only=intent.post_only,
        )

    async def _replace(self, intent: Replace) -> None:
        order = self._open.get(intent.client_order_id)
        if order is None:
            return
        self.replaces += 1
        instrument = self.client.instruments[order.symbol]
        # The new quantity is a total, so what traded before counts.
        traded = self._traded.get(order.client_order_id, 0)
        price, quantity = instrument.price(intent.price), instrument.quantity(intent.leaves) + traded
        call = self.client.replace(client_order_id=order.client_order_id, price=price, quantity=quantity)
        result = await self._change(intent, call, price, quantity)
        if not result.rejected and order.client_order_id in self._open:
            leaves = instrument.lots(result.leaves_quantity)
            self._open[order.client_order_id] = replace(order, price=intent.price, leaves=leaves)

    async def _change(
        self,
        intent: Cancel | Replace,
        call: Awaitable[OrderResult],
        price: Decimal | None = None,
        quantity: Decimal | None = None,
    ) -> OrderResult:
        """Await the answer, tell of it, and close the order where it is over."""
        change = type(intent).__name__.lower()
        clock = asyncio.get_running_loop().time
        sent = clock()
        result = None
        try:
            result = await call
        finally:
            self.on_change(
                SentChange(
                    sent_s=sent - self._started,
                    answered_s=None if result is None else clock() - self._started,
                    client=self.name,
                    change=change,
                    order_id=self._order_ids.get(intent.client_order_id, 0),
                    price=price,
                    quantity=quantity,
                    status="" if result is None else str(result.status),
                    reason="" if result is None else str(result.reject_reason or ""),
                )
            )
        self.log.info("%s %s: %s", change, intent.client_order_id, result.reject_reason or result.status)
        if result.rejected:
            self.refusals[str(result.reject_reason)] += 1
            is_over = result.reject_reason in _GONE  # all else leaves the order as it was
        else:
            is_over = result.status not in OPEN
        if is_over:
            self._close(intent.client_order_id)
        return result

    def _close(self, client_order_id: str) -> None:
        self._open.pop(client_order_id, None)
        self._traded.pop(client_order_id, None)
        self._closed.add(client_order_id)

    def _hold(self, fill: Fill) -> None:
        instrument = self.client.instruments[fill.symbol]
        self.fills.append(fill)
        lots = instrument.lots(fill.quantity)
        self._positions[fill.symbol] += lots if fill.side == Side.BUY.name.lower() else -lots
        self._last_prices[fill.symbol] = instrument.ticks(fill.price)

    def _take(self, fill: Fill) -> None:
        self._hold(fill)
        instrument = self.client.instruments[fill.symbol]
        self._traded[fill.client_order_id] = fill.cumulative_quantity
        if not fill.leaves_quantity:
            self._close(fill.client_order_id)
        elif order := self._open.get(fill.client_order_id):
            leaves = instrument.lots(fill.leaves_quantity)
            self._open[fill.client_order_id] = replace(order, leaves=leaves)
        self.log.info(
            "fill %d: %s %s %s @ %s as %s on engine %d, order %d",
            *(fill.sequence, fill.side, f"{fill.quantity:f}", fill.symbol, f"{fill.price:f}"),
            *(fill.liquidity, fill.engine, fill.order_id),
        )
        self.on_fill(self, fill)
