"""One engine process: what is wired to what, in which order it starts and how it ends.

    gRPC ──▶ MatchingEngineServicer ──submit──▶ CommitLoop ──▶ State
    route.<n> ──▶ Legs ─────────────submit──▶     │  ▲
    instruments, peers' quotes ─────submit──▶     │  └── AwayView ◀── FeedFollower ◀── md.>
                                                  ├──▶ journal
                                                  └──▶ Effects ──▶ market data, legs, execution reports, bell

A start loads the newest snapshot, replays the rest of the journal, begins a new reign under the journal's
fence, and only then serves. A fault that nobody here can act on ends the process; the next start recovers.
"""

import argparse
import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from matchbus.edge import Edge
from matchbus.v1 import matchbus_pb2_grpc
from nats.aio.client import Client

from bus import crash_points, messages, subjects
from bus.executions import ExecutionsDamaged, ExecutionsWriter
from bus.follower import FeedFollower
from bus.journal import JetStreamJournal, Journal, JournalError, MemoryJournal
from bus.messages import EngineEntry, InstrumentEntry
from bus.peer import PeerFeed, PeerState
from bus.provision import ProvisionError, await_journal, await_shared
from bus.registry import Bucket, BucketUnavailable
from bus.round_trip import RoundTrip
from bus.runner import DEFAULT_NATS_URL, Link, ProcessFault, host_and_port, log_to, run_until_signal
from bus.snapshots import SnapshotStore
from bus.stream import StreamError
from engine.commands import AddInstrument
from engine.runtime.away import AwayView
from engine.runtime.commit_loop import Batch, CommitLoop
from engine.runtime.effects import Effects, FillBell, Reports
from engine.runtime.high_water import MarkedJournal, check_reports
from engine.runtime.legs import Legs, Uncrosser
from engine.runtime.market_data import MarketData
from engine.runtime.recovery import begin_reign, replay
from engine.runtime.servicer import MatchingEngineServicer, ProtectedBooks
from engine.runtime.sessions import Sessions
from engine.runtime.snapshots import COMMANDS_PER_SNAPSHOT, SnapshotMaker, load
from engine.state import State

SERVICE: Final = "matchbus.v1.MatchingEngine"
DEFAULT_PORT: Final = 50050
"""Engine n listens at this port plus n unless told otherwise."""

PROVISION_PATIENCE_S: Final = 60.0
"""How long a start waits for an exchange to make what it needs."""

PEERS_PATIENCE_S: Final = 2.0
"""How long a start waits for the feeds of the engines that are registered; some may be down."""

_POLL_S: Final = 0.02
_HEALTH_PERIOD_S: Final = 0.1
_GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Nothing on the hot path makes cycles, so collections are rare and find little."""
_BPS_PER_PERCENT: Final = 100

_FAULTS: Final = (
    ProcessFault,
    JournalError,
    ProvisionError,
    BucketUnavailable,
    ExecutionsDamaged,
    StreamError,
    OSError,
)

_log: Final = logging.getLogger("engine")
_book_log: Final = logging.getLogger("synchronizer")


@dataclass(frozen=True, slots=True)
class Settings:
    """How one engine process runs. `listen` is HOST:PORT; port 0 takes a free one."""

    number: int
    nats_url: str
    listen: str
    durable: bool
    log_dir: Path | None
    state_dir: Path
    accept_loss: bool
    commands_per_snapshot: int = COMMANDS_PER_SNAPSHOT


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Make settings of the command line; exits with a message when they are wrong."""
    parser = argparse.ArgumentParser(prog="engine", description="One matching engine of a Matchbus market.")
    parser.add_argument(
        "--number", metavar="N", type=int, required=True, help="1 to 65535, unique in the market"
    )
    parser.add_argument("--nats", metavar="URL", default=DEFAULT_NATS_URL, help="default %(default)s")
    parser.add_argument("--listen", metavar="HOST:PORT", help=f"default 127.0.0.1:{DEFAULT_PORT} + N")
    parser.add_argument(
        "--durability",
        choices=("journal", "none"),
        default="journal",
        help="none: orders live as long as the process (default %(default)s)",
    )
    parser.add_argument(
        "--snapshot-every",
        metavar="COMMANDS",
        type=int,
        default=COMMANDS_PER_SNAPSHOT,
        help="make a snapshot after so many commands, 0: never (default %(default)s)",
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=Path,
        help="where the engine keeps how far its journal was, outside NATS (default data/engine_N)",
    )
    parser.add_argument(
        "--accept-loss",
        action="store_true",
        help="start although the journal has lost batches that --state-dir knows of; they are gone for good",
    )
    parser.add_argument("--log-dir", metavar="DIR", type=Path, help="write logs to files below DIR")
    options = parser.parse_args(arguments)
    try:
        subjects.engine_token(options.number)
    except ValueError as error:
        parser.error(str(error))
    host = os.environ.get("IP_ADDR", "") or "127.0.0.1"
    return Settings(
        number=options.number,
        nats_url=options.nats,
        listen=options.listen or host_and_port(host, DEFAULT_PORT + options.number),
        durable=options.durability == "journal",
        log_dir=options.log_dir,
        commands_per_snapshot=max(0, options.snapshot_every) or sys.maxsize,
        state_dir=options.state_dir or Path("data") / f"engine_{options.number}",
        accept_loss=options.accept_loss,
    )


