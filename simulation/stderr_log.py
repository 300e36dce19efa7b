"""Logging to stderr that never waits: who looks after a market must not stop because nobody reads there."""

import logging
import os
import select
from typing import Final

_STDERR: Final = 2


def log_to_stderr() -> None:
    """Show warnings and what is worse."""
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, handlers=[StderrHandler()])


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
                text = f"\n{self._dropped} messages were dropped: nobody read them\n{text}"
            rest = text.encode(errors="backslashreplace")
            while rest:
                if not select.select([], [self._descriptor], [], 0)[1]:
                    self._dropped += 1
                    return
                # A pipe that takes anything takes this much.
                rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
            self._dropped = 0
        except Exception:  # noqa: BLE001 -- as every handler of logging does
            self.handleError(record)
