"""Snapshots in a real object store: made from the journal, loaded by the next start, checked before use."""

import asyncio
import logging
import signal
import sys
import zlib
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError

import bus.snapshots
from bus import provision, subjects
from bus.connection import Connection
from bus.executions import ExecutionsWriter
from bus.journal import JetStreamJournal, MemoryJournal
from bus.messages import Executions
from bus.records import JournalDamaged
from bus.server import NatsServer
from bus.snapshots import SnapshotStore
from bus.stream import Extent, extent
from engine import commands, snapshot
from engine.commands import AddInstrument, Command, EpochStarted, QueryLeg
from engine.digest import state_digest
from engine.runtime import snapshots
from engine.runtime.recovery import replay
from engine.runtime.snapshots import SnapshotsOfAnotherVersion
from engine.state import State
from tests.conftest import Connections
from tests.engine.flow import SYMBOLS, Flow
from tests.waiting import running, until


class Market:
    """One engine's journal in NATS, written batch by batch beside the state it makes."""

    def __init__(self, nc: Connection, engine: int) -> None:
        self.engine = engine
        self.store = SnapshotStore(nc, engine)
        self.state = State(engine)
        self.journal = JetStreamJournal(nc, engine)
        self._nc = nc
        self._flow = Flow(engine)

    async def open(self) -> None:
        """List the symbols in the first batch."""
        async for _ in self.journal.replay():
            raise AssertionError("a new journal")
        listing = [AddInstrument(symbol, "1", "1", collar) for symbol, collar in SYMBOLS.items()]
        await self.append([EpochStarted(1), *listing])

    async def append(self, batch: list[Command]) -> None:
        """Apply and store one batch."""
        self.state.begin_batch(self.state.batch_number + 1, self.state.batch_number)
        for command in batch:
            self.state.apply(command)
        self.state.end_batch()
        await self.journal.append(1, self.state.accounts.time_ns, commands.encode(batch))

    async def trade(self, batches: int) -> None:
        """Some random batches more."""
        for _ in range(batches):
            await self.append(list(self._flow.commands(20)))

    def maker(self, *, commands_per_snapshot: int) -> snapshots.SnapshotMaker:
        """What an engine has that cannot reach NATS from another process."""
        return snapshots.SnapshotMaker(
            self.engine,
            "nats://127.0.0.1:1",
            commands_per_snapshot=commands_per_snapshot,
            store=self.store,
        )

    async def make(self) -> int:
        """Make a snapshot as its process does; the batch it is of."""
        entry = await snapshots.make(self._nc, self.engine, self.store)
        return entry.batch_number

    async def recover(self, published: tuple[int, int] = snapshots.EVERYTHING) -> tuple[int, int, bytes]:
        """What a start does: the batch of its snapshot (0: none), the commands replayed, the digest."""
        state, journal = State(self.engine), JetStreamJournal(self._nc, self.engine)
        entry = await snapshots.load(state, journal, self.store, published)
        replayed = await replay(state, journal, snapshots.LastOwed())
        assert journal.position == self.journal.position
        return entry.batch_number if entry else 0, replayed, state_digest(state)


async def opened(nc: Connection, engine: int, *, trimmable: bool) -> Market:
    """A market with thirty batches in its journal."""
    await provision.provision_journal(nc, engine, trimmable=trimmable)
    market = Market(nc, engine)
    await market.open()
    await market.trade(29)
    return market


@pytest_asyncio.fixture
async def market(nats_connection: Connection, engine: int) -> Market:
    """One whose journal keeps everything."""
    return await opened(nats_connection, engine, trimmable=False)


@pytest_asyncio.fixture
async def trimmed(nats_connection: Connection, engine: int) -> Market:
    """One whose journal begins at the first of two snapshots, of batches 30 and 40; it ends with batch 45."""
    market = await opened(nats_connection, engine, trimmable=True)
    await market.make()
    await market.trade(10)
    await market.make()
    await market.trade(5)
    await report_everything(nats_connection, market)
    assert await snapshots.trim(nats_connection, engine, market.store) == 30
    return market


