"""One engine of a virtual market: the parts of `engine.runtime.process`, on a virtual network and journal.

Left out is what needs more than one process: leases, standbys; and snapshots and sessions. Clients call the
servicer itself.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, Final, NoReturn, cast

import grpc
from matchbus.v1 import matchbus_pb2 as pb
from nats.aio.client import Client as NatsClient

from bus.executions import ExecutionsWriter, OldFills
from bus.follower import FeedFollower
from bus.journal import MemoryJournal
from bus.messages import (
    Executions,
    InstrumentEntry,
    ReportedFill,
    decode_executions,
    encode_executions,
)
from bus.peer import PeerState, protected_books
from bus.replica import BookReplica
from bus.round_trip import RoundTrip
from engine.digest import state_digest
from engine.runtime.away import AwayView
from engine.runtime.commit_loop import Batch, CommitLoop
from engine.runtime.effects import Effects, FillBell, Reports
from engine.runtime.legs import Legs
from engine.runtime.listing import Listing
from engine.runtime.market_data import MarketData, books_of
from engine.runtime.rates import Rates
from engine.runtime.recovery import begin_next_reign, replay
from engine.runtime.servicer import MatchingEngineServicer
from engine.runtime.sessions import Sessions
from engine.runtime.uncrosser import Uncrosser
from engine.state import State
from simulation.virtual.network import APPEND_S, Delays, Life, Network

UNLIMITED: Final = 0
"""Orders a second of each client."""


class DelayedJournal(MemoryJournal):
    """A journal in memory that takes as long as a disk."""

    def __init__(self, engine: int, stored: list[bytes], delays: Delays, life: Life) -> None:
        super().__init__(engine, stored)
        self._delays = delays
        self._life = life

    async def append(self, epoch: int, time_ns: int, commands: bytes) -> int:
        """As Journal says. Who is killed meanwhile may have a batch stored of which it does not know."""
        took_s = self._delays.draw(APPEND_S)
        await asyncio.sleep(took_s / 2)
        await self._life.thawed.wait()
        number = await super().append(epoch, time_ns, commands)
        await asyncio.sleep(took_s / 2)
        await self._life.thawed.wait()
        return number


class ExecutionsList:
    """The execution reports of all engines, in the order in which they were stored."""

    trouble = ""

    def __init__(self, delays: Delays) -> None:
        self._delays = delays
        self._stored: list[Executions] = []
        self._grown = asyncio.Condition()

    def published(self, engine: int) -> tuple[int, int]:
        """As `bus.executions.ExecutionsWriter.start` tells it."""
        newest = next((stored for stored in reversed(self._stored) if stored.engine == engine), None)
        return (newest.last_batch, newest.last_reports) if newest is not None else (0, 0)

    async def publish(self, message: Executions) -> None:
        """As `bus.executions.ExecutionsWriter` has it."""
        took_s = self._delays.draw(APPEND_S)
        await asyncio.sleep(took_s / 2)
        stored = decode_executions(encode_executions(message))  # of the reports that readers know
        async with self._grown:
            self._stored.append(stored)
            self._grown.notify_all()
        await asyncio.sleep(took_s / 2)

    async def read(self) -> AsyncGenerator[Executions, None]:
        """All from the first on, for ever."""
        place = 0
        while True:
            async with self._grown:
                while place == len(self._stored):
                    await self._grown.wait()
            yield self._stored[place]
            place += 1


class Call:
    """A client's call, as the servicer sees it: who calls, and where what it writes goes."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.written: asyncio.Queue[pb.FillBatch | None] = asyncio.Queue()

    async def send_initial_metadata(self, _metadata: object) -> None:
        """Nobody waits for it."""

    async def write(self, batch: pb.FillBatch) -> None:
        """The next message of a stream."""
        self.written.put_nowait(batch)

    def end(self, _: object) -> None:
        """Nothing more is written."""
        self.written.put_nowait(None)

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """No simulated client asks for what ends a call."""
        raise AssertionError(f"{code.name}: {details}")

    def add_done_callback(self, done: Any) -> None:
        """Calls end in one turn here."""
        asyncio.get_running_loop().call_soon(done, None)


class _Callers:
    """In the place of sessions: a call says itself who calls."""

    async def client_of(self, call: Call) -> str:
        return call.client


class _NoOldFills:
    """Simulated clients follow their fills from the first on."""

    def read(self, *_: object) -> AsyncGenerator[list[ReportedFill], None]:
        raise AssertionError("no simulated client falls so far behind")


