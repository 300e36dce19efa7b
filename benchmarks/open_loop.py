"""Load at a fixed rate that does not wait for answers, and latency from when each order was meant to leave.

A load that waits for its answers sends nothing while the server is stuck and so never sees the worst of it
(coordinated omission). Here a kernel timer says when the next order is due, and its time counts from there,
even where the sender itself was late.
"""

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc.aio
from hdrh.histogram import HdrHistogram

LONGEST_US: Final = 60_000_000
DIGITS: Final = 3

_CLOCK_MONOTONIC: Final = 1
_NONBLOCK: Final = 0o4000
_FIRST_S: Final = 0.01

T = TypeVar("T")


@dataclass(slots=True)
class Outcome:
    """What a load met: microseconds until each answer, and how late each was sent; failures."""

    answered: Any
    late: Any
    failed: int = 0


def histogram() -> Any:
    """An HDR histogram of microseconds up to a minute."""
    return HdrHistogram(1, LONGEST_US, DIGITS)


async def at_rate(send: Callable[[T], Awaitable[object]], waiting: Sequence[T], per_second: float) -> Outcome:
    """Send all at this rate, and wait for all answers.

    A call that the server does not take counts as failed: its time says nothing. Raises what else a call
    raised.
    """
    loop = asyncio.get_running_loop()
    outcome = Outcome(histogram(), histogram())
    done = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []
    period_ns = round(1e9 / per_second)
    sent = 0
    libc = ctypes.CDLL(None, use_errno=True)
    timer = libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK)
    if timer < 0:
        raise OSError(ctypes.get_errno(), "no timer: open-loop load needs Linux")

    async def one(item: T, due_ns: int) -> None:
        try:
            await send(item)
        except grpc.aio.AioRpcError:
            outcome.failed += 1
        else:
            outcome.answered.record_value(max(1, (time.monotonic_ns() - due_ns) // 1000))

    def on_time() -> None:
        nonlocal sent
        (expired,) = struct.unpack("Q", os.read(timer, 8))
        for _ in range(min(expired, len(waiting) - sent)):
            due_ns = first_ns + sent * period_ns
            outcome.late.record_value(max(1, (time.monotonic_ns() - due_ns) // 1000))
            tasks.append(loop.create_task(one(waiting[sent], due_ns)))
            sent += 1
        if sent == len(waiting):
            done.set()

    first_ns = time.monotonic_ns() + round(_FIRST_S * 1e9)
    when = struct.pack("qqqq", *divmod(period_ns, 10**9), *divmod(first_ns, 10**9))
    try:
        loop.add_reader(timer, on_time)
        absolute = 1
        if libc.timerfd_settime(timer, absolute, when, None):
            raise OSError(ctypes.get_errno(), "the timer cannot be set")
        await done.wait()
        await asyncio.gather(*tasks)
    finally:
        loop.remove_reader(timer)
        os.close(timer)
        for task in tasks:
            task.cancel()
    return outcome
