"""Best-price routing: the plan, and several engines that trade with each other through legs.

Clients here have no fixed home; an order lives at the engine it was sent to.
"""

import random
import time
from collections import Counter, defaultdict

import msgspec
import pytest

from engine import commands
from engine.book import Book
from engine.commands import (
    AddInstrument,
    AwayQuote,
    CancelAll,
    CancelOrder,
    EpochStarted,
    LegResult,
    NewOrder,
    TakeLeg,
)
from engine.digest import state_digest
from engine.events import Answered, CancelledAll, Fill, LegSent, LegTaken
from engine.invariants import check
from engine.routing import known_to, plan, rank
from engine.state import State
from engine.terms import Liquidity, OrderStatus, RejectReason, SelfTradePrevention, Side, TimeInForce
from tests.engine.venue import answered, apply_batch, restored
from tests.engine.world import SYMBOL, Node, Parcel, World, limit_order, random_order, random_terms

BUY, SELL = Side.BUY, Side.SELL


# -- the plan ---------------------------------------------------------------------------------------


def planned(
    quantity: int, limit: int, home: list[tuple[int, int]], *away: AwayQuote
) -> list[tuple[int, int, int]]:
    """(engine, price, quantity) of each step of a buy; engine 0 is home."""
    sign = -1
    levels = ((price * sign, size) for price, size in home)
    steps = plan(quantity, limit * sign, levels, rank(away, sign))
    return [(step.level.engine if step.level else 0, step.key * sign, step.quantity) for step in steps]


def test_plan_takes_the_best_price_wherever_it_is() -> None:
    """Prices go in order over all engines."""
    away = AwayQuote(2, 1, 1, ((100, 5), (102, 5)))
    assert planned(20, 103, [(101, 5), (103, 5)], away) == [
        (2, 100, 5),
        (0, 101, 5),
        (2, 102, 5),
        (0, 103, 5),
    ]


def test_plan_at_one_price_takes_home_first_then_the_larger_quote_then_the_lower_number() -> None:
    """The order of engines at one price is fixed."""
    quotes = [AwayQuote(number, 1, 1, ((100, size),)) for number, size in ((5, 3), (4, 3), (3, 9))]
    assert planned(30, 100, [(100, 2)], *quotes) == [(0, 100, 2), (3, 100, 9), (4, 100, 3), (5, 100, 3)]


def test_all_is_known_to_the_best_place_where_a_quote_was_cut() -> None:
    """The last level of that quote; none where all quotes are whole."""
    whole, cut = AwayQuote(2, 1, 1, ((100, 5), (102, 5))), AwayQuote(3, 1, 1, ((99, 1), (101, 5)), cut=True)
    cut_later = AwayQuote(4, 1, 1, ((99, 1), (103, 5)), cut=True)
    assert known_to(rank((whole,), -1)) is None
    assert known_to(rank((whole, cut), -1)) == -101
    assert known_to(rank((cut_later, whole, cut), -1)) == -101


def test_plan_stops_at_limit_and_quantity() -> None:
    """No step is beyond the limit, and no more is taken than asked."""
    away = AwayQuote(2, 1, 1, ((100, 5), (105, 5)))
    assert planned(7, 104, [(101, 5), (104, 5)], away) == [(2, 100, 5), (0, 101, 2)]
    assert planned(50, 104, [(101, 5)], away) == [(2, 100, 5), (0, 101, 5)]
    assert planned(5, 99, [(101, 5)], away) == []


# -- single rules -----------------------------------------------------------------------------------


def world_with(count: int, *orders: tuple[int, str, Side, int, int]) -> World:
    """Engines with resting orders: (engine, name, side, quantity, price), none of which trade."""
    world = World(count)
    for number, name, side, quantity, price in orders:
        world.submit(number, limit_order(name, side, quantity, price))
    assert not world.parcels
    return world


def legs(world: World) -> list[TakeLeg]:
    """Legs that are on their way."""
    return [parcel.content for parcel in world.parcels if isinstance(parcel.content, TakeLeg)]


def last_answer(world: World, client_order_id: str) -> Answered:
    """The last answer about an order."""
    answers = world.last_answers().values()
    return next(answer for answer in answers if answer.client_order_id == client_order_id)


def test_a_better_price_away_attracts_a_leg() -> None:
    """The better quote is taken at the peer, the rest at home, and the answer waits for both."""
    world = world_with(2, (1, "a", SELL, 5, 101), (2, "b", SELL, 5, 100))
    world.submit(1, limit_order("t", BUY, 8, 101))
    assert [(leg.limit, leg.quantity) for leg in legs(world)] == [(100, 5)]
    assert last_answer(world, "t").status == OrderStatus.PENDING
    world.settle()
    assert world.taken() == {("t", 100): 5, ("t", 101): 3}
    answer = last_answer(world, "t")
    assert (answer.status, answer.cumulative, answer.leaves) == (OrderStatus.FILLED, 8, 0)
    assert sum(fill.quantity for fill in answer.fills) == 8
    assert {fill.engine for fill in answer.fills} == {1, 2}


