"""What must hold after a run, checked from the execution reports. Pure: reports in, violations out.

Reports of one engine come in its order; reports of different engines in any. A trade that a leg made has
its maker's side in the peer's reports and its taker's side in the home engine's.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bus.messages import (
    Report,
    ReportedCancel,
    ReportedFill,
    ReportedOrder,
    ReportedPrevention,
    ReportedReplace,
    engine_of_id,
)
from engine.terms import Liquidity, OrderType, Side

MAX_SHOWN: Final = 5
"""Violations of one kind that a report spells out."""

_BOTH_SIDES: Final = [Side.BUY, Side.SELL]
_MAKER_AND_TAKER: Final = [Liquidity.MAKER, Liquidity.TAKER]


@dataclass(slots=True)
class Check:
    """One invariant: how many things were checked and what was wrong with them."""

    name: str
    checked: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing was wrong."""
        return not self.violations


@dataclass(slots=True)
class _Order:
    accepted: ReportedOrder
    limit: int
    total: int
    cumulative: int = 0
    cancelled: int = 0
    leaves: int = 0


@dataclass(slots=True)
class Tally:
    """What the execution reports of all engines add up to. Feed it with `add`, then ask."""

    quantity: Check = field(default_factory=lambda: Check("quantity of every order adds up"))
    limits: Check = field(default_factory=lambda: Check("no trade beyond an order's limit"))
    fills: dict[str, list[ReportedFill]] = field(default_factory=lambda: defaultdict(list))
    """Every client's fills in the order of its home engine."""
    _orders: dict[int, _Order] = field(default_factory=dict)

    def add(self, report: Report) -> None:
        """Take one report; an engine's reports must come in its order."""
        match report:
            case ReportedOrder():
                if report.order_id in self._orders:
                    self.quantity.violations.append(f"order {report.order_id} was accepted twice")
                self._orders[report.order_id] = _Order(
                    accepted=report,
                    limit=0 if report.type == OrderType.MARKET else report.price,
                    total=report.quantity,
                    leaves=report.quantity,
                )
            case ReportedFill():
                self._add_fill(report)
            case ReportedReplace():
                if order := self._known(report.order_id, "replaced"):
                    order.limit, order.total = report.price, report.quantity + order.cancelled
                    order.leaves = order.total - order.cumulative - order.cancelled
                    self._balance(report.order_id, order)
            case ReportedCancel():
                if order := self._known(report.order_id, "cancelled"):
                    order.cancelled += report.quantity
                    order.leaves = report.leaves
                    self._balance(report.order_id, order)
            case ReportedPrevention():
                pass  # it changes nothing

    def _add_fill(self, fill: ReportedFill) -> None:
        self.fills[fill.client].append(fill)
        order = self._known(fill.order_id, "filled")
        if order is None:
            return
        accepted = order.accepted
        if (fill.client, fill.symbol, fill.side) != (accepted.client, accepted.symbol, accepted.side):
            self.quantity.violations.append(
                f"order {fill.order_id} of {accepted.client}, {Side(accepted.side).name} {accepted.symbol}, "
                f"was filled for {fill.client}, side {fill.side}, {fill.symbol}"
            )
        order.cumulative += fill.quantity
        order.leaves = fill.leaves
        if fill.cumulative != order.cumulative:
            self.quantity.violations.append(
                f"order {fill.order_id}: fill {fill.sequence} says {fill.cumulative} filled, "
                f"its fills add up to {order.cumulative}"
            )
        self._balance(fill.order_id, order)
        self.limits.checked += 1
        beyond = fill.price > order.limit if accepted.side == Side.BUY else fill.price < order.limit
        if order.limit and beyond:
            self.limits.violations.append(
                f"order {fill.order_id} with limit {order.limit} traded at {fill.price}"
            )

    def _known(self, order_id: int, what: str) -> _Order | None:
        order = self._orders.get(order_id)
        if order is None:
            self.quantity.violations.append(f"order {order_id} was {what} but never accepted")
        return order

    def _balance(self, order_id: int, order: _Order) -> None:
        self.quantity.checked += 1
        if order.leaves < 0 or order.cumulative + order.leaves + order.cancelled != order.total:
            self.quantity.violations.append(
                f"order {order_id}: {order.cumulative} filled + {order.leaves} left + {order.cancelled} "
                f"cancelled is not {order.total}"
            )

    def positions(self) -> dict[tuple[str, str], int]:
        """Every (client, symbol)'s position in lots, by its fills."""
        totals: Counter[tuple[str, str]] = Counter()
        for client, fills in self.fills.items():
            for fill in fills:
                totals[client, fill.symbol] += fill.quantity if fill.side == Side.BUY else -fill.quantity
        return dict(totals)

    def acknowledged(self, sent: Iterable[ReportedOrder]) -> Check:
        """The orders that clients were told are in the market are reported, each as its client sent it."""
        check = Check("every acknowledged order is reported")
        for order in sent:
            check.checked += 1
            known = self._orders.get(order.order_id)
            if known is None or known.accepted != order:
                reported = known and known.accepted
                check.violations.append(f"{order} was acknowledged, {reported} is reported")
        return check

    def open_orders(self, told: Mapping[str, Mapping[int, int]]) -> Check:
        """What each client has open by its engine, as {id: lots left}, is what the reports leave."""
        check = Check("open orders are as the reports leave them")
        due: dict[str, dict[int, int]] = {client: {} for client in told}
        for order_id, order in self._orders.items():
            client = order.accepted.client
            if order.leaves and client in due:
                due[client][order_id] = order.leaves
        for client, left in sorted(told.items()):
            check.checked += len(due[client])
            for order_id in sorted(due[client].keys() | left.keys()):
                engine, reports = left.get(order_id, 0), due[client].get(order_id, 0)
                if engine != reports:
                    check.violations.append(
                        f"{client}: the engine has {engine} left of order {order_id}, the reports {reports}"
                    )
        return check

    def trades(self) -> Check:
        """Every trade has one buyer and one seller, one maker and one taker, and one price and quantity."""
        check = Check("every trade has two equal sides")
        parties: defaultdict[int, list[ReportedFill]] = defaultdict(list)
        for fills in self.fills.values():
            for fill in fills:
                parties[fill.execution_id].append(fill)
        for execution, pair in parties.items():
            check.checked += 1
            same = {(fill.symbol, fill.price, fill.quantity, fill.engine) for fill in pair}
            sides = sorted(fill.side for fill in pair)
            liquidity = sorted(fill.liquidity for fill in pair)
            if len(same) != 1 or sides != _BOTH_SIDES or liquidity != _MAKER_AND_TAKER:
                check.violations.append(f"execution {execution} has sides {sides}, liquidity {liquidity}")
        return check

    def zero_sum(self) -> Check:
        """Buys equal sells in every symbol."""
        check = Check("positions sum to zero per symbol")
        sums: Counter[str] = Counter()
        for (_, symbol), position in self.positions().items():
            sums[symbol] += position
        for symbol, total in sorted(sums.items()):
            check.checked += 1
            if total:
                check.violations.append(f"{symbol}: positions add up to {total} lots")
        return check

    def gap_free(self) -> Check:
        """Every client's fills are numbered 1, 2, 3 and so on."""
        check = Check("fill sequences have no gap and no repeat")
        for client, fills in sorted(self.fills.items()):
            check.checked += len(fills)
            wrong = next((n for n, fill in enumerate(fills, 1) if fill.sequence != n), None)
            if wrong is not None:
                check.violations.append(f"{client}: fill {wrong} has sequence {fills[wrong - 1].sequence}")
        return check

    def received(self, received: Mapping[str, list[ReportedFill]]) -> Check:
        """What each client got by GetFills is what the reports hold, fill by fill."""
        check = Check("clients received exactly their fills")
        for client, got in sorted(received.items()):
            reported = self.fills.get(client, [])
            check.checked += len(reported)
            if got != reported:
                check.violations.append(
                    f"{client} received {len(got)} fills, {len(reported)} were reported, "
                    f"alike to {_first_other(got, reported)}"
                )
        return check

    def same_positions(self, told: Mapping[tuple[str, str], int]) -> Check:
        """What the exchange says about the positions of these clients is what their fills say."""
        check = Check("the exchange's positions equal the fills")
        clients = {client for client, _ in told}
        by_fills = {key: lots for key, lots in self.positions().items() if lots and key[0] in clients}
        by_exchange = {key: lots for key, lots in told.items() if lots}
        check.checked = len(by_fills)
        for key in sorted(by_fills.keys() | by_exchange.keys()):
            if by_fills.get(key) != by_exchange.get(key):
                client, symbol = key
                check.violations.append(
                    f"{client} {symbol}: the exchange says {by_exchange.get(key, 0)}, "
                    f"the fills {by_fills.get(key, 0)}"
                )
        return check


