import asyncio

import pytest

from engine.commands import CancelOrder, NewOrder, OrderCommand, ReplaceOrder
from engine.runtime.rates import Rates

ORDER = NewOrder("ann", "a", "AAPL", 1, 1, 1, 100, 1)
CANCEL = CancelOrder("ann", 1, "")
REPLACE = ReplaceOrder("ann", 1, "", 100, 1)


class Limited:
    """Rates of ten orders a second, and their clock."""

    def __init__(self, per_second: int = 10) -> None:
        self.now_s = 1_000.0
        self.rates = Rates(per_second, lambda: round(self.now_s * 1e9))

    def take(self, *commands: OrderCommand | None, client: str = "ann") -> float:
        """The wait, to the microsecond."""
        return round(self.rates.take(client, commands), 6)


def test_a_second_may_come_at_once_then_each_at_its_time() -> None:
    """A refused one costs nothing."""
    limited = Limited()
    assert [limited.take(ORDER) for _ in range(12)] == [0] * 10 + [0.1, 0.1]
    limited.now_s += 0.1
    assert [limited.take(ORDER), limited.take(ORDER)] == [0, 0.1]
    limited.now_s += 60
    assert [limited.take(ORDER) for _ in range(11)] == [0] * 10 + [0.1], "silence is not saved up for ever"


def test_replaces_count_and_cancels_do_not() -> None:
    """Risk can always be taken off; what is empty costs nothing either."""
    limited = Limited()
    assert limited.take(*(ORDER, REPLACE) * 5) == 0
    assert limited.take(REPLACE) == 0.1
    assert limited.take(CANCEL) == limited.take(CANCEL, None) == 0
    assert limited.take(CANCEL, ORDER) == 0.1


def test_each_client_has_its_own_limit() -> None:
    """What one sends keeps no other waiting."""
    limited = Limited()
    assert limited.take(*[ORDER] * 10) == 0
    assert limited.take(ORDER, client="bob") == 0
    assert limited.take(ORDER) == 0.1


def test_more_than_a_second_allows_comes_in_parts() -> None:
    """Each of a second's worth, in order; cancels count for nothing in them."""
    limited = Limited()
    sent: list[OrderCommand] = [ORDER, CANCEL] * 25
    parts = [list(part) for part in limited.rates.parts(sent)]
    assert [command for part in parts for command in part] == sent
    assert [part.count(ORDER) for part in parts] == [10, 10, 5]
    assert limited.take(*parts[0]) == 0
    assert limited.take(*parts[1]) == 1
    limited.now_s += 1
    assert limited.take(*parts[1]) == 0
    assert limited.take(*parts[2]) == 0.5


def test_without_a_limit_nothing_waits() -> None:
    """And nothing is counted."""
    limited = Limited(0)
    sent = [ORDER] * 10_000
    assert list(limited.rates.parts(sent)) == [sent]
    assert limited.take(*sent) == 0


async def test_a_stream_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on by itself, as fast as it may."""
    limited = Limited()
    slept: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept.append(round(delay_s, 6))
        limited.now_s += delay_s + 1e-9

    monkeypatch.setattr(asyncio, "sleep", sleep)
    for _ in range(3):
        await limited.rates.pace("ann", [ORDER] * 10)
    assert slept == [1.0, 1.0]
