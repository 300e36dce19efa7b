"""The lease of an engine number: which process may reign as that engine now. At most one holds it.

Here: taking, renewing and releasing a key of the `leases` bucket whose value the server drops after TTL_S.
Not here: what a process does with it. A lease gives liveness only, because it rests on clocks: the journal's
fence alone makes it safe that two processes may for a moment both believe they hold it.

Every write demands that the key's newest message is the one that was read. nats-py's own bucket cannot do
this: its `update` drops the time to live, so that the lease would never expire.

    LeaseLost   another process holds the lease: stop reigning
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bus import messages, subjects
from bus.messages import LeaseEntry
from bus.stream import (
    AWAY,
    EXPECTED_LAST_SUBJECT_SEQUENCE,
    Publisher,
    Stored,
    last_message,
    until_connected,
)

TTL_S: Final = 1
"""How long a lease lives after it was last renewed; the server knows no shorter time."""

RENEW_S: Final = 0.3
"""How often it is renewed: two renewals may get lost."""

DEAD_S: Final = 3 * TTL_S
"""A lease that was not renewed for this long is free, even if the server still shows it: it goes by its own
clock, and keeps for longer what was stored while that was ahead."""

_SILENCE_S: Final = 2 * RENEW_S
"""A lease that was not renewed for this long is about to expire: look often."""

_LOOK_S: Final = 0.02
NEWCOMER_S: Final = 0.3
"""How long a newcomer leaves a lapsed lease to those who have waited longer; it shrinks with the wait."""

_STREAM: Final = subjects.bucket_stream(subjects.LEASES_BUCKET)
_TTL_HEADER: Final = "Nats-TTL"
_DELETED: Final = {"KV-Operation": "DEL"}
_SILENT: Final = "its bucket does not answer"
_log: Final = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another process holds the lease."""

    def __init__(self, holder: LeaseEntry) -> None:
        super().__init__(f"process {holder.pid} at {holder.address} holds the lease of E{holder.engine} now")
        self.holder = holder


class Lease:
    """One process's hold on the lease of `entry.engine`. Used by one task at a time."""

    def __init__(self, nc: Client, entry: LeaseEntry) -> None:
        self.entry = entry
        self._nc = nc
        self._subject = subjects.bucket_subject(subjects.LEASES_BUCKET, subjects.engine_token(entry.engine))
        self._payload = messages.encode(entry)
        self._publisher = Publisher(nc)
        self._renewed = -math.inf
        self._trouble = ""  # why it waits, as the log was told; empty when it does not

    @property
    def unrenewed_s(self) -> float:
        """How long ago that was sent which last took or renewed the lease; no end before the first.

        To take it again after it had run out counts only with the renewal that follows `on_lapse`.
        """
        return time.monotonic() - self._renewed

    async def acquire(self, dead: Stored | None = None) -> bool:
        """Take a lease that is free, or is ours already; False when another holds it or was faster.

        The message `dead` of a holder counts as none. Waits while NATS is away.
        """
        sent = time.monotonic()
        taken, _ = await self._take(dead)
        if taken:
            self._renewed = sent
        return taken

    async def renew(self) -> bool:
        """Keep the lease for TTL_S from now.

        One that expired and that nobody has now is taken again, with the answer False: meanwhile others may
        have held it. Waits while NATS is away. Raises LeaseLost.
        """
        while True:
            sent = time.monotonic()
            taken, holder = await self._take()
            if taken and holder is not None:
                self._renewed = sent
            if taken:
                return holder is not None
            if holder is not None and holder != self.entry:
                raise LeaseLost(holder)

    async def keep(self, on_lapse: Callable[[], Awaitable[None]]) -> None:
        """Renew for ever; `on_lapse` is called whenever others may have held it. Raises LeaseLost."""
        while True:
            await asyncio.sleep(RENEW_S)
            if not await self.renew():
                await on_lapse()

    async def release(self) -> None:
        """Let others have the lease at once, if it is ours; best effort, as it expires by itself."""
        with contextlib.suppress(*AWAY):
            # Refused, it looks again: a renewal that was under way is stored now, and there is no other.
            while _holder(stored := await self._newest()) == self.entry:
                if await self._write(b"", stored, _DELETED) is not False:
                    return

    async def claim(self, *, leave_first_s: float = 0.0) -> None:
        """Wait until the lease is free and take it.

        `leave_first_s`: for that long a lease that nobody has held since this call is left to others. After
        NATS was away the process that reigned gets the time of a lease to renew, if it has not let go of it.
        One that does not renew for DEAD_S loses it, also to a server that would keep it.
        When a lease runs out, the process that has waited longest comes first: a standby before the killed
        process that was started again.
        """
        turn = _Turn(time.monotonic(), leave_first_s)
        heard = asyncio.Event()

        async def note(_: Msg) -> None:
            heard.set()

        subscription: Subscription | None = None
        try:
            while True:
                heard.clear()
                try:
                    if subscription is None:
                        # Renewals and releases arrive here at once, an expiry does not: it is looked for
                        # when all is silent.
                        subscription = await self._nc.subscribe(self._subject, cb=note)
                    stored = await self._newest()
                except AWAY:
                    await until_connected(self._nc)
                    turn.was_away(time.monotonic())
                    continue
                now = time.monotonic()
                if turn.has_come(stored, now) and await self.acquire(stored):
                    return
                await _wait(heard, turn.look_again_s(now))
        finally:
            if subscription is not None and not self._nc.is_closed:
                with contextlib.suppress(*AWAY):
                    await subscription.unsubscribe()

    async def _take(self, dead: Stored | None = None) -> tuple[bool, LeaseEntry | None]:
        """Whether the lease is ours now, and who was found holding it before; waits while NATS is away.

        A lease that was found free stays so in the answer: what we find then is an attempt of our own.
        """
        was_free = False
        while True:
            try:
                stored = await self._newest()
            except AWAY:
                await until_connected(self._nc)
                continue
            holder = _holder(stored)
            if holder is None and stored is not None and not stored.deleted:
                _log.warning("%s holds something that is not a lease: overwriting it", self._subject)
            if holder is not None and holder != self.entry and stored != dead:
                return False, holder
            was_free = was_free or holder is None
            written = await self._write(self._payload, stored, {_TTL_HEADER: str(TTL_S)})
            if written is not None:
                return written, None if was_free else holder
            await until_connected(self._nc)  # it may be stored or not, so look again

    async def _newest(self) -> Stored | None:
        try:
            stored = await last_message(self._nc, _STREAM, self._subject)
        except AWAY:
            if not self._trouble:
                self._tell(_SILENT)
            raise
        if self._trouble == _SILENT:  # of a write that has no good answer only a write can tell more
            self._tell("")
        return stored

    async def _write(self, payload: bytes, after: Stored | None, headers: dict[str, str]) -> bool | None:
        """Store a message behind `after`; False when another one is newer, None when that is not known."""
        demand = {EXPECTED_LAST_SUBJECT_SEQUENCE: str(after.sequence if after is not None else 0)}
        self._publisher.begin_message()
        ack = await self._publisher.attempt(self._subject, payload, headers | demand)
        if ack is not None and ack.is_out_of_date:
            self._tell("")
            return False
        self._tell(self._publisher.trouble)
        return True if ack is not None and ack.error is None else None

    def _tell(self, trouble: str) -> None:
        """Log that the server is silent or refuses a write, or no longer; it is asked for ever, so once."""
        if trouble != self._trouble:
            self._trouble = trouble
            what = f"waits: {trouble}" if trouble else "waits no longer"
            _log.warning("the lease of E%d %s", self.entry.engine, what)


