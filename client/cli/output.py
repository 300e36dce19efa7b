"""Where answers are printed: stdout for answers, stderr for failures and for what only a watcher needs.

`rich` is loaded only when a table, a spinner or a live view is drawn: `--json` and one-line answers start
faster without it.
"""

import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from client.cli.failures import Failure
from client.cli.sheets import Sheet, plain

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.text import Text

QUIET_S: Final = 1.0
"""What takes longer than this shows that it is under way."""

_WIDE: Final = 240
"""Columns of a table that goes into a file or a pipe: nothing is to be folded there."""

_AROUND_A_CELL: Final = 3
"""Columns that a table takes for a cell besides its text: a blank on each side, and a line."""

_GAP: Final = "  "


class Output:
    """Prints the answers of one command, as JSON lines or for people."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str) -> None:
        """A sentence for people; nothing in JSON."""
        if not self.as_json:
            with _writing():
                print(text, flush=True)

    def answer(self, answer: Any, *lines: str) -> None:
        """One answer: an object in JSON, else the lines."""
        with _writing():
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
        with _writing():
            print_sheets(stdout_console(), *sheets)
            sys.stdout.flush()

    def failure(self, failure: Failure) -> None:
        """Say on stderr what went wrong and what to do."""
        if self.as_json:
            text = json.dumps({"error": failure.text, "hint": failure.hint})
        else:
            text = f"matchbus: {failure.text}" + (f"\n  {failure.hint}" if failure.hint else "")
        with contextlib.suppress(BrokenPipeError):  # nobody reads it: the exit code still tells
            print(text, file=sys.stderr, flush=True)

    @contextlib.asynccontextmanager
    async def waiting(self, what: str) -> AsyncIterator[Callable[[str], None]]:
        """Show a spinner on the terminal while the body runs, once that takes longer than QUIET_S.

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

        with Live(console=stdout_console(), auto_refresh=False) as live:

            def redraw(answer: Any, sheet: Callable[[], Sheet]) -> None:
                if news(answer):
                    live.update(drawn(sheet(), live.console.width), refresh=True)

            yield redraw


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Around what goes to stdout: that nothing can be written there is a `Failure`."""
    try:
        yield
    except BrokenPipeError:  # none: `| head` has seen enough
        raise
    except OSError as error:
        raise Failure(
            f"the answer cannot be written: {error.strerror}",
            "what was asked for is done all the same: make room, and look before you repeat an order",
        ) from error


def drawn(sheet: Sheet, width: int) -> "Group":
    """What people see: the table, and the note below it.

    Cells are wrapped between words only. A table that is too wide for that becomes a list: a shortened id or
    number is useless.
    """
    from rich.cells import cell_len  # noqa: PLC0415 -- see the module's docstring
    from rich.console import Group  # noqa: PLC0415 -- likewise
    from rich.table import Table  # noqa: PLC0415 -- likewise
    from rich.text import Text  # noqa: PLC0415 -- likewise

    # Text, not markup: what clients have named must not colour the screen.
    rows = [
        [Text(cell) if isinstance(cell, str) else Text(cell[0], style=cell[1]) for cell in row]
        for row in sheet.rows
    ]
    names = [column.removeprefix(">") for column in sheet.columns]
    texts = [[name, *(row[place].plain for row in rows)] for place, name in enumerate(names)]
    least = [
        max(map(cell_len, (name, *(word for text in cells for word in text.split()))))
        for name, *cells in texts
    ]
    spare = width - 1 - sum(columns + _AROUND_A_CELL for columns in least)
    if spare < 0:
        listed = [_listed(names, row, width) for row in rows]
        return Group(*(Text(text) for text in (sheet.title,) if text), *listed, *_note(sheet))
    table = Table()
    for column, name, cells, narrow in zip(sheet.columns, names, texts, least, strict=True):
        # Left to itself rich takes from the widest column, and folds the longest ids.
        wide = min(max(cell_len(line) for text in cells for line in text.split("\n")), narrow + spare)
        spare -= wide - narrow
        justify: Literal["left", "right"] = "right" if name != column else "left"
        table.add_column(name, justify=justify, width=wide, overflow="fold")
    for row in rows:
        table.add_row(*row)
    # A title of the table's own would be folded to its width.
    title = (Text(sheet.title, style="table.title"),) if sheet.title else ()
    return Group(*title, table, *_note(sheet))


def _note(sheet: Sheet) -> "list[Text]":
    from rich.text import Text  # noqa: PLC0415 -- see the module's docstring

    return [Text(sheet.note)] if sheet.note else []


def _listed(names: Sequence[str], row: "Sequence[Text]", width: int) -> "Text":
    """A row as `name value  name value ...`, on as few lines as it takes; only the first is not indented."""
    from rich.text import Text  # noqa: PLC0415 -- see the module's docstring

    lines: list[Text] = []
    for name, cell in zip(names, row, strict=True):
        if not cell.plain:
            continue
        entry = Text.assemble((name, "dim"), " " if name else "", cell)
        if lines and lines[-1].cell_len + len(_GAP) + entry.cell_len <= width:
            lines[-1].append(_GAP).append_text(entry)
        else:
            lines.append(Text(_GAP if lines else "").append_text(entry))
    return Text("\n", overflow="fold").join(lines)


def print_sheets(console: "Console", *sheets: Sheet) -> None:
    """Draw tables as wide as the console is."""
    for sheet in sheets:
        console.print(drawn(sheet, console.width))


def stdout_console() -> "Console":
    """What draws on stdout; from here on a character that its encoding lacks is a `?` there.

    Such a character may stand in the name of a directory, in a live view or in a spinner: none is a reason to
    end a market.
    """
    from rich.console import Console  # noqa: PLC0415 -- see the module's docstring

    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    wide = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _WIDE
    return Console(highlight=False, width=wide)
