"""Buckets."""

import asyncio
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from nats.aio.msg import Msg

from bus import provision, registry, stream, subjects
from bus.connection import Connection
from bus.messages import EngineEntry
from bus.registry import Bucket, BucketDamaged, BucketUnavailable, engines_bucket
from bus.server import NatsServer
from bus.stream import StreamMissing
from tests.old_leader import wakes
from tests.waiting import freeze, hold_up, running, until

if TYPE_CHECKING:
    from tests.conftest import Connections


def _bucket(connection: Connection) -> Bucket[EngineEntry]:
    return engines_bucket(connection)


@pytest.fixture
async def bucket(own_connection: Connection) -> Bucket[EngineEntry]:
    """An empty bucket."""
    await provision.provision_shared(own_connection)
    return _bucket(own_connection)


def _entry(engine: int, epoch: int = 1) -> EngineEntry:
    return EngineEntry(engine, epoch, f"127.0.0.1:{50_050 + engine}", 100 + engine)


async def test_put_and_get(bucket: Bucket[EngineEntry]) -> None:
    """A key has no value, then the one that was put, then the newer one."""
    assert await bucket.get("1") is None
    await bucket.put("1", _entry(1))
    assert await bucket.get("1") == _entry(1)
    await bucket.put("1", _entry(1, epoch=2))
    assert await bucket.get("1") == _entry(1, epoch=2)
    assert await bucket.get("2") is None


async def test_create_takes_a_key_once(bucket: Bucket[EngineEntry]) -> None:
    """The second create of a key changes nothing and says so, with equal content too."""
    assert await bucket.create("1", _entry(1))
    assert not await bucket.create("1", _entry(1))
    assert not await bucket.create("1", _entry(1, epoch=2))
    assert await bucket.get("1") == _entry(1)


