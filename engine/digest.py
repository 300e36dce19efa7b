"""Whether two states are the same: on the primary, in a replay, on a standby, after a restored snapshot."""

from hashlib import blake2b

import msgspec

from engine.orders import Order, without_value
from engine.state import State
from engine.terms import Side


def state_digest(state: State) -> bytes:
    """16 bytes that are equal exactly when everything that can matter later is equal.

    Built from facts in a fixed order, so it does not depend on how the state is stored. Whoever changes them
    raises `engine.snapshot.FORMAT`: a snapshot that restores to another digest is taken for damaged.
    """
    digest = blake2b(digest_size=16)
    encode = msgspec.msgpack.Encoder().encode
    accounts = state.accounts
    digest.update(
        encode(
            [
                state.engine,
                state.epoch,
                state.batch_number,
                accounts.time_ns,
                accounts.next_order_id,
                accounts.next_execution_id,
                state.next_leg_id,
                state.next_priority,
                [state.instruments[symbol] for symbol in sorted(state.instruments)],
                [leg.sent for _, leg in sorted(state.legs.items())],
                [
                    (sender, peer.settled_below, sorted(peer.answers.items()))
                    for sender, peer in sorted(state.peer_legs.items())
                ],
            ]
        )
    )
    for symbol in sorted(state.books):
        book = state.books[symbol]
        digest.update(
            encode([symbol, book.sequence, list(book.orders(Side.BUY)), list(book.orders(Side.SELL))])
        )
    for name in sorted(accounts.by_name):
        account = accounts.by_name[name]
        digest.update(encode([name, len(account.orders), account.traded, account.landmarks]))
        for order in sorted(account.open.values(), key=lambda order: order.id):
            digest.update(encode(_facts(order)))
        for order in account.finished:
            digest.update(encode(_facts(order)))
        for fill in account.fills:
            digest.update(encode(fill))
    return digest.digest()


def _facts(order: Order) -> tuple[object, ...]:
    """An order's facts for the digest."""
    return (
        order.id,
        order.request,
        order.price,
        order.quantity,
        order.open,
        order.worst,
        order.reserved,
        order.cumulative,
        str(order.value),  # it may be larger than any encoding's integers
        order.priority,
        order.mark,
        order.cancelling,
        order.refused,
        without_value(order.answer),
        order.owed.prevented,
    )
