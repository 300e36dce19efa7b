"""One engine process: what is wired to what, in which order it starts and how it ends.

    gRPC ──▶ Door ──▶ MatchingEngineServicer ──submit──▶ Trading ──▶ journal
    instruments ──▶ Listing ─────────────────submit──▶     │  ▲
                                                           │  └── FeedFollower ◀── md.>
                                                           └──▶ market data, legs, execution reports

A start loads the newest snapshot, replays the rest of the journal and follows it until the engine's lease is
free (`engine/runtime/standby.py`); then it begins a new reign under the journal's fence, and only then trades
(`engine/runtime/trading.py`) and serves. A fault that nobody here can act on ends the process; the next start
recovers.
"""

import asyncio
import gc
import logging
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

import nats.errors
from matchbus.edge import RECOVERING_ROLE, STANDBY_ROLE, Door, Edge
from matchbus.tls import TlsRefused
from matchbus.tracing import Tracer
from matchbus.v1 import matchbus_pb2_grpc
from nats.aio.client import Client

from bus import crash_points, subjects
from bus.executions import ExecutionsDamaged, ExecutionsWriter, OldFills
from bus.follower import FeedFollower
from bus.journal import JetStreamJournal, Journal, NoJournal
from bus.lease import NEWCOMER_S, Lease, LeaseLost
from bus.messages import EngineEntry, LeaseEntry
from bus.metrics import MetricsServer
from bus.peer import PeerFeed, PeerState
from bus.provision import ProvisionError, await_journal, await_shared
from bus.records import JournalError
from bus.registry import BucketUnavailable, engines_bucket, instruments_bucket, sessions_bucket
from bus.runner import NatsLink, Parts, ProcessFault, log_to, run_until_signal
from bus.snapshots import SnapshotStore
from bus.stream import StreamError, StreamMissing, settled_extent
from engine.runtime import order_trace
from engine.runtime.away import AwayView
from engine.runtime.commit_delay import CommitDelay
from engine.runtime.commit_loop import Batch
from engine.runtime.effects import LOOK_S, Reports
from engine.runtime.high_water import MarkedJournal, check_reports
from engine.runtime.listing import Listing
from engine.runtime.market_data import MarketData
from engine.runtime.metrics import CommitCounts, EngineCollector, Role
from engine.runtime.rates import Rates
from engine.runtime.recovery import begin_next_reign, replay
from engine.runtime.servicer import MatchingEngineServicer
from engine.runtime.sessions import Sessions
from engine.runtime.settings import EngineSettings, parse_settings
from engine.runtime.snapshots import SnapshotMaker, find_lost, load
from engine.runtime.standby import LEAVE_FIRST_S, HandedOver, Handover, Standby
from engine.runtime.trading import Trading
from engine.state import State

SERVICE: Final = "matchbus.v1.MatchingEngine"

PROVISION_PATIENCE_S: Final = 60.0
"""How long a start waits for an exchange to make what it needs."""

PEERS_FIRST_S: Final = 0.5
"""How long after it began to follow the other engines one takes no orders unless they are all live.

Those that are up are, by then; a standby has followed them for long."""

PEERS_PATIENCE_S: Final = 2.0
"""How much longer a start is not SERVING for want of a registered engine's feed; some may be down."""

RETIRE_S: Final = 3.0
"""How long a hand-over may take to finish what was taken; then the process ends, and the standby recovers."""

_POLL_S: Final = 0.02
_RETIRE_POLL_S: Final = 0.002
_HEALTH_PERIOD_S: Final = 0.1
_CLOCK_PERIOD_S: Final = 1.0
_ENTRY_PERIOD_S: Final = 5.0
_CLOCK_BEHIND_S: Final = 1.0
_GC_THRESHOLDS: Final = (2_000, 5, 5_000)
"""Nothing of ours on the hot path makes cycles, but gRPC leaves six objects of each call in some. Two
thousand are cleared away in a millisecond, while they are in the processor's caches; 50,000 took 30 to 90 ms,
and all waited for it. What has stayed for a while is hardly ever walked again."""
_MAX_EPOCH: Final = 2**53
"""No engine ever comes to this many reigns: an entry that says more is not ours."""

_FAULTS: Final = (
    ProcessFault,
    JournalError,
    LeaseLost,
    ProvisionError,
    ExecutionsDamaged,
    StreamError,
    nats.errors.Error,
    OSError,
    TlsRefused,
)

T = TypeVar("T")

