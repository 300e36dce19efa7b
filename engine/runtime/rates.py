"""How many orders a second a client may send. Cancels are free: whoever sends too much can always stop.

It is the edge that counts, before anything is queued; the journal knows nothing of it.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

from bus.runner import whole
from engine.commands import NewOrder, OrderCommand, ReplaceOrder

DEPTH_NS: Final = 10**9
"""A client that was silent for this long may send at once what it may send in this time."""

_COUNTED: Final = (NewOrder, ReplaceOrder)
_MAX_PER_SECOND: Final = 1_000_000


def add_rate_option(parser: argparse.ArgumentParser) -> None:
    """The option that engines have for this; 0 when it is left out."""
    parser.add_argument(
        "--orders-per-second",
        metavar="N",
        type=partial(whole, most=_MAX_PER_SECOND),
        default=0,
        help="new orders and replaces a second that each client may send; cancels are free (default: any)",
    )


class Rates:
    """The limit of every client, `per_second` new orders and replaces; 0 is none."""

    def __init__(self, per_second: int, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.per_second = per_second
        self.refused = 0
        """How many calls were told to try again later."""
        self._monotonic_ns = monotonic_ns
        self._paid_off_ns: dict[str, int] = {}  # by client, when what it sent is paid off

    def parts(self, commands: Sequence[OrderCommand | None]) -> Iterator[Sequence[OrderCommand | None]]:
        """What was sent together in parts of a second's worth: more is never let in at once."""
        begin = counted = 0
        for at, command in enumerate(commands if self.per_second else ()):
            if type(command) in _COUNTED:
                if counted == self.per_second:
                    yield commands[begin:at]
                    begin, counted = at, 0
                counted += 1
        yield commands[begin:]

    def take(self, client: str, commands: Iterable[OrderCommand | None]) -> float:
        """Let one part's commands in; otherwise the seconds until they may be, and nothing is counted."""
        if not self.per_second:
            return 0.0
        cost_ns = sum(type(command) in _COUNTED for command in commands) * 10**9 // self.per_second
        now_ns = self._monotonic_ns()
        paid_off_ns = max(now_ns, self._paid_off_ns.get(client, now_ns))
        wait_ns = paid_off_ns + cost_ns - DEPTH_NS - now_ns
        if cost_ns and wait_ns > 0:
            return wait_ns / 1e9
        self._paid_off_ns[client] = paid_off_ns + cost_ns
        return 0.0

    async def pace(self, client: str, commands: Sequence[OrderCommand | None]) -> None:
        """Wait until one part's commands are let in."""
        while (wait_s := self.take(client, commands)) > 0:  # noqa: ASYNC110 -- time is what it waits for
            await asyncio.sleep(wait_s)
