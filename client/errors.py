"""What the client raises. A refused order is an answer, not an error: see `OrderResult.raise_if_refused`.

    MatchbusError
    ├── Unavailable             no answer within the deadline; what was sent may still have been done
    ├── DataLost                the venue has lost what was asked for; stop, and ask its operator
    ├── ClientClosed            the client is closed, or was closed while the call waited
    ├── AuthenticationFailed    password, secret or token not accepted, or no permission
    ├── RequestInvalid          the venue says that the request makes no sense; it changed nothing
    │   ├── UnknownSymbol       the venue does not list it (also a LookupError)
    │   └── OrderNotFound       this client has no such order (also a LookupError)
    ├── OrderRefused            raised by `raise_if_refused` only; carries the whole result
    └── FillGap                 the venue left out a fill

Values that cannot be sent at all raise Python's own: `TypeError` for a float, `ValueError` for a price off
the tick or an unknown word.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.results import OrderResult
    from client.terms import RejectReason


class MatchbusError(Exception):
    """Everything this package raises by itself.

    For a command that was given up, `sent` tells whether it left at least once: then it may have been done.
    For an order, `client_order_id` is the id to ask about with `Client.order`, or to submit again with.
    """

    sent: bool = False
    client_order_id: str = ""


class Unavailable(MatchbusError):
    """The venue gave no answer within the deadline."""

    def __init__(self, text: str, *, sent: bool = False, client_order_id: str = "") -> None:
        super().__init__(text)
        self.sent = sent
        self.client_order_id = client_order_id


class DataLost(MatchbusError):
    """The venue has lost what was asked for, and knows it: asking again would not help. Ask its operator."""


class ClientClosed(MatchbusError):
    """The client is closed. A command that was waiting for its answer may have been done, if it was sent."""


class AuthenticationFailed(MatchbusError):
    """The venue does not accept who we say we are, or does not allow this."""


class RequestInvalid(MatchbusError):
    """The venue says that this request makes no sense; sending it again would not help."""


class UnknownSymbol(RequestInvalid, LookupError):
    """The venue does not list this symbol."""

    def __init__(self, symbol: str) -> None:
        super().__init__(f"{symbol!r:.60} is not among the venue's instruments")
        self.symbol = symbol


class OrderNotFound(RequestInvalid, LookupError):
    """This client has no such order, or the venue has forgotten it (100,000 finished orders are kept)."""


class OrderRefused(MatchbusError):
    """The engine refused a command; it changed nothing. `reason` and `text` say why."""

    def __init__(self, result: "OrderResult", reason: "RejectReason") -> None:
        super().__init__(f"{reason}: {result.reject_text}" if result.reject_text else str(reason))
        self.result = result
        self.reason = reason
        self.text = result.reject_text


class FillGap(MatchbusError):
    """The next fill should be number `expected`, the venue sent `received`: the history has a hole."""

    def __init__(self, expected: int, received: int) -> None:
        super().__init__(f"fill {expected} is missing: the venue went on with {received}")
        self.expected = expected
        self.received = received
