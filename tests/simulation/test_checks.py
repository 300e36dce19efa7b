import msgspec
import pytest

from bus.messages import (
    Report,
    ReportedCancel,
    ReportedFill,
    ReportedOrder,
    ReportedPrevention,
    ReportedReplace,
)
from engine.terms import Liquidity, Side
from simulation.checks import Tally, count_fills, uncrossed

E1, E2 = 1 << 48, 2 << 48


def order(
    client: str, order_id: int, side: Side, quantity: int, price: int = 100, kind: int = 1
) -> ReportedOrder:
    """An accepted order in AAPL."""
    return ReportedOrder(client, order_id, f"id-{order_id}", "AAPL", side, kind, 1, price, quantity)


def fill(
    client: str,
    order_id: int,
    side: Side,
    quantity: int,
    *,
    sequence: int = 1,
    price: int = 100,
    cumulative: int | None = None,
    leaves: int = 0,
    engine: int = 1,
    liquidity: Liquidity = Liquidity.TAKER,
) -> ReportedFill:
    """One side of a trade in AAPL."""
    return ReportedFill(
        *(client, sequence, 1, order_id, f"id-{order_id}", "AAPL", side, price, quantity),
        *(liquidity, quantity if cumulative is None else cumulative, leaves, engine, 0, 0),
    )


def tally(*reports: Report) -> Tally:
    """A tally that took these reports."""
    made = Tally()
    for report in reports:
        made.add(report)
    return made


def trade_of_five() -> list[Report]:
    """Ann sells five of eight to Bob."""
    return [
        order("ann", E1 + 1, Side.SELL, 8),
        order("bob", E1 + 2, Side.BUY, 5),
        fill("ann", E1 + 1, Side.SELL, 5, leaves=3, liquidity=Liquidity.MAKER),
        fill("bob", E1 + 2, Side.BUY, 5),
    ]


def test_sound_reports_hold() -> None:
    """A trade, a replace and a cancel that add up violate nothing."""
    made = tally(
        *trade_of_five(),
        ReportedReplace("ann", E1 + 1, "id", 101, 7),
        ReportedCancel("ann", E1 + 1, "id", "AAPL", 2, 0),
        ReportedPrevention("ann", "AAPL", 1, 2, 100, 1, 2),
    )
    checks = [made.quantity, made.limits, made.trades(), made.zero_sum(), made.gap_free()]
    assert [check.violations for check in checks] == [[]] * 5
    assert made.positions() == {("ann", "AAPL"): -5, ("bob", "AAPL"): 5}


def test_over_fill_is_found() -> None:
    """An order that trades more than its quantity violates."""
    made = tally(
        order("bob", E1 + 2, Side.BUY, 5),
        fill("bob", E1 + 2, Side.BUY, 6, leaves=0),
    )
    assert not made.quantity.holds


def test_wrong_cumulative_is_found() -> None:
    """A fill whose running total is not the sum of the order's fills violates."""
    made = tally(order("bob", E1 + 2, Side.BUY, 5), fill("bob", E1 + 2, Side.BUY, 2, cumulative=3, leaves=3))
    assert "add up to 2" in made.quantity.violations[0]


@pytest.mark.parametrize(
    "stranger", [("eve", "AAPL", Side.BUY), ("bob", "MSFT", Side.BUY), ("bob", "AAPL", Side.SELL)]
)
def test_fill_of_another_client_symbol_or_side_is_found(stranger: tuple[str, str, Side]) -> None:
    """An order is filled for its own client, in its symbol, on its side."""
    reports = trade_of_five()
    client, symbol, side = stranger
    reports[3] = msgspec.structs.replace(reports[3], client=client, symbol=symbol, side=side)
    (violation,) = tally(*reports).quantity.violations
    assert "of bob, BUY AAPL, was filled for" in violation


def test_lost_quantity_is_found() -> None:
    """A cancel that leaves a part of the order unexplained violates."""
    made = tally(order("bob", E1 + 2, Side.BUY, 5), ReportedCancel("bob", E1 + 2, "id", "AAPL", 3, leaves=0))
    assert not made.quantity.holds


def test_an_order_that_is_accepted_twice_is_found() -> None:
    """An order's acceptance is reported once."""
    again = order("bob", E1 + 2, Side.BUY, 5)
    (violation,) = tally(again, again).quantity.violations
    assert "accepted twice" in violation


def test_fill_of_an_unknown_order_is_found() -> None:
    """A fill of an order that was never accepted violates."""
    assert not tally(fill("bob", E1 + 2, Side.BUY, 5)).quantity.holds


