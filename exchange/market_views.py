"""Decides which views of the market are published, and what is in them.

Here: what changed, what is due, what a view says, from feeds and numbers passed in. Not here: clocks and
sending (`exchange.runtime.process`).

    feeds, execution reports ──▶ note_*  (cheap, as often as they come)
    some 15 times a second   ──▶ due     ──▶ (subject, view) of what changed or was not shown for 1 s

Invariants: a view is what the replicas say at the moment it is made; at most `MAX_BOOKS` books are shown in
one round; what changed waits in the order of its changes and what is to be repeated in the order of its age,
and neither keeps the other from its places; what waits is bounded.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice, takewhile
from typing import Final

import msgspec

from bus import consolidated, subjects
from bus.consolidated import ConsolidatedLevel
from bus.messages import (
    ASK,
    BID,
    EngineEntry,
    Executions,
    InstrumentEntry,
    ReportedFill,
    ReportedOrder,
    StandbyStatus,
    engine_of_id,
    opposite,
)
from bus.peer import PeerFeed, PeerState, protected_books
from bus.replica import Level
from bus.view_messages import (
    DEPTH,
    BookView,
    EngineBook,
    EngineStatus,
    EnginesView,
    NbboView,
    SymbolsView,
    TradesView,
    View,
    ViewSymbol,
    ViewTrade,
)

REFRESH_NS: Final = 1_000_000_000
"""What did not change is shown again after this time, so that a new page fills."""

ENGINES_NS: Final = 250_000_000
"""Engines' numbers always change: they are shown this often. A change of state is shown at once."""

MAX_BOOKS: Final = 12
"""Books shown in one round, so that a market of thousands of symbols costs no more than one of a dozen."""

REPEATED_BOOKS: Final = 5
"""Of these, the places for symbols not shown for `REFRESH_NS`, however many others change all the time."""

MAX_TRADES: Final = 50
"""Trades of one symbol in one view: the newest."""

_RATE_NS: Final = 2_000_000_000
"""Rates are averages over this time."""

_NS_PER_S: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000
_US_PER_MS: Final = 1_000
_MAKER: Final = 1


class Market(msgspec.Struct, frozen=True):
    """What there is to show: instruments by symbol, engines by number, their feeds, and the standbys."""

    instruments: Mapping[str, InstrumentEntry]
    engines: Mapping[int, EngineEntry]
    peers: Mapping[int, PeerFeed]
    standbys: Sequence[StandbyStatus] = ()


