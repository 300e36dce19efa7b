"""How a process of the venue starts, logs and ends: the same for exchange and engines.

A fault that nobody inside can act on ends the process with one line that says what to do (crash-only: it
starts again from what is stored). A bug shows where it happened.
"""

import argparse
import asyncio
import faulthandler
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, TypeVar

import nats.errors
import uvloop

from bus.addresses import check_nats, host_and_port, number, shown
from bus.connection import Connection, LastError, Patience, connect, has_jetstream, heed_cancellation
from bus.logs import LogForm, LogLevel, StderrHandler, formatter

START_DEADLINE_S: Final = 10.0
"""How long a start waits for a NATS server."""

END_DEADLINE_S: Final = 3.0
"""How long a process may take to end once a part of it has failed, or it was told to."""

_STILL_S: Final = 1.0
"""How much later one that stands still, and so cannot say which part does not end, shows where it is."""

_ASK_S: Final = 2.0
_MAX_SILENT: Final = 6
"""JetStream may be silent so often in a row: for 10 s at least, and an election takes 4 to 9."""

_CLOSED: Final = "is closed for good; nothing is lost, start again"

CLOSE_DEADLINE_S: Final = 0.5
"""How long an end waits for the connections to close."""

_log: Final = logging.getLogger(__name__)

T = TypeVar("T")

_is_ours: Final = ContextVar("_is_ours", default=False)
"""Whether the process is one that `run_until_signal` runs, which may be ended; that of a test may not."""

_CHATTY: Final = ("asyncio", "grpc", "nats", "urllib3")
"""Third-party loggers; what they say at DEBUG is never about an order."""


class ProcessFault(Exception):
    """The process cannot go on; the text says why and what to do."""


class Parts(asyncio.TaskGroup):
    """The tasks that make up a process: once one has failed, the others have END_DEADLINE_S to end."""

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """As in every group."""
        task = super().create_task(coro, name=name, context=context)
        task.add_done_callback(_limit_end_after_fault)
        return task

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            _limit_end()
        await super().__aexit__(kind, error, trace)


class NatsLink:
    """One process's connections to NATS: `closed` is set when one of them ended for good.

    With several servers, one that is cut off from the others stores nothing, though we reach it: all
    connections leave it for the first where JetStream answers. When it answers nowhere they stay, because all
    processes of the market must be on the same server.

    `on_reconnected` and `on_error` may be set at any time, and mean what they mean to `connect`. No
    reconnect of a connection that does not buffer is told: no feed is followed over it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.closed = asyncio.Event()
        self.on_reconnected: Callable[[], None] = lambda: None
        self.on_error: Callable[[Exception], object] = lambda _: False
        self._last_error = LastError()
        self._connections: list[Connection] = []
        self._servers = url.split(",")
        self._silent = 0

    @property
    def connections(self) -> Sequence[Connection]:
        """All that were opened."""
        return self._connections

    async def open(self, name: str, *, buffered: bool = True) -> Connection:
        """Connect, or say within START_DEADLINE_S that no server is there. Raises ProcessFault.

        With several servers it then waits for one where JetStream answers, though not for long.
        """
        try:
            async with Patience(START_DEADLINE_S):
                connection = await connect(
                    self.url,
                    name=name,
                    on_closed=self.closed.set,
                    on_reconnected=self._note_reconnect if buffered else None,
                    on_error=self._note_error,
                    buffered=buffered,
                )
        except TimeoutError as error:
            why = self._last_error.text or "no word from it"
            raise ProcessFault(
                f"no NATS server answers at {shown(self.url)} ({why}): start one "
                "(nats-server -c nats.conf) or name another by --nats"
            ) from error
        except nats.errors.Error as error:
            raise ProcessFault(
                f"cannot connect to {shown(self.url)!r}: {error}; name another by --nats"
            ) from error
        self._connections.append(connection)
        await self._ask()
        while self._silent:
            await asyncio.sleep(_ASK_S)
            await self._ask()
        return connection

    async def close(self) -> None:
        """Close every connection; what does not close within CLOSE_DEADLINE_S is let go."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await asyncio.gather(*(connection.close() for connection in self._connections))

    async def end_when_closed(self) -> None:
        """Raise ProcessFault when a connection is lost for good; meanwhile leave servers that are cut off."""
        while not self.closed.is_set():
            await heed_cancellation(self._ask())
            with suppress(TimeoutError):
                async with asyncio.timeout(_ASK_S):
                    await self.closed.wait()
        raise ProcessFault(f"the connection to {shown(self.url)} {_CLOSED}")

    async def _ask(self) -> None:
        """Ask whether JetStream answers where we are; after enough silence go where it does."""
        here = [one for one in self._servers if any(nc.is_on(one) for nc in self._connections)]
        if len(self._servers) == 1 or all([await has_jetstream(server) for server in here]):
            self._silent = 0
            return
        self._silent += 1
        if self._silent < _MAX_SILENT:
            return
        self._silent = 0
        for server in self._servers:
            if await has_jetstream(server):
                for connection in self._connections:
                    if not connection.is_on(server):
                        name = connection.options["name"]
                        _log.warning("%s: JetStream is silent, going to %s", name, shown(server))
                        await connection.move_to(server)
                return

    def _note_reconnect(self) -> None:
        self.on_reconnected()  # looked up late: it may be set after the connection was opened

    def _note_error(self, error: Exception) -> object:
        self._last_error.note(error)
        return self.on_error(error)


