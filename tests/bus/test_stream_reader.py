"""Reading a stream on, whatever gets lost on the way."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import provision, stream_reader, subjects
from bus.connection import Connection, connect
from bus.server import NatsServer
from bus.stream import MAX_MESSAGE_BYTES, Publisher, Stored, StreamGap, StreamLostEnd, message_at
from bus.stream_reader import MAX_REQUEST_BYTES, StreamReader
from tests.old_leader import wakes
from tests.waiting import freeze, until

if TYPE_CHECKING:
    from tests.conftest import Connections


SMALL = MAX_REQUEST_BYTES // MAX_MESSAGE_BYTES
"""Messages of a reader's first request, when it does not know yet how large they are."""


async def _fill(connection: Connection, engine: int, count: int) -> str:
    """A journal's stream with `count` messages that hold their own sequence."""
    await provision.provision_journal(connection, engine)
    publisher = Publisher(connection)
    for number in range(1, count + 1):
        ack = await publisher.attempt(subjects.journal(engine), b"%d" % number, {})
        assert ack is not None
        assert ack.seq == number
    return subjects.journal_stream(engine)


async def _read(reader: StreamReader, last: int, patience_s: float | None = None) -> list[int]:
    """The payloads up to the one of sequence `last`, asked for by a caller of little patience."""
    found: list[Stored] = []
    async with asyncio.timeout(8):
        while not found or found[-1].sequence < last:
            found += await reader.read(patience_s)
    assert [stored.sequence for stored in found] == [int(stored.payload) for stored in found]
    return [stored.sequence for stored in found]