class MarketViews:
    """Remembers what changed since it was last shown. Times: `now_ns` monotonic, `time_ns` UTC."""

    def __init__(self) -> None:
        self._changed: dict[str, None] = {}
        # When the best prices were last shown, which they never are without the book; oldest first.
        self._shown_ns: dict[str, int] = {}
        self._best: dict[str, tuple[Level | None, Level | None]] = {}
        self._trades: dict[str, _Tape] = {}
        self._activity: dict[int, _Activity] = {}
        self._symbols_due_ns = 0
        self._engines_due_ns = 0

    def note_change(self, symbol: str) -> None:
        """A book of this symbol changed on some engine."""
        self._changed[symbol] = None

    def note_instruments(self) -> None:
        """The list of instruments changed."""
        self._symbols_due_ns = 0

    def note_state(self, peer: PeerFeed) -> None:
        """An engine became live, suspect or down, or lost books: all its books count, or do not, anew."""
        self._engines_due_ns = 0
        self._changed.update(dict.fromkeys(peer.replicas))

    def note_executions(self, executions: Executions) -> None:
        """Count an engine's new orders and trades, and put the trades on the tape.

        A trade is told by its maker's fill: the maker rests where it trades, and the fill names the taker's
        order, which names the taker's home.
        """
        activity = self._activity_of(executions.engine)
        for report in executions.reports:
            if isinstance(report, ReportedOrder):
                activity.orders += 1
            elif isinstance(report, ReportedFill) and report.liquidity == _MAKER:
                activity.trades += 1
                trade = (
                    report.engine,
                    engine_of_id(report.contra_order_id),
                    report.price,
                    report.quantity,
                    opposite(report.side),
                    report.time_ns,
                )
                self._trades.setdefault(report.symbol, _Tape()).add(trade)

    def due(self, market: Market, now_ns: int, time_ns: int) -> list[tuple[str, View]]:
        """The views to publish now, with their subjects. They count as shown."""
        return [
            *self._symbols_due(market, now_ns, time_ns),
            *self._engines_due(market, now_ns, time_ns),
            *self._trades_due(market),
            *self._books_due(market, now_ns, time_ns),
        ]

    def _symbols_due(self, market: Market, now_ns: int, time_ns: int) -> Iterable[tuple[str, View]]:
        if now_ns < self._symbols_due_ns:
            return
        self._symbols_due_ns = now_ns + REFRESH_NS
        for appeared in sorted(market.instruments.keys() - self._shown_ns.keys()):
            self.note_change(appeared)
        symbols = (
            ViewSymbol(entry.symbol, entry.tick_size, entry.lot_size)
            for _, entry in sorted(market.instruments.items())
        )
        yield subjects.VIEW_SYMBOLS, SymbolsView(time_ns, tuple(symbols))

    def _engines_due(self, market: Market, now_ns: int, time_ns: int) -> Iterable[tuple[str, View]]:
        if now_ns < self._engines_due_ns:
            return
        self._engines_due_ns = now_ns + ENGINES_NS
        primaries = (
            self._primary(entry, market.peers.get(engine), now_ns)
            for engine, entry in sorted(market.engines.items())
        )
        yield subjects.VIEW_ENGINES, EnginesView(time_ns, (*primaries, *map(_standby, market.standbys)))

    def _trades_due(self, market: Market) -> Iterable[tuple[str, View]]:
        tapes, self._trades = self._trades, {}
        for symbol, tape in tapes.items():
            entry = market.instruments.get(symbol)
            if entry is not None:
                yield (
                    subjects.view_trades(symbol),
                    TradesView(
                        symbol,
                        entry.tick_size,
                        entry.lot_size,
                        tuple(tape.newest),
                        tape.count - len(tape.newest),
                    ),
                )

    def _books_due(self, market: Market, now_ns: int, time_ns: int) -> Iterable[tuple[str, View]]:
        for symbol in self._symbols_to_show(now_ns):
            self._changed.pop(symbol, None)
            entry = market.instruments.get(symbol)
            if entry is None:
                self._shown_ns.pop(symbol, None)
                continue
            book = _book(entry, market.peers, time_ns)
            yield subjects.view_book(symbol), book
            best = _first(book.bids), _first(book.asks)
            shown_ns = self._shown_ns.get(symbol)
            is_old = shown_ns is None or now_ns - shown_ns >= REFRESH_NS
            if is_old or best != self._best.get(symbol):
                self._best[symbol] = best
                self._shown_ns.pop(symbol, None)  # so that it goes to the end
                self._shown_ns[symbol] = now_ns
                yield (
                    subjects.nbbo(symbol),
                    NbboView(symbol, entry.tick_size, entry.lot_size, time_ns, *best),
                )

    def _symbols_to_show(self, now_ns: int) -> list[str]:
        """What changed and what was not shown for a while, each in its places, those waiting longest first.

        What is to be repeated also has the places that changes leave, and the other way round.
        """
        old = takewhile(lambda symbol: now_ns - self._shown_ns[symbol] >= REFRESH_NS, self._shown_ns)
        chosen = dict.fromkeys(
            chain(
                islice(self._changed, MAX_BOOKS - REPEATED_BOOKS),
                islice(old, MAX_BOOKS),
                islice(self._changed, MAX_BOOKS),
            )
        )
        return list(islice(chosen, MAX_BOOKS))

    def _primary(self, entry: EngineEntry, peer: PeerFeed | None, now_ns: int) -> EngineStatus:
        activity = self._activity_of(entry.engine)
        batch_number = 0 if peer is None else peer.batch_number
        orders_per_s, trades_per_s, batches_per_s = activity.rates(batch_number, now_ns)
        age_ns = None if peer is None else peer.age_ns(now_ns)
        state = PeerState.DOWN if peer is None else peer.state
        commit_p50_ms, commit_max_ms = _commit_ms(peer)
        return EngineStatus(
            engine=entry.engine,
            role="primary",
            address=entry.address,
            epoch=entry.epoch if peer is None else max(entry.epoch, peer.epoch),
            state=state.value,
            reason=what_is_wrong(peer, now_ns),
            orders_per_s=orders_per_s,
            trades_per_s=trades_per_s,
            batches_per_s=batches_per_s,
            batch_number=batch_number,
            lag_ms=None if age_ns is None else max(0, age_ns) / _NS_PER_MS,
            lag_batches=0,
            resyncs=0 if peer is None else _resyncs(peer),
            commit_p50_ms=commit_p50_ms,
            commit_max_ms=commit_max_ms,
        )

    def _activity_of(self, engine: int) -> "_Activity":
        return self._activity.setdefault(engine, _Activity())


