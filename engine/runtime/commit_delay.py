"""How long a batch waits for more commands: not at all, until the process runs short of processor time.

A batch costs the engine, nats-server and all who follow a millisecond of processor time or more, whatever
it holds. With time to spare that is well spent, and a command goes to the journal at once. Without, commands
that come one by one make small batches, and those take the time in which more commands could have come
(docs/decisions/0012-commit-delay.md).
"""

import time
from collections.abc import Callable
from typing import Final

LONGEST_S: Final = 0.005
PERIOD_S: Final = 0.02
"""Processor use is averaged over at least this long."""

BUSY: Final = 0.8
"""With more than this share of one processor in use the delay grows, by one step a period."""

SPARE: Final = 0.7
"""With less than this it shrinks, as fast."""

_STEP_S: Final = LONGEST_S / 10


class CommitDelay:
    """The delay of one process's batches, from how much processor time it has used of late."""

    def __init__(
        self,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        processor_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._processor_s = processor_s
        self._delay_s = 0.0
        self._began_s = monotonic_s()
        self._used_s = processor_s()

    def next_s(self) -> float:
        """Seconds that the next batch should wait. To be asked before each."""
        now_s = self._monotonic_s()
        elapsed_s = now_s - self._began_s
        if elapsed_s < PERIOD_S:
            return self._delay_s
        used_s = self._processor_s()
        share = (used_s - self._used_s) / elapsed_s
        self._began_s, self._used_s = now_s, used_s
        if share > BUSY:
            self._delay_s = min(self._delay_s + _STEP_S, LONGEST_S)
        elif share < SPARE:
            self._delay_s = max(self._delay_s - _STEP_S * elapsed_s / PERIOD_S, 0.0)
        return self._delay_s
