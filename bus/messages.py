"""What travels over NATS besides the journal, as JSON so that any language reads it.

Messages are arrays, tag first; values of buckets are objects. Execution reports alone are MessagePack: they
are many, they are stored, and few read them.

Market data (`md.>`) is public and documented in docs/feed.md; field order is the contract.
Sides are 1 (bids) and 2 (asks); prices are ticks, quantities lots, times nanoseconds UTC.

Anybody may send anything: whoever decodes catches NO_MESSAGE.
"""

from typing import Annotated, Final

import msgspec

from bus.subjects import MAX_ENGINE, SYMBOL_PATTERN

NO_MESSAGE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are no message."""

BID: Final = 1
ASK: Final = 2


def opposite(side: int) -> int:
    """The side that orders of `side` trade with."""
    return ASK if side == BID else BID


Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""One that is shown: the contract's int64 carries it, and a float holds it."""

EngineNumber = Annotated[int, msgspec.Meta(ge=1, le=MAX_ENGINE)]

SIZE_PATTERN: Final = r"(?=.*[1-9])[0-9]{1,12}(\.[0-9]{1,12})?"
PERCENT_PATTERN: Final = r"(?=.*[1-9])[0-9]{1,3}(\.[0-9]{1,2})?"
"""Decimals above 0 as an instrument has them."""

Symbol = Annotated[str, msgspec.Meta(pattern=rf"^{SYMBOL_PATTERN.pattern}\Z")]
Size = Annotated[str, msgspec.Meta(pattern=rf"^{SIZE_PATTERN}\Z")]
Percent = Annotated[str, msgspec.Meta(pattern=rf"^({PERCENT_PATTERN})?\Z")]
"""May be empty."""

MAX_TROUBLE: Final = 200
Trouble = Annotated[str, msgspec.Meta(max_length=MAX_TROUBLE)]
"""A heartbeat must stay small."""

LevelChange = tuple[int, int, int, int]
"""(side, price, quantity, order count): absolute; quantity 0 removes the level."""

_COUNTER_BITS: Final = 48


def engine_of_id(number: int) -> int:
    """The engine that gave an order, execution or leg id: its number stands in the top 16 bits.

    An order's is its home; a fill made elsewhere came through a leg.
    """
    return number >> _COUNTER_BITS


class BookDelta(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="delta"):
    """On `md.<n>.book.<SYMBOL>`: what one batch changed in the book; it applies at `previous_sequence`."""

    epoch: Number
    sequence: int
    previous_sequence: int
    batch_number: int
    time_ns: int
    levels: tuple[LevelChange, ...]
    checksum: int


class BookSnapshot(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="snapshot"):
    """On `md.<n>.book.<SYMBOL>`: the whole book at `sequence`; in parts where one message would be too large.

    The checksum is that of the whole in every part.
    """

    epoch: Number
    sequence: int
    batch_number: int
    time_ns: int
    levels: tuple[LevelChange, ...]
    checksum: int
    part: int = 1
    parts: int = 1


class Trades(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="trades"):
    """On `md.<n>.trade.<SYMBOL>`: one batch's, as (execution id, price, quantity, side of the taker)."""

    epoch: Number
    batch_number: int
    time_ns: int
    trades: tuple[tuple[int, int, int, int], ...]


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="heartbeat"):
    """On `md.<n>.heartbeat`: an engine lives.

    `sequences` is the last sequence of each symbol changed in the last two seconds. `sent_ns` is the sender's
    monotonic clock: only differences between heartbeats of one epoch mean anything. `append_p50_us` and
    `append_max_us` are how long its journal took to store a batch in the last second, 0 when there was none.
    `trouble` says why it does not serve, empty when it does.
    """

    engine: EngineNumber
    epoch: Number
    batch_number: Number
    sent_ns: Number
    sequences: dict[str, Number]
    append_p50_us: Number = 0
    append_max_us: Number = 0
    trouble: Trouble = ""


FeedMessage = BookDelta | BookSnapshot | Trades | Heartbeat


class SnapshotRequest(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="snapshot_request"):
    """On `snapshot.<n>`: asks an engine to publish snapshots of these symbols, of all it has when empty."""

    symbols: tuple[str, ...] = ()


class Leg(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="leg"):
    """On `route.<n>`: take up to `quantity` at `limit` or better on the receiver's book, at once or never."""

    leg_id: int
    """The sender's number in the top 16 bits, a counter below."""
    sender: int
    peer_epoch: int
    """The reign whose quotes it aims at; another one refuses it."""
    order_id: int
    """The sender's order."""
    symbol: str
    side: int
    limit: int
    quantity: int
    settled_below: int
    """The sender queries no leg of its own below this id any more."""


class LegQuery(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="leg_query"):
    """On `route.<n>`: what became of that leg? If it was never seen, refuse it for ever and say so."""

    leg_id: int
    sender: int


class LegAnswer(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="leg_answer"):
    """The reply to both: the one, final answer to a leg.

    `book_sequence`: the taker's view of the book is at least this new. `fills` holds (execution id, price,
    quantity, contra order id, time).
    """

    leg_id: int
    refused: bool
    """It traded nothing and never will."""
    book_sequence: int
    fills: tuple[tuple[int, int, int, int, int], ...]


