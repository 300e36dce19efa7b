"""The journal: what both kinds must do, and what the one in JetStream must survive."""

import asyncio
import contextlib
import os
import signal
import time
import tracemalloc
from typing import TYPE_CHECKING, Protocol
from unittest.mock import AsyncMock

import msgspec
import nats.errors
import pytest

import bus.records
import bus.stream
from bus import provision, subjects
from bus.connection import Connection
from bus.journal import (
    MAX_RECORD_BYTES,
    JetStreamJournal,
    Journal,
    JournalTrimmed,
    MemoryJournal,
    NoJournal,
    PrimaryReplaced,
)
from bus.records import (
    Chain,
    JournalDamaged,
    JournalPosition,
    JournalTooNew,
    Record,
    digest_of,
    encode_record,
)
from bus.server import NatsServer
from bus.stream import Ack, Extent
from tests.old_leader import wakes
from tests.waiting import freeze, running, until

if TYPE_CHECKING:
    from tests.conftest import Connections


class Store(Protocol):
    """Where a journal lives: opens journals on it, and stores bytes without any check."""

    engine: int

    def open(self) -> Journal:
        """Another journal on the same records."""
        ...

    async def force(self, payload: bytes) -> None:
        """Store a record as a writer without manners would."""
        ...


class MemoryStore:
    """A list."""

    def __init__(self, engine: int) -> None:
        self.engine = engine
        self._stored: list[bytes] = []

    def open(self) -> Journal:
        """Another journal on the list."""
        return MemoryJournal(self.engine, self._stored)

    async def force(self, payload: bytes) -> None:
        """Append to the list."""
        self._stored.append(payload)


class JetStreamStore:
    """A stream."""

    def __init__(self, connection: Connection, engine: int) -> None:
        self.engine = engine
        self.connection = connection

    def open(self) -> Journal:
        """Another journal on the stream."""
        return JetStreamJournal(self.connection, self.engine)

    async def force(self, payload: bytes) -> None:
        """Publish without the fence."""
        await self.connection.jetstream().publish(subjects.journal(self.engine), payload)


@pytest.fixture(params=["memory", "jetstream"])
async def store(request: pytest.FixtureRequest, nats_connection: Connection, engine: int) -> Store:
    """An empty journal of either kind."""
    if request.param == "memory":
        return MemoryStore(engine)
    await provision.provision_journal(nats_connection, engine)
    return JetStreamStore(nats_connection, engine)


async def _replayed(journal: Journal) -> list[Record]:
    return [record async for record in journal.replay()]


async def _written(store: Store, count: int, epoch: int = 1) -> Journal:
    """A journal after `count` batches."""
    journal = store.open()
    for number in range(1, count + 1):
        await journal.append(epoch, number * 10, b"commands %d" % number)
    return journal


async def test_an_empty_journal_replays_nothing(store: Store) -> None:
    """A new journal stands before its first record."""
    journal = store.open()
    assert await _replayed(journal) == []
    assert journal.position == JournalPosition(0, b"", 0)
    assert journal.unanswered_since is None


async def test_replay_gives_back_what_was_appended(store: Store) -> None:
    """Number, epoch, time and commands come back in order, and both journals stand at the same place."""
    writer = await _written(store, 3)
    reader = store.open()
    records = await _replayed(reader)
    assert [(record.batch_number, record.epoch, record.time_ns, record.commands) for record in records] == [
        (1, 1, 10, b"commands 1"),
        (2, 1, 20, b"commands 2"),
        (3, 1, 30, b"commands 3"),
    ]
    assert reader.position == writer.position
    assert reader.position.batch_number == 3
    assert reader.position.epoch == 1


async def test_append_goes_on_after_replay(store: Store) -> None:
    """A primary that replayed all appends under its higher epoch, and the chain holds across the change."""
    await _written(store, 2)
    successor = store.open()
    await _replayed(successor)
    assert await successor.append(2, 30, b"third") == 3
    assert [record.epoch for record in await _replayed(store.open())] == [1, 1, 2]


