from typing import Any

import pytest

from engine.commands import (
    AddInstrument,
    AwayQuote,
    Command,
    EpochStarted,
    LegFill,
    LegResult,
    NewOrder,
    QueryLeg,
    TakeLeg,
    Uncross,
)
from engine.events import Fill, LegSent
from engine.terms import Liquidity
from simulation.audit import Audit, Decision, audits, traded_through

QUOTES = (AwayQuote(2, 1, 1, ((100, 5), (101, 5))), AwayQuote(3, 1, 1, ((100, 2),)))
MS = 1_000_000
WINDOW_MS = 150


def leg(peer: int, limit: int, quantity: int) -> LegSent:
    """A leg of one buy order."""
    return LegSent(1, peer, 1, 1, "AAPL", 1, limit, quantity, 0)


def order(name: str, side: int, price: int, quantity: int = 5, **more: Any) -> NewOrder:
    """A limit order, GTC unless `time_in_force` says otherwise."""
    more = {"time_in_force": 1} | more
    return NewOrder(name, f"{name}-1", "AAPL", side, 1, price=price, quantity=quantity, **more)


class Market:
    """Engines whose journals grow batch by batch, and their audits."""

    def __init__(self, *engines: int) -> None:
        self.audits = audits(engines, WINDOW_MS * MS)
        self._batches = dict.fromkeys(engines, 0)
        for engine in engines:
            self.batch(engine, 0, EpochStarted(1), AddInstrument("AAPL", "0.01", "1"))

    def batch(self, engine: int, time_ms: int, *commands: Command) -> Audit:
        """One more batch of an engine; its audit."""
        self._batches[engine] += 1
        self.audits[engine].add_batch(self._batches[engine], time_ms * MS, commands)
        return self.audits[engine]


@pytest.fixture
def market() -> Market:
    """Two engines that sell: the first 5 at 101, the second 5 at 100, which the first need not know."""
    market = Market(1, 2)
    market.batch(1, 0, order("here", 2, 101))
    market.batch(2, 0, order("there", 2, 100))
    return market


def judged(audit: Audit) -> tuple[int, int]:
    """Views that were old, and bugs."""
    return audit.old_views, len(audit.bugs)


def test_taking_all_better_quotes_is_no_trade_through() -> None:
    """Legs that cover every strictly better away quote leave nothing to say."""
    assert traded_through(QUOTES, [], [leg(2, 101, 6), leg(3, 100, 2)]) == []


def test_better_quote_left_standing_is_found() -> None:
    """A leg at 101 while engine 3 showed 100 and got nothing is a trade-through."""
    (violation,) = traded_through(QUOTES, [], [leg(2, 101, 6)])
    assert "engine 3 showed 2 better, from 100 on, and got 0" in violation


def test_a_leg_that_cannot_reach_a_quote_takes_nothing_of_it() -> None:
    """Two legs take two levels; one of their quantity that reaches only the first leaves the other."""
    quotes, at_101 = (AwayQuote(2, 1, 1, ((99, 5), (100, 5))),), leg(3, 101, 1)
    assert traded_through(quotes, [], [leg(2, 99, 5), leg(2, 100, 5), at_101]) == []
    (violation,) = traded_through(quotes, [], [leg(2, 99, 10), at_101])
    assert "engine 2 showed 5 better, from 100 on, and got 0" in violation


def test_journaled_decisions_are_judged() -> None:
    """An order that meets a better away quote sends a leg first: one decision, one leg, no violation."""
    audit = Audit(1)
    audit.add_batch(1, 1, [EpochStarted(1), AddInstrument("AAPL", "0.01", "1"), order("maker", 2, 101)])
    audit.add_batch(2, 2, [order("taker", 1, 101, away=(AwayQuote(2, 1, 1, ((100, 3),)),))])
    assert (audit.decisions, audit.with_away_quotes, audit.legs, audit.bugs) == (1, 1, 1, [])


def test_a_quote_that_was_not_known_makes_an_old_view(market: Market) -> None:
    """A fill at 101, while 100 had stood elsewhere for half a second, is told with all that names it."""
    audit = market.batch(1, 500, order("taker", 1, 101))
    assert judged(audit) == (1, 0)
    (example,) = audit.old_view_examples
    assert example == (
        "engine 1, batch 3, AAPL: went to 101 while engine 2 showed 5 better, from 100 on, and got 0:"
        " the view was 500 ms old (engine 2 wrote its last batch 500 ms before)"
    )


