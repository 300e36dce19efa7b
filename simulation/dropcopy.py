"""`matchbus dropcopy`: every execution report of every engine, from the first one on, as they are stored.

One line a report, in the order of the stream; with `--json` one JSON object a line, for another program, with
ticks and lots as they are stored.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, assert_never

import msgspec
from rich.console import Console

from bus import subjects
from bus.executions import ExecutionsDamaged, ExecutionsReader
from bus.messages import (
    Executions,
    InstrumentEntry,
    Report,
    ReportedCancel,
    ReportedFill,
    ReportedOrder,
    ReportedPrevention,
    ReportedReplace,
)
from bus.registry import Bucket, BucketUnavailable, instruments_bucket
from bus.stream import StreamError
from client import Instrument
from client.cli.arguments import not_empty
from client.cli.failures import Failure
from client.cli.sheets import time_utc
from client.terms import LIQUIDITIES, SIDES
from engine.terms import OrderType, SelfTradePrevention
from simulation.nats_option import add_nats_option, connected


def add_parser(commands: Any) -> None:
    """Add `dropcopy` to the sub-commands of `matchbus`."""
    what = "follow the execution reports of all engines, from the first one on, until Ctrl-C"
    parser = commands.add_parser("dropcopy", help=what, description=what)
    add_nats_option(parser)
    parser.add_argument("--client", type=not_empty, help="only this client's")
    parser.add_argument("--no-follow", action="store_true", help="end at the newest report")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


class Lines:
    """Puts reports into lines for people, with prices and quantities as their symbols have them.

    `find` gives an instrument, None where there is none: then a line says ticks and lots.
    """

    def __init__(self, find: Callable[[str], Awaitable[Instrument | None]]) -> None:
        self._find = find
        self._known: dict[str, Instrument | None] = {}
        self._symbols: dict[int, str] = {}
        """Of the open orders, since a replace does not name its own."""

    async def line(self, message: Executions, report: Report) -> str:
        """A report as a line."""
        symbol = self._symbol(report)
        if symbol and symbol not in self._known:
            self._known[symbol] = await self._find(symbol)
        said = _said(report, symbol, self._known.get(symbol))
        return f"E{message.engine}  {report.client}  {said}"

    def _symbol(self, report: Report) -> str:
        """The symbol of a report, empty where its order is unknown; open orders are remembered."""
        match report:
            case ReportedOrder():
                self._symbols[report.order_id] = report.symbol
            case ReportedFill() | ReportedCancel():
                if not report.leaves:
                    self._symbols.pop(report.order_id, None)
            case ReportedReplace():
                return self._symbols.get(report.order_id, "")
            case ReportedPrevention():
                pass
            case _:
                assert_never(report)
        return report.symbol


def _said(report: Report, symbol: str, instrument: Instrument | None) -> str:
    def price(ticks: int) -> str:
        return f"{ticks} ticks" if instrument is None else f"{instrument.price(ticks):f}"

    def quantity(lots: int) -> str:
        return f"{lots} lots" if instrument is None else f"{instrument.quantity(lots):f}"

    what = f"{quantity(report.quantity)} {symbol}".rstrip()
    match report:
        case ReportedOrder():
            worth = "market" if report.type == OrderType.MARKET else price(report.price)
            return f"accepted  order {report.order_id}  {SIDES[report.side]} {what} at {worth}"
        case ReportedFill():
            return (
                f"fill {report.sequence}  order {report.order_id}  {SIDES[report.side]} {what} "
                f"at {price(report.price)} on E{report.engine} as {LIQUIDITIES[report.liquidity]}  "
                f"leaves {quantity(report.leaves)}  {time_utc(report.time_ns)}"
            )
        case ReportedReplace():
            return f"replaced  order {report.order_id}  {what} at {price(report.price)}"
        case ReportedCancel():
            return f"cancelled  order {report.order_id}  {what}  leaves {quantity(report.leaves)}"
        case ReportedPrevention():
            mode = SelfTradePrevention(report.mode).name.lower()
            return (
                f"prevented  order {report.taker_order_id} with own order {report.maker_order_id}  "
                f"{what} at {price(report.price)}  {mode}"
            )
    assert_never(report)


async def run(options: argparse.Namespace, _console: Console) -> int:
    """Print the reports until Ctrl-C or SIGTERM; the exit code.

    Raises `Failure`: 1 stored reports are damaged, 2 without NATS.
    """
    printing = asyncio.current_task()
    assert printing is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, printing.cancel)
    try:
        return await _print(options)
    except asyncio.CancelledError:
        return 0


async def _print(options: argparse.Namespace) -> int:
    async with connected(options.nats, "dropcopy") as nc:
        reader = ExecutionsReader(nc)
        bucket = instruments_bucket(nc)
        lines = Lines(lambda symbol: _instrument(bucket, symbol))
        printed = asyncio.Event()
        printing = asyncio.create_task(_print_all(reader, lines, options, printed))
        try:
            if options.no_follow:
                caught_up = asyncio.create_task(reader.caught_up.wait())
                await asyncio.wait((printing, caught_up), return_when=asyncio.FIRST_COMPLETED)
                if not printing.done() and not printed.is_set():
                    of = f" of {options.client!r}" if options.client else ""
                    print(f"there are no execution reports{of}", file=sys.stderr)
                printing.cancel()
            await printing
        except ExecutionsDamaged as error:
            raise Failure(str(error)) from error
    return 0


async def _print_all(
    reader: ExecutionsReader, lines: Lines, options: argparse.Namespace, printed: asyncio.Event
) -> None:
    async for message in reader:
        for report in message.reports:
            if options.client in (None, report.client):
                print(_as_json(message, report) if options.json else await lines.line(message, report))
                printed.set()
        sys.stdout.flush()


async def _instrument(bucket: Bucket[InstrumentEntry], symbol: str) -> Instrument | None:
    """How a symbol's ticks and lots are read; waits while NATS is away, as the reports do."""
    while True:
        try:
            entry = await bucket.get(subjects.symbol_token(symbol))
        except BucketUnavailable:
            continue
        except StreamError:  # whoever copied the reports elsewhere has left the instruments behind
            return None
        if entry is None:
            return None
        return Instrument(symbol, Decimal(entry.tick_size), Decimal(entry.lot_size))


def _as_json(message: Executions, report: Report) -> str:
    fields = msgspec.structs.asdict(report)
    kind = type(report).__struct_config__.tag
    return msgspec.json.encode({"kind": kind, "reported_by": message.engine, **fields}).decode()
