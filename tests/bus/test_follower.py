"""Following engines over a real nats-server; the sending end is the engine's own."""

import asyncio
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from nats.aio.client import Client

import bus.follower
from bus import subjects
from bus.connection import Connection, connect
from bus.follower import FeedFollower
from bus.messages import ASK, BID, Heartbeat, LevelChange, Trades, encode
from bus.peer import LIVE_NS, PeerState
from bus.replica import BookReplica
from bus.server import NatsServer
from engine.events import BookChanged, Fill
from engine.runtime.market_data import MarketData
from engine.terms import Liquidity, Side
from tests.waiting import running, until

if TYPE_CHECKING:
    from tests.conftest import Connections

ROOT = Path(__file__).parents[2]
LEVELS: tuple[LevelChange, ...] = ((BID, 100, 5, 1), (ASK, 101, 2, 1))


class Venue:
    """One engine's publishing end and its number."""

    def __init__(self, nc: Client, number: int) -> None:
        self.number = number
        self.market_data = MarketData(nc, number)
        self._epoch = 0
        self._batch = 0

    async def start(self, *symbols: str, levels: tuple[LevelChange, ...] = LEVELS) -> None:
        """A new reign."""
        self._epoch += 1
        books = dict.fromkeys(symbols, (7, levels))
        await self.market_data.start(self._epoch, books)

    async def change(self, symbol: str, *levels: LevelChange, fills: tuple[Fill, ...] = ()) -> None:
        """One batch."""
        await self._publish([self._next(symbol, 1, levels)], fills)

    async def change_at_once(self, symbol: str, count: int) -> None:
        """So many changes of a level that leave in one write, more than a reader takes turn by turn."""
        await self._publish([self._next(symbol, n, ((BID, 90, n, 1),)) for n in range(1, count + 1)])

    def _next(self, symbol: str, further: int, levels: tuple[LevelChange, ...]) -> BookChanged:
        return BookChanged(symbol, self.market_data.replicas[symbol].sequence + further, levels)

    async def _publish(self, changes: list[BookChanged], fills: tuple[Fill, ...] = ()) -> None:
        self._batch += 1
        await self.market_data.publish(self._epoch, self._batch, self._batch, changes, fills)


def agrees(follower: FeedFollower, venue: Venue, symbol: str) -> bool:
    """Whether the follower has the venue's book, protected."""
    feed = follower.peers.get(venue.number)
    replica = None if feed is None else feed.protected(symbol)
    own = venue.market_data.replicas[symbol]
    return replica is not None and replica.snapshot(0, 0) == own.snapshot(0, 0)


@pytest.fixture
async def venue(nats_connection: Connection, engine: int) -> Venue:
    """An engine with books of AAPL and BRK.B."""
    made = Venue(nats_connection, engine)
    await made.start("AAPL", "BRK.B")
    return made


async def test_a_late_joiner_gets_every_book_and_follows(venue: Venue, nats_connection: Connection) -> None:
    """Found by its heartbeat, asked for snapshots, followed by deltas; listeners hear of it."""
    changes: list[tuple[int, str]] = []
    states: list[PeerState] = []
    follower = FeedFollower(
        nats_connection,
        own_engine=None,
        on_change=lambda engine, symbol: changes.append((engine, symbol)),
        on_state=lambda engine, feed: states.append(feed.state) if engine == venue.number else None,
    )
    async with running(venue.market_data.run(), follower.run()):
        await until(lambda: agrees(follower, venue, "AAPL") and agrees(follower, venue, "BRK.B"))
        maker = Fill("a", 1, 9, 1, "c", "AAPL", Side.SELL, 101, 2, Liquidity.MAKER, 2, 0, venue.number, 1, 2)
        await venue.change("AAPL", (ASK, 101, 0, 0), fills=(maker,))
        await until(lambda: agrees(follower, venue, "AAPL"))
    assert (venue.number, "AAPL") in changes
    assert (venue.number, "BRK.B") in changes
    assert states[-1] is PeerState.LIVE


