import asyncio
import json
from typing import Any

import pytest

from bus import subjects
from bus.connection import Connection
from bus.messages import (
    ASK,
    BID,
    BookDelta,
    BookSnapshot,
    FeedMessage,
    Heartbeat,
    LevelChange,
    Trades,
    encode,
)
from bus.replica import BookReplica
from bus.server import NatsServer
from client.cli.desk import Desk
from client.cli.failures import Failure
from client.cli.feed import Tape, _follow
from client.cli.output import Output
from client.units import instrument
from tests.client.fake_venue import instrument as listing

SYMBOL = "BRK.B"
URL = "nats://there"


class Engine:
    """The sending end: a book whose messages go to a tape."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.book = BookReplica(SYMBOL)
        self.book.load(1, 0, ())
        self.now_s = 100.0

    def send(self, message: FeedMessage, subject: str = subjects.book(1, SYMBOL)) -> int | None:
        """Give the tape a message; whom it wants to ask for a snapshot."""
        self.now_s += 0.06
        return self.tape.receive(subject, encode(message), self.now_s)

    def delta(self, *levels: LevelChange) -> BookDelta:
        """The next change of the book."""
        before = self.book.sequence
        checksum = self.book.advance(before + 1, levels)
        return BookDelta(1, before + 1, before, 9, 1_000, levels, checksum)

    def snapshot(self) -> BookSnapshot:
        """The book as it is."""
        return self.book.snapshot(9, 1_000)


@pytest.fixture
def engine() -> Engine:
    """An engine with its tape, in JSON."""
    return Engine(Tape(instrument(listing(SYMBOL)), Output(as_json=True)))


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was printed since the last time."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_book_is_asked_for_until_it_is_there(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """The first sign of life makes the tape ask, not more often than every 0.2 s; a snapshot ends that."""
    beat = Heartbeat(1, 1, 9, 0, {})
    asked = [engine.send(beat, subjects.heartbeat(1)) for _ in range(6)]
    assert asked == [1, None, None, None, 1, None]
    assert engine.send(engine.snapshot()) is None
    assert [engine.send(beat, subjects.heartbeat(1)) for _ in range(10)] == [None] * 10
    (snapshot,) = printed(capsys)
    assert (snapshot["kind"], snapshot["outcome"], snapshot["levels"]) == ("snapshot", "applied", [])


def test_deltas_and_trades_have_decimals(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """Ticks and lots become prices and quantities, sides become words."""
    engine.send(engine.snapshot())
    engine.send(engine.delta((BID, 10_125, 3, 1), (ASK, 10_200, 5, 2)))
    engine.send(Trades(1, 9, 1_000, ((77, 10_125, 2, ASK),)), subjects.trades(1, SYMBOL))
    _, delta, trade = printed(capsys)
    assert delta["outcome"] == "applied"
    assert delta["levels"] == [
        {"side": "buy", "price": "101.25", "quantity": "0.3", "order_count": 1},
        {"side": "sell", "price": "102.00", "quantity": "0.5", "order_count": 2},
    ]
    assert (trade["price"], trade["quantity"], trade["taker_side"]) == ("101.25", "0.2", "sell")
    assert trade["execution_id"] == 77


def test_a_gap_is_marked_and_mended(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """A delta that does not follow on is shown as a gap, and the book is asked for again."""
    engine.send(engine.snapshot())
    engine.delta((BID, 1, 1, 1))  # lost on the way
    assert engine.send(engine.delta((BID, 2, 1, 1))) == 1
    assert engine.send(engine.snapshot()) is None
    assert engine.send(engine.delta((BID, 3, 1, 1))) is None
    assert [message["outcome"] for message in printed(capsys)] == ["applied", "gap", "applied", "applied"]


def test_a_lost_last_delta_shows_at_the_heartbeat(engine: Engine) -> None:
    """A heartbeat that knows a newer sequence than we have makes the tape ask."""
    engine.send(engine.snapshot())
    engine.now_s += 1
    assert engine.send(Heartbeat(1, 1, 9, 0, {SYMBOL: 1}), subjects.heartbeat(1)) == 1


def test_a_new_reign_shows_at_the_heartbeat(engine: Engine) -> None:
    """The book of the one before is none of its own: the tape asks, though no sequence is newer."""
    engine.send(engine.snapshot())
    engine.now_s += 1
    assert engine.send(Heartbeat(1, 2, 9, 0, {}), subjects.heartbeat(1)) == 1


def test_other_symbols_and_repeats_are_left_out(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """Only this symbol is printed, and a snapshot that says nothing new only where that was asked for."""
    other = subjects.book(1, "BRK-B")
    assert engine.send(engine.delta((BID, 1, 1, 1)), other) is None
    engine.send(engine.snapshot())
    engine.send(engine.snapshot())
    assert len(printed(capsys)) == 1
    loud = Engine(Tape(instrument(listing(SYMBOL)), Output(as_json=True), repeats=True))
    loud.send(loud.snapshot())
    loud.send(loud.snapshot())
    assert [message["outcome"] for message in printed(capsys)] == ["applied", "duplicate"]


def test_what_is_no_message_is_said(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """Anyone may publish on NATS without a password: nonsense ends nothing."""
    engine.tape.receive(subjects.book(1, SYMBOL), b"{", 0.0)
    engine.tape.receive(subjects.book(1, SYMBOL), b"\xff", 0.0)
    engine.tape.receive(subjects.book(1, SYMBOL), b"[" * 100_000, 0.0)
    assert engine.send(BookDelta(1, 1, 0, 1, 0, ((7, 3, 1, 1),), 0)) is None
    for time_ns, side in ((0, 7), (10**22, BID), (10**26, BID), (10**30, BID)):
        trades = Trades(1, 1, time_ns, ((1, 100, 1, side),))
        assert engine.send(trades, subjects.trades(1, SYMBOL)) is None
    assert [message["kind"] for message in printed(capsys)] == ["malformed"] * 8


async def follow(connection: Connection, output: Output, timeout_s: int = 2) -> None:
    """What the command does once it is connected."""
    desk = Desk({"timeout": str(timeout_s), "nats": URL}, {"XDG_CONFIG_HOME": "/nowhere"}, output)
    await _follow(connection, Tape(instrument(listing(SYMBOL)), output), desk)


async def told(connection: Connection, capsys: pytest.CaptureFixture[str], *beating: int) -> str:
    """What the feed says on stderr first, while the hearts of these engines beat."""
    timeout_s = 2 if beating else 1  # a heart must be heard in time on a busy machine, too
    following = asyncio.create_task(follow(connection, Output(as_json=False), timeout_s))
    said = ""
    async with asyncio.timeout(20):
        while not said:
            for engine in beating:
                await beat(connection, engine)
            await asyncio.sleep(0.01)
            said = capsys.readouterr().err
    following.cancel()
    await asyncio.wait((following,))
    assert following.cancelled(), "it goes on until it is stopped"
    return said


async def beat(connection: Connection, engine: int) -> None:
    """Give a sign of life."""
    await connection.publish(subjects.heartbeat(engine), encode(Heartbeat(engine, 1, 9, 0, {})))


AGAIN = "\n  it is tried again, until Ctrl-C\n"


async def test_a_silent_engine_is_named(
    nats_connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where one engine of two falls silent for longer than --timeout, and where nobody ever spoke.

    Who bears no engine's number is none.
    """
    assert await told(nats_connection, capsys) == f"matchbus: nothing has come from any engine for 1 s{AGAIN}"
    asked = await nats_connection.subscribe(subjects.snapshot_request(2))

    async def live_for_a_moment() -> None:
        while not asked.pending_msgs:
            await nats_connection.publish("md.99999.heartbeat", b"")
            await beat(nats_connection, 2)
            await asyncio.sleep(0.01)

    moment = asyncio.create_task(live_for_a_moment())
    said = await told(nats_connection, capsys, 1)
    await moment
    assert said == f"matchbus: nothing has come from E2 for 2 s{AGAIN}"


