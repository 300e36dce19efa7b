"""What a process tells Prometheus: plain numbers, counted where things happen, read when somebody asks.

    commit loop, legs, feeds: ints, `Histogram`s ◀──reads── a collector of the process ◀── GET /metrics

Here: the server, and what engine and exchange have alike. Not here: what is theirs (`*/runtime/metrics.py`).

The event loop answers, not a thread. What it reads is then of one moment without a lock, and a dict cannot
grow under the reader. A thread would not spare the loop: the interpreter runs one of them at a time, and an
answer takes less than a thread's turn. The server takes few requests at once, each small and for a few
seconds, and nothing that happens to it ends the process.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

import msgspec
from nats.aio.client import Client
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from bus.addresses import host_of
from bus.peer import PeerFeed, PeerState

MAX_REQUESTS: Final = 8
"""Answered at once; more are cut off, and Prometheus comes again."""

MAX_REQUEST_BYTES: Final = 8_192
PATIENCE_S: Final = 2.0
"""How long one may take to ask and to read the answer."""

LAG_PERIOD_S: Final = 0.05

_PATH: Final = b"/metrics"
_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_NS_PER_S: Final = 1_000_000_000
_GENERATIONS: Final = 3

_log: Final = logging.getLogger(__name__)


class Histogram:
    """How many observations were at most each bound, and their sum: cheap enough for once a batch."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float] = _SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        """Of all observations."""

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def buckets(self) -> list[tuple[str, int]]:
        """(upper bound, observations at most that), as Prometheus has it."""
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        return list(zip(names, accumulate(self._counts), strict=True))


def gauge(name: str, text: str, value: float) -> Metric:
    """One number of now."""
    return GaugeMetricFamily(name, text, value)


def gauges(name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    """Numbers of now, by the values of their labels."""
    return _labelled(GaugeMetricFamily(name, text, labels=labels), values)


def counter(name: str, text: str, value: float) -> Metric:
    """One number that only grows; the name is shown with `_total`."""
    return CounterMetricFamily(name, text, value)


def counters(name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    """Numbers that only grow, by the values of their labels."""
    return _labelled(CounterMetricFamily(name, text, labels=labels), values)


def _labelled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[tuple[str, ...], float]
) -> Metric:
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def histogram(name: str, text: str, shown: Histogram) -> Metric:
    """One distribution."""
    return HistogramMetricFamily(name, text, shown.buckets, shown.sum)


def one_of(name: str, text: str, label: str, values: Iterable[str], now: str) -> Metric:
    """Which of these holds now: 1 for that, 0 for the others, so that an alert can name any of them."""
    return gauges(name, text, [label], {(value,): float(value == now) for value in values})


def connection_families(connections: Iterable[Client]) -> Iterator[Metric]:
    """The state of a process's connections to NATS, each by its name there."""
    by_name = {(str(nc.options["name"]),): nc for nc in connections}
    yield gauges(
        "matchbus_nats_connected",
        "Whether the connection stands.",
        ["connection"],
        {name: float(nc.is_connected) for name, nc in by_name.items()},
    )
    yield counters(
        "matchbus_nats_reconnects",
        "Times the connection was lost and came back.",
        ["connection"],
        {name: nc.stats["reconnects"] for name, nc in by_name.items()},
    )
    yield gauges(
        "matchbus_nats_pending_bytes",
        "Bytes that the socket has not taken yet.",
        ["connection"],
        {name: nc.pending_data_size for name, nc in by_name.items()},
    )


def feed_families(peers: Mapping[int, PeerFeed], now_ns: int) -> Iterator[Metric]:
    """How the followed feeds look at `now_ns` of the follower's clock, by engine number."""
    by_peer = {str(number): feed for number, feed in sorted(peers.items())}
    yield gauges(
        "matchbus_peer_state",
        "1 for the state that the engine's feed is in.",
        ["peer", "state"],
        {
            (peer, state.value): float(feed.state is state)
            for peer, feed in by_peer.items()
            for state in PeerState
        },
    )
    yield gauges(
        "matchbus_peer_age_seconds",
        "Age of the newest heartbeat as the feed has it; absent before the first of an epoch.",
        ["peer"],
        {
            (peer,): max(0, age_ns) / _NS_PER_S
            for peer, feed in by_peer.items()
            if (age_ns := feed.age_ns(now_ns)) is not None
        },
    )
    yield gauges(
        "matchbus_peer_unsynced_books",
        "Books of the engine that cannot be trusted before a snapshot has come.",
        ["peer"],
        {(peer,): sum(not book.synced for book in feed.replicas.values()) for peer, feed in by_peer.items()},
    )
    yield counters(
        "matchbus_feed_messages",
        "Messages of the engine's feed by what they were.",
        ["peer", "outcome"],
        {
            (peer, outcome): getattr(feed.counters, outcome)
            for peer, feed in by_peer.items()
            for outcome in ("applied", "duplicates", "stale_epochs", "malformed", "checksum_failures")
        },
    )
    for name, text, field in (
        ("matchbus_feed_gaps", "Deltas that were missing.", "gaps"),
        ("matchbus_feed_losses", "Times all books of the engine were given up at once.", "losses"),
        ("matchbus_feed_resyncs", "Requests for snapshots.", "requests"),
        ("matchbus_feed_epochs", "Reigns seen to begin.", "new_epochs"),
    ):
        yield counters(
            name,
            text,
            ["peer"],
            {(peer,): getattr(feed.counters, field) for peer, feed in by_peer.items()},
        )


