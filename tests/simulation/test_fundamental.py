"""What a symbol is worth over time."""

from statistics import fmean, pstdev

import pytest

from simulation.fundamental import LOWEST, Fundamental, FundamentalSettings, Jump


def test_value_depends_on_seed_symbol_and_time_alone() -> None:
    """Whoever asks first, and in whatever order, hears the same; other seeds and symbols differ."""
    settings = FundamentalSettings(volatility=5)
    one, two = Fundamental(settings, 1), Fundamental(settings, 1)
    late_first = two.value("AAPL", 9.0)
    assert [one.value("AAPL", at_s) for at_s in (0.0, 4.5, 9.0)] == [
        *(two.value("AAPL", at_s) for at_s in (0.0, 4.5)),
        late_first,
    ]
    assert one.value("AAPL", 9.0) != one.value("MSFT", 9.0)
    assert one.value("AAPL", 9.0) != Fundamental(settings, 2).value("AAPL", 9.0)


def test_drift_and_news() -> None:
    """Without volatility the value is start, drift and the jumps so far, those of other symbols left out."""
    jumps = (Jump(at_s=2, ticks=50, symbol="AAPL"), Jump(at_s=3, ticks=-20))
    value = Fundamental(FundamentalSettings(start=1_000, drift=10, jumps=jumps), 1).value
    assert [value("AAPL", at_s) for at_s in (0, 1.9, 2, 3)] == [1_000, 1_019, 1_070, 1_060]
    assert value("MSFT", 3) == 1_010


def test_volatility_is_by_the_square_root_of_a_second() -> None:
    """The moves over four seconds have twice the standard deviation that `volatility` says."""
    settings = FundamentalSettings(start=1_000_000, volatility=3)
    moves = [Fundamental(settings, seed).value("AAPL", 4.0) - 1_000_000 for seed in range(1_000)]
    assert pstdev(moves) == pytest.approx(6, rel=0.1)
    assert fmean(moves) == pytest.approx(0, abs=0.6)


def test_nothing_is_worth_less_than_a_tick() -> None:
    """A crash ends at the lowest price there is."""
    assert Fundamental(FundamentalSettings(start=10, drift=-5), 1).value("AAPL", 60) == LOWEST
