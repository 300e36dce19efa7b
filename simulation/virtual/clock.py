"""Time that passes only while everybody waits: an event loop that jumps to its next timer.

What takes a processor time takes none here, so nothing depends on how fast the machine is.
"""

import asyncio
import heapq
import itertools
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any, Final, TypeVar

START_NS: Final = 1_767_225_600_000_000_000
"""UTC at the start of every virtual market: 2026-01-01 00:00:00."""

_NS_PER_S: Final = 1_000_000_000

_clocks: Final = threading.Lock()
"""Held by whoever rules the clocks of this process: there is one of each."""

T = TypeVar("T")


class _Timer(asyncio.TimerHandle):
    """A timer of a virtual loop. Of those that are due at the same time, the one set first comes first."""

    number: int
    _scheduled: bool

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        assert isinstance(other, _Timer)
        return (self.when(), self.number) < (other.when(), other.number)


class _Jumping(selectors.DefaultSelector):
    """Instead of waiting, lets the time pass at once. Signals are heard all the same."""

    now_s = 0.0

    def __init__(self, due_s: Callable[[], float]) -> None:
        super().__init__()
        self._due_s = due_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As selectors says; without a timeout nobody would ever wake, which is a bug."""
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits in virtual time, and no timer runs")
        if not ready and timeout:
            # Not by what is waited: its sum would be rounded otherwise with one more timer in between.
            self.now_s = self._due_s()
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual, and begins at 0.

    One timer more changes nothing for the others: neither when they are due, nor in which order.
    """

    _scheduled: list[_Timer]

    def __init__(self) -> None:
        self._jumping = _Jumping(self._due_s)
        super().__init__(self._jumping)
        self._numbers = itertools.count()
        self._clock_resolution = (
            0.5e-9  # what is due within this is called at once: the same nanosecond alone
        )

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.now_s

    def call_at(  # type: ignore[override]  # the arguments are the callback's, whatever it takes
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio says, in whole nanoseconds."""
        timer = _Timer(round(when, 9), callback, args, self, context)
        timer.number = next(self._numbers)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # noqa: SLF001 -- as the loop of asyncio does
        return timer

    def _due_s(self) -> float:
        return self._scheduled[0].when()


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in virtual time; all clocks of this process show that until it ends.

    Raises `RuntimeError` where they show another one's.
    """
    if not _clocks.acquire(blocking=False):
        raise RuntimeError("one market at a time rules a process's clocks: run each in a process of its own")
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner, _ruling(runner.get_loop()):
            return runner.run(main())
    finally:
        _clocks.release()


@contextmanager
def _ruling(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let every module that asks `time` hear the loop's time, in other threads, too.

    Engines ask it in many places, and under the real clock need no parameter for it. What is asked by the
    wrong clock in one of them would differ from run to run, so none is left out. Who has kept a function of
    `time`, as the default of a parameter does, must be given it while this rules.
    """

    def monotonic_ns() -> int:
        return round(loop.time() * _NS_PER_S)

    ruled: dict[str, Callable[[], float]] = {
        "monotonic": loop.time,
        "monotonic_ns": monotonic_ns,
        "perf_counter": loop.time,
        "time": lambda: (START_NS + monotonic_ns()) / _NS_PER_S,
        "time_ns": lambda: START_NS + monotonic_ns(),
    }
    real = {name: getattr(time, name) for name in ruled}
    for name, clock in ruled.items():
        setattr(time, name, clock)
    try:
        yield
    finally:
        for name, clock in real.items():
            setattr(time, name, clock)