async def report_everything(nc: Connection, market: Market) -> None:
    """The stream of execution reports has those of every batch."""
    await provision.provision_shared(nc)
    writer = ExecutionsWriter(nc, market.engine)
    await writer.start()
    last = market.state.batch_number
    await writer.publish(Executions(market.engine, 1, 1, last, 10**6, ()))


async def extents(nc: Connection, engine: int) -> tuple[int, int]:
    """The first and last sequence of a journal."""
    found = await extent(nc, subjects.journal_stream(engine))
    return found.first_seq, found.last_seq


async def spoil(nc: Connection, engine: int, batch: int, other: bytes = b"something else") -> None:
    """Put other bytes where the snapshot of a batch was."""
    jetstream, bucket = nc.jetstream(), subjects.snapshots_bucket(engine)
    info = await (await jetstream.object_store(bucket)).get_info(f"{batch:020d}")
    await jetstream.purge_stream(subjects.object_stream(bucket), subject=f"$O.{bucket}.C.{info.nuid}")
    await jetstream.publish(f"$O.{bucket}.C.{info.nuid}", other)


async def alter(market: Market) -> None:
    """Let the newest snapshot restore to another state than it was made from."""
    newest = (await market.store.entries())[0]
    taken = await market.store.get(newest)
    await market.store.delete(newest)
    await market.store.put(msgspec.structs.replace(newest, state_digest="00" * 16), taken)


async def test_a_start_loads_the_newest_and_replays_the_rest(market: Market) -> None:
    """Only what came after the snapshot is replayed, and the state is the same."""
    assert await market.recover() == (0, 29 * 20 + 1 + len(SYMBOLS), state_digest(market.state))
    assert await market.make() == 30
    await market.trade(5)
    assert await market.recover() == (30, 100, state_digest(market.state))
    assert await market.make() == 35
    assert await market.recover() == (35, 0, state_digest(market.state))


async def test_the_newest_two_are_kept_and_tell_what_they_are(
    market: Market, nats_connection: Connection
) -> None:
    """Nothing is left of those before, and a maker with nothing new to tell stores nothing."""
    for _ in range(3):
        batch_number = await market.make()
        stored = await market.store.entries()
        assert await market.make() == batch_number
        assert await market.store.entries() == stored
        await market.trade(1)
    newest, second = await market.store.entries()
    assert (newest.batch_number, second.batch_number) == (32, 31)
    assert newest.size > 0
    bucket = subjects.snapshots_bucket(market.engine)
    left = await nats_connection.jetstream().stream_info(
        subjects.object_stream(bucket), subjects_filter=subjects.object_entries(bucket)
    )
    assert len(left.state.subjects or {}) == 2
    state = State(market.engine)
    await snapshots.load(state, JetStreamJournal(nats_connection, market.engine), market.store)
    assert state_digest(state).hex() == newest.state_digest