def _first_other(told: Sequence[ReportedFill], due: Sequence[ReportedFill]) -> int | str:
    """Which fill of two histories is the first that differs, or that they are alike to the end of one."""
    pairs = zip(told, due, strict=False)
    return next((number for number, pair in enumerate(pairs, 1) if pair[0] != pair[1]), "the end")


@dataclass(frozen=True, slots=True)
class FillCounts:
    """Where takers' fills were made."""

    per_engine: dict[int, int]
    through_legs: int
    volume: int

    @property
    def total(self) -> int:
        """All trades."""
        return sum(self.per_engine.values())


def count_fills(fills: Iterable[ReportedFill]) -> FillCounts:
    """Trades per engine, and how many of them a leg made: its order's home is another engine."""
    per_engine: Counter[int] = Counter()
    through_legs = volume = 0
    for fill in fills:
        if fill.liquidity == Liquidity.TAKER:
            per_engine[fill.engine] += 1
            through_legs += engine_of_id(fill.order_id) != fill.engine
            volume += fill.quantity
    return FillCounts(dict(sorted(per_engine.items())), through_legs, volume)


def uncrossed(quotes: Mapping[str, tuple[int | None, int | None]]) -> Check:
    """No symbol's consolidated book is locked or crossed; `quotes` holds (best bid, best ask) in ticks."""
    check = Check("consolidated books are not crossed once quiet")
    for symbol, (bid, ask) in sorted(quotes.items()):
        check.checked += 1
        if bid is not None and ask is not None and bid >= ask:
            check.violations.append(f"{symbol}: best bid {bid}, best ask {ask}")
    return check
