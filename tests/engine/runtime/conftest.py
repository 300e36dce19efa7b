"""Numbers for two engines."""

import pytest


@pytest.fixture
def other(engine: int) -> int:
    """A second engine number, higher than the first."""
    return engine + 20_000
