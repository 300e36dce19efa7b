"""One engine's market in the plainest way: its journal goes in, command by command, and what must come of it.

It says what the rules are with lists that are searched from end to end, is slow, and shares no code with
the engine but the commands. So it can be a witness against the engine. A journal is closed: peers' quotes
stand in the commands, legs of peers are commands of their own, and so is what came of our own legs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, assert_never

import msgspec

from bus.messages import (
    Report,
    ReportedCancel,
    ReportedFill,
    ReportedOrder,
    ReportedPrevention,
    ReportedReplace,
)
from engine.commands import (
    AddInstrument,
    AwayQuote,
    CancelAll,
    CancelOrder,
    Command,
    EpochStarted,
    LegFill,
    LegResult,
    NewOrder,
    OrderCommand,
    QueryLeg,
    ReplaceOrder,
    TakeLeg,
    Uncross,
)
from engine.terms import (
    MAX_LEG_FILLS,
    Liquidity,
    OrderStatus,
    OrderType,
    RejectReason,
    SelfTradePrevention,
    Side,
    TimeInForce,
)

ANY: Final = -(10**30)
"""The `worst` of an order that takes whatever price there is."""

_NUMBERED_FROM_BIT: Final = 48
_BPS: Final = 10_000
_AT_ONCE: Final = (TimeInForce.IOC, TimeInForce.FOK)
_LARGEST: Final = 10**12
_LARGEST_NOTIONAL: Final = 2**62
_LONGEST_ID: Final = 36


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """What an answer says about an order. Of a refusal only the reason counts."""

    status: int
    reason: int = 0
    order_id: int = 0
    cumulative: int = 0
    leaves: int = 0


@dataclass(slots=True)
class Attempt:
    """One client command in the journal: its place, and every answer that it may have got.

    The first is the answer at once; while a leg is out it may be held back until the leg is home.
    """

    place: int
    outcomes: list[AttemptOutcome]


@dataclass(slots=True, eq=False)
class Order:
    """An order. `worst` is a value (see `worth`): it trades at nothing worth less to it."""

    request: NewOrder
    id: int
    price: int
    quantity: int
    open: int
    worst: int
    reserved: int = 0
    cumulative: int = 0
    priority: int = 0
    cancelling: bool = False
    refused: bool = False
    first: AttemptOutcome | None = None
    waiting: list[Attempt] = field(default_factory=list)

    @property
    def leaves(self) -> int:
        """What can still trade."""
        return self.open + self.reserved

    @property
    def status(self) -> int:
        """Where the order stands."""
        if self.reserved:
            return OrderStatus.PENDING
        if self.open:
            return OrderStatus.PARTIALLY_FILLED if self.cumulative else OrderStatus.NEW
        if self.refused:
            return OrderStatus.REJECTED
        return OrderStatus.FILLED if self.cumulative == self.quantity else OrderStatus.CANCELLED

    def outcome(self) -> AttemptOutcome:
        """The answer that tells how it stands."""
        return AttemptOutcome(self.status, 0, self.id, self.cumulative, self.leaves)


@dataclass(slots=True)
class OutLeg:
    """A leg that this engine sent, and what came back; None: still in doubt. Times are its batches'."""

    peer: int
    epoch: int
    order: Order
    limit: int
    quantity: int
    sent_ns: int
    fills: tuple[LegFill, ...] | None = None
    back_ns: int = 0

    @property
    def asked(self) -> tuple[int, int, str, int, int, int]:
        """What its peer must have been asked: epoch, order, symbol, side, limit, quantity."""
        request = self.order.request
        return self.epoch, self.order.id, request.symbol, request.side, self.limit, self.quantity


@dataclass(slots=True)
class Away:
    """A level of a peer's quote; `value` is what its price is worth to the taker.

    `is_last_known`: the quote was cut here, and the peer shows more, at this price or a worse one.
    """

    value: int
    price: int
    quantity: int
    engine: int
    epoch: int
    is_last_known: bool


LegAnswer = tuple[bool, tuple[LegFill, ...]]
"""Refused, and the trades."""


