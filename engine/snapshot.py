"""A whole state as bytes, and back: what a start would otherwise have to replay.

Here: what belongs to a state and in which form it is kept. Not here: where snapshots are stored, and when
they are made (`engine.runtime.snapshots`). A snapshot is only a cache of the journal: `restore` gives a state
with the same digest, which applies every further command the same.

Queues are not stored. At a price, orders stand in order of their priority (`engine.invariants`), so they are
put back in that order.
"""

from typing import Final

import msgspec

from engine.commands import AddInstrument, NewOrder
from engine.events import Answered, Fill, LegSent, LegTaken, Prevented
from engine.orders import NOTHING_OWED, Account, Landmark, Order, Owed, without_value
from engine.state import State
from engine.terms import Liquidity, OrderStatus

_PENDING: Final = int(OrderStatus.PENDING)
_TAKER: Final = int(Liquidity.TAKER)

FORMAT: Final = 3
"""Version of the layout below and of everything in it."""


class NotASnapshot(ValueError):
    """The bytes are no snapshot of this engine in this format; the text says why."""


class OtherFormat(NotASnapshot):
    """Another version made it, which can read it; nothing is wrong with it."""


class _Order(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An order's facts; its account is the one it stands under. The answer's value is that of its fills."""

    id: int
    request: NewOrder
    price: int
    quantity: int
    open: int
    worst: int
    mark: int
    reserved: int
    cumulative: int
    value: str
    priority: int
    cancelling: bool
    refused: bool
    answer: Answered | None
    prevented: tuple[Prevented, ...]


class _Account(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A client's open orders by id, its finished ones in the order they finished, its newest fills."""

    name: str
    open: list[_Order]
    finished: list[_Order]
    fills: list[Fill]
    traded: int
    landmarks: list[Landmark]


class _Peer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A peer's legs here, their answers in the order they were given."""

    engine: int
    settled_below: int
    answers: list[LegTaken]


class _State(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Everything one engine knows between two batches."""

    format: int
    engine: int
    epoch: int
    batch_number: int
    time_ns: int
    next_order_id: int
    next_execution_id: int
    next_leg_id: int
    next_priority: int
    instruments: list[AddInstrument]
    book_sequences: dict[str, int]
    accounts: list[_Account]
    legs: list[LegSent]
    peers: list[_Peer]


class _Head(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the snapshots of all formats begin with."""

    format: int


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_State)
_head_decoder: Final = msgspec.msgpack.Decoder(_Head)


def take(state: State) -> bytes:
    """The state as bytes. Call it between two batches. Costs the size of the state."""
    accounts = state.accounts
    return _encoder.encode(
        _State(
            FORMAT,
            state.engine,
            state.epoch,
            state.batch_number,
            accounts.time_ns,
            accounts.next_order_id,
            accounts.next_execution_id,
            state.next_leg_id,
            state.next_priority,
            list(state.instruments.values()),
            {symbol: book.sequence for symbol, book in state.books.items()},
            [_account(account) for account in accounts.by_name.values()],
            [leg.sent for leg in state.legs.values()],
            [
                _Peer(engine, peer.settled_below, list(peer.answers.values()))
                for engine, peer in state.peer_legs.items()
            ],
        )
    )


def restore(state: State, snapshot: bytes) -> None:
    """Make an empty state the one that was taken. Raises NotASnapshot, and leaves the state empty."""
    try:
        made_in = _head_decoder.decode(snapshot).format
        if made_in != FORMAT:
            raise OtherFormat(f"snapshot format {made_in}, this version reads {FORMAT}")
        image = _decoder.decode(snapshot)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotASnapshot(f"these bytes are no snapshot: {error}") from error
    if image.engine != state.engine:
        raise NotASnapshot(f"a snapshot of engine {image.engine}, not of {state.engine}")
    accounts = state.accounts
    assert not state.batch_number, "only an empty state can be restored"
    for instrument in image.instruments:
        state.list_instrument(instrument).sequence = image.book_sequences[instrument.symbol]
    for kept in image.accounts:
        account = accounts.open_account(kept.name)
        account.fills = kept.fills
        account.traded = kept.traded
        account.landmarks = kept.landmarks
        for facts in kept.open:
            account.open[facts.id] = accounts.orders[facts.id] = _remember(account, facts)
        pending = [order for order in account.open.values() if order.reserved]
        account.pending.update((order.id, order) for order in sorted(pending, key=lambda order: order.mark))
        _recall_taken(account)
        for facts in kept.finished:
            order = _remember(account, facts)
            account.finished.append(order)
            if order.id:
                accounts.orders[order.id] = order
    _queue(state)
    for sent in image.legs:
        state.add_leg(sent, accounts.orders[sent.order_id])
    for peer in image.peers:
        legs = state.peer_legs[peer.engine]
        legs.settled_below = peer.settled_below
        legs.answers.update((answer.leg_id, answer) for answer in peer.answers)
    state.epoch = image.epoch
    state.batch_number = image.batch_number
    state.next_leg_id = image.next_leg_id
    state.next_priority = image.next_priority
    accounts.time_ns = image.time_ns
    accounts.next_order_id = image.next_order_id
    accounts.next_execution_id = image.next_execution_id


def _account(account: Account) -> _Account:
    return _Account(
        account.name,
        [_facts(order) for order in account.open.values()],
        [_facts(order) for order in account.finished],
        account.fills,
        account.traded,
        account.landmarks,
    )


def _facts(order: Order) -> _Order:
    return _Order(
        order.id,
        order.request,
        order.price,
        order.quantity,
        order.open,
        order.worst,
        order.mark,
        order.reserved,
        order.cumulative,
        str(order.value),
        order.priority,
        order.cancelling,
        order.refused,
        without_value(order.answer),
        order.owed.prevented,
    )


def _remember(account: Account, facts: _Order) -> Order:
    """An order of this account again, known by its client order id."""
    answer = facts.answer
    if answer is not None and answer.fills:
        value = sum(fill.price * fill.quantity for fill in answer.fills)
        answer = msgspec.structs.replace(answer, value=value)
    order = Order(
        facts.id,
        account,
        facts.request,
        facts.request.side,
        facts.price,
        facts.quantity,
        facts.open,
        facts.worst,
        facts.mark,
        facts.reserved,
        facts.cumulative,
        int(facts.value),
        facts.priority,
        facts.cancelling,
        facts.refused,
        answer,
        Owed((), facts.prevented) if facts.prevented else NOTHING_OWED,
    )
    account.orders[facts.request.client_order_id] = order
    return order


def _recall_taken(account: Account) -> None:
    """Give each order whose later answer waits for legs what it took since its mark."""
    waiting: dict[int, list[Fill]] = {
        order.id: []
        for order in account.pending.values()
        if order.answer is None or order.answer.status != _PENDING
    }
    if not waiting:
        return
    for fill in account.fills:
        taken = waiting.get(fill.order_id)
        if taken is not None and fill.liquidity == _TAKER:
            taken.append(fill)
    for order_id, taken in waiting.items():
        order = account.pending[order_id]
        fills = tuple(fill for fill in taken if fill.sequence > order.mark)
        order.owed = Owed(fills, order.owed.prevented)


def _queue(state: State) -> None:
    """Put what rests back into the books."""
    resting = [
        order
        for account in state.accounts.by_name.values()
        for order in account.open.values()
        if order.is_resting
    ]
    resting.sort(key=lambda order: order.priority)
    for order in resting:
        state.books[order.request.symbol].side(order.side).add(order)
    for book in state.books.values():
        book.take_changes()  # all of it was shown before the snapshot