async def test_a_damaged_one_is_passed_over_with_a_warning(
    market: Market, nats_connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before it serves; with none left, the journal alone does."""
    await market.make()
    await market.trade(1)
    await market.make()
    for entry, serves in zip(await market.store.entries(), (30, 0), strict=True):
        await spoil(nats_connection, market.engine, entry.batch_number)
        with caplog.at_level(logging.WARNING):
            found, _, digest = await market.recover()
        assert (found, digest) == (serves, state_digest(market.state))
        assert f"snapshot of batch {entry.batch_number} is passed over" in caplog.text


async def test_what_another_snapshot_holds_is_damage(market: Market, nats_connection: Connection) -> None:
    """It is whole, and would restore to a state of another batch."""
    await market.make()
    await market.trade(1)
    await market.make()
    older = (await market.store.entries())[1]
    await spoil(nats_connection, market.engine, 31, zlib.compress(await market.store.get(older)))
    assert await market.recover() == (30, 20, state_digest(market.state))


async def test_a_maker_keeps_what_it_could_read(trimmed: Market, nats_connection: Connection) -> None:
    """It deletes what is damaged, not the good one before: should its own be damaged too, that one serves."""
    await spoil(nats_connection, trimmed.engine, 40)
    assert await trimmed.make() == 45
    assert [entry.batch_number for entry in await trimmed.store.entries()] == [45, 30]
    await spoil(nats_connection, trimmed.engine, 45)
    assert await trimmed.recover() == (30, 15 * 20, state_digest(trimmed.state))


async def test_a_damaged_one_is_made_again(trimmed: Market, nats_connection: Connection) -> None:
    """Of the same batch, where the journal has no later one: the new one is not taken for the damaged."""
    assert await trimmed.make() == 45
    await spoil(nats_connection, trimmed.engine, 45)
    assert await trimmed.make() == 45
    assert [entry.batch_number for entry in await trimmed.store.entries()] == [45, 40]
    assert await trimmed.recover() == (45, 0, state_digest(trimmed.state))


async def test_none_is_made_from_one_that_restores_to_another_state(
    market: Market, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own digest would then vouch for a state that the journal does not give."""
    await market.make()
    await market.trade(1)
    await market.make()
    _, older = await market.store.entries()
    await alter(market)
    await market.trade(1)
    assert await market.make() == 32
    assert "snapshot of batch 31 is passed over: it restores to another state" in caplog.messages
    made, kept = await market.store.entries()
    assert made.state_digest == state_digest(market.state).hex()
    assert kept == older


async def test_what_is_no_snapshot_is_passed_over_with_a_warning(
    market: Market, nats_connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever stands where an object store says what it has: the start takes the newest of what is ours."""
    await market.make()
    entry = (await market.store.entries())[0]
    other = msgspec.structs.replace(entry, batch_number=99)
    for key, said in {
        "none": b"hello",
        "text": b'{"description":"\xff"}',
        "deep": b"[" * 100_000,
        "undescribed": b'{"name":"x","nuid":"y","size":0,"chunks":0,"digest":"SHA-256="}',
        "another": msgspec.json.encode({"description": msgspec.json.encode(other).decode()}),
    }.items():
        subject = f"$O.{subjects.snapshots_bucket(market.engine)}.M.{key}"
        await nats_connection.jetstream().publish(subject, said)
    with caplog.at_level(logging.WARNING):
        assert await market.store.entries() == [entry]
    assert caplog.text.count("is passed over") == 5
    assert await market.recover() == (30, 0, state_digest(market.state))
    await market.trade(1)
    assert await market.make() == 31


async def test_a_list_that_does_not_end_costs_time_only(
    market: Market, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A start goes on without a snapshot, and says so."""
    await market.make()
    monkeypatch.setattr(bus.snapshots, "LIST_PATIENCE_S", 0.1)
    monkeypatch.setattr(market.store, "_list", asyncio.Event().wait)
    with caplog.at_level(logging.WARNING):
        assert (await market.recover())[0] == 0
    assert "snapshots are passed over" in caplog.text


@pytest.mark.parametrize("step", ["_list", "_read"])
async def test_a_silent_server_is_no_store_without_snapshots(
    market: Market, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A start ends and is made again: it must not replay what a snapshot has, nor miss what was trimmed."""
    await market.make()

    async def time_out(*_: object) -> None:
        raise nats.errors.TimeoutError

    monkeypatch.setattr(market.store, step, time_out)
    with pytest.raises(nats.errors.TimeoutError):
        await market.recover()


async def test_a_maker_that_hangs_is_killed(
    market: Market, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts as a failure, and the next one may run."""
    monkeypatch.setattr(snapshots, "MAKE_PATIENCE_S", 0.1)
    maker = market.maker(commands_per_snapshot=1)
    monkeypatch.setattr(maker, "_command", [sys.executable, "-c", "import signal; signal.pause()"])
    maker.note(1)
    async with running(maker.run()):
        await until(lambda: maker.failures == 1)
    assert "its maker is killed" in caplog.text
    assert f"ended with code {-signal.SIGKILL}" in caplog.text


async def test_a_maker_that_cannot_be_started_is_a_failure_and_no_more(
    market: Market, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A snapshot is only a cache: the engine goes on without it, and the next one is tried."""
    maker = market.maker(commands_per_snapshot=1)
    monkeypatch.setattr(maker, "_command", ["/no/such/program"])
    async with running(maker.run()):
        maker.note(1)
        await until(lambda: maker.failures == 1)
        maker.note(1)
        await until(lambda: maker.failures == 2)
    assert "no snapshot was made: " in caplog.text


async def test_commands_count_until_a_snapshot_has_them(
    market: Market, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A maker that failed leaves them to a start, and the next one is tried after as many more.

    Those that come while it is at work may not be in its snapshot.
    """
    begun, may_end = tmp_path / "begun", tmp_path / "may_end"
    work = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch()"
    work += f"\nwhile not pathlib.Path({str(may_end)!r}).exists(): time.sleep(0.01)"
    monkeypatch.setattr(snapshots, "_LOOK_PERIOD_S", 0.01)
    maker = market.maker(commands_per_snapshot=3)
    monkeypatch.setattr(maker, "_command", ["/no/such/program"])
    async with running(maker.run()) as (making,):
        maker.note(4)
        await until(lambda: maker.failures == 1)
        assert maker.commands == 4
        maker.note(2)
        await asyncio.wait([making], timeout=0.1)  # it looks several times
        assert (maker.commands, maker.failures) == (6, 1)
        monkeypatch.setattr(maker, "_command", [sys.executable, "-c", work])
        maker.note(1)
        await until(begun.exists)
        maker.note(2)
        may_end.touch()
        await until(lambda: maker.commands == 2)
        assert maker.failures == 1


async def test_commands_that_were_followed_count_as_the_predecessor_left_them(market: Market) -> None:
    """It made its own snapshots: what is left after the last that was due."""
    maker = market.maker(commands_per_snapshot=1_000)
    maker.note(10)
    maker.note_followed(5_200)
    assert maker.commands == 210


async def test_no_report_is_lost_by_starting_from_a_snapshot(market: Market) -> None:
    """While the stream of reports lacks some of before the snapshot, the journal is replayed from earlier."""
    await market.make()
    (entry,) = await market.store.entries()
    assert entry.reported_batch
    reported = entry.reported_batch, entry.reported
    await market.append([QueryLeg((9 << 48) + 1, 9)])  # which is nothing to report
    assert await market.make() == 31
    newest, _ = await market.store.entries()
    assert (newest.reported_batch, newest.reported) == reported
    assert (await market.recover(reported))[0] == 31
    assert (await market.recover((entry.reported_batch, entry.reported - 1)))[0] == 0
    assert (await market.recover((entry.reported_batch - 1, 10**6)))[0] == 0


async def test_a_journal_without_what_a_snapshot_was_made_from_is_refused(market: Market) -> None:
    """Whether the record is gone or another stands there: the journal lost its end and wrote over it."""
    await market.make()
    other = MemoryJournal(market.engine)
    for why in ("is missing", "this is not batch 30"):
        with pytest.raises(JournalDamaged, match=why):
            await snapshots.load(State(market.engine), other, market.store)
        other = MemoryJournal(market.engine, [b"other"] * 30)


async def test_a_snapshot_of_a_lost_batch_is_found(market: Market, nats_connection: Connection) -> None:
    """The journal ends before it, which is said; a start that accepts that takes the newest of the others."""
    await market.make()
    (entry,) = await market.store.entries()
    lost = msgspec.structs.replace(entry, batch_number=40, sequence=40)
    await market.store.put(lost, await market.store.get(entry))
    with pytest.raises(JournalDamaged, match=r"batch 40, .* missing: the stream ends at 30 \(--accept-loss"):
        await market.recover()
    found = await snapshots.find_lost(nats_connection, market.engine, market.store)
    assert [each.batch_number for each in found] == [40]
    state, journal = State(market.engine), JetStreamJournal(nats_connection, market.engine)
    assert await snapshots.load(state, journal, market.store, damaged=found) == entry


async def test_a_snapshot_that_is_gone_may_be_deleted(market: Market) -> None:
    """An engine and its standby that accept a loss at once both find the snapshots that go with it."""
    await market.make()
    (entry,) = await market.store.entries()
    for _ in range(2):
        await market.store.delete(entry)
    assert await market.store.entries() == []


async def test_what_a_maker_left_behind_is_swept(
    market: Market, nats_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of a snapshot that was never finished do not stay for ever; young ones may yet get an entry."""
    bucket = subjects.snapshots_bucket(market.engine)

    async def chunks() -> int:
        info = await nats_connection.jetstream().stream_info(
            subjects.object_stream(bucket), subjects_filter=f"$O.{bucket}.C.>"
        )
        return len(info.state.subjects or {})

    await nats_connection.jetstream().publish(f"$O.{bucket}.C.halfway", b"chunk")
    await market.make()
    assert await chunks() == 2
    monkeypatch.setattr("bus.snapshots.LEFT_BEHIND_S", 0.0)
    await market.trade(1)
    await market.make()
    assert await chunks() == 2
    assert (await market.recover())[0] == 31


async def test_a_snapshot_without_its_chunks_is_passed_over(
    market: Market, nats_connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is left to compare with its digest."""
    await market.make()
    await market.trade(1)
    await market.make()
    bucket = subjects.snapshots_bucket(market.engine)
    info = await (await nats_connection.jetstream().object_store(bucket)).get_info(f"{31:020d}")
    await nats_connection.jetstream().purge_stream(
        subjects.object_stream(bucket), subject=f"$O.{bucket}.C.{info.nuid}"
    )
    assert (await market.recover())[:2] == (30, 20)
    assert "snapshot of batch 31 is passed over: of its 1 chunks some are missing or damaged" in caplog.text


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (
            "$O.snapshots_1.C.",
            "snapshot of batch 31 is passed over: of its 1 chunks some are missing or damaged",
        ),
        ("$O.snapshots_1.M.", "is passed over, it is missing or damaged"),
    ],
)
async def test_what_the_server_keeps_back_is_not_waited_for(
    own_server: NatsServer,
    own_connection: Connection,
    connections: Connections,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    inside: str,
    said: str,
) -> None:
    """nats-server sends no message that fails its checksum, and says nothing either."""
    market = await opened(own_connection, 1, trimmable=False)
    await market.make()
    await market.trade(1)
    await market.make()
    await own_connection.close()
    await own_server.stop()
    flip_last(tmp_path / "nats/data/nats/jetstream/$G/streams/OBJ_snapshots_1/msgs/1.blk", inside.encode())
    await own_server.start()
    nc = await connections.open(own_server.url, buffered=False)
    async with asyncio.timeout(30):
        entry = await snapshots.load(State(1), JetStreamJournal(nc, 1), SnapshotStore(nc, 1))
    assert entry is not None
    assert entry.batch_number == 30
    assert said in caplog.text


def flip_last(path: Path, inside: bytes) -> None:
    """Damage one bit of a file, shortly after the last of these bytes."""
    content = bytearray(path.read_bytes())
    content[content.rindex(inside) + 100] ^= 1
    path.write_bytes(content)


async def test_a_server_that_is_behind_has_no_damaged_snapshots(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a cluster that has just become the leader is asked again until it has what was listed."""
    await market.make()
    (entry,) = await market.store.entries()
    behind = 3
    get_msg = JetStreamContext.get_msg

    async def extent_behind(nc: Client, stream: str) -> Extent:
        nonlocal behind
        behind -= 1
        found = await extent(nc, stream)
        return msgspec.structs.replace(found, last_seq=found.last_seq - (behind > 0), replicas=3)

    async def get_behind(*arguments: Any, **options: Any) -> RawStreamMsg:
        if behind > 0:
            raise NotFoundError
        return await get_msg(*arguments, **options)

    monkeypatch.setattr("bus.stream.extent", extent_behind)
    monkeypatch.setattr(JetStreamContext, "get_msg", get_behind)
    assert await market.store.get(entry)
    assert behind == 0


async def test_a_trimmed_journal_recovers_from_its_snapshots(
    trimmed: Market, nats_connection: Connection
) -> None:
    """From the newest, from the one before when that is damaged, and it goes on as any other."""
    assert await extents(nats_connection, trimmed.engine) == (30, 45)
    digest = state_digest(trimmed.state)
    batch, _, found = await trimmed.recover()
    assert (batch, found) == (40, digest)
    await spoil(nats_connection, trimmed.engine, 40)
    batch, _, found = await trimmed.recover()
    assert (batch, found) == (30, digest)
    await trimmed.trade(1)
    assert (await trimmed.recover())[2] == state_digest(trimmed.state)


async def test_a_trimmed_journal_without_snapshots_is_refused(
    trimmed: Market, nats_connection: Connection
) -> None:
    """Nothing is left to begin from, and that is said; a tool can still look at what is there."""
    for batch in (30, 40):
        await spoil(nats_connection, trimmed.engine, batch)
    with pytest.raises(JournalDamaged, match="begins at 30, and no usable snapshot has what stood before"):
        await trimmed.recover()
    journal = JetStreamJournal(nats_connection, trimmed.engine)
    await journal.skip_trimmed()
    assert [record.batch_number async for record in journal.replay()] == list(range(30, 46))
    assert journal.position == trimmed.journal.position


async def test_a_trimmed_journal_whose_snapshots_another_version_made_is_not_called_damaged(
    trimmed: Market, nats_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by a start nor by a maker, which leave both in place: that version can go on with them."""
    with monkeypatch.context() as another:
        another.setattr(snapshot, "FORMAT", snapshot.FORMAT + 1)
        for attempt in (trimmed.recover, trimmed.make):
            with pytest.raises(SnapshotsOfAnotherVersion, match="format 3, this version reads 4") as refused:
                await attempt()
            assert "the stream begins at 30" in str(refused.value)
            assert "Restore" not in str(refused.value)
    assert [entry.batch_number for entry in await trimmed.store.entries()] == [40, 30]
    assert (await trimmed.recover())[2] == state_digest(trimmed.state)


async def test_a_whole_journal_needs_no_snapshot_that_another_version_made(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is replayed from its beginning, and the next snapshot takes that one's place."""
    await market.make()
    monkeypatch.setattr(snapshot, "FORMAT", snapshot.FORMAT + 1)
    assert (await market.recover())[2] == state_digest(market.state)
    await market.trade(1)
    await market.make()
    assert [entry.batch_number for entry in await market.store.entries()] == [31]


async def test_nothing_is_trimmed_that_a_start_may_need(nats_connection: Connection, engine: int) -> None:
    """Not with one snapshot, nor with reports that are owed, nor with one that is damaged or altered."""
    market = await opened(nats_connection, engine, trimmable=True)
    await market.make()
    await report_everything(nats_connection, market)
    assert await snapshots.trim(nats_connection, engine, market.store) == 0
    for _ in range(2):
        await market.trade(10)
        await market.make()
    assert await snapshots.trim(nats_connection, engine, market.store) == 0, "reports up to batch 40 are owed"
    await report_everything(nats_connection, market)
    await alter(market)
    newest = (await market.store.entries())[0]
    assert await snapshots.verify(engine, market.store, newest) == "it restores to another digest"
    assert await snapshots.trim(nats_connection, engine, market.store) == 0
    await spoil(nats_connection, engine, 50)
    assert await snapshots.trim(nats_connection, engine, market.store) == 0
    assert await extents(nats_connection, engine) == (1, 50)


async def test_a_journal_keeps_everything_unless_it_was_made_otherwise(
    market: Market, nats_connection: Connection
) -> None:
    """NATS itself refuses to drop anything of it."""
    for _ in range(2):
        await market.trade(1)
        await market.make()
    await report_everything(nats_connection, market)
    assert await snapshots.trim(nats_connection, market.engine, market.store) == 0
    with pytest.raises(APIError):
        await provision.trim_journal(nats_connection, market.engine, 10)
    assert await extents(nats_connection, market.engine) == (1, 32)