class Engine:
    """The parts of one engine and the tasks that keep it going."""

    def __init__(self, settings: Settings, link: Link, nc: Client, journal: Journal) -> None:
        number = settings.number
        self._settings = settings
        self._link = link
        self._nc = nc
        self._journal = journal
        self._state = State(number)
        self._sessions_bucket = Bucket(nc, subjects.SESSIONS_BUCKET, messages.decode_session)
        self._engines_bucket = Bucket(nc, subjects.ENGINES_BUCKET, messages.decode_engine)
        self._instruments_bucket = Bucket(nc, subjects.INSTRUMENTS_BUCKET, messages.decode_instrument)
        self._engines: dict[int, EngineEntry] = {}
        self._sessions = Sessions(number, self._sessions_bucket, self._engines)
        self._market_data = MarketData(nc, number)
        self._follower = FeedFollower(
            nc, own_engine=number, on_change=self._on_quote, on_state=self._on_peer_state
        )
        link.on_reconnected = self._follower.reconnected
        link.on_error = self._follower.on_error
        self._away = AwayView(number, self._state, self._follower.peers)
        self._bell = FillBell()
        self._round_trip = RoundTrip(nc)
        self._told_states: dict[int, tuple[PeerState, int]] = {}
        self._snapshot_maker = SnapshotMaker(
            number, settings.nats_url, commands_per_snapshot=settings.commands_per_snapshot
        )

    async def run(self, edge: Edge, address: str) -> None:
        """Recover, reign, serve, until cancelled. Raises a group of the faults that end an engine."""
        number = self._settings.number
        writer = ExecutionsWriter(self._nc, number)
        published = await writer.start()
        if not self._settings.durable:
            published = 0, 0
        reports = Reports(number, writer, published)
        if self._settings.durable:
            await load(self._state, self._journal, SnapshotStore(self._nc, number), published)
        self._snapshot_maker.note((await replay(self._state, self._journal, reports)).commands)
        if not check_reports(
            number, published[0], self._journal.position, accept_loss=self._settings.accept_loss
        ):
            reports.forget_published()
        gc.collect()
        gc.freeze()  # a million resting orders are no garbage: no collection needs to walk them
        gc.set_threshold(*_GC_THRESHOLDS)
        known = await self._engines_bucket.get(str(number))
        epoch = max(self._state.epoch, known.epoch if known else 0) + 1
        await begin_reign(self._state, self._journal, epoch, time.time_ns())
        _log.info("epoch %d of E%d begins", epoch, number)
        try:
            async with asyncio.TaskGroup() as group:
                await self._reign(group, edge, address, reports)
        finally:
            _log.info("E%d has stopped", number)

    async def _reign(self, group: asyncio.TaskGroup, edge: Edge, address: str, reports: Reports) -> None:
        """Start every part in the order in which they need each other, and say so when all serve."""
        state, number = self._state, self._settings.number
        await self._round_trip.start()
        loop = CommitLoop(
            state,
            self._journal,
            catch_up=self._catch_up,
            attach=self._away.attach,
            release=self._release,
            is_followed=lambda: bool(self._follower.peers),
        )
        self._uncrosser = Uncrosser(loop, self._away.crossing)
        legs = Legs(self._nc, number, loop, self._away, self._market_data.replicas, group)
        self._effects = Effects(
            self._market_data,
            reports,
            self._bell,
            send_leg=legs.send,
            uncross=self._uncrosser.look,
            shown=lambda: self._round_trip.make() if self._follower.peers else None,
        )
        await self._market_data.start(
            state.epoch,
            {
                symbol: (
                    book.sequence,
                    [(side, *level) for side in (messages.BID, messages.ASK) for level in book.levels(side)],
                )
                for symbol, book in state.books.items()
            },
            batch_number=state.batch_number,
            time_ns=state.accounts.time_ns,
        )
        crash_points.reach("books published")
        sessions_known, engines_known, instruments_known = (asyncio.Event() for _ in range(3))
        for part in (
            self._link.end_when_closed(),
            loop.run(),
            loop.watch(),
            self._market_data.run(),
            reports.run(),
            self._follower.run(),
            self._sessions.watch(sessions_known),
            self._engines_bucket.watch(self._on_engine, filled=engines_known),
            self._instruments_bucket.watch(
                lambda _, entry: self._on_instrument(loop, entry), filled=instruments_known
            ),
        ):
            group.create_task(part)
        if self._settings.durable:
            group.create_task(self._snapshot_maker.run())
        for known in (sessions_known, engines_known, instruments_known):
            await known.wait()
        await loop.read(lambda: None)
        for leg in state.legs.values():
            legs.resume(leg.sent)
        await legs.serve()
        servicer = MatchingEngineServicer(
            loop,
            self._sessions,
            self._bell,
            ProtectedBooks(number, self._market_data.replicas, self._follower.peers),
        )
        matchbus_pb2_grpc.add_MatchingEngineServicer_to_server(servicer, edge.server)  # type: ignore[no-untyped-call]
        await edge.start()
        await self._engines_bucket.put(str(number), EngineEntry(number, state.epoch, address, os.getpid()))
        await self._await_peers()
        await edge.set_serving(serving=True)
        crash_points.reach("serving")
        group.create_task(self._tell_health(edge, loop))
        _log.info(
            "E%d serves at %s in epoch %d with %d symbols", number, address, state.epoch, len(state.books)
        )

    async def _catch_up(self) -> None:
        if self._follower.peers:
            await self._round_trip.make()

    async def _release(self, batch: Batch) -> Awaitable[None] | None:
        self._snapshot_maker.note(len(batch.commands))
        return await self._effects.release(batch)

    async def _tell_health(self, edge: Edge, loop: CommitLoop) -> None:
        """Serving as long as the journal answers."""
        serving = True
        while True:
            await asyncio.sleep(_HEALTH_PERIOD_S)
            if loop.is_silent() == serving:
                serving = not serving
                _log.warning("the journal %s", "answers again" if serving else "does not answer: not serving")
                await edge.set_serving(serving=serving)

    async def _await_peers(self) -> None:
        """Wait a while until the feeds of the other registered engines are live, or known to be away."""
        others = [number for number in self._engines if number != self._settings.number]
        with suppress(TimeoutError):
            async with asyncio.timeout(PEERS_PATIENCE_S):
                for number in others:
                    while not self._sees(number):  # noqa: ASYNC110 - the follower's state changes by time too
                        await asyncio.sleep(_POLL_S)

    def _sees(self, number: int) -> bool:
        peer = self._follower.peers.get(number)
        return peer is not None and peer.state is PeerState.LIVE

    def _on_engine(self, key: str, entry: EngineEntry | None) -> None:
        if entry is None:
            self._engines.pop(int(key), None)
        else:
            self._engines[entry.engine] = entry

    def _on_instrument(self, loop: CommitLoop, entry: InstrumentEntry | None) -> None:
        """The list has a symbol: trade it. Symbols are never taken off while the market lives."""
        if entry is None:
            return
        collar_bps = int(Decimal(entry.market_collar_percent or "0") * _BPS_PER_PERCENT)
        wanted = AddInstrument(entry.symbol, entry.tick_size, entry.lot_size, collar_bps)
        if self._state.instruments.get(entry.symbol) != wanted:
            loop.submit_own(wanted)

    def _on_quote(self, engine: int, symbol: str) -> None:
        if engine > self._settings.number:
            self._uncrosser.look(symbol)

    def _on_peer_state(self, engine: int, feed: PeerFeed) -> None:
        told = feed.state, feed.epoch
        if self._told_states.get(engine) != told:
            self._told_states[engine] = told
            _book_log.info("E%d is %s in epoch %d", engine, feed.state.name, feed.epoch)
        if engine > self._settings.number and feed.state is PeerState.LIVE:
            for symbol in feed.replicas:
                self._uncrosser.look(symbol)