async def test_a_follower_that_ends_leaves_no_subscription(venue: Venue, nats_connection: Connection) -> None:
    """Whoever goes on with the connection gets nothing that nobody reads."""
    before = set(nats_connection._subs)
    follower = FeedFollower(nats_connection, own_engine=None)
    async with running(venue.market_data.run(), follower.run()):
        await until(lambda: agrees(follower, venue, "AAPL"))
        assert set(nats_connection._subs) > before
    assert set(nats_connection._subs) == before


async def test_own_engine_is_not_followed(venue: Venue, nats_connection: Connection) -> None:
    """An engine knows its own book better."""
    other = Venue(nats_connection, venue.number + 10_000)
    await other.start("AAPL")
    follower = FeedFollower(nats_connection, own_engine=venue.number)
    async with running(venue.market_data.run(), other.market_data.run(), follower.run()):
        await until(lambda: agrees(follower, other, "AAPL"))
    assert venue.number not in follower.peers


async def test_an_engine_too_many_is_told_of_once(
    nats_connection: Connection,
    engine: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not followed, and the log says so with its number, the limit and what to do."""
    monkeypatch.setattr("bus.follower.MAX_PEERS", 1)
    too_many = engine + 10_000
    follower = FeedFollower(nats_connection, own_engine=None)

    async def beat(number: int, batch_number: int) -> None:
        heartbeat = encode(Heartbeat(number, 1, batch_number, 1, {}))
        await nats_connection.publish(subjects.heartbeat(number), heartbeat)

    async with running(follower.run()):
        await nats_connection.flush()  # it has subscribed meanwhile
        await beat(engine, 1)
        await until(lambda: engine in follower.peers)
        for number in (too_many, too_many + 1, too_many, engine):
            await beat(number, 2)
        await until(lambda: caplog.messages and follower.peers[engine].batch_number == 2)
    assert set(follower.peers) == {engine}
    (message,) = caplog.messages
    assert message.startswith(f"E{too_many} is not followed, nor is any engine found after it: 1 are")
    assert "run fewer engines" in message


async def test_a_symbol_too_many_is_told_of_once(
    venue: Venue,
    nats_connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its book is not kept, and the log says so with its name, the limit and what to do."""
    monkeypatch.setattr("bus.peer.MAX_SYMBOLS", 1)
    monkeypatch.setattr("bus.follower.MAX_SYMBOLS", 1)
    await venue.start("AAPL", "BRK.B", "MSFT")
    follower = FeedFollower(nats_connection, own_engine=None)
    async with running(venue.market_data.run(), follower.run()):
        await until(lambda: caplog.messages)
        (kept,) = follower.peers[venue.number].replicas
        for _ in range(3):
            await venue.change("MSFT", (BID, 99, 1, 1))
            await venue.change(kept, (BID, 99, 1, 1))
            await until(lambda: agrees(follower, venue, kept))
    (message,) = caplog.messages
    assert f"is not followed on E{venue.number}, nor is any symbol found after it: 1 books" in message
    assert "trade them in another market" in message


async def test_silence_takes_the_quotes_away_and_the_return_gives_them_back(
    venue: Venue, nats_connection: Connection
) -> None:
    """A stopped engine is down within half a second; started again in a new epoch it is protected again."""
    states: list[PeerState] = []
    follower = FeedFollower(
        nats_connection,
        own_engine=None,
        on_state=lambda engine, feed: states.append(feed.state) if engine == venue.number else None,
    )
    async with running(follower.run()):
        async with running(venue.market_data.run()):
            await until(lambda: agrees(follower, venue, "AAPL"))
        feed = follower.peers[venue.number]
        await until(lambda: feed.state is PeerState.DOWN, timeout_s=2)
        assert feed.protected("AAPL") is None
        await until(lambda: states[-1] is PeerState.DOWN)
        await venue.start("AAPL", "BRK.B")
        async with running(venue.market_data.run()):
            await until(lambda: agrees(follower, venue, "AAPL"))
        assert feed.epoch == 2


async def test_a_reader_that_is_held_up_does_not_take_that_for_silence(
    shared_server: NatsServer, nats_connection: Connection, engine: int
) -> None:
    """Heartbeats came all the time; they wait to be read when its event loop goes on."""
    states: list[PeerState] = []
    ended = threading.Event()

    async def trade() -> None:
        nc = await connect(shared_server.url, name="engine", on_closed=lambda: None)
        venue = Venue(nc, engine)
        await venue.start("AAPL")
        async with running(venue.market_data.run()):
            await asyncio.to_thread(ended.wait)
        await nc.close()

    follower = FeedFollower(
        nats_connection,
        own_engine=None,
        on_state=lambda number, feed: states.append(feed.state) if number == engine else None,
    )
    trading = asyncio.create_task(asyncio.to_thread(asyncio.run, trade()))
    try:
        async with running(follower.run()):
            await until(lambda: states and states[-1] is PeerState.LIVE)
            states.clear()
            feed = follower.peers[engine]
            for held_s in (0.2, 0.4, 0.6):
                time.sleep(held_s)  # noqa: ASYNC251 -- the loop is to stand still
                await until(lambda: (feed.age_ns(time.monotonic_ns()) or 0) < LIVE_NS)
                await asyncio.sleep(2 * bus.follower.TICK_S)
    finally:
        ended.set()
        await trading
    assert set(states) <= {PeerState.LIVE}


async def test_malformed_messages_cost_the_books_until_the_next_snapshot(
    venue: Venue, nats_connection: Connection
) -> None:
    """Nothing raises out of a callback (the fixture would see it), what a feed lost is counted and heals.

    Listeners hear of it at once.
    """
    heard: list[int] = []
    follower = FeedFollower(
        nats_connection,
        own_engine=None,
        on_state=lambda engine, feed: heard.append(feed.counters.malformed) if engine == number else None,
    )
    number = venue.number
    book = f"md.{number}.book.AAPL"
    heartbeat = encode(Heartbeat(number, 1, 1, 1, {}))
    bad = [
        (book, b""),
        (book, b"[" * 100_000),
        (book, b'["delta",1,"\xff"]'),
        (book, b'["delta",1,9,8,1,1,[[7,1,1,1]],5]'),
        (f"md.{number}.book.a*b", venue.market_data.replicas["AAPL"].snapshot(1, 1)),
        (f"md.{number}.trade.AAPL", venue.market_data.replicas["AAPL"].snapshot(1, 1)),
        (f"md.{number}.book.AAPL.X", venue.market_data.replicas["AAPL"].snapshot(1, 1)),
        (book, Trades(1, 1, 1, ())),
    ]
    async with running(venue.market_data.run(), follower.run()):
        await until(lambda: agrees(follower, venue, "AAPL"))
        feed = follower.peers[number]
        for token in ("x", "0", "99999", "6_5_5_3_5", "99999999"):
            await nats_connection.publish(f"md.{token}.heartbeat", heartbeat)
        for subject, message in bad:
            await nats_connection.publish(subject, message if isinstance(message, bytes) else encode(message))
        await until(lambda: feed.counters.malformed == len(bad))
        assert 1 in heard
        await until(lambda: agrees(follower, venue, "AAPL"))
        assert set(feed.replicas) == {"AAPL", "BRK.B"}
        assert set(follower.peers).isdisjoint({0, 65535, 99999, 99999999})


async def test_an_overflow_throws_the_queue_away_and_resyncs(
    shared_server: NatsServer, venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late quotes are not worked off one by one; after it the book is right again."""
    overflows = 0

    def on_error(error: Exception) -> None:
        nonlocal overflows
        overflows += follower.on_error(error)

    nc = await connect(shared_server.url, name="small", on_closed=lambda: None, on_error=on_error)
    monkeypatch.setattr(bus.follower, "MAX_PENDING_MESSAGES", 20)
    follower = FeedFollower(nc, own_engine=None)
    async with running(venue.market_data.run(), follower.run()):
        await until(lambda: agrees(follower, venue, "AAPL"))
        applied = follower.peers[venue.number].counters.applied
        await venue.change_at_once("AAPL", 3_000)
        await until(lambda: overflows > 0)
        await until(lambda: agrees(follower, venue, "AAPL"))
        assert follower.peers[venue.number].counters.applied < applied + 3_000
    await nc.close()
    assert not follower.on_error(ValueError())


async def test_a_reconnect_resyncs_every_book(own_server: NatsServer, connections: "Connections") -> None:
    """What was missed while NATS was away is not guessed."""
    venue = Venue(await connections.open(own_server.url), 1)
    await venue.start("AAPL")

    def reconnected() -> None:
        follower.reconnected()

    nc = await connect(
        own_server.url,
        name="reader",
        on_closed=lambda: None,
        on_reconnected=reconnected,
        on_error=lambda _: None,
    )
    follower = FeedFollower(nc, own_engine=None)
    async with running(venue.market_data.run(), follower.run()):
        await until(lambda: agrees(follower, venue, "AAPL"))
        losses = follower.peers[1].counters.losses
        await own_server.kill()
        await until(lambda: not nc.is_connected)
        await venue.change("AAPL", (BID, 99, 1, 1))
        await own_server.start()
        await until(lambda: agrees(follower, venue, "AAPL"))
        assert follower.peers[1].counters.losses > losses
    await nc.close()


async def test_the_example_holds_a_correct_book(shared_server: NatsServer, venue: Venue) -> None:
    """`examples/follow_feed.py` joins, follows, and starts over with a new epoch and after a lost delta."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "examples/follow_feed.py"),
        shared_server.url,
        "BRK.B",
        str(venue.number),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None

    async def line() -> str:
        async with asyncio.timeout(10):
            assert process.stdout is not None
            words = (await process.stdout.readline()).decode().split()
            if len(words) > 1:
                replica = venue.market_data.replicas["BRK.B"]
                assert words[:2] == [str(replica.sequence), str(replica.checksum)]
            return " ".join(words[2:] or words)

    async with running(venue.market_data.run()):
        assert await line() == "unsynced"
        assert await line() == "(100, 5) (101, 2)"
        await venue.change("BRK.B", (BID, 100, 0, 0))
        assert await line() == "None (101, 2)"
        lost = venue.market_data.replicas["BRK.B"]
        lost.advance(lost.sequence + 1, ((BID, 99, 4, 1),))
        await venue.change("BRK.B", (BID, 98, 1, 1))
        assert await line() == "unsynced"
        assert await line() == "(99, 4) (101, 2)"
        await venue.start("BRK.B", "AAPL")
        assert await line() == "(100, 5) (101, 2)"
        many = tuple((BID, price, 1, 1) for price in range(1, 40_001))
        await venue.start("BRK.B", "AAPL", levels=many)
        assert await line() == "unsynced", "the first part of three is not the book"
        assert await line() == "(40000, 1) None"
    assert await line() == "unsynced"
    process.terminate()
    await process.wait()


def test_the_checksums_in_the_documentation_are_right() -> None:
    """docs/feed.md works an example; this is it."""
    text = (ROOT / "docs/feed.md").read_text()
    book = BookReplica("X")
    book.load(1, 1, ((BID, 18950, 300, 2), (BID, 18949, 1200, 4), (ASK, 18952, 50, 1)))
    assert "18950:300;18949:1200;|18952:50;" in text
    assert f"checksum  {book.checksum}" in text
    book.load(1, 1, ())
    assert f"An empty book's text is `|`, its checksum {book.checksum}." in text
