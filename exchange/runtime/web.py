"""Serves HTTP inside a process that has an event loop and signals of its own. Needs the extra `dashboard`."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
from matchbus.edge import CannotListen, host_and_port_of
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

_BACKLOG: Final = 64
MAX_CONNECTIONS: Final = 256
"""With more than these open a request is answered with 503 and its connection closed."""

_GRACE_S: Final = 1
FIRST_REQUEST_S: Final = 10.0
"""How long a connection may be open before its first request has come; uvicorn itself waits for ever."""

SILENCE_S: Final = 5
"""How long after an answer a connection may be without another whole request, or leave answers unread."""

_LAST_LOOK_S: Final = 0.1
"""Where the event loop was held up, a request may lie unread when such a time is over."""


class _Protocol(H11Protocol):
    """Closes a connection that asks for nothing."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.loop.call_later(FIRST_REQUEST_S, self.loop.call_later, _LAST_LOOK_S, self._close_if_silent)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(_LAST_LOOK_S, super().timeout_keep_alive_handler)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        # uvicorn's own lets the first byte of a request end the wait for it, which only a whole one may.
        self.conn.receive_data(data)
        self.handle_events()


class _Server(uvicorn.Server):
    """A server that leaves signals to the process it is in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(app: ASGIApp, listen: str, listening: Callable[[str], None]) -> None:
    """Serve `app` at HOST:PORT until cancelled; `listening` is told the address, with the port taken.

    Raises CannotListen.
    """
    host, port = host_and_port_of(listen)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        # Connections of a process that just ended may linger on its port; only a listener is in the way.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux; connections have it from their listener
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_S * 1000)
        try:
            taken.bind((host, port))
            taken.listen(_BACKLOG)
        except (OSError, OverflowError) as error:
            raise CannotListen(f"cannot listen on {listen}: {error}") from error
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                http=_Protocol,
                ws="none",
                limit_concurrency=MAX_CONNECTIONS + 1,  # uvicorn counts the one that asks
                timeout_keep_alive=SILENCE_S,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[taken]))
        listening(f"{listen.rpartition(':')[0]}:{taken.getsockname()[1]}")
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = True
            await serving
