"""How long an engine takes to come back: by its snapshot and by replay alone, and what making one costs.

A journal of so many commands is written, after which so many orders rest. Then the maker's process makes a
snapshot and a real engine is started, timed until it says SERVING; and once more without the snapshot, which
takes as long as the commands need, on a journal a tenth as long. There the starts take turns with reading the
same journal and doing nothing with it.

    python benchmarks/recovery.py [--orders N] [--commands N] [--pairs N] [--json FILE]
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import msgspec
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nats.aio.client import Client
from rich.console import Console
from rich.progress import track

from benchmarks.figures import Figure, alone, paired
from benchmarks.report import console
from benchmarks.standalone import standalone
from bus import provision, subjects
from bus.connection import connect
from bus.executions import ExecutionsWriter
from bus.journal import JetStreamJournal
from bus.messages import Executions
from bus.server import NatsServer
from bus.snapshots import SnapshotStore
from engine import commands
from engine.commands import AddInstrument, CancelOrder, Command, EpochStarted, NewOrder
from engine.runtime.snapshots import SnapshotMaker
from engine.state import State
from simulation.ports import LOOPBACK, claim_port

PART = "Recovery"
BATCH = 2_000
CLIENTS = 4
PRICES = 5_000
ENGINE = 1


class Sizes(msgspec.Struct, frozen=True):
    """How much is done."""

    orders: int = 1_000_000
    commands: int = 5_000_000
    pairs: int = 5


QUICK = Sizes(orders=5_000, commands=20_000, pairs=1)


def flow(orders: int, count: int) -> Iterator[list[Command]]:
    """Batches of `count` commands in all: `orders` come and stay, the others come and are cancelled."""
    first = (ENGINE << 48) + 1
    batch: list[Command] = [EpochStarted(1), AddInstrument("AAPL", "0.01", "1")]
    made = entered = 0
    stay = 2 * orders / max(1, count + orders)  # of the orders that come
    kept = 0
    while made < count:
        number = entered
        entered += 1
        side = 1 + number % 2
        price = 10_000 + (number * 7919 % PRICES + 1) * (1 if side == 2 else -1)
        client = f"client{number % CLIENTS}"
        batch.append(NewOrder(client, f"o{number}", "AAPL", side, 1, 1, price, 1 + number % 9))
        made += 1
        if kept < stay * entered:
            kept += 1
        else:
            batch.append(CancelOrder(client, first + number))
            made += 1
        if len(batch) >= BATCH:
            yield batch
            batch = []
    yield batch


async def write(url: str, orders: int, count: int, output: Console) -> State:
    """Write the journal; the state it leads to."""
    state = State(ENGINE)
    nc = await connect(url, name="benchmark", on_closed=lambda: None)
    await provision.provision_shared(nc)
    await provision.provision_journal(nc, ENGINE)
    journal = JetStreamJournal(nc, ENGINE)
    async for _ in journal.replay():
        raise AssertionError("a new journal")
    batches = track(flow(orders, count), "writing the journal", count // BATCH, console=output)
    for number, batch in enumerate(batches, start=1):
        state.begin_batch(number, number)
        for command in batch:
            state.apply(command)
        state.end_batch()
        await journal.append(1, number, commands.encode(batch))
    await nc.close()
    return state


@asynccontextmanager
async def engine(url: str, directory: Path, output: Path) -> AsyncIterator[float]:
    """A real engine process; gives the seconds until it said SERVING."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "engine.runtime.process", "--number", str(ENGINE), "--nats", url]
    address = f"{LOOPBACK}:{claim_port(LOOPBACK, 0, 'the engine')}"
    command += ["--listen", address, "--snapshot-every", "0", "--state-dir", str(directory)]
    with output.open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stderr=log)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while True:
                assert process.returncode is None, "the engine ended"
                with suppress(grpc.aio.AioRpcError):
                    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=1)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        break
                await asyncio.sleep(0.02)
            yield time.perf_counter() - started
    finally:
        process.terminate()
        await process.wait()


