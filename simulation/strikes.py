"""Strikes processes of a `Cluster`: kills, freezes, asks to end. It starts again what ends."""

import asyncio
import os
import signal
from collections import Counter

from bus.child_process import ChildProcess
from simulation.cluster import Cluster


def send(process: ChildProcess, pid: int, number: signal.Signals) -> bool:
    """Send a signal to a process that ran as `pid`; False when that has ended, for `pid` may be another's."""
    if not process.running or process.pid != pid:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # nobody has told us yet
        return False
    return True


class Freezes:
    """Stops processes for a while; one that is frozen twice goes on with the end of the later freeze."""

    def __init__(self) -> None:
        self._under_way: Counter[tuple[ChildProcess, int]] = Counter()  # by process and its id

    async def freeze(self, process: ChildProcess, pid: int, lasts_s: float) -> bool:
        """SIGSTOP, and SIGCONT after `lasts_s` or when cancelled; False when the process has ended before."""
        if not send(process, pid, signal.SIGSTOP):
            return False
        self._under_way[process, pid] += 1
        try:
            await asyncio.sleep(lasts_s)
        finally:
            self._under_way[process, pid] -= 1
            if not self._under_way[process, pid]:
                del self._under_way[process, pid]
                send(process, pid, signal.SIGCONT)
        return True


class Strikes:
    """Does things to the process that reigns as an engine, which must be running."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._freezes = Freezes()
        self._thaws: set[asyncio.Task[bool]] = set()

    def is_running(self, engine: int) -> bool:
        """Whether there is such a process just now."""
        return self._cluster.engines[engine].running

    def kill(self, engine: int) -> None:
        """SIGKILL."""
        process = self._cluster.engines[engine]
        send(process, process.pid, signal.SIGKILL)

    def freeze(self, engine: int, lasts_s: float) -> None:
        """SIGSTOP, and SIGCONT after `lasts_s`."""
        process = self._cluster.engines[engine]
        thaw = asyncio.create_task(self._freezes.freeze(process, process.pid, lasts_s))
        self._thaws.add(thaw)
        thaw.add_done_callback(self._thaws.discard)

    def restart(self, engine: int) -> None:
        """SIGTERM."""
        process = self._cluster.engines[engine]
        send(process, process.pid, signal.SIGTERM)
        send(process, process.pid, signal.SIGCONT)  # a frozen one hears nothing

    async def until_thawed(self) -> None:
        """Return when everything that is frozen goes on by itself."""
        await asyncio.gather(*self._thaws)

    async def thaw_all(self) -> None:
        """Let everything that is frozen go on now."""
        for thaw in self._thaws:
            thaw.cancel()
        await asyncio.gather(*self._thaws, return_exceptions=True)
