"""The network that fails: bytes through a hole are late and whole, a cut is a reset, all of it heals."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import pytest_asyncio

from simulation.proxy import Condition, Proxy

LONG_S = 5.0


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy before a server that says everything it hears back, after a greeting."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Proxy() as made:
        made.upstream_port = server.sockets[0].getsockname()[1]
        yield made


class Caller:
    """One connection through a proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def call(cls, proxy: Proxy) -> "AsyncIterator[Caller]":
        """Connect, and hang up at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionResetError):
                await writer.wait_closed()

    async def line(self) -> bytes:
        """What comes next; empty when the connection is over."""
        async with asyncio.timeout(LONG_S):
            return await self.reader.readline()

    async def says_nothing(self) -> bool:
        """Whether nothing comes for a while, though the connection stands."""
        try:
            async with asyncio.timeout(0.2):
                await self.reader.readexactly(1)
        except TimeoutError:
            return True
        return False


async def test_bytes_go_both_ways(proxy: Proxy) -> None:
    """Unharmed."""
    async with Caller.call(proxy) as caller:
        caller.writer.write(b"a\nb\n")
        assert [await caller.line() for _ in range(3)] == [b"hello\n", b"a\n", b"b\n"]


@pytest.mark.parametrize("direction", ["to_server", "to_process"])
async def test_a_hole_holds_everything_back_and_loses_nothing(proxy: Proxy, direction: str) -> None:
    """In one direction too; once healed all of it arrives, in order."""
    async with Caller.call(proxy) as caller:
        assert await caller.line() == b"hello\n"
        hole = Condition(hole=True)
        proxy.degrade(
            to_server=hole if direction == "to_server" else Condition(),
            to_process=hole if direction == "to_process" else Condition(),
        )
        caller.writer.write(b"a\nb\n")
        assert await caller.says_nothing()
        proxy.heal()
        assert [await caller.line(), await caller.line()] == [b"a\n", b"b\n"]


async def test_a_new_connection_into_a_hole_gets_no_greeting(proxy: Proxy) -> None:
    """It stands, and is silent."""
    proxy.degrade(to_server=Condition(), to_process=Condition(hole=True))
    async with Caller.call(proxy) as caller:
        assert await caller.says_nothing()
        proxy.heal()
        assert await caller.line() == b"hello\n"


async def test_a_slow_link_is_slow(proxy: Proxy) -> None:
    """Every answer is late by the delay of both ways."""
    async with Caller.call(proxy) as caller:
        assert await caller.line() == b"hello\n"
        proxy.degrade(to_server=Condition(0.1), to_process=Condition(0.1))
        started = time.monotonic()
        caller.writer.write(b"a\n")
        assert await caller.line() == b"a\n"
        assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize("refuse", [False, True])
async def test_a_cut_resets_what_stands_and_may_refuse_what_comes(proxy: Proxy, *, refuse: bool) -> None:
    """A reset, not an end: the process must not take it for a good-bye."""
    async with Caller.call(proxy) as caller:
        assert await caller.line() == b"hello\n"
        proxy.cut(refuse=refuse)
        with pytest.raises(ConnectionResetError):
            await caller.line()
    if refuse:
        async with Caller.call(proxy) as caller:
            with pytest.raises(ConnectionResetError):
                await caller.line()
        proxy.heal()
    async with Caller.call(proxy) as caller:
        assert await caller.line() == b"hello\n"


async def test_a_reset_does_not_end_a_cut(proxy: Proxy) -> None:
    """What refuses new connections refuses them until healed, whatever strikes the link meanwhile."""
    proxy.cut(refuse=True)
    proxy.cut(refuse=False)
    async with Caller.call(proxy) as caller:
        with pytest.raises(ConnectionResetError):
            await caller.line()


async def test_a_server_that_is_gone_is_gone() -> None:
    """The process sees a reset where the server's port would refuse."""
    async with Proxy() as with_nobody:
        with_nobody.upstream_port = 1
        async with Caller.call(with_nobody) as caller:
            with pytest.raises(ConnectionResetError):
                await caller.line()
