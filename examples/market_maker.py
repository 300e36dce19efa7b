"""Quote both sides of a symbol around a price: market_maker.py 127.0.0.1:50050 AAPL 190.00 [password].

What is held moves both quotes against it, so that the position comes back. Ctrl-C cancels the quotes. A later
run finds its position in the history of fills, which has no gaps.
"""

import asyncio
import contextlib
import sys
from decimal import Decimal

from client import Client, Fill, MatchbusError

SIZE_LOTS = 10
HALF_SPREAD_TICKS = 2
MOST_HELD = 5  # quotes' worth, either way


async def quote(maker: Client, symbol: str, middle: str, held: Decimal) -> None:
    """Make both quotes: a tick lower for each quote's worth held, none that leads beyond MOST_HELD."""
    instrument = maker.instruments[symbol]
    size = SIZE_LOTS * instrument.lot_size
    lean = instrument.ticks(middle) - round(held / size)
    print(f"{held:f} held", flush=True)
    for side, sign in (("buy", -1), ("sell", 1)):
        if abs(held - sign * size) <= MOST_HELD * size:
            price = instrument.price(lean + sign * HALF_SPREAD_TICKS)
            made = await maker.submit(symbol, side, quantity=size, price=price, post_only=True)
            print(f"{side} {size:f} at {price:f}: {made.status} {made.reject_text}", flush=True)


async def main(exchange: str, symbol: str, middle: str, password: str) -> None:
    """Quote until interrupted."""
    async with Client.connect(exchange, client_id="maker", password=password, secret="maker's own") as maker:
        held, seen = Decimal(0), 0
        try:
            while True:
                # Nothing is filled once the quotes are gone: what is held then is all that counts.
                await maker.cancel_all(symbol)
                async for fill in maker.fills(since=seen, follow=False):
                    held, seen = held + change(fill, symbol), fill.sequence
                await quote(maker, symbol, middle, held)
                async with contextlib.aclosing(maker.fills(since=seen)) as fills:
                    while not change(await anext(fills), symbol):
                        pass
        finally:
            await maker.cancel_all(symbol)


def change(fill: Fill, symbol: str) -> Decimal:
    """What a fill adds to the position in a symbol."""
    return (fill.symbol == symbol) * (fill.quantity if fill.side == "buy" else -fill.quantity)


try:
    words = [*sys.argv[1:], "password"][:4]
    asyncio.run(main(*words)) if len(words) == 4 else sys.exit(__doc__)
except (KeyboardInterrupt, MatchbusError, ValueError) as error:
    sys.exit(str(error) or None)  # Ctrl-C says nothing
