"""The high-water mark: what an engine knows of its journal without asking NATS."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from bus.journal import MemoryJournal
from bus.records import JournalPosition, digest_of
from engine.runtime import high_water
from engine.runtime.high_water import (
    FILE_NAME,
    JournalBehind,
    Mark,
    MarkedJournal,
    MarkUnusable,
    check_reports,
    lost,
    read_mark,
    write_mark,
)
from tests.waiting import until

MARK = Mark(1, 2, 10, "aa")
THERE = JournalPosition(10, b"\xaa", 2)


@pytest.mark.parametrize(
    ("there", "end", "what"),
    [
        (THERE, THERE, ""),
        (THERE, JournalPosition(11, b"\xbb", 2), ""),
        (THERE, JournalPosition(99, b"\xbb", 7), ""),
        (None, JournalPosition(), "10 batches are missing, 1 to 10"),
        (None, JournalPosition(9, b"\x99", 2), "1 batch is missing, 10"),
        (None, JournalPosition(4, b"\x99", 1), "6 batches are missing, 5 to 10"),
        (JournalPosition(10, b"\xab", 2), JournalPosition(10, b"\xab", 2), "batch 10 is not the one"),
        (JournalPosition(10, b"\xab", 3), JournalPosition(30, b"\xbb", 3), "has digest ab, not aa"),
        (None, JournalPosition(30, b"\xbb", 3), "batch 10 is not the one"),
    ],
)
def test_a_journal_is_whole_only_with_the_marked_batch_in_it(
    there: JournalPosition | None, end: JournalPosition, what: str
) -> None:
    """Nothing is lost exactly when the journal has the mark's batch, with the mark's digest."""
    found = lost(MARK, there, end)
    assert bool(found) == bool(what)
    assert what in found
    assert "10 to 10" not in found


def test_a_mark_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """The file holds the last mark written, whole, and nothing is left beside it."""
    path = tmp_path / "new" / FILE_NAME
    assert read_mark(path, 1) is None
    write_mark(path, MARK)
    write_mark(path, Mark(1, 2, 11, "bb"))
    assert read_mark(path, 1) == Mark(1, 2, 11, "bb")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[1,2,10,'aa']",
        b'{"engine":1,"epoch":2,"batch_number":"10","digest":"aa"}',
        b'{"engine":1,"epoch":2,"batch_number":0,"digest":""}',
        b'{"engine":1,"epoch":2,"digest":"aa"}',
        b'{"engine":1,"epoch":2,"batch_number":10,"digest":"aa","more":1}',
    ],
)
def test_a_file_that_is_no_mark_is_named(tmp_path: Path, content: bytes) -> None:
    """A damaged mark is not taken for none: the fault names the file, what is in it, and what to do."""
    path = tmp_path / FILE_NAME
    path.write_bytes(content)
    with pytest.raises(MarkUnusable, match="delete it") as caught:
        read_mark(path, 1)
    assert str(path) in str(caught.value)
    assert repr(content[:80]) in str(caught.value)


def test_the_mark_of_another_engine_is_refused(tmp_path: Path) -> None:
    """Two engines with one directory would take each other's journal for lost."""
    write_mark(tmp_path / FILE_NAME, MARK)
    with pytest.raises(MarkUnusable, match="engine 1, and this is engine 2"):
        read_mark(tmp_path / FILE_NAME, 2)


async def run(stored: list[bytes], directory: Path, appends: int, *, accept_loss: bool = False) -> None:
    """One engine's life: replay twice, append under a new epoch, stop cleanly."""
    async with MarkedJournal(MemoryJournal(1, stored), 1, directory, accept_loss=accept_loss) as journal:
        for _ in range(2):  # at the start, and before it begins to reign
            async for _ in journal.replay():
                pass
        epoch = journal.newest_epoch + 1
        for number in range(appends):
            await journal.append(epoch, number, b"%d" % number)


async def test_a_clean_stop_leaves_an_exact_mark(tmp_path: Path) -> None:
    """The mark names the last batch, and the next start goes on from there."""
    stored: list[bytes] = []
    await run(stored, tmp_path, 5)
    mark = read_mark(tmp_path / FILE_NAME, 1)
    assert mark is not None
    assert (mark.epoch, mark.batch_number) == (1, 5)
    await run(stored, tmp_path, 1)
    assert (mark := read_mark(tmp_path / FILE_NAME, 1)) is not None
    assert (mark.epoch, mark.batch_number) == (2, 6)


