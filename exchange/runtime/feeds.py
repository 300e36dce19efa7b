"""What the exchange shows of the engines' feeds: states, the consolidated book, best prices in the log.

Here: reading `PeerFeed`s. Not here: following them (`bus.follower`). Only synced books of live engines count.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Final

from matchbus.listings import add_levels
from matchbus.v1 import matchbus_pb2 as pb

from bus import consolidated
from bus.messages import ASK, BID, EngineEntry, StandbyStatus
from bus.peer import PeerFeed, PeerState, protected_books
from exchange.market_views import what_is_wrong

_log: Final = logging.getLogger("exchange")
_book_log: Final = logging.getLogger("synchronizer")

_STATES: Final = {
    PeerState.LIVE: pb.ENGINE_STATE_LIVE,
    PeerState.SUSPECT: pb.ENGINE_STATE_SUSPECT,
    PeerState.DOWN: pb.ENGINE_STATE_DOWN,
}
_STANDBY_SILENCE_NS: Final = 2_000_000_000
"""A standby that was not heard for this long is not shown."""


def live_engines(engines: Iterable[int], peers: Mapping[int, PeerFeed]) -> list[int]:
    """Which of these engines have a live feed."""
    return [engine for engine in engines if engine in peers and peers[engine].state is PeerState.LIVE]


def are_all_there(engines: Collection[int], peers: Mapping[int, PeerFeed], symbols: Collection[str]) -> bool:
    """Whether every one of these engines is live, and its book of every one of these symbols is known."""
    return len(live_engines(engines, peers)) == len(engines) and all(
        (book := peers[engine].replicas.get(symbol)) is not None and book.synced
        for engine in engines
        for symbol in symbols
    )


def listed_engines(
    engines: Mapping[int, EngineEntry], peers: Mapping[int, PeerFeed], now_ns: int
) -> list[pb.Engine]:
    """Every registered engine as its feed looks at `now_ns` of the follower's clock, in order of numbers."""
    return [_listed(entry, peers.get(engine), now_ns) for engine, entry in sorted(engines.items())]


class Standbys:
    """The processes that stand by, each as it last said."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[StandbyStatus, int]] = {}

    def note(self, status: StandbyStatus, now_ns: int) -> None:
        """Remember what one said at `now_ns`."""
        self._heard[status.address] = status, now_ns

    def statuses(self, engines: Mapping[int, EngineEntry], now_ns: int) -> list[StandbyStatus]:
        """What those said that were heard lately and do not reign by now, in order of their engines."""
        reigning = {entry.address for entry in engines.values()}
        for address, (_, heard_ns) in list(self._heard.items()):
            if address in reigning or now_ns - heard_ns > _STANDBY_SILENCE_NS:
                del self._heard[address]
        return sorted((status for status, _ in self._heard.values()), key=lambda status: status.engine)

    def listed(self, engines: Mapping[int, EngineEntry], now_ns: int) -> list[pb.Engine]:
        """The same as ListEngines shows them."""
        return [
            pb.Engine(
                engine=status.engine,
                epoch=status.epoch,
                address=status.address,
                reason="stands by",
                role=pb.ENGINE_ROLE_STANDBY,
                batch_number=status.batch_number,
                lag_batches=status.lag_batches,
            )
            for status in self.statuses(engines, now_ns)
        ]


def consolidated_book(
    reply: pb.ConsolidatedBook, symbol: str, depth: int, peers: Mapping[int, PeerFeed]
) -> Iterator[None]:
    """The steps that sum the symbol's books of the live engines as they are now into the reply.

    `depth` levels a side, all of them when 0.
    """
    replicas = protected_books(peers, symbol)
    best = consolidated.nbbo(replicas)
    reply.symbol = symbol
    for made, level in ((reply.best_bid, best.bid), (reply.best_ask, best.ask)):
        if level is not None:
            made.price, made.quantity = level.price, level.quantity
    bids, asks = (consolidated.copied(replicas, side, depth or None) for side in (BID, ASK))
    return chain(add_levels(reply.bids, bids), add_levels(reply.asks, asks))


class FeedLog:
    """Logs what becomes of the engines' feeds: their states at once, best prices when `write` is called."""

    def __init__(self) -> None:
        self._states: dict[int, PeerState] = {}
        self._changed: set[tuple[int, str]] = set()
        self._written: dict[tuple[int, str], str] = {}

    def note(self, engine: int, symbol: str) -> None:
        """Remember that this book changed. Cheap: it is called for every delta."""
        self._changed.add((engine, symbol))

    def on_state(self, engine: int, peer: PeerFeed) -> None:
        """Log a feed's state, where it is another one than before."""
        if peer.state is not self._states.get(engine, PeerState.DOWN):
            level = logging.INFO if peer.state is PeerState.LIVE else logging.WARNING
            _log.log(level, "the feed of E%d is %s in epoch %d", engine, peer.state.value, peer.epoch)
        self._states[engine] = peer.state

    def write(self, peers: Mapping[int, PeerFeed]) -> None:
        """Log what became of the best prices noted since the last call."""
        changed, self._changed = self._changed, set()
        if not _book_log.isEnabledFor(logging.DEBUG):
            return
        for engine, symbol in sorted(changed):
            text = _best_prices(peers, engine, symbol)
            if self._written.get((engine, symbol)) != text:
                self._written[engine, symbol] = text
                _book_log.debug("book update: %s on E%d %s", symbol, engine, text)


def _listed(entry: EngineEntry, peer: PeerFeed | None, now_ns: int) -> pb.Engine:
    age_ns = None if peer is None else peer.age_ns(now_ns)
    state = PeerState.DOWN if peer is None else peer.state
    return pb.Engine(
        engine=entry.engine,
        role=pb.ENGINE_ROLE_PRIMARY,
        epoch=entry.epoch if peer is None else max(entry.epoch, peer.epoch),
        address=entry.address,
        state=_STATES[state],
        lag_ns=max(0, age_ns or 0),
        reason=what_is_wrong(peer, now_ns),
        batch_number=0 if peer is None else peer.batch_number,
    )


def _best_prices(peers: Mapping[int, PeerFeed], engine: int, symbol: str) -> str:
    peer = peers.get(engine)
    book = None if peer is None else peer.replicas.get(symbol)
    if book is None or not book.synced:
        return "out of sync"
    bid, ask = book.best(BID), book.best(ASK)
    return f"bid {_text(bid)} ask {_text(ask)}"


def _text(quote: tuple[int, int] | None) -> str:
    return "none" if quote is None else f"{quote[1]}@{quote[0]}"
