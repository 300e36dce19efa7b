"""Asking a stream of a cluster, whose leader may change; what became of a message that was sent to one."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

import bus.stream
from bus.connection import Connection, connect
from bus.server import NatsServer
from bus.stream import Ack, Publisher, settled_extent, until_connected
from tests.waiting import until


class NatsCluster:
    """Answers `STREAM.INFO` with one prepared answer after the other, the last one for ever."""

    is_connected = True
    is_closed = False

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def request(self, subject: str, timeout: float) -> Msg:  # noqa: ASYNC109 -- as in nats-py
        """The next answer."""
        assert subject == "$JS.API.STREAM.INFO.S"
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return Msg(cast("Client", self), data=answer.encode())


def ends_at(last: int, replicas: int) -> str:
    """The answer of a stream's leader."""
    return f'{{"config": {{"num_replicas": {replicas}}}, "state": {{"first_seq": 1, "last_seq": {last}}}}}'


NO_LEADER = '{"error": {"code": 503, "err_code": 10008, "description": "no leader"}}'


async def test_a_new_leader_is_asked_until_it_has_what_was_stored() -> None:
    """A cluster without a leader, and one whose leader lags, are asked again."""
    cluster = NatsCluster(NO_LEADER, ends_at(4, 3), NO_LEADER, ends_at(7, 3))
    assert (await settled_extent(cast("Client", cluster), "S", 6)).last_seq == 7


async def test_a_stream_that_stays_short_has_lost_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one server at once, in a cluster after a while: the caller hears what is there."""
    monkeypatch.setattr(bus.stream, "_STALE_S", 0.2)
    for replicas in (1, 3):
        began = time.monotonic()
        cluster = NatsCluster(ends_at(4, replicas))
        assert (await settled_extent(cast("Client", cluster), "S", 6)).last_seq == 4
        assert (time.monotonic() - began > 0.2) is (replicas == 3)


class SlowStream:
    """Takes messages; the test answers each attempt when it likes."""

    subject = "slow.stream"

    def __init__(self) -> None:
        self.attempts: list[Msg] = []

    async def take(self, attempt: Msg) -> None:
        """Keep it."""
        self.attempts.append(attempt)

    async def answer(self, attempt: int, sequence: int) -> None:
        """Say that this attempt, counted from 1, is stored."""
        await until(lambda: len(self.attempts) >= attempt)
        await self.attempts[attempt - 1].respond(b'{"seq": %d}' % sequence)


@pytest_asyncio.fixture
async def slow(nats_connection: Connection, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SlowStream]:
    """A stream that nobody else uses, whose answers are waited for however busy the machine is."""
    monkeypatch.setattr(bus.stream, "ANSWER_TIMEOUT_S", 5.0)
    stream = SlowStream()
    subscription = await nats_connection.subscribe(stream.subject, cb=stream.take)
    yield stream
    await subscription.unsubscribe()


async def unanswered(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a message once that has no answer in time."""
    publisher.begin_message()
    with monkeypatch.context() as hurry:
        hurry.setattr(bus.stream, "ANSWER_TIMEOUT_S", 0.02)
        assert await publisher.attempt(SlowStream.subject, b"", {}) is None
    assert publisher.trouble == "no answer"


async def test_a_late_answer_is_not_that_of_the_next_message(
    nats_connection: Connection, slow: SlowStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what was never stored would count as stored."""
    publisher = Publisher(nats_connection)
    await unanswered(publisher, monkeypatch)
    publisher.begin_message()
    attempt = asyncio.create_task(publisher.attempt(slow.subject, b"", {}))
    await until(lambda: len(slow.attempts) == 2)
    await slow.answer(1, 1)
    await slow.answer(2, 2)
    assert await attempt == Ack(seq=2)


async def test_attempts_of_one_message_share_their_answers(
    nats_connection: Connection, slow: SlowStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that comes counts; that of the other attempt, which may come with it, harms nothing."""
    publisher = Publisher(nats_connection)
    await unanswered(publisher, monkeypatch)
    attempt = asyncio.create_task(publisher.attempt(slow.subject, b"", {}))
    await until(lambda: len(slow.attempts) == 2)
    for number, asked in enumerate(slow.attempts, 1):  # both in one turn of the event loop
        await publisher._answered(Msg(nats_connection, asked.reply, data=b'{"seq": %d}' % number))
    assert await attempt == Ack(seq=1)
    publisher.begin_message()
    attempt = asyncio.create_task(publisher.attempt(slow.subject, b"", {}))
    await slow.answer(3, 3)
    assert await attempt == Ack(seq=3)


async def test_an_answer_that_came_while_the_loop_was_held_up_counts(
    shared_server: NatsServer, nats_connection: Connection
) -> None:
    """It waits to be read when the event loop goes on, and what is stored is not told as doubtful."""
    serving, asked, may_answer, ended = (threading.Event() for _ in range(4))

    async def answer(attempt: Msg) -> None:
        asked.set()
        may_answer.wait()
        await attempt.respond(b'{"seq": 1}')

    async def be_stream() -> None:
        nc = await connect(shared_server.url, name="stream", on_closed=lambda: None)
        await nc.subscribe("held.stream", cb=answer)
        await nc.flush()
        serving.set()
        await asyncio.to_thread(ended.wait)
        await nc.close()

    streaming = asyncio.create_task(asyncio.to_thread(asyncio.run, be_stream()))
    try:
        await until(serving.is_set)
        publisher = Publisher(nats_connection)
        attempt = asyncio.create_task(publisher.attempt("held.stream", b"", {}))
        await until(asked.is_set)
        may_answer.set()
        time.sleep(bus.stream.ANSWER_TIMEOUT_S + 0.2)  # noqa: ASYNC251 -- the loop is to stand still
        assert await attempt == Ack(seq=1)
        assert not publisher.trouble
    finally:
        may_answer.set()
        ended.set()
        await streaming


async def test_a_loop_that_was_held_up_does_not_wait_for_ever(
    nats_connection: Connection, slow: SlowStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an answer an attempt ends a little later."""
    monkeypatch.setattr(bus.stream, "ANSWER_TIMEOUT_S", 0.1)
    publisher = Publisher(nats_connection)
    attempt = asyncio.create_task(publisher.attempt(slow.subject, b"", {}))
    await until(lambda: slow.attempts)
    time.sleep(0.3)  # noqa: ASYNC251 -- likewise
    assert await asyncio.wait_for(attempt, 5) is None
    assert publisher.trouble == "no answer"


async def test_a_message_that_nobody_takes_has_no_answer(nats_connection: Connection) -> None:
    """A stream that is not there may come back."""
    publisher = Publisher(nats_connection)
    publisher.begin_message()
    assert await publisher.attempt("no.such.stream", b"", {}) is None
    assert publisher.trouble == "no stream takes the message at this moment"


async def test_a_closed_connection_is_not_waited_for() -> None:
    """It never comes back."""
    closed = cast("Client", SimpleNamespace(is_connected=False, is_closed=True))
    with pytest.raises(nats.errors.ConnectionClosedError):
        await asyncio.wait_for(until_connected(closed), 5)
