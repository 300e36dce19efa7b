"""A naive model of one engine's market: one list of resting orders, searched from end to end.

It says what the rules are in the plainest way, and is slow. It shares no code with the engine but the
commands that go in. Every command answers with the facts it caused, in order, the last one an `Answer`
(`AnswerAll` for CancelAll). An order is named by its client and its client order id.

Not here: legs, away quotes, batches, histories.
"""

from dataclasses import dataclass
from typing import NamedTuple

from engine.commands import CancelAll, CancelOrder, NewOrder, OrderCommand, ReplaceOrder
from engine.terms import (
    OrderStatus,
    OrderType,
    RejectReason,
    SelfTradePrevention,
    Side,
    TimeInForce,
)

Name = tuple[str, str]
"""A client and its client order id."""


class Trade(NamedTuple):
    """A trade, with what each party has traded and has left after it."""

    taker: Name
    maker: Name
    price: int
    quantity: int
    taker_after: tuple[int, int]
    maker_after: tuple[int, int]


class Prevention(NamedTuple):
    """A match that self-trade prevention stopped."""

    taker: Name
    maker: Name
    price: int
    quantity: int


class Cancellation(NamedTuple):
    """Quantity that will never trade, and what is left of the order."""

    order: Name
    quantity: int
    leaves: int


class Answer(NamedTuple):
    """The answer to an order command. A refusal says nothing about quantities."""

    order: Name
    status: int
    reason: int
    cumulative: int = 0
    leaves: int = 0
    value: int = 0
    duplicate: bool = False


class AnswerAll(NamedTuple):
    """The answer to CancelAll."""

    client: str
    cancelled_orders: int


Fact = Trade | Prevention | Cancellation | Answer | AnswerAll


@dataclass
class ReferenceOrder:
    """One order of the model. `quantity` is the total as last replaced, `open` what can still trade."""

    request: NewOrder
    price: int
    quantity: int
    open: int
    cumulative: int = 0
    value: int = 0
    first_answer: Answer | None = None

    @property
    def name(self) -> Name:
        """The client and its client order id."""
        return self.request.client, self.request.client_order_id

    @property
    def status(self) -> OrderStatus:
        """Where the order stands."""
        if self.open:
            return OrderStatus.PARTIALLY_FILLED if self.cumulative else OrderStatus.NEW
        return OrderStatus.FILLED if self.cumulative == self.quantity else OrderStatus.CANCELLED

    def answer(self) -> Answer:
        """The answer that describes the order as it stands."""
        return Answer(self.name, self.status, RejectReason.NONE, self.cumulative, self.open, self.value)


