"""Requests become commands and events become replies, field by field."""

import sys

import msgspec
import pytest
from google.protobuf.message import Message
from matchbus.edge import MAX_MESSAGE_BYTES
from matchbus.v1 import matchbus_pb2 as pb

from engine.commands import AddInstrument, CancelOrder, NewOrder
from engine.events import Accepted, Answered, Fill, Prevented
from engine.runtime import wire
from engine.state import State
from engine.terms import (
    MAX_CLIENT_ORDER_ID_LENGTH,
    MAX_SYMBOL_LENGTH,
    Liquidity,
    OrderStatus,
    RejectReason,
    SelfTradePrevention,
    Side,
    TimeInForce,
)

NEW = pb.NewOrder(
    client_order_id="c1",
    symbol="AAPL",
    side=pb.SIDE_SELL,
    type=pb.ORDER_TYPE_STOP_LIMIT,
    time_in_force=pb.TIME_IN_FORCE_GTD,
    price=1,
    quantity=20,
    stop_price=30,
    display_quantity=40,
    post_only=True,
    self_trade_prevention=pb.SELF_TRADE_PREVENTION_CANCEL_BOTH,
    expire_time_ns=50,
    do_not_route=True,
)
CANCEL = pb.CancelOrderRequest(order_id=2**64 - 1, client_order_id="c2")
REPLACE = pb.ReplaceOrderRequest(order_id=2**64 - 1, client_order_id="c3", price=7, quantity=8)
CANCEL_ALL = pb.CancelAllRequest(symbol="BRK.B", side=pb.SIDE_BUY)

FILL = Fill(
    client="alice",
    sequence=1,
    execution_id=2**64 - 2,
    order_id=2**64 - 1,
    client_order_id="c1",
    symbol="AAPL",
    side=int(Side.SELL),
    price=5,
    quantity=6,
    liquidity=int(Liquidity.TAKER),
    cumulative=7,
    leaves=8,
    engine=65_535,
    time_ns=10,
    contra_order_id=2**64 - 3,
    fee=12,
)
FILLED = pb.Fill(
    sequence=1,
    execution_id=2**64 - 2,
    order_id=2**64 - 1,
    client_order_id="c1",
    symbol="AAPL",
    side=pb.SIDE_SELL,
    price=5,
    quantity=6,
    liquidity=pb.LIQUIDITY_TAKER,
    cumulative_quantity=7,
    leaves_quantity=8,
    engine_id=65_535,
    timestamp_ns=10,
    fee=12,
    contra_order_id=2**64 - 3,
)


def fields_of(message: Message) -> dict[str, object]:
    """Every field there is, by name."""
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


@pytest.mark.parametrize(
    ("command", "request_", "shell_fields"),
    [
        (wire.new_order("alice", NEW), NEW, {"client", "away"}),
        (wire.cancel_order("alice", CANCEL), CANCEL, {"client"}),
        (wire.replace_order("alice", REPLACE), REPLACE, {"client", "away"}),
        (wire.cancel_all("alice", CANCEL_ALL), CANCEL_ALL, {"client", "most"}),
    ],
    ids=["new", "cancel", "replace", "cancel all"],
)
def test_every_field_reaches_the_command(command: object, request_: Message, shell_fields: set[str]) -> None:
    """Under its own name, none left out, none invented; the client is the one whose token it was."""
    asked = fields_of(request_)
    assert all(asked.values()), "a field that is not set would prove nothing"
    names = {name for name in dir(type(command)) if name in getattr(type(command), "__struct_fields__", ())}
    assert names == asked.keys() | shell_fields
    assert {name: getattr(command, name) for name in asked} == asked
    assert getattr(command, "client", None) == "alice"


