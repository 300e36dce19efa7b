"""`matchbus dropcopy`: what a line says of a report."""

import pytest

from bus.messages import Executions, ReportedOrder
from engine.terms import OrderType, Side, TimeInForce
from simulation import dropcopy


@pytest.mark.parametrize(("kind", "said"), [(OrderType.LIMIT, "at 0 ticks"), (OrderType.MARKET, "at market")])
def test_a_market_order_has_no_price(kind: OrderType, said: str) -> None:
    """Its price is not told as one of no ticks."""
    report = ReportedOrder("ann", 3, "mine", "AAPL", Side.BUY, kind, TimeInForce.IOC, 0, 1)
    assert (
        dropcopy.as_text(Executions(1, 1, 1, 1, 1, (report,)), report)
        == f"E1  ann  accepted  order 3  buy 1 AAPL {said}"
    )
