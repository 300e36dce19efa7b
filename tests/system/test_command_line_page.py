"""docs/command-line.md shows what really happens: its commands are typed in order, against a real market.

MATCHBUS_REWRITE=1 puts the real output where the page differs; the diff is reviewed. Ports, times, ids, the
widths of tables and the list of all symbols may differ.

A line `# elsewhere: COMMAND` in a block is typed in another terminal once the lines before it are there, and
`^C` ends a command that goes on.
"""

import os
import re
import shlex
import signal
import tomllib
from pathlib import Path
from typing import Final

from client.cli.failures import some_of
from simulation.cluster import DEFAULT_INSTRUMENTS
from simulation.matchbus import GROUPS, LOOKING, TRADING
from tests.system.terminal import Terminal
from tests.system.venue import REPOSITORY, Venue

PAGE: Final = REPOSITORY / "docs" / "command-line.md"
EXCHANGE: Final = "127.0.0.1:50050"
NATS: Final = "nats://127.0.0.1:40222"
"""Where the page's market is."""

LISTED: Final = ", ".join(
    sorted(listed["symbol"] for listed in tomllib.loads(DEFAULT_INSTRUMENTS.read_text())["instrument"])
)
"""What is traded there."""

REWRITE: Final = os.environ.get("MATCHBUS_REWRITE") == "1"

BLOCK: Final = re.compile(r"```console\n(.*?)```\n", re.DOTALL)
PROMPT: Final = "$ matchbus "
ELSEWHERE: Final = "# elsewhere: matchbus "
ORDER_ID: Final = re.compile(r"\b\d{15}\b")
VARIES: Final = (
    (ORDER_ID, "ORDER"),
    (re.compile(r"\d\d:\d\d:\d\d\.\d{6}"), "TIME"),
    (re.compile(r"\b[0-9a-f]{16}-\d+"), "CLIENT-ORDER-ID"),
    (re.compile(r"\d+(\.\d+)? ms"), "MS"),
    (
        re.compile(
            r'"(time_ns|timestamp_ns|lag_ns|round_trip_ms|batch_number|epoch|checksum|streams)": [\d.]+'
        ),
        r"\1",
    ),
    (re.compile(r"version [\d.]+, \d+ streams"), "VERSION"),
    (re.compile(r"(?<=│)(\s*\d+\s*│){2}(?=\s*(MS|\d+ batch))"), "EPOCH AND BATCH"),
    (re.compile(r"\d+ batch(es)?"), "MS"),
    (re.compile(r"[━─ ]+"), " "),
    (re.compile(r"[┳╇┴┏┡└┓┩┘]"), ""),
)
"""What is different every time, and what stands for it."""


class Page:
    """The blocks of the page, played in a terminal; `ids` leads from its order ids to the real ones."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.ids: dict[str, str] = {}

    def play(self, block: str) -> str:
        """Type a block's commands; the block as it should be."""
        played = ""
        for step in re.split(r"^(?=\$ matchbus )", block, flags=re.MULTILINE)[1:]:
            command, *shown = step.splitlines()
            assert command.startswith(PROMPT)
            words = self.words(command.removeprefix(PROMPT))
            real = self.watch(words, shown) if "^C" in shown else self.run(words)
            played += "\n".join([command, *self.fitting(shown, real)]) + "\n"
        return played

    def words(self, command: str) -> list[str]:
        """The words of a command, with the addresses and ids of this market."""
        venue = self.terminal.venue
        real = {EXCHANGE: venue.exchange, NATS: venue.nats_url} | self.ids
        return [real.get(word, word) for word in shlex.split(command)]

    def run(self, words: list[str]) -> list[str]:
        """Type a command; what it prints, errors last."""
        done = self.terminal.run(*words)
        assert "Traceback" not in done.stderr
        return self.tidy((done.stdout + done.stderr).splitlines())

    def watch(self, words: list[str], shown: list[str]) -> list[str]:
        """Type a command that goes on, and the others when their turn comes; what it printed."""
        running = self.terminal.start(*words)
        real: list[str] = []
        wanted = 0
        for line in shown:
            if line.startswith(ELSEWHERE):
                running.until(wanted)
                self.run(self.words(line.removeprefix(ELSEWHERE)))
                continue
            if line == "^C":
                real = self.tidy(running.until(wanted))
                break
            wanted += 1
        assert running.interrupt(signal.SIGINT) == 0
        # Engines publish independently of each other: their lines may come in any order.
        left = sorted(real, key=normal)
        fitted = []
        for line in shown:
            if line.startswith(ELSEWHERE) or line == "^C":
                fitted.append(line)
                continue
            same = [other for other in left if normal(other) == normal(line)]
            fitted.append(same[0] if same else left[0] if left else "MISSING")
            if fitted[-1] in left:
                left.remove(fitted[-1])
        return fitted

    def tidy(self, lines: list[str]) -> list[str]:
        """Lines as the page has them: well-known addresses and places, no blanks at the end."""
        ready = self.terminal.venue.ready
        names = {self.terminal.venue.exchange: EXCHANGE, self.terminal.venue.nats_url: NATS}
        for kind, first_port in (("engines", 50_051), ("standbys", 50_061)):
            for number, member in ready[kind].items():
                names[member["address"]] = f"127.0.0.1:{first_port + int(number) - 1}"
        for symbols in (self.terminal.venue.symbols, sorted(self.terminal.venue.symbols)):
            names[some_of(symbols)] = LISTED
        text = "\n".join(lines)
        for real, name in names.items():
            text = text.replace(real, name)
        text = re.sub(r"\S+/matchbus/contexts\.json", "~/.config/matchbus/contexts.json", text)
        return [line.rstrip() for line in text.splitlines()]

    def fitting(self, shown: list[str], real: list[str]) -> list[str]:
        """The page's own lines if they say the same as the real ones, else the real ones."""
        if [normal(line) for line in shown] != [normal(line) for line in real]:
            shown_ids = set(ORDER_ID.findall("\n".join(real)))
            self.ids |= {number: number for number in shown_ids}
            return real
        for ours, theirs in zip(shown, real, strict=True):
            self.ids |= dict(zip(ORDER_ID.findall(ours), ORDER_ID.findall(theirs), strict=True))
        return shown


def normal(line: str) -> str:
    """A line without what is different every time."""
    for pattern, stands_for in VARIES:
        line = pattern.sub(stands_for, line)
    return line.strip()


def test_the_page_shows_what_happens(tmp_path: Path, market: Venue) -> None:
    """Every command of the page prints what the page says."""
    terminal = Terminal(tmp_path / "config", market)
    page = Page(terminal)
    text = PAGE.read_text()
    try:
        played = BLOCK.sub(lambda found: f"```console\n{page.play(found[1])}```\n", text)
    finally:
        terminal.end()
    if REWRITE:
        PAGE.write_text(played)
    else:
        assert played == text


def test_the_page_has_every_command() -> None:
    """Each command of `matchbus --help` stands on the page, with an example where one can be played."""
    text = PAGE.read_text()
    examples = "".join(BLOCK.findall(text))
    for name in [command for commands in GROUPS.values() for command in commands]:
        assert f"matchbus {name}" in text, name
    for name in {*TRADING, *LOOKING} - {"trade"}:
        assert f"{PROMPT}{name}" in examples, name
