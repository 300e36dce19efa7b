"""Which streams and buckets exist, and with which settings. The exchange makes them, engines only use them.

Every function may be repeated. A stream that exists with other settings than the wanted ones is never used: a
journal that, say, drops its head when full has lost orders already. One setting alone is ever changed: a
limit in bytes below the wanted one is raised. That limit, how many servers keep a stream, and whether a
journal may be trimmed are the exchange's choice alone.

    ProvisionError
    ├── ConfigurationMismatch   it exists with other settings
    ├── StoreTooSmall           it does not fit into what the server may keep
    └── NotProvisioned          it does not exist and nobody made it in time
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo

from bus import messages, subjects
from bus.stream import AWAY, MAX_MESSAGE_BYTES

GIB: Final = 1024**3

JOURNAL_BYTES: Final = 4 * GIB
"""Default limit of one engine's journal: about 6 minutes at 200,000 orders a second, weeks at a hundred. When
it is reached the engine refuses new commands with the reason; nothing is dropped."""

EXECUTIONS_BYTES: Final = 16 * GIB
"""Default limit of the execution reports of all engines together. Likewise."""

BUCKETS: Final = (
    subjects.INSTRUMENTS_BUCKET,
    subjects.CLIENTS_BUCKET,
    subjects.SESSIONS_BUCKET,
    subjects.ENGINES_BUCKET,
    subjects.LEASES_BUCKET,
)

_STORE_TOO_SMALL: Final = 10_047
_NO_PEER_HAS_ROOM: Final = "insufficient storage"
"""How a cluster says it of a new stream: its error number is that of all that no peer suits."""

_REQUEST_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 0.1
_TELL_S: Final = 5.0
"""How often the log says what is waited for."""

_COMPARED: Final = (
    "subjects",
    "storage",
    "retention",
    "discard",
    "max_age",
    "max_msgs",
    "max_msgs_per_subject",
    "max_msg_size",
    "deny_delete",
    "allow_rollup_hdrs",
    "no_ack",
    "persist_mode",
    "allow_msg_ttl",
)
_COMPARED_BY_MAKER: Final = (*_COMPARED, "num_replicas", "deny_purge")
_log: Final = logging.getLogger(__name__)


class ProvisionError(Exception):
    """A stream that must be there is not, or not as it must be."""


class ConfigurationMismatch(ProvisionError):
    """A stream exists with other settings than the wanted ones."""


class StoreTooSmall(ProvisionError):
    """The server may not keep as much as its streams together are to hold."""


class NotProvisioned(ProvisionError):
    """A stream does not exist, and nobody made it before the deadline."""


class StreamSize(NamedTuple):
    """How many bytes a stream holds, and how many it may."""

    used: int
    limit: int


class _Deadline:
    """How long a start waits for what is missing; it says in the log that it waits."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._began = self._told = time.monotonic()

    async def pause(self, missing: str, why: str) -> None:
        """Wait a little. Raises NotProvisioned after the deadline."""
        now = time.monotonic()
        if now - self._began >= self._deadline_s:
            raise NotProvisioned(f"{missing} after {self._deadline_s:g} s: {why}")
        if now - self._told >= _TELL_S:
            self._told = now
            _log.warning("waiting: %s: %s", missing, why)
        await asyncio.sleep(_RETRY_S)


async def provision_shared(
    nc: Client, *, executions_bytes: int = EXECUTIONS_BYTES, replicas: int = 1
) -> None:
    """Make the stream of execution reports and the buckets, or check that they are right.

    `replicas` is how many servers of a cluster keep each. Raises ConfigurationMismatch, StoreTooSmall; one of
    nats' errors when the server does not answer.
    """
    await _provision(nc, _executions(executions_bytes), replicas)
    for bucket in BUCKETS:
        await _provision(nc, _bucket(bucket), replicas)


async def await_shared(nc: Client, deadline_s: float) -> None:
    """Return when an exchange has made what all share.

    Raises ConfigurationMismatch, or NotProvisioned after `deadline_s` seconds.
    """
    deadline = _Deadline(deadline_s)
    wanted = [_executions(EXECUTIONS_BYTES), *map(_bucket, BUCKETS)]
    while wanted:
        try:
            if await _found(nc, wanted[0]):
                wanted.pop(0)
                continue
            why = "an exchange makes it at its start; is one running on this NATS server?"
        except AWAY:
            why = "NATS does not answer"
        await deadline.pause(f"there is no stream {wanted[0].name}", why)


