"""All benchmarks under one roof: which parts there are, how much each does, and running them.

    python -m benchmarks                     the full run, into benchmarks/results.json
    python -m benchmarks --quick             small sizes, to see that everything works
    python -m benchmarks --only core feed    some parts
    python -m benchmarks --write-docs        and put the tables into docs/performance.md
    python -m benchmarks --write-docs --results FILE      only that, from an earlier run
    python -m benchmarks --check             compare ratios with those kept (benchmarks/ratchet.py)
    python -m benchmarks --keep 10           measure them so often and keep the steady ones

Each part runs in a process of its own. What was measured is written after every part, so an interrupted run
keeps what it had.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from rich.console import Console

from benchmarks import (
    book_structures,
    books,
    clients,
    core,
    feed,
    growth,
    hostile,
    order_entry,
    pipeline,
    ratchet,
    recovery,
    routing,
    take_over,
    unary,
)
from benchmarks.child import ChildFailed, in_child
from benchmarks.figures import Figure
from benchmarks.report import (
    Machine,
    MarkersMissing,
    Results,
    console,
    machine,
    markdown,
    read_json,
    save,
    show,
    with_section,
)

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results.json"
QUICK_RESULTS: Final = ROOT / "logs" / "bench-quick.json"
PARTIAL_RESULTS: Final = ROOT / "logs" / "bench-parts.json"
DOCS: Final = ROOT / "docs" / "performance.md"

Measure = Callable[[], list[Figure]]


class Part(NamedTuple):
    """One module's figures: in full, in a few seconds, and over hours where that tells more."""

    full: Measure
    quick: Measure | None = None
    long: Measure | None = None


def _part(module: ModuleType) -> Part:
    """What a module measures, in the sizes that it has."""
    quick, long = (
        partial(module.run, getattr(module, size)) if hasattr(module, size) else None
        for size in ("QUICK", "LONG")
    )
    return Part(partial(module.run, module.Sizes()), quick, long)


PARTS: Final[dict[str, Part]] = {
    module.__name__.rpartition(".")[2]: _part(module)
    for module in (
        core,
        pipeline,
        books,
        hostile,
        book_structures,
        order_entry,
        unary,
        feed,
        routing,
        clients,
        growth,
        recovery,
        take_over,
    )
}


def chosen(only: list[str], *, quick: bool, long: bool) -> dict[str, Measure]:
    """What to run: the named parts, or all that have the size. Raises ValueError for a name unknown."""
    unknown = sorted(set(only) - set(PARTS))
    if unknown:
        raise ValueError(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    parts = {name: part for name, part in PARTS.items() if not only or name in only}
    if quick:
        return {name: part.quick for name, part in parts.items() if part.quick is not None}
    return {name: (part.long if long and part.long else part.full) for name, part in parts.items()}


def measure(parts: dict[str, Measure], command: str, path: Path, output: Console) -> tuple[Results, bool]:
    """Run parts and write what they give to `path`; False when one of them failed."""
    made_on: Machine = machine()
    figures: list[Figure] = []
    whole = True
    for place, (name, run) in enumerate(parts.items(), start=1):
        output.print(f"[bold]{name}[/bold] ({place} of {len(parts)})")
        began = time.monotonic()
        try:
            made = in_child(run)
        except ChildFailed as failure:
            output.print(f"{name} failed: {failure}", style="red", markup=False)
            whole = False
            continue
        figures += made
        show(f"{made[0].part}, {time.monotonic() - began:.0f} s", made, output)
        save(path, Results(command=command, made_on=made_on, figures=figures))
    return Results(command=command, made_on=made_on, figures=figures), whole


def default_path(only: list[str], *, quick: bool) -> Path:
    """Where results go: a quick run or one of some parts does not replace those of a whole one."""
    if quick:
        return QUICK_RESULTS
    return PARTIAL_RESULTS if only else RESULTS


def write_docs(results: Results) -> None:
    """Put the tables into the document. Raises `MarkersMissing`."""
    DOCS.write_text(with_section(DOCS.read_text(encoding="utf-8"), markdown(results)), encoding="utf-8")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small sizes, under a minute in all")
    size.add_argument("--long", action="store_true", help="where there is more to see: ten million commands")
    size.add_argument("--check", action="store_true", help="compare ratios with those kept; 1 when worse")
    size.add_argument("--keep", type=int, metavar="RUNS", help="measure so often, keep the steady ratios")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"default {RESULTS.relative_to(ROOT)}")
    parser.add_argument(
        "--write-docs", action="store_true", help=f"rewrite {DOCS.relative_to(ROOT)}'s tables"
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="do not measure, take these results")
    options = parser.parse_args()
    if options.only and options.write_docs:
        parser.error("--write-docs replaces all tables, so it goes without --only")
    output = console()
    try:
        if options.check:
            return 0 if ratchet.check(output) else 1
        if options.keep is not None:
            ratchet.keep(max(1, options.keep), output)
            return 0
        parts = chosen(options.only, quick=options.quick, long=options.long)
        whole = True
        if options.results:
            results = read_json(options.results)
        else:
            path = options.json or default_path(options.only, quick=options.quick)
            command = " ".join(("python -m benchmarks", *sys.argv[1:]))
            results, whole = measure(parts, command, path, output)
            output.print(f"results in {path}", markup=False)
        if options.write_docs and not whole:
            output.print(f"{DOCS} is left as it was: a part is missing", style="red", markup=False)
        elif options.write_docs:
            write_docs(results)
            output.print(f"tables in {DOCS}", markup=False)
    except (OSError, ValueError, MarkersMissing, ratchet.NothingKept, ChildFailed) as error:
        parser.error(str(error))
    return 0 if whole else 1
