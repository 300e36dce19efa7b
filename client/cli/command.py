"""What a command is made of: how it is typed, and what it does at a desk."""

import argparse
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from client.cli.arguments import Parser, add_common
from client.cli.desk import Desk

Options = argparse.Namespace
Run = Callable[[Options, Desk], Coroutine[Any, Any, int]]


@dataclass(frozen=True)
class Command:
    """One command. `run` returns the exit code; `goes_on` tells whether Ctrl-C is its ordinary end.

    One that `changes` orders has to say what may have become of them when it is stopped.
    """

    name: str
    what: str
    arrange: Callable[[Parser], None]
    run: Run
    goes_on: Callable[[Options], bool] = lambda _: False
    changes: bool = False

    def parser(self, *, alone: bool = True) -> Parser:
        """Reads its words; `alone` adds what only a whole command line has: who, where and `--json`."""
        parser = Parser(f"matchbus {self.name}", description=self.what, at_prompt=not alone)
        self.arrange(parser)
        if alone:
            add_common(parser)
        return parser
