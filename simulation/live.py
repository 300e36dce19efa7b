"""The live view of a running simulation: engines, books with each engine's share, last trades.

What does not fit is cut off at the bottom. So each part has its lines on a terminal of 80 by 24, and on a
larger one the books get the rest.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from matchbus.v1 import matchbus_pb2 as pb
from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bus.messages import engine_of_id
from client.cli.sheets import counted
from client.units import Instrument
from simulation.run import LAST_FILLS, Progress

SHOWN_SYMBOLS: Final = 2
SHOWN_LEVELS: Final = 10
_OTHER_LINES: Final = 2 + 1 + 4 + 1 + (3 + LAST_FILLS) + 1
"""Progress and engines, a blank one, what books have beside levels, a blank one, trades with their head; and
the last line, where the cursor is."""

_REFRESH_S: Final = 0.25
_LINE_S: Final = 2.0
_READING_S: Final = 1.0
"""The least real time between two lines: where time is virtual, a run may pass hours in a minute."""

_real_s: Final = time.monotonic  # kept, as virtual time puts its own in its place
_STATES: Final = {
    pb.ENGINE_STATE_LIVE: "[green]live[/]",
    pb.ENGINE_STATE_SUSPECT: "[yellow]suspect[/]",
    pb.ENGINE_STATE_DOWN: "[red]down[/]",
}


def book_table(book: pb.ConsolidatedBook, instrument: Instrument, most: int) -> Table:
    """One symbol's consolidated book, asks above bids, with each engine's share of a level."""
    table = Table(title=book.symbol, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("ask", "price", "bid", "engines"):
        table.add_column(column, justify="left" if column == "engines" else "right")
    for level in reversed(book.asks[:most]):
        price, quantity = f"{instrument.price(level.price):f}", f"{instrument.quantity(level.quantity):f}"
        table.add_row(quantity, f"[red]{price}[/]", "", _shares(level, instrument))
    table.add_section()
    for level in book.bids[:most]:
        price, quantity = f"{instrument.price(level.price):f}", f"{instrument.quantity(level.quantity):f}"
        table.add_row("", f"[green]{price}[/]", quantity, _shares(level, instrument))
    return table


def _shares(level: pb.Level, instrument: Instrument) -> str:
    return "  ".join(f"E{share.engine} {instrument.quantity(share.quantity):f}" for share in level.engines)


def fills_table(progress: Progress) -> Table:
    """The newest trades, newest first."""
    table = Table(title="Last trades", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("taker", "side", "quantity", "symbol", "price", "traded on"):
        # Where all is too wide, what is in words takes more lines; half a number says nothing.
        table.add_column(column, no_wrap=column != "traded on")
    for name, fill in reversed(progress.last_fills):
        home = engine_of_id(fill.order_id)
        route = f"E{fill.engine}" if home == fill.engine else f"E{fill.engine}, routed there by E{home}"
        table.add_row(name, fill.side, f"{fill.quantity:f}", fill.symbol, f"{fill.price:f}", route)
    return table


def engines_line(engines: Sequence[pb.Engine]) -> Text:
    """The engines as the exchange sees them."""
    shown = []
    for engine in engines:
        state, lag = _STATES.get(engine.state, "unknown"), f"{engine.lag_ns / 1e6:.1f} ms behind"
        if engine.role == pb.ENGINE_ROLE_STANDBY:
            state, lag = "stands by", f"{counted(engine.lag_batches, 'batch', 'batches')} behind"
        shown.append(f"E{engine.engine} {state}, {lag}")
    line = Text.from_markup("   ".join(shown))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def screen(progress: Progress, height: int) -> RenderableType:
    """Everything at once, on a terminal of so many lines."""
    most = min(SHOWN_LEVELS, max(1, (height - _OTHER_LINES) // 2))
    books = [
        book_table(progress.market.books[symbol], progress.traders[0].client.instruments[symbol], most)
        for symbol in progress.symbols[:SHOWN_SYMBOLS]
        if symbol in progress.market.books
    ]
    return Group(
        progress_line(progress),
        engines_line(progress.market.engines),
        "",
        Columns(books, padding=(0, 3)),
        "",
        fills_table(progress),
    )


def progress_line(progress: Progress) -> str:
    """How far the run is, in one line."""
    elapsed = asyncio.get_running_loop().time() - progress.started
    orders = sum(trader.submitted for trader in progress.traders)
    trades = progress.per_engine
    where = ", ".join(f"E{engine} {count}" for engine, count in sorted(trades.items()))
    return (
        f"{min(elapsed, progress.plan.duration_s):5.1f} of {progress.plan.duration_s:g} s: "
        f"{counted(orders, 'order')}, {counted(trades.total(), 'trade')} ({where or 'none yet'}), "
        f"{progress.through_legs} routed"
    )


async def watch(progress: Progress, console: Console, *, headless: bool) -> None:
    """Show the run until cancelled: the live screen, or a line every two seconds, if it can be read."""
    if headless:
        shown_s = _real_s() - _READING_S
        while True:
            await asyncio.sleep(_LINE_S)
            if _real_s() - shown_s >= _READING_S:
                shown_s = _real_s()
                console.print(progress_line(progress), highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(screen(progress, console.size.height), refresh=True)
            await asyncio.sleep(_REFRESH_S)