async def test_replay_goes_on_where_it_ended(store: Store) -> None:
    """A standby that replays again gets exactly what came since."""
    writer = await _written(store, 2)
    standby = store.open()
    assert len(await _replayed(standby)) == 2
    assert await _replayed(standby) == []
    await writer.append(1, 30, b"more")
    assert [record.commands for record in await _replayed(standby)] == [b"more"]
    assert standby.position == writer.position


async def test_replay_goes_on_where_it_was_broken_off(store: Store) -> None:
    """A standby that takes over stops in the middle of what it reads; no record is read twice or left out."""
    await _written(store, 5)
    reader = store.open()
    async with contextlib.aclosing(reader.replay()) as records:
        async for record in records:
            if record.batch_number == 2:
                break
    assert [record.batch_number for record in await _replayed(reader)] == [3, 4, 5]


async def test_records_link_to_the_one_before(store: Store) -> None:
    """Each record carries the digest of the whole record before it."""
    await _written(store, 2)
    chain = Chain(store.engine)
    records = await _replayed(store.open())
    for sequence, record in enumerate(records, 1):
        assert record.previous_digest == chain.position.digest
        payload = msgspec.msgpack.encode(record)
        chain.accept(sequence, payload)
        assert chain.position.digest == digest_of(payload)


async def test_the_largest_batch_fits(store: Store) -> None:
    """256,000 bytes of commands are stored; one byte more is a bug of the caller."""
    journal = store.open()
    largest = b"x" * MAX_RECORD_BYTES
    assert await journal.append(1, 1, largest) == 1
    assert (await _replayed(store.open()))[0].commands == largest
    with pytest.raises(AssertionError):
        await journal.append(1, 2, largest + b"x")


async def test_an_epoch_never_falls(store: Store) -> None:
    """An append under a lower epoch than the last record's is a bug of the caller."""
    journal = await _written(store, 1, epoch=5)
    with pytest.raises(AssertionError):
        await journal.append(4, 20, b"")


async def test_a_zombie_is_refused(store: Store) -> None:
    """Once a successor appended, the old primary's append raises PrimaryReplaced and stores nothing."""
    zombie = await _written(store, 2)
    successor = store.open()
    await _replayed(successor)
    await successor.append(2, 30, b"epoch started")
    with pytest.raises(PrimaryReplaced) as caught:
        await zombie.append(1, 30, b"late order")
    assert (caught.value.sequence, caught.value.epoch, caught.value.other_epoch) == (3, 1, 2)
    await successor.append(2, 40, b"first order")
    assert [record.commands for record in await _replayed(store.open())][2:] == [
        b"epoch started",
        b"first order",
    ]


async def test_a_claim_that_came_late_is_made_again(store: Store) -> None:
    """A predecessor appends first: once that is replayed the journal appends, and now the other is late."""
    predecessor = await _written(store, 2)
    successor = store.open()
    await _replayed(successor)
    await predecessor.append(1, 30, b"once more")
    with pytest.raises(PrimaryReplaced) as caught:
        await successor.append(2, 30, b"epoch started")
    assert (caught.value.sequence, caught.value.other_epoch) == (3, 1)
    assert successor.unanswered_since is None
    assert [record.commands for record in await _replayed(successor)] == [b"once more"]
    assert await successor.append(2, 40, b"epoch started") == 4
    with pytest.raises(PrimaryReplaced):
        await predecessor.append(1, 50, b"too late")
    assert [record.epoch for record in await _replayed(store.open())] == [1, 1, 1, 2]


