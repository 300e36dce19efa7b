"""One benchmark as a program of its own: `python benchmarks/routing.py --orders 100 --json FILE`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from benchmarks.figures import Figure
from benchmarks.report import console, show, write_json

Sizes = TypeVar("Sizes", bound=msgspec.Struct)


def standalone(
    title: str, description: str | None, full: Sizes, run: Callable[[Sizes], list[Figure]], **options: str
) -> None:
    """Measure with the sizes that the command line asks for, show the figures, and write them where it says.

    `options` are the fields of `full` that can be changed, each with its help, which may be empty.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, meaning in options.items():
        default = getattr(full, name)
        if isinstance(default, tuple):
            parser.add_argument(f"--{name}", type=int, nargs="+", default=default, help=meaning)
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default, help=meaning)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    given = parser.parse_args()
    chosen = {
        name: tuple(value) if isinstance(value := getattr(given, name), list) else value for name in options
    }
    figures = run(msgspec.structs.replace(full, **chosen))
    show(title, figures, console())
    write_json(given.json, " ".join(sys.argv), figures)