def test_the_order_whose_way_the_architecture_page_follows() -> None:
    """docs/architecture.md: 5 at 189.52 by a leg, 4 at 189.60 at once; the last one rests after the leg."""
    world = world_with(2, (1, "a", SELL, 4, 18_960), (2, "b", SELL, 5, 18_952))
    world.submit(1, limit_order("alice", BUY, 10, 19_000))
    assert [(leg.limit, leg.quantity) for leg in legs(world)] == [(18_952, 5)]
    answer = last_answer(world, "alice")
    assert (answer.status, answer.cumulative) == (OrderStatus.PENDING, 4)
    assert world.combined(BUY) == []
    world.settle()
    assert world.taken() == {("alice", 18_952): 5, ("alice", 18_960): 4}
    assert last_answer(world, "alice").cumulative == 9
    assert world.combined(BUY) == [(19_000, 1)]


def test_what_a_fill_leaves_counts_what_is_out_and_what_is_not_yet_told() -> None:
    """A fill at home leaves what is out on the leg; of the leg's two fills the first leaves the second."""
    world = world_with(2, (1, "a", SELL, 3, 101), (2, "b", SELL, 2, 100), (2, "c", SELL, 3, 100))
    world.submit(1, limit_order("t", BUY, 9, 101))
    world.settle()
    fills = last_answer(world, "t").fills
    assert [(fill.quantity, fill.cumulative, fill.leaves) for fill in fills] == [
        (3, 3, 6),
        (2, 5, 4),
        (3, 8, 1),
    ]


def test_two_levels_of_one_peer_are_one_leg() -> None:
    """Its limit is the worse of the two prices, so that it can take both."""
    world = world_with(2, (2, "b", SELL, 5, 100), (2, "c", SELL, 5, 101))
    world.submit(1, limit_order("t", BUY, 8, 102))
    assert [(leg.limit, leg.quantity) for leg in legs(world)] == [(101, 8)]


def test_what_a_leg_brings_back_is_planned_again() -> None:
    """A quote that is gone sends the quantity on to the next best, and at last to rest."""
    world = world_with(3, (2, "b", SELL, 5, 100), (3, "c", SELL, 3, 101))
    world.submit(1, limit_order("t", BUY, 5, 102))
    world.apply(2, CancelOrder("b", 0, "b"))
    world.settle()
    assert world.taken() == {("t", 101): 3}
    answer = last_answer(world, "t")
    assert (answer.status, answer.cumulative, answer.leaves) == (OrderStatus.PARTIALLY_FILLED, 3, 2)
    assert world.combined(BUY) == [(102, 2)]


def test_reserved_quantity_trades_nowhere_else() -> None:
    """While a leg is out, its quantity is in no book and cannot be replaced."""
    world = world_with(2, (2, "b", SELL, 5, 100))
    world.submit(1, limit_order("t", BUY, 5, 100))
    assert world.combined(BUY) == []
    order_id = last_answer(world, "t").order_id
    refused = answered(world.replace(1, "t", order_id, 101, 5))
    assert refused.reject_reason == RejectReason.ORDER_PENDING


@pytest.mark.parametrize("peer_fills", [True, False])
def test_a_cancel_waits_for_the_leg(*, peer_fills: bool) -> None:
    """A cancelled order with a leg out ends when the leg is back: filled, or cancelled and never resting."""
    world = world_with(2, (2, "b", SELL, 5, 100))
    world.submit(1, limit_order("t", BUY, 5, 100))
    if not peer_fills:
        world.apply(2, CancelOrder("b", 0, "b"))
    answer = answered(world.apply(1, CancelOrder("t", 0, "t")))
    assert answer.status == OrderStatus.PENDING
    world.settle()
    assert last_answer(world, "t").status == (OrderStatus.FILLED if peer_fills else OrderStatus.CANCELLED)
    assert world.combined(BUY) == []


def test_cancel_all_cancels_what_is_out_on_a_leg_once() -> None:
    """It stays open until the leg is back, and is neither counted again nor in the way of younger orders."""
    world = world_with(2, (2, "b", SELL, 5, 100))
    world.submit(1, limit_order("t", BUY, 5, 100))
    world.submit(1, msgspec.structs.replace(limit_order("t", BUY, 5, 90), client_order_id="younger"))
    assert [world.apply(1, CancelAll("t", most=1))[-1] for _ in range(3)] == [
        CancelledAll("t", count) for count in (1, 1, 0)
    ]
    world.settle()
    assert world.taken() == {("t", 100): 5}
    assert world.combined(BUY) == []


def test_a_repeat_tells_what_a_cancel_left_of_a_pending_order() -> None:
    """Its first answer is not complete before the leg is back; until then a repeat says how far it is."""
    world = world_with(2, (1, "a", SELL, 2, 100), (2, "b", SELL, 5, 100))
    order = limit_order("t", BUY, 10, 100)
    first = answered(world.submit(1, order))
    assert [fill.quantity for fill in first.fills] == [2]
    cancelled = answered(world.apply(1, CancelOrder("t", 0, "t")))
    assert (cancelled.status, cancelled.leaves) == (OrderStatus.PENDING, 5)
    repeated = msgspec.structs.replace(cancelled, fills=first.fills, duplicate=True)
    assert answered(world.apply(1, order)) == repeated


