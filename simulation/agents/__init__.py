"""Simulated traders that decide. Pure: a seeded generator and a view of the market in, intents out.

    terms      what agents see and want
    arrivals   when they step
    quoters    random traders and market makers
    takers     momentum, mean reversion, informed, latency arbitrage
    cast       who plays: from groups to named agents

Nothing here waits, sends or prints: `simulation/trader.py` makes the views and carries the intents.
"""