def default_listen(environment: Mapping[str, str], port: int) -> str:
    """Where to listen unless told otherwise: at IP_ADDR of the environment, or on loopback."""
    return host_and_port(environment.get("IP_ADDR", "") or "127.0.0.1", port)


def whole(text: str, most: int) -> int:
    """For argparse: a whole number from 1 to `most`."""
    given = number(text)
    if given is None or not 1 <= given <= most:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not a whole number from 1 to {most:,}")
    return given


def nats_address(text: str) -> str:
    """For argparse: what names NATS servers."""
    try:
        check_nats(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def log_to(path: Path | None, *loggers: str, form: LogForm = "text", level: LogLevel = "info") -> None:
    """Log to the terminal, or to the file at `path` with only warnings to the terminal. Raises ProcessFault.

    With `loggers`, only these go to the file, whatever they say; without, everything of `level` and above.
    """
    root = logging.getLogger()
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(root.level, logging.INFO))
    if not root.handlers:
        terminal = StderrHandler()
        terminal.setFormatter(formatter(form))
        root.addHandler(terminal)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ProcessFault(f"cannot write the log {path}: {error.strerror}") from error
    root.handlers[0].setLevel(logging.WARNING)
    file.setFormatter(formatter(form))
    if not loggers:
        file.setLevel(level.upper())
    for name in loggers:
        logging.getLogger(name).setLevel(logging.DEBUG)
    for name in loggers or ("",):
        logging.getLogger(name).addHandler(file)


def raise_file_limit() -> None:
    """Let this process open as many files as the system lets it: each connection is one; 1,024 are usual."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS calls it unlimited and takes only less
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def run_until_signal(
    name: str, start: Callable[[], Coroutine[Any, Any, None]], faults: tuple[type[Exception], ...]
) -> None:
    """Run a process until SIGTERM or SIGINT, which end it with exit code 0; one of `faults` ends it with 1.

    A part that does not let it end is not waited for longer than END_DEADLINE_S. `start` reads the settings,
    sets up the log and returns the process's main coroutine. It may open as many files as the system lets it:
    the usual limit is soon reached by strangers who say nothing.
    """
    failed = False
    raise_file_limit()
    try:
        uvloop.run(_until_signal(start()))
    except* faults as group:
        failed = True  # sys.exit here would become one more exception of the group
        for text in dict.fromkeys(_texts(group)):
            logging.getLogger(name).critical("%s ends: %s", name, text)
    if failed:
        sys.exit(1)
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)


async def _until_signal(main: Coroutine[Any, Any, None]) -> None:
    _is_ours.set(True)
    running = asyncio.create_task(main)
    stopping = asyncio.Event()

    def stop() -> None:
        if not stopping.is_set():
            stopping.set()
            running.cancel()
            _limit_end()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop)
    try:
        await running
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise
    finally:
        _limit_end()  # of tasks and threads that are left


def _limit_end_after_fault(part: asyncio.Task[Any]) -> None:
    if not part.cancelled() and part.exception() is not None:
        _limit_end()


def _limit_end() -> None:
    """From the first call on this process has END_DEADLINE_S to end: half a process is worse than none."""
    if _is_ours.get() and not signal.getitimer(signal.ITIMER_REAL)[0]:
        asyncio.get_running_loop().call_later(END_DEADLINE_S, _end_at_once)
        # A write to a dead disk, say, keeps the loop from that. Then stacks are shown, if anybody reads
        # stderr, and the kernel ends the process.
        faulthandler.dump_traceback_later(END_DEADLINE_S + _STILL_S)
        signal.setitimer(signal.ITIMER_REAL, END_DEADLINE_S + 2 * _STILL_S)


def _end_at_once() -> NoReturn:
    parts = sorted({str(task.get_coro()).partition(" at ")[0] for task in asyncio.all_tasks()})
    logging.getLogger(__name__).critical("does not end by itself, so it is ended: %s", ", ".join(parts))
    logging.shutdown()
    os._exit(1)


def _texts(group: BaseExceptionGroup[Exception]) -> Iterator[str]:
    for fault in group.exceptions:
        if isinstance(fault, BaseExceptionGroup):
            yield from _texts(fault)
        elif isinstance(fault, nats.errors.ConnectionClosedError):  # whose own words say neither what nor why
            yield f"the connection to NATS {_CLOSED}"
        else:
            yield str(fault) or repr(fault)
