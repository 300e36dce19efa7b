"""The `matchbus` command itself: what it lists, what it loads, what it says to mistyped words."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from client.cli.main import MODULES
from simulation import bench, matchbus, operate
from simulation.nats_option import NatsAway

TRADING = {**matchbus.TRADING, **matchbus.LOOKING}


def test_every_command_is_somebodys() -> None:
    """The commands that are listed are those that the trader's side and the operator's side have."""
    assert set(TRADING) == set(MODULES)
    (choices,) = [action.choices for action in operate.parser()._actions if action.choices]
    assert choices is not None
    assert set(matchbus.RUNNING) == {*choices, "bench"}


AWAY = ["--nats", "nats://127.0.0.1:port"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["sumbit"], 2),
        (["bench", "nonsense"], 2),
        (["up", "--engines", "0"], 2),
        (["up", "--ready-file", "/proc/none"], 1),
        (["demo", "--clients", "x"], 2),
        (["admin", "burn"], 2),
        (["handover", "0"], 2),
        (["handover", "65536", *AWAY], 2),
        (["handover", "7", *AWAY], 2),
        (["journal", "verify", "1", *AWAY], 2),
        (["journal", "burn"], 2),
        (["snapshot", "list", "1", *AWAY], 2),
        (["dropcopy", "--no-follow", *AWAY], 2),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_failure_is_an_object_for_programs(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json, whatever fails says so as one object, and no error of Python's shows through."""
    assert matchbus.main([*words, "--json"]) == code
    output, errors = capsys.readouterr()
    failure = json.loads(errors)
    assert (output, set(failure)) == ("", {"error", "hint"})
    assert "Error" not in failure["error"]
    assert matchbus.main(words) == code
    assert capsys.readouterr().err.startswith(f"matchbus: {failure['error']}\n")


def test_an_address_of_the_environment_says_nothing_of_a_journal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 would: a wrong one is typed wrongly, wherever it stands."""
    monkeypatch.setenv("MATCHBUS_NATS", "http://there")
    assert matchbus.main(["journal", "verify", "1"]) == 2
    assert "'http://there' is no address of NATS" in capsys.readouterr().err


def test_a_silence_is_no_error_of_pythons() -> None:
    """A NATS that says nothing has no reason to tell."""
    away = NatsAway("nats://user:secret@there", TimeoutError())
    assert away.text == "JetStream does not answer at nats://there"


def test_the_log_of_up_has_the_form_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the logs of all that it starts."""
    forms: list[str] = []
    monkeypatch.setattr(operate, "log_to_stderr", forms.append)
    words = ["up", "--ready-file", "/proc/none"]
    assert [matchbus.main([*words, *more]) for more in ([], ["--log-format", "json"])] == [1, 1]
    assert forms == ["text", "json"]


def test_log_lines_on_stderr_have_a_form() -> None:
    """Warnings of whoever looks after a market are read by the same programs as all others."""
    code = "import logging; from simulation.stderr_log import log_to_stderr; log_to_stderr('json')"
    code += "; logging.info('unheard'); logging.warning('heard')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr)["event"] == "heard"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """`matchbus --version` names it, as pyproject.toml does."""
    assert matchbus.main(["--version"]) == 0
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"matchbus {project['version']}\n"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`matchbus --help` ends with 0, and without a word with 2, on stderr."""
    assert matchbus.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for commands in matchbus.GROUPS.values() for name in commands)
    assert matchbus.main([]) == 2
    assert capsys.readouterr().err == shown