def test_a_lost_answer_is_asked_for() -> None:
    """A leg that traded but whose answer was lost gives the same answer to a query; it trades once."""
    world = world_with(2, (2, "b", SELL, 9, 100))
    world.submit(1, limit_order("t", BUY, 5, 100))
    world.deliver(world.parcels.pop())
    lost = world.parcels.pop()
    world.query_open_legs()
    world.deliver(world.parcels.pop())
    assert world.parcels[-1].content == lost.content
    world.settle()
    assert world.taken() == {("t", 100): 5}
    assert world.combined(SELL) == [(100, 4)]


def test_a_leg_that_comes_twice_trades_once() -> None:
    """A known leg gets the stored answer, and a second answer changes nothing at home."""
    world = world_with(2, (2, "b", SELL, 9, 100))
    world.submit(1, limit_order("t", BUY, 5, 100))
    leg = world.parcels.pop()
    world.deliver(leg)
    world.deliver(leg)
    assert world.parcels[0] == world.parcels[1]
    world.settle()
    world.deliver(leg)
    world.settle()
    assert world.taken() == {("t", 100): 5}
    assert world.combined(SELL) == [(100, 4)]


def test_a_query_overtaking_its_leg_leaves_a_tombstone() -> None:
    """A leg never seen is refused for ever: when it arrives after all, it trades nothing."""
    world = world_with(2, (2, "b", SELL, 9, 100))
    world.submit(1, limit_order("t", BUY, 5, 100, time_in_force=TimeInForce.IOC))
    leg = world.parcels.pop()
    world.apply(2, CancelOrder("b", 0, "b"))
    world.query_open_legs()
    world.settle()
    assert last_answer(world, "t").status == OrderStatus.CANCELLED
    world.submit(2, limit_order("c", SELL, 9, 100))
    world.deliver(leg)
    world.settle()
    assert world.taken() == {}
    assert world.combined(SELL) == [(100, 9)]


def test_a_leg_for_another_reign_is_refused() -> None:
    """The peer's new epoch refuses legs aimed at the old one, and fresh quotes are planned with."""
    world = world_with(2, (2, "b", SELL, 9, 100))
    world.submit(1, limit_order("t", BUY, 5, 100))
    world.restart(2)
    world.deliver(world.parcels.pop())
    answer = world.parcels[-1].content
    assert isinstance(answer, LegTaken)
    assert answer.refused
    world.settle()
    assert world.taken() == {("t", 100): 5}


def test_the_answer_to_a_leg_survives_the_peers_new_reign() -> None:
    """A leg that traded in the old epoch is answered with its trades in the new one."""
    world = world_with(2, (2, "b", SELL, 9, 100))
    world.submit(1, limit_order("t", BUY, 5, 100))
    leg = world.parcels.pop()
    world.deliver(leg)
    answer = world.parcels.pop().content
    world.restart(2)
    world.deliver(leg)
    assert world.parcels.pop().content == answer


@pytest.mark.parametrize(
    "change",
    [
        {"symbol": "NOPE"},
        {"side": 7},
        {"limit": 0},
        {"limit": -5},
        {"quantity": 0},
        {"quantity": -1},
        {"peer_epoch": 0},
        {"peer_epoch": 2},
    ],
)
def test_a_malformed_leg_is_refused(change: dict[str, object]) -> None:
    """A leg that is none, or is for another reign than this, trades nothing and changes no book."""
    world = world_with(2, (2, "b", SELL, 9, 100))
    fields: dict[str, object] = {
        "leg_id": 1 << 48,
        "sender": 1,
        "peer_epoch": 1,
        "order_id": 7,
        "symbol": SYMBOL,
        "side": 1,
        "limit": 100,
        "quantity": 5,
        "settled_below": 0,
    }
    leg = TakeLeg(**(fields | change))  # type: ignore[arg-type]  # a dict of several types
    answer = world.apply(2, leg)[-1]
    assert isinstance(answer, LegTaken)
    assert answer.refused
    assert world.combined(SELL) == [(100, 9)]


def test_post_only_looks_at_away_quotes() -> None:
    """A post-only order that would lock or cross a quote of a live peer is refused, new or replaced."""
    world = world_with(2, (2, "b", SELL, 9, 100))
    answer = answered(world.submit(1, limit_order("p", BUY, 5, 100, post_only=True)))
    assert answer.reject_reason == RejectReason.POST_ONLY_WOULD_CROSS
    world.submit(1, limit_order("q", BUY, 5, 99, post_only=True))
    answer = answered(world.replace(1, "q", last_answer(world, "q").order_id, 100, 5))
    assert answer.reject_reason == RejectReason.POST_ONLY_WOULD_CROSS
    assert world.combined(BUY) == [(99, 5)]


def test_the_collar_counts_from_the_best_price_anywhere() -> None:
    """A market order within one percent of a peer's 100 does not trade at 110 at home."""
    world = world_with(2, (1, "a", SELL, 5, 110), (2, "b", SELL, 5, 100), (2, "c", SELL, 5, 102))
    world.apply(1, AddInstrument(SYMBOL, "0.01", "1", market_collar_bps=100))
    world.submit(1, limit_order("t", BUY, 15, 0))
    world.settle()
    assert world.taken() == {("t", 100): 5}


