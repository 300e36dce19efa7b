"""Carries the feeds of all engines into their `PeerFeed`s: finds engines, subscribes, asks for snapshots.

Here: subscriptions, clock and randomness. Not here: any decision about a feed (`bus.peer`).

Each engine is followed by ONE subscription with a bounded queue. When the queue overflows, all of it is
thrown away by subscribing anew: late quotes are worth nothing. The connection's owner passes on two things
that only the connection hears of: errors (`on_error`) and reconnects (`reconnected`).
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import SlowConsumerError

from bus import subjects
from bus.messages import (
    NO_MESSAGE,
    BookDelta,
    BookSnapshot,
    FeedMessage,
    Heartbeat,
    SnapshotRequest,
    Trades,
    decode_feed,
    encode,
)
from bus.peer import MAX_SYMBOLS, PeerFeed, PeerState
from bus.round_trip import RoundTrip

TICK_S: Final = 0.02
"""How often time passes for the feeds: bounds how late silence is noticed and a request leaves."""

MAX_PEERS: Final = 256
"""Engines followed; those found after them are left out."""

MAX_PENDING_MESSAGES: Final = 20_000
MAX_PENDING_BYTES: Final = 16_000_000

_log: Final = logging.getLogger(__name__)

_BOOK_SUBJECT_TOKENS: Final = 4
_KIND_TOKENS: Final[dict[type, str]] = {BookDelta: "book", BookSnapshot: "book", Trades: "trade"}

OnChange = Callable[[int, str], None]
OnState = Callable[[int, PeerFeed], None]


class FeedFollower:
    """The books of every engine but `own_engine`, kept up to date while `run` runs.

    `on_change(engine, symbol)` is called after each change of one book, or of whether it is synced;
    `on_state(engine, feed)` when an engine becomes live, suspect or down, or several of its books become
    unsynced at once. Both are called synchronously and must not wait. `jitter`, from 0 up to 1, spreads the
    requests for snapshots over time.
    """

    def __init__(
        self,
        nc: Client,
        *,
        own_engine: int | None,
        on_change: OnChange = lambda _engine, _symbol: None,
        on_state: OnState = lambda _engine, _feed: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.peers: dict[int, PeerFeed] = {}
        self._nc = nc
        self._own_engine = own_engine
        self._on_change = on_change
        self._on_state = on_state
        self._jitter = jitter
        self._followings: dict[int, _Following] = {}
        self._has_told_left_out = False
        self._round_trip = RoundTrip(nc)

    async def run(self) -> None:
        """Follow until cancelled."""
        discovery = await self._nc.subscribe(
            subjects.HEARTBEATS, cb=self._discover, pending_msgs_limit=MAX_PENDING_MESSAGES
        )
        await self._round_trip.start()
        try:
            while True:
                now_ns = time.monotonic_ns()
                if any(feed.seems_late(now_ns) for feed in self.peers.values()):
                    # Its heartbeats may be waiting to be read: this process may itself have been held up.
                    await self._round_trip.make()
                for following in list(self._followings.values()):
                    await following.tick(now_ns, self._jitter())
                await asyncio.sleep(TICK_S)
        finally:
            await _unsubscribe(discovery, self._nc)
            await self._round_trip.stop()
            for following in self._followings.values():
                await following.stop()
            self._followings.clear()

    def sees(self, engine: int) -> bool:
        """Whether an engine's feed is live."""
        feed = self.peers.get(engine)
        return feed is not None and feed.state is PeerState.LIVE

    def reconnected(self) -> None:
        """The connection was away: whatever was sent meanwhile is missing."""
        for following in self._followings.values():
            following.lost()

    def on_error(self, error: Exception) -> bool:
        """Take an error the connection reports; True when it was an overflow of one of our queues."""
        if not isinstance(error, SlowConsumerError):
            return False
        return any(following.overflowed(error.sub) for following in self._followings.values())

    async def _discover(self, msg: Msg) -> None:
        engine = subjects.engine_of(msg.subject)
        if engine in (0, self._own_engine) or engine in self._followings:
            return
        if len(self._followings) >= MAX_PEERS:
            self._tell_left_out(engine)
            return
        feed = self.peers.setdefault(engine, PeerFeed(engine))
        following = _Following(self._nc, feed, self._on_change, self._on_state)
        self._followings[engine] = following
        await following.start()

    def _tell_left_out(self, engine: int) -> None:
        if not self._has_told_left_out:
            self._has_told_left_out = True
            _log.warning(
                "E%d is not followed, nor is any engine found after it: %d are, and no more can be. Quotes of"
                " the others count for nothing here: run fewer engines in this market, and start this process"
                " again to forget those that are gone",
                engine,
                MAX_PEERS,
            )


