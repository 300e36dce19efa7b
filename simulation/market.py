"""What simulated clients and the live view see of the whole market, asked from the exchange steadily.

Read only; prices are ticks, quantities lots.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc
import grpc.aio
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc as rpc

DEPTH: Final = 8
_BOOKS_EVERY_S: Final = 0.1
_ENGINES_EVERY_S: Final = 0.5
_CALL_DEADLINE_S: Final = 2.0


@dataclass(slots=True)
class MarketWatch:
    """The newest consolidated book of each watched symbol, and the engines' states.

    `run` keeps them fresh until cancelled; while the exchange is away they stay as they were.
    """

    exchange: rpc.ExchangeStub
    books: dict[str, pb.ConsolidatedBook] = field(default_factory=dict)
    engines: list[pb.Engine] = field(default_factory=list)

    def quotes(self, symbol: str) -> tuple[int | None, int | None]:
        """The best bid and ask of the whole market."""
        book = self.books.get(symbol)
        if book is None:
            return None, None
        return (book.bids[0].price if book.bids else None, book.asks[0].price if book.asks else None)

    async def refresh(self, symbols: Sequence[str]) -> None:
        """Ask once for every book. Raises `grpc.aio.AioRpcError` when the exchange does not answer."""
        for symbol in symbols:
            request = pb.GetConsolidatedBookRequest(symbol=symbol, depth=DEPTH)
            self.books[symbol] = await self.exchange.GetConsolidatedBook(request, timeout=_CALL_DEADLINE_S)

    async def run(self, symbols: Sequence[str]) -> None:
        """Keep books and engines fresh until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_books(symbols))
            group.create_task(self._follow_engines())

    async def _follow_books(self, symbols: Sequence[str]) -> None:
        while True:
            try:
                await self.refresh(symbols)
            except grpc.aio.AioRpcError as error:
                _raise_unless_away(error)
            await asyncio.sleep(_BOOKS_EVERY_S)

    async def _follow_engines(self) -> None:
        while True:
            try:
                reply = await self.exchange.ListEngines(pb.ListEnginesRequest(), timeout=_CALL_DEADLINE_S)
                self.engines = list(reply.engines)
            except grpc.aio.AioRpcError as error:
                _raise_unless_away(error)
            await asyncio.sleep(_ENGINES_EVERY_S)


def _raise_unless_away(error: grpc.aio.AioRpcError) -> None:
    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        raise error
