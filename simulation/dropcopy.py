"""`matchbus dropcopy`: every execution report of every engine, from the first one on, as they are stored.

One line a report, in the order of the stream; with `--json` one JSON object a line, for another program.
"""

import argparse
import asyncio
import os
import sys
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import nats.errors
from rich.console import Console

from bus.connection import connect
from bus.executions import ExecutionsDamaged, ExecutionsReader
from bus.messages import Executions, Report, ReportedFill, ReportedOrder
from client.cli.failures import Failure
from engine.terms import OrderType
from simulation.nats_option import NATS_HELP, NatsAway

CONNECT_PATIENCE_S: Final = 5.0

_SIDES: Final = {1: "buy", 2: "sell"}
_LIQUIDITY: Final = {1: "maker", 2: "taker"}
_NS: Final = 1_000_000_000


def add_parser(commands: Any) -> None:
    """Add `dropcopy` to the sub-commands of `matchbus`."""
    what = "follow the execution reports of all engines, from the first one on, until Ctrl-C"
    parser = commands.add_parser("dropcopy", help=what, description=what)
    parser.add_argument("--nats", metavar="URL", default="", help=NATS_HELP)
    parser.add_argument("--client", default="", help="only this client's")
    parser.add_argument("--no-follow", action="store_true", help="end at the newest report")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


async def run(options: argparse.Namespace, _console: Console) -> int:
    """Print the reports; the exit code. Raises `Failure`: 1 stored reports are damaged, 2 without NATS."""
    try:
        async with asyncio.timeout(CONNECT_PATIENCE_S):
            nc = await connect(options.nats, name="dropcopy", on_closed=lambda: None, on_error=lambda _: True)
    except (TimeoutError, nats.errors.Error) as error:
        raise NatsAway(options.nats, error) from error
    try:
        reader = ExecutionsReader(nc)
        printing = asyncio.create_task(_print_all(reader, options))
        if options.no_follow:
            caught_up = asyncio.create_task(reader.caught_up.wait())
            await asyncio.wait((printing, caught_up), return_when=asyncio.FIRST_COMPLETED)
            printing.cancel()
        await printing
    except asyncio.CancelledError:
        return 0
    except ExecutionsDamaged as error:
        raise Failure(str(error)) from error
    except BrokenPipeError:  # `| head` has seen enough; nothing must be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        await nc.close()
    return 0


async def _print_all(reader: ExecutionsReader, options: argparse.Namespace) -> None:
    show = _as_json if options.json else as_text
    async for message in reader:
        for report in message.reports:
            if options.client in ("", report.client):
                print(show(message, report))
        sys.stdout.flush()


def _as_json(message: Executions, report: Report) -> str:
    fields = msgspec.structs.asdict(report)
    kind = type(report).__struct_config__.tag
    return msgspec.json.encode({"kind": kind, "reported_by": message.engine, **fields}).decode()


def as_text(message: Executions, report: Report) -> str:
    """A report as a line for people."""
    start = f"E{message.engine}  {report.client}"
    match report:
        case ReportedFill():
            at = datetime.fromtimestamp(report.time_ns / _NS, UTC)
            return (
                f"{start}  fill {report.sequence}  order {report.order_id}  {_SIDES[report.side]} "
                f"{report.quantity} {report.symbol} at {report.price} ticks on E{report.engine} "
                f"as {_LIQUIDITY[report.liquidity]}  leaves {report.leaves}  {at:%H:%M:%S.%f}"
            )
        case ReportedOrder():
            price = "market" if report.type == OrderType.MARKET else f"{report.price} ticks"
            return (
                f"{start}  accepted  order {report.order_id}  {_SIDES[report.side]} "
                f"{report.quantity} {report.symbol} at {price}"
            )
        case _:
            kind = type(report).__struct_config__.tag
            fields = msgspec.structs.asdict(report)
            shown = "  ".join(f"{name} {value}" for name, value in fields.items() if name != "client")
            return f"{start}  {kind}  {shown}"
