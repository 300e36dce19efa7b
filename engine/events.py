"""What comes out of the state machine: one event per fact, in the order the facts happened.

The shell releases events only when the journal has the batch that caused them.
"""

import msgspec

from engine.commands import LegFill


class Fill(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="fill", gc=False):
    """One party's side of a trade, as it enters that client's gap-free history."""

    client: str
    sequence: int
    execution_id: int
    order_id: int
    client_order_id: str
    symbol: str
    side: int
    price: int
    quantity: int
    liquidity: int
    cumulative: int
    leaves: int
    engine: int
    time_ns: int
    contra_order_id: int
    fee: int = 0


class Prevented(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="prevented", gc=False):
    """A match between two orders of one client that self-trade prevention stopped."""

    client: str
    symbol: str
    taker_order_id: int
    maker_order_id: int
    price: int
    quantity: int
    mode: int


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="accepted", gc=False):
    """An order entered the market."""

    client: str
    order_id: int
    client_order_id: str
    symbol: str
    side: int
    type: int
    time_in_force: int
    price: int
    quantity: int


class Replaced(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="replaced", gc=False):
    """An order's price and total quantity changed; `quantity` is the new total, fills included."""

    client: str
    order_id: int
    client_order_id: str
    price: int
    quantity: int


class Cancelled(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="cancelled", gc=False):
    """`quantity` lots of an order will never trade; `leaves` are left (a part may be out on a leg)."""

    client: str
    order_id: int
    client_order_id: str
    symbol: str
    quantity: int
    leaves: int


class Answered(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="answered", gc=False):
    """The answer to a client's command about one order.

    With status PENDING a leg is out: another `Answered` for the same order follows when it has come to rest.
    `value` is the sum of price x quantity over the order's fills.
    """

    client: str
    client_order_id: str
    order_id: int
    status: int
    reject_reason: int = 0
    reject_text: str = ""
    cumulative: int = 0
    leaves: int = 0
    value: int = 0
    fills: tuple[Fill, ...] = ()
    prevented: tuple[Prevented, ...] = ()
    duplicate: bool = False


class CancelledAll(
    msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="cancelled_all", gc=False
):
    """The answer to CancelAll: how many orders it cancelled."""

    client: str
    count: int


class LegSent(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="leg_sent", gc=False):
    """A part of an order leaves for `peer`; its quantity is reserved until the result comes back."""

    leg_id: int
    peer: int
    peer_epoch: int
    order_id: int
    symbol: str
    side: int
    limit: int
    quantity: int
    settled_below: int


class LegTaken(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="leg_taken", gc=False):
    """Our answer to a peer's leg. A refused one traded nothing and never will."""

    leg_id: int
    sender: int
    symbol: str
    refused: bool
    fills: tuple[LegFill, ...] = ()


class Listed(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="listed", gc=False):
    """A symbol started to trade, with an empty book."""

    symbol: str


class BookChanged(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="book", gc=False):
    """What one batch changed in one symbol's book: absolute level values, quantity 0 where a level is gone.

    `levels` holds (side, price, quantity, order count).
    """

    symbol: str
    sequence: int
    levels: tuple[tuple[int, int, int, int], ...]


Event = (
    Fill
    | Prevented
    | Accepted
    | Replaced
    | Cancelled
    | Answered
    | CancelledAll
    | LegSent
    | LegTaken
    | Listed
    | BookChanged
)
