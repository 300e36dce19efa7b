"""A replaced writer that goes on writing stores nothing behind its successor's first record."""

from pathlib import Path

import pytest

from tests.system.fencing import campaign, leaked
from tests.system.venue import scaled, show

TAKEOVERS = scaled(40, 1000)


async def test_a_zombie_stores_nothing_behind_its_successor(tmp_path: Path) -> None:
    """In every take-over the zombie hears of it, and no record of its stands behind the claim."""
    result = await campaign(tmp_path, takeovers=TAKEOVERS, seed=1, fenced=True)
    show(str(result))
    assert (result.takeovers, result.leaks) == (TAKEOVERS, 0)
    assert result.told == TAKEOVERS
    assert result.zombie_records >= TAKEOVERS


async def test_without_the_fence_it_would(tmp_path: Path) -> None:
    """The same zombie without the expected sequence gets records in, so the check above is alive."""
    result = await campaign(tmp_path, takeovers=10, seed=1, fenced=False)
    show(str(result))
    assert (result.takeovers, result.leaky_takeovers, result.told) == (10, 10, 0)
    assert result.leaks >= 10


@pytest.mark.parametrize(
    ("epochs", "leaks"),
    [([], []), ([1, 1, 2, 2, 5], []), ([1, 2, 1, 3, 2, 1, 3], [1, 2, 1])],
)
def test_a_leak_is_a_record_behind_a_higher_epoch(epochs: list[int], leaks: list[int]) -> None:
    """Only what stands behind a higher epoch counts."""
    assert leaked(epochs) == leaks
