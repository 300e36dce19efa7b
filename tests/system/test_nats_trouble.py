"""NATS is frozen, full, or says no: nothing is acknowledged, the reason is told, and trading resumes.

The engines are real and so is nats-server. Where the venue's own settings are in the way (a small journal),
one engine is wired here as `engine.runtime.process` does it.
"""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import pytest
from matchbus.edge import Door, Edge
from matchbus.v1 import matchbus_pb2 as pb

import bus.server
from bus import provision, subjects
from bus.connection import Connection, connect
from bus.executions import ExecutionsReader
from bus.journal import JetStreamJournal
from bus.messages import Heartbeat, ReportedOrder, SnapshotRequest, decode_feed, encode
from bus.provision import EXECUTIONS_BYTES, JOURNAL_BYTES
from bus.runner import NatsLink
from bus.server import NatsServer, find_nats_conf
from engine.commands import NewOrder, decode
from engine.runtime import effects
from engine.runtime.process import SERVICE, Engine
from engine.runtime.settings import EngineSettings
from tests.system.disk import Disk
from tests.system.engine_process import (
    ann,
    engine_process,
    is_not_serving,
    is_serving,
    list_symbol_and_session,
)
from tests.system.test_crashes import SYMBOLS, Load, everything
from tests.system.test_three_engines import combined
from tests.system.venue import REPOSITORY, Floor, Trader, Venue, eventually, expect_status, floor, limit, show
from tests.waiting import frozen, until

PATIENCE_S = 2.0
"""After so long without the journal new commands are refused at once."""

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@dataclass
class Watchers:
    """Clients that submit without a break and note what they heard, and when."""

    trader: Trader
    symbol: str
    acknowledged: dict[str, tuple[float, int]] = field(default_factory=dict)
    """By client order id: when it was answered, and the order id."""
    refused: list[tuple[float, float, str]] = field(default_factory=list)
    """When a call began, when it ended UNAVAILABLE, and the reason."""
    stopping: bool = False

    @contextlib.asynccontextmanager
    async def submitting(self) -> AsyncIterator[None]:
        """Submit in eight lanes; what was begun is finished at the end."""
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(self._submit())
            try:
                yield
            finally:
                self.stopping = True

    async def _submit(self) -> None:
        while not self.stopping:
            order = limit(self.symbol, 1, 100, 1)
            while not await self._is_settled(order):  # noqa: ASYNC110 -- a client that comes again
                await asyncio.sleep(0.02)

    async def _is_settled(self, order: pb.NewOrder) -> bool:
        """Submit once; whether the order needs no further attempt."""
        began = time.monotonic()
        try:
            reply = await self.trader.submit(order)
        except grpc.aio.AioRpcError as error:
            expect_status(error, UNAVAILABLE)
            self.refused.append((began, time.monotonic(), str(error.details())))
            return self.stopping
        assert reply.status == pb.ORDER_STATUS_NEW
        self.acknowledged[order.client_order_id] = time.monotonic(), reply.order_id
        return True

    async def have_acknowledged(self, more: int, within_s: float) -> None:
        """Return when so many more orders are acknowledged."""
        goal = len(self.acknowledged) + more

        async def reached() -> bool:
            return len(self.acknowledged) >= goal

        await eventually(reached, within_s, f"{more} more orders acknowledged")

    async def have_heard(self, reason: str, within_s: float) -> None:
        """Return when a call was refused for this reason."""

        async def heard() -> bool:
            return any(reason in why for _, _, why in self.refused)

        await eventually(heard, within_s, f"a refusal that says {reason!r}")

    async def check_open(self) -> None:
        """Every acknowledged order is there once, under its id; others only if they were in doubt."""
        there = {order.client_order_id: order.order_id for order in await self.trader.open_orders()}
        assert there.items() >= {key: order for key, (_, order) in self.acknowledged.items()}.items()
        assert len(set(there.values())) == len(there)


