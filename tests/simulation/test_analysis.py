"""What a recording adds up to."""

from decimal import Decimal
from itertools import pairwise, permutations

import pytest

from client import Fill
from client.terms import Liquidity, Side
from simulation import analysis
from simulation.analysis import Silence
from simulation.recording import EngineStrike, Recording, SentChange, SentOrder, StateChange, TimedFill

E1_ORDER, E2_ORDER = 1 << 48, 2 << 48


def taken(
    at_s: float,
    kind: str,
    side: Side,
    price: str,
    quantity: int | str = 1,
    *,
    liquidity: Liquidity = Liquidity.TAKER,
    order_id: int = E1_ORDER,
    engine: int = 1,
    execution_id: int = 1,
) -> TimedFill:
    """One side of a trade in AAPL."""
    fill = Fill(
        *(1, execution_id, order_id, "id", "AAPL", side, Decimal(price), Decimal(quantity), liquidity),
        *(Decimal(quantity), Decimal(0), engine, 0, Decimal(0), 0),
    )
    return TimedFill(at_s, f"{kind}-1", kind, fill)


def trade(at_s: float, buyer: str, seller: str, price: str, quantity: int | str = 1) -> list[TimedFill]:
    """Both sides of a trade; the buyer takes."""
    return [
        taken(at_s, buyer, Side.BUY, price, quantity),
        taken(at_s, seller, Side.SELL, price, quantity, liquidity=Liquidity.MAKER),
    ]


def order(sent_s: float, answered_s: float | None, engine: int = 1, client: str = "c") -> SentOrder:
    """An order of a client at home on an engine."""
    return SentOrder(
        *(sent_s, answered_s, client, "random", engine, "AAPL", "buy", "limit", "gtc"),
        *(Decimal(1), Decimal(1), "new", "", 1),
    )


def test_every_trade_counts_once_where_it_was_made() -> None:
    """Volume is told by takers, in the stretch and on the engine of the trade."""
    fills = [*trade(1.0, "a", "b", "10", 2), taken(9.0, "a", Side.BUY, "5", 4, engine=2)]
    first, last = analysis.volume_by_engine(fills, 10.0, 2)
    assert (first.low, first.high, dict(first.values)) == (0.0, 5.0, {"E1": 20.0})
    assert dict(last.values) == {"E2": 20.0}


def test_routed_is_what_traded_away_from_home() -> None:
    """An order of E2 that traded on E1 was routed; a stretch without a trade has no share."""
    fills = [
        taken(1.0, "a", Side.BUY, "10", 3),
        taken(1.5, "a", Side.BUY, "10", 1, order_id=E2_ORDER),
    ]
    assert analysis.share_routed(fills, 20.0, 2) == [(5.0, 25.0), (15.0, None)]


def test_profit_is_cash_and_holdings_at_last_prices() -> None:
    """Who bought lower than the last price has gained; all together gain nothing at any time."""
    fills = [*trade(1.0, "a", "b", "100", 2), *trade(6.0, "b", "c", "103", 1)]
    books = analysis.books_by_kind("abc", fills, 10.0, 2)
    assert books["a"].profit == [(0.0, 0.0), (5.0, 0.0), (10.0, 6.0)]
    assert [books[kind].profit[-1][1] for kind in "abc"] == [6.0, -6.0, 0.0]
    assert [books[kind].worth[-1][1] for kind in "abc"] == [206.0, -103.0, -103.0]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_the_last_price_of_a_batch_is_that_of_its_last_trade(order: tuple[int, ...]) -> None:
    """A taker bought at 100, then at 101, in one moment: it has gained 1, whoever heard of it first."""
    kinds = ("taker", "maker")
    sides = [("taker", Side.BUY, Liquidity.TAKER), ("maker", Side.SELL, Liquidity.MAKER)]
    fills = [
        taken(1.0, kind, side, price, liquidity=liquidity, execution_id=execution_id)
        for execution_id, price in ((1, "100"), (2, "101"))
        for kind, side, liquidity in sides
    ]
    books = analysis.books_by_kind(kinds, [fills[place] for place in order], 1.0, 1)
    assert [books[kind].profit[-1][1] for kind in kinds] == [1.0, -1.0]


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([3.0], 99, 3.0), ([4.0, 1.0, 3.0, 2.0], 50, 2.0), (list(range(1, 101)), 99, 99)],
)
def test_percentile(values: list[float], percent: float, expected: float | None) -> None:
    """The smallest value that at least so many percent do not exceed."""
    assert analysis.percentile(values, percent) == expected


def test_latency_bins_hold_every_answer() -> None:
    """Bins follow each other on a logarithmic axis, empty ones in between included."""
    bins = analysis.latency_bins([0.0, 1.05, 1.1, 95.0])
    assert sum(one.values[""] for one in bins) == 4
    assert all(one.high == pytest.approx(two.low) for one, two in pairwise(bins))
    assert bins[0].low > 0
    assert analysis.latency_bins([]) == []


def test_latency_over_time() -> None:
    """An order counts when it was sent; what got no answer has no latency."""
    orders = [order(1.0, 1.1), order(2.0, 8.0), order(7.0, None)]
    (_, first), (_, last) = analysis.latency_over_time(orders, 10.0, 2, 100)
    assert first == pytest.approx(6_000)
    assert last is None


