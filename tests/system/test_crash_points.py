"""An engine dies at every named moment of its work; whatever was acknowledged is there afterwards."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bus import crash_points
from bus.crash_points import POINTS
from tests.system.test_crashes import Load, everything, history
from tests.system.venue import CALL_TIMEOUT_S, REPOSITORY, Venue, eventually, floor, run_command, show

SNAPSHOT_POINTS = ("snapshot taken", "snapshot stored")
START_POINTS = ("replay ended", "reign about to begin", "reign begun", "books published", "serving")
"""Reached only by an engine that starts."""

FREEZES = 30
FREEZE_S = 0.4
"""Longer than an answer to a leg may take."""


@pytest.mark.timeout(600)
async def test_an_engine_may_die_at_any_moment(
    own_venue: Callable[..., Venue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each point under load: the engine comes back, and in the end all that was acknowledged adds up."""
    file = tmp_path / "crash"
    monkeypatch.setenv(crash_points.VARIABLE, str(file))
    venue = own_venue(engines=2)
    async with floor(venue) as trading:
        traders = [await trading.trader(engine) for engine in (1, 1, 2, 2)]
        load = Load(traders)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run())
            for point in POINTS:
                if point not in SNAPSHOT_POINTS:
                    await die_at(point, file, venue)
                    for trader in traders:
                        await history(trader)  # so both engines serve again
                    await load.acknowledged(40)
            load.stop()
        show(f"{len(load.answers)} orders acknowledged, {load.retries} retries, {len(POINTS)} points")
        await everything(trading, load, traders)
        for point in SNAPSHOT_POINTS:
            assert make_snapshot(venue, file, point) == -signal.SIGKILL
        venue.kill(venue.engine_pid(1))
        for trader in traders:
            await history(trader)
        await everything(trading, load, traders)
        assert "good" in run_command("snapshot", "verify", "1", "--nats", venue.nats_url)


async def die_at(point: str, file: Path, venue: Venue) -> None:
    """Return when a process has died at this point."""
    draft = file.with_suffix(".draft")
    draft.write_text(point)
    draft.rename(file)

    async def reached() -> bool:
        return not await asyncio.to_thread(file.exists)

    if point in START_POINTS:
        venue.kill(venue.engine_pid(1))
    if point == "leg asked after":
        for _ in range(FREEZES):  # only a leg on its way when its peer stops is left without an answer
            if not await reached():
                async with venue.frozen(2):
                    await asyncio.sleep(FREEZE_S)
                await asyncio.sleep(FREEZE_S)
    await eventually(reached, 30, f"a process reached {point!r}")


def make_snapshot(venue: Venue, file: Path, point: str) -> int:
    """Start the maker, which dies at the point; its exit code."""
    file.write_text(point)
    command = [sys.executable, "-m", "engine.runtime.snapshots", "--number", "1", "--nats", venue.nats_url]
    return subprocess.run(command, cwd=REPOSITORY, timeout=CALL_TIMEOUT_S, check=False).returncode