async def test_a_frozen_server_acknowledges_nothing_and_trading_resumes(
    own_venue: Callable[..., Venue],
) -> None:
    """Frozen for 4 s: no answer meanwhile, UNAVAILABLE after the patience, nothing lost, and it goes on."""
    venue = own_venue(engines=1)
    async with floor(venue) as trading:
        clients = Watchers(await trading.trader(), "AAA")
        async with clients.submitting():
            await clients.have_acknowledged(200, 20)
            async with frozen(venue.nats_pid):
                began = time.monotonic()
                await clients.have_heard("the journal does not answer", PATIENCE_S + 1)
                await eventually(partial(is_not_serving, venue.address(1)), 2, "health says NOT_SERVING")
                await asyncio.sleep(began + 4 - time.monotonic())  # the length of the freeze, not a hope
                thawed = time.monotonic()
            await clients.have_acknowledged(200, 5)
        await eventually(partial(is_serving, venue.address(1)), 2, "health says SERVING")
        answered = [at for at, _ in clients.acknowledged.values()]
        late = [at - began for at in answered if began + 0.2 < at < thawed]
        assert late == [], "answers that were on their way when the server froze take no 200 ms"
        waits = [ended - began for began, ended, _ in clients.refused]
        assert max(waits) < PATIENCE_S + 1
        resumed = min(at for at in answered if at > thawed) - thawed
        show(
            f"{len(answered)} acknowledged, {len(waits)} refusals, the longest wait {max(waits):.2f} s,"
            f" first answer {resumed:.2f} s after the server went on"
        )
        await clients.check_open()


@dataclass
class Wired:
    """One engine in this process, with ann at home there."""

    address: str
    trader: Trader
    running: asyncio.Task[None]
    parts: Engine

    def is_serving(self) -> bool:
        """What its metrics say."""
        (gauge,) = [one for one in self.parts._metrics.collect() if one.name == "matchbus_serving"]
        return gauge.samples[0].value == 1


@contextlib.asynccontextmanager
async def wired_engine(
    server: NatsServer, *, journal_bytes: int = JOURNAL_BYTES, executions_bytes: int = EXECUTIONS_BYTES
) -> AsyncIterator[Wired]:
    """Everything `engine.runtime.process.run` wires, on streams of these sizes."""
    link = NatsLink(server.url)
    edge = Edge(SERVICE)
    thresholds = gc.get_threshold()
    try:
        nc = await link.open("engine-1")
        await provision.provision_shared(nc, executions_bytes=executions_bytes)
        await provision.provision_journal(nc, 1, max_bytes=journal_bytes)
        await list_symbol_and_session(nc)
        address = edge.bind("127.0.0.1:0")
        journal = JetStreamJournal(await link.open("engine-1-journal", buffered=False), 1)
        settings = EngineSettings(1, server.url, address, True, False, None, Path(), False)
        door = Door(SERVICE, "nobody serves yet")
        edge.server.add_generic_rpc_handlers((door,))
        await edge.start()
        engine = Engine(settings, edge, door, address, link, nc, journal, None)
        running = asyncio.create_task(engine.run())
        try:
            await eventually(partial(is_serving, address), 10, "the engine serves")
            async with grpc.aio.insecure_channel(address) as channel:
                yield Wired(address, ann(channel, address), running, engine)
        finally:
            running.cancel()
            await asyncio.wait([running])
    finally:
        await edge.stop()
        await link.close()
        gc.set_threshold(*thresholds)  # an engine sets its own
        gc.unfreeze()


