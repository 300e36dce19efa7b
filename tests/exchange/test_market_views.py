"""Which views are due, and what they say."""

import re
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from bus import subjects
from bus.consolidated import ConsolidatedLevel, Share
from bus.messages import (
    ASK,
    BID,
    BookSnapshot,
    EngineEntry,
    Executions,
    Heartbeat,
    InstrumentEntry,
    LevelChange,
    ReportedFill,
    ReportedOrder,
    StandbyStatus,
    encode,
)
from bus.peer import DOWN_NS, PeerFeed, PeerState
from bus.view_messages import (
    DEPTH,
    BookView,
    EngineStatus,
    EnginesView,
    NbboView,
    SymbolsView,
    TradesView,
    View,
    ViewSymbol,
)
from exchange.market_views import (
    ENGINES_NS,
    MAX_BOOKS,
    MAX_TRADES,
    REFRESH_NS,
    REPEATED_BOOKS,
    Market,
    MarketViews,
)
from tests.feed_checksum import checksum

DOCS = Path(__file__).parent.parent.parent / "docs" / "views.md"
MS = 1_000_000
START = 10**12
MAKER, TAKER = 1, 2
V = TypeVar("V", bound=View)


class Venue:
    """A market whose views are asked for, and the clock of it."""

    def __init__(self, *symbols: str, engines: int = 2) -> None:
        self.now_ns = START
        self.views = MarketViews()
        self.market = Market(
            {symbol: InstrumentEntry(symbol, "0.01", "1") for symbol in symbols},
            {
                number: EngineEntry(number, 1, f"127.0.0.1:{50050 + number}", 1)
                for number in range(1, engines + 1)
            },
            {number: PeerFeed(number) for number in range(1, engines + 1)},
        )
        for number in self.market.peers:
            self.beat(number)

    def beat(
        self,
        engine: int,
        batch_number: int = 1,
        sequences: dict[str, int] | None = None,
        append_us: tuple[int, int] = (0, 0),
        trouble: str = "",
    ) -> None:
        """Two heartbeats: what makes a feed with a snapshot live."""
        feed = self.market.peers[engine]
        for sent_ns in (self.now_ns - 1, self.now_ns):
            heartbeat = Heartbeat(engine, 1, batch_number, sent_ns, sequences or {}, *append_us, trouble)
            feed.on_message(heartbeat, None, self.now_ns)

    def book(self, engine: int, symbol: str, sequence: int, *levels: LevelChange) -> None:
        """The engine's book becomes this."""
        bids = sorted((level[1:] for level in levels if level[0] == BID), reverse=True)
        asks = sorted(level[1:] for level in levels if level[0] == ASK)
        snapshot = BookSnapshot(1, sequence, 1, 1, levels, checksum(bids, asks))
        feed = self.market.peers[engine]
        feed.on_message(snapshot, symbol, self.now_ns)
        feed.tick(self.now_ns)
        assert feed.replicas[symbol].synced
        assert feed.state is PeerState.LIVE
        self.views.note_change(symbol)

    def due(self, kind: type[V], after_ms: int = 0) -> dict[str, V]:
        """The views of one kind that are due so long after the last ones, by subject."""
        self.now_ns += after_ms * MS
        due = self.views.due(self.market, self.now_ns, self.now_ns + 5)
        subjects_due = [subject for subject, _ in due]
        assert len(subjects_due) == len(set(subjects_due))
        return {subject: view for subject, view in due if isinstance(view, kind)}

    def engine(self, number: int, after_ms: int = 1_000) -> EngineStatus:
        """How an engine looks so long after the last views."""
        (view,) = self.due(EnginesView, after_ms).values()
        return next(status for status in view.engines if status.engine == number)


def executions(engine: int, *reports: ReportedFill | ReportedOrder) -> Executions:
    """A message of an engine's reports."""
    return Executions(engine, 1, 1, 1, len(reports), reports)


def fill(
    engine: int, home: int, *, liquidity: int = MAKER, side: int = ASK, contra: int = 0, price: int = 100
) -> ReportedFill:
    """One party's fill in AAPL."""
    order_id = (home << 48) + 7
    return ReportedFill(
        "ann", 1, 1, order_id, "c", "AAPL", side, price, 3, liquidity, 3, 0, engine, 99, (contra << 48) + 9
    )


