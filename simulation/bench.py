"""`matchbus bench`: lists the benchmarks of a checkout and runs one; an installed package has none."""

import argparse
import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from client.cli.arguments import Parser
from client.cli.failures import Failure, Misuse

CHECKOUT: Final = Path(__file__).resolve().parent.parent
ALL: Final = "all"


def main(words: Sequence[str]) -> int:
    """List the benchmarks, or run one and return its exit code. Raises `Failure` and `HelpShown`."""
    options = _parser().parse_args(words)
    found = offered(CHECKOUT / "benchmarks")
    if not found:
        raise Failure(
            f"there are no benchmarks in {CHECKOUT}",
            "they come with the source: clone the repository, `make install`, run it there",
        )
    if options.name is None:
        for name, what in found.items():
            print(json.dumps({"name": name, "what": what}) if options.json else f"{name:<16} {what}")
        return 0
    if options.name not in found:
        raise Misuse(f"there is no benchmark {options.name!r}", f"choose one of {', '.join(found)}")
    script = str(CHECKOUT / "benchmarks" / f"{options.name}.py")
    program = ["-m", "benchmarks"] if options.name == ALL else [script]
    command = [sys.executable, *program, *options.arguments]
    return subprocess.run(command, cwd=CHECKOUT, check=False).returncode  # noqa: S603 -- a script of ours


def offered(directory: Path) -> dict[str, str]:
    """The scripts whose docstring says how to run them, each with the first line of it."""
    scripts: dict[str, str] = {}
    if (directory / "__main__.py").is_file():
        scripts[ALL] = "Every benchmark; --quick with small sizes, --help tells the rest."
    for path in sorted(directory.glob("*.py")):
        described = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if f"python benchmarks/{path.name}" in described:
            scripts[path.stem] = described.partition("\n")[0]
    return scripts


def _parser() -> Parser:
    parser = Parser(
        "matchbus bench", description="Run a benchmark of this checkout; without a name, list them."
    )
    parser.add_argument("--json", action="store_true", help="the list as JSON lines")
    parser.add_argument("name", metavar="NAME", nargs="?")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="options of the benchmark")
    return parser
