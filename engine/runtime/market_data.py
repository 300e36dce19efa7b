"""What an engine tells the world about its books: deltas and trades of each batch, snapshots, heartbeats.

Here: the publishing end of the feed (design: docs/feed.md). Not here: the books themselves. `replicas` holds
what has been published, and so always the committed state: the commit loop may already be working on the next
batch.

Publishing never waits for NATS. While it is away, or does not take what it is given, messages are left out;
every reader sees that as a gap, and snapshots of the books concerned follow as soon as they can.

Invariants: deltas, snapshots and heartbeats leave in the order they became true, on one connection, but the
last parts of a snapshot of very many levels may come after later deltas; a book is never left out without a
snapshot being owed.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import subjects
from bus.messages import (
    ASK,
    BID,
    MAX_TROUBLE,
    NO_MESSAGE,
    BookDelta,
    Heartbeat,
    LevelChange,
    Trades,
    decode_snapshot_request,
    encode,
    opposite,
)
from bus.replica import BookReplica
from engine.events import BookChanged, Fill
from engine.runtime.append_times import AppendTimes
from engine.state import State
from engine.terms import Liquidity

HEARTBEAT_NS: Final = 100_000_000
"""Time between heartbeats, and between two snapshots of one book."""

RECENT_NS: Final = 2_000_000_000
"""Heartbeats name the sequence of a symbol for this long after its last change."""

ACTIVE_CYCLE_NS: Final = 1_500_000_000
"""An active symbol's snapshot comes round this often without anybody asking."""

MAX_ACTIVE_PER_BEAT: Final = 100
"""Active symbols whose snapshot comes round at one heartbeat. With more than 1,500 the round takes longer:
snapshots of ten thousand would cost more than the orders do."""

IDLE_CYCLE_NS: Final = 5_000_000_000
"""Any symbol's snapshot comes round this often."""

MAX_IDLE_PER_BEAT: Final = 35
"""Idle symbols whose snapshot comes round at one heartbeat: ten thousand take half a minute."""

MAX_BACKLOG_BYTES: Final = 2_000_000
"""With more than this not yet taken by the socket, messages are left out; below nats-py's own 2 MiB, at which
a publish waits."""

MAX_PASS_BYTES: Final = 256_000
"""Snapshots sent in one go, so that a request for all books does not hold up the engine."""

MAX_OWED_AT_ONCE: Final = 100
"""With more snapshots owed a request waits for the next heartbeat. Requests come in crowds, and a pass for
each would hold up the engine for longer than its lease lives."""

MAX_LEVEL_BYTES: Final = 64
"""What one level takes in a snapshot at most: a price has 13 digits, its quantity and its count 19."""

MAX_TRADES_PER_MESSAGE: Final = 4_000
MAX_PENDING_REQUESTS: Final = 1_000

_MAKER: Final = int(Liquidity.MAKER)


def books_of(state: State) -> dict[str, tuple[int, list[LevelChange]]]:
    """Every book of a state as `MarketData.start` takes them."""
    return {
        symbol: (book.sequence, [(side, *level) for side in (BID, ASK) for level in book.levels(side)])
        for symbol, book in state.books.items()
    }


