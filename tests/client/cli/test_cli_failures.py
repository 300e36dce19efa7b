import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from matchbus.v1 import matchbus_pb2 as pb

from client import (
    AuthenticationFailed,
    DataLost,
    FillGap,
    MatchbusError,
    OrderNotFound,
    RejectReason,
    RequestInvalid,
    Unavailable,
    UnknownSymbol,
)
from client.cli.desk import Desk, exchange_asked
from client.cli.failures import WHAT_TO_DO, ExchangeAway, Failure, Misuse, explain, some_of
from client.cli.main import find, run
from client.cli.output import Output
from client.cli.settings import Context, Contexts, Settings, SettingsError, resolve
from tests.client.fake_venue import COARSE, FakeVenue
from tests.waiting import until

TRADING = Path(__file__).parents[3] / "docs" / "trading.md"
REFUSED_CONNECTION = (
    "no answer within 5 s, last failure: UNAVAILABLE: failed to connect to all addresses; last error: "
    "ipv4:127.0.0.1:1: Failed to connect to remote host: connect: Connection refused (111)"
)
HUNG_UP = "no answer within 5 s, last failure: UNAVAILABLE: last error: UNAVAILABLE: ipv4:1: Socket closed"
MUTE = (
    "no answer within 5 s, last failure: UNAVAILABLE: failed to connect to all addresses; last error: "
    "UNKNOWN: ipv4:1: connection attempt timed out before receiving SETTINGS frame"
)
NO_GRPC = (
    "no answer within 5 s, last failure: UNAVAILABLE: failed to connect to all addresses; last error: "
    "UNAVAILABLE: ipv4:1: Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame)"
)
DISBELIEVED = (
    "no answer within 5 s, last failure: UNAVAILABLE: last error: UNKNOWN: ipv4:1: Tls handshake failed "
    "(TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate"
)


def settings() -> Settings:
    """Alice's, from a context."""
    context = Context("host:1", "nats://host", "alice", "hers", "pw")
    return resolve({}, {}, Contexts("alice", {"alice": context}))


@pytest.mark.parametrize(
    ("error", "text", "hint"),
    [
        (ExchangeAway(Unavailable(REFUSED_CONNECTION)), "host:1 (from context alice)", "matchbus up"),
        (ExchangeAway(Unavailable(HUNG_UP)), "host:1 (from context alice)", "MATCHBUS_TLS_CA"),
        (ExchangeAway(Unavailable(MUTE)), "host:1 (from context alice)", "frozen"),
        (ExchangeAway(Unavailable(NO_GRPC)), "host:1 (from context alice)", "something else listens there"),
        (RequestInvalid("there is no such method"), "host:1 (from context alice)", "engines are found by"),
        (ExchangeAway(Unavailable(DISBELIEVED)), "CERTIFICATE_VERIFY_FAILED", "MATCHBUS_TLS_CA"),
        (Unavailable("no answer within 5 s"), "no answer within 5 s", "matchbus status"),
        (UnknownSymbol("APPL"), "did you mean AAPL?", "AAPL, MSFT"),
        (UnknownSymbol("ZZZ"), "'ZZZ' is not traded here", "AAPL, MSFT"),
        (OrderNotFound("order 5 is none"), "order 5", "matchbus orders"),
        (AuthenticationFailed("wrong password"), "password (from context alice)", "MATCHBUS_PASSWORD"),
        (AuthenticationFailed("another secret"), "'alice' with this secret (from context", "MATCHBUS_SECRET"),
        (AuthenticationFailed("client password-1 has another secret"), "this secret", "MATCHBUS_SECRET"),
        (ValueError("price 1.005 of AAPL is not on a tick"), "1.005", "multiple"),
        (FillGap(3, 5), "fill 3 is missing", "operator"),
        (DataLost("positions of alice are unknown"), "are unknown", "operator"),
        (MatchbusError("anything"), "anything", ""),
    ],
)
def test_every_error_says_what_and_what_to_do(error: Exception, text: str, hint: str) -> None:
    """The failure has the value and where it came from, and a way out; it is not a usage error."""
    failure = explain(error, settings(), ["AAPL", "MSFT"])
    assert text in failure.text
    assert hint in failure.hint
    assert failure.code == 1


def test_a_refused_connection_is_said_in_plain_words() -> None:
    """Nobody needs gRPC's account of it."""
    failure = explain(ExchangeAway(Unavailable(REFUSED_CONNECTION)), settings(), [])
    assert failure.text.endswith("nobody listens there")


@pytest.mark.parametrize(
    ("failure", "is_away"),
    [
        (REFUSED_CONNECTION, True),
        (HUNG_UP, True),
        (DISBELIEVED, True),
        ("no answer within 5 s, last failure: UNAVAILABLE: errors resolving nowhere:1: not found", True),
        ("no answer within 5 s, last failure: DEADLINE_EXCEEDED: Deadline Exceeded", True),
        ("no answer within 5 s, last failure: UNAVAILABLE: no engine is live", False),
        ("no answer within 5 s, last failure: RESOURCE_EXHAUSTED: 1000 registrations are waiting", False),
    ],
)
async def test_an_exchange_that_answers_is_not_away(failure: str, *, is_away: bool) -> None:
    """Nobody is told to start an exchange that has just said what is amiss."""
    with pytest.raises(ExchangeAway if is_away else Unavailable, match=re.escape(failure)):
        async with exchange_asked():
            raise Unavailable(failure)


