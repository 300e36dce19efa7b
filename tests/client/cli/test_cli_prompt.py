import asyncio
import io
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from client import Fill
from client.cli import prompt
from client.cli.arguments import HelpShown
from client.cli.desk import Desk
from client.cli.failures import Misuse
from client.cli.main import find, run
from client.cli.output import Output
from tests.client.cli.outputs import no_reader
from tests.client.cli.screen import Screen
from tests.client.cli.test_cli_sheets import ORDER
from tests.client.fake_venue import FakeVenue
from tests.waiting import until

Trade = Callable[[], Coroutine[Any, Any, int]]
Piped = Callable[[bytes], asyncio.Task[int]]
SYMBOLS = ("AAPL", "AMZN", "MSFT")


def offered(before: str) -> list[str]:
    """The words that Tab offers."""
    return [word for word, _, _ in prompt.completions(before, SYMBOLS, [ORDER])]


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("", list(prompt.WORDS)),
        ("b", ["buy", "book"]),
        ("buy", ["buy"]),
        ("buy 10 ", list(SYMBOLS)),
        ("buy 10 a", ["AAPL", "AMZN"]),
        ("submit ", ["buy", "sell"]),
        ("submit s", ["sell"]),
        ("submit sell 10 M", ["MSFT"]),
        ("buy 10 AAPL 100 --p", ["--post-only"]),
        ("buy 10 AAPL 100 --f", ["--fok"]),
        ("cancel ", ["3", "--client-order-id", "--all", "--side"]),
        ("cancel --all ", list(SYMBOLS)),
        ("cancel --client-order-id ", ["'[red]mine'"]),
        ("replace ", ["3"]),
        ("orders ", [*SYMBOLS, "3"]),
        ("book M", ["MSFT"]),
        ("book MSFT --d", ["--depth"]),
        ("nonsense ", []),
    ],
)
def test_words_are_completed(before: str, words: list[str]) -> None:
    """Tab knows commands, symbols in any case, open orders and options, each where it may stand."""
    assert offered(before) == words


def test_an_order_is_described_where_its_id_is_offered() -> None:
    """Nobody knows orders by their numbers."""
    assert ("3", "buy 6 AAPL at 100.00", "") in prompt.completions("cancel ", SYMBOLS, [ORDER])
    assert prompt.completions("buy 1 AA", SYMBOLS, [])[0] == ("AAPL", "", "AA")


