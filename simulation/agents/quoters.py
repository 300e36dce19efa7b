"""Agents that rest orders: the random trader and the market maker. Pure."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from engine.terms import OrderType, Side, TimeInForce
from simulation.agents.terms import (
    Cancel,
    Group,
    Intent,
    Lots,
    Replace,
    Share,
    Steps,
    Submit,
    Ticks,
    View,
    take,
)

_JITTER_LOTS: Final = 10


class RandomGroup(Group, frozen=True, tag="random"):
    """Random traders. The shares say how many of their steps are of which kind; the others rest an order.

    So does a step that would cancel or replace where nothing is open.
    """

    max_open: Steps = 20
    spread: Ticks = 25
    max_quantity: Lots = 100
    cancel_share: Share = 0.15
    replace_share: Share = 0.05
    market_share: Share = 0.05
    ioc_share: Share = 0.1

    def __post_init__(self) -> None:
        # Exactly, for a sum of floats that are shares of a whole may come out as a little more than 1.
        if math.fsum((self.cancel_share, self.replace_share, self.market_share, self.ioc_share)) > 1:
            raise ValueError(
                "cancel_share, replace_share, market_share and ioc_share add up to more than 1: lower one"
            )


@dataclass(slots=True)
class RandomTrader:
    """Limit orders around the middle on both sides, now and then a market order, a cancel or a replace."""

    generator: random.Random
    settings: RandomGroup = field(default_factory=RandomGroup)

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """One random thing in one random symbol."""
        settings = self.settings
        view = self.generator.choice(views)
        draw = self.generator.random()
        full = len(view.open_orders) >= settings.max_open
        replaces = settings.cancel_share + settings.replace_share
        markets = replaces + settings.market_share
        if view.open_orders and (full or draw < settings.cancel_share):
            return [Cancel(self.generator.choice(view.open_orders).client_order_id)]
        if view.open_orders and draw < replaces:
            return [self._replace(view)]
        side = self.generator.choice((Side.BUY, Side.SELL))
        quantity = self.generator.randint(1, settings.max_quantity)
        if replaces <= draw < markets:
            return [Submit(view.symbol, side, OrderType.MARKET, TimeInForce.IOC, 0, quantity)]
        price = self._price(view, side)
        if markets <= draw < markets + settings.ioc_share:
            return [take(view, side, price, quantity)]
        return [Submit(view.symbol, side, OrderType.LIMIT, TimeInForce.GTC, price, quantity)]

    def _price(self, view: View, side: Side) -> int:
        # Centred a little behind the middle, so that books build up while a good part still trades.
        behind = round(self.generator.gauss(self.settings.spread / 4, self.settings.spread / 2))
        return max(1, view.middle - behind if side is Side.BUY else view.middle + behind)

    def _replace(self, view: View) -> Replace:
        order = self.generator.choice(view.open_orders)
        leaves = order.leaves + self.generator.randint(-_JITTER_LOTS, _JITTER_LOTS)
        return Replace(
            order.client_order_id,
            self._price(view, order.side),
            max(1, min(self.settings.max_quantity, leaves)),
        )


class MakerGroup(Group, frozen=True, tag="maker"):
    """Market makers."""

    half_spread: Ticks = 3
    quantity: Lots = 50
    tolerance: Ticks = 2
    max_position: Lots = 2_000


@dataclass(slots=True)
class MarketMaker:
    """Quotes both sides of every symbol, post-only, leaning against its position.

    A quote that is more than `tolerance` ticks from where it should be is cancelled and set anew.
    """

    generator: random.Random
    settings: MakerGroup = field(default_factory=MakerGroup)

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """Renew the quotes of one random symbol."""
        settings = self.settings
        view = self.generator.choice(views)
        lean = -round(view.position / settings.max_position * 2 * settings.half_spread)
        fair = view.middle + lean + self.generator.randint(-1, 1)
        intents: list[Intent] = []
        for side, target in (
            (Side.BUY, fair - settings.half_spread),
            (Side.SELL, fair + settings.half_spread),
        ):
            intents += self._quote(view, side, max(1, target))
        return intents

    def _quote(self, view: View, side: Side, target: int) -> list[Intent]:
        settings = self.settings
        resting = [order for order in view.open_orders if order.side is side]
        stale = [order for order in resting if abs(order.price - target) > settings.tolerance]
        intents: list[Intent] = [Cancel(order.client_order_id) for order in stale]
        if len(stale) == len(resting) and (room := view.room(side, settings.max_position)):
            intents.append(
                Submit(
                    view.symbol,
                    side,
                    OrderType.LIMIT,
                    TimeInForce.GTC,
                    target,
                    min(settings.quantity, room),
                    post_only=True,
                )
            )
        return intents
