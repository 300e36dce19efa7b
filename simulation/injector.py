"""Strikes a market while it trades: what `faults` has scheduled happens to processes and to their links."""

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bus.child_process import ChildProcess
from simulation.cluster import Cluster
from simulation.faults import EXCHANGE, FREEZES, KILLS, NATS, Fault, Kind
from simulation.member import Member
from simulation.proxy import Condition, Proxy
from simulation.strikes import Freezes, send

_TO_SERVER: Final = {Kind.HOLE, Kind.HOLE_TO_SERVER, Kind.KILL_CUT_OFF}
_TO_PROCESS: Final = {Kind.HOLE, Kind.HOLE_TO_PROCESS, Kind.KILL_CUT_OFF}


@dataclass(slots=True)
class Strike:
    """A fault that struck, or found nobody there (`missed`), on the monotonic clock."""

    fault: Fault
    at_ns: int
    over_ns: int = 0
    missed: bool = False


class Injector:
    """Strikes a cluster, and heals it."""

    def __init__(
        self, cluster: Cluster, proxies: dict[str, list[Proxy]], tell: Callable[[str], None]
    ) -> None:
        self.strikes: list[Strike] = []
        self._cluster = cluster
        self._proxies = proxies
        self._tell = tell
        self._freezes = Freezes()
        self._on_link: defaultdict[str, list[Fault]] = defaultdict(list)  # by the process's name

    async def run(self, faults: list[Fault]) -> None:
        """Let every fault strike at its time, and end at its time."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(started + fault.at_s - time.monotonic())
                group.create_task(self._strike(fault))

    def heal(self) -> None:
        """End whatever is under way on links; freezes end with `run`."""
        self._on_link.clear()
        for link in self._proxies.values():
            for proxy in link:
                proxy.heal()

    async def _strike(self, fault: Fault) -> None:
        strike = Strike(fault, time.monotonic_ns())
        self.strikes.append(strike)
        process = self._process(fault)
        strike.missed = not process.running and fault.kind in KILLS + FREEZES
        lasts = f" for {fault.lasts_s:.2f} s" if fault.lasts_s else ""
        delay = f", {fault.delay_s * 1e3:.0f} ms late" if fault.delay_s else ""
        missed = " (not running: missed)" if strike.missed else ""
        self._tell(f"{fault.at_s:7.2f} s  {fault.kind}: {fault.target_name}{lasts}{delay}{missed}")
        try:
            if fault.kind not in KILLS + FREEZES:
                await self._disturb(fault)
            elif process.running:
                strike.missed = not await self._hit(process, process.pid, fault)
        except asyncio.CancelledError:
            strike.missed = fault.kind in KILLS  # the end of the run came before the kill
            raise
        finally:
            strike.over_ns = time.monotonic_ns()

    def _process(self, fault: Fault) -> ChildProcess:
        """Who is the target now; of several nats-servers, one that the fault's time picks."""
        if fault.target == NATS:
            servers = self._cluster.nats
            return servers[round(fault.at_s * 1e3) % len(servers)]
        return self._member(fault.target)

    def _member(self, target: int) -> Member:
        return self._cluster.exchange if target == EXCHANGE else self._cluster.engines[target]

    async def _hit(self, process: ChildProcess, pid: int, fault: Fault) -> bool:
        """Kill a process, or stop it for a while; False when it has ended by itself meanwhile."""
        if fault.kind in FREEZES:
            return await self._freezes.freeze(process, pid, fault.lasts_s)
        if fault.kind is Kind.KILL_CUT_OFF:
            await self._degrade(fault)
        return send(process, pid, signal.SIGKILL)

    async def _disturb(self, fault: Fault) -> None:
        """Break a link, or worsen it for a while."""
        if fault.kind is Kind.RESET:
            self._cut(self._member(fault.target).name, refuse=False)
        else:
            await self._degrade(fault)

    async def _degrade(self, fault: Fault) -> None:
        """Worsen the link of whoever is the target now; several faults of one link add up."""
        name = self._member(fault.target).name
        faults = self._on_link[name]
        faults.append(fault)
        self._apply(name)
        await asyncio.sleep(fault.lasts_s)
        if fault.kind is Kind.KILL_CUT_OFF:
            self._cut(name, refuse=False)  # what waits in the hole never arrives
        if fault in faults:
            faults.remove(fault)
            self._apply(name)

    def _apply(self, name: str) -> None:
        faults = self._on_link[name]
        kinds = {fault.kind for fault in faults}
        delay_s = max((fault.delay_s for fault in faults), default=0.0)
        for proxy in self._proxies[name]:
            proxy.heal()
            proxy.degrade(
                to_server=Condition(delay_s, bool(kinds & _TO_SERVER)),
                to_process=Condition(delay_s, bool(kinds & _TO_PROCESS)),
            )
        if Kind.CUT in kinds:
            self._cut(name, refuse=True)

    def _cut(self, name: str, *, refuse: bool) -> None:
        for proxy in self._proxies[name]:
            proxy.cut(refuse=refuse)
