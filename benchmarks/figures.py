"""What a measurement gave: medians of turns, beside the limit or the peer that took turns with it.

Here: the arithmetic, pure. Not here: measuring, and how figures are written down (`benchmarks/report.py`).
"""

import statistics
from collections.abc import Sequence

import msgspec

median = statistics.median


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the results. A figure without a value says in `note` why there is none."""

    part: str
    name: str
    unit: str
    value: float | None = None
    beside: str = ""
    """What was measured in turns with it."""
    beside_value: float | None = None
    ratio: float | None = None
    """Median over the turns of this one's value divided by the other's."""
    lower_is_better: bool = False
    turns: list[float] = []
    beside_turns: list[float] = []
    note: str = ""

    @property
    def key(self) -> str:
        """Names the figure over all runs."""
        beside = f" / {self.beside}" if self.beside else ""
        return f"{self.part}: {self.name}{beside} [{self.unit}]"


def paired(
    part: str,
    name: str,
    unit: str,
    turns: Sequence[float],
    beside: str,
    beside_turns: Sequence[float],
    *,
    lower_is_better: bool = False,
    note: str = "",
) -> Figure:
    """A figure whose n-th turn stood next to the n-th of the other."""
    return Figure(
        part=part,
        name=name,
        unit=unit,
        value=rounded(median(turns)),
        beside=beside,
        beside_value=rounded(median(beside_turns)),
        ratio=rounded(pair_ratio(turns, beside_turns)),
        lower_is_better=lower_is_better,
        turns=[rounded(turn) for turn in turns],
        beside_turns=[rounded(turn) for turn in beside_turns],
        note=note,
    )


def alone(
    part: str,
    name: str,
    unit: str,
    turns: Sequence[float],
    *,
    lower_is_better: bool = False,
    note: str = "",
) -> Figure:
    """A figure that stands for itself."""
    return Figure(
        part=part,
        name=name,
        unit=unit,
        value=rounded(median(turns)),
        lower_is_better=lower_is_better,
        turns=[rounded(turn) for turn in turns],
        note=note,
    )


def missing(part: str, name: str, unit: str, reason: str) -> Figure:
    """A figure that could not be taken."""
    return Figure(part=part, name=name, unit=unit, note=reason)


def pair_ratio(turns: Sequence[float], beside_turns: Sequence[float]) -> float:
    """The median of the pairs' ratios: a slow minute of the machine falls on both sides of a pair."""
    return median([one / other for one, other in zip(turns, beside_turns, strict=True)])


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest of the sorted values that at least `share` of them (0 to 1) do not exceed."""
    place = -(-len(ascending) * round(share * 10_000) // 10_000)
    return ascending[max(0, place - 1)]


def named(count: int, what: str) -> str:
    """`1 engine`, `1,000 engines`."""
    return f"{count:,} {what}" + ("s" if count != 1 else "")


def spread(values: Sequence[float]) -> float:
    """How far the value farthest from the median is from it, as a share of the median."""
    middle = median(values)
    return max(abs(value / middle - 1) for value in values)


def rounded(value: float) -> float:
    """Four significant digits: more would pretend."""
    return float(f"{value:.4g}") if abs(value) < 10_000 else float(round(value))
