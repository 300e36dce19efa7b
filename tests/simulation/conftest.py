"""A market of one process, for what strikes engines."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from simulation.cluster import Cluster
from simulation.member import Member


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[Member]:
    """A process that only waits."""
    waiting = [sys.executable, "-c", "import signal; signal.pause()"]
    member = Member("engine 1", waiting, "127.0.0.1:1", tmp_path / "log", {})
    await member.start()
    yield member
    await member.stop()


@pytest.fixture
def cluster(member: Member, tmp_path: Path) -> Cluster:
    """A market whose engine 1 is that process."""
    cluster = Cluster(data_dir=tmp_path)
    cluster.engines[1] = member
    return cluster
