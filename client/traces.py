"""The client's part of an order's trace, where the environment names a collector (docs/monitoring.md)."""

import time

from matchbus import tracing
from matchbus.tracing import SUBMIT, Span, Tracer, utc_ns
from matchbus.v1 import matchbus_pb2 as pb


def tracer() -> Tracer | None:
    """What takes a client's spans; None where nobody wants them. Raises `TracingUnusable`, a `ValueError`."""
    return tracing.tracer_of_environment("matchbus-client")


def note_submitted(tracer: Tracer, began_s: float, command: bytes, reply: pb.OrderReply) -> None:
    """An order that was given at this `time.monotonic()` is answered; `command` is as it was sent."""
    if not tracer.samples(reply.order_id):
        return
    order = pb.OrderEntryRequest.FromString(command).commands[0].new
    fields = {
        "client_order_id": order.client_order_id,
        "symbol": order.symbol,
        "side": pb.Side.Name(order.side).removeprefix("SIDE_"),
        "price": order.price,
        "quantity": order.quantity,
        "status": pb.OrderStatus.Name(reply.status).removeprefix("ORDER_STATUS_"),
    }
    tracer.note(Span(reply.order_id, *SUBMIT, None, utc_ns(began_s), time.time_ns(), fields))
