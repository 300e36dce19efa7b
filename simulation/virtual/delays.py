"""How long what takes time in a virtual market takes: between a scenario's bounds, by its seed. Pure."""

import random
from typing import Annotated, Final

import msgspec

LinkMs = Annotated[float, msgspec.Meta(ge=0, le=100)]
"""A round trip takes twice as long, and an engine gives it up after 250 ms: then the market is not causal."""

CallOrAppendMs = Annotated[float, msgspec.Meta(ge=0, le=500)]
"""So that a market is quiet within the time that its checks give it."""

RestartMs = Annotated[float, msgspec.Meta(ge=0, le=60_000)]
"""As long as a freeze may last."""


class DelaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shortest and the longest time of each."""

    link_ms: tuple[LinkMs, LinkMs] = (0.05, 0.25)
    """From a process to the server, or from there to a process."""

    call_ms: tuple[CallOrAppendMs, CallOrAppendMs] = (0.15, 0.6)
    """From a client to its engine, and back."""

    append_ms: tuple[CallOrAppendMs, CallOrAppendMs] = (0.3, 1.5)
    """Until a batch, or a message of execution reports, is stored and its engine knows it."""

    restart_ms: tuple[RestartMs, RestartMs] = (800.0, 1_600.0)
    """From the end of an engine to the start of its next process."""


USUAL: Final = DelaySettings()
"""Of a market for which nothing else is said."""


class Delays:
    """All delays of one market, in seconds."""

    def __init__(self, seed: int, bounds: DelaySettings = USUAL) -> None:
        self._random = random.Random(f"{seed}/delays")
        self._bounds = bounds

    def link_s(self) -> float:
        """Of a message's way to the server, or from there."""
        return self._draw(self._bounds.link_ms)

    def call_s(self) -> float:
        """Of one way of a client's call."""
        return self._draw(self._bounds.call_ms)

    def append_s(self) -> float:
        """Of storing."""
        return self._draw(self._bounds.append_ms)

    def restart_s(self) -> float:
        """Of starting again."""
        return self._draw(self._bounds.restart_ms)

    def jitter(self) -> float:
        """What spreads the requests of followers: from 0 up to 1."""
        return self._random.random()

    def _draw(self, bounds_ms: tuple[float, float]) -> float:
        shortest_ms, longest_ms = bounds_ms
        return self._random.uniform(shortest_ms / 1_000, longest_ms / 1_000)
