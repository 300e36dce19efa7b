"""The exchange's process beside a real nats-server: registering, tokens, views, restarts and junk."""

import asyncio
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import msgspec
import nats.errors
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from matchbus.edge import RECOVERING_ROLE, token_key
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import messages, provision, subjects, tokens
from bus.connection import Connection
from bus.executions import ExecutionsReader, ExecutionsWriter
from bus.follower import FeedFollower
from bus.messages import (
    ASK,
    BID,
    BookSnapshot,
    EngineEntry,
    Executions,
    Heartbeat,
    InstrumentEntry,
    LevelChange,
    ProvisionReply,
    ProvisionRequest,
    ReportedFill,
)
from bus.peer import PeerFeed, PeerState
from bus.provision import await_journal
from bus.registry import Bucket, BucketUnavailable
from bus.runner import ProcessFault
from bus.server import NatsServer
from bus.tokens import Tokens
from bus.view_messages import EnginesView, SymbolsView, ViewSymbol
from exchange.directory import Directory
from exchange.market_views import MarketViews
from exchange.runtime import feeds, process, registration
from exchange.runtime.instruments import InstrumentsRefused, publish_instruments
from exchange.runtime.metrics import ExchangeCollector, StreamSizes, ViewCounts
from exchange.runtime.process import run
from exchange.runtime.servicer import REGISTRATION_OUTCOMES
from exchange.runtime.settings import ExchangeSettings
from simulation.ports import claim_port
from tests.bad_request import violations
from tests.feed_checksum import checksum

if TYPE_CHECKING:
    from tests.conftest import Connections

INSTRUMENTS = '[[instrument]]\nsymbol = "AAPL"\ntick_size = "0.01"\nlot_size = "1"\n'
PASSWORD = "open sesame"
DEADLINE_S = 10.0


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition holds; fail at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():  # noqa: ASYNC110 -- what is waited for is in another process
            await asyncio.sleep(0.02)


class Caller:
    """A gRPC caller of one exchange."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address)
        stub: Any = matchbus_pb2_grpc.ExchangeStub(self.channel)
        self.stub = stub
        self._health: Any = health_pb2_grpc.HealthStub(self.channel)

    async def register(
        self, client_id: str, secret: str = "s", *, password: str = PASSWORD, preferred_engine: int = 0
    ) -> pb.RegisterClientReply:
        """Call RegisterClient."""
        reply: pb.RegisterClientReply = await self.stub.RegisterClient(
            pb.RegisterClientRequest(
                client_id=client_id, password=password, secret=secret, preferred_engine=preferred_engine
            )
        )
        return reply

    async def positions(self, token: str, symbol: str = "") -> list[tuple[str, int, float, int, int]]:
        """Call GetPositions with a token."""
        reply = await self.stub.GetPositions(
            pb.GetPositionsRequest(symbol=symbol), metadata=(("authorization", f"Bearer {token}"),)
        )
        return [(p.symbol, p.position, p.average_price, p.realized_pnl, p.fees) for p in reply.positions]

    async def instruments(self) -> list[pb.Instrument]:
        """Call ListInstruments."""
        reply: pb.ListInstrumentsReply = await self.stub.ListInstruments(pb.ListInstrumentsRequest())
        return list(reply.instruments)

    async def engines(self) -> list[pb.Engine]:
        """Call ListEngines."""
        reply: pb.ListEnginesReply = await self.stub.ListEngines(pb.ListEnginesRequest())
        return list(reply.engines)

    async def sees_two_live_engines(self) -> bool:
        """Whether ListEngines shows two live engines."""
        return [engine.state for engine in await self.engines()] == [pb.ENGINE_STATE_LIVE] * 2

    async def is_serving(self, service: str = process.SERVICE) -> bool:
        """Whether the exchange says that it is ready, or has a role."""
        reply = await self._health.Check(health_pb2.HealthCheckRequest(service=service))
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


@asynccontextmanager
async def exchange(
    server: NatsServer, directory: Path, instruments: str = INSTRUMENTS
) -> AsyncIterator[Caller]:
    """An exchange on a free port, ready; stopped at the end."""
    file = directory / "instruments.toml"
    file.write_text(instruments)
    settings = ExchangeSettings(server.url, "127.0.0.1:0", PASSWORD, file, None, 1)
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(run(settings, listening.set_result))
    await asyncio.wait((running, listening), return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE_S)
    if running.done():
        running.result()
    caller = Caller(listening.result())
    try:
        await eventually(caller.is_serving)
        yield caller
    finally:
        await caller.channel.close(None)
        running.cancel()
        stopped_by = time.monotonic() + 2.0
        with suppress(asyncio.CancelledError):
            await running
        assert time.monotonic() < stopped_by


class FakeEngine:
    """An engine's entry and its feed with one bid and one ask, without an engine behind them."""

    def __init__(
        self,
        nc: Client,
        number: int,
        *,
        bid: int = 99,
        ask: int = 101,
        epoch: int = 3,
        levels: tuple[LevelChange, ...] = (),
    ) -> None:
        self._nc = nc
        self._number = number
        self._epoch = epoch
        self._levels = levels or ((BID, bid, 5, 1), (ASK, ask, 7, 2))
        self._beating: asyncio.Task[None] | None = None

    async def enter(self) -> None:
        """Write the entry that the exchange finds."""
        bucket = Bucket(self._nc, subjects.ENGINES_BUCKET, messages.decode_engine)
        await bucket.put(str(self._number), EngineEntry(self._number, self._epoch, f"host:{self._number}", 1))

    async def start(self) -> None:
        """Send heartbeats, and snapshots when asked."""
        await self._nc.subscribe(subjects.snapshot_request(self._number), cb=self._send_snapshot)
        self._beating = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        """Fall silent."""
        assert self._beating is not None
        self._beating.cancel()
        with suppress(asyncio.CancelledError):
            await self._beating

    async def _beat(self) -> None:
        while True:
            heartbeat = Heartbeat(self._number, self._epoch, 1, time.monotonic_ns(), {"AAPL": 1})
            await self._nc.publish(subjects.heartbeat(self._number), messages.encode(heartbeat))
            await asyncio.sleep(0.03)

    async def _send_snapshot(self, request: Msg) -> None:
        sides = ([level[1:] for level in self._levels if level[0] == side] for side in (BID, ASK))
        snapshot = BookSnapshot(self._epoch, 1, 1, 0, self._levels, checksum(*sides))
        await self._nc.publish(subjects.book(self._number, "AAPL"), messages.encode(snapshot))


