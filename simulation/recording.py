"""What a run looked like, moment by moment: quotes, orders, fills, faults. Pure: times are passed in.

All times are seconds since the clients began. Prices and quantities are decimals in the instrument's units.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, NamedTuple

from bus.messages import engine_of_id
from client import Fill
from client.terms import OrderStatus

VENUE_CANCEL: Final = "venue_cancel"

OPEN: Final = (OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED, OrderStatus.PENDING)
"""What an order is while it may still trade."""

_NS_PER_S: Final = 1_000_000_000


class Quote(NamedTuple):
    """One symbol's consolidated book at one moment.

    Quantities are what rests at the best prices, depths what rests on the watched levels of a side.
    """

    at_s: float
    symbol: str
    bid: Decimal | None
    ask: Decimal | None
    bid_quantity: Decimal
    ask_quantity: Decimal
    bid_depth: Decimal
    ask_depth: Decimal
    value: Decimal | None
    """The fundamental value to a hundredth of a tick, where the scenario has one."""


class SentOrder(NamedTuple):
    """One order as its client saw it. Without an answer `answered_s` is None and `status` empty."""

    sent_s: float
    answered_s: float | None
    client: str
    kind: str
    engine: int
    """Where the client is at home."""
    symbol: str
    side: str
    type: str
    time_in_force: str
    price: Decimal | None
    quantity: Decimal
    status: str
    reason: str
    order_id: int
    post_only: bool = False

    @property
    def latency_ms(self) -> float | None:
        """From the call to its answer."""
        return None if self.answered_s is None else (self.answered_s - self.sent_s) * 1_000


class SentChange(NamedTuple):
    """A cancel or a replace as its client saw it. Without an answer `answered_s` is None, `status` empty.

    Or what the venue cancelled by itself, as a report told it: `change` is `VENUE_CANCEL`.
    """

    sent_s: float
    answered_s: float | None
    client: str
    change: str
    order_id: int
    price: Decimal | None
    quantity: Decimal | None
    """The new total, what is filled included; or what the venue cancelled. A client's cancel has none."""
    status: str
    reason: str

    @property
    def latency_ms(self) -> float | None:
        """From the call to its answer."""
        return None if self.answered_s is None else (self.answered_s - self.sent_s) * 1_000

    @property
    def engine(self) -> int:
        """The order's home; 0 where its id is not known."""
        return engine_of_id(self.order_id)


SentCall = SentOrder | SentChange
"""What a client waits for."""


class TimedFill(NamedTuple):
    """One side of a trade, and when it was seen."""

    at_s: float
    client: str
    kind: str
    fill: Fill


class EngineStrike(NamedTuple):
    """A fault that struck an engine; `lasts_s` is 0 for what is over at once.

    It `missed` where the engine was not running.
    """

    at_s: float
    kind: str
    engine: int
    lasts_s: float
    missed: bool = False


class StateChange(NamedTuple):
    """From here on the exchange saw the engine so."""

    at_s: float
    engine: int
    state: str


@dataclass(slots=True)
class Recording:
    """Everything that happened, in the order in which it was noticed."""

    started_ns: int = 0
    """UTC."""
    quotes: list[Quote] = field(default_factory=list)
    orders: list[SentOrder] = field(default_factory=list)
    changes: list[SentChange] = field(default_factory=list)
    reported_cancels: list[SentChange] = field(default_factory=list)
    """All cancels that the engines reported, whoever wanted them, as if the venue had."""
    fills: list[TimedFill] = field(default_factory=list)
    strikes: list[EngineStrike] = field(default_factory=list)
    states: list[StateChange] = field(default_factory=list)

    def note_fill(self, client: str, kind: str, fill: Fill) -> None:
        """Place a fill by the time that its engine gave it."""
        at_s = (fill.timestamp_ns - self.started_ns) / _NS_PER_S
        self.fills.append(TimedFill(at_s, client, kind, fill))

    def calls(self) -> list[SentCall]:
        """All for which clients waited."""
        return [*self.orders, *self.changes]

    def all_changes(self) -> list[SentChange]:
        """By time, with what the venue cancelled of orders that are open by all answers to their clients."""
        answered = [one for one in self.changes if one.status and not one.reason]
        over = {one.order_id for one in answered if one.change == "cancel" or one.status not in OPEN}
        still_open = {order.order_id for order in self.orders if order.status in OPEN} - over
        of_venue = [one for one in self.reported_cancels if one.order_id in still_open]
        return sorted([*self.changes, *of_venue], key=lambda change: change.sent_s)

    def note_state(self, at_s: float, engine: int, state: str) -> None:
        """Keep an engine's state if it differs from the last."""
        before = next((known.state for known in reversed(self.states) if known.engine == engine), None)
        if state != before:
            self.states.append(StateChange(at_s, engine, state))
