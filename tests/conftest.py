"""Fixtures for tests that need a real nats-server; a test that needs no broker takes the memory journal."""

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import hypothesis
import pytest
import pytest_asyncio

from bus.connection import Connection, connect
from bus.server import NatsServer

hypothesis.settings.register_profile("matchbus", deadline=None)  # a busy machine stalls for longer than any
hypothesis.settings.load_profile("matchbus")

_engines = itertools.count(1)


class Connections:
    """Opens connections to one server, closes them all, and remembers every error they reported."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.closed_for_good = False
        self._stack = AsyncExitStack()

    async def open(self, url: str, *, buffered: bool = True) -> Connection:
        """A new connection."""
        connection = await connect(
            url,
            name="test",
            on_closed=self._note_closed,
            on_error=self.errors.append,
            buffered=buffered,
        )
        self._stack.push_async_callback(connection.close)
        return connection

    async def close(self) -> None:
        """Close every connection."""
        await self._stack.aclose()

    def _note_closed(self) -> None:
        self.closed_for_good = True


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    """One nats-server for all tests that neither stop it nor look at the streams of others."""
    async with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest_asyncio.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A nats-server that the test may kill and restart."""
    async with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def engine() -> int:
    """An engine number that no other test uses, so that tests can share a server."""
    return next(_engines)


@pytest_asyncio.fixture
async def connections() -> AsyncIterator[Connections]:
    """Opens connections whose errors are the test's business."""
    opened = Connections()
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def nats_connection(shared_server: NatsServer) -> AsyncIterator[Connection]:
    """A connection to the shared server that fails the test on any error nats-py reports."""
    opened = Connections()
    yield await opened.open(shared_server.url, buffered=False)
    await opened.close()
    assert opened.errors == []
    assert not opened.closed_for_good


@pytest_asyncio.fixture
async def own_connection(own_server: NatsServer, connections: Connections) -> Connection:
    """A connection to the test's own server."""
    return await connections.open(own_server.url, buffered=False)
