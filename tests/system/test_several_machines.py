"""docs/tutorials/several-machines.md is typed as it stands; each machine is a loopback address of its own."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.system.engine_process import is_serving
from tests.system.test_command_line import SCRIPTS, Terminals
from tests.system.venue import REPOSITORY, eventually, free_port

PAGE: Final = REPOSITORY / "docs" / "tutorials" / "several-machines.md"
BLOCK: Final = re.compile(r"```console\n(.*?)```\n", re.DOTALL)
MACHINE: Final = re.compile(r"\b10\.0\.0\.(\d):(\d+)")
DEADLINE_S: Final = 30.0


class Machines:
    """Where the page's addresses are here: its machines are loopback addresses, its ports free ones."""

    def __init__(self, terminals: Terminals) -> None:
        self.terminals = terminals
        self._ports: dict[str, int] = {}
        self._environment = (
            f"PATH={SCRIPTS}:{os.environ['PATH']}",
            f"XDG_CONFIG_HOME={terminals.directory / 'config'}",
            "MATCHBUS_TIMEOUT=15",
        )

    def here(self, text: str) -> str:
        """A text of the page with the addresses here."""
        return MACHINE.sub(
            lambda found: f"127.0.0.1{found[1]}:{self._ports.setdefault(found[2], free_port())}", text
        )

    def command(self, line: str) -> list[str]:
        """The words to start a line of the page by; it may begin with a variable, as a shell takes it."""
        return ["env", *self._environment, *shlex.split(self.here(line))]

    def write_configuration(self) -> None:
        """nats.conf as the page wants it; of what stays on loopback no two servers can have the same port."""
        text = (REPOSITORY / "nats.conf").read_text()
        text = text.replace("listen: 127.0.0.1:4222", self.here("listen: 10.0.0.1:4222"))
        for fixed in ("127.0.0.1:8222", "127.0.0.1:4223"):
            text = text.replace(fixed, f"127.0.0.1:{free_port()}")
        (self.terminals.directory / "nats.conf").write_text(text)

    def type(self, line: str) -> str:
        """Run a line to its end, which must be a good one; what it printed."""
        done = subprocess.run(
            self.command(line), capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """The page's machines; what was started there ends with the test."""
    terminals = Terminals(tmp_path)
    yield Machines(terminals)
    terminals.end()


async def test_a_market_over_several_machines(machines: Machines) -> None:
    """Every command of the page does its part: the market serves, and a trader's order rests."""
    lines = [
        line.removeprefix("$ ") for block in BLOCK.findall(PAGE.read_text()) for line in block.splitlines()
    ]
    machines.write_configuration()
    by_traders = [line for line in lines if line.startswith("matchbus ")]
    for line in lines:
        if line not in by_traders:
            machines.terminals.run(*machines.command(line), cwd=machines.terminals.directory)
    for line in lines:
        if listens := re.search(r"--listen (\S+)", line):
            role = "matchbus.v1.MatchingEngine/standby" if "--standby" in line else ""
            is_there = partial(is_serving, machines.here(listens[1]), role)
            await eventually(is_there, DEADLINE_S, f"{line} serves")
    registered, rested, engines = map(machines.type, by_traders)
    assert "alice is registered" in registered
    assert rested.startswith("NEW")
    for address in ("10.0.0.2:50051", "10.0.0.3:50052", "10.0.0.3:50061"):
        assert machines.here(address) in engines