async def test_a_cancelled_engine_leaves_an_exact_mark(tmp_path: Path) -> None:
    """A signal, which cancels it, is a clean stop."""
    stored = asyncio.Event()

    async def live() -> None:
        async with MarkedJournal(MemoryJournal(1), 1, tmp_path) as journal:
            async for _ in journal.replay():
                pass
            await journal.append(1, 1, b"")
            await journal.append(1, 2, b"")
            stored.set()
            await asyncio.Event().wait()

    living = asyncio.create_task(live())
    await stored.wait()
    living.cancel()
    with pytest.raises(asyncio.CancelledError):
        await living
    assert (mark := read_mark(tmp_path / FILE_NAME, 1)) is not None
    assert mark.batch_number == 2


async def test_nothing_stored_leaves_no_mark(tmp_path: Path) -> None:
    """An engine that stops before its first batch promises nothing."""
    await run([], tmp_path, 0)
    assert read_mark(tmp_path / FILE_NAME, 1) is None


async def test_a_shorter_journal_is_refused_and_the_mark_stays(tmp_path: Path) -> None:
    """A start on a journal without its tail raises JournalBehind, again and again."""
    stored: list[bytes] = []
    await run(stored, tmp_path, 5)
    before = read_mark(tmp_path / FILE_NAME, 1)
    del stored[3:]
    for _ in range(2):
        with pytest.raises(JournalBehind, match="2 batches are missing, 4 to 5") as caught:
            await run(stored, tmp_path, 0)
        for word in ("JOURNAL_1", str(tmp_path / FILE_NAME), "Restore", "--accept-loss"):
            assert word in str(caught.value)
    assert read_mark(tmp_path / FILE_NAME, 1) == before


async def test_numbers_that_were_handed_out_again_are_noticed(tmp_path: Path) -> None:
    """A journal that lost its tail and grew past the mark again is refused by the digest."""
    stored: list[bytes] = []
    await run(stored, tmp_path, 5)
    del stored[3:]
    await run(stored, tmp_path / "elsewhere", 4)
    with pytest.raises(JournalBehind, match="batch 5 is not the one"):
        await run(stored, tmp_path, 0)


async def test_a_start_from_a_snapshot_is_held_against_the_mark_too(tmp_path: Path) -> None:
    """A mark at the snapshot or after it must be there; one from before it has nothing left to tell."""
    stored: list[bytes] = []
    await run(stored, tmp_path, 5)
    positions = {}
    reader = MemoryJournal(1, stored)
    async for record in reader.replay():
        positions[record.batch_number] = reader.position
    for snapshot_of, mark_at, is_behind in (
        (5, 5, False),
        (3, 5, False),
        (3, 4, False),
        (5, 2, False),
        (3, 6, True),
    ):
        at = positions.get(mark_at, JournalPosition(6, b"gone", 1))
        write_mark(tmp_path / FILE_NAME, Mark(1, 1, mark_at, at.digest.hex()))
        journal = MarkedJournal(MemoryJournal(1, stored), 1, tmp_path)
        await journal.resume(positions[snapshot_of], snapshot_of)
        try:
            assert [record.batch_number async for record in journal.replay()] == [*range(snapshot_of + 1, 6)]
        except JournalBehind:
            assert is_behind
        else:
            assert not is_behind