_log: Final = logging.getLogger("engine")
_book_log: Final = logging.getLogger("synchronizer")


class Engine:
    """The parts of one engine and the tasks that keep it going. `lease` is None without a journal."""

    def __init__(
        self,
        settings: EngineSettings,
        edge: Edge,
        door: Door,
        address: str,
        link: NatsLink,
        nc: Client,
        journal: Journal,
        lease: Lease | None,
    ) -> None:
        number = settings.number
        self._settings = settings
        self._edge, self._door, self._address = edge, door, address
        self._link = link
        self._nc = nc
        self._history_nc: Client
        """For old fills alone: where many are read at once the server cuts it off, and the feed goes on."""

        self._journal = journal
        self._lease = lease
        self._group = Parts()
        self._keeping: asyncio.Task[None] | None = None
        self._has_begun = False  # our reign is in the journal: what comes behind it there is another's
        self._state = State(number)
        self._sessions_bucket = sessions_bucket(nc)
        self._engines_bucket = engines_bucket(nc)
        self._instruments_bucket = instruments_bucket(nc)
        self._engines: dict[int, EngineEntry] = {}
        self._listing = Listing(self._state)
        self._trading: Trading | None = None
        self._sessions = Sessions(number, self._sessions_bucket, self._engines)
        self._market_data = MarketData(nc, number)
        self._follower = FeedFollower(
            nc, own_engine=number, on_change=self._on_quote, on_state=self._on_peer_state
        )
        self._followed_since_s = 0.0
        link.on_reconnected = self._follower.reconnected
        link.on_error = self._follower.on_error
        self._away = AwayView(number, self._state, self._follower.peers)
        self._executions = ExecutionsWriter(nc, number)
        self._reports = Reports(number, self._executions, published=(0, 0))
        self._told_states: dict[int, tuple[PeerState, int]] = {}
        self._snapshots = SnapshotStore(nc, number)
        self._snapshot_maker = SnapshotMaker(
            number,
            settings.nats_url,
            commands_per_snapshot=settings.commands_per_snapshot,
            store=self._snapshots,
            log_format=settings.log_format,
        )
        self._counts = CommitCounts()
        self._metrics = EngineCollector(
            state=self._state,
            journal=journal,
            connections=lambda: link.connections,
            follower=self._follower,
            away=self._away,
            market_data=self._market_data,
            sessions=self._sessions,
            snapshots=self._snapshot_maker,
            reports=self._reports,
            counts=self._counts,
        )

    async def run(self) -> None:
        """Recover, stand by, reign, serve, until cancelled or handed over.

        Raises a group of the faults that end an engine.
        """
        number = self._settings.number
        try:
            async with self._group:
                if self._settings.metrics:
                    server = MetricsServer(self._metrics)
                    self._group.create_task(server.run(self._settings.metrics))
                known = self._watch()
                self._history_nc = await self._link.open(f"engine-{number}-history", buffered=False)
                await self._recover()
                if self._lease is not None:
                    await self._take_lease(self._lease)
                await self._begin_epoch()
                for event in known:
                    await event.wait()
                await self._reign()
        except* HandedOver:
            _log.info("E%d is handed over", number)
        finally:
            self._door.shut("this process ends; ask the exchange for its successor's address")
            if self._trading is not None:
                self._trading.loop.end()
            if self._lease is not None:
                with suppress(nats.errors.Error, StreamError):
                    await self._lease.release()
            _log.info("E%d has stopped", number)

    def _watch(self) -> list[asyncio.Event]:
        """Follow what an engine has to know of the others; the events are set when what is there is known."""
        self._followed_since_s = time.monotonic()
        sessions_known, engines_known, instruments_known = (asyncio.Event() for _ in range(3))
        for part in (
            self._link.end_when_closed(),
            self._follower.run(),
            self._sessions_bucket.watch(self._sessions.note, filled=sessions_known),
            self._engines_bucket.watch(self._on_engine, filled=engines_known),
            self._instruments_bucket.watch(self._listing.note, filled=instruments_known),
        ):
            self._group.create_task(part)
        return [sessions_known, engines_known, instruments_known]

    async def _recover(self) -> None:
        """Come to where the journal ends, and to what of it is not reported yet."""
        state, journal, accept_loss = self._state, self._journal, self._settings.accept_loss
        published = await self._executions.start()
        await self._edge.set_role(STANDBY_ROLE, held=False)
        await self._edge.set_role(RECOVERING_ROLE, held=True)
        if self._settings.durable:
            self._reports.leave_out(published)
            lost = await find_lost(self._nc, state.engine, self._snapshots) if accept_loss else []
            self._snapshot_maker.newest = await load(state, journal, self._snapshots, published, [*lost])
        self._snapshot_maker.note(await replay(state, journal, self._reports))
        await self._edge.set_role(RECOVERING_ROLE, held=False)
        if self._settings.durable:
            if not check_reports(state.engine, published[0], journal.position, accept_loss=accept_loss):
                self._reports.report_again()
            for entry in lost:  # only now: without a start they, and a copy of the journal, may be needed
                _log.warning("snapshot of batch %d is deleted: its batch is lost", entry.batch_number)
                await self._snapshots.delete(entry)
        gc.collect()
        gc.set_threshold(*_GC_THRESHOLDS)

    async def _take_lease(self, lease: Lease) -> None:
        """Return when we may reign; the journal may have grown a little since."""
        state = self._state
        if self._settings.standby:
            leave_first_s = LEAVE_FIRST_S
        elif state.epoch:  # whoever reigned before may have a standby, whose turn it is
            leave_first_s = NEWCOMER_S
        else:
            leave_first_s = 0.0
        if leave_first_s or not await lease.acquire():
            gc.freeze()  # what follows is followed for days: its collections need not walk what was there
            await self._edge.set_role(STANDBY_ROLE, held=True)
            place = f"batch {state.batch_number} of epoch {state.epoch}"
            _log.info("E%d stands by at %s, at %s", state.engine, lease.entry.address, place)
            standby = Standby(self._nc, lease, state, self._journal, self._reports, self._executions)
            self._metrics.standby, self._metrics.role = standby, Role.STANDBY
            await standby.until_reign(leave_first_s)
            self._snapshot_maker.note_followed(standby.commands)
            self._metrics.role = Role.STARTING
            await self._edge.set_role(STANDBY_ROLE, held=False)
            _log.info("E%d takes over after batch %d", state.engine, state.batch_number)
        crash_points.reach("lease claimed")
        self._keeping = self._group.create_task(lease.keep(self._check_place))

    async def _begin_epoch(self) -> None:
        """Make the journal ours, and the stream of execution reports, in an epoch that never was."""
        gc.freeze()  # a million resting orders are no garbage: no collection needs to walk them
        state, number = self._state, self._settings.number
        self._door.shut(
            f"this process begins its reign of E{number}",
            lambda: self._journal.trouble or self._reports.trouble,
        )
        entry = await self._answered(lambda: self._engines_bucket.get(str(number)))
        entered = _epoch_of(entry)
        await begin_next_reign(state, self._journal, self._reports, entered)
        self._has_begun = True
        _log.info("epoch %d of E%d begins with batch %d", state.epoch, number, state.batch_number)
        await self._reports.take_over(state.epoch, state.batch_number, self._check_place)
        crash_points.reach("reports fenced")

    async def _answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What a bucket answers, asked until it does: a take-over waits for NATS, as a reign does."""
        while True:
            try:
                return await ask()
            except BucketUnavailable as error:
                _log.warning("E%d waits: %s", self._settings.number, error)
                await self._check_place()  # nor is it asked on behalf of one that was replaced

    async def _check_place(self) -> None:
        """The lease may have lapsed: whether another process reigned meanwhile shows in the journal alone."""
        lag = await self._journal.lag()
        is_appending = self._trading is not None and self._trading.loop.is_appending
        if lag and self._has_begun and not is_appending:
            raise ProcessFault(f"another process wrote {lag} batches of E{self._state.engine} meanwhile")

    async def _reign(self) -> None:
        """Start every part in the order in which they need each other, and say so when all serve."""
        state, number = self._state, self._settings.number
        self._listing.check_sizes()  # before anybody sees a book whose prices mean something else
        trading = self._trading = self._make_trading()
        await trading.show_books()
        crash_points.reach("books published")
        self._group.create_task(trading.loop.watch())
        if self._settings.durable:
            self._group.create_task(self._snapshot_maker.run())
        # Without a journal a restart has nothing to report again from.
        await trading.begin(self._listing, LOOK_S if self._settings.durable else None)
        servicer = self._make_servicer(trading)
        self._metrics.trading, self._metrics.servicer = trading, servicer
        self._metrics.role = Role.PRIMARY
        await self._await_peers(self._followed_since_s + PEERS_FIRST_S)
        self._door.open_to(matchbus_pb2_grpc.add_MatchingEngineServicer_to_server, servicer)
        await self._enter()
        await self._await_peers(time.monotonic() + PEERS_PATIENCE_S)
        await self._edge.set_serving(serving=True)
        crash_points.reach("serving")
        self._group.create_task(self._tell_health(trading))
        self._group.create_task(self._watch_clock())
        self._group.create_task(self._stay_entered())
        if self._lease is not None:
            lease = self._lease
            handover = Handover(self._nc, number, lambda: self._retire(lease, trading))
            self._group.create_task(handover.run())
        symbols = len(state.books)
        _log.info("E%d serves at %s in epoch %d with %d symbols", number, self._address, state.epoch, symbols)

    @property
    def _entry(self) -> EngineEntry:
        return EngineEntry(self._settings.number, self._state.epoch, self._address, os.getpid())

    async def _enter(self) -> None:
        """Tell all where this engine is now; it must not write over a successor's entry."""
        number, epoch = self._settings.number, self._state.epoch
        if not await self._answered(
            lambda: self._engines_bucket.put(
                str(number), self._entry, unless=lambda entered: _epoch_of(entered) > epoch
            )
        ):
            raise ProcessFault(f"another process entered a later epoch of E{number} than {epoch}")

    async def _stay_entered(self) -> None:
        """A damaged store may come back without our entry, or with an older one, where nobody serves.

        Where there is a journal its fence ends whoever was replaced; without one only the entry tells.
        """
        number, epoch = self._settings.number, self._state.epoch
        while True:
            await asyncio.sleep(_ENTRY_PERIOD_S)
            with suppress(BucketUnavailable):
                entry = await self._engines_bucket.get(str(number))
                if _epoch_of(entry) < epoch:
                    _log.warning("the entry of E%d is lost or an older one, and is written again", number)
                    await self._enter()
                elif entry != self._entry and not self._settings.durable:
                    raise ProcessFault(f"another process has entered as E{number}")

    def _make_trading(self) -> Trading:
        return Trading(
            self._nc,
            self._state,
            self._journal,
            self._follower,
            self._away,
            self._market_data,
            self._reports,
            self._group,
            note=self._note_batch,
            unrenewed_s=lambda: self._lease.unrenewed_s if self._lease is not None else 0.0,
            delay_s=CommitDelay().next_s,
        )

    def _note_batch(self, batch: Batch) -> None:
        self._snapshot_maker.note(len(batch.commands))
        self._counts.note(batch)

    def _make_servicer(self, trading: Trading) -> MatchingEngineServicer:
        state, number = self._state, self._settings.number
        return MatchingEngineServicer(
            trading.loop,
            self._sessions,
            trading.bell,
            trading.protected_books,
            # Without a journal, what earlier processes reported is no history of this one's clients.
            OldFills(self._history_nc, number, first_epoch=0 if self._settings.durable else state.epoch),
            Rates(self._settings.orders_per_second),
        )

    async def _retire(self, lease: Lease, trading: Trading) -> None:
        """Take no more commands, finish those that were taken, and let the standby have the lease."""
        loop = trading.loop
        self._door.shut("this process hands over to another one; ask the exchange for its address")
        loop.retired = True
        crash_points.reach("about to retire")
        try:
            async with asyncio.timeout(RETIRE_S):
                while not loop.is_idle:  # noqa: ASYNC110 -- the loop must not pay for telling anybody
                    await asyncio.sleep(_RETIRE_POLL_S)
                loop.closed = True  # the standby may be at the journal's end already
                await trading.round_trip.make()  # behind those that the last answers wait for
                await self._reports.drained()
        except TimeoutError:
            raise ProcessFault(f"the hand-over was not done within {RETIRE_S:g} s; nothing is lost") from None
        assert self._keeping is not None
        self._keeping.cancel()
        await lease.release()
        crash_points.reach("lease released")

    async def _tell_health(self, trading: Trading) -> None:
        """Serving as long as orders are taken and reads answered."""
        loop, serving = trading.loop, True
        while True:
            await asyncio.sleep(_HEALTH_PERIOD_S)
            doubt = loop.doubt()
            trouble = self._market_data.trouble = loop.trouble() or doubt
            if doubt:
                trading.bell.ring_all()  # whoever follows fills is to go on at a successor, if there is one
            if serving == bool(trouble):
                serving = not serving
                _log.warning("%s", f"not serving: {trouble}" if trouble else "serving again")
                await self._edge.set_serving(serving=serving)

    async def _watch_clock(self) -> None:
        """Log when all batches carry the same time: it never goes back, even when the clock does."""
        was_behind = False
        while True:
            behind_s = (self._state.accounts.time_ns - time.time_ns()) / 1e9
            if was_behind != (behind_s > _CLOCK_BEHIND_S):
                was_behind = not was_behind
                if was_behind:
                    _log.warning(
                        "the clock is %.0f s behind the newest batch, whose time all get now",
                        behind_s,
                    )
                else:
                    _log.warning("batches have the clock's time again")
            await asyncio.sleep(_CLOCK_PERIOD_S)

    async def _await_peers(self, until_s: float) -> None:
        """Wait until the feeds of the other registered engines are live, up to a monotonic time."""
        others = [number for number in self._engines if number != self._settings.number]
        with suppress(TimeoutError):
            async with asyncio.timeout(until_s - time.monotonic()):
                for number in others:
                    while not self._follower.sees(number):  # noqa: ASYNC110 -- the follower's state changes by time too
                        await asyncio.sleep(_POLL_S)

    def _on_engine(self, key: str, entry: EngineEntry | None) -> None:
        if entry is None:
            self._engines.pop(subjects.number_of(key), None)
        else:
            self._engines[entry.engine] = entry

    def _on_quote(self, engine: int, symbol: str) -> None:
        if self._trading is not None:
            self._trading.on_quote(engine, symbol)

    def _on_peer_state(self, engine: int, feed: PeerFeed) -> None:
        told = feed.state, feed.epoch
        if self._told_states.get(engine) != told:
            self._told_states[engine] = told
            _book_log.info("E%d is %s in epoch %d", engine, feed.state.name, feed.epoch)


