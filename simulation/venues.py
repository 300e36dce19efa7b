"""Where simulated clients trade: what a run needs of a market, and a running market that offers it.

The other kind, which lives in this process alone, is `simulation.virtual.venue`.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol, Self

from matchbus import tls
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc as rpc

from bus.connection import connect
from bus.executions import ExecutionsReader
from bus.messages import Executions
from client import Client, Fill, OrderResult, OrderState, Position
from client.units import Instrument, Number
from exchange.runtime.settings import DEFAULT_PASSWORD
from simulation.market import MarketWatch


class Account(Protocol):
    """What a trader uses of `client.Client`; all as said there."""

    @property
    def instruments(self) -> Mapping[str, Instrument]: ...  # noqa: D102
    @property
    def engine(self) -> int: ...  # noqa: D102
    async def submit(  # noqa: D102
        self,
        symbol: str,
        side: str,
        quantity: Number,
        price: Number | None = None,
        *,
        type: str = "limit",  # noqa: A002
        time_in_force: str = "gtc",
        post_only: bool = False,
        self_trade_prevention: str = "none",
    ) -> OrderResult: ...
    async def cancel(self, *, client_order_id: str) -> OrderResult: ...  # noqa: D102
    async def replace(self, *, price: Number, quantity: Number, client_order_id: str) -> OrderResult: ...  # noqa: D102
    def fills(self, since: int = 0, *, follow: bool = True) -> AsyncIterator[Fill]: ...  # noqa: D102
    async def open_orders(self) -> list[OrderState]: ...  # noqa: D102
    async def positions(self) -> dict[str, Position]: ...  # noqa: D102


class Venue(Protocol):
    """A market that clients can join."""

    market: MarketWatch
    """What all of them see of it."""

    async def symbols(self) -> list[str]:
        """What trades there."""
        ...

    def account(self, name: str) -> AbstractAsyncContextManager[Account]:
        """Registers a client for as long as the context lasts."""
        ...

    def reports(self) -> AsyncIterator[Executions] | None:
        """The execution reports from the first on, as they come; None where they cannot be read."""
        ...


class RunningVenue:
    """A market of processes of its own, while entered. Without `nats` its reports are not read."""

    def __init__(self, exchange: str, password: str = DEFAULT_PASSWORD, *, nats: str = "") -> None:
        self._exchange, self._password, self._nats = exchange, password, nats
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._stub = rpc.ExchangeStub(await self._stack.enter_async_context(tls.channel(self._exchange)))
        self.market = MarketWatch(self._stub)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def symbols(self) -> list[str]:
        """As Venue says. Raises `grpc.aio.AioRpcError`."""
        listed = await self._stub.ListInstruments(pb.ListInstrumentsRequest(), timeout=10)
        return [instrument.symbol for instrument in listed.instruments]

    def account(self, name: str) -> Client:
        """As Venue says. Entering raises what the client raises."""
        return Client.connect(
            self._exchange, client_id=name, password=self._password, secret=f"simulated {name}"
        )

    def reports(self) -> AsyncIterator[Executions] | None:
        """As Venue says."""
        return self._read_reports() if self._nats else None

    async def _read_reports(self) -> AsyncIterator[Executions]:
        # Not on entering: one waits for NATS as long as it takes, and whether the market is there at all is
        # the exchange's to say.
        nc = await connect(self._nats, name="simulation", on_closed=lambda: None)
        self._stack.push_async_callback(nc.close)
        async for message in ExecutionsReader(nc):
            yield message
