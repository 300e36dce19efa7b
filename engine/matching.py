"""Who trades with whom in one book: the best price first, at one price the first in the queue first.

Trades happen at the resting price. Where both orders are one client's, the taker's self-trade prevention
decides (docs/trading.md, "When your own orders meet"): nothing trades between them unless it says NONE.
"""

from typing import Final, Protocol

from engine.book import SHORT_QUEUE, BookSide, Level
from engine.orders import Order
from engine.terms import SelfTradePrevention

_NONE: Final = int(SelfTradePrevention.NONE)
_OLDEST: Final = int(SelfTradePrevention.CANCEL_OLDEST)
_BOTH: Final = int(SelfTradePrevention.CANCEL_BOTH)
_DECREMENT: Final = int(SelfTradePrevention.DECREMENT)


class Ledger(Protocol):
    """Where `take` writes down what happens: `engine.accounts.Accounts`, or less in a measurement."""

    def trade(self, taker: Order, maker: Order, price: int, quantity: int) -> None:
        """A trade; the maker's open quantity was lowered already, the taker's was not."""

    def prevent(self, taker: Order, maker: Order, quantity: int) -> None:
        """A match of one client's two orders that does not trade."""

    def cancel(self, order: Order, quantity: int) -> None:
        """`quantity` of what an order has open will never trade; a resting order left the book already."""


def take(resting: BookSide, taker: Order, worst: int, quantity: int, ledger: Ledger) -> None:
    """Let `taker` take up to `quantity` of what it has open at keys of `worst` or better.

    Self-trade prevention may also cancel some or all of what the taker has open.
    """
    keys, levels = resting.keys, resting.levels
    account = taker.account
    prevention = taker.request.self_trade_prevention
    while quantity and keys:
        key = keys[-1]
        if key < worst:
            return
        level = levels[key]
        returned = level.returned
        queue = returned or level.orders
        by_client = level.by_client
        before = level.quantity
        while quantity and queue:
            maker = next(iter(queue.values()))
            if prevention > _NONE and maker.account is account:
                quantity = _prevent(level, taker, maker, quantity, ledger)
                continue
            traded = maker.open if maker.open <= quantity else quantity  # noqa: FURB136 -- min() costs a call
            quantity -= traded
            level.quantity -= traded
            if by_client is not None:
                level.adjust_held(maker, -traded)
            maker.open -= traded
            if not maker.open:
                del queue[maker.priority if returned else maker.id]
            ledger.trade(taker, maker, level.price, traded)
        if level.quantity != before:
            resting.changed.add(key)
        if not queue and not level.orders:  # those that came back are gone: the others follow
            resting.drop(key)


def within(resting: BookSide, worst: int, orders: int) -> int:
    """The quantity that the first `orders` orders at keys of `worst` or better have open."""
    quantity = 0
    for key in reversed(resting.keys):
        if key < worst:
            break
        for maker in resting.levels[key].queue():
            if not orders:
                return quantity
            quantity += maker.open
            orders -= 1
    return quantity


def can_take(resting: BookSide, taker: Order, worst: int, quantity: int) -> bool:
    """Whether `take` would trade all of `quantity`, without doing it: what fill-or-kill asks.

    Own orders in the way are passed over if the taker would cancel them; under any other prevention they
    end what the taker can have. Costs the levels in reach, and where own orders end it the queue there;
    once in its life, a level with a long queue counts whose it is.
    """
    levels = resting.levels
    needed = quantity
    for key in reversed(resting.keys):
        if key < worst:
            return False
        needed -= levels[key].quantity
        if needed <= 0:
            break
    else:
        return False
    prevention = taker.request.self_trade_prevention
    return prevention <= _NONE or _others_have(resting, taker, worst, quantity)


def _others_have(resting: BookSide, taker: Order, worst: int, quantity: int) -> bool:
    """Whether the taker could have `quantity` of other clients' orders."""
    account = taker.account
    assert account is not None
    passes_over = taker.request.self_trade_prevention == _OLDEST
    levels = resting.levels
    for key in reversed(resting.keys):
        if key < worst:
            return False
        level = levels[key]
        if len(level) > SHORT_QUEUE and (passes_over or not level.held_by(account)):
            quantity -= level.quantity - level.held_by(account)
        else:
            for maker in level.queue():
                if maker.account is not account:
                    quantity -= maker.open
                    if quantity <= 0:
                        return True
                elif not passes_over:
                    return False
        if quantity <= 0:
            return True
    return False


def _prevent(level: Level, taker: Order, maker: Order, quantity: int, ledger: Ledger) -> int:
    """Settle a match of one client's two orders without a trade; returns what the taker may still take."""
    prevention = taker.request.self_trade_prevention
    prevented = min(maker.open, quantity)
    ledger.prevent(taker, maker, prevented)
    if prevention == _DECREMENT:
        level.quantity -= prevented
        if level.by_client is not None:
            level.adjust_held(maker, -prevented)
        if prevented == maker.open:
            level.discard(maker)
        ledger.cancel(maker, prevented)
        ledger.cancel(taker, prevented)
        return quantity - prevented
    if prevention in (_OLDEST, _BOTH):
        maker.cancelling = maker.reserved > 0  # nor does what is out on a leg come back
        level.quantity -= maker.open
        if level.by_client is not None:
            level.adjust_held(maker, -maker.open)
        level.discard(maker)
        ledger.cancel(maker, maker.open)
    if prevention == _OLDEST:
        return quantity
    taker.cancelling = taker.reserved > 0
    ledger.cancel(taker, taker.open)
    return 0
