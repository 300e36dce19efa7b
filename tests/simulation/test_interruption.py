import asyncio
import errno
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

import pytest
from rich.console import Console

from simulation.interruption import Stopped, interruptible
from tests.client.cli.outputs import no_reader


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def unheard() -> NoReturn:
    """What becomes of a word to a terminal that was closed."""
    raise OSError(errno.EIO, "Input/output error")


async def test_a_closed_terminal_stops_what_runs_in_it() -> None:
    """The body cleans up, although nobody can be told that it stops."""

    async def run() -> None:
        async with interruptible(unheard):
            signal.raise_signal(signal.SIGHUP)
            await asyncio.sleep(60)

    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(Stopped):
        await run()


async def test_what_ends_together_with_its_reader_cleans_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends `| tee` too: rich, whom nobody reads then, does not end the event loop."""
    cleaned_up = asyncio.Event()

    async def run() -> None:
        async with interruptible(lambda: Console().print("Stopping…")):
            signal.raise_signal(signal.SIGTERM)
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.1)
                cleaned_up.set()

    with no_reader() as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(Stopped):
            await run()
    assert cleaned_up.is_set()


async def test_what_nohup_started_outlives_its_terminal() -> None:
    """A signal that whoever started it has ignored stays ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    async with interruptible():
        signal.raise_signal(signal.SIGHUP)
        await asyncio.sleep(0.1)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