async def test_of_two_claims_one_wins(store: Store) -> None:
    """Of two standbys that claim the same epoch with the very same bytes, one appends and one is replaced."""
    await _written(store, 1)
    one, two = store.open(), store.open()
    await _replayed(one)
    await _replayed(two)
    outcomes = await asyncio.gather(
        one.append(2, 20, b"started"), two.append(2, 20, b"started"), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {int, PrimaryReplaced}
    assert len(await _replayed(store.open())) == 2


async def test_a_record_of_a_replaced_epoch_is_left_out(store: Store) -> None:
    """A record that a zombie got in behind its successor changes nothing for any reader or later writer."""
    zombie = await _written(store, 2)
    successor = store.open()
    await _replayed(successor)
    await successor.append(2, 30, b"started")
    await store.force(encode_record(store.engine, 1, zombie.position, 40, b"zombie"))
    reader = store.open()
    assert [record.commands for record in await _replayed(reader)][2:] == [b"started"]
    assert reader.position == successor.position
    assert await reader.append(3, 50, b"next") == 4
    assert [record.batch_number for record in await _replayed(store.open())] == [1, 2, 3, 4]


async def _assert_damaged(store: Store, payload: bytes, what: str) -> JournalDamaged:
    """With these bytes stored after two batches, a replay gives the two and then raises what is returned."""
    await store.force(payload)
    seen: list[int] = []
    reader = store.open()

    async def read() -> None:
        async for record in reader.replay():
            seen.append(record.batch_number)  # noqa: PERF401 -- what came before the fault counts

    with pytest.raises(JournalDamaged, match=what) as caught:
        await read()
    assert caught.value.sequence == 3
    assert seen == [1, 2]
    assert reader.position.batch_number == 2
    return caught.value


async def test_a_missing_batch_is_found(store: Store) -> None:
    """A jump in the batch numbers raises JournalDamaged that names the missing one."""
    position = (await _written(store, 2)).position
    ahead = JournalPosition(3, position.digest, 1)
    await _assert_damaged(
        store, encode_record(store.engine, 1, ahead, 40, b""), "batch 3 is missing, 4 is there"
    )


async def test_a_repeated_number_is_found(store: Store) -> None:
    """A sequence number that was handed out again shows as a batch number that was there before."""
    writer = await _written(store, 2)
    again = JournalPosition(1, writer.position.digest, 1)
    await _assert_damaged(
        store, encode_record(store.engine, 1, again, 40, b""), "batch 3 is missing, 2 is there"
    )


async def test_a_broken_chain_is_found(store: Store) -> None:
    """The right number after another history raises JournalDamaged."""
    await _written(store, 2)
    foreign = JournalPosition(2, b"0" * 16, 1)
    await _assert_damaged(store, encode_record(store.engine, 1, foreign, 40, b""), "does not follow")


@pytest.mark.parametrize("place", [-1, -8, 3, 20])
async def test_a_flipped_byte_is_found(store: Store, place: int) -> None:
    """A record with one bit changed, wherever, is never handed out."""
    writer = await _written(store, 2)
    payload = bytearray(encode_record(store.engine, 1, writer.position, 40, b"commands"))
    payload[place] ^= 0x04
    await _assert_damaged(store, bytes(payload), "checksum|this is no record|a record of engine")


async def test_garbage_is_found(store: Store) -> None:
    """Bytes that are no record at all raise JournalDamaged."""
    await _written(store, 2)
    await _assert_damaged(store, b"\x00garbage", "this is no record")


async def test_a_later_format_is_refused_by_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no damage, and nothing is to be restored: the version that wrote it reads it."""
    writer = await _written(store, 2)
    with monkeypatch.context() as later:
        later.setattr(bus.records, "FORMAT", bus.records.FORMAT + 1)
        payload = encode_record(store.engine, 1, writer.position, 40, b"")
    refused = await _assert_damaged(
        store, payload, "of a later version from stream sequence 3 on: record format"
    )
    assert isinstance(refused, JournalTooNew)
    assert "Restore" not in str(refused)


async def test_an_earlier_format_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a journal goes on behind it in today's."""
    with monkeypatch.context() as earlier:
        earlier.setattr(bus.records, "FORMAT", 1)
        writer = await _written(store, 2)
    await writer.append(1, 40, b"today")
    assert [record.format for record in await _replayed(store.open())] == [1, 1, bus.records.FORMAT]


async def test_a_record_of_another_engine_is_found(store: Store) -> None:
    """Two journals mixed up are noticed."""
    writer = await _written(store, 2)
    foreign = encode_record(store.engine + 1, 1, writer.position, 40, b"")
    await _assert_damaged(store, foreign, f"a record of engine {store.engine + 1}")


# From here on: JetStream alone.


async def _jetstream_journal(connection: Connection, engine: int) -> JetStreamJournal:
    await provision.provision_journal(connection, engine)
    return JetStreamJournal(connection, engine)


async def test_a_kill_in_mid_append_loses_and_repeats_nothing(
    own_server: NatsServer, connections: "Connections"
) -> None:
    """Over kills with SIGKILL in the middle of appends, every append ends, and each batch is stored once."""
    journal = await _jetstream_journal(await connections.open(own_server.url, buffered=False), 1)
    appended: list[bytes] = []

    async def write() -> None:
        for number in range(400):
            commands = b"%d" % number
            await journal.append(1, number, commands)
            appended.append(commands)

    async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(write())
        for reached in (100, 250):
            await until(lambda: len(appended) >= reached)  # noqa: B023 -- awaited at once
            await own_server.kill()
            await own_server.start()
        await writing
    assert journal.unanswered_since is None
    reader = JetStreamJournal(await connections.open(own_server.url, buffered=False), 1)
    assert [record.commands for record in await _replayed(reader)] == appended


async def test_an_outage_shows_and_passes(own_server: NatsServer, own_connection: Connection) -> None:
    """While the server is away the append waits and says since when; afterwards it ends by itself."""
    journal = await _jetstream_journal(own_connection, 1)
    await journal.append(1, 1, b"before")
    assert journal.unanswered_since is None
    await own_server.kill()
    began = time.monotonic()
    append = asyncio.create_task(journal.append(1, 2, b"during"))
    await until(lambda: journal.unanswered_since is not None, 2)
    assert journal.unanswered_since is not None
    assert abs(journal.unanswered_since - began) < 0.1
    assert journal.trouble
    await own_server.start()
    async with asyncio.timeout(3):
        assert await append == 2
    assert journal.unanswered_since is None
    assert journal.trouble == ""


async def test_a_ghost_append_is_stored_once(own_server: NatsServer, connections: "Connections") -> None:
    """An append that a frozen server answers only after the writer gave up waiting is stored once."""
    connection = await connections.open(own_server.url, buffered=False)
    journal = await _jetstream_journal(connection, 1)
    await journal.append(1, 1, b"before")
    await freeze(own_server.pid)
    append = asyncio.create_task(journal.append(1, 2, b"ghost"))
    await until(lambda: journal.unanswered_since is not None, 2)
    os.kill(own_server.pid, signal.SIGCONT)
    async with asyncio.timeout(3):
        assert await append == 2
    assert await journal.append(1, 3, b"after") == 3
    reader = JetStreamJournal(connection, 1)
    assert [record.commands for record in await _replayed(reader)] == [b"before", b"ghost", b"after"]


def _lose_answers(journal: JetStreamJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the journal appends is stored, and it hears nothing of that."""
    attempt = journal._publisher.attempt

    async def losing(subject: str, payload: bytes, headers: dict[str, str]) -> None:
        await attempt(subject, payload, headers)

    monkeypatch.setattr(journal._publisher, "attempt", losing)


async def test_a_lost_answer_is_found_in_the_stream(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the record was stored and only the answer was lost, the append ends well, and it is there once."""
    journal = await _jetstream_journal(nats_connection, engine)
    _lose_answers(journal, monkeypatch)
    assert await journal.append(1, 1, b"once") == 1
    monkeypatch.undo()
    assert await journal.append(1, 2, b"twice") == 2
    assert len(await _replayed(JetStreamJournal(nats_connection, engine))) == 2


async def test_a_leader_that_wakes_does_not_end_an_append(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows nothing of a record whose answer was lost, though the stream has it."""
    journal = await _jetstream_journal(nats_connection, engine)
    _lose_answers(journal, monkeypatch)
    behind = wakes(monkeypatch)
    assert await journal.append(1, 1, b"") == 1
    assert not behind


async def test_an_answer_for_another_place_is_damage(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fence let it through to where nothing of ours can stand."""
    journal = await _jetstream_journal(nats_connection, engine)
    monkeypatch.setattr(journal._publisher, "attempt", AsyncMock(return_value=Ack(seq=7)))
    with pytest.raises(JournalDamaged, match="stored the record at 7 instead"):
        await journal.append(1, 1, b"")
    assert journal.position == JournalPosition()


async def test_a_record_that_is_gone_from_its_place_is_damage(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an answer the place is looked at: the server counts what it no longer has."""
    journal = await _jetstream_journal(nats_connection, engine)
    await JetStreamStore(nats_connection, engine).force(b"lost")
    monkeypatch.setattr("bus.stream.message_at", AsyncMock(return_value=None))
    with pytest.raises(JournalDamaged, match="the record is gone, though there are later ones"):
        await asyncio.wait_for(journal.append(1, 1, b""), 5)


async def test_a_full_journal_waits_and_says_why(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the byte limit the head stays, the append has no good answer, and the reason is told."""
    await provision.provision_journal(nats_connection, engine, max_bytes=300_000)
    journal = JetStreamJournal(nats_connection, engine)
    await journal.append(1, 1, b"x" * 200_000)
    append = asyncio.create_task(journal.append(1, 2, b"x" * 200_000))
    await until(lambda: "maximum bytes exceeded" in journal.trouble, 2)
    since = journal.unanswered_since
    attempts = journal._publisher.attempt
    tried = []

    async def attempt(subject: str, payload: bytes, headers: dict[str, str]) -> Ack | None:
        tried.append(headers)
        return await attempts(subject, payload, headers)

    monkeypatch.setattr(journal._publisher, "attempt", attempt)
    await until(lambda: len(tried) > 2)
    assert journal.unanswered_since == since, "it waits since the first attempt"
    append.cancel()
    await asyncio.wait([append])
    assert len(await _replayed(JetStreamJournal(nats_connection, engine))) == 1
    with pytest.raises(AssertionError):
        await journal.append(1, 3, b"after an append that was broken off")


async def test_the_log_says_why_batches_wait_and_what_to_do(
    nats_connection: Connection, engine: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each reason, not with every attempt; and that they are stored after all."""
    await provision.provision_journal(nats_connection, engine, max_bytes=300_000)
    journal = JetStreamJournal(nats_connection, engine)
    await journal.append(1, 1, b"x" * 200_000)
    append = asyncio.create_task(journal.append(1, 2, b"x" * 200_000))
    await until(lambda: f"batches of E{engine} wait: maximum bytes exceeded" in caplog.text)
    assert f"JOURNAL_{engine} is full: start the exchange, or matchbus up, with a larger" in caplog.text
    await provision.provision_journal(nats_connection, engine, max_bytes=600_000)
    async with asyncio.timeout(10):
        assert await append == 2
    assert caplog.messages.count(f"batches of E{engine} are stored again") == 1
    assert caplog.text.count(" wait: ") == 1


async def test_a_stream_that_vanished_is_damage(nats_connection: Connection, engine: int) -> None:
    """A journal whose stream is gone, or begins again, raises JournalDamaged on append and on replay."""
    journal = await _jetstream_journal(nats_connection, engine)
    await journal.append(1, 1, b"")
    await nats_connection.jetstream().delete_stream(subjects.journal_stream(engine))
    reader = JetStreamJournal(nats_connection, engine)
    with pytest.raises(JournalDamaged, match="no stream"):
        await _replayed(reader)
    await provision.provision_journal(nats_connection, engine)
    with pytest.raises(JournalDamaged, match="ends here"):
        await journal.append(1, 2, b"")


async def test_a_truncated_tail_is_damage_for_the_writer(nats_connection: Connection, engine: int) -> None:
    """A writer, or a standby, that has seen more records than the stream has left raises JournalDamaged."""
    journal = await _jetstream_journal(nats_connection, engine)
    for number in range(3):
        await journal.append(1, number, b"")
    standby = JetStreamJournal(nats_connection, engine)
    await _replayed(standby)
    records = [
        (await nats_connection.jetstream().get_msg(subjects.journal_stream(engine), seq=sequence)).data
        for sequence in (1, 2)
    ]
    await nats_connection.jetstream().delete_stream(subjects.journal_stream(engine))
    await provision.provision_journal(nats_connection, engine)
    for payload in records:
        assert payload is not None
        await nats_connection.jetstream().publish(subjects.journal(engine), payload)
    with pytest.raises(JournalDamaged, match="ends here") as caught:
        await _replayed(standby)
    assert caught.value.sequence == 3
    with pytest.raises(JournalDamaged, match="ends here"):
        await journal.append(1, 4, b"")


async def test_records_that_are_gone_from_a_streams_end_are_damage(
    nats_connection: Connection, engine: int
) -> None:
    """The stream still counts them and delivers nothing: a replay does not wait for them for ever."""
    jetstream, stream = nats_connection.jetstream(), subjects.journal_stream(engine)
    await jetstream.add_stream(name=stream, subjects=[subjects.journal(engine)])  # ours lets nobody delete
    journal = JetStreamJournal(nats_connection, engine)
    for number in range(3):
        await journal.append(1, number, b"")
    for sequence in (2, 3):
        await jetstream.delete_msg(stream, sequence)
    with pytest.raises(JournalDamaged, match="the stream ends at 3, but from here on") as caught:
        await asyncio.wait_for(_replayed(JetStreamJournal(nats_connection, engine)), 10)
    assert caught.value.sequence == 2


async def test_a_long_journal_replays_over_a_restart(
    own_server: NatsServer, connections: "Connections"
) -> None:
    """A replay goes on by itself when the server is killed and started in its middle."""
    connection = await connections.open(own_server.url, buffered=False)
    journal = await _jetstream_journal(connection, 1)
    for number in range(700):
        await journal.append(1, number, b"x" * 100)
    seen = 0
    reader = JetStreamJournal(connection, 1)
    async with asyncio.timeout(10):
        async for record in reader.replay():
            seen += 1
            assert record.batch_number == seen
            if seen == 300:
                await own_server.kill()
                await own_server.start()
    assert seen == 700
    assert reader.position == journal.position


async def test_resuming_waits_for_a_leader_that_is_behind(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a snapshot was made from is there, though a cluster's first answer says that it is not."""
    journal = await _jetstream_journal(nats_connection, engine)
    await journal.append(1, 1, b"")
    ask = bus.stream.extent
    behind = [Extent(0, 0, replicas=3)]

    async def extent(nc: Connection, stream: str) -> Extent:
        return behind.pop() if behind else await ask(nc, stream)

    monkeypatch.setattr(bus.stream, "extent", extent)
    resumed = JetStreamJournal(nats_connection, engine)
    await resumed.resume(journal.position, journal.sequence)
    assert resumed.position == journal.position
    assert not behind


async def test_resuming_asks_past_a_leader_that_wakes(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is what a snapshot was made from missing because that one does not know of it."""
    journal = await _jetstream_journal(nats_connection, engine)
    await journal.append(1, 1, b"")
    behind = wakes(monkeypatch)
    resumed = JetStreamJournal(nats_connection, engine)
    await resumed.resume(journal.position, journal.sequence)
    assert resumed.position == journal.position
    assert not behind


async def test_a_closed_connection_ends_the_append(nats_connection: Connection, engine: int) -> None:
    """On a connection that is closed for good, append and replay say so and do not wait."""
    journal = await _jetstream_journal(nats_connection, engine)
    await nats_connection.close()
    with pytest.raises(nats.errors.ConnectionClosedError):
        await journal.append(1, 1, b"")
    with pytest.raises(nats.errors.ConnectionClosedError):
        await _replayed(JetStreamJournal(nats_connection, engine))


async def _follow(journal: Journal, seen: list[Record]) -> None:
    async for record in journal.tail():
        seen.append(record)  # noqa: PERF401 -- each must be seen when it comes


async def test_a_tail_gives_records_as_they_come(store: Store) -> None:
    """What is stored before and while it runs comes in order; `lag` counts the rest, `replay` goes on."""
    writer = await _written(store, 3)
    reader = store.open()
    assert await reader.lag() == 3
    seen: list[Record] = []
    async with running(_follow(reader, seen)):
        await until(lambda: len(seen) == 3)
        assert await reader.lag() == 0
        for number in range(4, 7):
            await writer.append(1, number, b"later")
        await until(lambda: len(seen) == 6)
    await writer.append(1, 7, b"unread")
    assert await reader.lag() == 1
    assert [record.batch_number for record in await _replayed(reader)] == [7]
    assert [record.batch_number for record in seen] == [1, 2, 3, 4, 5, 6]
    assert await reader.append(2, 8, b"takes over") == 8


async def test_a_tail_leaves_out_a_replaced_primary(store: Store) -> None:
    """A record of an older epoch behind a newer one is not told, and does not break the chain."""
    writer = await _written(store, 1)
    old = writer.position
    await writer.append(2, 20, b"successor")
    await store.force(encode_record(store.engine, 1, old, 30, b"zombie"))
    reader = store.open()
    seen: list[Record] = []
    async with asyncio.timeout(10), running(_follow(reader, seen)):
        while await reader.lag():  # noqa: ASYNC110 -- it has yet to come to the zombie's record
            await asyncio.sleep(0.002)
    assert [record.commands for record in seen] == [b"commands 1", b"successor"]


async def test_a_tail_stops_where_the_chain_breaks(store: Store) -> None:
    """A record that does not follow the last one is damage, not news."""
    await _written(store, 2)
    await store.force(encode_record(store.engine, 1, JournalPosition(2, b"x" * 16, 1), 30, b"grown anew"))
    with pytest.raises(JournalDamaged, match="does not follow"):
        await asyncio.wait_for(_follow(store.open(), []), 5)


async def test_a_tail_notices_that_the_journal_lost_its_end(
    own_server: NatsServer, connections: "Connections"
) -> None:
    """A shorter journal is silent like a quiet one: the standby must not wait on it for ever."""
    connection = await connections.open(own_server.url, buffered=False)
    await provision.provision_journal(connection, 1)
    await _written(JetStreamStore(connection, 1), 3)
    seen: list[Record] = []
    following = asyncio.create_task(_follow(JetStreamJournal(connection, 1), seen))
    await until(lambda: len(seen) == 3)
    await connection.jetstream().delete_stream(subjects.journal_stream(1))
    await provision.provision_journal(connection, 1)
    with pytest.raises(JournalDamaged, match="lost its end: message 3 was read"):
        await asyncio.wait_for(following, 10)


async def test_an_engine_without_a_journal_remembers_no_batch() -> None:
    """Batches are numbered and their size is bounded, but however many there were, none is kept."""
    journal: Journal = NoJournal(1)
    tracemalloc.start()
    try:
        await journal.append(1, 10, b"first")
        before, _ = tracemalloc.get_traced_memory()
        for number in range(1, 1_001):
            assert await journal.append(2, 10, b"%01000d" % number) == number + 1
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept - before < 10_000
    assert (journal.position.batch_number, journal.newest_epoch) == (1_001, 2)
    assert await _replayed(journal) == []
    assert await journal.lag() == 0
    with pytest.raises(AssertionError, match="bytes of commands in one batch"):
        await journal.append(2, 10, bytes(MAX_RECORD_BYTES + 1))


async def test_a_journal_that_was_trimmed_beyond_its_reader_is_not_called_damaged(
    nats_connection: Connection, engine: int
) -> None:
    """A standby that was frozen for long misses what was trimmed: it is to start again, from a snapshot."""
    await provision.provision_journal(nats_connection, engine, trimmable=True)
    store = JetStreamStore(nats_connection, engine)
    writer = await _written(store, 2)
    reader, idle = store.open(), store.open()
    seen: list[Record] = []
    async with running(_follow(reader, seen)):
        await until(lambda: len(seen) == 2)
    for number in (3, 4, 5):
        await writer.append(1, number, b"more")
    await provision.trim_journal(nats_connection, engine, 5)
    trimmed = f"journal of engine {engine} was trimmed .* begins at .* 5 now, and .* had read 2: start again"
    with pytest.raises(JournalTrimmed, match=trimmed):
        await reader.lag()
    with pytest.raises(JournalTrimmed, match=trimmed):
        await asyncio.wait_for(_follow(reader, seen), 5)
    with pytest.raises(JournalDamaged, match="no usable snapshot has what stood before"):
        await _replayed(idle)
