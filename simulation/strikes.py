"""Strikes engines of a `Cluster`: kills, freezes, asks to end. It starts again what ends."""

import asyncio
import os
import signal

from simulation.cluster import Cluster


class Strikes:
    """Does things to the process that reigns as an engine, which must be running."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._thaws: set[asyncio.Task[None]] = set()

    def kill(self, engine: int) -> None:
        """SIGKILL."""
        os.kill(self._cluster.engines[engine].pid, signal.SIGKILL)

    def freeze(self, engine: int, lasts_s: float) -> None:
        """SIGSTOP, and SIGCONT after `lasts_s`."""
        pid = self._cluster.engines[engine].pid
        os.kill(pid, signal.SIGSTOP)
        thaw = asyncio.create_task(self._thaw(engine, pid, lasts_s))
        self._thaws.add(thaw)
        thaw.add_done_callback(self._thaws.discard)

    def restart(self, engine: int) -> None:
        """SIGTERM."""
        pid = self._cluster.engines[engine].pid
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)  # a frozen one hears nothing

    async def until_thawed(self) -> None:
        """Return when everything that is frozen goes on by itself."""
        await asyncio.gather(*self._thaws)

    async def thaw_all(self) -> None:
        """Let everything that is frozen go on now."""
        for thaw in self._thaws:
            thaw.cancel()
        await asyncio.gather(*self._thaws, return_exceptions=True)

    async def _thaw(self, engine: int, pid: int, lasts_s: float) -> None:
        """Let a process go on, unless it ended meanwhile and its number may be another's."""
        try:
            await asyncio.sleep(lasts_s)
        finally:
            members = (self._cluster.engines.get(engine), self._cluster.standbys.get(engine))
            if any(member is not None and member.running and member.pid == pid for member in members):
                os.kill(pid, signal.SIGCONT)