@pytest.mark.parametrize("limit", [101, 102])
def test_do_not_route_neither_trades_through_nor_locks(limit: int) -> None:
    """Such an order takes at home up to the best away price, sends no leg, and does not rest against it."""
    world = world_with(2, (1, "a", SELL, 5, 100), (2, "b", SELL, 5, 101))
    world.submit(1, limit_order("c", SELL, 5, 102))
    world.submit(1, limit_order("t", BUY, 12, limit, do_not_route=True))
    assert not world.parcels
    assert world.taken() == {("t", 100): 5}
    assert last_answer(world, "t").status == OrderStatus.CANCELLED
    assert world.combined(BUY) == []


@pytest.mark.parametrize("terms", [{"do_not_route": True}, {"time_in_force": TimeInForce.FOK}])
def test_the_collar_holds_where_a_peers_best_price_is_beyond_it(terms: dict[str, object]) -> None:
    """An order that trades at home alone stops at its collar, however far a peer's quote would let it."""
    world = world_with(2, (1, "a", SELL, 5, 100), (1, "c", SELL, 5, 105), (2, "b", SELL, 5, 110))
    world.apply(1, AddInstrument(SYMBOL, "0.01", "1", market_collar_bps=100))
    world.submit(1, limit_order("t", BUY, 10, 0, **terms))
    assert not world.parcels
    assert world.taken() == ({("t", 100): 5} if "do_not_route" in terms else {})
    assert last_answer(world, "t").status == OrderStatus.CANCELLED


@pytest.mark.parametrize(("quantity", "limit"), [(8, 101), (5, 100)])
def test_fok_that_needs_a_peer_is_refused_by_name(quantity: int, limit: int) -> None:
    """Fill-or-kill that home cannot fill alone at the best prices changes nothing."""
    world = world_with(2, (1, "a", SELL, 5, 101), (2, "b", SELL, 5, 100))
    order = limit_order("t", BUY, quantity, limit, time_in_force=TimeInForce.FOK)
    answer = answered(world.submit(1, order))
    assert answer.reject_reason == RejectReason.FOK_NEEDS_AWAY_LIQUIDITY
    assert not world.parcels
    assert world.taken() == {}


@pytest.mark.parametrize(("limit", "is_refused"), [(121, True), (120, True), (119, False)])
def test_fok_is_refused_by_name_where_more_is_shown_than_is_known(limit: int, is_refused: bool) -> None:
    """Of a peer's levels a command carries a part: what is beyond may be enough, if the limit reaches it."""
    world = world_with(1)
    away = AwayQuote(2, 1, 1, tuple((101 + level, 1) for level in range(20)), cut=True)
    order = limit_order("t", BUY, 25, limit, time_in_force=TimeInForce.FOK, away=(away,))
    answer = answered(world.apply(1, order))
    assert (answer.reject_reason == RejectReason.FOK_NEEDS_AWAY_LIQUIDITY) is is_refused
    assert (answer.status == OrderStatus.CANCELLED) is not is_refused


def test_fok_that_home_can_fill_ignores_equal_and_worse_quotes_away() -> None:
    """At one price home comes first, so fill-or-kill trades at home."""
    world = world_with(2, (1, "a", SELL, 8, 100), (2, "b", SELL, 5, 100))
    world.submit(1, limit_order("t", BUY, 8, 101, time_in_force=TimeInForce.FOK))
    assert not world.parcels
    assert world.taken() == {("t", 100): 8}


def test_fok_with_do_not_route_is_never_partly_filled() -> None:
    """Fill-or-kill that may not trade through a better away quote is killed whole."""
    world = world_with(2, (1, "a", SELL, 5, 100), (2, "b", SELL, 5, 101))
    world.submit(1, limit_order("c", SELL, 5, 102))
    terms = {"time_in_force": TimeInForce.FOK, "do_not_route": True}
    world.submit(1, limit_order("t", BUY, 10, 102, **terms))
    assert world.taken() == {}
    assert last_answer(world, "t").status == OrderStatus.CANCELLED


def test_fok_that_passes_over_own_orders_sends_no_leg() -> None:
    """Own orders that cancel-oldest takes away do not let a leg out of a fill-or-kill order."""
    world = world_with(2, (1, "own", SELL, 10, 100), (2, "b", SELL, 10, 101), (1, "c", SELL, 10, 102))
    world.submit(
        1,
        limit_order(
            "t",
            BUY,
            10,
            102,
            client="own",
            time_in_force=TimeInForce.FOK,
            self_trade_prevention=SelfTradePrevention.CANCEL_OLDEST,
        ),
    )
    assert not world.parcels


def test_a_post_only_order_may_shrink_while_a_peer_locks_it() -> None:
    """Less quantity at the same price takes nothing, so a lock that a message's delay made is no reason."""
    world = world_with(2, (1, "p", BUY, 5, 100))
    world.apply(1, CancelOrder("p", 0, "p"))
    world.submit(1, limit_order("q", BUY, 5, 100, post_only=True))
    world.apply(2, limit_order("b", SELL, 9, 100))  # it has not seen q
    order_id = last_answer(world, "q").order_id
    answer = answered(world.replace(1, "q", order_id, 100, 3))
    assert answer.reject_reason == RejectReason.NONE


