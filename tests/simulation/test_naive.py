"""The witness's own engine and the real one, on the same commands."""

import random

import msgspec
import pytest

from engine.commands import AwayQuote, CancelAll, CancelOrder, Command, LegResult, Uncross
from engine.events import Accepted, Answered, Cancelled, Event, Fill, Prevented, Replaced
from engine.terms import OrderStatus, Side, first_id
from simulation.naive import NaiveEngine
from tests.engine.venue import answered
from tests.engine.world import SYMBOL, Node, World, limit_order, random_order, random_terms

REPORTED = (Accepted, Fill, Replaced, Cancelled, Prevented)
NAMES = {
    "ReportedOrder": "Accepted",
    "ReportedFill": "Fill",
    "ReportedReplace": "Replaced",
    "ReportedCancel": "Cancelled",
    "ReportedPrevention": "Prevented",
}


def play(seed: int, steps: int, *, most_levels: int = 1_000) -> World:
    """Three engines under random orders, cancels, replaces, restarts, and legs late, twice or lost.

    A command carries at most `most_levels` of each peer.
    """
    chance = random.Random(seed)
    world = World(3, most_levels=most_levels)
    homes: dict[str, int] = {}
    for number in range(steps):
        draw = chance.random()
        order = random_terms(chance, random_order(chance, f"o{number}"))
        home = int(order.client[-1]) % 3 + 1
        open_orders = [
            (engine, known)
            for engine, node in world.nodes.items()
            for account in node.state.accounts.by_name.values()
            for known in account.open.values()
        ]
        if draw < 0.6 or not open_orders:
            homes[order.client_order_id] = home
            world.submit(home, order)
        else:
            engine, known = chance.choice(open_orders)
            client = known.request.client
            if draw < 0.75:
                world.replace(engine, client, known.id, chance.randint(95, 105), chance.randint(1, 25))
            elif draw < 0.95:
                world.apply(engine, CancelOrder(client, 0, known.request.client_order_id))
            elif draw < 0.97:
                world.apply(engine, CancelAll(client, SYMBOL, chance.choice((0, 1, 2))))
            else:
                world.restart(engine)
        for parcel in list(world.parcels):
            fate = chance.random()
            if fate < 0.5:
                world.parcels.remove(parcel)
                world.deliver(parcel)
                if fate < 0.1:
                    world.deliver(parcel)  # twice
            elif fate < 0.55:
                world.parcels.remove(parcel)  # lost: queried later
        if chance.random() < 0.2:
            world.uncross()
        if chance.random() < 0.1:
            world.query_open_legs()
    return world


def told(events: list[Event]) -> list[tuple[object, ...]]:
    """The events that are reported, as they go over the wire."""
    return [
        (type(event).__name__, *msgspec.structs.astuple(event)) for event in events if type(event) in REPORTED
    ]


@pytest.mark.parametrize("most_levels", [1, 2, 1_000])
@pytest.mark.parametrize("seed", range(12))
def test_the_naive_engine_and_the_real_one_agree(seed: int, most_levels: int) -> None:
    """From one journal come the same reports, books, legs and answers, whatever was lost or repeated.

    However few levels of a peer a command may carry.
    """
    for number, node in play(seed, 300, most_levels=most_levels).nodes.items():
        assert_agreed(number, node)


def naive_of(number: int, node: Node) -> NaiveEngine:
    """A naive engine after the node's journal."""
    naive = NaiveEngine(number)
    for batch, commands in enumerate(node.batches, 1):
        naive.batch(batch, tuple(commands))
    return naive


def assert_agreed(number: int, node: Node) -> None:
    """A naive engine makes of the node's journal what the node made of it."""
    naive = naive_of(number, node)
    reports = [(NAMES[type(one).__name__], *msgspec.structs.astuple(one)) for one in naive.reports]
    assert [untimed(one) for one in reports] == [untimed(one) for one in told(node.events)]
    for side in Side:
        assert naive.book(SYMBOL, side) == list(node.state.books[SYMBOL].levels(side))
    out = {
        leg_id: (leg.peer, leg.limit, leg.quantity) for leg_id, leg in naive.legs.items() if leg.fills is None
    }
    assert out == {
        leg_id: (leg.sent.peer, leg.sent.limit, leg.sent.quantity) for leg_id, leg in node.state.legs.items()
    }
    outcomes = {
        (one.order_id, one.status, one.cumulative, one.leaves)
        for attempts in naive.attempts.values()
        for attempt in attempts
        for one in attempt.outcomes
    }
    for event in node.events:
        if isinstance(event, Answered) and event.status != OrderStatus.REJECTED:
            assert (event.order_id, event.status, event.cumulative, event.leaves) in outcomes


