"""submit, cancel and replace, when nobody waits for their answer any more."""

import asyncio
import signal
import sys
from pathlib import Path

import grpc
import pytest
from matchbus.program import Unread
from matchbus.v1 import matchbus_pb2 as pb

from client.cli import prompt
from client.cli.failures import how_to_find_out
from client.cli.main import find, run
from client.cli.output import Output
from tests.client.cli.outputs import no_reader, no_room
from tests.client.fake_venue import FakeEngine, FakeVenue, refusal
from tests.waiting import until

DOUBTS = pytest.mark.parametrize(
    ("words", "doubt", "hint"),
    [
        ("submit buy 1 AAPL 2", "entered", "--client-order-id={own}"),
        ("cancel 5", "cancelled", "`matchbus orders 5`"),
        ("cancel --client-order-id mine", "cancelled", "`matchbus orders --client-order-id=mine`"),
        ("replace 5 3 1", "replaced", "`matchbus orders 5`"),
    ],
)


@pytest.fixture
async def engine(venue: FakeVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Takes orders and answers none; alice has one there, 5 or `mine`."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    engine = venue.engines[0]
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "1", "2", client_order_id="mine")
    assert order.status == "new"
    engine.orders["mine"].order_id = 5
    del engine.commands[:]
    engine.silent = True
    return engine


async def typed(words: str, engine: FakeEngine) -> int:
    """Run a command as alice; its exit code."""
    name, *rest = words.split()
    who = ("--exchange", engine.venue.address, "--client-id", "alice", "--secret", "mine")
    command = find(name)
    return await run(command, command.parser().read([*rest, *who]), Output(as_json=False))


@DOUBTS
async def test_an_interrupted_command_says_what_may_have_been_done(
    words: str, doubt: str, hint: str, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while the answer is under way: what nobody knows, how to find out, and exit code 130."""
    running = asyncio.create_task(typed(words, engine))
    await until(lambda: engine.commands)
    running.cancel()  # which is what asyncio.run makes of Ctrl-C
    assert await running == 130
    told = capsys.readouterr().err
    assert f"interrupted: the order may or may not have been {doubt}" in told
    assert hint.format(own=engine.commands[0].new.client_order_id) in told


async def test_sigterm_is_told_as_ctrl_c_is(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """A script that is stopped learns the id, too, by which its order is found."""
    running = asyncio.create_task(typed("submit buy 1 AAPL 2", engine))
    await until(lambda: engine.commands)
    signal.raise_signal(signal.SIGTERM)
    assert await running == 130
    assert f"--client-order-id={engine.commands[0].new.client_order_id}" in capsys.readouterr().err


async def test_a_question_is_ended_by_any_signal_at_once(engine: FakeEngine) -> None:
    """There is nothing to say of it; a handler would wait for whoever does not read its answer."""
    engine.s_per_question = 60.0
    running = asyncio.create_task(typed("orders", engine))
    await until(lambda: engine.s_left)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@DOUBTS
async def test_a_command_without_an_answer_says_what_may_have_been_done(
    words: str, doubt: str, hint: str, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the deadline: what nobody knows, of this command and no other, and how to find out."""
    assert await typed(f"{words} --timeout 1", engine) == 1
    told = capsys.readouterr().err
    assert f"the order may or may not have been {doubt}: no answer within 1 s" in told
    assert hint.format(own=engine.commands[0].new.client_order_id) in told


async def test_a_refusal_that_nobody_reads_is_in_the_exit_code(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`| true` behind it does not make an order of it."""
    engine.silent = False
    with no_reader() as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(Unread) as refused:
            await typed("cancel 6", engine)
        with pytest.raises(Unread) as done:
            await typed("cancel 5", engine)
    assert (refused.value.code, done.value.code) == (1, 0)


async def test_an_answer_that_cannot_be_written_is_told_as_a_failure(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is left to look up: what has become of the order is said on stderr."""
    engine.silent = False
    for words, answer in (("cancel 6", "REFUSED  UNKNOWN_ORDER"), ("cancel 5", "CANCELLED  order 5")):
        with no_room() as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            assert await typed(words, engine) == 1
        told = capsys.readouterr().err
        assert told.startswith("matchbus: the answer cannot be written: No space left on device")
        assert f"the answer is: {answer}" in told


@pytest.mark.parametrize("own", ["-x", "my own", "`it's`"])
def test_what_a_hint_says_can_be_typed(own: str) -> None:
    """Whatever the id is, the command that is named reads it as it is."""
    see = how_to_find_out(own).removeprefix("see `matchbus ").partition("`, or send")[0]
    assert prompt.read(see)[1].client_order_id == own


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.DATA_LOSS, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED],
)
async def test_an_order_whose_answer_is_lost_for_good_may_have_been_entered(
    code: grpc.StatusCode, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was written to a stream that is refused now: the same doubt, and the same way to find out."""
    engine.break_after.append(code)
    assert await typed("submit buy 1 AAPL 2", engine) == 1
    told = capsys.readouterr().err
    assert "the order may or may not have been entered: broken after" in told
    assert f"--client-order-id={engine.commands[0].new.client_order_id}" in told


async def test_a_replace_that_was_not_sent_leaves_no_doubt(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine that does not even say what the order trades was never asked to replace it."""
    engine.unary_failures.extend([grpc.StatusCode.UNAVAILABLE] * 100)
    assert await typed("replace 5 3 1 --timeout 1", engine) == 1
    assert engine.commands == []
    told = capsys.readouterr().err
    assert "no answer within 1 s" in told
    assert "may or may not" not in told


@pytest.mark.parametrize("words", ["replace --client-order-id mine 3 1", "submit buy 1 AAPL 3 --post-only"])
async def test_a_refusal_in_ticks_is_told_with_their_size(
    words: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a replace, whose symbol is not typed."""
    refused = refusal(pb.REJECT_REASON_POST_ONLY_WOULD_CROSS)
    refused.reject_text = "it would trade with the best price 300"
    monkeypatch.setattr(engine, "apply", lambda _: refused)
    engine.silent = False
    assert await typed(words, engine) == 1
    assert capsys.readouterr().out.splitlines()[2] == "  prices there are ticks of 0.01"