def test_a_seller_looks_past_higher_bids() -> None:
    """The same holds with the sides exchanged."""
    market = Market(1, 2)
    market.batch(1, 0, order("here", 1, 100))
    market.batch(2, 0, order("there", 1, 101))
    assert judged(market.batch(1, 500, order("taker", 2, 100))) == (1, 0)


def test_a_known_quote_left_standing_is_a_bug_and_no_old_view(market: Market) -> None:
    """Events that no engine should make, a fill at home through a journaled quote, are a bug, once."""
    quoted = order("taker", 1, 101, away=(AwayQuote(2, 1, 1, ((100, 5),)),))
    through = Fill("taker", 1, 1, 1, "taker-1", "AAPL", 1, 101, 5, Liquidity.TAKER, 5, 0, 1, 500 * MS, 2)
    audit = market.batch(1, 500)
    audit.judge(Decision(quoted, [through], [], 1), {})
    assert judged(audit) == (0, 1)
    assert "engine 1, batch 3, AAPL: went to 101 while engine 2 showed 5 better" in audit.bugs[0]


@pytest.mark.parametrize(("taken_ms", "old_views"), [(149, 0), (150, 1)])
def test_only_what_stood_through_the_whole_window_is_missed(
    market: Market, taken_ms: int, old_views: int
) -> None:
    """A quote one millisecond younger than the window is not missed."""
    assert judged(market.batch(1, taken_ms, order("taker", 1, 101))) == (old_views, 0)


def test_only_orders_that_stood_through_the_window_are_missed(market: Market) -> None:
    """What came later does not count, nor what was there before it and is gone; the rest does."""
    market.batch(2, 400, order("other", 2, 100, 3), order("some", 1, 100, 4))
    audit = market.batch(1, 500, order("taker", 1, 101, 1))
    assert judged(audit) == (1, 0)
    assert "engine 2 showed 1 better, from 100 on" in audit.old_view_examples[0]
    assert "the view was 500 ms old" in audit.old_view_examples[0]
    market.batch(2, 510, order("rest", 1, 100, 1))
    assert judged(market.batch(1, 520, order("taker2", 1, 101, 1))) == (1, 0)
    assert judged(market.batch(1, 550, order("taker3", 1, 101, 1))) == (2, 0)


def test_a_quote_that_is_gone_is_not_missed(market: Market) -> None:
    """What was taken before the decision does not stand."""
    market.batch(2, 499, order("first", 1, 100))
    assert judged(market.batch(1, 500, order("taker", 1, 101))) == (0, 0)


def test_a_quote_at_the_same_price_is_not_missed(market: Market) -> None:
    """Only a better price is."""
    market.batch(1, 100, order("level", 2, 100))
    assert judged(market.batch(1, 500, order("taker", 1, 101))) == (0, 0)


@pytest.mark.parametrize("more", [{"do_not_route": True}, {"time_in_force": 3}])
def test_who_may_not_go_elsewhere_misses_nothing(market: Market, more: dict[str, Any]) -> None:
    """Do-not-route and fill-or-kill orders are decisions, but send no legs whatever they know."""
    audit = market.batch(1, 500, order("taker", 1, 101, **more))
    assert (audit.decisions, *judged(audit)) == (1, 0, 0)


def test_what_an_earlier_leg_is_out_for_is_not_missed(market: Market) -> None:
    """The second order of a batch does not know the quote that the first one takes, and is right."""
    quote = AwayQuote(2, 1, 1, ((100, 5),))
    audit = market.batch(1, 500, order("first", 1, 100, away=(quote,)), order("second", 1, 101))
    assert (audit.decisions, audit.legs, *judged(audit)) == (2, 1, 0, 0)


def test_what_a_leg_finds_at_its_own_peer_is_not_missed() -> None:
    """A leg sent for 101 to where 100 stands trades at 100 first."""
    market = Market(1, 2)
    market.batch(2, 0, order("there", 2, 100))
    stale = AwayQuote(2, 1, 1, ((101, 5),))
    audit = market.batch(1, 500, order("taker", 1, 101, 3, away=(stale,)))
    assert (audit.legs, *judged(audit)) == (1, 0, 0)