async def provision_journal(
    nc: Client,
    engine: int,
    *,
    max_bytes: int = JOURNAL_BYTES,
    replicas: int = 1,
    trimmable: bool = False,
) -> None:
    """Make the journal of one engine and the object store of its snapshots, or check that they are right.

    `replicas` is how many servers of a cluster keep each. A `trimmable` journal may lose its head
    (`trim_journal`), any other keeps everything. Raises ConfigurationMismatch, StoreTooSmall; one of nats'
    errors when the server does not answer.
    """
    await _provision(nc, _snapshots(engine), replicas)
    await _provision(nc, _journal(engine, max_bytes, trimmable=trimmable), replicas)


async def adjust_journals(nc: Client, max_bytes: int, *, trimmable: bool) -> bool:
    """Let the journals that there are become that large; whether further ones are to be trimmable.

    They are if that is wanted, or all that there are were made so. Raises ConfigurationMismatch when it is
    wanted and one was not, which no server changes, StoreTooSmall, and nats' errors.
    """
    journals = await _existing_journals(nc)
    kept_whole = [journal.name for journal in journals if journal.deny_purge]
    if trimmable and kept_whole:
        raise ConfigurationMismatch(
            f"stream {kept_whole[0]} was made to keep everything, and cannot be trimmed. Start without"
            " --trim-journals; to give it more room, use --journal-gib"
        )
    for journal in journals:
        await _grow(nc, journal, max_bytes)
    return trimmable or bool(journals and not kept_whole)


async def journaled_engines(nc: Client) -> list[int]:
    """The numbers of the engines that have a journal here. Raises one of nats' errors."""
    names = [journal.name or "" for journal in await _existing_journals(nc)]
    numbers = [subjects.number_of(name.removeprefix(subjects.JOURNAL_STREAM_PREFIX)) for name in names]
    return sorted(number for number in numbers if number)


async def stream_sizes(nc: Client) -> dict[str, StreamSize]:
    """How full the streams are that have a limit, by name. Raises one of nats' errors."""
    return {
        stream.config.name or "": StreamSize(stream.state.bytes, stream.config.max_bytes)
        for stream in await _streams(nc)
        if stream.config.max_bytes is not None and stream.config.max_bytes > 0
    }


async def _streams(nc: Client) -> list[StreamInfo]:
    jetstream = _jetstream(nc)
    streams: list[StreamInfo] = []
    while page := await jetstream.streams_info(len(streams)):
        streams += page
    return streams


async def _existing_journals(nc: Client) -> list[StreamConfig]:
    """The journals that there are, as they were made."""
    streams = [stream.config for stream in await _streams(nc)]
    return [one for one in streams if (one.name or "").startswith(subjects.JOURNAL_STREAM_PREFIX)]


async def await_journal(nc: Client, engine: int, deadline_s: float) -> None:
    """Return when the engine's journal and object store exist as they must; else ask the exchange for them.

    Raises ConfigurationMismatch, or NotProvisioned after `deadline_s` seconds.
    """
    wanted = [_snapshots(engine), _journal(engine, JOURNAL_BYTES)]
    ask = messages.encode(messages.ProvisionRequest(engine))
    deadline = _Deadline(deadline_s)
    while True:
        try:
            while wanted and await _found(nc, wanted[0]):
                wanted.pop(0)
            if not wanted:
                return
            answer = await nc.request(subjects.provision(engine), ask, timeout=_REQUEST_TIMEOUT_S)
            if error := messages.decode_provision_reply(answer.data).error:
                raise ConfigurationMismatch(error)
            why = "the exchange says that it made it"
        except messages.NO_MESSAGE:
            why = "what answers is no exchange"
        except nats.errors.NoRespondersError:
            why = "no exchange is running that could make it"
        except AWAY:
            why = "NATS or the exchange does not answer"
        await deadline.pause(f"there is no stream {wanted[0].name}", why)


async def is_trimmable(nc: Client, engine: int) -> bool:
    """Whether the engine's journal may be trimmed. Raises one of nats' errors."""
    found = await _jetstream(nc).stream_info(subjects.journal_stream(engine))
    return not found.config.deny_purge


async def trim_journal(nc: Client, engine: int, first: int) -> None:
    """Drop the records before stream sequence `first` of a trimmable journal. Raises one of nats' errors."""
    await _jetstream(nc).purge_stream(subjects.journal_stream(engine), seq=first)


def _journal(engine: int, max_bytes: int, *, trimmable: bool = False) -> StreamConfig:
    return _append_only(
        subjects.journal_stream(engine), subjects.journal(engine), max_bytes, deny_purge=not trimmable
    )


