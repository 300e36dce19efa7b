"""The execution reports: each report of each engine exactly once, for positions, drop copy and audit.

Here: storing one engine's messages, reading all engines' from the first on, and looking up a client's old
fills. Not here: what a report means, and which batches share a message. An engine demands with every message
that its own last one is the newest on its subject, and looks there when an answer is missing, so that nothing
is stored twice and a replaced primary stores nothing.

    ExecutionsDamaged   messages that were stored are gone
    MessageTooLong      these reports do not fit into one message; nothing was sent
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from typing import Final

from nats.aio.client import Client

from bus import crash_points, messages, subjects
from bus.journal import PrimaryReplaced
from bus.stream import (
    AWAY,
    EXPECTED_LAST_SUBJECT_SEQUENCE,
    MAX_PAYLOAD_BYTES,
    Publisher,
    Stored,
    StreamError,
    last_message,
    next_message,
    settled_extent,
    settled_last_message,
    until_connected,
)
from bus.stream_reader import StreamReader

_LOOK_S: Final = 1.0
"""How long a reader that has not caught up hears nothing before it looks whether what comes next is there."""

_TURN_S: Final = 0.002
_WHAT_TO_DO: Final = 'see "Damaged execution reports" in docs/reliability.md'

_log: Final = logging.getLogger(__name__)


class ExecutionsDamaged(Exception):
    """Stored execution reports are missing or are none."""


class MessageTooLong(Exception):
    """More reports than the stream takes in one message."""


class ExecutionsWriter:
    """Stores one engine's execution reports. Used by one task at a time, after `start`."""

    def __init__(self, nc: Client, engine: int) -> None:
        self._nc = nc
        self._subject = subjects.execution(engine)
        self._publisher = Publisher(nc)
        self._sequence = 0  # in the stream, of our newest message
        self._in_flight = False

    async def start(self, epoch: int | None = None) -> tuple[int, int]:
        """The `last_batch` and `last_reports` of the newest message stored, zeros when there is none.

        Go on with the report after those. May be called again, even after PrimaryReplaced, to go on behind
        what another writer stored. `epoch` is that of our reign, if it has begun. Waits while NATS is away.
        Raises PrimaryReplaced when the newest message is of a later epoch than ours, ExecutionsDamaged, also
        when the one that was the newest before is gone.
        """
        self._in_flight = False
        stored = await self._newest()
        if stored is None:
            return 0, 0
        newest = _decode(stored.sequence, stored.payload)
        if epoch is not None and newest.epoch > epoch:
            raise PrimaryReplaced(subjects.EXECUTIONS_STREAM, stored.sequence, epoch, newest.epoch)
        self._sequence = stored.sequence
        return newest.last_batch, newest.last_reports

    async def publish(self, message: messages.Executions) -> None:
        """Store a message exactly once and return when that is certain, however long NATS is away.

        Raises MessageTooLong, PrimaryReplaced when another writer's message stands where ours should,
        ExecutionsDamaged when our last one is gone; after the latter two, or a cancellation, the writer takes
        no more before another `start`.
        """
        assert not self._in_flight, "one publish at a time, and none after one that was broken off"
        payload = messages.encode_executions(message)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise MessageTooLong(f"{len(message.reports)} reports have {len(payload)} bytes")
        self._in_flight = True
        demand = {EXPECTED_LAST_SUBJECT_SEQUENCE: str(self._sequence)}
        self._publisher.begin_message()
        crash_points.reach("reports begun")
        told = ""
        while True:
            ack = await self._publisher.attempt(self._subject, payload, demand)
            if ack is not None and ack.error is None:
                self._sequence = ack.seq
                break
            await until_connected(self._nc)
            if await self._find(payload, message.epoch):
                break
            if self.trouble and self.trouble != told:
                told = self.trouble
                _log.warning("execution reports of E%d wait: %s", message.engine, told)
        if told:
            _log.warning("execution reports of E%d are stored again", message.engine)
        self._in_flight = False
        crash_points.reach("reports stored")

    async def check(self) -> None:
        """Raise ExecutionsDamaged when our last message is gone; without an answer of NATS nothing is known.

        Costs one round trip, whose answer is the newest message on the subject, ours or a successor's. A mere
        number would not do: the server goes on counting what it cannot read any more.
        """
        with contextlib.suppress(*AWAY):
            await self._look()

    @property
    def trouble(self) -> str:
        """Why what is to be stored is not yet; empty when there is nothing, or no attempt has failed."""
        return self._publisher.trouble if self._in_flight else ""

    async def _find(self, payload: bytes, epoch: int) -> bool:
        """Whether the message is stored; False: the newest one is still our last, so send it again."""
        stored = await self._newest()
        if stored is None or stored.sequence == self._sequence:
            return False
        if stored.payload != payload:
            other = _decode(stored.sequence, stored.payload)
            raise PrimaryReplaced(subjects.EXECUTIONS_STREAM, stored.sequence, epoch, other.epoch)
        self._sequence = stored.sequence
        return True

    async def _newest(self) -> Stored | None:
        while True:
            try:
                return await self._look()
            except AWAY:
                await until_connected(self._nc)

    async def _look(self) -> Stored | None:
        """The newest message on the subject. Raises ExecutionsDamaged when ours is gone, or one of AWAY."""
        try:
            stored = await last_message(self._nc, subjects.EXECUTIONS_STREAM, self._subject)
            if self._is_behind(stored):  # a cluster's new leader may not have all that was stored yet
                stored = await settled_last_message(
                    self._nc, subjects.EXECUTIONS_STREAM, self._subject, self._sequence
                )
        except StreamError as error:
            raise ExecutionsDamaged(str(error)) from error
        if self._is_behind(stored):
            raise ExecutionsDamaged(f"{self._subject}: message {self._sequence} was stored and is gone")
        return stored

    def _is_behind(self, stored: Stored | None) -> bool:
        return (stored.sequence if stored is not None else 0) < self._sequence