def fill(client: str, sequence: int, side: int, quantity: int, price: int) -> ReportedFill:
    """One side of a trade."""
    return ReportedFill(
        client, sequence, sequence, 1, "a", "AAPL", side, price, quantity, 1, quantity, 0, 1, 0, 2, 1
    )


async def refused(call: Awaitable[object], code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    """Expect this status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return caught.value


def violated_field(error: grpc.aio.AioRpcError) -> str:
    """The one field that the BadRequest details of an error name."""
    ((field, _),) = violations(error)
    return field


@pytest.fixture
async def two_engines(own_server: NatsServer, connections: "Connections") -> AsyncIterator[list[FakeEngine]]:
    """Engines 1 and 2, live, with entries; E1 shows 5@99 7@101, E2 shows 5@98 7@101."""
    nc = await connections.open(own_server.url)
    await provision.provision_shared(nc)
    engines = [FakeEngine(nc, 1), FakeEngine(nc, 2, bid=98)]
    for engine in engines:
        await engine.enter()
        await engine.start()
    yield engines
    for engine in engines:
        await engine.stop()


async def test_a_client_gets_a_token_a_home_and_the_instruments(
    own_server: NatsServer,
    own_connection: Connection,
    two_engines: list[FakeEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client gets a token, a home, its address and the instruments; refusals have the right status."""
    async with exchange(own_server, tmp_path) as caller:
        await eventually(caller.sees_two_live_engines)
        first = await caller.register("ann")
        assert (first.engine, first.engine_address) == (1, "host:1")
        assert [i.symbol for i in first.instruments] == ["AAPL"]
        assert (await caller.register("bob", "")).engine == 2
        assert (await caller.register("cid", preferred_engine=2)).engine == 2
        again = await caller.register("ann", preferred_engine=2)
        assert again.engine == 1
        assert again.token != first.token

        sessions = Bucket(own_connection, subjects.SESSIONS_BUCKET, messages.decode_session)
        session = await sessions.get(hashlib.sha256(first.token.encode()).hexdigest())
        assert session is not None
        assert (session.client_id, session.engine) == ("ann", 1)
        assert 0 < session.ends_ns - time.time_ns() < tokens.TOKEN_LIFE_NS

        await refused(caller.register("ann", password="x"), grpc.StatusCode.UNAUTHENTICATED)
        await refused(caller.register("ann", "other"), grpc.StatusCode.PERMISSION_DENIED)
        await refused(caller.register("bob", "other"), grpc.StatusCode.PERMISSION_DENIED)
        error = await refused(caller.register("a b"), grpc.StatusCode.INVALID_ARGUMENT)
        assert violated_field(error) == "client_id"
        error = await refused(caller.register("dan", preferred_engine=9), grpc.StatusCode.FAILED_PRECONDITION)
        assert "E1, E2" in str(error.details())
        clients = Bucket(own_connection, subjects.CLIENTS_BUCKET, messages.decode_client)
        await clients.remove(subjects.client_key("ann"))
        error = await refused(caller.register("ann"), grpc.StatusCode.DATA_LOSS)
        assert "client ann was registered" in str(error.details())
        monkeypatch.setattr(registration, "_MAX_HASHES", 0)
        monkeypatch.setattr(registration, "_RESERVED_HASHES", 0)
        await refused(caller.register("bob", ""), grpc.StatusCode.RESOURCE_EXHAUSTED)


async def test_tokens_end(
    own_server: NatsServer,
    two_engines: list[FakeEngine],
    tmp_path: Path,
    own_connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oldest of too many leaves the store, also at a start; so does one whose time is over."""
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    sessions = Bucket(own_connection, subjects.SESSIONS_BUCKET, messages.decode_session)

    async def is_stored(token: str) -> bool:
        return await sessions.get(token_key(token)) is not None

    async def is_gone(token: str) -> bool:
        return not await is_stored(token)

    async with exchange(own_server, tmp_path) as caller:
        await eventually(caller.sees_two_live_engines)
        registered = [(await caller.register("ann")).token for _ in range(3)]
        await eventually(lambda: is_gone(registered[0]))
        await refused(caller.positions(registered[0]), grpc.StatusCode.UNAUTHENTICATED)
        for token in registered[1:]:
            assert await caller.positions(token) == []
    monkeypatch.setattr(tokens, "MAX_TOKENS", 1)
    async with exchange(own_server, tmp_path) as caller:
        await eventually(lambda: is_gone(registered[1]))
        monkeypatch.setattr(registration, "TOKEN_LIFE_NS", 0)
        over = (await caller.register("bob")).token
        await refused(caller.positions(over), grpc.StatusCode.UNAUTHENTICATED)
        assert await is_stored(over), "it tells that bob was registered"
        monkeypatch.undo()
        await caller.register("bob")
        await eventually(lambda: is_gone(over))
        assert await caller.positions(registered[2]) == []


async def test_an_ended_token_leaves_the_store_though_not_at_once(
    own_server: NatsServer,
    two_engines: list[FakeEngine],
    tmp_path: Path,
    own_connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It opens nothing. A store that takes nothing away for a while is asked again; that is logged once."""
    monkeypatch.setattr(tokens, "MAX_TOKENS", 1)
    monkeypatch.setattr(process, "_REMOVE_AGAIN_S", 0.01)
    remove, may_remove = Bucket.remove, asyncio.Event()

    async def remove_in_the_end(bucket: Bucket[Any], key: str) -> None:
        if not may_remove.is_set():
            raise BucketUnavailable("not now")
        await remove(bucket, key)

    monkeypatch.setattr(Bucket, "remove", remove_in_the_end)
    sessions = Bucket(own_connection, subjects.SESSIONS_BUCKET, messages.decode_session)
    async with exchange(own_server, tmp_path) as caller:
        await eventually(caller.sees_two_live_engines)
        first, second = [(await caller.register("ann")).token for _ in range(2)]

        async def said_once() -> bool:
            return sum("not now" in message for message in caplog.messages) == 1

        async def is_gone() -> bool:
            return await sessions.get(token_key(first)) is None

        await eventually(said_once)
        await refused(caller.positions(first), grpc.StatusCode.UNAUTHENTICATED)
        assert not await is_gone()
        may_remove.set()
        await eventually(is_gone)
        assert await caller.positions(second) == []
        assert await said_once()


async def test_long_strings_are_refused_by_name(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path
) -> None:
    """A megabyte where a name, password or secret belongs is a named violation, and leaves nothing behind."""
    megabyte = "A" * 1_000_000
    async with exchange(own_server, tmp_path) as caller:
        for field, registering in (
            ("client_id", caller.register(megabyte)),
            ("password", caller.register("ann", password=megabyte)),
            ("password", caller.register("ann", password="A" * 1_025)),
            ("secret", caller.register("ann", megabyte, preferred_engine=1)),
            ("secret", caller.register("ann", "A" * 1_025)),
        ):
            error = await refused(registering, grpc.StatusCode.INVALID_ARGUMENT)
            assert violated_field(error) == field
            assert len(error.details() or "") < 100
        clients = Bucket(own_connection, subjects.CLIENTS_BUCKET, messages.decode_client)
        assert await clients.get(subjects.client_key("ann")) is None
        await refused(caller.register("ann", password="A" * 1_024), grpc.StatusCode.UNAUTHENTICATED)
        await FakeEngine(own_connection, 7).enter()

        async def registered() -> bool:
            try:
                return (await caller.register("ann", "é" * 1_024, preferred_engine=7)).engine == 7
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION):
                    raise
                return False

        await eventually(registered)


async def test_registrations_that_come_together_bind_one_secret_and_spread_the_homes(
    own_server: NatsServer, two_engines: list[FakeEngine], tmp_path: Path
) -> None:
    """Of first registrations of one name exactly one secret binds; clients that come together are spread."""
    async with exchange(own_server, tmp_path) as caller:
        await eventually(caller.sees_two_live_engines)
        outcomes = await asyncio.gather(
            *(caller.register("ann", f"secret {n}") for n in range(4)), return_exceptions=True
        )
        refusals = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert [refusal.code() for refusal in refusals] == [grpc.StatusCode.PERMISSION_DENIED] * 3
        homes = [
            reply.engine for reply in await asyncio.gather(*(caller.register(f"c{n}") for n in range(5)))
        ]
        ann = next(outcome for outcome in outcomes if isinstance(outcome, pb.RegisterClientReply))
        assert sorted([ann.engine, *homes]) == [1, 1, 1, 2, 2, 2]


async def test_without_a_live_engine_nobody_is_given_a_home(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path
) -> None:
    """Without engines nobody can be registered; a silent one becomes a home only by name."""
    async with exchange(own_server, tmp_path) as caller:
        error = await refused(caller.register("ann"), grpc.StatusCode.UNAVAILABLE)
        assert "no engine has registered" in str(error.details())
        await FakeEngine(own_connection, 7).enter()

        async def known() -> bool:
            return [engine.engine for engine in await caller.engines()] == [7]

        await eventually(known)
        error = await refused(caller.register("ann"), grpc.StatusCode.UNAVAILABLE)
        assert "E7" in str(error.details())
        assert (await caller.register("ann", preferred_engine=7)).engine == 7


def test_only_a_live_engine_becomes_a_home() -> None:
    """One that is suspect may be dead, and one that was never heard may never have lived."""
    peers = {number: PeerFeed(number) for number in (1, 2)}
    peers[1].state, peers[2].state = PeerState.SUSPECT, PeerState.LIVE
    assert feeds.live_engines((1, 2, 3), peers) == [2]


async def test_restart_keeps_homes_and_positions(
    own_server: NatsServer, own_connection: Connection, two_engines: list[FakeEngine], tmp_path: Path
) -> None:
    """After a restart clients have their homes, tokens and positions, and fills go on counting once."""
    writer = ExecutionsWriter(own_connection, 1)
    async with exchange(own_server, tmp_path) as caller:
        token = (await caller.register("ann", preferred_engine=2)).token
        await writer.start()
        await writer.publish(
            Executions(1, 1, 1, 1, 2, (fill("ann", 1, BID, 10, 100), fill("bob", 1, ASK, 10, 100)))
        )
        await writer.publish(
            Executions(1, 1, 2, 2, 2, (fill("ann", 2, ASK, 4, 110), fill("bob", 2, BID, 4, 110)))
        )

        async def arrived() -> bool:
            return await caller.positions(token) == [("AAPL", 6, 100.0, 40, 2)]

        await eventually(arrived)

    async with exchange(own_server, tmp_path) as caller:
        assert await caller.positions(token) == [("AAPL", 6, 100.0, 40, 2)]
        assert await caller.positions(token, "AAPL") == [("AAPL", 6, 100.0, 40, 2)]
        assert (await caller.register("ann")).engine == 2
        await refused(caller.register("ann", "other"), grpc.StatusCode.PERMISSION_DENIED)
        bob = (await caller.register("bob")).token
        assert await caller.positions(bob) == [("AAPL", -6, 100.0, -40, 2)]
        cid = (await caller.register("cid")).token
        assert await caller.positions(cid) == []


async def test_positions_need_a_token(
    own_server: NatsServer, two_engines: list[FakeEngine], tmp_path: Path
) -> None:
    """Nobody sees positions without a token of this exchange."""
    async with exchange(own_server, tmp_path) as caller:
        token = (await caller.register("ann")).token
        await refused(caller.stub.GetPositions(pb.GetPositionsRequest()), grpc.StatusCode.UNAUTHENTICATED)
        await refused(caller.positions("nonsense"), grpc.StatusCode.UNAUTHENTICATED)
        error = await refused(caller.positions(token, "NONE"), grpc.StatusCode.INVALID_ARGUMENT)
        assert violated_field(error) == "symbol"


async def test_positions_that_are_unknown_are_not_told(
    own_server: NatsServer,
    own_connection: Connection,
    two_engines: list[FakeEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither while stored reports are still to be read, nor of a client of whom one is missing."""
    reader = ExecutionsReader(own_connection)
    monkeypatch.setattr(process, "ExecutionsReader", lambda _: reader)
    two = INSTRUMENTS + INSTRUMENTS.replace("AAPL", "MSFT")
    async with exchange(own_server, tmp_path, two) as caller:
        ann, bob = [(await caller.register(client)).token for client in ("ann", "bob")]
        reader.caught_up.clear()
        error = await refused(caller.positions(ann), grpc.StatusCode.UNAVAILABLE)
        assert "still reading" in str(error.details())
        reader.caught_up.set()
        writer = ExecutionsWriter(own_connection, 1)
        await writer.start()
        trades = (fill("ann", 1, BID, 5, 100), fill("bob", 1, ASK, 5, 100), fill("ann", 3, BID, 5, 100))
        most = 2**63 - 1
        await writer.publish(Executions(1, 1, 1, 1, 4, (*trades, fill("bob", 2, ASK, most, 1))))

        async def arrived() -> bool:
            positions = await caller.positions(bob)
            return [position[1] for position in positions] == [-most - 1]  # which the wire holds at least

        await eventually(arrived)
        assert await caller.positions(bob, "MSFT") == []
        error = await refused(caller.positions(ann), grpc.StatusCode.DATA_LOSS)
        assert "after fill 1 came 3" in str(error.details())


async def test_market_views(
    own_server: NatsServer,
    two_engines: list[FakeEngine],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Consolidated book, engine states and log follow the feeds; the instruments are the file's."""
    caplog.set_level(logging.INFO, logger="exchange")
    caplog.set_level(logging.DEBUG, logger="synchronizer")
    async with exchange(own_server, tmp_path) as caller:

        async def states() -> list[int]:
            engines = await caller.engines()
            assert [(e.engine, e.epoch, e.address) for e in engines] == [(1, 3, "host:1"), (2, 3, "host:2")]
            return [e.state for e in engines]

        async def both_live() -> bool:
            return await states() == [pb.ENGINE_STATE_LIVE] * 2

        async def second_down() -> bool:
            return await states() == [pb.ENGINE_STATE_LIVE, pb.ENGINE_STATE_DOWN]

        async def book(depth: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]], tuple[int, int]]:
            reply = await caller.stub.GetConsolidatedBook(
                pb.GetConsolidatedBookRequest(symbol="AAPL", depth=depth)
            )
            bids, asks = (
                [(level.price, level.quantity) for level in side] for side in (reply.bids, reply.asks)
            )
            return bids, asks, (reply.best_bid.price, reply.best_ask.quantity)

        await eventually(both_live)
        assert await book(0) == ([(99, 5), (98, 5)], [(101, 14)], (99, 14))
        assert await book(1) == ([(99, 5)], [(101, 14)], (99, 14))
        await two_engines[1].stop()
        await eventually(second_down)
        assert await book(0) == ([(99, 5)], [(101, 7)], (99, 7))
        assert "book update: AAPL on E1 bid 5@99 ask 7@101" in caplog.messages
        assert "the feed of E2 is down in epoch 3" in caplog.messages

        listed = await caller.instruments()
        assert [(i.symbol, i.tick_size, i.lot_size) for i in listed] == [("AAPL", "0.01", "1")]


async def test_a_bad_request_for_a_book_names_the_field(own_server: NatsServer, tmp_path: Path) -> None:
    """A depth below zero, no symbol, and one that is no symbol."""
    async with exchange(own_server, tmp_path) as caller:
        for request, field in (
            (pb.GetConsolidatedBookRequest(symbol="AAPL", depth=-1), "depth"),
            (pb.GetConsolidatedBookRequest(symbol="md.>"), "symbol"),
            (pb.GetConsolidatedBookRequest(), "symbol"),
        ):
            error = await refused(caller.stub.GetConsolidatedBook(request), grpc.StatusCode.INVALID_ARGUMENT)
            assert violated_field(error) == field


async def test_views_are_published(
    own_server: NatsServer, own_connection: Connection, two_engines: list[FakeEngine], tmp_path: Path
) -> None:
    """Whoever subscribes sees books, best prices, trades, engines and symbols, and that one died.

    Trades of before the exchange started are history, and not among them.
    """
    seen: dict[str, Any] = {}
    trades: list[list[int]] = []

    async def keep(message: Msg) -> None:
        seen[message.subject] = view = msgspec.json.decode(message.data)
        trades.extend(trade[:5] for trade in view.get("trades", ()))

    for subject in ("view.>", "nbbo.>"):
        await own_connection.subscribe(subject, cb=keep)
    writer = ExecutionsWriter(own_connection, 1)
    await writer.start()
    await writer.publish(Executions(1, 3, 1, 1, 1, (fill("ann", 1, 1, 5, 100),)))
    async with exchange(own_server, tmp_path) as caller:
        await eventually(caller.sees_two_live_engines)
        await writer.publish(Executions(1, 3, 2, 2, 1, (fill("ann", 2, 1, 5, 101),)))

        async def all_shown() -> bool:
            return "view.trades.AAPL" in seen and seen.get("nbbo.AAPL", {}).get("ask") == [101, 14, 4]

        await eventually(all_shown)
        assert seen["view.symbols"]["symbols"] == [{"symbol": "AAPL", "tick_size": "0.01", "lot_size": "1"}]
        assert seen["view.book.AAPL"]["bids"] == [[99, 5, 1, [[1, 5, 1]]], [98, 5, 1, [[2, 5, 1]]]]
        assert trades == [[1, 0, 101, 5, 2]]
        assert [engine["state"] for engine in seen["view.engines"]["engines"]] == ["live", "live"]
        await two_engines[0].stop()

        async def one_is_down() -> bool:
            states = [engine["state"] for engine in seen["view.engines"]["engines"]]
            return states == ["down", "live"] and seen["view.book.AAPL"]["bids"] == [[98, 5, 1, [[2, 5, 1]]]]

        await eventually(one_is_down)


async def test_views_begin_with_the_whole_market(
    own_server: NatsServer, own_connection: Connection, two_engines: list[FakeEngine], tmp_path: Path
) -> None:
    """Not even the first view after a start lacks an engine or a symbol: a page would take it for gone."""
    first: dict[str, Any] = {}

    async def keep(message: Msg) -> None:
        first.setdefault(message.subject, msgspec.json.decode(message.data))

    for subject in (subjects.VIEW_ENGINES, subjects.VIEW_SYMBOLS):
        await own_connection.subscribe(subject, cb=keep)
    async with exchange(own_server, tmp_path):

        async def both_seen() -> bool:
            return len(first) == 2

        await eventually(both_seen)
        assert [engine["engine"] for engine in first["view.engines"]["engines"]] == [1, 2]
        assert [symbol["symbol"] for symbol in first["view.symbols"]["symbols"]] == ["AAPL"]


async def test_a_view_that_no_server_takes_is_left_out(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the list of so many symbols that it is no message any more: what comes after it is shown."""
    shown = asyncio.Event()
    symbols = SymbolsView(0, (ViewSymbol("S" * 24, "0.01", "1"),) * 20_000)
    assert len(messages.encode(symbols)) > own_connection.max_payload

    async def show(_: Msg) -> None:
        shown.set()

    await own_connection.subscribe("last", cb=show)
    views = [(subjects.VIEW_SYMBOLS, symbols), ("last", EnginesView(0, ()))]
    monkeypatch.setattr(MarketViews, "due", lambda *_: views)
    async with exchange(own_server, tmp_path):
        await asyncio.wait_for(shown.wait(), DEADLINE_S)


def test_metrics_tell_of_each_part() -> None:
    """An engine that was never heard is down, and every count has its own place."""
    parts: Any = SimpleNamespace(
        peers={}, registrations=dict.fromkeys(REGISTRATION_OUTCOMES, 0), pending=4, gap_count=5
    )
    parts.caught_up = asyncio.Event()
    views = ViewCounts()
    views.published, views.dropped = 3, 2
    collector = ExchangeCollector(
        connections=tuple,
        follower=parts,
        engines={1: EngineEntry(1, 1, "host:1", 1)},
        standbys=feeds.Standbys(),
        instruments={},
        directory=Directory(Tokens()),
        servicer=parts,
        views=views,
        executions=parts,
        positions=parts,
        streams=StreamSizes(),
    )
    told = {
        (sample.name, *sample.labels.values()): sample.value
        for family in collector.collect()
        for sample in family.samples
    }
    assert told["matchbus_engines", "down"] == 1
    assert (told["matchbus_views_total", "published"], told["matchbus_views_total", "dropped"]) == (3, 2)
    assert (told["matchbus_positions_lag_messages",], told["matchbus_position_gaps",]) == (4, 5)
    assert told["matchbus_positions_caught_up",] == 0


async def test_views_that_cannot_leave_at_once_are_dropped(
    own_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while too much is on its way nor while NATS is away are they kept: they would come late."""
    counts = ViewCounts()
    monkeypatch.setattr(process, "ViewCounts", lambda: counts)
    async with exchange(own_server, tmp_path):

        async def some_published() -> bool:
            return counts.published > published

        async def some_dropped() -> bool:
            return counts.dropped > dropped

        published, dropped = counts.published, counts.dropped
        await eventually(some_published)
        with monkeypatch.context() as no_room:
            no_room.setattr(process, "_MAX_UNSENT_VIEWS_BYTES", 0)
            await eventually(some_dropped)
        os.kill(own_server.pid, signal.SIGKILL)
        await own_server.wait()
        dropped = counts.dropped
        await eventually(some_dropped)
        await own_server.restart()
        published = counts.published
        await eventually(some_published)


async def test_standbys_are_shown_behind_the_primaries(
    own_server: NatsServer, own_connection: Connection, two_engines: list[FakeEngine], tmp_path: Path
) -> None:
    """One that speaks has a row with its place and lag; one that reigns, or fell silent, has no such row."""

    async def say(engine: int, address: str) -> None:
        status = messages.StandbyStatus(engine, address, 7, 3, 41, 2)
        await own_connection.publish(subjects.standby(engine), messages.encode(status))

    async def rows() -> list[tuple[int, str, int, int, int]]:
        engines = await caller.engines()
        return [(e.engine, e.address, e.role, e.batch_number, e.lag_batches) for e in engines]

    async with exchange(own_server, tmp_path) as caller:
        await eventually(caller.sees_two_live_engines)
        primaries = [row[:3] for row in await rows()]
        assert primaries == [(number, f"host:{number}", pb.ENGINE_ROLE_PRIMARY) for number in (1, 2)]

        async def shown() -> bool:
            await own_connection.publish(subjects.standby(1), b"\xff junk")
            await say(2, "host:20")
            await say(1, "host:10")
            await say(1, "host:1")
            return len(await rows()) == 4

        await eventually(shown)
        standby = pb.ENGINE_ROLE_STANDBY
        assert (await rows())[2:] == [(1, "host:10", standby, 41, 2), (2, "host:20", standby, 41, 2)]
        assert (await caller.register("ann", preferred_engine=1)).engine_address == "host:1"

        async def gone() -> bool:
            return len(await rows()) == 2

        await eventually(gone)


async def test_what_an_operator_removes_is_gone(
    own_server: NatsServer, own_connection: Connection, two_engines: list[FakeEngine], tmp_path: Path
) -> None:
    """An engine or a symbol whose key is deleted is listed no more, and a client's name is free again."""
    two = INSTRUMENTS + INSTRUMENTS.replace("AAPL", "B.C")
    async with exchange(own_server, tmp_path, two) as caller:
        token = (await caller.register("ann", preferred_engine=1)).token
        for key in (
            "engines.2",
            f"instruments.{subjects.symbol_token('B.C')}",
            f"clients.{subjects.client_key('ann')}",
            f"sessions.{token_key(token)}",
        ):
            await own_connection.publish(f"$KV.{key}", b"", headers={"KV-Operation": "DEL"})

        async def gone() -> bool:
            engines, symbols = await caller.engines(), await caller.instruments()
            return ([e.engine for e in engines], [i.symbol for i in symbols]) == ([1], ["AAPL"])

        async def free() -> bool:
            try:
                return bool(await caller.register("ann", "another", preferred_engine=1))
            except grpc.aio.AioRpcError:
                return False

        await eventually(gone)
        await eventually(free)


async def test_journals_are_made_on_request(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that asks has its journal, be it at the second try; nonsense is answered and ends nothing."""
    provision_journal, faults = provision.provision_journal, [nats.errors.TimeoutError()]

    async def provision_at_second(*arguments: Any, **options: Any) -> None:
        if faults:
            raise faults.pop()
        await provision_journal(*arguments, **options)

    monkeypatch.setattr(provision, "provision_journal", provision_at_second)
    monkeypatch.setattr(provision, "_REQUEST_TIMEOUT_S", 1.0)
    async with exchange(own_server, tmp_path) as caller:
        await await_journal(own_connection, 4, DEADLINE_S)
        for payload in (b"", b"\xff", b'["provision",5]'):
            answer = await own_connection.request(subjects.provision(4), payload, timeout=DEADLINE_S)
            assert messages.decode_provision_reply(answer.data).error
        assert await caller.is_serving()


async def test_further_journals_are_trimmed_like_the_others(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path
) -> None:
    """Whoever starts the exchange again need not say so once more."""
    await provision.provision_shared(own_connection)
    await provision.provision_journal(own_connection, 1, trimmable=True)
    async with exchange(own_server, tmp_path):
        await await_journal(own_connection, 4, DEADLINE_S)
    assert await provision.is_trimmable(own_connection, 4)


async def test_sizes_never_change(own_server: NatsServer, tmp_path: Path) -> None:
    """A file with another tick size is refused and changes nothing; collars and new symbols are taken."""
    async with exchange(own_server, tmp_path):
        pass
    other = INSTRUMENTS.replace("AAPL", "NEW") + INSTRUMENTS.replace("0.01", "0.02")
    with pytest.raises(InstrumentsRefused, match=r"AAPL has tick_size 0\.01 and the file says 0\.02"):
        async with exchange(own_server, tmp_path, other):
            pass
    more = INSTRUMENTS + 'market_collar_percent = "5"\n' + INSTRUMENTS.replace("AAPL", "B.C")
    async with exchange(own_server, tmp_path, more) as caller:
        listed = await caller.instruments()
        assert [(i.symbol, i.market_collar_percent) for i in listed] == [("AAPL", "5"), ("B.C", "")]
    async with exchange(own_server, tmp_path, INSTRUMENTS.replace("0.01", "0.010")) as caller:
        listed = await caller.instruments()
        assert [(i.symbol, i.market_collar_percent) for i in listed] == [("AAPL", ""), ("B.C", "")]


async def test_calls_hear_that_the_exchange_is_starting(
    own_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of symbols take a while, and old reports too; whoever waits is told that it is at work."""
    may_publish, may_read = asyncio.Event(), asyncio.Event()

    async def publish_late(bucket: Bucket[InstrumentEntry], entries: list[InstrumentEntry]) -> None:
        await may_publish.wait()
        await publish_instruments(bucket, entries)

    class LateReader(ExecutionsReader):
        async def __aiter__(self) -> AsyncGenerator[Executions]:
            await may_read.wait()
            async for message in super().__aiter__():
                yield message

    monkeypatch.setattr(process, "publish_instruments", publish_late)
    monkeypatch.setattr(process, "ExecutionsReader", LateReader)
    file = tmp_path / "instruments.toml"
    file.write_text(INSTRUMENTS)
    address = f"127.0.0.1:{claim_port('127.0.0.1', 0, 'exchange')}"
    running = asyncio.create_task(run(ExchangeSettings(own_server.url, address, PASSWORD, file, None, 1)))
    caller = Caller(address)
    try:
        await asyncio.wait_for(caller.channel.channel_ready(), DEADLINE_S)
        await eventually(lambda: caller.is_serving(RECOVERING_ROLE))
        refusal = await refused(caller.instruments(), grpc.StatusCode.UNAVAILABLE)
        assert refusal.details() == "the exchange is starting: try again"
        may_publish.set()

        async def takes_calls() -> bool:
            with suppress(grpc.aio.AioRpcError):
                return len(await caller.instruments()) == 1
            return False

        await eventually(takes_calls)
        assert await caller.is_serving(RECOVERING_ROLE)
        assert not await caller.is_serving()
        may_read.set()
        await eventually(caller.is_serving)
        assert not await caller.is_serving(RECOVERING_ROLE)
    finally:
        await caller.channel.close(None)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_a_server_whose_jetstream_is_away_ends_a_start(
    own_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for a while, and then told what is amiss."""

    async def away(*_: Any, **__: Any) -> None:
        raise nats.errors.TimeoutError

    monkeypatch.setattr(provision, "provision_shared", away)
    monkeypatch.setattr(process, "START_DEADLINE_S", 0.3)
    with pytest.raises(ProcessFault, match="answers but its JetStream does not"):
        async with exchange(own_server, tmp_path):
            pass


async def test_calls_work_again_after_the_nats_server_was_killed(
    own_server: NatsServer,
    own_connection: Connection,
    two_engines: list[FakeEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While nats-server is away calls that need it wait or say so; when it is back they work again.

    What came meanwhile is lost: all books are asked for anew.
    """
    reconnected, told = FeedFollower.reconnected, asyncio.Event()

    def note_reconnected(follower: FeedFollower) -> None:
        reconnected(follower)
        told.set()

    monkeypatch.setattr(FeedFollower, "reconnected", note_reconnected)
    async with exchange(own_server, tmp_path) as caller:
        token = (await caller.register("ann")).token
        os.kill(own_server.pid, signal.SIGKILL)
        await own_server.wait()
        await own_server.restart()

        async def works() -> bool:
            try:
                return await caller.positions(token) == [] and (await caller.register("bob")).engine > 0
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False

        await eventually(works)
        await asyncio.wait_for(told.wait(), DEADLINE_S)


async def test_a_store_that_does_not_answer_is_told(
    own_server: NatsServer, two_engines: list[FakeEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who must be looked up there can try again: it is no fault of the call."""

    async def get(bucket: Bucket[Any], key: str) -> None:
        raise BucketUnavailable(f"{bucket} {key}")

    async with exchange(own_server, tmp_path) as caller:
        token = (await caller.register("ann")).token
        monkeypatch.setattr(Bucket, "get", get)
        for call in (caller.register("ann"), caller.positions(token)):
            error = await refused(call, grpc.StatusCode.UNAVAILABLE)
            assert error.details() == "the exchange cannot reach its storage just now; try again"


HUGE = b"%d" % 10**30
DEEP = b"[" * 100_000
NO_TEXT = b'{"address":"\xff","client_id":"\xff","symbol":"\xff"}'
BUCKETS = ("engines", "clients", "instruments")
JUNK: list[tuple[str, bytes, dict[str, str] | None]] = [
    ("provision.1", DEEP, None),
    ("standby.1", DEEP, None),
    ("standby.1", b'["standby",1,"junk",1,1,1,%b]' % HUGE, None),
    ("standby.1", b'["standby",%b,"junk",1,1,1,1]' % HUGE, None),
    *((f"$KV.{bucket}.x", b'{"x":' + DEEP, None) for bucket in BUCKETS),
    *((f"$KV.{bucket}.y", NO_TEXT, None) for bucket in BUCKETS),
    ("$KV.engines.abc", b"", {"KV-Operation": "DEL"}),
    ("$KV.engines.9", b'{"engine":9,"epoch":%b,"address":"junk","pid":1}' % HUGE, None),
    ("$KV.instruments.X", b'{"symbol":"a b*>","tick_size":"1","lot_size":"1"}', None),
    ("$KV.instruments.Y", b'{"symbol":"Y","tick_size":"%b","lot_size":"1"}' % (b"1" * 300_000), None),
]


async def test_junk_from_outside_ends_nothing(
    own_server: NatsServer, two_engines: list[FakeEngine], connections: "Connections", tmp_path: Path
) -> None:
    """What is no message, and no value of a bucket, is left out, now and by the next exchange."""
    nc = await connections.open(own_server.url)
    for attempt in ("running", "started again"):
        async with exchange(own_server, tmp_path) as caller:
            for subject, payload, headers in JUNK if attempt == "running" else ():
                await nc.publish(subject, payload, headers=headers)
            await nc.publish("$KV.engines.7", messages.encode(EngineEntry(7, 1, "host:7", 1)))

            async def all_read() -> bool:
                await nc.publish("standby.2", messages.encode(messages.StandbyStatus(2, "last", 1, 1, 1, 1)))
                addresses = [engine.address for engine in await caller.engines()]
                return addresses == ["host:1", "host:2", "host:7", "last"]

            await eventually(all_read)
            reply = ProvisionReply("the request on provision.1 is for engine 2")
            answer = await nc.request("provision.1", messages.encode(ProvisionRequest(2)), timeout=5)
            assert answer.data == messages.encode(reply)
            assert [instrument.symbol for instrument in await caller.instruments()] == ["AAPL"]


async def test_huge_numbers_are_not_shown(
    own_server: NatsServer, own_connection: Connection, two_engines: list[FakeEngine], tmp_path: Path
) -> None:
    """What no int64 can carry is no heartbeat and no book; sums of what it can are cut off at its end."""
    most = 2**63 - 1
    for number, level in ((3, (ASK, 101, most, most)), (4, (ASK, 101, 5, 10**30))):
        engine = FakeEngine(own_connection, number, levels=(level,))
        await engine.enter()
        await engine.start()
        two_engines.append(engine)
    async with exchange(own_server, tmp_path) as caller:

        async def shown() -> bool:
            await own_connection.publish("md.1.heartbeat", b'["heartbeat",1,3,%b,1,{}]' % HUGE)
            assert all(engine.batch_number <= 1 for engine in await caller.engines())
            book = await caller.stub.GetConsolidatedBook(pb.GetConsolidatedBookRequest(symbol="AAPL"))
            return any(
                (level.quantity, level.order_count, len(level.engines)) == (most, most, 2)
                for level in book.asks
            )

        await eventually(shown)


def test_a_command_that_does_not_start_says_why(tmp_path: Path) -> None:
    """In one line, without a traceback."""
    command = [sys.executable, "-m", "exchange.runtime.process", "--nats", "nats://127.0.0.1:1"]
    for arguments, text in (
        (["--listen", "0.0.0.0:0"], "set PASSWORD or give --password another one"),
        (["--listen", "127.0.0.1:0", "--instruments", "nowhere.toml"], "nowhere.toml cannot be read"),
    ):
        ended = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=clean_environment(),
        )
        assert (ended.returncode, text in ended.stderr, "Traceback" in ended.stderr) == (1, True, False), (
            ended.stderr
        )


async def test_the_process_stops_in_time(own_server: NatsServer, tmp_path: Path) -> None:
    """A process writes its log, and ends within 2 s of SIGTERM with status 0."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "exchange.runtime.process", "--nats", own_server.url),
        *("--listen", "127.0.0.1:0", "--log-dir", str(tmp_path / "logs")),
        env=clean_environment(),
    )
    log_file = tmp_path / "logs" / "exchange_logs" / "exchange.log"

    async def ready() -> bool:
        assert running.returncode is None
        return log_file.exists() and "exchange is ready" in log_file.read_text()

    await eventually(ready)
    running.terminate()
    async with asyncio.timeout(2.0):
        assert await running.wait() == 0


def clean_environment() -> dict[str, str]:
    """The environment without the settings of an exchange."""
    return {name: value for name, value in os.environ.items() if name not in ("PASSWORD", "IP_ADDR")}
