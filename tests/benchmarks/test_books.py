"""Whether two books made the same trades, and the flow that they are given."""

import json
from typing import Any

import pytest

from benchmarks.book_worker import CANCEL, LIMIT, MARKET, compare
from benchmarks.book_worker import Book as BookAdapter
from benchmarks.book_worker import Engine as EngineAdapter
from benchmarks.book_worker import Least as LeastAdapter
from benchmarks.books import difference, flow_file, resting_after

TRADES = [[4, 1, 100, 5], [4, 2, 100, 1], [7, 2, 100, 2]]


def made(trades: list[list[int]] | None, done: int = 10, live: list[int] | None = None) -> dict[str, Any]:
    """What a worker answers."""
    return {"done": done, "trades": trades, "live": live}


def test_equal_trades_are_equal() -> None:
    """The order of the takers does not matter: some books tell their trades symbol by symbol."""
    assert difference(made(TRADES), made(TRADES)) == ""
    assert difference(made(TRADES), made([TRADES[2], TRADES[0], TRADES[1]])) == ""


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ([[4, 2, 100, 1], [4, 1, 100, 5], [7, 2, 100, 2]], "the 1. is order 4 with 2, 1 at 100"),
        ([[4, 1, 100, 5], [4, 2, 100, 1]], "2 instead of 3"),
        ([[4, 1, 100, 5], [4, 2, 101, 1], [7, 2, 100, 2]], "the 2. is order 4 with 2, 1 at 101"),
        ([*TRADES, [9, 3, 90, 1]], "4 instead of 3"),
        ([], "0 instead of 3"),
    ],
)
def test_other_trades_are_told(theirs: list[list[int]], reason: str) -> None:
    """Another maker, price, quantity, or number of trades: the first difference is named."""
    assert reason in difference(made(TRADES), made(theirs))


def test_a_slow_book_is_compared_as_far_as_it_came() -> None:
    """It makes the same trades until its time is up; what it did not come to is no difference."""
    assert difference(made(TRADES), made(TRADES[:2], done=5)) == ""
    assert "too slow" in difference(made(TRADES), made([], done=0))


def test_a_book_without_trades_is_compared_by_what_rests() -> None:
    """There is nothing else to compare."""
    ours = made(TRADES, live=[2, 3])
    assert difference(ours, made(None, live=[2, 3])) == ""
    assert "other orders rest" in difference(ours, made(None, live=[3]))


def test_what_rests_follows_from_trades_and_cancels() -> None:
    """Orders that traded in full or were cancelled are gone; market orders never rest."""
    flow = {
        "opening": [(LIMIT, 1, 0, 1, 100, 5), (LIMIT, 2, 0, 1, 100, 5), (LIMIT, 3, 0, 1, 99, 5)],
        "operations": [(MARKET, 4, 0, 2, 0, 6), (CANCEL, 3, 0, 1, 99, 5), (LIMIT, 5, 0, 1, 98, 1)],
    }
    trades = [(4, 1, 100, 5), (4, 2, 100, 1)]
    assert resting_after(flow, trades, 3) == [2, 5]
    assert resting_after(flow, trades, 1) == [2, 3]


@pytest.mark.parametrize("symbols", [1, 5])
def test_our_layers_make_the_same_trades(symbols: int) -> None:
    """The flow trades, and all three layers agree on every trade."""
    with flow_file(symbols, 500) as file:
        flow = json.loads(file.read_text())
    assert flow["symbols"] == symbols
    assert len(flow["operations"]) == 500
    engine, *others = (compare(adapter, flow, 60.0) for adapter in (EngineAdapter, BookAdapter, LeastAdapter))
    assert engine["trades"]
    for other in others:
        assert difference(engine, other) == ""
