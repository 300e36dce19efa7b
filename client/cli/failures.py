"""What a command ends with when it cannot do what was asked: what was wrong, and what to do.

Failure
├── Misuse          the command makes no sense as it was typed; exit code 2
└── Interrupted     Ctrl-C or SIGTERM came before it was done; exit code 130
"""

import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from client import (
    AuthenticationFailed,
    DataLost,
    FillGap,
    MatchbusError,
    OrderNotFound,
    RejectReason,
    RequestInvalid,
    Unavailable,
    UnknownSymbol,
)
from client.cli.settings import Settings

DONE: Final = 0
REFUSED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130

_SHOWN_SYMBOLS: Final = 12

_HUNG_UP: Final = ("Socket closed", "handshake failed")
"""What gRPC says where somebody listens and one side does not take the other."""

_SILENCE: Final = (*_HUNG_UP, "failed to connect", "errors resolving", "DEADLINE_EXCEEDED")
"""What gRPC says where nobody answered. Who does answer may say UNAVAILABLE too, and knows why."""

_START_ONE: Final = (
    "start one with `matchbus up`, or name the one that runs: --exchange HOST:PORT, or `matchbus register` "
    "with it"
)

_ASK_WHO: Final = (
    f"it may be waiting for NATS, which `matchbus status` shows; if it is not there, {_START_ONE}"
)

_MUTE: Final = ("before receiving SETTINGS frame",)
"""What gRPC says where somebody takes the connection and then says nothing."""

_WAKE_IT: Final = (
    "somebody listens there and says nothing: frozen, overloaded or no exchange. Wait, or end that process "
    "by kill -9 and start it anew; another one is named by --exchange HOST:PORT"
)

_OTHERS: Final = ("Failed parsing HTTP/2", "there is no such method")
"""What is said where something else listens, such as NATS, or an engine."""

_NAME_IT: Final = (
    "something else listens there: `matchbus up` shows the address of the exchange, which --exchange takes; "
    "that of NATS goes into --nats, and engines are found by the exchange"
)

_CHECK_TLS: Final = (
    "somebody listens there, and one side ended the connection: check MATCHBUS_TLS_CA, and MATCHBUS_TLS_CERT "
    "and MATCHBUS_TLS_KEY if a certificate is demanded; without TLS there, unset them"
)

WHAT_TO_DO: Final = {
    RejectReason.INVALID_CLIENT_ORDER_ID: "make another id: 1 to 36 printable ASCII characters",
    RejectReason.UNKNOWN_SYMBOL: "`matchbus status` shows which venue this is",
    RejectReason.INVALID_PRICE: "correct the price: at least one tick, at most 10^12 ticks",
    RejectReason.INVALID_QUANTITY: "correct the quantity: at least one lot, at most 10^12 lots",
    RejectReason.NOTIONAL_TOO_LARGE: "split the order",
    RejectReason.UNSUPPORTED: "send a limit or market order, good till cancelled, --ioc or --fok",
    RejectReason.CONFLICTING_INSTRUCTIONS: "leave out --post-only, or what keeps the order from resting",
    RejectReason.DUPLICATE_CLIENT_ORDER_ID: "give a new order an id of its own",
    RejectReason.POST_ONLY_WOULD_CROSS: "move the price away; give the new order a new id",
    RejectReason.FOK_NEEDS_AWAY_LIQUIDITY: "send --ioc, or fewer: `matchbus book` shows what home has",
    RejectReason.UNKNOWN_ORDER: "check the id: `matchbus orders` lists what is open",
    RejectReason.ORDER_CLOSED: "nothing: `matchbus orders ORDER_ID` shows how it ended",
    RejectReason.ORDER_PENDING: "try again: it waits for another engine's answer, milliseconds as a rule",
}
"""For each refusal that a person can run into here. docs/trading.md has them all."""


class Failure(Exception):
    """The command failed. `hint` says what to do, `code` is the exit code."""

    code = REFUSED

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint


