"""One process of a market, the exchange or an engine: started, waited for until it serves, stopped."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from matchbus import tls
from matchbus.edge import RECOVERING_ROLE, STANDBY_ROLE, host_and_port_of

from bus.child_process import ChildProcess
from simulation.cluster_errors import OutOfReach, ProcessFailed

READY_DEADLINE_S: Final = 30.0
"""How long a process may neither serve nor say what it is doing."""

STOP_GRACE_S: Final = 1.5
"""How long engines and exchange have between SIGTERM and SIGKILL; nats-server has 2 s after that."""

_READY_POLL_S: Final = 0.05
_CHANNEL_S: Final = 2.0
"""How long one channel is asked: gRPC tries ever more rarely to connect, and reads certificates only once."""

_STOPPED_S: Final = 1.0
"""With a deadline that is noticed so late, this process was stopped itself."""

_FILES_POLL_S: Final = 0.5
_CONNECT_S: Final = 1.0
_LOG_LINES: Final = 15

_log: Final = logging.getLogger(__name__)


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
        self._shut_out = ""  # why it could not be asked the last time; empty when it answered or nobody did
        self._told = ""  # what was said of that since the start
        self._may_stand_by = may_stand_by
        self._command = command
        self._environment = environment

    async def start(self, *options: str) -> None:
        """Start the child without waiting for it; `options` are of this start alone."""
        self.ready = False
        self._shut_out = self._told = ""
        await self.launch(*self._command, *options, environment=self._environment)

    async def until_ready(self, deadline_s: float = READY_DEADLINE_S) -> None:
        """Return when the process serves or, where it may, stands by.

        While it reads what is stored, or waits for the lease of an engine, it has all the time it takes.
        Certificates of ours that cannot be used, half renewed ones perhaps, are read again. Raises
        `ProcessFailed` when it ends, or says none of this for `deadline_s`; that is `OutOfReach` when it
        listens and TLS kept us from asking.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(deadline_s) as patience:
                    while not await self._is_ready(patience, deadline_s):
                        if not self.running:
                            raise ProcessFailed(f"{self.name} ended{self.last_words()}")
            except TimeoutError:
                # Where we were stopped ourselves, by Ctrl-Z perhaps, nobody was asked: that begins anew.
                if loop.time() - (patience.when() or 0.0) < _STOPPED_S:
                    raise await self._lateness(deadline_s) from None
            else:
                self.ready = True
                return

    async def serves(self) -> bool:
        """Whether it says, asked once, that it serves or, where it may, stands by."""
        try:
            channel = tls.channel(self.address)
        except tls.TlsRefused:
            return False
        async with channel:
            health = health_pb2_grpc.HealthStub(channel)
            return await serves(health) or (self._may_stand_by and await serves(health, STANDBY_ROLE))

    async def _is_ready(self, patience: asyncio.Timeout, deadline_s: float) -> bool:
        """Ask on a channel of its own; False when that is to be renewed, or the process has ended."""
        loop = asyncio.get_running_loop()
        renewal = loop.time() + _CHANNEL_S
        try:
            channel = tls.channel(self.address)
        except tls.TlsRefused as error:
            self._shut_out = str(error)
            if self._told != self._shut_out:
                _log.warning("%s cannot be asked yet whether it is ready: %s", self.name, error)
                self._told = self._shut_out
            await asyncio.sleep(_FILES_POLL_S)
            return False
        async with channel:
            health = health_pb2_grpc.HealthStub(channel)
            while self.running and loop.time() < renewal:
                if await self._says(health):
                    return True
                stands_by = await self._says(health, STANDBY_ROLE)
                if stands_by and self._may_stand_by:
                    return True
                if stands_by or await self._says(health, RECOVERING_ROLE):
                    patience.reschedule(loop.time() + deadline_s)
                await asyncio.sleep(_READY_POLL_S)
        return False

    async def _says(self, health: health_pb2_grpc.HealthStub, service: str = "") -> bool:
        shut_out = ""

        def note(error: grpc.aio.AioRpcError) -> None:
            nonlocal shut_out
            if error.code() is grpc.StatusCode.UNAVAILABLE:  # a frozen one does not answer at all
                shut_out = f"{', '.join(tls.told())}: {error.details()}"

        answer = await serves(health, service, note)
        self._shut_out = shut_out  # when time is up meanwhile, what was before counts
        return answer

    async def _lateness(self, deadline_s: float) -> ProcessFailed:
        """What to raise when it was not ready in time."""
        if self._shut_out and tls.told() and await self._listens():
            return OutOfReach(
                f"{self.name} listens at {self.address}, and TLS keeps us from asking whether it is ready: "
                f"{self._shut_out}"
            )
        return ProcessFailed(f"{self.name} was not ready within {deadline_s:g} s{self.last_words()}")

    async def _listens(self) -> bool:
        """Whether anything takes connections at its address."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(*host_and_port_of(self.address))
        except OSError:  # TimeoutError is one
            return False
        writer.close()
        return True

    def last_words(self) -> str:
        """How its log ends since its start, to be put behind a sentence; empty when it cannot be read."""
        with contextlib.suppress(OSError):
            lines = self.log_tail(_LOG_LINES)
            return "; its log ends with:\n" + "\n".join(lines) if lines else " and wrote nothing"
        return ""


async def serves(
    health: health_pb2_grpc.HealthStub,
    service: str = "",
    on_failure: Callable[[grpc.aio.AioRpcError], object] = lambda _: None,
) -> bool:
    """Whether a process says SERVING of a service, or of itself; `on_failure` gets why it did not answer."""
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        answer = await health.Check(request, timeout=1.0, wait_for_ready=False)
    except grpc.aio.AioRpcError as error:
        on_failure(error)
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
