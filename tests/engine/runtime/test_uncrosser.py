"""What crosses is found and uncrossed, by small engines over a real nats-server."""

import asyncio
from collections import deque

import pytest

from bus.connection import Connection
from engine.commands import AddInstrument, Command, NewOrder, Uncross
from engine.invariants import check
from engine.runtime import away, uncrosser
from engine.runtime.commit_loop import Submission
from engine.runtime.recovery import begin_reign
from engine.runtime.uncrosser import Uncrosser
from engine.terms import Side
from tests.engine.runtime.nodes import Node, Peer, tasks
from tests.waiting import until


async def test_a_crossing_that_nothing_announced_is_found(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quote that begins to count without changing is seen by the next look at all symbols."""
    monkeypatch.setattr(uncrosser, "LOOK_S", 0.01)
    async with tasks() as group:
        node = Node(engine, nats_connection, group)
        crossing: list[int] = []
        looks: list[str] = []

        def look(symbol: str) -> list[int]:
            looks.append(symbol)
            return crossing if symbol == "AAPL" else []

        group.create_task(Uncrosser(node.loop, look).run({"MSFT": 0, "AAPL": 0}))
        await until(lambda: len(looks) >= 10)
        assert node.loop.queued_commands == 0
        crossing.append(int(Side.SELL))
        await until(lambda: node.loop.queued_commands == 1)


async def test_uncrossing_is_asked_for_once_at_a_time(
    nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a quote changes meanwhile; and again at once when it still crosses afterwards."""
    async with tasks() as group:
        node = Node(engine, nats_connection, group)
        asked: list[Command] = []
        submit_own = node.loop.submit_own

        def submit(command: Command) -> asyncio.Future[Submission]:
            asked.append(command)
            return submit_own(command)

        monkeypatch.setattr(node.loop, "submit_own", submit)
        buy, sell = int(Side.BUY), int(Side.SELL)
        views = deque([[buy, sell], [buy, sell], [buy, sell], [buy], [buy]])
        asking = Uncrosser(node.loop, lambda symbol: views.popleft() if symbol == "AAPL" and views else [])
        await begin_reign(node.state, node.journal, 1, 1)
        node.state.list_instrument(AddInstrument("AAPL", "0.01", "1"))
        for symbol in ("AAPL", "AAPL", "MSFT", "AAPL"):
            asking.look(symbol)
        assert asked == [Uncross("AAPL", buy, ()), Uncross("AAPL", sell, ())]
        group.create_task(node.loop.run())
        await until(lambda: not views and node.loop.is_idle)
        assert asked[2:] == [Uncross("AAPL", buy, ())]
        assert await node.commands(Uncross) == []


async def test_very_many_orders_are_uncrossed_in_parts_without_a_wait(
    nats_connection: Connection, engine: int, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part follows when the one before is done, whatever else changes; no leg is sent twice."""
    monkeypatch.setattr(away, "MAX_UNCROSSED", 10)
    async with tasks() as group:
        await Peer(nats_connection, other).serve()  # it answers none, which takes a while to notice
        node = Node(engine, nats_connection, group)
        await node.start()
        bids = [NewOrder("mm", f"m{n}", "AAPL", 1, 1, 1, 200 + n % 7, 2) for n in range(95)]
        await node.loop.submit(bids)
        node.see(other, (101, 60), (102, 200))
        Uncrosser(node.loop, node.away.crossing).look("AAPL")
        await until(lambda: len(node.sent) == 95)
        await until(lambda: node.loop.is_idle)
        parts = [part for part in await node.commands(Uncross) if isinstance(part, Uncross)]
        quoted = [sum(level[1] for quote in part.away for level in quote.levels) for part in parts]
        assert quoted == [20] * 9 + [10]
        assert {leg.order_id for leg in node.sent} == set(node.state.orders)
        assert [leg.limit for leg in node.sent] == [101] * 30 + [102] * 65
        best_first = sorted(node.state.orders.values(), key=lambda order: (-order.price, order.id))
        assert [leg.order_id for leg in node.sent] == [order.id for order in best_first]
        check(node.state)
