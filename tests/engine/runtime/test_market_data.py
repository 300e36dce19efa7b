"""What an engine publishes, over a real nats-server."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import subjects
from bus.connection import Connection
from bus.messages import (
    ASK,
    BID,
    MAX_TROUBLE,
    BookDelta,
    BookSnapshot,
    FeedMessage,
    Heartbeat,
    LevelChange,
    SnapshotRequest,
    Trades,
    decode_feed,
    encode,
)
from bus.replica import BookReplica, Outcome
from bus.server import NatsServer
from engine.events import BookChanged, Fill
from engine.runtime import market_data as feed
from engine.runtime.market_data import HEARTBEAT_NS, MAX_ACTIVE_PER_BEAT, MarketData
from engine.terms import Liquidity, Side
from simulation.virtual import clock
from tests.waiting import freeze, running

if TYPE_CHECKING:
    from tests.conftest import Connections

MS = 1_000_000
AAPL: tuple[LevelChange, ...] = ((BID, 100, 5, 1), (ASK, 101, 2, 1))
BOOKS: dict[str, tuple[int, tuple[LevelChange, ...]]] = {"AAPL": (7, AAPL), "BRK.B": (0, ())}


class Tape:
    """Everything one engine publishes, as it comes."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, FeedMessage]] = []
        self._news = asyncio.Event()

    async def take(self, msg: Msg) -> None:
        """One more message."""
        self.messages.append((msg.subject, decode_feed(msg.data)))
        self._news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for messages until `holds`."""
        async with asyncio.timeout(10):
            while not holds():
                self._news.clear()
                await self._news.wait()

    @property
    def snapshots(self) -> list[tuple[str, BookSnapshot]]:
        """(subject, snapshot), in order."""
        return [(subject, message) for subject, message in self.messages if isinstance(message, BookSnapshot)]

    @property
    def heartbeats(self) -> list[Heartbeat]:
        """In order."""
        return [message for _, message in self.messages if isinstance(message, Heartbeat)]


async def tape_of(nc: Client, engine: int) -> Tape:
    """Follow an engine; the subscription is there when this returns."""
    tape = Tape()
    await nc.subscribe(subjects.feed(engine), cb=tape.take)
    await nc.flush()
    return tape


def fill(engine: int, liquidity: Liquidity, side: Side = Side.SELL, execution_id: int = 1) -> Fill:
    """One side of a trade of 3 at 101."""
    return Fill(
        "alice", 1, execution_id, 1, "c", "AAPL", side, 101, 3, liquidity, 3, 0, engine, 1, 2
    )  # fmt: skip


@pytest.fixture
async def tape(nats_connection: Connection, engine: int) -> Tape:
    """What `engine` publishes."""
    return await tape_of(nats_connection, engine)


@pytest.fixture
async def market_data(nats_connection: Connection, engine: int, tape: Tape) -> MarketData:
    """The feed of `engine`, followed by `tape` before it started with BOOKS in epoch 3."""
    made = MarketData(nats_connection, engine)
    await made.start(3, BOOKS, batch_number=40, time_ns=9)
    return made


async def test_a_reign_begins_with_a_snapshot_of_every_book(
    market_data: MarketData, tape: Tape, engine: int
) -> None:
    """Empty books too, each on its own subject, with the epoch and sequence it is true at."""
    await tape.until(lambda: len(tape.snapshots) == 2)
    (first_subject, first), (second_subject, second) = tape.snapshots
    assert (first_subject, second_subject) == (f"md.{engine}.book.AAPL", f"md.{engine}.book.BRK=B")
    assert (first.epoch, first.sequence, first.batch_number, first.levels) == (3, 7, 40, AAPL)
    assert (second.sequence, second.levels) == (0, ())


async def test_a_batch_shows_as_deltas_then_trades(
    market_data: MarketData, tape: Tape, nats_connection: Connection, engine: int
) -> None:
    """Linked to the sequence before, checksummed, and only makers of this engine on the tape."""
    change = BookChanged("AAPL", 8, ((ASK, 101, 0, 0), (ASK, 102, 1, 1)))
    fills = [
        fill(engine, Liquidity.TAKER, Side.BUY),
        fill(engine, Liquidity.MAKER),
        fill(engine + 1, Liquidity.MAKER),
    ]
    await market_data.publish(3, 41, 10, [change], fills)
    assert nats_connection.pending_data_size == 0, "peers see the book before the client sees its reply"
    await tape.until(lambda: len(tape.messages) == 4)
    (_, delta), (trade_subject, trades) = tape.messages[2:]
    assert isinstance(delta, BookDelta)
    assert (delta.sequence, delta.previous_sequence, delta.batch_number, delta.time_ns) == (8, 7, 41, 10)
    replica = BookReplica("AAPL")
    replica.apply_snapshot(tape.snapshots[0][1])
    assert replica.apply_delta(delta) is Outcome.APPLIED
    assert replica.snapshot(0, 0) == market_data.replicas["AAPL"].snapshot(0, 0)
    assert trade_subject == f"md.{engine}.trade.AAPL"
    assert trades == Trades(3, 41, 10, ((1, 101, 3, Side.BUY),))


async def test_heartbeats_keep_their_rhythm_and_name_what_changed(
    market_data: MarketData, tape: Tape, nats_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 100 ms on average, whatever each one costs, with the sequence of books that changed lately."""
    publish = nats_connection.publish

    async def slow_publish(subject: str, payload: bytes) -> None:
        await publish(subject, payload)
        if subject == subjects.heartbeat(market_data.engine):
            await asyncio.sleep(0.03)  # with a pause of 100 ms after each of these, ten would take 1,300 ms

    monkeypatch.setattr(nats_connection, "publish", slow_publish)
    async with running(market_data.run()):
        await tape.until(lambda: len(tape.heartbeats) == 1)
        assert tape.heartbeats[0].sequences == {}
        assert tape.heartbeats[0].append_max_us == 0
        market_data.note_append(0.002)
        market_data.trouble = "no room" * 100
        await market_data.publish(3, 41, 10, [BookChanged("AAPL", 8, ((BID, 99, 1, 1),))])
        await tape.until(lambda: len(tape.heartbeats) == 2)
        assert (tape.heartbeats[1].append_p50_us, tape.heartbeats[1].append_max_us) == (2_000, 2_000)
        assert tape.heartbeats[1].trouble == ("no room" * 100)[:MAX_TROUBLE]
        await tape.until(lambda: len(tape.heartbeats) == 11)
    sent = [heartbeat.sent_ns for heartbeat in tape.heartbeats]
    assert 990 * MS <= sent[10] - sent[0] <= 1_250 * MS
    last = tape.heartbeats[-1]
    assert (last.epoch, last.batch_number, last.sequences) == (3, 41, {"AAPL": 8})