def test_outage_is_the_longest_silence_after_the_strike() -> None:
    """It is that of clients at home on the struck engine; others are told besides."""
    own = [order(4.95, 5.05), order(5.2, 7.1), order(7.2, 7.3), order(8.0, 8.1)]
    others = [order(4.9, 5.2, engine=2), order(5.3, 6.0, engine=2), order(6.9, 7.9, engine=2)]
    states = [StateChange(0.0, 1, "live"), StateChange(5.3, 1, "down"), StateChange(7.2, 1, "live")]
    (outage,) = analysis.outages([*own, *others], [EngineStrike(5.0, "kill", 1, 0.0)], states, 9.0)
    assert outage.silence == pytest.approx((5.2, 7.1))
    assert outage.elsewhere_s == pytest.approx(0.7)
    assert outage.live_s == 7.2


def test_an_answer_to_one_ends_the_silence_for_all() -> None:
    """While another still waits, the next silence begins with it."""
    orders = [order(5.1, 9.0, client="a"), order(5.2, 6.0, client="b"), order(7.0, 7.1, client="b")]
    (outage,) = analysis.outages(orders, [EngineStrike(5.0, "kill", 1, 0.0)], [], 9.0)
    assert outage.silence == pytest.approx((7.1, 9.0))


def test_who_waits_for_a_cancel_waits() -> None:
    """A maker cancels before each new quote: most of an outage may fall on that."""
    cancel = SentChange(5.0, 8.0, "c", "cancel", (1 << 48) + 1, None, None, "cancelled", "")
    orders = [order(4.0, 4.1), order(8.0, 8.05)]
    recorded = Recording(orders=orders, changes=[cancel])
    (outage,) = analysis.outages(recorded.calls(), [EngineStrike(4.9, "freeze", 1, 3.0)], [], 9.0)
    assert outage.silence == pytest.approx((5.0, 8.0))


def test_pauses_are_no_silence() -> None:
    """Clients that send nothing for long do not wait."""
    orders = [order(at_s, at_s + 0.1 * at_s) for at_s in (1.0, 13.0, 26.0, 39.0)]
    (outage,) = analysis.outages(orders, [EngineStrike(5.0, "freeze", 1, 0.05)], [], 40.0)
    assert outage.silence == pytest.approx((13.0, 14.3))


def test_an_engine_that_never_answers_again() -> None:
    """Its outage is open, however short those before it fell silent were."""
    orders = [order(4.0, 4.1), order(4.9, 5.01), order(5.5, None)]
    (outage,) = analysis.outages(orders, [EngineStrike(5.0, "kill", 1, 0.0)], [], 9.0)
    assert (outage.silence, outage.live_s) == (Silence(5.5, None), None)


def test_who_gave_up_on_an_order_waits_until_the_answer_to_the_next() -> None:
    """One that an earlier fault swallowed is not waited for any more."""
    orders = [order(1.0, None), order(31.0, 33.0), order(36.0, 36.1)]
    strikes = [EngineStrike(0.5, "freeze", 1, 32.5), EngineStrike(35.0, "kill", 1, 0.0)]
    first, second = analysis.outages(orders, strikes, [], 40.0)
    assert first.silence == Silence(1.0, 33.0)
    assert second.silence == pytest.approx((36.0, 36.1))


def test_a_silence_at_the_end_of_the_time_looked_at_ends_with_the_next_answer() -> None:
    """Clients whose answer comes later are not taken for ones that had none any more."""
    orders = [order(5.5, 5.6), order(24.0, 26.1), order(39.0, 39.1)]
    (outage,) = analysis.outages(orders, [EngineStrike(5.0, "kill", 1, 0.0)], [], 40.0)
    assert outage.silence == (24.0, 26.1)


def test_who_does_not_wait_notices_nothing() -> None:
    """Without an order out there is no outage, neither on the struck engine nor on others."""
    strike = EngineStrike(5.0, "kill", 1, 0.0)
    before, after = order(4.0, 4.1), order(30.0, 30.1)
    (unnoticed,) = analysis.outages([before, order(6.0, 6.2, engine=2), after], [strike], [], 40.0)
    assert unnoticed.silence is None
    assert unnoticed.elsewhere_s == pytest.approx(0.2)
    (alone,) = analysis.outages([order(4.0, 6.2)], [strike], [], 7.0)
    assert alone.silence == (5.0, 6.2)
    assert alone.elsewhere_s is None


def test_a_silence_counts_for_a_strike_only_until_the_next_on_the_engine() -> None:
    """What comes after the second strike is put down to that one."""
    orders = [order(0.9, 2.1), order(2.5, 6.1)]
    strikes = [EngineStrike(1.0, "kill", 1, 0.0), EngineStrike(3.0, "kill", 1, 0.0)]
    first, second = analysis.outages(orders, strikes, [], 9.0)
    assert first.silence == pytest.approx((1.0, 2.1))
    assert second.silence == pytest.approx((3.0, 6.1))


def test_a_strike_that_missed_is_the_cause_of_nothing() -> None:
    """What came after it is put down to the strike before."""
    orders = [order(0.9, 2.1), order(2.5, 6.1)]
    strikes = [EngineStrike(1.0, "kill", 1, 0.0), EngineStrike(3.0, "kill", 1, 0.0, missed=True)]
    struck, missed = analysis.outages(orders, strikes, [StateChange(7.0, 1, "live")], 9.0)
    assert struck.silence == pytest.approx((2.5, 6.1))
    assert missed == (strikes[1], None, None, None)


def test_an_engines_state_is_kept_when_it_changes() -> None:
    """Polling adds nothing, each engine has states of its own."""
    recording = Recording()
    for at_s, engine, state in ((0.0, 1, "live"), (0.1, 2, "live"), (0.2, 1, "live"), (0.3, 1, "down")):
        recording.note_state(at_s, engine, state)
    assert recording.states == [
        *(StateChange(0.0, 1, "live"), StateChange(0.1, 2, "live"), StateChange(0.3, 1, "down"))
    ]
