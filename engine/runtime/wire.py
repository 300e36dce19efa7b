"""Between the gRPC contract and the state machine: requests become commands, events become replies.

Strings are cut where they are longer than any valid one, so that whatever a client sends, a command is small
(`commit_loop` counts on it); a cut string is refused by the state machine as the long one would be.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from matchbus.v1 import matchbus_pb2 as pb

from bus.messages import ReportedFill
from engine.commands import CancelAll, CancelOrder, NewOrder, OrderCommand, ReplaceOrder
from engine.events import Accepted, Answered, Fill
from engine.orders import Order
from engine.terms import MAX_CLIENT_ORDER_ID_LENGTH, MAX_SYMBOL_LENGTH

_NEW: Final = pb.ORDER_STATUS_NEW
_REJECTED: Final = pb.ORDER_STATUS_REJECTED
_GTC: Final = pb.TIME_IN_FORCE_GTC
_NO_PREVENTION: Final = pb.SELF_TRADE_PREVENTION_NONE
_EMPTY_COMMAND: Final = pb.REJECT_REASON_EMPTY_COMMAND
MAX_FILLS_PER_MESSAGE: Final = 8_000
"""Fills and prevented matches in one answer: with 10,000 replies they stay below what gRPC takes."""

MAX_CANCELS: Final = 10_000
"""Orders that one command of a CancelAll cancels: others have their turn before the next, and the lease of an
engine is renewed."""

_MAX_ID: Final = MAX_CLIENT_ORDER_ID_LENGTH + 1
_MAX_SYMBOL: Final = MAX_SYMBOL_LENGTH + 1
_CUT: Final = "\ufffd"
"""Ends a string that was cut because it is not ASCII: what is left could be a valid one."""


def bounded(text: str, longest: int) -> str:
    """The text in at most `longest` bytes; one that had to be cut is still refused."""
    if text.isascii():
        return text[:longest]
    most = longest // 4  # characters that surely fit
    return text if len(text) <= most else text[: most - 1] + _CUT


@lru_cache(maxsize=1 << 14)  # `sys.intern` may keep for ever whatever a client sends
def _shared(symbol: str) -> str:
    """One string for all orders of a symbol: less to keep, and found faster."""
    return symbol


def new_order(client: str, order: pb.NewOrder) -> NewOrder:
    """The command of a SubmitOrder. What is unspecified becomes what it means, so that a retry may say it."""
    client_order_id, symbol = order.client_order_id, order.symbol
    if len(client_order_id) > _MAX_ID or not client_order_id.isascii():
        client_order_id = bounded(client_order_id, _MAX_ID)
    if len(symbol) > _MAX_SYMBOL or not symbol.isascii():
        symbol = bounded(symbol, _MAX_SYMBOL)
    return NewOrder(
        client,
        client_order_id,
        _shared(symbol),
        order.side,
        order.type,
        order.time_in_force or _GTC,
        order.price,
        order.quantity,
        order.stop_price,
        order.display_quantity,
        order.post_only,
        order.self_trade_prevention or _NO_PREVENTION,
        order.expire_time_ns,
        order.do_not_route,
    )


def cancel_order(client: str, request: pb.CancelOrderRequest) -> CancelOrder:
    """The command of a CancelOrder."""
    return CancelOrder(client, request.order_id, bounded(request.client_order_id, _MAX_ID))


def replace_order(client: str, request: pb.ReplaceOrderRequest) -> ReplaceOrder:
    """The command of a ReplaceOrder."""
    return ReplaceOrder(
        client, request.order_id, bounded(request.client_order_id, _MAX_ID), request.price, request.quantity
    )


def cancel_all(client: str, request: pb.CancelAllRequest) -> CancelAll:
    """The command of a CancelAll, or of a part of one: there may be more than it cancels."""
    return CancelAll(client, bounded(request.symbol, _MAX_SYMBOL), request.side, MAX_CANCELS)


def order_commands(client: str, message: pb.OrderEntryRequest) -> list[OrderCommand | None]:
    """The commands of an OrderEntry message, None for an empty one."""
    commands: list[OrderCommand | None] = []
    for entry in message.commands:
        order = entry.new
        if order.client_order_id:  # what holds no new order reads as a blank one; asking first costs more
            commands.append(new_order(client, order))
        else:
            commands.append(_order_command(client, entry))
    return commands


def _order_command(client: str, command: pb.Command) -> OrderCommand | None:
    if command.HasField("new"):
        return new_order(client, command.new)
    if command.HasField("cancel"):
        return cancel_order(client, command.cancel)
    if command.HasField("replace"):
        return replace_order(client, command.replace)
    return None


def order_entry_response(
    commands: Sequence[OrderCommand | None], answers: Iterable[Answered | Accepted]
) -> pb.OrderEntryResponse:
    """The replies to one message's commands, of which `answers` has those that are not empty."""
    response = pb.OrderEntryResponse()
    add = response.replies.add
    room = MAX_FILLS_PER_MESSAGE
    following = iter(answers)
    for command in commands:
        if command is None:
            add(
                status=_REJECTED,
                reject_reason=_EMPTY_COMMAND,
                reject_text="the command is empty: set one of new, cancel, replace",
            )
            continue
        answer = next(following)
        reply = order_reply(add(), answer, room)
        if type(answer) is Answered:
            room -= len(reply.fills) + len(reply.prevented)
    return response


