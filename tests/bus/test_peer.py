"""One engine's feed: states, epochs, requests, and equality whatever the network does."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import BID, BookDelta, BookSnapshot, FeedMessage, Heartbeat, LevelChange, Trades
from bus.peer import DOWN_NS, LIVE_NS, MAX_SYMBOLS, STEADY_NS, PeerFeed, PeerState
from bus.replica import BookReplica

MS = 1_000_000
BEAT = 100 * MS
OFFSET = 5_000_000 * MS  # the sender's clock against ours


class Engine:
    """The sending end, with a clock of its own."""

    def __init__(self, *symbols: str) -> None:
        self.epoch = 1
        self.books = {symbol: BookReplica(symbol) for symbol in symbols}
        for book in self.books.values():
            book.load(1, 0, ())
        self.history: dict[tuple[str, int, int], tuple[LevelChange, ...]] = {}

    def restart(self) -> None:
        """A new reign over the same books."""
        self.epoch += 1
        for book in self.books.values():
            book.load(self.epoch, book.sequence, book.snapshot(0, 0).levels)

    def delta(self, symbol: str, *levels: LevelChange) -> BookDelta:
        """Change a book; the message that says so."""
        book = self.books[symbol]
        previous = book.sequence
        crc = book.advance(previous + 1, levels)
        self.remember()
        return BookDelta(self.epoch, previous + 1, previous, 1, 1, levels, crc)

    def snapshot(self, symbol: str) -> BookSnapshot:
        """A whole book."""
        self.remember()
        return self.books[symbol].snapshot(1, 1)

    def heartbeat(self, now_ns: int) -> Heartbeat:
        """A sign of life sent at `now_ns` of our clock."""
        sequences = {symbol: book.sequence for symbol, book in self.books.items()}
        return Heartbeat(1, self.epoch, 1, now_ns - OFFSET, sequences)

    def remember(self) -> None:
        """Keep what every book is now."""
        for symbol, book in self.books.items():
            self.history[symbol, self.epoch, book.sequence] = book.snapshot(0, 0).levels


def live_pair() -> tuple[Engine, PeerFeed, int]:
    """An engine and a live, synced feed of it, and the time."""
    engine, feed = Engine("AAPL"), PeerFeed(1)
    assert feed.symbols_to_request(0, 0.5) == ()
    feed.on_message(engine.snapshot("AAPL"), "AAPL", 0)
    feed.on_message(engine.heartbeat(0), None, 0)
    assert feed.tick(0) is PeerState.DOWN
    feed.on_message(engine.heartbeat(BEAT), None, BEAT)
    assert feed.tick(BEAT) is PeerState.LIVE
    return engine, feed, BEAT


def test_a_peer_is_live_after_a_snapshot_and_two_clean_heartbeats() -> None:
    """Neither alone is enough, and only then is a synced book protected."""
    engine, feed = Engine("AAPL"), PeerFeed(1)
    for beat in range(3):
        feed.on_message(engine.heartbeat(beat * BEAT), None, beat * BEAT)
    assert feed.state is PeerState.DOWN
    assert feed.protected("AAPL") is None
    feed.on_message(engine.snapshot("AAPL"), "AAPL", 2 * BEAT)
    assert feed.tick(2 * BEAT) is PeerState.LIVE
    assert feed.protected("AAPL") is feed.replicas["AAPL"]
    assert feed.protected("MSFT") is None


def test_silence_makes_suspect_then_down_and_nothing_protected() -> None:
    """150 ms without news is suspect, 300 ms down; down costs every book, so it asks again."""
    engine, feed, now = live_pair()
    assert feed.tick(now + LIVE_NS) is PeerState.LIVE
    assert feed.tick(now + LIVE_NS + 1) is PeerState.SUSPECT
    assert feed.protected("AAPL") is None
    assert feed.replicas["AAPL"].synced
    assert feed.tick(now + DOWN_NS + 1) is PeerState.DOWN
    assert not feed.replicas["AAPL"].synced
    now += DOWN_NS + 1
    assert feed.symbols_to_request(now, 0.5) == ()
    feed.on_message(engine.heartbeat(now), None, now)
    feed.on_message(engine.heartbeat(now + BEAT), None, now + BEAT)
    assert feed.state is PeerState.DOWN, "the snapshot that it had no longer counts"
    feed.on_message(engine.snapshot("AAPL"), "AAPL", now + BEAT)
    assert feed.protected("AAPL") is not None


def test_a_suspect_peer_is_live_again_with_its_next_heartbeat() -> None:
    """A short hiccup costs no snapshot."""
    engine, feed, now = live_pair()
    assert feed.tick(now + 200 * MS) is PeerState.SUSPECT
    feed.on_message(engine.heartbeat(now + 200 * MS), None, now + 201 * MS)
    assert feed.state is PeerState.LIVE


def test_old_heartbeats_that_arrive_now_are_old() -> None:
    """A backlog is measured as queueing delay, not as signs of life."""
    engine, feed, now = live_pair()
    backlog = [engine.heartbeat(now + beat * BEAT) for beat in range(1, 20)]
    for heartbeat in backlog[:10]:
        feed.on_message(heartbeat, None, now + 2_000 * MS)
    assert feed.tick(now + 2_000 * MS) is PeerState.DOWN
    age = feed.age_ns(now + 2_000 * MS)
    assert age is not None
    assert 990 * MS < age <= 1_000 * MS


@pytest.mark.parametrize("state", [PeerState.LIVE, PeerState.SUSPECT])
def test_a_late_heartbeat_takes_no_peer_down_while_others_wait_to_be_read(state: PeerState) -> None:
    """A reader that was held up itself reads the oldest first; what counts is time with nothing unread."""
    engine, feed, now = live_pair()
    assert feed.tick(now + (LIVE_NS if state is PeerState.LIVE else DOWN_NS)) is state
    read_at = now + 9 * BEAT
    for beat in range(1, 8):
        feed.on_message(engine.heartbeat(now + beat * BEAT), None, read_at)
        assert feed.state is state
    feed.on_message(engine.heartbeat(now + 8 * BEAT), None, read_at)
    assert feed.state is PeerState.LIVE


def test_late_heartbeats_do_not_bring_a_peer_back() -> None:
    """Each 200 ms late is not clean; two on time are enough."""
    engine, feed, now = live_pair()
    feed.tick(now + DOWN_NS + 1)
    assert feed.symbols_to_request(now + DOWN_NS + 1, 0.5) == ()
    feed.on_message(engine.snapshot("AAPL"), "AAPL", now + DOWN_NS + 1)
    for beat in range(5, 10):
        feed.on_message(engine.heartbeat(now + beat * BEAT), None, now + beat * BEAT + 200 * MS)
        assert feed.tick(now + beat * BEAT + 200 * MS) is PeerState.DOWN
    for beat, state in ((13, PeerState.DOWN), (14, PeerState.LIVE)):
        feed.on_message(engine.heartbeat(now + beat * BEAT), None, now + beat * BEAT)
        assert feed.tick(now + beat * BEAT) is state


def test_heartbeats_a_second_apart_never_bring_a_peer_back() -> None:
    """Clean means in a row: a gap of more than 300 ms starts the count again."""
    engine, feed = Engine("AAPL"), PeerFeed(1)
    for second in range(5):
        now = second * 1_000 * MS
        feed.on_message(engine.heartbeat(now), None, now)
        feed.on_message(engine.snapshot("AAPL"), "AAPL", now)
        for time_ns in (now, now + 500 * MS):
            assert feed.tick(time_ns) is PeerState.DOWN


def test_a_drifting_clock_does_not_age_a_peer() -> None:
    """A sender whose clock runs 50 millionths slower for a day stays live."""
    engine, feed, now = live_pair()
    for beat in range(1, 2_000):
        received = now + beat * BEAT * 432
        for late in (received - BEAT, received):
            feed.on_message(engine.heartbeat(late - late // 20_000), None, late)
            age = feed.age_ns(late)
            assert age is not None
            assert age < LIVE_NS


def test_a_clock_that_is_slewed_does_not_age_a_peer() -> None:
    """NTP may make it slower by 500 ppm for an hour: it is live until each next heartbeat."""
    engine, feed, now = live_pair()
    for beat in range(1, 36_000):
        at = now + beat * BEAT
        feed.on_message(engine.heartbeat(at - beat * BEAT // 2_000), None, at)
        assert feed.tick(at + BEAT) is PeerState.LIVE


def test_a_peer_whose_machine_was_paused_comes_back() -> None:
    """Its clock stood still for 30 s, so all that it sends looks so much older: for a minute it is down."""
    engine, feed, now = live_pair()
    behind = 30_000 * MS
    now += behind
    feed.tick(now)
    for beat in range(1, STEADY_NS // BEAT + 1):
        at = now + beat * BEAT + beat % 10 * 10 * MS
        feed.on_message(engine.heartbeat(now + beat * BEAT - behind), None, at)
        assert feed.state is PeerState.DOWN
    now += STEADY_NS
    for beat in range(1, 4):
        at = now + beat * BEAT
        feed.on_message(engine.heartbeat(at - behind), None, at)
    assert feed.symbols_to_request(at, 0.5) == ()
    feed.on_message(engine.snapshot("AAPL"), "AAPL", at)
    assert feed.protected("AAPL") is not None
    assert feed.age_ns(at + 200 * MS) == 200 * MS
    assert feed.tick(at + 200 * MS) is PeerState.SUSPECT


def test_a_short_pause_of_its_machine_does_not_age_a_peer_for_long() -> None:
    """One of 120 ms, as when a virtual machine moves, is forgotten after two minutes, not after ten."""
    engine, feed, now = live_pair()
    behind = 120 * MS
    for _ in range(1, 2 * STEADY_NS // BEAT + 3):
        now += BEAT
        feed.on_message(engine.heartbeat(now - behind), None, now)
    assert feed.age_ns(now) == 0


def test_a_backlog_that_shrinks_for_minutes_stays_old() -> None:
    """A reader that was frozen for ten minutes and catches up slowly takes nothing of it for news."""
    engine, feed, now = live_pair()
    behind = 600_000 * MS
    for beat in range(1, 3 * STEADY_NS // BEAT):
        sent = now + beat * BEAT * 3 // 2
        received = now + behind + beat * BEAT
        feed.on_message(engine.heartbeat(sent), None, received)
        age = feed.age_ns(received)
        assert age is not None
        assert age > received - sent - 200 * MS  # two clocks may have come apart by that in ten minutes


def test_a_heartbeat_with_a_higher_sequence_unsyncs_and_asks() -> None:
    """A lost last delta is found within one heartbeat and asked for by name."""
    engine, feed, now = live_pair()
    engine.delta("AAPL", (BID, 100, 1, 1))
    assert feed.on_message(engine.heartbeat(now), None, now)
    assert feed.protected("AAPL") is None
    assert feed.symbols_to_request(now, 0.5) == ("AAPL",)
    feed.on_message(engine.snapshot("AAPL"), "AAPL", now)
    assert feed.protected("AAPL") is not None
    assert feed.symbols_to_request(now + 10_000 * MS, 0.5) is None


@pytest.mark.parametrize(
    ("jitter", "expected"),
    [
        (0.0, [0, 25, 50, 100, 200, 400, 500]),
        (0.5, [0, 50, 100, 200, 400, 800, 1000]),
        (1.0, [0, 75, 150, 300, 600, 1200, 1500]),
    ],
)
def test_requests_back_off_with_jitter(jitter: float, expected: list[int]) -> None:
    """50 ms doubling to 1 s, times 0.5 to 1.5; never two in flight for one book."""
    engine, feed, now = live_pair()
    engine.delta("AAPL", (BID, 100, 1, 1))
    feed.on_message(engine.heartbeat(now), None, now)
    waits = []
    last = now
    for tick in range(now, now + 5_000 * MS, MS):
        if feed.symbols_to_request(tick, jitter) is not None:
            waits.append((tick - last) // MS)
            last = tick
    assert waits[:7] == expected


def test_a_new_epoch_resets_every_book_and_the_age() -> None:
    """All quotes of the old reign are gone at the first message of the new one, whatever it is."""
    engine, feed, now = live_pair()
    zombie = engine.heartbeat(now + BEAT)
    engine.restart()
    feed.on_message(engine.heartbeat(now), None, now)
    assert feed.state is PeerState.DOWN
    assert not feed.replicas["AAPL"].synced
    assert not feed.on_message(zombie, None, now + BEAT)
    assert feed.counters.stale_epochs == 1
    assert feed.symbols_to_request(now, 0.5) == ()
    feed.on_message(engine.snapshot("AAPL"), "AAPL", now)
    assert feed.state is PeerState.DOWN, "heartbeats of the old reign do not count"
    feed.on_message(engine.heartbeat(now + BEAT), None, now + BEAT)
    assert feed.protected("AAPL") is not None


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_successor_may_have_another_clock(hours: int) -> None:
    """That of another machine: the age of a reign's heartbeats says nothing of the next one's."""
    engine, feed, now = live_pair()
    engine.restart()
    for _ in range(2):
        now += BEAT
        feed.on_message(engine.heartbeat(now + hours * 3_600_000 * MS), None, now)
    assert feed.age_ns(now) == 0
    assert feed.symbols_to_request(now, 0.5) == ()
    feed.on_message(engine.snapshot("AAPL"), "AAPL", now)
    assert feed.protected("AAPL") is not None


def test_loss_unsyncs_everything() -> None:
    """After an overflow or reconnect no book counts until its next snapshot."""
    engine, feed, now = live_pair()
    feed.lost()
    assert feed.protected("AAPL") is None
    assert feed.symbols_to_request(now, 0.5) == ()
    feed.on_message(engine.snapshot("AAPL"), "AAPL", now)
    assert feed.protected("AAPL") is not None
    feed.lost()
    assert feed.symbols_to_request(now, 0.5) == ()
    feed.lost()
    feed.on_message(engine.snapshot("AAPL"), "AAPL", now)
    assert feed.symbols_to_request(now + 1_000 * MS, 0.5) == (), "that answer began before the last loss"


def test_books_missing_from_the_answer_for_all_are_asked_for_by_name() -> None:
    """A lost part of a large answer is noticed."""
    engine, feed = Engine("AAPL", "MSFT"), PeerFeed(1)
    feed.on_message(engine.heartbeat(0), None, 0)
    assert feed.symbols_to_request(0, 0.5) == ()
    feed.on_message(engine.snapshot("AAPL"), "AAPL", 0)
    assert feed.symbols_to_request(0, 0.5) is None
    assert feed.symbols_to_request(500 * MS, 0.5) == ("MSFT",)


def test_very_many_missing_books_are_asked_for_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request has a bounded size."""
    monkeypatch.setattr("bus.peer.MAX_SYMBOLS_ASKED", 2)
    symbols = ("AAPL", "MSFT", "TSLA")
    engine, feed = Engine(*symbols), PeerFeed(1)
    assert feed.symbols_to_request(0, 0.5) == ()
    for symbol in symbols:
        feed.on_message(engine.snapshot(symbol), symbol, 0)
    for number, asked in ((2, symbols[:2]), (3, ())):
        for symbol in symbols[:number]:
            engine.delta(symbol, (BID, 100, number, 1))
        feed.on_message(engine.heartbeat(0), None, 0)
        assert feed.symbols_to_request(10_000 * MS, 0.5) == asked
        for symbol in symbols:
            feed.on_message(engine.snapshot(symbol), symbol, 0)


