"""Named moments at which a process can be made to die, so that a test can try each of them.

A test names a file in MATCHBUS_CRASH_FILE and writes a point's name into it. The process that reaches the
point takes the file away and kills itself as `kill -9` would: nothing is flushed, nothing is closed. Without
the variable a point costs one comparison.
"""

import os
import signal
from pathlib import Path
from typing import Final

VARIABLE: Final = "MATCHBUS_CRASH_FILE"

POINTS: Final = (
    "command received",
    "batch matched",
    "append begun",
    "message answered",
    "append acknowledged",
    "effects begun",
    "market data sent",
    "effects released",
    "answers given",
    "reports begun",
    "reports stored",
    "leg about to leave",
    "leg answered",
    "leg received",
    "leg journaled",
    "leg answer sent",
    "leg queried",
    "replay ended",
    "lease claimed",
    "journal applied",
    "reign about to begin",
    "reign begun",
    "reports fenced",
    "books published",
    "serving",
    "about to retire",
    "lease released",
    "snapshot taken",
    "snapshot stored",
)
"""All of them, in about the order in which an order passes them."""

_file: Final = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def reach(point: str) -> None:
    """Die here if a test said so."""
    if _file is not None:
        assert point in POINTS, f"{point!r} is not listed"
        _die_if_named(_file, point)


def _die_if_named(file: Path, point: str) -> None:
    try:
        if file.read_text() != point:
            return
        file.unlink()  # of two processes that reach it at once, one dies
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
