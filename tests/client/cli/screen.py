"""A terminal for the tests: a real one, so that spinners, live views and the prompt show themselves."""

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.client.fake_venue import PASSWORD, FakeVenue

DEADLINE_S = 30.0
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """A command on a terminal of its own, typed at by the test."""

    def __init__(self, venue: FakeVenue, config: Path, *words: str) -> None:
        directory = config / "matchbus"
        directory.mkdir()
        alice = {"exchange": venue.address, "client_id": "alice", "secret": "mine", "password": PASSWORD}
        (directory / "contexts.json").write_text(json.dumps({"current": "a", "contexts": {"a": alice}}))
        self._keyboard, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulation.matchbus", *words],
            env={**os.environ, "XDG_CONFIG_HOME": str(config), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        os.set_blocking(self._keyboard, False)
        self.shown = ""
        self.history = ""

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._keyboard, keys.encode())

    def interrupt(self) -> None:
        """What Ctrl-C does where no program takes single keys."""
        self.process.send_signal(signal.SIGINT)

    async def until(self, text: str, *, colours: bool = False) -> None:
        """Wait until the terminal has shown this since the last time; without `colours`, as one reads it.

        A prompt draws only what changes: a word may come in pieces, with moves of the cursor in between.
        """
        deadline = time.monotonic() + DEADLINE_S
        while text not in (seen := self.shown if colours else CONTROL.sub("", self.shown)):
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.shown!r}"
            try:
                self.shown += os.read(self._keyboard, 65_536).decode(errors="replace")
            except BlockingIOError:
                await asyncio.sleep(0.01)
        before, _, self.shown = seen.partition(text)
        self.history += before + text

    async def end(self) -> int:
        """Wait for its end; the exit code."""
        async with asyncio.timeout(DEADLINE_S):
            return await asyncio.to_thread(self.process.wait)

    def close(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.wait()
        os.close(self._keyboard)
