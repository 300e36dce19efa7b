"""What leaves an engine, with everything it leaves to in the test's hands."""

import asyncio
import logging
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import msgspec
import pytest

from bus import messages
from bus.executions import ExecutionsDamaged, MessageTooLong
from bus.messages import Executions, Report
from bus.stream import MAX_PAYLOAD_BYTES
from engine.events import (
    Accepted,
    Answered,
    BookChanged,
    Cancelled,
    CancelledAll,
    Event,
    Fill,
    LegSent,
    LegTaken,
    Listed,
    Prevented,
    Replaced,
)
from engine.runtime import effects, order_trace
from engine.runtime.commit_loop import Batch
from engine.runtime.effects import REPORTED, Effects, FillBell, Reports
from tests.waiting import running, until

if TYPE_CHECKING:
    from bus.executions import ExecutionsWriter
    from engine.runtime.market_data import MarketData

EVENTS: dict[type, Event] = {
    Accepted: Accepted("alice", 1, "c1", "AAPL", 2, 3, 4, 5, 6),
    Fill: Fill("alice", 1, 2, 3, "c1", "AAPL", 4, 5, 6, 7, 8, 9, 10, 11, 12, 13),
    Replaced: Replaced("alice", 1, "c1", 2, 3),
    Cancelled: Cancelled("alice", 1, "c1", "AAPL", 2, 3),
    Prevented: Prevented("alice", "AAPL", 1, 2, 3, 4, 5),
}
KINDS: dict[type, type] = {
    Accepted: messages.ReportedOrder,
    Fill: messages.ReportedFill,
    Replaced: messages.ReportedReplace,
    Cancelled: messages.ReportedCancel,
    Prevented: messages.ReportedPrevention,
}