async def test_a_nats_that_is_gone_is_told(
    own_server: NatsServer, own_connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then no engine is to blame."""
    await own_server.kill()
    said = await told(own_connection, capsys)
    assert said == f"matchbus: no NATS answers at {URL} (from --nats){AGAIN}"


@pytest.mark.parametrize("error", [BrokenPipeError(), Failure("no room")])
async def test_what_cannot_be_printed_ends_it(
    nats_connection: Connection, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """`| head` has seen enough, or the disk is full: the feed ends with that, and no line is lost unsaid."""
    output = Output(as_json=True)

    def answer(*_: object) -> None:
        raise error

    monkeypatch.setattr(output, "answer", answer)
    following = asyncio.create_task(follow(nats_connection, output))
    beat = encode(Heartbeat(1, 1, 9, 0, {}))
    async with asyncio.timeout(20):
        while not following.done():
            await nats_connection.publish(subjects.heartbeat(1), beat)
            await nats_connection.publish(subjects.book(1, SYMBOL), b"nonsense")
            await nats_connection.flush()
    assert following.exception() is error


def test_lines_are_for_reading(capsys: pytest.CaptureFixture[str]) -> None:
    """For people each message is a line: the engine, what it is, when, and what changed."""
    engine = Engine(Tape(instrument(listing(SYMBOL)), Output(as_json=False)))
    engine.send(engine.snapshot())
    engine.send(engine.delta((BID, 10_125, 3, 1)))
    engine.send(engine.delta((BID, 10_125, 0, 0)))
    engine.send(Trades(1, 9, 1_000, ((77, 10_125, 2, BID),)), subjects.trades(1, SYMBOL))
    assert capsys.readouterr().out.splitlines() == [
        "E1  snapshot  00:00:00.000001  sequence 0  no bid  no ask",
        "E1  delta     00:00:00.000001  sequence 1  bid 101.25 x 0.3",
        "E1  delta     00:00:00.000001  sequence 2  bid 101.25 gone",
        "E1  trade     00:00:00.000001  0.2 at 101.25, the taker bought",
    ]
