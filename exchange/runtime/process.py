"""One exchange process: what is wired to what, in which order it starts and how it ends.

    NATS ── provision.*   ──▶ journals made for engines
         ── instruments   ◀── instruments.toml at start; then watched
         ── engines       ──▶ who they are, where they listen
         ── clients       ──▶ how many call each engine home
         ── sessions      ──▶ Tokens: ended ones are removed
         ── standby.*     ──▶ who could take over, and how far behind it is
         ── md.>          ──▶ FeedFollower ──▶ engine states, consolidated book, best prices in the log
         ── EXECUTIONS    ──▶ Positions (from the first message on; SERVING once they have caught up)
         ── view.*, nbbo.* ◀── MarketViews: what the dashboard shows, conflated
    gRPC ◀─▶ ExchangeServicer ──▶ Registrar ──▶ clients, sessions

Everything durable is in NATS, so a killed exchange starts again as it was. A fault that nobody here can act
on ends the process with one line that says what to do.
"""

import asyncio
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import nats.errors
from matchbus.edge import RECOVERING_ROLE, CannotListen, Door, Edge
from matchbus.tls import TlsRefused
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import messages, provision, subjects
from bus.executions import ExecutionsDamaged, ExecutionsReader
from bus.follower import FeedFollower
from bus.messages import EngineEntry, InstrumentEntry, ProvisionReply, SessionEntry
from bus.metrics import MetricsServer
from bus.peer import PeerFeed
from bus.provision import ProvisionError
from bus.registry import (
    BucketUnavailable,
    clients_bucket,
    engines_bucket,
    instruments_bucket,
    sessions_bucket,
)
from bus.runner import START_DEADLINE_S, NatsLink, Parts, ProcessFault, log_to, run_until_signal
from bus.stream import AWAY, StreamError
from bus.tokens import Tokens
from exchange.directory import Directory
from exchange.market_views import Market, MarketViews
from exchange.positions import Positions
from exchange.runtime import feeds
from exchange.runtime.instruments import InstrumentsRefused, publish_instruments, read_instruments
from exchange.runtime.metrics import ExchangeCollector, StreamSizes, ViewCounts
from exchange.runtime.registration import Registrar
from exchange.runtime.servicer import ExchangeServicer
from exchange.runtime.settings import ExchangeSettings, SettingsRefused, parse_settings

_log: Final = logging.getLogger("exchange")

SERVICE: Final = "matchbus.v1.Exchange"

FEEDS_PATIENCE_S: Final = 1.0
"""How long a start waits for the feeds of the registered engines; some may be down."""

ELECTIONS_S: Final = 15.0
"""How much longer a start waits where several servers first choose who leads, all streams one by one."""

_FEEDS_POLL_S: Final = 0.02
_HEALTH_PERIOD_S: Final = 0.1
_RETRY_S: Final = 0.1
_TURN_S: Final = 0.02
"""How long counting up old reports may keep all else waiting."""

_REMOVE_AGAIN_S: Final = 1.0
_BEST_PRICES_PERIOD_S: Final = 0.1
_VIEWS_PERIOD_S: Final = 1 / 15
_MAX_UNSENT_VIEWS_BYTES: Final = 256 * 1024
"""With more than this on its way to NATS a view is dropped: sending one never waits."""

_FAULTS: Final = (
    ProcessFault,
    CannotListen,
    SettingsRefused,
    TlsRefused,
    InstrumentsRefused,
    ProvisionError,
    BucketUnavailable,
    ExecutionsDamaged,
    StreamError,
    nats.errors.Error,
)
"""What ends the process with its text alone; anything else is a bug and shows where it happened."""