async def run(settings: Settings) -> None:
    """Run an engine until cancelled. Raises one of the faults that end it, or a group of them."""
    name = f"engine-{settings.number}"
    edge = Edge(SERVICE)
    address = edge.bind(settings.listen)  # before anything else: a second process must not depose the first
    link = Link(settings.nats_url)
    try:
        nc = await link.open(name)
        await await_shared(nc, PROVISION_PATIENCE_S)
        if not settings.durable:
            await Engine(settings, link, nc, MemoryJournal(settings.number)).run(edge, address)
            return
        await await_journal(nc, settings.number, PROVISION_PATIENCE_S)
        stored = JetStreamJournal(await link.open(f"{name}-journal", buffered=False), settings.number)
        async with MarkedJournal(
            stored, settings.number, settings.state_dir, accept_loss=settings.accept_loss
        ) as journal:
            await Engine(settings, link, nc, journal).run(edge, address)
    finally:
        await edge.stop()
        await link.close()


def main() -> None:
    """Run the `engine` command."""
    run_until_signal("engine", _start, _FAULTS)


def _start() -> Coroutine[Any, Any, None]:
    settings = parse_settings()
    name = f"engine_{settings.number}.log"
    directory = settings.log_dir
    log_to(directory / "engine_logs" / name if directory else None)
    if directory:
        log_to(directory / "synchronizer_logs" / name, "synchronizer", "routing")
    return run(settings)


if __name__ == "__main__":
    main()
