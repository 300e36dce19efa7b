"""A short run of the whole: a few faults strike a real market, and nothing is lost."""

import json
from pathlib import Path

import pytest

from simulation import cli
from simulation.faults import Kind


@pytest.mark.timeout(180)
def test_a_market_under_fire_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kills, freezes and partitions in twenty seconds: the witness looked at all and finds nothing."""
    outcome = tmp_path / "outcome.json"
    arguments = ["chaos", "--minutes", "0.33", "--seed", "5", "--rate", "600", "--clients", "2"]
    arguments += ["--kills-per-minute", "12", "--freezes-per-minute", "6", "--partitions-per-minute", "12"]
    code = cli.main([*arguments, "--longest", "2", "--data", str(tmp_path / "data"), "--json", str(outcome)])
    assert code == 0, capsys.readouterr().out
    told = json.loads(outcome.read_text())
    assert told["holds"]
    assert sum(one["struck"] for one in told["faults"]) >= 5
    assert {one["kind"] for one in told["faults"]} >= {Kind.KILL_ENGINE, Kind.KILL_NATS}
    assert [check["name"] for check in told["checks"] if not check["checked"]] == []
    assert told["figures"]["acknowledged"] == told["figures"]["commands"] > 3_000


def test_a_directory_that_was_used_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What another run left there would be evidence of nothing the clients did."""
    (tmp_path / "durability").write_text("journal\n")
    assert cli.main(["chaos", "--data", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err
