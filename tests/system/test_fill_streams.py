"""GetFills: complete on every resume, several at once, and a reader that never reads harms nobody."""

import asyncio
import socket
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from matchbus.v1 import matchbus_pb2 as pb

from engine.runtime.servicer import MAX_FILL_STREAMS
from tests.system.test_crashes import history
from tests.system.venue import Trader, Venue, expect_status, floor, fresh, limit, own_bytes, show
from tests.waiting import until

MEGABYTE = 1024 * 1024
STALLED_FILLS = 50_000
STALLED_READERS = 6
STALL_S = 8.5
"""Longer than an engine waits for a reader: 5 s, and half of that again where it was held up itself."""

LEFT_ALONE = (("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0))
"""A connection of its own, whose window does not grow to the 6 MB that it may have."""


async def trade(maker: Trader, taker: Trader, symbol: str, count: int) -> None:
    """`count` trades of one lot, through OrderEntry in batches of 100."""

    def batches(side: int) -> list[list[pb.Command]]:
        orders = [limit(symbol, side, 100, 1) for _ in range(count)]
        return [
            [pb.Command(new=order) for order in orders[start : start + 100]] for start in range(0, count, 100)
        ]

    assert len(await maker.enter(batches(2))) == count
    replies = await taker.enter(batches(1))
    assert sum(reply.status == pb.ORDER_STATUS_FILLED for reply in replies) == count


async def test_every_resume_continues_where_the_last_one_ended(one_engine: Venue) -> None:
    """Since, follow and two streams at once give the same gap-free history, cut wherever it is cut."""
    async with floor(one_engine) as trading:
        maker, taker = await trading.trader(), await trading.trader()
        followed: dict[str, list[pb.Fill]] = {"one": [], "other": []}

        async def follow(name: str, resume_every: int) -> None:
            seen = followed[name]
            while len(seen) < 1200:
                call = taker.follow(since=seen[-1].sequence if seen else 0)
                fresh_here = 0
                async for batch in call:
                    seen.extend(batch.fills)
                    fresh_here += len(batch.fills)
                    if len(seen) >= 1200 or fresh_here >= resume_every:
                        break
                call.cancel()

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(follow("one", 10**9))
            group.create_task(follow("other", 150))
            for _ in range(4):
                await trade(maker, taker, "S390", 300)
        history = await taker.fills()
        assert [fill.sequence for fill in history] == list(range(1, 1201))
        assert followed == {"one": history, "other": history}
        for since in (0, 1, 599, 1199, 1200, 5000):
            assert await taker.fills(since) == history[since:]
        opposite = await maker.fills()
        assert [fill.execution_id for fill in opposite] == [fill.execution_id for fill in history]
        assert [fill.timestamp_ns for fill in history] == sorted(fill.timestamp_ns for fill in history)


async def test_a_stream_tells_at_once_that_it_was_accepted(one_engine: Venue) -> None:
    """Before there is anything to say: some wait for the headers of a call, in every language of gRPC."""
    async with floor(one_engine) as trading:
        trader = await trading.trader()
        for call in (trader.follow(), trader.stub.OrderEntry(metadata=trader.metadata)):
            await asyncio.wait_for(call.wait_for_connection(), 20)
            call.cancel()


async def test_a_follower_survives_the_kill_of_its_engine(own_venue: Callable[..., Venue]) -> None:
    """A follower that comes back with its last sequence misses nothing and sees nothing twice."""
    venue = own_venue(engines=1)
    async with floor(venue) as trading:
        maker, taker = await trading.trader(), await trading.trader()
        seen: list[pb.Fill] = []

        async def follow() -> None:
            while len(seen) < 200:
                call = taker.follow(since=len(seen))
                try:
                    async for batch in call:
                        seen.extend(batch.fills)
                        if len(seen) >= 200:
                            break
                except grpc.aio.AioRpcError as error:
                    expect_status(error, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                    await asyncio.sleep(0.05)
                call.cancel()

        async with asyncio.timeout(40), asyncio.TaskGroup() as group:
            group.create_task(follow())
            await trade(maker, taker, "AAA", 100)
            venue.kill(venue.engine_pid(1))
            await history(maker)  # so the engine serves again
            await trade(maker, taker, "AAA", 100)
        assert [fill.sequence for fill in seen] == list(range(1, 201))
        assert seen == await taker.fills()


async def test_a_long_history_is_whole_though_its_engine_holds_only_the_end(
    own_venue: Callable[..., Venue],
) -> None:
    """Any part of it can be had, from before and after a kill, alike each time, by several at once."""
    venue = own_venue(engines=1, options=("--snapshot-every", "20000"))
    async with floor(venue) as trading:
        maker, taker = await trading.trader(), await trading.trader()
        await trade(maker, taker, "AAA", 25_000)
        whole = await maker.fills()
        assert [fill.sequence for fill in whole] == list(range(1, 25_001))
        venue.kill(venue.engine_pid(1))
        assert await history(maker) == whole
        await trade(maker, taker, "AAA", 20_000)
        sinces = (0, 1, 9_999, 10_000, 20_000, 24_999, 39_999, 45_000)
        rests = await asyncio.gather(*(maker.fills(since) for since in sinces))
        assert rests[0][:25_000] == whole
        for since, rest in zip(sinces, rests, strict=True):
            assert rest == rests[0][since:]
        theirs = await taker.fills()
        assert [fill.execution_id for fill in theirs] == [fill.execution_id for fill in rests[0]]


async def test_a_stalled_reader_is_cut_off_and_resumes(one_engine: Venue) -> None:
    """Who takes nothing for 5 s is told RESOURCE_EXHAUSTED, and misses nothing when it comes back.

    Until then several of them cost the engine a few MB each, and other clients nothing.
    """
    async with floor(one_engine) as trading, AsyncExitStack() as stack:
        maker, taker, bystander = [await trading.trader() for _ in range(3)]
        await trade(maker, taker, "S392", STALLED_FILLS)
        pid = one_engine.engine_pid(1)
        before = most = await most_bytes(
            pid, asyncio.gather(*(taker.fills() for _ in range(STALLED_READERS)))
        )
        calls = []
        for _ in range(STALLED_READERS):
            channel = grpc.aio.insecure_channel(one_engine.address(1), options=LEFT_ALONE)
            await stack.enter_async_context(channel)
            taker.move(channel)
            calls.append(taker.follow())
            stack.callback(calls[-1].cancel)
        taken = [[fill async for batch in first_only(call) for fill in batch.fills] for call in calls]
        slowest_s = 0.0
        stall_ends = time.monotonic() + STALL_S
        while (began := time.monotonic()) < stall_ends:
            await bystander.limit("S388", 1, 50, 1)
            slowest_s = max(slowest_s, time.monotonic() - began)
            most = max(most, own_bytes(pid))
        show(
            f"{STALLED_READERS} stalled readers: the engine grew {(most - before) / MEGABYTE:.1f} MB, "
            f"and the slowest other order took {slowest_s:.3f} s"
        )
        assert most - before < STALLED_READERS * 8 * MEGABYTE
        assert slowest_s < 2
        for call, seen in zip(calls, taken, strict=True):
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                await read_on(call, seen)
            assert cut.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "ask again since your last sequence" in str(cut.value.details())
            assert len(seen) < STALLED_FILLS // 10, "no more than the connection holds was sent"
        rest = await taker.fills(taken[0][-1].sequence)
        assert [fill.sequence for fill in taken[0] + rest] == list(range(1, STALLED_FILLS + 1))
        assert one_engine.engine_pid(1) == pid


async def most_bytes(pid: int, reading: asyncio.Future[Any]) -> int:
    """What a process has at most while readers who take everything read; the heap gives some of it back."""
    most = own_bytes(pid)
    while not reading.done():
        await asyncio.wait((reading,), timeout=0.01)
        most = max(most, own_bytes(pid))
    await reading
    return most


async def read_on(call: AsyncIterable[pb.FillBatch], taken: list[pb.Fill]) -> None:
    """Read a stream to its end, up to a deadline."""
    async with asyncio.timeout(10):
        async for batch in call:
            taken.extend(batch.fills)


async def first_only(call: AsyncIterable[pb.FillBatch]) -> AsyncIterator[pb.FillBatch]:
    """One batch of a stream."""
    async for batch in call:
        yield batch
        return


async def test_too_many_streams_are_refused_and_closed_ones_make_room(one_engine: Venue) -> None:
    """A client cannot hold streams without end, and what it closes or abandons is free again."""
    async with floor(one_engine) as trading:
        trader = await trading.trader()
        for _ in range(3):
            calls = [trader.follow() for _ in range(40)]
            codes = [asyncio.ensure_future(call.code()) for call in calls]
            await until(lambda codes=codes: sum(map(asyncio.Future.done, codes)) >= 40 - MAX_FILL_STREAMS)  # type: ignore[misc]  # mypy does not see the default's type
            ended = [code.result() for code in codes if code.done()]
            assert ended == [grpc.StatusCode.RESOURCE_EXHAUSTED] * (40 - MAX_FILL_STREAMS)
            for call in calls:
                call.cancel()
            async with asyncio.timeout(5):
                while True:
                    try:
                        assert await trader.fills() == []
                        break
                    except grpc.aio.AioRpcError as error:
                        expect_status(error, grpc.StatusCode.RESOURCE_EXHAUSTED)
                        await asyncio.sleep(0.02)


async def test_half_open_connections_do_not_hurt(one_engine: Venue) -> None:
    """Raw connections that say nothing, or something that is no HTTP/2, leave the engine as it was."""
    host, port = one_engine.address(1).rsplit(":", 1)
    pid = one_engine.engine_pid(1)
    held = [socket.create_connection((host, int(port)), timeout=5) for _ in range(50)]
    for number, connection in enumerate(held):
        connection.sendall(
            (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 4096, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[number % 4]
        )
    async with floor(one_engine) as trading:
        trader = await trading.trader(name=fresh("beside"))
        assert (await trader.limit("S387", 1, 50, 1)).status == pb.ORDER_STATUS_NEW
    for connection in held:
        connection.close()
    assert one_engine.engine_pid(1) == pid