def test_uncrossing_takes_from_the_lower_number_and_keeps_the_place() -> None:
    """Orders crossed within a message's delay trade at the higher number's price; the rest stays in place."""
    world = World(2)
    world.submit(1, limit_order("a", BUY, 10, 101))
    world.apply(2, limit_order("b", SELL, 4, 100))  # it has not seen a
    world.submit(1, limit_order("c", BUY, 10, 101))
    world.deliver_all()
    before = [order_id for _, order_id, _ in world.nodes[1].state.books[SYMBOL].orders(BUY)]
    world.settle()
    after = [order_id for _, order_id, _ in world.nodes[1].state.books[SYMBOL].orders(BUY)]
    assert after == before
    assert sum(world.taken().values()) == 4
    assert {price for _, price in world.taken()} == {100}
    assert world.combined(SELL) == []


@pytest.mark.parametrize("terms", [{"post_only": True}, {"do_not_route": True}])
def test_what_may_not_take_or_not_route_is_cancelled_when_uncrossed(terms: dict[str, object]) -> None:
    """A message's delay let it rest where it would have been refused; it sends no leg."""
    world = World(2)
    world.submit(1, limit_order("a", BUY, 5, 101, **terms))
    world.apply(2, limit_order("b", SELL, 5, 101))  # it has not seen a
    assert world.uncross()
    assert not world.parcels
    assert world.combined(BUY) == []


def test_another_uncross_of_an_order_with_a_leg_out_forgets_nothing_that_it_took() -> None:
    """Its answer is to tell of all fills since its first leg left, after a restart too."""
    world = world_with(3, (1, "a", BUY, 10, 101))
    for number in (2, 3):
        world.apply(number, limit_order(f"s{number}", SELL, 3, 101))  # they have not seen a
    assert world.uncross()
    world.deliver(world.parcels.pop(0))
    world.deliver(world.parcels.pop())  # its answer
    world.apply(2, limit_order("more", SELL, 2, 101))
    assert world.uncross()
    for state in (world.nodes[1].state, restored(world.nodes[1].state)):
        (order,) = state.orders.values()
        assert [(fill.price, fill.quantity) for fill in order.owed.fills] == [(101, 3)]


def test_held_quantity_comes_back_to_its_place() -> None:
    """A leg of an uncrossing that trades nothing gives the order its place in the queue back."""
    world = World(2)
    world.submit(1, limit_order("a", BUY, 5, 101))
    world.submit(1, limit_order("c", BUY, 5, 101))
    world.apply(2, limit_order("b", SELL, 5, 101))
    assert world.uncross()
    world.apply(2, CancelOrder("b", 0, "b"))
    assert world.combined(BUY) == [(101, 5)]
    world.settle()
    state = world.nodes[1].state
    names = [
        state.orders[order_id].request.client_order_id for _, order_id, _ in state.books[SYMBOL].orders(BUY)
    ]
    assert names == ["a", "c"]


def test_an_order_whose_rest_is_filled_while_a_leg_is_out_is_not_finished() -> None:
    """What the leg brings back rests again, and can be cancelled."""
    world = World(2)
    world.submit(1, limit_order("a", BUY, 10, 101))
    world.apply(2, limit_order("b", SELL, 4, 101))  # it has not seen a
    assert world.uncross()
    world.apply(1, limit_order("t", SELL, 6, 101, time_in_force=TimeInForce.IOC))
    check(world.nodes[1].state)
    world.apply(2, CancelOrder("b", 0, "b"))
    world.settle()
    check(world.nodes[1].state)
    assert world.combined(BUY) == [(101, 4)]
    assert answered(world.apply(1, CancelOrder("a", 0, "a"))).status == OrderStatus.CANCELLED


def test_an_own_order_cancelled_by_prevention_does_not_come_back_from_its_leg() -> None:
    """What a leg of it brings back is cancelled like the rest of it."""
    world = World(2)
    world.submit(1, limit_order("a", BUY, 10, 101))
    world.apply(2, limit_order("b", SELL, 4, 101))
    assert world.uncross()
    world.apply(2, CancelOrder("b", 0, "b"))
    prevention = SelfTradePrevention.CANCEL_OLDEST
    world.submit(
        1, limit_order("t", SELL, 6, 101, client="a", self_trade_prevention=prevention, time_in_force=2)
    )
    world.settle()
    assert world.combined(BUY) == []


@pytest.mark.parametrize("prevention", [SelfTradePrevention.CANCEL_NEWEST, SelfTradePrevention.CANCEL_BOTH])
def test_a_taker_cancelled_by_prevention_sends_no_leg(prevention: SelfTradePrevention) -> None:
    """All of it is cancelled where it meets its own, also what was meant for a peer's worse price."""
    world = world_with(2, (1, "own", SELL, 5, 100), (2, "b", SELL, 5, 101))
    world.submit(1, limit_order("t", BUY, 10, 101, client="own", self_trade_prevention=prevention))
    assert not world.parcels
    answer = last_answer(world, "t")
    assert (answer.status, len(answer.prevented)) == (OrderStatus.CANCELLED, 1)
    assert world.taken() == {}


