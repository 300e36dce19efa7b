"""A market under load with the dashboard on it: what the exchange needs, and how many frames the page makes.

    python benchmarks/dashboard.py [--rate 20000] [--seconds 20] [--no-page]

Two clients send limit orders in batches over OrderEntry, one to each engine, as fast as was asked for. With a
Chromium and Playwright (`make browser` installs it) the page is open meanwhile. Shares of a core are those of
whole processes. All of it shares this machine, the browser's software rendering too.
"""

import argparse
import asyncio
import os
import random
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import uvloop
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc

from simulation.cluster import Cluster

BATCH = 100
SYMBOLS = ("AAPL", "MSFT", "GOOG", "AMZN")
MIDDLE = 10_000
FRAMES = """seconds => new Promise(resolve => {
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


async def trade(exchange: str, engine: int, rate: float, stop: asyncio.Event) -> int:
    """Send orders to one engine until stopped; how many were answered."""
    async with grpc.aio.insecure_channel(exchange) as channel:
        market = matchbus_pb2_grpc.ExchangeStub(channel)  # type: ignore[no-untyped-call]
        reply = await market.RegisterClient(
            pb.RegisterClientRequest(
                client_id=f"bench{engine}", password="password", secret="s", preferred_engine=engine
            )
        )
    draw, run, number, answered = random.Random(engine), uuid.uuid4().hex[:8], 0, 0
    async with grpc.aio.insecure_channel(reply.engine_address) as channel:
        stub = matchbus_pb2_grpc.MatchingEngineStub(channel)  # type: ignore[no-untyped-call]
        call = stub.OrderEntry(metadata=(("authorization", f"Bearer {reply.token}"),))
        begun = time.perf_counter()
        while not stop.is_set():
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
            answered += len((await call.read()).replies)
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
        await call.done_writing()
    return answered


async def watch(url: str, seconds: float) -> tuple[float, float, float] | None:
    """Frames a second, the longest in ms, and the main thread's share of a core; None without a browser."""
    try:
        from playwright.async_api import async_playwright  # noqa: PLC0415  # need not be installed
    except ImportError:
        return None
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        return None
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page: Any = await browser.new_page(viewport={"width": 1400, "height": 900})
        await page.goto(url)
        session = await page.context.new_cdp_session(page)
        await session.send("Performance.enable", {"timeDomain": "threadTicks"})
        before = await busy_s(session)
        frames, longest = await page.evaluate(FRAMES, seconds)
        busy = (await busy_s(session) - before) / seconds
        await browser.close()
        return frames, longest, busy


async def busy_s(session: Any) -> float:
    """How much processor time the page's main thread has used."""
    metrics = (await session.send("Performance.getMetrics"))["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))


async def measure(options: argparse.Namespace) -> None:
    """Run and print."""
    async with Cluster(engines=2, dashboard=True) as cluster:
        stop = asyncio.Event()
        trading = [
            asyncio.create_task(trade(cluster.exchange.address, engine, options.rate / 2, stop))
            for engine in (1, 2)
        ]
        await asyncio.sleep(1)
        members = {member.name: member.pid for member in cluster.members}
        before = {name: processor_s(pid) for name, pid in members.items()}
        begun = time.perf_counter()
        frames = None if options.no_page else await watch(cluster.dashboard_url, options.seconds)
        await asyncio.sleep(max(0.0, options.seconds - (time.perf_counter() - begun)))
        elapsed = time.perf_counter() - begun
        used = {name: 100 * (processor_s(pid) - before[name]) / elapsed for name, pid in members.items()}
        stop.set()
        answered = sum(await asyncio.gather(*trading))
        print(f"orders a second: {answered / (elapsed + 1):.0f} of {options.rate:.0f}")
        print("of a core: " + ", ".join(f"{name} {share:.0f} %" for name, share in used.items()))
        if frames is not None:
            print(
                f"the page: {frames[0]:.0f} frames a second, the longest {frames[1]:.0f} ms, "
                f"its main thread {100 * frames[2]:.0f} % of a core"
            )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=20_000, help="orders a second, of both clients")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--no-page", action="store_true", help="open no browser")
    uvloop.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
