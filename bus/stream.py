"""What journal, execution reports and buckets share: asking a stream, and sending it one message.

Here: bytes and sequence numbers of a JetStream stream, and what became of an attempt to store. Not here: what
the bytes mean, trying again until a message is stored for certain, and reading on (`bus/stream_reader.py`).
nats-py's own publish futures hang after an error reply or a reconnect, so plain requests are used instead.

    StreamError
    ├── StreamMissing     the server has no such stream
    ├── StreamGap         messages that should be there are not
    └── StreamLostEnd     what was read is not there any more, or another message is
"""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bus import crash_points
from bus.connection import Patience

ANSWER_TIMEOUT_S: Final = 0.5
"""How long one question to JetStream waits. A server that fsyncs on a slow disk still answers in a tenth."""

EXPECTED_LAST_SEQUENCE: Final = "Nats-Expected-Last-Sequence"
EXPECTED_LAST_SUBJECT_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
AWAY: Final = (
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.ConnectionReconnectingError,
    nats.js.errors.ServiceUnavailableError,
)
"""What is raised while the server is away or starting, or a cluster has no leader: ask again."""

MAX_MESSAGE_BYTES: Final = 262_144
"""The largest message that a journal or the execution reports take, header included."""

MAX_PAYLOAD_BYTES: Final = MAX_MESSAGE_BYTES - 256
"""What its header, which says where the message is to stand, leaves for what it says."""

_WRONG_LAST_SEQUENCE: Final = frozenset((10_071, 10_164))
_STREAM_NOT_FOUND: Final = 10_059
_NO_MESSAGE_FOUND: Final = 10_037
_UNAVAILABLE: Final = 503
_STALE_S: Final = 10.0
_RETRY_S: Final = 0.05

T = TypeVar("T")


class StreamError(Exception):
    """A JetStream stream is not as it must be."""


class StreamMissing(StreamError):
    """The server has no such stream."""

    def __init__(self, stream: str) -> None:
        super().__init__(f"the server has no stream {stream}")
        self.stream = stream


class StreamGap(StreamError):
    """Messages `expected` to `found - 1` are gone."""

    def __init__(self, stream: str, expected: int, found: int) -> None:
        last = found - 1
        gone = f"message {last} is" if expected == last else f"messages {expected} to {last} are"
        super().__init__(f"stream {stream}: {gone} missing")
        self.stream = stream
        self.expected = expected
        self.found = found


class StreamLostEnd(StreamError):
    """The stream was set back to before `sequence`, which was read; the numbers may be another's now."""

    def __init__(self, stream: str, sequence: int) -> None:
        super().__init__(f"stream {stream} lost its end: message {sequence} was read, and is not there")
        self.stream = stream
        self.sequence = sequence


class Stored(msgspec.Struct, frozen=True):
    """One message as the stream holds it."""

    sequence: int
    subject: str
    payload: bytes
    deleted: bool = False
    """In a bucket: the key was removed here."""

    headers: bytes = b""
    """As they were sent. Only filled for a single message that was asked for."""


class Extent(msgspec.Struct, frozen=True):
    """The first and last sequence a stream holds, and how many servers keep it.

    `last_seq` stays when messages are removed.
    """

    first_seq: int
    last_seq: int
    replicas: int = 1


