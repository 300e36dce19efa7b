"""Agents that take what others quote, at once or never. Pure.

Each takes in one direction only until it holds `max_position` that way, by the fills it has heard of.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from engine.terms import Side
from simulation.agents.terms import EngineQuote, Group, Intent, Lots, Steps, Ticks, View, take


class MomentumGroup(Group, frozen=True, tag="momentum"):
    """Traders that follow a move."""

    window: Steps = 5
    threshold: Ticks = 2
    quantity: Lots = 30
    max_position: Lots = 1_000


@dataclass(slots=True)
class MomentumTaker:
    """Follows the middle: takes in the direction it moved over the last `window` steps."""

    generator: random.Random
    settings: MomentumGroup = field(default_factory=MomentumGroup)
    _middles: dict[str, list[int]] = field(default_factory=dict)

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """Take in every symbol that moved far enough and where the position allows it."""
        intents: list[Intent] = []
        for view in views:
            middles = self._middles.setdefault(view.symbol, [])
            middles.append(view.middle)
            del middles[: -self.settings.window - 1]
            moved = middles[-1] - middles[0]
            if not moved or abs(moved) < self.settings.threshold:
                continue
            side = Side.BUY if moved > 0 else Side.SELL
            if room := view.room(side, self.settings.max_position):
                intents += self._take(view, side, room)
                middles.clear()
        return intents

    def _take(self, view: View, side: Side, room: int) -> list[Intent]:
        touch = view.touch(side)
        if touch is None:
            return []
        # A tick or two beyond the touch, so that a whole level and a little more can be swept.
        limit = touch + self.generator.randint(0, 2) * (1 if side is Side.BUY else -1)
        return [take(view, side, limit, min(room, self.generator.randint(1, self.settings.quantity)))]


class ReversionGroup(Group, frozen=True, tag="reversion"):
    """Traders that expect a move to be undone."""

    memory: Steps = 40
    threshold: Ticks = 6
    quantity: Lots = 30
    max_position: Lots = 1_000


@dataclass(slots=True)
class ReversionTaker:
    """Trades against what is far from its mean, and gives back what it holds when the price is there again.

    The mean is exponential: each step counts for 1/memory.
    """

    generator: random.Random
    settings: ReversionGroup = field(default_factory=ReversionGroup)
    _means: dict[str, float] = field(default_factory=dict)

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """Look at every symbol, each with its own mean."""
        return [intent for view in views for intent in self._decide(view)]

    def _decide(self, view: View) -> list[Intent]:
        mean = self._means.get(view.symbol, float(view.middle))
        away = view.middle - mean
        self._means[view.symbol] = mean + away / self.settings.memory
        quantity = self.generator.randint(1, self.settings.quantity)
        if abs(away) >= self.settings.threshold:
            side = Side.SELL if away > 0 else Side.BUY
            room = view.room(side, self.settings.max_position)
        else:
            side = Side.SELL if view.position > 0 else Side.BUY
            # Still on the far side of the mean: what was expected has not happened yet.
            room = abs(view.position) if away * view.position >= 0 else 0
        touch = view.touch(side)
        return [] if touch is None or not room else [take(view, side, touch, min(quantity, room))]


class InformedGroup(Group, frozen=True, tag="informed"):
    """Traders that know what a symbol is worth, but for an error."""

    edge: Ticks = 3
    error: Annotated[float, msgspec.Meta(ge=0, le=100_000)] = 2.0
    quantity: Lots = 40
    max_position: Lots = 5_000


@dataclass(slots=True)
class InformedTaker:
    """Takes what is at least `edge` ticks cheaper or dearer than its estimate of the fundamental value.

    The estimate is off by `error` ticks (a standard deviation), anew at each look.
    """

    generator: random.Random
    settings: InformedGroup = field(default_factory=InformedGroup)

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """Look at one random symbol."""
        view = self.generator.choice(views)
        if view.fundamental is None:
            return []
        value = round(self.generator.gauss(view.fundamental, self.settings.error))
        for side, limit in ((Side.BUY, value - self.settings.edge), (Side.SELL, value + self.settings.edge)):
            touch = view.touch(side)
            worth = touch is not None and (touch <= limit if side is Side.BUY else touch >= limit)
            if worth and (room := view.room(side, self.settings.max_position)):
                return [take(view, side, limit, min(room, self.generator.randint(1, self.settings.quantity)))]
        return []


class ArbitrageGroup(Group, frozen=True, tag="arbitrage"):
    """Traders that compare engines."""

    edge: Ticks = 1
    lag_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.05
    quantity: Lots = 30
    max_position: Lots = 1_000


@dataclass(slots=True)
class LatencyArbitrageur:
    """Takes the quote of an engine that has not moved yet when another one has.

    The engine whose best prices changed last is believed. One whose prices are `lag_s` older, and at least
    `edge` ticks on the wrong side of the believed middle, is stale. No two engines' quotes cross here for
    long, so this lives on what is cheap, not on what is free.
    """

    generator: random.Random
    settings: ArbitrageGroup = field(default_factory=ArbitrageGroup)

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """Take at most one stale quote in every symbol."""
        return [intent for view in views for intent in self._decide(view)]

    def _decide(self, view: View) -> list[Intent]:
        leader = min(view.engines, key=lambda quote: quote.age_s, default=None)
        if leader is None or leader.best_bid is None or leader.best_ask is None:
            return []
        middle = (leader.best_bid + leader.best_ask) / 2
        for quote in view.engines:
            if quote.age_s - leader.age_s >= self.settings.lag_s:
                found = self._stale(quote, middle)
                if found and (room := view.room(found[0], self.settings.max_position)):
                    quantity = min(room, self.generator.randint(1, self.settings.quantity))
                    return [take(view, *found, quantity)]
        return []

    def _stale(self, quote: EngineQuote, middle: float) -> tuple[Side, int] | None:
        """What to do about a quote, and at which price."""
        if quote.best_ask is not None and quote.best_ask + self.settings.edge <= middle:
            return Side.BUY, quote.best_ask
        if quote.best_bid is not None and quote.best_bid - self.settings.edge >= middle:
            return Side.SELL, quote.best_bid
        return None