def test_a_level_shows_each_engines_share() -> None:
    """The consolidated levels are sums over the engines, best first, with what each engine adds."""
    venue = Venue("AAPL")
    venue.book(1, "AAPL", 4, (BID, 100, 5, 1), (BID, 99, 7, 2), (ASK, 102, 1, 1))
    venue.book(2, "AAPL", 9, (BID, 100, 3, 1), (ASK, 101, 2, 1))
    book = venue.due(BookView)["view.book.AAPL"]
    assert (book.symbol, book.tick_size, book.lot_size, book.time_ns) == ("AAPL", "0.01", "1", START + 5)
    assert book.bids == (
        ConsolidatedLevel(100, 8, 2, (Share(1, 5, 1), Share(2, 3, 1))),
        ConsolidatedLevel(99, 7, 2, (Share(1, 7, 2),)),
    )
    assert [level.price for level in book.asks] == [101, 102]
    assert [(one.engine, one.sequence, one.trusted, one.bids) for one in book.engines] == [
        (1, 4, True, ((100, 5, 1), (99, 7, 2))),
        (2, 9, True, ((100, 3, 1),)),
    ]


def test_the_best_twenty_levels_are_shown() -> None:
    """A deep book is cut to its best levels, summed and by engine."""
    venue = Venue("AAPL", engines=1)
    venue.book(1, "AAPL", 1, *((BID, price, 1, 1) for price in range(1, 100)))
    book = venue.due(BookView)["view.book.AAPL"]
    best = [*range(99, 99 - DEPTH, -1)]
    assert [level.price for level in book.bids] == best
    assert [price for price, _, _ in book.engines[0].bids] == best


def test_only_what_changed_is_shown_again() -> None:
    """A quiet symbol is not shown in the next round, one that changed is."""
    venue = Venue("AAPL", "MSFT")
    assert venue.due(BookView).keys() == {"view.book.AAPL", "view.book.MSFT"}
    assert venue.due(BookView, after_ms=66) == {}
    venue.book(1, "MSFT", 1, (BID, 100, 5, 1))
    assert venue.due(BookView, after_ms=66).keys() == {"view.book.MSFT"}
    assert venue.due(BookView, after_ms=66) == {}


def test_everything_is_shown_every_second() -> None:
    """What did not change for a second is shown again: symbols, books and best prices."""
    venue = Venue("AAPL")
    venue.due(BookView)
    due = venue.views.due(venue.market, START + REFRESH_NS - 1, 1)
    assert [subject for subject, _ in due] == ["view.engines"]
    due = venue.views.due(venue.market, START + REFRESH_NS, 1)
    assert [subject for subject, _ in due] == ["view.symbols", "view.book.AAPL", "nbbo.AAPL"]


def test_the_best_prices_are_shown_when_they_changed() -> None:
    """A change deeper in the book leaves the NBBO unsaid."""
    venue = Venue("AAPL")
    venue.book(1, "AAPL", 1, (BID, 100, 5, 1))
    best = venue.due(NbboView)["nbbo.AAPL"]
    assert (best.bid, best.ask) == ((100, 5, 1), None)
    venue.book(1, "AAPL", 2, (BID, 100, 5, 1), (BID, 90, 5, 1))
    assert venue.due(NbboView, after_ms=66) == {}
    venue.book(2, "AAPL", 1, (BID, 100, 1, 1))
    assert venue.due(NbboView, after_ms=66)["nbbo.AAPL"].bid == (100, 6, 2)


@pytest.mark.parametrize("changed_in", [range(1, 20), range(7, 8)], ids=["every round", "one round"])
def test_best_prices_that_stand_still_are_repeated(changed_in: range) -> None:
    """They are shown every second, whatever changes deeper in the book meanwhile."""
    venue = Venue("AAPL")
    venue.due(NbboView)
    for tenth in range(1, 20):
        if tenth in changed_in:
            venue.views.note_change("AAPL")
        assert bool(venue.due(NbboView, after_ms=100)) == (tenth == 10), tenth


