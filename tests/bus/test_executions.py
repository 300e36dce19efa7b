"""Execution reports."""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bus.executions
import bus.stream
from bus import provision, subjects
from bus.connection import Connection
from bus.executions import (
    ExecutionsDamaged,
    ExecutionsReader,
    ExecutionsWriter,
    MessageTooLong,
    OldFills,
)
from bus.journal import PrimaryReplaced
from bus.messages import Executions, ReportedCancel, ReportedFill, encode_executions
from bus.server import NatsServer
from bus.stream import MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, Extent, Stored
from bus.stream_reader import MAX_REQUEST_BYTES, StreamReader
from tests.old_leader import wakes
from tests.waiting import running, until

if TYPE_CHECKING:
    from tests.conftest import Connections


@pytest.fixture
async def connection(nats_connection: Connection) -> Connection:
    """A connection to a server that has the stream."""
    await provision.provision_shared(nats_connection)
    return nats_connection


def _message(engine: int, first: int, last: int, epoch: int = 1) -> Executions:
    report = ReportedCancel("alice", first, f"order {first}", "AAPL", 1, 0)
    return Executions(engine, epoch, first, last, 1, (report,))


def _with_id(engine: int, client_order_id: str) -> Executions:
    return Executions(engine, 1, 1, 1, 1, (ReportedCancel("alice", 1, client_order_id, "AAPL", 1, 0),))


async def _stored(connection: Connection, *engines: int) -> list[Executions]:
    """All messages of these engines that are stored now."""
    reader = ExecutionsReader(connection)
    found: list[Executions] = []

    async def collect() -> None:
        async for message in reader:
            if message.engine in engines:
                found.append(message)  # noqa: PERF401 -- it never ends

    async with asyncio.timeout(5), running(collect()):
        await reader.caught_up.wait()
    return found


async def test_what_is_published_is_read_in_order(connection: Connection, engine: int) -> None:
    """A reader gets each message once, in order, equal to what was published, from several engines."""
    other = engine + 30_000
    writers = {number: ExecutionsWriter(connection, number) for number in (engine, other)}
    for writer in writers.values():
        assert await writer.start() == (0, 0)
    sent = [_message(number, batch, batch + 1) for batch in (1, 3, 5) for number in writers]
    for message in sent:
        await writers[message.engine].publish(message)
    assert await _stored(connection, engine, other) == sent


async def test_a_message_that_is_too_long_is_not_sent(connection: Connection, engine: int) -> None:
    """The writer says so and takes a shorter one; nothing of the long one is stored."""
    writer = ExecutionsWriter(connection, engine)
    await writer.start()
    short = _message(engine, 1, 1)
    with pytest.raises(MessageTooLong, match="10000 reports have"):
        await writer.publish(Executions(engine, 1, 1, 1, 10_000, short.reports * 10_000))
    await writer.publish(short)
    assert await _stored(connection, engine) == [short]


@pytest.mark.parametrize("size", [MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, MAX_MESSAGE_BYTES])
async def test_what_is_not_refused_fits_with_its_header(
    connection: Connection, engine: int, size: int
) -> None:
    """The server would refuse a message whose header makes it too large for ever."""
    writer = ExecutionsWriter(connection, engine)
    await writer.start()
    long = "x" * (size - 1_000)
    rest = size - len(encode_executions(_with_id(engine, long)))
    message = _with_id(engine, long + "x" * rest)
    if size > MAX_PAYLOAD_BYTES:
        with pytest.raises(MessageTooLong, match=f"1 reports have {size} bytes"):
            await writer.publish(message)
    else:
        await writer.publish(message)
        assert await _stored(connection, engine) == [message]


async def test_a_writer_goes_on_after_the_last_one(connection: Connection, engine: int) -> None:
    """After a restart, start tells the last batch that was published, and the next publish follows it."""
    writer = ExecutionsWriter(connection, engine)
    await writer.start()
    await writer.publish(_message(engine, 1, 7))
    successor = ExecutionsWriter(connection, engine)
    assert await successor.start() == (7, 1)
    await successor.publish(_message(engine, 8, 8, epoch=2))
    assert [message.last_batch for message in await _stored(connection, engine)] == [7, 8]


