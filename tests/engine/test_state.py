"""The state machine as a whole: batches, instruments, refusals that change nothing, checks that can fail."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.book import BookSide
from engine.commands import (
    AddInstrument,
    AwayQuote,
    CancelAll,
    CancelOrder,
    Command,
    EpochStarted,
    NewOrder,
    ReplaceOrder,
    Uncross,
)
from engine.events import Accepted, Answered, BookChanged, Cancelled, CancelledAll, Fill, Replaced
from engine.invariants import check
from engine.orders import Account, Order, Owed
from engine.state import OutLeg, State
from engine.terms import OrderStatus, OrderType, RejectReason, SelfTradePrevention, Side, TimeInForce
from tests.engine.venue import answered, apply_batch, venue

INT64 = st.integers(-(2**63), 2**63 - 1)


def order(name: str, side: Side, quantity: int = 5, price: int = 100) -> NewOrder:
    """A GTC limit order of a client of the same name."""
    return NewOrder(name, name, "ACME", side, OrderType.LIMIT, TimeInForce.GTC, price, quantity)


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


def test_a_bounded_cancel_all_begins_with_the_oldest() -> None:
    """It cancels so many as it may of what it is about; 0 is no bound."""
    market = venue()
    orders = [
        msgspec.structs.replace(order("a", side), client_order_id=name)
        for name, side in (("bid", Side.BUY), ("1", Side.SELL), ("2", Side.SELL), ("3", Side.SELL))
    ]
    orders[0] = msgspec.structs.replace(orders[0], price=99)
    market.apply_batch(orders)
    for most, cancelled, left in ((2, ["1", "2"], ["bid", "3"]), (2, ["3"], ["bid"]), (0, [], ["bid"])):
        events = market.apply_batch([CancelAll("a", "ACME", Side.SELL, most)])[0]
        assert [event.client_order_id for event in events if isinstance(event, Cancelled)] == cancelled
        assert events[-1] == CancelledAll("a", len(cancelled))
        still_open = account(market.state, "a").open.values()
        assert [one.request.client_order_id for one in still_open] == left


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
    ("command", "left"),
    [
        (order("b", Side.BUY, 2), (2, 100, 3, 1)),
        (ReplaceOrder("a", 0, "a", 100, 4), (2, 100, 4, 1)),
        (ReplaceOrder("a", 0, "a", 100, 6), (2, 100, 6, 1)),
        (CancelOrder("a", 0, "a"), (2, 100, 0, 0)),
        (Uncross("ACME", Side.SELL, (AwayQuote(2, 1, 1, ((100, 2),)),)), (2, 100, 3, 1)),
        (
            msgspec.structs.replace(
                order("a", Side.BUY, 2),
                client_order_id="t",
                self_trade_prevention=SelfTradePrevention.DECREMENT,
            ),
            (2, 100, 3, 1),
        ),
    ],
)
def test_every_change_of_a_level_is_told(command: Command, left: tuple[int, int, int, int]) -> None:
    """A single command that changes one level makes one change of the book, whatever it is."""
    state = State(1)
    apply_batch(state, 1, [AddInstrument("ACME", "1", "1"), order("a", Side.SELL)])
    _, changes = apply_batch(state, 2, [command])
    assert changes == [BookChanged("ACME", 2, (left,))]


@pytest.mark.parametrize(
    "command",
    [
        CancelOrder("a", 0, "nothing"),
        order("x", Side.BUY, 0),
        order("a", Side.SELL),
        msgspec.structs.replace(order("x", Side.BUY, price=99), time_in_force=TimeInForce.IOC),
        CancelAll("nobody"),
        EpochStarted(2),
        AddInstrument("BOLT", "1", "1"),
    ],
)
def test_a_batch_that_changes_no_book_moves_no_sequence(command: Command) -> None:
    """Refusals, duplicates, orders that find nothing and what is not about orders change no book."""
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
    assert (answer.order_id, answer.cumulative, answer.leaves) == (1 << 48 | 1, 2, 3)


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


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"type": 3, "time_in_force": 4}, "type 3 is not offered yet: send LIMIT (1) or MARKET (2)"),
        ({"time_in_force": 5}, "time_in_force 5 is not offered yet: send GTC (1), IOC (2) or FOK (3)"),
        ({"stop_price": -7, "expire_time_ns": 9}, "stop_price -7 is not offered yet: leave it 0"),
        ({"display_quantity": 8, "expire_time_ns": 9}, "display_quantity 8 is not offered yet: leave it 0"),
        ({"expire_time_ns": 9}, "expire_time_ns 9 is not offered yet: leave it 0"),
    ],
)
def test_what_is_not_offered_yet_is_refused_by_field_and_value(changes: dict[str, Any], text: str) -> None:
    """A programmer sees which field of an order is too early, what was in it, and what to send instead."""
    command = msgspec.structs.replace(order("ann", Side.BUY), **changes)
    answer = answered(venue().apply_batch([command])[0])
    assert (answer.reject_reason, answer.reject_text) == (RejectReason.UNSUPPORTED, text)


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


def account(state: State, client: str) -> Account:
    """A client's account."""
    return state.accounts.by_name[client]


def named(state: State, client_order_id: str) -> Order:
    """The order of this client order id."""
    return next(order for order in state.orders.values() if order.request.client_order_id == client_order_id)