def order_reply(
    reply: pb.OrderReply, answer: Answered | Accepted, room: int = MAX_FILLS_PER_MESSAGE
) -> pb.OrderReply:
    """Fill in the reply to a command about one order; an `Accepted` says that it rests whole.

    The reply is given because one made inside its message need not be copied there. `room` is how many fills
    and prevented matches it may have; of more it tells the number.
    """
    reply.client_order_id = answer.client_order_id
    reply.order_id = answer.order_id
    if type(answer) is Accepted:
        reply.status = _NEW
        reply.leaves_quantity = answer.quantity
        return reply
    assert type(answer) is Answered
    reply.status = answer.status  # type: ignore[assignment]  # an enum is an int on the wire
    reply.leaves_quantity = answer.leaves
    if answer.cumulative:
        reply.cumulative_quantity = answer.cumulative
        reply.average_price = answer.value / answer.cumulative
        for event in answer.fills[:room]:
            fill(reply.fills.add(), event)
    if answer.reject_reason:
        reply.reject_reason = answer.reject_reason  # type: ignore[assignment]  # likewise
        reply.reject_text = answer.reject_text
    if answer.prevented:
        for match in answer.prevented[: room - len(reply.fills)]:
            reply.prevented.add(
                symbol=match.symbol,
                taker_order_id=match.taker_order_id,
                maker_order_id=match.maker_order_id,
                price=match.price,
                quantity=match.quantity,
                mode=match.mode,
            )
    omitted = len(answer.fills) + len(answer.prevented) - len(reply.fills) - len(reply.prevented)
    if omitted:
        reply.fills_omitted = omitted
    if answer.duplicate:
        reply.duplicate = True
    return reply


def fill(made: pb.Fill, event: Fill | ReportedFill) -> None:
    """Fill in one fill as its client sees it."""
    made.sequence = event.sequence
    made.execution_id = event.execution_id
    made.order_id = event.order_id
    made.client_order_id = event.client_order_id
    made.symbol = event.symbol
    made.side = event.side  # type: ignore[assignment]  # an enum is an int on the wire
    made.price = event.price
    made.quantity = event.quantity
    made.liquidity = event.liquidity  # type: ignore[assignment]  # likewise
    made.cumulative_quantity = event.cumulative
    made.leaves_quantity = event.leaves
    made.engine_id = event.engine
    made.timestamp_ns = event.time_ns
    made.contra_order_id = event.contra_order_id
    if event.fee:
        made.fee = event.fee


def fill_batch(fills: Iterable[Fill | ReportedFill]) -> pb.FillBatch:
    """Fills for a GetFills stream."""
    batch = pb.FillBatch()
    for event in fills:
        fill(batch.fills.add(), event)
    return batch


def order_state(order: Order) -> pb.OrderState:
    """An order as it stands."""
    request = order.request
    return pb.OrderState(
        order_id=order.id,
        client_order_id=request.client_order_id,
        symbol=request.symbol,
        side=order.side,  # type: ignore[arg-type]  # an enum is an int on the wire
        type=request.type,  # type: ignore[arg-type]  # likewise
        time_in_force=request.time_in_force,  # type: ignore[arg-type]  # likewise
        price=order.price,
        quantity=order.quantity,
        cumulative_quantity=order.cumulative,
        leaves_quantity=order.leaves,
        cancelled_quantity=order.cancelled,
        status=order.status,  # type: ignore[arg-type]  # likewise
        average_price=order.value / order.cumulative if order.cumulative else 0.0,
        post_only=request.post_only,
        self_trade_prevention=request.self_trade_prevention,  # type: ignore[arg-type]  # likewise
    )
