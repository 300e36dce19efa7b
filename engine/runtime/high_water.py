"""What an engine remembers of its journal outside NATS, so that a journal that lost its end is noticed.

A damaged JetStream store can drop the tail of a stream without a word and hand its sequence numbers out
again; what is left is shorter, but whole. So the engine keeps a mark in a small file of its own: number and
digest of the last batch that was stored. Here: the mark, its file, the comparison. Not here: breaks inside
the journal, which its chain shows (`bus/records.py`).

What must hold. A mark never names a batch that the journal had not acknowledged. A journal that ends before
the mark, or holds another batch at the mark's number, is not replayed to its end without a fault, so its
engine never reigns. The mark is at most `KEEP_PERIOD_S` old, and exact after a clean stop; a loss of what an
engine stored in the last second before it crashed is noticed only as far as execution reports tell of it. Its
epoch never falls and is never behind a reign that anybody saw, so none is given out twice over a loss.

    JournalError
    ├── JournalBehind   the journal has not all that it is known to have had: do not trade
    └── MarkUnusable    the mark's file cannot be read, or is another engine's
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final, Self

import msgspec

from bus import subjects
from bus.journal import Journal
from bus.messages import NO_MESSAGE
from bus.records import JournalError, JournalPosition, Record

KEEP_PERIOD_S: Final = 1.0
"""How often the mark is written while batches are stored."""

FILE_NAME: Final = "high_water.json"

_log: Final = logging.getLogger("engine")


class JournalBehind(JournalError):
    """The journal has lost batches; the text says which, who knows of them, and what can be done."""


class MarkUnusable(JournalError):
    """The file of the mark does not say how far the journal was."""


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last batch that an engine knows to be stored; `digest` of the whole record, in hex."""

    engine: int
    epoch: int
    batch_number: Annotated[int, msgspec.Meta(ge=1)]
    digest: str


def lost(mark: Mark, there: JournalPosition | None, end: JournalPosition) -> str:
    """What a journal that ends at `end` lacks of what the mark saw stored; empty when nothing.

    `there` is where the journal stood after the batch with the mark's number, None when it has none. Pure.
    """
    if end.batch_number < mark.batch_number:
        missing = mark.batch_number - end.batch_number
        those = f"{end.batch_number + 1} to {mark.batch_number}" if missing > 1 else f"{mark.batch_number}"
        return (
            f"it ends at batch {end.batch_number}, but batch {mark.batch_number} of epoch {mark.epoch} had"
            f" been stored: {missing} {'batch is' if missing == 1 else 'batches are'} missing, {those}"
        )
    if there is None or there.digest.hex() != mark.digest:
        holds = "is not there" if there is None else f"has digest {there.digest.hex()}"
        return (
            f"batch {mark.batch_number} is not the one that had been stored in epoch {mark.epoch}: it"
            f" {holds}, not {mark.digest}; batches up to it are lost, and others took their numbers"
        )
    return ""


def read_mark(path: Path, engine: int) -> Mark | None:
    """The mark in a file, None when there is no such file. Raises MarkUnusable, or OSError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        mark = msgspec.json.decode(content, type=Mark)
    except NO_MESSAGE as error:
        raise MarkUnusable(
            f"{path} is no high-water mark of a journal ({error}): its content is {content[:80]!r}."
            " Restore it from a copy, or delete it to trust the journal as it is"
        ) from error
    if mark.engine != engine:
        raise MarkUnusable(
            f"{path} is the high-water mark of engine {mark.engine}, and this is engine {engine}: give each"
            " engine a --state-dir of its own"
        )
    return mark


def write_mark(path: Path, mark: Mark) -> None:
    """Replace the file at once: a crash leaves the old mark or the new one, whole. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(mark) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:  # no room, say
        draft.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def check_reports(engine: int, reported: int, end: JournalPosition, *, accept_loss: bool) -> bool:
    """Whether the journal has all batches that were reported: reports know how far it was, too.

    They reach into the last second before a crash, where the mark may not. Raises JournalBehind, unless
    `accept_loss`: then the answer is False, and the loss is logged.
    """
    if reported <= end.batch_number:
        return True
    _refuse(
        engine,
        f"what is reported in stream {subjects.EXECUTIONS_STREAM}",
        f"it ends at batch {end.batch_number}, but batch {reported} was reported",
        accept_loss=accept_loss,
    )
    return False


def _refuse(engine: int, witness: str, loss: str, *, accept_loss: bool) -> None:
    """Raise JournalBehind, or log the loss when it is accepted."""
    behind = (
        f"the journal of engine {engine} is behind {witness}:"
        f" stream {subjects.journal_stream(engine)} has lost batches: {loss}"
    )
    if not accept_loss:
        raise JournalBehind(
            f"{behind}. Restore the NATS store from a copy; or, to accept the loss for good, start once with"
            " --accept-loss"
        )
    _log.critical(
        "LOSS ACCEPTED (--accept-loss): %s. Acknowledged orders and fills in these batches are gone", behind
    )


