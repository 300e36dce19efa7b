"""The commit loop of one engine, with a journal whose appends the test lets go by hand."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from bus.journal import MemoryJournal
from bus.records import Record
from engine.commands import AddInstrument, AwayQuote, Command, LegResult, NewOrder, decode
from engine.events import LegSent
from engine.runtime.commit_loop import Batch, CommitLoop, Submission
from engine.runtime.recovery import begin_reign
from engine.state import State
from engine.terms import Side
from tests.waiting import running, until


class HeldJournal(MemoryJournal):
    """A memory journal whose appends wait until the test lets them go, when `held`."""

    def __init__(self) -> None:
        super().__init__(1)
        self.held = False
        self.asked: list[tuple[Command, ...]] = []
        self.fault: Exception | None = None
        self._permits = asyncio.Semaphore(0)

    async def append(self, epoch: int, time_ns: int, commands: bytes) -> int:
        """As Journal says, after `let_go`."""
        self.asked.append(decode(commands))
        if self.held:
            await self._permits.acquire()
        if self.fault is not None:
            raise self.fault
        return await super().append(epoch, time_ns, commands)

    def let_go(self) -> None:
        """Store one append."""
        self._permits.release()

    async def records(self) -> list[Record]:
        """All that is stored."""
        return [record async for record in MemoryJournal(1, self.stored).replay()]

    async def commands(self) -> list[Command]:
        """All commands stored, in order."""
        return [command for record in await self.records() for command in decode(record.commands)]

    def fall_silent(self) -> None:
        """The append in flight has had no answer for a long time."""
        self.unanswered_since = time.monotonic() - 3600
        self.trouble = "the disk is full"

    def recover(self) -> None:
        """The append in flight is stored, and every one after it at once."""
        self.unanswered_since = None
        self.held = False
        self.let_go()


class Rig:
    """One engine's commit loop with everything around it in the test's hands."""

    def __init__(self) -> None:
        self.state = State(1)
        self.journal = HeldJournal()
        self.happened: list[str] = []
        self.batches: list[Batch] = []
        self.planned: list[LegSent] = []
        self.clock_ns = 1_000
        self.attach: Callable[[Command], Command | None] = lambda command: command
        self.caught_up = asyncio.Event()
        self.caught_up.set()
        self.catch_ups = 0
        self.shown: list[asyncio.Future[None]] = []
        self.shows = False
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.release_trouble = "no room"
        self.has_peers = True
        self.delay_s = 0.0
        self.unrenewed_s = 0.0
        self.loop = CommitLoop(
            self.state,
            self.journal,
            catch_up=self._catch_up,
            attach=self._attach,
            legs_planned=self.planned.extend,
            release=self._release,
            release_trouble=lambda: self.release_trouble,
            unrenewed_s=lambda: self.unrenewed_s,
            has_peers=lambda: self.has_peers,
            delay_s=lambda: self.delay_s,
            utc_ns=lambda: self.clock_ns,
        )

    async def start(self) -> None:
        """Begin a reign and list one symbol."""
        await begin_reign(self.state, self.journal, 1, 1)
        async with self.running():
            await self.loop.submit_own(AddInstrument("AAPL", "0.01", "1"))
        self.journal.asked.clear()
        self.batches.clear()
        self.happened.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """`run` and `watch` for the length of a block; a fault of theirs fails the test."""
        async with running(self.loop.run(), self.loop.watch()) as (run, _):
            yield run

    def submit(self, *commands: Command, may_take: bool = True) -> asyncio.Future[Submission]:
        """Queue commands."""
        return self.loop.submit(commands, may_take=may_take)

    async def asked(self, appends: int) -> None:
        """Wait until the journal was asked for so many appends, and all that can happen then has."""
        await until(lambda: len(self.journal.asked) >= appends)
        await quiet()

    def _attach(self, command: Command) -> Command | None:
        return self.attach(command)

    async def _catch_up(self) -> None:
        self.catch_ups += 1
        await self.caught_up.wait()

    async def _release(self, batch: Batch) -> Awaitable[None] | None:
        self.batches.append(batch)
        self.happened.append(f"release {batch.number}")
        await self.has_room.wait()
        if not self.shows:
            return None
        self.shown.append(asyncio.get_running_loop().create_future())
        return self.shown[-1]

    async def unseen(self) -> tuple[asyncio.Future[Submission], asyncio.Future[Submission]]:
        """An order that is stored and not shown to peers yet, and its repeat, which changes no book."""
        self.shows = True
        first = self.submit(order("a"))
        await until(lambda: self.shown)
        self.shows = False
        repeat = self.submit(order("a"))
        await until(lambda: len(self.batches) == 2)
        await quiet()
        return first, repeat


async def quiet() -> None:
    """Let everything run that can run without the test."""
    for _ in range(20):
        await asyncio.sleep(0)


async def stored(done: asyncio.Future[Submission], run: asyncio.Task[None]) -> None:
    """Wait for the journal to have all of a submission; the loop must not have ended."""
    waiting: set[asyncio.Future[Any]] = {done, run}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert not run.done(), run.exception()


def order(name: str, price: int = 100, side: Side = Side.BUY, quantity: int = 1) -> NewOrder:
    """A GTC limit order of alice."""
    return NewOrder("alice", name, "AAPL", side, 1, 1, price, quantity)


def names(commands: Iterable[Command]) -> list[str]:
    """The client order ids of new orders."""
    return [command.client_order_id for command in commands if isinstance(command, NewOrder)]


def with_quotes(away: tuple[AwayQuote, ...]) -> Callable[[Command], Command]:
    """What `attach` does when the peers show `away`."""
    return lambda command: (
        msgspec.structs.replace(command, away=away) if isinstance(command, NewOrder | LegResult) else command
    )
