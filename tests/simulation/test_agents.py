import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.terms import OrderType, Side, TimeInForce
from simulation.agents.arrivals import HawkesSettings
from simulation.agents.cast import GROUPS, agent_of, players, usual_mix
from simulation.agents.quoters import MarketMaker, RandomGroup, RandomTrader
from simulation.agents.takers import (
    ArbitrageGroup,
    InformedGroup,
    InformedTaker,
    LatencyArbitrageur,
    MomentumGroup,
    MomentumTaker,
    ReversionGroup,
    ReversionTaker,
)
from simulation.agents.terms import (
    REFERENCE_PRICE,
    Cancel,
    EngineQuote,
    Intent,
    OpenOrder,
    Replace,
    Submit,
    View,
)

orders = st.builds(
    OpenOrder,
    client_order_id=st.integers(0, 999).map(str),
    symbol=st.just("AAPL"),
    side=st.sampled_from(list(Side)),
    price=st.integers(1, 20_000),
    leaves=st.integers(1, 500),
)
price = st.none() | st.integers(1, 20_000)
quotes = st.builds(
    EngineQuote,
    engine=st.integers(1, 3),
    best_bid=price,
    best_ask=price,
    age_s=st.floats(0, 60),
)
views = st.builds(
    View,
    symbol=st.just("AAPL"),
    best_bid=price,
    best_ask=price,
    last_price=price,
    position=st.integers(-5_000, 5_000),
    open_orders=st.lists(orders, max_size=25).map(tuple),
    engines=st.lists(quotes, max_size=3).map(tuple),
    fundamental=st.none() | st.floats(1, 20_000),
)


@given(st.lists(views, min_size=1, max_size=8), st.integers())
def test_intents_are_possible_orders(seen: list[View], seed: int) -> None:
    """Whatever an agent sees, it wants orders that the venue's static rules take, and its own orders only."""
    for agent in (agent_of(group(), random.Random(seed)) for group in GROUPS.values()):
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


def seen_over_time() -> list[View]:
    """Two hundred views of a market that wanders, on two engines of which one lags."""
    chance = random.Random(1)
    middles = [10_000]
    for _ in range(200):
        middles.append(middles[-1] + chance.randint(-6, 6))
    return [
        View(
            "AAPL",
            *(now - 2, now + 2, now),
            position=chance.randint(-500, 500),
            open_orders=(OpenOrder("1", "AAPL", Side.BUY, now - 5, 10),),
            engines=(EngineQuote(1, now - 2, now + 2, 0.0), EngineQuote(2, before - 2, before + 2, 1.0)),
            fundamental=now + chance.gauss(0, 8),
        )
        for before, now in pairwise(middles)
    ]


@pytest.mark.parametrize("kind", GROUPS)
def test_same_seed_and_views_give_the_same_decisions(kind: str) -> None:
    """Every kind of agent decides by its seed and by what it saw, and by nothing else; so do its arrivals."""

    def story(seed: int) -> list[tuple[list[Intent], float]]:
        (player,) = players([GROUPS[kind](arrival=HawkesSettings())], seed).values()
        return [(player.agent.decide([view]), player.arrival.wait_s()) for view in seen_over_time()]

    assert story(7) == story(7)
    assert story(7) != story(8)
    assert any(intents for intents, _ in story(7))


def test_agents_of_a_group_differ() -> None:
    """Each has a generator of its own."""
    one, two = players([GROUPS["random"](count=2)], 7).values()
    assert [one.agent.decide([view]) for view in seen_over_time()] != [
        *(two.agent.decide([view]) for view in seen_over_time())
    ]


def test_usual_mix_has_every_usual_kind() -> None:
    """Five clients are three random traders, a market maker and a momentum taker, by name."""

    def names(count: int, only: str = "") -> list[str]:
        return [name.split("-")[0] for name in players(usual_mix(count, 20.0, only=only), 1)]

    assert names(5) == ["random", "maker", "random", "momentum", "random"]
    assert names(2, only="random") == ["random", "random"]


def test_players_are_numbered_through() -> None:
    """A group's count gives so many clients, and no two have the same name."""
    assert list(players([GROUPS["maker"](count=2), GROUPS["random"]()], 1)) == [
        *("maker-1", "maker-2", "random-3")
    ]


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


def test_an_empty_market_starts_where_the_scenario_says() -> None:
    """Without a quote or a trade the reference is the middle; whatever else is known comes first."""
    assert View("AAPL", reference=500).middle == 500
    assert View("AAPL", best_ask=503, reference=500).middle == 503


def test_a_middle_leans_to_neither_side() -> None:
    """Half a tick goes up as often as down: else a market of agents that price by the middle would drift."""
    spreads = [(bid, bid + width) for bid in range(9_000, 9_100) for width in range(1, 9)]
    assert sum(2 * View("AAPL", bid, ask).middle - bid - ask for bid, ask in spreads) == 0


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


@pytest.mark.parametrize("kind", sorted(GROUPS.keys() - {"random"}))
@given(seen=st.lists(views, min_size=2, max_size=8), seed=st.integers())
def test_no_order_leads_beyond_the_largest_position(kind: str, seen: list[View], seed: int) -> None:
    """Filled whole, no order makes an agent hold more than `max_position` either way."""
    most: Any = {"quantity": 3_000, "max_position": 3_000}
    agent = agent_of(GROUPS[kind](**most), random.Random(seed))
    for view in seen:
        for intent in agent.decide([view]):
            if isinstance(intent, Submit):
                held = view.position if intent.side is Side.BUY else -view.position
                assert held + intent.quantity <= 3_000


