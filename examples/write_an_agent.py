"""An agent of your own among simulated ones: python examples/write_an_agent.py 127.0.0.1:50050 [password].

An agent has one method: `decide` gets a view of each symbol and returns what it wants (docs/simulation.md).
"""

import asyncio
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from client import MatchbusError
from engine.terms import OrderType, Side, TimeInForce
from simulation.agents.arrivals import Poisson
from simulation.agents.cast import Player, players, usual_mix
from simulation.agents.terms import Cancel, Intent, Submit, View
from simulation.run import Plan, simulate
from simulation.venues import RunningVenue


@dataclass
class Improver:
    """Quotes a tick better than the best, on the side that brings its position back to nothing."""

    generator: random.Random
    quantity: int = 10

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """Take back the last quote, or make one where the spread has room."""
        view = self.generator.choice(views)
        if view.open_orders:
            return [Cancel(order.client_order_id) for order in view.open_orders]
        if view.best_bid is None or view.best_ask is None or view.best_ask - view.best_bid < 2:
            return []
        side = Side.SELL if view.position > 0 else Side.BUY
        price = view.best_bid + 1 if side is Side.BUY else view.best_ask - 1
        terms = (OrderType.LIMIT, TimeInForce.GTC, price, self.quantity)
        return [Submit(view.symbol, side, *terms, post_only=True)]


async def main(exchange: str, password: str) -> None:
    """Trade for five seconds with five of the usual agents, then say what came of it."""
    chance, cast = random.Random(7), players(usual_mix(5, rate=20), seed=7)
    cast["improver-1"] = Player("improver", Improver(chance), Poisson(chance, rate=10))
    async with RunningVenue(exchange, password) as venue:
        outcome = await simulate(Plan(players=cast, symbols=1, duration_s=5, seed=7), venue)
    for trader in outcome.traders:
        print(f"{trader.name:<11} {trader.submitted} orders, {trader.fill_count} fills, {trader.positions()}")
    print("All checks hold." if outcome.holds else "An invariant is violated.")


try:
    asyncio.run(main(sys.argv[1], *(sys.argv[2:] or ["password"]))) if sys.argv[1:] else sys.exit(__doc__)
except (MatchbusError, ValueError) as error:
    sys.exit(str(error))
except grpc.RpcError as error:
    sys.exit(f"No exchange answers at {sys.argv[1]}: {error.details()}")
