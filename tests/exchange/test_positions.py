from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import Executions, ReportedCancel, ReportedFill
from exchange.positions import COST_UNIT, INT64_MAX, INT64_MIN, Holding, Positions, divide_half_even, saturate

BUY, SELL = 1, 2
CLIENTS = ("ann", "bob", "cid")

trades = st.lists(
    st.tuples(
        st.sampled_from(CLIENTS), st.sampled_from(CLIENTS), st.integers(1, 10**12), st.integers(1, 10**12)
    ),
    max_size=40,
)
small_trades = st.lists(st.tuples(st.integers(-20, 20).filter(bool), st.integers(1, 500)), max_size=60)


@dataclass
class ExactHolding:
    """The average-price method with exact fractions: obviously right, and unboundedly slow."""

    lots: int = 0
    average: Fraction = field(default_factory=Fraction)
    realized: Fraction = field(default_factory=Fraction)

    def trade(self, lots: int, price: int) -> None:
        """Buy `lots`; a negative number sells."""
        if self.lots * lots >= 0:
            self.average = (self.average * abs(self.lots) + price * abs(lots)) / (abs(self.lots) + abs(lots))
            self.lots += lots
            return
        closed = min(abs(lots), abs(self.lots))
        self.realized += closed * (price - self.average) * (1 if self.lots > 0 else -1)
        self.lots += lots
        if self.lots == 0:
            self.average = Fraction()
        elif (self.lots > 0) == (lots > 0):
            self.average = Fraction(price)


def fill(client: str, sequence: int, side: int, quantity: int, price: int, *, fee: int = 0) -> ReportedFill:
    """One side of a trade."""
    return ReportedFill(
        client=client,
        sequence=sequence,
        execution_id=sequence,
        order_id=1,
        client_order_id="a",
        symbol="AAPL",
        side=side,
        price=price,
        quantity=quantity,
        liquidity=1,
        cumulative=quantity,
        leaves=0,
        engine=1,
        time_ns=0,
        contra_order_id=2,
        fee=fee,
    )


def executions(*fills: ReportedFill | ReportedCancel, epoch: int = 1) -> Executions:
    """One message with these reports."""
    return Executions(
        engine=1, epoch=epoch, first_batch=1, last_batch=1, last_reports=len(fills), reports=fills
    )


def positions_of(dealt: list[tuple[str, str, int, int]]) -> Positions:
    """The positions after (buyer, seller, quantity, price) trades, one message each."""
    positions = Positions()
    sequences: dict[str, int] = defaultdict(int)
    for buyer, seller, quantity, price in dealt:
        reports = []
        for client, side in ((buyer, BUY), (seller, SELL)):
            sequences[client] += 1
            reports.append(fill(client, sequences[client], side, quantity, price))
        assert positions.apply(executions(*reports)) == []
    return positions


def test_a_round_trip() -> None:
    """Two buys average their price, a sale of part realizes its share, the rest keeps the average."""
    holding = Holding()
    holding.trade(10, 100)
    holding.trade(10, 110)
    assert (holding.lots, holding.average_price, holding.realized) == (20, 105.0, 0)
    holding.trade(-5, 120)
    assert (holding.lots, holding.average_price, holding.realized) == (15, 105.0, 75)
    holding.trade(-15, 100)
    assert (holding.lots, holding.average_price, holding.realized) == (0, 0.0, 0)


def test_a_position_turned_round_starts_at_the_price_of_the_turn() -> None:
    """Selling more than is held realizes the whole long position and opens a short one at the new price."""
    holding = Holding()
    holding.trade(10, 100)
    holding.trade(-15, 90)
    assert (holding.lots, holding.average_price, holding.realized) == (-5, 90.0, -100)


def test_the_share_that_a_sale_takes_along_is_rounded_to_a_billionth() -> None:
    """Half to even, and so to the nearest: of three lots that cost 4 two took 2.666666667."""
    holding = Holding()
    for lots, price in ((2, 1), (1, 2), (-2, 5)):
        holding.trade(lots, price)
    assert holding.cost == 1_333_333_333


def test_holdings_come_in_order_of_their_symbols() -> None:
    """Whatever was traded first."""
    positions = Positions()
    for sequence, symbol in enumerate(("MSFT", "AAPL"), start=1):
        positions.apply(
            executions(msgspec.structs.replace(fill("ann", sequence, BUY, 5, 100), symbol=symbol))
        )
    assert [symbol for symbol, _ in positions.of("ann")] == ["AAPL", "MSFT"]


