"""A symbol that is not traded is said, by every command that takes one."""

import asyncio
from pathlib import Path

import pytest

from client.cli import prompt
from client.cli.desk import Desk
from client.cli.main import find, run
from client.cli.output import Output
from tests.client.fake_venue import PASSWORD, FakeVenue

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
