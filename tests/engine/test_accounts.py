"""Who owns what: client order ids, histories of fills, and what is forgotten when."""

import msgspec
import pytest

from engine import orders as engine_orders
from engine.commands import AwayQuote, CancelOrder, LegFill, LegResult, NewOrder, OrderCommand, ReplaceOrder
from engine.events import Answered, Fill, LegSent
from engine.invariants import check
from engine.orders import Landmark
from engine.terms import OrderStatus, OrderType, RejectReason, Side, TimeInForce
from tests.engine.flow import Flow, listed_venue
from tests.engine.venue import Venue, answered, venue


def order(client: str, name: str, side: Side, quantity: int = 5, price: int = 100) -> NewOrder:
    """A GTC limit order."""
    return NewOrder(client, name, "ACME", side, OrderType.LIMIT, TimeInForce.GTC, price, quantity)


def answer(market: Venue, command: OrderCommand) -> Answered:
    """The answer to one command."""
    return answered(market.apply_batch([command])[0])


def test_order_ids_carry_the_engine_and_count_up() -> None:
    """The top 16 bits are the engine number, the rest counts from 1."""
    market = Venue(engine=65_535)
    market.add_instrument("ACME")
    ids = [answer(market, order("ann", f"o{number}", Side.BUY)).order_id for number in range(3)]
    assert ids == [(65_535 << 48) + number for number in (1, 2, 3)]
    assert max(ids) < 2**64


def test_histories_are_each_clients_own_and_have_no_gaps() -> None:
    """Every fill of a client is in its history, numbered from 1, and nobody else's is."""
    market = venue()
    for number in range(4):
        market.execute(order("ann", f"a{number}", Side.SELL, 1))
        market.execute(order("bob" if number % 2 else "cat", f"t{number}", Side.BUY, 1))
    accounts = market.state.accounts.by_name
    for client, count in (("ann", 4), ("bob", 2), ("cat", 2)):
        fills = accounts[client].fills
        assert [fill.sequence for fill in fills] == list(range(1, count + 1))
        assert {fill.client for fill in fills} == {client}


def test_a_client_that_trades_with_itself_has_both_sides_in_its_history() -> None:
    """Maker's fill first, then the taker's, under one execution id."""
    market = venue()
    market.execute(order("ann", "a", Side.SELL))
    market.execute(order("ann", "b", Side.BUY))
    first, second = market.state.accounts.by_name["ann"].fills
    assert (first.client_order_id, second.client_order_id) == ("a", "b")
    assert first.execution_id == second.execution_id
    assert (first.sequence, second.sequence) == (1, 2)


@pytest.mark.parametrize("by_id", [True, False])
def test_another_clients_order_cannot_be_told_from_an_unknown_one(*, by_id: bool) -> None:
    """The refusal is the same, word for word, whether the order exists or not."""
    market = venue()
    order_id = answer(market, order("ann", "a", Side.BUY)).order_id
    market.execute(order("eve", "e", Side.BUY, price=50))
    foreign: tuple[int, str] = (order_id, "") if by_id else (0, "a")
    unknown: tuple[int, str] = (order_id + 1000, "") if by_id else (0, "z")
    for command, other in (
        (CancelOrder("eve", *foreign), CancelOrder("eve", *unknown)),
        (ReplaceOrder("eve", *foreign, 101, 5), ReplaceOrder("eve", *unknown, 101, 5)),
        (ReplaceOrder("eve", *foreign, -1, 5), ReplaceOrder("eve", *unknown, -1, 5)),
    ):
        refused, absent = answer(market, command), answer(market, other)
        assert refused.reject_reason == absent.reject_reason == RejectReason.UNKNOWN_ORDER
        assert (refused.order_id, refused.cumulative, refused.leaves) == (0, 0, 0)
        asked, missed = str(foreign[0] or repr(foreign[1])), str(unknown[0] or repr(unknown[1]))
        assert refused.reject_text.replace(asked, "") == absent.reject_text.replace(missed, "")
    assert market.state.orders[order_id].open == 5


def test_a_stranger_leaves_no_trace() -> None:
    """Commands of a client without an order are refused and open no account."""
    market = venue()
    assert answer(market, CancelOrder("eve", 0, "a")).reject_reason == RejectReason.UNKNOWN_ORDER
    assert answer(market, order("eve", "a", Side.BUY, 0)).reject_reason == RejectReason.INVALID_QUANTITY
    assert "eve" not in market.state.accounts.by_name


def test_a_duplicate_brings_the_first_fills_again() -> None:
    """The answer to a repeated order has the fills of the first time, and the history grows no longer."""
    market = venue()
    market.execute(order("ann", "a", Side.SELL))
    first = answer(market, order("bob", "b", Side.BUY))
    events = market.apply_batch([order("bob", "b", Side.BUY)])[0]
    assert len(events) == 1
    again = events[0]
    assert isinstance(again, Answered)
    assert again.duplicate
    assert again.fills == first.fills != ()
    assert (again.status, again.order_id, again.cumulative) == (OrderStatus.FILLED, first.order_id, 5)
    assert len(market.state.accounts.by_name["bob"].fills) == 1


@pytest.mark.parametrize(("field", "value"), [("quantity", 6), ("do_not_route", True)])
def test_the_refusal_of_other_content_names_the_field(field: str, value: object) -> None:
    """Whoever uses an id again learns which field differs."""
    market = venue()
    first = order("ann", "a", Side.BUY)
    market.execute(first)
    refused = answer(market, msgspec.structs.replace(first, **{field: value}))
    assert refused.reject_reason == RejectReason.DUPLICATE_CLIENT_ORDER_ID
    assert field in refused.reject_text


