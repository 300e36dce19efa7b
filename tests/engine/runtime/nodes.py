"""Small engines that send each other legs over a real nats-server, and peers of the test's own making."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import subjects
from bus.journal import MemoryJournal
from bus.messages import ASK, BID, BookSnapshot, Heartbeat, Leg, LegQuery, decode_route
from bus.peer import PeerFeed
from bus.replica import BookReplica
from bus.round_trip import RoundTrip
from engine.commands import AddInstrument, Command, NewOrder, decode
from engine.events import Fill, LegSent
from engine.runtime.away import AwayView
from engine.runtime.commit_loop import Batch, CommitLoop, Submission
from engine.runtime.legs import Legs
from engine.runtime.recovery import begin_reign
from engine.state import State
from engine.terms import Side
from tests.feed_checksum import checksum


class _Done(Exception):
    pass


@dataclass
class Node:
    """One small engine: state, commit loop, memory journal, legs. It sees what `peers` shows."""

    number: int
    nc: Client
    group: asyncio.TaskGroup
    peers: dict[int, PeerFeed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = State(self.number)
        self.journal = MemoryJournal(self.number)
        self.away = AwayView(self.number, self.state, self.peers)
        self.replicas: dict[str, BookReplica] = {}
        self.sent: list[LegSent] = []
        self.fills: list[Fill] = []
        self.catch_ups = 0
        self.loop = CommitLoop(
            self.state,
            self.journal,
            catch_up=self._catch_up,
            attach=self.away.attach,
            legs_planned=self.away.legs_planned,
            release=self._release,
            release_trouble=lambda: "",
            unrenewed_s=lambda: 0.0,
            has_peers=lambda: True,
            delay_s=lambda: 0.0,
        )
        self.round_trip = RoundTrip(self.nc)
        self.legs = Legs(
            self.nc,
            self.number,
            self.loop,
            self.away,
            self.replicas,
            self.group,
            catch_up=self.round_trip.make,
        )

    async def start(self, *, serve: bool = True) -> None:
        """Begin a reign with one symbol."""
        await begin_reign(self.state, self.journal, self.state.epoch + 1, 1)
        await self.round_trip.start()
        self.group.create_task(self.loop.run())
        await self.loop.submit_own(AddInstrument("AAPL", "0.01", "1"))
        self.show()
        if serve:
            await self.serve()

    async def serve(self) -> None:
        """Take legs; the server knows when this returns."""
        await self.legs.serve()
        await self.nc.flush()

    async def rest(self, client: str, side: Side, quantity: int, price: int) -> Submission:
        """An order that peers do not see yet."""
        return await self.loop.submit([NewOrder(client, client, "AAPL", side, 1, 1, price, quantity)])

    def show(self) -> None:
        """Publish the book as it is, to this engine's own replica."""
        book = self.state.books["AAPL"]
        replica = self.replicas["AAPL"] = BookReplica("AAPL")
        levels = tuple((side, *level) for side in (BID, ASK) for level in book.levels(side))
        crc = checksum(book.levels(Side.BUY), book.levels(Side.SELL))
        replica.apply_snapshot(BookSnapshot(self.state.epoch, book.sequence, 1, 1, levels, crc))

    def see(self, peer: int, *asks: tuple[int, int], epoch: int = 1, sequence: int = 1) -> None:
        """This engine's view of a peer's offers is now this one."""
        feed = PeerFeed(peer)
        offered = [(price, quantity, 1) for price, quantity in asks]
        levels = tuple((ASK, *level) for level in offered)
        feed.on_message(BookSnapshot(epoch, sequence, 1, 1, levels, checksum((), offered)), "AAPL", 1)
        for beat in range(2):
            feed.on_message(Heartbeat(peer, epoch, 1, beat, {}), None, beat)
        self.peers[peer] = feed

    async def commands(self, *kinds: type) -> list[Command]:
        """The journal's commands of these kinds, in order."""
        records = [record async for record in MemoryJournal(self.number, self.journal.stored).replay()]
        return [
            command for record in records for command in decode(record.commands) if type(command) in kinds
        ]

    @property
    def number_of_records(self) -> int:
        """How many the journal has; a start makes two."""
        return len(self.journal.stored)

    async def _catch_up(self) -> None:
        self.catch_ups += 1

    async def _release(self, batch: Batch) -> None:
        for event in batch.events:
            if isinstance(event, LegSent):
                self.sent.append(event)
                self.legs.send(event)
            elif isinstance(event, Fill):
                self.fills.append(event)
        if batch.changes and self.replicas:
            self.show()


class Peer:
    """A peer whose answers the test makes; it remembers what it was asked."""

    def __init__(self, nc: Client, number: int, *answers: Callable[[Leg | LegQuery], bytes | None]) -> None:
        self.asked: list[Leg | LegQuery] = []
        self._nc = nc
        self._number = number
        self._answers = list(answers)

    async def serve(self) -> None:
        """Answer the first question with the first answer, and so on; with none left, no more."""
        await self._nc.subscribe(subjects.route(self._number), cb=self._on_request)
        await self._nc.flush()

    async def _on_request(self, request: Msg) -> None:
        question = decode_route(request.data)
        self.asked.append(question)
        answer = self._answers.pop(0)(question) if self._answers else None
        if answer is not None:
            await request.respond(answer)


@asynccontextmanager
async def tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A group whose tasks end with the block; a failure of one fails the test."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
            raise _Done  # noqa: TRY301 -- nothing else ends the group's tasks
    except* _Done:
        pass
