"""Every command of ours ends the same way when it is interrupted, or when nobody takes what it prints."""

import json
import os
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = Path(sys.executable).parent
INTERRUPTED = 130

SIMULATION = [str(INSTALLED / "simulation")]
SCRIPT = [sys.executable, str(ROOT / "simulation" / "simulation.py")]
EXCHANGE_START = [sys.executable, str(ROOT / "simulation" / "exchange_start.py")]
CLIENT_START = [sys.executable, str(ROOT / "simulation" / "client_start.py")]
BENCHMARKS = [sys.executable, "-m", "benchmarks"]

ADDRESS = str(IPv4Address("127.64.0.0") + os.getpid())
"""Of the market that has fixed ports: another run of the tests on this machine has another."""


def named(value: object) -> str | None:
    """The id of a command's test: without where it is installed."""
    return " ".join(Path(word).name for word in value[-3:]) if isinstance(value, list) else None


def environment(**more: str) -> dict[str, str]:
    """Ours, with buffers, and the sources on the path also away from the repository."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]), **more}


INTERRUPTING = {
    "between lines": "signal.raise_signal(signal.SIGINT)",
    "in a class": """
class Interrupting:
    def __set_name__(self, owner, name):
        signal.raise_signal(signal.SIGINT)

class Owner:
    field = Interrupting()
""",
    "by SIGTERM": "signal.raise_signal(signal.SIGTERM)",
}
"""What a module does that is interrupted while it loads."""


BETWEEN, WITHIN, BY_SIGTERM = INTERRUPTING


@pytest.mark.parametrize(
    ("command", "code", "where"),
    [
        ([str(INSTALLED / "matchbus"), "up"], INTERRUPTED, BETWEEN),
        (SIMULATION, INTERRUPTED, BETWEEN),
        (SIMULATION, INTERRUPTED, WITHIN),  # which is the same for every command
        ([*SIMULATION, "chaos"], INTERRUPTED, BETWEEN),
        (SCRIPT, INTERRUPTED, BETWEEN),
        (EXCHANGE_START, INTERRUPTED, BETWEEN),
        (CLIENT_START, INTERRUPTED, BETWEEN),
        (BENCHMARKS, INTERRUPTED, BETWEEN),
        ([str(INSTALLED / "engine"), "--number", "1"], 0, BETWEEN),
        ([str(INSTALLED / "engine"), "--number", "1"], 0, WITHIN),
        ([str(INSTALLED / "engine"), "--number", "1"], 0, BY_SIGTERM),
        ([str(INSTALLED / "exchange")], 0, BETWEEN),
        ([str(INSTALLED / "exchange")], 0, BY_SIGTERM),
    ],
    ids=named,
)
def test_an_interrupt_while_loading_ends_a_command_quietly(
    command: list[str], code: int, where: str, tmp_path: Path
) -> None:
    """Ctrl-C before all is imported leaves no traceback, and the code of an interrupt later on."""
    body = INTERRUPTING[where]
    for name in ("grpc", "nats", "rich"):  # one of them is loaded by whatever does the work
        (tmp_path / f"{name}.py").write_text(f"import signal\n{body}\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "proto")])
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


PRINTING = [
    [*SIMULATION, "--help"],
    [*SIMULATION, "--duration", "1", "--engines", "1"],
    [*SIMULATION, "chaos", "--minutes", "0.01", "--engines", "1"],
    [*SCRIPT, "--help"],
    EXCHANGE_START,
    [*BENCHMARKS, "--help"],
    [str(INSTALLED / "engine"), "--help"],
]
MATCHBUS = [
    [str(INSTALLED / "matchbus"), *words]
    for words in (
        ["--help"],
        ["up", "--help"],
        ["context", "list"],
        ["context", "list", "--json"],
        ["bench", "--json"],
    )
]


def printed_to(
    redirection: str, command: list[str], directory: Path, stdout: int = subprocess.DEVNULL
) -> subprocess.CompletedProcess[str]:
    """A command whose stdout goes there, or where the shell sends it; at an address of this run.

    One context is kept.
    """
    file = directory / "matchbus" / "contexts.json"
    file.parent.mkdir()
    file.write_text('{"current": "a", "contexts": {"a": {}}}')
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command],
        cwd=directory,
        env=environment(IP_ADDR=ADDRESS, NUM_ENGINES="1", XDG_CONFIG_HOME=str(directory)),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", [*PRINTING, *MATCHBUS], ids=named)
def test_a_full_disk_is_said_in_a_sentence(command: list[str], tmp_path: Path) -> None:
    """What cannot be written is a failure, without a traceback."""
    done = printed_to(">/dev/full", command, tmp_path)
    assert done.returncode == 1, done.stderr
    what = "the answer cannot" if "context" in command else "nothing more can"
    assert f"{what} be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if "--json" in command:
        assert set(json.loads(done.stderr)) == {"error", "hint"}


def test_help_without_room_is_said_without_buffers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers often have Python write at once; then argparse itself meets the error."""
    monkeypatch.setattr(f"{__name__}.environment", lambda **more: {**os.environ, **more})
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    for words in (["submit", "--help"], ["journal", "dump", "--help"]):
        (tmp_path / words[0]).mkdir()
        done = printed_to(">/dev/full", [str(INSTALLED / "matchbus"), *words], tmp_path / words[0])
        assert done.returncode == 1
        assert done.stderr == "matchbus: nothing more can be written: No space left on device\n"


VERDICT = """
import sys
from matchbus.program import ending_with, run_program
from rich.console import Console

def work():
    with ending_with(3):
        {printing}

sys.exit(run_program("verdict", work))
"""


@pytest.mark.parametrize("printing", ["print('bad', flush=True)", "Console().print('bad')"])
def test_a_verdict_that_nobody_reads_is_the_exit_code(printing: str, tmp_path: Path) -> None:
    """Whether plain Python prints it or rich."""
    reading, writing = os.pipe()
    os.close(reading)
    done = printed_to("", [sys.executable, "-c", VERDICT.format(printing=printing)], tmp_path, writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize("command", MATCHBUS, ids=named)
def test_a_closed_output_is_no_failure(command: list[str], tmp_path: Path) -> None:
    """Where stdout is closed, what is printed goes nowhere."""
    done = printed_to(">&-", command, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", [*PRINTING, *MATCHBUS], ids=named)
def test_a_reader_that_is_gone_is_no_failure(command: list[str], tmp_path: Path) -> None:
    """`... | true` ends with 0, which is not the code of a violation; `matchbus` says nothing at all."""
    reading, writing = os.pipe()
    os.close(reading)
    done = printed_to("", command, tmp_path, writing)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if command in MATCHBUS:
        assert done.stderr == ""
