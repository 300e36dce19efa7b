"""Snapshots of one engine's state in a JetStream object store: storing, listing, reading, keeping a few.

Here: bytes under a batch number, compressed, with what a reader must know before it trusts them. Not here:
what the bytes mean, or when they are made. A snapshot is a cache of the journal: losing one costs time only,
so one that cannot be read is a warning to its reader and never a fault.

    SnapshotDamaged   the stored bytes are not what was stored
"""

import asyncio
import base64
import contextlib
import datetime as dt
import hashlib
import logging
import zlib
from collections.abc import Collection
from typing import Annotated, Final

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import ObjectInfo, ObjectMeta, ObjectMetaOptions, RawStreamMsg
from nats.js.object_store import ObjectStore

from bus import messages, subjects
from bus.stream import StreamError, settled_extent

CHUNK_BYTES: Final = 512 * 1024

LEFT_BEHIND_S: Final = 600.0
"""Chunks without an entry that are older than this belong to no writer that is still at work."""

LIST_PATIENCE_S: Final = 30.0

_TIMEOUT_S: Final = 5.0
_LEVEL: Final = 1
"""A state shrinks to a third at the lowest level, and NATS syncs every chunk."""

_log: Final = logging.getLogger("engine")


class SnapshotDamaged(Exception):
    """A stored snapshot cannot be read back as it was; the text says why."""


class SnapshotEntry(msgspec.Struct, frozen=True):
    """What is known of a snapshot without reading it.

    It is true after batch `batch_number`, which the record at `sequence` of the journal holds;
    `record_digest` is that record's. The batches up to it made `reported` execution reports in the last one
    that made any, `reported_batch`: until their stream has those, the journal before the snapshot is needed.
    """

    batch_number: int
    epoch: int
    sequence: int
    record_digest: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})*\Z")]
    state_digest: str
    reported_batch: int
    reported: int
    time_ns: int
    size: int = 0
    """Bytes as stored; known once stored."""

    stored_at: int = 0
    """Where the last of it stands in the stream of snapshots; known once stored."""


_DAMAGES: Final = (
    nats.js.errors.BadObjectMetaError,
    nats.js.errors.NotFoundError,
    ValueError,
    zlib.error,
)


class _Object(msgspec.Struct, frozen=True):
    """What an object store says of an object, as far as it matters here; our entry is its description."""

    description: str = ""
    size: int = 0
    digest: str = ""  # nats-py takes for granted that it is text
    deleted: bool = False


_decode_object: Final = msgspec.json.Decoder(_Object).decode
_decode: Final = msgspec.json.Decoder(SnapshotEntry).decode