def test_an_exchange_that_says_nothing_may_wait_for_nats() -> None:
    """Only where nobody listens the hint begins with how to start one."""
    for said, hint in (
        ("DEADLINE_EXCEEDED", "it may be waiting for NATS"),
        ("failed to connect", "start one"),
    ):
        failure = explain(ExchangeAway(Unavailable(f"last failure: {said}")), settings(), [])
        assert failure.hint.startswith(hint)


async def test_failures_stay_as_they_are() -> None:
    """What was explained already is not explained again, nor are settings that cannot be read."""
    misuse = Misuse("wrong", "right")
    desk = Desk({"context": "none"}, {"XDG_CONFIG_HOME": "/nowhere"}, Output(as_json=True))
    assert await desk.explain(misuse) is misuse
    with pytest.raises(SettingsError) as caught:
        _ = desk.settings
    assert "none" in (await desk.explain(caught.value)).text
    assert (misuse.code, Failure("").code) == (2, 1)


async def test_that_nobody_answers_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that goes on does not repeat it at each try."""
    desk = Desk({"exchange": "127.0.0.1:1"}, {"XDG_CONFIG_HOME": "/nowhere"}, Output(as_json=False))
    for _ in range(2):
        await desk.tell_away(ExchangeAway(Unavailable(REFUSED_CONNECTION)))
    assert capsys.readouterr().err.count("it is tried again") == 1


@asynccontextmanager
async def going_on(venue: FakeVenue, *words: str) -> AsyncIterator[None]:
    """A command of alice's goes on until the body ends; an answer may take a second."""
    command = find(words[0])
    who = ("--exchange", venue.address, "--client-id", "alice", "--secret", "mine", "--timeout", "1")
    options = command.parser().read([*words[1:], *who])
    running = asyncio.create_task(run(command, options, Output(as_json=False)))
    yield
    assert not running.done()
    running.cancel()
    await asyncio.wait((running,))


class Said:
    """What was printed so far: answers, and all."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.answers = self.all = ""

    def has(self, text: str) -> bool:
        """Whether this is in it."""
        printed = self._capsys.readouterr()
        self.answers += printed.out
        self.all += printed.out + printed.err
        return text in self.all


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """What commands print of whom nothing is kept here."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return Said(capsys)


async def test_a_followed_history_goes_on_after_an_outage(venue: FakeVenue, said: Said) -> None:
    """`fills -f` says that nobody answers, and then tells what it has not told yet, of this symbol only."""
    venue.symbols.append(COARSE)
    engine = venue.engines[0]
    engine.add_fills(2)
    async with going_on(venue, "fills", "-f", "AAPL"):
        await until(lambda: said.has("fill 2:"))
        await engine.server.stop(None)
        await until(lambda: said.has("it is tried again"))
        engine.fill(pb.NewOrder(symbol=COARSE, side=pb.SIDE_BUY, price=10_125, quantity=3))
        engine.add_fills(1)
        await venue.start(engine)
        await until(lambda: said.has("fill 4:"))
    assert re.findall(r"fill (\d):", said.answers) == ["1", "2", "4"]


async def test_a_watched_book_goes_on_after_an_outage(venue: FakeVenue, said: Said) -> None:
    """`book --watch` says that nobody answers, and shows the book again when it is there."""
    engine = venue.engines[0]
    async with going_on(venue, "book", "AAPL", "--watch"):
        await until(lambda: said.has("sequence 9"))
        await engine.server.stop(None)
        await until(lambda: said.has("it is tried again"))
        engine.book_sequence = 10
        await venue.start(engine)
        await until(lambda: said.has("sequence 10"))


def test_many_symbols_are_not_all_listed() -> None:
    """A person sees the first of a long list and how many more there are."""
    assert some_of(["A", "B"]) == "A, B"
    assert some_of([f"S{number}" for number in range(20)]).endswith("S11 and 8 more")


def test_hints_are_for_refusals_that_exist() -> None:
    """Each refusal but those that no command can meet has a hint."""
    rows = re.findall(r"^\| ([A-Z_]+) \| [^|]+ \| [^|]+ \|$", TRADING.read_text(), re.MULTILINE)
    documented = {RejectReason[row] for row in rows if row in RejectReason.__members__}
    cannot_be_typed = {
        RejectReason.EMPTY_COMMAND,
        RejectReason.INVALID_SIDE,
        RejectReason.INVALID_ORDER_TYPE,
        RejectReason.INVALID_TIME_IN_FORCE,
        RejectReason.INVALID_SELF_TRADE_PREVENTION,
    }
    assert documented - cannot_be_typed == set(WHAT_TO_DO)
