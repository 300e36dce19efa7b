"""Seeded random commands in a narrow price range, so that every rule is met often, and who has had some."""

import random
from collections.abc import Iterator
from itertools import cycle, islice

import msgspec

from engine.commands import CancelAll, CancelOrder, NewOrder, OrderCommand, ReplaceOrder
from engine.terms import OrderType, SelfTradePrevention, Side, TimeInForce
from tests.engine.venue import Venue

SYMBOLS = {"ACME": 0, "BOLT": 300, "CORK": 2000}
"""Symbols and their collars in hundredths of a percent."""

CLIENTS = ("ann", "bob", "cat", "dan")
REMEMBERED = 120
"""How many of the latest orders are named by cancels and replaces: more than usually live."""


class Flow:
    """A stream of commands. Client order ids are unique over all clients, unless one is sent again."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.sent: list[NewOrder] = []
        self.count = 0

    def commands(self, count: int) -> Iterator[OrderCommand | CancelAll]:
        """The next `count` commands."""
        for _ in range(count):
            yield self.next()

    def next(self) -> OrderCommand | CancelAll:
        """One more command."""
        draw = self.random.random()
        if draw < 0.62 or not self.sent:
            return self._new()
        client, client_order_id = self._known()
        if draw < 0.80:
            return CancelOrder(client, 0, client_order_id)
        if draw < 0.95:
            return ReplaceOrder(client, 0, client_order_id, self._price(), self._quantity())
        if draw < 0.96:
            side = self.random.choice((0, Side.BUY, Side.SELL))
            symbol, most = self.random.choice(("", *SYMBOLS)), self.random.choice((0, 0, 1, 3))
            return CancelAll(client, symbol, side, most)
        if draw < 0.98:
            return self._repeat()
        return self._broken()

    def _new(self) -> NewOrder:
        pick = self.random.choice
        self.count += 1
        market = self.random.random() < 0.08
        order = NewOrder(
            client=pick(CLIENTS),
            client_order_id=f"o{self.count}",
            symbol=pick(tuple(SYMBOLS)),
            side=pick((Side.BUY, Side.SELL)),
            type=OrderType.MARKET if market else OrderType.LIMIT,
            time_in_force=pick((0, 1, 1, 1, 1, 1, TimeInForce.IOC, TimeInForce.FOK)),
            price=0 if market else self._price(),
            quantity=self._quantity(),
            post_only=self.random.random() < 0.1,
            self_trade_prevention=pick((0, *SelfTradePrevention)),
        )
        self.sent.append(order)
        del self.sent[:-REMEMBERED]
        return order

    def _known(self) -> tuple[str, str]:
        """The client and client order id of a late order; sometimes another client asks."""
        order = self.random.choice(self.sent)
        client = self.random.choice(CLIENTS) if self.random.random() < 0.05 else order.client
        return client, order.client_order_id

    def _repeat(self) -> NewOrder:
        """A late order again, sometimes with another content."""
        order = self.random.choice(self.sent)
        if self.random.random() < 0.5:
            return order
        return msgspec.structs.replace(order, quantity=order.quantity + 1)

    def _broken(self) -> NewOrder:
        """An order with one thing wrong."""
        self.count += 1
        order = NewOrder("ann", f"o{self.count}", "ACME", Side.BUY, OrderType.LIMIT, TimeInForce.GTC, 100, 5)
        field, value = self.random.choice(
            (
                ("client_order_id", ""),
                ("client_order_id", "x" * 37),
                ("client_order_id", "caf\u00e9"),
                ("client_order_id", "tab\there"),
                ("symbol", "ZINC"),
                ("symbol", ""),
                ("side", 0),
                ("side", 3),
                ("side", -1),
                ("type", 0),
                ("type", OrderType.STOP),
                ("type", OrderType.STOP_LIMIT),
                ("type", 99),
                ("time_in_force", TimeInForce.DAY),
                ("time_in_force", TimeInForce.GTD),
                ("time_in_force", -1),
                ("self_trade_prevention", 6),
                ("price", 0),
                ("price", -100),
                ("price", 10**12 + 1),
                ("quantity", 0),
                ("quantity", -5),
                ("quantity", 10**12 + 1),
                ("stop_price", 1),
                ("display_quantity", 1),
                ("expire_time_ns", 1),
            )
        )
        return msgspec.structs.replace(order, **{field: value})

    def _price(self) -> int:
        return self.random.randint(94, 106)

    def _quantity(self) -> int:
        return self.random.choice((1, 1, 2, 3, 5, 8, 13, 20))


def listed_venue() -> Venue:
    """An engine that lists all symbols."""
    venue = Venue()
    for symbol, collar_bps in SYMBOLS.items():
        venue.add_instrument(symbol, collar_bps)
    return venue


def busy_venue(seed: int, batches: int) -> Venue:
    """An engine after so many batches, of several sizes, of random commands."""
    venue, flow = listed_venue(), Flow(seed)
    for size in islice(cycle((1, 7, 60)), batches):
        venue.execute_batch(list(flow.commands(size)))
    return venue
