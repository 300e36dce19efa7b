"""A standby takes over: after a kill, from a frozen process that wakes up again, and when it is asked to."""

import asyncio
import itertools
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from matchbus.edge import STANDBY_ROLE
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc
from nats.aio.msg import Msg

from bus import subjects
from bus.connection import Connection, connect
from bus.messages import BookDelta, BookSnapshot, decode_feed
from bus.records import Record
from bus.stream import extent
from bus.stream_reader import StreamReader
from client import Client, Fill, OrderResult
from engine.runtime.commit_loop import REIGN_PATIENCE_S
from simulation.cluster import Cluster
from simulation.member import Member
from simulation.proxy import Condition, Proxy
from tests.system.engine_process import is_not_serving
from tests.system.venue import REPOSITORY, eventually, free_port, limit, show
from tests.waiting import frozen, until

SYMBOL = "AAPL"
WORST_OUTAGE_S = 3.0
LANES = 4
HOMES = (1, 2)
"""The engines of a market."""


class Load:
    """Clients that trade with each other without a break; the client library follows the engines."""

    def __init__(self, clients: list[Client]) -> None:
        self.clients = clients
        self.sent: dict[str, tuple[Client, str, Decimal]] = {}
        self.answers: dict[str, OrderResult] = {}
        self._numbers = itertools.count(1)
        self._stopped = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Trade during a block; what was begun in it is finished."""
        async with asyncio.TaskGroup() as group:
            for place, client in enumerate(self.clients):
                for lane in range(LANES):
                    group.create_task(self._trade(client, random.Random(f"{place} {lane}")))
            try:
                yield
            finally:
                self._stopped = True

    async def _trade(self, client: Client, draw: random.Random) -> None:
        while not self._stopped:
            side, price = draw.choice(("buy", "sell")), Decimal(draw.randint(9_997, 10_003)) / 100
            await self.submit(client, side, price, draw.choice((1, 2, 5)))

    async def submit(self, client: Client, side: str, price: Decimal, quantity: int) -> OrderResult:
        """One order, whatever happens to its engine."""
        name = f"o{next(self._numbers)}"
        self.sent[name] = client, side, price
        self.answers[name] = await client.submit(SYMBOL, side, quantity, price, client_order_id=name)
        return self.answers[name]

    async def acknowledged(self, count: int) -> None:
        """Wait for this many more answers."""
        goal = len(self.answers) + count

        async def reached() -> bool:
            return len(self.answers) >= goal

        await eventually(reached, 30, f"{count} more orders acknowledged")


class Seen:
    """The book feed of one engine, as anybody hears it."""

    def __init__(self) -> None:
        self.books: list[BookDelta | BookSnapshot] = []

    async def note(self, message: Msg) -> None:
        """Take one message of the feed."""
        book = decode_feed(message.data)
        assert isinstance(book, BookDelta | BookSnapshot)
        self.books.append(book)

    def check(self) -> None:
        """Epochs never fall, and from one to the next the sequences go on from what was shown."""
        shown, epoch = self.books[0].sequence, self.books[0].epoch
        for book in self.books[1:]:
            if book.epoch > epoch:
                assert isinstance(book, BookSnapshot), "a reign begins with a snapshot"
                assert book.sequence >= shown, "the successor has what its predecessor had shown"
                epoch = book.epoch
            elif book.epoch == epoch:
                assert book.sequence >= shown
                if isinstance(book, BookDelta):
                    assert book.previous_sequence == shown
            shown = max(shown, book.sequence)


class Market:
    """A cluster with standbys, two clients with homes on its two engines, and what they see."""

    def __init__(self, cluster: Cluster, nc: Connection, alice: Client, bob: Client, exchange: Any) -> None:
        self.cluster = cluster
        self.nc = nc
        self.alice = alice
        self.bob = bob
        self.exchange = exchange
        self.load = Load([alice, bob])
        self.seen = Seen()

    async def first_answer_s(self) -> float:
        """How long the next order of alice's takes."""
        began = time.monotonic()
        result = await self.load.submit(self.alice, "buy", Decimal("50.00"), 1)
        assert result.status == "new"
        return time.monotonic() - began

    async def history(self) -> list[list[Fill]]:
        """Everybody's fills."""
        return [[fill async for fill in client.fills(follow=False)] for client in (self.alice, self.bob)]

    async def settled(self) -> None:
        """Wait until nothing trades any more: every leg is back, and no two engines' orders cross."""

        async def is_settled() -> bool:
            before = await self.history()
            pending = [
                order
                for client in (self.alice, self.bob)
                for order in await client.open_orders()
                if order.status == "pending"
            ]
            shown = await self.exchange.GetConsolidatedBook(
                pb.GetConsolidatedBookRequest(symbol=SYMBOL), timeout=5
            )
            engines = (await self.exchange.ListEngines(pb.ListEnginesRequest(), timeout=5)).engines
            live = [engine for engine in engines if engine.state == pb.ENGINE_STATE_LIVE]
            apart = not shown.bids or not shown.asks or shown.bids[0].price < shown.asks[0].price
            return not pending and apart and len(live) == len(HOMES) and await self.history() == before

        await eventually(is_settled, 20, "nothing trades any more")

    async def everything(self) -> list[Any]:
        """Check that all that was answered is there, once, and adds up; returns what can be seen."""
        await self.settled()
        told = await self.history()
        for fills in told:
            assert [fill.sequence for fill in fills] == list(range(1, len(fills) + 1))
            assert max(Counter((fill.execution_id, fill.order_id) for fill in fills).values()) == 1
        orders = {}
        for name, answer in self.load.answers.items():
            client, side, price = self.load.sent[name]
            order = orders[name] = await client.order(client_order_id=name)
            assert (order.order_id, order.side, order.price) == (answer.order_id, side, price)
            mine = told[client is self.bob]
            traded = sum(fill.quantity for fill in mine if fill.order_id == order.order_id)
            assert order.cumulative_quantity == traded >= answer.cumulative_quantity
            assert order.quantity == traded + order.leaves_quantity + order.cancelled_quantity
            assert all(fill in mine for fill in answer.fills)
        assert len({order.order_id for order in orders.values()}) == len(orders)
        net = [
            sum(fill.quantity if fill.side == "buy" else -fill.quantity for fill in fills) for fills in told
        ]
        assert sum(net) == 0

        async def positions_follow() -> bool:
            held = [await client.positions() for client in (self.alice, self.bob)]
            return [own[SYMBOL].quantity if SYMBOL in own else 0 for own in held] == net

        await eventually(positions_follow, 10, "positions follow the fills")
        books = [await client.book(SYMBOL) for client in (self.alice, self.bob)]
        held = [await client.positions() for client in (self.alice, self.bob)]
        return [told, orders, books, held]

    async def standby_of(self, engine: int) -> pb.Engine | None:
        """The standby that the exchange shows for an engine."""
        reply = await self.exchange.ListEngines(pb.ListEnginesRequest(), timeout=5)
        for shown in reply.engines:
            if shown.engine == engine and shown.role == pb.ENGINE_ROLE_STANDBY:
                standby: pb.Engine = shown
                return standby
        return None

    async def until_back(self, primary: Member, pid: int) -> None:
        """Return when who reigned over engine 1 by this process id has ended, and stands by for it."""

        async def is_back() -> bool:
            shown = await self.standby_of(1)
            return primary.pid != pid and shown is not None and shown.address == primary.address

        await eventually(is_back, 20, f"{primary.name} ended and is back as a standby")

    async def records(self, engine: int) -> list[Record]:
        """Every record of a journal as it is stored, those of replaced epochs too."""
        stream = subjects.journal_stream(engine)
        end = (await extent(self.nc, stream)).last_seq
        reader = StreamReader(self.nc, stream)
        records: list[Record] = []
        while reader.next_sequence <= end:
            records += [msgspec.msgpack.decode(stored.payload, type=Record) for stored in await reader.read()]
        await reader.close()
        return records


