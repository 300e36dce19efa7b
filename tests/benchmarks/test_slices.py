"""Counting bytecodes, and programs that take turns."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from benchmarks.slices import bytecodes, counts, deltas, in_turns, times, way


def loop(times_: int) -> int:
    """Work that grows with its argument, some of it in another function."""
    return sum(step(number) for number in range(times_))


def step(number: int) -> int:
    """A little work."""
    return number * 2 + 1


def test_bytecodes_are_counted_through_calls() -> None:
    """The count grows with the work, the same for each further step, and is the same each time."""
    ten, twenty, thirty = (bytecodes(partial(loop, size)) for size in (10, 20, 30))
    assert twenty - ten == thirty - twenty > 10 * 5
    assert bytecodes(partial(loop, 10)) == ten


def test_bytecodes_of_a_first_call_are_counted() -> None:
    """Also those of functions that were never counted before."""
    made: dict[str, Callable[[int], int]] = {}
    exec("def inner(n): return n * 2 + 1\ndef outer(n): return inner(n) + inner(n + 1)", made)
    first, second = (bytecodes(partial(made["outer"], 1)) for _ in range(2))
    assert first == second


def test_slices_take_turns() -> None:
    """Each program does one slice before any does its next."""
    order = []

    def program(name: str) -> Iterator[float]:
        for seconds in (1.0, 2.0):
            order.append(name)
            yield seconds

    taken = in_turns({name: program(name) for name in ("one", "other")})
    assert order == ["one", "other", "one", "other"]
    assert taken == {"one": [1.0, 2.0], "other": [1.0, 2.0]}


def test_programs_of_different_length_are_no_pair() -> None:
    """A slice without its neighbour would be compared with nothing."""
    with pytest.raises(ValueError, match="zip"):
        in_turns({"one": iter([1.0]), "other": iter([1.0, 2.0])})


def test_counts_do_not_change_from_run_to_run() -> None:
    """The whole point of counting; what Python itself does only once may count in the first run."""
    first, second = ([figure.value for figure in counts(100)] for _ in range(2))
    assert first == pytest.approx(second, rel=0.001)
    assert all(first)


def test_every_measurement_gives_ratios() -> None:
    """Book and engine beside the least, a delta beside JSON, an order's way beside the echo."""
    for figures in (times(1_000), deltas(1_000), way(1_000)):
        assert figures
        assert all(figure.ratio is not None and figure.ratio > 0 for figure in figures)
