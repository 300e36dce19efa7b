"""fills, positions."""

import contextlib
from typing import Final

from client import Fill, Unavailable
from client.cli.arguments import Parser, sequence, symbol
from client.cli.command import Command, Options
from client.cli.desk import Desk, check_traded, exchange_asked
from client.cli.failures import DONE
from client.cli.sheets import FILL_COLUMNS, Sheet, fill_cells, fill_line, positions_sheet


def _arrange_fills(parser: Parser) -> None:
    parser.add_argument("symbol", metavar="SYMBOL", nargs="?", type=symbol, help="only this symbol's")
    parser.add_endless("-f", "--follow", what="then new ones as they come, until Ctrl-C")
    parser.add_argument(
        "--since", metavar="N", type=sequence, default=0, help="only those numbered above N; default 0: all"
    )


async def fills(options: Options, desk: Desk) -> int:
    """Show the history of fills, and follow it if asked to."""
    client = await desk.client()
    check_traded(options.symbol, client.instruments)
    if options.follow or desk.output.as_json:
        last = options.since
        while True:
            try:
                async with contextlib.aclosing(client.fills(last, follow=options.follow)) as history:
                    async for fill in history:
                        last = fill.sequence
                        if options.symbol in (None, fill.symbol):
                            desk.output.answer(fill, fill_line(fill))
            except Unavailable as error:
                if not options.follow:
                    raise
                await desk.tell_away(error)
            else:
                return DONE
    found: list[Fill] = []
    async with desk.output.waiting("reading fills") as tell:
        async for fill in client.fills(options.since, follow=False):
            if options.symbol in (None, fill.symbol):
                found.append(fill)
            tell(f"reading fills: {fill.sequence}")
    sheet = Sheet("Fills", FILL_COLUMNS, [fill_cells(fill) for fill in found])
    desk.output.table(found, lambda: sheet, nothing="no fills")
    return DONE


def _arrange_positions(parser: Parser) -> None:
    parser.add_argument("symbol", metavar="SYMBOL", nargs="?", type=symbol, help="only this symbol's")


async def positions(options: Options, desk: Desk) -> int:
    """Show what is held."""
    client = await desk.client()
    check_traded(options.symbol, client.instruments)
    async with desk.output.waiting("waiting for the exchange"), exchange_asked():
        held = await client.positions()
    found = [position for position in held.values() if options.symbol in (None, position.symbol)]
    desk.output.table(found, lambda: positions_sheet(found), nothing="no positions")
    return DONE


COMMANDS: Final = (
    Command(
        "fills",
        "Show your fills, each once and in order, and follow them.",
        _arrange_fills,
        fills,
        lambda options: bool(options.follow),
    ),
    Command("positions", "Show what you hold.", _arrange_positions, positions),
)