@asynccontextmanager
async def open_market(cluster: Cluster, **options: Any) -> AsyncIterator[Market]:
    """The market of a cluster that runs; `options` are for the clients."""
    async with AsyncExitStack() as stack:
        address = cluster.exchange.address
        clients = [
            await stack.enter_async_context(
                Client.connect(
                    address,
                    client_id=name,
                    password="password",
                    secret=name,
                    preferred_engine=engine,
                    **options,
                )
            )
            for engine, name in enumerate(("alice", "bob"), start=1)
        ]
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        exchange = matchbus_pb2_grpc.ExchangeStub(channel)
        nc = await connect(cluster.nats_url, name="test", on_closed=lambda: None)
        stack.push_async_callback(nc.close)
        market = Market(cluster, nc, clients[0], clients[1], exchange)
        await nc.subscribe(subjects.book(1, SYMBOL), cb=market.seen.note)
        yield market


@pytest.fixture
async def make_market(tmp_path: Path) -> AsyncIterator[Callable[[int], Any]]:
    """Makes a market with so many standbys an engine."""
    async with AsyncExitStack() as stack:

        async def make(standbys: int) -> Market:
            cluster = await stack.enter_async_context(
                Cluster(engines=2, standbys=standbys, data_dir=tmp_path)
            )
            return await stack.enter_async_context(open_market(cluster))

        yield make


