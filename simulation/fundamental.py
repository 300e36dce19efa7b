"""What a symbol is really worth over time, in ticks: a seeded walk with drift and with news. Pure.

The walk is drawn in steps of `STEP_S` from a generator of the symbol's own, so the value at a time depends
on seed, symbol and time alone, whoever asks and in whatever order.
"""

import math
import random
from typing import Annotated, Final

import msgspec

STEP_S: Final = 0.1
LOWEST: Final = 1.0
"""Nothing is worth less than a tick."""

Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Move = Annotated[float, msgspec.Meta(ge=-1_000_000, le=1_000_000)]


class Jump(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """News: at once so many ticks more or less, of one symbol or (empty) of all."""

    at_s: Seconds
    ticks: Move
    symbol: str = ""


class FundamentalSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the value goes: ticks at the start, ticks a second, ticks by the square root of a second."""

    start: Annotated[float, msgspec.Meta(ge=1, le=1_000_000_000)] = 10_000.0
    drift: Move = 0.0
    volatility: Annotated[float, msgspec.Meta(ge=0, le=100_000)] = 0.0
    jumps: tuple[Jump, ...] = ()


class Fundamental:
    """The value of each symbol at each time of one run."""

    def __init__(self, settings: FundamentalSettings, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        self._walks: dict[str, _Walk] = {}

    @property
    def start(self) -> int:
        """What every symbol is worth at the start."""
        return round(self._settings.start)

    def value(self, symbol: str, at_s: float) -> float:
        """The value so long after the start."""
        walk = self._walks.get(symbol)
        if walk is None:
            walk = self._walks[symbol] = _Walk(random.Random(f"{self._seed}/value/{symbol}"))
        settings = self._settings
        jumped = sum(
            jump.ticks for jump in settings.jumps if jump.at_s <= at_s and jump.symbol in ("", symbol)
        )
        walked = settings.volatility * walk.at(at_s)
        return max(LOWEST, settings.start + settings.drift * at_s + walked + jumped)


class _Walk:
    """A standard random walk, drawn as far as it was asked for."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self._places = [0.0]

    def at(self, at_s: float) -> float:
        step = max(0, int(at_s / STEP_S))
        while len(self._places) <= step:
            self._places.append(self._places[-1] + self._generator.gauss(0, math.sqrt(STEP_S)))
        return self._places[step]