def test_orders_of_a_symbol_share_one_string() -> None:
    """It is not interned: that may be for ever, and a client can send any number of unknown ones."""
    spelled = ["NO", "-ONE-", "HAS"]
    first, second = (wire.new_order("ann", pb.NewOrder(symbol="".join(spelled))).symbol for _ in range(2))
    assert first is second
    again = "".join(spelled)
    assert sys.intern(again) is again


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (pb.Command(new=NEW), wire.new_order("alice", NEW)),
        (pb.Command(cancel=CANCEL), wire.cancel_order("alice", CANCEL)),
        (pb.Command(replace=REPLACE), wire.replace_order("alice", REPLACE)),
        (pb.Command(new=pb.NewOrder(price=5)), wire.new_order("alice", pb.NewOrder(price=5))),
        (pb.Command(cancel=pb.CancelOrderRequest()), CancelOrder("alice", 0, "")),
        (pb.Command(), None),
    ],
    ids=["new", "cancel", "replace", "nameless new", "blank cancel", "empty"],
)
def test_an_entry_holds_one_command_or_none(entry: pb.Command, expected: object) -> None:
    """A command with all its fields at zero is still one."""
    assert wire.order_commands("alice", pb.OrderEntryRequest(commands=[entry])) == [expected]


def test_what_is_unspecified_is_what_it_means() -> None:
    """A retry that says GTC and NONE, or leaves both out, has the content of the first attempt."""
    plain = pb.NewOrder(client_order_id="c1", symbol="AAPL", side=pb.SIDE_BUY, type=pb.ORDER_TYPE_LIMIT)
    spoken = pb.NewOrder()
    spoken.CopyFrom(plain)
    spoken.time_in_force = pb.TIME_IN_FORCE_GTC
    spoken.self_trade_prevention = pb.SELF_TRADE_PREVENTION_NONE
    assert wire.new_order("ann", plain) == wire.new_order("ann", spoken)


def test_the_longest_strings_pass_and_longer_ones_are_cut() -> None:
    """A valid string is never touched; a longer one becomes small but stays too long to be valid."""
    identity, symbol = "i" * MAX_CLIENT_ORDER_ID_LENGTH, "S" * MAX_SYMBOL_LENGTH
    order = wire.new_order("alice", pb.NewOrder(client_order_id=identity, symbol=symbol))
    assert (order.client_order_id, order.symbol) == (identity, symbol)
    assert (
        wire.cancel_order("alice", pb.CancelOrderRequest(client_order_id=identity)).client_order_id
        == identity
    )
    long = "x" * 1_000_000
    commands = (
        wire.new_order("alice", pb.NewOrder(client_order_id=long, symbol=long)),
        wire.cancel_order("alice", pb.CancelOrderRequest(client_order_id=long)),
        wire.replace_order("alice", pb.ReplaceOrderRequest(client_order_id=long)),
        wire.cancel_all("alice", pb.CancelAllRequest(symbol=long)),
    )
    for command in commands:
        for name, longest in (("client_order_id", len(identity)), ("symbol", len(symbol))):
            cut = getattr(command, name, None)
            if cut is not None:
                assert longest < len(cut) < 2 * longest


def test_a_short_string_comes_back_as_it_was_sent() -> None:
    """Whatever letters it has, nothing of it is cut: it can be matched by whoever sent it."""
    text = "\U0001f600" * 6
    order = wire.new_order("alice", pb.NewOrder(client_order_id=text, symbol=text))
    assert (order.client_order_id, order.symbol) == (text, text)


