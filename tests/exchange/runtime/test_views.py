"""What an exchange's process shows of the market, by gRPC, NATS and metrics."""

import asyncio
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import msgspec
import pytest
from matchbus.v1 import matchbus_pb2 as pb
from nats.aio.msg import Msg

from bus import messages, subjects
from bus.connection import Connection
from bus.executions import ExecutionsWriter
from bus.messages import ASK, EngineEntry, Executions
from bus.server import NatsServer
from bus.tokens import Tokens
from bus.view_messages import EnginesView, SymbolsView, ViewSymbol
from exchange.directory import Directory
from exchange.market_views import MarketViews
from exchange.runtime import feeds, process
from exchange.runtime.metrics import ExchangeCollector, StreamSizes, ViewCounts
from exchange.runtime.servicer import REGISTRATION_OUTCOMES
from tests.exchange.runtime.nodes import (
    DEADLINE_S,
    FakeEngine,
    eventually,
    exchange,
    fill,
    refused,
    violated_field,
)
from tests.waiting import until


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


async def test_a_bad_request_for_a_book_names_field_and_value(own_server: NatsServer, tmp_path: Path) -> None:
    """A depth below zero, no symbol, and one that is no symbol."""
    async with exchange(own_server, tmp_path) as caller:
        for request, field, value in (
            (pb.GetConsolidatedBookRequest(symbol="AAPL", depth=-1), "depth", "-1"),
            (pb.GetConsolidatedBookRequest(symbol="md.>"), "symbol", "'md.>'"),
            (pb.GetConsolidatedBookRequest(), "symbol", "''"),
        ):
            error = await refused(caller.stub.GetConsolidatedBook(request), grpc.StatusCode.INVALID_ARGUMENT)
            assert violated_field(error) == field
            assert (error.details() or "").startswith(f"{field}: {value} ")


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
        await until(lambda: "view.trades.AAPL" in seen)
        await until(lambda: seen.get("nbbo.AAPL", {}).get("ask") == [101, 14, 4])
        assert seen["view.symbols"]["symbols"] == [{"symbol": "AAPL", "tick_size": "0.01", "lot_size": "1"}]
        assert seen["view.book.AAPL"]["bids"] == [[99, 5, 1, [[1, 5, 1]]], [98, 5, 1, [[2, 5, 1]]]]
        assert trades == [[1, 0, 101, 5, 2]]
        assert [engine["state"] for engine in seen["view.engines"]["engines"]] == ["live", "live"]
        await two_engines[0].stop()

        def one_is_down() -> bool:
            states = [engine["state"] for engine in seen["view.engines"]["engines"]]
            return states == ["down", "live"] and seen["view.book.AAPL"]["bids"] == [[98, 5, 1, [[2, 5, 1]]]]

        await until(one_is_down)


async def test_views_begin_with_the_whole_market(
    own_server: NatsServer,
    own_connection: Connection,
    two_engines: list[FakeEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the first answers nor the first views lack an engine, symbol or price, as if it were gone."""
    monkeypatch.setattr(process, "FEEDS_PATIENCE_S", DEADLINE_S)
    first: dict[str, Any] = {}

    async def keep(message: Msg) -> None:
        first.setdefault(message.subject, msgspec.json.decode(message.data))

    for subject in (subjects.VIEW_ENGINES, subjects.VIEW_SYMBOLS, subjects.nbbo("AAPL")):
        await own_connection.subscribe(subject, cb=keep)
    async with exchange(own_server, tmp_path) as caller:
        assert await caller.sees_two_live_engines()
        request = pb.GetConsolidatedBookRequest(symbol="AAPL")
        assert (await caller.stub.GetConsolidatedBook(request)).best_ask.quantity == 14
        await until(lambda: len(first) == 3)
        engines = first["view.engines"]["engines"]
        assert [(engine["engine"], engine["state"]) for engine in engines] == [(1, "live"), (2, "live")]
        assert (first["nbbo.AAPL"]["bid"], first["nbbo.AAPL"]["ask"]) == ([99, 5, 1], [101, 14, 4])
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
        published, dropped = counts.published, counts.dropped
        await until(lambda: counts.published > published)
        with monkeypatch.context() as no_room:
            no_room.setattr(process, "_MAX_UNSENT_VIEWS_BYTES", 0)
            await until(lambda: counts.dropped > dropped)
        os.kill(own_server.pid, signal.SIGKILL)
        await own_server.wait()
        dropped = counts.dropped
        await until(lambda: counts.dropped > dropped)
        await own_server.restart()
        published = counts.published
        await until(lambda: counts.published > published)


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
            await own_connection.publish("md.1.heartbeat", b'["heartbeat",1,3,%d,1,{}]' % 10**30)
            assert all(engine.batch_number <= 1 for engine in await caller.engines())
            book = await caller.stub.GetConsolidatedBook(pb.GetConsolidatedBookRequest(symbol="AAPL"))
            return any(
                (level.quantity, level.order_count, len(level.engines)) == (most, most, 2)
                for level in book.asks
            )

        await eventually(shown)
