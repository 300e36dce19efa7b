"""The order book of one symbol: price levels, and in each a queue of orders.

A level is found by its *key*: the price on the bid side, the negated price on the ask side. So on either
side a larger key is a better price, the best level is the last of the sorted keys, and one code path
serves both. Orders at a level trade first come, first served (price-time priority).

Lives here: where orders stand. Not here: who may trade with whom (`engine.matching`), or what an order is
allowed to ask (`engine.risk`).
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain
from typing import Final

from sortedcontainers import SortedDict

from engine.orders import Account, Order
from engine.terms import Side

_BUY: Final = int(Side.BUY)

ANY_PRICE: Final = -(2**63)
"""The `worst` key of an order that takes whatever price there is."""

SHORT_QUEUE: Final = 8
"""A queue up to this long is walked order by order; for a longer one the level keeps a count per client."""


class Level:
    """Orders at one price, first in the queue first; `quantity` is the sum of what they have open.

    `returned` are orders that came back from legs, by priority (None before the first one); they stand before
    those in `orders`, which are by id. `by_client` says how much each client has, from the first time that
    this is asked of a long queue.
    """

    __slots__ = ("by_client", "orders", "price", "quantity", "returned")

    def __init__(self, price: int) -> None:
        self.price = price
        self.quantity = 0
        # An OrderedDict finds the first of a long queue in constant time whatever was removed before it;
        # a dict walks over the holes (docs/decisions/0002-book-structure.md).
        self.orders: OrderedDict[int, Order] = OrderedDict()
        self.returned: SortedDict[int, Order] | None = None
        self.by_client: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.orders) + (len(self.returned) if self.returned else 0)

    def queue(self) -> Iterator[Order]:
        """The orders, in order."""
        if not self.returned:
            return iter(self.orders.values())
        return chain(self.returned.values(), self.orders.values())

    def holds(self, order: Order) -> bool:
        """Whether the order stands here."""
        return order.id in self.orders or (self.returned is not None and order.priority in self.returned)

    def readmit(self, order: Order) -> None:
        """Put an order where its priority says."""
        if self.returned is None:
            self.returned = SortedDict()
        orders, returned = self.orders, self.returned
        # Legs take the first of the queue, so what comes back nearly always stands before all that stayed. If
        # not, those before it join the returned ones: once for each, and never again.
        while orders and (first := next(iter(orders.values()))).priority < order.priority:
            del orders[first.id]
            returned[first.priority] = first
        returned[order.priority] = order

    def discard(self, order: Order) -> None:
        """Take an order off the queue; the caller keeps `quantity` and `by_client` right."""
        if order.id in self.orders:
            del self.orders[order.id]
        else:
            assert self.returned is not None
            del self.returned[order.priority]

    def held_by(self, account: Account) -> int:
        """How much a client has open here. Costs the length of the queue once in the level's life."""
        if self.by_client is None:
            self.by_client = {}
            for order in self.queue():
                self.adjust_held(order, order.open)
        return self.by_client.get(account.name, 0)

    def adjust_held(self, order: Order, quantity: int) -> None:
        """`quantity` more is open for an order's client. For a level where that is counted."""
        by_client, account = self.by_client, order.account
        assert by_client is not None
        assert account is not None
        by_client[account.name] = by_client.get(account.name, 0) + quantity


class BookSide:
    """All bids or all asks. `keys` is sorted, the best last; `changed` are the keys touched in this batch."""

    __slots__ = ("changed", "keys", "levels", "side", "sign")

    def __init__(self, side: Side) -> None:
        self.side = side
        self.sign = 1 if side is Side.BUY else -1
        self.levels: dict[int, Level] = {}
        self.keys: list[int] = []
        self.changed: set[int] = set()

    def add(self, order: Order) -> None:
        """Put an order at the end of the queue at its price."""
        key = order.price * self.sign
        level = self.levels.get(key)
        if level is None:
            level = self.levels[key] = Level(order.price)
            insort(self.keys, key)
        level.orders[order.id] = order
        level.quantity += order.open
        if level.by_client is not None:
            level.adjust_held(order, order.open)
        self.changed.add(key)

    def readmit(self, order: Order) -> None:
        """Put an order back where its priority says; very many may come back, one by one."""
        self.add(order)  # which does the sums; then the order moves to where its priority says
        level = self.levels[order.price * self.sign]
        del level.orders[order.id]
        level.readmit(order)

    def remove(self, order: Order) -> None:
        """Take an order out, whatever it has open. It must be in the book."""
        key = order.price * self.sign
        level = self.levels[key]
        if not level.returned:
            del level.orders[order.id]
        else:
            level.discard(order)
        level.quantity -= order.open
        if level.by_client is not None:
            level.adjust_held(order, -order.open)
        self.changed.add(key)
        if not level.orders and not level.returned:
            self.drop(key)

    def reduce(self, order: Order, quantity: int) -> None:
        """Lower what a resting order has open, keeping its place. Something must be left open."""
        key = order.price * self.sign
        order.open -= quantity
        level = self.levels[key]
        level.quantity -= quantity
        if level.by_client is not None:
            level.adjust_held(order, -quantity)
        self.changed.add(key)

    def drop(self, key: int) -> None:
        """Forget an empty level."""
        del self.levels[key]
        keys = self.keys
        if keys[-1] == key:  # takers empty the best level, so this is the common case
            keys.pop()
        else:
            del keys[bisect_left(keys, key)]

    def holds(self, order: Order) -> bool:
        """Whether the order rests here."""
        level = self.levels.get(order.price * self.sign)
        return level is not None and level.holds(order)

    def best_first(self) -> Iterator[Level]:
        """Levels from the best price to the worst."""
        levels = self.levels
        for key in reversed(self.keys):
            yield levels[key]


class Book:
    """Both sides of one symbol. `sequence` counts the batches that changed it, across failovers."""

    __slots__ = ("asks", "bids", "sequence", "symbol")

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.sequence = 0
        self.bids = BookSide(Side.BUY)
        self.asks = BookSide(Side.SELL)

    def side(self, side: int) -> BookSide:
        """The side on which orders of `side` rest."""
        return self.bids if side == _BUY else self.asks

    def opposite(self, side: int) -> BookSide:
        """The side that orders of `side` trade with."""
        return self.asks if side == _BUY else self.bids

    def levels(self, side: int) -> Iterator[tuple[int, int, int]]:
        """(price, quantity, order count) from the best price to the worst."""
        for level in self.side(side).best_first():
            yield level.price, level.quantity, len(level)

    def orders(self, side: int) -> Iterator[tuple[int, int, int]]:
        """(price, order id, open quantity) in the order in which they would trade."""
        for level in self.side(side).best_first():
            for order in level.queue():
                yield level.price, order.id, order.open

    def best(self, side: int) -> tuple[int, int] | None:
        """(price, quantity) of the best level, None when the side is empty."""
        half = self.side(side)
        if not half.keys:
            return None
        level = half.levels[half.keys[-1]]
        return level.price, level.quantity

    def take_changes(self) -> tuple[tuple[int, int, int, int], ...]:
        """(side, price, quantity, order count) of the levels touched since the last call; 0 when gone."""
        changes = []
        for half in (self.bids, self.asks):
            if not half.changed:
                continue
            side = int(half.side)
            for key in sorted(half.changed, reverse=True):
                level = half.levels.get(key)
                if level is None:
                    changes.append((side, key * half.sign, 0, 0))
                else:
                    orders = level if level.returned else level.orders  # most need no call to be counted
                    changes.append((side, level.price, level.quantity, len(orders)))
            half.changed.clear()
        return tuple(changes)