@pytest.mark.parametrize("text", ["é" * 36, "語" * 5, "\U0001f600" * 1_000, "x" * 35 + "é"])
def test_strings_are_bounded_in_bytes(text: str) -> None:
    """What is not ASCII takes no more room in a record than the longest valid string."""
    order = wire.new_order("alice", pb.NewOrder(client_order_id=text, symbol=text))
    assert len(order.client_order_id.encode()) <= MAX_CLIENT_ORDER_ID_LENGTH + 1
    assert len(order.symbol.encode()) <= MAX_SYMBOL_LENGTH + 1
    assert not order.client_order_id.isascii()


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (pb.NewOrder(client_order_id="x" * 37, symbol="AAPL"), RejectReason.INVALID_CLIENT_ORDER_ID),
        (pb.NewOrder(client_order_id="é" * 36, symbol="AAPL"), RejectReason.INVALID_CLIENT_ORDER_ID),
        (pb.NewOrder(client_order_id="x", symbol="S" * 24 + "T"), RejectReason.UNKNOWN_SYMBOL),
        (pb.NewOrder(client_order_id="x", symbol="AAPL" + "é" * 99), RejectReason.UNKNOWN_SYMBOL),
    ],
)
def test_a_cut_string_is_refused_as_the_long_one_would_be(order: pb.NewOrder, reason: RejectReason) -> None:
    """Cutting never makes a name of something else's: not the 24-letter symbol, not a shorter id."""
    state = State(1)
    state.apply(AddInstrument("S" * 24, "1", "1"))
    state.apply(AddInstrument("AAPL", "1", "1"))
    (answer,) = state.apply(wire.new_order("alice", order))
    assert isinstance(answer, Answered)
    assert answer.reject_reason == reason


def test_an_order_that_rests_whole_is_new() -> None:
    """All of it is left."""
    accepted = Accepted("alice", 2**64 - 1, "c1", "AAPL", 1, 1, 1, 100, 7)
    assert wire.order_reply(pb.OrderReply(), accepted) == pb.OrderReply(
        client_order_id="c1", order_id=2**64 - 1, status=pb.ORDER_STATUS_NEW, leaves_quantity=7
    )


def test_an_answer_reaches_the_reply_whole() -> None:
    """Quantities, average price, fills, prevented matches and whether it is a repeat."""
    prevented = Prevented("alice", "AAPL", 1, 2, 3, 4, int(SelfTradePrevention.DECREMENT))
    answer = Answered(
        "alice",
        "c1",
        9,
        int(OrderStatus.PARTIALLY_FILLED),
        cumulative=4,
        leaves=6,
        value=402,
        fills=(FILL, FILL),
        prevented=(prevented,),
        duplicate=True,
    )
    assert wire.order_reply(pb.OrderReply(), answer) == pb.OrderReply(
        client_order_id="c1",
        order_id=9,
        status=pb.ORDER_STATUS_PARTIALLY_FILLED,
        cumulative_quantity=4,
        leaves_quantity=6,
        average_price=100.5,
        fills=[FILLED, FILLED],
        duplicate=True,
        prevented=[
            pb.PreventedMatch(
                symbol="AAPL",
                taker_order_id=1,
                maker_order_id=2,
                price=3,
                quantity=4,
                mode=pb.SELF_TRADE_PREVENTION_DECREMENT,
            )
        ],
    )


def test_a_refusal_says_why() -> None:
    """Reason, text, and the order as it still stands where there is one."""
    reason = int(RejectReason.ORDER_PENDING)
    answer = Answered("alice", "c1", 9, int(OrderStatus.REJECTED), reason, "wait", 1, 4, 100)
    assert wire.order_reply(pb.OrderReply(), answer) == pb.OrderReply(
        client_order_id="c1",
        order_id=9,
        status=pb.ORDER_STATUS_REJECTED,
        reject_reason=pb.REJECT_REASON_ORDER_PENDING,
        reject_text="wait",
        cumulative_quantity=1,
        leaves_quantity=4,
        average_price=100.0,
    )


def test_every_part_of_a_reply_is_given_by_some_answer() -> None:
    """A new field of the contract must be filled in here too."""
    prevented = (Prevented("a", "S", 1, 1, 1, 1, 1),) * 2
    whole = Answered("a", "c", 1, 1, 1, "t", 1, 1, 1, (FILL,), prevented, True)
    reply = wire.order_reply(pb.OrderReply(), whole, room=2)
    assert [name for name, value in fields_of(reply).items() if not value] == []
    assert [name for name, value in fields_of(reply.fills[0]).items() if not value] == []
    assert [name for name, value in fields_of(reply.prevented[0]).items() if not value] == []


