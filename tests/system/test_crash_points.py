"""An engine dies at every named moment of its work; whatever was acknowledged is there afterwards."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from matchbus.v1 import matchbus_pb2 as pb

from bus import crash_points
from bus.crash_points import POINTS
from tests.system.test_crashes import Load, everything, history
from tests.system.test_take_over import run_handover
from tests.system.venue import (
    CALL_TIMEOUT_S,
    REPOSITORY,
    Floor,
    Venue,
    alive,
    eventually,
    floor,
    run_command,
    show,
)

SNAPSHOT_POINTS = ("snapshot taken", "snapshot stored")
TAKE_OVER_POINTS = (
    "lease claimed",
    "journal applied",
    "reign about to begin",
    "reign begun",
    "reports fenced",
    "books published",
    "serving",
)
"""From a standby's claim to its first answer. An engine that starts without one passes them alike."""

HAND_OVER_POINTS = ("about to retire", "lease released")
"""Reached only by a primary that was asked to hand over."""

AT_WORK = tuple(
    point for point in POINTS if point not in TAKE_OVER_POINTS + HAND_OVER_POINTS + SNAPSHOT_POINTS
)
"""Reached by an engine that starts and works."""

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
            for point in AT_WORK:
                await die_at(point, file, venue)
                for trader in traders:
                    await history(trader)  # so both engines serve again
                await load.acknowledged(40)
            load.stop()
        show(f"{len(load.answers)} orders acknowledged, {load.retries} retries, {len(AT_WORK)} points")
        await everything(trading, load, traders)
        for point in SNAPSHOT_POINTS:
            assert make_snapshot(venue, file, point) == -signal.SIGKILL
        venue.kill(venue.engine_pid(1))
        for trader in traders:
            await history(trader)
        await everything(trading, load, traders)
        assert "good" in run_command("snapshot", "verify", "1", "--nats", venue.nats_url)


@pytest.mark.timeout(600)
async def test_a_standby_may_die_at_any_step_of_a_take_over(
    own_venue: Callable[..., Venue], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed primary, and its standby dies while it takes over; or the primary dies while it hands over."""
    file = tmp_path / "crash"
    monkeypatch.setenv(crash_points.VARIABLE, str(file))
    venue = own_venue(engines=2, options=("--standbys", "1"))
    async with floor(venue) as trading:
        traders = [await trading.trader(engine) for engine in (1, 1, 2, 2)]
        load = Load(traders)
        following = asyncio.create_task(trading.follow(traders))

        async def is_whole() -> None:
            for trader in traders:
                await history(trader)  # so both engines serve again
            await load.acknowledged(40)
            await eventually(lambda: has_standby(trading), 30, "engine 1 has a standby")

        deaths = 0
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run())
            handovers = []
            await is_whole()
            for point in HAND_OVER_POINTS:
                primary_pid = venue.engine_pid(1)
                arm(file, point)
                handovers.append(group.create_task(hand_over(venue)))
                await eventually(partial(is_gone, file), 30, f"the primary reached {point!r}")
                await is_whole()
                assert not alive(primary_pid)
            for point in TAKE_OVER_POINTS:
                standby_pid = venue.standby_pid(1)
                while alive(standby_pid):  # the killed process may come back in time to die in its place
                    standby_pid = venue.standby_pid(1)
                    arm(file, point)
                    venue.kill(venue.engine_pid(1))
                    await eventually(partial(is_gone, file), 30, f"a process reached {point!r}")
                    await is_whole()
                    deaths += 1
                    assert deaths < 2 * len(TAKE_OVER_POINTS)
            load.stop()
        for handover in handovers:
            assert "gave no answer" in handover.result()
        show(
            f"{len(load.answers)} orders acknowledged, {load.retries} retries, {deaths} deaths for take-overs"
        )
        await everything(trading, load, traders)
        assert not following.done()
        following.cancel()


async def has_standby(trading: Floor) -> bool:
    """Whether engine 1 has a standby that knows the whole journal, and one that reigns."""
    reply = await (await trading.exchange()).ListEngines(pb.ListEnginesRequest(), timeout=CALL_TIMEOUT_S)
    mine = [shown for shown in reply.engines if shown.engine == 1]
    return {shown.role for shown in mine if not shown.lag_batches} == {
        pb.ENGINE_ROLE_PRIMARY,
        pb.ENGINE_ROLE_STANDBY,
    }


async def hand_over(venue: Venue) -> str:
    """Ask for a hand-over until the primary knows of a standby; what the command said, which must fail."""
    async with asyncio.timeout(30):
        while True:
            code, output = await run_handover(venue.nats_url)
            assert code == 1, output
            if "no standby" not in output:
                return output


async def is_gone(file: Path) -> bool:
    """Whether a process took the file with the point's name away, and so died there."""
    return not await asyncio.to_thread(file.exists)


def arm(file: Path, point: str) -> None:
    """The next process that reaches this point dies there."""
    draft = file.with_suffix(".draft")
    draft.write_text(point)
    draft.rename(file)


async def die_at(point: str, file: Path, venue: Venue) -> None:
    """Return when a process has died at this point."""
    arm(file, point)

    if point == "replay ended":
        venue.kill(venue.engine_pid(1))
    if point == "leg queried":
        for _ in range(FREEZES):  # only a leg on its way when its peer stops is left without an answer
            if not await is_gone(file):
                async with venue.frozen(2):
                    await asyncio.sleep(FREEZE_S)
                await asyncio.sleep(FREEZE_S)
    await eventually(partial(is_gone, file), 30, f"a process reached {point!r}")


def make_snapshot(venue: Venue, file: Path, point: str) -> int:
    """Start the maker, which dies at the point; its exit code."""
    file.write_text(point)
    command = [sys.executable, "-m", "engine.runtime.snapshots", "--number", "1", "--nats", venue.nats_url]
    return subprocess.run(command, cwd=REPOSITORY, timeout=CALL_TIMEOUT_S, check=False).returncode
