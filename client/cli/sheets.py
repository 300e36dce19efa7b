"""Answers as people read them and as programs do: pure, no printing here.

A `Sheet` is a table before it is drawn. `plain` is the JSON of any answer: the names of the library's fields
(`client/results.py`), prices, quantities and money as decimal strings, words in lower case, None as null.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Context as Rounding
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

import msgspec

from client import (
    Book,
    BookLevel,
    EngineState,
    EngineStatus,
    Fill,
    Instrument,
    OrderResult,
    OrderState,
    OrderStatus,
    Position,
)
from client.cli.failures import WHAT_TO_DO

Cell = str | tuple[str, str]
"""What stands in a table: a text, or a text with its colour."""

_AVERAGE: Final = Rounding(prec=12)
_NS_PER_MS: Final = 1e6
_EPOCH: Final = datetime.fromtimestamp(0, UTC)

_SIDE_STYLES: Final = {"buy": "green", "sell": "red"}
_STATE_STYLES: Final = {"live": "green", "suspect": "yellow", "down": "red"}
_IN_UNITS: Final = re.compile(r"\b(price|quantity)\b(?=.*\d)")
"""Where a refusal's text gives a price in ticks or a quantity in lots."""

_PAST: Final = {"buy": "bought", "sell": "sold"}


@dataclass(frozen=True)
class Sheet:
    """A table. Columns that start with `>` are flushed right; `note` stands below."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    note: str = ""


def plain(answer: Any) -> Any:
    """The answer in terms of JSON."""
    match answer:
        case OrderResult(order_id=0):  # refused before there was an order
            return plain(msgspec.structs.asdict(answer) | {"order_id": None})
        case msgspec.Struct():
            return {name: plain(getattr(answer, name)) for name in answer.__struct_fields__}
        case Decimal():
            return f"{answer:f}"
        case StrEnum():
            return str(answer)
        case Mapping():
            return {str(key): plain(value) for key, value in answer.items()}
        case list() | tuple():
            return [plain(value) for value in answer]
        case _:
            return answer


def average(value: Decimal) -> str:
    """An average price: the venue gives it for display, with more digits than mean anything."""
    return f"{_AVERAGE.plus(value):f}"


def counted(count: float, one: str, many: str = "") -> str:
    """So many of something: `1 command`, `2 commands`; `many` where the plural is not an added `s`."""
    number = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{number} {one if count == 1 else many or f'{one}s'}"


def time_utc(ns: int) -> str:
    """A time of day, to the microsecond. Raises OverflowError."""
    return f"{_EPOCH + timedelta(microseconds=ns // 1000):%H:%M:%S.%f}"


def speaks_of_units(result: OrderResult) -> bool:
    """Whether it is a refusal with prices in ticks or quantities in lots: the engine knows no others."""
    return result.reject_reason is not None and _IN_UNITS.search(result.reject_text) is not None


def result_lines(result: OrderResult, what: str, instrument: Instrument | None = None) -> list[str]:
    """The engine's answer to one command, in sentences; `what` says what was asked for.

    With the `instrument` a refusal that speaks of ticks and lots is told with their sizes.
    """
    if result.reject_reason is not None:
        lines = [f"REFUSED  {result.reject_reason.name}: {result.reject_text}"]
        lines += [f"  asked for: {what}"] if what else []
        lines += _units(result.reject_text, instrument) if instrument is not None else []
        hint = WHAT_TO_DO.get(result.reject_reason)
        return [*lines, f"  {hint}"] if hint else lines
    head = [result.status.name.replace("_", " ")]
    head += [what] if what else []
    head += [f"order {result.order_id}"] if result.order_id else []
    head += ["(the answer to an earlier command with this id)"] if result.duplicate else []
    lines = ["  ".join(head)]
    lines += [f"  {fill.quantity:f} at {fill.price:f} on E{fill.engine}" for fill in result.fills]
    lines += [
        f"  not traded with own order {match.maker_order_id}: {match.quantity:f} at {match.price:f}"
        for match in result.prevented
    ]
    if result.fills_omitted:
        lines.append(f"  and {result.fills_omitted:,} more: see `matchbus fills`")
    if result.cumulative_quantity:
        lines.append(f"  filled {result.cumulative_quantity:f} at {average(result.average_price)} on average")
    if result.leaves_quantity:
        where = "out on another engine" if result.status is OrderStatus.PENDING else "resting"
        lines.append(f"  {result.leaves_quantity:f} left, {where}")
    return lines


def _units(text: str, instrument: Instrument) -> list[str]:
    """What the numbers in a refusal's text count, where that is not ones."""
    named = set(_IN_UNITS.findall(text))
    told = []
    if "price" in named and instrument.tick_size != 1:
        told.append(f"prices there are ticks of {instrument.tick_size:f}")
    if "quantity" in named and instrument.lot_size != 1:
        told.append(f"quantities there are lots of {instrument.lot_size:f}")
    return [f"  {', '.join(told)}"] if told else []