def test_a_taker_cancelled_by_prevention_does_not_come_back_from_its_leg() -> None:
    """What its leg brings back is cancelled like what it had open, and rests nowhere."""
    world = world_with(2, (1, "own", SELL, 5, 101), (2, "b", SELL, 5, 100))
    prevention = SelfTradePrevention.CANCEL_NEWEST
    world.submit(1, limit_order("t", BUY, 10, 102, client="own", self_trade_prevention=prevention))
    assert [leg.quantity for leg in legs(world)] == [5]
    world.apply(1, CancelOrder("own", 0, "own"))
    world.apply(2, CancelOrder("b", 0, "b"))
    world.settle()
    assert last_answer(world, "t").status == OrderStatus.CANCELLED
    assert world.combined(BUY) == []


def test_settled_answers_are_forgotten() -> None:
    """A peer keeps answers only to legs that the sender may still ask about."""
    world = World(2)
    for number in range(50):
        world.submit(2, limit_order(f"s{number}", SELL, 1, 100))
        world.submit(1, limit_order(f"b{number}", BUY, 1, 100))
        world.settle()
    assert len(world.nodes[2].state.peer_legs[1].answers) <= 1


def test_a_settled_leg_that_comes_again_trades_nothing() -> None:
    """Its answer is forgotten, but not that it is settled."""
    world = world_with(2, (2, "b", SELL, 9, 100))
    world.submit(1, limit_order("t", BUY, 1, 100))
    (leg,) = world.parcels
    world.settle()
    world.submit(1, limit_order("u", BUY, 1, 100))
    world.settle()
    assert leg.content.leg_id not in world.nodes[2].state.peer_legs[1].answers
    world.deliver(leg)
    assert world.combined(SELL) == [(100, 7)]


def test_a_dead_peer_keeps_no_answers_of_others() -> None:
    """Which legs a peer may forget depends on the legs to that peer alone."""
    world = World(3)
    world.submit(3, limit_order("x", SELL, 1, 100))
    world.submit(1, limit_order("y", BUY, 1, 100))
    world.parcels.clear()  # engine 3 has died: its leg stays out
    world.nodes[3].state.books[SYMBOL] = Book(SYMBOL)
    for number in range(50):
        world.submit(2, limit_order(f"s{number}", SELL, 1, 90))
        world.submit(1, limit_order(f"b{number}", BUY, 1, 90))
        world.deliver_all()
    assert len(world.nodes[1].state.legs) == 1
    assert len(world.nodes[2].state.peer_legs[1].answers) <= 1
    assert state_digest(restored(world.nodes[1].state)) == state_digest(world.nodes[1].state)


def test_an_answer_after_legs_lists_what_the_order_prevented() -> None:
    """The order met an own one, then sent a leg; what completes the first answer still tells of it."""
    world = world_with(2, (2, "b", SELL, 5, 101))
    world.submit(1, limit_order("own", SELL, 5, 100, client="t"))
    prevention = SelfTradePrevention.CANCEL_OLDEST
    order = limit_order("t", BUY, 5, 101, self_trade_prevention=prevention)
    first = answered(world.submit(1, order))
    assert (first.status, len(first.prevented)) == (OrderStatus.PENDING, 1)
    world.settle()
    last = world.last_answers()[first.order_id]
    assert (last.status, last.prevented) == (OrderStatus.FILLED, first.prevented)
    assert answered(world.apply(1, order)) == msgspec.structs.replace(last, duplicate=True)


def test_an_answer_after_legs_lists_what_a_replace_prevented() -> None:
    """The replace met an own order, then sent a leg; its last answer still tells of the former."""
    world = world_with(2, (2, "b", SELL, 5, 101))
    world.submit(1, limit_order("own", SELL, 5, 100, client="t"))
    prevention = SelfTradePrevention.CANCEL_OLDEST
    world.submit(1, limit_order("t", BUY, 10, 90, self_trade_prevention=prevention))
    order_id = max(world.nodes[1].state.orders)
    first = answered(world.replace(1, "t", order_id, 101, 10))
    assert (first.status, len(first.prevented)) == (OrderStatus.PENDING, 1)
    assert state_digest(restored(world.nodes[1].state)) == state_digest(world.nodes[1].state)
    world.settle()
    last = world.last_answers()[order_id]
    assert (last.status, last.prevented) == (OrderStatus.PARTIALLY_FILLED, first.prevented)


@pytest.mark.parametrize(
    ("time_in_force", "price"), [(TimeInForce.GTC, 110), (TimeInForce.IOC, 110), (TimeInForce.GTC, 0)]
)
def test_an_order_does_not_trade_beyond_what_it_knows(time_in_force: TimeInForce, price: int) -> None:
    """Of three levels it is told one: it takes that, waits, and plans again, not through the other two."""
    world = World(2, most_levels=1)
    for step in range(3):
        world.submit(2, limit_order(f"a{step}", SELL, 1, 100 + step))
    world.submit(1, limit_order("home", SELL, 9, 105))
    world.submit(1, limit_order("t", BUY, 5, price, time_in_force=time_in_force))
    assert not world.taken()
    world.settle()
    assert world.taken() == {("t", 100): 1, ("t", 101): 1, ("t", 102): 1, ("t", 105): 2}
    assert_all_at_rest(world)


