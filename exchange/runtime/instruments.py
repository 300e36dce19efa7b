"""Instruments: from a TOML file into the `instruments` bucket, where the engines find them.

The file says what exists at least: a symbol that is only in the bucket stays. Tick and lot size never change
while a symbol lives, because every resting price and every position is counted in them; the collar may.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from bus import subjects
from bus.messages import PERCENT_PATTERN, SIZE_PATTERN, InstrumentEntry
from bus.peer import MAX_SYMBOLS
from bus.registry import Bucket

_SIZE: Final = re.compile(SIZE_PATTERN)
_PERCENT: Final = re.compile(PERCENT_PATTERN)
_KEYS: Final = {"symbol", "tick_size", "lot_size", "market_collar_percent"}


class InstrumentsRefused(Exception):
    """The instruments file cannot be used; the text says what to change in it."""


def read_instruments(file: Path) -> list[InstrumentEntry]:
    """Read and check a whole file. Raises `InstrumentsRefused`."""
    try:
        return parse_instruments(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InstrumentsRefused(f"the instruments file {file} cannot be read: {error}") from error
    except InstrumentsRefused as error:
        raise InstrumentsRefused(f"the instruments file {file} is refused: {error}") from error


def parse_instruments(text: str) -> list[InstrumentEntry]:
    """Make entries of `[[instrument]]` tables, in the order of the file. Raises `InstrumentsRefused`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InstrumentsRefused(f"it is not TOML: {error}") from error
    tables = document.pop("instrument", [])
    if document:
        raise InstrumentsRefused(f"it has {sorted(document)} beside [[instrument]]")
    if not isinstance(tables, list) or not tables:
        raise InstrumentsRefused("it has no [[instrument]] table")
    if len(tables) > MAX_SYMBOLS:
        raise InstrumentsRefused(
            f"it has {len(tables):,} instruments; nobody follows more than {MAX_SYMBOLS:,} books of an engine"
        )
    entries = [_entry(table) for table in tables]
    for symbol, count in Counter(entry.symbol for entry in entries).items():
        if count > 1:
            raise InstrumentsRefused(f"{symbol} is in it {count} times")
    return entries


async def publish_instruments(bucket: Bucket[InstrumentEntry], entries: list[InstrumentEntry]) -> None:
    """Bring the bucket to what the file says.

    Raises `InstrumentsRefused` when a tick or lot size would change; then nothing at all is written.
    """
    stored = {entry.symbol: await bucket.get(subjects.symbol_token(entry.symbol)) for entry in entries}
    for entry in entries:
        _refuse_other_sizes(stored[entry.symbol], entry)
    for entry in entries:
        await _publish(bucket, stored[entry.symbol], entry)


async def _publish(
    bucket: Bucket[InstrumentEntry], old: InstrumentEntry | None, new: InstrumentEntry
) -> None:
    key = subjects.symbol_token(new.symbol)
    if old is None:
        if await bucket.create(key, new):
            return
        # Another exchange was faster; its sizes bind this one too.
        old = await bucket.get(key)
        _refuse_other_sizes(old, new)
    if old is None or old.market_collar_percent != new.market_collar_percent:
        await bucket.put(key, new)


def _refuse_other_sizes(old: InstrumentEntry | None, new: InstrumentEntry) -> None:
    if old is None:
        return
    for field in ("tick_size", "lot_size"):
        before, after = getattr(old, field), getattr(new, field)
        if Decimal(before) != Decimal(after):
            raise InstrumentsRefused(
                f"{new.symbol} has {field} {before} and the file says {after}: sizes never change while "
                f"a symbol lives; set it back to {before} or use another symbol"
            )


def _entry(table: Any) -> InstrumentEntry:
    if not isinstance(table, dict):
        raise InstrumentsRefused("instrument must be a list of tables: write [[instrument]]")
    symbol = _text(table, "symbol", "an instrument")
    try:
        subjects.symbol_token(symbol)
    except ValueError as error:
        raise InstrumentsRefused(str(error)) from error
    unknown = table.keys() - _KEYS
    if unknown:
        raise InstrumentsRefused(f"{symbol} has {sorted(unknown)}; there are only {sorted(_KEYS)}")
    return InstrumentEntry(
        symbol=symbol,
        tick_size=_size(table, "tick_size", symbol),
        lot_size=_size(table, "lot_size", symbol),
        market_collar_percent=_collar(table, symbol),
    )


def _size(table: Mapping[str, Any], field: str, symbol: str) -> str:
    size = _text(table, field, symbol)
    if _SIZE.fullmatch(size) is None:
        raise InstrumentsRefused(
            f"{symbol}: {field} {size!r} must be a decimal above 0 "
            "with at most 12 digits on either side of the point"
        )
    return size


def _collar(table: Mapping[str, Any], symbol: str) -> str:
    if "market_collar_percent" not in table:
        return ""
    percent = _text(table, "market_collar_percent", symbol)
    if _PERCENT.fullmatch(percent) is None:
        raise InstrumentsRefused(
            f"{symbol}: market_collar_percent {percent!r} must be a decimal above 0 with at most 2 decimals; "
            "leave it out for no collar"
        )
    return percent


def _text(table: Mapping[str, Any], field: str, owner: str) -> str:
    text = table.get(field)
    if not isinstance(text, str):
        raise InstrumentsRefused(f'{owner}: {field} must be there, as text in quotes, such as {field} = "1"')
    return text
