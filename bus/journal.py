"""The journal: one engine's batches of commands, in order, each stored before any effect of it leaves.

    JournalError
    ├── JournalDamaged   records are missing or altered (`bus.records`): do not trade
    │   ├── JournalTooNew    only for this version: a later one wrote them
    │   └── JournalTrimmed   only those that a late reader has not read yet: start again, from a snapshot
    └── PrimaryReplaced  another primary's record has our place: whoever reigned exits at once

Where the connection is closed for good, all raise nats' ConnectionClosedError: exit and recover by replay.

Here: storing and reading records, the fence, the doubt after an append without an answer. Not here: what a
record is and how records are checked (`bus.records`), what a command means, or when a batch is cut.

What must hold. Every append demands that the stream ends where the last record of ours was (the fence), and
one append is in flight at a time; with more, the demand fences nothing: behind one refused record the next
would fit again. An append without an answer is neither stored nor lost: the same bytes are sent again with
the same demand until the stream itself shows which record has the place. Readers trust no sequence number of
the server, which may drop a damaged tail and hand its numbers out again: they check number, chain, checksum
and epoch of each record themselves, and ignore records of a replaced epoch.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Final, Protocol

from nats.aio.client import Client

from bus import crash_points, subjects
from bus.messages import NO_MESSAGE
from bus.records import (
    Chain,
    JournalDamaged,
    JournalError,
    JournalPosition,
    Record,
    decode_record,
    digest_of,
    encode_record,
)
from bus.stream import (
    EXPECTED_LAST_SEQUENCE,
    Extent,
    Publisher,
    StreamError,
    StreamGap,
    settled_extent,
    settled_message,
    until_connected,
)
from bus.stream_reader import StreamReader

MAX_RECORD_BYTES: Final = 256_000
"""Largest `commands` of one record, in bytes; the rest of it adds less than 100."""

_LOOK_S: Final = 1.0
"""How long a reader hears nothing before it looks whether what it has read is still there."""

_MEMORY_LOOK_S: Final = 0.005
_WRITER: Final = "Matchbus-Writer"
_FULL: Final = "maximum bytes exceeded"
"""What nats-server says of a stream at its limit; the code beside it stands for other failures too."""

_log: Final = logging.getLogger(__name__)


class JournalTrimmed(JournalDamaged):
    """The journal was trimmed beyond what this reader has read; nothing is lost."""

    def __init__(self, engine: int, reached: int, first: int) -> None:
        super().__init__(
            engine,
            reached + 1,
            f"it begins at stream sequence {first} now, and this process had read {reached}",
        )

    def __str__(self) -> str:
        return (
            f"the journal of engine {self.engine} was trimmed meanwhile: {self.what}: start again,"
            " which begins at a snapshot"
        )


class PrimaryReplaced(JournalError):
    """A record of another writer stands where ours should; ours is not stored and never will be."""

    def __init__(self, stream: str, sequence: int, epoch: int, other_epoch: int) -> None:
        super().__init__(
            f"{stream}: sequence {sequence} holds a record of epoch {other_epoch}, not ours of epoch {epoch}"
        )
        self.sequence = sequence
        self.epoch = epoch
        self.other_epoch = other_epoch


class Journal(Protocol):
    """What the engine needs of a journal. Used by one task at a time; `lag` may be asked beside it."""

    @property
    def position(self) -> JournalPosition:
        """The last valid record that was replayed or appended."""
        ...

    @property
    def newest_epoch(self) -> int:
        """The newest epoch that is known to have begun, whether or not its records are here; 0: none."""
        ...

    @property
    def unanswered_since(self) -> float | None:
        """Start (`time.monotonic()`) of an append that has had no good answer yet; None when healthy."""
        ...

    @property
    def trouble(self) -> str:
        """Why the append has no good answer; empty when healthy."""
        ...

    def replay(self) -> AsyncGenerator[Record]:
        """The records after `position` up to the journal's end as it is now, every one checked.

        On a new journal that is all of them. Called again it goes on where it ended. Records of a replaced
        epoch are left out. Raises JournalDamaged.
        """
        ...

    async def resume(self, position: JournalPosition, sequence: int) -> None:
        """Go on after the record at `sequence`, of which a snapshot says that it was at `position`.

        For a new journal. Raises JournalDamaged when another record is there, or none: what the snapshot was
        made from is gone.
        """
        ...

    def tail(self) -> AsyncGenerator[Record, None]:
        """The records after `position` as they come, for ever, every one checked as in `replay`.

        This is how a standby follows: stop it by cancelling or closing, then `replay` what is left. Raises
        JournalDamaged, also when records that were read are no longer there.
        """
        ...

    async def lag(self) -> int:
        """How many stored records were not read yet. Raises as `replay` does."""
        ...

    async def append(self, epoch: int, time_ns: int, commands: bytes) -> int:
        """Store one batch after the last record; its batch number, once it is stored for certain.

        Waits for as long as NATS is away or the stream full. Needs a replay to the end before the first
        append, and after PrimaryReplaced. Raises that, or JournalDamaged; after the latter, or a
        cancellation, the journal takes no more.
        """
        ...


class _Chained:
    """What both journals know of where they stand: the chain of the records that were read or stored."""

    def __init__(self, engine: int) -> None:
        self._chain = Chain(engine)
        self._sequence = 0  # in the stream: counts the records of replaced epochs too

    @property
    def position(self) -> JournalPosition:
        """As Journal says."""
        return self._chain.position

    @property
    def sequence(self) -> int:
        """Where the last record that was replayed or appended stands, replaced ones counted too."""
        return self._sequence

    @property
    def newest_epoch(self) -> int:
        """As Journal says, as far as it was read."""
        return self.position.epoch


class MemoryJournal(_Chained):
    """A journal that lives as long as its list of `stored` records; two journals may share one list."""

    unanswered_since: float | None = None
    trouble = ""

    def __init__(self, engine: int, stored: list[bytes] | None = None) -> None:
        super().__init__(engine)
        self.stored = stored if stored is not None else []
        """The bytes of every record."""

    async def replay(self) -> AsyncGenerator[Record]:
        """As Journal says."""
        end = len(self.stored)
        if end < self._sequence:
            raise JournalDamaged(
                self._chain.engine, end + 1, f"the journal ends here, not at {self._sequence}"
            )
        while self._sequence < end:
            record = self._chain.accept(self._sequence + 1, self.stored[self._sequence])
            self._sequence += 1
            if record is not None:
                yield record

    async def resume(self, position: JournalPosition, sequence: int) -> None:
        """As Journal says."""
        end = len(self.stored)
        stored = self.stored[sequence - 1] if sequence <= end else None
        _check_resume(self._chain.engine, position, sequence, stored, end)
        self._chain.position, self._sequence = position, sequence

    async def tail(self) -> AsyncGenerator[Record, None]:
        """As Journal says. Looks for records every few milliseconds."""
        while True:
            async for record in self.replay():
                yield record
            await asyncio.sleep(_MEMORY_LOOK_S)

    async def lag(self) -> int:
        """As Journal says."""
        return len(self.stored) - self._sequence

    async def append(self, epoch: int, time_ns: int, commands: bytes) -> int:
        """As Journal says."""
        _check_append(self.position, epoch, commands)
        sequence = self._sequence + 1
        if len(self.stored) >= sequence:
            raise _replaced("memory journal", sequence, epoch, self.stored[sequence - 1])
        payload = encode_record(self._chain.engine, epoch, self.position, time_ns, commands)
        self.stored.append(payload)
        self._sequence = sequence
        self._chain.position = JournalPosition(self.position.batch_number + 1, digest_of(payload), epoch)
        return self.position.batch_number


class NoJournal(MemoryJournal):
    """A journal that keeps nothing of what is appended: orders live as long as their process."""

    async def append(self, epoch: int, time_ns: int, commands: bytes) -> int:
        """As Journal says; nobody reads it back, so it takes no memory."""
        del time_ns
        _check_append(self.position, epoch, commands)
        self._chain.position = JournalPosition(self.position.batch_number + 1, b"", epoch)
        return self.position.batch_number


class JetStreamJournal(_Chained):
    """The journal of one engine in its JetStream stream. Give it a connection that does not buffer."""

    def __init__(self, nc: Client, engine: int) -> None:
        super().__init__(engine)
        self.unanswered_since: float | None = None
        self._nc = nc
        self._engine = engine
        self._stream = subjects.journal_stream(engine)
        self._subject = subjects.journal(engine)
        self._publisher = Publisher(nc)
        self._in_flight = False
        # Two standbys may claim with the very same bytes: the stored record must also say who wrote it.
        self._writer = secrets.token_hex(8)

    @property
    def replaced_records(self) -> int:
        """Records of replaced epochs that replays left out."""
        return self._chain.replaced_records

    @property
    def trouble(self) -> str:
        """As Journal says."""
        return self._publisher.trouble if self.unanswered_since is not None else ""

    async def replay(self) -> AsyncGenerator[Record]:
        """As Journal says. Waits while NATS is away."""
        assert not self._in_flight, "a replay during an append"
        end = await self._end(self._sequence)
        async with contextlib.aclosing(self._read(end)) as records:
            async for record in records:
                yield record

    async def tail(self) -> AsyncGenerator[Record, None]:
        """As Journal says: one consumer for as long as it lives, made anew after a silence."""
        assert not self._in_flight, "a tail during an append"
        async with contextlib.aclosing(self._read(None)) as records:
            async for record in records:
                yield record

    async def lag(self) -> int:
        """As Journal says. Waits while NATS is away."""
        reached = self._sequence  # a tail may read on while the server answers
        return max(0, await self._end(reached) - self._sequence)

    async def _read(self, end: int | None) -> AsyncGenerator[Record, None]:
        """The records up to the sequence `end`, for ever when None."""
        reader = StreamReader(self._nc, self._stream, self._sequence + 1)
        try:
            while end is None or self._sequence < end:
                arrived = await reader.read(_LOOK_S)
                for stored in arrived:
                    record = self._chain.accept(stored.sequence, stored.payload)
                    self._sequence = stored.sequence
                    if record is not None:
                        yield record
                if not arrived:  # a stream that lost its end is silent too
                    last = await self._end(self._sequence)
                    if last > self._sequence and await reader.is_next_lost():
                        raise JournalDamaged(
                            self._engine,
                            reader.next_sequence,
                            f"the stream ends at {last}, but from here on its records are gone",
                        )
        except StreamError as error:
            if isinstance(error, StreamGap):
                await self._end(self._sequence)  # which tells of a trimmed journal
            raise JournalDamaged(self._engine, self._sequence + 1, str(error)) from error
        finally:
            await reader.close()

    async def resume(self, position: JournalPosition, sequence: int) -> None:
        """As Journal says. Waits while NATS is away."""
        # Only this record is looked at: what stood before it may have been trimmed.
        end = (await self._extent(sequence)).last_seq
        stored = await self._record_at(sequence) if sequence <= end else None
        _check_resume(self._engine, position, sequence, stored, end)
        self._chain.position, self._sequence = position, sequence

    async def skip_trimmed(self) -> None:
        """Begin at the first record that a trimmed stream still has, believing what it says stood before.

        For a new journal, and only to look into it: an engine begins at a snapshot. Raises as `replay` does.
        """
        first = (await self._extent()).first_seq
        if first <= 1:
            return
        stored = await self._record_at(first)
        try:
            record = decode_record(stored or b"")
        except NO_MESSAGE as error:
            raise JournalDamaged(self._engine, first, f"this is no record: {error}") from error
        self._chain.position = JournalPosition(record.batch_number - 1, record.previous_digest, record.epoch)
        self._sequence = first - 1

    async def _record_at(self, sequence: int) -> bytes | None:
        found = await settled_message(self._nc, self._stream, sequence)
        return found.payload if found is not None else None

    async def append(self, epoch: int, time_ns: int, commands: bytes) -> int:
        """As Journal says. Costs one round trip and one fsync of the server."""
        assert not self._in_flight, "one append at a time, and none after one that was broken off"
        _check_append(self.position, epoch, commands)
        self._in_flight = True
        payload = encode_record(self._engine, epoch, self.position, time_ns, commands)
        try:
            await self._store(payload, epoch)
        except PrimaryReplaced:  # no longer in doubt: the demand holds for no place but the one that is taken
            self._in_flight = False
            self.unanswered_since = None
            raise
        except StreamError as error:
            raise JournalDamaged(self._engine, self._sequence + 1, str(error)) from error
        self._sequence += 1
        self._chain.position = JournalPosition(self.position.batch_number + 1, digest_of(payload), epoch)
        self._in_flight = False
        self.unanswered_since = None
        crash_points.reach("append acknowledged")
        return self.position.batch_number

    async def _store(self, payload: bytes, epoch: int) -> None:
        """Send the same bytes with the same demand until they, or another writer's, stand in the stream."""
        started = time.monotonic()
        fence = {EXPECTED_LAST_SEQUENCE: str(self._sequence), _WRITER: self._writer}
        self._publisher.begin_message()
        crash_points.reach("append begun")
        told = ""
        while True:
            ack = await self._publisher.attempt(self._subject, payload, fence)
            if ack is not None and ack.error is None:
                if ack.seq != self._sequence + 1:
                    raise JournalDamaged(
                        self._engine, self._sequence + 1, f"the server stored the record at {ack.seq} instead"
                    )
                break
            self.unanswered_since = started
            if await self._find(payload, epoch):
                break
            if self.trouble != told:
                told = self.trouble
                _log.warning("batches of E%d wait: %s%s", self._engine, told, self._way_out())
        if told:
            _log.warning("batches of E%d are stored again", self._engine)

    def _way_out(self) -> str:
        """What an operator can do about the trouble; empty where it may pass by itself."""
        if _FULL not in self.trouble:
            return ""
        return (
            f". {self._stream} is full: start the exchange, or matchbus up, with a larger --journal-gib;"
            f" or, if it may be trimmed and has a snapshot, run `matchbus snapshot make {self._engine}`"
        )

    async def _find(self, payload: bytes, epoch: int) -> bool:
        """Look who has our place: True if we do; False if nobody does: the same bytes must be sent again."""
        place = self._sequence + 1
        await until_connected(self._nc)
        end = (await settled_extent(self._nc, self._stream, self._sequence)).last_seq
        if end == self._sequence:
            return False
        if end < self._sequence:
            raise JournalDamaged(
                self._engine, end + 1, f"the stream ends here, though it had stored {self._sequence}"
            )
        found = await settled_message(self._nc, self._stream, place)
        if found is None:
            raise JournalDamaged(self._engine, place, "the record is gone, though there are later ones")
        if found.payload == payload and f"{_WRITER}: {self._writer}\r\n".encode() in found.headers:
            return True
        raise _replaced(self._stream, place, epoch, found.payload)

    async def _end(self, reached: int) -> int:
        """The stream's last sequence; JournalDamaged when its head, or what it had `reached`, is gone."""
        found = await self._extent(reached)
        if found.last_seq and found.first_seq > self._sequence + 1:
            if self._sequence:
                raise JournalTrimmed(self._engine, self._sequence, found.first_seq)
            raise JournalDamaged(
                self._engine,
                self._sequence + 1,
                f"the stream begins at {found.first_seq}, and no usable snapshot has what stood before",
            )
        if found.last_seq < reached:
            raise JournalDamaged(self._engine, found.last_seq + 1, f"the stream ends here, not at {reached}")
        return found.last_seq

    async def _extent(self, reached: int = 0) -> Extent:
        try:
            return await settled_extent(self._nc, self._stream, reached)
        except StreamError as error:
            raise JournalDamaged(self._engine, 1, str(error)) from error


def _check_resume(
    engine: int, position: JournalPosition, sequence: int, stored: bytes | None, end: int
) -> None:
    if stored is None:
        ends = f": the stream ends at {end} (--accept-loss accepts that for good)" if end < sequence else ""
        raise JournalDamaged(
            engine,
            sequence,
            f"batch {position.batch_number}, from which a snapshot was made, is missing{ends}",
        )
    if digest_of(stored) != position.digest:
        raise JournalDamaged(
            engine,
            sequence,
            f"this is not batch {position.batch_number} from which a snapshot was made",
        )


def _check_append(position: JournalPosition, epoch: int, commands: bytes) -> None:
    assert epoch >= max(position.epoch, 1), f"epoch {epoch} after epoch {position.epoch}"
    assert len(commands) <= MAX_RECORD_BYTES, f"{len(commands)} bytes of commands in one batch"


def _replaced(stream: str, sequence: int, epoch: int, payload: bytes) -> PrimaryReplaced:
    """The fault for a record of another writer; its epoch is 0 where it is no record at all."""
    try:
        other_epoch = decode_record(payload).epoch
    except NO_MESSAGE:
        other_epoch = 0
    return PrimaryReplaced(stream, sequence, epoch, other_epoch)
