"""The live view of a running simulation: books with each engine's share, last fills, engines."""

import asyncio
from collections.abc import Sequence
from typing import Final

from matchbus.v1 import matchbus_pb2 as pb
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from client.units import Instrument
from simulation.run import Progress

SHOWN_SYMBOLS: Final = 2
SHOWN_LEVELS: Final = 6
_REFRESH_S: Final = 0.25
_LINE_S: Final = 2.0
_STATES: Final = {
    pb.ENGINE_STATE_LIVE: "[green]live[/]",
    pb.ENGINE_STATE_SUSPECT: "[yellow]suspect[/]",
    pb.ENGINE_STATE_DOWN: "[red]down[/]",
}


def book_table(book: pb.ConsolidatedBook, instrument: Instrument) -> Table:
    """One symbol's consolidated book, asks above bids, with each engine's share of a level."""
    table = Table(title=book.symbol, title_justify="left")
    for column in ("ask", "price", "bid", "engines"):
        table.add_column(column, justify="left" if column == "engines" else "right")
    for level in reversed(book.asks[:SHOWN_LEVELS]):
        price, quantity = f"{instrument.price(level.price):f}", f"{instrument.quantity(level.quantity):f}"
        table.add_row(quantity, f"[red]{price}[/]", "", _shares(level, instrument))
    table.add_section()
    for level in book.bids[:SHOWN_LEVELS]:
        price, quantity = f"{instrument.price(level.price):f}", f"{instrument.quantity(level.quantity):f}"
        table.add_row("", f"[green]{price}[/]", quantity, _shares(level, instrument))
    return table


def _shares(level: pb.Level, instrument: Instrument) -> str:
    return " ".join(f"E{share.engine}:{instrument.quantity(share.quantity):f}" for share in level.engines)


def fills_table(progress: Progress) -> Table:
    """The newest trades, newest first."""
    table = Table(title="Last trades", title_justify="left")
    for column in ("taker", "side", "quantity", "symbol", "price", "traded on"):
        table.add_column(column)
    for name, fill in reversed(progress.last_fills):
        home = fill.order_id >> 48
        route = f"E{fill.engine}" if home == fill.engine else f"E{home} -> E{fill.engine}"
        table.add_row(name, fill.side, f"{fill.quantity:f}", fill.symbol, f"{fill.price:f}", route)
    return table


def engines_table(engines: Sequence[pb.Engine]) -> Table:
    """The engines as the exchange sees them."""
    table = Table(title="Engines", title_justify="left")
    for column in ("engine", "state", "epoch", "lag", "address"):
        table.add_column(column)
    for engine in engines:
        state, lag = _STATES.get(engine.state, "unknown"), f"{engine.lag_ns / 1e6:.1f} ms"
        if engine.role == pb.ENGINE_ROLE_STANDBY:
            state, lag = "stands by", f"{engine.lag_batches} batches"
        table.add_row(f"E{engine.engine}", state, str(engine.epoch), lag, engine.address)
    return table


def screen(progress: Progress) -> RenderableType:
    """Everything at once."""
    books = [
        book_table(progress.market.books[symbol], progress.traders[0].client.instruments[symbol])
        for symbol in progress.symbols[:SHOWN_SYMBOLS]
        if symbol in progress.market.books
    ]
    return Group(
        progress_line(progress),
        Columns([*books, engines_table(progress.market.engines)]),
        fills_table(progress),
    )


def progress_line(progress: Progress) -> str:
    """How far the run is, in one line."""
    elapsed = asyncio.get_running_loop().time() - progress.started
    orders = sum(trader.submitted for trader in progress.traders)
    where = ", ".join(f"E{engine} {count}" for engine, count in sorted(progress.per_engine.items()))
    return (
        f"{min(elapsed, progress.plan.duration_s):5.1f} of {progress.plan.duration_s:g} s: "
        f"{orders} orders, {progress.trades} trades ({where or 'none yet'}), "
        f"{progress.through_legs} through legs"
    )


async def watch(progress: Progress, console: Console, *, headless: bool) -> None:
    """Show the run until cancelled: the live screen, or a line every two seconds."""
    if headless:
        while True:
            await asyncio.sleep(_LINE_S)
            console.print(progress_line(progress), highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(screen(progress), refresh=True)
            await asyncio.sleep(_REFRESH_S)
