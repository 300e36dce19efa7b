"""What simulated clients and the live view see of the whole market, asked from the exchange steadily.

Read only; prices are ticks, quantities lots, times of the event loop's clock.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import grpc
import grpc.aio
from matchbus.v1 import matchbus_pb2 as pb

from simulation.agents.terms import EngineQuote

DEPTH: Final = 8
_BOOKS_EVERY_S: Final = 0.1
_ENGINES_EVERY_S: Final = 0.25
_CALL_DEADLINE_S: Final = 2.0

Best = tuple[int | None, int | None]
"""The best bid and the best ask."""


class Exchange(Protocol):
    """The two questions, as a stub of the contract's service Exchange puts them."""

    async def GetConsolidatedBook(  # noqa: D102, N802 -- the contract's
        self,
        request: pb.GetConsolidatedBookRequest,
        *,
        timeout: float,  # noqa: ASYNC109 -- gRPC's
    ) -> pb.ConsolidatedBook: ...
    async def ListEngines(  # noqa: D102, N802 -- likewise
        self,
        request: pb.ListEnginesRequest,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> pb.ListEnginesReply: ...


@dataclass(slots=True)
class MarketWatch:
    """The newest consolidated book of each watched symbol, and the engines' states.

    `run` keeps them fresh until cancelled; while the exchange is away they stay as they were. `on_book` and
    `on_engines` are called with what came.
    """

    exchange: Exchange
    books: dict[str, pb.ConsolidatedBook] = field(default_factory=dict)
    engines: list[pb.Engine] = field(default_factory=list)
    on_book: Callable[[pb.ConsolidatedBook], None] = lambda _: None
    on_engines: Callable[[list[pb.Engine]], None] = lambda _: None
    _best: dict[str, dict[int, tuple[Best, float]]] = field(default_factory=dict)
    """The best prices of each symbol by engine, and since when they are so."""

    def quotes(self, symbol: str) -> Best:
        """The best bid and ask of the whole market."""
        book = self.books.get(symbol)
        if book is None:
            return None, None
        return (book.bids[0].price if book.bids else None, book.asks[0].price if book.asks else None)

    def engine_quotes(self, symbol: str, now: float) -> tuple[EngineQuote, ...]:
        """The best bid and ask of each engine that quotes among the best levels."""
        known = self._best.get(symbol, {})
        return tuple(EngineQuote(engine, *best, now - since) for engine, (best, since) in known.items())

    async def refresh(self, symbols: Sequence[str]) -> None:
        """Ask once for every book. Raises `grpc.aio.AioRpcError` when the exchange does not answer."""
        for symbol in symbols:
            request = pb.GetConsolidatedBookRequest(symbol=symbol, depth=DEPTH)
            book = await self.exchange.GetConsolidatedBook(request, timeout=_CALL_DEADLINE_S)
            self.take(book, asyncio.get_running_loop().time())

    async def run(self, symbols: Sequence[str]) -> None:
        """Keep books and engines fresh until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_books(symbols))
            group.create_task(self._follow_engines())

    def take(self, book: pb.ConsolidatedBook, now: float) -> None:
        """Keep a book that came just now, and note which engines changed their best prices."""
        known = self._best.get(book.symbol, {})
        changed = {engine: (best, now) for engine, best in best_by_engine(book).items()}
        self._best[book.symbol] = {
            engine: known[engine] if engine in known and known[engine][0] == new[0] else new
            for engine, new in changed.items()
        }
        self.books[book.symbol] = book
        self.on_book(book)

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
                self.on_engines(self.engines)
            except grpc.aio.AioRpcError as error:
                _raise_unless_away(error)
            await asyncio.sleep(_ENGINES_EVERY_S)


def best_by_engine(book: pb.ConsolidatedBook) -> dict[int, Best]:
    """The best bid and ask of each engine that has a share of a level."""
    bids, asks = _first_by_engine(book.bids), _first_by_engine(book.asks)
    return {engine: (bids.get(engine), asks.get(engine)) for engine in sorted(bids.keys() | asks.keys())}


def _first_by_engine(levels: Sequence[pb.Level]) -> dict[int, int]:
    first: dict[int, int] = {}
    for level in levels:
        for share in level.engines:
            first.setdefault(share.engine, level.price)
    return first


def _raise_unless_away(error: grpc.aio.AioRpcError) -> None:
    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        raise error