async def test_a_kill_loses_nothing_and_the_next_order_is_soon_answered(
    make_market: Callable[[int], Any],
) -> None:
    """Kill -9 of a primary under load, and once more with all quiet: the same market, seconds later."""
    market: Market = await make_market(1)
    cluster, load = market.cluster, market.load
    async with load.running():
        await load.acknowledged(200)
        before = await market.history()
        primary, standby = cluster.engines[1], cluster.standbys[1]
        os.kill(primary.pid, signal.SIGKILL)
        under_load_s = await market.first_answer_s()
        assert under_load_s < WORST_OUTAGE_S
        await load.acknowledged(200)
        after = await market.history()
        for earlier, later in zip(before, after, strict=True):
            assert later[: len(earlier)] == earlier
    assert (cluster.engines[1], cluster.standbys[1]) == (standby, primary)

    async def replaced() -> bool:
        shown = await market.standby_of(1)
        return shown is not None and shown.address == primary.address and not shown.lag_batches

    await eventually(replaced, 20, "the killed process is back as a standby")
    quiet = await market.everything()
    os.kill(standby.pid, signal.SIGKILL)
    quiet_s = await market.first_answer_s()
    assert quiet_s < WORST_OUTAGE_S
    load.answers.popitem()
    await market.alice.cancel(client_order_id=f"o{len(load.sent)}")
    told, orders, books, held = await market.everything()
    assert [told, orders, held] == [quiet[0], quiet[1], quiet[3]]
    assert [(book.bids, book.asks) for book in books] == [(book.bids, book.asks) for book in quiet[2]]
    assert cluster.engines[1] is primary
    market.seen.check()
    epochs = {book.epoch for book in market.seen.books}
    assert len(epochs) == 3
    show(f"next answer after {under_load_s * 1e3:.0f} ms under load, {quiet_s * 1e3:.0f} ms quiet")


async def test_a_frozen_primary_is_replaced_and_does_no_harm_when_it_wakes(
    make_market: Callable[[int], Any],
) -> None:
    """SIGSTOP under load: the standby takes over. SIGCONT: the zombie stores nothing and stands by."""
    market: Market = await make_market(1)
    cluster, load = market.cluster, market.load
    async with load.running():
        await load.acknowledged(100)
        primary, standby = cluster.engines[1], cluster.standbys[1]
        pid = primary.pid
        async with frozen(pid):
            frozen_s = await market.first_answer_s()
        assert cluster.engines[1] is standby
        await load.acknowledged(100)
    await market.until_back(primary, pid)
    records = await market.records(1)
    epochs = [record.epoch for record in records]
    assert epochs == sorted(epochs), "a replaced primary stored something after its successor"
    assert set(epochs) == {1, 2}
    assert [record.batch_number for record in records] == list(range(1, len(records) + 1))
    await market.everything()
    market.seen.check()
    show(f"next answer after {frozen_s * 1e3:.0f} ms with the primary frozen")


async def test_a_primary_that_is_cut_off_from_nats_sends_its_readers_away(tmp_path: Path) -> None:
    """They still reach it, but its state is old: reads are refused, and fills followed at its successor."""
    async with Proxy() as proxy:

        def through_proxy(name: str, url: str) -> str:
            if name != "engine 1":
                return url
            proxy.upstream_port = int(url.rpartition(":")[2])
            return proxy.url

        async with (
            Cluster(engines=2, standbys=1, data_dir=tmp_path, nats_url_of=through_proxy) as cluster,
            open_market(cluster) as market,
            follow(market.alice) as followed,
            reads(market, cluster.engines[1].address) as asked,
        ):
            primary, pid = cluster.engines[1], cluster.engines[1].pid
            await market.load.submit(market.alice, "sell", Decimal("100.00"), 2)
            await market.load.submit(market.bob, "buy", Decimal("100.00"), 1)
            await until(lambda: len(followed) == 1)
            for ask in asked:
                await ask()
            proxy.degrade(to_server=Condition(hole=True), to_process=Condition(hole=True))
            cut = time.monotonic()
            await until(lambda: cluster.engines[1] is not primary, 30)
            await market.load.submit(market.bob, "buy", Decimal("100.00"), 1)
            await asyncio.sleep(cut + REIGN_PATIENCE_S - time.monotonic())  # from then on for certain
            for ask in asked:
                with pytest.raises(grpc.aio.AioRpcError, match="lease of this engine is not ren") as refused:
                    await ask()
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            await eventually(partial(is_not_serving, primary.address), 2, "health says NOT_SERVING")
            await until(lambda: len(followed) == 2, 30)
            assert followed == [fill async for fill in market.alice.fills(follow=False)]
            proxy.heal()
            await market.until_back(primary, pid)
            await market.everything()


@asynccontextmanager
async def follow(client: Client) -> AsyncIterator[list[Fill]]:
    """All fills of a client, as the library gets them."""
    followed: list[Fill] = []

    async def note() -> None:
        async for fill in client.fills():
            followed.append(fill)  # noqa: PERF401 -- they are looked at before the last one came

    following = asyncio.create_task(note())
    try:
        yield followed
    finally:
        following.cancel()
        await asyncio.wait([following])


