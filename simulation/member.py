"""One process of a market, the exchange or an engine: started, waited for until it serves, stopped."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from matchbus import tls
from matchbus.edge import RECOVERING_ROLE

from bus.process import ChildProcess
from engine.runtime.process import STANDBY_ROLE
from simulation.cluster_errors import ProcessFailed

READY_DEADLINE_S: Final = 30.0
"""How long a process may neither serve nor say what it is doing."""

STOP_GRACE_S: Final = 1.5
"""How long engines and exchange have between SIGTERM and SIGKILL; nats-server has 3 s after that."""

_READY_POLL_S: Final = 0.05
_LOG_LINES: Final = 15


class Member(ChildProcess):
    """The exchange or one engine: a child process with a name, an address and a log."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        address: str,
        log_file: Path,
        environment: dict[str, str],
        metrics: str = "",
        *,
        may_stand_by: bool = False,
    ) -> None:
        super().__init__(log_file, STOP_GRACE_S)
        self.name = name
        self.address = address
        self.metrics = metrics
        """Where its metrics are, HOST:PORT; empty for nowhere."""
        self.restarts = 0
        self.ready = False
        self._may_stand_by = may_stand_by
        self._command = command
        self._environment = environment

    async def start(self) -> None:
        """Start the child without waiting for it."""
        self.ready = False
        await self.launch(*self._command, environment=self._environment)

    async def until_ready(self, deadline_s: float = READY_DEADLINE_S) -> None:
        """Return when the process serves or, where it may, stands by.

        While it reads what is stored, or waits for the lease of an engine, it has all the time it takes.
        Raises `ProcessFailed` when it ends, or says none of this for `deadline_s`.
        """
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(deadline_s) as patience,
                tls.channel(self.address) as channel,
            ):
                health = health_pb2_grpc.HealthStub(channel)
                while not await serves(health):
                    if not self.running:
                        raise ProcessFailed(f"{self.name} ended{self._last_words()}")
                    stands_by = await serves(health, STANDBY_ROLE)
                    if stands_by and self._may_stand_by:
                        break
                    if stands_by or await serves(health, RECOVERING_ROLE):
                        patience.reschedule(loop.time() + deadline_s)
                    await asyncio.sleep(_READY_POLL_S)
        except TimeoutError:
            raise ProcessFailed(
                f"{self.name} was not ready within {deadline_s:g} s{self._last_words()}"
            ) from None
        self.ready = True

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_file.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            return "; its log ends with:\n" + "\n".join(lines) if lines else " and wrote nothing"
        return ""


async def serves(health: health_pb2_grpc.HealthStub, service: str = "") -> bool:
    """Whether a process says SERVING of a service, or of itself."""
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        answer = await health.Check(request, timeout=1.0, wait_for_ready=False)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