class MarkedJournal:
    """A journal that is held against the mark in `directory` when replayed, and moves it while entered.

    `accept_loss`: a journal that is behind the mark is used all the same, and the loss is logged. Making one
    raises MarkUnusable, or OSError when the directory cannot be used.
    """

    def __init__(self, journal: Journal, engine: int, directory: Path, *, accept_loss: bool = False) -> None:
        self.path = directory / FILE_NAME
        self._journal = journal
        self._engine = engine
        self._accept_loss = accept_loss
        self._mark = read_mark(self.path, engine)
        self._there: JournalPosition | None = None
        self._kept = self._mark
        self._trusted = False  # before the check the position is somewhere inside the replay
        self._saving = threading.Lock()
        self._told = ""  # why the mark cannot be written, as the log was told; empty while it can
        self._keeping: asyncio.Task[None] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def position(self) -> JournalPosition:
        """As Journal says."""
        return self._journal.position

    @property
    def newest_epoch(self) -> int:
        """As Journal says. The mark knows of a reign of which the journal has lost every record."""
        marked_epoch = self._kept.epoch if self._kept is not None else 0
        return max(marked_epoch, self._journal.newest_epoch)

    @property
    def unanswered_since(self) -> float | None:
        """As Journal says."""
        return self._journal.unanswered_since

    @property
    def trouble(self) -> str:
        """As Journal says."""
        return self._journal.trouble

    async def replay(self) -> AsyncGenerator[Record]:
        """As Journal says. Raises JournalBehind too, at the end."""
        number = self._mark.batch_number if self._mark is not None else 0
        async with contextlib.aclosing(self._journal.replay()) as records:
            async for record in records:
                if record.batch_number == number:
                    self._there = self._journal.position
                yield record
        self._check()
        self._mark = None
        self._trusted = True

    async def resume(self, position: JournalPosition, sequence: int) -> None:
        """As Journal says. A mark from before the snapshot has nothing left to tell."""
        await self._journal.resume(position, sequence)
        if self._mark is not None and self._mark.batch_number <= position.batch_number:
            if self._mark.batch_number == position.batch_number:
                self._there = position
            else:
                self._mark = None

    def tail(self) -> AsyncGenerator[Record, None]:
        """As Journal says; only after a replay, whose end was held against the mark."""
        assert self._trusted, "a tail before a replay"
        return self._journal.tail()

    async def lag(self) -> int:
        """As Journal says."""
        return await self._journal.lag()

    async def append(self, epoch: int, time_ns: int, commands: bytes) -> int:
        """As Journal says. A reign is marked as soon as it begins, before anybody can see its epoch."""
        is_first = epoch > self.position.epoch
        batch_number = await self._journal.append(epoch, time_ns, commands)
        if is_first:
            await asyncio.to_thread(self._save)
        return batch_number

    def _check(self) -> None:
        """Hold the journal as replayed against the mark that was found at the start."""
        if self._mark is None:
            return
        loss = lost(self._mark, self._there, self.position)
        if loss:
            _refuse(self._engine, f"its mark in {self.path}", loss, accept_loss=self._accept_loss)

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._keeping is not None
        self._keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeping
        if kind is None or issubclass(kind, asyncio.CancelledError):  # after a fault the last mark stands
            self._save()

    async def _keep(self) -> None:
        """Write the mark whenever it moved, at most once a period, without holding up the event loop."""
        while True:
            await asyncio.sleep(KEEP_PERIOD_S)
            await asyncio.to_thread(self._save)

    def _save(self) -> None:
        """Write the mark if it moved. A failure is only logged: orders are safe in the journal without it."""
        with self._saving:  # a write that was broken off by the end goes on in its thread
            at = self._journal.position
            if not self._trusted or not at.batch_number:
                return
            kept = self._kept
            if kept is not None and at.epoch < kept.epoch:
                return  # a loss was accepted, and no reign has begun over it yet
            mark = Mark(self._engine, at.epoch, at.batch_number, at.digest.hex())
            if mark == kept:
                return
            try:
                write_mark(self.path, mark)
            except OSError as error:
                if str(error) != self._told:  # tried every second, for as long as a disk is full
                    self._told = str(error)
                    _log.warning("the high-water mark %s cannot be written: %s", self.path, error)
            else:
                self._kept = mark
                if self._told:
                    self._told = ""
                    _log.warning("the high-water mark %s is written again", self.path)
