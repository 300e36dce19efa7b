"""What the exchange shows of the engines' feeds: states, the consolidated book, best prices in the log.

Here: reading `PeerFeed`s. Not here: following them (`bus.follower`). Only synced books of live engines count.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Final

from matchbus.listings import add_levels
from matchbus.v1 import matchbus_pb2

from bus import consolidated
from bus.messages import ASK, BID, EngineEntry, StandbyStatus
from bus.peer import PeerFeed, PeerState
from exchange.market_views import why_not_live
from exchange.runtime.servicer import EngineView

log = logging.getLogger("exchange")

_STATES: Final = {
    PeerState.LIVE: matchbus_pb2.ENGINE_STATE_LIVE,
    PeerState.SUSPECT: matchbus_pb2.ENGINE_STATE_SUSPECT,
    PeerState.DOWN: matchbus_pb2.ENGINE_STATE_DOWN,
}
_STANDBY_SILENCE_NS: Final = 2_000_000_000
"""A standby that was not heard for this long is not shown."""


def live_engines(engines: Iterable[int], peers: Mapping[int, PeerFeed]) -> list[int]:
    """Which of these engines have a live feed."""
    return [engine for engine in engines if engine in peers and peers[engine].state is PeerState.LIVE]


def engine_views(
    engines: Mapping[int, EngineEntry], peers: Mapping[int, PeerFeed], now_ns: int
) -> list[EngineView]:
    """Every registered engine as its feed looks at `now_ns` of the follower's clock, in order of numbers."""
    return [_engine_view(entry, peers.get(engine), now_ns) for engine, entry in sorted(engines.items())]


class Standbys:
    """The processes that stand by, each as it last said."""

    __slots__ = ("_heard",)

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

    def views(self, engines: Mapping[int, EngineEntry], now_ns: int) -> list[EngineView]:
        """The same as ListEngines shows them."""
        return [
            EngineView(
                engine=status.engine,
                epoch=status.epoch,
                address=status.address,
                state=matchbus_pb2.ENGINE_STATE_UNSPECIFIED,
                lag_ns=0,
                reason="stands by",
                role=matchbus_pb2.ENGINE_ROLE_STANDBY,
                batch_number=status.batch_number,
                lag_batches=status.lag_batches,
            )
            for status in self.statuses(engines, now_ns)
        ]


def consolidated_book(
    reply: matchbus_pb2.ConsolidatedBook, symbol: str, depth: int, peers: Mapping[int, PeerFeed]
) -> Iterator[None]:
    """The steps that sum the symbol's books of the live engines as they are now into the reply.

    `depth` levels a side, all of them when 0.
    """
    replicas = {engine: book for engine, peer in sorted(peers.items()) if (book := peer.protected(symbol))}
    best = consolidated.nbbo(replicas)
    reply.symbol = symbol
    for made, level in ((reply.best_bid, best.bid), (reply.best_ask, best.ask)):
        if level is not None:
            made.price, made.quantity = level.price, level.quantity
    bids, asks = (consolidated.copied(replicas, side, depth or None) for side in (BID, ASK))
    return chain(add_levels(reply.bids, bids), add_levels(reply.asks, asks))


class FeedLog:
    """Logs what becomes of the engines' feeds: their states at once, best prices when `write` is called."""

    __slots__ = ("_changed", "_states", "_written")

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
            log.log(level, "the feed of E%d is %s in epoch %d", engine, peer.state.value, peer.epoch)
        self._states[engine] = peer.state

    def write(self, peers: Mapping[int, PeerFeed]) -> None:
        """Log what became of the best prices noted since the last call."""
        changed, self._changed = self._changed, set()
        for engine, symbol in sorted(changed):
            text = _best_prices(peers, engine, symbol)
            if self._written.get((engine, symbol)) != text:
                self._written[engine, symbol] = text
                log.info("book update: %s on E%d %s", symbol, engine, text)


def _engine_view(entry: EngineEntry, peer: PeerFeed | None, now_ns: int) -> EngineView:
    age_ns = None if peer is None else peer.age_ns(now_ns)
    state = PeerState.DOWN if peer is None else peer.state
    return EngineView(
        engine=entry.engine,
        epoch=entry.epoch if peer is None else max(entry.epoch, peer.epoch),
        address=entry.address,
        state=_STATES[state],
        lag_ns=max(0, age_ns or 0),
        reason=why_not_live(state, age_ns),
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
