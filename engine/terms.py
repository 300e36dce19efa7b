"""The words of the trade and their numbers, equal to those of the gRPC contract.

`tests/engine/test_terms.py` compares them with the generated enums.
"""

from enum import IntEnum
from typing import Final

MAX_PRICE: Final = 10**12
"""Highest price in ticks."""

MAX_QUANTITY: Final = 10**12
"""Largest order quantity in lots."""

MAX_NOTIONAL: Final = 2**62
"""Largest price x quantity of one order: keeps the sums that clients make in an int64 for a while."""

MAX_LEG_FILLS: Final = 500
"""Most trades one leg makes: its answer and its record stay small; the sender plans the rest again."""

MAX_CLIENT_ORDER_ID_LENGTH: Final = 36
MAX_SYMBOL_LENGTH: Final = 24

_COUNTER_BITS: Final = 48


def first_id(engine: int) -> int:
    """The first order, execution or leg id of an engine: its number in the top 16 bits, a counter below.

    `bus.messages.engine_of_id` reads the number.
    """
    return (engine << _COUNTER_BITS) + 1


class Side(IntEnum):
    """Which way an order trades."""

    BUY = 1
    SELL = 2


class OrderType(IntEnum):
    """LIMIT rests what it cannot trade; MARKET never rests. Stops are named in the contract only."""

    LIMIT = 1
    MARKET = 2
    STOP = 3
    STOP_LIMIT = 4


class TimeInForce(IntEnum):
    """How long the part of an order that does not trade at once lives."""

    UNSPECIFIED = 0
    GTC = 1
    IOC = 2
    FOK = 3
    DAY = 4
    GTD = 5


class SelfTradePrevention(IntEnum):
    """What happens when an order meets another order of the same client. The taker's choice decides."""

    UNSPECIFIED = 0
    NONE = 1
    CANCEL_NEWEST = 2
    CANCEL_OLDEST = 3
    CANCEL_BOTH = 4
    DECREMENT = 5


class OrderStatus(IntEnum):
    """Where an order stands."""

    NEW = 1
    PARTIALLY_FILLED = 2
    FILLED = 3
    CANCELLED = 4
    REJECTED = 5
    EXPIRED = 6
    PENDING = 7
    PENDING_TRIGGER = 8


class Liquidity(IntEnum):
    """Whether a fill's order rested (maker) or arrived (taker)."""

    MAKER = 1
    TAKER = 2


class RejectReason(IntEnum):
    """Why a command was refused; NONE where it was not."""

    NONE = 0
    EMPTY_COMMAND = 1
    INVALID_CLIENT_ORDER_ID = 2
    UNKNOWN_SYMBOL = 3
    INVALID_SIDE = 4
    INVALID_ORDER_TYPE = 5
    INVALID_TIME_IN_FORCE = 6
    INVALID_SELF_TRADE_PREVENTION = 7
    INVALID_PRICE = 8
    INVALID_QUANTITY = 9
    NOTIONAL_TOO_LARGE = 10
    UNSUPPORTED = 11
    CONFLICTING_INSTRUCTIONS = 12
    DUPLICATE_CLIENT_ORDER_ID = 13
    POST_ONLY_WOULD_CROSS = 14
    FOK_NEEDS_AWAY_LIQUIDITY = 15
    UNKNOWN_ORDER = 16
    ORDER_CLOSED = 17
    ORDER_PENDING = 18
