"""`matchbus dropcopy`: what a line says of a report."""

from decimal import Decimal

import pytest

from bus.messages import (
    Executions,
    Report,
    ReportedCancel,
    ReportedFill,
    ReportedOrder,
    ReportedPrevention,
    ReportedReplace,
)
from client import Instrument
from engine.terms import OrderType, SelfTradePrevention, Side, TimeInForce
from simulation.dropcopy import Lines


def accepted(kind: OrderType = OrderType.LIMIT) -> ReportedOrder:
    """Order 3 of ann, to buy 1,000 lots."""
    return ReportedOrder("ann", 3, "mine", "AAPL", Side.BUY, kind, TimeInForce.GTC, 10_000, 1_000)


FILL = ReportedFill("ann", 5, 9, 3, "mine", "AAPL", 1, 10_000, 400, 1, 400, 600, 2, 1_500_000_000, 7)
REPORTS: list[tuple[Report, str]] = [
    (accepted(), "accepted  order 3  buy 10.00 AAPL at 100.00"),
    (accepted(OrderType.MARKET), "accepted  order 3  buy 10.00 AAPL at market"),
    (FILL, "fill 5  order 3  buy 4.00 AAPL at 100.00 on E2 as maker  leaves 6.00  00:00:01.500000"),
    (ReportedReplace("ann", 3, "mine", 10_050, 900), "replaced  order 3  9.00 AAPL at 100.50"),
    (ReportedCancel("ann", 3, "mine", "AAPL", 500, 0), "cancelled  order 3  5.00 AAPL  leaves 0.00"),
    (
        ReportedPrevention("ann", "AAPL", 4, 3, 10_000, 100, SelfTradePrevention.CANCEL_NEWEST),
        "prevented  order 4 with own order 3  1.00 AAPL at 100.00  cancel_newest",
    ),
]


async def aapl(symbol: str) -> Instrument | None:
    """An instrument of hundredths."""
    return Instrument(symbol, Decimal("0.01"), Decimal("0.01"))


async def nobody(_: str) -> Instrument | None:
    """No instrument at all."""
    return None


async def said(lines: Lines, report: Report) -> str:
    """What a line says, without the beginning that all have."""
    line = await lines.line(Executions(1, 1, 1, 1, 1, (report,)), report)
    assert line.startswith("E1  ann  ")
    return line.removeprefix("E1  ann  ")


@pytest.mark.parametrize(
    ("report", "expected"), REPORTS, ids=[type(report).__name__ for report, _ in REPORTS]
)
async def test_a_line_has_prices_and_quantities_of_the_symbol(report: Report, expected: str) -> None:
    """As the other commands have them, not ticks and lots."""
    lines = Lines(aapl)
    await said(lines, accepted())
    assert await said(lines, report) == expected


async def test_what_nobody_knows_is_said_in_ticks_and_lots() -> None:
    """Of a symbol without an instrument, and of an order from before all that is stored or long done."""
    assert await said(Lines(nobody), accepted()) == "accepted  order 3  buy 1000 lots AAPL at 10000 ticks"
    replaced = ReportedReplace("ann", 3, "mine", 10_050, 900)
    assert await said(Lines(aapl), replaced) == "replaced  order 3  900 lots at 10050 ticks"
    lines = Lines(aapl)
    for report in (accepted(), ReportedCancel("ann", 3, "mine", "AAPL", 1_000, 0)):
        await said(lines, report)
    assert await said(lines, replaced) == "replaced  order 3  900 lots at 10050 ticks"
