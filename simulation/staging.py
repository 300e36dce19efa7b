"""Puts a scenario on a running market: its agents, what symbols are worth, and its faults at their times."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from simulation.agents.cast import players
from simulation.cluster import Cluster
from simulation.fundamental import Fundamental
from simulation.recording import EngineStrike, Recording
from simulation.run import Plan, Progress
from simulation.scenario import EngineFault, Scenario, ScenarioRefused
from simulation.strikes import Strikes


def plan_of(
    scenario: Scenario,
    cluster: Cluster,
    tell: Callable[[str], None],
    *,
    recording: Recording | None = None,
    log_dir: Path | None = None,
) -> Plan:
    """What to simulate on a started market. Same seed and scenario: the same agents and values.

    `tell` hears of each fault that finds nobody to strike.
    """

    async def meanwhile(progress: Progress) -> None:
        note = (lambda _: None) if recording is None else recording.strikes.append
        await strike(cluster, scenario.faults, progress.started, note, tell)

    return replace(
        _plan_of(scenario, cluster.exchange.address, recording, log_dir),
        nats=cluster.nats_url,
        password=cluster.password,
        meanwhile=meanwhile,
    )


def virtual_plan_of(
    scenario: Scenario, *, recording: Recording | None = None, log_dir: Path | None = None
) -> Plan:
    """What to simulate in virtual time. Raises `ScenarioRefused` for what needs processes."""
    if scenario.faults:
        raise ScenarioRefused(
            f"faults[0] is a {scenario.faults[0].kind}: in virtual time there is no process to strike. "
            "Leave out the faults, or --virtual."
        )
    if scenario.standbys:
        raise ScenarioRefused(
            f"standbys is {scenario.standbys}: in virtual time there is no process to stand by for. "
            "Make it 0, or leave out --virtual."
        )
    return _plan_of(scenario, "in virtual time", recording, log_dir)


def _plan_of(scenario: Scenario, exchange: str, recording: Recording | None, log_dir: Path | None) -> Plan:
    value = scenario.fundamental
    return Plan(
        exchange=exchange,
        duration_s=scenario.duration_s,
        seed=scenario.seed,
        players=players(scenario.agents, scenario.seed),
        named_symbols=scenario.symbols,
        fundamental=None if value is None else Fundamental(value, scenario.seed),
        recording=recording,
        log_dir=log_dir,
    )


async def strike(
    cluster: Cluster,
    faults: Sequence[EngineFault],
    started: float,
    note: Callable[[EngineStrike], None],
    tell: Callable[[str], None],
) -> None:
    """Let every fault strike at its time after `started`; return when the last is over.

    An engine that has not been started again just then is missed, which is told. Cancelled, it leaves
    nothing frozen.
    """
    clock = asyncio.get_running_loop().time
    strikes = Strikes(cluster)
    try:
        for fault in sorted(faults, key=lambda fault: fault.at_s):
            await asyncio.sleep(started + fault.at_s - clock())
            missed = not cluster.engines[fault.engine].running
            lasts_s = fault.lasts_s if fault.kind == "freeze" else 0.0
            note(EngineStrike(clock() - started, fault.kind, fault.engine, lasts_s, missed))
            if missed:
                tell(f"{fault.at_s:7.2f} s  {fault.kind}: engine {fault.engine} (not running: missed)")
                continue
            match fault.kind:
                case "kill":
                    strikes.kill(fault.engine)
                case "freeze":
                    strikes.freeze(fault.engine, fault.lasts_s)
                case "restart":
                    strikes.restart(fault.engine)
        await strikes.until_thawed()
    finally:
        await strikes.thaw_all()