class ReportedOrder(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="accepted"):
    """A report: an order entered the market."""

    client: str
    order_id: int
    client_order_id: str
    symbol: str
    side: int
    type: int
    time_in_force: int
    price: int
    quantity: int


class ReportedFill(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="fill"):
    """A report: one party's side of a trade; `sequence` is gap-free per client."""

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


class ReportedReplace(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="replaced"):
    """A report: an order has a new price and total quantity."""

    client: str
    order_id: int
    client_order_id: str
    price: int
    quantity: int


class ReportedCancel(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="cancelled"):
    """A report: `quantity` lots of an order will never trade; `leaves` are left."""

    client: str
    order_id: int
    client_order_id: str
    symbol: str
    quantity: int
    leaves: int


class ReportedPrevention(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="prevented"):
    """A report: a match that self-trade prevention stopped."""

    client: str
    symbol: str
    taker_order_id: int
    maker_order_id: int
    price: int
    quantity: int
    mode: int


Report = ReportedOrder | ReportedFill | ReportedReplace | ReportedCancel | ReportedPrevention


class Executions(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="executions"):
    """On `execution.<n>`, as MessagePack: reports of the batches `first_batch` to `last_batch`, in order.

    A batch with more reports than a message takes goes on in the next message: `last_reports` is how many of
    `last_batch`'s reports are stored once this message is.
    """

    engine: int
    epoch: int
    first_batch: int
    last_batch: int
    last_reports: int
    reports: tuple[Report, ...]


class ProvisionRequest(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="provision"):
    """On `provision.<n>`: an engine asks the exchange to make its journal stream."""

    engine: int


class ProvisionReply(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="provisioned"):
    """The reply: the stream exists with the right configuration, or `error` says why not."""

    error: str = ""


class StandbyStatus(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="standby"):
    """On `standby.<n>`: a process that stands by for an engine lives.

    `lag_batches` is how many stored batches it has not read. `epoch` and `batch_number` are those of the last
    batch it has applied.
    """

    engine: EngineNumber
    address: str
    pid: int
    epoch: Number
    batch_number: Number
    lag_batches: Number


class HandoverRequest(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="handover"):
    """On `handover.<n>`: asks the process that reigns as this engine to let a standby take its place."""

    engine: int


class HandoverReply(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", tag="handed_over"):
    """The reply: it takes no more commands and has let the lease go, or `error` says why it reigns on."""

    error: str = ""


class InstrumentEntry(msgspec.Struct, frozen=True):
    """Value of the `instruments` bucket. Sizes are decimal strings and never change."""

    symbol: Symbol
    tick_size: Size
    lot_size: Size
    market_collar_percent: Percent = ""


class ClientEntry(msgspec.Struct, frozen=True):
    """Value of the `clients` bucket, under `subjects.client_key`."""

    client_id: str
    salt: str
    secret_hash: str
    engine: int


class SessionEntry(msgspec.Struct, frozen=True):
    """Value of the `sessions` bucket, under the SHA-256 of the token in hex: whose token it is."""

    client_id: str
    engine: int
    ends_ns: int = 0
    """When the token ends (UTC); one that was stored before tokens ended has ended."""


class EngineEntry(msgspec.Struct, frozen=True):
    """Value of the `engines` bucket, under the engine's number."""

    engine: EngineNumber
    epoch: Number
    address: str
    pid: int


class LeaseEntry(msgspec.Struct, frozen=True):
    """Value of the `leases` bucket, under the engine's number: the process that may reign.

    `holder` is random, drawn at the start of the process.
    """

    engine: int
    holder: str
    address: str
    pid: int


_encoder: Final = msgspec.json.Encoder()
encode: Final = _encoder.encode
"""The bytes of any message above but Executions."""

decode_feed: Final = msgspec.json.Decoder(FeedMessage).decode
decode_snapshot_request: Final = msgspec.json.Decoder(SnapshotRequest).decode
decode_route: Final = msgspec.json.Decoder(Leg | LegQuery).decode
decode_leg_answer: Final = msgspec.json.Decoder(LegAnswer).decode
encode_executions: Final = msgspec.msgpack.Encoder().encode
decode_executions: Final = msgspec.msgpack.Decoder(Executions).decode
decode_provision_request: Final = msgspec.json.Decoder(ProvisionRequest).decode
decode_provision_reply: Final = msgspec.json.Decoder(ProvisionReply).decode
decode_standby: Final = msgspec.json.Decoder(StandbyStatus).decode
decode_handover_request: Final = msgspec.json.Decoder(HandoverRequest).decode
decode_handover_reply: Final = msgspec.json.Decoder(HandoverReply).decode
decode_instrument: Final = msgspec.json.Decoder(InstrumentEntry).decode
decode_client: Final = msgspec.json.Decoder(ClientEntry).decode
decode_session: Final = msgspec.json.Decoder(SessionEntry).decode
decode_engine: Final = msgspec.json.Decoder(EngineEntry).decode
decode_lease: Final = msgspec.json.Decoder(LeaseEntry).decode
