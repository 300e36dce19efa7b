"""One engine of a virtual market: what trades in a real one, on a virtual network and journal.

Of `engine.runtime.process` is left out what needs more than one process: leases, standbys; and snapshots and
sessions. Clients call the servicer itself.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
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
from engine.digest import state_digest
from engine.runtime.away import AwayView
from engine.runtime.effects import Reports
from engine.runtime.listing import Listing
from engine.runtime.market_data import MarketData
from engine.runtime.rates import Rates
from engine.runtime.recovery import begin_next_reign, replay
from engine.runtime.servicer import MatchingEngineServicer
from engine.runtime.sessions import Sessions
from engine.runtime.trading import Trading
from engine.state import State
from simulation.virtual.delays import Delays
from simulation.virtual.network import Life, Network

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
        took_s = self._delays.append_s()
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
        took_s = self._delays.append_s()
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
        # Clocks are handed on from here: defaults of parameters have kept the real ones.
        market_data = MarketData(nc, number, monotonic_ns=time.monotonic_ns)
        self._follower = FeedFollower(
            nc, own_engine=number, on_change=self._on_quote, jitter=network.delays.jitter
        )
        self._reports = Reports(number, cast("ExecutionsWriter", executions), published=(0, 0))
        self._trading = Trading(
            nc,
            self.state,
            self.journal,
            self._follower,
            AwayView(number, self.state, self._follower.peers),
            market_data,
            self._reports,
            cast("asyncio.TaskGroup", life),
            note=lambda _: None,
            unrenewed_s=lambda: 0.0,
            delay_s=lambda: 0.0,
        )
        self.servicer = MatchingEngineServicer(
            self._trading.loop,
            cast("Sessions", _Callers()),
            self._trading.bell,
            self._trading.protected_books,
            cast("OldFills", _NoOldFills()),
            Rates(UNLIMITED, time.monotonic_ns),
        )

    async def start(self, instruments: Mapping[str, InstrumentEntry]) -> None:
        """Replay what there is, begin a reign, and let these symbols trade."""
        state = self.state
        self._reports.leave_out(self._executions.published(self.number))
        await replay(state, self.journal, self._reports)
        await begin_next_reign(state, self.journal, self._reports, 0)
        await self._trading.show_books()
        self.life.create_task(self._follower.run())
        listing = Listing(state)
        for symbol, entry in instruments.items():
            listing.note(symbol, entry)
        await self._trading.begin(listing)

    def _on_quote(self, engine: int, symbol: str) -> None:
        self._trading.on_quote(engine, symbol)

    def sees(self, number: int) -> bool:
        """Whether another engine's quotes count here."""
        return self._follower.sees(number)

    @property
    def takes_calls(self) -> bool:
        """Whether clients may call, and the process lives."""
        return self.serves.is_set() and not self.life.over.is_set()

    @property
    def is_quiet(self) -> bool:
        """Whether it takes calls, its journal has all that it did, and no leg is out."""
        return self.takes_calls and self._trading.loop.is_idle and not self.state.legs

    @property
    def digest(self) -> str:
        """Of the state as it is now."""
        return state_digest(self.state).hex()
