"""Quote both sides of a symbol around a price: market_maker.py 127.0.0.1:50050 AAPL 190.00 [password].

What is held moves both quotes against it, so that the position comes back. Ctrl-C cancels the quotes. A later
run finds its position in the history of fills, which has no gaps.
"""

import asyncio
import contextlib
import sys
from decimal import Decimal

from client import Client

SIZE_LOTS = 10
HALF_SPREAD_TICKS = 2
MOST_HELD = 5  # quotes' worth, either way


async def quote(maker: Client, symbol: str, middle: Decimal, held: Decimal) -> None:
    """Make both quotes anew: a tick lower for each quote's worth held, none that leads beyond MOST_HELD."""
    instrument = maker.instruments[symbol]
    tick, size = instrument.tick_size, SIZE_LOTS * instrument.lot_size
    lean, half = middle - round(held / size) * tick, HALF_SPREAD_TICKS * tick
    await maker.cancel_all(symbol)
    for side, price, after in (("buy", lean - half, held + size), ("sell", lean + half, held - size)):
        if abs(after) <= MOST_HELD * size:
            made = await maker.submit(symbol, side, quantity=size, price=price, post_only=True)
            print(f"{side} {size} at {price}: {made.status} {made.reject_text}", flush=True)


async def main(exchange: str, symbol: str, middle: Decimal, password: str) -> None:
    """Quote until interrupted."""
    async with Client.connect(exchange, client_id="maker", password=password, secret="maker's own") as maker:  # noqa: S106
        held, seen = Decimal(0), 0
        try:
            async for fill in maker.fills(follow=False):
                held += signed(fill.side, fill.quantity) * (fill.symbol == symbol)
                seen = fill.sequence
            await quote(maker, symbol, middle, held)
            async with contextlib.aclosing(maker.fills(since=seen)) as fills:
                async for fill in fills:
                    if fill.symbol == symbol:
                        held += signed(fill.side, fill.quantity)
                        print(f"{fill.side} {fill.quantity} at {fill.price}: now {held} held", flush=True)
                        await quote(maker, symbol, middle, held)
        finally:
            await maker.cancel_all(symbol)


def signed(side: str, quantity: Decimal) -> Decimal:
    """What a fill adds to a position."""
    return quantity if side == "buy" else -quantity


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1], sys.argv[2], Decimal(sys.argv[3]), *(sys.argv[4:] or ["password"])))
