"""What the Bitstamp capture of `ob-analytics` says, and the commands that make a venue repeat it. Pure.

Fetching the wheel and carrying the commands live in `simulation/replay.py`. Prices are ticks of 0.1,
quantities lots of 1e-8; a number that does not fit those exactly raises `CaptureMalformed`, never rounds.

How the capture reads:

- created: a limit order. One whose next event is its deletion with the volume unchanged never took
  liquidity, so it is post-only.
- deleted: a cancel; the venue answers that the order is closed where it is already gone.
- changed: a restatement after fills; a reduction only where it says less than volume minus trades.
- ghosts: orders of the opening snapshot that only the synthetic deletes at the end remove although
  trades went through their price. They were not in the real book, and are left out.
- market orders: an ask at price 0, and an order for an amount of cash, which has no volume: its quantity is
  what it traded.
"""

import csv
import gzip
import io
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final

from bus.messages import opposite
from engine.terms import MAX_PRICE, MAX_QUANTITY, Side

SYMBOL: Final = "BTC-USD"
TICK_SIZE: Final = Decimal("0.1")
LOT_SIZE: Final = Decimal("0.00000001")

ORDERS_MEMBER: Final = "ob_analytics/_sample_data/orders.csv.gz"
TRADES_MEMBER: Final = "ob_analytics/_sample_data/trades.csv"

_DAMAGE: Final = (
    *(zipfile.BadZipFile, RuntimeError, KeyError),
    *(OSError, EOFError, zlib.error, UnicodeDecodeError),
)
"""What reading a wheel raises that is damaged, or has not the members."""

_SIDES: Final = {"bid": Side.BUY, "ask": Side.SELL}
_ACTIONS: Final = ("created", "changed", "deleted")


class CaptureMalformed(Exception):
    """The capture holds something this reading does not know."""


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """One row of the order file. `time_ms` is the exchange's clock."""

    order: str
    time_ms: int
    side: Side
    action: str
    price: int
    volume: int


@dataclass(frozen=True, slots=True, order=True)
class Trade:
    """Two orders that met: the same record for a trade of the capture and for one of the venue."""

    buy_order: str
    sell_order: str
    price: int
    quantity: int


@dataclass(frozen=True, slots=True)
class TimedTrade:
    """A trade of the capture with the exchange's clock."""

    trade: Trade
    time_ms: int


@dataclass(frozen=True, slots=True)
class Place:
    """Enter an order; `price` 0 makes it a market order."""

    order: str
    side: Side
    price: int
    quantity: int
    post_only: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel what is left of an order."""

    order: str


@dataclass(frozen=True, slots=True)
class Reduce:
    """Lower an order's total quantity (fills included) where it stands in the queue."""

    order: str
    price: int
    quantity: int


Instruction = Place | Cancel | Reduce


@dataclass(slots=True)
class Translation:
    """The instructions in file order, and the orders that were left out."""

    instructions: list[Instruction] = field(default_factory=list)
    ghosts: set[str] = field(default_factory=set)
    outside_limits: set[str] = field(default_factory=set)
    """Priced below one tick or larger than the venue takes; none of them ever traded."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The venue's trades against the capture's, as multisets."""

    matched: int
    missed: tuple[Trade, ...]
    extra: tuple[Trade, ...]
    matched_volume: int
    volume_at_price: int
    """Volume traded at the same prices as in the capture, whoever traded it."""
    expected_volume: int


def units(text: str, unit: Decimal) -> int:
    """How many units a decimal number is. Raises `CaptureMalformed` where that is not a whole number."""
    try:
        number = Decimal(text) / unit
    except InvalidOperation:
        raise CaptureMalformed(f"{text!r:.40} is no number") from None
    if not number.is_finite() or number != number.to_integral_value() or number < 0:
        raise CaptureMalformed(f"{text} is not a whole number of {unit}")
    return int(number)


