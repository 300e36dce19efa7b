"""What goes into the state machine, and so into the journal: every command of one batch, in order.

A command never changes once made. It carries everything its decision needs: who asks, and the away
quotes that the shell saw when it sequenced the command, so that a replay decides the same.
"""

from typing import Final, final

import msgspec


class AwayQuote(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one peer showed on the side a command takes from, best price first.

    Only levels at least as good as the command's limit; `levels` holds (price, quantity). `cut`: there is
    more after the last one, at that price or a worse one, that the command may need and does not know.
    """

    engine: int
    epoch: int
    book_sequence: int
    levels: tuple[tuple[int, int], ...]
    cut: bool = False


class AddInstrument(
    msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="instrument", gc=False
):
    """A symbol starts to trade. Tick and lot size are decimal strings and never change afterwards.

    `market_collar_bps` bounds market orders to that many hundredths of a percent from the best opposite
    price at entry; 0 means no bound.
    """

    symbol: str
    tick_size: str
    lot_size: str
    market_collar_bps: int = 0


class EpochStarted(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="epoch", gc=False):
    """A primary's reign begins: the first command it journals.

    Its legs are numbered from `first_leg_id` on at least: what was lost of the journal may have had legs that
    peers still know, and would answer with what those did.
    """

    epoch: int
    first_leg_id: int = 0


@final
class NewOrder(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="new", gc=False):
    """A client's order. Numbers as they came over the wire: nothing is checked before the state machine."""

    client: str
    client_order_id: str
    symbol: str
    side: int
    type: int
    time_in_force: int
    price: int
    quantity: int
    stop_price: int = 0
    display_quantity: int = 0
    post_only: bool = False
    self_trade_prevention: int = 0
    expire_time_ns: int = 0
    do_not_route: bool = False
    away: tuple[AwayQuote, ...] = ()


class CancelOrder(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="cancel", gc=False):
    """Cancel what is left of an order, named by order id (if not 0) or client order id."""

    client: str
    order_id: int
    client_order_id: str = ""


class ReplaceOrder(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="replace", gc=False):
    """Give a resting order a new price and a new total quantity, fills included."""

    client: str
    order_id: int
    client_order_id: str
    price: int
    quantity: int
    away: tuple[AwayQuote, ...] = ()


class CancelAll(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="cancel_all", gc=False):
    """Cancel a client's open orders, of one symbol unless empty, of one side unless 0.

    At most so many as `most`, the oldest first; 0 is all, as in journals from before there was a bound.
    """

    client: str
    symbol: str = ""
    side: int = 0
    most: int = 0


class TakeLeg(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="leg", gc=False):
    """A peer's leg: take up to `quantity` here at `limit` or better, at once or never.

    `peer_epoch` is the epoch of this engine that the sender aimed at. The sender needs no stored answer
    below `settled_below` any more.
    """

    leg_id: int
    sender: int
    peer_epoch: int
    order_id: int
    symbol: str
    side: int
    limit: int
    quantity: int
    settled_below: int


class QueryLeg(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="leg_query", gc=False):
    """A peer asks what became of its leg. One never seen gets a tombstone: it is refused for ever."""

    leg_id: int
    sender: int


class LegFill(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One trade that a leg made at the peer."""

    execution_id: int
    price: int
    quantity: int
    contra_order_id: int
    time_ns: int


class LegResult(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="leg_result", gc=False):
    """What became of one of our legs; what it did not fill is planned again with `away`."""

    leg_id: int
    fills: tuple[LegFill, ...]
    away: tuple[AwayQuote, ...] = ()


class Uncross(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="uncross", gc=False):
    """Resting orders of `side` are locked or crossed by quotes of peers with a higher number: take those."""

    symbol: str
    side: int
    away: tuple[AwayQuote, ...]


OrderCommand = NewOrder | CancelOrder | ReplaceOrder
TakingCommand = NewOrder | ReplaceOrder | LegResult | Uncross
"""Those that may trade at home as taker or send legs, by the away quotes they carry."""

Command = (
    AddInstrument
    | EpochStarted
    | NewOrder
    | CancelOrder
    | ReplaceOrder
    | CancelAll
    | TakeLeg
    | QueryLeg
    | LegResult
    | Uncross
)

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(tuple[Command, ...])


def encode(commands: list[Command]) -> bytes:
    """The bytes of one batch for the journal."""
    return _encoder.encode(commands)


def decode(batch: bytes) -> tuple[Command, ...]:
    """The commands of one batch from the journal. Raises `msgspec.DecodeError` on anything else."""
    return _decoder.decode(batch)
