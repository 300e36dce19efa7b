"""What leaves an engine once the journal has a batch: market data, execution reports, legs, news of fills.

batch ──▶ legs to peers
      ──▶ book deltas and trades
      ──▶ execution reports (queued; stored exactly once by a task of their own)
      ──▶ the bell of each client with new fills
      ──▶ then, in the commit loop, the answers (a lone engine has given those of a small batch before this)
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, cast

from bus import crash_points
from bus.executions import ExecutionsWriter, MessageTooLong
from bus.journal import PrimaryReplaced
from bus.messages import Executions, Report
from engine.events import Accepted, Answered, Cancelled, Event, Fill, LegSent, Listed, Prevented, Replaced
from engine.runtime import order_log, order_trace
from engine.runtime.commit_loop import Batch
from engine.runtime.market_data import MarketData

MAX_REPORTS_PER_MESSAGE: Final = 2_000
"""As many as the stream takes in one message, if names and numbers are not very long."""

SURE_REPORTS_PER_MESSAGE: Final = 1_000
"""As many as it takes in any case: the largest report, a fill, has 234 bytes."""

PACE_S: Final = 0.02
"""At most one message of reports in this time: each costs the server an fsync, whatever it holds."""

LOOK_S: Final = 1.0
"""How often an engine that has nothing to report looks whether its newest message is still stored."""

MAX_QUEUED_REPORTS: Final = 200_000
"""With more reports than this waiting for NATS, the engine waits too."""

# These go out as they are: `bus.messages` declares the same fields in the same order under the same tags.
REPORTED: Final = frozenset({Accepted, Fill, Replaced, Cancelled, Prevented})


class FillBell:
    """Tells the GetFills streams of a client that there is something new, and how far they may read."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._withheld: dict[str, deque[int]] = {}

    @contextmanager
    def listen(self, client: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the client has new fills; the listener clears it."""
        rung = asyncio.Event()
        self._listeners.setdefault(client, set()).add(rung)
        try:
            yield rung
        finally:
            listeners = self._listeners[client]
            listeners.discard(rung)
            if not listeners:
                del self._listeners[client]

    def ring(self, client: str) -> None:
        """The client has new fills."""
        for rung in self._listeners.get(client, ()):
            rung.set()

    def ring_all(self) -> None:
        """Every stream has to look, though perhaps not at fills: it may be time to end."""
        for client in self._listeners:
            self.ring(client)

    def withhold(self, client: str, first: int) -> None:
        """Let the client see none of its fills from sequence `first` on, until they are shown."""
        self._withheld.setdefault(client, deque()).append(first)

    def show(self, client: str, first: int) -> None:
        """The fills withheld from sequence `first` on may be seen, behind all that are withheld before."""
        withheld = self._withheld[client]
        withheld.remove(first)
        if not withheld:
            del self._withheld[client]
        self.ring(client)

    def visible(self, client: str, traded: int) -> int:
        """How many of the `traded` fills that it ever had the client may see."""
        withheld = self._withheld.get(client)
        return withheld[0] - 1 if withheld else traded


@dataclass(slots=True)
class _Owed:
    """The reports of one batch, the first `stored` of which the stream has."""

    epoch: int
    batch_number: int
    reports: list[Event]
    stored: int


class Reports:
    """Execution reports on their way to the stream: in order, each once, as many to a message as it takes.

    `published` is what the stream has: a batch number, and how many of that batch's reports.
    """

    def __init__(self, engine: int, writer: ExecutionsWriter, published: tuple[int, int]) -> None:
        self._engine = engine
        self._writer = writer
        self._published = published
        self._owed: deque[_Owed] = deque()
        self.queued = 0
        """How many reports the stream has not stored yet."""
        self._arrived = asyncio.Event()
        self._progressed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    @property
    def trouble(self) -> str:
        """Why the stream does not take them; empty when it does."""
        return self._writer.trouble

    def add(self, epoch: int, batch_number: int, reports: list[Event]) -> None:
        """Queue what a batch has to report; what the stream has already is left out."""
        last_batch, last_reports = self._published
        stored = last_reports if batch_number == last_batch else 0
        if batch_number < last_batch or stored >= len(reports):
            return
        self._owed.append(_Owed(epoch, batch_number, reports, stored))
        self.queued += len(reports) - stored
        self._arrived.set()
        if self.queued > MAX_QUEUED_REPORTS:
            self._has_room.clear()

    def report_again(self) -> None:
        """The journal lost batches that were reported, and their numbers will be used again: report those."""
        self._published = 0, 0

    def leave_out(self, published: tuple[int, int]) -> None:
        """Leave out what the stream has by now, though another process stored it."""
        self._published = published
        owed, self._owed, self.queued = self._owed, deque(), 0
        self._arrived.clear()
        self._has_room.set()
        for batch in owed:
            self.add(batch.epoch, batch.batch_number, batch.reports)

    async def take_over(
        self, epoch: int, batch_number: int, check_place: Callable[[], Awaitable[None]]
    ) -> None:
        """Be the only one that stores reports: what a predecessor sends from now on is refused.

        The first of what is owed does that, or else a message without reports, in the name of `batch_number`,
        which must hold none. Before that the predecessor may store more of what it owed itself, and a
        successor may have begun already: `check_place` raises when the journal has its record. Raises that,
        and what `ExecutionsWriter.start` and `publish` raise, PrimaryReplaced only for a later epoch.
        """
        while True:
            published = await self._writer.start(epoch)
            # A successor's first messages may be of a predecessor's epoch too, but its record came before.
            await check_place()
            if published[0] < batch_number:
                self.leave_out(published)
            else:  # reported from batches that the journal has lost: their numbers are given out again
                self.report_again()
            try:
                if self._owed:
                    await self._publish_next()
                else:
                    await self._writer.publish(
                        Executions(self._engine, epoch, batch_number, batch_number, 0, ())
                    )
            except PrimaryReplaced:  # by a predecessor, whose message is left out now, or by a successor
                continue
            return

    async def drained(self) -> None:
        """Wait until all that is owed is stored."""
        while self.queued:
            self._progressed.clear()
            await self._progressed.wait()

    async def room(self) -> None:
        """Wait while too much is queued."""
        await self._has_room.wait()

    async def run(self, look_s: float | None = None) -> None:
        """Store what is queued, for ever. Raises what `ExecutionsWriter.publish` raises.

        With nothing to store it looks every `look_s` seconds (None: never) whether what was stored is still
        there, which only a restart can store again.
        """
        while True:
            await self._await_reports(look_s)
            pace = asyncio.create_task(asyncio.sleep(PACE_S))
            reports = await self._publish_next()
            order_log.reported(reports)
            order_trace.reported(reports)
            self._progressed.set()
            if self.queued <= MAX_QUEUED_REPORTS:
                self._has_room.set()
            await pace

    async def _await_reports(self, look_s: float | None) -> None:
        while not self._arrived.is_set():
            try:
                async with asyncio.timeout(look_s):
                    await self._arrived.wait()
            except TimeoutError:
                await self._writer.check()

    async def _publish_next(self) -> tuple[Report, ...]:
        """Store what of the queue, which is not empty, fits into one message, and take it off; returns it."""
        message = self._first_reports(MAX_REPORTS_PER_MESSAGE)
        try:
            await self._writer.publish(message)
        except MessageTooLong:
            message = self._first_reports(SURE_REPORTS_PER_MESSAGE)
            await self._writer.publish(message)
        self._take_off(len(message.reports))
        return message.reports

    def _take_off(self, count: int) -> None:
        """The stream has the first `count` reports of the queue."""
        self.queued -= count
        while count:
            owed = self._owed[0]
            taken = min(count, len(owed.reports) - owed.stored)
            owed.stored += taken
            count -= taken
            if owed.stored == len(owed.reports):
                self._owed.popleft()
        if not self._owed:
            self._arrived.clear()

    def _first_reports(self, most: int) -> Executions:
        """A message of the first `most` reports in the queue, those of one epoch."""
        first = self._owed[0]
        last_batch = last_reports = 0
        reports: list[Event] = []
        for owed in self._owed:
            if owed.epoch != first.epoch or len(reports) == most:
                break
            part = owed.reports[owed.stored : owed.stored + most - len(reports)]
            reports += part
            last_batch, last_reports = owed.batch_number, owed.stored + len(part)
        made = cast("tuple[Report, ...]", tuple(reports))
        return Executions(self._engine, first.epoch, first.batch_number, last_batch, last_reports, made)


class Effects:
    """Releases committed batches.

    `send_leg` must not wait; `uncross` looks at a symbol that changed; `shown` returns when peers can see all
    that was published before.
    """

    def __init__(
        self,
        market_data: MarketData,
        reports: Reports,
        bell: FillBell,
        *,
        send_leg: Callable[[LegSent], None],
        uncross: Callable[[str], None],
        shown: Callable[[], Awaitable[None]],
    ) -> None:
        self._market_data = market_data
        self._reports = reports
        self._bell = bell
        self._send_leg = send_leg
        self._uncross = uncross
        self._shown = shown
        self.refusals: Counter[int] = Counter()
        """Refused commands by `RejectReason`."""

    async def release(self, batch: Batch) -> Awaitable[None] | None:
        """Let out what a batch caused; where there are peers, the market data before any answer.

        Returns what must be awaited before a client may hear of it (None: nothing).
        """
        fills: list[Fill] = []
        reported: list[Event] = []
        listed: list[str] = []
        for event in batch.events:
            kind = type(event)
            if kind is Accepted:  # most are, or are answers
                reported.append(event)
            elif kind is Answered:
                if event.reject_reason:  # type: ignore[union-attr]  # a cast is a call, for every answer
                    self.refusals[event.reject_reason] += 1  # type: ignore[union-attr]  # likewise
            elif kind in REPORTED:
                reported.append(event)
                if kind is Fill:
                    fills.append(cast("Fill", event))
            elif kind is LegSent:
                self._send_leg(cast("LegSent", event))
            elif kind is Listed:
                listed.append(cast("Listed", event).symbol)
        first_fills = {fill.client: fill.sequence for fill in reversed(fills)}
        peers_see_first = batch.has_peers and bool(batch.changes)
        if peers_see_first:  # before this waits for anything: a stream may read at any moment
            for client, first in first_fills.items():
                self._bell.withhold(client, first)
        for symbol in listed:
            await self._market_data.add_book(symbol)
        await self._market_data.publish(batch.epoch, batch.number, batch.time_ns, batch.changes, fills)
        batch.shown_s = time.monotonic()
        crash_points.reach("market data sent")
        self._reports.add(batch.epoch, batch.number, reported)
        for change in batch.changes:
            self._uncross(change.symbol)
        await self._reports.room()
        if peers_see_first:
            return self._ring_when_shown(first_fills)
        for client in first_fills:
            self._bell.ring(client)
        return None

    async def _ring_when_shown(self, first_fills: dict[str, int]) -> None:
        await self._shown()
        for client, first in first_fills.items():
            self._bell.show(client, first)