@given(trades, st.integers(0, 10**12))
def test_profit_is_zero_sum(dealt: list[tuple[str, str, int, int]], mark: int) -> None:
    """Over all clients, lots and realized plus unrealized profit are exactly zero at any mark price."""
    holdings = [holding for client in CLIENTS for _, holding in positions_of(dealt).of(client)]
    realized = sum(holding.cash * COST_UNIT + holding.cost for holding in holdings)
    unrealized = sum(holding.lots * mark * COST_UNIT - holding.cost for holding in holdings)
    assert realized + unrealized == 0
    assert sum(holding.lots for holding in holdings) == 0


@given(small_trades)
def test_agrees_with_exact_fractions(dealt: list[tuple[int, int]]) -> None:
    """Average price and realized profit are those of exact arithmetic, to the rounding that is documented."""
    holding, exact = Holding(), ExactHolding()
    for lots, price in dealt:
        holding.trade(lots, price)
        exact.trade(lots, price)
        assert holding.lots == exact.lots
        assert abs(holding.average_price - exact.average) < 1e-6
        assert abs(holding.realized - exact.realized) <= Fraction(1, 2) + Fraction(len(dealt) * 20, COST_UNIT)
        if holding.lots == 0:
            assert holding.cost == 0


@given(st.integers(), st.integers(min_value=1))
def test_half_even_division(dividend: int, divisor: int) -> None:
    """Rounded division of integers is that of exact fractions."""
    assert divide_half_even(dividend, divisor) == round(Fraction(dividend, divisor))


def test_a_repeated_fill_changes_nothing() -> None:
    """A message that is taken in again, the first one or the last, counts once and is no gap."""
    positions = Positions()
    messages = [
        executions(fill("ann", 1, BUY, 5, 100, fee=2)),
        executions(fill("ann", 2, BUY, 5, 102, fee=3)),
    ]
    for message in (*messages, *messages, messages[0]):
        assert positions.apply(message) == []
    assert positions.gap("ann") is None
    assert [(symbol, h.lots, h.fees) for symbol, h in positions.of("ann")] == [("AAPL", 10, 5)]


def test_a_gap_stops_that_client_only() -> None:
    """After a missing fill a client's position is known to be unknown; the others' go on."""
    positions = Positions()
    assert positions.apply(executions(fill("ann", 1, BUY, 5, 100), fill("bob", 1, SELL, 5, 100))) == []
    assert positions.apply(executions(fill("ann", 3, BUY, 5, 100), fill("bob", 2, SELL, 5, 100))) == ["ann"]
    assert positions.apply(executions(fill("ann", 4, BUY, 5, 100))) == []
    gap = positions.gap("ann")
    assert gap is not None
    assert (gap.last_sequence, gap.next_sequence) == (1, 3)
    assert positions.gap("bob") is None
    assert [positions.fill_count(client) for client in CLIENTS] == [1, 2, 0]
    assert positions.of("bob", "AAPL")[0][1].lots == -10


def test_a_history_that_begins_again_is_a_new_one() -> None:
    """An engine without a journal was started again: what it had forgotten is not added to what comes.

    Nor does a fill that was missing before matter any more.
    """
    positions = Positions()
    positions.apply(executions(fill("ann", 1, BUY, 5, 100), fill("ann", 2, BUY, 5, 100)))
    assert positions.apply(executions(fill("ann", 9, BUY, 5, 100))) == ["ann"]
    assert positions.apply(executions(fill("ann", 1, BUY, 7, 100), epoch=2)) == []
    assert positions.gap("ann") is None
    assert positions.apply(executions(fill("ann", 2, BUY, 1, 100), epoch=3)) == []
    assert [(symbol, holding.lots) for symbol, holding in positions.of("ann")] == [("AAPL", 8)]


def test_fills_that_come_again_after_a_loss_are_a_gap() -> None:
    """The end of a journal was lost: no position can be right any more."""
    positions = Positions()
    for sequence in range(1, 6):
        positions.apply(executions(fill("ann", sequence, BUY, 5, 100)))
    assert positions.apply(executions(fill("ann", 4, BUY, 7, 100), epoch=2)) == ["ann"]
    gap = positions.gap("ann")
    assert gap is not None
    assert (gap.last_sequence, gap.next_sequence) == (5, 4)


def test_only_fills_move_positions() -> None:
    """A cancel report changes no position, and an unknown client or symbol has none."""
    positions = Positions()
    cancel = ReportedCancel(
        client="ann", order_id=1, client_order_id="a", symbol="AAPL", quantity=5, leaves=0
    )
    positions.apply(executions(cancel))
    assert list(positions.of("ann")) == []
    positions.apply(executions(fill("ann", 1, BUY, 5, 100)))
    assert list(positions.of("ann", "MSFT")) == []


def test_wire_numbers_saturate() -> None:
    """Numbers past the ends of int64 become the ends."""
    assert [saturate(n) for n in (2**80, -(2**80), 5)] == [INT64_MAX, INT64_MIN, 5]