class ExecutionsReader:
    """All execution reports from the first one on, then as they come: `async for message in reader`."""

    def __init__(self, nc: Client) -> None:
        self.caught_up = asyncio.Event()
        """Set when the consumer has come back for more after the last message that existed at the start."""
        self.pending = 0
        """How many messages came after the newest that was read, as the server said with that one."""
        self._nc = nc

    async def __aiter__(self) -> AsyncGenerator[messages.Executions]:
        """Follow for ever, over whatever happens to the connection. Raises ExecutionsDamaged."""
        reader = StreamReader(self._nc, subjects.EXECUTIONS_STREAM)
        try:
            end = (await settled_extent(self._nc, subjects.EXECUTIONS_STREAM)).last_seq
            while True:
                if reader.next_sequence > end:
                    self.caught_up.set()
                arrived = await reader.read(None if self.caught_up.is_set() else _LOOK_S)
                self.pending = reader.pending
                for stored in arrived:
                    yield _decode(stored.sequence, stored.payload)
                if not arrived:
                    await settled_extent(self._nc, subjects.EXECUTIONS_STREAM, end)
                    if await reader.is_next_lost():
                        raise ExecutionsDamaged(
                            f"message {reader.next_sequence} of {end} was stored and is gone; {_WHAT_TO_DO}"
                        )
        except StreamError as error:
            raise ExecutionsDamaged(f"{error}; {_WHAT_TO_DO}") from error
        finally:
            await reader.close()


class OldFills:
    """Fills that their engine has let go of, from its reports. Messages before `first_epoch` do not count.

    Reading them back takes half of the process's time at most, however many do so at once.
    """

    def __init__(self, nc: Client, engine: int, first_epoch: int = 0) -> None:
        self._nc = nc
        self._subject = subjects.execution(engine)
        self._first_epoch = first_epoch
        self._decoding = asyncio.Lock()
        self._taken_s = 0.0  # since the last pause
        self._readers = 0

    async def read(
        self, client: str, since: int, epoch: int, batch_number: int
    ) -> AsyncGenerator[list[messages.ReportedFill]]:
        """The client's fills numbered above `since`, as far as they are stored and then as they come.

        They come message by message, a list for each, which is empty where none is the client's. None is from
        before the end of that batch: its place is looked up in as many round trips as the number of messages
        has binary digits. Raises ExecutionsDamaged when one is missing.
        """
        sequence = await self._first_after(max((epoch, batch_number), (self._first_epoch, 0)))
        reader = StreamReader(
            self._nc,
            subjects.EXECUTIONS_STREAM,
            sequence,
            subject=self._subject,
            contiguous=False,
            sharers=lambda: self._readers,
        )
        self._readers += 1
        try:
            while True:
                for stored in await reader.read():
                    fills = await self._fills(stored, client, since)
                    if fills:
                        if fills[0].sequence != since + 1:
                            raise ExecutionsDamaged(
                                f"fills {since + 1} to {fills[0].sequence - 1} of a client are not reported"
                            )
                        since = fills[-1].sequence
                    yield fills
        except StreamError as error:
            raise ExecutionsDamaged(str(error)) from error
        finally:
            self._readers -= 1
            await reader.close()

    async def _fills(self, stored: Stored, client: str, since: int) -> list[messages.ReportedFill]:
        """The client's fills above `since` in one message; orders and heartbeats pass in between."""
        async with self._decoding:
            began = time.perf_counter()
            fills = [
                report
                for report in _decode(stored.sequence, stored.payload).reports
                if type(report) is messages.ReportedFill
                and report.client == client
                and report.sequence > since
            ]
            self._taken_s += time.perf_counter() - began
            if self._taken_s > _TURN_S:
                taken_s, self._taken_s = self._taken_s, 0.0
                await asyncio.sleep(taken_s)
        return fills

    async def _first_after(self, place: tuple[int, int]) -> int:
        """The sequence from which on all reports of batches after this (epoch, batch number) stand."""
        extent = await settled_extent(self._nc, subjects.EXECUTIONS_STREAM)
        low, high = extent.first_seq, extent.last_seq + 1
        while low < high:
            middle = (low + high) // 2
            try:
                stored = await next_message(self._nc, subjects.EXECUTIONS_STREAM, middle, self._subject)
            except AWAY:
                await until_connected(self._nc)
                continue
            if stored is None or _place(stored) > place:
                high = middle
            else:
                low = stored.sequence + 1
        return low


def _place(stored: Stored) -> tuple[int, int]:
    """How far the engine was at the end of a message; grows from message to message."""
    message = _decode(stored.sequence, stored.payload)
    return message.epoch, message.last_batch


def _decode(sequence: int, payload: bytes) -> messages.Executions:
    try:
        return messages.decode_executions(payload)
    except messages.NO_MESSAGE as error:
        raise ExecutionsDamaged(f"message {sequence} holds no execution reports: {error}") from error