def test_a_late_snapshot_of_a_new_book_does_not_count() -> None:
    """The heartbeat that first named the symbol said how far it was."""
    engine, feed, now = live_pair()
    engine.books["MSFT"] = BookReplica("MSFT")
    engine.books["MSFT"].load(1, 0, ())
    late = engine.snapshot("MSFT")
    engine.delta("MSFT", (BID, 100, 1, 1))
    feed.on_message(engine.heartbeat(now), None, now)
    feed.on_message(late, "MSFT", now)
    assert feed.protected("MSFT") is None
    feed.on_message(engine.snapshot("MSFT"), "MSFT", now)
    assert feed.protected("MSFT") is not None


def test_nonsense_is_counted_and_costs_the_books() -> None:
    """Another engine's heartbeat, impossible levels and bad symbols raise nothing."""
    engine, feed, now = live_pair()
    feed.on_message(msgspec.structs.replace(engine.heartbeat(now), engine=7), None, now)
    assert feed.protected("AAPL") is None
    feed.on_message(BookDelta(1, 2, 1, 1, 1, ((9, 1, 1, 1),), 0), "AAPL", now)
    assert feed.counters.malformed == 2
    feed.on_message(engine.snapshot("AAPL"), "no symbol", now)
    assert set(feed.replicas) == {"AAPL"}
    assert not feed.on_message(Trades(1, 1, 1, ()), "AAPL", now)


