"""The state machine as a whole: batches, instruments, refusals that change nothing, checks that can fail."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.commands import (
    AddInstrument,
    CancelAll,
    CancelOrder,
    Command,
    EpochStarted,
    NewOrder,
    ReplaceOrder,
)
from engine.events import Accepted, Answered, BookChanged, Cancelled, CancelledAll, Fill, Replaced
from engine.invariants import check
from engine.state import State
from engine.terms import OrderStatus, OrderType, RejectReason, Side, TimeInForce
from tests.engine.venue import Venue, answered, apply_batch

INT64 = st.integers(-(2**63), 2**63 - 1)


def order(name: str, side: Side, quantity: int = 5, price: int = 100) -> NewOrder:
    """A GTC limit order of a client of the same name."""
    return NewOrder(name, name, "ACME", side, OrderType.LIMIT, TimeInForce.GTC, price, quantity)


def venue() -> Venue:
    """An engine with one instrument."""
    made = Venue()
    made.add_instrument("ACME")
    return made


def test_events_tell_the_facts_in_order() -> None:
    """Accepted first, then the trade's two sides, then the answer."""
    market = venue()
    market.apply_batch([order("a", Side.SELL)])
    events = market.apply_batch([order("b", Side.BUY)])[0]
    assert [type(event) for event in events] == [Accepted, Fill, Fill, Answered]


def test_every_client_command_is_answered_last() -> None:
    """The answer closes the events of each command, whatever became of it."""
    market = venue()
    cases: list[tuple[Command, list[type]]] = [
        (order("a", Side.SELL), [Accepted]),
        (order("a", Side.SELL), [Answered]),
        (ReplaceOrder("a", 0, "a", 101, 5), [Replaced, Answered]),
        (CancelOrder("a", 0, "a"), [Cancelled, Answered]),
        (CancelOrder("a", 0, "a"), [Answered]),
        (CancelAll("a"), [CancelledAll]),
    ]
    for command, kinds in cases:
        assert [type(event) for event in market.apply_batch([command])[0]] == kinds


def test_one_change_per_book_and_batch() -> None:
    """What a batch did to a book is told once, with the values at its end and the next sequence."""
    state = State(1)
    apply_batch(state, 1, [AddInstrument("ACME", "1", "1"), AddInstrument("BOLT", "1", "1")])
    _, changes = apply_batch(
        state, 2, [order("a", Side.SELL), order("b", Side.SELL), order("c", Side.BUY, 3)]
    )
    assert changes == [BookChanged("ACME", 1, ((2, 100, 7, 2),))]
    _, changes = apply_batch(state, 3, [CancelAll("a"), CancelAll("b")])
    assert changes == [BookChanged("ACME", 2, ((2, 100, 0, 0),))]


@pytest.mark.parametrize(
    "command",
    [
        CancelOrder("a", 0, "nothing"),
        order("x", Side.BUY, 0),
        order("a", Side.SELL),
        CancelAll("nobody"),
        EpochStarted(2),
        AddInstrument("BOLT", "1", "1"),
    ],
)
def test_a_batch_that_changes_no_book_moves_no_sequence(command: Command) -> None:
    """Refusals, duplicates and what is not about orders are no change of a book."""
    market = venue()
    market.apply_batch([order("a", Side.SELL)])
    events = len(market.events)
    market.apply_batch([command])
    assert not any(isinstance(event, BookChanged) for event in market.events[events:])
    assert market.state.books["ACME"].sequence == 1


def test_an_instrument_never_changes_its_sizes() -> None:
    """Listing a symbol again may give it another collar, never another tick or lot, and keeps its book."""
    state = State(1)
    apply_batch(state, 1, [AddInstrument("ACME", "0.01", "10"), order("a", Side.SELL)])
    apply_batch(state, 2, [AddInstrument("ACME", "5", "5", 250)])
    assert state.instruments["ACME"] == AddInstrument("ACME", "0.01", "10", 250)
    assert state.books["ACME"].best(Side.SELL) == (100, 5)


def test_a_refusal_says_how_the_order_stands() -> None:
    """A refused replace of a live order changes nothing and tells what is filled and left."""
    market = venue()
    market.apply_batch([order("a", Side.SELL), order("b", Side.BUY, 2)])
    answer = answered(market.apply_batch([ReplaceOrder("a", 0, "a", 0, 5)])[0])
    assert (answer.status, answer.reject_reason) == (OrderStatus.REJECTED, RejectReason.INVALID_PRICE)
    assert (answer.cumulative, answer.leaves) == (2, 3)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "client_order_id": st.text(max_size=40),
    "symbol": st.sampled_from(["", "*", ">", "md.1", "x" * 1_000]),
    "side": INT64 | st.integers(0, 3),
    "type": INT64 | st.integers(-1, 5),
    "time_in_force": INT64 | st.integers(-1, 6),
    "price": INT64 | st.integers(0, 10**12),
    "quantity": INT64 | st.integers(0, 10**12),
    "stop_price": INT64,
    "display_quantity": INT64,
    "post_only": st.booleans(),
    "self_trade_prevention": INT64 | st.integers(-1, 6),
    "expire_time_ns": INT64,
    "do_not_route": st.booleans(),
}
ANY_FIELD = st.one_of([st.tuples(st.just(name), values) for name, values in FIELDS.items()])


