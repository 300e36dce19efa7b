"""What the client's calls return: immutable, prices and quantities as `Decimal`; made here from the wire.

Times are nanoseconds UTC. `engine` is an engine's number.
"""

from decimal import Decimal

import msgspec
from matchbus.v1 import matchbus_pb2 as pb

from client import terms
from client.errors import OrderRefused
from client.terms import (
    EngineRole,
    EngineState,
    Liquidity,
    OrderStatus,
    OrderType,
    RejectReason,
    SelfTradePrevention,
    Side,
    TimeInForce,
)
from client.units import ZERO, Instrument


class Fill(msgspec.Struct, frozen=True):
    """One trade of one order. `sequence` counts this client's fills from 1, without gaps.

    `execution_id` is the same on both sides of the trade, `engine` is where it happened.
    """

    sequence: int
    execution_id: int
    order_id: int
    client_order_id: str
    symbol: str
    side: Side
    price: Decimal
    quantity: Decimal
    liquidity: Liquidity
    cumulative_quantity: Decimal
    leaves_quantity: Decimal
    engine: int
    timestamp_ns: int
    fee: Decimal
    contra_order_id: int


class PreventedMatch(msgspec.Struct, frozen=True):
    """A match of two orders of this client that self-trade prevention stopped; never a trade."""

    symbol: str
    taker_order_id: int
    maker_order_id: int
    price: Decimal
    quantity: Decimal
    mode: SelfTradePrevention


class OrderState(msgspec.Struct, frozen=True):
    """One order as it stands. `quantity` is the total as last replaced; a market order's price is 0."""

    order_id: int
    client_order_id: str
    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price: Decimal
    quantity: Decimal
    cumulative_quantity: Decimal
    leaves_quantity: Decimal
    cancelled_quantity: Decimal
    status: OrderStatus
    average_price: Decimal
    post_only: bool
    self_trade_prevention: SelfTradePrevention


class OrderResult(msgspec.Struct, frozen=True):
    """The engine's answer to one submit, cancel or replace.

    A refusal is such an answer too (`rejected`, `reject_reason`, `reject_text`): refused orders are part of
    trading, and a loop over many orders should not end at one. `raise_if_refused` is for code that
    cannot go on. `fills` holds what this command traded at once, without the last `fills_omitted` where those
    are too many for a message: `Client.fills` has all. `average_price` (for display) is over all of the
    order's fills, 0 when there are none. `duplicate`: this is the answer to an earlier attempt of
    the same command. `state` is set where the client had to ask how the order stands: see `Client.cancel`.
    """

    client_order_id: str
    order_id: int
    status: OrderStatus
    reject_reason: RejectReason | None = None
    reject_text: str = ""
    cumulative_quantity: Decimal = ZERO
    leaves_quantity: Decimal = ZERO
    average_price: Decimal = ZERO
    fills: tuple[Fill, ...] = ()
    prevented: tuple[PreventedMatch, ...] = ()
    duplicate: bool = False
    state: OrderState | None = None
    fills_omitted: int = 0

    @property
    def rejected(self) -> bool:
        """Whether the command was refused and changed nothing."""
        return self.reject_reason is not None

    def raise_if_refused(self) -> "OrderResult":
        """Return itself, or raise `OrderRefused` if the command was refused."""
        if self.reject_reason is not None:
            raise OrderRefused(self, self.reject_reason)
        return self


class EngineQuantity(msgspec.Struct, frozen=True):
    """One engine's share of a price level in a consolidated book."""

    engine: int
    quantity: Decimal
    order_count: int


class BookOrder(msgspec.Struct, frozen=True):
    """One order in the queue of a price level."""

    order_id: int
    quantity: Decimal


class BookLevel(msgspec.Struct, frozen=True):
    """One price with all that rests there.

    `engines` is filled in a consolidated book, `orders` where they were asked for: first in the queue first.
    """

    price: Decimal
    quantity: Decimal
    order_count: int
    engines: tuple[EngineQuantity, ...] = ()
    orders: tuple[BookOrder, ...] = ()


