"""The path of every order in the log, at level DEBUG: a line for each step, with the order's id.

    order sequenced ──▶ journal ──▶ order committed, trade, leg sent, order answered ──▶ reply, report stored
                                                        └──▶ peer: leg sequenced, trade, leg taken

A trade's line names the orders of both sides, and a leg's the order that it works for, so one order id finds
its whole path in the logs of all engines. Each function asks once, for a whole batch or message, whether
anybody wants to know. Before the journal has a batch it is told as sequenced, and no more.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, assert_never

from bus.messages import Report, ReportedPrevention
from engine.commands import Command, TakeLeg
from engine.events import (
    Accepted,
    Answered,
    BookChanged,
    Cancelled,
    CancelledAll,
    Event,
    Fill,
    LegSent,
    LegTaken,
    Listed,
    Prevented,
    Replaced,
)
from engine.terms import Liquidity, OrderStatus, RejectReason, Side

_log: Final = logging.getLogger("orders")


def sequenced(batch: int, commands: Sequence[Command], events: Sequence[Event]) -> None:
    """A batch is on its way to the journal."""
    if not _log.isEnabledFor(logging.DEBUG):
        return
    for event in events:
        if isinstance(event, Accepted):
            _tell(
                "order sequenced",
                batch=batch,
                order=event.order_id,
                client=event.client,
                client_order_id=event.client_order_id,
                symbol=event.symbol,
                side=Side(event.side).name,
                price=event.price,
                quantity=event.quantity,
            )
    for command in commands:
        if isinstance(command, TakeLeg):
            _tell(
                "leg sequenced",
                batch=batch,
                order=command.order_id,
                leg=command.leg_id,
                sender=command.sender,
                symbol=command.symbol,
                quantity=command.quantity,
                limit=command.limit,
            )


def committed(batch: int, commands: Sequence[Command], events: Sequence[Event]) -> None:
    """The journal has a batch: what came of it."""
    if not _log.isEnabledFor(logging.DEBUG):
        return
    takers = {command.leg_id: command.order_id for command in commands if isinstance(command, TakeLeg)}
    for event in events:
        told = _happened(event, takers)
        if told is not None:
            what, fields = told
            _tell(what, batch=batch, **fields)


def replied(answers: Sequence[Answered | Accepted]) -> None:
    """A client gets these."""
    if not _log.isEnabledFor(logging.DEBUG):
        return
    for answer in answers:
        status = OrderStatus.NEW if isinstance(answer, Accepted) else OrderStatus(answer.status)
        _tell("reply", order=answer.order_id, status=status.name)


def reported(reports: Sequence[Report]) -> None:
    """The stream of execution reports has these."""
    if not _log.isEnabledFor(logging.DEBUG):
        return
    for report in reports:
        kind = type(report).__struct_config__.tag
        _tell("report stored", order=order_of(report), report=kind)


def order_of(report: Report | Prevented) -> int:
    """The order that a report is of; of a prevented match the taker.

    What an engine reports are the state machine's events, by the same field names under the same tags.
    """
    return report.taker_order_id if isinstance(report, Prevented | ReportedPrevention) else report.order_id


def _happened(event: Event, takers: Mapping[int, int]) -> tuple[str, dict[str, Any]] | None:
    """What an event says of an order; None for what is told elsewhere. `takers` are the orders of legs."""
    match event:
        case Accepted():
            return "order committed", {"order": event.order_id}
        case Fill():
            return "trade", {
                "order": event.order_id,
                "contra_order": event.contra_order_id,
                "execution": event.execution_id,
                "symbol": event.symbol,
                "side": Side(event.side).name,
                "price": event.price,
                "quantity": event.quantity,
                "liquidity": Liquidity(event.liquidity).name,
                "engine": event.engine,
            }
        case Cancelled():
            return "order cancelled", {
                "order": event.order_id,
                "quantity": event.quantity,
                "leaves": event.leaves,
            }
        case Replaced():
            return "order replaced", {
                "order": event.order_id,
                "price": event.price,
                "quantity": event.quantity,
            }
        case Prevented():
            return "self-trade prevented", {
                "order": event.taker_order_id,
                "contra_order": event.maker_order_id,
                "quantity": event.quantity,
            }
        case Answered():
            return "order answered", {
                "order": event.order_id,
                "client_order_id": event.client_order_id,  # all that names a refused one
                "status": OrderStatus(event.status).name,
                "reason": RejectReason(event.reject_reason).name,
                "cumulative": event.cumulative,
                "leaves": event.leaves,
            }
        case LegTaken():
            return "leg taken", {
                "order": takers.get(event.leg_id, 0),
                "leg": event.leg_id,
                "filled": sum(fill.quantity for fill in event.fills),
                "refused": event.refused,
            }
        case CancelledAll() | LegSent() | Listed() | BookChanged():
            return None
        case _:
            assert_never(event)


def _tell(what: str, **fields: Any) -> None:
    _log.debug(what, extra=fields)
