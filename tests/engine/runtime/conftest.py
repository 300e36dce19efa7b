"""Numbers for two engines, and an engine whose surroundings are in the test's hands."""

import pytest

from engine.runtime import commit_loop
from tests.engine.runtime.rig import Rig


@pytest.fixture
def other(engine: int) -> int:
    """A second engine number, higher than the first."""
    return engine + 20_000


@pytest.fixture
async def rig() -> Rig:
    """An engine in its first reign that trades AAPL."""
    made = Rig()
    await made.start()
    return made


@pytest.fixture
def small_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that hold four commands."""
    monkeypatch.setattr(commit_loop, "MAX_RECORD_BYTES", 5 * commit_loop._COMMAND_BYTES)