class Misuse(Failure):
    """The command was typed wrongly."""

    code = MISUSED


class Interrupted(Failure):
    """The command was ended before it was done."""

    code = INTERRUPTED


class ExchangeAway(MatchbusError):
    """Nobody answered where the exchange should be; `cause` is the last failure."""

    def __init__(self, cause: Unavailable) -> None:
        super().__init__(str(cause))
        self.cause = cause


def explain(error: Exception, settings: Settings, listed: list[str]) -> Failure:
    """The failure that an error means to the person at the keyboard; `listed` are the venue's symbols."""
    match error:
        case ExchangeAway():
            return Failure(
                f"no exchange answers at {settings.exchange} ({settings.source('exchange')}): "
                f"{reason_of(error.cause)}",
                _CHECK_TLS
                if _says(error, _HUNG_UP)
                else _NAME_IT
                if _says(error, _OTHERS)
                else _WAKE_IT
                if _says(error, _MUTE)
                else _ASK_WHO
                if _says(error, ("DEADLINE_EXCEEDED",))
                else _START_ONE,
            )
        case Unavailable():
            return Failure(
                reason_of(error),
                "`matchbus status` shows who is away; try again, with a longer --timeout if need be",
            )
        case UnknownSymbol():
            near = get_close_matches(error.symbol, listed, 1)
            return Failure(
                f"{error.symbol!r} is not traded here" + (f": did you mean {near[0]}?" if near else ""),
                f"traded here: {some_of(listed) or 'nothing'}",
            )
        case OrderNotFound():
            return Failure(str(error), "`matchbus orders` lists what is open")
        case RequestInvalid() if _says(error, _OTHERS):
            return Failure(
                f"no exchange is at {settings.exchange} ({settings.source('exchange')}): {error}", _NAME_IT
            )
        # All that the exchange says of it; of a wrong secret it says more, with the client's name.
        case AuthenticationFailed() if str(error) == "wrong password":
            return Failure(
                f"the exchange at {settings.exchange} does not take the password "
                f"({settings.source('password')}): {error}",
                "give the one it was started with: --password or MATCHBUS_PASSWORD",
            )
        case AuthenticationFailed():
            return Failure(
                f"the exchange at {settings.exchange} does not take {settings.client_id!r} with this secret "
                f"({settings.source('secret')}): {error}",
                "a secret is given by --secret or MATCHBUS_SECRET, another client id by "
                "`matchbus register NAME`",
            )
        case ValueError() if "is not on a " in str(error):
            return Failure(str(error), "write a multiple of it: nothing is rounded here")
        case FillGap():
            return Failure(str(error), "stop trading on this history, and ask the operator")
        case DataLost():
            return Failure(str(error), "stop, and ask the operator")
        case _:
            return Failure(str(error))


def how_to_find_out(client_order_id: str) -> str:
    """What to do about an order that may have been entered."""
    named = by_own_id(client_order_id)
    return (
        f"see `matchbus orders {named}`, or send the same command again with {named}: "
        "it is entered once at most"
    )


def by_own_id(client_order_id: str) -> str:
    """How a command names an order by its client order id, which may have blanks or begin with a dash."""
    return shlex.quote(f"--client-order-id={client_order_id}")


def some_of(symbols: list[str]) -> str:
    """The symbols, or the first of many."""
    more = len(symbols) - _SHOWN_SYMBOLS
    return ", ".join(symbols[:_SHOWN_SYMBOLS]) + (f" and {more} more" if more > 0 else "")


def is_silence(error: Unavailable) -> bool:
    """Whether nobody answered at all."""
    return _says(error, _SILENCE)


def _says(error: Exception, signs: Iterable[str]) -> bool:
    return any(sign in str(error) for sign in signs)


def reason_of(error: MatchbusError) -> str:
    """Why there is no answer, without the words that gRPC wraps around a refused connection."""
    text = str(error)
    start, _, rest = text.partition("failed to connect to all addresses")
    return f"{start}nobody listens there" if rest and "refused" in rest else text
