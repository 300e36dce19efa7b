"""Which faults strike when: a schedule made of a seed and nothing else. Pure.

Every class of faults (kills, freezes, partitions) has its own pace and its own deck of kinds. A deck is dealt
whole before it is shuffled again, so that each kind strikes as often as the others and none is left out of a
run that is long enough; a stream of its own in each class keeps one pace from changing what another deals.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SECONDS_PER_MINUTE: Final = 60.0
QUIET_START_S: Final = 3.0
"""Nothing strikes before: a market that never ran cannot be disturbed."""

FINALE_S: Final = 1.5
"""How long before the end the last fault strikes. It outlasts the orders, so that all must heal by itself."""

NATS: Final = 0
EXCHANGE: Final = -1
"""Targets besides engine numbers."""


class Kind(StrEnum):
    """What strikes. Freezes and partitions end by themselves; what was killed is started again.

    An engine that is cut off before it is killed has commands that never reach its journal: what it answered
    too early is lost. A kill alone hardly ever hits that moment.
    """

    KILL_ENGINE = "kill -9 engine"
    KILL_CUT_OFF = "kill -9 engine, cut off before"
    KILL_EXCHANGE = "kill -9 exchange"
    KILL_NATS = "kill -9 nats-server"
    FREEZE_ENGINE = "freeze engine"
    FREEZE_EXCHANGE = "freeze exchange"
    FREEZE_NATS = "freeze nats-server"
    HOLE = "black hole"
    HOLE_TO_SERVER = "black hole to nats-server"
    HOLE_TO_PROCESS = "black hole from nats-server"
    RESET = "connections reset"
    CUT = "cut off, new connections refused"
    DELAY = "slow link"


KILLS: Final = (Kind.KILL_ENGINE, Kind.KILL_CUT_OFF, Kind.KILL_EXCHANGE, Kind.KILL_NATS)
FREEZES: Final = (Kind.FREEZE_ENGINE, Kind.FREEZE_ENGINE, Kind.FREEZE_NATS, Kind.FREEZE_EXCHANGE)
PARTITIONS: Final = (
    *(Kind.HOLE, Kind.HOLE_TO_SERVER, Kind.HOLE_TO_PROCESS),
    *(Kind.RESET, Kind.CUT, Kind.DELAY),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `at_s` after the start, for `lasts_s` (0: it is over at once)."""

    at_s: float
    kind: Kind
    target: int
    lasts_s: float = 0.0
    delay_s: float = 0.0
    """How late every chunk is on a slow link."""

    @property
    def target_name(self) -> str:
        """The process that is struck, or whose link is."""
        return {NATS: "nats-server", EXCHANGE: "exchange"}.get(self.target, f"E{self.target}")


@dataclass(frozen=True, slots=True)
class Pace:
    """How many faults of each class strike in a minute, and how long they last."""

    kills: float = 4.0
    freezes: float = 2.0
    partitions: float = 4.0
    longest_s: float = 5.0
    """The longest that a freeze or a partition lasts, but for the last one."""


def schedule(seed: int, duration_s: float, engines: int, pace: Pace) -> list[Fault]:
    """All faults of a run, in the order in which they strike; the last cuts one engine off until the end."""
    finale = Fault(duration_s - FINALE_S, Kind.HOLE, random.Random(seed).randint(1, engines), 2 * FINALE_S)
    faults = [
        *_class(random.Random(f"{seed} kills"), KILLS, pace.kills, duration_s, engines, pace),
        *_class(random.Random(f"{seed} freezes"), FREEZES, pace.freezes, duration_s, engines, pace),
        *_class(random.Random(f"{seed} partitions"), PARTITIONS, pace.partitions, duration_s, engines, pace),
        *((finale,) if pace.partitions else ()),
    ]
    return sorted(faults, key=lambda fault: fault.at_s)


def _class(
    chance: random.Random,
    deck: tuple[Kind, ...],
    per_minute: float,
    duration_s: float,
    engines: int,
    pace: Pace,
) -> Iterator[Fault]:
    if not per_minute:
        return
    mean_s = SECONDS_PER_MINUTE / per_minute
    at_s = QUIET_START_S
    dealt: list[Kind] = []
    while True:
        at_s += chance.uniform(0.3, 1.7) * mean_s
        if not dealt:
            dealt = list(deck)
            chance.shuffle(dealt)
        fault = _fault(chance, at_s, dealt.pop(), engines, pace.longest_s)
        if at_s >= duration_s:
            return
        yield fault


def _fault(chance: random.Random, at_s: float, kind: Kind, engines: int, longest_s: float) -> Fault:
    engine = chance.randint(1, engines)
    # Half of them are shorter than anyone's patience, half outlast a lease of a second.
    short_s, long_s = chance.uniform(0.1, 0.8), chance.uniform(1.5, max(1.5, longest_s))
    lasts_s = min(longest_s, chance.choice((short_s, long_s)))
    match kind:
        case Kind.KILL_ENGINE:
            return Fault(at_s, kind, engine)
        case Kind.KILL_CUT_OFF:
            return Fault(at_s, kind, engine, chance.uniform(0.05, 1.0))
        case Kind.KILL_EXCHANGE:
            return Fault(at_s, kind, EXCHANGE)
        case Kind.KILL_NATS:
            return Fault(at_s, kind, NATS)
        case Kind.FREEZE_ENGINE:
            return Fault(at_s, kind, engine, lasts_s)
        case Kind.FREEZE_EXCHANGE:
            return Fault(at_s, kind, EXCHANGE, lasts_s)
        case Kind.FREEZE_NATS:
            return Fault(at_s, kind, NATS, lasts_s)
        case _:
            # The exchange is one of many; most of the trouble is between engines and their journals.
            target = chance.choice((*range(1, engines + 1), *range(1, engines + 1), EXCHANGE))
            delay_s = chance.choice((0.005, 0.05, 0.4)) if kind is Kind.DELAY else 0.0
            return Fault(at_s, kind, target, 0.0 if kind is Kind.RESET else lasts_s, delay_s)