def test_every_command_of_a_message_gets_its_reply() -> None:
    """In order; an empty one is refused by name, with a text that says what to do."""
    resting = Accepted("alice", 7, "c1", "AAPL", 1, 1, 1, 100, 9)
    filled = Answered("alice", "c2", 8, int(OrderStatus.FILLED), cumulative=3, value=300, fills=(FILL,))
    new, cancel = wire.new_order("alice", NEW), wire.cancel_order("alice", CANCEL)
    response = wire.order_entry_response([new, None, cancel], [resting, filled])
    assert response.replies[0] == wire.order_reply(pb.OrderReply(), resting)
    assert response.replies[2] == wire.order_reply(pb.OrderReply(), filled)
    refused = response.replies[1]
    assert (refused.status, refused.reject_reason) == (
        pb.ORDER_STATUS_REJECTED,
        pb.REJECT_REASON_EMPTY_COMMAND,
    )
    assert "new, cancel, replace" in refused.reject_text


def test_no_answer_is_larger_than_clients_take() -> None:
    """The largest replies and fills there are in one message; what has no room in it is counted."""
    longest, number = "x" * MAX_CLIENT_ORDER_ID_LENGTH, 2**63 - 1
    fill = msgspec.structs.replace(FILL, client_order_id=longest, symbol="S" * MAX_SYMBOL_LENGTH)
    largest = msgspec.structs.replace(
        fill, price=10**12, quantity=10**12, cumulative=10**12, leaves=10**12, time_ns=number, fee=0
    )
    refused = Answered(
        "alice", longest, 2**64 - 1, int(OrderStatus.REJECTED), 1, "t" * 212, 10**12, 10**12, 10**15
    )
    taken = Answered("alice", longest, 2**64 - 1, 1, 0, "", 1, 1, 1, (largest,) * 6_000)
    command = wire.cancel_order("alice", CANCEL)
    response = wire.order_entry_response([command] * 10_000, [refused] * 9_998 + [taken] * 2)
    assert response.ByteSize() < MAX_MESSAGE_BYTES
    last = [(len(reply.fills), reply.fills_omitted) for reply in response.replies[-2:]]
    assert last == [(6_000, 0), (2_000, 4_000)]


def test_fills_go_out_in_order() -> None:
    """Each as its client sees it."""
    assert wire.fill_batch([FILL, FILL]) == pb.FillBatch(fills=[FILLED, FILLED])


def test_an_order_is_shown_as_it_stands() -> None:
    """After a partial fill, a replace and a cancel of the rest, every field says so."""
    state = State(1)
    state.apply(AddInstrument("AAPL", "1", "1"))
    prevention = int(SelfTradePrevention.CANCEL_OLDEST)
    state.apply(
        NewOrder("alice", "c1", "AAPL", 2, 1, 1, 100, 9, post_only=True, self_trade_prevention=prevention)
    )
    (order,) = state.orders.values()
    resting = wire.order_state(order)
    assert (resting.status, resting.leaves_quantity, resting.average_price) == (pb.ORDER_STATUS_NEW, 9, 0.0)
    state.apply(NewOrder("bob", "c1", "AAPL", 1, 1, 2, 100, 3))
    state.apply(wire.replace_order("alice", pb.ReplaceOrderRequest(order_id=order.id, price=101, quantity=8)))
    state.apply(NewOrder("bob", "c2", "AAPL", 1, 1, 2, 101, 1))
    state.apply(CancelOrder("alice", order.id))
    assert wire.order_state(order) == pb.OrderState(
        order_id=order.id,
        client_order_id="c1",
        symbol="AAPL",
        side=pb.SIDE_SELL,
        type=pb.ORDER_TYPE_LIMIT,
        time_in_force=int(TimeInForce.GTC),  # type: ignore[arg-type]  # an enum is an int on the wire
        price=101,
        quantity=8,
        cumulative_quantity=4,
        leaves_quantity=0,
        cancelled_quantity=4,
        status=pb.ORDER_STATUS_CANCELLED,
        average_price=100.25,
        post_only=True,
        self_trade_prevention=pb.SELF_TRADE_PREVENTION_CANCEL_OLDEST,
    )
