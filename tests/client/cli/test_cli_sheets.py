import re
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from client import (
    Book,
    BookLevel,
    BookOrder,
    EngineQuantity,
    EngineRole,
    EngineState,
    EngineStatus,
    Fill,
    Instrument,
    Liquidity,
    OrderResult,
    OrderState,
    OrderStatus,
    OrderType,
    Position,
    PreventedMatch,
    RejectReason,
    SelfTradePrevention,
    Side,
    TimeInForce,
    results,
)
from client.cli import sheets

PAGE = Path(__file__).parents[3] / "docs" / "command-line.md"
FILL = Fill(
    sequence=7,
    execution_id=5,
    order_id=3,
    client_order_id="mine",
    symbol="BTC-USD",
    side=Side.SELL,
    price=Decimal("65000.10"),
    quantity=Decimal("0E-8") + Decimal("0.5"),
    liquidity=Liquidity.TAKER,
    cumulative_quantity=Decimal("0.5"),
    leaves_quantity=Decimal("0E-8"),
    engine=2,
    timestamp_ns=1_000_000_002_000_003_000,
    fee=Decimal(0),
    contra_order_id=4,
)
ORDER = OrderState(
    order_id=3,
    client_order_id="[red]mine",
    symbol="AAPL",
    side=Side.BUY,
    type=OrderType.LIMIT,
    time_in_force=TimeInForce.GTC,
    price=Decimal("100.00"),
    quantity=Decimal(10),
    cumulative_quantity=Decimal(4),
    leaves_quantity=Decimal(6),
    cancelled_quantity=Decimal(0),
    status=OrderStatus.PARTIALLY_FILLED,
    average_price=Decimal("99.9"),
    post_only=True,
    self_trade_prevention=SelfTradePrevention.NONE,
)


def texts(row: tuple[sheets.Cell, ...]) -> list[str]:
    """The texts of a row, without their colours."""
    return [cell if isinstance(cell, str) else cell[0] for cell in row]


def test_json_has_decimal_strings_and_words() -> None:
    """Numbers with decimals are strings in plain digits, words are words, what is absent is null."""
    plain = sheets.plain(FILL)
    assert list(plain) == list(Fill.__struct_fields__)
    assert (plain["price"], plain["side"], plain["sequence"]) == ("65000.10", "sell", 7)
    assert plain["leaves_quantity"] == "0.00000000"  # and not 0E-8
    refused = OrderResult("", 0, OrderStatus.REJECTED, RejectReason.ORDER_CLOSED, "closed")
    assert sheets.plain(refused)["reject_reason"] == "order_closed"
    assert sheets.plain(refused)["order_id"] is None
    assert sheets.plain(msgspec.structs.replace(refused, order_id=7))["order_id"] == 7
    assert sheets.plain({"a": [None, True, (Decimal(1),)]}) == {"a": [None, True, ["1"]]}


def test_the_page_lists_the_fields_of_every_answer() -> None:
    """docs/command-line.md names the fields of each answer, in their order."""
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| (\w+(?:, \w+)+) \|$", PAGE.read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == answers(results)
    for name, fields in rows:
        struct: type[msgspec.Struct] = getattr(results, name)
        assert tuple(fields.split(", ")) == struct.__struct_fields__, name


def answers(module: ModuleType) -> set[str]:
    """The names of the structs that a module defines."""
    return {
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and value.__module__ == module.__name__
    }


def result(**more: Any) -> OrderResult:
    """An answer about order 3."""
    fields: dict[str, Any] = {"client_order_id": "mine", "order_id": 3, "status": OrderStatus.NEW}
    return OrderResult(**(fields | more))


def test_an_answer_reads_as_sentences() -> None:
    """Status, what was asked, each fill with its engine, what is left and where it is."""
    assert sheets.result_lines(result(leaves_quantity=Decimal(10)), "buy 10 AAPL at 1") == [
        "NEW  buy 10 AAPL at 1  order 3",
        "  10 left, resting",
    ]
    filled = result(
        status=OrderStatus.PENDING,
        cumulative_quantity=Decimal("0.5"),
        leaves_quantity=Decimal(2),
        average_price=Decimal("65000.10"),
        fills=(FILL,),
    )
    assert sheets.result_lines(filled, "") == [
        "PENDING  order 3",
        "  0.50000000 at 65000.10 on E2",
        "  filled 0.5 at 65000.10 on average",
        "  2 left, out on another engine",
    ]


def test_a_refusal_names_reason_text_and_way_out() -> None:
    """The reason has its name of the contract, and what was asked for stands by it."""
    refused = result(status=OrderStatus.REJECTED, reject_reason=RejectReason.INVALID_PRICE, reject_text="no")
    first, asked, hint = sheets.result_lines(refused, "buy 1 AAPL at -1")
    assert (first, asked) == ("REFUSED  INVALID_PRICE: no", "  asked for: buy 1 AAPL at -1")
    assert "price" in hint
    odd = result(status=OrderStatus.REJECTED, reject_reason=RejectReason.OTHER, reject_text="new")
    assert sheets.result_lines(odd, "") == ["REFUSED  OTHER: new"]


