"""Where answers are printed: stdout for answers, stderr for failures and for what only a watcher needs.

`rich` is loaded only when a table, a spinner or a live view is drawn: `--json` and one-line answers start
faster without it.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from client.cli.failures import Failure
from client.cli.sheets import Sheet, plain

if TYPE_CHECKING:
    from rich.console import Console, Group

QUIET_S: Final = 1.0
"""What takes longer than this shows that it is under way."""

_WIDE: Final = 240
"""Columns of a table that goes into a file or a pipe: nothing is to be folded there."""


class Output:
    """Prints the answers of one command, as JSON lines or for people."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str) -> None:
        """A sentence for people; nothing in JSON."""
        if not self.as_json:
            print(text, flush=True)

    def answer(self, answer: Any, *lines: str) -> None:
        """One answer: an object in JSON, else the lines."""
        print(json.dumps(plain(answer)) if self.as_json else "\n".join(lines), flush=True)

    def table(self, answers: Sequence[Any], sheet: Callable[[], Sheet], *, nothing: str = "") -> None:
        """Many answers: an object a line in JSON, else a table, or `nothing` when there are none."""
        if self.as_json:
            for answer in answers:
                self.answer(answer)
        elif answers or not nothing:
            self.sheets(sheet())
        else:
            self.line(nothing)

    def sheets(self, *sheets: Sheet) -> None:
        """Draw tables."""
        console = _console()
        for sheet in sheets:
            console.print(drawn(sheet))
        sys.stdout.flush()

    def failure(self, failure: Failure) -> None:
        """Say on stderr what went wrong and what to do."""
        if self.as_json:
            text = json.dumps({"error": failure.text, "hint": failure.hint})
        else:
            text = f"matchbus: {failure.text}" + (f"\n  {failure.hint}" if failure.hint else "")
        print(text, file=sys.stderr, flush=True)

    @contextlib.asynccontextmanager
    async def waiting(self, what: str) -> AsyncIterator[Callable[[str], None]]:
        """Show a spinner on the terminal while the body runs, from the second second on.

        Yields what changes its text. The body must wait, not work: a spinner that nobody turns stands still.
        """
        if not sys.stderr.isatty():
            yield lambda _: None
            return
        from rich.console import Console  # noqa: PLC0415 -- see the module's docstring

        status = Console(stderr=True).status(what)
        spinning = asyncio.get_running_loop().call_later(QUIET_S, status.start)
        try:
            yield status.update
        finally:
            spinning.cancel()
            status.stop()

    @contextlib.contextmanager
    def watching(self) -> Iterator[Callable[[Any, Callable[[], Sheet]], None]]:
        """Yield what shows one state of something that changes.

        In JSON, and where no terminal is, a state is printed when it differs from the last; on a terminal it
        replaces the last.
        """
        shown: list[Any] = []

        def news(answer: Any) -> bool:
            """Whether it differs from the last."""
            before, shown[:] = list(shown), [plain(answer)]
            return before != shown

        if self.as_json or not sys.stdout.isatty():

            def show(answer: Any, sheet: Callable[[], Sheet]) -> None:
                if news(answer):
                    self.table([answer], sheet)

            yield show
            return
        from rich.live import Live  # noqa: PLC0415 -- see the module's docstring

        with Live(console=_console(), auto_refresh=False) as live:

            def redraw(answer: Any, sheet: Callable[[], Sheet]) -> None:
                if news(answer):
                    live.update(drawn(sheet()), refresh=True)

            yield redraw


def drawn(sheet: Sheet) -> "Group":
    """What people see: the table, and the note below it."""
    from rich.console import Group  # noqa: PLC0415 -- see the module's docstring
    from rich.table import Table  # noqa: PLC0415 -- likewise
    from rich.text import Text  # noqa: PLC0415 -- likewise

    table = Table(title=sheet.title or None, title_justify="left")
    for column in sheet.columns:
        name = column.removeprefix(">")
        table.add_column(name, justify="right" if name != column else "left")
    for row in sheet.rows:
        # Text, not markup: what clients have named must not colour the screen.
        cells = ((cell, "") if isinstance(cell, str) else cell for cell in row)
        table.add_row(*(Text(text, style=style) for text, style in cells))
    return Group(table, Text(sheet.note)) if sheet.note else Group(table)


def _console() -> "Console":
    from rich.console import Console  # noqa: PLC0415 -- see the module's docstring

    wide = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _WIDE
    return Console(highlight=False, width=wide)