class _Following:
    """The one subscription to one engine's feed."""

    def __init__(self, nc: Client, feed: PeerFeed, on_change: OnChange, on_state: OnState) -> None:
        self._nc = nc
        self._feed = feed
        self._on_change = on_change
        self._on_state = on_state
        self._subscription: Subscription | None = None
        self._has_overflowed = False
        self._told_state = feed.state
        self._has_told_left_out = False

    async def start(self) -> None:
        """Subscribe; what was followed before is out of date."""
        self._has_overflowed = False
        self._subscription = await self._nc.subscribe(
            subjects.feed(self._feed.engine),
            cb=self._receive,
            pending_msgs_limit=MAX_PENDING_MESSAGES,
            pending_bytes_limit=MAX_PENDING_BYTES,
        )
        self.lost()

    async def stop(self) -> None:
        """Unsubscribe, throwing away what is queued."""
        if self._subscription is not None:
            await _unsubscribe(self._subscription, self._nc)
            self._subscription = None

    async def tick(self, now_ns: int, jitter: float) -> None:
        """Let time pass: start again after an overflow, tell what is new, ask for what is missing."""
        if self._has_overflowed:
            await self.stop()
            await self.start()
        self._feed.tick(now_ns)
        self._tell_state()
        self._tell_left_out()
        if not self._nc.is_connected:
            return
        wanted = self._feed.symbols_to_request(now_ns, jitter)
        if wanted is not None:
            subject = subjects.snapshot_request(self._feed.engine)
            await self._nc.publish(subject, encode(SnapshotRequest(wanted)))

    def lost(self) -> None:
        """Messages may be missing."""
        self._feed.lost()
        self._tell_state(always=True)

    def overflowed(self, subscription: Subscription) -> bool:
        """Whether it was our queue; if so nothing in it counts, and the next tick throws it away."""
        if subscription is not self._subscription:
            return False
        if not self._has_overflowed:
            self._has_overflowed = True
            self.lost()
        return True

    async def _receive(self, msg: Msg) -> None:
        if self._has_overflowed:
            return
        feed = self._feed
        try:
            message = decode_feed(msg.data)
        except NO_MESSAGE:
            self._drop()
            return
        symbol = _symbol_named(msg.subject, message)
        if symbol is None and not isinstance(message, Heartbeat):
            self._drop()
            return
        changed = feed.on_message(message, symbol, time.monotonic_ns())
        self._tell_state(always=changed and symbol is None)
        if changed and symbol is not None:
            self._on_change(feed.engine, symbol)

    def _drop(self) -> None:
        self._feed.on_malformed()
        self._tell_state(always=True)

    def _tell_state(self, *, always: bool = False) -> None:
        if always or self._feed.state is not self._told_state:
            self._told_state = self._feed.state
            self._on_state(self._feed.engine, self._feed)

    def _tell_left_out(self) -> None:
        if self._feed.left_out and not self._has_told_left_out:
            self._has_told_left_out = True
            _log.warning(
                "%s is not followed on E%d, nor is any symbol found after it: %s books of the engine are, and"
                " no more can be. Quotes in the others count for nothing here: trade them in another market",
                self._feed.left_out,
                self._feed.engine,
                f"{MAX_SYMBOLS:,}",
            )


def _symbol_named(subject: str, message: FeedMessage) -> str | None:
    """The symbol in `md.<n>.<kind>.<token>`, None where the subject is not one of this message's kind."""
    parts = subject.split(".")
    if len(parts) != _BOOK_SUBJECT_TOKENS or parts[2] != _KIND_TOKENS.get(type(message)):
        return None
    symbol = subjects.symbol_of(parts[3])
    return symbol if subjects.SYMBOL_PATTERN.fullmatch(symbol) is not None else None


async def _unsubscribe(subscription: Subscription, nc: Client) -> None:
    if not nc.is_closed:
        await subscription.unsubscribe()
