"""How a command that goes on is stopped: by Ctrl-C, by SIGTERM, or because its terminal was closed."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """A signal came before the work was done."""


@contextlib.asynccontextmanager
async def stop_signals() -> AsyncIterator[asyncio.Event]:
    """An event that is set by any of these signals, which then do not end the process.

    After `nohup` it outlives its terminal as before.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heard = [number for number in _SIGNALS if number is not signal.SIGHUP or not ignored]
    for number in heard:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in heard:
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def interruptible(stopping: Callable[[], object] = lambda: None) -> AsyncIterator[None]:
    """Cancel the body when one of the signals comes, and raise `Stopped` once it has cleaned up.

    `stopping` is called at once: processes that stop may take some seconds.
    """
    async with stop_signals() as stop:
        body = asyncio.current_task()
        assert body is not None

        async def cancel_when_asked() -> None:
            await stop.wait()
            body.cancel()
            # A terminal that was closed takes no word, nor does `| tee`, which Ctrl-C ended too: of that rich
            # makes a SystemExit, which would end the event loop before the body has cleaned up.
            with contextlib.suppress(OSError, SystemExit):
                stopping()

        waiting = asyncio.create_task(cancel_when_asked())
        try:
            yield
        except asyncio.CancelledError:
            if stop.is_set():
                body.uncancel()
                raise Stopped from None
            raise
        finally:
            waiting.cancel()