def _snapshots(engine: int) -> StreamConfig:
    """An object store as every NATS client knows it."""
    bucket = subjects.snapshots_bucket(engine)
    return _stream(
        subjects.object_stream(bucket),
        [subjects.object_chunks(bucket), subjects.object_entries(bucket)],
        max_bytes=-1,
        max_msgs_per_subject=-1,
        max_msg_size=-1,
        deny_delete=False,
        deny_purge=False,
        allow_rollup_hdrs=True,
        allow_direct=True,
    )


def _executions(max_bytes: int) -> StreamConfig:
    return _append_only(subjects.EXECUTIONS_STREAM, subjects.EXECUTIONS_SUBJECTS, max_bytes)


def _append_only(name: str, subject: str, max_bytes: int, *, deny_purge: bool = True) -> StreamConfig:
    """A stream that only grows: nothing is dropped or deleted, and a full one refuses what is new.

    Without `deny_purge` it may be trimmed.
    """
    return _stream(
        name,
        [subject],
        max_bytes=max_bytes,
        max_msgs_per_subject=-1,
        max_msg_size=MAX_MESSAGE_BYTES,
        deny_delete=True,
        deny_purge=deny_purge,
        allow_rollup_hdrs=False,
    )


def _bucket(bucket: str) -> StreamConfig:
    """A bucket as every NATS key-value client knows it, with the newest value of each key only."""
    return _stream(
        subjects.bucket_stream(bucket),
        [subjects.bucket_subject(bucket, ">")],
        max_bytes=-1,
        max_msgs_per_subject=1,
        max_msg_size=-1,
        deny_delete=True,
        deny_purge=False,
        allow_rollup_hdrs=True,
        allow_msg_ttl=bucket == subjects.LEASES_BUCKET,  # what nobody renews must go by itself
    )


def _stream(name: str, subject_list: list[str], **different: Any) -> StreamConfig:
    """A stream with what all of ours have alike, and the settings in which they differ."""
    return StreamConfig(
        name=name,
        subjects=subject_list,
        storage=StorageType.FILE,
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW,
        max_age=0,
        max_msgs=-1,
        **different,
    )


def _jetstream(nc: Client) -> JetStreamContext:
    return nc.jetstream(timeout=_REQUEST_TIMEOUT_S)


async def _provision(nc: Client, wanted: StreamConfig, replicas: int) -> None:
    wanted.num_replicas = replicas
    found = await _found(nc, wanted, _COMPARED_BY_MAKER)
    if found is None:
        try:
            with _naming_a_full_store(wanted):
                await _jetstream(nc).add_stream(wanted)
        except nats.js.errors.BadRequestError:  # another one made it between the two questions, differently
            if await _found(nc, wanted, _COMPARED_BY_MAKER) is None:
                raise
    elif wanted.max_bytes is not None:
        await _grow(nc, found, wanted.max_bytes)


async def _grow(nc: Client, found: StreamConfig, max_bytes: int) -> None:
    """Let a stream become that large, if it may not already."""
    if 0 < (found.max_bytes or 0) < max_bytes:
        found.max_bytes = max_bytes
        with _naming_a_full_store(found):
            await _jetstream(nc).update_stream(found)


@contextlib.contextmanager
def _naming_a_full_store(stream: StreamConfig) -> Iterator[None]:
    try:
        yield
    except nats.js.errors.APIError as error:
        if error.err_code != _STORE_TOO_SMALL and _NO_PEER_HAS_ROOM not in (error.description or ""):
            raise
        raise StoreTooSmall(
            f"stream {stream.name} of {stream.max_bytes} bytes and the others do not fit into max_file of "
            "nats-server: start with less (--journal-gib, --executions-gib), or nats-server with a larger one"
        ) from error


async def _found(
    nc: Client, wanted: StreamConfig, compared: Sequence[str] = _COMPARED
) -> StreamConfig | None:
    """The stream as it is, None if there is none. Raises ConfigurationMismatch when it is another one."""
    assert wanted.name is not None
    try:
        found = (await _jetstream(nc).stream_info(wanted.name)).config
    except nats.js.errors.NotFoundError:
        return None
    differences = [
        f"{field} is {_shown(found, field)} and must be {_shown(wanted, field)}"
        for field in compared
        if _shown(found, field) != _shown(wanted, field)
    ]
    if differences:
        raise ConfigurationMismatch(
            f"stream {wanted.name} exists with other settings: {'; '.join(differences)}."
            " Start with the settings it was made with, or on another NATS store."
        )
    return found


def _shown(config: StreamConfig, field: str) -> str:
    """A setting as text, the server's and ours alike: enums by value, zero for absent."""
    value = getattr(config, field)
    return str(getattr(value, "value", value) or 0)
