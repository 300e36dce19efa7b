"""One engine's feed as a reader sees it: its books, its epoch, its age, and what to ask it for, and when.

Here: every decision about a feed, from numbers passed in. Not here: sockets, clocks and randomness
(`bus.follower` carries), what a message does to one book (`bus.replica`).

            two clean heartbeats and a snapshot
    DOWN ────────────────────────────────────────▶ LIVE ◀──150 ms──▶ SUSPECT
      ▲   age over 300 ms, or a new epoch            │                  │
      └──────────────────────────────────────────────┴──────────────────┘

Age is how old the newest heartbeat is: local time less its sending time, less the smallest such difference of
the epoch. So a backlog of old heartbeats that arrives "now" is as old as it is. The clock of a machine that
was paused is behind from then on, so all differences grow at once and stay: when they have stood still for a
while, which those of a backlog do not, the smallest of them counts.

Invariants: every replica has the feed's epoch or is unsynced; only a synced book of a live peer is protected;
the number of books is bounded.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final, assert_never

import msgspec

from bus.messages import BookDelta, BookSnapshot, FeedMessage, Heartbeat, Trades
from bus.replica import BookReplica, Outcome
from bus.subjects import SYMBOL_PATTERN

LIVE_NS: Final = 150_000_000
"""A peer older than this is suspect."""

DOWN_NS: Final = 300_000_000
"""A peer older than this is down."""

CLEAN_HEARTBEATS: Final = 2
"""How many young heartbeats in a row bring a peer back."""

MAX_SYMBOLS: Final = 10_000
"""Books kept of one peer; further symbols are left out."""

MAX_SYMBOLS_ASKED: Final = 1_000
"""A request for more books than this asks for all."""

SHORTEST_WAIT_NS: Final = 50_000_000
LONGEST_WAIT_NS: Final = 1_000_000_000

_DRIFT_PER_MILLION: Final = 200
"""How much faster one machine's clock may run than another's: the smallest difference may rise by it."""

STEADY_NS: Final = 60_000_000_000
"""Differences that stay within LIVE_NS of each other for so long have no backlog in them."""


class PeerState(Enum):
    """Whether a peer's quotes can be trusted to be there."""

    LIVE = "live"
    SUSPECT = "suspect"
    DOWN = "down"


class FeedCounters(msgspec.Struct):
    """What went by since the feed was first seen."""

    applied: int = 0
    duplicates: int = 0
    gaps: int = 0
    stale_epochs: int = 0
    new_epochs: int = 0
    checksum_failures: int = 0
    malformed: int = 0
    losses: int = 0
    requests: int = 0


class _Wish(msgspec.Struct):
    """A snapshot we want: when to ask for it next, and how long to wait after that."""

    due_ns: int = 0
    wait_ns: int = SHORTEST_WAIT_NS
    asked: bool = False

    def ask(self, now_ns: int, jitter: float) -> None:
        self.asked = True
        self.due_ns = now_ns + round(self.wait_ns * (0.5 + jitter))
        self.wait_ns = min(2 * self.wait_ns, LONGEST_WAIT_NS)