def asks(state: State) -> BookSide:
    """The side on which two orders, of a and b, stand at 110."""
    return state.books["ACME"].asks


def cross(state: State) -> None:
    """Rest a bid at the price of the asks."""
    bids, bid = state.books["ACME"].bids, named(state, "c")
    bids.remove(bid)
    bid.price = 110
    bids.add(bid)


def empty_leg(state: State) -> None:
    """Let a leg be of nothing."""
    leg_id, leg = next(iter(state.legs.items()))
    state.legs[leg_id] = OutLeg(msgspec.structs.replace(leg.sent, quantity=0), leg.order)


def reserve(state: State) -> None:
    """Let an order have something out, and ask for as much more."""
    bid = named(state, "c")
    bid.quantity, bid.reserved = bid.quantity + 3, 3


def stand_nowhere(state: State) -> None:
    """Take a bid out of the book, and let it wait like one with legs out."""
    bid = named(state, "c")
    state.books["ACME"].bids.remove(bid)
    bid.priority = 0


def repeat_fill(state: State) -> None:
    """Let a fill be told twice and the next one never."""
    fills = account(state, "t").fills
    fills[1] = fills[0]


def miscount(state: State) -> None:
    """Count more of a client at a level than it has there."""
    level = asks(state).levels[-110]
    level.held_by(account(state, "a"))
    level.adjust_held(named(state, "a"), 1)


BREAKS: dict[str, tuple[Callable[[State], object], str]] = {
    "crossed book": (cross, "ACME is crossed"),
    "empty leg": (empty_leg, "leg .* is empty"),
    "leg to a peer that is not out": (
        lambda state: state.legs_to.update({3: OrderedDict({1: None})}),
        "legs by peer",
    ),
    "negative quantity": (lambda state: setattr(named(state, "c"), "cumulative", -1), "negative quantity"),
    "reserved without a leg": (reserve, "reserves what no leg has"),
    "owed without a leg": (
        lambda state: setattr(named(state, "c"), "owed", Owed((account(state, "t").fills[0],), ())),
        "owes no answer",
    ),
    "open order not open": (lambda state: account(state, "c").open.popitem(), "is open and finished"),
    "not in the book": (
        lambda state: state.books["ACME"].bids.remove(named(state, "c")),
        "open but rests: False",
    ),
    "waiting without a leg": (stand_nowhere, "waits for no leg"),
    "gap in a history": (repeat_fill, "t's fills have a gap at 2"),
    "fill not counted": (
        lambda state: setattr(named(state, "t"), "cumulative", 1),
        "has other quantities than its fills",
    ),
    "value without a fill": (
        lambda state: setattr(named(state, "c"), "value", 1),
        "has other quantities than its fills",
    ),
    "old fills without a landmark": (
        lambda state: account(state, "t").fills.pop(0),
        "t's old fills cannot be found",
    ),
    "pending order forgotten": (lambda state: account(state, "p").pending.popitem(), "p's orders with legs"),
    "pending orders reversed": (
        lambda state: account(state, "p").pending.move_to_end(named(state, "p1").id),
        "p's marks are out of order",
    ),
    "client order id forgotten": (lambda state: account(state, "c").orders.clear(), "c's orders$"),
    "lost level": (lambda state: asks(state).keys.pop(), "keys and levels disagree"),
    "empty level": (lambda state: asks(state).levels[-110].orders.clear(), "level 110 is empty"),
    "level at another key": (
        lambda state: setattr(asks(state).levels[-110], "price", 111),
        "level 111 stands at the key -110",
    ),
    "level total": (
        lambda state: setattr(asks(state).levels[-110], "quantity", 999),
        "the quantity of level 110 is not that of its orders",
    ),
    "client's total": (miscount, "level 110 counts its clients' orders wrongly"),
    "queue order": (
        lambda state: asks(state).levels[-110].orders.move_to_end(named(state, "a").id),
        "the queue at 110 is out of order",
    ),
    "order at another price": (
        lambda state: setattr(named(state, "a"), "price", 111),
        "stands at another price",
    ),
    "order on the other side": (
        lambda state: setattr(named(state, "a"), "side", Side.BUY),
        "stands on the other side",
    ),
    "unknown order": (lambda state: state.orders.pop(named(state, "a").id), "is in the book but not known"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_check_finds_what_is_broken(name: str) -> None:
    """Each invariant is seen to fail once, and says so."""
    away = (AwayQuote(2, 1, 1, ((95, 1),)),)
    market = venue()
    market.apply_batch(
        [
            order("a", Side.SELL, price=110),
            order("b", Side.SELL, price=110),
            order("c", Side.BUY, price=90),
            order("s1", Side.SELL, 1),
            order("s2", Side.SELL, 1),
            order("t", Side.BUY, 2),
            # Two orders with a leg out, and between them a fill of their client.
            NewOrder("p", "p1", "ACME", Side.BUY, OrderType.LIMIT, TimeInForce.GTC, 95, 1, away=away),
            NewOrder("p", "p2", "ACME", Side.SELL, OrderType.LIMIT, TimeInForce.GTC, 90, 1),
            NewOrder("p", "p3", "ACME", Side.BUY, OrderType.LIMIT, TimeInForce.GTC, 95, 1, away=away),
        ]
    )
    check(market.state)
    break_it, complaint = BREAKS[name]
    break_it(market.state)
    with pytest.raises(AssertionError, match=complaint):
        check(market.state)