class VirtualEngine:
    """One process of an engine: everything that trades, from `start` until its `life` ends.

    `stored` has the records of the processes before it, whose work it goes on with.
    """

    def __init__(
        self, number: int, network: Network, executions: ExecutionsList, life: Life, stored: list[bytes]
    ) -> None:
        nc = cast("NatsClient", network.link(life))
        self.number = number
        self.life = life
        self.state = State(number)
        self.journal = DelayedJournal(number, stored, network.delays, life)
        self.serves = asyncio.Event()
        """Set once it has started."""
        self._executions = executions
        self._listing = Listing(self.state)
        # Clocks are handed on from here: defaults of parameters have kept the real ones.
        self._market_data = MarketData(nc, number, monotonic_ns=time.monotonic_ns)
        self._follower = FeedFollower(
            nc, own_engine=number, on_change=self._on_quote, jitter=network.delays.jitter
        )
        self._round_trip = RoundTrip(nc)
        self._reports = Reports(number, cast("ExecutionsWriter", executions), published=(0, 0))
        away = AwayView(number, self.state, self._follower.peers)
        self._loop = CommitLoop(
            self.state,
            self.journal,
            catch_up=self._catch_up,
            attach=away.attach,
            legs_planned=away.legs_planned,
            release=self._release,
            release_trouble=lambda: self._reports.trouble,
            unrenewed_s=lambda: 0.0,
            has_peers=lambda: bool(self._follower.peers),
            delay_s=lambda: 0.0,
            utc_ns=time.time_ns,
        )
        self._uncrosser = Uncrosser(self._loop, away.crossing)
        self._legs = Legs(
            nc,
            number,
            self._loop,
            away,
            self._market_data.replicas,
            cast("asyncio.TaskGroup", life),
            catch_up=self._round_trip.make,
        )
        bell = FillBell()
        self._effects = Effects(
            self._market_data,
            self._reports,
            bell,
            send_leg=self._legs.send,
            uncross=self._uncrosser.look,
            shown=self._round_trip.make,
        )
        self.servicer = MatchingEngineServicer(
            self._loop,
            cast("Sessions", _Callers()),
            bell,
            self._protected_books,
            cast("OldFills", _NoOldFills()),
            Rates(UNLIMITED, time.monotonic_ns),
        )

    async def start(self, instruments: Mapping[str, InstrumentEntry]) -> None:
        """Replay what there is, begin a reign, and let these symbols trade."""
        state = self.state
        self._reports.leave_out(self._executions.published(self.number))
        await replay(state, self.journal, self._reports)
        await begin_next_reign(state, self.journal, self._reports, 0)
        earlier = [leg.sent for leg in state.legs.values()]
        await self._round_trip.start()
        await self._market_data.start(
            state.epoch,
            books_of(state),
            batch_number=state.batch_number,
            time_ns=state.accounts.time_ns,
        )
        for part in (
            self._follower.run(),
            self._loop.run(),
            self._market_data.run(),
            self._reports.run(),
            self._uncrosser.run(state.books),
        ):
            self.life.create_task(part)
        for symbol, entry in instruments.items():
            self._listing.note(symbol, entry)
        await self._listing.begin(self._loop)
        for leg in earlier:
            self._legs.resume(leg)
        await self._legs.serve()

    def sees(self, number: int) -> bool:
        """Whether another engine's quotes count here."""
        peer = self._follower.peers.get(number)
        return peer is not None and peer.state is PeerState.LIVE

    @property
    def takes_calls(self) -> bool:
        """Whether clients may call, and the process lives."""
        return self.serves.is_set() and not self.life.over.is_set()

    @property
    def is_quiet(self) -> bool:
        """Whether it takes calls, its journal has all that it did, and no leg is out."""
        return self.takes_calls and self._loop.is_idle and not self.state.legs

    @property
    def digest(self) -> str:
        """Of the state as it is now."""
        return state_digest(self.state).hex()

    async def _catch_up(self) -> None:
        if self._follower.peers:
            await self._round_trip.make()

    async def _release(self, batch: Batch) -> Awaitable[None] | None:
        self._market_data.note_append(batch.committed_s - batch.append_began_s)
        return await self._effects.release(batch)

    def _on_quote(self, engine: int, symbol: str) -> None:
        if engine > self.number:
            self._uncrosser.look(symbol)

    def _protected_books(self, symbol: str) -> dict[int, BookReplica]:
        own = self._market_data.replicas[symbol]
        return {**protected_books(self._follower.peers, symbol), self.number: own}
