"""What is always true of the state between two commands. Tests run `check` after random steps."""

from collections import Counter

from engine.book import BookSide
from engine.orders import Account
from engine.state import State


def check(state: State) -> None:
    """Raise AssertionError, saying what is wrong, if any invariant is broken. Costs the size of the state."""
    for book in state.books.values():
        for side in (book.bids, book.asks):
            _check_side(side, state)
        if book.bids.keys and book.asks.keys:
            assert book.bids.keys[-1] < -book.asks.keys[-1], f"{book.symbol} is crossed"
    reserved: Counter[int] = Counter()
    legs_to: dict[int, list[int]] = {}
    for leg_id, leg in state.legs.items():
        assert leg.sent.quantity > 0, f"leg {leg_id} is empty"
        reserved[leg.order.id] += leg.sent.quantity
        legs_to.setdefault(leg.sent.peer, []).append(leg_id)
    assert {peer: list(ids) for peer, ids in state.legs_to.items() if ids} == legs_to, "legs by peer"
    for order in state.orders.values():
        assert min(order.open, order.reserved, order.cumulative, order.cancelled) >= 0, (
            f"order {order.id} has a negative quantity"
        )
        assert order.reserved == reserved[order.id], f"order {order.id} reserves what no leg has"
        assert order.reserved or not any(order.owed), f"order {order.id} owes no answer"
        account = order.owner
        assert (order.id in account.open) == (order.leaves > 0), f"order {order.id} is open and finished"
        in_book = state.books[order.request.symbol].side(order.side).holds(order)
        assert in_book == order.is_resting, f"order {order.id} has {order.open} open but rests: {in_book}"
        assert order.is_resting or not order.open or order.reserved, f"order {order.id} waits for no leg"
    for account in state.accounts.by_name.values():
        _check_fills(account)
        assert account.landmarks or not account.forgotten, f"{account.name}'s old fills cannot be found"
        pending = [order for order in account.open.values() if order.reserved]
        assert sorted(account.pending) == [order.id for order in pending], (
            f"{account.name}'s orders with legs"
        )
        marks = [order.mark for order in account.pending.values()]
        assert marks == sorted(marks), f"{account.name}'s marks are out of order"
        assert len(account.orders) == len(account.open) + len(account.finished), f"{account.name}'s orders"


def _check_fills(account: Account) -> None:
    filled: Counter[int] = Counter()
    value: Counter[int] = Counter()
    for expected, fill in enumerate(account.fills, start=account.forgotten + 1):
        assert fill.sequence == expected, f"{account.name}'s fills have a gap at {expected}"
        filled[fill.order_id] += fill.quantity
        value[fill.order_id] += fill.price * fill.quantity
    if account.forgotten:
        return  # the fills of some orders are not all there
    for order in account.orders.values():
        assert (order.cumulative, order.value) == (filled[order.id], value[order.id]), (
            f"order {order.id} has other quantities than its fills"
        )


def _check_side(side: BookSide, state: State) -> None:
    assert side.keys == sorted(side.levels), "keys and levels disagree"
    for key, level in side.levels.items():
        assert len(level), f"level {level.price} is empty"
        assert key == level.price * side.sign, f"level {level.price} stands at the key {key}"
        assert level.quantity == sum(order.open for order in level.queue()), (
            f"the quantity of level {level.price} is not that of its orders"
        )
        if level.by_client is not None:
            held: dict[str, int] = {}
            for order in level.queue():
                name = order.owner.name
                held[name] = held.get(name, 0) + order.open
            counted = {client: quantity for client, quantity in level.by_client.items() if quantity}
            assert counted == held, f"level {level.price} counts its clients' orders wrongly"
        priorities = [order.priority for order in level.queue()]
        assert priorities == sorted(set(priorities)), f"the queue at {level.price} is out of order"
        for order in level.queue():
            assert order.price == level.price, f"order {order.id} stands at another price"
            assert order.side == side.side, f"order {order.id} stands on the other side"
            assert state.orders.get(order.id) is order, f"order {order.id} is in the book but not known"
