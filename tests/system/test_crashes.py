"""Any process may be killed at any time: what was acknowledged is there, and trading goes on."""

import asyncio
import contextlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from matchbus.v1 import matchbus_pb2 as pb

from tests.system.test_three_engines import PriceLevels, check_pairs, combined, net
from tests.system.venue import (
    CALL_TIMEOUT_S,
    LONG,
    STOP_DEADLINE_S,
    Floor,
    Trader,
    Venue,
    eventually,
    expect_status,
    first_answer,
    floor,
    limit,
    run_command,
    scaled,
    show,
)
from tests.waiting import freeze, until

SYMBOLS = ("AAA", "BBB", "CCC")
LOAD_BETWEEN_KILLS = scaled(150, 1000)
"""Acknowledged orders from one kill to the next."""

PAUSE_S = 0.0 if LONG else 0.05
"""Between two commands of a lane: what starts again needs the processor to load what it imports."""

ASKED_TOGETHER = 64
"""How many orders are asked after at a time."""

KILLS = ("engine", "exchange", "both", "nats", "engine") * scaled(1, 5)


class Load:
    """Clients that submit and cancel in several lanes, each command until it is answered."""

    def __init__(self, traders: list[Trader]) -> None:
        self.traders = traders
        self.sent: dict[str, tuple[Trader, pb.NewOrder]] = {}
        self.answers: dict[str, pb.OrderReply] = {}
        self.cancelled: dict[str, pb.OrderReply] = {}
        self.retries = 0
        self.under_way: Counter[int] = Counter()
        """By engine: commands that wait for their answers."""
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Trade until told to stop; what was begun is finished. May be run again."""
        self._stop.clear()
        async with asyncio.TaskGroup() as group:
            for trader in self.traders:
                for lane in range(3):
                    group.create_task(self._trade(trader, random.Random(f"{trader.name} {lane}")))

    def stop(self) -> None:
        """Begin nothing new."""
        self._stop.set()

    async def _trade(self, trader: Trader, draw: random.Random) -> None:
        while not self._stop.is_set():
            order = limit(
                draw.choice(SYMBOLS), draw.choice((1, 2)), draw.randint(97, 103), draw.choice((1, 2, 5, 9))
            )
            identity = order.client_order_id
            self.sent[identity] = trader, order
            self.answers[identity] = await self._insist(trader, partial(trader.submit, order))
            if draw.random() < 0.3:
                reply = await self._insist(trader, partial(trader.cancel, identity))
                if not reply.reject_reason:
                    self.cancelled[identity] = reply
            await asyncio.sleep(PAUSE_S)

    async def _insist(self, trader: Trader, call: Callable[[], Any]) -> pb.OrderReply:
        while True:
            self.under_way[trader.engine] += 1
            try:
                reply: pb.OrderReply = await call()
            except grpc.aio.AioRpcError as error:
                expect_status(error, grpc.StatusCode.UNAVAILABLE)
                self.retries += 1
            else:
                return reply
            finally:
                self.under_way[trader.engine] -= 1
            await asyncio.sleep(0.05)

    async def are_under_way(self, engine: int) -> bool:
        """Whether commands wait for answers of this engine."""
        return self.under_way[engine] > 0

    async def acknowledged(self, count: int) -> None:
        """Wait until this many more orders are acknowledged."""
        goal = len(self.answers) + count

        async def reached() -> bool:
            return len(self.answers) >= goal

        await eventually(reached, 40, f"{count} more orders acknowledged after {len(self.answers)}")


async def history(trader: Trader) -> list[pb.Fill]:
    """All fills, however often the engine has to be asked."""
    async with asyncio.timeout(40):
        while True:
            try:
                return await trader.fills()
            except grpc.aio.AioRpcError as error:
                expect_status(error, grpc.StatusCode.UNAVAILABLE)
                await asyncio.sleep(0.05)


def victims(venue: Venue, what: str) -> list[int]:
    """The process ids to kill."""
    return {
        "engine": [venue.engine_pid(1)],
        "exchange": [venue.exchange_pid],
        "both": [venue.engine_pid(1), venue.exchange_pid],
        "nats": [venue.nats_pid],
    }[what]


@pytest.mark.timeout(600)
async def test_nothing_acknowledged_is_lost_by_kills_under_load_nor_by_a_restart(
    own_venue: Callable[..., Venue],
) -> None:
    """After each kill -9 histories only grow; at the end and after a start from snapshots all is there."""
    venue = own_venue(engines=2)
    async with floor(venue) as trading:
        traders = [await trading.trader(engine) for engine in (1, 1, 2, 2)]
        load = Load(traders)
        known: dict[str, list[pb.Fill]] = {trader.name: [] for trader in traders}
        async with asyncio.TaskGroup() as group:
            running = group.create_task(load.run())
            for what in KILLS:
                await load.acknowledged(LOAD_BETWEEN_KILLS)
                pids = victims(venue, what)
                await eventually(partial(load.are_under_way, 1), 10, "a command waits for its answer")
                for pid in pids:
                    venue.kill(pid)

                async def replaced(what: str = what, pids: list[int] = pids) -> bool:
                    return not set(victims(venue, what)) & set(pids)

                await eventually(replaced, 30, f"{what} started again")
                for trader in traders:
                    now = await history(trader)
                    assert now[: len(known[trader.name])] == known[trader.name]
                    known[trader.name] = now
            await load.acknowledged(LOAD_BETWEEN_KILLS)
            load.stop()
        assert running.done()
        show(f"{len(load.answers)} orders acknowledged, {load.retries} retries, {len(KILLS)} kills")
        before = await everything(trading, load, traders)
        for engine in ("1", "2"):
            run_command("snapshot", "make", engine, "--nats", venue.nats_url)
            assert "good" in run_command("snapshot", "verify", engine, "--nats", venue.nats_url)
        for trader in traders:
            assert dropped(venue, trader) == [fill.execution_id for fill in await trader.fills()]
    code, seconds = venue.stop()
    assert code == 0
    assert seconds < STOP_DEADLINE_S
    venue.start()
    for number in (1, 2):
        output = (venue.directory / "data" / "output" / f"engine_{number}.log").read_text()
        assert "loaded in" in output, "the last start began with the snapshot"
    async with floor(venue) as trading:
        again = [await trading.trader(name=trader.name) for trader in traders]
        assert [trader.engine for trader in again] == [trader.engine for trader in traders]
        load.sent = {
            identity: (again[traders.index(trader)], order) for identity, (trader, order) in load.sent.items()
        }
        assert await everything(trading, load, again) == before
        for identity in list(load.answers)[:50]:
            trader, order = load.sent[identity]
            reply = await trader.submit(order)
            assert reply.duplicate
            assert first_answer(reply) == first_answer(load.answers[identity])


def dropped(venue: Venue, trader: Trader) -> list[int]:
    """The executions of a client in the drop copy, in order."""
    options = ("--no-follow", "--json", "--client", trader.name, "--nats", venue.nats_url)
    reports = map(json.loads, run_command("dropcopy", *options).splitlines())
    return [report["execution_id"] for report in reports if report["kind"] == "fill"]


async def everything(trading: Floor, load: Load, traders: list[Trader]) -> list[object]:
    """Check that all that was acknowledged is there and adds up; returns what can be seen."""
    exchange = await trading.exchange()

    async def quiet() -> bool:
        """Whether nothing more trades by itself: what crosses is uncrossed once engines see each other."""
        try:
            engines = (await exchange.ListEngines(pb.ListEnginesRequest(), timeout=CALL_TIMEOUT_S)).engines
            for symbol in SYMBOLS:
                request = pb.GetConsolidatedBookRequest(symbol=symbol, depth=1)
                book = await exchange.GetConsolidatedBook(request, timeout=CALL_TIMEOUT_S)
                if book.best_bid.price >= book.best_ask.price > 0:
                    return False
        except grpc.aio.AioRpcError as error:
            expect_status(error, grpc.StatusCode.UNAVAILABLE)
            return False
        primaries = [engine for engine in engines if engine.role == pb.ENGINE_ROLE_PRIMARY]
        if any(engine.state != pb.ENGINE_STATE_LIVE for engine in primaries):
            return False
        open_orders = [order for trader in traders for order in await trader.open_orders()]
        return all(order.status != pb.ORDER_STATUS_PENDING for order in open_orders)

    await eventually(quiet, 10, "no order is pending, and no book crossed")
    seen = await states(load)
    fills = {trader.name: await trader.fills() for trader in traders}
    by_order: dict[int, list[pb.Fill]] = defaultdict(list)
    for trader in traders:
        assert [fill.sequence for fill in fills[trader.name]] == list(range(1, len(fills[trader.name]) + 1))
        for fill in fills[trader.name]:
            by_order[fill.order_id].append(fill)
    check_pairs([fill for told in fills.values() for fill in told])
    open_orders = {trader.name: await trader.open_orders() for trader in traders}
    open_ids = {name: {order.order_id for order in orders} for name, orders in open_orders.items()}
    for (identity, reply), state in zip(load.answers.items(), seen, strict=True):
        trader, order = load.sent[identity]
        assert (state.order_id, state.quantity, state.price) == (reply.order_id, order.quantity, order.price)
        traded = by_order[state.order_id]
        assert all(fill in traded for fill in reply.fills)
        assert state.cumulative_quantity == sum(fill.quantity for fill in traded) >= reply.cumulative_quantity
        assert order.quantity == state.cumulative_quantity + state.leaves_quantity + state.cancelled_quantity
        assert (state.order_id in open_ids[trader.name]) == (state.leaves_quantity > 0)
        if identity in load.cancelled:
            assert not state.leaves_quantity
    assert len(load.answers) == len({state.order_id for state in seen}), "two orders have one id"
    assert by_order.keys() == {state.order_id for state in seen}, "an order traded that nobody entered"
    assert sum(map(len, open_ids.values())) == sum(state.leaves_quantity > 0 for state in seen)
    for engine in {trader.engine for trader in traders}:
        await check_books(engine, traders, open_orders)

    async def positions_agree() -> bool:
        told = {trader.name: await trading.positions(trader) for trader in traders}
        return told == {name: net(own) for name, own in fills.items()}

    await eventually(positions_agree, 10, "positions follow the fills")
    return [*seen, fills, open_ids]


async def states(load: Load) -> list[pb.OrderState]:
    """How every acknowledged order stands, in their order."""
    names = list(load.answers)
    found: list[pb.OrderState] = []
    for start in range(0, len(names), ASKED_TOGETHER):
        together = names[start : start + ASKED_TOGETHER]
        found += await asyncio.gather(*(load.sent[identity][0].order(identity) for identity in together))
    return found


async def check_books(
    engine: int, traders: list[Trader], open_orders: dict[str, list[pb.OrderState]]
) -> None:
    """Check that an engine's own books are what its clients' open orders add up to."""
    at_home = [trader for trader in traders if trader.engine == engine]
    for symbol in SYMBOLS:
        expected: PriceLevels = ({}, {})
        for order in (order for trader in at_home for order in open_orders[trader.name]):
            if order.symbol == symbol:
                side = expected[order.side != pb.SIDE_BUY]
                side[order.price] = side.get(order.price, 0) + order.leaves_quantity
        assert combined([await at_home[0].book(symbol)]) == expected


async def test_a_snapshot_maker_dies_with_its_engine(own_venue: Callable[..., Venue]) -> None:
    """None is left behind: it would hold a whole state, and wait for its journal for ever."""
    venue = own_venue(engines=1, options=("--snapshot-every", "100"))
    async with floor(venue) as trading:
        trader = await trading.trader()
        engine = venue.engine_pid(1)

        async def maker() -> int:
            await trader.enter([[pb.Command(new=limit("AAA", 1, 50, 1)) for _ in range(100)]])
            return next((pid for pid in snapshot_makers() if parent(pid) == engine), 0)

        pid = await eventually(maker, 20, "a snapshot is being made")
        await freeze(pid)  # so that it cannot end by itself
        venue.kill(engine)

        async def is_gone() -> bool:
            return pid not in snapshot_makers()

        await eventually(is_gone, 10, "its maker ends")


async def test_an_engine_that_may_start_no_process_goes_on_serving(
    few_threads: Callable[[int], AbstractContextManager[None]], own_venue: Callable[..., Venue]
) -> None:
    """It makes no snapshot, and takes connections and orders as before."""
    venue = own_venue(engines=1, options=("--snapshot-every", "100"))
    log = venue.directory / "data/output/engine_1.log"
    async with floor(venue) as trading:
        trader = await trading.trader()
        with few_threads(venue.engine_pid(1)):
            await trader.enter([[pb.Command(new=limit("AAA", 1, 50, 1)) for _ in range(100)]])
            await until(lambda: "its maker was not started" in log.read_text(), 20)
    # Connections of their own: those that were there live on where no new one is answered.
    for _ in range(3):
        async with floor(venue) as trading:
            trader = await trading.trader()
            assert (await trader.limit("BBB", 1, 50, 1)).status == pb.ORDER_STATUS_NEW


def snapshot_makers() -> list[int]:
    """The processes that make snapshots, of any market."""
    made_by = b"-m\0engine.runtime.snapshots\0"
    found = []
    for commands in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if made_by in commands.read_bytes().partition(b"\0")[2][: len(made_by)]:
                found.append(int(commands.parent.name))
    return found


def parent(pid: int) -> int:
    """The parent of a process; 0 when it has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