class SnapshotStore:
    """The snapshots of one engine. The object store must exist (`bus.provision`).

    Its functions raise nats' errors when NATS does not answer.
    """

    def __init__(self, nc: Client, engine: int) -> None:
        self._jetstream = nc.jetstream(timeout=_TIMEOUT_S)
        self._nc = nc
        self._bucket = subjects.snapshots_bucket(engine)
        self._stream = subjects.object_stream(self._bucket)
        self._opened: ObjectStore | None = None

    async def put(self, entry: SnapshotEntry, state: bytes) -> None:
        """Store the bytes of a state."""
        meta = ObjectMeta(
            description=msgspec.json.encode(entry).decode(),
            options=ObjectMetaOptions(max_chunk_size=CHUNK_BYTES),
        )
        packed = await asyncio.to_thread(zlib.compress, state, _LEVEL)
        await (await self._store()).put(_name(entry), packed, meta)

    async def entries(self) -> list[SnapshotEntry]:
        """What is stored, the newest first; what is no snapshot is left out.

        Raises TimeoutError after LIST_PATIENCE_S.
        """
        async with asyncio.timeout(LIST_PATIENCE_S):
            listed = await self._list()
        entries = [entry for message in listed if (entry := self._entry(message)) is not None]
        return sorted(entries, key=lambda entry: entry.batch_number, reverse=True)

    async def _list(self) -> list[RawStreamMsg]:
        """What the store says of each object; what is damaged is left out with a warning.

        Each is asked for: a consumer, as nats-py's own list has, would wait for a damaged one.
        """
        listed: list[RawStreamMsg] = []
        for subject in await self._stored(subjects.object_entries(self._bucket)):
            try:
                listed.append(await self._jetstream.get_last_msg(self._stream, subject))
            except nats.js.errors.NotFoundError:
                _log.warning("%.80r is passed over, it is missing or damaged", subject)
        return listed

    def _entry(self, message: RawStreamMsg) -> SnapshotEntry | None:
        """The snapshot that one of these tells of; None, and a warning where it is not a deleted one."""
        try:
            found = _decode_object(message.data or b"")
            if found.deleted:
                return None
            entry = msgspec.structs.replace(
                _decode(found.description), size=found.size, stored_at=message.seq or 0
            )
        except messages.NO_MESSAGE as error:
            _log.warning("%.80r is passed over, it is no snapshot: %s", message.subject, error)
            return None
        if (message.subject or "").rpartition(".")[2] != subjects.object_key(_name(entry)):
            _log.warning("%.80r is passed over, it is not snapshot %s", message.subject, _name(entry))
            return None
        return entry

    async def get(self, entry: SnapshotEntry) -> bytes:
        """The bytes of a state as they were stored. Raises SnapshotDamaged. Begins when NATS is there."""
        try:  # else a server that has just become the leader may not have all of it yet
            await settled_extent(self._nc, self._stream, entry.stored_at)
        except StreamError as error:  # which says nothing of the bytes
            raise nats.errors.Error(str(error)) from error
        try:
            info = await (await self._store()).get_info(_name(entry))
            return await asyncio.to_thread(_unpack, await self._read(info), info.digest)
        except _DAMAGES as error:
            raise SnapshotDamaged(f"it is not what was stored: {error!r}") from error

    async def _read(self, info: ObjectInfo) -> list[bytes]:
        """The chunks of an object, each asked for. Raises SnapshotDamaged.

        nats-py's own `get` would wait for a damaged one for ever: the server keeps it back.
        """
        subject, sequence = subjects.object_chunks(self._bucket, info.nuid or ""), 0
        chunks: list[bytes] = []
        while len(chunks) < (info.chunks or 0):
            try:
                found = await self._jetstream.get_msg(self._stream, sequence + 1, subject, next=True)
            except nats.js.errors.NotFoundError as error:
                raise SnapshotDamaged(f"of its {info.chunks} chunks some are missing or damaged") from error
            assert found.seq is not None
            sequence = found.seq
            chunks.append(found.data or b"")
        return chunks

    async def delete(self, entry: SnapshotEntry) -> None:
        """Forget a snapshot, which may be gone already."""
        with contextlib.suppress(nats.js.errors.ObjectNotFoundError):
            await (await self._store()).delete(_name(entry))
        # What says that it is deleted would make the list longer for ever.
        said = subjects.object_entries(self._bucket, subjects.object_key(_name(entry)))
        await self._jetstream.purge_stream(self._stream, subject=said)

    async def keep(self, newest: int, damaged: Collection[SnapshotEntry]) -> None:
        """Delete all but the `newest` few, and what a writer that died half-way left behind.

        What is known to be `damaged` goes too, and is none of the few: it must not drive out a good one.
        """
        store = await self._store()
        entries = await self.entries()
        kept = [entry for entry in entries if entry not in damaged][:newest]
        for entry in entries:
            if entry not in kept:
                await self.delete(entry)
        wanted = {(await store.get_info(_name(entry))).nuid for entry in kept}
        for subject in await self._stored(subjects.object_chunks(self._bucket)):
            if subject.rpartition(".")[2] not in wanted and await self._is_left_behind(subject):
                await self._jetstream.purge_stream(self._stream, subject=subject)

    async def _stored(self, wanted: str) -> list[str]:
        """The subjects of all that is stored; all chunks of a snapshot have one."""
        found = await self._jetstream.stream_info(self._stream, subjects_filter=wanted)
        return list(found.state.subjects or ())

    async def _is_left_behind(self, subject: str) -> bool:
        """Whether no chunk came there for long. The entry of a younger one may be about to come."""
        try:
            newest = await self._jetstream.get_last_msg(self._stream, subject)
        except nats.js.errors.NotFoundError:  # another one deleted it just now
            return False
        assert newest.time is not None
        return (dt.datetime.now(dt.UTC) - newest.time).total_seconds() > LEFT_BEHIND_S

    async def _store(self) -> ObjectStore:
        if self._opened is None:
            self._opened = await self._jetstream.object_store(self._bucket)
        return self._opened


def _name(entry: SnapshotEntry) -> str:
    return f"{entry.batch_number:020d}"


def _unpack(chunks: list[bytes], digest: str | None) -> bytes:
    """What was stored as these chunks. Raises ValueError, zlib.error."""
    packed = b"".join(chunks)
    found = f"SHA-256={base64.urlsafe_b64encode(hashlib.sha256(packed).digest()).decode()}"
    if found != digest:
        raise ValueError(f"its digest is {found}, not {digest}")
    return zlib.decompress(packed)
