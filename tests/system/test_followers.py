"""Commands that go on through an outage."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.terminal import Running, Terminal
from tests.system.venue import Venue
from tests.waiting import frozen


@pytest.fixture
def terminal(own_venue: Callable[..., Venue], tmp_path: Path) -> Iterator[Terminal]:
    """A venue of our own, and ann, who trades there."""
    made = Terminal(tmp_path / "config", own_venue(engines=1, symbols=("AAA",)))
    made.register("ann")
    yield made
    made.end()


def trade(terminal: Terminal, price: str) -> None:
    """Ann buys from herself: two fills, and a buy order stays."""
    terminal.text("submit", "buy", "2", "AAA", price)
    terminal.text("submit", "sell", "1", "AAA", price)


def told_away(running: Running) -> bool:
    """Whether the next thing that it says on stderr is that it tries again."""
    assert running.process.stderr is not None
    return b"it is tried again" in running.process.stderr.readline()


async def test_what_goes_on_outlasts_an_outage(terminal: Terminal) -> None:
    """For much longer than --timeout nobody answers: it is said once, and then what was missed comes."""
    trade(terminal, "100.00")
    patience = ("--json", "--timeout", "1")
    fills = terminal.start("fills", "-f", *patience)
    book = terminal.start("book", "AAA", "--watch", *patience)
    everywhere = terminal.start("book", "AAA", "--watch", "--consolidated", *patience)
    engines = terminal.start("engines", "--watch", *patience)
    feed = terminal.start("feed", "AAA", *patience)
    watching = (book, everywhere, engines, feed)
    fills.until(2)
    for running in watching:
        running.until(1)
    async with frozen(terminal.venue.engine_pid(1)), frozen(terminal.venue.exchange_pid):
        assert all(told_away(running) for running in (fills, *watching))
    trade(terminal, "101.00")
    fills.until(4)
    for running in (book, everywhere):
        shown = 1
        while '"101.00"' not in running.until(shown)[-1]:
            shown += 1
    for running in (fills, *watching):
        assert running.process.poll() is None
