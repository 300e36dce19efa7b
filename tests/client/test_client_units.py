"""What a user may write as price, quantity and choice, what reaches the wire, and what its answers become."""

from decimal import Decimal, localcontext

import pytest
from matchbus.v1 import matchbus_pb2 as pb

from client import (
    EngineRole,
    EngineStatus,
    Fill,
    Liquidity,
    OrderResult,
    OrderState,
    OrderStatus,
    OrderType,
    PreventedMatch,
    RejectReason,
    SelfTradePrevention,
    Side,
    TimeInForce,
    results,
    terms,
)
from client.units import Instrument

AAPL = Instrument(symbol="AAPL", tick_size=Decimal("0.01"), lot_size=Decimal("0.1"))


@pytest.mark.parametrize("price", [Decimal("101.25"), "101.25", "101.250", Decimal("1.0125E+2")])
def test_one_price_however_written(price: Decimal | str) -> None:
    """A price means the same ticks in every allowed spelling."""
    assert AAPL.ticks(price) == 10_125
    assert str(AAPL.price(10_125)) == "101.25"


def test_whole_units_may_be_ints() -> None:
    """An int counts whole units of price and quantity, not ticks and lots."""
    assert (AAPL.ticks(7), AAPL.lots(7)) == (700, 70)


def test_float_is_refused_with_advice() -> None:
    """A float raises a TypeError that says what to write instead."""
    with pytest.raises(TypeError, match=r'write "101.25" or Decimal\("101.25"\)'):
        AAPL.ticks(101.25)  # type: ignore[arg-type]  # that is the test
    for value in (float("nan"), float("-inf")):
        with pytest.raises(TypeError, match=f"price is a float, and {value} is no number that AAPL"):
            AAPL.ticks(value)  # type: ignore[arg-type]  # that is the test
    with pytest.raises(TypeError, match="bool"):
        AAPL.lots(True)


def test_what_was_read_before_excuses_nothing() -> None:
    """A float, a bool and what is no number are refused, also where an equal number was taken before."""
    assert AAPL.lots(1) == AAPL.lots("1") == AAPL.lots(Decimal(1)) == 10
    for value in (True, 1.0, [1], None):
        with pytest.raises(TypeError, match=f"quantity is a {type(value).__name__}"):
            AAPL.lots(value)  # type: ignore[arg-type]  # that is the test


def test_off_the_grid_is_refused_not_rounded() -> None:
    """A price off the tick or a quantity off the lot raises a ValueError that names the size."""
    for price in ("101.255", "-101.255"):
        with pytest.raises(ValueError, match=r"tick size is 0\.01"):
            AAPL.ticks(price)
    with pytest.raises(ValueError, match=r"lot size is 0\.1"):
        AAPL.lots("0.05")


@pytest.mark.parametrize("price", ["NaN", "sNaN", "Infinity", "ten", "", "1E+60", "1E+17"])
def test_what_is_no_price_is_refused(price: str) -> None:
    """Words, infinities and what does not fit the wire raise a ValueError."""
    with pytest.raises(ValueError, match="price"):
        AAPL.ticks(price)


@pytest.mark.parametrize("price", ["NaN", "sNaN", "-Infinity"])
def test_a_calculation_that_went_wrong_is_no_number(price: str) -> None:
    """What it leaves behind is called that, in a Decimal as in a str."""
    for written in (price, Decimal(price)):
        with pytest.raises(ValueError, match="is no number that AAPL could trade at"):
            AAPL.ticks(written)


def test_refusals_write_numbers_out() -> None:
    """No exponent is told where the number is short without one; one that fills a screen is cut."""
    bitcoin = Instrument(symbol="BTC-USD", tick_size=Decimal("0.01"), lot_size=Decimal("0.00000001"))
    with pytest.raises(ValueError, match=r"quantity 0\.000000002500 of BTC-USD .* lot size is 0\.00000001$"):
        bitcoin.lots(Decimal("2.500E-9"))
    with pytest.raises(ValueError, match=r"quantity 1E-9999 of BTC-USD is not on a lot"):
        bitcoin.lots("1E-9999")


@pytest.mark.parametrize(
    ("ticks", "written"),
    [
        (10_000.0, "100.00"),
        (10_010.5, "100.105"),
        (0.0, "0.00"),
        (10_000.25, "100.0025"),
        (1e13, "100000000000.00"),
    ],
)
def test_an_average_has_the_places_of_the_tick(ticks: float, written: str) -> None:
    """And more where they say something."""
    assert str(AAPL.average(ticks)) == written
    assert str(Instrument("X", Decimal(5), Decimal(1)).average(2.0)) == "10"