async def test_a_replaced_writer_stores_nothing(connection: Connection, engine: int) -> None:
    """Once a successor published, the old primary's publish raises PrimaryReplaced."""
    zombie = ExecutionsWriter(connection, engine)
    await zombie.start()
    successor = ExecutionsWriter(connection, engine)
    await successor.start()
    await successor.publish(_message(engine, 1, 1, epoch=2))
    with pytest.raises(PrimaryReplaced) as caught:
        await zombie.publish(_message(engine, 1, 1))
    assert (caught.value.epoch, caught.value.other_epoch) == (1, 2)
    assert [message.epoch for message in await _stored(connection, engine)] == [2]


async def test_a_lost_answer_stores_nothing_twice(
    connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a message was stored and only the answer was lost, the publish ends well, and it is there once."""
    writer = ExecutionsWriter(connection, engine)
    await writer.start()
    attempt = writer._publisher.attempt

    async def losing(subject: str, payload: bytes, headers: dict[str, str]) -> None:
        await attempt(subject, payload, headers)

    monkeypatch.setattr(writer._publisher, "attempt", losing)
    await writer.publish(_message(engine, 1, 1))
    monkeypatch.undo()
    await writer.publish(_message(engine, 2, 2))
    assert [message.last_batch for message in await _stored(connection, engine)] == [1, 2]


@pytest.mark.parametrize("stays_behind", [False, True])
async def test_a_leader_that_is_behind_is_asked_again(
    connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch, *, stays_behind: bool
) -> None:
    """In doubt about a message, one who shows less than was stored is not believed at once; later it is."""
    monkeypatch.setattr(bus.stream, "_STALE_S", 0.2)
    writer = ExecutionsWriter(connection, engine)
    await writer.start()
    await writer.publish(_message(engine, 1, 1))
    end = await bus.stream.extent(connection, subjects.EXECUTIONS_STREAM)
    behind = [Extent(1, end.last_seq - 1, replicas=3)]
    ask, find = bus.stream.extent, bus.stream.last_message

    async def extent(nc: Connection, stream: str) -> Extent:
        return behind[0] if stays_behind else behind.pop() if behind else await ask(nc, stream)

    async def last(nc: Connection, stream: str, subject: str) -> Stored | None:
        return None if behind else await find(nc, stream, subject)

    async def losing(*_: object) -> None:
        monkeypatch.setattr(publisher, "attempt", attempt)

    publisher = writer._publisher
    attempt = publisher.attempt
    monkeypatch.setattr(bus.stream, "extent", extent)
    for module in (bus.executions, bus.stream):
        monkeypatch.setattr(module, "last_message", last)
    monkeypatch.setattr(publisher, "attempt", losing)
    if stays_behind:
        with pytest.raises(ExecutionsDamaged, match="was stored and is gone"):
            await writer.publish(_message(engine, 2, 2))
    else:
        await writer.publish(_message(engine, 2, 2))


@pytest.fixture
async def forgetful(own_connection: Connection) -> Callable[[int], Awaitable[bool]]:
    """Makes the stream lose one message. The server's own denies it."""
    jetstream = own_connection.jetstream()
    await jetstream.add_stream(name=subjects.EXECUTIONS_STREAM, subjects=[subjects.EXECUTIONS_SUBJECTS])
    return partial(jetstream.delete_msg, subjects.EXECUTIONS_STREAM)


async def test_a_writer_sees_that_its_newest_message_is_gone(
    own_connection: Connection, forgetful: Callable[[int], Awaitable[bool]]
) -> None:
    """Whatever others have stored since. With its message there, or a successor's, nothing is wrong."""
    writer, other = ExecutionsWriter(own_connection, 1), ExecutionsWriter(own_connection, 2)
    await writer.start()
    await other.start()
    await writer.check()
    for batch in (1, 2):
        await writer.publish(_message(1, batch, batch))
        await writer.check()
    await other.publish(_message(2, 1, 1))
    await writer.check()
    successor = ExecutionsWriter(own_connection, 1)
    await successor.start()
    await successor.publish(_message(1, 3, 3, epoch=2))
    await writer.check()
    await forgetful(4)
    await writer.check()
    await forgetful(2)
    for newest_seen in (writer, successor):
        with pytest.raises(ExecutionsDamaged, match=r"message . was stored and is gone"):
            await newest_seen.check()


async def test_a_start_that_follows_another_finds_no_less(
    own_connection: Connection, forgetful: Callable[[int], Awaitable[bool]]
) -> None:
    """A standby has let go of the reports that it saw stored: they must be made again by a replay."""
    primary, standby = ExecutionsWriter(own_connection, 1), ExecutionsWriter(own_connection, 1)
    await primary.start()
    for batch in (1, 2):
        await primary.publish(_message(1, batch, batch))
        assert await standby.start() == (batch, 1)
    await forgetful(2)
    with pytest.raises(ExecutionsDamaged, match="message 2 was stored and is gone"):
        await standby.start()
    assert await ExecutionsWriter(own_connection, 1).start() == (1, 1)


async def test_a_server_that_is_away_or_behind_has_lost_nothing(
    own_server: NatsServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look does not wait for it; one who has only just come to lead a cluster is asked again."""
    await provision.provision_shared(own_connection)
    writer = ExecutionsWriter(own_connection, 1)
    await writer.start()
    await writer.publish(_message(1, 1, 1))
    find, behind = bus.stream.last_message, [None]

    async def last(nc: Connection, stream: str, subject: str) -> Stored | None:
        return behind.pop() if behind else await find(nc, stream, subject)

    for module in (bus.executions, bus.stream):
        monkeypatch.setattr(module, "last_message", last)
    await writer.check()
    assert not behind
    await own_server.kill()
    async with asyncio.timeout(5):
        await writer.check()
    await own_server.start()
    async with asyncio.timeout(5):
        await writer.publish(_message(1, 2, 2))
    await writer.check()


async def test_a_leader_that_wakes_has_lost_no_reports(
    connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it answers instead of the one that leads."""
    writer = ExecutionsWriter(connection, engine)
    await writer.start()
    await writer.publish(_message(engine, 1, 1))
    behind = wakes(monkeypatch, answers=3)
    await writer.check()
    assert not behind


async def test_kills_lose_and_repeat_nothing(own_server: NatsServer, connections: "Connections") -> None:
    """Over kills of the server every message is stored once, and a reader that follows gets each once."""
    connection = await connections.open(own_server.url, buffered=False)
    await provision.provision_shared(connection)
    reader = ExecutionsReader(await connections.open(own_server.url))
    seen: list[int] = []
    published = 0

    async def follow() -> None:
        async for message in reader:
            seen.append(message.last_batch)
            if message.last_batch == 300:
                return

    async def publish() -> None:
        nonlocal published
        writer = ExecutionsWriter(connection, 1)
        await writer.start()
        for batch in range(1, 301):
            await writer.publish(_message(1, batch, batch))
            published = batch

    async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        tasks.create_task(publish())
        for reached in (80, 200):
            await until(lambda: published >= reached)  # noqa: B023 -- awaited at once
            await own_server.kill()
            await own_server.start()
    assert seen == list(range(1, 301))


async def test_a_reader_follows_after_catching_up(own_connection: Connection) -> None:
    """caught_up is set only after all that was there has been taken, and what comes later still arrives."""
    await provision.provision_shared(own_connection)
    writer = ExecutionsWriter(own_connection, 1)
    await writer.start()
    for batch in range(1, 4):
        await writer.publish(_message(1, batch, batch))
    reader = ExecutionsReader(own_connection)
    messages = aiter(reader)
    for batch in range(1, 4):
        assert (await anext(messages)).last_batch == batch
        assert not reader.caught_up.is_set()
    following = asyncio.ensure_future(anext(messages))
    async with asyncio.timeout(5):
        await reader.caught_up.wait()
        assert not following.done()
        await writer.publish(_message(1, 4, 4))
        assert (await following).last_batch == 4


async def test_an_empty_stream_is_caught_up_at_once(own_connection: Connection) -> None:
    """A reader of nothing has caught up, and then waits."""
    await provision.provision_shared(own_connection)
    assert await _stored(own_connection, 1) == []


async def test_a_start_does_not_wait_for_reports_that_are_lost(own_connection: Connection) -> None:
    """The stream counts them, as after its end was cut off: a reader that has read the rest says so."""
    jetstream = own_connection.jetstream()
    await jetstream.add_stream(name=subjects.EXECUTIONS_STREAM, subjects=[subjects.execution(1)])
    writer = ExecutionsWriter(own_connection, 1)
    await writer.start()
    for batch in (1, 2, 3):
        await writer.publish(_message(1, batch, batch))
    await jetstream.delete_msg(subjects.EXECUTIONS_STREAM, 3)
    messages = aiter(ExecutionsReader(own_connection))
    assert [(await anext(messages)).last_batch for _ in range(2)] == [1, 2]
    with pytest.raises(ExecutionsDamaged, match="message 3 of 3 was stored and is gone"):
        async with asyncio.timeout(10):
            await anext(messages)


async def test_what_is_no_report_is_damage(own_connection: Connection) -> None:
    """A message that is none raises ExecutionsDamaged, in a reader and in a writer's start."""
    await provision.provision_shared(own_connection)
    await own_connection.jetstream().publish(subjects.execution(1), b"garbage")
    with pytest.raises(ExecutionsDamaged, match="message 1"):
        await anext(aiter(ExecutionsReader(own_connection)))
    with pytest.raises(ExecutionsDamaged, match="message 1"):
        await ExecutionsWriter(own_connection, 1).start()


async def test_a_missing_stream_is_named(own_connection: Connection) -> None:
    """Without the stream, reader and writer say so instead of waiting."""
    with pytest.raises(ExecutionsDamaged, match="no stream EXECUTIONS"):
        await anext(aiter(ExecutionsReader(own_connection)))
    with pytest.raises(ExecutionsDamaged, match="no stream EXECUTIONS"):
        await ExecutionsWriter(own_connection, 1).start()


async def test_a_full_stream_is_told_and_waited_for(
    own_connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """What finds no room is not lost: the log says why it waits, and when it was stored after all."""
    await provision.provision_shared(own_connection, executions_bytes=2_000)
    writer = ExecutionsWriter(own_connection, 1)
    await writer.start()

    async def publish() -> None:
        for batch in range(1, 51):
            await writer.publish(_message(1, batch, batch))

    publishing = asyncio.create_task(publish())
    with caplog.at_level(logging.WARNING):
        await until(lambda: "execution reports of E1 wait: maximum bytes exceeded" in caplog.text)
        jetstream = own_connection.jetstream()
        config = (await jetstream.stream_info(subjects.EXECUTIONS_STREAM)).config
        config.max_bytes = 200_000
        await jetstream.update_stream(config)
        async with asyncio.timeout(10):
            await publishing
    assert "execution reports of E1 are stored again" in caplog.text
    assert caplog.text.count(" wait: ") == 1, "said once, not with every attempt"
    stored = await _stored(own_connection, 1)
    assert [message.first_batch for message in stored] == list(range(1, 51))


def _fills(engine: int, batch: int, *owned: tuple[str, int], epoch: int = 1) -> Executions:
    """A batch's fills, each by its owner and number."""
    fills = tuple(
        ReportedFill(owner, number, batch, number, f"o{number}", "AAPL", 1, 100, 1, 1, 1, 0, engine, batch, 9)
        for owner, number in owned
    )
    return Executions(engine, epoch, batch, batch, len(fills), fills)


async def _read_old(fills: OldFills, since: int, place: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """(number, batch) of ann's next `count` fills, or those up to one that is missing."""
    found: list[tuple[int, int]] = []
    async with asyncio.timeout(5), contextlib.aclosing(fills.read("ann", since, *place)) as messages:
        async for message in messages:
            found += [(fill.sequence, fill.time_ns) for fill in message]
            if len(found) >= count:
                break
    return found


async def test_old_fills_are_found_from_any_place(connection: Connection, engine: int) -> None:
    """A client's fills above any number, whatever stands between them, found from any place before them."""
    writer, other = ExecutionsWriter(connection, engine), ExecutionsWriter(connection, engine + 30_000)
    await writer.start()
    await other.start()
    history = [(number, batch) for number, batch in enumerate(range(3, 43, 4), start=1)]
    for number, batch in history:
        await other.publish(_fills(engine + 30_000, batch, ("ann", number)))
        await writer.publish(_fills(engine, batch - 1, ("bob", number), epoch=1 + batch // 20))
        await writer.publish(_fills(engine, batch, ("ann", number), ("bob", 99), epoch=1 + batch // 20))
    old = OldFills(connection, engine)
    for since in range(10):
        epoch_and_batch = (1 + history[since][1] // 20, history[since][1] - 1)
        for place in ((0, 0), epoch_and_batch):
            assert await _read_old(old, since, place, 10 - since) == history[since:]


async def test_who_reads_old_fills_beside_others_asks_for_less(
    connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All share one connection, which the server cuts off when too much waits for it."""
    asked = []

    class Noted(StreamReader):
        async def _ask(self) -> None:
            await super()._ask()
            asked.append(self._asked)

    monkeypatch.setattr(bus.executions, "StreamReader", Noted)
    writer = ExecutionsWriter(connection, engine)
    await writer.start()
    await writer.publish(_fills(engine, 2, ("ann", 1)))
    old = OldFills(connection, engine)
    async with asyncio.timeout(5), contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            reading = await stack.enter_async_context(contextlib.aclosing(old.read("ann", 0, 0, 0)))
            await anext(reading)
    alone = MAX_REQUEST_BYTES // MAX_MESSAGE_BYTES
    assert asked == [alone, alone // 2, alone // 3, alone // 4]
    await _read_old(old, 0, (0, 0), 1)
    assert asked[4:] == [alone]


async def test_old_fills_of_earlier_lives_do_not_count(connection: Connection, engine: int) -> None:
    """An engine without a journal begins its numbers anew, and reads only what it reported itself."""
    writer = ExecutionsWriter(connection, engine)
    await writer.start()
    for epoch in (1, 2):
        for batch in (2, 3):
            await writer.publish(_fills(engine, batch, ("ann", batch - 1), epoch=epoch))
            await writer.publish(_fills(engine, batch + 10, ("bob", batch - 1), epoch=epoch))
    reading = OldFills(connection, engine, first_epoch=2).read("ann", 0, 0, 0)
    async with asyncio.timeout(5), contextlib.aclosing(reading) as messages:
        found = [fill.sequence for _ in range(4) for fill in await anext(messages)]
        assert found == [1, 2]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(messages)


async def test_a_missing_old_fill_is_told(connection: Connection, engine: int) -> None:
    """Never is a gap passed over."""
    writer = ExecutionsWriter(connection, engine)
    await writer.start()
    for batch, number in ((2, 1), (3, 3)):
        await writer.publish(_fills(engine, batch, ("ann", number)))
    with pytest.raises(ExecutionsDamaged, match="fills 2 to 2"):
        await _read_old(OldFills(connection, engine), 0, (0, 0), 2)


async def test_old_fills_that_are_not_stored_yet_are_waited_for(connection: Connection, engine: int) -> None:
    """The reader is ahead of the writer: it gets them when they come."""
    writer = ExecutionsWriter(connection, engine)
    await writer.start()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        reading = group.create_task(_read_old(OldFills(connection, engine), 0, (0, 0), 1))
        await asyncio.sleep(0)
        await writer.publish(_fills(engine, 2, ("ann", 1)))
    assert reading.result() == [(1, 2)]


async def test_reports_that_stand_where_others_were_read_are_damage(
    own_server: NatsServer, connections: "Connections", own_connection: Connection, tmp_path: Path
) -> None:
    """The stream lost its end and gave the numbers out again: a reader does not pass over the first."""
    data, copy = tmp_path / "nats" / "data", tmp_path / "copy"
    await provision.provision_shared(own_connection)
    writer = ExecutionsWriter(own_connection, 1)
    await writer.start()
    await writer.publish(_message(1, 1, 1))
    await own_server.stop()
    shutil.copytree(data, copy)
    await own_server.start()
    for batch in (2, 3):
        await writer.publish(_message(1, batch, batch))
    found: list[int] = []

    async def collect(connection: Connection) -> None:
        async for message in ExecutionsReader(connection):
            found.append(message.last_batch)  # noqa: PERF401 -- it never ends

    collecting = asyncio.create_task(collect(await connections.open(own_server.url)))
    await until(lambda: found == [1, 2, 3])
    await own_server.kill()
    shutil.rmtree(data)
    shutil.copytree(copy, data)
    await own_server.start()
    restarted = ExecutionsWriter(own_connection, 1)
    await restarted.start()
    for batch in (12, 13, 14):
        await restarted.publish(_message(1, batch, batch, epoch=2))
    with pytest.raises(ExecutionsDamaged, match="lost its end: message 3 was read"):
        await asyncio.wait_for(collecting, 10)
    assert found == [1, 2, 3]
