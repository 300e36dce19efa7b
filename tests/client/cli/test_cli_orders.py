"""submit, cancel and replace, when nobody waits for their answer any more."""

import asyncio
from pathlib import Path

import pytest

from client.cli.main import find, run
from client.cli.output import Output
from tests.client.fake_venue import FakeVenue
from tests.waiting import until


@pytest.mark.parametrize(
    ("words", "doubt", "hint"),
    [
        ("submit buy 1 AAPL 2", "entered", "--client-order-id {own}"),
        ("cancel 5", "cancelled", "`matchbus orders 5`"),
        ("cancel --client-order-id mine", "cancelled", "--client-order-id mine"),
        ("replace 5 3 1", "replaced", "`matchbus orders 5`"),
    ],
)
async def test_an_interrupted_command_says_what_may_have_been_done(
    words: str,
    doubt: str,
    hint: str,
    venue: FakeVenue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C while the answer is under way: what nobody knows, how to find out, and exit code 130."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    engine = venue.engines[0]
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "1", "2", client_order_id="mine")
    engine.orders["mine"].order_id = 5
    del engine.commands[:]
    assert order.status == "new"
    engine.silent = True
    name, *rest = words.split()
    who = ("--exchange", venue.address, "--client-id", "alice", "--secret", "mine")
    command = find(name)
    running = asyncio.create_task(run(command, command.parser().read([*rest, *who]), Output(as_json=False)))
    await until(lambda: engine.commands)
    running.cancel()  # which is what asyncio.run makes of Ctrl-C
    assert await running == 130
    told = capsys.readouterr().err
    assert f"interrupted: the order may or may not have been {doubt}" in told
    assert hint.format(own=engine.commands[0].new.client_order_id) in told
