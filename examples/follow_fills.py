"""Print every fill of a client, from the first on, then as they happen; Ctrl-C ends it.

python examples/follow_fills.py 127.0.0.1:50050 [client_id] [secret] [password]

The last sequence is all a program has to keep to go on where it stopped: `fills(since=sequence)`.
"""

import asyncio
import contextlib
import sys

from client import Client, MatchbusError


async def main(exchange: str, client_id: str, secret: str, password: str) -> None:
    """Follow one client's fills until interrupted."""
    async with (
        Client.connect(exchange, client_id=client_id, password=password, secret=secret) as client,
        contextlib.aclosing(client.fills(since=0)) as fills,
    ):
        async for fill in fills:
            print(
                f"{fill.sequence:>6} {fill.side:4} {fill.quantity:f} {fill.symbol} @ {fill.price:f}"
                f"  {fill.liquidity} on E{fill.engine}, {fill.leaves_quantity:f} of the order left",
                flush=True,
            )


if __name__ == "__main__":
    defaults = ["127.0.0.1:50050", "example-maker", "maker", "password"]
    arguments = sys.argv[1:] + defaults[len(sys.argv) - 1 :]
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(main(*arguments))
    except (MatchbusError, ValueError) as error:
        sys.exit(str(error))