class _Turn:
    """When one who waits for a lease may take it, by what it has seen of it. Times are `time.monotonic()`."""

    def __init__(self, began: float, leave_first_s: float) -> None:
        self._began = began
        self._not_before = began + leave_first_s
        self._renewed = began
        self._held = 0  # the sequence of the newest message of a holder; 0 before the first
        self._freed: float | None = None

    def was_away(self, now: float) -> None:
        """NATS is back: who reigned gets the time of a lease to renew."""
        self._not_before = max(self._not_before, now + TTL_S)
        self._renewed = now

    def has_come(self, stored: Stored | None, now: float) -> bool:
        """Whether the lease is free and ours to take; `stored` is its newest message."""
        if stored is not None and _holder(stored) is not None:
            if not self._held:
                self._not_before = self._began
            if stored.sequence != self._held:
                self._held, self._renewed = stored.sequence, now
            self._freed = None
            return now - self._renewed > DEAD_S
        if self._freed is None:
            self._freed = now
        return now >= self._free_from(stored, self._freed)

    def look_again_s(self, now: float) -> float:
        """How long to wait for news before another look: a lease that runs out makes none."""
        return max(_LOOK_S, self._renewed + _SILENCE_S - now)

    def _free_from(self, stored: Stored | None, freed: float) -> float:
        if stored is not None and not stored.deleted:  # junk: whoever reigns renews over it
            return max(self._not_before, freed + TTL_S)
        if not self._held:
            return self._not_before
        if stored is not None:  # the holder has let go of it
            return self._began
        return max(self._not_before, freed + NEWCOMER_S / (1 + freed - self._began))


def _holder(stored: Stored | None) -> LeaseEntry | None:
    """Who holds the lease by its newest message. What is no lease is nobody's, as it would never expire."""
    if stored is None or stored.deleted:
        return None
    try:
        return messages.decode_lease(stored.payload)
    except messages.NO_MESSAGE:
        return None


async def _wait(heard: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await heard.wait()
    except TimeoutError:
        return