class _Tape:
    """The trades of one symbol since the last view: the newest, and how many there were."""

    __slots__ = ("count", "newest")

    def __init__(self) -> None:
        self.count = 0
        self.newest: deque[ViewTrade] = deque(maxlen=MAX_TRADES)

    def add(self, trade: ViewTrade) -> None:
        self.count += 1
        self.newest.append(trade)


class _Activity:
    """What one engine did: counts that only grow, and samples of them for rates."""

    __slots__ = ("_samples", "orders", "trades")

    def __init__(self) -> None:
        self.orders = 0
        self.trades = 0
        self._samples: deque[tuple[int, int, int, int]] = deque()

    def rates(self, batch_number: int, now_ns: int) -> tuple[float, float, float]:
        """Orders, trades and batches a second of late; no batches from before the number is known (0)."""
        samples = self._samples
        if samples and (batch_number < samples[-1][3] or not samples[-1][3]):
            samples.clear()
        samples.append((now_ns, self.orders, self.trades, batch_number))
        while now_ns - samples[0][0] > _RATE_NS:
            samples.popleft()
        then_ns, orders, trades, batches = samples[0]
        if then_ns == now_ns:
            return 0.0, 0.0, 0.0
        passed_s = (now_ns - then_ns) / _NS_PER_S
        return (
            round((self.orders - orders) / passed_s, 1),
            round((self.trades - trades) / passed_s, 1),
            round((batch_number - batches) / passed_s, 1),
        )


def what_is_wrong(peer: PeerFeed | None, now_ns: int) -> str:
    """Why an engine is not live or does not serve; empty when all is well."""
    if peer is not None and peer.state is PeerState.LIVE:
        return peer.trouble
    age_ns = None if peer is None else peer.age_ns(now_ns)
    if age_ns is None:
        return "no heartbeat heard"
    return f"newest heartbeat is {max(0, age_ns) // _NS_PER_MS} ms old"


def _standby(status: StandbyStatus) -> EngineStatus:
    return EngineStatus(
        engine=status.engine,
        role="standby",
        address=status.address,
        epoch=status.epoch,
        state="standby",
        reason="stands by",
        orders_per_s=0.0,
        trades_per_s=0.0,
        batches_per_s=0.0,
        batch_number=status.batch_number,
        lag_ms=None,
        lag_batches=status.lag_batches,
        resyncs=0,
    )


def _commit_ms(peer: PeerFeed | None) -> tuple[float | None, float | None]:
    """What the newest heartbeat says of the journal, unless that is old news."""
    if peer is None or peer.append_us is None or peer.state is PeerState.DOWN:
        return None, None
    p50_us, max_us = peer.append_us
    return p50_us / _US_PER_MS, max_us / _US_PER_MS


def _resyncs(peer: PeerFeed) -> int:
    """Books lost and joined again; the first join, which counts as one loss and one epoch, is none."""
    counters = peer.counters
    again = max(0, counters.losses - 1) + max(0, counters.new_epochs - 1)
    return counters.gaps + counters.checksum_failures + again


def _book(entry: InstrumentEntry, peers: Mapping[int, PeerFeed], time_ns: int) -> BookView:
    symbol = entry.symbol
    trusted = protected_books(peers, symbol)
    return BookView(
        symbol=symbol,
        tick_size=entry.tick_size,
        lot_size=entry.lot_size,
        time_ns=time_ns,
        bids=tuple(consolidated.levels(trusted, BID, DEPTH)),
        asks=tuple(consolidated.levels(trusted, ASK, DEPTH)),
        engines=tuple(
            EngineBook(
                engine=engine,
                epoch=replica.epoch,
                sequence=replica.sequence,
                trusted=engine in trusted,
                bids=tuple(replica.levels(BID, DEPTH)),
                asks=tuple(replica.levels(ASK, DEPTH)),
            )
            for engine, peer in sorted(peers.items())
            if (replica := peer.replicas.get(symbol)) is not None
        ),
    )


def _first(levels: tuple[ConsolidatedLevel, ...]) -> Level | None:
    return levels[0][:3] if levels else None
