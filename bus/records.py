"""What a journal is made of: records, each with the digest of the one before, and the check of that chain.

    JournalError         the journal cannot go on; `bus.journal` has more of them
    └── JournalDamaged   records are missing or altered: `sequence` says where, the text what; do not trade
        └── JournalTooNew    only for this version: a later one wrote them

Here: bytes and numbers, nothing that waits. Not here: where records are stored (`bus.journal`), or what their
commands mean.
"""

import hashlib
import struct
import zlib
from typing import Final

import msgspec

from bus.messages import NO_MESSAGE

FORMAT: Final = 2
"""Version of the record's layout and of the commands in it; earlier ones are read too.

It rises whenever a command is new or gets a field: whoever passes over a field that it does not know comes to
another state than the writer, unnoticed. In 1 it did not: some records lack fields that others have.
"""

_DIGEST_BYTES: Final = 16
_FIXED_FIELDS: Final = struct.Struct(">HHQQq")


class JournalError(Exception):
    """The journal cannot go on."""


class JournalDamaged(JournalError):
    """The stored records are not what was written."""

    def __init__(self, engine: int, sequence: int, what: str) -> None:
        super().__init__(
            f"journal of engine {engine} is damaged at stream sequence {sequence}: {what}. Restore the NATS"
            f" store from a copy; `matchbus journal verify {engine}` tells how far the journal is whole"
        )
        self.engine = engine
        self.sequence = sequence
        self.what = what


class JournalTooNew(JournalDamaged):
    """A later version wrote from here on; nothing is lost."""

    def __str__(self) -> str:
        return (
            f"the journal of engine {self.engine} is of a later version from stream sequence {self.sequence}"
            f" on: {self.what}. Nothing is damaged: start the version that wrote it, or a later one"
        )


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One batch. `time_ns` is UTC.

    `previous_digest` is BLAKE2b of the whole message before, in 16 bytes; empty in the first. `checksum`
    is the CRC-32 of `format` and `engine` (16 bits each), `epoch` and `batch_number` (64) and `time_ns` (64,
    signed), all big-endian, then `previous_digest`, then `commands`.
    """

    format: int
    engine: int
    epoch: int
    batch_number: int
    previous_digest: bytes
    time_ns: int
    commands: bytes
    checksum: int = 0


class JournalPosition(msgspec.Struct, frozen=True):
    """Where a journal stands: its last valid record. Before the first: 0, no digest, epoch 0."""

    batch_number: int = 0
    digest: bytes = b""
    epoch: int = 0


_encode: Final = msgspec.msgpack.Encoder().encode
decode_record: Final = msgspec.msgpack.Decoder(Record).decode
"""The record of some bytes, unchecked; raises one of NO_MESSAGE."""


def digest_of(payload: bytes) -> bytes:
    """The digest that the next record must carry: of the whole record, its `previous_digest` included."""
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest()


def encode_record(engine: int, epoch: int, after: JournalPosition, time_ns: int, commands: bytes) -> bytes:
    """The bytes of the record that follows `after`."""
    record = Record(FORMAT, engine, epoch, after.batch_number + 1, after.digest, time_ns, commands)
    return _encode(msgspec.structs.replace(record, checksum=_checksum(record)))


def _checksum(record: Record) -> int:
    """The CRC-32 of all fields but the checksum. Raises struct.error when one is out of its range."""
    fixed = _FIXED_FIELDS.pack(
        record.format, record.engine, record.epoch, record.batch_number, record.time_ns
    )
    return zlib.crc32(record.commands, zlib.crc32(record.previous_digest, zlib.crc32(fixed)))


class Chain:
    """Checks one journal's records in order: format, checksum, engine, epoch, number, link. Pure."""

    def __init__(self, engine: int) -> None:
        self.engine = engine
        self.position = JournalPosition()
        self.replaced_records = 0
        """Records of replaced epochs that were left out."""

    def accept(self, sequence: int, payload: bytes) -> Record | None:
        """The record, None when it is of a replaced epoch; JournalDamaged, and no step, when it is wrong."""
        record = self._intact(sequence, payload)
        at = self.position
        if record.epoch < at.epoch:
            self.replaced_records += 1
            return None
        if record.batch_number != at.batch_number + 1:
            raise JournalDamaged(
                self.engine,
                sequence,
                f"batch {at.batch_number + 1} is missing, {record.batch_number} is there",
            )
        if record.previous_digest != at.digest:
            raise JournalDamaged(
                self.engine, sequence, f"batch {record.batch_number} does not follow the batch before it"
            )
        self.position = JournalPosition(record.batch_number, digest_of(payload), record.epoch)
        return record

    def _intact(self, sequence: int, payload: bytes) -> Record:
        try:
            record = decode_record(payload)
        except NO_MESSAGE as error:
            raise JournalDamaged(self.engine, sequence, f"this is no record: {error}") from error
        try:
            checksum = _checksum(record)
        except struct.error as error:
            raise JournalDamaged(self.engine, sequence, f"a field is out of range: {error}") from error
        if checksum != record.checksum:
            raise JournalDamaged(
                self.engine, sequence, f"the checksum of batch {record.batch_number} is wrong"
            )
        if record.engine != self.engine:
            raise JournalDamaged(self.engine, sequence, f"a record of engine {record.engine}")
        if record.format > FORMAT:
            raise JournalTooNew(
                self.engine, sequence, f"record format {record.format}, this version reads 1 to {FORMAT}"
            )
        return record