async def test_a_quiet_symbol_leaves_the_heartbeats(nats_connection: Connection, engine: int) -> None:
    """Two seconds after its last change it is named no more, whichever changed first."""
    clock = [10**12]
    tape = await tape_of(nats_connection, engine)
    market_data = MarketData(nats_connection, engine, monotonic_ns=lambda: clock[0])
    await market_data.start(3, BOOKS)
    level = ((BID, 99, 1, 1),)
    await market_data.publish(3, 1, 1, [BookChanged("AAPL", 8, level), BookChanged("BRK.B", 8, level)])
    clock[0] += 1_000 * MS
    await market_data.publish(3, 2, 1, [BookChanged("AAPL", 9, level)])
    for beats, step_ns in ((1, 1_000 * MS), (2, MS), (3, 1_000 * MS)):
        clock[0] += step_ns
        async with running(market_data.run()):
            await tape.until(lambda beats=beats: len(tape.heartbeats) == beats)  # type: ignore[misc]  # mypy does not see the default's type
    assert [heartbeat.sequences for heartbeat in tape.heartbeats] == [
        {"AAPL": 9, "BRK.B": 8},
        {"AAPL": 9},
        {},
    ]


async def test_requests_are_answered_once_for_all_who_ask(
    market_data: MarketData, tape: Tape, nats_connection: Connection, engine: int
) -> None:
    """Fifty requests within 100 ms cost one snapshot; unknown symbols and nonsense cost nothing."""
    async with running(market_data.run()):
        await tape.until(lambda: len(tape.heartbeats) > 1)
        before = len(tape.snapshots)
        for payload in (b"", b"[", b'["snapshot_request",["\xff"]]', b"[" * 100_000):
            await nats_connection.publish(f"snapshot.{engine}", payload)
        for _ in range(50):
            await nats_connection.publish(f"snapshot.{engine}", encode(SnapshotRequest(("AAPL", "NONE"))))
        await tape.until(lambda: len(tape.snapshots) > before)
    answers = [subject for subject, _ in tape.snapshots[before:]]
    assert answers.count(f"md.{engine}.book.AAPL") <= 2
    assert all(subject.endswith((".AAPL", ".BRK=B")) for subject in answers)


