"""Strikes a market while it trades: what `faults` has scheduled happens to processes and to their links."""

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from simulation.cluster import Cluster
from simulation.faults import EXCHANGE, FREEZES, KILLS, NATS, Fault, Kind
from simulation.member import Member
from simulation.proxy import Condition, Proxy

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
        self._frozen: dict[int, int] = {}  # process id -> freezes that are under way
        self._on_link: defaultdict[str, list[Fault]] = defaultdict(list)  # by the process's name

    async def run(self, faults: list[Fault]) -> None:
        """Let every fault strike at its time, and end at its time."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(started + fault.at_s - time.monotonic())
                group.create_task(self._strike(fault))

    def heal(self) -> None:
        """End whatever is under way."""
        for pid in self._frozen:
            _signal(pid, signal.SIGCONT)
        self._frozen.clear()
        self._on_link.clear()
        for link in self._proxies.values():
            for proxy in link:
                proxy.heal()

    async def _strike(self, fault: Fault) -> None:
        strike = Strike(fault, time.monotonic_ns())
        self.strikes.append(strike)
        pid = self._pid(fault)
        strike.missed = pid is None and fault.kind in KILLS + FREEZES
        lasts = f" for {fault.lasts_s:.2f} s" if fault.lasts_s else ""
        delay = f", {fault.delay_s * 1e3:.0f} ms late" if fault.delay_s else ""
        missed = " (not running: missed)" if strike.missed else ""
        self._tell(f"{fault.at_s:7.2f} s  {fault.kind}: {fault.target_name}{lasts}{delay}{missed}")
        try:
            if fault.kind not in KILLS + FREEZES:
                await self._disturb(fault)
            elif pid is not None:
                await self._hit(pid, fault)
        except asyncio.CancelledError:
            strike.missed = fault.kind in KILLS  # the end of the run came before the kill
            raise
        finally:
            strike.over_ns = time.monotonic_ns()

    def _pid(self, fault: Fault) -> int | None:
        """The process id of a target that runs; of several nats-servers, one that the fault's time picks."""
        if fault.target == NATS:
            servers = self._cluster.nats
            server = servers[round(fault.at_s * 1e3) % len(servers)]
            return server.pid if server.running else None
        member = self._member(fault.target)
        return member.pid if member.running else None

    def _member(self, target: int) -> Member:
        return self._cluster.exchange if target == EXCHANGE else self._cluster.engines[target]

    async def _hit(self, pid: int, fault: Fault) -> None:
        """Kill a process, or stop it for a while; a freeze within a longer one ends with the longer."""
        if fault.kind is Kind.KILL_CUT_OFF:
            await self._degrade(fault)
            _signal(pid, signal.SIGKILL)
            return
        if fault.kind in KILLS:
            _signal(pid, signal.SIGKILL)
            return
        if not _signal(pid, signal.SIGSTOP):
            return
        self._frozen[pid] = self._frozen.get(pid, 0) + 1
        await asyncio.sleep(fault.lasts_s)
        if pid in self._frozen:
            self._frozen[pid] -= 1
            if not self._frozen[pid]:
                del self._frozen[pid]
                _signal(pid, signal.SIGCONT)

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


def _signal(pid: int, number: signal.Signals) -> bool:
    """Send a signal to a child of ours; False when it has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
