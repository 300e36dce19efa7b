"""A process that does not reign: it follows the journal, holds the state hot and waits for its turn.

    journal ──tail──▶ State, Reports (what EXECUTIONS may still lack)
    leases ──free, claimed──▶ the rest of the journal, EpochStarted under its fence, serve
    standby.<n> ◀── where I am, every TELL_S

And the other side of a planned hand-over: a process that reigns knows which standbys live, and when it is
asked to, stops taking commands, finishes what it has, lets the lease go and ends.

    HandedOver   the hand-over is done: end
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import subjects
from bus.executions import ExecutionsWriter
from bus.journal import Journal
from bus.lease import Lease
from bus.messages import (
    NO_MESSAGE,
    HandoverReply,
    StandbyStatus,
    decode_handover_request,
    decode_standby,
    encode,
)
from engine.runtime.effects import Reports
from engine.runtime.recovery import follow
from engine.state import State

TELL_S: Final = 0.5
"""How often a standby says where it is."""

HEARD_S: Final = 3 * TELL_S
"""A standby that was not heard for this long may be gone."""

MAX_HANDOVER_LAG: Final = 1_000
"""No hand-over to a standby that is further behind than this: the market would wait for it."""

LEAVE_FIRST_S: Final = 3.0
"""How long `--standby` leaves a lease that nobody has held to the process that is to reign first."""

_log: Final = logging.getLogger("engine")


class HandedOver(Exception):
    """Another process may reign; this one ends."""


class Standby:
    """Follows the journal of `lease.entry.engine` until the lease is ours."""

    def __init__(
        self,
        nc: Client,
        lease: Lease,
        state: State,
        journal: Journal,
        reports: Reports,
        writer: ExecutionsWriter,
    ) -> None:
        self._nc = nc
        self._lease = lease
        self._state = state
        self._journal = journal
        self._reports = reports
        self._writer = writer
        self.commands = 0
        """How many commands it has followed."""
        self.lag_batches = 0
        """How many stored batches were not applied yet when that was last looked at."""

    async def until_reign(self, leave_first_s: float) -> None:
        """Return as soon as the lease is ours; the journal may have grown a little since.

        Raises a group of the faults that end an engine.
        """
        async with asyncio.TaskGroup() as group:
            following = group.create_task(follow(self._state, self._journal, self._reports, self._note))
            telling = group.create_task(self._tell())
            await self._lease.claim(leave_first_s=leave_first_s)
            following.cancel()
            telling.cancel()

    def _note(self, commands: int) -> None:
        self.commands += commands

    async def _tell(self) -> None:
        """Say where we are, and keep no more reports than the stream may lack."""
        subject = subjects.standby(self._state.engine)
        entry = self._lease.entry
        while True:
            self.lag_batches = await self._journal.lag()
            status = StandbyStatus(
                entry.engine,
                entry.address,
                entry.pid,
                self._state.epoch,
                self._state.batch_number,
                self.lag_batches,
            )
            await self._nc.publish(subject, encode(status))
            if self._reports.queued:  # else nobody needs the newest message, which may be large
                published = await self._writer.start()
                if published[0] <= self._state.batch_number:  # else we lag, or it is of a batch that was lost
                    self._reports.leave_out(published)
            await asyncio.sleep(TELL_S)


class Handover:
    """Hands a reign over when asked. `retire` finishes what was taken and lets the lease go."""

    def __init__(self, nc: Client, engine: int, retire: Callable[[], Awaitable[None]]) -> None:
        self._nc = nc
        self._engine = engine
        self._retire = retire
        self._standbys: dict[str, tuple[StandbyStatus, float]] = {}

    async def run(self) -> None:
        """Listen to standbys and wait to be asked.

        Raises HandedOver once it is done, or what `retire` raises.
        """
        await self._nc.subscribe(subjects.standby(self._engine), cb=self._note)
        requests = await self._nc.subscribe(subjects.handover(self._engine))
        async for request in requests.messages:
            error = self._why_not(request)
            if not error:
                _log.info("E%d hands over", self._engine)
                await self._retire()
            if request.reply:
                await self._nc.publish(request.reply, encode(HandoverReply(error)))
            if not error:
                raise HandedOver
            _log.warning("E%d does not hand over: %s", self._engine, error)

    async def _note(self, message: Msg) -> None:
        with contextlib.suppress(*NO_MESSAGE):
            status = decode_standby(message.data)
            self._drop_silent()
            self._standbys[status.address] = status, time.monotonic()

    def _drop_silent(self) -> None:
        """Forget standbys that may be gone: each start of one may have another address."""
        since_s = time.monotonic() - HEARD_S
        self._standbys = {address: heard for address, heard in self._standbys.items() if heard[1] > since_s}

    def _why_not(self, request: Msg) -> str:
        """Why the reign goes on; empty when there is a standby to hand it to."""
        try:
            engine = decode_handover_request(request.data).engine
        except NO_MESSAGE as error:
            return f"this is no request to hand over: {error}"
        if engine != self._engine:
            return f"the request on {request.subject} is for engine {engine}"
        self._drop_silent()
        if not self._standbys:
            return f"no standby of E{engine} was heard in the last {HEARD_S:g} s"
        lag = min(status.lag_batches for status, _ in self._standbys.values())
        if lag > MAX_HANDOVER_LAG:
            return f"the standby of E{engine} is {lag} batches behind"
        return ""
