"""Looks for resting orders here that a peer's quote locks or crosses, and asks for them to be uncrossed.

The engine with the lower number of the two does it. Which legs leave then `engine.state` decides.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from engine.commands import Uncross
from engine.runtime.commit_loop import CommitLoop, Submission

LOOK_S: Final = 1.0
"""How often all symbols are looked at for what crosses."""

_LOOKS_A_TURN: Final = 200


class Uncrosser:
    """Asks for an Uncross where resting orders here are locked or crossed by a peer with a higher number."""

    def __init__(self, loop: CommitLoop, crossing: Callable[[str], list[int]]) -> None:
        self._loop = loop
        self._crossing = crossing
        self._asked: set[tuple[str, int]] = set()

    async def run(self, symbols: Iterable[str]) -> None:
        """Look at every symbol once a second, until cancelled.

        A quote may begin to count without changing: its peer is live again, or has answered a leg and is no
        longer suspect, or this reign has just begun.
        """
        while True:
            await asyncio.sleep(LOOK_S)
            for number, symbol in enumerate(tuple(symbols), start=1):
                self.look(symbol)
                if number % _LOOKS_A_TURN == 0:
                    await asyncio.sleep(0)

    def look(self, symbol: str) -> None:
        """A quote of this symbol changed, here or at a peer."""
        for side in self._crossing(symbol):
            if (symbol, side) not in self._asked:
                self._asked.add((symbol, side))
                done = self._loop.submit_own(Uncross(symbol, side, ()))
                done.add_done_callback(partial(self._on_done, symbol, side))

    def _on_done(self, symbol: str, side: int, _: asyncio.Future[Submission]) -> None:
        """One Uncross takes a part of what crosses: look at once whether there is more.

        It ends: each takes or cancels something, or there was nothing left to do for it.
        """
        self._asked.discard((symbol, side))
        self.look(symbol)
