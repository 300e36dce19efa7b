import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.terms import OrderType, Side, TimeInForce
from simulation.agents import (
    REFERENCE_PRICE,
    Agent,
    Cancel,
    Intent,
    MarketMaker,
    MomentumTaker,
    OpenOrder,
    RandomTrader,
    Replace,
    Submit,
    View,
    cast,
)

orders = st.builds(
    OpenOrder,
    client_order_id=st.uuids().map(str),
    symbol=st.just("AAPL"),
    side=st.sampled_from(list(Side)),
    price=st.integers(1, 20_000),
    leaves=st.integers(1, 500),
)
price = st.none() | st.integers(1, 20_000)
views = st.builds(
    View,
    symbol=st.just("AAPL"),
    best_bid=price,
    best_ask=price,
    last_price=price,
    position=st.integers(-5_000, 5_000),
    open_orders=st.lists(orders, max_size=25).map(tuple),
)


@given(st.lists(views, min_size=1, max_size=8), st.integers())
def test_intents_are_possible_orders(seen: list[View], seed: int) -> None:
    """Whatever an agent sees, it wants orders that the venue's static rules take, and its own orders only."""
    agents: list[Agent] = [kind(random.Random(seed)) for kind in (RandomTrader, MarketMaker, MomentumTaker)]
    for agent in agents:
        for view in seen:
            own = {order.client_order_id for order in view.open_orders}
            for intent in agent.decide([view]):
                match intent:
                    case Submit():
                        assert intent.quantity > 0
                        assert (intent.price == 0) == (intent.type is OrderType.MARKET)
                        assert not intent.post_only or intent.time_in_force is TimeInForce.GTC
                    case Cancel():
                        assert intent.client_order_id in own
                    case Replace():
                        assert intent.client_order_id in own
                        assert min(intent.price, intent.leaves) > 0


def test_same_seed_gives_the_same_intents() -> None:
    """Two casts of one seed decide alike, step by step; another seed does not."""

    def story(seed: int) -> list[Intent]:
        agents = cast(5, seed)
        view = View("AAPL", best_bid=9_990, best_ask=10_010)
        return [intent for agent in agents.values() for _ in range(20) for intent in agent.decide([view])]

    assert story(7) == story(7)
    assert story(7) != story(8)


def test_cast_has_every_kind() -> None:
    """Five clients are three random traders, a market maker and a momentum taker, by name."""
    assert [name.split("-")[0] for name in cast(5, 1)] == ["random", "maker", "random", "momentum", "random"]
    assert [name.split("-")[0] for name in cast(2, 1, only="random")] == ["random", "random"]


def test_maker_quotes_both_sides_post_only() -> None:
    """In an empty market the maker quotes around the reference price, never crossing itself."""
    bid, ask = MarketMaker(random.Random(1)).decide([View("AAPL")])
    assert isinstance(bid, Submit)
    assert isinstance(ask, Submit)
    assert bid.side is Side.BUY
    assert bid.price < ask.price
    assert abs((bid.price + ask.price) / 2 - REFERENCE_PRICE) <= 1
    assert bid.post_only
    assert ask.post_only


def test_maker_renews_only_stale_quotes() -> None:
    """A quote near its target stays, one far from it is cancelled and set anew."""
    near = OpenOrder("near", "AAPL", Side.BUY, 9_997, 50)
    far = OpenOrder("far", "AAPL", Side.SELL, 10_050, 50)
    intents = MarketMaker(random.Random(1)).decide([View("AAPL", last_price=10_000, open_orders=(near, far))])
    assert [type(intent) for intent in intents] == [Cancel, Submit]
    assert intents[0] == Cancel("far")


@pytest.mark.parametrize(("held", "side"), [(2_000, Side.SELL), (-2_000, Side.BUY)])
def test_maker_stops_adding_to_a_full_position(held: int, side: Side) -> None:
    """At its largest position the maker quotes the side that reduces it only."""
    intents = MarketMaker(random.Random(1)).decide([View("AAPL", last_price=10_000, position=held)])
    assert [intent.side for intent in intents if isinstance(intent, Submit)] == [side]


def test_momentum_taker_follows_the_move() -> None:
    """After the middle rose far enough the taker buys at the ask or a little above, at once or never."""
    taker = MomentumTaker(random.Random(1))
    assert taker.decide([View("AAPL", best_bid=99, best_ask=101)]) == []
    (intent,) = taker.decide([View("AAPL", best_bid=103, best_ask=105)])
    assert isinstance(intent, Submit)
    assert intent.side is Side.BUY
    assert 105 <= intent.price <= 107
    assert intent.time_in_force is TimeInForce.IOC