def orders_sheet(orders: Iterable[OrderState]) -> Sheet:
    """Orders, one a row."""
    sheet = Sheet(
        "Orders",
        ("order", "client order id", "side", ">quantity", "symbol", ">price", ">filled", ">left", "status"),
    )
    for order in orders:
        terms = [str(order.time_in_force)] if order.time_in_force != "gtc" else []
        terms += ["post-only"] if order.post_only else []
        status = order.status.name.replace("_", " ").lower()
        sheet.rows.append(
            (
                str(order.order_id),
                order.client_order_id,
                (str(order.side), _SIDE_STYLES[order.side]),
                f"{order.quantity:f}",
                order.symbol,
                "market" if order.type == "market" else f"{order.price:f}",
                f"{order.cumulative_quantity:f}",
                f"{order.leaves_quantity:f}",
                f"{status} ({', '.join(terms)})" if terms else status,
            )
        )
    return sheet


FILL_COLUMNS: Final = (
    *(">fill", "time (UTC)", "side", ">quantity", "symbol", ">price", "as", "on", "order", ">left"),
)


def fill_cells(fill: Fill) -> tuple[Cell, ...]:
    """One fill as a row."""
    return (
        str(fill.sequence),
        time_utc(fill.timestamp_ns),
        (str(fill.side), _SIDE_STYLES[fill.side]),
        f"{fill.quantity:f}",
        fill.symbol,
        f"{fill.price:f}",
        str(fill.liquidity),
        f"E{fill.engine}",
        str(fill.order_id),
        f"{fill.leaves_quantity:f}",
    )


def fill_line(fill: Fill) -> str:
    """One fill as a line."""
    return (
        f"{time_utc(fill.timestamp_ns)}  fill {fill.sequence}: {_PAST[fill.side]} {fill.quantity:f} "
        f"{fill.symbol} at {fill.price:f} on E{fill.engine} as {fill.liquidity}  "
        f"order {fill.order_id}, {fill.leaves_quantity:f} left"
    )


def positions_sheet(positions: Iterable[Position]) -> Sheet:
    """What is held, one symbol a row."""
    sheet = Sheet("Positions", ("symbol", ">position", ">average price", ">realized profit", ">fees"))
    for position in positions:
        style = "green" if position.quantity > 0 else "red" if position.quantity < 0 else "dim"
        sheet.rows.append(
            (
                position.symbol,
                (f"{position.quantity:f}", style),
                average(position.average_price),
                f"{position.realized_pnl:f}",
                f"{position.fees:f}",
            )
        )
    return sheet


def book_sheet(book: Book, where: str, own: Collection[int] = ()) -> Sheet:
    """A book as a ladder: asks above bids, the best prices in the middle; `own` orders are marked `*`."""
    levels = (*book.asks, *book.bids)
    detail = (
        "engines"
        if any(level.engines for level in levels)
        else "queue"
        if any(level.orders for level in levels)
        else ""
    )
    sheet = Sheet(
        f"{book.symbol} {where}",
        (">bid", ">price", ">ask", ">orders", *((detail,) if detail else ())),
        note="" if levels else "nobody bids or asks",
    )
    for asks, side in ((True, reversed(book.asks)), (False, book.bids)):
        for level in side:
            quantity = f"{level.quantity:f}"
            row: tuple[Cell, ...] = (
                *(("", (f"{level.price:f}", "red"), quantity) if asks else ()),
                *((quantity, (f"{level.price:f}", "green"), "") if not asks else ()),
                str(level.order_count),
            )
            sheet.rows.append((*row, _shares(level, own)) if detail else row)
    return sheet


def _shares(level: BookLevel, own: Collection[int]) -> str:
    if level.engines:
        return "  ".join(f"E{share.engine} {share.quantity:f}" for share in level.engines)
    return "  ".join(
        f"{order.order_id}:{order.quantity:f}{'*' if order.order_id in own else ''}" for order in level.orders
    )


def engines_sheet(engines: Iterable[EngineStatus]) -> Sheet:
    """Every engine process, one a row."""
    sheet = Sheet("Engines", ("engine", "role", "state", ">epoch", ">batch", ">lag", "address"))
    for engine in engines:
        if engine.state is None:
            state: Cell = "stands by"
            lag = counted(engine.lag_batches, "batch", "batches")
        else:
            reason = f": {engine.reason}" if engine.reason else ""
            style = "yellow" if reason and engine.state is EngineState.LIVE else _STATE_STYLES[engine.state]
            state = (f"{engine.state}{reason}", style)
            lag = f"{engine.lag_ns / _NS_PER_MS:.1f} ms"
        sheet.rows.append(
            (
                f"E{engine.engine}",
                str(engine.role),
                state,
                str(engine.epoch),
                str(engine.batch_number),
                lag,
                engine.address,
            )
        )
    return sheet
