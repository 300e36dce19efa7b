"""The path of sampled orders as spans, where a collector of traces was named (docs/monitoring.md).

    submit (client) ──▶ journal ──▶ fill, reply, report stored
                           └──▶ leg ──▶ leg taken (peer) ──▶ trade

An arrow points to what hangs under. Like `order_log`, each function asks once, for a whole batch or message,
whether anybody wants to know; then it looks at each order's id. A process traces for one engine.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from matchbus.tracing import JOURNAL, SUBMIT, Place, Span, Tracer, utc_ns

from bus.messages import Report
from engine.commands import Command, TakeLeg
from engine.events import Accepted, Answered, Event, Fill, LegSent, LegTaken
from engine.runtime.order_log import order_of
from engine.terms import Liquidity, OrderStatus, Side

_tracer: Tracer | None = None


def begin(tracer: Tracer) -> None:
    """Trace with this from now on."""
    global _tracer  # noqa: PLW0603 -- one for the process, as logging has it
    _tracer = tracer


async def end() -> None:
    """Trace no more, and send what is left, within `FLUSH_DEADLINE_S`."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer is not None:
        await asyncio.to_thread(tracer.close)


def committed(
    batch: int, append_began_s: float, commands: Sequence[Command], events: Sequence[Event]
) -> None:
    """The journal has a batch, whose append began at this `time.monotonic()`."""
    if _tracer is None:
        return
    samples = _tracer.samples
    began_ns, ended_ns = utc_ns(append_began_s), time.time_ns()
    takers = {
        command.leg_id: command.order_id
        for command in commands
        if isinstance(command, TakeLeg) and samples(command.order_id)
    }
    for event in events:
        if isinstance(event, Accepted):
            if samples(event.order_id):
                _tracer.note(_journaled(batch, began_ns, ended_ns, event))
        elif isinstance(event, Fill):
            if samples(event.order_id):
                _tracer.note(_filled(batch, began_ns, ended_ns, event))
        elif isinstance(event, LegTaken) and event.leg_id in takers:
            _note_taken(_tracer, batch, began_ns, ended_ns, event, takers[event.leg_id])


def leg_answered(leg: LegSent, left_s: float, outcome: str, filled: int) -> None:
    """A leg is back that left at this `time.monotonic()`."""
    if _tracer is None or not _tracer.samples(leg.order_id):
        return
    fields = {
        "leg": str(leg.leg_id),
        "peer": leg.peer,
        "outcome": outcome,
        "filled": filled,
        "quantity": leg.quantity,
        "limit": leg.limit,
    }
    name, number = _leg(leg.leg_id)
    _tracer.note(Span(leg.order_id, name, number, JOURNAL, utc_ns(left_s), time.time_ns(), fields))


def replied(answers: Sequence[Answered | Accepted]) -> None:
    """A client gets these."""
    if _tracer is None:
        return
    for answer in answers:
        if _tracer.samples(answer.order_id):
            status = OrderStatus.NEW if isinstance(answer, Accepted) else OrderStatus(answer.status)
            _tracer.note(_moment(answer.order_id, "reply", status=status.name))


def reported(reports: Sequence[Report]) -> None:
    """The stream of execution reports has these."""
    if _tracer is None:
        return
    for report in reports:
        order_id = order_of(report)
        if _tracer.samples(order_id):
            _tracer.note(_moment(order_id, "report stored", report=type(report).__struct_config__.tag))


def _journaled(batch: int, began_ns: int, ended_ns: int, order: Accepted) -> Span:
    fields = {
        "batch": batch,
        "client": order.client,
        "client_order_id": order.client_order_id,
        "symbol": order.symbol,
        "side": Side(order.side).name,
        "price": order.price,
        "quantity": order.quantity,
    }
    return Span(order.order_id, *JOURNAL, SUBMIT, began_ns, ended_ns, fields)


def _filled(batch: int, began_ns: int, ended_ns: int, fill: Fill) -> Span:
    fields = {
        "batch": batch,
        "engine": fill.engine,
        "price": fill.price,
        "quantity": fill.quantity,
        "liquidity": Liquidity(fill.liquidity).name,
        "contra_order": str(fill.contra_order_id),
    }
    return Span(fill.order_id, "fill", None, JOURNAL, began_ns, ended_ns, fields)


def _note_taken(
    tracer: Tracer, batch: int, began_ns: int, ended_ns: int, taken: LegTaken, order_id: int
) -> None:
    """A peer's leg, and what it traded here."""
    fields = {"batch": batch, "leg": str(taken.leg_id), "sender": taken.sender, "refused": taken.refused}
    place = "leg taken", taken.leg_id
    tracer.note(Span(order_id, *place, _leg(taken.leg_id), began_ns, ended_ns, fields))
    for fill in taken.fills:
        traded = {"price": fill.price, "quantity": fill.quantity, "contra_order": str(fill.contra_order_id)}
        tracer.note(Span(order_id, "trade", None, place, ended_ns, ended_ns, traded))


def _leg(leg_id: int) -> Place:
    return "leg", leg_id


def _moment(order_id: int, name: str, **fields: Any) -> Span:
    now_ns = time.time_ns()
    return Span(order_id, name, None, JOURNAL, now_ns, now_ns, fields)