@pytest.mark.parametrize("price", [102, 0])
def test_what_never_rests_wants_no_more_than_what_is_shown(price: int) -> None:
    """Beyond the quotes of its moment it is cancelled at once; what comes while a leg is out is too late."""
    world = world_with(2, (2, "b", SELL, 5, 100))
    world.submit(1, limit_order("t", BUY, 8, price, time_in_force=TimeInForce.IOC))
    assert last_answer(world, "t").leaves == 5
    world.submit(1, limit_order("late", SELL, 9, 101))
    world.settle()
    assert world.taken() == {("t", 100): 5}
    assert last_answer(world, "t").status == OrderStatus.CANCELLED


@pytest.mark.parametrize("price", [104, 105])
def test_what_waits_for_more_quotes_does_not_cross_the_book_at_home(price: int) -> None:
    """A resting order was out whole, and its price or a better one came here: it takes that in the end."""
    world = World(2, most_levels=1)
    world.submit(1, limit_order("ann", BUY, 100, 105))
    world.apply(1, commands.Uncross(SYMBOL, BUY, (AwayQuote(2, 1, 1, ((105, 100),)),)))
    (parcel,) = world.parcels
    world.parcels.clear()
    world.submit(1, limit_order("bob", SELL, 10, price))
    for better in (99, 100):
        world.submit(2, limit_order(f"peer{better}", SELL, 5, better))
    assert isinstance(parcel.content, TakeLeg)
    world.deliver(Parcel(2, 1, LegTaken(parcel.content.leg_id, 1, SYMBOL, refused=True)))
    check(world.nodes[1].state)
    world.settle()
    assert world.taken() == {("ann", 99): 5, ("ann", 100): 5, ("ann", price): 10}
    assert_all_at_rest(world)


def test_uncrossing_does_not_go_past_what_it_does_not_know() -> None:
    """A peer may show more, and better, than was told: what is left of the order waits for that."""
    world = world_with(3, (1, "ann", BUY, 100, 105))
    away = (AwayQuote(2, 1, 1, ((100, 5),), cut=True), AwayQuote(3, 1, 1, ((100, 7), (103, 9))))
    world.apply(1, commands.Uncross(SYMBOL, BUY, away))
    assert [(leg.limit, leg.quantity) for leg in legs(world)] == [(100, 7), (100, 5)]


def test_the_oldest_leg_that_is_out_is_found_at_once() -> None:
    """However many older ones are back: a leg to such a peer costs about what one to a fresh peer does."""
    state = State(1)
    state.apply(commands.EpochStarted(1))
    state.apply(commands.AddInstrument(SYMBOL, "1", "1"))
    number = 100_000
    state.apply(NewOrder("mm", "many", SYMBOL, Side.BUY, 1, 1, 100, number))
    (mother,) = state.orders.values()
    for leg_id in range(1, number + 1):
        state.add_leg(LegSent(leg_id, 2, 1, mother.id, SYMBOL, Side.BUY, 100, 1, 0), mother)
    mother.open, mother.reserved, mother.cancelling = 0, number, True
    for leg_id in range(1, number):
        state.apply(LegResult(leg_id, ()))

    def cost_ns(peer: int) -> int:
        quote = AwayQuote(peer, 1, 1, ((200, 1),))
        taker = NewOrder("t", f"t{len(state.orders)}", SYMBOL, Side.BUY, 1, 1, 200, 1, away=(quote,))
        before_ns = time.perf_counter_ns()
        events = state.apply(taker)
        cost_ns = time.perf_counter_ns() - before_ns
        (sent,) = (event for event in events if isinstance(event, LegSent))
        assert peer != 2 or sent.settled_below == number
        return cost_ns

    costs = [(cost_ns(2), cost_ns(3)) for _ in range(20)]
    assert min(cost for cost, _ in costs) < 4 * min(cost for _, cost in costs)


def test_legs_after_a_loss_are_none_that_a_peer_knows() -> None:
    """An engine that forgot its legs numbers the next ones above them: no old answer is given to new ones."""
    world = World(2)
    world.submit(2, limit_order("seller", SELL, 100, 101))
    for name in ("one", "two"):
        world.submit(1, limit_order(name, BUY, 10, 101))
        world.deliver_all()
    world.nodes[1] = Node(State(1))
    world.apply(1, EpochStarted(2, (1 << 48) + (2 << 24) + 1))
    world.apply(1, AddInstrument(SYMBOL, "0.01", "1"))
    known = len(world.nodes[2].events)
    world.submit(1, limit_order("new", BUY, 30, 105))
    world.deliver_all()
    sold = [event.quantity for event in world.nodes[2].events[known:] if isinstance(event, Fill)]
    bought = [event.quantity for event in world.nodes[1].events if isinstance(event, Fill)]
    assert sold == bought == [30]


# -- whole scenarios --------------------------------------------------------------------------------


@pytest.mark.parametrize("most_levels", [1, 2, 1_000])
@pytest.mark.parametrize("seed", range(20))
def test_three_engines_trade_like_one(seed: int, most_levels: int) -> None:
    """Orders dealt over three engines trade, taker by taker, what one engine trades, and leave its book.

    However few levels of a peer a command may carry.
    """
    source = random.Random(seed)
    alone, spread = World(1), World(3, most_levels=most_levels)
    for number in range(200):
        order = random_order(source, f"o{number}")
        alone.submit(1, order)
        spread.submit(number % 3 + 1, order)
        spread.settle()
        for side in Side:
            assert spread.combined(side) == alone.combined(side)
    assert spread.taken() == alone.taken()
    assert any(isinstance(event, LegSent) for event in spread.nodes[1].events)


