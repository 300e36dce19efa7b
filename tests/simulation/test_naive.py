"""The witness's own engine and the real one, on the same commands."""

import random

import msgspec
import pytest

from engine.commands import CancelAll, CancelOrder
from engine.events import Accepted, Answered, Cancelled, Event, Fill, Prevented, Replaced
from engine.terms import OrderStatus, Side
from simulation.naive import NaiveEngine
from tests.engine.world import SYMBOL, World, random_order, random_terms

REPORTED = (Accepted, Fill, Replaced, Cancelled, Prevented)


def play(seed: int, steps: int) -> World:
    """Three engines under random orders, cancels, replaces, restarts, and legs late, twice or lost."""
    chance = random.Random(seed)
    world = World(3)
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
                world.parcels.remove(parcel)  # lost: asked after later
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


@pytest.mark.parametrize("seed", range(12))
def test_the_naive_engine_and_the_real_one_agree(seed: int) -> None:
    """From one journal come the same reports, books, legs and answers, whatever was lost or repeated."""
    world = play(seed, 300)
    names = {"ReportedOrder": "Accepted", "ReportedFill": "Fill", "ReportedReplace": "Replaced"}
    names |= {"ReportedCancel": "Cancelled", "ReportedPrevention": "Prevented"}
    for number, node in world.nodes.items():
        naive = NaiveEngine(number)
        for batch, commands in enumerate(node.batches, 1):
            naive.batch(batch, tuple(commands))
        reports = [(names[type(one).__name__], *msgspec.structs.astuple(one)) for one in naive.reports]
        assert [untimed(one) for one in reports] == [untimed(one) for one in told(node.events)]
        for side in Side:
            assert naive.book(SYMBOL, side) == list(node.state.books[SYMBOL].levels(side))
        assert {leg_id for leg_id, leg in naive.legs.items() if leg.fills is None} == set(node.state.legs)
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


def test_the_play_meets_every_rule() -> None:
    """What is compared above has legs, prevented self-trades, replaces and cancels in it."""
    events = [event for node in play(1, 300).nodes.values() for event in node.events]
    kinds = {type(event).__name__ for event in events}
    assert {"Fill", "Prevented", "Replaced", "Cancelled", "LegSent", "LegTaken"} <= kinds
