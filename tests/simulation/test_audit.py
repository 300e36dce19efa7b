from engine.commands import AddInstrument, AwayQuote, EpochStarted, NewOrder
from engine.events import LegSent
from simulation.audit import Audit, traded_through

QUOTES = (AwayQuote(2, 1, 1, ((100, 5), (101, 5))), AwayQuote(3, 1, 1, ((100, 2),)))


def leg(peer: int, limit: int, quantity: int) -> LegSent:
    """A leg of one buy order."""
    return LegSent(1, peer, 1, 1, "AAPL", 1, limit, quantity, 0)


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

    def new(client: str, side: int, price: int, away: tuple[AwayQuote, ...] = ()) -> NewOrder:
        return NewOrder(client, f"{client}-1", "AAPL", side, 1, 1, price, 5, away=away)

    audit = Audit(1)
    audit.add_batch(1, 1, [EpochStarted(1), AddInstrument("AAPL", "0.01", "1"), new("maker", 2, 101)])
    audit.add_batch(2, 2, [new("taker", 1, 101, (AwayQuote(2, 1, 1, ((100, 3),)),))])
    assert (audit.decisions, audit.with_away_quotes, audit.legs, audit.violations) == (1, 1, 1, [])