class Book(msgspec.Struct, frozen=True):
    """A symbol's resting orders by price, best first. `sequence` is 0 in a consolidated book."""

    symbol: str
    sequence: int
    bids: tuple[BookLevel, ...]
    asks: tuple[BookLevel, ...]

    @property
    def best_bid(self) -> BookLevel | None:
        """The highest price someone pays, or None."""
        return self.bids[0] if self.bids else None

    @property
    def best_ask(self) -> BookLevel | None:
        """The lowest price someone sells at, or None."""
        return self.asks[0] if self.asks else None


class EngineStatus(msgspec.Struct, frozen=True):
    """One engine process as the exchange sees it.

    `lag_ns` is the queueing delay of a primary's feed. A standby has no feed: its `state` is None, and
    `lag_batches` says how many batches of the journal it has not applied yet. `batch_number` is where it
    stands in the journal, `reason` why it is not live or does not serve.
    """

    engine: int
    role: EngineRole
    state: EngineState | None
    epoch: int
    address: str
    lag_ns: int
    batch_number: int
    lag_batches: int
    reason: str


class Position(msgspec.Struct, frozen=True):
    """What this client holds of a symbol; negative when short. `average_price` is 0 when flat."""

    symbol: str
    quantity: Decimal
    average_price: Decimal
    realized_pnl: Decimal
    fees: Decimal


def fill(message: pb.Fill, instrument: Instrument) -> Fill:
    """The fill that the engine reports."""
    return Fill(
        message.sequence,
        message.execution_id,
        message.order_id,
        message.client_order_id,
        message.symbol,
        terms.SIDES[message.side],
        instrument.price(message.price),
        instrument.quantity(message.quantity),
        terms.LIQUIDITIES[message.liquidity],
        instrument.quantity(message.cumulative_quantity),
        instrument.quantity(message.leaves_quantity),
        message.engine_id,
        message.timestamp_ns,
        instrument.money(message.fee) if message.fee else ZERO,
        message.contra_order_id,
    )


def order_result(reply: pb.OrderReply, instrument: Instrument | None) -> OrderResult:
    """The engine's answer. Without an instrument the reply must speak of no quantity, as a refusal does."""
    cumulative, leaves = reply.cumulative_quantity, reply.leaves_quantity
    what = (
        reply.client_order_id,
        reply.order_id,
        terms.STATUSES[reply.status],
        _reject_reason(reply.reject_reason),
        reply.reject_text,
    )
    if instrument is None:
        assert not cumulative
        assert not leaves
        return OrderResult(*what, duplicate=reply.duplicate)
    return OrderResult(
        *what,
        instrument.quantity(cumulative) if cumulative else ZERO,
        instrument.quantity(leaves) if leaves else ZERO,
        instrument.average(reply.average_price) if cumulative else ZERO,
        tuple([fill(message, instrument) for message in reply.fills]) if cumulative else (),
        tuple([_prevented(message, instrument) for message in reply.prevented]),
        reply.duplicate,
        fills_omitted=reply.fills_omitted,
    )


def may_be_our_own_doing(reply: pb.OrderReply, attempts: int) -> bool:
    """Whether a refusal may tell of what an earlier attempt did.

    Sent again, a cancel or replace finds the order closed by its first attempt, a replace also finds it
    waiting for the leg that its first attempt sent.
    """
    return attempts > 1 and reply.reject_reason in (
        pb.REJECT_REASON_ORDER_CLOSED,
        pb.REJECT_REASON_ORDER_PENDING,
    )


def result_of_repeated_cancel(state: OrderState, repeated: pb.OrderReply) -> OrderResult:
    """What a cancel came to that was refused when it was sent again, by how the order stands."""
    return _result_of_state(state, repeated, done=state.status is OrderStatus.CANCELLED)


def result_of_repeated_replace(
    state: OrderState, repeated: pb.OrderReply, price: Decimal, quantity: Decimal
) -> OrderResult:
    """The same of a replace to this price and total."""
    # A total at or below what is filled finished the order, which kept its price.
    finished = state.status is OrderStatus.FILLED and quantity <= state.cumulative_quantity
    done = finished or (state.price, state.quantity) == (price, quantity)
    return _result_of_state(state, repeated, done=done)


