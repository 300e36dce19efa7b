"""How log lines look: as text for people, or as JSON or key=value pairs for what collects logs.

A record's fields are what it was logged with as `extra`. As text they follow the message; in the other forms
every record is one line with `time`, `level`, `logger`, `event` and then the fields. Strings that are not
plain are quoted, so that nothing a client made can pass for a line or a field of ours. Nobody waits for
whoever does not read our stderr, if it is a pipe.
"""

import argparse
import json
import logging
import os
import re
import select
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

LogForm = Literal["text", "json", "keyvalue"]
LogLevel = Literal["debug", "info", "warning", "error"]

_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; anything else is a field."""

_STDERR: Final = 2

_PLAIN: Final = re.compile(r"[\w.:/+@-]+", re.ASCII)


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """The options that exchange and engines have for this."""
    parser.add_argument(
        "--log-format", choices=get_args(LogForm), default="text", help="of every line (default %(default)s)"
    )
    parser.add_argument(
        "--log-level",
        choices=get_args(LogLevel),
        default="info",
        help="debug shows an order's whole path (default %(default)s)",
    )


def formatter(form: LogForm) -> logging.Formatter:
    """What makes a record's line."""
    return {"text": _Text, "json": _Json, "keyvalue": _KeyValue}[form](_TEXT)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record was logged with as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def pairs(fields: dict[str, Any]) -> str:
    """Fields as key=value, with spaces in between."""
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in fields.items())


class StderrHandler(logging.Handler):
    """Writes what is taken at once and drops the rest; the next message tells how many were dropped."""

    def __init__(self, descriptor: int = _STDERR) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, as far as there is room."""
        try:
            text = f"{self.format(record)}\n"
            if self._dropped:  # the last of them perhaps in the middle of a line
                lost = f"{self._dropped} messages were dropped: nobody read them"
                text = f"\n{self.format(_warning(lost))}\n{text}"
            rest = text.encode(errors="backslashreplace")
            while rest:
                if not select.select([], [self._descriptor], [], 0)[1]:
                    self._dropped += 1
                    return
                # A pipe that takes anything takes this much; a terminal may not.
                rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
            self._dropped = 0
        except Exception:  # noqa: BLE001 -- as every handler of logging does
            self.handleError(record)


def _warning(text: str) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        fields = pairs(fields_of(record))
        line = super().formatMessage(record)
        return f"{line} {fields}" if fields else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_whole(self, record), default=str)


class _KeyValue(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return pairs(_whole(self, record))


def _whole(made_by: logging.Formatter, record: logging.LogRecord) -> dict[str, Any]:
    """Everything that a record says, in the order in which it is shown."""
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    said = {
        "time": time.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": record.getMessage(),
        **fields_of(record),
    }
    if record.exc_info:
        said["exception"] = made_by.formatException(record.exc_info)
    return said


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
