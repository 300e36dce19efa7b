"""Logging to a stderr that nobody reads."""

import logging
import os
from collections.abc import Iterator

import pytest

from simulation.stderr_log import StderrHandler


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def fill(end: int) -> int:
    """Write until the pipe takes no more, as somebody who may wait; how much it took."""
    os.set_blocking(end, False)
    written = 0
    try:
        while True:
            written += os.write(end, b"x")
    except BlockingIOError:
        os.set_blocking(end, True)
        return written


@pytest.mark.timeout(20)
def test_a_full_pipe_costs_messages_and_no_time(pipe: tuple[int, int]) -> None:
    """Long ones too are dropped where there is no room, and once there is, the next says so."""
    reading, writing = pipe
    handler = StderrHandler(writing)

    def log(text: str) -> None:
        handler.handle(logging.LogRecord("any", logging.WARNING, "", 0, text, (), None))

    log("first")
    unread = fill(writing)
    log("second")
    log("third")
    assert os.read(reading, unread + 100) == b"first\n" + bytes(unread).replace(b"\0", b"x")
    log("fourth\udc80")
    log("fifth")
    expected = b"\n2 messages were dropped: nobody read them\nfourth\\udc80\nfifth\n"
    assert os.read(reading, 1_000) == expected
    log("x" * 1_000_000)
    assert len(os.read(reading, 1_000_000)) > 10_000
    log("last")
    assert os.read(reading, 1_000) == b"\n1 messages were dropped: nobody read them\nlast\n"