def test_a_dead_engines_book_leaves_the_sums() -> None:
    """When an engine goes down its levels are no longer summed, and its own book is said to be untrusted."""
    venue = Venue("AAPL")
    venue.book(1, "AAPL", 1, (BID, 100, 5, 1))
    venue.book(2, "AAPL", 1, (BID, 101, 5, 1))
    venue.due(BookView)
    venue.now_ns += DOWN_NS + 1
    venue.beat(2, sequences={"AAPL": 1})
    assert venue.market.peers[1].tick(venue.now_ns) is PeerState.DOWN
    venue.views.note_state(venue.market.peers[1])
    book = venue.due(BookView)["view.book.AAPL"]
    assert [level.price for level in book.bids] == [101]
    assert [one.trusted for one in book.engines] == [False, True]


def test_a_symbol_outside_the_list_is_not_shown() -> None:
    """A book of a symbol without tick size has no view, nor have its trades."""
    venue = Venue()
    venue.book(1, "AAPL", 1, (BID, 100, 5, 1))
    venue.views.note_executions(executions(1, fill(1, 1)))
    assert venue.due(BookView) == {}
    assert venue.due(TradesView) == {}


def test_symbols_that_are_gone_take_no_place() -> None:
    """One that is left is repeated every second, however many were taken out of the list."""
    venue = Venue("STAYS", *(f"S{number}" for number in range(2 * MAX_BOOKS)))
    for _ in range(3):
        venue.due(BookView, after_ms=1)
    (stays,) = [entry for symbol, entry in venue.market.instruments.items() if symbol == "STAYS"]
    venue.market = Market({"STAYS": stays}, venue.market.engines, venue.market.peers)
    for _ in range(2):
        venue.due(BookView, after_ms=REFRESH_NS // MS)
    assert list(venue.due(BookView, after_ms=REFRESH_NS // MS)) == [subjects.view_book("STAYS")]


def test_thousands_of_books_take_turns() -> None:
    """A round shows at most MAX_BOOKS books, and all were shown after as many rounds as that takes."""
    symbols = [f"S{number}" for number in range(3 * MAX_BOOKS)]
    venue = Venue(*symbols, engines=1)
    shown: list[str] = []
    for _ in range(3):
        books = venue.due(BookView, after_ms=66)
        assert len(books) == MAX_BOOKS
        shown += books
        for symbol in symbols[:10]:
            venue.views.note_change(symbol)
    assert sorted(shown) == sorted(subjects.view_book(symbol) for symbol in symbols)


@pytest.mark.parametrize(("busy", "quiet"), [(MAX_BOOKS, 1), (3 * MAX_BOOKS, 1), (20, 60), (40, 40)])
def test_quiet_books_are_repeated_beside_busy_ones(busy: int, quiet: int) -> None:
    """A quiet book is shown about every second, and most places stay with those that change all the time."""
    busy_symbols = [f"BUSY{number}" for number in range(busy)]
    quiet_symbols = [f"QUIET{number}" for number in range(quiet)]
    venue = Venue(*busy_symbols, *quiet_symbols, engines=1)
    shown_ns = {subjects.view_book(symbol): START + REFRESH_NS for symbol in quiet_symbols}
    for _ in range(150):
        for symbol in busy_symbols:
            venue.views.note_change(symbol)
        books = venue.due(BookView, after_ms=66).keys()
        quiet_books = books & shown_ns.keys()
        assert len(books) == MAX_BOOKS
        if venue.now_ns > START + REFRESH_NS:  # before, the quiet ones are shown for the first time
            assert len(quiet_books) <= REPEATED_BOOKS
        shown_ns.update(dict.fromkeys(quiet_books, venue.now_ns))
        assert venue.now_ns - min(shown_ns.values()) < 1.5 * REFRESH_NS


def test_a_trade_tells_its_engine_and_where_the_taker_came_from() -> None:
    """One trade is told once, of its maker's fill; a taker from another engine is seen by its home."""
    venue = Venue("AAPL")
    venue.views.note_executions(executions(2, fill(2, 2, side=ASK, contra=1, price=101)))
    venue.views.note_executions(executions(1, fill(2, 1, liquidity=TAKER, side=BID, contra=2, price=101)))
    venue.views.note_executions(executions(1, fill(1, 1, side=BID, contra=1, price=99)))
    (view,) = venue.due(TradesView).values()
    assert view.trades == ((2, 1, 101, 3, BID, 99), (1, 1, 99, 3, ASK, 99))
    assert view.left_out == 0
    assert venue.due(TradesView, after_ms=66) == {}


def test_a_burst_of_trades_is_cut_to_the_newest() -> None:
    """What a view cannot hold is counted."""
    venue = Venue("AAPL")
    venue.views.note_executions(
        executions(1, *(fill(1, 1, price=price) for price in range(1, MAX_TRADES + 4)))
    )
    (view,) = venue.due(TradesView).values()
    assert view.left_out == 3
    assert [trade[2] for trade in view.trades] == [*range(4, MAX_TRADES + 4)]


def test_an_engine_tells_its_rates() -> None:
    """Orders and trades a second come from the execution reports, batches from the heartbeats."""
    venue = Venue("AAPL", engines=1)
    venue.beat(1, batch_number=10)
    venue.engine(1, after_ms=0)
    venue.now_ns += 1_000 * MS
    order = ReportedOrder("ann", 1, "c", "AAPL", BID, 1, 1, 100, 5)
    venue.views.note_executions(executions(1, *[order] * 30, fill(1, 1), fill(1, 1, liquidity=TAKER)))
    venue.beat(1, batch_number=25)
    status = venue.engine(1, after_ms=0)
    assert (status.orders_per_s, status.trades_per_s, status.batches_per_s) == (30.0, 1.0, 15.0)
    assert (status.batch_number, status.lag_ms) == (25, 0.0)
    assert venue.engine(1, after_ms=3_000).orders_per_s == 0.0


def test_batches_are_counted_from_the_first_known_number() -> None:
    """Before a first heartbeat it is 0: the whole journal was not written in the second after."""
    venue = Venue("AAPL", engines=1)
    feeds = {1: PeerFeed(1)}
    venue.market = Market(venue.market.instruments, venue.market.engines, feeds)
    venue.engine(1, after_ms=0)
    venue.now_ns += 1_000 * MS
    venue.beat(1, batch_number=300_000)
    assert venue.engine(1, after_ms=0).batches_per_s == 0.0
    venue.now_ns += 1_000 * MS
    venue.beat(1, batch_number=300_015)
    assert venue.engine(1, after_ms=0).batches_per_s == 15.0
    venue.now_ns += 1_000 * MS
    feeds[1] = PeerFeed(1)
    venue.beat(1, batch_number=3)
    assert venue.engine(1, after_ms=0).batches_per_s == 0.0, "an engine without a journal began again"


def test_an_engine_tells_how_long_its_journal_takes() -> None:
    """As its newest heartbeat says; nothing where nothing was stored, or where that is old news."""
    venue = Venue("AAPL", engines=1)
    venue.book(1, "AAPL", 1, (BID, 100, 5, 1))
    status = venue.engine(1)
    assert (status.commit_p50_ms, status.commit_max_ms) == (None, None)
    venue.beat(1, append_us=(900, 4_200))
    status = venue.engine(1)
    assert (status.commit_p50_ms, status.commit_max_ms) == (0.9, 4.2)
    venue.now_ns += DOWN_NS
    venue.market.peers[1].tick(venue.now_ns)
    status = venue.engine(1)
    assert (status.commit_p50_ms, status.commit_max_ms) == (None, None)


def test_an_engine_tells_why_it_is_down() -> None:
    """A change of state is shown at once, with its reason and the resyncs it cost."""
    venue = Venue("AAPL", engines=1)
    venue.book(1, "AAPL", 1, (BID, 100, 5, 1))
    status = venue.engine(1)
    assert (status.role, status.state, status.reason, status.resyncs) == ("primary", "live", "", 0)
    assert venue.due(EnginesView, after_ms=ENGINES_NS // MS - 1) == {}
    venue.now_ns += DOWN_NS
    feed = venue.market.peers[1]
    feed.tick(venue.now_ns)
    feed.tick(venue.now_ns)
    venue.views.note_state(feed)
    status = venue.engine(1, after_ms=0)
    assert status.state == "down"
    assert re.fullmatch(r"newest heartbeat is 1549 ms old", status.reason)
    assert status.resyncs == 0, "the first loss is the join"
    feed.lost()
    venue.views.note_state(feed)
    assert venue.engine(1, after_ms=0).resyncs == 1
    feed.on_message(BookSnapshot(1, 2, 1, 1, (), 0), "AAPL", venue.now_ns)
    assert venue.engine(1).resyncs == 2, "a wrong checksum costs one too"


def test_an_engine_tells_why_it_takes_no_orders() -> None:
    """Its feed is live all the while; a new reign has troubles of its own."""
    venue = Venue("AAPL", engines=1)
    venue.book(1, "AAPL", 1, (BID, 100, 5, 1))
    venue.beat(1, trouble="the journal is full")
    status = venue.engine(1)
    assert (status.state, status.reason) == ("live", "the journal is full")
    feed = venue.market.peers[1]
    feed.on_message(Heartbeat(1, 2, 1, venue.now_ns, {}), None, venue.now_ns)
    status = venue.engine(1)
    assert (feed.trouble, status.epoch) == ("", 2)


def test_an_engine_that_was_never_heard_is_down() -> None:
    """An engine that is registered and silent is shown as such."""
    venue = Venue("AAPL", engines=1)
    del venue.market.peers[1]  # type: ignore[attr-defined]  # a dict, only read as a mapping
    status = venue.engine(1, after_ms=0)
    assert (status.state, status.reason, status.lag_ms) == ("down", "no heartbeat heard", None)


def test_standbys_come_after_the_primaries() -> None:
    """A standby is shown with how far behind it is."""
    venue = Venue("AAPL", engines=2)
    venue.market = msgspec.structs.replace(
        venue.market, standbys=[StandbyStatus(1, "127.0.0.1:50061", 7, 3, 40, 2)]
    )
    (view,) = venue.due(EnginesView).values()
    assert [(status.engine, status.role) for status in view.engines] == [
        (1, "primary"),
        (2, "primary"),
        (1, "standby"),
    ]
    assert (view.engines[2].batch_number, view.engines[2].lag_batches) == (40, 2)


def test_new_instruments_are_shown_at_once() -> None:
    """A symbol that is listed later appears in the next round, with its empty book."""
    venue = Venue("AAPL")
    venue.due(SymbolsView)
    instruments = {**venue.market.instruments, "BRK.B": InstrumentEntry("BRK.B", "0.05", "10")}
    venue.market = msgspec.structs.replace(venue.market, instruments=instruments)
    venue.views.note_instruments()
    due = dict(venue.views.due(venue.market, START + 66 * MS, 5))
    assert due["view.symbols"] == SymbolsView(
        5, (ViewSymbol("AAPL", "0.01", "1"), ViewSymbol("BRK.B", "0.05", "10"))
    )
    assert "view.book.BRK=B" in due


def _documented() -> list[tuple[str, str]]:
    """Each subject of docs/views.md with the example that follows it."""
    return re.findall(r"^    (view\.\S+|nbbo\.\S+)\n((?:    .+\n)+)", DOCS.read_text(), re.MULTILINE)


KINDS: dict[str, type[View]] = {
    "view.book.AAPL": BookView,
    "view.trades.AAPL": TradesView,
    "nbbo.AAPL": NbboView,
    "view.engines": EnginesView,
    "view.symbols": SymbolsView,
}


@pytest.mark.parametrize(("subject", "example"), _documented())
def test_the_documented_examples_are_what_is_published(subject: str, example: str) -> None:
    """Each example has exactly the fields of its message, in their order, and nothing else."""
    decoded = msgspec.json.decode(example, type=KINDS[subject])
    assert msgspec.json.decode(encode(decoded)) == msgspec.json.decode(example)


def test_every_view_is_documented() -> None:
    """No subject lacks an example."""
    assert [subject for subject, _ in _documented()] == list(KINDS)