class Exchange:
    """The parts of one exchange on one NATS connection, and the tasks that keep them up to date."""

    def __init__(self, settings: ExchangeSettings, nc: Client, link: NatsLink) -> None:
        self._settings = settings
        self._nc = nc
        self._link = link
        self._engines: dict[int, EngineEntry] = {}
        self._instruments: dict[str, InstrumentEntry] = {}
        self._standbys = feeds.Standbys()
        self._tokens = Tokens()
        self._ended_tokens: asyncio.Queue[str] = asyncio.Queue()
        self._directory = Directory(self._tokens)
        self._positions = Positions()
        self._executions = ExecutionsReader(nc)
        self._feed_log = feeds.FeedLog()
        self._market_views = MarketViews()
        self._view_counts = ViewCounts()
        self._stream_sizes = StreamSizes()
        self._follower = FeedFollower(
            nc, own_engine=None, on_change=self._on_book_change, on_state=self._on_feed_state
        )
        link.on_reconnected = self._follower.reconnected
        link.on_error = self._follower.on_error
        self._clients_bucket = clients_bucket(nc)
        self._engines_bucket = engines_bucket(nc)
        self._instruments_bucket = instruments_bucket(nc)
        self._sessions_bucket = sessions_bucket(nc)
        self._registrar = Registrar(
            self._clients_bucket,
            self._sessions_bucket,
            self._directory,
            self._engines,
            lambda: feeds.live_engines(self._engines, self._follower.peers),
        )

    async def run(self, entries: list[InstrumentEntry], listening: Callable[[str], None]) -> None:
        """Serve until cancelled; `listening` is told the address as soon as calls are taken.

        Raises one of the faults that end an exchange, or a group of them.
        """
        edge = Edge(SERVICE)
        door = Door(SERVICE, "the exchange is starting: try again")
        edge.server.add_generic_rpc_handlers((door,))
        servicer = self._make_servicer()
        try:
            address = edge.bind(self._settings.listen, self._settings.tls)
            await edge.set_role(RECOVERING_ROLE, held=True)
            await edge.start()
            await publish_instruments(self._instruments_bucket, entries)
            async with Parts() as group:
                filled = self._start_watches(group)
                group.create_task(self._follower.run())
                group.create_task(self._follow_executions())
                group.create_task(self._write_best_prices())
                group.create_task(self._remove_ended_tokens())
                if self._settings.metrics:
                    group.create_task(self._stream_sizes.run(self._nc))
                    group.create_task(self._serve_metrics(servicer))
                group.create_task(self._answer_provision_requests())
                group.create_task(self._listen_to_standbys())
                group.create_task(self._link.end_when_closed())
                for event in filled:
                    await event.wait()
                # Not before: a page would take what is not known yet for gone.
                group.create_task(self._publish_views())
                if lost := self._directory.lost():
                    _log.error("%d clients have tokens and no entry: their registrations are lost", len(lost))
                door.open_to(matchbus_pb2_grpc.add_ExchangeServicer_to_server, servicer)
                _log.info("exchange listens at %s", address)
                listening(address)
                if self._settings.dashboard:
                    group.create_task(self._serve_dashboard(address))
                await self._executions.caught_up.wait()
                await self._await_feeds()
                await edge.set_role(RECOVERING_ROLE, held=False)
                await edge.set_serving(serving=True)
                group.create_task(self._tell_health(edge))
                _log.info(
                    "exchange is ready: %d instruments, %d engines, %d clients",
                    len(self._instruments),
                    len(self._engines),
                    len(self._directory),
                )
        finally:
            await edge.stop()
            self._registrar.close()
            _log.info("the exchange has stopped")

    def _make_servicer(self) -> ExchangeServicer:
        return ExchangeServicer(
            password=self._settings.password,
            registrar=self._registrar,
            sessions=self._sessions_bucket,
            tokens=self._tokens,
            instruments=self._instruments,
            positions=self._positions,
            caught_up=self._executions.caught_up.is_set,
            list_engines=self._list_engines,
            consolidated_book=lambda reply, symbol, depth: feeds.consolidated_book(
                reply, symbol, depth, self._follower.peers
            ),
        )

    def _list_engines(self) -> list[pb.Engine]:
        now_ns = time.monotonic_ns()
        primaries = feeds.listed_engines(self._engines, self._follower.peers, now_ns)
        return [*primaries, *self._standbys.listed(self._engines, now_ns)]

    def _start_watches(self, group: asyncio.TaskGroup) -> list[asyncio.Event]:
        """Follow the buckets; the events are set when what is in them now is known."""
        filled = [asyncio.Event() for _ in range(4)]
        group.create_task(self._clients_bucket.watch(self._directory.put, filled=filled[0]))
        group.create_task(self._engines_bucket.watch(self._on_engine, filled=filled[1]))
        group.create_task(self._instruments_bucket.watch(self._on_instrument, filled=filled[2]))
        group.create_task(self._sessions_bucket.watch(self._on_session, filled=filled[3]))
        return filled

    def _on_session(self, key: str, session: SessionEntry | None) -> None:
        if session is None:
            self._tokens.remove(key)
        else:
            for ended in self._tokens.put(key, session, time.time_ns()):
                self._ended_tokens.put_nowait(ended)

    async def _remove_ended_tokens(self) -> None:
        """Delete ended tokens from the bucket, one after another, however long NATS is away.

        Engines keep the same rule and need no word of it; what is left over the next start finds.
        """
        while True:
            key = await self._ended_tokens.get()
            for attempt in itertools.count(1):
                try:
                    await self._sessions_bucket.remove(key)
                    break
                except BucketUnavailable as error:
                    if attempt == 1:
                        _log.warning("an ended token is not removed yet, which is tried again: %s", error)
                    await asyncio.sleep(_REMOVE_AGAIN_S)

    def _on_engine(self, key: str, entry: EngineEntry | None) -> None:
        if entry is None:
            self._engines.pop(subjects.number_of(key), None)
        elif self._engines.get(entry.engine) != entry:
            self._engines[entry.engine] = entry
            _log.info("engine E%d is at %s in epoch %d", entry.engine, entry.address, entry.epoch)

    def _on_book_change(self, engine: int, symbol: str) -> None:
        self._feed_log.note(engine, symbol)
        self._market_views.note_change(symbol)

    def _on_feed_state(self, engine: int, peer: PeerFeed) -> None:
        self._feed_log.on_state(engine, peer)
        self._market_views.note_state(peer)

    def _on_instrument(self, key: str, entry: InstrumentEntry | None) -> None:
        self._market_views.note_instruments()
        if entry is None:
            self._instruments.pop(subjects.symbol_of(key), None)
        else:
            self._instruments[entry.symbol] = entry

    async def _follow_executions(self) -> None:
        turned = time.monotonic()
        async for message in self._executions:
            if time.monotonic() - turned > _TURN_S:  # many are there at once, and feeds age meanwhile
                await asyncio.sleep(0)
                turned = time.monotonic()
            for client in self._positions.apply(message):
                _log.error("the positions of client %s are unknown: %s", client, self._positions.gap(client))
            if self._executions.caught_up.is_set():  # what was stored before is history
                self._market_views.note_executions(message)

    async def _write_best_prices(self) -> None:
        while True:
            self._feed_log.write(self._follower.peers)
            await asyncio.sleep(_BEST_PRICES_PERIOD_S)

    async def _await_feeds(self) -> None:
        """Wait until the books of all engines are known, though not for long: some may be down."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FEEDS_PATIENCE_S):
                peers = self._follower.peers
                while not feeds.are_all_there(self._engines, peers, self._instruments):  # noqa: ASYNC110 -- by time too
                    await asyncio.sleep(_FEEDS_POLL_S)

    async def _tell_health(self, edge: Edge) -> None:
        """Serving while NATS is there: without it nobody can register, and no book is known."""
        serving = True
        while True:
            await asyncio.sleep(_HEALTH_PERIOD_S)
            if not serving and self._nc.is_connected:
                await self._await_feeds()
            if serving != self._nc.is_connected:
                serving = not serving
                _log.warning("serving again" if serving else "not serving: NATS is away")
                await edge.set_serving(serving=serving)

    async def _publish_views(self) -> None:
        await self._await_feeds()
        while True:
            now_ns = time.monotonic_ns()
            market = Market(
                self._instruments,
                self._engines,
                self._follower.peers,
                self._standbys.statuses(self._engines, now_ns),
            )
            for subject, view in self._market_views.due(market, now_ns, time.time_ns()):
                payload = messages.encode(view)
                # What cannot leave at once is dropped: within a second all is shown again. So is what the
                # server takes from nobody, such as the list of twenty thousand symbols.
                can_leave = self._nc.is_connected and self._nc.pending_data_size < _MAX_UNSENT_VIEWS_BYTES
                if can_leave and len(payload) <= self._nc.max_payload:
                    await self._nc.publish(subject, payload)
                    self._view_counts.published += 1
                else:
                    self._view_counts.dropped += 1
            await asyncio.sleep(_VIEWS_PERIOD_S)

    async def _serve_metrics(self, servicer: ExchangeServicer) -> None:
        collector = ExchangeCollector(
            connections=lambda: self._link.connections,
            follower=self._follower,
            engines=self._engines,
            standbys=self._standbys,
            instruments=self._instruments,
            directory=self._directory,
            servicer=servicer,
            views=self._view_counts,
            executions=self._executions,
            positions=self._positions,
            streams=self._stream_sizes,
        )
        await MetricsServer(collector).run(self._settings.metrics)

    async def _serve_dashboard(self, exchange: str) -> None:
        try:
            from exchange.runtime import dashboard  # noqa: PLC0415 -- an extra that need not be installed
        except ImportError as error:
            raise ProcessFault(
                f"--dashboard needs {error.name}: pip install 'matchbus[dashboard]', or leave it out"
            ) from error
        await dashboard.serve(
            self._settings.dashboard,
            self._settings.websocket_urls,
            exchange,
            self._positions.fill_count,
            lambda address: _log.info("the dashboard is at http://%s", address),
        )

    async def _listen_to_standbys(self) -> None:
        statuses = await self._nc.subscribe(subjects.STANDBYS)
        async for message in statuses.messages:
            try:
                status = messages.decode_standby(message.data)
            except messages.NO_MESSAGE as error:
                _log.warning("ignored a message that is not a standby's: %s", error)
            else:
                self._standbys.note(status, time.monotonic_ns())

    async def _answer_provision_requests(self) -> None:
        requests = await self._nc.subscribe(subjects.PROVISION_SUBJECTS)
        async for request in requests.messages:
            try:
                error = await self._provision_journal(request)
            except nats.errors.Error as fault:
                # No answer: the engine asks again, an error would end it.
                _log.warning("cannot make the journal that %s asks for just now: %s", request.subject, fault)
                continue
            if request.reply:
                await self._nc.publish(request.reply, messages.encode(ProvisionReply(error)))

    async def _provision_journal(self, request: Msg) -> str:
        """Make the journal that is asked for; why not, when that is for good."""
        try:
            engine = messages.decode_provision_request(request.data).engine
            if request.subject != subjects.provision(engine):
                return f"the request on {request.subject} is for engine {engine}"
            await provision.provision_journal(
                self._nc,
                engine,
                max_bytes=self._settings.journal_bytes,
                replicas=self._settings.replicas,
                trimmable=self._settings.trim_journals,
            )
        except (*messages.NO_MESSAGE, ValueError, ProvisionError) as error:
            _log.warning("refused to make a journal: %s", error)
            return str(error)
        _log.info("the journal of E%d is there", engine)
        return ""


async def run(settings: ExchangeSettings, listening: Callable[[str], None] = lambda _: None) -> None:
    """Run an exchange until cancelled; `listening` is told the address as soon as calls are taken.

    Raises one of the faults that end it, or a group of them.
    """
    entries = read_instruments(settings.instruments)
    link = NatsLink(settings.nats_url)
    try:
        nc = await link.open("exchange")
        trim_journals = await _provision(nc, settings)
        if trim_journals and not settings.trim_journals:
            _log.warning("journals are trimmed, because they were made with --trim-journals")
        settings = replace(settings, trim_journals=trim_journals)
        await Exchange(settings, nc, link).run(entries, listening)
    finally:
        await link.close()


async def _provision(nc: Client, settings: ExchangeSettings) -> bool:
    """Make what all share, as soon as JetStream answers: it comes up a little after the server.

    Returns whether journals are to be trimmed.
    """
    executions_bytes, replicas = settings.executions_bytes, settings.replicas
    try:
        async with asyncio.timeout(START_DEADLINE_S + (ELECTIONS_S if replicas > 1 else 0.0)):
            while True:
                try:
                    await provision.provision_shared(nc, executions_bytes=executions_bytes, replicas=replicas)
                    return await provision.adjust_journals(
                        nc, settings.journal_bytes, trimmable=settings.trim_journals
                    )
                except AWAY:
                    await asyncio.sleep(_RETRY_S)
    except TimeoutError as error:
        why = (
            "start it with nats.conf, and see its log"
            if replicas == 1
            else f"more than half of the {replicas} servers must run, and all of them when they first start"
        )
        raise ProcessFault(f"the NATS server answers but its JetStream does not: {why}") from error


def main() -> None:
    """Run the `exchange` command."""
    run_until_signal("exchange", _start, _FAULTS)


def _start() -> Coroutine[Any, Any, None]:
    settings = parse_settings(sys.argv[1:], os.environ)
    directory = settings.log_dir
    form, level = settings.log_format, settings.log_level
    log_to(directory / "exchange_logs" / "exchange.log" if directory else None, form=form, level=level)
    if directory:
        log_to(directory / "synchronizer_logs" / "exchange.log", "synchronizer", form=form, level=level)
    return run(settings)


if __name__ == "__main__":
    main()
