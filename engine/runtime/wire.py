"""Between the gRPC contract and the state machine: requests become commands, events become replies.

Strings are cut where they are longer than any valid one, so that whatever a client sends, a command is small
(`commit_loop` counts on it); a cut string is refused by the state machine as the long one would be.
"""

from collections.abc import Iterable
from typing import Final

from matchbus.v1 import matchbus_pb2 as pb

from engine.commands import CancelAll, CancelOrder, NewOrder, OrderCommand, ReplaceOrder
from engine.events import Answered, Fill
from engine.orders import Order
from engine.terms import MAX_CLIENT_ORDER_ID_LENGTH, MAX_SYMBOL_LENGTH, OrderStatus, RejectReason

_MAX_ID: Final = MAX_CLIENT_ORDER_ID_LENGTH + 1
_MAX_SYMBOL: Final = MAX_SYMBOL_LENGTH + 1


def new_order(client: str, order: pb.NewOrder) -> NewOrder:
    """The command of a SubmitOrder."""
    return NewOrder(
        client,
        order.client_order_id[:_MAX_ID],
        order.symbol[:_MAX_SYMBOL],
        order.side,
        order.type,
        order.time_in_force,
        order.price,
        order.quantity,
        order.stop_price,
        order.display_quantity,
        order.post_only,
        order.self_trade_prevention,
        order.expire_time_ns,
        order.do_not_route,
    )


def cancel_order(client: str, request: pb.CancelOrderRequest) -> CancelOrder:
    """The command of a CancelOrder."""
    return CancelOrder(client, request.order_id, request.client_order_id[:_MAX_ID])


def replace_order(client: str, request: pb.ReplaceOrderRequest) -> ReplaceOrder:
    """The command of a ReplaceOrder."""
    return ReplaceOrder(
        client, request.order_id, request.client_order_id[:_MAX_ID], request.price, request.quantity
    )


def cancel_all(client: str, request: pb.CancelAllRequest) -> CancelAll:
    """The command of a CancelAll."""
    return CancelAll(client, request.symbol[:_MAX_SYMBOL], request.side)


def order_command(client: str, command: pb.Command) -> OrderCommand | None:
    """The command of one entry of an OrderEntry message, None when it is empty."""
    match command.WhichOneof("command"):
        case "new":
            return new_order(client, command.new)
        case "cancel":
            return cancel_order(client, command.cancel)
        case "replace":
            return replace_order(client, command.replace)
        case _:
            return None


def order_reply(answer: Answered, *, duplicate: bool = False) -> pb.OrderReply:
    """The reply to a command about one order."""
    reply = pb.OrderReply(
        client_order_id=answer.client_order_id,
        order_id=answer.order_id,
        status=answer.status,  # type: ignore[arg-type]  # an enum is an int on the wire
        leaves_quantity=answer.leaves,
    )
    if answer.cumulative:
        reply.cumulative_quantity = answer.cumulative
        reply.average_price = answer.value / answer.cumulative
        reply.fills.extend(map(fill, answer.fills))
    if answer.reject_reason:
        reply.reject_reason = answer.reject_reason  # type: ignore[assignment]  # likewise
        reply.reject_text = answer.reject_text
    if answer.prevented:
        for match in answer.prevented:
            reply.prevented.add(
                symbol=match.symbol,
                taker_order_id=match.taker_order_id,
                maker_order_id=match.maker_order_id,
                price=match.price,
                quantity=match.quantity,
                mode=match.mode,
            )
    if duplicate or answer.duplicate:
        reply.duplicate = True
    return reply


def empty_command_reply() -> pb.OrderReply:
    """The refusal of an OrderEntry command that holds nothing."""
    return pb.OrderReply(
        status=int(OrderStatus.REJECTED),  # type: ignore[arg-type]  # an enum is an int on the wire
        reject_reason=int(RejectReason.EMPTY_COMMAND),  # type: ignore[arg-type]  # likewise
        reject_text="the command is empty: set one of new, cancel, replace",
    )


def fill(event: Fill) -> pb.Fill:
    """One fill as its client sees it."""
    return pb.Fill(
        sequence=event.sequence,
        execution_id=event.execution_id,
        order_id=event.order_id,
        client_order_id=event.client_order_id,
        symbol=event.symbol,
        side=event.side,  # type: ignore[arg-type]  # an enum is an int on the wire
        price=event.price,
        quantity=event.quantity,
        liquidity=event.liquidity,  # type: ignore[arg-type]  # likewise
        cumulative_quantity=event.cumulative,
        leaves_quantity=event.leaves,
        engine_id=event.engine,
        timestamp_ns=event.time_ns,
        fee=event.fee,
        contra_order_id=event.contra_order_id,
    )


def fill_batch(fills: Iterable[Fill]) -> pb.FillBatch:
    """Fills for a GetFills stream."""
    return pb.FillBatch(fills=map(fill, fills))


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
