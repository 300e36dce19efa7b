"""Following another's reign, the reports in between, and what a process that reigns says to a hand-over."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import msgspec
import nats.errors
import pytest
from matchbus.edge import Door, Edge

from bus import messages, provision, subjects
from bus.connection import Connection
from bus.executions import ExecutionsWriter
from bus.journal import MemoryJournal, PrimaryReplaced
from bus.lease import Lease
from bus.messages import HandoverRequest, LeaseEntry, StandbyStatus
from bus.records import decode_record
from bus.registry import Bucket
from bus.runner import ProcessFault
from bus.snapshots import SnapshotStore
from bus.stream_reader import StreamReader
from engine.commands import LegResult, decode
from engine.digest import state_digest
from engine.events import Accepted
from engine.runtime.commit_loop import CommitLoop, Retired, Submission
from engine.runtime.effects import Reports
from engine.runtime.process import Engine
from engine.runtime.recovery import begin_reign, catch_up, follow
from engine.runtime.snapshots import SnapshotMaker
from engine.runtime.standby import LEAVE_FIRST_S, MAX_HANDOVER_LAG, HandedOver, Handover, Standby
from engine.state import State
from tests.engine.runtime.nodes import tasks
from tests.engine.runtime.test_recovery import Reign, Stream, first_reign, publish, reports_to
from tests.waiting import running, until


async def test_a_standby_has_the_state_of_the_primary_and_goes_on_with_it() -> None:
    """It follows while the primary trades, takes over, and a replay of both reigns ends the same."""
    primary = await first_reign(5, rounds=5)
    state, journal = State(1), MemoryJournal(1, primary.journal.stored)
    async with running(follow(state, journal, reports_to(Stream()), lambda _: None)):
        await primary.trade(20)
        await until(lambda: journal.position == primary.journal.position)
        assert state_digest(state) == state_digest(primary.state)
        await primary.trade(3)
    await catch_up(state, journal, reports_to(Stream()))
    assert state_digest(state) == state_digest(primary.state)
    await begin_reign(state, journal, 2, 6)
    with pytest.raises(PrimaryReplaced):
        await primary.journal.append(1, 7, b"")
    successor = Reign(state, journal, random.Random(1))
    await successor.trade(5)
    again = State(1)
    await catch_up(again, MemoryJournal(1, journal.stored), reports_to(Stream()))
    assert state_digest(again) == state_digest(state)


async def test_a_standby_keeps_only_reports_that_may_be_missing() -> None:
    """What the primary stored meanwhile is left out; the rest goes out once, in order."""
    primary = await first_reign(3, rounds=20)
    expected = primary.reports()
    stream = Stream()
    reports = reports_to(stream)
    await catch_up(State(1), MemoryJournal(1, primary.journal.stored), reports)
    numbers = [batch.number for batch in primary.batches for event in batch.events if _is_reported(event)]
    last = numbers[len(numbers) // 2]
    reports.leave_out((last, 1))
    stored = numbers.index(last) + 1
    assert stored < len(expected)
    await publish(reports)
    assert stream.reports() == expected[stored:]
    reports.leave_out((primary.batches[-1].number, 10**6))
    await asyncio.wait_for(reports.drained(), 1)


def _is_reported(event: object) -> bool:
    return type(event).__name__ in ("Accepted", "Fill", "Replaced", "Cancelled", "Prevented")


def accepted(number: int) -> Accepted:
    """A report."""
    return Accepted("ann", number, f"c{number}", "AAPL", 1, 1, 1, 100, 5)


@pytest.mark.parametrize("owed", [0, 3])
async def test_a_successor_fences_the_reports_of_its_predecessor(
    nats_connection: Connection, engine: int, owed: int
) -> None:
    """What the zombie stores before counts; from the take-over on it stores nothing, debts or not."""
    await provision.provision_shared(nats_connection)
    zombie, writer = (ExecutionsWriter(nats_connection, engine) for _ in range(2))
    await zombie.start()
    reports = Reports(engine, writer, await writer.start())
    for number in range(1, owed + 1):
        reports.add(1, number, [accepted(number)])
    late = messages.Executions(engine, 1, 1, 1, 1, _reports(accepted(1)))
    await zombie.publish(late)
    await reports.take_over(2, 9, _alone)
    with pytest.raises(PrimaryReplaced):
        await zombie.publish(messages.Executions(engine, 1, 2, 2, 1, _reports(accepted(2))))
    assert await writer.start() == ((9, 0) if not owed else (3, 1))
    async with running(reports.run()):
        reports.add(2, 10, [accepted(10)])
        await asyncio.wait_for(reports.drained(), 5)
    assert await writer.start() == (10, 1)


async def test_a_predecessor_that_stores_in_the_middle_of_a_take_over_repeats_nothing(engine: int) -> None:
    """The zombie is faster once more: what it stored is left out, what it did not store is there."""
    stored: list[messages.Executions] = []
    late = messages.Executions(engine, 1, 1, 1, 1, _reports(accepted(1)))

    class Writer:
        """A stream into which the predecessor writes between our look and our message."""

        async def start(self, _: int) -> tuple[int, int]:
            return (stored[-1].last_batch, stored[-1].last_reports) if stored else (0, 0)

        async def publish(self, message: messages.Executions) -> None:
            if not stored:
                stored.append(late)
                raise PrimaryReplaced("EXECUTIONS", 1, 2, 1)
            stored.append(message)

    reports = Reports(engine, cast("ExecutionsWriter", Writer()), (0, 0))
    for number in (1, 2, 3):
        reports.add(1, number, [accepted(number)])
    await reports.take_over(2, 9, _alone)
    ids = [report.order_id for message in stored for report in message.reports]  # type: ignore[union-attr]  # all have one
    assert ids == [1, 2, 3]


async def test_after_a_loss_a_faster_predecessor_takes_no_reports_away(engine: int) -> None:
    """What it stored is of batches that the journal has lost: all that is owed goes out, and what follows."""
    stored: list[messages.Executions] = []

    class Writer:
        """A stream whose newest message is of a lost batch, once more while we store."""

        late = 2

        async def start(self, _: int) -> tuple[int, int]:
            return 20, 1

        async def publish(self, message: messages.Executions) -> None:
            if self.late:
                self.late -= 1
                raise PrimaryReplaced("EXECUTIONS", 1, 2, 1)
            stored.append(message)

    reports = Reports(engine, cast("ExecutionsWriter", Writer()), (20, 1))
    reports.report_again()
    for number in (1, 2, 3):
        reports.add(1, number, [accepted(number)])
    await reports.take_over(2, 9, _alone)
    async with running(reports.run()):
        reports.add(2, 10, [accepted(4)])
        await asyncio.wait_for(reports.drained(), 5)
    ids = [report.order_id for message in stored for report in message.reports]  # type: ignore[union-attr]  # all have one
    assert ids == [1, 2, 3, 4]


@pytest.mark.parametrize("between", [False, True], ids=["before", "between"])
@pytest.mark.parametrize("own", [False, True], ids=["debts", "debts and its own"])
async def test_a_process_replaced_in_its_take_over_stores_nothing_behind_its_successor(
    nats_connection: Connection, engine: int, *, own: bool, between: bool
) -> None:
    """The successor stored before we looked, or before our message: nothing is there twice, and it goes on.

    By the debts alone, which bear the epoch of their batches, only the journal tells it from a predecessor.
    """
    await provision.provision_shared(nats_connection)
    predecessor, writer, successor = (ExecutionsWriter(nats_connection, engine) for _ in range(3))
    await predecessor.start()
    publish = writer.publish

    async def begin() -> None:
        """The predecessor stores once more, then another process reigns in epoch 3, from batch 10 on."""
        await predecessor.publish(messages.Executions(engine, 1, 1, 1, 1, _reports(accepted(1))))
        assert await successor.start() == (1, 1)
        debts = _reports(accepted(2)) + _reports(accepted(3))
        await successor.publish(messages.Executions(engine, 1, 2, 3, 1, debts))
        if own:
            await successor.publish(messages.Executions(engine, 3, 11, 11, 1, _reports(accepted(11))))

    async def publish_late(message: messages.Executions) -> None:
        writer.publish = publish  # type: ignore[method-assign]  # for one call
        await begin()
        await publish(message)

    async def check_place() -> None:
        if not own and await ExecutionsWriter(nats_connection, engine).start() != (0, 0):
            raise ProcessFault("another process wrote")

    if between:
        writer.publish = publish_late  # type: ignore[method-assign]  # for one call
    else:
        await begin()
    reports = Reports(engine, writer, (0, 0))
    for number in (1, 2, 3):
        reports.add(1, number, [accepted(number)])
    with pytest.raises(PrimaryReplaced if own else ProcessFault):
        await reports.take_over(2, 9, check_place)
    await successor.publish(messages.Executions(engine, 3, 12, 12, 1, _reports(accepted(12))))
    reader = StreamReader(
        nats_connection, subjects.EXECUTIONS_STREAM, subject=subjects.execution(engine), contiguous=False
    )
    ids: list[int] = []
    while not ids or ids[-1] != 12:
        for stored in await reader.read(5):
            ids += [report.order_id for report in messages.decode_executions(stored.payload).reports]  # type: ignore[union-attr]  # all have one
    await reader.close()
    assert ids == ([1, 2, 3, 11, 12] if own else [1, 2, 3, 12])


async def test_what_bears_the_number_of_a_lost_batch_is_reported(
    nats_connection: Connection, engine: int
) -> None:
    """The newest message is of a later batch than the journal has, but of no later epoch: no successor's."""
    await provision.provision_shared(nats_connection)
    earlier, writer = (ExecutionsWriter(nats_connection, engine) for _ in range(2))
    await earlier.start()
    await earlier.publish(messages.Executions(engine, 1, 20, 20, 1, _reports(accepted(1))))
    reports = Reports(engine, writer, await writer.start())
    reports.report_again()
    reports.add(1, 8, [accepted(2)])
    await reports.take_over(2, 9, _alone)
    assert await writer.start() == (8, 1)
    assert not reports.queued


