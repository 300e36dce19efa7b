"""What the edge benchmarks measure against each other: engines of a real venue and two bare gRPC echoes.

An echo takes the same requests on the same contract, parses them, and answers with replies of the same size
made beforehand: what is left is what gRPC, protobuf and this machine cost. The storing echo first has each
request fsynced by the venue's nats-server: what is left is what a promise to lose nothing costs. All run in
processes of their own and are measured in turns, so that a ratio says more than either figure.
"""

import asyncio
import contextlib
import itertools
import multiprocessing
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import nats
import uvloop
from matchbus.edge import SERVER_OPTIONS
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc
from nats.js import JetStreamContext

from simulation.cluster import DEFAULT_INSTRUMENTS, Cluster

SYMBOL = "AAPL"
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", 4 * 2**20),
    ("grpc.max_receive_message_length", 4 * 2**20),
)
_STORED = "stored"
"""Stream and subject of what the storing echo was sent."""

Metadata = tuple[tuple[str, str], ...]


class Echo(matchbus_pb2_grpc.MatchingEngineServicer):
    """Answers as an engine would that has nothing to do."""

    def __init__(self) -> None:
        self._reply = pb.OrderReply(
            client_order_id="0" * 16, order_id=2**48 + 1, status=pb.ORDER_STATUS_NEW, leaves_quantity=1
        )
        self._responses: dict[int, pb.OrderEntryResponse] = {}

    async def SubmitOrder(self, request: pb.NewOrder, context: Any) -> pb.OrderReply:  # noqa: ARG002 -- it echoes
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


class StoringEcho(Echo):
    """Answers when the request is stored, each by itself."""

    def __init__(self, stream: JetStreamContext) -> None:
        super().__init__()
        self._stream = stream

    async def SubmitOrder(self, request: pb.NewOrder, context: Any) -> pb.OrderReply:
        """Store and answer one order."""
        await self._stream.publish(_STORED, request.SerializeToString())
        return await super().SubmitOrder(request, context)

    async def OrderEntry(self, request_iterator: AsyncIterator[pb.OrderEntryRequest], context: Any) -> None:
        """Store and answer message after message."""

        async def stored() -> AsyncIterator[pb.OrderEntryRequest]:
            async for request in request_iterator:
                await self._stream.publish(_STORED, request.SerializeToString())
                yield request

        await super().OrderEntry(stored(), context)


async def _serve_echo(ready: Connection, nats_url: str) -> None:
    echo = Echo()
    if nats_url:
        stream = (await nats.connect(nats_url)).jetstream()
        await stream.add_stream(name=_STORED, subjects=[_STORED])
        echo = StoringEcho(stream)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    matchbus_pb2_grpc.add_MatchingEngineServicer_to_server(echo, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready.send(f"127.0.0.1:{port}")
    await server.wait_for_termination()


def _run_echo(ready: Connection, nats_url: str) -> None:
    uvloop.run(_serve_echo(ready, nats_url))


@contextlib.asynccontextmanager
async def _echoing(nats_url: str = "") -> AsyncIterator[tuple[str, int]]:
    """Address and process id of an echo, which stores what it is sent if there is a nats-server for it."""
    ours, theirs = multiprocessing.Pipe()
    echo = multiprocessing.get_context("spawn").Process(
        target=_run_echo, args=(theirs, nats_url), daemon=True
    )
    echo.start()
    theirs.close()  # else nobody would hear of the echo's end
    try:
        assert echo.pid is not None
        yield await asyncio.to_thread(ours.recv), echo.pid
    finally:
        echo.terminate()
        echo.join()


class Peer:
    """One side of the comparison: a channel, its stub, what every call carries, and the server's process."""

    def __init__(self, name: str, address: str, metadata: Metadata, pid: int) -> None:
        self.name = name
        self.metadata = metadata
        self.pid = pid
        # Channels with equal options would share one connection.
        options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        self.channel = grpc.aio.insecure_channel(address, options=options)
        self.stub = matchbus_pb2_grpc.MatchingEngineStub(self.channel)


class Venue:
    """A real market and its echoes, all up; made by `venue`, which closes what is opened here."""

    def __init__(self, cluster: Cluster, echo: tuple[str, int], storing_echo: tuple[str, int]) -> None:
        self.cluster = cluster
        self._echo = echo
        self._storing_echo = storing_echo
        self._peers: list[Peer] = []
        self._names = itertools.count(1)

    async def client(self, engine: int = 1) -> Peer:
        """A new client at home on this engine, with a connection of its own."""
        name = f"bench{next(self._names)}"
        async with grpc.aio.insecure_channel(self.cluster.exchange.address) as channel:
            stub = matchbus_pb2_grpc.ExchangeStub(channel)
            reply = await stub.RegisterClient(
                pb.RegisterClientRequest(
                    client_id=name, password="password", secret="bench", preferred_engine=engine
                )
            )
        metadata = (("authorization", f"Bearer {reply.token}"),)
        return self._kept(Peer("engine", reply.engine_address, metadata, self.cluster.engines[engine].pid))

    def echo(self) -> Peer:
        """A new connection to the echo."""
        address, pid = self._echo
        return self._kept(Peer("echo", address, (), pid))

    def storing_echo(self) -> Peer:
        """A new connection to the echo that stores."""
        address, pid = self._storing_echo
        return self._kept(Peer("storing echo", address, (), pid))

    def _kept(self, peer: Peer) -> Peer:
        self._peers.append(peer)
        return peer

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(peer.channel.close(None) for peer in self._peers))


@contextlib.asynccontextmanager
async def venue(engines: int = 1, instruments: Path = DEFAULT_INSTRUMENTS) -> AsyncIterator[Venue]:
    """A market of so many engines that journal with an fsync for every append, and the echoes."""
    with tempfile.TemporaryDirectory() as directory:
        cluster = Cluster(engines=engines, data_dir=Path(directory), instruments=instruments)
        async with cluster, _echoing() as echo, _echoing(cluster.nats[0].url) as storing_echo:
            made = Venue(cluster, echo, storing_echo)
            try:
                yield made
            finally:
                await made.close()


def orders(count: int, symbols: Sequence[str] = (SYMBOL,)) -> list[pb.NewOrder]:
    """Limit orders around one price, about a fifth of which trade on arrival, each with an id of its own.

    The symbols take turns.
    """
    run = uuid.uuid4().hex[:8]
    made = []
    for number in range(count):
        side = pb.SIDE_BUY if number % 2 else pb.SIDE_SELL
        away = number * 7919 % 50 - 10  # a fixed walk over 50 prices, ten of them through the other side
        price = 10_000 - away if side == pb.SIDE_BUY else 10_000 + away
        made.append(
            pb.NewOrder(
                client_order_id=f"{run}-{number}",
                symbol=symbols[number // 2 % len(symbols)],
                side=side,
                type=pb.ORDER_TYPE_LIMIT,
                price=price,
                quantity=1 + number % 10,
            )
        )
    return made