async def test_a_leader_that_wakes_has_lost_nothing(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a silence it is asked again for what comes next, which the stream has."""
    reader = StreamReader(nats_connection, await _fill(nats_connection, engine, 1))
    behind = wakes(monkeypatch)
    assert not await reader.is_next_lost()
    assert not behind


async def test_a_reader_that_took_long_asks_on(nats_connection: Connection, engine: int) -> None:
    """The server was silent because nothing was asked of it: no new consumer, to which all is sent again."""
    stream = await _fill(nats_connection, engine, SMALL + 1)
    reader = StreamReader(nats_connection, stream)
    await _read(reader, SMALL)
    consumer = reader._consumer
    reader._heard -= 10.0
    assert await _read(reader, SMALL + 1) == [SMALL + 1]
    assert reader._consumer == consumer
    await reader.close()


@pytest.mark.parametrize("patience_s", [None, 1.0, 0.2])
async def test_a_message_lost_on_the_way_is_fetched_again(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch, patience_s: float | None
) -> None:
    """A message that the client drops is neither skipped nor taken for a gap, for any patience."""
    stream = await _fill(nats_connection, engine, 260)
    for lost in (1, 2, SMALL, 260):
        reader = StreamReader(nats_connection, stream)
        monkeypatch.setattr(reader, "_received", _Dropping(reader, lost).received)
        assert await _read(reader, 260, patience_s) == list(range(1, 261))
        await reader.close()


async def test_a_reader_that_is_cut_off_while_it_opens_leaves_nothing(own_server: NatsServer) -> None:
    """A caller of little patience asks again and again while the server is frozen: one subscription stays."""
    connection = await connect(own_server.url, name="test", on_closed=lambda: None)
    stream = await _fill(connection, 1, 3)
    reader = StreamReader(connection, stream)
    await freeze(own_server.pid)
    try:
        before = len(asyncio.all_tasks())
        for _ in range(5):
            assert await reader.read(0.05) == []
        assert len(asyncio.all_tasks()) <= before + 2  # the subscription's, and that of the answers
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    assert await _read(reader, 3) == [1, 2, 3]
    await reader.close()
    await connection.close()


class _Dropping:
    """Loses the message that arrives as number `lost`, as a queue that overflows does."""

    def __init__(self, reader: StreamReader, lost: int) -> None:
        self._deliver = reader._received
        self._lost = lost
        self._arrived = 0

    async def received(self, message: Msg) -> None:
        """Deliver or lose."""
        self._arrived += 1
        if self._arrived != self._lost:
            await self._deliver(message)


async def test_a_forgotten_consumer_is_made_anew(nats_connection: Connection, engine: int) -> None:
    """When the server forgets the consumer, reading goes on within seconds, from where it was."""
    stream = await _fill(nats_connection, engine, 3)
    reader = StreamReader(nats_connection, stream)
    assert await _read(reader, 3) == [1, 2, 3]
    waiting = asyncio.create_task(_read(reader, 4))
    await asyncio.wait([waiting], timeout=0.05)
    for consumer in await nats_connection.jetstream().consumers_info(stream):
        await nats_connection.jetstream().delete_consumer(stream, consumer.name)
    await nats_connection.jetstream().publish(subjects.journal(engine), b"4")
    async with asyncio.timeout(10):
        assert await waiting == [4]
    await reader.close()


async def test_a_read_may_time_out(nats_connection: Connection, engine: int) -> None:
    """A read with a limit returns nothing when nothing comes, and loses nothing."""
    stream = await _fill(nats_connection, engine, 1)
    reader = StreamReader(nats_connection, stream, 2)
    assert await reader.read(0.05) == []
    await nats_connection.jetstream().publish(subjects.journal(engine), b"2")
    assert await _read(reader, 2) == [2]
    await reader.close()


async def test_a_gap_in_the_stream_is_told(nats_connection: Connection) -> None:
    """Messages that are gone from the stream raise StreamGap, after what stands before them."""
    jetstream = nats_connection.jetstream()
    await jetstream.add_stream(name="GAPPED", subjects=["gapped"])
    for number in range(1, 7):
        await jetstream.publish("gapped", b"%d" % number)
    for sequence in (3, 4):
        await jetstream.delete_msg("GAPPED", sequence)
    reader = StreamReader(nats_connection, "GAPPED")
    assert await _read(reader, 2) == [1, 2]
    with pytest.raises(StreamGap) as caught:
        await reader.read(5)
    assert (caught.value.expected, caught.value.found) == (3, 5)
    assert str(caught.value) == "stream GAPPED: messages 3 to 4 are missing"
    await reader.close()
    jumping = StreamReader(nats_connection, "GAPPED", contiguous=False)
    assert await _read(jumping, 6) == [1, 2, 5, 6]
    await jumping.close()


def test_one_missing_message_is_told_as_one() -> None:
    """It has a number, and no range."""
    assert str(StreamGap("GAPPED", 5, 6)) == "stream GAPPED: message 5 is missing"


async def _begun_anew(nc: Connection, engine: int, written_since: int) -> StreamReader:
    """A reader that has read two messages of a stream, which then began anew and has so many others."""
    stream = await _fill(nc, engine, 2)
    reader = StreamReader(nc, stream)
    assert await _read(reader, 2) == [1, 2]
    await nc.jetstream().delete_stream(stream)
    await provision.provision_journal(nc, engine)
    for _ in range(written_since):
        await nc.jetstream().publish(subjects.journal(engine), b"other")
    return reader


@pytest.mark.parametrize("written_since", [0, 1, 3])
async def test_a_reader_that_begins_anew_notices_a_lost_end(
    nats_connection: Connection, engine: int, written_since: int
) -> None:
    """Whether the numbers that were read are free again, or other messages have them, or more have come."""
    reader = await _begun_anew(nats_connection, engine, written_since)
    async with asyncio.timeout(8):
        with pytest.raises(StreamLostEnd, match="message 2 was read"):
            await reader.read()
    await reader.close()


async def test_a_look_for_a_lost_end_that_was_cut_off_is_made_again(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller of little patience does not read on behind an end that nobody has looked at."""
    reader = await _begun_anew(nats_connection, engine, 3)
    await reader.renew()
    looks = 0

    async def look_slowly(nc: Client, stream: str, sequence: int) -> Stored | None:
        nonlocal looks
        looks += 1
        if looks == 1:
            await asyncio.Event().wait()
        return await message_at(nc, stream, sequence)

    monkeypatch.setattr(stream_reader, "message_at", look_slowly)
    async with asyncio.timeout(8):
        while not looks:
            assert await reader.read(0.2) == []
        with pytest.raises(StreamLostEnd, match="message 2 was read"):
            await reader.read()
    await reader.close()


async def test_a_message_that_is_removed_after_it_was_read_is_no_lost_end(
    nats_connection: Connection,
) -> None:
    """A trimmed journal, and a bucket whose key has a newer value, are read on."""
    jetstream = nats_connection.jetstream()
    await jetstream.add_stream(name="NEWEST", subjects=["newest"], max_msgs_per_subject=1)
    await jetstream.publish("newest", b"1")
    reader = StreamReader(nats_connection, "NEWEST")
    assert await _read(reader, 1) == [1]
    await jetstream.publish("newest", b"2")
    await reader.renew()
    assert await _read(reader, 2) == [2]
    await jetstream.purge_stream("NEWEST")
    await reader.renew()
    await jetstream.publish("newest", b"3")
    assert await _read(reader, 3) == [3]
    await reader.close()


async def test_no_request_brings_more_than_a_connection_takes(
    nats_connection: Connection, engine: int
) -> None:
    """Messages of the largest size come in portions far below what the server holds for a slow reader."""
    await provision.provision_journal(nats_connection, engine)
    publisher = Publisher(nats_connection)
    payload = bytes(MAX_MESSAGE_BYTES - 1_000)
    for _ in range(70):
        publisher.begin_message()
        assert (await publisher.attempt(subjects.journal(engine), payload, {})) is not None
    reader = StreamReader(nats_connection, subjects.journal_stream(engine))
    largest = read = 0
    async with asyncio.timeout(20):
        while read < 70:
            await asyncio.sleep(0.2)  # a reader that is busy: all of a request has arrived by then
            portion = len(await reader.read())
            largest, read = max(largest, portion), read + portion
    assert largest * len(payload) <= MAX_REQUEST_BYTES
    await reader.close()


async def test_large_messages_after_small_ones_do_not_cut_a_reader_off(
    own_server: NatsServer, connections: "Connections"
) -> None:
    """All it knows are small, so it asks for as many as it ever does; others use its connection, too."""
    writing, reading = await connections.open(own_server.url), await connections.open(own_server.url)
    stream = await _fill(writing, 1, 300)
    publisher = Publisher(writing)
    for number in range(301, 501):
        assert await publisher.attempt(subjects.journal(1), b"%250000d" % number, {}) is not None
    reader = StreamReader(reading, stream)
    assert await _read(reader, 500) == list(range(1, 501))
    assert reading.stats["reconnects"] == 0
    await reader.close()


async def test_a_reader_that_was_cut_off_as_too_slow_reads_on(
    own_server: NatsServer, connections: "Connections", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is under way than a server holds back for a frozen reader: it is cut off, and misses nothing."""
    monkeypatch.setattr(stream_reader, "_FETCH", 256)
    writing, reading = await connections.open(own_server.url), await connections.open(own_server.url)
    stream = await _fill(writing, 1, SMALL)
    publisher = Publisher(writing)
    for number in range(SMALL + 1, 201):
        ack = await publisher.attempt(subjects.journal(1), b"%260000d" % number, {})
        assert ack is not None
        assert ack.seq == number
    reader = StreamReader(reading, stream)
    assert await _read(reader, SMALL) == list(range(1, SMALL + 1))
    said = reading.stats["out_msgs"]
    going_on = asyncio.create_task(_read(reader, 200))
    await until(lambda: reading.stats["out_msgs"] > said and not reading.pending_data_size)
    # It has asked for 256 messages, as all it knows are small.
    log = tmp_path / "nats/nats-server.log"
    deadline = time.monotonic() + 20
    while "Slow Consumer" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # noqa: ASYNC251 -- the whole process stands still, as a frozen one does
    assert await going_on == list(range(SMALL + 1, 201))
    assert reading.stats["reconnects"] == 1
    await reader.close()
