"""What the edge benchmarks measure against each other: one engine of a real venue and a bare gRPC echo.

The echo takes the same requests on the same contract, parses them, and answers with replies of the same size
made beforehand: what is left is what gRPC, protobuf and this machine cost. Both run in processes of their
own, and the two are measured in turns, so that a ratio says more than either figure.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import uvloop
from matchbus.edge import SERVER_OPTIONS
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc

from simulation.cluster import Cluster

SYMBOL = "AAPL"
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", 4 * 2**20),
    ("grpc.max_receive_message_length", 4 * 2**20),
)
Metadata = tuple[tuple[str, str], ...]


class Echo(matchbus_pb2_grpc.MatchingEngineServicer):
    """Answers as an engine would that has nothing to do."""

    def __init__(self) -> None:
        self._reply = pb.OrderReply(
            client_order_id="0" * 16, order_id=2**48 + 1, status=pb.ORDER_STATUS_NEW, leaves_quantity=1
        )
        self._responses: dict[int, pb.OrderEntryResponse] = {}

    async def SubmitOrder(self, request: pb.NewOrder, context: Any) -> pb.OrderReply:  # noqa: ARG002
        """Answer one order."""
        return self._reply

    async def OrderEntry(self, request_iterator: AsyncIterator[pb.OrderEntryRequest], context: Any) -> None:
        """Answer messages with as many replies as they have commands."""
        async for request in request_iterator:
            count = len(request.commands)
            response = self._responses.get(count)
            if response is None:
                response = self._responses[count] = pb.OrderEntryResponse(replies=[self._reply] * count)
            await context.write(response)


async def _serve_echo(ready: Connection) -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    matchbus_pb2_grpc.add_MatchingEngineServicer_to_server(Echo(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready.send(f"127.0.0.1:{port}")
    await server.wait_for_termination()


def _run_echo(ready: Connection) -> None:
    uvloop.run(_serve_echo(ready))


class Peer:
    """One side of the comparison: a channel, its stub and what every call carries."""

    def __init__(self, name: str, address: str, metadata: Metadata) -> None:
        self.name = name
        self.metadata = metadata
        self.channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self.stub = matchbus_pb2_grpc.MatchingEngineStub(self.channel)  # type: ignore[no-untyped-call]


@contextlib.asynccontextmanager
async def peers() -> AsyncIterator[tuple[Peer, Peer]]:
    """(engine, echo), both up; the engine journals with an fsync for every append."""
    ours, theirs = multiprocessing.Pipe()
    echo = multiprocessing.get_context("spawn").Process(target=_run_echo, args=(theirs,), daemon=True)
    echo.start()
    try:
        with tempfile.TemporaryDirectory() as directory:
            async with Cluster(engines=1, data_dir=Path(directory)) as cluster:
                exchange = next(member for member in cluster.members if member.name == "exchange")
                engine = await _register(exchange.address)
                bare = Peer("echo", await asyncio.to_thread(ours.recv), ())
                yield engine, bare
                await engine.channel.close(None)
                await bare.channel.close(None)
    finally:
        echo.terminate()
        echo.join()


async def _register(exchange: str) -> Peer:
    async with grpc.aio.insecure_channel(exchange) as channel:
        stub = matchbus_pb2_grpc.ExchangeStub(channel)  # type: ignore[no-untyped-call]
        reply = await stub.RegisterClient(
            pb.RegisterClientRequest(client_id="bench", password="password", secret=uuid.uuid4().hex)
        )
    return Peer("engine", reply.engine_address, (("authorization", f"Bearer {reply.token}"),))


def orders(count: int) -> list[pb.NewOrder]:
    """Limit orders around one price, about a fifth of which trade on arrival, each with an id of its own."""
    run = uuid.uuid4().hex[:8]
    made = []
    for number in range(count):
        side = pb.SIDE_BUY if number % 2 else pb.SIDE_SELL
        away = number * 7919 % 50 - 10  # a fixed walk over 50 prices, ten of them through the other side
        price = 10_000 - away if side == pb.SIDE_BUY else 10_000 + away
        made.append(
            pb.NewOrder(
                client_order_id=f"{run}-{number}",
                symbol=SYMBOL,
                side=side,
                type=pb.ORDER_TYPE_LIMIT,
                price=price,
                quantity=1 + number % 10,
            )
        )
    return made


def machine() -> dict[str, str | int | None]:
    """Where and on what a result was made."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "commit": commit.stdout.strip(),
    }


def write_json(path: Path | None, results: Sequence[dict[str, Any]]) -> None:
    """Keep results with where they were made."""
    if path is not None:
        path.write_text(json.dumps({"made_on": machine(), "results": list(results)}, indent=2) + "\n")


median = statistics.median
