"""Log lines in each form."""

import json
import logging
import sys
from typing import Any

import pytest

from bus.logs import LogForm, formatter


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