def test_momentum_taker_follows_the_move() -> None:
    """After the middle rose far enough the taker buys at the ask or a little above, at once or never."""
    taker = MomentumTaker(random.Random(1))
    assert taker.decide([View("AAPL", best_bid=99, best_ask=101)]) == []
    (intent,) = taker.decide([View("AAPL", best_bid=103, best_ask=105)])
    assert isinstance(intent, Submit)
    assert intent.side is Side.BUY
    assert 105 <= intent.price <= 107
    assert intent.time_in_force is TimeInForce.IOC


def test_momentum_taker_measures_over_its_window() -> None:
    """Five steps of a tick each are a move of five; a price that stands still is none, at any threshold."""
    taker = MomentumTaker(random.Random(1), MomentumGroup(window=5, threshold=5))
    steps = [taker.decide([View("AAPL", best_bid=99 + step, best_ask=101 + step)]) for step in range(6)]
    assert [len(intents) for intents in steps] == [0, 0, 0, 0, 0, 1]
    still = MomentumTaker(random.Random(1), MomentumGroup(threshold=0))
    assert still.decide([View("AAPL", best_bid=99, best_ask=101)] * 9) == []


@pytest.mark.parametrize(
    "open_orders", [(), (OpenOrder("a", "AAPL", Side.BUY, 99, 5),)], ids=["none open", "one open"]
)
def test_random_trader_keeps_to_its_shares(open_orders: tuple[OpenOrder, ...]) -> None:
    """Market orders, and those that take at once, are as many as the settings say, with none open too."""
    trader = RandomTrader(random.Random(1), RandomGroup(market_share=0.1, ioc_share=0.2))
    view = View("AAPL", best_bid=99, best_ask=101, open_orders=open_orders)
    steps = 10_000
    made = Counter(
        (intent.type, intent.time_in_force)
        for _ in range(steps)
        for intent in trader.decide([view])
        if isinstance(intent, Submit)
    )
    assert made[OrderType.MARKET, TimeInForce.IOC] / steps == pytest.approx(0.1, abs=0.015)
    assert made[OrderType.LIMIT, TimeInForce.IOC] / steps == pytest.approx(0.2, abs=0.02)


def taken(intents: list[Intent]) -> tuple[Side, int]:
    """Side and price of the one order that takes at once or never."""
    (intent,) = intents
    assert isinstance(intent, Submit)
    assert intent.time_in_force is TimeInForce.IOC
    return intent.side, intent.price


def test_reversion_taker_trades_against_a_move_and_gives_back() -> None:
    """It sells what rose far above its mean, waits while it is there, and buys back when it has fallen."""
    taker = ReversionTaker(random.Random(1), ReversionGroup(memory=10, threshold=5))
    assert taker.decide([View("AAPL", 99, 101)]) == []
    assert taken(taker.decide([View("AAPL", 109, 111)])) == (Side.SELL, 109)
    assert taker.decide([View("AAPL", 102, 104, position=-20)]) == []
    assert taken(taker.decide([View("AAPL", 99, 101, position=-20)])) == (Side.BUY, 101)
    assert taker.decide([View("AAPL", 99, 101)]) == []


@pytest.mark.parametrize(
    ("fundamental", "wanted"),
    [(110.0, (Side.BUY, 107)), (90.0, (Side.SELL, 93)), (102.0, None), (None, None)],
)
def test_informed_taker_goes_for_what_it_is_worth(
    fundamental: float | None, wanted: tuple[Side, int] | None
) -> None:
    """It takes up to the value less its edge, and nothing without that edge or without knowing the value."""
    taker = InformedTaker(random.Random(1), InformedGroup(edge=3, error=0))
    intents = taker.decide([View("AAPL", 99, 101, fundamental=fundamental)])
    assert (taken(intents) if intents else None) == wanted


@pytest.mark.parametrize(
    ("leader", "other", "wanted"),
    [
        ((104, 106), (99, 101), (Side.BUY, 101)),
        ((94, 96), (99, 101), (Side.SELL, 99)),
        ((99, 103), (99, 101), None),
        ((None, 106), (99, 101), None),
        ((104, 106), (None, None), None),
    ],
)
def test_arbitrageur_takes_the_stale_quote(
    leader: tuple[int | None, int | None],
    other: tuple[int | None, int | None],
    wanted: tuple[Side, int] | None,
) -> None:
    """When one engine's prices moved and another's did not, it takes the old quote on the wrong side."""
    view = View("AAPL", engines=(EngineQuote(1, *other, age_s=2.0), EngineQuote(2, *leader, age_s=0.1)))
    intents = LatencyArbitrageur(random.Random(1)).decide([view])
    assert (taken(intents) if intents else None) == wanted


def test_arbitrageur_believes_nobody_when_both_moved() -> None:
    """Quotes of the same age say nothing about which is stale."""
    view = View("AAPL", engines=(EngineQuote(1, 99, 101, 0.1), EngineQuote(2, 104, 106, 0.1)))
    taker = LatencyArbitrageur(random.Random(1), ArbitrageGroup(lag_s=0.05))
    assert taker.decide([view]) == []
