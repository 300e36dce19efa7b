"""How much should a maker quote? The same markets for each answer: python examples/compare_agents.py [SEEDS].

Each seed is a market in virtual time, run once for each quantity; nothing else differs (docs/simulation.md).
"""

import random
import sys
from decimal import Decimal
from statistics import mean, stdev

from simulation.agents.arrivals import Poisson
from simulation.agents.cast import Player, players, usual_mix
from simulation.agents.quoters import MakerGroup, MarketMaker
from simulation.run import Plan
from simulation.trader import Trader
from simulation.virtual.venue import simulate_in_virtual_time

NAME = "ours"
QUANTITIES = (10, 50, 200)


def gain(trader: Trader) -> Decimal:
    """What came in less what was paid, and what is held at the last price."""
    lots, cash, price = Decimal(0), Decimal(0), Decimal(0)
    for fill in trader.fills:
        quantity = fill.quantity if fill.side == "buy" else -fill.quantity
        lots, cash, price = lots + quantity, cash - quantity * fill.price, fill.price
    return cash + lots * price


def gain_of(quantity: int, seed: int) -> Decimal:
    """What a maker with this quantity gains in ten seconds among eight of the usual agents."""
    cast = players(usual_mix(8, rate=10), seed)
    maker = MarketMaker(random.Random(f"{seed}/{NAME}"), MakerGroup(quantity=quantity))
    cast[NAME] = Player(NAME, maker, Poisson(random.Random(f"{seed}/steps"), rate=5))
    plan = Plan(players=cast, named_symbols=("AAPL",), duration_s=10, seed=seed)
    outcome = simulate_in_virtual_time(plan, engines=2)
    return next(gain(trader) for trader in outcome.traders if trader.name == NAME)


def main(seeds: int) -> None:
    """A line for each quantity: the mean gain with its standard error, and what each seed gave."""
    for quantity in QUANTITIES:
        gains = [gain_of(quantity, seed) for seed in range(1, seeds + 1)]
        error = stdev(gains) / Decimal(seeds).sqrt()
        each = " ".join(f"{one:.2f}" for one in gains)
        print(f"quantity {quantity:>3}: {mean(gains):8.2f} ± {error:.2f}   ({each})", flush=True)


try:
    main(max(2, int(sys.argv[1] if sys.argv[1:] else "5")))
except ValueError:
    sys.exit(__doc__)
