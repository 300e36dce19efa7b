"""A message to oneself, as proof that all before it has arrived.

When it is back, the server has passed on all that we published before it, and has handed us all that it had
for us. That is what makes the market causal: an engine shows a change and makes a round trip before it
answers a client, and makes another after an order came in and before it decides; so an order never misses a
quote that its client could know of. NATS keeps order within a connection each way, which is all this rests
on. It says nothing of what is under way between the servers of a cluster, so all are on the same one
(`bus.connection`).
"""

import asyncio
from typing import Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bus.connection import Patience

PATIENCE_S: Final = 0.25
"""With NATS slower than this nobody waits: quotes then count by their age alone."""


class RoundTrip:
    """Makes round trips over one connection, after `start`."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._subject = nc.new_inbox()
        self._subscription: Subscription | None = None
        self._next = 0
        self._under_way: dict[bytes, asyncio.Future[None]] = {}

    async def start(self) -> None:
        """Listen for our own messages."""
        self._subscription = await self._nc.subscribe(self._subject, cb=self._back)

    async def stop(self) -> None:
        """Listen no more; only after `start`."""
        assert self._subscription is not None
        if not self._nc.is_closed:
            await self._subscription.unsubscribe()

    async def make(self) -> None:
        """Return when the message is back, or after PATIENCE_S."""
        self._next += 1
        name = str(self._next).encode()
        back = self._under_way[name] = asyncio.get_running_loop().create_future()
        try:
            await self._nc.publish(self._subject, name)
            async with Patience(PATIENCE_S):
                await back
        except (TimeoutError, nats.errors.Error):
            return
        finally:
            del self._under_way[name]

    async def _back(self, message: Msg) -> None:
        back = self._under_way.get(message.data)
        if back is not None and not back.done():
            back.set_result(None)
