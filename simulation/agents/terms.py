"""What agents see and want. Pure. Prices are ticks, quantities lots, times seconds.

`simulation/trader.py` makes the views and carries the intents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Protocol

import msgspec

from engine.terms import OrderType, Side, TimeInForce
from simulation.agents.arrivals import ArrivalSettings, SteadySettings

REFERENCE_PRICE: Final = 10_000
"""Where an empty market starts, in ticks, unless a scenario says otherwise."""

Ticks = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Lots = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
Steps = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """An own order that rests, as the agent knows it."""

    client_order_id: str
    symbol: str
    side: Side
    price: int
    leaves: int


@dataclass(frozen=True, slots=True)
class EngineQuote:
    """The best prices of one engine, and how long ago they last changed as far as the agent can see."""

    engine: int
    best_bid: int | None
    best_ask: int | None
    age_s: float


@dataclass(frozen=True, slots=True)
class View:
    """What an agent sees of one symbol: the best quotes of the whole market, of each engine, its own state.

    `fundamental` is what the symbol is really worth, where the scenario has such a thing. Only an informed
    agent looks at it. `reference` is where the market starts.
    """

    symbol: str
    best_bid: int | None = None
    best_ask: int | None = None
    last_price: int | None = None
    position: int = 0
    open_orders: tuple[OpenOrder, ...] = ()
    engines: tuple[EngineQuote, ...] = ()
    fundamental: float | None = None
    reference: int = REFERENCE_PRICE

    @property
    def middle(self) -> int:
        """The price an agent takes as fair: between the quotes, else the last trade, else the reference."""
        if self.best_bid is not None and self.best_ask is not None:
            # Half to even: were it always rounded down, who prices by it would quote too low, and the market
            # would drift down without a cause.
            return round((self.best_bid + self.best_ask) / 2)
        for price in (self.last_price, self.best_bid, self.best_ask):
            if price is not None:
                return price
        return self.reference

    def touch(self, side: Side) -> int | None:
        """The best price that an order of this side can trade at."""
        return self.best_ask if side is Side.BUY else self.best_bid

    def room(self, side: Side, max_position: int) -> int:
        """How much may be added in the direction of this side until `max_position` is held that way."""
        return max(0, max_position - (self.position if side is Side.BUY else -self.position))


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


@dataclass(frozen=True, slots=True)
class Cancel:
    """The wish to cancel an own order."""

    client_order_id: str


@dataclass(frozen=True, slots=True)
class Replace:
    """The wish to move an own order; `leaves` is what should be left of it."""

    client_order_id: str
    price: int
    leaves: int


Intent = Submit | Cancel | Replace


class Agent(Protocol):
    """Decides what to do next, given the views of its symbols."""

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """The intents of one step, in the order to carry them."""
        ...


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """A number of agents alike, each deciding at arrivals of its own. A kind of agent adds its parameters."""

    count: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 1
    arrival: ArrivalSettings = SteadySettings()


def take(view: View, side: Side, limit: int, quantity: int) -> Submit:
    """An order that trades at once, at `limit` or better, or never."""
    return Submit(view.symbol, side, OrderType.LIMIT, TimeInForce.IOC, max(1, limit), quantity)