def test_what_others_show_is_no_content_of_an_order() -> None:
    """An order that is sent again when the market has moved is the same order."""
    market = venue()
    first = order("ann", "a", Side.BUY)
    market.execute(first)
    away = (AwayQuote(2, 1, 1, ((100, 5),)),)
    assert answer(market, msgspec.structs.replace(first, away=away)).duplicate


def test_only_the_latest_finished_orders_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the oldest finished order is forgotten, its id free again; open ones never are."""
    monkeypatch.setattr("engine.accounts.REMEMBERED_FINISHED_ORDERS", 3)
    market = venue()
    market.execute(order("ann", "open", Side.BUY, price=1))
    ids = []
    for number in range(5):
        ids.append(answer(market, order("ann", f"o{number}", Side.BUY)).order_id)
        assert answer(market, CancelOrder("ann", 0, f"o{number}")).status == OrderStatus.CANCELLED
    known = [answer(market, CancelOrder("ann", 0, f"o{number}")).reject_reason for number in range(5)]
    assert known == [RejectReason.UNKNOWN_ORDER] * 2 + [RejectReason.ORDER_CLOSED] * 3
    assert [order_id in market.state.orders for order_id in ids] == [False, False, True, True, True]
    assert answer(market, order("ann", "o0", Side.BUY)).status == OrderStatus.NEW
    assert answer(market, order("ann", "open", Side.BUY, price=1)).duplicate
    check(market.state)


def test_the_limit_is_the_one_promised() -> None:
    """A client's last 100,000 finished orders keep their ids."""
    assert engine_orders.REMEMBERED_FINISHED_ORDERS == 100_000


def test_refused_orders_count_among_the_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id used up by a refusal is remembered like any other, and not for ever."""
    monkeypatch.setattr("engine.accounts.REMEMBERED_FINISHED_ORDERS", 2)
    market = venue()
    market.execute(order("bob", "ask", Side.SELL))
    for number in range(4):
        refused = NewOrder("ann", f"p{number}", "ACME", Side.BUY, 1, 1, 100, 5, post_only=True)
        assert answer(market, refused).reject_reason == RejectReason.POST_ONLY_WOULD_CROSS
    remembered = market.state.accounts.by_name["ann"].orders
    assert {name: one.status for name, one in remembered.items()} == {
        "p2": OrderStatus.REJECTED,
        "p3": OrderStatus.REJECTED,
    }
    check(market.state)


def test_only_the_newest_fills_stay_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that ends with twice the number forgets the oldest; numbers go on, and a landmark is left."""
    monkeypatch.setattr("engine.accounts.REMEMBERED_FILLS", 3)
    market = venue()
    market.execute(order("bob", "ask", Side.SELL, 1_000))
    numbers: list[list[int]] = []
    account = market.state.accounts.open_account("ann")
    for number in range(9):
        market.execute(order("ann", f"o{number}", Side.BUY, 1))
        numbers.append([fill.sequence for fill in account.fills])
        check(market.state)
    assert numbers[4:7] == [[1, 2, 3, 4, 5], [4, 5, 6], [4, 5, 6, 7]]
    assert numbers[8] == [7, 8, 9]
    batch = market.state.batch_number
    assert account.landmarks == [Landmark(6, 1, batch - 3), Landmark(9, 1, batch)]
    places = [account.landmark(since).batch_number for since in (0, 5, 6, 8, 9)]
    assert places == [0, 0, batch - 3, batch - 3, batch]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_forgotten_changes_no_event(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that keeps two fills does what one does that keeps thousands."""
    events = []
    for remembered in (2, 10_000):
        monkeypatch.setattr("engine.accounts.REMEMBERED_FILLS", remembered)
        market, flow = listed_venue(), Flow(seed)
        for _ in range(100):
            market.apply_batch(list(flow.commands(5)))
            check(market.state)
        events.append(market.events)
    assert events[0] == events[1]


def test_fills_that_a_leg_has_to_answer_for_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer tells of all that its command traded, however much is traded before its leg is back."""
    monkeypatch.setattr("engine.accounts.REMEMBERED_FILLS", 2)
    market = venue()
    market.execute(order("bob", "ask", Side.SELL, 1, price=99))
    market.execute(order("bob", "more", Side.SELL, 1_000, price=102))
    away = (AwayQuote(2, 1, 1, ((100, 5),)),)
    routed = msgspec.structs.replace(order("ann", "routed", Side.BUY, 6), away=away)
    sent = market.apply_batch([routed])[0]
    (leg,) = [event for event in sent if isinstance(event, LegSent)]
    for number in range(6):
        market.apply_batch([order("ann", f"o{number}", Side.BUY, 1, price=102)])
    fills = market.state.accounts.by_name["ann"].fills
    assert [fill.sequence for fill in fills] == [1, 2, 3, 4, 5, 6, 7]
    back = market.apply_batch([LegResult(leg.leg_id, (LegFill(2 << 48, 100, 5, 2 << 48, 1),), ())])[0][-1]
    assert isinstance(back, Answered)
    assert [(fill.price, fill.quantity) for fill in back.fills] == [(99, 1), (100, 5)]
    assert [fill.sequence for fill in fills] == [7, 8]


def test_fills_carry_what_a_report_needs() -> None:
    """Batch time, contra order, engine and running totals are in every fill."""
    market = venue()
    market.execute(order("ann", "a", Side.SELL, 5))
    fills = [
        event for event in market.apply_batch([order("bob", "b", Side.BUY, 8)])[0] if isinstance(event, Fill)
    ]
    maker, taker = fills
    assert (maker.cumulative, maker.leaves, taker.cumulative, taker.leaves) == (5, 0, 5, 3)
    assert maker.contra_order_id == taker.order_id
    assert maker.time_ns == taker.time_ns == market.state.accounts.time_ns
    assert maker.engine == taker.engine == 1