async def test_a_loss_is_accepted_once_and_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With accept_loss the engine starts, says what is gone, and the next start needs no acceptance."""
    stored: list[bytes] = []
    await run(stored, tmp_path, 5)
    del stored[3:]
    await run(stored, tmp_path, 1, accept_loss=True)
    said = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(said) == 1
    assert "2 batches are missing, 4 to 5" in said[0].getMessage()
    await run(stored, tmp_path, 1)
    assert len([record for record in caplog.records if record.levelno == logging.CRITICAL]) == 1


async def test_no_epoch_is_given_out_again_over_a_loss(tmp_path: Path) -> None:
    """The mark knows of reigns of which no record is left, also after a start over the loss that gave up."""
    stored: list[bytes] = []
    for _ in range(4):
        await run(stored, tmp_path, 2)
    del stored[3:]
    await run(stored, tmp_path, 0, accept_loss=True)
    assert (mark := read_mark(tmp_path / FILE_NAME, 1)) is not None
    assert (mark.epoch, mark.batch_number) == (4, 8)
    await run(stored, tmp_path, 1, accept_loss=True)
    assert (mark := read_mark(tmp_path / FILE_NAME, 1)) is not None
    assert (mark.epoch, mark.batch_number) == (5, 4)
    del stored[:]
    await run(stored, tmp_path, 1, accept_loss=True)
    assert (mark := read_mark(tmp_path / FILE_NAME, 1)) is not None
    assert (mark.epoch, mark.batch_number) == (6, 1)


async def test_an_epoch_is_known_from_the_mark_or_the_journal(tmp_path: Path) -> None:
    """Whichever is newer, also of a start from a snapshot after the mark."""
    stored: list[bytes] = []
    await run(stored, tmp_path, 2)
    await run(stored, tmp_path / "elsewhere", 2)
    journal = MarkedJournal(MemoryJournal(1, stored), 1, tmp_path)
    assert journal.newest_epoch == 1
    position = JournalPosition(4, digest_of(stored[3]), 2)
    await journal.resume(position, 4)
    assert journal.newest_epoch == 2
    write_mark(tmp_path / FILE_NAME, Mark(1, 5, 3, "gone"))
    journal = MarkedJournal(MemoryJournal(1, stored), 1, tmp_path)
    await journal.resume(position, 4)
    assert journal.newest_epoch == 5


async def test_a_reign_is_marked_before_anybody_can_see_it(tmp_path: Path) -> None:
    """Its first batch is in the mark as soon as it is stored: a crash may come at once."""
    async with MarkedJournal(MemoryJournal(1), 1, tmp_path) as journal:
        async for _ in journal.replay():
            pass
        await journal.append(3, 1, b"")
        assert (mark := read_mark(tmp_path / FILE_NAME, 1)) is not None
        assert (mark.epoch, mark.batch_number) == (3, 1)


async def test_the_mark_never_falls_during_a_replay(tmp_path: Path) -> None:
    """An engine that ends in the middle of a replay leaves the mark where it was."""
    stored: list[bytes] = []
    await run(stored, tmp_path, 5)
    before = read_mark(tmp_path / FILE_NAME, 1)
    async with MarkedJournal(MemoryJournal(1, stored), 1, tmp_path) as journal:
        replay = journal.replay()
        await anext(replay)
        await replay.aclose()
    assert read_mark(tmp_path / FILE_NAME, 1) == before


async def test_the_mark_follows_while_batches_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crashed engine leaves a mark that is at most one period old, because it is written all the time."""
    monkeypatch.setattr(high_water, "KEEP_PERIOD_S", 0.01)

    def marked() -> int:
        mark = read_mark(tmp_path / FILE_NAME, 1)
        return mark.batch_number if mark is not None else 0

    async with MarkedJournal(MemoryJournal(1), 1, tmp_path) as journal:
        async for _ in journal.replay():
            pass
        for number in range(1, 4):
            await journal.append(1, number, b"")
            await until(lambda: marked() == number)  # noqa: B023 -- awaited at once


async def test_a_fault_leaves_the_last_mark(tmp_path: Path) -> None:
    """An engine that ends by a fault does not vouch for what it saw last."""

    async def fail() -> None:
        async with MarkedJournal(MemoryJournal(1), 1, tmp_path) as journal:
            async for _ in journal.replay():
                pass
            await journal.append(1, 1, b"")
            await journal.append(1, 2, b"")
            raise OSError("a fault")

    with pytest.raises(OSError, match="a fault"):
        await fail()
    assert (mark := read_mark(tmp_path / FILE_NAME, 1)) is not None
    assert mark.batch_number == 1


def names_in(directory: Path) -> list[str]:
    """What a directory holds."""
    return [path.name for path in directory.iterdir()]


async def test_a_mark_that_cannot_be_written_stops_no_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its file's place taken by a directory the engine goes on; what is wrong it says once."""
    monkeypatch.setattr(high_water, "KEEP_PERIOD_S", 0.01)
    path = tmp_path / FILE_NAME
    left: list[list[str]] = []
    """What each try left in the directory."""

    def write(*place: Any) -> None:
        try:
            write_mark(*place)
        finally:
            left.append(names_in(tmp_path))

    monkeypatch.setattr(high_water, "write_mark", write)
    async with MarkedJournal(MemoryJournal(1), 1, tmp_path) as journal:
        async for _ in journal.replay():
            pass
        (path / "in the way").mkdir(parents=True)
        await journal.append(1, 1, b"")
        await until(lambda: len(left) >= 5)
        assert [message.partition(": ")[0] for message in caplog.messages] == [
            f"the high-water mark {path} cannot be written"
        ]
        assert left[:5] == [[FILE_NAME]] * 5, "no draft is left"
        (path / "in the way").rmdir()
        path.rmdir()
        await until(lambda: f"the high-water mark {path} is written again" in caplog.messages)
    assert (mark := read_mark(path, 1)) is not None
    assert mark.batch_number == 1


def test_reports_know_how_far_the_journal_was(caplog: pytest.LogCaptureFixture) -> None:
    """A journal that ends before what was reported of it is refused too; the loss can be accepted."""
    assert check_reports(1, 10, THERE, accept_loss=False)
    assert check_reports(1, 0, JournalPosition(), accept_loss=False)
    with pytest.raises(JournalBehind, match=r"EXECUTIONS.* ends at batch 10, but batch 11 was reported"):
        check_reports(1, 11, THERE, accept_loss=False)
    assert not check_reports(1, 11, THERE, accept_loss=True)
    assert "LOSS ACCEPTED" in caplog.text
