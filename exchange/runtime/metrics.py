"""What the exchange tells Prometheus; docs/monitoring.md has the table. Its parts count, a scrape reads."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import nats.errors
from nats.aio.client import Client
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bus import provision
from bus.executions import ExecutionsReader
from bus.follower import FeedFollower
from bus.messages import EngineEntry, InstrumentEntry
from bus.metrics import connection_families, counters, feed_families, gauge, gauges
from bus.peer import PeerState
from exchange.directory import Directory
from exchange.positions import Positions
from exchange.runtime.feeds import Standbys
from exchange.runtime.servicer import REGISTRATION_OUTCOMES, ExchangeServicer

STREAM_SIZES_PERIOD_S: Final = 10.0
"""How often NATS is asked how full the streams are."""


class StreamSizes:
    """How full the streams are that have a limit, as NATS said last."""

    def __init__(self) -> None:
        self.newest: Mapping[str, provision.StreamSize] = {}

    async def run(self, nc: Client) -> None:
        """Ask for ever."""
        while True:
            with contextlib.suppress(nats.errors.Error):
                self.newest = await provision.stream_sizes(nc)
            await asyncio.sleep(STREAM_SIZES_PERIOD_S)


class ViewCounts:
    """What became of the views that were due."""

    def __init__(self) -> None:
        self.published = 0
        self.dropped = 0


class ExchangeCollector(Collector):
    """Reads the parts of one exchange."""

    def __init__(
        self,
        *,
        connections: Callable[[], Sequence[Client]],
        follower: FeedFollower,
        engines: Mapping[int, EngineEntry],
        standbys: Standbys,
        instruments: Mapping[str, InstrumentEntry],
        directory: Directory,
        servicer: ExchangeServicer,
        views: ViewCounts,
        executions: ExecutionsReader,
        positions: Positions,
        streams: StreamSizes,
    ) -> None:
        self._connections = connections
        self._follower = follower
        self._engines = engines
        self._standbys = standbys
        self._instruments = instruments
        self._directory = directory
        self._servicer = servicer
        self._views = views
        self._executions = executions
        self._positions = positions
        self._streams = streams

    def collect(self) -> Iterator[Metric]:
        """As Collector says; must run in the event loop's thread."""
        now_ns = time.monotonic_ns()
        yield from self._engine_families(now_ns)
        yield from self._clients()
        yield from self._shown()
        yield from self._stream_families()
        yield from connection_families(self._connections())
        yield from feed_families(self._follower.peers, now_ns)

    def _engine_families(self, now_ns: int) -> Iterator[Metric]:
        peers = self._follower.peers
        states = Counter(
            peers[number].state if number in peers else PeerState.DOWN for number in self._engines
        )
        yield gauges(
            "matchbus_engines",
            "Registered engines by the state of their feeds.",
            ["state"],
            {(state.value,): states[state] for state in PeerState},
        )
        yield gauges(
            "matchbus_standby_lag_batches",
            "Stored batches that the standby has not applied.",
            ["engine"],
            {
                (str(status.engine),): status.lag_batches
                for status in self._standbys.statuses(self._engines, now_ns)
            },
        )
        yield gauge("matchbus_instruments", "Symbols that trade.", len(self._instruments))

    def _clients(self) -> Iterator[Metric]:
        yield gauge("matchbus_registered_clients", "Clients that are bound.", len(self._directory))
        yield counters(
            "matchbus_registrations",
            "Calls of RegisterClient by outcome.",
            ["outcome"],
            {(outcome,): self._servicer.registrations[outcome] for outcome in REGISTRATION_OUTCOMES},
        )

    def _shown(self) -> Iterator[Metric]:
        yield counters(
            "matchbus_views",
            "Views that were due: published, or dropped because NATS did not take them, or not at once.",
            ["outcome"],
            {("published",): self._views.published, ("dropped",): self._views.dropped},
        )
        yield gauge(
            "matchbus_positions_lag_messages",
            "Messages of execution reports that are not in the positions yet.",
            self._executions.pending,
        )
        yield gauge(
            "matchbus_positions_caught_up",
            "Whether the positions hold all that was stored when the exchange started.",
            float(self._executions.caught_up.is_set()),
        )
        yield gauge(
            "matchbus_position_gaps",
            "Clients whose positions are unknown, because a fill is missing.",
            self._positions.gap_count,
        )

    def _stream_families(self) -> Iterator[Metric]:
        streams = self._streams.newest
        yield gauges(
            "matchbus_stream_size_bytes",
            "What a stream holds that has a limit; asked every 10 s.",
            ["stream"],
            {(name,): size.used for name, size in streams.items()},
        )
        yield gauges(
            "matchbus_stream_limit_bytes",
            "What it may hold; with more its engine refuses commands, with full reports all engines do.",
            ["stream"],
            {(name,): size.limit for name, size in streams.items()},
        )