def test_trade_beyond_the_limit_is_found() -> None:
    """A buyer who pays more than the limit violates; a market order has no limit."""
    beyond = tally(order("bob", E1 + 2, Side.BUY, 5), fill("bob", E1 + 2, Side.BUY, 5, price=101))
    market = tally(
        order("bob", E1 + 2, Side.BUY, 5, price=0, kind=2), fill("bob", E1 + 2, Side.BUY, 5, price=101)
    )
    assert not beyond.limits.holds
    assert market.limits.holds


def test_one_sided_trade_is_found() -> None:
    """A trade without its other side violates, and positions do not sum to zero."""
    made = tally(*trade_of_five()[:3])
    assert not made.trades().holds
    assert not made.zero_sum().holds


def test_sides_at_different_prices_are_found() -> None:
    """The two sides of a trade have one price."""
    *others, taker = trade_of_five()
    made = tally(*others, fill("bob", E1 + 2, Side.BUY, 5, price=99))
    assert isinstance(taker, ReportedFill)
    assert not made.trades().holds


def test_gap_and_repeat_are_found() -> None:
    """Fill numbers that skip or repeat violate."""
    for second in (1, 3):
        made = tally(fill("bob", 1, Side.BUY, 1), fill("bob", 1, Side.BUY, 1, sequence=second, cumulative=2))
        assert made.gap_free().violations == [f"bob: fill 2 has sequence {second}"]


def test_received_fills_are_compared() -> None:
    """A client that received less, more or other fills than were reported violates."""
    made = tally(*trade_of_five())
    got = fill("bob", E1 + 2, Side.BUY, 5)
    assert made.received({"bob": [got]}).holds
    assert not made.received({"bob": []}).holds
    assert not made.received({"eve": [got]}).holds
    for name in ReportedFill.__struct_fields__:
        other = msgspec.structs.replace(got, **{name: None})
        assert not made.received({"bob": [other]}).holds, name


def test_an_acknowledged_order_must_be_reported() -> None:
    """Under both of its ids and as it was sent; what else is reported may have had no answer."""
    made = tally(*trade_of_five(), ReportedReplace("ann", E1 + 1, f"id-{E1 + 1}", 101, 7))
    sent = order("ann", E1 + 1, Side.SELL, 8)
    assert made.acknowledged([sent]).holds
    fields: dict[str, object] = {
        "order_id": E1 + 3,
        "client": "bob",
        "client_order_id": "id",
        "symbol": "MSFT",
    }
    fields |= {"side": Side.BUY, "type": 2, "time_in_force": 2, "price": 101, "quantity": 7}
    assert fields.keys() == set(ReportedOrder.__struct_fields__)
    for name, value in fields.items():
        other = msgspec.structs.replace(sent, **{name: value})
        assert len(made.acknowledged([other]).violations) == 1, name


def test_open_orders_are_compared() -> None:
    """What the reports leave open must be open, with as much left, and nothing else; others do not count."""
    made = tally(*trade_of_five(), order("ann", E1 + 3, Side.SELL, 2), order("eve", E1 + 4, Side.SELL, 2))
    assert made.open_orders({"ann": {E1 + 1: 3, E1 + 3: 2}, "bob": {}}).holds
    for ann, bob in (
        ({E1 + 1: 3}, {}),
        ({E1 + 1: 4, E1 + 3: 2}, {}),
        ({E1 + 1: 3, E1 + 3: 2}, {E1 + 2: 5}),
    ):
        assert len(made.open_orders({"ann": ann, "bob": bob}).violations) == 1


def test_told_positions_are_compared() -> None:
    """The exchange's positions must be those of the fills; a flat one may be left out."""
    made = tally(*trade_of_five())
    assert made.same_positions({("bob", "AAPL"): 5, ("bob", "MSFT"): 0}).holds
    assert not made.same_positions({("bob", "AAPL"): 4}).holds


def test_leg_is_told_from_home_trade() -> None:
    """A taker's fill on another engine than its order's home went through a leg; makers are not counted."""
    counts = count_fills(
        [
            fill("bob", E1 + 1, Side.BUY, 5, engine=1),
            fill("bob", E1 + 1, Side.BUY, 4, engine=2),
            fill("ann", E2 + 1, Side.SELL, 4, engine=2, liquidity=Liquidity.MAKER),
        ]
    )
    assert (counts.per_engine, counts.through_legs, counts.volume, counts.total) == ({1: 1, 2: 1}, 1, 9, 2)


def test_locked_and_crossed_books_are_found() -> None:
    """A bid at or above the ask violates; an empty side does not."""
    assert uncrossed({"A": (99, 100), "B": (None, 5), "C": (5, None)}).holds
    assert uncrossed({"A": (100, 100), "B": (101, 100)}).violations == [
        "A: best bid 100, best ask 100",
        "B: best bid 101, best ask 100",
    ]
