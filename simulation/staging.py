"""Puts a scenario on a running market: its agents, what symbols are worth, and its faults at their times."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from simulation.agents.cast import players
from simulation.fundamental import Fundamental
from simulation.recording import EngineStrike, Recording
from simulation.run import Plan, Progress
from simulation.scenario import EngineFault, Scenario


class Striking(Protocol):
    """What faults need of a market, as `Strikes` has it."""

    def is_running(self, engine: int) -> bool: ...  # noqa: D102
    def kill(self, engine: int) -> None: ...  # noqa: D102
    def freeze(self, engine: int, lasts_s: float) -> None: ...  # noqa: D102
    def restart(self, engine: int) -> None: ...  # noqa: D102
    async def until_thawed(self) -> None: ...  # noqa: D102
    async def thaw_all(self) -> None: ...  # noqa: D102


def staged(
    scenario: Scenario,
    strikes: Striking,
    tell: Callable[[str], None],
    *,
    recording: Recording | None = None,
    log_dir: Path | None = None,
) -> Plan:
    """What to simulate on a market, which `strikes` can strike. Same scenario: the same agents and values.

    `tell` hears of each fault that finds nobody to strike.
    """
    value = scenario.fundamental

    async def meanwhile(progress: Progress) -> None:
        note = (lambda _: None) if recording is None else recording.strikes.append
        await strike(strikes, scenario.faults, progress.started, note, tell)

    return Plan(
        duration_s=scenario.duration_s,
        seed=scenario.seed,
        players=players(scenario.agents, scenario.seed),
        named_symbols=scenario.symbols,
        fundamental=None if value is None else Fundamental(value, scenario.seed),
        meanwhile=meanwhile,
        recording=recording,
        log_dir=log_dir,
    )


async def strike(
    strikes: Striking,
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
    try:
        for fault in sorted(faults, key=lambda fault: fault.at_s):
            await asyncio.sleep(started + fault.at_s - clock())
            missed = not strikes.is_running(fault.engine)
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