class PeerFeed:
    """Follows one engine. Times are the reader's own monotonic clock in nanoseconds."""

    def __init__(self, engine: int) -> None:
        self.engine = engine
        self.epoch = 0
        self.batch_number = 0
        self.append_us: tuple[int, int] | None = None
        """How long its journal took of late, the median and the longest; None when it stored nothing."""
        self.trouble = ""
        """Why it does not serve, as it says itself; empty when it does."""
        self.state = PeerState.DOWN
        self.replicas: dict[str, BookReplica] = {}
        self.left_out = ""
        """The first symbol beyond MAX_SYMBOLS; empty while all its books are kept."""
        self.counters = FeedCounters()
        self._wishes: dict[str, _Wish] = {}
        self._wish_for_all: _Wish | None = _Wish()
        self._clean_heartbeats = 0
        self._snapshot_seen = False
        self._sent_ns: int | None = None
        self._heard_ns = 0
        self._least_difference_ns = 0
        self._steady_since_ns = 0
        self._steady_from_ns = self._steady_to_ns = 0  # the differences since then

    def on_message(self, message: FeedMessage, symbol: str | None, received_ns: int) -> bool:
        """Take one message of this engine; `symbol` is the one its subject names, None for a heartbeat.

        True when a book changed, or whether it is synced did.
        """
        if message.epoch < self.epoch:
            self.counters.stale_epochs += 1
            return False
        if message.epoch > self.epoch:
            self._begin_epoch(message.epoch)
        match message:  # the commonest first
            case BookDelta() | BookSnapshot():
                return self._on_book(message, symbol, received_ns)
            case Trades():
                return False
            case Heartbeat():
                return self._on_heartbeat(message, received_ns)
        assert_never(message)

    def on_malformed(self) -> None:
        """Something came that is no message of this feed: what it should have said is lost."""
        self.counters.malformed += 1
        self.lost()

    def lost(self) -> None:
        """Messages may be missing (overflow, reconnect, silence): every book is unsynced, ask for all."""
        self.counters.losses += 1
        for replica in self.replicas.values():
            replica.lose()
        self._want_all()

    def seems_late(self, now_ns: int) -> bool:
        """Whether `tick` would think less of the peer than before: first read all that has come by now."""
        if self.state is PeerState.DOWN:
            return False
        age_ns = self.age_ns(now_ns)
        return age_ns is None or age_ns > (LIVE_NS if self.state is PeerState.LIVE else DOWN_NS)

    def tick(self, now_ns: int) -> PeerState:
        """Let the time that passed count: the state as of `now_ns`, all that came by then being read."""
        age_ns = self.age_ns(now_ns)
        if age_ns is None or age_ns > DOWN_NS:
            self._clean_heartbeats = 0
            if self.state is not PeerState.DOWN:
                self._go_down()
                self.lost()
        elif self.state is not PeerState.DOWN or (
            self._clean_heartbeats >= CLEAN_HEARTBEATS and self._snapshot_seen
        ):
            self.state = PeerState.LIVE if age_ns <= LIVE_NS else PeerState.SUSPECT
        return self.state

    def _hear(self, now_ns: int) -> None:
        """What came may bring the peer back. If it is old, what is still to be read may not be."""
        if not self.seems_late(now_ns):
            self.tick(now_ns)

    def age_ns(self, now_ns: int) -> int | None:
        """How long ago the newest heartbeat was sent, as measured; None before the epoch's first."""
        if self._sent_ns is None:
            return None
        return now_ns - self._sent_ns - self._least_difference_ns

    def protected(self, symbol: str) -> BookReplica | None:
        """The book whose quotes attract legs and must not be traded through: synced, of a live peer."""
        replica = self.replicas.get(symbol)
        return replica if replica is not None and replica.synced and self.state is PeerState.LIVE else None

    def symbols_to_request(self, now_ns: int, jitter: float) -> tuple[str, ...] | None:
        """What to ask snapshots for now: None when nothing is due, empty for all books the engine has.

        Counts as asked: each is due again after a wait that doubles from 50 ms to 1 s, times 0.5 to 1.5 as
        `jitter` (0 to 1) says, until it is there.
        """
        if self._wish_for_all is not None:
            if self._wish_for_all.due_ns > now_ns:
                return None
            self._wish_for_all.ask(now_ns, jitter)
            self.counters.requests += 1
            return ()
        due = [symbol for symbol, wish in self._wishes.items() if wish.due_ns <= now_ns]
        if not due:
            return None
        for symbol in due:
            self._wishes[symbol].ask(now_ns, jitter)
        self.counters.requests += 1
        return tuple(due) if len(due) <= MAX_SYMBOLS_ASKED else ()

    def _on_book(self, message: BookDelta | BookSnapshot, symbol: str | None, received_ns: int) -> bool:
        replica = None if symbol is None else self._replica(symbol)
        if replica is None:
            return False
        was_synced = replica.synced
        if isinstance(message, BookDelta):
            outcome = replica.apply_delta(message)
        else:
            outcome = replica.apply_snapshot(message)
            if outcome in (Outcome.APPLIED, Outcome.DUPLICATE):
                self._on_snapshot(received_ns)
        if outcome is Outcome.MALFORMED:
            self.on_malformed()
            return True
        self._count(outcome)
        self._note(replica)
        return outcome is Outcome.APPLIED or replica.synced != was_synced

    def _on_snapshot(self, received_ns: int) -> None:
        self._snapshot_seen = True
        if self._wish_for_all is not None and self._wish_for_all.asked:
            # The answer to the wish for all has begun; what does not come with it is asked for by name.
            self._wish_for_all = None
            for symbol, replica in self.replicas.items():
                if not replica.synced:
                    self._wishes[symbol] = _Wish(due_ns=received_ns + LONGEST_WAIT_NS // 4)
        self._hear(received_ns)

    def _on_heartbeat(self, heartbeat: Heartbeat, received_ns: int) -> bool:
        if heartbeat.engine != self.engine:
            self.on_malformed()
            return True
        self._measure(heartbeat.sent_ns, received_ns)
        self.batch_number = max(self.batch_number, heartbeat.batch_number)
        append_us = heartbeat.append_p50_us, heartbeat.append_max_us
        self.append_us = append_us if heartbeat.append_max_us else None
        self.trouble = heartbeat.trouble
        changed = False
        for symbol, sequence in heartbeat.sequences.items():
            replica = self._replica(symbol)
            if replica is not None:
                was_synced = replica.synced
                if not replica.expect(sequence) and was_synced:
                    self.counters.gaps += 1
                    changed = True
                self._note(replica)
        self._hear(received_ns)
        return changed

    def _measure(self, sent_ns: int, received_ns: int) -> None:
        difference_ns = received_ns - sent_ns
        if self._sent_ns is None:
            self._least_difference_ns = difference_ns
        else:
            drift_ns = (received_ns - self._heard_ns) * _DRIFT_PER_MILLION // 1_000_000
            self._least_difference_ns = min(difference_ns, self._least_difference_ns + drift_ns)
        self._note_steadiness(difference_ns, received_ns)
        self._heard_ns = received_ns
        self._sent_ns = sent_ns if self._sent_ns is None else max(self._sent_ns, sent_ns)
        is_clean = difference_ns - self._least_difference_ns <= LIVE_NS
        self._clean_heartbeats = self._clean_heartbeats + 1 if is_clean else 0

    def _note_steadiness(self, difference_ns: int, received_ns: int) -> None:
        """Take the differences of a clock that was set back as they are, once they have stood still."""
        low_ns = min(difference_ns, self._steady_from_ns)
        high_ns = max(difference_ns, self._steady_to_ns)
        is_steady = high_ns - low_ns <= LIVE_NS and received_ns - self._heard_ns <= DOWN_NS
        if is_steady and received_ns - self._steady_since_ns <= STEADY_NS:
            self._steady_from_ns, self._steady_to_ns = low_ns, high_ns
            return
        if is_steady:
            self._least_difference_ns = max(self._least_difference_ns, low_ns)
        self._steady_since_ns = received_ns
        self._steady_from_ns = self._steady_to_ns = difference_ns

    def _begin_epoch(self, epoch: int) -> None:
        if self.epoch:
            self._want_all()  # the first reign we hear of was asked about before
        self.epoch = epoch
        self.batch_number = 0
        self.append_us = None
        self.trouble = ""
        self.counters.new_epochs += 1
        for replica in self.replicas.values():
            replica.begin_epoch(epoch)
        self._sent_ns = None
        self._clean_heartbeats = 0
        self._go_down()

    def _go_down(self) -> None:
        self.state = PeerState.DOWN
        self._snapshot_seen = False

    def _want_all(self) -> None:
        if self._wish_for_all is None:
            self._wish_for_all = _Wish()
        # An answer that is under way may have begun before the loss: it does not settle the wish.
        self._wish_for_all.asked = False
        self._wishes.clear()

    def _note(self, replica: BookReplica) -> None:
        if replica.synced:
            self._wishes.pop(replica.symbol, None)
        elif self._wish_for_all is None and replica.symbol not in self._wishes:
            self._wishes[replica.symbol] = _Wish()

    def _replica(self, symbol: str) -> BookReplica | None:
        replica = self.replicas.get(symbol)
        if replica is None:
            if SYMBOL_PATTERN.fullmatch(symbol) is None:
                return None
            if len(self.replicas) >= MAX_SYMBOLS:
                self.left_out = self.left_out or symbol
                return None
            replica = self.replicas[symbol] = BookReplica(symbol)
            replica.begin_epoch(self.epoch)
        return replica

    def _count(self, outcome: Outcome) -> None:
        match outcome:
            case Outcome.APPLIED:
                self.counters.applied += 1
            case Outcome.DUPLICATE:
                self.counters.duplicates += 1
            case Outcome.GAP:
                self.counters.gaps += 1
            case Outcome.CHECKSUM:
                self.counters.checksum_failures += 1
            case Outcome.STALE_EPOCH | Outcome.MALFORMED | Outcome.WAITING | Outcome.NEW_EPOCH:
                pass  # counted where they are noticed, or no news
            case _:
                assert_never(outcome)


def protected_books(peers: Mapping[int, PeerFeed], symbol: str) -> dict[int, BookReplica]:
    """The symbol's books that may be traded on: the synced ones of live engines, by number, in order."""
    return {
        engine: book for engine, peer in sorted(peers.items()) if (book := peer.protected(symbol)) is not None
    }
