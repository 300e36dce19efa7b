"""How long a market with standbys is out when an engine is killed: until the next acknowledged order.

python benchmarks/take_over.py [--kills N] [--clients N] [--json FILE]

A real market (2 engines, a standby each, journal fsynced) under a continuous load of Python clients at home
on engine 1. Each kill -9 hits whichever process reigns as engine 1 then; the time counts from the kill to the
next acknowledgement. After every second kill a planned hand-over follows: the longest time without an
acknowledgement around it.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import grpc.aio
import msgspec
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc

from benchmarks.figures import Figure, alone
from benchmarks.standalone import standalone
from client import Client
from simulation.cluster import Cluster
from simulation.handover import HandoverFailed, hand_over

PART: Final = "Take-over"
DEADLINE_S: Final = 60.0
GRACE_S: Final = 0.05
"""An acknowledgement this soon after a kill was on its way before it."""

_POLL_S: Final = 0.001


class Sizes(msgspec.Struct, frozen=True):
    """How much is done."""

    kills: int = 20
    clients: int = 4


class Trading:
    """Clients that submit one order after the other; `answers` is when each was sent and acknowledged."""

    def __init__(self, clients: list[Client]) -> None:
        self.answers: list[tuple[float, float]] = []
        self._clients = clients

    async def run(self) -> None:
        """Trade until cancelled."""
        async with asyncio.TaskGroup() as group:
            for place, client in enumerate(self._clients):
                group.create_task(self._trade(client, "buy" if place % 2 else "sell"))

    async def _trade(self, client: Client, side: str) -> None:
        while True:
            sent = time.monotonic()
            (await client.submit("AAPL", side, 1, "100.00")).raise_if_refused()
            self.answers.append((sent, time.monotonic()))

    async def next_answer(self, since: float) -> float:
        """When the next order is acknowledged, in seconds after `since`. Raises TimeoutError."""
        place = len(self.answers)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for _, answered in self.answers[place:]:
                    if answered > since + GRACE_S:
                        return answered - since
                    place += 1
                await asyncio.sleep(_POLL_S)


async def standby_ready(exchange: Any) -> None:
    """Wait until the exchange has heard a standby of engine 1 that has read everything."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            reply = await exchange.ListEngines(pb.ListEnginesRequest())
            for shown in reply.engines:
                if (shown.engine, shown.role, shown.lag_batches) == (1, pb.ENGINE_ROLE_STANDBY, 0):
                    return
            await asyncio.sleep(0.05)


async def measure(kills: int, clients: int) -> list[Figure]:
    """Outages in milliseconds, of kills and of planned hand-overs."""
    killed: list[float] = []
    planned: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = await stack.enter_async_context(Cluster(engines=2, standbys=1, data_dir=directory))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(cluster.exchange.address))
        exchange = matchbus_pb2_grpc.ExchangeStub(channel)
        connected = [
            await stack.enter_async_context(
                Client.connect(
                    cluster.exchange.address,
                    client_id=f"bench{number}",
                    password="password",
                    secret="bench",
                    preferred_engine=1,
                )
            )
            for number in range(clients)
        ]
        trading = Trading(connected)
        running = asyncio.create_task(trading.run())
        stack.callback(running.cancel)
        for number in range(kills):
            await standby_ready(exchange)
            await trading.next_answer(time.monotonic())
            began = time.monotonic()
            os.kill(cluster.engines[1].pid, signal.SIGKILL)
            killed.append((await trading.next_answer(began)) * 1e3)
            if number % 2:
                await standby_ready(exchange)
                planned.append(await planned_outage_ms(cluster, trading))
        orders = len(trading.answers)
    return [
        alone(
            *(PART, name, "ms until the next acknowledged order", outages),
            lower_is_better=True,
            note=f"{len(outages)} times, {orders:,} orders acknowledged",
        )
        for name, outages in (("kill -9", killed), ("matchbus handover", planned))
        if outages
    ]


async def planned_outage_ms(cluster: Cluster, trading: Trading) -> float:
    """The longest time without an acknowledged order around one planned hand-over."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            first = len(trading.answers)
            began = time.monotonic()
            try:
                done = await hand_over(cluster.nats_url, 1)
            except HandoverFailed:  # the exchange heard the standby, the engine has yet to
                await asyncio.sleep(0.1)
                continue
            while cluster.engines[1].address != done.new.address:  # noqa: ASYNC110 -- nobody tells
                await asyncio.sleep(_POLL_S)
            await trading.next_answer(time.monotonic())
            times = [began, *(answered for _, answered in trading.answers[first:])]
            return max(later - earlier for earlier, later in itertools.pairwise(times)) * 1e3


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part."""
    # Not on uvloop: it forks with gRPC's threads running, and now and then the child crashes before its exec.
    return asyncio.run(measure(sizes.kills, sizes.clients))


if __name__ == "__main__":
    standalone(PART, __doc__, Sizes(), run, kills="", clients="")