@dataclass(slots=True)
class PeerLegs:
    """Legs of one peer: what it may still be told again, and below which leg it never asks."""

    answers: dict[int, LegAnswer] = field(default_factory=dict)
    settled_below: int = 0


class NaiveEngine:
    """One engine: feed it with `batch`, then read what came of it."""

    def __init__(self, engine: int) -> None:
        self.engine = engine
        self.epoch = 0
        self.reports: list[Report] = []
        self.attempts: dict[OrderCommand, list[Attempt]] = {}
        """By what the client asked: the command without its away quotes, which the engine put there."""
        self.legs: dict[int, OutLeg] = {}
        self.taken: dict[int, TakeLeg] = {}
        """The legs of peers that came here, as they came first."""
        self.answered: dict[int, LegAnswer] = {}
        """What each leg of a peer was told first."""
        self.orders: dict[tuple[str, str], Order] = {}
        self.by_id: dict[int, Order] = {}
        self._collars: dict[str, int] = {}
        self._resting: dict[tuple[str, int], list[Order]] = {}
        self._peers: dict[int, PeerLegs] = {}
        self._fill_counts: dict[str, int] = {}
        self._next_order = self._next_execution = self._next_leg = (engine << _NUMBERED_FROM_BIT) + 1
        self._next_priority = 1
        self._place = 0
        self._time_ns = 0

    def batch(self, time_ns: int, commands: tuple[Command, ...]) -> None:
        """Carry out one record of the journal."""
        self._time_ns = time_ns
        for command in commands:
            self._place += 1
            self._execute(command)

    def book(self, symbol: str, side: int) -> list[tuple[int, int, int]]:
        """(price, quantity, order count), the best first."""
        levels: dict[int, list[int]] = {}
        for order in self._queue(symbol, side):
            levels.setdefault(order.price, []).append(order.open)
        return [(price, sum(quantities), len(quantities)) for price, quantities in levels.items()]

    def _queue(self, symbol: str, side: int) -> list[Order]:
        return self._resting.setdefault((symbol, side), [])

    def _execute(self, command: Command) -> None:
        match command:
            case NewOrder():
                self._new(command)
            case CancelOrder():
                self._cancel_order(command)
            case ReplaceOrder():
                self._replace(command)
            case CancelAll():
                meant = [
                    order
                    for order in self.orders.values()
                    if order.leaves
                    and not order.cancelling
                    and order.request.client == command.client
                    and command.symbol in ("", order.request.symbol)
                    and command.side in (0, order.request.side)
                ]
                for order in meant[: command.most or None]:
                    self._withdraw(order)
            case TakeLeg():
                self._take_leg(command)
            case QueryLeg():
                self._query_leg(command)
            case LegResult():
                self._leg_result(command)
            case Uncross():
                self._uncross(command)
            case AddInstrument():
                self._collars[command.symbol] = command.market_collar_bps
            case EpochStarted():
                self.epoch = command.epoch
                self._next_leg = max(self._next_leg, command.first_leg_id)
            case _:
                assert_never(command)

    # -- what clients ask ---------------------------------------------------------------------------

    def _attempt(self, asked: OrderCommand, outcome: AttemptOutcome) -> Attempt:
        attempt = Attempt(self._place, [outcome])
        self.attempts.setdefault(asked, []).append(attempt)
        return attempt

    def _answer(self, asked: OrderCommand, order: Order, outcome: AttemptOutcome) -> None:
        attempt = self._attempt(asked, outcome)
        if outcome.status == OrderStatus.PENDING:
            order.waiting.append(attempt)

    def _new(self, command: NewOrder) -> None:
        request = msgspec.structs.replace(command, away=())
        name = (request.client, request.client_order_id)
        known = self.orders.get(name)
        if known is not None:
            same = known.request == request
            first = known.first
            assert first is not None
            if not same:
                first = _refusal(RejectReason.DUPLICATE_CLIENT_ORDER_ID)
            elif first.status == OrderStatus.PENDING:
                first = known.outcome()
            self._answer(request, known, first)
            return
        reason = self._wrong_order(request)
        if reason:
            self._attempt(request, _refusal(reason))
            return
        away = _ranked(command.away, request.side)
        is_market = request.type == OrderType.MARKET
        worst = self._collar(request, away) if is_market else worth(request.price, request.side)
        order = Order(request, 0, request.price, request.quantity, request.quantity, worst)
        self.orders[name] = order
        is_fok = request.time_in_force == TimeInForce.FOK
        if request.post_only and self._meets(order, worst, away):
            order.open, order.refused = 0, True
            order.first = _refusal(RejectReason.POST_ONLY_WOULD_CROSS)
        elif is_fok and self._fills_only_with_away(order, away):
            order.open, order.refused = 0, True
            order.first = _refusal(RejectReason.FOK_NEEDS_AWAY_LIQUIDITY)
        else:
            self._admit(order)
            if is_fok and not self._fills_here(order, away):
                self._cancel(order, order.open)
            else:
                self._enter(order, away)
            order.first = order.outcome()
        self._answer(request, order, order.first)

    def _fills_here(self, order: Order, away: list[Away]) -> bool:
        """Whether it trades whole here, past no better quote elsewhere."""
        return self._takeable(order, _worst_here(order, away)) == order.quantity

    def _fills_only_with_away(self, order: Order, away: list[Away]) -> bool:
        """Whether it would trade whole if it could have what peers show, and would not without."""
        if order.request.do_not_route or self._fills_here(order, away):
            return False
        elsewhere = sum(level.quantity for level in away if level.value >= order.worst)
        enough = elsewhere + self._takeable(order, order.worst) >= order.quantity
        return bool(elsewhere) and (enough or _is_more_away(order, away))  # what is not known may be enough

    def _takeable(self, taker: Order, worst: int) -> int:
        """How much of its quantity a taker would trade here."""
        side = taker.request.side
        found = 0
        for maker in self._queue(taker.request.symbol, 3 - side):
            if worth(maker.price, side) < worst:
                break
            if not _protected(taker, maker):
                found += maker.open
            elif taker.request.self_trade_prevention != SelfTradePrevention.CANCEL_OLDEST:
                break
        return min(found, taker.open)

    def _admit(self, order: Order) -> None:
        order.id = self._next_order
        self._next_order += 1
        self.by_id[order.id] = order
        request = order.request
        self.reports.append(
            ReportedOrder(
                *(request.client, order.id, request.client_order_id, request.symbol, request.side),
                *(request.type, request.time_in_force, order.price, order.quantity),
            )
        )

    def _find(self, command: CancelOrder | ReplaceOrder) -> Order | None:
        if command.order_id:
            order = self.by_id.get(command.order_id)
            return order if order is not None and order.request.client == command.client else None
        return self.orders.get((command.client, command.client_order_id))

    def _cancel_order(self, command: CancelOrder) -> None:
        order = self._find(command)
        if order is None or not order.leaves:
            self._refuse_absent(command, order)
            return
        self._withdraw(order)
        self._answer(command, order, order.outcome())

    def _refuse_absent(self, asked: CancelOrder | ReplaceOrder, order: Order | None) -> None:
        reason = RejectReason.UNKNOWN_ORDER if order is None else RejectReason.ORDER_CLOSED
        self._attempt(asked, _refusal(reason))

    def _replace(self, command: ReplaceOrder) -> None:
        asked = msgspec.structs.replace(command, away=())
        order = self._find(command)
        if order is None or not order.leaves:
            self._refuse_absent(asked, order)
            return
        reason = self._wrong_replace(command, order)
        if reason:
            self._answer(asked, order, _refusal(reason))
            return
        leaves = command.quantity - order.cumulative
        if leaves > 0 and command.price == order.price and leaves <= order.open:
            order.quantity, order.open = command.quantity, leaves
            self._report_replaced(order)
        elif leaves > 0:
            self._leave_book(order)
            order.price, order.quantity, order.open = command.price, command.quantity, leaves
            order.worst, order.priority = worth(command.price, order.request.side), 0
            self._report_replaced(order)
            self._enter(order, _ranked(command.away, order.request.side))
        else:
            self._leave_book(order)
            order.quantity, order.open = order.cumulative, 0
            self._report_replaced(order)
        self._answer(asked, order, order.outcome())

    def _wrong_replace(self, command: ReplaceOrder, order: Order) -> int:
        reason = _wrong_terms(command.price, command.quantity)
        if reason:
            return reason
        if order.reserved:
            return RejectReason.ORDER_PENDING
        leaves = command.quantity - order.cumulative
        keeps_place = command.price == order.price and leaves <= order.open
        if order.request.post_only and leaves > 0 and not keeps_place:
            side = order.request.side
            if self._meets(order, worth(command.price, side), _ranked(command.away, side)):
                return RejectReason.POST_ONLY_WOULD_CROSS
        return RejectReason.NONE

    def _report_replaced(self, order: Order) -> None:
        request = order.request
        self.reports.append(
            ReportedReplace(request.client, order.id, request.client_order_id, order.price, order.quantity)
        )

    def _withdraw(self, order: Order) -> None:
        """Cancel what is open now, and what legs bring back when they do."""
        order.cancelling = order.reserved > 0
        if order.open:
            self._leave_book(order)
            self._cancel(order, order.open)

    def _cancel(self, order: Order, quantity: int) -> None:
        order.open -= quantity
        self._report_cancelled(order, quantity)

    def _report_cancelled(self, order: Order, quantity: int) -> None:
        request = order.request
        self.reports.append(
            ReportedCancel(
                *(request.client, order.id, request.client_order_id, request.symbol, quantity, order.leaves)
            )
        )

    # -- trading ------------------------------------------------------------------------------------

    def _enter(self, order: Order, away: list[Away]) -> None:
        """Trade what can be traded, then rest or cancel the rest."""
        request = order.request
        locks = waits = False
        if not away:
            self._take(order, order.worst, order.open)
        elif request.do_not_route or request.time_in_force == TimeInForce.FOK:
            # Not past a better quote elsewhere, and not resting against one.
            locks = away[0].value >= order.worst
            self._take(order, _worst_here(order, away), order.open)
        else:
            waits = self._route(order, away) and order.reserved > 0
        if not order.open:
            return
        if waits and (not order.priority or self._meets(order, order.worst, [])):
            # It may not pass over what it does not know, nor rest against it. What stood in the queue goes
            # back to its place, unless it would trade here.
            order.priority = 0
            return
        at_once = request.type == OrderType.MARKET or request.time_in_force in _AT_ONCE
        if locks or at_once:
            self._cancel(order, order.open)
        elif order.priority or not order.reserved:
            if not order.priority:
                order.priority = self._next_priority
                self._next_priority += 1
            self._stand(order)

    def _route(self, order: Order, away: list[Away]) -> bool:
        """Take the best price first, wherever it is; planned anew where a self-trade was prevented.

        Returns whether peers may show more that the order would take: what is left waits for its legs.
        """
        legs: dict[int, list[tuple[Away, int]]] = {}
        while order.open:
            steps = self._plan(order, away)
            if not steps:
                break
            for value, level, planned in steps:
                quantity = min(planned, order.open)
                if level is None:
                    self._take(order, value, quantity)
                elif quantity:
                    level.quantity -= quantity
                    order.open -= quantity
                    order.reserved += quantity
                    legs.setdefault(level.engine, []).append((level, quantity))
        for parts in legs.values():
            self._send_leg(order, parts[-1][0], sum(quantity for _, quantity in parts))
        return _is_more_away(order, away)

    def _plan(self, order: Order, away: list[Away]) -> list[tuple[int, Away | None, int]]:
        """(value, where: None is here, quantity), the best first; here first at one price.

        Nothing beyond a level that may not be the last one its peer shows.
        """
        worst = max(order.worst, _known_to(away))
        side = order.request.side
        here = [
            (worth(price, side), None, quantity)
            for price, quantity, _ in self.book(order.request.symbol, 3 - side)
        ]
        there = [(level.value, level, level.quantity) for level in away]
        sources: list[tuple[int, Away | None, int]] = [*here, *there]
        sources.sort(key=lambda source: -source[0])  # stable: here stands before there
        steps = []
        left = order.open
        for value, where, quantity in sources:
            if value >= worst and min(left, quantity):
                steps.append((value, where, min(left, quantity)))
                left -= min(left, quantity)
        return steps

    def _take(self, taker: Order, worst: int, quantity: int) -> None:
        """Trade up to `quantity` here with whatever is worth at least `worst`."""
        request = taker.request
        queue = self._queue(request.symbol, 3 - request.side)
        while quantity and queue and worth(queue[0].price, request.side) >= worst:
            maker = queue[0]
            part = min(maker.open, quantity)
            if _protected(taker, maker):
                quantity = self._prevent(taker, maker, part, quantity)
                continue
            quantity -= part
            taker.open -= part
            self._trade(taker, maker, part)

    def _trade(self, taker: Order, maker: Order, quantity: int) -> LegFill:
        """A trade at the maker's price; the taker's open quantity was lowered."""
        execution, price = self._next_execution, maker.price
        self._next_execution += 1
        maker.open -= quantity
        if not maker.open:
            self._leave_book(maker)
        self._fill(maker, execution, price, quantity, Liquidity.MAKER, self.engine, self._time_ns, taker.id)
        if taker.request.client:
            self._fill(
                taker, execution, price, quantity, Liquidity.TAKER, self.engine, self._time_ns, maker.id
            )
        return LegFill(execution, price, quantity, maker.id, self._time_ns)

    def _fill(
        self,
        order: Order,
        execution: int,
        price: int,
        quantity: int,
        liquidity: int,
        engine: int,
        time_ns: int,
        contra: int,
    ) -> None:
        request = order.request
        order.cumulative += quantity
        sequence = self._fill_counts.get(request.client, 0) + 1
        self._fill_counts[request.client] = sequence
        self.reports.append(
            ReportedFill(
                *(request.client, sequence, execution, order.id, request.client_order_id, request.symbol),
                *(request.side, price, quantity, int(liquidity), order.cumulative, order.leaves),
                *(engine, time_ns, contra),
            )
        )

    def _prevent(self, taker: Order, maker: Order, part: int, quantity: int) -> int:
        """Settle a match of one client's orders without a trade; what the taker may still take."""
        request = taker.request
        mode = request.self_trade_prevention
        self.reports.append(
            ReportedPrevention(
                request.client, request.symbol, taker.id, maker.id, maker.price, part, int(mode)
            )
        )
        if mode == SelfTradePrevention.DECREMENT:
            if part == maker.open:
                self._leave_book(maker)
            self._cancel(maker, part)
            self._cancel(taker, part)
            return quantity - part
        if mode in (SelfTradePrevention.CANCEL_OLDEST, SelfTradePrevention.CANCEL_BOTH):
            self._withdraw(maker)
        if mode == SelfTradePrevention.CANCEL_OLDEST:
            return quantity
        taker.cancelling = taker.reserved > 0
        self._cancel(taker, taker.open)
        return 0

    def _stand(self, order: Order) -> None:
        """Into the queue: behind what is as good and came before."""
        side = order.request.side
        queue = self._queue(order.request.symbol, side)
        place = (worth(order.price, 3 - side), -order.priority)
        index = len(queue)
        while index and (worth(queue[index - 1].price, 3 - side), -queue[index - 1].priority) < place:
            index -= 1
        queue.insert(index, order)

    def _leave_book(self, order: Order) -> None:
        queue = self._queue(order.request.symbol, order.request.side)
        if order in queue:
            queue.remove(order)

    # -- legs ---------------------------------------------------------------------------------------

    def _send_leg(self, order: Order, worst: Away, quantity: int) -> None:
        self.legs[self._next_leg] = OutLeg(
            worst.engine, worst.epoch, order, worst.price, quantity, self._time_ns
        )
        self._next_leg += 1

    def _leg_result(self, command: LegResult) -> None:
        leg = self.legs.get(command.leg_id)
        if leg is None or leg.fills is not None:
            return  # told twice
        leg.fills, leg.back_ns = command.fills, self._time_ns
        order = leg.order
        for fill in command.fills:
            order.reserved -= fill.quantity
            self._fill(
                *(order, fill.execution_id, fill.price, fill.quantity, Liquidity.TAKER),
                *(leg.peer, fill.time_ns, fill.contra_order_id),
            )
        back = leg.quantity - sum(fill.quantity for fill in command.fills)
        order.reserved -= back
        if back and order.cancelling:
            self._report_cancelled(order, back)
        elif back or (order.open and not order.priority and not order.reserved):
            self._leave_book(order)
            order.open += back
            self._enter(order, _ranked(command.away, order.request.side))
        self._settle(order)

    def _settle(self, order: Order) -> None:
        """A leg is home: the first answer may be complete, and so may those that were held back."""
        assert order.first is not None
        if order.first.status == OrderStatus.PENDING:
            order.first = order.outcome()
        if not order.reserved:
            for attempt in order.waiting:
                attempt.outcomes.append(order.outcome())
            order.waiting.clear()

    def _take_leg(self, command: TakeLeg) -> None:
        peer = self._peers.setdefault(command.sender, PeerLegs())
        self.taken.setdefault(command.leg_id, command)
        if command.leg_id in peer.answers:
            return
        if command.settled_below > peer.settled_below:
            peer.settled_below = command.settled_below
            for leg_id in [leg_id for leg_id in peer.answers if leg_id < command.settled_below]:
                del peer.answers[leg_id]
        due = (
            command.peer_epoch == self.epoch
            and command.leg_id >= peer.settled_below
            and command.symbol in self._collars
            and command.side in (Side.BUY, Side.SELL)
            and command.limit > 0
            and command.quantity > 0
        )
        self._keep_answer(command.leg_id, peer, (False, self._trade_leg(command)) if due else (True, ()))

    def _trade_leg(self, command: TakeLeg) -> tuple[LegFill, ...]:
        request = NewOrder("", "", command.symbol, command.side, 1, 2, command.limit, command.quantity)
        taker = Order(request, command.order_id, command.limit, command.quantity, command.quantity, 0)
        queue = self._queue(command.symbol, 3 - command.side)
        fills: list[LegFill] = []
        while taker.open and queue and len(fills) < MAX_LEG_FILLS:
            maker = queue[0]
            if worth(maker.price, command.side) < worth(command.limit, command.side):
                break
            quantity = min(maker.open, taker.open)
            taker.open -= quantity
            fills.append(self._trade(taker, maker, quantity))
        return tuple(fills)

    def _query_leg(self, command: QueryLeg) -> None:
        peer = self._peers.setdefault(command.sender, PeerLegs())
        if command.leg_id not in peer.answers:
            self._keep_answer(command.leg_id, peer, (True, ()))  # the tombstone

    def _keep_answer(self, leg_id: int, peer: PeerLegs, answer: LegAnswer) -> None:
        self.answered.setdefault(leg_id, answer)
        if leg_id >= peer.settled_below:
            peer.answers[leg_id] = answer

    def _uncross(self, command: Uncross) -> None:
        """Legs out of resting orders, as long as a peer's quote locks or crosses the best of them."""
        queue = self._queue(command.symbol, command.side)
        away = _ranked(command.away, command.side)
        for level in [level for level in away if level.value >= _known_to(away)]:
            while level.quantity and queue and level.value >= worth(queue[0].price, command.side):
                order = queue[0]
                if order.request.post_only or order.request.do_not_route:
                    queue.remove(order)
                    self._cancel(order, order.open)
                    continue
                quantity = min(order.open, level.quantity)
                level.quantity -= quantity
                order.open -= quantity
                order.reserved += quantity
                if not order.open:
                    queue.remove(order)
                self._send_leg(order, level, quantity)

    # -- what may be asked --------------------------------------------------------------------------

    def _meets(self, order: Order, worst: int, away: list[Away]) -> bool:
        """Whether an order with this limit would trade, here or with a quote elsewhere."""
        best = self._best(order.request, away)
        return best is not None and best >= worst

    def _collar(self, request: NewOrder, away: list[Away]) -> int:
        """How bad a price a market order may trade at, rounded towards the best one."""
        bps = self._collars[request.symbol]
        best = self._best(request, away)
        return best - abs(best) * bps // _BPS if bps and best is not None else ANY

    def _best(self, request: NewOrder, away: list[Away]) -> int | None:
        """What the best price is worth that it could trade at, here or elsewhere."""
        queue = self._queue(request.symbol, 3 - request.side)
        here = [worth(maker.price, request.side) for maker in queue[:1]]
        return max(here + [level.value for level in away[:1]], default=None)

    def _wrong_order(self, request: NewOrder) -> int:
        identity = request.client_order_id
        if not 1 <= len(identity) <= _LONGEST_ID or not all(" " <= letter <= "~" for letter in identity):
            return RejectReason.INVALID_CLIENT_ORDER_ID
        if request.symbol not in self._collars:
            return RejectReason.UNKNOWN_SYMBOL
        if request.side not in tuple(Side):
            return RejectReason.INVALID_SIDE
        if request.type not in tuple(OrderType):
            return RejectReason.INVALID_ORDER_TYPE
        if request.time_in_force not in tuple(TimeInForce):
            return RejectReason.INVALID_TIME_IN_FORCE
        if request.type > OrderType.MARKET or request.time_in_force > TimeInForce.FOK:
            return RejectReason.UNSUPPORTED
        if request.self_trade_prevention not in tuple(SelfTradePrevention):
            return RejectReason.INVALID_SELF_TRADE_PREVENTION
        if request.stop_price or request.display_quantity or request.expire_time_ns:
            return RejectReason.UNSUPPORTED
        market = request.type == OrderType.MARKET
        if market and request.price:
            return RejectReason.INVALID_PRICE
        reason = _wrong_terms(1 if market else request.price, request.quantity)
        if not reason and request.post_only and (market or request.time_in_force > TimeInForce.GTC):
            return RejectReason.CONFLICTING_INSTRUCTIONS
        return reason


