"""A market under load with and without the dashboard open, in turns: orders, processor time, frames.

    python benchmarks/dashboard.py [--rate 20000] [--seconds 10] [--rounds 3] [--no-page]

Two clients send limit orders in batches over OrderEntry, one to each engine, as fast as was asked for (`inf`:
as they can). With a Chromium and Playwright (`make browser` installs it) the page is open every other turn.
Shares of a core are those of whole processes; how much of the exchange's goes into publishing is measured
apart, as in `views.py`. All of it shares this machine, the browser's software rendering too.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import os
import random
import shutil
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import grpc
import uvloop
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc

from benchmarks.processes import cpu_seconds
from benchmarks.views import publishing
from simulation.cluster import Cluster

BATCH: Final = 100
MAX_BATCHES_OUT: Final = 8
"""Unanswered batches of one client: how long one takes must not decide how many there are."""

SYMBOLS: Final = ("AAPL", "MSFT", "GOOG", "AMZN")
MIDDLE: Final = 10_000
VIEWS_S: Final = 5
SETTLING_S: Final = 2.0
"""A page that was just opened is not counted for so long."""

PAGE_WORK: Final = {
    "all": "TaskDuration",
    "script": "ScriptDuration",
    "style": "RecalcStyleDuration",
    "layout": "LayoutDuration",
}
"""What the browser calls the page's work."""

FRAMES: Final = """seconds => new Promise(resolve => {
    let frames = 0, longest = 0, last = performance.now();
    const end = last + 1000 * seconds;
    const count = () => {
        const now = performance.now();
        frames += 1; longest = Math.max(longest, now - last); last = now;
        now < end ? requestAnimationFrame(count) : resolve([frames / seconds, longest]);
    };
    requestAnimationFrame(count);
})"""


@dataclass
class Trading:
    """How far one client is."""

    answered: int = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)


async def trade(exchange: str, engine: int, rate: float, trading: Trading) -> None:
    """Send orders to one engine until stopped, never making up for a time when it was slower."""
    async with grpc.aio.insecure_channel(exchange) as channel:
        market = matchbus_pb2_grpc.ExchangeStub(channel)
        reply = await market.RegisterClient(
            pb.RegisterClientRequest(
                client_id=f"bench{engine}", password="password", secret="s", preferred_engine=engine
            )
        )
    async with grpc.aio.insecure_channel(reply.engine_address) as channel:
        stub = matchbus_pb2_grpc.MatchingEngineStub(channel)
        call = stub.OrderEntry(metadata=(("authorization", f"Bearer {reply.token}"),))
        room = asyncio.Semaphore(MAX_BATCHES_OUT)

        async def count() -> None:
            async for answer in call:
                trading.answered += len(answer.replies)
                room.release()

        counting = asyncio.create_task(count())
        due = time.perf_counter()
        for request in orders(engine):
            if trading.stop.is_set():
                break
            await room.acquire()
            await call.write(request)
            due = max(due + BATCH / rate, time.perf_counter() - BATCH / rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await call.done_writing()
        await counting


def orders(engine: int) -> Iterator[pb.OrderEntryRequest]:
    """Batches of limit orders for ever, some of which trade."""
    draw, run, number = random.Random(engine), uuid.uuid4().hex[:8], 0
    while True:
        request = pb.OrderEntryRequest()
        for _ in range(BATCH):
            number += 1
            side = draw.choice((pb.SIDE_BUY, pb.SIDE_SELL))
            away = draw.randrange(-8, 40)
            request.commands.add().new.CopyFrom(
                pb.NewOrder(
                    client_order_id=f"{run}-{number}",
                    symbol=draw.choice(SYMBOLS),
                    side=side,
                    type=pb.ORDER_TYPE_LIMIT,
                    price=MIDDLE - away if side == pb.SIDE_BUY else MIDDLE + away,
                    quantity=draw.randrange(1, 10),
                    do_not_route=True,
                )
            )
        yield request


class Frames(NamedTuple):
    """What the page drew: frames a second, the longest, and its main thread's shares of a core by work."""

    per_s: float
    longest_ms: float
    shares: dict[str, float]


def chromium() -> str | None:
    """The browser, where there is one and Playwright to drive it."""
    if importlib.util.find_spec("playwright") is None:
        return None
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Any]:
    """The page in a Chromium of its own."""
    from playwright.async_api import async_playwright  # noqa: PLC0415 -- need not be installed

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            page = await browser.new_page(viewport={"width": 1400, "height": 900})
            await page.goto(url)
            await page.locator("#ladder .price:not(:empty)").first.wait_for(state="attached")
            yield page
        finally:
            await browser.close()


