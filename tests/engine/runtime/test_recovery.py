"""Replay and the start of a new reign, on what a real commit loop wrote into a memory journal."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import pytest

from bus import messages
from bus.journal import MemoryJournal, PrimaryReplaced
from bus.messages import Executions
from bus.records import JournalDamaged
from engine.commands import (
    AddInstrument,
    AwayQuote,
    CancelAll,
    CancelOrder,
    Command,
    EpochStarted,
    LegFill,
    LegResult,
    NewOrder,
    QueryLeg,
    ReplaceOrder,
    TakeLeg,
    decode,
    encode,
)
from engine.digest import state_digest
from engine.events import LegSent
from engine.invariants import check
from engine.runtime.commit_loop import Batch, CommitLoop
from engine.runtime.effects import REPORTED, Reports
from engine.runtime.high_water import MarkedJournal
from engine.runtime.recovery import begin_next_reign, begin_reign, replay
from engine.state import State
from engine.terms import Side
from tests.waiting import running

if TYPE_CHECKING:
    from bus.executions import ExecutionsWriter

SYMBOLS = ("AAPL", "BRK.B")


class Stream:
    """Takes the place of the execution reports' stream."""

    def __init__(self) -> None:
        self.stored: list[Executions] = []

    async def publish(self, message: Executions) -> None:
        """Store a message, as a reader would decode it."""
        self.stored.append(messages.decode_executions(messages.encode_executions(message)))

    def reports(self) -> list[tuple[object, ...]]:
        """The fields of all reports, in order."""
        return [msgspec.structs.astuple(report) for message in self.stored for report in message.reports]


