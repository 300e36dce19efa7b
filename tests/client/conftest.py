"""A fresh venue for each test."""

from collections.abc import AsyncIterator

import pytest

from tests.client.fake_venue import FakeVenue


@pytest.fixture
async def venue() -> AsyncIterator[FakeVenue]:
    """An exchange and two engines that end with the test."""
    async with FakeVenue() as venue:
        yield venue