def worth(price: int, side: int) -> int:
    """What a price is worth to a trader on `side`: more is better."""
    return -price if side == Side.BUY else price


def _worst_here(order: Order, away: list[Away]) -> int:
    """How bad a price may be for an order that sends no legs: no worse than the best elsewhere."""
    return max([order.worst, *(level.value for level in away[:1])])


def _refusal(reason: int) -> AttemptOutcome:
    return AttemptOutcome(OrderStatus.REJECTED, int(reason))


def _ranked(quotes: tuple[AwayQuote, ...], side: int) -> list[Away]:
    """All levels that peers show: the best price first, then the larger, then the lower engine number."""
    levels = list(_levels(quotes, side))
    levels.sort(key=lambda level: (-level.value, -level.quantity, level.engine))
    return levels


def _levels(quotes: tuple[AwayQuote, ...], side: int) -> Iterator[Away]:
    for quote in quotes:
        for number, (price, quantity) in enumerate(quote.levels, 1):
            is_last_known = quote.cut and number == len(quote.levels)
            yield Away(worth(price, side), price, quantity, quote.engine, quote.epoch, is_last_known)


def _known_to(away: list[Away]) -> int:
    """How bad a price may be to know of everything better that peers show."""
    return max((level.value for level in away if level.is_last_known), default=ANY)


def _is_more_away(order: Order, away: list[Away]) -> bool:
    """Whether peers may show more, at prices that the order would take, than is known."""
    return any(level.is_last_known and level.value >= order.worst for level in away)


def _protected(taker: Order, maker: Order) -> bool:
    """Whether the taker forbids to trade with an order of its own client."""
    mode = taker.request.self_trade_prevention
    unprotected = (SelfTradePrevention.UNSPECIFIED, SelfTradePrevention.NONE)
    return taker.request.client == maker.request.client and mode not in unprotected


def _wrong_terms(price: int, quantity: int) -> int:
    if not 1 <= price <= _LARGEST:
        return RejectReason.INVALID_PRICE
    if not 1 <= quantity <= _LARGEST:
        return RejectReason.INVALID_QUANTITY
    return RejectReason.NOTIONAL_TOO_LARGE if price * quantity > _LARGEST_NOTIONAL else RejectReason.NONE
