"""What an order may do in this market: how far it may trade at home, and what it is refused for.

`engine.risk` has the checks that hold whatever the market is doing. Prices are keys of the side taken from
(`engine.book`), away levels are ranked (`engine.routing`). Nothing here changes state.
"""

from typing import Final

from engine.book import ANY_PRICE, BookSide
from engine.matching import can_take
from engine.orders import Order
from engine.risk import Refusal
from engine.routing import AwayLevel
from engine.terms import RejectReason, TimeInForce

_FOK: Final = int(TimeInForce.FOK)
_BPS: Final = 10_000


def best_key(opposite: BookSide, away: list[AwayLevel]) -> int | None:
    """The best key that is shown, at home or elsewhere; None where nothing is."""
    keys = opposite.keys[-1:]
    if away:
        keys.append(away[0].key)
    return max(keys, default=None)


def collar(opposite: BookSide, away: list[AwayLevel], collar_bps: int) -> int:
    """The worst key a market order may trade at."""
    best = best_key(opposite, away)
    if not collar_bps or best is None:
        return ANY_PRICE
    return best - abs(best) * collar_bps // _BPS


def worst_at_home(order: Order, away: list[AwayLevel]) -> int:
    """The worst key at which an order that sends no legs may trade: not through a better away quote."""
    return max(order.worst, away[0].key) if away else order.worst


def fillable_at_home(order: Order, opposite: BookSide, away: list[AwayLevel]) -> bool:
    """Whether a fill-or-kill order can trade whole, here and now."""
    return can_take(opposite, order, worst_at_home(order, away), order.quantity)


def refuse_by_market(order: Order, opposite: BookSide, away: list[AwayLevel]) -> Refusal | None:
    """Why an order that is well-formed cannot be taken in this market."""
    if order.request.post_only:
        return refuse_crossing(order.worst, opposite, away)
    request = order.request
    if request.time_in_force == _FOK and away and not request.do_not_route:
        reached = [level for level in away if level.key >= order.worst]
        elsewhere = sum(level.quantity for level in reached)
        is_enough = (
            any(level.is_last_known for level in reached)  # more is shown than is known
            or elsewhere >= order.quantity
            or can_take(opposite, order, order.worst, order.quantity - elsewhere)
        )
        if elsewhere and is_enough and not fillable_at_home(order, opposite, away):
            return (
                RejectReason.FOK_NEEDS_AWAY_LIQUIDITY,
                "fill-or-kill across engines is not offered yet: send IOC, or fewer",
            )
    return None


def refuse_crossing(worst: int, opposite: BookSide, away: list[AwayLevel]) -> Refusal | None:
    """Why a post-only order cannot rest at this price: it would trade, or lock a live quote elsewhere."""
    best = best_key(opposite, away)
    if best is None or best < worst:
        return None
    return (
        RejectReason.POST_ONLY_WOULD_CROSS,
        f"a post-only order at {worst * opposite.sign} would trade with the best price "
        f"{best * opposite.sign}: move it away from there",
    )