def test_a_leg_to_one_engine_looks_past_another() -> None:
    """A leg at 101 to engine 3 while engine 2 stands at 100, unknown, is an old view."""
    market = Market(1, 2, 3)
    market.batch(2, 0, order("better", 2, 100))
    market.batch(3, 0, order("worse", 2, 101))
    audit = market.batch(1, 500, order("taker", 1, 101, away=(AwayQuote(3, 1, 1, ((101, 5),)),)))
    assert judged(audit) == (1, 0)
    assert "engine 2" in audit.old_view_examples[0]


def test_what_comes_back_is_judged_when_it_is_planned_again(market: Market) -> None:
    """The fills of a leg are no decision; what was not filled and then trades at home is one."""
    quote = AwayQuote(2, 1, 1, ((99, 5),))
    audit = market.batch(1, 100, order("taker", 1, 101, away=(quote,)))
    market.batch(1, 500, LegResult((1 << 48) + 1, (), ()))
    assert (audit.decisions, *judged(audit)) == (2, 1, 0)


def test_uncrossing_is_with_higher_engines_only() -> None:
    """Engine 2 takes engine 3's quote and leaves a better one of engine 1: to uncross that is engine 1's."""
    market = Market(1, 2, 3)
    market.batch(2, 0, order("resting", 1, 105))
    market.batch(1, 0, order("lower", 2, 100))
    market.batch(3, 0, order("higher", 2, 102))
    audit = market.batch(2, 500, Uncross("AAPL", 1, (AwayQuote(3, 1, 1, ((102, 5),)),)))
    assert (audit.decisions, audit.legs, *judged(audit)) == (1, 1, 0, 0)


def test_a_quote_that_was_cut_hides_nothing_that_is_missed() -> None:
    """Beyond the last level that a cut quote has, an order waits: what stands there is not gone past."""
    market = Market(1, 2)
    market.batch(2, 0, *(order(f"level{price}", 2, price, 1) for price in (98, 99)))
    market.batch(1, 0, order("here", 2, 101))
    cut = AwayQuote(2, 1, 1, ((98, 1),), cut=True)
    audit = market.batch(1, 500, order("taker", 1, 101, away=(cut,)))
    assert (audit.decisions, audit.legs, *judged(audit)) == (1, 1, 0, 0)


def test_a_new_reign_shows_its_quotes_anew(market: Market) -> None:
    """Quotes of an engine that started again stand since then, because others forgot them."""
    market.batch(2, 400, EpochStarted(2))
    assert judged(market.batch(1, 500, order("taker", 1, 101, 1))) == (0, 0)
    audit = market.batch(1, 550, order("taker2", 1, 101, 1))
    assert judged(audit) == (1, 0)
    assert "the view was 150 ms old" in audit.old_view_examples[0]


def test_examples_are_few(market: Market) -> None:
    """All old views are counted, and five described."""
    market.batch(1, 10, order("more", 2, 101, 5))
    audit = market.batch(1, 500, *(order(f"taker{number}", 1, 101, 1) for number in range(10)))
    assert (judged(audit), len(audit.old_view_examples)) == ((10, 0), 5)


PEER_LEG = (1 << 48) + 1
TO_PEER = TakeLeg(PEER_LEG, 1, 1, (1 << 48) + 2, "AAPL", 1, 100, 3, PEER_LEG)
"""The first leg of engine 1 as it arrives at engine 2."""


@pytest.fixture
def leg_out(market: Market) -> Market:
    """Engine 1 has sent a leg for 3 of the 5 at 100, which it knew; then it knows what the test says."""
    market.batch(1, 500, order("first", 1, 100, 3, away=(AwayQuote(2, 1, 1, ((100, 3),)),)))
    return market


def asks_for(quantity: int, sequence: int) -> tuple[NewOrder, NewOrder]:
    """An order that names the state of engine 2's book with a quote, and one that goes past that at home."""
    quote = AwayQuote(2, 1, sequence, ((100, quantity),))
    return order("named", 1, 100, quantity, away=(quote,)), order("past", 1, 101, 1)


def test_a_leg_that_was_answered_is_not_subtracted_again(leg_out: Market) -> None:
    """Of 5, 3 are taken and 1 is asked for; the book that shows it was known, so to leave 1 is a bug."""
    leg_out.batch(2, 501, TO_PEER)
    audit = leg_out.batch(1, 502, *asks_for(1, 2))
    assert judged(audit) == (0, 1)
    (bug,) = audit.bugs
    assert bug == (
        "engine 1, batch 4, AAPL: went to 101 while engine 2 showed 2 better, from 100 on, and got 1, though"
        " it knew book 2 of that engine"
    )


