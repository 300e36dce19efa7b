"""Simulated traders that decide. Pure: a seeded generator and a view of the market in, intents out.

Nothing here waits, sends or prints: `simulation/run.py` makes the views and carries the intents. Prices are
ticks, quantities lots.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from engine.terms import OrderType, SelfTradePrevention, Side, TimeInForce

REFERENCE_PRICE: Final = 10_000
"""Where an empty market starts, in ticks."""


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """An own order that rests, as the agent knows it."""

    client_order_id: str
    symbol: str
    side: Side
    price: int
    leaves: int


@dataclass(frozen=True, slots=True)
class View:
    """What an agent sees of one symbol: the best quotes of the whole market and its own state."""

    symbol: str
    best_bid: int | None = None
    best_ask: int | None = None
    last_price: int | None = None
    position: int = 0
    open_orders: tuple[OpenOrder, ...] = ()

    @property
    def middle(self) -> int:
        """The price an agent takes as fair: between the quotes, else the last trade, else the reference."""
        if self.best_bid is not None and self.best_ask is not None:
            return (self.best_bid + self.best_ask) // 2
        for price in (self.last_price, self.best_bid, self.best_ask):
            if price is not None:
                return price
        return REFERENCE_PRICE


@dataclass(frozen=True, slots=True)
class Submit:
    """The wish to enter an order; `price` is 0 for a market order."""

    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price: int
    quantity: int
    post_only: bool = False
    self_trade_prevention: SelfTradePrevention = SelfTradePrevention.CANCEL_NEWEST


@dataclass(frozen=True, slots=True)
class Cancel:
    """The wish to cancel an own order."""

    client_order_id: str


@dataclass(frozen=True, slots=True)
class Replace:
    """The wish to move an own order; `quantity` is what should be left of it."""

    client_order_id: str
    price: int
    leaves: int


Intent = Submit | Cancel | Replace


class Agent(Protocol):
    """Decides what to do next, given the views of its symbols."""

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """The intents of one step, in the order to carry them."""
        ...


@dataclass(slots=True)
class RandomTrader:
    """Limit orders around the middle on both sides, now and then a market order, a cancel or a replace."""

    generator: random.Random
    max_open: int = 20
    spread: int = 25
    max_quantity: int = 100

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """One random thing in one random symbol."""
        view = self.generator.choice(views)
        draw = self.generator.random()
        if view.open_orders and (len(view.open_orders) >= self.max_open or draw < 0.15):  # noqa: PLR2004
            return [Cancel(self.generator.choice(view.open_orders).client_order_id)]
        if view.open_orders and draw < 0.2:  # noqa: PLR2004
            return [self._replace(view)]
        side = self.generator.choice((Side.BUY, Side.SELL))
        quantity = self.generator.randint(1, self.max_quantity)
        if draw < 0.25:  # noqa: PLR2004
            return [Submit(view.symbol, side, OrderType.MARKET, TimeInForce.IOC, 0, quantity)]
        force = TimeInForce.IOC if draw < 0.35 else TimeInForce.GTC  # noqa: PLR2004
        return [Submit(view.symbol, side, OrderType.LIMIT, force, self._price(view, side), quantity)]

    def _price(self, view: View, side: Side) -> int:
        # Centred a little behind the middle, so that books build up while a good part still trades.
        behind = round(self.generator.gauss(self.spread / 4, self.spread / 2))
        return max(1, view.middle - behind if side is Side.BUY else view.middle + behind)

    def _replace(self, view: View) -> Replace:
        order = self.generator.choice(view.open_orders)
        return Replace(
            order.client_order_id,
            self._price(view, order.side),
            max(1, min(self.max_quantity, order.leaves + self.generator.randint(-10, 10))),
        )


@dataclass(slots=True)
class MarketMaker:
    """Quotes both sides of every symbol, post-only, leaning against its position.

    A quote that is more than `tolerance` ticks from where it should be is cancelled and set anew.
    """

    generator: random.Random
    half_spread: int = 3
    quantity: int = 50
    tolerance: int = 2
    max_position: int = 2_000

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """Renew the quotes of one random symbol."""
        view = self.generator.choice(views)
        lean = -round(view.position / self.max_position * 2 * self.half_spread)
        fair = view.middle + lean + self.generator.randint(-1, 1)
        intents: list[Intent] = []
        for side, target in ((Side.BUY, fair - self.half_spread), (Side.SELL, fair + self.half_spread)):
            intents += self._quote(view, side, max(1, target))
        return intents

    def _quote(self, view: View, side: Side, target: int) -> list[Intent]:
        resting = [order for order in view.open_orders if order.side is side]
        stale = [order for order in resting if abs(order.price - target) > self.tolerance]
        intents: list[Intent] = [Cancel(order.client_order_id) for order in stale]
        exposed = view.position if side is Side.BUY else -view.position
        if len(stale) == len(resting) and exposed < self.max_position:
            intents.append(
                Submit(
                    view.symbol,
                    side,
                    OrderType.LIMIT,
                    TimeInForce.GTC,
                    target,
                    self.quantity,
                    post_only=True,
                )
            )
        return intents


@dataclass(slots=True)
class MomentumTaker:
    """Follows the middle: takes in the direction it moved over the last steps, at once or never."""

    generator: random.Random
    window: int = 5
    threshold: int = 2
    quantity: int = 30
    max_position: int = 1_000
    _middles: dict[str, list[int]] = field(default_factory=dict)

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """Take in every symbol that moved far enough and where the position allows it."""
        intents: list[Intent] = []
        for view in views:
            middles = self._middles.setdefault(view.symbol, [])
            middles.append(view.middle)
            del middles[: -self.window]
            moved = middles[-1] - middles[0]
            if abs(moved) < self.threshold:
                continue
            side = Side.BUY if moved > 0 else Side.SELL
            if (view.position if side is Side.BUY else -view.position) < self.max_position:
                intents += self._take(view, side)
                middles.clear()
        return intents

    def _take(self, view: View, side: Side) -> list[Intent]:
        touch = view.best_ask if side is Side.BUY else view.best_bid
        if touch is None:
            return []
        # A tick or two beyond the touch, so that a whole level and a little more can be swept.
        limit = touch + self.generator.randint(0, 2) * (1 if side is Side.BUY else -1)
        quantity = self.generator.randint(1, self.quantity)
        return [Submit(view.symbol, side, OrderType.LIMIT, TimeInForce.IOC, max(1, limit), quantity)]


KINDS: Final[Mapping[str, Callable[[random.Random], Agent]]] = {
    "random": RandomTrader,
    "maker": MarketMaker,
    "momentum": MomentumTaker,
}
"""Every kind of agent by the word that starts its clients' names."""


def cast(count: int, seed: int, *, only: str = "") -> dict[str, Agent]:
    """`count` named agents: of each five one market maker and one momentum taker, the others random.

    `only` names one kind for all. The same seed gives the same agents.
    """
    turns = ("random", "maker", "random", "momentum", "random")
    agents: dict[str, Agent] = {}
    for index in range(count):
        kind = only or turns[index % len(turns)]
        agents[f"{kind}-{index + 1}"] = KINDS[kind](random.Random(f"{seed}/{index}"))
    return agents