def read_capture(wheel: Path) -> tuple[list[OrderEvent], list[TimedTrade]]:
    """The order events and trades in the wheel, in file order, without installing it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            orders = gzip.decompress(archive.read(ORDERS_MEMBER)).decode()
            trades = archive.read(TRADES_MEMBER).decode()
    except _DAMAGE as error:
        raise CaptureMalformed(
            f"{wheel} cannot be read ({error}): delete it, and it is fetched again"
        ) from error
    return (
        parse_orders(csv.DictReader(io.StringIO(orders))),
        parse_trades(csv.DictReader(io.StringIO(trades))),
    )


def parse_orders(rows: Iterable[dict[str, str]]) -> list[OrderEvent]:
    """The rows of the order file."""
    return [_order_event(row) for row in rows]


def _order_event(row: dict[str, str]) -> OrderEvent:
    side, action = _SIDES.get(row["direction"]), row["action"]
    if side is None or action not in _ACTIONS:
        raise CaptureMalformed(f"an event of order {row['id']:.40} has an unknown action or direction")
    return OrderEvent(
        order=row["id"],
        time_ms=int(row["exchange_timestamp"]),
        side=side,
        action=action,
        price=units(row["price"], TICK_SIZE),
        volume=units(row["volume"], LOT_SIZE),
    )


def parse_trades(rows: Iterable[dict[str, str]]) -> list[TimedTrade]:
    """The rows of the trade file."""
    return [
        TimedTrade(
            trade=Trade(
                buy_order=row["buy_order_id"],
                sell_order=row["sell_order_id"],
                price=units(row["price"], TICK_SIZE),
                quantity=units(row["amount"], LOT_SIZE),
            ),
            time_ms=int(row["exchange_timestamp"]),
        )
        for row in rows
    ]


def translate(events: Sequence[OrderEvent], trades: Sequence[TimedTrade]) -> Translation:
    """The instructions that make a venue repeat the capture, in file order.

    Needs the whole capture, because only what became of an order shows what it is.
    """
    histories: defaultdict[str, list[OrderEvent]] = defaultdict(list)
    for event in events:
        histories[event.order].append(event)
    traded: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for timed in trades:
        for order in (timed.trade.buy_order, timed.trade.sell_order):
            traded[order].append((timed.time_ms, timed.trade.quantity))

    ghosts = find_ghosts(events, trades)
    outside = {event.order for event in events if _outside_limits(event)}
    if traders := outside & traded.keys():
        raise CaptureMalformed(f"orders outside the venue's limits traded: {sorted(traders)}")
    translation = Translation(ghosts=ghosts, outside_limits=outside)
    seen: Counter[str] = Counter()
    totals: dict[str, int] = {}
    prices: dict[str, int] = {}
    for event in events:
        seen[event.order] += 1
        if event.order in ghosts or event.order in outside:
            continue
        match event.action:
            case "created":
                place = _place(event, histories[event.order][seen[event.order] :], traded[event.order])
                totals[event.order] = place.quantity
                prices[event.order] = place.price
                translation.instructions.append(place)
            case "deleted":
                if event.order in totals:
                    translation.instructions.append(Cancel(event.order))
            case _:
                total = event.volume + sum(
                    q for time_ms, q in traded[event.order] if time_ms <= event.time_ms
                )
                if total < totals.get(event.order, 0):
                    totals[event.order] = total
                    translation.instructions.append(Reduce(event.order, prices[event.order], total))
    return translation


def find_ghosts(events: Sequence[OrderEvent], trades: Sequence[TimedTrade]) -> set[str]:
    """Orders of the opening snapshot that trades went through while only the closing deletes end them."""
    if not events:
        return set()
    opening, closing = events[0].time_ms, events[-1].time_ms
    closed_at_end = {e.order for e in events if e.action == "deleted" and e.time_ms == closing}
    lowest = min((t.trade.price for t in trades), default=MAX_PRICE)
    highest = max((t.trade.price for t in trades), default=0)
    return {
        event.order
        for event in events
        if event.time_ms == opening
        and event.action == "created"
        and event.order in closed_at_end
        and not _is_market(event)
        and (event.price > lowest if event.side is Side.BUY else event.price < highest)
    }


def _is_market(event: OrderEvent) -> bool:
    # The exchange reports a market sale as an ask at 0, and an order for an amount of cash without volume.
    return event.volume == 0 or (event.side is Side.SELL and event.price == 0)


def _outside_limits(event: OrderEvent) -> bool:
    priced = 1 <= event.price <= MAX_PRICE
    return (
        event.action == "created" and not _is_market(event) and not (priced and event.volume <= MAX_QUANTITY)
    )


def _place(event: OrderEvent, later: Sequence[OrderEvent], traded: list[tuple[int, int]]) -> Place:
    if _is_market(event):
        quantity = event.volume or sum(quantity for _, quantity in traded)
        return Place(event.order, event.side, 0, quantity, post_only=False)
    ending = later[0] if later else None
    untouched = ending is not None and ending.action == "deleted" and ending.volume == event.volume
    return Place(event.order, event.side, event.price, event.volume, post_only=untouched)


def first_part(
    translation: Translation, trades: Sequence[TimedTrade], limit: int
) -> tuple[list[Instruction], list[Trade]]:
    """The first `limit` instructions (all when 0) and the trades they must make.

    Two orders meet when the later one arrives, so a trade belongs to a part that places both.
    """
    part = translation.instructions[:limit] if limit else translation.instructions
    placed = {step.order for step in part if isinstance(step, Place)}
    expected = [t.trade for t in trades if t.trade.buy_order in placed and t.trade.sell_order in placed]
    return part, expected


def windows(instructions: Sequence[Instruction], largest: int) -> Iterator[list[Instruction]]:
    """Cut the instructions, in order, where it matters which of two engines hears its part first.

    Inside a window nothing depends on anything that another engine is told: a post-only order looks only at
    the other side, at its price or better, so it may share a window with whatever does not touch that. An
    order that may take stands alone.
    """
    prices: dict[str, tuple[Side, int]] = {}
    window: list[Instruction] = []
    touched = _Touched()
    for step in instructions:
        if isinstance(step, Place):
            prices[step.order] = (step.side, step.price)
        side, price = prices[step.order]
        looks = isinstance(step, Place)
        alone = isinstance(step, Place) and not step.post_only
        if window and (alone or len(window) >= largest or touched.conflicts(side, price, looks=looks)):
            yield window
            window, touched = [], _Touched()
        window.append(step)
        touched.add(side, price, looks=looks)
        if alone:
            yield window
            window, touched = [], _Touched()
    if window:
        yield window


class _Touched:
    """The best prices that a window's instructions changed or looked from, so far, as higher-is-better."""

    def __init__(self) -> None:
        self._changed: dict[int, int] = {Side.BUY: -MAX_PRICE, Side.SELL: -MAX_PRICE}
        self._looked: dict[int, int] = {Side.BUY: -MAX_PRICE, Side.SELL: -MAX_PRICE}

    def conflicts(self, side: Side, price: int, *, looks: bool) -> bool:
        """Whether the other side's part of the window and this instruction touch each other."""
        met = self._changed if looks else self._looked
        # A bid at p and an ask at q meet where p >= q, that is where p + (-q) >= 0.
        return _rank(side, price) + met[opposite(side)] >= 0

    def add(self, side: Side, price: int, *, looks: bool) -> None:
        """Take an instruction into the window."""
        rank = _rank(side, price)
        self._changed[side] = max(self._changed[side], rank)
        if looks:
            self._looked[side] = max(self._looked[side], rank)


def _rank(side: Side, price: int) -> int:
    return price if side is Side.BUY else -price


def compare(expected: Iterable[Trade], made: Iterable[Trade]) -> Comparison:
    """Which trades of the capture the venue made, which it did not, and which it made besides."""
    wanted, got = Counter(expected), Counter(made)
    both = wanted & got
    at_price = _volumes(wanted) & _volumes(got)
    return Comparison(
        matched=both.total(),
        missed=tuple(sorted((wanted - got).elements())),
        extra=tuple(sorted((got - wanted).elements())),
        matched_volume=sum(trade.quantity * count for trade, count in both.items()),
        volume_at_price=at_price.total(),
        expected_volume=sum(trade.quantity * count for trade, count in wanted.items()),
    )


def _volumes(trades: Counter[Trade]) -> Counter[int]:
    """Lots traded at each price."""
    volumes: Counter[int] = Counter()
    for trade, count in trades.items():
        volumes[trade.price] += trade.quantity * count
    return volumes
