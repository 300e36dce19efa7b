"""Load at a fixed rate."""

import pytest

from benchmarks.open_loop import at_rate


async def test_all_are_sent_and_answered() -> None:
    """Each is sent once, in order, and has a time."""
    sent: list[int] = []

    async def send(item: int) -> None:
        sent.append(item)

    outcome = await at_rate(send, range(50), 5_000)
    assert sent == list(range(50))
    assert (outcome.answered.get_total_count(), outcome.failed) == (50, 0)


async def test_what_no_server_said_is_raised() -> None:
    """A call that fails by itself, also one that ended long before the last, is no measurement."""

    async def send(item: int) -> None:
        assert item != 3, "refused"

    with pytest.raises(AssertionError, match="refused"):
        await at_rate(send, range(50), 5_000)
