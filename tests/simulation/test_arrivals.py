"""When agents step: mean rates, and how steps bunch."""

import random
from collections import Counter
from itertools import accumulate
from statistics import fmean, pvariance

import pytest

from simulation.agents.arrivals import (
    Arrival,
    ArrivalSettings,
    HawkesSettings,
    PoissonSettings,
    SteadySettings,
    arrival_of,
)

WINDOW_S = 10.0


def times(arrival: Arrival, count: int) -> list[float]:
    """The first so many arrivals."""
    return list(accumulate(arrival.wait_s() for _ in range(count)))


def dispersion(arrived: list[float]) -> float:
    """Variance by mean of the counts in windows: 0 for a clock, 1 for independent arrivals."""
    counts = Counter(int(at // WINDOW_S) for at in arrived)
    windows = [counts[index] for index in range(int(arrived[-1] // WINDOW_S))]
    return pvariance(windows) / fmean(windows)


@pytest.mark.parametrize(
    "settings",
    [
        SteadySettings(rate=8),
        PoissonSettings(rate=8),
        HawkesSettings(rate=8, branching=0, memory_s=0.5),
        HawkesSettings(rate=8, branching=0.5, memory_s=0.5),
        HawkesSettings(rate=8, branching=0.8, memory_s=0.2),
    ],
)
def test_stationary_rate(settings: ArrivalSettings) -> None:
    """Whatever the kind, over a long time there are `rate` steps a second, excited ones included."""
    arrived = times(arrival_of(settings, random.Random(1)), 40_000)
    assert len(arrived) / arrived[-1] == pytest.approx(settings.rate, rel=0.04)


@pytest.mark.parametrize("branching", [0.0, 0.3, 0.6])
def test_hawkes_steps_bunch_as_the_theory_says(branching: float) -> None:
    """In windows far longer than the memory, variance by mean nears 1 / (1 - branching) squared."""
    settings = HawkesSettings(rate=8, branching=branching, memory_s=0.1)
    arrived = times(arrival_of(settings, random.Random(2)), 60_000)
    assert dispersion(arrived) == pytest.approx(1 / (1 - branching) ** 2, rel=0.15)


def test_steady_steps_do_not_bunch() -> None:
    """A clock ticks evenly."""
    assert set(times(arrival_of(SteadySettings(rate=4), random.Random(1)), 8)) == {
        *(step / 4 for step in range(1, 9))
    }


def test_same_seed_gives_the_same_arrivals() -> None:
    """Arrivals are a matter of settings and seed alone."""

    def drawn(seed: int) -> list[float]:
        return times(arrival_of(HawkesSettings(), random.Random(seed)), 100)

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