class MarketData:
    """The feed of one engine. `monotonic_ns` is its clock."""

    def __init__(
        self, nc: Client, engine: int, *, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.engine = engine
        self.epoch = 0
        self.batch_number = 0
        self.replicas: dict[str, BookReplica] = {}
        self.trades = 0
        self.messages_left_out = 0
        self.trouble = ""
        """Why this engine does not serve: heartbeats tell it."""
        self._nc = nc
        self._monotonic_ns = monotonic_ns
        self._time_ns = 0
        self._reconnects = 0
        self._heartbeat_subject = subjects.heartbeat(engine)
        self._book_subjects: dict[str, str] = {}
        self._changed_ns: dict[str, int] = {}
        self._snapshot_ns: dict[str, int] = {}
        self._owed: dict[str, None] = {}
        self._parts: deque[tuple[str, bytes]] = deque()  # of one snapshot, as far as they have not left
        self._active_cycle: list[str] = []
        self._idle_cycle: list[str] = []
        self._append_times = AppendTimes()

    async def start(
        self,
        epoch: int,
        books: Mapping[str, tuple[int, Iterable[LevelChange]]],
        *,
        batch_number: int = 0,
        time_ns: int = 0,
    ) -> None:
        """A reign begins with these books, {symbol: (sequence, levels)}: show a snapshot of each."""
        self.epoch = epoch
        self.batch_number = batch_number
        self._time_ns = time_ns
        self.replicas.clear()
        self._changed_ns.clear()
        self._snapshot_ns.clear()
        for symbol, (sequence, levels) in books.items():
            self._replica(symbol).load(epoch, sequence, levels)
        self._owe_all()
        await self._send_owed()

    async def publish(
        self,
        epoch: int,
        batch_number: int,
        time_ns: int,
        changes: Sequence[BookChanged],
        fills: Sequence[Fill] = (),
    ) -> None:
        """Show what a committed batch did: a delta per changed book, then the trades made here.

        Waits for nothing but one turn of the event loop, in which bytes leave, and arrive for the next batch.
        """
        assert epoch == self.epoch, f"batch of epoch {epoch} in the feed of epoch {self.epoch}"
        self.batch_number = batch_number
        self._time_ns = time_ns
        now_ns = self._monotonic_ns()
        for change in changes:
            await self._publish_change(change, now_ns)
        trades: dict[str, list[tuple[int, int, int, int]]] = {}
        for fill in fills:
            if fill.liquidity == _MAKER and fill.engine == self.engine:
                trades.setdefault(fill.symbol, []).append(
                    (fill.execution_id, fill.price, fill.quantity, opposite(fill.side))
                )
        for symbol, made in trades.items():
            self.trades += len(made)
            for first in range(0, len(made), MAX_TRADES_PER_MESSAGE):
                part = tuple(made[first : first + MAX_TRADES_PER_MESSAGE])
                message = Trades(epoch=epoch, batch_number=batch_number, time_ns=time_ns, trades=part)
                await self._send(subjects.trades(self.engine, symbol), encode(message))
        if changes or trades:
            await asyncio.sleep(0)

    def note_append(self, took_s: float) -> None:
        """Storing a batch took this long: heartbeats tell of it."""
        self._append_times.note(took_s, self._monotonic_ns())

    async def add_book(self, symbol: str) -> None:
        """A symbol starts to trade: its empty book is shown.

        Waits for a turn of the event loop: thousands may come at once, and the lease is renewed meanwhile.
        """
        if symbol not in self.replicas:
            self._replica(symbol)
            self._owed[symbol] = None
            await self._send_owed()
            await asyncio.sleep(0)

    async def run(self) -> None:
        """Heartbeats and snapshots, until cancelled."""
        subscription = await self._nc.subscribe(
            subjects.snapshot_request(self.engine),
            cb=self._on_request,
            pending_msgs_limit=MAX_PENDING_REQUESTS,
        )
        try:
            next_ns = self._monotonic_ns()
            while True:
                await self._beat()
                # A late beat is followed by the next one on the old rhythm; beats missed altogether are not
                # made up for.
                now_ns = self._monotonic_ns()
                next_ns += HEARTBEAT_NS * max(1, -(-(now_ns - next_ns) // HEARTBEAT_NS))
                await asyncio.sleep((next_ns - now_ns) / 1e9)
        finally:
            if not self._nc.is_closed:
                await subscription.unsubscribe()

    async def _publish_change(self, change: BookChanged, now_ns: int) -> None:
        symbol = change.symbol
        replica = self._replica(symbol)
        previous_sequence = replica.sequence
        delta = BookDelta(
            epoch=self.epoch,
            sequence=change.sequence,
            previous_sequence=previous_sequence,
            batch_number=self.batch_number,
            time_ns=self._time_ns,
            levels=change.levels,
            checksum=replica.advance(change.sequence, change.levels),
        )
        self._changed_ns.pop(symbol, None)
        self._changed_ns[symbol] = now_ns
        if not await self._send(self._book_subjects[symbol], encode(delta)):
            self._owed[symbol] = None

    async def _beat(self) -> None:
        now_ns = self._monotonic_ns()
        self._note_reconnect()
        self._forget_quiet(now_ns)
        append_p50_us, append_max_us = self._append_times.recent_us(now_ns)
        heartbeat = Heartbeat(
            engine=self.engine,
            epoch=self.epoch,
            batch_number=self.batch_number,
            sent_ns=now_ns,
            sequences={symbol: self.replicas[symbol].sequence for symbol in self._changed_ns},
            append_p50_us=append_p50_us,
            append_max_us=append_max_us,
            trouble=self.trouble[:MAX_TROUBLE],
        )
        await self._send(self._heartbeat_subject, encode(heartbeat))
        self._owe_round(self._active_cycle, self._changed_ns, now_ns - ACTIVE_CYCLE_NS, MAX_ACTIVE_PER_BEAT)
        self._owe_round(self._idle_cycle, self.replicas, now_ns - IDLE_CYCLE_NS, MAX_IDLE_PER_BEAT)
        await self._send_owed()

    async def _send_owed(self) -> None:
        now_ns = self._monotonic_ns()
        sent_bytes = await self._send_parts()
        for symbol in list(self._owed):
            if self._parts or sent_bytes >= MAX_PASS_BYTES:
                return
            if now_ns - self._snapshot_ns.get(symbol, -HEARTBEAT_NS) < HEARTBEAT_NS:
                continue
            parts = self.replicas[symbol].snapshot_parts(
                self.batch_number, self._time_ns, self._nc.max_payload // MAX_LEVEL_BYTES
            )
            self._parts.extend((self._book_subjects[symbol], encode(part)) for part in parts)
            self._owed.pop(symbol, None)
            self._snapshot_ns[symbol] = now_ns
            sent_bytes += await self._send_parts()

    async def _send_parts(self) -> int:
        """Send what is left of a snapshot that was begun, as far as NATS takes it; how many bytes left."""
        sent_bytes = 0
        while self._parts:
            subject, part = self._parts.popleft()
            if not await self._send(subject, part):
                self._parts.appendleft((subject, part))
                break
            sent_bytes += len(part)
        return sent_bytes

    async def _send(self, subject: str, payload: bytes) -> bool:
        """Hand one message to nats-py without waiting; False when it was left out."""
        nc = self._nc
        backlog_bytes = nc.pending_data_size + len(payload)
        if not nc.is_connected or backlog_bytes > MAX_BACKLOG_BYTES or len(payload) > nc.max_payload:
            self.messages_left_out += 1
            return False
        await nc.publish(subject, payload)
        return True

    async def _on_request(self, request: Msg) -> None:
        try:
            symbols = decode_snapshot_request(request.data).symbols
        except NO_MESSAGE:
            return
        if symbols:
            self._owed.update(dict.fromkeys(symbol for symbol in symbols if symbol in self.replicas))
        elif len(self._owed) < len(self.replicas):  # a thousand may ask at once for all of ten thousand
            self._owed.update(dict.fromkeys(self.replicas))
        if len(self._owed) <= MAX_OWED_AT_ONCE:
            await self._send_owed()

    def _note_reconnect(self) -> None:
        reconnects = self._nc.stats["reconnects"]
        if reconnects != self._reconnects:
            self._reconnects = reconnects
            self._owe_all()

    def _owe_all(self) -> None:
        self._owed = dict.fromkeys(self.replicas)
        self._parts.clear()

    def _forget_quiet(self, now_ns: int) -> None:
        # In order of their last change, oldest first: see _publish_change.
        for symbol, changed_ns in list(self._changed_ns.items()):
            if now_ns - changed_ns <= RECENT_NS:
                break
            del self._changed_ns[symbol]

    def _owe_round(self, cycle: list[str], symbols: Iterable[str], shown_before_ns: int, most: int) -> None:
        """Owe the next of a round; once it is over, a new one begins, of what was last shown before then.

        The longest ago comes first, or in very long rounds some would wait for two.
        """
        if not cycle:
            shown_ns = self._snapshot_ns
            due = (symbol for symbol in symbols if shown_ns.get(symbol, 0) <= shown_before_ns)
            cycle.extend(sorted(due, key=lambda symbol: shown_ns.get(symbol, 0)))
        self._owed.update(dict.fromkeys(cycle[:most]))
        del cycle[:most]

    def _replica(self, symbol: str) -> BookReplica:
        replica = self.replicas.get(symbol)
        if replica is None:
            self._book_subjects[symbol] = subjects.book(self.engine, symbol)
            replica = self.replicas[symbol] = BookReplica(symbol)
            replica.load(self.epoch, 0, ())
        return replica
