"""Where the tests type commands, with a configuration of its own.

What fails, goes on, is interrupted or is typed at the same time as another is a child process. What only sets
the scene runs here: a child loads for most of a second what this process has loaded already.
"""

import asyncio
import io
import json
import os
import select
import signal
import subprocess
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from simulation.matchbus import main
from tests.system.venue import COMMAND, REPOSITORY, Venue, fresh

DEADLINE_S: Final = 30.0
TICKERS: Final = (
    *("MSFT", "AAPL", "ADBE", "AMD", "AMZN", "BA", "CAT", "CSCO", "CVX", "DIS", "GE", "GOOG", "GS", "HD"),
    *("HON", "IBM", "INTC", "JNJ", "JPM", "KO", "MA", "MCD", "META", "MRK", "NFLX", "NKE", "NVDA", "ORCL"),
    *("PEP", "PFE", "PG", "QCOM"),
)
"""What is traded. `matchbus up` proposes the first; the second is for docs/command-line.md alone."""


class Terminal:
    """Where commands are typed: a configuration of its own, nothing of the tester's environment."""

    def __init__(self, directory: Path, venue: Venue) -> None:
        self.venue = venue
        self._running: list[Running] = []
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MATCHBUS_", "XDG_")) and name != "COLUMNS"
        } | {"XDG_CONFIG_HOME": str(directory), "PYTHONUNBUFFERED": "1", "MATCHBUS_TIMEOUT": "15"}

    def run(self, *words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Type a command and wait for its end."""
        return subprocess.run(
            [*COMMAND, *words],
            cwd=REPOSITORY,
            env=self.environment | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def text(self, *words: str) -> str:
        """What a command prints that must succeed."""
        if not _can_run_here():
            done = self.run(*words)
            assert done.returncode == 0, (words, done.stdout, done.stderr)
            return done.stdout
        with patch.dict(os.environ, self.environment, clear=True), redirect_stdout(io.StringIO()) as printed:
            code = main(words)
        assert code == 0, (words, printed.getvalue())  # pytest shows what it said on stderr
        return printed.getvalue()

    def json(self, *words: str) -> Any:
        """The one object that a command gives that must succeed."""
        (answer,) = self.lines(*words)
        return answer

    def lines(self, *words: str) -> list[Any]:
        """The objects, one a line, that a command gives that must succeed."""
        return [json.loads(line) for line in self.text(*words, "--json").splitlines()]

    def start(self, *words: str) -> "Running":
        """Type a command that goes on."""
        running = Running([*COMMAND, *words], self.environment)
        self._running.append(running)
        return running

    def end(self) -> None:
        """End all that goes on still."""
        for running in self._running:
            running.end()

    def register(self, name: str = "", *, engine: int = 1) -> str:
        """A new client whose context is in use."""
        name = name or fresh("trader")
        self.text(
            *("register", name, "--engine", str(engine)),
            *("--exchange", self.venue.exchange, "--nats", self.venue.nats_url),
        )
        return name


def _can_run_here() -> bool:
    """Whether a command finds what it needs in this thread: the signals, and no event loop of another."""
    if threading.current_thread() is not threading.main_thread():
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


class Running:
    """A command that goes on until it is interrupted."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._seen = b""

    def until(self, count: int) -> list[str]:
        """Wait until it has printed so many lines; all it has printed."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + DEADLINE_S
        while self._seen.count(b"\n") < count:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, left))
            assert ready, f"only {self._seen!r} came"
            chunk = os.read(self.process.stdout.fileno(), 65_536)
            assert chunk, f"it ended after {self._seen!r}: {self.errors()}"
            self._seen += chunk
        return self._seen.decode().splitlines()

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> int:
        """Press Ctrl-C; the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        errors = self.errors()
        assert not errors, errors
        return code

    def end(self) -> None:
        """Kill it if it goes on still."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def errors(self) -> str:
        """What it said on stderr, once it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()