async def test_put_yields_to_what_stands(
    bucket: Bucket[EngineEntry], own_connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A put changes nothing, and says so, when `unless` holds of the newest value; None stands for no T."""
    seen: list[EngineEntry | None] = []

    def is_later(entry: EngineEntry | None) -> bool:
        seen.append(entry)
        return entry is not None and entry.epoch > 2

    assert await bucket.put("1", _entry(1), unless=is_later)
    assert seen == []
    assert await bucket.put("1", _entry(1, epoch=3), unless=is_later)
    assert not await bucket.put("1", _entry(1, epoch=2), unless=is_later)
    assert await bucket.get("1") == _entry(1, epoch=3)
    await (await own_connection.jetstream().key_value(subjects.ENGINES_BUCKET)).put("1", b"junk")
    assert await bucket.put("1", _entry(1, epoch=2), unless=is_later)
    assert seen == [_entry(1), _entry(1, epoch=3), None]
    assert "is left out" in caplog.text


async def test_of_many_creates_one_wins(own_server: NatsServer, connections: "Connections") -> None:
    """Of several processes that create one key at once exactly one hears True, and its value is there."""
    opened = [await connections.open(own_server.url) for _ in range(5)]
    await provision.provision_shared(opened[0])
    buckets = [_bucket(connection) for connection in opened]
    won = await asyncio.gather(
        *(bucket.create("1", _entry(1, epoch)) for epoch, bucket in enumerate(buckets, 1))
    )
    assert won.count(True) == 1
    assert await buckets[0].get("1") == _entry(1, won.index(True) + 1)


async def test_a_removed_key_is_free_again(bucket: Bucket[EngineEntry], own_connection: Connection) -> None:
    """A key that another client deleted has no value and can be created."""
    await bucket.put("1", _entry(1))
    await (await own_connection.jetstream().key_value(subjects.ENGINES_BUCKET)).delete("1")
    assert await bucket.get("1") is None
    assert await bucket.create("1", _entry(1, epoch=9))
    assert await bucket.get("1") == _entry(1, epoch=9)


async def test_a_lost_answer_to_create_is_ours(
    bucket: Bucket[EngineEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the value was stored and the answer lost, create says True."""
    attempt = bucket._publisher.attempt

    async def losing(subject: str, payload: bytes, headers: dict[str, str]) -> None:
        await attempt(subject, payload, headers)

    monkeypatch.setattr(bucket._publisher, "attempt", losing)
    async with asyncio.timeout(3):
        assert await bucket.create("1", _entry(1))
        await bucket.put("1", _entry(1, epoch=2))
    assert await bucket.get("1") == _entry(1, epoch=2)


async def test_a_late_answer_to_another_put_is_not_taken_for_this_ones(
    bucket: Bucket[EngineEntry], own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a create that came too late would hear True."""
    monkeypatch.setattr(stream, "ANSWER_TIMEOUT_S", 0.2)
    publisher, other = bucket._publisher, _bucket(own_connection)
    answered, attempt = publisher._answered, publisher.attempt
    late: list[Msg] = []

    async def answered_late(answer: Msg) -> None:
        if not late:
            late.append(answer)
            return
        await answered(late[0])
        await answered(answer)

    async def overtaken(subject: str, payload: bytes, headers: dict[str, str]) -> stream.Ack | None:
        await other.put("2", _entry(2, epoch=9))
        return await attempt(subject, payload, headers)

    monkeypatch.setattr(publisher, "_answered", answered_late)
    assert await bucket.put("1", _entry(1))
    monkeypatch.setattr(publisher, "attempt", overtaken)
    assert not await bucket.create("2", _entry(2))
    assert await bucket.get("2") == _entry(2, epoch=9)


async def test_a_key_is_checked(bucket: Bucket[EngineEntry]) -> None:
    """What could be a wildcard or another subject is no key."""
    for key in ("", "*", ">", "a.b", "a b", "x" * 5_000 + "*", "a\r\nPUB x"):
        with pytest.raises(AssertionError):
            await bucket.get(key)


class Watched:
    """What a watch told, and the table it makes."""

    def __init__(self) -> None:
        self.table: dict[str, EngineEntry] = {}
        self.told: list[str] = []
        self.filled = asyncio.Event()

    def note(self, key: str, value: EngineEntry | None) -> None:
        """Take one change."""
        self.told.append(key)
        if value is None:
            self.table.pop(key, None)
        else:
            self.table[key] = value

    async def until(self, table: dict[str, EngineEntry], timeout_s: float = 5) -> None:
        """Return when the table is this one."""
        async with asyncio.timeout(timeout_s):
            await until(lambda: self.table == table)


@asynccontextmanager
async def watching(bucket: Bucket[EngineEntry]) -> AsyncIterator[Watched]:
    """What a watch of the bucket tells for the length of a block."""
    watched = Watched()
    async with running(bucket.watch(watched.note, filled=watched.filled)):
        yield watched


async def test_a_watch_fills_then_follows(
    own_server: NatsServer, connections: "Connections", bucket: Bucket[EngineEntry]
) -> None:
    """`filled` is set when everything that was there has been told; puts, changes and removals follow."""
    for engine in range(1, 301):
        await bucket.put(str(engine), _entry(engine))
    other = await connections.open(own_server.url)
    async with watching(_bucket(other)) as watched:
        async with asyncio.timeout(3):
            await watched.filled.wait()
        expected = {str(engine): _entry(engine) for engine in range(1, 301)}
        assert watched.table == expected
        await bucket.put("7", _entry(7, epoch=2))
        await bucket.put("400", _entry(400))
        await (await other.jetstream().key_value(subjects.ENGINES_BUCKET)).delete("8")
        del expected["8"]
        await watched.until(expected | {"7": _entry(7, epoch=2), "400": _entry(400)})


async def test_a_removed_key_is_gone_without_a_word(
    own_server: NatsServer, connections: "Connections", bucket: Bucket[EngineEntry]
) -> None:
    """Who watches has let go of it already; who comes later never hears of it, and the key may come back."""
    for engine in (1, 2, 3):
        await bucket.put(str(engine), _entry(engine))
    async with watching(bucket) as watched:
        await watched.until({str(engine): _entry(engine) for engine in (1, 2, 3)})
        await bucket.remove("2")
        assert await bucket.get("2") is None
        other = await connections.open(own_server.url)
        async with watching(_bucket(other)) as late:
            await late.until({"1": _entry(1), "3": _entry(3)})
            await bucket.put("2", _entry(2, epoch=2))
            await late.until({"1": _entry(1), "3": _entry(3), "2": _entry(2, epoch=2)})
            await watched.until({"1": _entry(1), "3": _entry(3), "2": _entry(2, epoch=2)})
            assert watched.told == ["1", "2", "3", "2"]
            await own_server.kill()
            with pytest.raises(BucketUnavailable, match="1 is not removed"):
                await bucket.remove("1")


async def test_a_watch_of_an_empty_bucket_is_filled(bucket: Bucket[EngineEntry]) -> None:
    """Nothing to tell is told at once."""
    async with watching(bucket) as watched:
        await until(watched.filled.is_set)
        assert watched.told == []


async def test_a_watch_lives_through_a_restart(
    own_server: NatsServer, connections: "Connections", bucket: Bucket[EngineEntry]
) -> None:
    """What was put while the watcher was cut off, and what comes after, is told without another call."""
    await bucket.put("1", _entry(1))
    other = await connections.open(own_server.url)
    async with watching(_bucket(other)) as watched:
        await watched.until({"1": _entry(1)})
        await own_server.kill()
        await own_server.start()
        await bucket.put("2", _entry(2))
        await watched.until({"1": _entry(1), "2": _entry(2)})
        await bucket.put("3", _entry(3))
        await watched.until({"1": _entry(1), "2": _entry(2), "3": _entry(3)})
        assert watched.told == ["1", "2", "3"], "nothing twice"


async def test_a_lost_consumer_heals(bucket: Bucket[EngineEntry], own_connection: Connection) -> None:
    """When the server forgets the watch's consumer, updates are told again within seconds."""
    async with watching(bucket) as watched:
        await until(watched.filled.is_set)
        await bucket.put("1", _entry(1))
        await watched.until({"1": _entry(1)})
        stream = subjects.bucket_stream(subjects.ENGINES_BUCKET)
        for consumer in await own_connection.jetstream().consumers_info(stream):
            await own_connection.jetstream().delete_consumer(stream, consumer.name)
        await bucket.put("2", _entry(2))
        await watched.until({"1": _entry(1), "2": _entry(2)})


@asynccontextmanager
async def watching_three(bucket: Bucket[EngineEntry]) -> AsyncIterator[Watched]:
    """Three engines stand in the bucket, and a watch has told of them."""
    for engine in (1, 2, 3):
        await bucket.put(str(engine), _entry(engine))
    async with watching(bucket) as watched:
        await until(watched.filled.is_set)
        yield watched


async def test_a_start_does_not_wait_for_a_value_that_is_lost(
    bucket: Bucket[EngineEntry], own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream counts it, as after a flipped bit on the disk; who follows already goes on."""
    monkeypatch.setattr(registry, "RELIST_S", 0.2)
    async with watching_three(bucket) as watched:
        stream = subjects.bucket_stream(subjects.ENGINES_BUCKET)
        await own_connection.jetstream().purge_stream(stream, subject=f"$KV.{subjects.ENGINES_BUCKET}.3")
        with pytest.raises(BucketDamaged, match="bucket engines: value 3 is counted and missing: restore"):
            async with asyncio.timeout(10):
                await bucket.watch(watched.note, filled=asyncio.Event())
        await bucket.put("4", _entry(4))
        await watched.until({str(engine): _entry(engine) for engine in (1, 2, 3, 4)})


async def test_a_leader_that_wakes_has_lost_no_value(
    bucket: Bucket[EngineEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that waits for the newest value asks again whether it is there."""
    await bucket.put("1", _entry(1))
    behind = wakes(monkeypatch)
    await bucket._check_end(1)
    assert not behind


async def test_a_bucket_made_anew_is_read_anew(
    bucket: Bucket[EngineEntry], own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a bucket was thrown away and made again, a watch tells what is gone and what is there now."""
    monkeypatch.setattr(registry, "RELIST_S", 0.2)
    async with watching_three(bucket) as watched:
        await own_connection.jetstream().delete_stream(subjects.bucket_stream(subjects.ENGINES_BUCKET))
        await provision.provision_shared(own_connection)
        await bucket.put("9", _entry(9))
        await watched.until({"9": _entry(9)})


async def test_a_bucket_that_lost_its_end_is_read_anew(
    own_server: NatsServer, connections: "Connections", bucket: Bucket[EngineEntry], tmp_path: Path
) -> None:
    """Also when so much was written since that the numbers go on behind what was read."""
    data, copy = tmp_path / "nats" / "data", tmp_path / "copy"
    await bucket.put("1", _entry(1))
    await own_server.stop()
    shutil.copytree(data, copy)
    await own_server.start()
    for engine in (2, 3):
        await bucket.put(str(engine), _entry(engine))
    other = await connections.open(own_server.url)
    async with watching(_bucket(other)) as watched:
        await watched.until({str(engine): _entry(engine) for engine in (1, 2, 3)})
        await own_server.kill()
        shutil.rmtree(data)
        shutil.copytree(copy, data)
        await own_server.start()
        for engine in (4, 5, 6):
            await bucket.put(str(engine), _entry(engine))
        await watched.until({str(engine): _entry(engine) for engine in (1, 4, 5, 6)}, 10)


@pytest.mark.parametrize(
    "junk",
    [
        b"{",
        b'{"engine":1,"epoch":1,"address":"\xff","pid":1}',
        b'{"engine":1,"epoch":%d,"address":"","pid":1}' % 10**30,
        b'{"engine":70000,"epoch":1,"address":"","pid":1}',
        b'{"x":' + b"[" * 100_000,
    ],
    ids=["cut", "no text", "huge", "no engine", "deep"],
)
async def test_a_bad_value_is_left_out(
    bucket: Bucket[EngineEntry], own_connection: Connection, caplog: pytest.LogCaptureFixture, junk: bytes
) -> None:
    """A value that cannot be decoded is logged and counts as none, until a put writes over it."""
    await own_connection.jetstream().publish(subjects.bucket_subject(subjects.ENGINES_BUCKET, "1"), junk)
    await bucket.put("2", _entry(2))
    async with watching(bucket) as watched:
        with caplog.at_level(logging.ERROR):
            await watched.until({"2": _entry(2)})
        assert "'1' is left out" in caplog.text
        assert await bucket.get("1") is None
        await bucket.put("1", _entry(1))
        await watched.until({"1": _entry(1), "2": _entry(2)})


async def test_a_missing_bucket_is_named(own_connection: Connection) -> None:
    """Without the bucket a watch ends with the reason instead of waiting for ever."""
    with pytest.raises(StreamMissing, match="KV_engines"):
        await _bucket(own_connection).watch(Watched().note)


async def test_why_a_bucket_is_not_written_is_told(
    own_connection: Connection, bucket: Bucket[EngineEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server refuses it each time, here for a limit that somebody gave it."""
    monkeypatch.setattr(registry, "DEADLINE_S", 0.3)
    jetstream = own_connection.jetstream()
    config = (await jetstream.stream_info(subjects.bucket_stream(subjects.ENGINES_BUCKET))).config
    config.max_bytes = 10
    await jetstream.update_stream(config)
    with pytest.raises(BucketUnavailable, match="bucket engines: maximum bytes exceeded"):
        await bucket.put("1", _entry(1))


async def test_no_writer_waits_longer_for_those_before_it(
    own_server: NatsServer, bucket: Bucket[EngineEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While NATS is silent every one of many writers hears so at its own deadline."""
    monkeypatch.setattr(registry, "DEADLINE_S", 0.5)
    waits: list[float] = []
    await freeze(own_server.pid)
    began = time.monotonic()

    async def put(engine: int) -> None:
        with pytest.raises(BucketUnavailable):
            await bucket.put(str(engine), _entry(engine))
        waits.append(time.monotonic() - began)

    try:
        await asyncio.gather(*(put(engine) for engine in range(1, 21)))
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    assert max(waits) < 2, "the deadline, and one question to the server"
    await bucket.put("1", _entry(1))


async def test_a_loop_that_was_held_up_still_writes_all(
    bucket: Bucket[EngineEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than the deadline, with one answer on its way and another writer behind it."""
    await bucket.put("1", _entry(1))
    monkeypatch.setattr(registry, "DEADLINE_S", 1.0)
    writing = [asyncio.create_task(bucket.put(str(engine), _entry(engine))) for engine in (1, 2)]
    hold_up(1.5)
    assert await asyncio.gather(*writing) == [True, True]


async def test_without_a_server_the_answer_is_an_error(
    own_server: NatsServer, bucket: Bucket[EngineEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While NATS is away, get, put and create end with BucketUnavailable at their deadline."""
    monkeypatch.setattr(registry, "DEADLINE_S", 0.3)
    await own_server.kill()
    for attempt in (bucket.get("1"), bucket.put("1", _entry(1)), bucket.create("1", _entry(1))):
        with pytest.raises(BucketUnavailable):
            await attempt