def test_the_number_of_books_is_bounded() -> None:
    """Names beyond the bound are ignored."""
    feed = PeerFeed(1)
    feed.on_message(Heartbeat(1, 1, 1, 0, {f"S{number}": 1 for number in range(MAX_SYMBOLS + 5)}), None, 0)
    assert len(feed.replicas) == MAX_SYMBOLS


moves = st.lists(
    st.tuples(
        st.sampled_from(("change", "change", "change", "beat", "beat", "restart", "overflow")),
        st.sampled_from(("A", "B")),
        st.integers(1, 15),
        st.sampled_from((0, 1, 5)),
        st.sampled_from(("deliver", "deliver", "deliver", "drop", "twice", "late")),
    ),
    max_size=60,
)


@given(moves)
def test_synced_books_equal_the_source_and_converge(script: list[tuple[str, str, int, int, str]]) -> None:
    """Under faults synced means equal; when they stop, every book is synced and protected within a second."""
    engine, feed = Engine("A", "B"), PeerFeed(1)
    now = 0
    held: list[tuple[FeedMessage, str | None]] = []

    def receive(message: FeedMessage, symbol: str | None) -> None:
        feed.on_message(message, symbol, now)
        for name, replica in feed.replicas.items():
            if replica.synced:
                assert replica.snapshot(0, 0).levels == engine.history[name, replica.epoch, replica.sequence]

    def answer() -> list[tuple[FeedMessage, str | None]]:
        wanted = feed.symbols_to_request(now, 0.5)
        if wanted is None:
            return []
        return [(engine.snapshot(symbol), symbol) for symbol in wanted or engine.books]

    for kind, symbol, price, quantity, fate in script:
        now += 20 * MS
        sent: list[tuple[FeedMessage, str | None]] = []
        if kind == "change":
            sent = [(engine.delta(symbol, (BID, price, quantity, 1)), symbol)]
        elif kind == "beat":
            sent = [(engine.heartbeat(now), None)]
        elif kind == "restart":
            engine.restart()
            sent = [(engine.snapshot(name), name) for name in engine.books]
        else:
            feed.lost()
        feed.tick(now)
        sent += answer()
        if fate == "late":
            held += sent
        elif fate != "drop":
            for message, name in sent * (2 if fate == "twice" else 1):
                receive(message, name)
            while held:
                receive(*held.pop())
    for _ in range(60):
        now += 20 * MS
        feed.tick(now)
        receive(engine.heartbeat(now), None)
        for message, name in answer():
            receive(message, name)
    assert feed.state is PeerState.LIVE
    for symbol, book in engine.books.items():
        replica = feed.protected(symbol)
        assert replica is not None
        assert replica.snapshot(0, 0) == book.snapshot(0, 0)
