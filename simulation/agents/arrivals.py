"""When an agent takes its next step. Pure: a seeded generator in, waiting times out.

Every kind has the same mean rate if it is told the same `rate`; they differ in how steps bunch:

    steady    one every 1/rate seconds
    poisson   independent of each other
    hawkes    each makes more of them likely for a while, as trades in real markets do
"""

import math
import random
from dataclasses import dataclass, field
from typing import Annotated, Protocol, assert_never

import msgspec

Rate = Annotated[float, msgspec.Meta(gt=0, le=1_000)]
"""Steps a second."""


class SteadySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="steady"):
    """A step every 1/rate seconds."""

    rate: Rate = 20.0


class PoissonSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="poisson"
):
    """Steps independent of each other, `rate` a second on average."""

    rate: Rate = 20.0


class HawkesSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="hawkes"):
    """Steps that excite each other.

    `branching` is how many further steps one step causes by itself, `memory_s` how long it does so: the
    excitement falls to 1/e in that time. `rate` is the mean with those caused included.
    """

    rate: Rate = 20.0
    branching: Annotated[float, msgspec.Meta(ge=0, le=0.95)] = 0.5
    memory_s: Annotated[float, msgspec.Meta(ge=0.001, le=3_600)] = 0.5


ArrivalSettings = SteadySettings | PoissonSettings | HawkesSettings


class Arrival(Protocol):
    """Tells when to step."""

    def wait_s(self) -> float:
        """How long after the last step the next one comes."""
        ...


@dataclass(slots=True)
class Steady:
    """A step every 1/rate seconds."""

    rate: float

    def wait_s(self) -> float:
        """Always the same."""
        return 1 / self.rate


@dataclass(slots=True)
class Poisson:
    """Steps independent of each other."""

    generator: random.Random
    rate: float

    def wait_s(self) -> float:
        """Exponential."""
        return self.generator.expovariate(self.rate)


@dataclass(slots=True)
class Hawkes:
    """A self-exciting process with an exponential kernel, drawn exactly, by thinning.

    The intensity is a base of rate * (1 - branching) and an excitement that grows by branching / memory at
    every step; so its stationary mean is `rate`. It starts at that mean.
    """

    generator: random.Random
    settings: HawkesSettings
    _excitement: float = field(init=False)

    def __post_init__(self) -> None:
        self._excitement = self.settings.rate * self.settings.branching

    def wait_s(self) -> float:
        """Drawn against the intensity as it is, which only falls; kept in proportion to what it is then."""
        base = self.settings.rate * (1 - self.settings.branching)
        waited_s = 0.0
        while True:
            highest = base + self._excitement
            pause_s = self.generator.expovariate(highest)
            waited_s += pause_s
            self._excitement *= math.exp(-pause_s / self.settings.memory_s)
            if self.generator.random() * highest <= base + self._excitement:
                self._excitement += self.settings.branching / self.settings.memory_s
                return waited_s


def arrival_of(settings: ArrivalSettings, generator: random.Random) -> Arrival:
    """The process that the settings describe."""
    match settings:
        case SteadySettings():
            return Steady(settings.rate)
        case PoissonSettings():
            return Poisson(generator, settings.rate)
        case HawkesSettings():
            return Hawkes(generator, settings)
    assert_never(settings)
