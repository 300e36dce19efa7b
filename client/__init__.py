"""The Matchbus client library for asyncio.

    exchange = "127.0.0.1:50050"
    connection = Client.connect(exchange, client_id="carol", password="password", secret="carol's own")
    async with connection as client:
        result = await client.submit("AAPL", "buy", quantity="10", price="101.25")
        print(result.status, result.fills)

Prices and quantities are `Decimal`, `str` or `int`; a `float` is refused. A refused order is returned, not
raised (`OrderResult.raise_if_refused` raises). What is raised is drawn in `client/errors.py`. `Venue` asks
what needs no registration.
"""

from client.client import Client
from client.errors import (
    AuthenticationFailed,
    ClientClosed,
    DataLost,
    FillGap,
    MatchbusError,
    OrderNotFound,
    OrderRefused,
    RequestInvalid,
    Unavailable,
    UnknownSymbol,
)
from client.results import (
    Book,
    BookLevel,
    BookOrder,
    EngineQuantity,
    EngineStatus,
    Fill,
    OrderResult,
    OrderState,
    Position,
    PreventedMatch,
)
from client.terms import (
    EngineRole,
    EngineState,
    Liquidity,
    OrderStatus,
    OrderType,
    RejectReason,
    SelfTradePrevention,
    Side,
    TimeInForce,
)
from client.units import Instrument
from client.venue import Venue

__all__ = [
    "AuthenticationFailed",
    "Book",
    "BookLevel",
    "BookOrder",
    "Client",
    "ClientClosed",
    "DataLost",
    "EngineQuantity",
    "EngineRole",
    "EngineState",
    "EngineStatus",
    "Fill",
    "FillGap",
    "Instrument",
    "Liquidity",
    "MatchbusError",
    "OrderNotFound",
    "OrderRefused",
    "OrderResult",
    "OrderState",
    "OrderStatus",
    "OrderType",
    "Position",
    "PreventedMatch",
    "RejectReason",
    "RequestInvalid",
    "SelfTradePrevention",
    "Side",
    "TimeInForce",
    "Unavailable",
    "UnknownSymbol",
    "Venue",
]