def test_a_mistyped_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown word ends with 2 and a proposal, where one is near."""
    assert matchbus.main(["sumbit", "buy"]) == 2
    told = capsys.readouterr().err
    assert "'sumbit'" in told
    assert "did you mean submit?" in told
    assert matchbus.main(["buy", "10", "AAPL", "1"]) == 2
    assert "did you mean submit buy?" in capsys.readouterr().err
    assert matchbus.main(["xyzzy"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_an_option_before_the_command_is_told_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    """It is no command that is spelled wrongly, though one has nearly its name."""
    assert matchbus.main(["--context", "alice", "orders"]) == 2
    told = capsys.readouterr().err
    assert "--context stands before the command" in told
    assert "did you mean" not in told


@pytest.mark.parametrize(
    ("statement", "not_needed"),
    [
        ("matchbus.main(['--help'])", {"client", "grpc", "rich", "nats", "argparse", "asyncio"}),
        (
            "import client.cli.main; client.cli.main.find('submit').parser()",
            {"nats", "rich", "prompt_toolkit", "engine", "exchange", "bus.messages", "simulation.operate"},
        ),
        ("import client.cli.main; client.cli.main.find('trade')", {"prompt_toolkit", "engine", "rich"}),
    ],
)
def test_a_command_loads_only_what_it_needs(statement: str, not_needed: set[str]) -> None:
    """Starting must be fast: nothing is imported that this command does not use."""
    shown = "print(json.dumps([*sys.modules]))"
    program = f"import sys, json; from simulation import matchbus; {statement}; {shown}"
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not_needed & set(json.loads(output.splitlines()[-1])) == set()


def test_benchmarks_are_listed_with_what_they_measure(capsys: pytest.CaptureFixture[str]) -> None:
    """`matchbus bench` names the scripts that can be run, not what they share."""
    assert matchbus.main(["bench", "--json"]) == 0
    listed = {line["name"]: line["what"] for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert "operations a second" in listed["core"]
    assert "all" in listed
    assert not {"peers", "book_worker", "__main__"} & set(listed)
    assert matchbus.main(["bench", "nonsense"]) == 2
    assert "core" in capsys.readouterr().err


def test_a_benchmark_is_run_with_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The rest of the words goes to the script, and its exit code is ours; without a checkout it is said."""
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    assert matchbus.main(["bench"]) == 1
    assert "clone the repository" in capfd.readouterr().err
    (tmp_path / "benchmarks").mkdir()
    script = """'Counts: python benchmarks/count.py'
import sys
if __name__ == "__main__":
    print(sys.argv[1:])
    sys.exit(3)
"""
    (tmp_path / "benchmarks" / "count.py").write_text(script)
    assert matchbus.main(["bench", "count", "--pairs", "2"]) == 3
    assert capfd.readouterr().out == "['--pairs', '2']\n"
    assert matchbus.main(["bench", "all"]) == 2  # no runner there
    (tmp_path / "benchmarks" / "__main__.py").write_text(script)
    assert matchbus.main(["bench", "all", "--quick"]) == 3
    assert capfd.readouterr().out == "['--quick']\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "buy", "ten", "MSFT", "1"], ["'ten' is no number"]),
        (["submit", "hold", "1", "MSFT", "1"], ["'hold'", "buy"]),
        (["submit", "buy", "1", "MSFT"], ["needs a price", "--market"]),
        (["submit", "buy", "1", "MSFT", "1", "--market"], ["market order has no price"]),
        (["submit", "buy", "1", "MSFT", "1", "--stp", "never"], ["'never'", "cancel_oldest"]),
        (["submit", "buy", "1", "MSFT", "1", "--ioc", "--fok"], ["not allowed with"]),
        (["submit", "buy", "1", "A A", "1"], ["'A A' is no symbol"]),
        (["submit", "buy", "1", "MSFT", "1", "--client-order-id", "x" * 37], ["1 to 36 printable"]),
        (["orders", "--timeout", "soon"], ["'soon' is no time", "--timeout"]),
        (["cancel"], ["nothing given", "--all"]),
        (["cancel", "x"], ["'x' is no order id", "--client-order-id"]),
        (["cancel", "1", "--client-order-id", "x"], ["takes exactly one"]),
        (["replace", "1", "2"], ["1 was read as PRICE, 2 as QUANTITY", "before the price"]),
        (["replace", "1", "2", "3", "--client-order-id", "x"], ["takes exactly one"]),
        *((["dropcopy", option, ""], [f"{option}: it is empty"]) for option in ("--client", "--nats")),
        (["journal", "verify", "1", "--nats", "http://x"], ["--nats: 'http://x'", "nats://"]),
        (["book", "MSFT", "--consolidated", "--orders"], ["leave out"]),
        (["cancel", "9" * 5000], ["is no order id"]),
        (["orders", "9" * 5000], ["is no order id"]),
        (["book", "MSFT", "--depth", "99999999999"], ["--depth", "99999999999", "2147483647"]),
        (["fills", "--since", "-1"], ["-1"]),
        *(
            (["up", option, ""], [f"{option}: it is empty"])
            for option in ("--instruments", "--password", "--ready-file")
        ),
        (["up", "now"], ["unrecognized arguments: now", "usage: matchbus up [options]"]),
        (["snapshot", "list", "1", "2"], ["arguments: 2", "usage: matchbus snapshot list ENGINE [options]"]),
        (["admin", "snapshot", "1", "--x"], ["arguments: --x", "usage: matchbus admin snapshot ENGINE"]),
        (["admin"], ["required: action", "{handover,snapshot}"]),
        (["context", "use"], ["which context"]),
        (["register"], ["matchbus register NAME"]),
    ],
    ids=lambda words: " ".join(words)[:50],
)
def test_what_is_typed_wrongly_is_a_usage_error(
    words: list[str],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A command that makes no sense exits with 2 and names the word."""
    for name in os.environ:
        if name.startswith("MATCHBUS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert matchbus.main(words) == 2
    told = capsys.readouterr().err
    for text in said:
        assert text in told
