"""What a command line may not say is refused before anything starts, by option, value and limit."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bus.follower import MAX_PEERS
from client.cli.sheets import Sheet
from simulation import by_hand, chaos_report, cli, matchbus, operate, ready_file
from simulation.cluster_errors import ClusterError
from simulation.option_types import check_replaceable, check_writable, folder

PACES = ("--kills-per-minute", "--freezes-per-minute", "--partitions-per-minute")
MAINS = {"simulation": cli.main, "matchbus": matchbus.main}


def code_of(program: str, words: list[str]) -> int:
    """The exit code of a command that is refused, which argparse may end."""
    try:
        return MAINS[program](words)
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.mark.parametrize(
    ("command", "option", "values", "limit"),
    [
        *(("simulation chaos", pace, "-5 nan inf 1e300 x", "from 0 to 600") for pace in PACES),
        ("simulation chaos", "--minutes", "-1 0 nan inf 1e300", "above 0, up to 1,440"),
        ("simulation chaos", "--rate", "-1 0 nan inf 1e300", "above 0, up to 1,000,000"),
        ("simulation chaos", "--longest", "-1 0 nan inf", "finite number above 0"),
        ("simulation run", "--duration", "-1 0 nan inf 1e9", "above 0, up to 86,400"),
        ("simulation run", "--frequency", "-1 0 nan inf 1e9", "above 0, up to 1,000"),
        ("simulation run", "--clients", "-1 0 nan 1.5 1001", "from 1 to 1,000"),
        *(
            (f"simulation {command}", "--seed", "\N{ARABIC-INDIC DIGIT THREE} 1_0 1.5 x", "whole number")
            for command in ("run", "chaos")
        ),
        ("simulation replay", "--limit", "-1 0 nan", "whole number from 1 on"),
        ("matchbus demo", "--duration", "-1 0 nan inf", "finite number above 0"),
        ("matchbus demo", "--clients", "-1 0 nan 1001", "from 1 to 1,000"),
        *(
            (command, "--engines", f"-1 0 nan {MAX_PEERS + 1}", f"from 1 to {MAX_PEERS}")
            for command in ("matchbus up", "matchbus demo", "simulation run", "simulation chaos")
        ),
        ("matchbus up", "--dashboard-port", "-1 0 99999", "from 1 to 65,535"),
        ("matchbus demo", "--dashboard-port", "-1 0 99999", "from 1 to 65,535"),
        ("matchbus up", "--snapshot-every", "-1 0 nan", "whole number from 1 on"),
        ("matchbus up", "--journal-gib", "-1 0 nan 1e9 4.5 1000001", "from 1 to 1,000,000"),
        ("simulation run", "--symbols", "-1 0 nan 7 99", "from 1 to 6"),
    ],
)
def test_numbers_out_of_bounds_are_refused(
    command: str, option: str, values: str, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate, a length of time or a count that cannot be is a usage error that says what can."""
    program, *words = command.split()
    for value in values.split():
        assert code_of(program, [*words, option, value]) == 2
        said = capsys.readouterr().err.splitlines()
        (line,) = [line for line in said if f"argument {option}: {value!r} is not a" in line]
        assert line.endswith(limit)


@pytest.mark.parametrize("pace", PACES)
def test_no_faults_of_a_class_can_be_asked_for(pace: str) -> None:
    """0 in a minute is never."""
    assert cli.parser().parse_args(["chaos", pace, "0"])