def _result_of_state(state: OrderState, repeated: pb.OrderReply, *, done: bool) -> OrderResult:
    """The answer to a command whose own answer was lost: `done`, or refused as `repeated` says."""
    return OrderResult(
        state.client_order_id,
        state.order_id,
        state.status if done else OrderStatus.REJECTED,
        None if done else _reject_reason(repeated.reject_reason),
        "" if done else repeated.reject_text,
        state.cumulative_quantity,
        state.leaves_quantity,
        state.average_price,
        duplicate=done,
        state=state,
    )


def order_state(message: pb.OrderState, instrument: Instrument) -> OrderState:
    """The order as the engine has it."""
    return OrderState(
        order_id=message.order_id,
        client_order_id=message.client_order_id,
        symbol=message.symbol,
        side=terms.SIDES[message.side],
        type=terms.ORDER_TYPES[message.type],
        time_in_force=terms.TIMES_IN_FORCE[message.time_in_force],
        price=instrument.price(message.price),
        quantity=instrument.quantity(message.quantity),
        cumulative_quantity=instrument.quantity(message.cumulative_quantity),
        leaves_quantity=instrument.quantity(message.leaves_quantity),
        cancelled_quantity=instrument.quantity(message.cancelled_quantity),
        status=terms.STATUSES[message.status],
        average_price=instrument.average(message.average_price),
        post_only=message.post_only,
        self_trade_prevention=terms.SELF_TRADE_PREVENTIONS[message.self_trade_prevention],
    )


def book(message: pb.OrderBook | pb.ConsolidatedBook, instrument: Instrument) -> Book:
    """One engine's book, or the sum over all engines."""
    return Book(
        symbol=message.symbol,
        sequence=message.sequence if isinstance(message, pb.OrderBook) else 0,
        bids=tuple([_level(level, instrument) for level in message.bids]),
        asks=tuple([_level(level, instrument) for level in message.asks]),
    )


def engine_status(message: pb.Engine) -> EngineStatus:
    """One process as the exchange lists it; an exchange that names no role has no standbys."""
    return EngineStatus(
        engine=message.engine,
        role=terms.ENGINE_ROLES.get(message.role, EngineRole.PRIMARY),
        state=terms.ENGINE_STATES.get(message.state),
        epoch=message.epoch,
        address=message.address,
        lag_ns=message.lag_ns,
        batch_number=message.batch_number,
        lag_batches=message.lag_batches,
        reason=message.reason,
    )


def position(message: pb.Position, instrument: Instrument) -> Position:
    """What the exchange has summed up for one symbol."""
    return Position(
        symbol=message.symbol,
        quantity=instrument.quantity(message.position),
        average_price=instrument.average(message.average_price),
        realized_pnl=instrument.money(message.realized_pnl),
        fees=instrument.money(message.fees),
    )


def _reject_reason(number: int) -> RejectReason | None:
    """None for 0; OTHER for one that came after this client."""
    return terms.REJECT_REASONS.get(number, RejectReason.OTHER) if number else None


def _level(message: pb.Level, instrument: Instrument) -> BookLevel:
    return BookLevel(
        instrument.price(message.price),
        instrument.quantity(message.quantity),
        message.order_count,
        tuple(
            [
                EngineQuantity(share.engine, instrument.quantity(share.quantity), share.order_count)
                for share in message.engines
            ]
        ),
        tuple([BookOrder(order.order_id, instrument.quantity(order.quantity)) for order in message.orders]),
    )


def _prevented(message: pb.PreventedMatch, instrument: Instrument) -> PreventedMatch:
    return PreventedMatch(
        message.symbol,
        message.taker_order_id,
        message.maker_order_id,
        instrument.price(message.price),
        instrument.quantity(message.quantity),
        terms.SELF_TRADE_PREVENTIONS[message.mode],
    )