def untimed(report: tuple[object, ...]) -> tuple[object, ...]:
    """A report without its time: the world and the journal count batches differently."""
    return (*report[:14], *report[15:]) if report[0] == "Fill" else report


BUY, SELL = Side.BUY, Side.SELL
LEG = first_id(1)
CUT_AT_99 = AwayQuote(2, 1, 1, ((99, 5),), cut=True)


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param(
            [
                limit_order("ann", BUY, 100, 105),
                Uncross(SYMBOL, BUY, (CUT_AT_99, AwayQuote(3, 1, 1, ((99, 7), (103, 9))))),
            ],
            id="legs of a resting order go no further than is known",
        ),
        pytest.param(
            [
                limit_order("ann", BUY, 20, 105),
                Uncross(SYMBOL, BUY, (AwayQuote(2, 1, 1, ((104, 20),)),)),
                limit_order("bob", BUY, 20, 105),
                LegResult(LEG, (), (CUT_AT_99,)),
                limit_order("sue", SELL, 20, 105),
            ],
            id="what stood in the queue goes back to its place",
        ),
        pytest.param(
            [
                limit_order("ann", BUY, 20, 105),
                Uncross(SYMBOL, BUY, (AwayQuote(2, 1, 1, ((104, 20),)),)),
                limit_order("joe", SELL, 5, 104),
                LegResult(LEG, (), (CUT_AT_99,)),
                limit_order("sue", SELL, 5, 104),
            ],
            id="unless it would trade here",
        ),
        pytest.param(
            [
                limit_order("ann", BUY, 20, 105),
                Uncross(SYMBOL, BUY, (AwayQuote(2, 1, 1, ((104, 20),)),)),
                limit_order("joe", SELL, 5, 104),
                LegResult(LEG, (), (CUT_AT_99,)),
                CancelOrder("joe", 0, "joe"),
                limit_order("bob", BUY, 20, 105),
                LegResult(LEG + 1, (), ()),
                limit_order("sue", SELL, 20, 105),
            ],
            id="which costs it its place",
        ),
        pytest.param(
            [
                limit_order("joe", SELL, 5, 99),
                limit_order("sue", SELL, 5, 100),
                limit_order("ann", BUY, 20, 105, time_in_force=2, away=(CUT_AT_99,)),
                LegResult(LEG, (), (AwayQuote(2, 1, 1, ((101, 5),)),)),
            ],
            id="an order that may not wait waits for its legs all the same",
        ),
        pytest.param(
            [limit_order("ann", BUY, 20, 105, time_in_force=3, away=(CUT_AT_99,))],
            id="what is not known may fill an order whole",
        ),
    ],
)
def test_they_agree_on_quotes_that_were_cut(commands: list[Command]) -> None:
    """Nothing trades beyond the last level that a peer is known to show."""
    world = World(1)
    for command in commands:
        world.apply(1, command)
        assert_agreed(1, world.nodes[1])


def test_they_agree_on_a_repeat_of_what_is_under_way() -> None:
    """It tells what a cancel has left, though the first answer is not complete before the leg is back."""
    world = World(1)
    order = limit_order("ann", BUY, 20, 105, away=(AwayQuote(2, 1, 1, ((104, 5),)),))
    world.apply(1, order)
    world.apply(1, CancelOrder("ann", 0, "ann"))
    again = answered(world.apply(1, order))
    (outcome,) = naive_of(1, world.nodes[1]).attempts[msgspec.structs.replace(order, away=())][-1].outcomes
    assert (outcome.status, outcome.leaves) == (again.status, again.leaves) == (OrderStatus.PENDING, 5)


def test_the_play_meets_every_rule() -> None:
    """What is compared above has legs, prevented self-trades, replaces and cancels in it."""
    events = [event for node in play(1, 300).nodes.values() for event in node.events]
    kinds = {type(event).__name__ for event in events}
    assert {"Fill", "Prevented", "Replaced", "Cancelled", "LegSent", "LegTaken"} <= kinds
