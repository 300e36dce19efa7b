"""What an order may ask, whatever the market is doing: fixed checks, in a fixed order, one refusal each.

A refusal says what was wrong, the value, and the limit or what to do instead. Nothing here changes state.
"""

from collections.abc import Container
from typing import Final

from engine.commands import NewOrder, ReplaceOrder
from engine.terms import (
    MAX_CLIENT_ORDER_ID_LENGTH,
    MAX_NOTIONAL,
    MAX_PRICE,
    MAX_QUANTITY,
    OrderType,
    RejectReason,
    SelfTradePrevention,
    Side,
    TimeInForce,
)

Refusal = tuple[RejectReason, str]
"""Why a command is refused: the reason and a sentence for people."""

# Plain numbers: looking a member up in its enum costs more than the check it is for. Ranges have no gaps.
_BUY: Final = int(Side.BUY)
_SELL: Final = int(Side.SELL)
_LIMIT: Final = int(OrderType.LIMIT)
_MARKET: Final = int(OrderType.MARKET)
_GTC: Final = int(TimeInForce.GTC)
_FOK: Final = int(TimeInForce.FOK)
_LAST_PREVENTION: Final = max(map(int, SelfTradePrevention))
_TYPES: Final = frozenset(map(int, OrderType))
_TIMES_IN_FORCE: Final = frozenset(map(int, TimeInForce))


def refuse_new(order: NewOrder, symbols: Container[str]) -> Refusal | None:
    """Why this order is no order the engine can take; None when it is one."""
    identity, price, quantity, kind = order.client_order_id, order.price, order.quantity, order.type
    if not 0 < len(identity) <= MAX_CLIENT_ORDER_ID_LENGTH or not (
        identity.isascii() and identity.isprintable()
    ):
        return (
            RejectReason.INVALID_CLIENT_ORDER_ID,
            f"client_order_id {_shown(identity)} must be 1 to {MAX_CLIENT_ORDER_ID_LENGTH} "
            "printable ASCII characters",
        )
    if order.symbol not in symbols:
        return (
            RejectReason.UNKNOWN_SYMBOL,
            f"symbol {_shown(order.symbol)} is not listed: see ListInstruments",
        )
    if not _BUY <= order.side <= _SELL:
        return RejectReason.INVALID_SIDE, f"side {order.side} must be SIDE_BUY (1) or SIDE_SELL (2)"
    if not (_LIMIT <= kind <= _MARKET and 0 <= order.time_in_force <= _FOK):
        return _refuse_terms(order)
    if not 0 <= order.self_trade_prevention <= _LAST_PREVENTION:
        return (
            RejectReason.INVALID_SELF_TRADE_PREVENTION,
            f"self_trade_prevention {order.self_trade_prevention} must be 0 to {_LAST_PREVENTION}",
        )
    if order.stop_price or order.display_quantity or order.expire_time_ns:
        return _refuse_extras(order)
    if kind == _MARKET:
        if price:
            return (
                RejectReason.INVALID_PRICE,
                f"price {price} on a market order: leave it 0 or send a limit",
            )
    elif not 0 < price <= MAX_PRICE:
        return RejectReason.INVALID_PRICE, f"price {price} must be 1 to {MAX_PRICE} ticks"
    if not 0 < quantity <= MAX_QUANTITY or price * quantity > MAX_NOTIONAL:
        return _refuse_size(price, quantity)
    if order.post_only and (kind == _MARKET or order.time_in_force > _GTC):
        return (
            RejectReason.CONFLICTING_INSTRUCTIONS,
            "post_only orders must be able to rest: send a GTC limit order or drop post_only",
        )
    return None


def refuse_replace(command: ReplaceOrder) -> Refusal | None:
    """Why these are no new terms for any order; None when they could be."""
    if not 0 < command.price <= MAX_PRICE:
        return RejectReason.INVALID_PRICE, f"price {command.price} must be 1 to {MAX_PRICE} ticks"
    return _refuse_size(command.price, command.quantity)


def refuse_changed_repeat(first: NewOrder, repeat: NewOrder) -> Refusal | None:
    """Why `repeat` is not the same order as the `first` one with its client order id; None when it is."""
    for field in NewOrder.__struct_fields__:
        if field == "away":  # what the shell saw, not what the client asked
            continue
        before, now = getattr(first, field), getattr(repeat, field)
        if before != now:
            return (
                RejectReason.DUPLICATE_CLIENT_ORDER_ID,
                f"client_order_id {first.client_order_id!r} was used with {field} {_shown(before)}, not "
                f"{_shown(now)}: choose a new one",
            )
    return None


def _refuse_terms(order: NewOrder) -> Refusal:
    """Why this type or time in force cannot be had."""
    if order.type not in _TYPES:
        return RejectReason.INVALID_ORDER_TYPE, f"type {order.type} must be LIMIT (1) or MARKET (2)"
    if order.time_in_force not in _TIMES_IN_FORCE:
        return (
            RejectReason.INVALID_TIME_IN_FORCE,
            f"time_in_force {order.time_in_force} must be GTC (1), IOC (2) or FOK (3)",
        )
    if order.type > _MARKET:
        return RejectReason.UNSUPPORTED, f"type {order.type} is not offered yet: send LIMIT (1) or MARKET (2)"
    return (
        RejectReason.UNSUPPORTED,
        f"time_in_force {order.time_in_force} is not offered yet: send GTC (1), IOC (2) or FOK (3)",
    )


def _refuse_extras(order: NewOrder) -> Refusal:
    """Why it cannot have the first of the fields that belong to kinds of orders still to come."""
    fields = ("stop_price", "display_quantity", "expire_time_ns")
    field, value = next((field, value) for field in fields if (value := getattr(order, field)))
    return RejectReason.UNSUPPORTED, f"{field} {value} is not offered yet: leave it 0"


def _refuse_size(price: int, quantity: int) -> Refusal | None:
    if not 0 < quantity <= MAX_QUANTITY:
        return RejectReason.INVALID_QUANTITY, f"quantity {quantity} must be 1 to {MAX_QUANTITY} lots"
    if price * quantity > MAX_NOTIONAL:
        return (
            RejectReason.NOTIONAL_TOO_LARGE,
            f"price x quantity {price * quantity} must be at most {MAX_NOTIONAL}: split the order",
        )
    return None


def _shown(value: object) -> str:
    """A value for a refusal's text, escaped and cut: clients send anything."""
    return f"{value!r:.48}"