@pytest.mark.parametrize(
    ("reason", "text", "units"),
    [
        (
            "POST_ONLY_WOULD_CROSS",
            "an order at 18952 would trade with the best price 18952",
            ["ticks of 0.01"],
        ),
        ("INVALID_QUANTITY", "quantity 0 must be 1 to 9 lots", ["lots of 0.00000001"]),
        (
            "NOTIONAL_TOO_LARGE",
            "price x quantity 10 must be at most 9",
            ["ticks of 0.01", "lots of 0.00000001"],
        ),
        ("DUPLICATE_CLIENT_ORDER_ID", "'a' was used with symbol 'A', not 'B'", []),
        ("UNSUPPORTED", "stop_price 5 is not offered yet: leave it 0", []),
    ],
)
def test_a_refusal_in_ticks_and_lots_is_told_with_their_sizes(
    reason: str, text: str, units: list[str]
) -> None:
    """Who typed 189.52 is told what the engine's 18952 counts; what has no such number has no such line."""
    listed = Instrument("BTC-USD", Decimal("0.01"), Decimal("1E-8"))
    refused = result(status=OrderStatus.REJECTED, reject_reason=RejectReason[reason], reject_text=text)
    assert sheets.speaks_of_units(refused) == bool(units)
    _, *lines, hint = sheets.result_lines(refused, "", listed)
    assert [size in line for line in lines for size in units] == [True] * len(units)
    assert sheets.result_lines(refused, "")[1:] == [hint]
    shares = Instrument("AAPL", Decimal(1), Decimal(1))
    assert sheets.result_lines(refused, "", shares)[1:] == [hint]
    assert not sheets.speaks_of_units(result())


def test_one_of_many_is_one() -> None:
    """One is singular, all else is plural, a number without its empty places."""
    assert [sheets.counted(count, "fault") for count in (0, 1, 1.0, 1.5)] == [
        *("0 faults", "1 fault", "1 fault", "1.5 faults"),
    ]
    assert [sheets.counted(count, "batch", "batches") for count in (1, 2_000_000)] == [
        "1 batch",
        "2000000 batches",
    ]


def test_a_repeated_and_a_prevented_order_say_so() -> None:
    """A duplicate answer and a match with an order of one's own are not passed over."""
    match = PreventedMatch("AAPL", 3, 2, Decimal("9.00"), Decimal(1), SelfTradePrevention.CANCEL_NEWEST)
    lines = sheets.result_lines(result(duplicate=True, prevented=(match,)), "")
    assert "earlier command" in lines[0]
    assert lines[1] == "  not traded with own order 2: 1 at 9.00"


def test_orders_are_rows() -> None:
    """One row an order, with what makes it special beside its status."""
    (row,) = sheets.orders_sheet([ORDER]).rows
    assert texts(row) == [
        *("3", "[red]mine", "buy", "10", "AAPL", "100.00", "4", "6"),
        "partially filled (post-only)",
    ]
    market = msgspec.structs.replace(
        ORDER, type=OrderType.MARKET, time_in_force=TimeInForce.IOC, post_only=False
    )
    assert texts(sheets.orders_sheet([market]).rows[0])[5:] == ["market", "4", "6", "partially filled (ioc)"]


def test_a_fill_is_a_row_and_a_line() -> None:
    """Both say when, what, at which price, where and as what."""
    assert texts(sheets.fill_cells(FILL))[:4] == ["7", "01:46:42.000003", "sell", "0.50000000"]
    assert sheets.fill_line(FILL) == (
        "01:46:42.000003  fill 7: sold 0.50000000 BTC-USD at 65000.10 on E2 as taker  "
        "order 3, 0.00000000 left"
    )


def test_a_book_is_a_ladder() -> None:
    """Asks stand above bids, the best prices meet in the middle, shares and own orders are shown."""
    bid = BookLevel(
        Decimal("9.00"), Decimal(3), 2, orders=(BookOrder(1, Decimal(1)), BookOrder(2, Decimal(2)))
    )
    asks = (BookLevel(Decimal("10.00"), Decimal(5), 1), BookLevel(Decimal("11.00"), Decimal(6), 1))
    sheet = sheets.book_sheet(Book("AAPL", 4, (bid,), asks), "here", own={2})
    assert [texts(row) for row in sheet.rows] == [
        ["", "11.00", "6", "1", ""],
        ["", "10.00", "5", "1", ""],
        ["3", "9.00", "", "2", "1:1  2:2*"],
    ]
    shared = BookLevel(Decimal("9.00"), Decimal(3), 2, engines=(EngineQuantity(2, Decimal(3), 2),))
    sheet = sheets.book_sheet(Book("AAPL", 0, (shared,), ()), "here")
    assert (sheet.columns[-1], texts(sheet.rows[0])[-1]) == ("engines", "E2 3")
    assert sheets.book_sheet(Book("AAPL", 0, (), ()), "here").note == "nobody bids or asks"


def test_engines_show_role_state_and_lag() -> None:
    """A primary lags in time, with the reason when it is not live; a standby lags in batches."""
    away = EngineStatus(1, EngineRole.PRIMARY, EngineState.DOWN, 2, "a:1", 1_500_000, 9, 0, "silent")
    standby = EngineStatus(1, EngineRole.STANDBY, None, 2, "a:2", 0, 8, 1, "")
    first, second = (texts(row) for row in sheets.engines_sheet([away, standby]).rows)
    assert first == ["E1", "primary", "down: silent", "2", "9", "1.5 ms", "a:1"]
    assert second == ["E1", "standby", "stands by", "2", "8", "1 batch", "a:2"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("100.00", "100.00"),
        ("0", "0"),
        ("0.00", "0.00"),
        ("100.33333333333334", "100.333333333"),
        ("1E+3", "1000"),
    ],
)
def test_averages_are_rounded_for_the_eye(value: str, shown: str) -> None:
    """The places that the library gives, no digits that mean nothing, no exponents."""
    assert sheets.average(Decimal(value)) == shown


def test_positions_are_rows() -> None:
    """What is held, at which average, with what was made of it."""
    held = Position("AAPL", Decimal(-5), Decimal("101.255"), Decimal("2.00"), Decimal(0))
    (row,) = sheets.positions_sheet([held]).rows
    assert texts(row) == ["AAPL", "-5", "101.255", "2.00", "0"]
    assert row[1] == ("-5", "red")
