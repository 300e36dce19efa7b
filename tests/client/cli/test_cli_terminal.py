"""What a person sees on a terminal that a pipe does not: live views, spinners, and Ctrl-C."""

from pathlib import Path

from tests.client.cli.screen import Screen
from tests.client.fake_venue import FakeVenue


async def test_a_watched_book_is_redrawn_until_ctrl_c(venue: FakeVenue, tmp_path: Path) -> None:
    """`book --watch` draws the book in place, and Ctrl-C ends it with 0 and no traceback."""
    screen = Screen(venue, tmp_path, "book", "AAPL", "--watch")
    try:
        await screen.until("AAPL on E1, sequence 9")
        await screen.until("101.25")
        venue.home.book_sequence = 10
        await screen.until("AAPL on E1, sequence 10")
        screen.interrupt()
        assert await screen.end() == 0
        assert "Traceback" not in screen.shown
    finally:
        screen.close()


async def test_waiting_shows_after_a_second_and_can_be_interrupted(venue: FakeVenue, tmp_path: Path) -> None:
    """What takes long says what it waits for; Ctrl-C ends it with 130."""
    await venue.stop_exchange()
    screen = Screen(venue, tmp_path, "orders", "--timeout", "60")
    try:
        await screen.until("registering alice at")
        screen.interrupt()
        assert await screen.end() == 130
        assert "Traceback" not in screen.shown
    finally:
        screen.close()


async def test_colours_are_for_terminals(venue: FakeVenue, tmp_path: Path) -> None:
    """On a terminal the sides of a book have colours."""
    screen = Screen(venue, tmp_path, "book", "AAPL")
    try:
        await screen.until("\x1b[32m101.25", colours=True)
        assert await screen.end() == 0
    finally:
        screen.close()
