"""What an engine waits for before it serves: a bucket that does not answer, symbols that are listed.

And what it ends for: symbols that are listed in other sizes than its journal counts, another process without
a journal. An entry that is lost it writes again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import grpc
import pytest
from matchbus.edge import Door
from matchbus.v1 import matchbus_pb2_grpc
from nats.aio.client import Client

from bus import provision, subjects
from bus.connection import Connection
from bus.executions import OldFills
from bus.journal import JetStreamJournal
from bus.messages import ASK, EngineEntry, InstrumentEntry
from bus.registry import Bucket, BucketUnavailable, engines_bucket, instruments_bucket
from bus.runner import ProcessFault
from bus.server import NatsServer
from bus.stream import extent
from engine.commands import AddInstrument, decode
from engine.runtime import process
from engine.runtime.market_data import MarketData
from engine.runtime.process import Engine, run
from engine.runtime.settings import EngineSettings
from engine.state import State
from tests.system.engine_process import (
    EngineProcess,
    ann,
    engine_process,
    is_serving,
    list_symbol_and_session,
)
from tests.system.test_nats_trouble import wired_engine
from tests.system.venue import eventually


async def test_a_start_waits_for_the_bucket_of_engines(
    own_server: NatsServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster it may be without a leader for longer than one question waits: it is asked again."""
    left: list[object] = []

    def unavailable_once(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def asked(bucket: Bucket[Any], key: str, *value: Any, **terms: Any) -> Any:
            if key == "1" and ask in left:  # the engine's own
                left.remove(ask)
                raise BucketUnavailable("no leader")
            return await ask(bucket, key, *value, **terms)

        left.append(ask)
        return asked

    monkeypatch.setattr(Bucket, "get", unavailable_once(Bucket.get))
    monkeypatch.setattr(Bucket, "put", unavailable_once(Bucket.put))
    async with wired_engine(own_server) as engine:
        assert not left
        engines = engines_bucket(own_connection)
        entry = await engines.get("1")
        assert entry is not None
        assert entry.address == engine.address


def parts(**named: Any) -> Any:
    """What one method of an engine needs of it, and nothing else."""
    return SimpleNamespace(**named)


async def test_an_engine_that_was_replaced_while_it_waited_writes_nothing() -> None:
    """Its address would take the place of its successor's."""
    ask = AsyncMock(side_effect=BucketUnavailable("no leader"))
    check = AsyncMock(side_effect=[None, ProcessFault("another process wrote")])
    with pytest.raises(ProcessFault):
        await Engine._answered(parts(_check_place=check, _settings=parts(number=1)), ask)
    assert ask.await_count == 2


async def test_what_stands_behind_our_reigns_first_record_is_anothers() -> None:
    """Before that record it may be the predecessor's, and while we append it may be ours."""
    journal = parts(lag=AsyncMock(return_value=1))
    engine = parts(_state=State(1), _journal=journal, _has_begun=False, _trading=None)
    await Engine._check_place(engine)
    engine._has_begun = True
    with pytest.raises(ProcessFault, match="another process wrote 1 batches"):
        await Engine._check_place(engine)
    engine._trading = parts(loop=parts(is_appending=True))
    await Engine._check_place(engine)


async def test_an_engine_that_was_replaced_before_it_could_enter_leaves_its_successors_entry(
    own_connection: Connection,
) -> None:
    """Cut off at that moment, it would send everybody to itself."""
    await provision.provision_shared(own_connection)
    engines = engines_bucket(own_connection)
    successor = EngineEntry(1, 3, "127.0.0.1:2", 2)
    await engines.put("1", successor)
    replaced = parts(
        _engines_bucket=engines,
        _settings=parts(number=1),
        _state=parts(epoch=2),
        _entry=EngineEntry(1, 2, "127.0.0.1:1", 1),
        _answered=lambda ask: ask(),
    )
    with pytest.raises(ProcessFault, match="a later epoch of E1 than 2"):
        await Engine._enter(replaced)
    assert await engines.get("1") == successor


@pytest.mark.parametrize("left", [None, EngineEntry(1, 0, "127.0.0.1:1", 1)], ids=["nothing", "an older one"])
async def test_an_engine_whose_entry_is_lost_enters_again(
    own_server: NatsServer,
    own_connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    left: EngineEntry | None,
) -> None:
    """A damaged store may come back without it; its clients would be sent to a process that is gone.

    One that is not older is another process's and stays: the journal's fence tells which of them reigns.
    """
    monkeypatch.setattr(process, "_ENTRY_PERIOD_S", 0.1)
    async with wired_engine(own_server) as engine:
        engines = engines_bucket(own_connection)
        entered = await engines.get("1")
        assert entered is not None
        assert entered.address == engine.address
        if left is None:
            await engines.remove("1")
        else:
            await engines.put("1", left)

        async def is_entered() -> bool:
            return await engines.get("1") == entered

        await eventually(is_entered, 10, "the entry is the engine's again")
        for later in (0, 1):
            other = EngineEntry(1, entered.epoch + later, "127.0.0.1:1", 1)
            await engines.put("1", other)
            await asyncio.wait((engine.running,), timeout=0.5)
            assert await engines.get("1") == other
            assert not engine.running.done()


@pytest.mark.parametrize("epoch", [1, 2], ids=["begun at once", "begun later"])
async def test_an_engine_without_a_journal_ends_when_it_is_replaced(
    own_server: NatsServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """Else both trade until one stores a report, and the one that stays may not be the one that is found."""
    monkeypatch.setattr(process, "_ENTRY_PERIOD_S", 0.1)
    await provision.provision_shared(own_connection)
    await list_symbol_and_session(own_connection)
    engines = engines_bucket(own_connection)
    settings = EngineSettings(1, own_server.url, "127.0.0.1:0", False, False, None, Path(), False)
    running = asyncio.create_task(run(settings))

    async def is_entered() -> bool:
        return await engines.get("1") is not None

    await eventually(is_entered, 10, "the engine serves")
    await engines.put("1", EngineEntry(1, epoch, "127.0.0.1:1", 1))
    with pytest.RaisesGroup(
        pytest.RaisesExc(ProcessFault, match="another process has entered as E1"),
        flatten_subgroups=True,
    ):
        await asyncio.wait_for(running, 10)


async def test_of_two_engines_without_a_journal_the_later_one_stays(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path
) -> None:
    """What the earlier one reports until it ends does not end the later one as well."""
    await provision.provision_shared(own_connection)
    await list_symbol_and_session(own_connection)
    earlier, later = (
        EngineProcess(own_server.url, Path(mkdtemp(dir=tmp_path)), "--durability", "none") for _ in range(2)
    )
    await earlier.start()
    await eventually(partial(is_serving, earlier.address), 20, "the earlier engine serves")

    async def trade_until_it_ends() -> None:
        async with grpc.aio.insecure_channel(earlier.address) as channel:
            trader = ann(channel, earlier.address)
            with suppress(grpc.aio.AioRpcError):
                while True:
                    await trader.limit("AAA", 1, 100, 1)

    async def has_reported() -> bool:
        return (await extent(own_connection, subjects.EXECUTIONS_STREAM)).last_seq > before

    trading = asyncio.create_task(trade_until_it_ends())
    await later.start()
    try:
        await earlier.code(20)
        await trading
        await eventually(partial(is_serving, later.address), 20, "the later engine serves")
        before = (await extent(own_connection, subjects.EXECUTIONS_STREAM)).last_seq
        async with grpc.aio.insecure_channel(later.address) as channel:
            await ann(channel, later.address).limit("AAA", 1, 100, 1)
        await eventually(has_reported, 10, "the later engine reports")
    finally:
        assert await later.stop() == 0, later.log()


async def test_an_engine_without_a_journal_leaves_one_that_has_it_alone(own_server: NatsServer) -> None:
    """It would enter a later epoch, take its clients, and give out its ids anew."""
    async with wired_engine(own_server):
        settings = EngineSettings(1, own_server.url, "127.0.0.1:0", False, False, None, Path(), False)
        with pytest.raises(ProcessFault, match=r"E1 has a journal of \d+ batches in this NATS"):
            await asyncio.wait_for(run(settings), 10)


async def test_old_fills_are_read_by_a_connection_of_their_own(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server cuts off one that asks for more than it takes: the feed and the journal go on."""
    asked_by = []

    class Noted(OldFills):
        def __init__(self, nc: Client, engine: int, *, first_epoch: int) -> None:
            asked_by.append(nc.options["name"])
            super().__init__(nc, engine, first_epoch=first_epoch)

    monkeypatch.setattr(process, "OldFills", Noted)
    async with wired_engine(own_server):
        assert asked_by == ["engine-1-history"]


async def test_symbols_that_are_listed_trade_when_the_door_opens(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the journal has them it stays shut, however long that takes."""
    append, open_to, opened = JetStreamJournal.append, Door.open_to, asyncio.Event()
    was_open = []

    async def append_late(journal: JetStreamJournal, *record: Any) -> int:
        if journal.position.batch_number == 1:  # the reign has begun, now its symbols are listed
            await asyncio.wait([asyncio.ensure_future(opened.wait())], timeout=0.5)
            was_open.append(opened.is_set())
        return await append(journal, *record)

    def note_open(door: Door, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        if add_to_server is matchbus_pb2_grpc.add_MatchingEngineServicer_to_server:
            opened.set()
        open_to(door, add_to_server, servicer)

    monkeypatch.setattr(JetStreamJournal, "append", append_late)
    monkeypatch.setattr(Door, "open_to", note_open)
    async with wired_engine(own_server):
        assert opened.is_set()
    assert was_open == [False]


async def test_the_door_opens_when_the_peers_are_live(
    own_server: NatsServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An order that came before would miss what they quote."""
    await provision.provision_shared(own_connection)
    engines = engines_bucket(own_connection)
    await engines.put("2", EngineEntry(2, 1, "127.0.0.1:1", 1))
    peer = MarketData(own_connection, 2)
    await peer.start(1, {"AAA": (1, [(ASK, 100, 5, 1)])})
    beating = asyncio.create_task(peer.run())
    made: list[Engine] = []
    was_live = []
    make_trading, open_to = Engine._make_trading, Door.open_to

    def note_made(engine: Engine) -> Any:
        made.append(engine)
        return make_trading(engine)

    def note_open(door: Door, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        if add_to_server is matchbus_pb2_grpc.add_MatchingEngineServicer_to_server:
            was_live.append(made[0]._follower.sees(2))
        open_to(door, add_to_server, servicer)

    monkeypatch.setattr(Engine, "_make_trading", note_made)
    monkeypatch.setattr(Door, "open_to", note_open)
    monkeypatch.setattr(process, "PEERS_FIRST_S", 5.0)  # here the machine may be busy
    async with wired_engine(own_server):
        assert was_live == [True]
    beating.cancel()


async def list_aaa(nc: Connection, tick_size: str, lot_size: str, collar_percent: str = "") -> None:
    """What an exchange writes, whatever it knows of older sizes."""
    listed = instruments_bucket(nc)
    await listed.put("AAA", InstrumentEntry("AAA", tick_size, lot_size, collar_percent))


async def make_streams(nc: Connection) -> None:
    """For one engine, with AAA in ticks of 0.01 and lots of 1."""
    await provision.provision_shared(nc)
    await provision.provision_journal(nc, 1)
    await list_symbol_and_session(nc)


async def journaled_listings(nc: Connection) -> list[AddInstrument]:
    """What the journal of engine 1 says of instruments."""
    return [
        command
        async for record in JetStreamJournal(nc, 1).replay()
        for command in decode(record.commands)
        if isinstance(command, AddInstrument)
    ]


async def test_a_symbol_that_is_listed_in_other_sizes_ends_an_engine(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path
) -> None:
    """A resting order would have another price: while the engine runs and at its start, with what to do."""
    await make_streams(own_connection)
    engine = EngineProcess(own_server.url, tmp_path)
    await engine.start()
    await eventually(partial(is_serving, engine.address), 15, "the engine serves")
    await list_aaa(own_connection, "0.1", "1")
    await ends_for(engine, "AAA is listed with tick size 0.1 and lot size 1, but")
    await list_aaa(own_connection, "0.01", "10")
    await engine.start()
    await ends_for(engine, "AAA is listed with tick size 0.01 and lot size 10, but")
    assert await journaled_listings(own_connection) == [AddInstrument("AAA", "0.01", "1")]
    await list_aaa(own_connection, "0.01", "1")
    async with engine_process(own_server.url, tmp_path) as healed:
        await eventually(partial(is_serving, healed.address), 15, "the engine serves")


async def ends_for(engine: EngineProcess, contradiction: str) -> None:
    """Return when the engine has ended by itself with that in one line of its log."""
    assert await engine.code(within_s=15) == 1
    (line,) = [line for line in engine.log().splitlines() if "CRITICAL" in line]
    for words in (
        contradiction,
        "the journal of E1 counts it in ticks of 0.01 and lots of 1",
        "put the old sizes into the instruments file",
        "KV_instruments",
    ):
        assert words in line
    assert "Traceback" not in engine.log()


async def test_only_what_changes_of_an_instrument_is_journaled(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path
) -> None:
    """Sizes that are only written differently are the same; a collar counts."""
    await make_streams(own_connection)
    async with engine_process(own_server.url, tmp_path) as engine:
        await eventually(partial(is_serving, engine.address), 15, "the engine serves")
    await list_aaa(own_connection, "0.010", "1.0")
    async with engine_process(own_server.url, tmp_path) as engine:
        await eventually(partial(is_serving, engine.address), 15, "the engine serves")
        await list_aaa(own_connection, "0.0100", "1.0")
        await list_aaa(own_connection, "0.01", "1.00", "5")

        async def has_a_collar() -> bool:
            return any(listing.market_collar_bps for listing in await journaled_listings(own_connection))

        await eventually(has_a_collar, 15, "the collar is in the journal")
    listings = await journaled_listings(own_connection)
    assert [listing.market_collar_bps for listing in listings] == [0, 500]
