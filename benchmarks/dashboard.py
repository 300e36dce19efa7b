"""A market under load with and without the dashboard open, in turns: orders, processor time, frames.

    python benchmarks/dashboard.py [--rate 20000] [--seconds 10] [--rounds 3] [--no-page]

Two clients send limit orders in batches over OrderEntry, one to each engine, as fast as was asked for (`inf`:
as they can). With a Chromium and Playwright (`make browser` installs it) the page is open every other turn.
Shares of a core are those of whole processes; what of the exchange's is for publishing is measured apart, as
`views.py` does. All of it shares this machine, the browser's software rendering too.
"""

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import statistics
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import uvloop
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc

from benchmarks.views import publishing
from simulation.cluster import Cluster

BATCH: Final = 100
SYMBOLS: Final = ("AAPL", "MSFT", "GOOG", "AMZN")
MIDDLE: Final = 10_000
VIEWS_S: Final = 5
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


def processor_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Trading:
    """How far one client is."""

    answered: int = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)


async def trade(exchange: str, engine: int, rate: float, trading: Trading) -> None:
    """Send orders to one engine until stopped, never making up for a time when it was slower."""
    async with grpc.aio.insecure_channel(exchange) as channel:
        market = matchbus_pb2_grpc.ExchangeStub(channel)  # type: ignore[no-untyped-call]
        reply = await market.RegisterClient(
            pb.RegisterClientRequest(
                client_id=f"bench{engine}", password="password", secret="s", preferred_engine=engine
            )
        )
    draw, run, number = random.Random(engine), uuid.uuid4().hex[:8], 0
    async with grpc.aio.insecure_channel(reply.engine_address) as channel:
        stub = matchbus_pb2_grpc.MatchingEngineStub(channel)  # type: ignore[no-untyped-call]
        call = stub.OrderEntry(metadata=(("authorization", f"Bearer {reply.token}"),))
        due = time.perf_counter()
        while not trading.stop.is_set():
            commands = []
            for _ in range(BATCH):
                number += 1
                side = draw.choice((pb.SIDE_BUY, pb.SIDE_SELL))
                away = draw.randrange(-8, 40)
                commands.append(
                    pb.Command(
                        new=pb.NewOrder(
                            client_order_id=f"{run}-{number}",
                            symbol=draw.choice(SYMBOLS),
                            side=side,
                            type=pb.ORDER_TYPE_LIMIT,
                            price=MIDDLE - away if side == pb.SIDE_BUY else MIDDLE + away,
                            quantity=draw.randrange(1, 10),
                            do_not_route=True,
                        )
                    )
                )
            await call.write(pb.OrderEntryRequest(commands=commands))
            trading.answered += len((await call.read()).replies)
            due = max(due + BATCH / rate, time.perf_counter() - BATCH / rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await call.done_writing()


class Frames(NamedTuple):
    """What the page drew: frames a second, the longest, and its main thread's shares of a core by work."""

    per_s: float
    longest_ms: float
    shares: dict[str, float]


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Any]:
    """The page in a Chromium of its own."""
    from playwright.async_api import async_playwright  # noqa: PLC0415  # need not be installed

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            page = await browser.new_page(viewport={"width": 1400, "height": 900})
            await page.goto(url)
            await page.locator("#ladder .price:not(:empty)").first.wait_for(state="attached")
            yield page
        finally:
            await browser.close()


async def watch(page: Any, seconds: float) -> Frames:
    """Count the page's frames for so long."""
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = await spent_s(session)
    per_s, longest_ms = await page.evaluate(FRAMES, seconds)
    after = await spent_s(session)
    return Frames(per_s, longest_ms, {name: (after[name] - before[name]) / seconds for name in PAGE_WORK})


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
    """Let the clients trade for so long, with the page open or not."""
    async with contextlib.AsyncExitStack() as stack:
        page = await stack.enter_async_context(opened(cluster.dashboard_url)) if with_page else None
        pids = {member.name: member.pid for member in cluster.members}
        answered = sum(client.answered for client in trading)
        before = {name: processor_s(pid) for name, pid in pids.items()}
        begun = time.perf_counter()
        frames = None
        if page is None:
            await asyncio.sleep(seconds)
        else:
            frames = await watch(page, seconds)
        elapsed = time.perf_counter() - begun
        shares = {name: (processor_s(pid) - before[name]) / elapsed for name, pid in pids.items()}
        return Turn((sum(client.answered for client in trading) - answered) / elapsed, shares, frames)


async def measure(options: argparse.Namespace) -> None:
    """Run and print."""
    async with Cluster(engines=2, dashboard=True) as cluster, asyncio.TaskGroup() as group:
        trading = [Trading(), Trading()]
        for engine, client in enumerate(trading, 1):
            group.create_task(trade(cluster.exchange.address, engine, options.rate / 2, client))
        await asyncio.sleep(1)  # the books fill
        turns = []
        for _ in range(options.rounds):
            for with_page in (False,) if options.no_page else (False, True):
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
