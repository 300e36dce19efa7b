"""Rest an order, trade against it, see what is held: python examples/trade.py 127.0.0.1:50050 [password]."""

import asyncio
import sys
from decimal import Decimal

from client import Client, MatchbusError


async def main(exchange: str, password: str) -> None:
    """Let a maker quote and a taker take, each from its own engine if there are two."""
    async with (
        Client.connect(exchange, client_id="example-maker", password=password, secret="maker") as maker,
        Client.connect(exchange, client_id="example-taker", password=password, secret="taker") as taker,
    ):
        for symbol in maker.instruments:
            book = await maker.book(symbol, depth=1, consolidated=True)
            if not book.bids and not book.asks:
                break  # nobody else trades it; where all are traded, the last will do
        instrument = maker.instruments[symbol]
        tick = instrument.tick_size
        price = book.bids[0].price + tick if book.bids else 1_000 * tick
        ten, four = 10 * instrument.lot_size, 4 * instrument.lot_size
        print(f"{symbol}: maker at home on E{maker.engine}, taker on E{taker.engine}")

        quote = await maker.submit(symbol, "sell", quantity=ten, price=price, post_only=True)
        print("quote", quote.status, quote.reject_text)
        if quote.reject_reason is not None:
            return  # somebody bids that much by now: run it again

        taken = await taker.submit(symbol, "buy", quantity=four, price=price, time_in_force="ioc")
        print("take ", taken.status, [f"{fill.quantity:f} @ {fill.price:f}" for fill in taken.fills])

        book = await maker.book(symbol, depth=3, consolidated=True)
        for level in book.asks:
            engines = [f"E{share.engine}" for share in level.engines]
            print(f"ask   {level.price:f} {level.quantity:f}", engines)

        cancelled = await maker.cancel(order_id=quote.order_id)
        print("quote", cancelled.status, "after", f"{cancelled.cumulative_quantity:f}", "filled")
        for name, client in (("maker", maker), ("taker", taker)):
            print(name, "holds", f"{await holding(client, symbol):f}", symbol)


async def holding(client: Client, symbol: str) -> Decimal:
    """What all fills add up to; `positions` tells the same, but follows some milliseconds later."""
    held = Decimal(0)
    async for fill in client.fills(follow=False):
        if fill.symbol == symbol:
            held += fill.quantity if fill.side == "buy" else -fill.quantity
    return held


try:
    asyncio.run(main(sys.argv[1], *(sys.argv[2:] or ["password"]))) if sys.argv[1:] else sys.exit(__doc__)
except (MatchbusError, ValueError) as error:
    sys.exit(str(error))