def test_what_no_message_holds_is_refused_with_the_limit() -> None:
    """A number beyond the wire is told what an order may have."""
    with pytest.raises(
        ValueError, match=rf"quantity 1{'0' * 30} of AAPL is too large: at most 100000000000\.0, 10\^12 lots"
    ):
        AAPL.lots("1E+30")
    assert AAPL.ticks("92233720368547758.07") == 2**63 - 1
    for price in ("92233720368547758.08", "1E+30", "-1E+30"):
        with pytest.raises(ValueError, match=r"at most 10000000000\.00, 10\^12 ticks"):
            AAPL.ticks(price)


def test_conversion_ignores_the_users_decimal_context() -> None:
    """A user's own decimal precision does not change what is sent."""
    with localcontext() as context:
        context.prec = 3
        assert AAPL.ticks("123456.78") == 12_345_678
        assert AAPL.price(12_345_678) == Decimal("123456.78")


def test_unknown_word_names_the_choices() -> None:
    """A misspelt choice raises a ValueError that lists the right ones."""
    with pytest.raises(ValueError, match="one of buy, sell"):
        terms.number_of(terms.SIDE_NUMBERS, "bid", "side")


def test_every_field_of_an_answer_has_its_place() -> None:
    """A fill and a prevented match in one, all their numbers different."""
    fill = pb.Fill(
        sequence=1, execution_id=2, order_id=3, client_order_id="a", symbol="AAPL", side=pb.SIDE_SELL,
        price=4, quantity=5, liquidity=pb.LIQUIDITY_MAKER, cumulative_quantity=6, leaves_quantity=7,
        engine_id=8, timestamp_ns=9, fee=10, contra_order_id=11,
    )  # fmt: skip
    match = pb.PreventedMatch(
        symbol="AAPL", taker_order_id=12, maker_order_id=13, price=14, quantity=15,
        mode=pb.SELF_TRADE_PREVENTION_DECREMENT,
    )  # fmt: skip
    reply = pb.OrderReply(
        client_order_id="a", order_id=3, status=pb.ORDER_STATUS_PARTIALLY_FILLED, cumulative_quantity=6,
        leaves_quantity=7, average_price=4, fills=[fill], prevented=[match], fills_omitted=16,
    )  # fmt: skip
    assert results.order_result(reply, AAPL) == OrderResult(
        client_order_id="a",
        order_id=3,
        status=OrderStatus.PARTIALLY_FILLED,
        cumulative_quantity=Decimal("0.6"),
        leaves_quantity=Decimal("0.7"),
        average_price=Decimal("0.04"),
        fills=(
            Fill(
                1, 2, 3, "a", "AAPL", Side.SELL, Decimal("0.04"), Decimal("0.5"), Liquidity.MAKER,
                Decimal("0.6"), Decimal("0.7"), 8, 9, Decimal("0.010"), 11,
            ),
        ),
        prevented=(
            PreventedMatch(
                "AAPL", 12, 13, Decimal("0.14"), Decimal("1.5"), SelfTradePrevention.DECREMENT
            ),
        ),
        fills_omitted=16,
    )  # fmt: skip


def test_every_field_of_an_order_has_its_place() -> None:
    """All its numbers are different."""
    message = pb.OrderState(
        order_id=1, client_order_id="a", symbol="AAPL", side=pb.SIDE_SELL, type=pb.ORDER_TYPE_MARKET,
        time_in_force=pb.TIME_IN_FORCE_IOC, price=2, quantity=9, cumulative_quantity=3, leaves_quantity=4,
        cancelled_quantity=5, status=pb.ORDER_STATUS_PENDING, average_price=6, post_only=True,
        self_trade_prevention=pb.SELF_TRADE_PREVENTION_CANCEL_BOTH,
    )  # fmt: skip
    assert results.order_state(message, AAPL) == OrderState(
        1, "a", "AAPL", Side.SELL, OrderType.MARKET, TimeInForce.IOC, Decimal("0.02"), Decimal("0.9"),
        Decimal("0.3"), Decimal("0.4"), Decimal("0.5"), OrderStatus.PENDING, Decimal("0.06"), True,
        SelfTradePrevention.CANCEL_BOTH,
    )  # fmt: skip


def test_every_field_of_an_engine_has_its_place() -> None:
    """One that an exchange gives no role reigns; a standby has no state."""
    message = pb.Engine(engine=1, epoch=2, address="a", lag_ns=3, reason="r", batch_number=4, lag_batches=5)
    expected = EngineStatus(1, EngineRole.PRIMARY, None, 2, "a", 3, 4, 5, "r")
    assert results.engine_status(message) == expected


def test_a_reason_of_tomorrow_is_another_one() -> None:
    """A refusal that this library does not know stays a refusal, with its text."""
    reply = pb.OrderReply(status=pb.ORDER_STATUS_REJECTED, reject_text="new")
    reply.reject_reason = 999  # type: ignore[assignment]  # that is the test
    result = results.order_result(reply, None)
    assert (result.reject_reason, result.reject_text, result.rejected) == (RejectReason.OTHER, "new", True)
