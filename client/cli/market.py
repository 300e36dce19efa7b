"""book, engines."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from client import Book, Unavailable
from client.cli.arguments import Parser, count, symbol
from client.cli.command import Command, Options
from client.cli.desk import Desk, exchange_asked
from client.cli.failures import DONE, ExchangeAway, Misuse
from client.cli.sheets import Sheet, book_sheet, engines_sheet

T = TypeVar("T")

_LOOK_EVERY_S: Final = 0.2
_DEPTH: Final = 10


def _arrange_book(parser: Parser) -> None:
    parser.add_argument("symbol", metavar="SYMBOL", type=symbol)
    parser.add_endless("--watch", what="show it as it changes, until Ctrl-C")
    parser.add_argument(
        "--consolidated", action="store_true", help="all live engines together; needs no registration"
    )
    parser.add_argument("--orders", action="store_true", help="each order in its queue, your own marked *")
    parser.add_argument(
        "--depth", metavar="N", type=count, default=_DEPTH, help="levels a side, 0: all; default %(default)s"
    )


async def book(options: Options, desk: Desk) -> int:
    """Show a book, of the home engine or of the whole market."""
    if options.consolidated and options.orders:
        raise Misuse("a consolidated book lists no orders", "leave out --consolidated or --orders")
    look = _consolidated(options, desk) if options.consolidated else _home(options, desk)
    return await _show(desk, look, watch=options.watch)


def _consolidated(options: Options, desk: Desk) -> "Look[Book]":
    async def look() -> tuple[Book, Callable[[], Sheet]]:
        async with exchange_asked():
            book = await desk.venue().book(options.symbol, options.depth)
        return book, lambda: book_sheet(book, "on all live engines")

    return look


def _home(options: Options, desk: Desk) -> "Look[Book]":
    async def look() -> tuple[Book, Callable[[], Sheet]]:
        client = await desk.client()
        book = await client.book(options.symbol, options.depth, orders=options.orders)
        mine = await client.open_orders(options.symbol) if options.orders else []
        own = {order.order_id for order in mine}
        where = f"on E{client.engine}, sequence {book.sequence}"
        return book, lambda: book_sheet(book, where, own)

    return look


def _arrange_engines(parser: Parser) -> None:
    parser.add_endless("--watch", what="show them as they change, until Ctrl-C")


async def engines(options: Options, desk: Desk) -> int:
    """List the engine processes as the exchange sees them."""
    venue = desk.venue()
    if options.watch:

        async def look() -> tuple[object, Callable[[], Sheet]]:
            async with exchange_asked():
                seen = await venue.engines()
            return {"engines": seen}, lambda: engines_sheet(seen)

        return await _show(desk, look, watch=True)
    async with desk.output.waiting("waiting for the exchange"), exchange_asked():
        found = await venue.engines()
    desk.output.table(found, lambda: engines_sheet(found), nothing="no engine is registered")
    return DONE


Look = Callable[[], Awaitable[tuple[T, Callable[[], Sheet]]]]
"""Asks once: the answer, and how to draw it."""


async def _show(desk: Desk, look: Look[T], *, watch: bool) -> int:
    """Show what `look` sees, once or for ever."""
    async with desk.output.waiting("waiting for the venue"):
        answer, sheet = await look()
    if not watch:
        if desk.output.as_json:
            desk.output.answer(answer)
        else:
            desk.output.sheets(sheet())
        return DONE
    with desk.output.watching() as show:
        while True:
            show(answer, sheet)
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                answer, sheet = await look()
            except (Unavailable, ExchangeAway) as error:
                await desk.tell_away(error)


COMMANDS: Final = (
    Command("book", "Show a symbol's book.", _arrange_book, book, lambda options: bool(options.watch)),
    Command(
        "engines",
        "List the engine processes: who reigns, who stands by, how far behind.",
        _arrange_engines,
        engines,
        lambda options: bool(options.watch),
    ),
)