@settings(max_examples=500)
@example(changes=[("symbol", "x" * 1_000_000)])
@given(changes=st.lists(ANY_FIELD, max_size=3))
def test_no_order_of_any_kind_stops_the_engine(changes: list[tuple[str, Any]]) -> None:
    """Whatever is wrong with it, there is one answer, short in words; a refused order changes nothing."""
    market = venue()
    state = market.state
    before = state.accounts.next_order_id
    command = msgspec.structs.replace(order("ann", Side.BUY), **dict(changes))
    answer = answered(market.apply_batch([command])[0])
    assert len(answer.reject_text) < 300
    if answer.status == OrderStatus.REJECTED:
        assert state.accounts.next_order_id == before
        assert not state.accounts.by_name
        assert not state.orders
    check(state)


@settings(max_examples=300)
@given(
    unknown=st.integers(2**63, 2**64 - 1),
    name=st.text(max_size=40),
    price=INT64 | st.integers(1, 10**12),
    quantity=INT64 | st.integers(1, 10**12),
)
def test_no_cancel_or_replace_stops_the_engine(unknown: int, name: str, price: int, quantity: int) -> None:
    """Unknown orders, those of others and impossible terms are refused by name, and nothing changes."""
    market = venue()
    market.apply_batch([order("ann", Side.BUY)])
    (known,) = market.state.orders
    for command in (
        CancelOrder("ann", unknown, name),
        ReplaceOrder("ann", unknown, name, price, quantity),
        CancelOrder("bob", known, name),
        ReplaceOrder("bob", known, name, price, quantity),
    ):
        answer = answered(market.apply_batch([command])[0])
        assert answer.reject_reason == RejectReason.UNKNOWN_ORDER
    answer = answered(market.apply_batch([ReplaceOrder("ann", known, name, price, quantity)])[0])
    refused = answer.status == OrderStatus.REJECTED
    assert market.state.books["ACME"].best(Side.BUY) == ((100, 5) if refused else (price, quantity))
    check(market.state)


def cross(state: State) -> None:
    """Rest a bid above the asks."""
    bid = next(order for order in state.orders.values() if order.side == Side.BUY)
    state.books["ACME"].bids.remove(bid)
    bid.price = 500
    state.books["ACME"].bids.add(bid)


def some(state: State, side: Side) -> "msgspec.Struct":
    """One order of a side."""
    return next(order for order in state.orders.values() if order.side == side)


BREAKS: dict[str, Callable[[State], object]] = {
    "crossed book": cross,
    "level total": lambda state: setattr(state.books["ACME"].asks.levels[-110], "quantity", 999),
    "queue order": lambda state: (
        state.books["ACME"]
        .asks.levels[-110]
        .orders.move_to_end(next(iter(state.books["ACME"].asks.levels[-110].orders)))
    ),
    "open quantity": lambda state: setattr(some(state, Side.BUY), "open", 0),
    "reserved without a leg": lambda state: setattr(some(state, Side.BUY), "reserved", 3),
    "negative quantity": lambda state: setattr(some(state, Side.BUY), "cumulative", -1),
    "fill not counted": lambda state: setattr(state.accounts.by_name["t"].finished[0], "cumulative", 1),
    "value without a fill": lambda state: setattr(some(state, Side.BUY), "value", 1),
    "leg to a peer that is not out": lambda state: state.legs_to.update({2: OrderedDict({1: None})}),
    "gap in a history": lambda state: state.accounts.by_name["t"].fills.pop(0),
    "lost level": lambda state: state.books["ACME"].asks.keys.pop(),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_check_finds_what_is_broken(name: str) -> None:
    """Each invariant is seen to fail once."""
    market = venue()
    market.apply_batch(
        [
            order("a", Side.SELL, price=110),
            order("b", Side.SELL, price=110),
            order("c", Side.BUY, price=90),
            order("s1", Side.SELL, 1),
            order("s2", Side.SELL, 1),
            order("t", Side.BUY, 2),
        ]
    )
    check(market.state)
    BREAKS[name](market.state)
    with pytest.raises(AssertionError):
        check(market.state)
