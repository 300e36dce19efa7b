"""Two live engines for an exchange to follow."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from bus import provision
from bus.server import NatsServer
from tests.exchange.runtime.nodes import FakeEngine

if TYPE_CHECKING:
    from tests.conftest import Connections


@pytest.fixture
async def two_engines(own_server: NatsServer, connections: "Connections") -> AsyncIterator[list[FakeEngine]]:
    """Engines 1 and 2, live, with entries; E1 shows 5@99 7@101, E2 shows 5@98 7@101."""
    nc = await connections.open(own_server.url)
    await provision.provision_shared(nc)
    engines = [FakeEngine(nc, 1), FakeEngine(nc, 2, bid=98)]
    for engine in engines:
        await engine.enter()
        await engine.start()
    yield engines
    for engine in engines:
        await engine.stop()
