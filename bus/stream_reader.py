"""Reading a JetStream stream in order, whatever gets lost on the way.

nats-py's ordered consumer loses messages when its queue overflows, so a pull consumer is used instead. What a
read may raise is in `bus/stream.py`.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from bus.stream import (
    ANSWER_TIMEOUT_S,
    AWAY,
    MAX_MESSAGE_BYTES,
    Stored,
    StreamGap,
    StreamLostEnd,
    StreamMissing,
    message_at,
    settled_extent,
    settled_message,
    until_connected,
)

MAX_REQUEST_BYTES: Final = 4_000_000
"""What one request should bring: a server cuts off a connection with 16 MB waiting (`nats.conf`).

Kept by the number of messages, from the largest seen so far. NATS has a limit in bytes for it, with which
small messages came ten times slower."""

_FETCH: Final = 12_000_000 // MAX_MESSAGE_BYTES
"""So many messages never have more than that server holds, though all that were seen so far were small."""

_FETCH_EXPIRES_NS: Final = 10_000_000_000
_IDLE_HEARTBEAT_NS: Final = 250_000_000
_SILENCE_S: Final = 1.0
_CONSUMER_LIFE_S: Final = 15.0


class StreamReader:
    """Reads a stream in order, from one sequence on, over whatever happens to the connection.

    A pull consumer gives back-pressure, so its queue cannot overflow; it is made anew after `next_sequence`
    when its own numbering breaks, when it sent more than came, or when the server falls silent. With
    `subject` it reads no other one's messages. `contiguous` says that no sequence may ever be missing,
    `sharers` how many readers are at work on the connection.
    """

    def __init__(
        self,
        nc: Client,
        stream: str,
        next_sequence: int = 1,
        *,
        subject: str = "",
        contiguous: bool = True,
        sharers: Callable[[], int] = lambda: 1,
    ) -> None:
        self.next_sequence = next_sequence
        """The sequence after the last one that `read` returned."""
        self.pending = 0
        """How many messages the server still had when it sent that one."""
        self._nc = nc
        self._stream = stream
        self._subject = subject
        self._contiguous = contiguous
        self._sharers = sharers
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._consumer = ""
        self._asked = 0  # messages the running request may still bring
        self._arrived: deque[Msg] = deque()
        self._wake = asyncio.Event()
        self._consumer_sequence = 0
        self._broken = False
        self._largest = 0
        self._last: Stored | None = None
        self._heard = 0.0  # silence counts from here, whatever patience the caller has

    async def close(self) -> None:
        """Stop reading; the server forgets the consumer by itself."""
        subscription, self._subscription = self._subscription, None
        self._consumer = ""
        self._arrived.clear()
        if subscription is not None and not self._nc.is_closed:
            with contextlib.suppress(*AWAY, nats.errors.BadSubscriptionError):
                await subscription.unsubscribe()

    async def read(self, timeout_s: float | None = None) -> list[Stored]:
        """What comes next, at least one message unless `timeout_s` passes first (None: wait for ever).

        Raises StreamMissing, StreamLostEnd, StreamGap when `contiguous`, or nats' ConnectionClosedError.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if not self._arrived:
                        await self._await_arrival()
                    if messages := self._take():
                        return messages
        except TimeoutError:
            return []

    async def is_next_lost(self) -> bool:
        """After a silence: whether the server has lost message `next_sequence`, which it must have had.

        It knows of nothing to deliver then, and would be silent for ever. False when it does not answer.
        Raises StreamMissing, or nats' ConnectionClosedError.
        """
        try:
            found = await message_at(self._nc, self._stream, self.next_sequence)
        except AWAY:
            return False
        return found is None and await settled_message(self._nc, self._stream, self.next_sequence) is None

    async def renew(self) -> None:
        """Begin anew after `next_sequence`, as soon as the server is there."""
        await self.close()
        await until_connected(self._nc)

    async def _await_arrival(self) -> None:
        """Have a request running and wait until something comes; begin anew when the server is silent."""
        if self._broken:
            await self.renew()
        try:
            if not self._consumer:
                await self._open()
            if self._asked <= 0:
                await self._ask()
        except AWAY:
            self._broken = True
            return
        self._wake.clear()
        try:
            async with asyncio.timeout_at(self._heard + _SILENCE_S):
                await self._wake.wait()
        except TimeoutError:
            self._broken = True

    async def _open(self) -> None:
        """Make the consumer."""
        await self.close()  # an earlier call may have been cut off between subscription and consumer
        self._broken = False
        self._asked = 0
        self._largest = 0  # more than what came before may be what cut us off
        self._consumer_sequence = 0
        self._inbox = self._nc.new_inbox()
        self._subscription = await self._nc.subscribe(self._inbox, cb=self._received)
        try:
            created = await self._nc.jetstream(timeout=2 * ANSWER_TIMEOUT_S).add_consumer(
                self._stream,
                ConsumerConfig(
                    deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                    opt_start_seq=self.next_sequence,
                    filter_subject=self._subject or None,
                    ack_policy=AckPolicy.NONE,
                    mem_storage=True,
                    num_replicas=1,
                    inactive_threshold=_CONSUMER_LIFE_S,
                ),
            )
        except nats.js.errors.NotFoundError as error:
            raise StreamMissing(self._stream) from error
        await self._check_last()
        self._consumer = created.name

    async def _check_last(self) -> None:
        """Raise StreamLostEnd where what was read last was lost since, or written over."""
        last = self._last
        if last is None:
            return
        found = await message_at(self._nc, self._stream, last.sequence)
        if found is not None:
            is_there = (found.subject, found.payload) == (last.subject, last.payload)
        else:  # a newer value of a key, or a trimmed stream, leave nothing there either
            stored = await settled_extent(self._nc, self._stream, last.sequence)
            is_there = stored.last_seq >= last.sequence
        if not is_there:
            raise StreamLostEnd(self._stream, last.sequence)

    async def _ask(self) -> None:
        """Ask for the next messages; the request stands until they all came or ten seconds passed."""
        largest = self._largest or MAX_MESSAGE_BYTES
        batch = max(1, min(_FETCH, MAX_REQUEST_BYTES // largest) // self._sharers())
        question = {"batch": batch, "expires": _FETCH_EXPIRES_NS, "idle_heartbeat": _IDLE_HEARTBEAT_NS}
        await self._nc.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
            json.dumps(question).encode(),
            reply=self._inbox,
        )
        self._asked = batch
        self._heard = asyncio.get_running_loop().time()  # what came before may have taken long to work off

    async def _received(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        self._arrived.append(message)
        self._wake.set()

    def _take(self) -> list[Stored]:
        """Everything that has arrived and continues what was read."""
        taken: list[Stored] = []
        while self._arrived:
            message = self._arrived.popleft()
            if not message.reply.startswith("$JS.ACK."):
                self._note_status(message.headers or {})
                continue
            # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<time>.<pending>
            tokens = message.reply.split(".", 7)
            sequence, consumer_sequence = int(tokens[5]), int(tokens[6])
            gap = self._contiguous and sequence != self.next_sequence
            if consumer_sequence != self._consumer_sequence + 1 or (gap and taken):
                # What is whole goes out first; a real gap shows again in the new consumer.
                self._broken = True
                self._arrived.clear()
                break
            if gap:
                raise StreamGap(self._stream, self.next_sequence, sequence)
            self._consumer_sequence = consumer_sequence
            self._asked -= 1
            self._largest = max(self._largest, len(message.data))
            self.next_sequence = sequence + 1
            self.pending = int(tokens[7].rpartition(".")[2])
            deleted = message.headers is not None and "KV-Operation" in message.headers
            taken.append(Stored(sequence, message.subject, message.data, deleted))
        if taken:
            self._last = taken[-1]
        return taken

    def _note_status(self, headers: Mapping[str, str]) -> None:
        """Heed a word about the request: it lives (100), it ended, or its consumer did (409, 503)."""
        status = headers.get("Status")
        if status == "100":
            # What the server sent last is not here, and it will not send it again: it cut us off as too slow,
            # or the connection broke, and we were back before it forgot the request.
            self._broken |= int(headers.get("Nats-Last-Consumer", 0)) > self._consumer_sequence
            return
        self._asked = 0
        if status in ("409", "503"):
            self._broken = True
