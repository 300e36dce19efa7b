"""Waiting for something that nobody announces."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], deadline_s: float, every_s: float = 0.01) -> None:
    """Look again and again until it is true. Raises TimeoutError at the deadline."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 -- it is the state of others
            await asyncio.sleep(every_s)
