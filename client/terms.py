"""The words of the trade as a Python user writes them, and their numbers in the gRPC contract.

Every choice is a `StrEnum`, so the plain word ("buy", "limit", "gtc") does as well as the member.
"""

from collections.abc import Mapping
from enum import StrEnum, auto
from typing import Any, Final, Protocol, TypeVar

from matchbus.v1 import matchbus_pb2 as pb


class Side(StrEnum):
    """Which way an order trades."""

    BUY = auto()
    SELL = auto()


class OrderType(StrEnum):
    """LIMIT rests what it cannot trade; MARKET never rests."""

    LIMIT = auto()
    MARKET = auto()
    STOP = auto()
    STOP_LIMIT = auto()


class TimeInForce(StrEnum):
    """How long the part of an order that does not trade at once lives."""

    GTC = auto()
    IOC = auto()
    FOK = auto()
    DAY = auto()
    GTD = auto()


class SelfTradePrevention(StrEnum):
    """What happens when an order meets another order of the same client. The taker's choice decides."""

    NONE = auto()
    CANCEL_NEWEST = auto()
    CANCEL_OLDEST = auto()
    CANCEL_BOTH = auto()
    DECREMENT = auto()


class OrderStatus(StrEnum):
    """Where an order stands; REJECTED says of a command that it was refused and changed nothing."""

    NEW = auto()
    PARTIALLY_FILLED = auto()
    FILLED = auto()
    CANCELLED = auto()
    REJECTED = auto()
    EXPIRED = auto()
    PENDING = auto()
    PENDING_TRIGGER = auto()


class Liquidity(StrEnum):
    """Whether a fill's order rested (maker) or arrived (taker)."""

    MAKER = auto()
    TAKER = auto()


class EngineRole(StrEnum):
    """PRIMARY takes orders; STANDBY follows the journal, and takes over when the primary is gone."""

    PRIMARY = auto()
    STANDBY = auto()


class EngineState(StrEnum):
    """How the exchange sees a primary's feed; only the quotes of a LIVE one count."""

    LIVE = auto()
    SUSPECT = auto()
    DOWN = auto()


class RejectReason(StrEnum):
    """Why a command was refused. OTHER: a reason newer than this library; the text tells it."""

    EMPTY_COMMAND = auto()
    INVALID_CLIENT_ORDER_ID = auto()
    UNKNOWN_SYMBOL = auto()
    INVALID_SIDE = auto()
    INVALID_ORDER_TYPE = auto()
    INVALID_TIME_IN_FORCE = auto()
    INVALID_SELF_TRADE_PREVENTION = auto()
    INVALID_PRICE = auto()
    INVALID_QUANTITY = auto()
    NOTIONAL_TOO_LARGE = auto()
    UNSUPPORTED = auto()
    CONFLICTING_INSTRUCTIONS = auto()
    DUPLICATE_CLIENT_ORDER_ID = auto()
    POST_ONLY_WOULD_CROSS = auto()
    FOK_NEEDS_AWAY_LIQUIDITY = auto()
    UNKNOWN_ORDER = auto()
    ORDER_CLOSED = auto()
    ORDER_PENDING = auto()
    OTHER = auto()


class _WireEnum(Protocol):
    def items(self) -> list[tuple[str, int]]: ...


Word = TypeVar("Word", bound=StrEnum)


def _words(words: type[Word], wire: _WireEnum, prefix: str) -> dict[int, Word]:
    """The word of every number of a wire enum but its unspecified 0."""
    return {number: words[name.removeprefix(prefix)] for name, number in wire.items() if number}


SIDES: Final = _words(Side, pb.Side, "SIDE_")
ORDER_TYPES: Final = _words(OrderType, pb.OrderType, "ORDER_TYPE_")
TIMES_IN_FORCE: Final = {0: TimeInForce.GTC} | _words(TimeInForce, pb.TimeInForce, "TIME_IN_FORCE_")
SELF_TRADE_PREVENTIONS: Final = {0: SelfTradePrevention.NONE} | _words(
    SelfTradePrevention, pb.SelfTradePrevention, "SELF_TRADE_PREVENTION_"
)
STATUSES: Final = _words(OrderStatus, pb.OrderStatus, "ORDER_STATUS_")
LIQUIDITIES: Final = _words(Liquidity, pb.Liquidity, "LIQUIDITY_")
ENGINE_ROLES: Final = _words(EngineRole, pb.EngineRole, "ENGINE_ROLE_")
ENGINE_STATES: Final = _words(EngineState, pb.EngineState, "ENGINE_STATE_")
REJECT_REASONS: Final = _words(RejectReason, pb.RejectReason, "REJECT_REASON_")


def _numbers(words: Mapping[int, Word]) -> dict[str, int]:
    return {str(word): number for number, word in words.items()}


SIDE_NUMBERS: Final = _numbers(SIDES)
ORDER_TYPE_NUMBERS: Final = _numbers(ORDER_TYPES)
TIME_IN_FORCE_NUMBERS: Final = _numbers(TIMES_IN_FORCE)
SELF_TRADE_PREVENTION_NUMBERS: Final = _numbers(SELF_TRADE_PREVENTIONS)


def number_of(numbers: Mapping[str, int], word: str, what: str) -> Any:
    """The wire's number for a word. Raises `ValueError` naming the words there are.

    An int, `Any` to the type checker: the generated stubs have a type of their own for each wire enum.
    """
    number = numbers.get(word)
    if number is None:
        raise ValueError(f"{what} is {word!r:.60}; it must be one of {', '.join(numbers)}")
    return number
