"""Log lines in each form, and how they come to stderr."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from bus.logs import LogForm, StderrHandler, formatter


def line(form: LogForm, message: str, *arguments: Any, **fields: Any) -> str:
    """What one record looks like."""
    record = logging.LogRecord("orders", logging.DEBUG, "file", 1, message, arguments, None)
    record.created = 0.25
    vars(record).update(fields)
    return formatter(form).format(record)


def test_text_puts_the_fields_after_the_message() -> None:
    """People read the message first; a record without fields looks as it always did."""
    assert line("text", "leg %d left", 7, order=5, peer=2).endswith(
        " DEBUG orders: leg 7 left order=5 peer=2"
    )
    assert line("text", "leg %d left", 7).endswith(" DEBUG orders: leg 7 left")


def test_json_is_one_object() -> None:
    """Time in UTC, level, logger and event come first; numbers stay numbers."""
    assert list(json.loads(line("json", "leg left", order=5, symbol="AAPL")).items()) == [
        ("time", "1970-01-01T00:00:00.250Z"),
        ("level", "debug"),
        ("logger", "orders"),
        ("event", "leg left"),
        ("order", 5),
        ("symbol", "AAPL"),
    ]


def test_key_value_quotes_what_is_not_plain() -> None:
    """A value with a space or a quote in it cannot be taken for two."""
    assert line("keyvalue", "leg left", order=5, client='a" order=6') == (
        'time=1970-01-01T00:00:00.250Z level=debug logger=orders event="leg left" order=5 '
        'client="a\\" order=6"'
    )


@pytest.mark.parametrize("form", ["text", "json", "keyvalue"])
def test_a_field_that_a_client_made_stays_on_its_line(form: LogForm) -> None:
    """A new line in a client's string begins no line in the log."""
    forged = line(form, "order sequenced", client="x\n2026-01-01 INFO engine: all is well")
    assert len(forged.splitlines()) == 1


@pytest.mark.parametrize("form", ["json", "keyvalue"])
def test_an_exception_is_on_the_line_of_its_record(form: LogForm) -> None:
    """What collects logs sees the traceback as a field."""
    try:
        dict[str, int]()["oops"]
    except KeyError:
        record = logging.LogRecord("engine", logging.ERROR, "file", 1, "a bug", (), sys.exc_info())
    (shown,) = formatter(form).format(record).splitlines()
    assert "KeyError: 'oops'" in shown
    assert "Traceback" in shown


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
