import csv
import gzip
import io
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from engine.terms import MAX_QUANTITY, Side
from simulation import bitstamp
from simulation.bitstamp import (
    Cancel,
    CaptureMalformed,
    Instruction,
    OrderEvent,
    Place,
    Reduce,
    TimedTrade,
    Trade,
    compare,
    find_ghosts,
    first_part,
    read_capture,
    translate,
    units,
    windows,
)

OPEN, CLOSE = 1_000, 9_000


def event(
    order: str, action: str, price: int, volume: int, side: Side = Side.BUY, at: int = 2_000
) -> OrderEvent:
    """One row of the order file."""
    return OrderEvent(order, at, side, action, price, volume)


def trade(buy: str, sell: str, price: int, quantity: int, at: int = 3_000) -> TimedTrade:
    """One row of the trade file."""
    return TimedTrade(Trade(buy, sell, price, quantity), at)


def instructions(events: list[OrderEvent], *trades: TimedTrade) -> list[Instruction]:
    """What the capture of these rows becomes."""
    return translate(events, trades).instructions


def test_order_deleted_untouched_is_post_only() -> None:
    """An order whose next event deletes it with its volume unchanged is post-only, then cancelled."""
    events = [event("a", "created", 100, 7), event("a", "deleted", 100, 7)]
    assert instructions(events) == [Place("a", Side.BUY, 100, 7, post_only=True), Cancel("a")]


def test_order_that_traded_is_a_plain_limit_order() -> None:
    """An order deleted with another volume than it came with is no post-only order."""
    events = [event("a", "created", 100, 7), event("a", "deleted", 100, 0)]
    assert instructions(events, trade("a", "b", 100, 7))[0] == Place("a", Side.BUY, 100, 7, post_only=False)


def test_change_after_a_fill_is_a_restatement() -> None:
    """A change that says what is left after a trade sends nothing."""
    events = [
        event("a", "created", 100, 7),
        event("a", "changed", 100, 5, at=3_000),
        event("a", "deleted", 100, 5, at=4_000),
    ]
    steps = instructions(events, trade("a", "b", 100, 2, at=3_000))
    assert steps == [Place("a", Side.BUY, 100, 7, post_only=False), Cancel("a")]


def test_change_below_what_is_left_is_a_reduction_to_a_total() -> None:
    """A change that says less than volume minus trades lowers the total to trades plus what it says."""
    events = [
        event("a", "created", 100, 7),
        event("a", "changed", 100, 3, at=3_000),
        event("a", "deleted", 100, 3, at=4_000),
    ]
    steps = instructions(events, trade("a", "b", 100, 2, at=3_000))
    assert steps[1] == Reduce("a", 100, 5)


def test_cash_order_is_a_market_order_of_what_it_traded() -> None:
    """An order without volume takes its quantity from its trades and has no price."""
    events = [event("a", "created", 9_999_999_990, 0), event("a", "deleted", 9_999_999_990, 0)]
    steps = instructions(events, trade("a", "b", 100, 4), trade("a", "c", 101, 2))
    assert steps[0] == Place("a", Side.BUY, 0, 6, post_only=False)


def test_ask_at_zero_is_a_market_order() -> None:
    """A sale priced 0 is a market order of its volume."""
    events = [event("a", "created", 0, 5, Side.SELL), event("a", "deleted", 0, 5, Side.SELL)]
    assert instructions(events)[0] == Place("a", Side.SELL, 0, 5, post_only=False)


def test_orders_outside_the_limits_are_left_out() -> None:
    """A bid below one tick and an order above the largest quantity are left out with all their events."""
    events = [
        event("low", "created", 0, 5),
        event("large", "created", 10, MAX_QUANTITY + 1),
        event("low", "deleted", 0, 5),
        event("large", "deleted", 10, MAX_QUANTITY + 1),
    ]
    translation = translate(events, [])
    assert translation.instructions == []
    assert translation.outside_limits == {"low", "large"}


def test_order_outside_the_limits_that_traded_is_refused() -> None:
    """Leaving out an order that traded would falsify the replay: it is refused."""
    events = [event("a", "created", 10, MAX_QUANTITY + 1), event("a", "deleted", 10, 0)]
    with pytest.raises(CaptureMalformed, match="limits traded"):
        translate(events, [trade("a", "b", 10, MAX_QUANTITY + 1)])


def test_deletion_of_an_unknown_order_sends_nothing() -> None:
    """An order that was gone before the snapshot has no creation; its deletion is ignored."""
    assert instructions([event("a", "deleted", 100, 1)]) == []


def test_ghosts_are_found_by_the_trades_that_went_through_them() -> None:
    """Only an opening order that lasts to the end while trades went through its price is a ghost."""
    events = [
        event("ghost", "created", 105, 1, at=OPEN),
        event("behind", "created", 95, 1, at=OPEN),
        event("left early", "created", 105, 1, at=OPEN),
        event("left early", "deleted", 105, 1, at=4_000),
        event("came later", "created", 105, 1, at=5_000),
        event("ghost", "deleted", 105, 1, at=CLOSE),
        event("behind", "deleted", 95, 1, at=CLOSE),
        event("came later", "deleted", 105, 1, at=CLOSE),
    ]
    trades = [trade("x", "y", 100, 1)]
    assert find_ghosts(events, trades) == {"ghost"}
    placed = [s.order for s in translate(events, trades).instructions if isinstance(s, Place)]
    assert placed == ["behind", "left early", "came later"]