class ProcessHealth(Collector):
    """What holds up this process: how late its event loop wakes, how long it collects garbage."""

    def __init__(self) -> None:
        self.lag = Histogram()
        self.pauses = [Histogram() for _ in range(_GENERATIONS)]
        self._collection_began = 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        gc.callbacks.append(self._note_collection)
        try:
            while True:
                due = time.monotonic() + LAG_PERIOD_S
                await asyncio.sleep(LAG_PERIOD_S)
                self.lag.observe(max(0.0, time.monotonic() - due))
        finally:
            gc.callbacks.remove(self._note_collection)

    def _note_collection(self, phase: str, collection: dict[str, int]) -> None:
        if phase == "start":
            self._collection_began = time.perf_counter()
        else:
            pause_s = time.perf_counter() - self._collection_began
            self.pauses[collection["generation"]].observe(pause_s)

    def collect(self) -> Iterator[Metric]:
        """As Collector says."""
        yield histogram(
            "matchbus_event_loop_lag_seconds",
            f"How late a task woke that sleeps for {LAG_PERIOD_S:g} s.",
            self.lag,
        )
        pauses = HistogramMetricFamily(
            "matchbus_gc_pause_seconds", "How long a collection of garbage took.", labels=["generation"]
        )
        for generation, shown in enumerate(self.pauses):
            pauses.add_metric([str(generation)], shown.buckets, shown.sum)
        yield pauses


def add_metrics_option(parser: argparse.ArgumentParser) -> None:
    """The option that exchange and engines have for this; None when it is left out."""
    parser.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        type=_listen_address,
        help="serve Prometheus metrics at /metrics there, to whoever can reach it: keep it on loopback or in "
        "a network of your own; port 0 takes a free one (default: nowhere)",
    )


def _listen_address(text: str) -> str:
    if host_of(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not HOST:PORT, such as 127.0.0.1:9464")
    return text


class Target(msgspec.Struct, frozen=True):
    """One process to scrape, as the files of Prometheus' `file_sd` name it."""

    targets: tuple[str, ...]
    labels: dict[str, str]


def targets_file(addresses: Mapping[str, str]) -> bytes:
    """What `file_sd` reads: HOST:PORT by the name of the process, which becomes the label `process`."""
    targets = [Target((address,), {"process": process}) for process, address in addresses.items()]
    return msgspec.json.format(msgspec.json.encode(targets)) + b"\n"


class MetricsServer:
    """Answers GET /metrics with what `collector`, and the process at large, has to tell."""

    def __init__(self, collector: Collector) -> None:
        self._health = ProcessHealth()
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        self._registry.register(self._health)
        ProcessCollector(registry=self._registry)
        self._open: set[asyncio.StreamWriter] = set()

    async def run(self, listen: str) -> None:
        """Serve at HOST:PORT until cancelled; the log says where, with the port taken.

        Where that cannot be listened on, a warning says so, and the process goes on without metrics.
        """
        host, _, port = listen.rpartition(":")
        try:
            server = await asyncio.start_server(
                self._answer, host.removeprefix("[").removesuffix("]"), int(port), limit=MAX_REQUEST_BYTES
            )
        except OSError as error:
            _log.warning("no metrics are served: cannot listen on %s: %s", listen, error.strerror or error)
            return
        _log.info("metrics are at http://%s:%d/metrics", host, server.sockets[0].getsockname()[1])
        try:
            await self._health.run()
        finally:
            server.close()
            for writer in self._open:
                writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_REQUESTS:
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            # Whoever asks may hang up, dawdle or speak something else: that is nobody's fault here.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(PATIENCE_S):
                    request = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._reply(request))
                    writer.close()
                    await writer.wait_closed()
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    def _reply(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        if method != b"GET" or rest.partition(b" ")[0].partition(b"?")[0] != _PATH:
            return _http("404 Not Found", "text/plain", b"There is GET /metrics and nothing else.\n")
        return _http("200 OK", CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self._registry))


def _http(status: str, content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
