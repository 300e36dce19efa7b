"""What the exchange publishes for people to look at: objects in JSON, documented in docs/views.md.

Conflated: a view replaces the one before it, so that a lost one costs nothing but trades of the tape. Nobody
trades on a view; a reader that must not miss anything follows the feed (docs/feed.md). Prices are ticks,
quantities lots, sides 1 (buy) and 2 (sell), times nanoseconds UTC.
"""

from typing import Final, Literal

import msgspec

from bus.consolidated import ConsolidatedLevel
from bus.replica import Level

DEPTH: Final = 20
"""How many levels of a side a view shows."""


class EngineBook(msgspec.Struct, frozen=True):
    """One engine's best levels. Only a trusted book, synced and of a live engine, is in the sums."""

    engine: int
    epoch: int
    sequence: int
    trusted: bool
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]


class BookView(msgspec.Struct, frozen=True):
    """On `view.book.<SYMBOL>`: the best levels over all engines with each one's share, and by engine."""

    symbol: str
    tick_size: str
    lot_size: str
    time_ns: int
    bids: tuple[ConsolidatedLevel, ...]
    asks: tuple[ConsolidatedLevel, ...]
    engines: tuple[EngineBook, ...]


class NbboView(msgspec.Struct, frozen=True):
    """On `nbbo.<SYMBOL>`: (price, quantity, order count) of the best bid and ask over all live engines."""

    symbol: str
    tick_size: str
    lot_size: str
    time_ns: int
    bid: Level | None
    ask: Level | None


ViewTrade = tuple[int, int, int, int, int, int]
"""(engine it traded on, home engine of the taker, price, quantity, side of the taker, time).

Where the engines differ the taker came through a leg.
"""


class TradesView(msgspec.Struct, frozen=True):
    """On `view.trades.<SYMBOL>`: the trades since the last one, oldest first, `left_out` before them."""

    symbol: str
    tick_size: str
    lot_size: str
    trades: tuple[ViewTrade, ...]
    left_out: int


class EngineStatus(msgspec.Struct, frozen=True):
    """One process. `resyncs` is how often its books were lost and joined again since the exchange started."""

    engine: int
    role: Literal["primary", "standby"]
    address: str
    epoch: int
    state: Literal["live", "suspect", "down", "standby"]
    reason: str
    """Why it is not live or does not serve; empty when all is well."""
    orders_per_s: float
    trades_per_s: float
    batches_per_s: float
    batch_number: int
    """The newest batch of its journal that is known of."""
    lag_ms: float | None
    """How old its newest heartbeat is; None when there is none."""
    lag_batches: int
    """How many batches of the journal a standby has still to read."""
    resyncs: int
    commit_p50_ms: float | None = None
    """How long the journal took to store a batch in the last second, the median; None when there was none."""
    commit_max_ms: float | None = None


class EnginesView(msgspec.Struct, frozen=True):
    """On `view.engines`: every process, primaries first in order of their numbers, then standbys."""

    time_ns: int
    engines: tuple[EngineStatus, ...]


class ViewSymbol(msgspec.Struct, frozen=True):
    """What trades: the value of a tick and of a lot, as decimal strings."""

    symbol: str
    tick_size: str
    lot_size: str


class SymbolsView(msgspec.Struct, frozen=True):
    """On `view.symbols`: all that trades, in order."""

    time_ns: int
    symbols: tuple[ViewSymbol, ...]


View = BookView | NbboView | TradesView | EnginesView | SymbolsView
"""Any of them; `bus.messages.encode` makes their bytes."""