class ReferenceMarket:
    """Every symbol of one engine. `resting` holds all open orders, the longest waiting first."""

    def __init__(self) -> None:
        self.collars: dict[str, int] = {}
        self.resting: list[ReferenceOrder] = []
        self.orders: dict[Name, ReferenceOrder] = {}

    def add_instrument(self, symbol: str, market_collar_bps: int = 0) -> None:
        """A symbol starts to trade."""
        self.collars[symbol] = market_collar_bps

    def execute(self, command: OrderCommand | CancelAll) -> list[Fact]:
        """Carry out one command."""
        if isinstance(command, NewOrder):
            return self._submit(command)
        if isinstance(command, CancelAll):
            return self._cancel_all(command)
        name = command.client, command.client_order_id
        order = self.orders.get(name)
        if order is None:
            return [refusal(name, RejectReason.UNKNOWN_ORDER)]
        if not order.open:
            return [refusal(name, RejectReason.ORDER_CLOSED)]
        if isinstance(command, CancelOrder):
            return [self._cancel(order), order.answer()]
        if reason := wrong_terms(command.price, command.quantity):
            return [refusal(name, reason)]
        return self._replace(order, command)

    def queue(self, symbol: str, side: int) -> list[tuple[int, Name, int]]:
        """(price, order, open quantity) of one side in the order in which they would trade."""
        waiting = [order for order in self.resting if order.request.symbol == symbol]
        waiting = [order for order in waiting if order.request.side == side]
        waiting.sort(key=lambda order: -order.price if side == Side.BUY else order.price)
        return [(order.price, order.name, order.open) for order in waiting]

    def _submit(self, request: NewOrder) -> list[Fact]:
        name = request.client, request.client_order_id
        if name in self.orders:
            first = self.orders[name]
            if first.request != request:
                return [refusal(name, RejectReason.DUPLICATE_CLIENT_ORDER_ID)]
            assert first.first_answer is not None
            return [first.first_answer._replace(duplicate=True)]
        if reason := self._wrong_order(request):
            return [refusal(name, reason)]
        order = ReferenceOrder(request, request.price, request.quantity, request.quantity)
        self.orders[name] = order
        facts: list[Fact] = []
        if request.post_only and self._reachable(order, request.price):
            order.open = 0
            facts.append(refusal(name, RejectReason.POST_ONLY_WOULD_CROSS))
        else:
            limit = self._collar(order) if request.type == OrderType.MARKET else request.price
            if request.time_in_force != TimeInForce.FOK or self._can_fill_whole(order, limit):
                self._trade(order, limit, facts)
            if request.type == OrderType.MARKET or request.time_in_force in (
                TimeInForce.IOC,
                TimeInForce.FOK,
            ):
                self._cancel_rest(order, facts)
            elif order.open:
                self.resting.append(order)
            facts.append(order.answer())
        answer = facts[-1]
        assert isinstance(answer, Answer)
        order.first_answer = answer
        return facts

    def _replace(self, order: ReferenceOrder, command: ReplaceOrder) -> list[Fact]:
        facts: list[Fact] = []
        if command.quantity <= order.cumulative:
            self.resting.remove(order)
            order.quantity, order.open = order.cumulative, 0
        elif command.price == order.price and command.quantity - order.cumulative <= order.open:
            order.quantity, order.open = command.quantity, command.quantity - order.cumulative
        elif order.request.post_only and self._reachable(order, command.price):
            return [refusal(order.name, RejectReason.POST_ONLY_WOULD_CROSS)]
        else:
            self.resting.remove(order)
            order.price, order.quantity = command.price, command.quantity
            order.open = command.quantity - order.cumulative
            self._trade(order, order.price, facts)
            if order.open:
                self.resting.append(order)
        facts.append(order.answer())
        return facts

    def _cancel(self, order: ReferenceOrder) -> Cancellation:
        self.resting.remove(order)
        quantity, order.open = order.open, 0
        return Cancellation(order.name, quantity, 0)

    def _cancel_all(self, command: CancelAll) -> list[Fact]:
        doomed = [
            order
            for order in self.orders.values()  # the oldest first
            if order.open
            and order.request.client == command.client
            and command.symbol in ("", order.request.symbol)
            and command.side in (0, order.request.side)
        ][: command.most or None]
        facts: list[Fact] = [self._cancel(order) for order in doomed]
        return [*facts, AnswerAll(command.client, len(doomed))]

    def _cancel_rest(self, order: ReferenceOrder, facts: list[Fact]) -> None:
        if order.open:
            facts.append(Cancellation(order.name, order.open, 0))
            order.open = 0

    def _trade(self, taker: ReferenceOrder, limit: int, facts: list[Fact]) -> None:
        """Match until the taker has nothing open or nobody is left to trade with."""
        while taker.open and (reachable := self._reachable(taker, limit)):
            maker = reachable[0]
            quantity = min(taker.open, maker.open)
            if protected(taker, maker):
                facts.append(Prevention(taker.name, maker.name, maker.price, quantity))
                self._prevent(taker, maker, quantity, facts)
                continue
            for order in (taker, maker):
                order.open -= quantity
                order.cumulative += quantity
                order.value += quantity * maker.price
            if not maker.open:
                self.resting.remove(maker)
            taker_after = taker.cumulative, taker.open
            maker_after = maker.cumulative, maker.open
            facts.append(Trade(taker.name, maker.name, maker.price, quantity, taker_after, maker_after))

    def _prevent(
        self, taker: ReferenceOrder, maker: ReferenceOrder, quantity: int, facts: list[Fact]
    ) -> None:
        mode = taker.request.self_trade_prevention
        if mode == SelfTradePrevention.DECREMENT:
            for order in (maker, taker):
                order.open -= quantity
                facts.append(Cancellation(order.name, quantity, order.open))
            if not maker.open:
                self.resting.remove(maker)
            return
        if mode in (SelfTradePrevention.CANCEL_OLDEST, SelfTradePrevention.CANCEL_BOTH):
            facts.append(self._cancel(maker))
        if mode in (SelfTradePrevention.CANCEL_NEWEST, SelfTradePrevention.CANCEL_BOTH):
            self._cancel_rest(taker, facts)

    def _reachable(self, taker: ReferenceOrder, limit: int) -> list[ReferenceOrder]:
        """The resting orders that the taker may trade with at this limit, the first to trade first."""
        buying = taker.request.side == Side.BUY
        others = [order for order in self.resting if order.request.symbol == taker.request.symbol]
        others = [order for order in others if order.request.side != taker.request.side]
        others = [order for order in others if (order.price <= limit if buying else order.price >= limit)]
        others.sort(key=lambda order: order.price if buying else -order.price)
        return others

    def _can_fill_whole(self, taker: ReferenceOrder, limit: int) -> bool:
        found = 0
        for maker in self._reachable(taker, limit):
            if not protected(taker, maker):
                found += maker.open
            elif taker.request.self_trade_prevention != SelfTradePrevention.CANCEL_OLDEST:
                break
            if found >= taker.open:
                return True
        return False

    def _collar(self, taker: ReferenceOrder) -> int:
        """The worst price a market order may trade at, rounded towards the best one."""
        buying = taker.request.side == Side.BUY
        anything = 10**30 if buying else 0
        bps = self.collars[taker.request.symbol]
        reachable = self._reachable(taker, anything)
        if not bps or not reachable:
            return anything
        best = reachable[0].price
        return best + best * bps // 10_000 if buying else best - best * bps // 10_000

    def _wrong_order(self, request: NewOrder) -> RejectReason | None:
        identity = request.client_order_id
        if not 1 <= len(identity) <= 36 or not all(" " <= letter <= "~" for letter in identity):
            return RejectReason.INVALID_CLIENT_ORDER_ID
        if request.symbol not in self.collars:
            return RejectReason.UNKNOWN_SYMBOL
        if request.side not in (1, 2):
            return RejectReason.INVALID_SIDE
        if request.type not in (1, 2, 3, 4):
            return RejectReason.INVALID_ORDER_TYPE
        if request.time_in_force not in (0, 1, 2, 3, 4, 5):
            return RejectReason.INVALID_TIME_IN_FORCE
        if request.self_trade_prevention not in (0, 1, 2, 3, 4, 5):
            return RejectReason.INVALID_SELF_TRADE_PREVENTION
        if request.type in (3, 4) or request.time_in_force in (4, 5):
            return RejectReason.UNSUPPORTED
        if request.stop_price or request.display_quantity or request.expire_time_ns:
            return RejectReason.UNSUPPORTED
        if request.type == OrderType.MARKET and request.price:
            return RejectReason.INVALID_PRICE
        price = 1 if request.type == OrderType.MARKET else request.price
        if reason := wrong_terms(price, request.quantity):
            return reason
        at_once = request.type == OrderType.MARKET or request.time_in_force in (2, 3)
        return RejectReason.CONFLICTING_INSTRUCTIONS if request.post_only and at_once else None


def refusal(name: Name, reason: RejectReason) -> Answer:
    """The answer to a command that changed nothing."""
    return Answer(name, OrderStatus.REJECTED, reason)


def wrong_terms(price: int, quantity: int) -> RejectReason | None:
    """Why no order can have this price and quantity."""
    if not 1 <= price <= 10**12:
        return RejectReason.INVALID_PRICE
    if not 1 <= quantity <= 10**12:
        return RejectReason.INVALID_QUANTITY
    return RejectReason.NOTIONAL_TOO_LARGE if price * quantity > 2**62 else None


def protected(taker: ReferenceOrder, maker: ReferenceOrder) -> bool:
    """Whether the taker's self-trade prevention forbids this match."""
    mode = taker.request.self_trade_prevention
    unprotected = SelfTradePrevention.UNSPECIFIED, SelfTradePrevention.NONE
    return taker.request.client == maker.request.client and mode not in unprotected
