"""An exchange on a real nats-server, its gRPC caller, and engines that are no more than a feed."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import messages, subjects
from bus.messages import ASK, BID, BookSnapshot, EngineEntry, Heartbeat, LevelChange, ReportedFill
from bus.registry import engines_bucket
from bus.server import NatsServer
from exchange.runtime import process
from exchange.runtime.process import run
from exchange.runtime.settings import ExchangeSettings
from tests.bad_request import violations
from tests.feed_checksum import checksum

INSTRUMENTS = '[[instrument]]\nsymbol = "AAPL"\ntick_size = "0.01"\nlot_size = "1"\n'
PASSWORD = "open sesame"
DEADLINE_S = 10.0
EPOCH = 3


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition holds; fail at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():  # noqa: ASYNC110 -- what is waited for is in another process
            await asyncio.sleep(0.02)


class Caller:
    """A gRPC caller of one exchange."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address)
        stub: Any = matchbus_pb2_grpc.ExchangeStub(self.channel)
        self.stub = stub
        self._health: Any = health_pb2_grpc.HealthStub(self.channel)

    async def register(
        self, client_id: str, secret: str = "s", *, password: str = PASSWORD, preferred_engine: int = 0
    ) -> pb.RegisterClientReply:
        """Call RegisterClient."""
        reply: pb.RegisterClientReply = await self.stub.RegisterClient(
            pb.RegisterClientRequest(
                client_id=client_id, password=password, secret=secret, preferred_engine=preferred_engine
            )
        )
        return reply

    async def positions(self, token: str, symbol: str = "") -> list[tuple[str, int, float, int, int]]:
        """Call GetPositions with a token."""
        reply = await self.stub.GetPositions(
            pb.GetPositionsRequest(symbol=symbol), metadata=(("authorization", f"Bearer {token}"),)
        )
        return [(p.symbol, p.position, p.average_price, p.realized_pnl, p.fees) for p in reply.positions]

    async def instruments(self) -> list[pb.Instrument]:
        """Call ListInstruments."""
        reply: pb.ListInstrumentsReply = await self.stub.ListInstruments(pb.ListInstrumentsRequest())
        return list(reply.instruments)

    async def engines(self) -> list[pb.Engine]:
        """Call ListEngines."""
        reply: pb.ListEnginesReply = await self.stub.ListEngines(pb.ListEnginesRequest())
        return list(reply.engines)

    async def sees_two_live_engines(self) -> bool:
        """Whether ListEngines shows two live engines."""
        return [engine.state for engine in await self.engines()] == [pb.ENGINE_STATE_LIVE] * 2

    async def is_serving(self, service: str = process.SERVICE) -> bool:
        """Whether the exchange says that it is ready, or has a role."""
        reply = await self._health.Check(health_pb2.HealthCheckRequest(service=service))
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


@asynccontextmanager
async def exchange(
    server: NatsServer, directory: Path, instruments: str = INSTRUMENTS
) -> AsyncIterator[Caller]:
    """An exchange on a free port, ready; stopped at the end."""
    file = directory / "instruments.toml"
    file.write_text(instruments)
    settings = ExchangeSettings(server.url, "127.0.0.1:0", PASSWORD, file, None, 1)
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(run(settings, listening.set_result))
    await asyncio.wait((running, listening), return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE_S)
    if running.done():
        running.result()
    caller = Caller(listening.result())
    try:
        await eventually(caller.is_serving)
        yield caller
    finally:
        await caller.channel.close(None)
        running.cancel()
        stopped_by = time.monotonic() + 2.0
        with suppress(asyncio.CancelledError):
            await running
        assert time.monotonic() < stopped_by


class FakeEngine:
    """An engine's entry and its feed with one bid and one ask, without an engine behind them."""

    def __init__(
        self, nc: Client, number: int, *, bid: int = 99, levels: tuple[LevelChange, ...] = ()
    ) -> None:
        self._nc = nc
        self._number = number
        self._levels = levels or ((BID, bid, 5, 1), (ASK, 101, 7, 2))
        self._beating: asyncio.Task[None] | None = None

    async def enter(self) -> None:
        """Write the entry that the exchange finds."""
        bucket = engines_bucket(self._nc)
        await bucket.put(str(self._number), EngineEntry(self._number, EPOCH, f"host:{self._number}", 1))

    async def start(self) -> None:
        """Send heartbeats, and snapshots when asked."""
        await self._nc.subscribe(subjects.snapshot_request(self._number), cb=self._send_snapshot)
        self._beating = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        """Fall silent."""
        assert self._beating is not None
        self._beating.cancel()
        with suppress(asyncio.CancelledError):
            await self._beating

    async def _beat(self) -> None:
        while True:
            heartbeat = Heartbeat(self._number, EPOCH, 1, time.monotonic_ns(), {"AAPL": 1})
            await self._nc.publish(subjects.heartbeat(self._number), messages.encode(heartbeat))
            await asyncio.sleep(0.03)

    async def _send_snapshot(self, request: Msg) -> None:
        sides = ([level[1:] for level in self._levels if level[0] == side] for side in (BID, ASK))
        snapshot = BookSnapshot(EPOCH, 1, 1, 0, self._levels, checksum(*sides))
        await self._nc.publish(subjects.book(self._number, "AAPL"), messages.encode(snapshot))


def fill(client: str, sequence: int, side: int, quantity: int, price: int) -> ReportedFill:
    """One side of a trade."""
    return ReportedFill(
        client, sequence, sequence, 1, "a", "AAPL", side, price, quantity, 1, quantity, 0, 1, 0, 2, 1
    )


async def refused(call: Awaitable[object], code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    """Expect this status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return caught.value


def violated_field(error: grpc.aio.AioRpcError) -> str:
    """The one field that the BadRequest details of an error name."""
    ((field, _),) = violations(error)
    return field