def test_a_leg_that_was_not_answered_takes_what_is_there(leg_out: Market) -> None:
    """Of 5, 3 and 2 are asked for: nothing is left; but 1 is where only 1 more is asked for."""
    assert judged(leg_out.batch(1, 502, *asks_for(2, 1))) == (0, 0)
    other = Market(1, 2)
    other.batch(1, 0, order("here", 2, 101))
    other.batch(2, 0, order("there", 2, 100))
    other.batch(1, 500, order("first", 1, 100, 3, away=(AwayQuote(2, 1, 1, ((100, 3),)),)))
    assert judged(other.batch(1, 502, *asks_for(1, 1))) == (0, 1)


def test_what_the_view_cannot_say_yet_is_no_bug(leg_out: Market) -> None:
    """The leg was refused there, so all stands, but the answer is not here: an old view; then it is a bug."""
    leg_out.batch(2, 501, QueryLeg(PEER_LEG, 1))
    assert judged(leg_out.batch(1, 502, *asks_for(2, 1))) == (1, 0)
    audit = leg_out.batch(1, 510, LegResult(PEER_LEG, (), (AwayQuote(2, 1, 1, ((100, 3),)),)))
    assert judged(audit) == (1, 0)
    assert judged(leg_out.batch(1, 511, order("past2", 1, 101, 1))) == (1, 0)


def test_without_a_quote_in_the_batch_nothing_was_known(leg_out: Market) -> None:
    """The same order is an old view in a batch that names no state of the other book, or one before."""
    leg_out.batch(2, 501, TO_PEER)
    assert judged(leg_out.batch(1, 502, order("past", 1, 101, 1))) == (1, 0)
    assert judged(leg_out.batch(1, 503, *asks_for(2, 1))) == (1, 0)


def test_an_answer_is_waited_for_until_the_book_shows_it(leg_out: Market) -> None:
    """The result is here before the book that has lost 3: they are subtracted, and no longer once it is."""
    leg_out.batch(2, 501, TO_PEER)
    fills = (LegFill(1, 100, 3, (2 << 48) + 1, 501 * MS),)
    leg_out.batch(1, 502, LegResult(PEER_LEG, fills))
    assert judged(leg_out.batch(1, 503, *asks_for(2, 1))) == (0, 0)


def test_nothing_is_subtracted_for_what_a_restart_queries(leg_out: Market) -> None:
    """Of the 2 that are left at engine 2, as was known, 1 is asked for."""
    leg_out.batch(2, 501, TO_PEER)
    leg_out.batch(1, 505, EpochStarted(2))
    assert judged(leg_out.batch(1, 800, *asks_for(1, 2))) == (0, 1)


def test_nothing_is_subtracted_for_an_earlier_leg_that_is_under_way(leg_out: Market) -> None:
    """Of the 5 that engine 2 shows 2 are asked for, as if the leg of the reign before took the others."""
    leg_out.batch(1, 505, EpochStarted(2))
    assert judged(leg_out.batch(1, 800, *asks_for(2, 1))) == (0, 1)


def test_a_view_of_an_earlier_reign_knew_nothing(leg_out: Market) -> None:
    """Engine 2 started again: what was known of its reign before is not what it shows."""
    leg_out.batch(2, 501, TO_PEER)
    leg_out.batch(2, 502, EpochStarted(2))
    assert judged(leg_out.batch(1, 700, *asks_for(1, 2))) == (1, 0)


def test_what_came_back_from_a_leg_stands_since_then() -> None:
    """An offer that uncrossed, and kept its place meanwhile, did not stand while it was away."""
    market = Market(1, 2, 3)
    market.batch(1, 0, order("here", 2, 101))
    market.batch(2, 0, order("there", 2, 100))
    market.batch(2, 300, Uncross("AAPL", 2, (AwayQuote(3, 1, 1, ((100, 5),)),)))
    assert judged(market.batch(1, 301, order("taker1", 1, 101, 1))) == (0, 0)
    market.batch(2, 400, LegResult((2 << 48) + 1, ()), order("later", 2, 105))
    assert judged(market.batch(1, 549, order("taker2", 1, 101, 1))) == (0, 0)
    audit = market.batch(1, 550, order("taker3", 1, 101, 1))
    assert judged(audit) == (1, 0)
    assert "the view was 150 ms old" in audit.old_view_examples[0]
