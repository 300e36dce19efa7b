"""Faults that strike processes, on one that only waits."""

import asyncio
import signal

from simulation.cluster import Cluster
from simulation.faults import Fault, Kind
from simulation.injector import Injector
from simulation.member import Member
from tests.waiting import is_frozen, until


def injector_of(cluster: Cluster) -> Injector:
    """Strikes that market, whose links are nobody's."""
    return Injector(cluster, {"engine 1": []}, lambda _: None)


async def test_a_kill_that_comes_too_late_is_missed(cluster: Cluster, member: Member) -> None:
    """Who ended while it was cut off, and runs again as another process, is not killed."""
    injector = injector_of(cluster)
    striking = asyncio.create_task(injector.run([Fault(0.0, Kind.KILL_CUT_OFF, 1, lasts_s=0.5)]))
    await until(lambda: injector.strikes)
    await member.kill()
    await member.start()
    await striking
    assert [strike.missed for strike in injector.strikes] == [True]
    assert member.running


async def test_who_is_cut_off_is_killed_at_the_end(cluster: Cluster, member: Member) -> None:
    """It ran all the time, so the fault struck."""
    injector = injector_of(cluster)
    await injector.run([Fault(0.0, Kind.KILL_CUT_OFF, 1, lasts_s=0.1)])
    assert await member.wait() == -signal.SIGKILL
    assert [strike.missed for strike in injector.strikes] == [False]


async def test_a_process_goes_on_with_the_end_of_its_last_freeze(cluster: Cluster, member: Member) -> None:
    """A short freeze within a long one ends nothing; the end of the run ends all."""
    injector = injector_of(cluster)
    faults = [Fault(0.0, Kind.FREEZE_ENGINE, 1, lasts_s=60), Fault(0.0, Kind.FREEZE_ENGINE, 1, lasts_s=0.1)]
    striking = asyncio.create_task(injector.run(faults))
    await until(lambda: any(strike.over_ns for strike in injector.strikes))
    assert is_frozen(member.pid)
    striking.cancel()
    await asyncio.gather(striking, return_exceptions=True)
    await until(lambda: not is_frozen(member.pid))
    assert not any(strike.missed for strike in injector.strikes)