async def _alone() -> None:
    """No other process has begun a reign."""


def _reports(event: Accepted) -> tuple[messages.Report, ...]:
    return (messages.ReportedOrder(*msgspec.structs.astuple(event)),)


async def test_a_standby_waits_for_the_lease_and_says_where_it_is(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another holds it, the standby tells engine, address, batch and lag; then the lease is its own."""
    await provision.provision_shared(nats_connection)
    primary = await first_reign(2, rounds=2)
    holder = Lease(nats_connection, LeaseEntry(engine, "primary", "127.0.0.1:1", 1))
    lease = Lease(nats_connection, LeaseEntry(engine, "standby", "127.0.0.1:2", 2))
    assert await holder.acquire()
    state, journal = State(1), MemoryJournal(1, primary.journal.stored)
    state.engine = engine  # the subject it speaks on; the journal is another's
    monkeypatch.setattr(journal, "lag", AsyncMock(return_value=7))
    writer = ExecutionsWriter(nats_connection, engine)
    standby = Standby(nats_connection, lease, state, journal, reports_to(Stream()), writer)
    heard: list[StandbyStatus] = []
    statuses = await nats_connection.subscribe(subjects.standby(engine))
    waiting = asyncio.create_task(standby.until_reign(0))
    keeping = asyncio.create_task(holder.keep(_never))
    last = primary.journal.position.batch_number
    while not heard or heard[-1].batch_number < last:
        heard.append(messages.decode_standby((await statuses.next_msg(timeout=5)).data))
    assert heard[-1] == StandbyStatus(engine, "127.0.0.1:2", 2, 1, last, 7)
    assert standby.lag_batches == 7
    assert not waiting.done()
    keeping.cancel()
    await holder.release()
    await asyncio.wait_for(waiting, 5)
    leases = Bucket(nats_connection, subjects.LEASES_BUCKET, messages.decode_lease)
    assert await leases.get(str(engine)) == lease.entry
    stored = [decode_record(payload).commands for payload in primary.journal.stored]
    assert standby.commands == sum(len(decode(commands)) for commands in stored)


@asynccontextmanager
async def standing_by(
    nc: Connection,
    engine: int,
    state: State,
    journal: MemoryJournal,
    reports: Reports,
    writer: ExecutionsWriter,
) -> AsyncIterator[None]:
    """A standby that waits for the length of a block, while another process keeps the lease."""
    lease = Lease(nc, LeaseEntry(engine, "standby", "127.0.0.1:2", 2))
    holder = Lease(nc, LeaseEntry(engine, "primary", "127.0.0.1:1", 1))
    assert await holder.acquire()
    standby = Standby(nc, lease, state, journal, reports, writer)
    async with running(standby.until_reign(0), holder.keep(_never)):
        yield


async def test_a_standby_forgets_nothing_that_bears_the_number_of_a_lost_batch(
    nats_connection: Connection, engine: int
) -> None:
    """After an accepted loss the newest report is of a lost batch until the primary has fenced it off."""
    await provision.provision_shared(nats_connection)
    primary = await first_reign(2, rounds=2)
    state, journal = State(1), MemoryJournal(1, primary.journal.stored)
    state.engine = engine
    writer = ExecutionsWriter(nats_connection, engine)
    await writer.start()
    await writer.publish(messages.Executions(engine, 1, 1, 10**6, 1, _reports(accepted(1))))
    reports = Reports(engine, writer, await writer.start())
    await catch_up(state, journal, reports)
    assert not reports.queued
    reports.report_again()
    statuses = await nats_connection.subscribe(subjects.standby(engine))
    async with standing_by(nats_connection, engine, state, journal, reports, writer):
        for _ in range(2):  # it looks at the stream in between
            await statuses.next_msg(timeout=5)
        before = len(primary.reports())
        await primary.trade(3)
        await until(lambda: journal.position == primary.journal.position)
        for _ in range(3):  # one of them may have been on its way, and another on its turn
            await statuses.next_msg(timeout=5)
        assert reports.queued == len(primary.reports()) - before > 0


async def test_a_standby_forgets_what_the_primary_has_stored(
    nats_connection: Connection, engine: int
) -> None:
    """It looks at the stream while it waits, however long that is, and holds no more than what is missing."""
    await provision.provision_shared(nats_connection)
    primary = await first_reign(2, rounds=2)
    state, journal = State(1), MemoryJournal(1, primary.journal.stored)
    state.engine = engine
    writer = ExecutionsWriter(nats_connection, engine)
    reports = Reports(engine, writer, await writer.start())
    await catch_up(state, journal, reports)
    assert reports.queued
    await ExecutionsWriter(nats_connection, engine).publish(
        messages.Executions(engine, 1, 1, state.batch_number, 10**6, _reports(accepted(1)))
    )
    async with standing_by(nats_connection, engine, state, journal, reports, writer):
        await until(lambda: not reports.queued)


async def test_a_standby_that_owes_no_reports_asks_for_none(nats_connection: Connection, engine: int) -> None:
    """The newest message of the stream may be large, and every standby would have it twice a second."""
    await provision.provision_shared(nats_connection)
    holder = Lease(nats_connection, LeaseEntry(engine, "primary", "127.0.0.1:1", 1))
    lease = Lease(nats_connection, LeaseEntry(engine, "standby", "127.0.0.1:2", 2))
    assert await holder.acquire()
    writer = AsyncMock(spec_set=ExecutionsWriter)
    reports = Reports(engine, writer, (0, 0))
    standby = Standby(nats_connection, lease, State(engine), MemoryJournal(engine), reports, writer)
    statuses = await nats_connection.subscribe(subjects.standby(engine))
    async with running(standby.until_reign(0), holder.keep(_never)):
        for _ in range(2):  # it would ask in between
            await statuses.next_msg(timeout=5)
    writer.start.assert_not_awaited()


async def test_a_process_that_takes_over_counts_what_it_followed() -> None:
    """Its first snapshot is due when its predecessor's next one was."""
    primary = await first_reign(2, rounds=2)
    journal = MemoryJournal(1, primary.journal.stored)

    async def claim(*, leave_first_s: float) -> None:
        assert leave_first_s == LEAVE_FIRST_S, "a lease that nobody has held is the other one's"
        await until(lambda: journal.position == primary.journal.position)

    lease = AsyncMock(spec=Lease, entry=LeaseEntry(1, "standby", "127.0.0.1:2", 2), claim=claim)
    followed = sum(len(decode(decode_record(payload).commands)) for payload in journal.stored)
    maker = SnapshotMaker(1, "", commands_per_snapshot=followed - 1, store=AsyncMock(spec_set=SnapshotStore))
    async with tasks() as group:
        process: Any = SimpleNamespace(
            _state=State(1),
            _settings=SimpleNamespace(standby=True),
            _edge=AsyncMock(spec_set=Edge),
            _nc=AsyncMock(spec_set=Connection),
            _journal=journal,
            _reports=reports_to(Stream()),
            _executions=AsyncMock(spec_set=ExecutionsWriter, start=AsyncMock(return_value=(0, 0))),
            _metrics=SimpleNamespace(),
            _snapshot_maker=maker,
            _group=group,
            _check_place=_never,
        )
        await Engine._take_lease(process, lease)
    gc.unfreeze()  # before it followed it froze what there was
    assert maker.commands == 1


async def _never() -> None:
    raise AssertionError("the lease lapsed")


class Primary:
    """A process that reigns, and whoever asks it to hand over."""

    def __init__(self, nc: Connection, engine: int) -> None:
        self.nc = nc
        self.engine = engine
        self.retired = asyncio.Event()
        self.running = asyncio.create_task(Handover(nc, engine, self._retire).run())

    async def _retire(self) -> None:
        self.retired.set()

    async def tell(self, lag: int, address: str = "127.0.0.1:2") -> None:
        """A standby says how far behind it is."""
        status = StandbyStatus(self.engine, address, 2, 1, 5, lag)
        await self.nc.publish(subjects.standby(self.engine), messages.encode(status))

    async def listens(self) -> None:
        """Wait until it can be asked."""
        async with asyncio.timeout(5):
            while True:
                with suppress(nats.errors.NoRespondersError):
                    await self.ask(b"junk")
                    return
                await asyncio.sleep(0.01)

    async def ask(self, payload: bytes = b"") -> str:
        """Ask for a hand-over; the error, if any."""
        payload = payload or messages.encode(HandoverRequest(self.engine))
        answer = await self.nc.request(subjects.handover(self.engine), payload, timeout=5)
        return messages.decode_handover_reply(answer.data).error


async def test_a_hand_over_needs_a_standby_that_is_close(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No standby, a silent one, one too far behind, no request at all: the reign goes on. Then it ends."""
    primary = Primary(nats_connection, engine)
    await primary.listens()
    assert "no standby of" in await primary.ask()
    await nats_connection.publish(subjects.standby(engine), b"\xff junk")
    await primary.tell(MAX_HANDOVER_LAG + 1)
    assert f"{MAX_HANDOVER_LAG + 1} batches behind" in await primary.ask()
    await primary.tell(0)
    assert "no request" in await primary.ask(b"junk")
    assert "is for engine" in await primary.ask(messages.encode(HandoverRequest(engine + 1)))
    with monkeypatch.context() as silence:
        silence.setattr("engine.runtime.standby.HEARD_S", -1.0)
        assert "no standby of" in await primary.ask()
    assert not primary.retired.is_set()
    await primary.tell(MAX_HANDOVER_LAG + 1)
    await primary.tell(MAX_HANDOVER_LAG, "127.0.0.1:3")
    assert not await primary.ask()
    assert primary.retired.is_set()
    with pytest.raises(HandedOver):
        await primary.running


async def test_a_retired_loop_finishes_what_it_took_and_takes_no_more() -> None:
    """Commands that were taken are answered; new ones hear that another process takes over."""
    reign = await first_reign(1, rounds=1)
    loop: CommitLoop = reign.loop
    async with running(reign.loop.run()):
        taken = [loop.submit([]) for _ in range(3)]
        assert not loop.is_idle
        loop.retired = True
        with pytest.raises(Retired):
            loop.submit([])
        await asyncio.gather(*taken)
        await until(lambda: loop.is_idle)
        assert not loop.is_appending


async def test_an_idle_engine_that_hands_over_commits_nothing_that_it_owes_itself() -> None:
    """The standby may be where the journal ends: what came after would stand in front of its reign."""
    reign = await first_reign(1, rounds=1)
    loop: CommitLoop = reign.loop
    owed: list[asyncio.Future[Submission]] = []

    async def result_comes() -> None:
        owed.append(loop.submit_own(LegResult((1 << 48) + 1, ())))
        await asyncio.wait(owed, timeout=0.1)

    keeping = asyncio.get_running_loop().create_future()
    retiring: Any = SimpleNamespace(
        _door=Door("no service", "nobody serves yet"),
        _reports=reports_to(Stream()),
        _keeping=keeping,
    )
    trading: Any = SimpleNamespace(loop=loop, round_trip=SimpleNamespace(make=result_comes))
    lease = AsyncMock(spec_set=Lease)
    async with running(reign.loop.run()):
        await until(lambda: loop.is_idle)
        end = loop.journal.position
        await Engine._retire(retiring, lease, trading)
        assert loop.journal.position == end
        assert not owed[0].done()
    assert keeping.cancelled()
    lease.release.assert_awaited_once_with()
