"""One engine as a process of its own, without an exchange: the test does what the exchange would."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from matchbus.edge import token_key
from matchbus.v1 import matchbus_pb2 as pb

from bus.connection import Connection
from bus.messages import InstrumentEntry, SessionEntry
from bus.registry import instruments_bucket, sessions_bucket
from bus.tokens import TOKEN_LIFE_NS
from tests.system.venue import REPOSITORY, Trader, free_port

TOKEN: Final = "a token of these tests"


async def is_serving(address: str, service: str = "") -> bool:
    """Whether the health service says SERVING; False too when nobody answers."""
    return await _status(address, service) == int(health_pb2.HealthCheckResponse.SERVING)


async def is_not_serving(address: str) -> bool:
    """Whether the health service says NOT_SERVING; False too when nobody answers."""
    return await _status(address, "") == int(health_pb2.HealthCheckResponse.NOT_SERVING)


async def _status(address: str, service: str) -> int | None:
    """What the health service says within a second, None when nobody answers."""
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            return int((await health_pb2_grpc.HealthStub(channel).Check(request, timeout=1)).status)
        except grpc.aio.AioRpcError:
            return None


async def list_symbol_and_session(nc: Connection) -> None:
    """What the exchange does for a market with one symbol and one client."""
    listed = instruments_bucket(nc)
    await listed.put("AAA", InstrumentEntry("AAA", "0.01", "1"))
    sessions = sessions_bucket(nc)
    await sessions.put(token_key(TOKEN), SessionEntry("ann", 1, time.time_ns() + TOKEN_LIFE_NS))


def ann(channel: Any, address: str) -> Trader:
    """The client whose session the test made."""
    return Trader("ann", "", pb.RegisterClientReply(token=TOKEN, engine=1, engine_address=address), channel)


class EngineProcess:
    """Engine 1 as a child; its state is in `directory`, and what it prints in `engine.log` there."""

    def __init__(self, url: str, directory: Path, *options: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.state_dir = directory / "state"
        self._output = directory / "engine.log"
        self._arguments = [
            *("--number", "1", "--nats", url, "--listen", self.address),
            *("--state-dir", str(self.state_dir), *options),
        ]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start without waiting."""
        with self._output.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "engine.runtime.process", *self._arguments),
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def log(self) -> str:
        """What it printed so far."""
        return self._output.read_text(errors="replace")

    async def code(self, within_s: float) -> int:
        """Its exit code, once it ended by itself."""
        assert self._process is not None
        async with asyncio.timeout(within_s):
            return await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM; its exit code. One that does not end within 5 s is killed, and fails the test."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            return await self.code(5)
        except TimeoutError:
            self._process.kill()
            raise


@contextlib.asynccontextmanager
async def engine_process(url: str, directory: Path, *options: str) -> AsyncIterator[EngineProcess]:
    """Such an engine, stopped at the end; it must then end well."""
    process = EngineProcess(url, directory, *options)
    await process.start()
    try:
        yield process
    finally:
        code = await process.stop()
    assert code == 0, process.log()