def _epoch_of(entry: EngineEntry | None) -> int:
    """The epoch that an engine's entry names, 0 where it cannot be one."""
    return entry.epoch if entry is not None and entry.epoch < _MAX_EPOCH else 0


async def _refuse_a_journal(nc: Client, number: int) -> None:
    """Without a journal this process would not see that another one reigns, and take its clients and ids."""
    with suppress(StreamMissing):
        stored = await settled_extent(nc, subjects.journal_stream(number))
        if stored.last_seq:
            raise ProcessFault(
                f"E{number} has a journal of {stored.last_seq} batches in this NATS: start it without "
                "--durability none, or use another NATS"
            )


async def run(settings: EngineSettings) -> None:
    """Run an engine until cancelled. Raises one of the faults that end it, or a group of them."""
    name = f"engine-{settings.number}"
    edge = Edge(SERVICE)
    # Before anything else: a second process must not depose the first.
    address = edge.bind(settings.listen, settings.tls)
    door = Door(SERVICE, f"this process stands by for E{settings.number}; ask the exchange for its address")
    edge.server.add_generic_rpc_handlers((door,))
    link = NatsLink(settings.nats_url)
    if settings.trace:
        order_trace.begin(Tracer(settings.trace, settings.trace_ratio, f"matchbus-{name}"))
    try:
        await edge.start()
        nc = await link.open(name)
        await await_shared(nc, PROVISION_PATIENCE_S)
        if not settings.durable:
            await _refuse_a_journal(nc, settings.number)
            await Engine(settings, edge, door, address, link, nc, NoJournal(settings.number), None).run()
            return
        await await_journal(nc, settings.number, PROVISION_PATIENCE_S)
        journal_nc = await link.open(f"{name}-journal", buffered=False)
        lease = Lease(journal_nc, LeaseEntry(settings.number, secrets.token_hex(8), address, os.getpid()))
        async with MarkedJournal(
            JetStreamJournal(journal_nc, settings.number),
            settings.number,
            settings.state_dir,
            accept_loss=settings.accept_loss,
        ) as journal:
            await Engine(settings, edge, door, address, link, nc, journal, lease).run()
    finally:
        await edge.stop()
        await link.close()
        await order_trace.end()


def main() -> None:
    """Run the `engine` command."""
    run_until_signal("engine", _start, _FAULTS)


def _start() -> Coroutine[Any, Any, None]:
    settings = parse_settings(sys.argv[1:], os.environ)
    name = f"engine_{settings.number}.log"
    directory = settings.log_dir
    form, level = settings.log_format, settings.log_level
    log_to(directory / "engine_logs" / name if directory else None, form=form, level=level)
    if directory:
        routed = directory / "synchronizer_logs" / name
        log_to(routed, "synchronizer", "routing", form=form, level=level)
    return run(settings)


if __name__ == "__main__":
    main()
