"""Waiting in tests: for a condition, with a deadline, never for a while; and what runs meanwhile."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bus.stream_reader import StreamReader


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Return as soon as the condition holds; raises TimeoutError after `timeout_s` seconds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 -- what is waited for may be another process, which sets no event
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(*parts: Coroutine[Any, Any, Any]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """These run for the length of a block, as tasks; a failure of one fails the test."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def hold_up(pause_s: float) -> None:
    """As in a stopped process: the event loop stands still as soon as the caller waits for something."""
    asyncio.get_running_loop().call_soon(time.sleep, pause_s)


def hold_up_a_reader(monkeypatch: pytest.MonkeyPatch, pause_s: float) -> Iterator[float]:
    """So once a stream was asked for messages, the first time alone; what is given is empty then."""
    pauses = iter((pause_s,))
    ask = StreamReader._ask

    async def ask_and_stop(reader: StreamReader) -> None:
        await ask(reader)
        hold_up(next(pauses, 0))

    monkeypatch.setattr(StreamReader, "_ask", ask_and_stop)
    return pauses


async def freeze(pid: int) -> None:
    """Stop a process; return when all its threads stand still, which the signal does not wait for."""
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: is_frozen(pid))


@asynccontextmanager
async def frozen(pid: int) -> AsyncIterator[None]:
    """A process stands still while the body runs."""
    try:
        await freeze(pid)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def is_frozen(pid: int) -> bool:
    """Whether Linux says that all threads of a process stand still."""
    return all(_state(task) == "T" for task in Path(f"/proc/{pid}/task").iterdir())


def _state(task: Path) -> str:
    return (task / "stat").read_text(encoding="ascii").rpartition(") ")[2][0]
