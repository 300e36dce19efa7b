"""How a process of the venue starts, logs and ends: the same for exchange and engines.

A fault that nobody inside can act on ends the process with one line that says what to do (crash-only: it
starts again from what is stored). A bug shows where it happened.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import uvloop

from bus.connection import Connection, connect

START_DEADLINE_S: Final = 10.0
"""How long a start waits for a NATS server."""

_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class ProcessFault(Exception):  # noqa: N818 -- the fault is named, as everywhere in this project
    """The process cannot go on; the text says why and what to do."""


class Link:
    """One process's connection to NATS: `closed` is set when it ended for good."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.closed = asyncio.Event()
        self.on_reconnected: Callable[[], None] = lambda: None
        self.on_error: Callable[[Exception], object] = lambda _: False

    async def open(self, name: str, *, buffered: bool = True) -> Connection:
        """Connect, or say within START_DEADLINE_S that no server is there. Raises ProcessFault."""
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                return await connect(
                    self.url,
                    name=name,
                    on_closed=self.closed.set,
                    on_reconnected=self._on_reconnected,
                    on_error=self._on_error,
                    buffered=buffered,
                )
        except TimeoutError as error:
            raise ProcessFault(
                f"no NATS server answers at {self.url}: start one (nats-server -c nats.conf) or name another "
                "by --nats"
            ) from error

    async def end_when_closed(self) -> None:
        """Raise ProcessFault when the connection is lost for good."""
        await self.closed.wait()
        raise ProcessFault(f"the connection to {self.url} is closed for good; nothing is lost, start again")

    def _on_reconnected(self) -> None:
        self.on_reconnected()

    def _on_error(self, error: Exception) -> None:
        if not self.on_error(error):
            logging.getLogger("nats").warning("%r", error)


def log_to(path: Path | None, *loggers: str) -> None:
    """Log to the terminal, or to the file at `path` with only warnings to the terminal. Raises OSError.

    With `loggers`, only these go to the file; without, everything.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    if not root.handlers:
        terminal = logging.StreamHandler()
        terminal.setFormatter(logging.Formatter(_LOG_FORMAT))
        root.addHandler(terminal)
    if path is None:
        return
    root.handlers[0].setLevel(logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter(_LOG_FORMAT))
    for name in loggers or ("",):
        logging.getLogger(name).addHandler(file)


def run_until_signal(
    name: str, make: Callable[[], Coroutine[Any, Any, None]], faults: tuple[type[Exception], ...]
) -> None:
    """Run a process's main coroutine until SIGTERM or SIGINT; one of `faults` ends it with exit code 1."""
    try:
        uvloop.run(_until_signal(make))
    except* faults as group:
        for text in _texts(group):
            logging.getLogger(name).critical("%s ends: %s", name, text)
            print(f"{name}: {text}", file=sys.stderr)  # noqa: T201  # the log may go to a file
        sys.exit(1)


async def _until_signal(make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    running = asyncio.ensure_future(make())
    stopping = asyncio.Event()

    def stop() -> None:
        if not stopping.is_set():
            stopping.set()
            running.cancel()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop)
    try:
        await running
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise


def _texts(group: BaseExceptionGroup[Exception]) -> Iterator[str]:
    for fault in group.exceptions:
        if isinstance(fault, BaseExceptionGroup):
            yield from _texts(fault)
        else:
            yield str(fault) or repr(fault)