class ApiFault(msgspec.Struct, frozen=True):
    """JetStream's own words for a refusal."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Ack(msgspec.Struct, frozen=True):
    """The answer to one publish: stored at `seq`, or refused with `error`."""

    seq: int = 0
    error: ApiFault | None = None

    @property
    def is_out_of_date(self) -> bool:
        """Whether it is refused because the newest message is not the one that was expected."""
        return self.error is not None and self.error.err_code in _WRONG_LAST_SEQUENCE


class _Message(msgspec.Struct, frozen=True):
    seq: int
    subject: str
    data: str = ""
    hdrs: str = ""


class _MessageAnswer(msgspec.Struct, frozen=True):
    message: _Message | None = None
    error: ApiFault | None = None


class _Config(msgspec.Struct, frozen=True):
    num_replicas: int = 1


class _ExtentAnswer(msgspec.Struct, frozen=True):
    state: Extent | None = None
    config: _Config = _Config()
    error: ApiFault | None = None


_decode_ack: Final = msgspec.json.Decoder(Ack).decode
_decode_message: Final = msgspec.json.Decoder(_MessageAnswer).decode
_decode_extent: Final = msgspec.json.Decoder(_ExtentAnswer).decode


async def extent(nc: Client, stream: str) -> Extent:
    """What the stream holds now. Raises StreamMissing, or one of AWAY."""
    answer = await nc.request(f"$JS.API.STREAM.INFO.{stream}", timeout=ANSWER_TIMEOUT_S)
    decoded = _decode_extent(answer.data)
    _raise_fault(stream, decoded.error)
    assert decoded.state is not None
    return msgspec.structs.replace(decoded.state, replicas=decoded.config.num_replicas)


async def settled_extent(nc: Client, stream: str, reached: int = 0) -> Extent:
    """What the stream holds now, asked for until there is an answer.

    `reached` is known to have been stored. Raises StreamMissing, StreamError, or nats' ConnectionClosedError.
    """

    async def ask() -> tuple[Extent, bool]:
        found = await extent(nc, stream)
        return found, found.last_seq >= reached or found.replicas == 1

    return await _settled(nc, ask)


async def settled_message(nc: Client, stream: str, sequence: int) -> Stored | None:
    """The message with this sequence, which is known to have been stored; None when it is gone.

    Asked for until there is an answer. Raises as `settled_extent` does.
    """

    async def ask() -> tuple[Stored | None, bool]:
        found = await message_at(nc, stream, sequence)
        return found, found is not None or (await extent(nc, stream)).replicas == 1

    return await _settled(nc, ask)


async def settled_last_message(nc: Client, stream: str, subject: str, reached: int) -> Stored | None:
    """The newest message of a subject, of which the one at `reached` is known to have been stored.

    Asked for until there is an answer. Raises as `settled_extent` does.
    """

    async def ask() -> tuple[Stored | None, bool]:
        found = await last_message(nc, stream, subject)
        is_there = found is not None and found.sequence >= reached
        return found, is_there or (await extent(nc, stream)).replicas == 1

    return await _settled(nc, ask)


async def _settled(nc: Client, ask: Callable[[], Awaitable[tuple[T, bool]]]) -> T:
    """What is answered, as soon as it says that nothing is missing from it.

    For a replicated stream it may come from a server that has just become its leader, or does not know yet
    that it no longer is: then the question is asked again, for 10 s at most. One answer says nothing of the
    next: for a moment two servers may give them.
    """
    short_since: float | None = None
    while True:
        try:
            found, is_whole = await ask()
        except AWAY:
            short_since = None
        else:
            now = time.monotonic()
            if short_since is None:
                short_since = now
            if is_whole or now - short_since > _STALE_S:
                return found
        await until_connected(nc)


async def message_at(nc: Client, stream: str, sequence: int) -> Stored | None:
    """The message with this sequence. Raises StreamMissing, or one of AWAY."""
    return await _get(nc, stream, {"seq": sequence})


async def last_message(nc: Client, stream: str, subject: str) -> Stored | None:
    """The newest message of a subject. Raises StreamMissing, or one of AWAY."""
    return await _get(nc, stream, {"last_by_subj": subject})


async def next_message(nc: Client, stream: str, sequence: int, subject: str) -> Stored | None:
    """The first message of a subject from this sequence on. Raises StreamMissing, or one of AWAY."""
    return await _get(nc, stream, {"seq": sequence, "next_by_subj": subject})


async def _get(nc: Client, stream: str, question: Mapping[str, int | str]) -> Stored | None:
    request = json.dumps(question).encode()
    answer = await nc.request(f"$JS.API.STREAM.MSG.GET.{stream}", request, timeout=ANSWER_TIMEOUT_S)
    decoded = _decode_message(answer.data)
    if decoded.error is not None and decoded.error.err_code == _NO_MESSAGE_FOUND:
        return None
    _raise_fault(stream, decoded.error)
    message = decoded.message
    assert message is not None
    headers = base64.b64decode(message.hdrs)
    return Stored(
        message.seq, message.subject, base64.b64decode(message.data), b"KV-Operation:" in headers, headers
    )


def _raise_fault(stream: str, fault: ApiFault | None) -> None:
    if fault is None:
        return
    if fault.err_code == _STREAM_NOT_FOUND:
        raise StreamMissing(stream)
    if fault.code == _UNAVAILABLE:
        raise nats.js.errors.ServiceUnavailableError(
            code=fault.code, err_code=fault.err_code, description=fault.description
        )
    if fault.err_code:
        raise StreamError(f"stream {stream}: {fault.description} ({fault.err_code})")


class Publisher:
    """Publishes messages one by one and hears what became of each, over an inbox of its own."""

    def __init__(self, nc: Client) -> None:
        self.trouble = ""
        """Why the last attempt has no good answer; empty when it has one."""
        self._nc = nc
        self._inbox = nc.new_inbox()
        self._subscription: Subscription | None = None
        self._message_number = 0
        self._answer: asyncio.Future[Msg] | None = None

    def begin_message(self) -> None:
        """Ignore answers to what was sent so far; the attempts of one message share their answers."""
        self._message_number += 1

    async def attempt(self, subject: str, payload: bytes, headers: dict[str, str]) -> Ack | None:
        """Send once. None when there is no answer: then the message may be stored, now or later, or never.

        Costs one round trip. Raises nats' ConnectionClosedError when the connection is closed for good.
        """
        if self._subscription is None:
            self._subscription = await self._nc.subscribe(f"{self._inbox}.*", cb=self._answered)
        self._answer = asyncio.get_running_loop().create_future()
        said_before = self._nc.last_error
        try:
            await self._nc.publish(
                subject, payload, reply=f"{self._inbox}.{self._message_number}", headers=headers
            )
            async with Patience(ANSWER_TIMEOUT_S):
                answer = await self._answer
        except (TimeoutError, *AWAY) as error:
            self.trouble = "no answer" if isinstance(error, TimeoutError) else f"NATS is away: {error}"
            said = self._nc.last_error  # a denied publish has no answer of its own, only this
            if said is not None and said is not said_before:
                self.trouble += f"; {said}"
            return None
        finally:
            self._answer = None
        if not answer.data:  # a bare status: nobody listens on the subject at this moment
            self.trouble = "no stream takes the message at this moment"
            return None
        ack = _decode_ack(answer.data)
        self.trouble = "" if ack.error is None else f"{ack.error.description} ({ack.error.err_code})"
        return ack

    async def _answered(self, answer: Msg) -> None:
        crash_points.reach("message answered")
        if (
            self._answer is not None
            and not self._answer.done()
            and answer.subject == f"{self._inbox}.{self._message_number}"
        ):
            self._answer.set_result(answer)


async def until_connected(nc: Client) -> None:
    """Wait a moment, and for as long as the server is away; the pause between two attempts."""
    await asyncio.sleep(_RETRY_S)
    while not nc.is_connected:
        if nc.is_closed:
            raise nats.errors.ConnectionClosedError
        await asyncio.sleep(_RETRY_S)
