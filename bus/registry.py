"""Buckets: small tables in JetStream that are followed (instruments, clients, sessions, engines).

Here: reading, writing and following one bucket with typed values. Not here: who may write what, leases. A
value is stored once JetStream says so; a watch hears of every key's newest value, over restarts of the server
too.

    BucketUnavailable   no certain answer in time; the change may be stored, now or later
    BucketDamaged       the server counts a value that it does not have
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec
import nats.errors
from nats.aio.client import Client

from bus import messages, subjects
from bus.connection import Patience
from bus.stream import (
    AWAY,
    EXPECTED_LAST_SUBJECT_SEQUENCE,
    Publisher,
    Stored,
    StreamError,
    StreamLostEnd,
    last_message,
    settled_extent,
    settled_message,
    until_connected,
)
from bus.stream_reader import StreamReader
from bus.subjects import bucket_stream, bucket_subject

DEADLINE_S: Final = 5.0
"""How long reading or writing a key waits for NATS."""

RELIST_S: Final = 2.0
"""How often a quiet watch compares what it has seen with what the bucket holds."""

_KEY: Final = re.compile(r"[-/_=a-zA-Z0-9]+")
_log: Final = logging.getLogger(__name__)

T = TypeVar("T")


class BucketUnavailable(Exception):
    """NATS gave no certain answer in time. A write may be stored, now or later: read before relying on it."""


class BucketDamaged(StreamError):
    """The newest value of a bucket is lost: its stream counts it, and there is none."""


class Bucket(Generic[T]):
    """One bucket. `decode` turns a stored value into a T and raises one of NO_MESSAGE for anything else.

    A value that is no T is logged and left out: what anybody wrote once is there at every start. Keys come
    from `bus.subjects` or from numbers, never from a client's own words. Several tasks may use it.
    """

    def __init__(self, nc: Client, bucket: str, decode: Callable[[bytes], T]) -> None:
        self._nc = nc
        self._bucket = bucket
        self._stream = bucket_stream(bucket)
        self._prefix_length = len(bucket_subject(bucket, ""))
        self._decode = decode
        self._publisher = Publisher(nc)
        self._writing = asyncio.Lock()
        self._told: set[str] = set()  # keys of which the watcher knows a value

    async def get(self, key: str) -> T | None:
        """The value of a key, None when it has none. Raises BucketUnavailable after 5 s."""
        stored = await self._stored(key, time.monotonic() + DEADLINE_S)
        return None if stored is None or stored.deleted else self._value(key, stored)

    async def put(
        self, key: str, value: msgspec.Struct, *, unless: Callable[[T | None], bool] = lambda _: False
    ) -> bool:
        """Set a key; False, and nothing changed, when `unless` holds of its value (None: one that is no T).

        Raises BucketUnavailable after 5 s.
        """
        # The key's newest message must still be the one that was read: an attempt without an answer that
        # arrives late must not undo a later one.
        deadline = time.monotonic() + DEADLINE_S
        payload = messages.encode(value)
        in_doubt = False
        await self._turn(deadline)
        try:
            while True:
                found = await self._stored(key, deadline)
                if found is not None and not found.deleted:
                    if in_doubt and found.payload == payload:
                        return True
                    if unless(self._value(key, found)):
                        return False
                after = found.sequence if found is not None else 0
                self._publisher.begin_message()
                ack = await self._publisher.attempt(
                    self._subject(key), payload, {EXPECTED_LAST_SUBJECT_SEQUENCE: str(after)}
                )
                if ack is not None and ack.error is None:
                    return True
                if ack is None or not ack.is_out_of_date:
                    in_doubt = True
                    await self._pause(deadline, self._publisher.trouble)
        finally:
            self._writing.release()

    async def create(self, key: str, value: msgspec.Struct) -> bool:
        """Set a key that has no value; False, and nothing changed, when it has one.

        Of several callers at once exactly one hears True. Raises BucketUnavailable after 5 s.
        """
        return await self.put(key, value, unless=lambda _: True)

    async def remove(self, key: str) -> None:
        """Take a key away for good, without a word to those who watch. Raises BucketUnavailable."""
        try:
            await self._nc.jetstream(timeout=DEADLINE_S).purge_stream(
                self._stream, subject=self._subject(key)
            )
        except nats.errors.Error as error:
            raise BucketUnavailable(f"bucket {self._bucket}: {key} is not removed: {error!r}") from error
        self.forget(key)

    def forget(self, key: str) -> None:
        """The watcher has let go of this key: it need not hear that it is gone."""
        self._told.discard(key)

    async def _turn(self, deadline: float) -> None:
        """Take the lock of the writers; BucketUnavailable at the deadline."""
        try:
            async with Patience(deadline - time.monotonic()):
                await self._writing.acquire()
        except TimeoutError:
            raise BucketUnavailable(f"bucket {self._bucket} does not answer those who came before") from None

    async def watch(
        self, on_change: Callable[[str, T | None], None], *, filled: asyncio.Event | None = None
    ) -> None:
        """Call `on_change(key, value)` for every key there is, set `filled`, then follow for ever.

        None says that the key was deleted. A key may be told twice, never out of order. Waits while NATS is
        away; raises StreamMissing when there is no bucket, and BucketDamaged. One task at a time.
        """
        end = await self._end()
        reader = StreamReader(self._nc, self._stream, contiguous=False)
        try:
            while True:
                if reader.next_sequence > end and filled is not None:
                    filled.set()
                try:
                    changes = await reader.read(RELIST_S)
                except StreamLostEnd as error:
                    _log.error("bucket %s is read from the start: %s", self._bucket, error)
                    while self._told:
                        on_change(self._told.pop(), None)
                    await reader.close()
                    reader = StreamReader(self._nc, self._stream, contiguous=False)
                    continue
                for stored in changes:
                    self._tell(stored, on_change)
                if not changes:
                    end = await self._end(reader.next_sequence - 1)
                    if reader.next_sequence != end + 1:
                        if filled is not None and not filled.is_set():
                            await self._check_end(end)
                        await reader.renew()
        finally:
            await reader.close()

    def _tell(self, stored: Stored, on_change: Callable[[str, T | None], None]) -> None:
        key = stored.subject[self._prefix_length :]
        if stored.deleted:
            self._told.discard(key)
            on_change(key, None)
            return
        value = self._value(key, stored)
        if value is not None:
            self._told.add(key)
            on_change(key, value)

    def _value(self, key: str, stored: Stored) -> T | None:
        try:
            return self._decode(stored.payload)
        except messages.NO_MESSAGE as error:
            _log.error("bucket %s: the value of %.80r is left out: %s", self._bucket, key, error)
            return None

    async def _stored(self, key: str, deadline: float) -> Stored | None:
        subject = self._subject(key)
        while True:
            try:
                return await last_message(self._nc, self._stream, subject)
            except AWAY:
                await self._pause(deadline)

    async def _end(self, reached: int = 0) -> int:
        return (await settled_extent(self._nc, self._stream, reached)).last_seq

    async def _check_end(self, end: int) -> None:
        """A start waits for all that there is: for a value that is lost it would wait for ever."""
        if await settled_message(self._nc, self._stream, end) is None and await self._end() == end:
            raise BucketDamaged(
                f"bucket {self._bucket}: value {end} is counted and missing:"
                " restore the NATS store from a copy"
            )

    async def _pause(self, deadline: float, trouble: str = "no answer") -> None:
        """Wait for the server; BucketUnavailable at the deadline, with what the trouble is."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await until_connected(self._nc)
        except TimeoutError:
            raise BucketUnavailable(f"bucket {self._bucket}: {trouble}") from None

    def _subject(self, key: str) -> str:
        assert _KEY.fullmatch(key), f"{key!r:.80} is no bucket key"
        return bucket_subject(self._bucket, key)


def instruments_bucket(nc: Client) -> Bucket[messages.InstrumentEntry]:
    """Keys are of `subjects.symbol_token`."""
    return Bucket(nc, subjects.INSTRUMENTS_BUCKET, messages.decode_instrument)


def clients_bucket(nc: Client) -> Bucket[messages.ClientEntry]:
    """Keys are of `subjects.client_key`."""
    return Bucket(nc, subjects.CLIENTS_BUCKET, messages.decode_client)


def sessions_bucket(nc: Client) -> Bucket[messages.SessionEntry]:
    """Keys are digests of tokens."""
    return Bucket(nc, subjects.SESSIONS_BUCKET, messages.decode_session)


def engines_bucket(nc: Client) -> Bucket[messages.EngineEntry]:
    """Keys are engine numbers."""
    return Bucket(nc, subjects.ENGINES_BUCKET, messages.decode_engine)