async def test_who_waits_hears_at_once_that_the_engine_ends(own_server: NatsServer) -> None:
    """While its port is open still, which is so until its lease is released; NATS may be long in that."""
    async with wired_engine(own_server) as engine:
        async with frozen(own_server.pid):
            waiting = asyncio.create_task(engine.trader.limit("AAA", 1, 100, 1))
            await until(lambda: any("SubmitOrder" in task.get_name() for task in asyncio.all_tasks()))
            engine.running.cancel()
            await asyncio.wait((engine.running,))
        for call in (waiting, engine.trader.limit("AAA", 1, 100, 1)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            expect_status(refused.value, UNAVAILABLE)
            assert "this process" in (refused.value.details() or "")


async def stored_orders(connection: Connection) -> set[str]:
    """The client order ids in the journal."""
    return {
        command.client_order_id
        async for record in JetStreamJournal(connection, 1).replay()
        for command in decode(record.commands)
        if isinstance(command, NewOrder)
    }


async def test_a_full_journal_refuses_with_the_reason_until_it_has_room(own_server: NatsServer) -> None:
    """At its byte limit: UNAVAILABLE naming it, NOT_SERVING, engine alive; with more room trading resumes.

    Its heartbeats name it too, for as long as it lasts.
    """
    async with wired_engine(own_server, journal_bytes=60_000) as engine:
        clients = Watchers(engine.trader, "AAA")
        async with clients.submitting():
            await clients.have_heard("maximum bytes exceeded", 20)
            full = time.monotonic()
            await eventually(partial(is_not_serving, engine.address), 2, "health says NOT_SERVING")
            assert not engine.is_serving()
            seen = len(clients.refused)
            await until(lambda: len(clients.refused) >= seen + 50)
            assert not engine.running.done()
            connection = await connect(own_server.url, name="test", on_closed=lambda: None)
            assert await stored_orders(connection) >= set(clients.acknowledged)
            assert max(at for at, _ in clients.acknowledged.values()) < full - PATIENCE_S + 0.5
            heartbeats = await connection.subscribe(subjects.heartbeat(1))

            async def told_trouble() -> str:
                heartbeat = decode_feed((await heartbeats.next_msg(timeout=5)).data)
                assert isinstance(heartbeat, Heartbeat)
                return heartbeat.trouble

            async def told_none() -> bool:
                return not await told_trouble()

            assert "maximum bytes exceeded" in await told_trouble()
            await provision.adjust_journals(connection, 60_000_000, trimmable=False)
            await clients.have_acknowledged(100, 5)
            await eventually(told_none, 2, "heartbeats tell of no trouble")
            await connection.close()
        await eventually(partial(is_serving, engine.address), 2, "health says SERVING")
        assert engine.is_serving()
        await clients.check_open()


async def test_an_engine_that_starts_on_a_full_journal_says_so_until_it_has_room(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path
) -> None:
    """Its log ends with the reason and what to do, clients hear the reason; with room it serves by itself."""
    await provision.provision_shared(own_connection)
    await provision.provision_journal(own_connection, 1, max_bytes=1)
    await list_symbol_and_session(own_connection)
    async with (
        engine_process(own_server.url, tmp_path) as engine,
        grpc.aio.insecure_channel(engine.address) as channel,
    ):

        async def says_so() -> bool:
            return "batches of E1 wait: maximum bytes exceeded" in engine.log()

        await eventually(says_so, 15, "the log says that the journal is full")
        assert "with a larger --journal-gib" in engine.log().splitlines()[-1]
        refused = "this process begins its reign of E1: maximum bytes exceeded"
        with pytest.raises(grpc.aio.AioRpcError, match=refused) as refusal:
            await ann(channel, engine.address).limit("AAA", 1, 100, 1)
        expect_status(refusal.value, UNAVAILABLE)
        assert not await is_serving(engine.address)
        await provision.provision_journal(own_connection, 1)
        await eventually(partial(is_serving, engine.address), 15, "the engine serves")


async def test_full_reports_refuse_with_the_reason_until_they_have_room(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many wait for their stream: UNAVAILABLE naming it, NOT_SERVING; with more room all are stored."""
    monkeypatch.setattr(effects, "MAX_QUEUED_REPORTS", 300)
    async with wired_engine(own_server, executions_bytes=60_000) as engine:
        clients = Watchers(engine.trader, "AAA")
        async with clients.submitting():
            await clients.have_heard("execution reports cannot be stored: maximum bytes exceeded", 20)
            await eventually(partial(is_not_serving, engine.address), 2, "health says NOT_SERVING")
            assert not engine.running.done()
            connection = await connect(own_server.url, name="test", on_closed=lambda: None)
            await provision.provision_shared(connection, executions_bytes=60_000_000)
            await clients.have_acknowledged(100, 5)
        await eventually(partial(is_serving, engine.address), 2, "health says SERVING")
        await clients.check_open()
        wanted = set(clients.acknowledged)

        async def are_reported() -> bool:
            return wanted <= await reported_orders(connection)

        await eventually(are_reported, 10, "every acknowledged order is reported")
        await connection.close()


async def reported_orders(connection: Connection) -> set[str]:
    """The client order ids that the execution reports have now."""
    stored = (await connection.jetstream().stream_info(subjects.EXECUTIONS_STREAM)).state.messages
    found: set[str] = set()
    async with contextlib.aclosing(aiter(ExecutionsReader(connection))) as messages:
        for _ in range(stored):
            reports = (await anext(messages)).reports
            found |= {report.client_order_id for report in reports if isinstance(report, ReportedOrder)}
    return found


async def test_a_full_disk_loses_nothing(
    small_disk: Disk, tmp_path: Path, own_venue: Callable[..., Venue]
) -> None:
    """On a full disk nothing is acknowledged; with space again all goes on by itself."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/nats").symlink_to(small_disk.folder)
    venue = own_venue(engines=1)
    async with floor(venue) as trading:
        clients = Watchers(await trading.trader(), "AAA")
        async with clients.submitting():
            await clients.have_acknowledged(50, 20)
            filler = small_disk.fill()
            await clients.have_heard("the journal does not answer", 40)
            full = time.monotonic()
            await eventually(partial(is_not_serving, venue.address(1)), 2, "health says NOT_SERVING")
            seen = len(clients.refused)
            await until(lambda: len(clients.refused) >= seen + 50)
            assert max(at for at, _ in clients.acknowledged.values()) < full - PATIENCE_S + 0.5
            filler.unlink()
            await clients.have_acknowledged(100, 15)
        show(f"{len(clients.acknowledged)} acknowledged, {len(clients.refused)} refusals")
        await clients.check_open()


async def test_a_write_that_failed_for_once_loses_nothing(own_venue: Callable[..., Venue]) -> None:
    """As where a quota was used up: nats-server then writes no more, and another start mends it."""
    venue = own_venue(engines=1)
    async with floor(venue) as trading:
        clients = Watchers(await trading.trader(), "AAA")
        async with clients.submitting():
            await clients.have_acknowledged(50, 20)
            resource.prlimit(venue.nats_pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            await until(lambda: "a write failed" in venue.log(), 20)
            await clients.have_acknowledged(100, 20)
        await clients.check_open()


def test_a_disk_that_takes_no_files_has_no_room(small_disk: Disk) -> None:
    """Though it has free space, as where it is read-only or has no inode left."""
    server = NatsServer(small_disk.folder)
    (small_disk.folder / bus.server.STORE).mkdir(parents=True)
    assert server.has_room()
    subprocess.run(["mount", "-o", "remount,ro", small_disk.folder], check=True)
    assert not server.has_room()


USERS = """
authorization {{
    users: [
        {{ user: ops, password: ops }}
        {{ user: viewer, password: viewer }}
        {{ user: engine, password: engine, permissions: {{ publish: {{ {rule} }} }} }}
    ]
}}
no_auth_user: ops
"""
MAY_JOURNAL = 'allow: ">"'
MAY_NOT_JOURNAL = 'deny: "journal.>"'
DENIED = "permissions violation for publish to"


@dataclass
class Guarded:
    """A nats-server whose user `engine` may or may not write a journal."""

    server: NatsServer
    conf: Path

    @property
    def url(self) -> str:
        """Where the engine connects, as itself."""
        return self.server.url.replace("nats://", "nats://engine:engine@")

    def rule(self, rule: str) -> None:
        """Give the engine other permissions, at once."""
        write_conf(self.conf, rule)
        os.kill(self.server.pid, signal.SIGHUP)


def write_conf(path: Path, rule: str) -> None:
    """The venue's own settings, and users."""
    path.write_text((REPOSITORY / "nats.conf").read_text() + USERS.format(rule=rule))


@contextlib.asynccontextmanager
async def guarded(directory: Path, rule: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Guarded]:
    """Such a server, with all streams made."""
    conf = directory / "guarded.conf"
    write_conf(conf, rule)
    monkeypatch.setattr(bus.server, find_nats_conf.__name__, lambda: conf)
    async with NatsServer(directory / "nats") as server:
        nc = await connect(server.url, name="ops", on_closed=lambda: None)
        await provision.provision_shared(nc)
        await provision.provision_journal(nc, 1)
        await list_symbol_and_session(nc)
        yield Guarded(server, conf)
        await nc.close()


async def test_an_engine_that_may_not_write_its_journal_does_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Denied from the start it says so and stays out; once allowed it serves by itself."""
    async with (
        guarded(tmp_path, MAY_NOT_JOURNAL, monkeypatch) as nats,
        engine_process(nats.url, tmp_path) as engine,
    ):

        async def says_so() -> bool:
            return DENIED in engine.log() and "journal.1" in engine.log()

        await eventually(says_so, 15, "the log names the permission")
        assert not await is_serving(engine.address)
        nats.rule(MAY_JOURNAL)
        await eventually(partial(is_serving, engine.address), 15, "the engine serves")


async def test_commands_are_refused_while_the_journal_is_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The permission is taken away under load: UNAVAILABLE names it; given back, trading resumes."""
    async with (
        guarded(tmp_path, MAY_JOURNAL, monkeypatch) as nats,
        engine_process(nats.url, tmp_path) as engine,
        grpc.aio.insecure_channel(engine.address) as channel,
    ):
        await eventually(partial(is_serving, engine.address), 15, "the engine serves")
        clients = Watchers(ann(channel, engine.address), "AAA")
        async with clients.submitting():
            await clients.have_acknowledged(100, 20)
            nats.rule(MAY_NOT_JOURNAL)
            await clients.have_heard(DENIED, 15)
            known = len(clients.acknowledged)
            await eventually(partial(is_not_serving, engine.address), 2, "health says NOT_SERVING")
            assert len(clients.acknowledged) == known
            nats.rule(MAY_JOURNAL)
            await clients.have_acknowledged(100, 15)
        await clients.check_open()


DEEP_LEVELS = 10_000
"""Of a book whose snapshots, asked for without a break, are a flood: 240 kB each, ten a second."""

CUT_OFF = "Slow Consumer"
"""How nats-server says that it ended a connection whose reader was too slow."""


async def test_who_is_too_slow_is_cut_off_and_comes_back_right(own_venue: Callable[..., Venue]) -> None:
    """Frozen in a flood of market data until nats-server cuts it off; then every book and fill is there.

    The exchange, and then an engine.
    """
    venue = own_venue(engines=2, symbols=(*SYMBOLS, "DEEP"))
    output = venue.directory / "data/output"
    is_back = f"connected to {venue.nats_url} again"

    def told(name: str, words: str) -> int:
        """How often a process logged that."""
        return (output / f"{name}.log").read_text(errors="replace").count(words)

    async with floor(venue) as trading:
        deep, traders = await trading.trader(1), [await trading.trader(engine) for engine in (1, 1, 2, 2)]
        orders = [pb.Command(new=limit("DEEP", 1, 10**9 + number, 1)) for number in range(DEEP_LEVELS)]
        await deep.enter([orders])
        load = Load(traders)
        nc = await connect(venue.nats_url, name="test", on_closed=lambda: None)
        for who, pid in (("exchange", venue.exchange_pid), ("engine_2", venue.engine_pid(2))):
            cuts, returns = told("nats-server", CUT_OFF), told(who, is_back)

            async def cut_off(before: int = cuts) -> bool:
                await nc.publish(subjects.snapshot_request(1), encode(SnapshotRequest(("DEEP",))))
                return told("nats-server", CUT_OFF) > before

            async def back(who: str = who, before: int = returns) -> bool:
                return told(who, is_back) > before

            async with asyncio.TaskGroup() as group:
                group.create_task(load.run())
                await load.acknowledged(100)
                async with frozen(pid):
                    await eventually(cut_off, 30, f"nats-server cuts {who} off")
                thawed = time.monotonic()
                await eventually(back, 10, f"{who} is back")
                await load.acknowledged(200)
                load.stop()
            await everything(trading, load, traders)
            for symbol in venue.symbols:
                agree = partial(same_everywhere, trading, traders, symbol)
                await eventually(agree, 10, f"one book of {symbol} after {who} was cut off")
            took_s = time.monotonic() - thawed
            show(f"{who}: all books are right again within {took_s:.1f} s, {load.retries} retries so far")
        await nc.close()


async def same_everywhere(trading: Floor, traders: list[Trader], symbol: str) -> bool:
    """Whether both feeds live, and the exchange and each engine show the sum of the engines' own books."""
    exchange = await trading.exchange()
    engines = (await exchange.ListEngines(pb.ListEnginesRequest(), timeout=5)).engines
    shown = await exchange.GetConsolidatedBook(pb.GetConsolidatedBookRequest(symbol=symbol), timeout=5)
    homes = traders[0], traders[-1]
    whole = combined([await trader.book(symbol) for trader in homes])
    seen = [await trader.book(symbol, scope=pb.BOOK_SCOPE_CONSOLIDATED) for trader in homes]
    return [engine.state for engine in engines] == [pb.ENGINE_STATE_LIVE] * 2 and all(
        combined([book]) == whole for book in (shown, *seen)
    )