@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_lost_or_traded_twice_whatever_the_network_does(seed: int) -> None:
    """Late, lost, repeated and reordered legs, queries, new reigns: all comes to rest, exactly."""
    source = random.Random(1000 + seed)
    world = World(3, most_levels=1 if seed % 3 == 0 else 1_000)
    for number in range(150):
        home = source.randint(1, 3)
        # Some come within a message's delay of what the others show, and may cross it.
        send = world.apply if source.random() < 0.2 else world.submit
        send(home, random_terms(source, random_order(source, f"o{number}")))
        meddle(world, source)
        for node in world.nodes.values():
            check(node.state)
            assert_owed_answers_are_whole(node.state)
    world.settle()
    assert_all_at_rest(world)
    assert_quantities_agree(world)
    assert_replay_is_the_same(world)


def meddle(world: World, source: random.Random) -> None:
    """Do some of what a network and its machines do."""
    for _ in range(source.randint(0, 4)):
        draw = source.random()
        if draw < 0.55 and world.parcels:
            world.deliver(world.parcels.pop(source.randrange(len(world.parcels))))
        elif draw < 0.65 and world.parcels:
            world.parcels.pop(source.randrange(len(world.parcels)))
        elif draw < 0.72 and world.parcels:
            world.deliver(source.choice(world.parcels))
        elif draw < 0.80:
            world.query_open_legs()
        elif draw < 0.85:
            world.restart(source.randint(1, 3))
        elif draw < 0.90:
            world.uncross()
        else:
            interfere(world, source)


def interfere(world: World, source: random.Random) -> None:
    """Cancel or replace an order that is open somewhere."""
    number = source.randint(1, 3)
    state = world.nodes[number].state
    still_open = [order for order in state.orders.values() if order.leaves]
    if not still_open:
        return
    order = source.choice(still_open)
    if source.random() < 0.5:
        world.apply(number, CancelOrder(order.request.client, order.id))
    else:
        price, quantity = source.randint(95, 105), source.randint(1, 20)
        world.replace(number, order.request.client, order.id, price, quantity)


def assert_owed_answers_are_whole(state: State) -> None:
    """What an order with legs out has kept to tell are all fills it took since its command began."""
    for order in {leg.order.id: leg.order for leg in state.legs.values()}.values():
        account = order.account
        assert account is not None
        since = [fill for fill in account.fills if fill.sequence > order.mark]
        taken = [fill for fill in since if (fill.order_id, fill.liquidity) == (order.id, Liquidity.TAKER)]
        is_first = order.answer is not None and order.answer.status == OrderStatus.PENDING
        kept = order.answer.fills if order.answer is not None and is_first else order.owed.fills
        assert list(kept) == taken


def assert_all_at_rest(world: World) -> None:
    """Every leg has ended, every pending order was answered for good, and no price is locked or crossed."""
    for node in world.nodes.values():
        check(node.state)
        assert not node.state.legs
    for order_id, answer in world.last_answers().items():
        order = world.nodes[order_id >> 48].state.orders[order_id]
        assert answer.status != OrderStatus.PENDING, f"order {order_id} was left without an answer"
        assert order.status != OrderStatus.PENDING
    bids, asks = world.combined(BUY), world.combined(SELL)
    assert not bids or not asks or bids[0][0] < asks[0][0]


def assert_quantities_agree(world: World) -> None:
    """Each execution has exactly one maker and one taker, who agree; fills add up to what orders say."""
    executions: dict[int, list[Fill]] = defaultdict(list)
    filled: Counter[int] = Counter()
    value: Counter[int] = Counter()
    for fill in world.fills():
        executions[fill.execution_id].append(fill)
        filled[fill.order_id] += fill.quantity
        value[fill.order_id] += fill.quantity * fill.price
    for execution_id, parties in executions.items():
        assert {party.liquidity for party in parties} == set(Liquidity), "one maker and one taker"
        first, second = parties
        assert first.side + second.side == 3
        assert (first.price, first.quantity, first.engine) == (second.price, second.quantity, second.engine)
        assert first.contra_order_id == second.order_id
        assert second.contra_order_id == first.order_id
        assert first.engine == execution_id >> 48
    for node in world.nodes.values():
        for order in node.state.orders.values():
            assert (order.cumulative, order.value) == (filled[order.id], value[order.id])
            if order.request.time_in_force == TimeInForce.FOK:
                assert order.cumulative in (0, order.quantity), "fill-or-kill trades whole or not at all"


def assert_replay_is_the_same(world: World) -> None:
    """Each engine's journal gives the same state and events again, from snapshots on the way too."""
    for number, node in world.nodes.items():
        state = State(number)
        events = []
        for batch_number, batch in enumerate(node.batches, start=1):
            replayed = commands.decode(commands.encode(batch))
            applied, changes = apply_batch(state, batch_number, replayed)
            events += [*applied[0], *changes]
            if batch_number % 3 == 0:
                state = restored(state)
        assert events == node.events
        assert state_digest(state) == state_digest(node.state)