@pytest.mark.parametrize("text", ["0.15", "abc", "NaN", "-1", "Infinity"])
def test_numbers_off_the_unit_are_refused(text: str) -> None:
    """A number that is not a whole count of the unit is refused, never rounded."""
    with pytest.raises(CaptureMalformed):
        units(text, Decimal("0.1"))


def test_scientific_numbers_are_exact() -> None:
    """The capture writes small volumes with an exponent."""
    assert units("6.377e-05", bitstamp.LOT_SIZE) == 6377


def test_first_part_expects_the_trades_of_orders_it_places() -> None:
    """A trade belongs to a part of the capture exactly when the part places both of its orders."""
    events = [
        event("s", "created", 100, 2, Side.SELL),
        event("b1", "created", 100, 1),
        event("b2", "created", 100, 1),
        event("s", "deleted", 100, 0, Side.SELL),
    ]
    trades = [trade("b1", "s", 100, 1), trade("b2", "s", 100, 1)]
    translation = translate(events, trades)
    part, expected = first_part(translation, trades, 2)
    assert (len(part), expected) == (2, [trades[0].trade])
    assert first_part(translation, trades, 0) == (translation.instructions, [t.trade for t in trades])


def test_comparison_counts_repeats() -> None:
    """The same trade made once too often is extra, once too seldom is missed."""
    once = Trade("a", "b", 100, 1)
    other = Trade("c", "d", 101, 2)
    assert compare([once, other], [once, once]) == bitstamp.Comparison(
        1, (other,), (once,), matched_volume=1, volume_at_price=1, expected_volume=3
    )


def test_wheel_is_read_as_an_archive(tmp_path: Path) -> None:
    """Orders and trades come out of the wheel in file order, in ticks and lots."""
    orders = io.StringIO()
    writer = csv.writer(orders)
    writer.writerow(["id", "timestamp", "exchange_timestamp", "price", "volume", "action", "direction"])
    writer.writerow(["7", "12", "11", "78318.0", "0.5", "created", "ask"])
    trades = "trade_id,timestamp,exchange_timestamp,price,amount,buy_order_id,sell_order_id,side\n"
    trades += "1,22,21,78318.0,1e-08,8,7,buy\n"
    wheel = tmp_path / "capture.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(bitstamp.ORDERS_MEMBER, gzip.compress(orders.getvalue().encode()))
        archive.writestr(bitstamp.TRADES_MEMBER, trades)
    events, made = read_capture(wheel)
    assert events == [OrderEvent("7", 11, Side.SELL, "created", 783_180, 50_000_000)]
    assert made == [TimedTrade(Trade("8", "7", 783_180, 1), 21)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"<html>",
        lambda whole: whole[:-30],
        lambda whole: whole.replace(b"orders", b"others"),
        lambda whole: whole.replace(b"PK\1\2\x14\3\x14\0\0\0\0", b"PK\1\2\x14\3\x14\0\0\0\xc8"),
    ],
    ids=["no archive", "cut off", "without a member", "packed in an unknown way"],
)
def test_a_damaged_wheel_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Whatever is wrong with it, one sentence says that it can be fetched again."""
    wheel = tmp_path / "capture.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(bitstamp.ORDERS_MEMBER, gzip.compress(b"id\n"))
        archive.writestr(bitstamp.TRADES_MEMBER, "trade_id\n")
    assert read_capture(wheel) == ([], [])
    wheel.write_bytes(damage(wheel.read_bytes()))
    with pytest.raises(CaptureMalformed, match=r"/capture\.whl cannot be read \(.*\): delete it, and it is"):
        read_capture(wheel)


def test_windows_keep_apart_what_touches() -> None:
    """What the answer to a post-only order depends on, and an order that may take, is in another window."""

    def post(order: str, side: Side, price: int) -> Place:
        return Place(order, side, price, 1, post_only=True)

    low_bid, high_bid = post("low bid", Side.BUY, 90), post("high bid", Side.BUY, 105)
    ask, taker = post("ask", Side.SELL, 100), Place("taker", Side.BUY, 100, 1, post_only=False)
    steps: list[Instruction] = [low_bid, ask, Cancel("low bid"), high_bid, taker, Cancel("ask"), high_bid]
    assert list(windows(steps, 10)) == [
        [low_bid, ask, Cancel("low bid")],
        [high_bid],
        [taker],
        [Cancel("ask")],
        [high_bid],
    ]


def test_windows_have_a_largest_size() -> None:
    """A window ends at the size given, and windows together are the instructions in order."""
    steps: list[Instruction] = [Place(str(n), Side.BUY, 90, 1, post_only=True) for n in range(7)]
    parts = list(windows(steps, 3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [step for part in parts for step in part] == steps