@asynccontextmanager
async def reads(market: Market, address: str) -> AsyncIterator[list[Callable[[], Awaitable[Any]]]]:
    """Everything that an engine can be asked, by a client that stays at this address."""
    request = pb.RegisterClientRequest(
        client_id="carol", password="password", secret="carol", preferred_engine=1
    )
    token = (await market.exchange.RegisterClient(request)).token
    async with grpc.aio.insecure_channel(address) as channel:
        stub = matchbus_pb2_grpc.MatchingEngineStub(channel)
        terms: dict[str, Any] = {"metadata": (("authorization", f"Bearer {token}"),), "timeout": 5}
        order = limit(SYMBOL, 1, 5000, 1)
        await stub.SubmitOrder(order, **terms)
        named = pb.GetOrderRequest(client_order_id=order.client_order_id)
        levels = pb.GetOrderBookRequest(
            symbol=SYMBOL, detail=pb.BOOK_DETAIL_LEVELS, scope=pb.BOOK_SCOPE_ENGINE
        )

        async def fills() -> None:
            async for _ in stub.GetFills(pb.GetFillsRequest(), **terms):
                pass

        yield [
            lambda: stub.GetOrder(named, **terms),
            lambda: stub.ListOpenOrders(pb.ListOpenOrdersRequest(), **terms),
            lambda: stub.GetOrderBook(levels, **terms),
            fills,
        ]


async def test_a_planned_hand_over_interrupts_for_a_moment(make_market: Callable[[int], Any]) -> None:
    """Under load: `matchbus handover` tells addresses and outage; the old one ends as planned."""
    market: Market = await make_market(1)
    cluster, load = market.cluster, market.load
    primary, standby = cluster.engines[1], cluster.standbys[1]
    async with load.running():
        await load.acknowledged(100)
        pid = primary.pid
        code, output = await run_handover(cluster.nats_url)
        assert code == 0, output
        told = re.search(r"E1 reigned at (\S+) and reigns at (\S+) in epoch 2. Outage: (\d+) ms", output)
        assert told is not None, output
        assert (told[1], told[2]) == (primary.address, standby.address)
        assert int(told[3]) < 1000
        await load.acknowledged(100)
    await market.until_back(primary, pid)
    assert cluster.engines[1] is standby
    log = (cluster.data_dir / "output" / "engine_1.log").read_text()
    assert "E1 is handed over" in log
    assert "ends:" not in log, "it ended as planned, not by a fault"
    await market.everything()
    market.seen.check()
    show(output)


async def test_an_engine_whose_number_reigns_stands_by(make_market: Callable[[int], Any]) -> None:
    """Without a standby there is no hand-over; a second process of one number is one, and says so."""
    market: Market = await make_market(0)
    code, output = await run_handover(market.cluster.nats_url)
    assert (code, "no standby of E1 was heard" in output) == (1, True), output
    assert "start one: `matchbus up --standbys 1`" in output
    address = f"127.0.0.1:{free_port()}"
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine.runtime.process", "--number", "1"),
        *("--nats", market.cluster.nats_url, "--listen", address),
        *("--state-dir", str(market.cluster.data_dir / "second")),
        cwd=REPOSITORY,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:

        async def shown() -> bool:
            standby = await market.standby_of(1)
            return standby is not None and (standby.address, standby.lag_batches) == (address, 0)

        await eventually(shown, 20, "the second process stands by")
        serving = health_pb2.HealthCheckResponse
        async with grpc.aio.insecure_channel(market.cluster.engines[1].address) as channel:
            assert await health_of(channel) == [serving.SERVING, serving.NOT_SERVING]
        async with grpc.aio.insecure_channel(address) as channel:
            assert await health_of(channel) == [serving.NOT_SERVING, serving.SERVING]
            stub = matchbus_pb2_grpc.MatchingEngineStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="stands by for E1") as refused:
                await stub.SubmitOrder(pb.NewOrder())
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await market.first_answer_s()
        code, output = await run_handover(market.cluster.nats_url)
        assert (code, address in output) == (0, True), output
        assert await market.first_answer_s() < WORST_OUTAGE_S
    finally:
        second.terminate()
        assert await second.wait() == 0


async def health_of(channel: grpc.aio.Channel) -> list[int]:
    """Whether a process serves, and whether it stands by."""
    health = health_pb2_grpc.HealthStub(channel)
    return [
        (await health.Check(health_pb2.HealthCheckRequest(service=service))).status
        for service in ("", STANDBY_ROLE)
    ]


async def run_handover(nats_url: str) -> tuple[int, str]:
    """`matchbus handover 1`: its exit code and all it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulation.matchbus", "handover", "1", "--nats", nats_url),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()