def test_a_line_is_read_as_a_command() -> None:
    """Buy and sell stand for submit; quotes hold words together; empty lines and comments say nothing."""
    command, options = prompt.read('buy 10 AAPL 100 --client-order-id "my own"')
    assert command is not None
    assert (command.name, options.side, options.client_order_id) == ("submit", "buy", "my own")
    assert prompt.read("submit sell 1 AAPL 1")[1].side == "sell"
    assert prompt.read("cancel --client-order-id lot#1")[1].client_order_id == "lot#1"
    assert prompt.read("  # nothing, and isn't read")[0] is None
    assert prompt.read("")[0] is None
    for word in prompt.ENDS:
        with pytest.raises(prompt.Ended):
            prompt.read(word)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("register x", "'register' is no command here"),
        ("fills -f", "would go on for ever"),
        ("book AAPL --watch", "would go on for ever"),
        ('buy "1', "cannot be read"),
        ("buy 1 AAPL 1 --json", "--json"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(line: str, named: str) -> None:
    """What cannot be done at a prompt is refused before anything happens."""
    with pytest.raises(Misuse) as caught:
        prompt.read(line)
    assert named in caught.value.text


def test_help_tells_how_everything_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    """`help` has a line for each command, without what only a whole command line takes."""
    with pytest.raises(HelpShown):
        prompt.read("help")
    shown = capsys.readouterr().out
    for name in prompt.LINE_COMMANDS:
        assert re.search(rf"^{name}\b", shown, re.MULTILINE), name
    assert "--exchange" not in shown
    assert "--watch" not in shown
    assert "-f" not in shown.split()
    assert "--follow" not in offered("fills --")


@pytest.fixture
def trade(venue: FakeVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trade:
    """Starts `trade` for alice, who types what stdin gives by then; its exit code."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    command = find("trade")
    words = ("--exchange", venue.address, "--client-id", "alice", "--secret", "mine")
    return lambda: run(command, command.parser().read(words), Output(as_json=False))


@pytest.mark.parametrize("stdin", ["", "/dev/null", "file"])
async def test_input_that_is_over_ends_it(
    stdin: str, trade: Trade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed stdin, /dev/null and an empty file are the end of the input: exit code 0."""
    (tmp_path / "file").touch()
    opened = (tmp_path / stdin).open() if stdin else None
    monkeypatch.setattr(sys, "stdin", opened)
    async with asyncio.timeout(10):
        assert await trade() == 0
    if opened is not None:
        opened.close()


@pytest.mark.parametrize("line", ["help", "submit --help"])
async def test_help_is_no_answer_for_a_program(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json stdout has objects only: help is on stderr."""
    desk = Desk({}, {"XDG_CONFIG_HOME": str(tmp_path)}, Output(as_json=True))
    assert await prompt.execute(line, desk) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "QUANTITY SYMBOL" in said.err


@pytest.mark.parametrize("stdin", ["pipe", "file"])
async def test_a_line_that_is_too_long_fails_alone(
    stdin: str,
    venue: FakeVenue,
    trade: Trade,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is no command, nor is any part of it; the lines behind it are carried out."""
    long = b"buy 1 AAPL 2 " + b" buy 1 AAPL 2" * 20_000
    lines = b"\n".join([b"buy 1 AAPL 2", long, b"buy 1 AAPL 3", long])
    (tmp_path / "file").write_bytes(lines)
    end, ours = os.pipe() if stdin == "pipe" else (os.open(tmp_path / "file", os.O_RDONLY), None)
    writing = asyncio.create_task(asyncio.to_thread(_write, ours, lines)) if ours is not None else None
    opened = os.fdopen(end)
    monkeypatch.setattr(sys, "stdin", opened)
    async with asyncio.timeout(10):
        assert await trade() == 1
        if writing is not None:
            await writing
    opened.close()
    assert [command.new.price for command in venue.engines[0].commands] == [200, 300]
    told = capsys.readouterr().err
    assert re.findall(r"line (\d): longer than 65,536 bytes", told) == ["2", "4"]


@pytest.fixture
def piped(trade: Trade, monkeypatch: pytest.MonkeyPatch) -> Iterator[Piped]:
    """Gives lines to `trade` through a pipe that stays open; the task that does them."""
    with ExitStack() as opened:

        def begin(lines: bytes) -> asyncio.Task[int]:
            theirs, ours = os.pipe()
            monkeypatch.setattr(sys, "stdin", opened.enter_context(os.fdopen(theirs)))
            opened.enter_context(os.fdopen(ours, "wb", buffering=0)).write(lines)
            return asyncio.create_task(trade())

        yield begin


async def test_an_order_that_is_interrupted_is_told(
    venue: FakeVenue, piped: Piped, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM during an order from a pipe tells its id, and ends with 130; no line behind it is done."""
    venue.engines[0].silent = True
    trading = piped(b"buy 1 AAPL 2\nbuy 1 AAPL 3\n")
    await until(lambda: venue.engines[0].orders)
    signal.raise_signal(signal.SIGTERM)
    assert await trading == 130
    (entered,) = venue.engines[0].orders
    told = capsys.readouterr().err
    assert "line 1: interrupted: the order may or may not have been entered" in told
    assert f"--client-order-id={entered}" in told


async def test_any_line_can_be_interrupted(
    venue: FakeVenue, piped: Piped, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question was not answered then, which the exit code says; between two lines all is done."""
    venue.hold_searches = asyncio.Event()
    trading = piped(b"engines\n")
    await until(lambda: venue.searches > 1)
    signal.raise_signal(signal.SIGTERM)
    assert await trading == 130
    assert "line 1: interrupted" in capsys.readouterr().err
    venue.hold_searches = None
    trading = piped(b"buy 1 AAPL 2\n")
    await until(lambda: "NEW" in capsys.readouterr().out)
    signal.raise_signal(signal.SIGTERM)
    assert await trading == 0


async def test_a_pipe_stays_as_it_was(piped: Piped, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal stdout is the same open file: were that non-blocking, answers could be lost."""
    trading = piped(b"buy 1 AAPL 2\n")
    await until(lambda: "NEW" in capsys.readouterr().out)
    assert os.get_blocking(sys.stdin.fileno())
    signal.raise_signal(signal.SIGTERM)
    assert await trading == 0


@pytest.mark.parametrize("line", ["buy 1 AAPL 2", "orders"])
async def test_no_line_is_done_whose_answer_nobody_would_read(
    line: str,
    venue: FakeVenue,
    trade: Trade,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`| head` ends it, and as lines may be left it does not end well; which was the last is said."""
    (tmp_path / "lines").write_text(f"# first\n{line}\nsell 1 AAPL 9\n")
    with (tmp_path / "lines").open() as lines, no_reader() as stdout:
        monkeypatch.setattr(sys, "stdin", lines)
        monkeypatch.setattr(sys, "stdout", stdout)
        assert await trade() == 1
    assert len(venue.engines[0].orders) == (1 if line.startswith("buy") else 0)
    assert "line 2: nobody reads the answers any more" in capsys.readouterr().err


async def test_lines_are_done_though_nobody_reads_what_failed(
    venue: FakeVenue, trade: Trade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a reader of stderr a failure still gives the exit code, and the lines behind it are done."""
    (tmp_path / "lines").write_text("nonsense\nbuy 1 AAPL 2\n")
    read, write = os.pipe()
    os.close(read)
    with (tmp_path / "lines").open() as lines, os.fdopen(write, "wb", buffering=0) as unread:
        monkeypatch.setattr(sys, "stdin", lines)
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(unread, write_through=True))
        assert await trade() == 1
    assert [command.new.price for command in venue.engines[0].commands] == [200]


def _write(end: int, text: bytes) -> None:
    """Write all of it into a pipe, which holds less, and close that."""
    with os.fdopen(end, "wb") as pipe:
        pipe.write(text)


async def test_a_person_trades_at_the_prompt(venue: FakeVenue, tmp_path: Path) -> None:
    """Tab completes, answers and fills are shown, a mistake does not end it, Ctrl-D does, with 0.

    Ctrl-C clears a line that was begun.
    """
    venue.engines[0].add_fills(1)  # of before, not to be told
    screen = Screen(venue, tmp_path, "trade")
    try:
        await screen.until("alice@E1>")
        screen.type("bu\t")
        await screen.until("buy")
        screen.type(" 1 aap\t")
        await screen.until("AAPL")
        screen.type(" 2\r")
        await screen.until("NEW  buy 1 AAPL at 2")
        await screen.until("alice@E1>")
        screen.type("nonsense\r")
        await screen.until("is no command here")
        await screen.until("alice@E1>")
        venue.engines[0].add_fills(1)
        await screen.until("fill 2: bought 0.3 AAPL at 101.25")
        screen.type("cancel \x03")
        await screen.until("alice@E1>")
        screen.type("\x04")
        assert await screen.end() == 0
    finally:
        screen.close()
    assert len(venue.engines[0].orders) == 1
    assert "fill 1:" not in screen.history


async def test_fills_are_told_again_after_an_outage(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However often the deadline passes meanwhile, each fill is told once; a hole among them ends it."""
    monkeypatch.setattr(prompt, "AWAY_PAUSE_S", 0.01)
    engine = venue.engines[0]
    engine.add_fills(2)
    engine.refuses_fills_after_s = 0.0
    async with venue.client(deadline_s=0.2) as client, asyncio.timeout(20):
        given_up: list[int] = []
        follow = client.fills

        def counted(since: int) -> AsyncGenerator[Fill, None]:
            given_up.append(since)
            return follow(since)

        monkeypatch.setattr(client, "fills", counted)
        telling = asyncio.create_task(prompt._tell_fills(client, 1))
        await until(lambda: len(given_up) > 2)
        engine.refuses_fills_after_s = None
        told = ""
        while "fill 2:" not in told:
            await asyncio.sleep(0.01)
            told += capsys.readouterr().out
        engine.refuses_fills_after_s = 0.0
        await engine.server.stop(None)
        await venue.start(engine)
        await until(lambda: given_up[-1] == 2)
        engine.refuses_fills_after_s = None
        engine.add_fills(2)
        engine.fills[2].sequence = 9
        await telling
    assert "fill 1:" not in told
    assert (
        capsys.readouterr().out
        == "new fills are no longer shown: fill 3 is missing: the venue went on with 9\n"
    )


async def test_ctrl_c_on_an_empty_line_leaves_the_prompt(venue: FakeVenue, tmp_path: Path) -> None:
    """It ends with 0, as Ctrl-D does; keys pressed between two prompts are nobody's here."""
    screen = Screen(venue, tmp_path, "trade")
    try:
        await screen.until("alice@E1>")
        screen.type("buy 1 AAPL 2")
        await screen.until("AAPL")
        async with asyncio.timeout(30):
            while screen.process.poll() is None:
                screen.type("\x03")
                await asyncio.sleep(0.1)
        assert await screen.end() == 0
    finally:
        screen.close()
    assert venue.engines[0].orders == {}


async def test_ctrl_c_during_a_line_at_the_prompt_is_told(venue: FakeVenue, tmp_path: Path) -> None:
    """What nobody waits for any more may have been done: its id is told, and the code is 130."""
    screen = Screen(venue, tmp_path, "trade")
    try:
        await screen.until("alice@E1>")
        venue.engines[0].silent = True
        screen.type("buy 1 AAPL 2\r")
        await until(lambda: venue.engines[0].orders)
        screen.interrupt()
        (entered,) = venue.engines[0].orders
        await screen.until("interrupted: the order may or may not have been entered")
        await screen.until(f"--client-order-id={entered}")
        assert await screen.end() == 130
    finally:
        screen.close()
