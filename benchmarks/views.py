"""What it costs the exchange to publish its views: made and encoded from a synthetic feed, without sending.

    python benchmarks/views.py [--engines 2] [--symbols 6] [--orders 20000] [--seconds 10]

Each order changes one level of one engine's book, and every fourth trades. Counted is the processor time of
the views alone, not that of following the feed.
"""

import argparse
import random
import time
from typing import NamedTuple

from bus.messages import (
    ASK,
    BID,
    BookDelta,
    BookSnapshot,
    EngineEntry,
    Executions,
    Heartbeat,
    InstrumentEntry,
    ReportedFill,
    ReportedOrder,
    encode,
)
from bus.peer import PeerFeed
from bus.replica import BookReplica
from exchange.market_views import Market, MarketViews

ROUNDS_PER_S = 15
ROUND_NS = 1_000_000_000 // ROUNDS_PER_S
LEVELS = 200
MIDDLE = 10_000


class Source:
    """One engine's books of all symbols, and the feed of it."""

    def __init__(self, engine: int, symbols: list[str]) -> None:
        self.engine = engine
        self.feed = PeerFeed(engine)
        self.books = {symbol: BookReplica(symbol) for symbol in symbols}
        levels = [(BID, MIDDLE - n, 10, 2) for n in range(1, LEVELS)]
        levels += [(ASK, MIDDLE + n, 10, 2) for n in range(1, LEVELS)]
        for symbol, book in self.books.items():
            book.load(1, 1, levels)
            self.feed.on_message(BookSnapshot(1, 1, 1, 1, tuple(levels), book.checksum), symbol, 0)

    def order(self, symbol: str, draw: random.Random) -> None:
        """One level of one book changes."""
        book, side, distance = self.books[symbol], draw.choice((BID, ASK)), draw.randrange(1, LEVELS)
        price = MIDDLE - distance if side == BID else MIDDLE + distance
        levels = ((side, price, draw.randrange(1, 100), 2),)
        before = book.sequence
        check = book.advance(before + 1, levels)
        self.feed.on_message(BookDelta(1, before + 1, before, 1, 1, levels, check), symbol, 1)


class Cost(NamedTuple):
    """What a second of views takes: part of a core, messages, bytes."""

    share: float
    messages: float
    octets: float


def publishing(engines: int, symbol_count: int, orders: int, seconds: int) -> Cost:
    """The cost of making and encoding the views of so many orders a second, over so many seconds."""
    symbols = [f"S{number}" for number in range(symbol_count)]
    sources = [Source(number, symbols) for number in range(1, engines + 1)]
    market = Market(
        {symbol: InstrumentEntry(symbol, "0.01", "1") for symbol in symbols},
        {source.engine: EngineEntry(source.engine, 1, "127.0.0.1:1", 1) for source in sources},
        {source.engine: source.feed for source in sources},
    )
    views, draw = MarketViews(), random.Random(1)
    spent_ns = messages = octets = 0
    for number in range(seconds * ROUNDS_PER_S):
        now_ns = number * ROUND_NS
        for source in sources:
            source.feed.on_message(Heartbeat(source.engine, 1, number, now_ns, {}), None, now_ns)
        noted = []
        for _ in range(orders // ROUNDS_PER_S):
            source, symbol = draw.choice(sources), draw.choice(symbols)
            source.order(symbol, draw)
            noted.append((source.engine, symbol, draw.randrange(4) == 0))
        reports = {
            source.engine: Executions(source.engine, 1, 1, 1, 1, tuple(_reports(source.engine, noted)))
            for source in sources
        }
        begun_ns = time.process_time_ns()
        for _, symbol, _ in noted:
            views.note_change(symbol)
        for message in reports.values():
            views.note_executions(message)
        for subject, view in views.due(market, now_ns, now_ns):
            messages += 1
            octets += len(subject) + len(encode(view))
        spent_ns += time.process_time_ns() - begun_ns
    return Cost(spent_ns / 1e9 / seconds, messages / seconds, octets / seconds)


def main() -> None:
    """Run and print what a second of views cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--symbols", type=int, default=6)
    parser.add_argument("--orders", type=int, default=20_000, help="a second, of all engines")
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    cost = publishing(options.engines, options.symbols, options.orders, options.seconds)
    print(
        f"{options.orders} orders/s, {options.engines} engines, {options.symbols} symbols: "
        f"{100 * cost.share:.1f} % of a core, {cost.messages:.0f} messages/s, {cost.octets / 1024:.0f} kB/s"
    )


def _reports(engine: int, noted: list[tuple[int, str, bool]]) -> list[ReportedOrder | ReportedFill]:
    reports: list[ReportedOrder | ReportedFill] = []
    for where, symbol, trades in noted:
        if where == engine:
            reports.append(ReportedOrder("c", 1, "i", symbol, BID, 1, 1, MIDDLE, 5))
            if trades:
                maker = ReportedFill(
                    "c", 1, 1, 1, "i", symbol, BID, MIDDLE, 5, 1, 5, 0, engine, 1, engine << 48
                )
                reports += [maker, maker]  # the taker's is as long, and passed over
    return reports


if __name__ == "__main__":
    main()
