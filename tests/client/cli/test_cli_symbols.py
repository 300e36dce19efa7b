"""Symbols that are typed: one that is not traded is said, by every command; one may look like a number."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from client.cli import prompt
from client.cli.desk import Desk
from client.cli.main import find, run
from client.cli.output import Output
from tests.client.fake_venue import COARSE, PASSWORD, FakeVenue

LINES = ["orders APPL", "cancel --all APPL", "fills APPL", "positions APPL"]
PATIENCE_S = 10


def alice(venue: FakeVenue) -> dict[str, str]:
    """What alice would type to say who she is and where."""
    return {"exchange": venue.address, "client_id": "alice", "secret": "mine", "password": PASSWORD}


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.mark.parametrize("line", [*LINES, "fills -f APPL", "feed APPL"])
async def test_a_mistyped_symbol_is_no_empty_answer(
    line: str, venue: FakeVenue, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command fails with the nearest symbol that is traded, and waits for nothing."""
    name, *words = line.split()
    for key, value in alice(venue).items():
        words += [f"--{key.replace('_', '-')}", value]
    async with asyncio.timeout(PATIENCE_S):
        assert await run(find(name), find(name).parser().read(words), Output(as_json=False)) == 1
    said = capsys.readouterr()
    assert (said.out, "'APPL' is not traded here: did you mean AAPL?" in said.err) == ("", True)


@pytest.mark.parametrize("line", LINES)
async def test_so_it_is_at_a_prompt(line: str, venue: FakeVenue, capsys: pytest.CaptureFixture[str]) -> None:
    """`matchbus trade` says the same."""
    async with Desk(alice(venue), {}, Output(as_json=False)) as desk:
        assert await prompt.execute(line, desk) == 1
    assert "did you mean AAPL?" in capsys.readouterr().err


async def test_only_what_was_asked_for_is_shown(venue: FakeVenue, capsys: pytest.CaptureFixture[str]) -> None:
    """Fills and positions of this symbol, and fills above this number."""
    venue.symbols.append(COARSE)
    venue.engines[0].add_fills(2)
    async with Desk(alice(venue), {}, Output(as_json=False)) as desk:
        for line, shown in (
            ("fills AAPL --since 1", ["2"]),
            (f"fills {COARSE}", []),
            ("positions", ["AAPL"]),
        ):
            assert await prompt.execute(line, desk) == 0
            assert re.findall(r"^│ +(\w+) +│", capsys.readouterr().out, re.MULTILINE) == shown, line
        assert await prompt.execute(f"positions {COARSE}", desk) == 0
        assert capsys.readouterr().out == "no positions\n"


async def test_a_symbol_of_digits_is_no_order_id(
    venue: FakeVenue, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that is traded here means the symbol's open orders; any other means an order."""
    venue.symbols.append("7203")
    async with Desk(alice(venue), {}, Output(as_json=True)) as desk:
        client = await desk.client()
        apple, toyota = [await client.submit(symbol, "buy", "1", "2") for symbol in ("AAPL", "7203")]
        for target, wanted in (("7203", toyota), (apple.order_id, apple)):
            assert await prompt.execute(f"orders {target}", desk) == 0
            assert json.loads(capsys.readouterr().out)["order_id"] == wanted.order_id
