"""What one engine tells Prometheus; docs/monitoring.md has the table.

The parts count in plain numbers whether anybody asks or not; only a scrape makes metrics of them, so an order
costs the same with `--metrics` and without. Labels are kinds, reasons, states and engine numbers: no string
that a client made, no order id.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Final, get_args

from nats.aio.client import Client
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bus.follower import FeedFollower
from bus.journal import Journal
from bus.metrics import (
    Histogram,
    connection_families,
    counter,
    counters,
    feed_families,
    gauge,
    gauges,
    histogram,
    one_of,
)
from engine.commands import Command, EpochStarted
from engine.runtime.away import AwayView
from engine.runtime.commit_loop import Batch, JournalUnavailable, Overloaded, Retired
from engine.runtime.effects import Reports
from engine.runtime.legs import SENT_OUTCOMES, TAKEN_OUTCOMES
from engine.runtime.market_data import MarketData
from engine.runtime.servicer import MatchingEngineServicer
from engine.runtime.sessions import Sessions
from engine.runtime.snapshots import SnapshotMaker
from engine.runtime.standby import Standby
from engine.runtime.trading import Trading
from engine.state import State
from engine.terms import RejectReason

_BATCH_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)
_NS_PER_S: Final = 1_000_000_000
_UNTAKEN: Final = {
    Overloaded: "overloaded",
    JournalUnavailable: "journal_unavailable",
    Retired: "handed_over",
}
_REASONS: Final = sorted(set(RejectReason) - {RejectReason.NONE})

_KINDS: Final[dict[type, str]] = {
    kind: kind.__struct_config__.tag for kind in get_args(Command) if kind is not EpochStarted
}
"""Commands by their names in the journal; a reign begins before anything is counted."""


class Role(Enum):
    """What a process is to its engine."""

    STARTING = "starting"
    STANDBY = "standby"
    PRIMARY = "primary"


class CommitCounts:
    """What committed batches held, and how long they took."""

    def __init__(self) -> None:
        self.commands: Counter[type] = Counter()
        self.sizes = Histogram(_BATCH_SIZES)
        self.appends = Histogram()
        self.to_feed = Histogram()

    def note(self, batch: Batch) -> None:
        """Count a batch whose effects were let out."""
        self.commands.update(map(type, batch.commands))
        self.sizes.observe(len(batch.commands))
        self.appends.observe(batch.committed_s - batch.append_began_s)
        if batch.changes:
            self.to_feed.observe(batch.shown_s - batch.committed_s)


class EngineCollector(Collector):
    """Reads the parts of one engine. Those that are None are not there yet, or not in this role."""

    def __init__(
        self,
        *,
        state: State,
        journal: Journal,
        connections: Callable[[], Sequence[Client]],
        follower: FeedFollower,
        away: AwayView,
        market_data: MarketData,
        sessions: Sessions,
        snapshots: SnapshotMaker,
        reports: Reports,
        counts: CommitCounts,
    ) -> None:
        self.role = Role.STARTING
        self.standby: Standby | None = None
        self.trading: Trading | None = None
        self.servicer: MatchingEngineServicer | None = None
        self._state = state
        self._journal = journal
        self._connections = connections
        self._follower = follower
        self._away = away
        self._market_data = market_data
        self._sessions = sessions
        self._reports = reports
        self._snapshots = snapshots
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """As Collector says; must run in the event loop's thread."""
        yield from self._place()
        if self.role is Role.PRIMARY:
            yield gauge(
                "matchbus_serving",
                "0 while the journal, the reports or the lease keep it from serving, else 1.",
                float(not self._market_data.trouble),
            )
        yield from self._commits()
        yield from self._queues()
        yield from self._legs_families()
        yield from self._market_data_families()
        yield from self._clients()
        if self.role is Role.PRIMARY:  # a standby hears of no snapshot after its start
            yield from self._snapshot_families()
        yield from connection_families(self._connections())
        yield from feed_families(self._follower.peers, time.monotonic_ns())

    def _place(self) -> Iterator[Metric]:
        yield one_of(
            "matchbus_role",
            "1 for what this process is to its engine.",
            "role",
            [role.value for role in Role],
            self.role.value,
        )
        yield gauge("matchbus_epoch", "The reign that the state is in.", self._state.epoch)
        yield gauge(
            "matchbus_journal_batch_number",
            "The newest batch that is known to be stored and applied.",
            self._journal.position.batch_number,
        )
        since = self._journal.unanswered_since
        yield gauge(
            "matchbus_journal_unanswered_seconds",
            "How long an append has had no good answer; 0 if none waits, as on an idle engine.",
            time.monotonic() - since if since is not None else 0,
        )
        yield gauge(
            "matchbus_clock_behind_seconds",
            "How far the clock is behind the newest batch, whose time all get meanwhile.",
            max(0, self._state.accounts.time_ns - time.time_ns()) / _NS_PER_S,
        )
        if self.standby is not None and self.role is Role.STANDBY:
            yield gauges(
                "matchbus_standby_lag_batches",
                "Stored batches that the standby has not applied.",
                ["engine"],
                {(str(self._state.engine),): self.standby.lag_batches},
            )

    def _commits(self) -> Iterator[Metric]:
        counts = self._counts
        yield counters(
            "matchbus_commands",
            "Committed commands by kind.",
            ["kind"],
            {(name,): counts.commands[kind] for kind, name in _KINDS.items()},
        )
        if self.trading is not None and self.servicer is not None:
            loop = self.trading.loop
            empty = Counter({RejectReason.EMPTY_COMMAND: self.servicer.empty_commands})  # it gets no further
            refusals = self.trading.effects.refusals + empty
            yield counters(
                "matchbus_refusals",
                "Commands that were refused, by reason.",
                ["reason"],
                {(reason.name.lower(),): refusals[reason] for reason in _REASONS},
            )
            untaken = {name: loop.untaken[kind] for kind, name in _UNTAKEN.items()}
            untaken["too_fast"] = self.servicer.rates.refused
            yield counters(
                "matchbus_untaken_commands",
                "Commands that were not taken, by why; they may be sent again.",
                ["reason"],
                {(name,): count for name, count in untaken.items()},
            )
            yield gauge(
                "matchbus_batch_delay_seconds",
                "How long a small batch waits for more commands; 0 with processor time to spare.",
                loop.batch_delay_s,
            )
        yield counter("matchbus_trades", "Trades made on this engine.", self._market_data.trades)
        yield histogram("matchbus_batch_commands", "Commands in a batch.", counts.sizes)
        yield histogram(
            "matchbus_append_seconds", "From sending a batch to the journal to its answer.", counts.appends
        )
        yield histogram(
            "matchbus_commit_to_feed_seconds",
            "From the journal's answer to the batch's deltas and trades on their way to peers.",
            counts.to_feed,
        )

    def _queues(self) -> Iterator[Metric]:
        depths: dict[tuple[str, ...], float] = {
            ("legs",): len(self._state.legs),
            ("reports",): self._reports.queued,
        }
        if self.trading is not None:
            depths["commands",] = self.trading.loop.queued_commands
        yield gauges(
            "matchbus_queue_depth",
            "What waits: commands for a batch, reports for their stream, legs for their result.",
            ["queue"],
            depths,
        )

    def _legs_families(self) -> Iterator[Metric]:
        if self.trading is not None:
            legs = self.trading.legs
            yield counters(
                "matchbus_legs_sent",
                "Our legs that are back, by outcome.",
                ["outcome"],
                {(outcome,): legs.sent[outcome] for outcome in SENT_OUTCOMES},
            )
            yield counters(
                "matchbus_legs_taken",
                "Legs of peers that were answered, by outcome.",
                ["outcome"],
                {(outcome,): legs.taken[outcome] for outcome in TAKEN_OUTCOMES},
            )
            yield counter("matchbus_leg_questions", "Times an unanswered leg was queried.", legs.questions)
            yield histogram("matchbus_leg_seconds", "From sending a leg to its answer.", legs.waits)
        yield gauges(
            "matchbus_peer_legs_suspect",
            "Whether the peer left three questions in a row unanswered: its quotes do not count.",
            ["peer"],
            {(str(number),): float(self._away.is_suspect(number)) for number in self._follower.peers},
        )

    def _market_data_families(self) -> Iterator[Metric]:
        yield counter(
            "matchbus_feed_left_out",
            "Messages of our own feed that NATS did not take; snapshots follow.",
            self._market_data.messages_left_out,
        )

    def _clients(self) -> Iterator[Metric]:
        yield gauge("matchbus_sessions", "Tokens of clients that are known.", len(self._sessions))
        yield gauge(
            "matchbus_accounts",
            "Clients that ever had an order here.",
            len(self._state.accounts.by_name),
        )
        if self.servicer is not None:
            yield gauges(
                "matchbus_open_streams",
                "Calls that go on, by their name in the contract.",
                ["call"],
                {(call,): count for call, count in self.servicer.open_streams.items()},
            )
            yield gauge(
                "matchbus_streaming_clients",
                "Clients that have such a call open.",
                self.servicer.streaming_clients,
            )

    def _snapshot_families(self) -> Iterator[Metric]:
        snapshots = self._snapshots
        yield gauge(
            "matchbus_commands_since_snapshot",
            "Commands that a start would have to replay, as far as this process knows.",
            snapshots.commands,
        )
        yield counter("matchbus_snapshot_failures", "Snapshots that could not be made.", snapshots.failures)
        newest = snapshots.newest
        if newest is not None:
            yield gauge(
                "matchbus_snapshot_timestamp_seconds",
                "When the newest snapshot was made that this process knows of; absent before the first.",
                newest.time_ns / _NS_PER_S,
            )
            yield gauge("matchbus_snapshot_size_bytes", "Its size as it is stored.", newest.size)