class Reign:
    """A commit loop over a memory journal, whose legs the test answers."""

    def __init__(self, state: State, journal: MemoryJournal, source: random.Random) -> None:
        self.state = state
        self.journal = journal
        self.batches: list[Batch] = []
        self.legs: list[LegSent] = []
        self._source = source
        self.loop = CommitLoop(
            state,
            journal,
            catch_up=self._catch_up,
            attach=self._attach,
            legs_planned=lambda _: None,
            release=self._release,
            release_trouble=lambda: "",
            unrenewed_s=lambda: 0.0,
            has_peers=lambda: True,
            delay_s=lambda: 0.0,
            utc_ns=lambda: source.randrange(10**9),
        )

    async def trade(self, rounds: int) -> None:
        """Submit bursts of everything that clients and peers may send, so that batches differ in size."""
        source = self._source
        async with running(self.loop.run()):
            for number in range(rounds):
                burst = source.randrange(1, 12)
                waiting = [
                    self.loop.submit([self._command(f"{self.state.epoch}-{number}-{place}")])
                    for place in range(burst)
                ]
                while self.legs and source.random() < 0.7:
                    waiting.append(self.loop.submit_own(self._result(self.legs.pop(0))))
                await asyncio.gather(*waiting)

    def reports(self) -> list[tuple[object, ...]]:
        """The fields of every event to report, in order."""
        return [
            msgspec.structs.astuple(cast("msgspec.Struct", event))
            for batch in self.batches
            for event in batch.events
            if type(event) in REPORTED
        ]

    def _command(self, name: str) -> Command:
        source = self._source
        client = source.choice(("alice", "bob"))
        symbol = source.choice(SYMBOLS)
        order_id = (1 << 48) + source.randrange(1, 400)
        side = source.choice((1, 2))
        price, quantity = source.randrange(95, 106), source.randrange(1, 20)
        draw = source.random()
        if draw < 0.6:
            stp = source.randrange(6)
            tif = source.choice((1, 1, 1, 2, 3))
            return NewOrder(client, name, symbol, side, 1, tif, price, quantity, self_trade_prevention=stp)
        if draw < 0.75:
            return CancelOrder(client, order_id)
        if draw < 0.85:
            return ReplaceOrder(client, order_id, "", price, quantity)
        if draw < 0.87:
            return CancelAll(client, symbol, 0, source.choice((0, 1)))
        leg_id = (2 << 48) + source.randrange(1, 300)
        if draw < 0.9:
            return QueryLeg(leg_id, 2)
        return TakeLeg(leg_id, 2, self.state.epoch, 2 << 48, symbol, side, price, quantity, 2 << 48)

    def _result(self, leg: LegSent) -> LegResult:
        quantity = self._source.randrange(leg.quantity + 1)
        fill = LegFill((2 << 48) + leg.leg_id % 10_000, leg.limit, quantity, 2 << 48, 5)
        return LegResult(leg.leg_id, (fill,) if quantity else ())

    def _attach(self, command: Command) -> Command:
        if isinstance(command, NewOrder) and self._source.random() < 0.2:
            level = (command.price, self._source.randrange(1, 10))
            return msgspec.structs.replace(command, away=(AwayQuote(2, 1, 9, (level,)),))
        return command

    async def _catch_up(self) -> None:
        return

    async def _release(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.legs += [event for event in batch.events if isinstance(event, LegSent)]


def reports_to(stream: Stream, published: tuple[int, int] = (0, 0)) -> Reports:
    """The reports of engine 1."""
    return Reports(1, cast("ExecutionsWriter", stream), published)


async def publish(reports: Reports) -> None:
    """Let out all that is queued."""
    async with running(reports.run()):
        await asyncio.wait_for(reports.drained(), 10)


async def first_reign(seed: int, rounds: int = 60) -> Reign:
    """An engine that has traded for a while."""
    reign = Reign(State(1), MemoryJournal(1), random.Random(seed))
    await begin_reign(reign.state, reign.journal, 1, 5)
    async with running(reign.loop.run()):
        for symbol in SYMBOLS:
            await reign.loop.submit_own(AddInstrument(symbol, "0.01", "1"))
    await reign.trade(rounds)
    return reign


async def replayed(stored: list[bytes], reports: Reports) -> tuple[State, MemoryJournal]:
    """What a start makes of a journal."""
    state, journal = State(1), MemoryJournal(1, stored)
    await replay(state, journal, reports)
    check(state)
    return state, journal


@pytest.mark.parametrize("seed", range(3))
async def test_a_replay_leads_to_the_same_state(seed: int) -> None:
    """Digest, levels, order by order, book sequences, and the legs that are still out."""
    reign = await first_reign(seed)
    state, journal = await replayed(reign.journal.stored, reports_to(Stream()))
    assert state_digest(state) == state_digest(reign.state)
    assert journal.position == reign.journal.position
    assert (state.epoch, state.batch_number) == (1, reign.batches[-1].number)
    assert sorted(state.legs) == sorted(reign.state.legs)
    for symbol in SYMBOLS:
        was, book = reign.state.books[symbol], state.books[symbol]
        assert book.sequence == was.sequence > 10
        for side in Side:
            assert list(book.orders(side)) == list(was.orders(side))
            assert list(book.levels(side)) == list(was.levels(side))
    assert len(reign.batches) < sum(len(batch.commands) for batch in reign.batches), "batches hold several"
    assert (
        reign.legs or state.legs or any(isinstance(c, LegResult) for b in reign.batches for c in b.commands)
    )


async def test_an_engine_goes_on_where_it_ended() -> None:
    """Over three reigns the same as one that replays them all: numbers, sequences and digest go on."""
    reign = await first_reign(7, rounds=20)
    for epoch in (2, 3):
        state, journal = await replayed(reign.journal.stored, reports_to(Stream()))
        await begin_reign(state, journal, epoch, 6)
        successor = Reign(state, journal, random.Random(epoch))
        await successor.trade(20)
        assert successor.batches[0].number > reign.batches[-1].number + 1
        assert {batch.epoch for batch in successor.batches} == {epoch}
        reign = successor
    state, _ = await replayed(reign.journal.stored, reports_to(Stream()))
    assert state_digest(state) == state_digest(reign.state)
    assert state.epoch == 3


async def test_a_reign_begins_with_a_record_of_its_epoch() -> None:
    """After the last one, not before its time even if the clock stepped back, and the rival is fenced off."""
    reign = await first_reign(1, rounds=5)
    end = reign.journal.position
    state, journal = await replayed(reign.journal.stored, reports_to(Stream()))
    newest_ns = state.accounts.time_ns
    await begin_reign(state, journal, 2, 1)
    records = [record async for record in MemoryJournal(1, journal.stored).replay()]
    assert (records[-1].epoch, records[-1].batch_number) == (2, end.batch_number + 1)
    assert records[-1].time_ns == newest_ns > 1
    assert decode(records[-1].commands) == (EpochStarted(2, (1 << 48) + (2 << 30) + 1),)
    assert (state.epoch, state.batch_number) == (2, end.batch_number + 1)
    with pytest.raises(PrimaryReplaced):
        await reign.journal.append(1, newest_ns, encode([]))
    later, _ = await replayed(journal.stored, reports_to(Stream()))
    assert state_digest(later) == state_digest(state)


class Late(MemoryJournal):
    """A journal in which something happens right before each of the first appends."""

    def __init__(self, stored: list[bytes], *happenings: Callable[[], Awaitable[None]]) -> None:
        super().__init__(1, stored)
        self._happenings = list(happenings)

    async def append(self, epoch: int, time_ns: int, commands: bytes) -> int:
        """As Journal says."""
        if self._happenings:
            await self._happenings.pop(0)()
        return await super().append(epoch, time_ns, commands)


async def test_a_predecessor_that_appends_once_more_does_not_keep_a_reign_from_beginning() -> None:
    """What it stored and acknowledged is applied, with its reports; the reign begins after it."""
    reign = await first_reign(4, rounds=5)
    state, stream = State(1), Stream()
    reports = reports_to(stream)
    journal = Late(reign.journal.stored, *(partial(reign.trade, 2) for _ in range(2)))
    await begin_next_reign(state, journal, reports, 6)
    assert (state.epoch, state.batch_number) == (7, reign.batches[-1].number + 1)
    with pytest.raises(PrimaryReplaced):
        await reign.journal.append(1, 10**9, b"")
    await publish(reports)
    assert stream.reports() == reign.reports()
    later, _ = await replayed(journal.stored, reports_to(Stream()))
    assert state_digest(later) == state_digest(state)


async def test_where_another_has_begun_a_reign_none_begins() -> None:
    """Whoever came first is the rightful one, in the same epoch or a higher one; the state is as it was."""
    for epoch in (2, 3):
        reign = await first_reign(4, rounds=5)
        before = state_digest(reign.state)
        other, others = await replayed(reign.journal.stored, reports_to(Stream()))
        state = State(1)
        journal = Late(others.stored, partial(begin_reign, other, others, epoch, 6))
        with pytest.raises(PrimaryReplaced):
            await begin_next_reign(state, journal, reports_to(Stream()), 0)
        assert state_digest(state) == before


async def test_a_reign_begins_at_its_time() -> None:
    """Where the clock went on."""
    state, journal = State(1), MemoryJournal(1)
    await begin_reign(state, journal, 4, 77)
    (record,) = [record async for record in MemoryJournal(1, journal.stored).replay()]
    assert (record.epoch, record.batch_number, record.time_ns) == (4, 1, 77)


@pytest.mark.parametrize("lost", [0, 1, 3, 40, None])
async def test_what_was_not_published_goes_out_exactly_once(lost: int | None) -> None:
    """The engine died with the last `lost` reports not in the stream (None: with none of them there)."""
    reign = await first_reign(3, rounds=30)
    expected = reign.reports()
    assert len(expected) > 100
    places = [
        (batch.number, place)
        for batch in reign.batches
        for place in range(1, 1 + sum(type(event) in REPORTED for event in batch.events))
    ]
    published = len(expected) - lost if lost is not None else 0
    stream = Stream()
    reports = reports_to(stream, places[published - 1] if published else (0, 0))
    await replayed(reign.journal.stored, reports)
    await publish(reports)
    assert stream.reports() == expected[published:]


async def test_a_damaged_journal_is_not_traded_on() -> None:
    """A record that is gone from the middle stops the start."""
    reign = await first_reign(1, rounds=10)
    del reign.journal.stored[5]
    with pytest.raises(JournalDamaged):
        await replayed(reign.journal.stored, reports_to(Stream()))


async def test_each_reign_numbers_its_legs_above_those_of_earlier_ones() -> None:
    """Also where the earlier ones are forgotten: the epoch alone says so. Far epochs go on as before."""
    first: list[int] = []
    for epoch in (1, 2, 3, (1 << 18) - 1):
        state = State(9)
        await begin_reign(state, MemoryJournal(9), epoch, 1)
        first.append(state.next_leg_id)
    assert first == sorted(set(first))
    assert {leg_id >> 48 for leg_id in first} == {9}
    state = State(9)
    await begin_reign(state, MemoryJournal(9), 1 << 18, 1)
    assert state.next_leg_id == (9 << 48) + 1


async def test_legs_are_numbered_above_those_of_a_long_reign_that_is_lost(tmp_path: Path) -> None:
    """A peer refuses legs below those that it has settled, and would answer a number it knows with old fills.

    All is gone but the mark; the lost reign had sent ten thousand legs a second for a day.
    """
    lost = State(1)
    async with MarkedJournal(MemoryJournal(1), 1, tmp_path) as journal:
        await replay(lost, journal, reports_to(Stream()))
        await begin_reign(lost, journal, 6, 1)
    state = State(1)
    async with MarkedJournal(MemoryJournal(1), 1, tmp_path, accept_loss=True) as journal:
        await begin_next_reign(state, journal, reports_to(Stream()), 0)
    assert state.epoch == 7
    assert state.next_leg_id > lost.next_leg_id + 24 * 3_600 * 10_000