async def test_every_report_is_told_by_its_order(
    stream: "Stream", caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log at DEBUG and trace name an order for each kind of report: of a prevented match the taker."""
    traced: list[int] = []
    tracer = SimpleNamespace(samples=lambda _: True, note=lambda span: traced.append(span.order_id))
    monkeypatch.setattr(order_trace, "_tracer", tracer)
    reports = reports_to(stream)
    reports.add(1, 1, list(EVENTS.values()))
    with caplog.at_level(logging.DEBUG, "orders"):
        async with running(reports.run()):
            await reports.drained()
    told = [record.order for record in caplog.records if record.message == "report stored"]  # type: ignore[attr-defined]  # "extra"
    assert told == traced == [1, 3, 1, 1, 1]


class Stream:
    """Takes the place of the execution reports' stream; keeps what any reader of it would decode."""

    def __init__(self) -> None:
        self.stored: list[Executions] = []
        self.largest = 0
        self.times: list[float] = []
        self.looks = 0
        self.open = asyncio.Event()
        self.open.set()

    async def publish(self, message: Executions) -> None:
        """Store a message, once the test lets it."""
        await self.open.wait()
        payload = messages.encode_executions(message)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise MessageTooLong
        self.largest = max(self.largest, len(payload))
        self.stored.append(messages.decode_executions(payload))
        self.times.append(time.monotonic())

    async def check(self) -> None:
        """As ExecutionsWriter says."""
        self.looks += 1
        if self.times and not self.stored:
            raise ExecutionsDamaged("it is gone")

    def batches(self) -> list[tuple[int, int, int]]:
        """(first batch, last batch, reports) of each message."""
        return [(message.first_batch, message.last_batch, len(message.reports)) for message in self.stored]

    def order_ids(self) -> list[int]:
        """Of all reports, in order; every one must be a cancel."""
        return [cast("messages.ReportedCancel", report).order_id for report in self.reports()]

    def reports(self) -> list[Report]:
        """All reports, in order."""
        return [report for message in self.stored for report in message.reports]


def reports_to(stream: Stream, published: tuple[int, int] = (0, 0)) -> Reports:
    """The reports of engine 7."""
    return Reports(7, cast("ExecutionsWriter", stream), published)


def cancels(*order_ids: int) -> list[Event]:
    """One report for each."""
    return [Cancelled("alice", order_id, "c", "AAPL", 1, 0) for order_id in order_ids]


@pytest.fixture
def stream() -> Stream:
    """An empty stream."""
    return Stream()


def test_all_kinds_of_report_are_tried_here() -> None:
    """A new kind must be added to these tests, and to what readers decode."""
    assert EVENTS.keys() == KINDS.keys() == REPORTED
    assert set(KINDS.values()) == set(Report.__args__)


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
async def test_an_event_goes_out_as_the_report_it_is(kind: type, stream: Stream) -> None:
    """The bytes of the engine's own struct decode to the bus's, field by field under the same names."""
    event = EVENTS[kind]
    reports = reports_to(stream)
    reports.add(1, 1, [event])
    async with running(reports.run()):
        await until(lambda: bool(stream.stored))
    (report,) = stream.reports()
    assert type(report) is KINDS[kind]
    assert msgspec.structs.asdict(report) == msgspec.structs.asdict(cast("msgspec.Struct", event))
    assert 0 not in msgspec.structs.astuple(report), "a field that is not set would prove nothing"


async def test_several_batches_share_a_message(stream: Stream) -> None:
    """All that is queued when the stream is free goes at once, in order, with the epoch it is of."""
    reports = reports_to(stream)
    reports.add(3, 5, cancels(1, 2))
    reports.add(3, 6, [])
    reports.add(3, 8, cancels(3))
    async with running(reports.run()):
        await until(lambda: bool(stream.stored))
    (message,) = stream.stored
    assert (message.engine, message.epoch, message.first_batch, message.last_batch) == (7, 3, 5, 8)
    assert message.last_reports == 1
    assert stream.order_ids() == [1, 2, 3]


async def test_every_report_goes_out_once_and_in_order(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever arrives while a message is stored, and however the batches are cut."""
    monkeypatch.setattr(effects, "PACE_S", 0.0)
    monkeypatch.setattr(effects, "MAX_REPORTS_PER_MESSAGE", 4)
    reports = reports_to(stream)
    sizes = [1, 3, 4, 5, 9, 0, 2, 2, 1] * 10
    expected = list(range(sum(sizes)))
    left = iter(expected)
    async with running(reports.run()):
        for batch_number, size in enumerate(sizes, start=1):
            reports.add(1, batch_number, cancels(*(next(left) for _ in range(size))))
            if batch_number % 7 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(stream.order_ids()) >= len(expected))
    assert stream.order_ids() == expected
    assert all(len(message.reports) <= 4 for message in stream.stored)


async def test_a_batch_larger_than_a_message_is_divided(stream: Stream) -> None:
    """Eleven thousand fills, the largest there are: no message is larger than the stream takes."""
    reports = reports_to(stream)
    fill = Fill(
        "a" * 64, 2**40, 2**64 - 1, 2**64 - 2, "c" * 36, "S" * 24, 1, 10**12, 10**12, 1, 10**12, 10**12,
        65_535, 2**62, 2**64 - 3, 10**12,
    )  # fmt: skip
    reports.add(1, 5, [fill] * 11_000)
    reports.add(1, 6, cancels(1))
    async with running(reports.run()):
        await until(lambda: len(stream.reports()) == 11_001)
    assert stream.largest <= MAX_PAYLOAD_BYTES
    assert {message.first_batch for message in stream.stored} == {5}
    assert (stream.stored[-1].last_batch, stream.stored[-1].last_reports) == (6, 1)
    assert [message.last_reports for message in stream.stored[:2]] == [1_000, 2_000]


async def test_as_many_reports_share_a_message_as_it_takes(stream: Stream) -> None:
    """Reports with short names go out two thousand to a message."""
    reports = reports_to(stream)
    reports.add(1, 5, cancels(*range(3_000)))
    async with running(reports.run()):
        await until(lambda: len(stream.reports()) == 3_000)
    assert [len(message.reports) for message in stream.stored] == [2_000, 1_000]


@pytest.mark.parametrize("published", [(6, 2), (6, 1), (6, 0), (5, 1), (7, 3), (8, 1), (0, 0), (9, 1)])
async def test_what_the_stream_has_is_not_reported_again(stream: Stream, published: tuple[int, int]) -> None:
    """After a restart the replay tells everything: exactly the reports behind the last one stored go out."""
    batches = {5: [50], 6: [60, 61], 7: [70, 71, 72], 8: [80]}
    reports = reports_to(stream, published)
    for batch_number, order_ids in batches.items():
        reports.add(1, batch_number, cancels(*order_ids))
    owed = {
        order_id: batch_number
        for batch_number, order_ids in batches.items()
        for place, order_id in enumerate(order_ids, start=1)
        if (batch_number, place) > published
    }
    async with running(reports.run()):
        await until(lambda: len(stream.order_ids()) >= len(owed))
        reports.add(1, 10, cancels(100))
        await until(lambda: 100 in stream.order_ids())
    assert stream.order_ids() == [*owed, 100]
    assert stream.stored[0].first_batch == next(iter(owed.values()), 10)


async def test_what_another_process_stored_leaves_nothing_behind(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standby that owes no more of all that it followed waits for the next, and has room for it."""
    monkeypatch.setattr(effects, "MAX_QUEUED_REPORTS", 1)
    reports = reports_to(stream)
    reports.add(1, 5, cancels(1, 2))
    reports.leave_out((5, 2))
    assert not reports.queued
    await asyncio.wait_for(reports.room(), 1)
    async with running(reports.run()):
        await asyncio.sleep(0)  # it begins with nothing to store
        reports.add(1, 6, cancels(3))
        await until(lambda: stream.order_ids() == [3])


async def test_two_epochs_never_share_a_message(stream: Stream) -> None:
    """A message says whose reign its reports are of."""
    reports = reports_to(stream)
    for epoch, batch_number in ((1, 1), (1, 2), (2, 3), (2, 4)):
        reports.add(epoch, batch_number, cancels(batch_number))
    async with running(reports.run()):
        await until(lambda: len(stream.stored) == 2)
    assert [(message.epoch, message.first_batch, message.last_batch) for message in stream.stored] == [
        (1, 1, 2),
        (2, 3, 4),
    ]


async def test_messages_keep_their_distance(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs the server an fsync, so what comes within the pace goes together."""
    monkeypatch.setattr(effects, "PACE_S", 0.1)
    reports = reports_to(stream)
    started = time.monotonic()
    async with running(reports.run()):
        for batch_number in range(1, 30):
            reports.add(1, batch_number, cancels(batch_number))
            await asyncio.sleep(0.01)
        await until(lambda: len(stream.order_ids()) == 29)
    gaps = [later - sooner for sooner, later in zip(stream.times, stream.times[1:], strict=False)]
    assert gaps
    assert min(gaps) >= 0.09
    assert len(stream.stored) <= (time.monotonic() - started) / 0.1 + 1


async def test_an_idle_engine_looks_whether_its_reports_are_still_there(stream: Stream) -> None:
    """Now and then, before it has ever stored one too, and goes on storing; what it finds gone ends it."""
    reports = reports_to(stream)
    task = asyncio.create_task(reports.run(0.01))
    await until(lambda: stream.looks > 1)
    for number in range(1, 4):
        reports.add(1, number, cancels(number))
        await until(lambda: len(stream.stored) == number)  # noqa: B023 -- awaited at once
        looks = stream.looks
        await until(lambda: stream.looks > looks + 1)  # noqa: B023 -- awaited at once
    assert stream.order_ids() == [1, 2, 3]
    stream.stored.clear()
    with pytest.raises(ExecutionsDamaged):
        await asyncio.wait_for(task, 5)


async def test_an_engine_waits_when_too_much_is_queued(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until enough of it is stored."""
    monkeypatch.setattr(effects, "MAX_QUEUED_REPORTS", 3)
    monkeypatch.setattr(effects, "MAX_REPORTS_PER_MESSAGE", 2)
    reports = reports_to(stream)
    stream.open.clear()
    async with running(reports.run()):
        reports.add(1, 1, cancels(1, 2, 3))
        await asyncio.wait_for(reports.room(), 1)
        reports.add(1, 2, cancels(4, 5))
        waiting = asyncio.create_task(reports.room())
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        stream.open.set()
        await asyncio.wait_for(waiting, 1)
        await until(lambda: len(stream.order_ids()) == 5)


def test_the_bell_rings_for_those_who_listen() -> None:
    """Every stream of that client, no other client's, and none that ended."""
    bell = FillBell()
    bell.ring("alice")
    with bell.listen("bob") as bobs:
        with bell.listen("alice") as first, bell.listen("alice") as second:
            assert not first.is_set()
            bell.ring("alice")
            assert (first.is_set(), second.is_set(), bobs.is_set()) == (True, True, False)
            first.clear()
        with bell.listen("alice") as third:
            bell.ring("alice")
            assert (first.is_set(), third.is_set()) == (False, True)
        bell.ring("bob")
        assert bobs.is_set()
        bobs.clear()
        with bell.listen("alice") as fourth:
            bell.ring_all()
            assert (bobs.is_set(), fourth.is_set()) == (True, True)


def test_withheld_fills_are_seen_once_all_before_them_are() -> None:
    """Whatever the order in which they are shown; other clients' are not concerned."""
    bell = FillBell()
    with bell.listen("alice") as rung:
        for first in (3, 5, 8):
            bell.withhold("alice", first)
        seen = []
        for first in (5, 3, 8):
            seen.append(bell.visible("alice", 9))
            bell.show("alice", first)
            assert rung.is_set()
            rung.clear()
    assert seen == [2, 2, 7]
    assert (bell.visible("alice", 9), bell.visible("bob", 4)) == (9, 4)


class Outside:
    """Everything that effects reach, in the order in which they did."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.fills: list[Fill] = []
        self.reported: list[Event] = []
        self.shown = asyncio.get_running_loop().create_future()
        self.bell = FillBell()
        self.visible_meanwhile = -1
        """Of alice's two fills, while the feed was published."""
        self.room = asyncio.Event()
        self.room.set()
        self._reports = cast("Reports", _Noting(self))
        self.effects = Effects(
            cast("MarketData", self),
            self._reports,
            self.bell,
            send_leg=lambda leg: self.happened.append(f"leg {leg.leg_id}"),
            uncross=lambda symbol: self.happened.append(f"uncross {symbol}"),
            shown=lambda: self.shown,
        )

    async def publish(
        self, epoch: int, number: int, time_ns: int, changes: Sequence[BookChanged], fills: Sequence[Fill]
    ) -> None:
        """As MarketData says."""
        self.happened.append(f"publish {epoch} {number} {time_ns} {len(changes)}")
        self.fills += fills
        self.visible_meanwhile = self.bell.visible("alice", 2)

    async def add_book(self, symbol: str) -> None:
        """As MarketData says."""
        self.happened.append(f"list {symbol}")


class _Noting:
    """Takes the place of the reports."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    def add(self, epoch: int, batch_number: int, reports: list[Event]) -> None:
        self._outside.happened.append(f"report {epoch} {batch_number}")
        self._outside.reported += reports

    async def room(self) -> None:
        await self._outside.room.wait()


async def test_refusals_are_counted_by_reason() -> None:
    """Only answers that refuse count."""
    outside = Outside()
    refused = Answered("alice", "c", 1, 5, reject_reason=8)
    await outside.effects.release(Batch(12, 3, 99, events=[refused, Answered("alice", "d", 2, 1), refused]))
    assert outside.effects.refusals == {8: 2}


async def test_a_batch_is_released_in_order() -> None:
    """Legs and new books, then the feed, then the rest; only reports are reported, only fills are trades."""
    outside = Outside()
    leg = LegSent(4, 2, 1, 1, "AAPL", 1, 100, 5, 0)
    fills = [msgspec.structs.replace(cast("Fill", EVENTS[Fill]), sequence=number) for number in (1, 2)]
    reported = [*(EVENTS | {Fill: fills[0]}).values(), fills[1]]
    events: list[Event] = [
        Listed("MSFT"),
        *reported,
        Answered("alice", "c", 1, 1),
        CancelledAll("alice", 3),
        LegTaken(5, 2, "AAPL", refused=True),
        leg,
    ]
    changes = [BookChanged("AAPL", 2, ()), BookChanged("MSFT", 1, ())]
    with outside.bell.listen("alice") as alices, outside.bell.listen("bob") as bobs:
        batch = Batch(12, 3, 99, events=events, changes=changes, has_peers=True)
        shown = await outside.effects.release(batch)
        assert shown is not None
        answering = asyncio.ensure_future(shown)
        await asyncio.sleep(0)
        assert not answering.done()
        assert not alices.is_set(), "a client may not hear of it before peers can see it"
        assert outside.visible_meanwhile == outside.bell.visible("alice", 2) == 0
        outside.shown.set_result(None)
        await asyncio.wait_for(answering, 1)
        assert (alices.is_set(), bobs.is_set()) == (True, False)
        assert outside.bell.visible("alice", 2) == 2
    assert outside.happened == [
        "leg 4",
        "list MSFT",
        "publish 3 12 99 2",
        "report 3 12",
        "uncross AAPL",
        "uncross MSFT",
    ]
    assert outside.reported == reported
    assert outside.fills == fills


async def test_answers_do_not_wait_for_a_book_that_did_not_change() -> None:
    """Peers have nothing to see of it; its fills, brought home by a leg, are told at once."""
    outside = Outside()
    with outside.bell.listen("alice") as alices:
        batch = Batch(12, 3, 99, events=[EVENTS[Fill]], has_peers=True)
        assert await outside.effects.release(batch) is None
        assert alices.is_set()


async def test_nothing_waits_for_peers_that_are_not_there() -> None:
    """A client without peers has its answer already, and sees its fills from then on."""
    outside = Outside()
    outside.room.clear()
    batch = Batch(12, 3, 99, events=[EVENTS[Fill]], changes=[BookChanged("AAPL", 2, ())])
    release = asyncio.create_task(outside.effects.release(batch))
    await until(lambda: "report 3 12" in outside.happened)
    assert outside.bell.visible("alice", 1) == 1
    outside.room.set()
    assert await asyncio.wait_for(release, 1) is None


async def test_a_release_waits_for_room_for_reports() -> None:
    """So the engine is never further ahead of its reports than the queue is long."""
    outside = Outside()
    outside.room.clear()
    release = asyncio.create_task(outside.effects.release(Batch(12, 3, 99, events=cancels(1))))
    await asyncio.wait([release], timeout=0.05)
    assert not release.done()
    outside.room.set()
    await asyncio.wait_for(release, 1)
