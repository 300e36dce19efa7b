"""Who plays: makes named agents out of groups. Pure; the same groups and seed give the same agents."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from simulation.agents.arrivals import Arrival, SteadySettings, arrival_of
from simulation.agents.quoters import MakerGroup, MarketMaker, RandomGroup, RandomTrader
from simulation.agents.takers import (
    ArbitrageGroup,
    InformedGroup,
    InformedTaker,
    LatencyArbitrageur,
    MomentumGroup,
    MomentumTaker,
    ReversionGroup,
    ReversionTaker,
)
from simulation.agents.terms import Agent

AnyGroup = RandomGroup | MakerGroup | MomentumGroup | ReversionGroup | InformedGroup | ArbitrageGroup

GROUPS: Final[Mapping[str, type[AnyGroup]]] = {
    "random": RandomGroup,
    "maker": MakerGroup,
    "momentum": MomentumGroup,
    "reversion": ReversionGroup,
    "informed": InformedGroup,
    "arbitrage": ArbitrageGroup,
}
"""Every kind of agent by the word that names it in scenarios and starts its clients' names."""

_USUAL_TURNS: Final = ("random", "maker", "random", "momentum", "random")


@dataclass(frozen=True, slots=True)
class Player:
    """An agent, when it steps, and the word for its kind."""

    kind: str
    agent: Agent
    arrival: Arrival


def players(groups: Iterable[AnyGroup], seed: int) -> dict[str, Player]:
    """One player for each of every group's count, numbered through, with a generator of its own."""
    each = [group for group in groups for _ in range(group.count)]
    return {
        f"{kind_of(group)}-{index + 1}": Player(
            kind_of(group),
            agent_of(group, random.Random(f"{seed}/{index}")),
            arrival_of(group.arrival, random.Random(f"{seed}/{index}/arrival")),
        )
        for index, group in enumerate(each)
    }


def usual_mix(count: int, rate: float, *, only: str = "") -> list[AnyGroup]:
    """`count` agents: of each five one market maker and one momentum taker, the others random.

    `only` names one kind for all.
    """
    kinds = [only or _USUAL_TURNS[index % len(_USUAL_TURNS)] for index in range(count)]
    return [GROUPS[kind](arrival=SteadySettings(rate)) for kind in kinds]


def kind_of(group: AnyGroup) -> str:
    """The word for a group's kind."""
    return str(group.__struct_config__.tag)


def agent_of(group: AnyGroup, generator: random.Random) -> Agent:
    """One agent of a group."""
    match group:
        case RandomGroup():
            return RandomTrader(generator, group)
        case MakerGroup():
            return MarketMaker(generator, group)
        case MomentumGroup():
            return MomentumTaker(generator, group)
        case ReversionGroup():
            return ReversionTaker(generator, group)
        case InformedGroup():
            return InformedTaker(generator, group)
        case ArbitrageGroup():
            return LatencyArbitrageur(generator, group)
    assert_never(group)