async def test_an_active_book_is_shown_again_without_being_asked(market_data: MarketData, tape: Tape) -> None:
    """A snapshot of what changes comes round within two seconds."""
    async with running(market_data.run()):
        await market_data.publish(3, 41, 10, [BookChanged("AAPL", 8, ((BID, 99, 1, 1),))])
        await tape.until(lambda: any(snapshot.sequence == 8 for _, snapshot in tape.snapshots))
    assert len(tape.heartbeats) <= 20


async def test_an_idle_book_is_shown_again_now_and_then(
    market_data: MarketData, tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few books come round as seldom as many do: a deep one costs whoever follows it."""
    monkeypatch.setattr("engine.runtime.market_data.IDLE_CYCLE_NS", 700_000_000)
    async with running(market_data.run()):
        await tape.until(lambda: len(tape.snapshots) >= 4 * len(BOOKS))
    shown: dict[str, list[int]] = {}
    beat_ns = 0
    for subject, message in tape.messages:
        if isinstance(message, Heartbeat):
            beat_ns = message.sent_ns
        elif isinstance(message, BookSnapshot):
            shown.setdefault(subject, []).append(beat_ns)
    assert len(shown) == len(BOOKS)
    for times in shown.values():
        assert min(later - earlier for earlier, later in pairwise(times)) >= 700_000_000


def test_a_round_begins_with_what_was_shown_the_longest_ago() -> None:
    """Or a book that came early in a long round could come late in the next."""
    made = MarketData(cast("Client", None), 1)
    made._snapshot_ns.update(A=3, B=1, C=2, D=9)
    cycle: list[str] = []
    made._owe_round(cycle, "ABCD", 5, 2)
    assert (list(made._owed), cycle) == (["B", "C"], ["A"])


async def test_snapshots_of_very_many_active_books_take_turns(
    nats_connection: Connection, engine: int, tape: Tape
) -> None:
    """At one heartbeat a hundred come round, and after a while each came."""
    symbols = [f"S{number}" for number in range(250)]
    market_data = MarketData(nats_connection, engine)
    await market_data.start(3, dict.fromkeys(symbols, (0, ())))
    changes = [BookChanged(symbol, 1, ((BID, 100, 5, 1),)) for symbol in symbols]
    await market_data.publish(3, 1, 5, changes)
    async with running(market_data.run()):
        await tape.until(lambda: len({subject for subject, _ in tape.snapshots[250:]}) == 250)
    kinds = "".join("h" if isinstance(message, Heartbeat) else "s" for _, message in tape.messages[500:])
    assert max(map(len, kinds.split("h"))) <= MAX_ACTIVE_PER_BEAT


@pytest.fixture
def no_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots come only where they are owed."""
    for cycle in ("ACTIVE_CYCLE_NS", "IDLE_CYCLE_NS"):
        monkeypatch.setattr(f"engine.runtime.market_data.{cycle}", 10**12)


@pytest.mark.usefixtures("no_rounds")
async def test_what_was_left_out_while_nats_was_away_comes_as_snapshots(
    own_server: NatsServer, connections: "Connections"
) -> None:
    """Publishing never fails nor waits; every book is shown again after the reconnect."""
    nc = await connections.open(own_server.url)
    market_data = MarketData(nc, 1)
    await market_data.start(3, BOOKS)
    async with running(market_data.run()):
        await own_server.kill()
        async with asyncio.timeout(5):
            while nc.is_connected:  # noqa: ASYNC110 -- nats-py tells it to one owner only
                await asyncio.sleep(0.01)
        await market_data.publish(3, 41, 10, [BookChanged("AAPL", 8, ((BID, 99, 1, 1),))])
        assert market_data.messages_left_out >= 1
        await own_server.start()
        tape = await tape_of(await connections.open(own_server.url), 1)
        await tape.until(
            lambda: {subject for subject, _ in tape.snapshots} >= {"md.1.book.AAPL", "md.1.book.BRK=B"}
        )
        await tape.until(lambda: any(snapshot.sequence == 8 for _, snapshot in tape.snapshots))


@pytest.mark.usefixtures("no_rounds")
async def test_a_delta_too_large_for_nats_comes_as_a_snapshot(market_data: MarketData, tape: Tape) -> None:
    """A batch that removes a hundred thousand levels is not lost: the small book after it is shown."""
    levels = tuple((BID, price, 0, 0) for price in range(1_000, 150_000))
    async with running(market_data.run()):
        await market_data.publish(3, 41, 10, [BookChanged("AAPL", 8, levels)])
        await tape.until(lambda: any(snapshot.sequence == 8 for _, snapshot in tape.snapshots))
    assert market_data.messages_left_out == 1


async def test_a_book_too_large_for_nats_is_shown_in_parts(
    own_server: NatsServer, connections: "Connections"
) -> None:
    """160,000 levels, with the largest numbers: more than NATS takes at once, or than the socket holds."""
    levels = tuple(
        (side, 10**12 - price, 2**63 - 1 - price, 10**6) for side in (BID, ASK) for price in range(80_000)
    )
    tape = await tape_of(await connections.open(own_server.url), 1)
    market_data = MarketData(await connections.open(own_server.url), 1)
    await freeze(own_server.pid)
    try:
        await market_data.start(3, {"AAPL": (7, levels), "BRK.B": (0, ())})
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    assert market_data.messages_left_out > 0, "the rest waits for the socket"
    replica = BookReplica("AAPL")

    async with running(market_data.run()):
        await tape.until(lambda: tape.snapshots[-1:] != [] and "BRK=B" in tape.snapshots[-1][0])
    outcomes = [
        replica.apply_snapshot(snapshot)
        for subject, snapshot in tape.snapshots
        if subject == "md.1.book.AAPL"
    ]
    assert outcomes[:10] == [Outcome.WAITING] * 9 + [Outcome.APPLIED]
    assert replica.snapshot(0, 0) == market_data.replicas["AAPL"].snapshot(0, 0)


class Taking:
    """In the place of a connection: it has taken these, and takes more unless it `is_full`."""

    is_connected = True
    is_closed = True  # nothing is to be unsubscribed
    max_payload = 2**20

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.is_full = False
        self.stats = {"reconnects": 0}

    @property
    def pending_data_size(self) -> int:
        """As Connection says."""
        return 2**30 if self.is_full else 0

    async def subscribe(self, *_: object, **__: object) -> None:
        """Nobody asks for anything."""

    async def publish(self, _subject: str, payload: bytes) -> None:
        """Take one more."""
        self.taken.append(payload)

    def new(self, kind: type[FeedMessage]) -> list[Any]:
        """What it has taken of a kind since it was asked last."""
        taken, self.taken = map(decode_feed, self.taken), []
        return [message for message in taken if isinstance(message, kind)]


async def test_snapshots_leave_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what waited while NATS took nothing, one at a time: all at once would hold up the engine."""
    nc, books = Taking(), dict.fromkeys("ABCDE", (0, ()))
    await MarketData(cast("Client", nc), 1).start(3, {"A": (0, ())})
    monkeypatch.setattr(feed, "MAX_PASS_BYTES", len(nc.taken.pop()) + 1)
    market_data = MarketData(cast("Client", nc), 1)
    nc.is_full = True
    await market_data.start(3, books)
    assert len(market_data._parts) == 1, "the others may change before they can leave"
    nc.is_full = False
    for portion in (2, 2, 1, 0):
        await market_data._send_owed()
        assert len(nc.new(BookSnapshot)) == portion


@pytest.mark.usefixtures("no_rounds")
async def test_all_books_are_shown_once_after_a_reconnect() -> None:
    """What was under way is lost; later beats have nothing to mend."""
    nc, now_ns = Taking(), 10**11
    market_data = MarketData(cast("Client", nc), 1, monotonic_ns=lambda: now_ns)
    await market_data.start(3, BOOKS)
    nc.new(BookSnapshot)
    nc.stats["reconnects"] += 1
    for shown in (len(BOOKS), 0, 0):
        now_ns += HEARTBEAT_NS
        await market_data._beat()
        assert len(nc.new(BookSnapshot)) == shown


def test_beats_that_were_missed_are_not_made_up_for() -> None:
    """An engine that was held up tells so once, and goes on in the old rhythm."""

    async def beats_ms() -> list[int]:
        loop, nc = asyncio.get_running_loop(), Taking()
        assert isinstance(loop, clock.VirtualLoop)
        market_data = MarketData(cast("Client", nc), 1, monotonic_ns=time.monotonic_ns)
        async with running(market_data.run()):
            await asyncio.sleep(0.25)
            loop._jumping.now_s += 1
            await asyncio.sleep(0.2)
        return [heartbeat.sent_ns // MS for heartbeat in nc.new(Heartbeat)]

    assert clock.run(beats_ms) == [0, 100, 200, 1250, 1300, 1400]


async def test_very_many_trades_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, in their order."""
    monkeypatch.setattr(feed, "MAX_TRADES_PER_MESSAGE", 2)
    nc = Taking()
    market_data = MarketData(cast("Client", nc), 1)
    await market_data.start(3, BOOKS)
    fills = [fill(1, Liquidity.MAKER, execution_id=number) for number in range(1, 6)]
    await market_data.publish(3, 41, 10, [], fills)
    parts = [[trade[0] for trade in message.trades] for message in nc.new(Trades)]
    assert parts == [[1, 2], [3, 4], [5]]
    assert market_data.trades == 5


async def test_requests_for_very_many_books_wait_for_a_heartbeat(
    market_data: MarketData, tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would hold up the engine, and they come in crowds; one for a few is answered at once."""
    for number in range(101):
        await market_data.add_book(f"S{number}")
    passes = []
    send_owed = market_data._send_owed

    async def note_pass() -> None:
        passes.append(len(market_data._owed))
        await send_owed()

    monkeypatch.setattr(market_data, "_send_owed", note_pass)
    await market_data._on_request(Msg(None, data=encode(SnapshotRequest(()))))  # type: ignore[arg-type]
    assert not passes
    await market_data._beat()
    assert passes == [len(market_data.replicas)]
    market_data._owed.clear()
    await market_data._on_request(Msg(None, data=encode(SnapshotRequest(("S1",)))))  # type: ignore[arg-type]
    assert passes[1:] == [1]


async def test_a_crowd_of_requests_for_all_books_costs_no_more_than_one(
    market_data: MarketData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand walks through ten thousand books would cost the engine its lease."""
    walks = 0

    class Walked(dict[str, BookReplica]):
        def __iter__(self) -> Iterator[str]:
            nonlocal walks
            walks += 1
            return super().__iter__()

    for number in range(101):
        await market_data.add_book(f"S{number}")
    monkeypatch.setattr(market_data, "replicas", Walked(market_data.replicas))
    for _ in range(3):
        await market_data._on_request(Msg(None, data=encode(SnapshotRequest(()))))  # type: ignore[arg-type]
    assert walks == 1
    assert len(market_data._owed) == len(market_data.replicas)


async def test_thousands_of_new_symbols_hold_nothing_up(market_data: MarketData) -> None:
    """Others have a turn between any two: the engine would lose its lease meanwhile."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with running(others()):
        for number in range(100):
            await market_data.add_book(f"S{number}")
    assert turns >= 100


async def test_a_new_symbol_starts_with_an_empty_book(
    market_data: MarketData, tape: Tape, engine: int
) -> None:
    """Its followers learn of it at once."""
    await market_data.add_book("MSFT")
    await market_data.add_book("MSFT")
    await tape.until(lambda: len(tape.snapshots) == 3)
    subject, snapshot = tape.snapshots[2]
    assert (subject, snapshot.epoch, snapshot.levels) == (f"md.{engine}.book.MSFT", 3, ())