@pytest.mark.parametrize(
    "words",
    [
        ["up", "--engines"],
        ["up", "--snapshot-every"],
        ["up", "--journal-gib"],
        ["demo", "--seed"],
        ["journal", "dump", "1", "--from"],
        ["journal", "verify"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("value", ["٣", "1_0", "9" * 5000], ids=["arabic", "underscore", "digits"])
def test_a_number_is_written_in_a_few_ascii_digits(
    words: list[str], value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Python alone would read, or refuse by a limit of its own, is named; no name of code is."""
    assert matchbus.main([*words, value]) == 2
    said = capsys.readouterr().err
    assert f"{value!r:.60} is no" in said
    assert len(said) < 300


@pytest.mark.parametrize("value", ["abc", "0", "-1", "70000"])
def test_engines_of_the_environment_are_checked(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A NUM_ENGINES that cannot be is named with its limit, in one line, and nothing starts."""
    monkeypatch.setenv("NUM_ENGINES", value)
    assert cli.main([]) == 1
    assert capsys.readouterr().err == (
        f"NUM_ENGINES in the environment: {value!r} is not a whole number from 1 to {MAX_PEERS}\n"
    )


def test_the_script_checks_them_too() -> None:
    """`exchange_start.py` has them of nowhere else."""
    script = Path(operate.__file__).with_name("exchange_start.py")
    environment = {**os.environ, "NUM_ENGINES": "abc"}
    ended = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False, timeout=20
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("NUM_ENGINES in the environment: 'abc' is not a whole number")


@pytest.mark.parametrize("script", ["exchange_start.py", "client_start.py"])
def test_the_scripts_take_no_arguments(script: str) -> None:
    """They say what they go by instead, and refuse what they do not know, before anything starts."""
    command = [sys.executable, str(Path(operate.__file__).with_name(script))]
    told, refused = (
        subprocess.run([*command, word], capture_output=True, text=True, check=False, timeout=20)
        for word in ("--help", "3")
    )
    assert told.returncode == 0
    assert all(name in told.stdout for name in ("PASSWORD", "IP_ADDR", "50050"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.endswith("unrecognized arguments: 3\n")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "2001:db8::1"])
def test_a_host_of_the_environment_that_is_not_ours_is_named(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An IP_ADDR that is no address of this machine is said, with the cause; no other market is blamed."""
    monkeypatch.setenv("IP_ADDR", host)
    monkeypatch.setenv("NUM_ENGINES", "1")
    assert by_hand.start_exchange() == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"IP_ADDR in the environment: {host!r} is no address of this machine")
    assert "another market" not in said
    assert "for hostname" not in said  # as if it had to be an IPv4 address


def test_an_unknown_subcommand_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped word is not taken for an option of `run`."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["foo"])
    assert ended.value.code == 2
    assert "'foo' (choose from 'run', 'replay', 'chaos', 'audit')" in capsys.readouterr().err


@pytest.fixture
def used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a command, with a file and a directory in it; nothing may be added."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", ["", "file", "file/below", "/proc/none"])
@pytest.mark.parametrize(
    "command", ["matchbus up --data", "simulation chaos --data", "simulation run --report"]
)
def test_a_directory_that_cannot_be_written_is_refused(
    command: str, place: str, used: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a name, with a file in the way, or where nothing can be made, nothing starts."""
    program, *words = command.split()
    assert code_of(program, [*words, place]) == 2
    assert f"argument {words[-1]}: {place!r} cannot be written (" in capsys.readouterr().err
    assert sorted(path.name for path in used.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("place", ["folder", "none/new", "file/below", "/proc/none"])
@pytest.mark.parametrize("command", ["matchbus up --ready-file", "simulation chaos --json"])
def test_a_file_that_cannot_be_written_is_refused(
    command: str, place: str, used: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What would fail when all has run is said before anything starts, in one line."""
    program, *words = command.split()
    assert MAINS[program]([*words, place]) == 1
    said = capsys.readouterr().err.removeprefix("matchbus: ")
    assert said.startswith(f"{words[-1]} {place} cannot be written (")
    assert said.count("\n") == 1
    assert sorted(path.name for path in used.iterdir()) == ["file", "folder"]


def test_a_directory_that_went_away_is_said(tmp_path: Path) -> None:
    """A ready file that could be written at first is a fault of the market's, which `up` says."""
    with pytest.raises(ClusterError, match=r"ready file .*ready\.json cannot be written: No such file"):
        ready_file.write(tmp_path / "gone" / "ready.json", {})


def test_an_outcome_is_told_though_its_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When the directory goes away during the run, the tables are printed and the exit code is 1."""
    gone = tmp_path / "gone"
    gone.mkdir()

    async def run(*_: object) -> SimpleNamespace:
        gone.rmdir()
        return SimpleNamespace(holds=True)

    monkeypatch.setattr(cli, "chaos", run)
    monkeypatch.setattr(chaos_report, "document", lambda _: "{}")
    monkeypatch.setattr(chaos_report, "sheets", lambda _: [Sheet("Faults", ("kind",), [("kill",)])])
    assert cli.main(["chaos", "--json", str(gone / "outcome.json")]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("Faults")
    assert said.out.endswith("All checks hold.\n")
    assert re.fullmatch(r"--json .*outcome\.json could not be written: .*\n", said.err)


@pytest.mark.parametrize("arguments", [[], ["--scenario", "calm"]])
def test_logs_that_cannot_be_written_stop_a_run(
    arguments: list[str], used: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where the log directory is to be is said before anything starts."""
    (used / "file").rename(used / "logs")
    assert cli.main(["run", *arguments]) == 1
    assert capsys.readouterr().err.startswith("'logs' cannot be written (")


def test_what_can_be_written_is_left_alone(used: Path) -> None:
    """A directory may be missing, also those above it; a file may be there, or be a device."""
    for place in ("new/below", "folder", "."):
        assert folder(place) == Path(place)
    for place in ("file", "new", "folder/new"):
        check_replaceable("--ready-file", Path(place))
    for place in ("file", "new", os.devnull):
        check_writable("--json", Path(place))
    assert sorted(path.name for path in used.iterdir()) == ["file", "folder"]