async def start_cost() -> float:
    """Milliseconds in which starting the maker holds up its engine's event loop."""
    store = SnapshotStore(Client(), ENGINE)
    maker = SnapshotMaker(ENGINE, "nats://127.0.0.1:1", commands_per_snapshot=1, store=store)
    maker.note(1)
    longest, last = 0.0, time.perf_counter()
    running = asyncio.create_task(maker.run())
    for _ in range(1_000):
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last - 0.001), now
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return longest * 1e3


async def read_cost(url: str) -> float:
    """Seconds in which the journal is read and checked, and nothing is done with it."""
    nc = await connect(url, name="benchmark", on_closed=lambda: None)
    began = time.perf_counter()
    async for _ in JetStreamJournal(nc, ENGINE).replay():
        pass
    seconds = time.perf_counter() - began
    await nc.close()
    return seconds


async def measure(sizes: Sizes, *, with_snapshot: bool, output: Console) -> list[Figure]:
    """Write a journal and start engines on it, one after the other."""
    way = "by snapshot" if with_snapshot else "by replay alone"
    name = f"{way}, {sizes.commands:,} commands, {sizes.orders:,} orders resting"
    figures: list[Figure] = []

    def note(unit: str, *turns: float) -> None:
        figures.append(alone(PART, name, unit, turns, lower_is_better=True))

    with tempfile.TemporaryDirectory() as directory:
        async with NatsServer(Path(directory)) as server:
            # Nobody reads it, but with it this process has the size of an engine that starts a maker.
            state = await write(server.url, sizes.orders, sizes.commands, output)
            if with_snapshot:
                pauses = [await start_cost() for _ in range(sizes.pairs)]
                note("ms, longest pause of an event loop that starts a maker", *pauses)
                began = time.perf_counter()
                maker = [sys.executable, "-m", "engine.runtime.snapshots", "--number", str(ENGINE)]
                child = await asyncio.create_subprocess_exec(*maker, "--nats", server.url)
                assert await child.wait() == 0, "no snapshot was made"
                await settle_reports(server.url)
                note("s until a snapshot is made from the journal", time.perf_counter() - began)
                note("MB that the snapshot takes", (await _stored_bytes(server.url)) / 1e6)
            del state
            log = Path(directory) / "engine.log"
            starts, reads = [], []
            for _ in range(sizes.pairs):
                async with engine(server.url, Path(directory) / "state", log) as seconds:
                    starts.append(seconds)
                loaded = "loaded in" in await asyncio.to_thread(log.read_text)
                assert loaded == with_snapshot, "the start did not go the way it is measured for"
                if not with_snapshot:
                    reads.append(await read_cost(server.url))
    if with_snapshot:
        note("s from start to serving", *starts)
        return figures
    beside = "reading the journal"
    return [
        paired(PART, name, "s from start to serving", starts, beside, reads, lower_is_better=True),
        paired(
            *(PART, name, "commands/s from start to serving"),
            *([sizes.commands / start for start in starts], beside),
            [sizes.commands / read for read in reads],
        ),
    ]


async def measure_all(sizes: Sizes, output: Console) -> list[Figure]:
    """By snapshot, and by replay alone of a tenth."""
    tenth = Sizes(sizes.orders // 10, sizes.commands // 10, sizes.pairs)
    return [
        *(await measure(sizes, with_snapshot=True, output=output)),
        *(await measure(tenth, with_snapshot=False, output=output)),
    ]


async def settle_reports(url: str) -> None:
    """Say that all execution reports up to the snapshot are stored; else a start replays to make them."""
    nc = await connect(url, name="benchmark", on_closed=lambda: None)
    (entry,) = await SnapshotStore(nc, ENGINE).entries()
    writer = ExecutionsWriter(nc, ENGINE)
    await writer.start()
    await writer.publish(Executions(ENGINE, 1, 1, entry.reported_batch, entry.reported, ()))
    await nc.close()


async def _stored_bytes(url: str) -> int:
    nc = await connect(url, name="benchmark", on_closed=lambda: None)
    info = await nc.jetstream().stream_info(subjects.object_stream(f"snapshots_{ENGINE}"))
    await nc.close()
    return info.state.bytes


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part."""
    return uvloop.run(measure_all(sizes, console()))


if __name__ == "__main__":
    standalone(f"{PART}, {os.cpu_count()} cores", __doc__, Sizes(), run, orders="", commands="", pairs="")
