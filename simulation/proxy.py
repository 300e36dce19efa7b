"""A TCP proxy between a process and nats-server: it gives one machine a network that can fail.

Here: carrying bytes of one process, and every way in which that can fail. Not here: when it fails
(`simulation/faults.py`). What fails is what TCP would show: bytes on their way through a hole are late, never
missing in the middle; a connection through a hole stays open and silent, a new one gets no greeting.
"""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Final, Self

CHUNK_BYTES: Final = 65_536
_HOST: Final = "127.0.0.1"
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of 0 s: closing sends a reset."""


@dataclass(slots=True)
class Condition:
    """How one direction of a link is: `delay_s` for each chunk, or a `hole` in which everything waits."""

    delay_s: float = 0.0
    hole: bool = False


class Proxy:
    """One process's way to nats-server; `async with Proxy() as proxy` listens at `proxy.url`.

    `upstream_port` is where nats-server listens; it may be told after the start, before anyone connects.
    """

    def __init__(self) -> None:
        self.port = 0
        self.upstream_port = 0
        self.to_server = Condition()
        self.to_process = Condition()
        self.refusing = False
        """New connections are reset at once."""
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """Where the process connects instead of to nats-server."""
        return f"nats://{_HOST}:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, _HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    def heal(self) -> None:
        """Everything flows again; what waited in a hole arrives now."""
        self.to_server = Condition()
        self.to_process = Condition()
        self.refusing = False
        self._tell()

    def degrade(self, *, to_server: Condition, to_process: Condition) -> None:
        """Set how the two directions are from now on."""
        self.to_server = to_server
        self.to_process = to_process
        self._tell()

    def cut(self, *, refuse: bool) -> None:
        """Reset every connection; with `refuse` also each new one, until healed."""
        self.refusing |= refuse
        for writer in list(self._open):
            _reset(writer)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        try:
            await self._connect(reader, writer)
        except asyncio.CancelledError:
            pass  # only `__aexit__` cancels; asyncio would log this end as a failure
        finally:
            self._carrying.discard(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            _reset(writer)
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(_HOST, self.upstream_port)
        except OSError:
            _reset(writer)  # as the server's own port would
            return
        ends = (writer, up_writer)
        self._open.update(ends)
        try:
            # Either end gone is the whole connection gone, as without us.
            flows = [
                asyncio.create_task(self._flow(reader, up_writer, to_server=True)),
                asyncio.create_task(self._flow(up_reader, writer, to_server=False)),
            ]
            try:
                await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for flow in flows:
                    flow.cancel()
                await asyncio.gather(*flows, return_exceptions=True)
        finally:
            self._open.difference_update(ends)
            for end in ends:
                end.close()
            for end in ends:
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _flow(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await self._pass(to_server=to_server)
                writer.write(chunk)
                await writer.drain()
            # The end of a connection is news too, and no news passes a hole.
            await self._pass(to_server=to_server)

    async def _pass(self, *, to_server: bool) -> None:
        """Return when what is on its way may arrive."""
        delay_s = (self.to_server if to_server else self.to_process).delay_s
        if delay_s:
            await asyncio.sleep(delay_s)
        while (self.to_server if to_server else self.to_process).hole:
            await self._changed.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
