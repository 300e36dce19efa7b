"""Medians, ratios of pairs, percentiles: what every figure of the suite rests on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import alone, missing, pair_ratio, paired, percentile, rounded, spread


def test_the_ratio_is_that_of_pairs_not_of_medians() -> None:
    """A minute in which the machine is slow hits both of a pair and leaves the ratio as it is."""
    assert pair_ratio([100, 10, 100], [200, 20, 200]) == 0.5
    assert pair_ratio([100, 10, 1], [1, 10, 100]) == 1


def test_turns_without_their_other_half_are_no_pairs() -> None:
    """A missing turn is noticed."""
    with pytest.raises(ValueError, match="zip"):
        pair_ratio([1, 2], [1])


def test_a_paired_figure_keeps_all_its_turns() -> None:
    """Medians, ratio and turns are all there."""
    figure = paired("Core", "book", "operations/s", [10, 30, 20], "least", [40, 40, 50])
    assert (figure.value, figure.beside_value, figure.ratio) == (20, 40, 0.4)
    assert (figure.turns, figure.beside_turns) == ([10, 30, 20], [40, 40, 50])


def test_keys_tell_figures_apart() -> None:
    """Two peers beside the same figure have two keys, and so have two units."""
    figures = [
        paired("Core", "book", "operations/s", [1], "one", [1]),
        paired("Core", "book", "operations/s", [1], "other", [1]),
        paired("Core", "book", "ns", [1], "one", [1]),
        alone("Core", "book", "ns", [1]),
    ]
    assert len({figure.key for figure in figures}) == len(figures)


def test_a_missing_figure_has_a_reason_and_no_value() -> None:
    """What could not be measured is said, not left out."""
    figure = missing("Core", "book", "ns", "cannot be installed")
    assert figure.value is None
    assert figure.note == "cannot be installed"


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 500), (0.99, 990), (0.999, 999), (0.9999, 1000), (1.0, 1000)]
)
def test_percentiles_of_a_thousand(share: float, expected: int) -> None:
    """The percentile is the smallest value that the share does not exceed."""
    assert percentile(range(1, 1001), share) == expected


@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values(values: list[float], share: float) -> None:
    """Nothing is made up in between, however few values there are."""
    assert percentile(sorted(values), share) in values


def test_the_spread_is_the_farthest_from_the_median() -> None:
    """On either side."""
    assert spread([1.0, 1.0, 1.1]) == pytest.approx(0.1)
    assert spread([0.8, 1.0, 1.1]) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("value", "kept"), [(0.123456, 0.1235), (1234.56, 1235.0), (123_456.7, 123_457.0), (0.0, 0.0)]
)
def test_four_digits_are_kept(value: float, kept: float) -> None:
    """Whole numbers stay whole."""
    assert rounded(value) == kept
