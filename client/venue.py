"""The venue: what anyone may ask the exchange, registered or not.

Read only. What belongs to one trader is in `client/client.py`.
"""

from types import TracebackType
from typing import Self

import grpc
from matchbus.v1 import matchbus_pb2 as pb

from client import results
from client.results import Book, EngineStatus
from client.session import DEFAULT_DEADLINE_S, Session
from client.units import Instrument


class Venue:
    """Ask about a venue: `async with Venue.connect("127.0.0.1:50050") as venue`.

    An open `Client` has one too (`Client.venue`), which ends with the client. Every call raises `Unavailable`
    when the exchange gives no answer by the deadline.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @classmethod
    def connect(
        cls,
        exchange: str,
        *,
        deadline_s: float = DEFAULT_DEADLINE_S,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> Self:
        """A venue that is asked at the exchange's "host:port"; `ValueError` for anything else.

        The deadline of each call, and TLS, are as for `Client.connect`.
        """
        nobody = pb.RegisterClientRequest()
        return cls(Session(exchange, nobody, deadline_s=deadline_s, credentials=credentials))

    async def close(self) -> None:
        """Close the connection."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def engines(self) -> list[EngineStatus]:
        """Every engine process: the primaries by engine number, then the standbys."""
        reply: pb.ListEnginesReply = await self._session.ask_publicly("ListEngines", pb.ListEnginesRequest())
        return [results.engine_status(message) for message in reply.engines]

    async def instruments(self) -> dict[str, Instrument]:
        """What can be traded, by symbol."""
        await self._session.refresh_instruments()
        return dict(sorted(self._session.instruments.items()))

    async def book(self, symbol: str, depth: int = 0) -> Book:
        """A symbol's book summed over all live engines, best first; `depth` 0 means all levels.

        Raises `UnknownSymbol`.
        """
        instrument = await self._session.instrument(symbol)
        request = pb.GetConsolidatedBookRequest(symbol=symbol, depth=depth)
        message: pb.ConsolidatedBook = await self._session.ask_publicly("GetConsolidatedBook", request)
        return results.book(message, instrument)