async def begin_watch(page: Any) -> Any:
    """Let the browser count what the page costs; the session to ask."""
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable", {"timeDomain": "threadTicks"})
    return session


async def spent_s(session: Any) -> dict[str, float]:
    """How much processor time the page's main thread has used, for what."""
    metrics = {
        item["name"]: item["value"] for item in (await session.send("Performance.getMetrics"))["metrics"]
    }
    return {name: float(metrics[metric]) for name, metric in PAGE_WORK.items()}


class Turn(NamedTuple):
    """What one turn came to."""

    orders_per_s: float
    shares: dict[str, float]
    frames: Frames | None


async def turn(cluster: Cluster, trading: list[Trading], seconds: float, *, with_page: bool) -> Turn:
    """Let the clients trade for so long, with the page open or not.

    Frames are counted after that, for as long again: counting makes the browser begin 60 of them a second.
    """
    async with contextlib.AsyncExitStack() as stack:
        page = await stack.enter_async_context(opened(cluster.dashboard_url)) if with_page else None
        session = None if page is None else await begin_watch(page)
        await asyncio.sleep(SETTLING_S)
        pids = {member.name: member.pid for member in cluster.members}
        answered = sum(client.answered for client in trading)
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        work = {} if session is None else await spent_s(session)
        begun = time.perf_counter()
        await asyncio.sleep(seconds)
        elapsed = time.perf_counter() - begun
        rate = (sum(client.answered for client in trading) - answered) / elapsed
        shares = {name: (cpu_seconds(pid) - before[name]) / elapsed for name, pid in pids.items()}
        if page is None:
            return Turn(rate, shares, None)
        done = await spent_s(session)
        per_s, longest_ms = await page.evaluate(FRAMES, seconds)
        page_shares = {name: (done[name] - spent) / elapsed for name, spent in work.items()}
        return Turn(rate, shares, Frames(per_s, longest_ms, page_shares))


async def measure(options: argparse.Namespace) -> None:
    """Run and print."""
    async with Cluster(engines=2, dashboard=True) as cluster, asyncio.TaskGroup() as group:
        trading = [Trading(), Trading()]
        for engine, client in enumerate(trading, 1):
            group.create_task(trade(cluster.exchange.address, engine, options.rate / 2, client))
        await asyncio.sleep(1)  # the books fill
        turns = []
        turn_kinds = (False,) if options.no_page or chromium() is None else (False, True)
        for _ in range(options.rounds):
            for with_page in turn_kinds:
                turns.append(await turn(cluster, trading, options.seconds, with_page=with_page))
                show(turns[-1])
        for client in trading:
            client.stop.set()
    rate = statistics.median(done.orders_per_s for done in turns if done.frames is None)
    print(f"without the page, the median: {rate:.0f} orders a second of {options.rate:.0f} asked for")
    watched = [(done.orders_per_s, done.frames.per_s) for done in turns if done.frames is not None]
    if watched:
        beside, frames = (statistics.median(column) for column in zip(*watched, strict=True))
        print(f"with the page, the median: {beside:.0f} orders a second, {frames:.0f} frames a second")
    cost = publishing(2, len(SYMBOLS), round(rate), VIEWS_S)
    print(
        f"publishing the views of so many orders: {100 * cost.share:.1f} % of a core, "
        f"{cost.messages:.0f} messages and {cost.octets / 1024:.0f} kB a second"
    )


def show(turn: Turn) -> None:
    """One turn in a line or two."""
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in turn.shares.items())
    kind = "no page" if turn.frames is None else "page   "
    print(f"{kind}  {turn.orders_per_s:6.0f} orders/s  {shares} of a core")
    if turn.frames is not None:
        work = ", ".join(f"{name} {100 * share:.0f} %" for name, share in turn.frames.shares.items())
        print(
            f"         {turn.frames.per_s:.0f} frames/s, the longest {turn.frames.longest_ms:.0f} ms; "
            f"main thread {work}"
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=20_000, help="orders a second, of both clients")
    parser.add_argument("--seconds", type=float, default=10, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3, help="of a turn without and one with the page")
    parser.add_argument("--no-page", action="store_true", help="open no browser")
    uvloop.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
