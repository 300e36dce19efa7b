"""Snapshots of one engine's state in a JetStream object store: storing, listing, reading, keeping a few.

Here: bytes under a batch number, compressed, with what a reader must know before it trusts them. Not here:
what the bytes mean, or when they are made. A snapshot is a cache of the journal: losing one costs time only,
so one that cannot be read is a warning to its reader and never a fault.

    SnapshotDamaged   the stored bytes are not what was stored
"""

import asyncio
import io
import zlib
from typing import Final

import msgspec
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import ObjectMeta, ObjectMetaOptions
from nats.js.object_store import ObjectStore

from bus import provision, subjects

CHUNK_BYTES: Final = 512 * 1024
READ_PATIENCE_S: Final = 60.0
"""nats-py waits for ever for chunks that are gone."""

_TIMEOUT_S: Final = 5.0
_LEVEL: Final = 1
"""A state shrinks to a third at the lowest level, and NATS syncs every chunk."""


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
    record_digest: str
    state_digest: str
    reported_batch: int
    reported: int
    time_ns: int
    size: int = 0
    """Bytes as stored; known once stored."""


_DAMAGES: Final = (
    nats.js.errors.DigestMismatchError,
    nats.js.errors.BadObjectMetaError,
    nats.js.errors.NotFoundError,
)

_decode: Final = msgspec.json.Decoder(SnapshotEntry).decode


class SnapshotStore:
    """The snapshots of one engine. The object store must exist (`bus.provision`).

    Its functions raise nats' errors when NATS does not answer.
    """

    def __init__(self, client: Client, engine: int) -> None:
        self._jetstream = client.jetstream(timeout=_TIMEOUT_S)
        self._bucket = subjects.snapshots_bucket(engine)
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
        """What is stored, the newest first."""
        try:
            found = await (await self._store()).list(ignore_deletes=True)
        except nats.js.errors.NotFoundError:
            return []
        entries = [
            msgspec.structs.replace(_decode(info.description or "{}"), size=info.size or 0) for info in found
        ]
        return sorted(entries, key=lambda entry: entry.batch_number, reverse=True)

    async def get(self, entry: SnapshotEntry) -> bytes:
        """The bytes of a state as they were stored. Raises SnapshotDamaged."""
        packed = io.BytesIO()
        try:
            async with asyncio.timeout(READ_PATIENCE_S):
                await (await self._store()).get(_name(entry), writeinto=packed)
            return await asyncio.to_thread(zlib.decompress, packed.getbuffer())
        except TimeoutError as error:
            raise SnapshotDamaged(f"not all of it came within {READ_PATIENCE_S:g} s") from error
        except (*_DAMAGES, zlib.error) as error:
            raise SnapshotDamaged(f"it is not what was stored: {error!r}") from error

    async def keep(self, newest: int) -> None:
        """Delete all but the `newest` few, and what a writer that died half-way left behind."""
        store = await self._store()
        kept = await self.entries()
        for entry in kept[newest:]:
            await store.delete(_name(entry))
        wanted = {(await store.get_info(_name(entry))).nuid for entry in kept[:newest]}
        stream = provision.object_stream(self._bucket)
        chunks = subjects.object_chunks(self._bucket)
        stored = (await self._jetstream.stream_info(stream, subjects_filter=chunks)).state.subjects or {}
        for subject in stored:
            if subject.rpartition(".")[2] not in wanted:
                await self._jetstream.purge_stream(stream, subject=subject)

    async def _store(self) -> ObjectStore:
        if self._opened is None:
            self._opened = await self._jetstream.object_store(self._bucket)
        return self._opened


def _name(entry: SnapshotEntry) -> str:
    return f"{entry.batch_number:020d}"
