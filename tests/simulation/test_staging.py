"""A scenario's faults at their times, on a process that only waits; and the plan that a scenario makes."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from simulation import scenario
from simulation.cluster import Cluster
from simulation.member import Member
from simulation.recording import EngineStrike
from simulation.scenario import EngineFault
from simulation.staging import staged, strike
from simulation.strikes import Strikes
from tests.waiting import is_frozen, until


def striking(
    cluster: Cluster, noted: list[EngineStrike], *faults: EngineFault, tell: Callable[[str], None] = print
) -> asyncio.Task[None]:
    """The faults of a run that begins now."""
    now = asyncio.get_running_loop().time()
    return asyncio.create_task(strike(Strikes(cluster), faults, now, noted.append, tell))


async def test_faults_strike_in_the_order_of_their_times(cluster: Cluster, member: Member) -> None:
    """Whatever the order of the file; each is noted with its time."""
    noted: list[EngineStrike] = []
    await striking(cluster, noted, EngineFault(0.2, "kill", 1), EngineFault(0.0, "freeze", 1, 0.1))
    assert await member.wait() == -signal.SIGKILL
    assert [(one.kind, one.engine, one.lasts_s) for one in noted] == [("freeze", 1, 0.1), ("kill", 1, 0.0)]
    assert noted[1].at_s >= 0.2
    assert not any(one.missed for one in noted)


async def test_a_fault_that_finds_nobody_is_told(cluster: Cluster, member: Member) -> None:
    """Whatever strikes an engine that has ended misses: it is noted so, and said."""
    await striking(cluster, [], EngineFault(0.0, "kill", 1))
    assert await member.wait() == -signal.SIGKILL
    noted: list[EngineStrike] = []
    told: list[str] = []
    await striking(cluster, noted, EngineFault(0.0, "restart", 1), tell=told.append)
    assert [(one.kind, one.missed) for one in noted] == [("restart", True)]
    assert told == ["   0.00 s  restart: engine 1 (not running: missed)"]


async def test_a_run_that_is_stopped_leaves_nothing_frozen(cluster: Cluster, member: Member) -> None:
    """Cancelled in the middle of a freeze, the process goes on."""
    task = striking(cluster, [], EngineFault(0.0, "freeze", 1, 60.0))
    await until(lambda: is_frozen(member.pid))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: not is_frozen(member.pid))


async def test_restart_is_asked_for(cluster: Cluster, member: Member) -> None:
    """The process hears SIGTERM."""
    await striking(cluster, [], EngineFault(0.0, "restart", 1))
    assert await member.wait() == -signal.SIGTERM


def test_a_scenario_makes_the_same_plan_again(tmp_path: Path) -> None:
    """Same scenario, same players with the same arrivals, and the same values of symbols."""
    news = scenario.read("news-shock", ["AAPL", "MSFT"])
    strikes = Strikes(Cluster(data_dir=tmp_path))
    one, two = staged(news, strikes, print), staged(news, strikes, print)
    assert list(one.players) == list(two.players)
    assert len(one.players) == sum(group.count for group in news.agents)
    for name, player in one.players.items():
        assert [player.arrival.wait_s() for _ in range(5)] == [
            two.players[name].arrival.wait_s() for _ in range(5)
        ]
    assert one.fundamental is not None
    assert two.fundamental is not None
    assert one.fundamental.value("AAPL", 20.0) == two.fundamental.value("AAPL", 20.0)
    assert (one.named_symbols, one.duration_s, one.seed) == (news.symbols, news.duration_s, news.seed)
