"""How long the journal has lately taken to store a batch: what every answer waits for."""

from collections import deque
from typing import Final

RECENT_NS: Final = 1_000_000_000
"""Appends count for this long."""

_MAX_APPENDS: Final = 4_096
_NS_PER_US: Final = 1_000


class AppendTimes:
    """The appends of the last second; of very many, the newest."""

    def __init__(self) -> None:
        self._appends: deque[tuple[int, int]] = deque(maxlen=_MAX_APPENDS)  # (stored at, took), in ns

    def note(self, took_s: float, now_ns: int) -> None:
        """A batch was stored just now, which took this long."""
        self._appends.append((now_ns, round(took_s * 1e9)))

    def recent_us(self, now_ns: int) -> tuple[int, int]:
        """The median and the longest of late, in microseconds; 0 and 0 when nothing was stored."""
        appends = self._appends
        while appends and now_ns - appends[0][0] > RECENT_NS:
            appends.popleft()
        took_us = sorted(took_ns // _NS_PER_US for _, took_ns in appends)
        return (took_us[len(took_us) // 2], took_us[-1]) if took_us else (0, 0)
