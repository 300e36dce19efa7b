"""Replies that may be long: what they show is copied at one moment, the rest is done between other work.

Here: whose turn it is, the pace, and how a consolidated level is told. Not here: what else a reply holds.
Imports nothing of ours but the contract.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

from matchbus.v1 import matchbus_pb2 as pb

Share = tuple[int, int, int]
"""An engine, its quantity and its order count."""

SLICE_S: Final = 0.002
"""How long a reply is worked at in one go: orders, heartbeats and all else pass in between."""

_WORTH_A_PAUSE_S: Final = 0.0005


class Turns:
    """So many pieces of work at a time; whoever asks for many of them waits behind those who ask for one."""

    def __init__(self, at_once: int = 1) -> None:
        self._at_once = at_once
        self._all = asyncio.Semaphore(at_once)
        # By whose it is, with how many hold or want it.
        self._own: dict[tuple[str, ...], tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, *whose: str) -> AsyncIterator[None]:
        """Wait for this client's turn, or with (connection, client) first among those of its connection.

        The turn lasts as long as the block.
        """
        if not whose:
            async with self._all:
                yield
            return
        own, wanted = self._own.get(whose, (asyncio.Semaphore(self._at_once), 0))
        self._own[whose] = own, wanted + 1
        try:
            async with own, self.of(*whose[:-1]):
                yield
        finally:
            own, wanted = self._own.pop(whose)
            if wanted > 1:
                self._own[whose] = own, wanted - 1


async def in_slices(steps: Iterator[None]) -> None:
    """Take all steps, in half of the time at most."""
    began = time.perf_counter()
    for _ in steps:
        if time.perf_counter() - began > SLICE_S:
            await asyncio.sleep(time.perf_counter() - began)
            began = time.perf_counter()
    if time.perf_counter() - began > _WORTH_A_PAUSE_S:  # or many short ones would leave nothing to others
        await asyncio.sleep(time.perf_counter() - began)


def add_levels(reply_levels: Any, levels: Iterable[tuple[int, int, int, Iterable[Share]]]) -> Iterator[None]:
    """The steps that put consolidated levels, (price, quantity, order count, shares), into a reply."""
    for price, quantity, order_count, shares in levels:
        reply_levels.add(
            price=price,
            quantity=quantity,
            order_count=order_count,
            engines=[
                pb.EngineQuantity(engine=engine, quantity=share, order_count=count)
                for engine, share, count in shares
            ],
        )
        yield
