"""Draws sheets. Only what draws loads this, and `rich` with it: `--json` and one-line answers start faster.

Rich looks at each cell several times, as it may have to wrap it. What fits is put together here instead: a
client may have a hundred thousand orders, which took rich a minute.
"""

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from rich.box import HEAVY_HEAD
from rich.cells import cell_len
from rich.console import Console, Group
from rich.control import strip_control_codes
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table
from rich.text import Text

from client.cli.sheets import Cell, Sheet

_AROUND_A_CELL: Final = 3
"""Columns that a table takes for a cell besides its text: a blank on each side, and a line."""

_GAP: Final = "  "

_Piece = tuple[str, str]
"""A text and its style."""


def drawn(sheet: Sheet, console: Console) -> Group:
    """What people see: the table, and the note below it.

    Cells are wrapped between words only. A table that is too wide for that becomes a list: a shortened id or
    number is useless.
    """
    # A title of the table's own would be folded to its width.
    title = [Text(sheet.title, style="table.title")] if sheet.title else []
    note = [Text(sheet.note)] if sheet.note else []
    rows = [[_readable(cell) for cell in row] for row in sheet.rows]
    names = [column.removeprefix(">") for column in sheet.columns]
    texts = [[name, *(row[place][0] for row in rows)] for place, name in enumerate(names)]
    least = [max(cell_len(word) for text in cells for word in text.split() or [""]) for cells in texts]
    spare = console.width - 1 - sum(columns + _AROUND_A_CELL for columns in least)
    if spare < 0:
        return Group(*title, Segments(_listed(names, rows, console)), *note)
    table, fits = Table(), True
    for column, name, cells, narrow in zip(sheet.columns, names, texts, least, strict=True):
        # Left to itself rich takes from the widest column, and folds the longest ids.
        widest = max(cell_len(line) for text in cells for line in text.split("\n"))
        wide = min(widest, narrow + spare)
        spare -= wide - narrow
        fits = fits and wide == widest and not any("\n" in text for text in cells)
        justify: Literal["left", "right"] = "right" if name != column else "left"
        table.add_column(name, justify=justify, width=wide, overflow="fold")
    if fits:
        return Group(*title, Segments(_framed(table, rows, console)), *note)
    for row in rows:
        # Text, not markup: what clients have named must not colour the screen.
        table.add_row(*(Text(text, style=style) for text, style in row))
    return Group(*title, table, *note)


def _readable(cell: Cell) -> _Piece:
    """A cell's text, without what a terminal would take for an order, and its colour."""
    text, style = (cell, "") if isinstance(cell, str) else cell
    return strip_control_codes(text), style


def _framed(table: Table, rows: Sequence[Sequence[_Piece]], console: Console) -> Iterator[Segment]:
    """The table, whose columns are as wide as their texts, with these rows."""
    *head, foot = console.render_lines(table, pad=False)
    edge = HEAVY_HEAD.substitute(console.options).mid_vertical  # as a table has it, at its ends too
    line = Segment.line()
    for segments in head:
        yield from (*segments, line)
    for row in rows:
        plain = ""
        for column, (text, style) in zip(table.columns, row, strict=True):
            blanks = " " * ((column.width or 0) - cell_len(text))
            before, after = (blanks, "") if column.justify == "right" else ("", blanks)
            plain += f"{edge} {before}"
            if style:
                yield Segment(plain)
                yield Segment(text, Style.parse(style))
                plain = ""
            else:
                plain += text
            plain += f"{after} "
        yield Segment(f"{plain}{edge}\n")
    yield from (*foot, line)


def _listed(names: Sequence[str], rows: Sequence[Sequence[_Piece]], console: Console) -> Iterator[Segment]:
    """Each row as `name value  name value ...`, on as few lines as it takes; the first is not indented."""
    width = console.width  # which asks the terminal each time
    for row in rows:
        line: list[_Piece] = []
        used, indent = 0, ""
        for name, (text, style) in zip(names, row, strict=True):
            if not text:
                continue
            entry = [(name, "dim"), (" ", ""), (text, style)] if name else [(text, style)]
            wide = sum(cell_len(piece) for piece, _ in entry)
            if line and used + len(_GAP) + wide > width:
                yield from _line(line, console, fits=used <= width)
                line, used, indent = [], 0, _GAP
            gap = _GAP if line else indent
            line += [(gap, ""), *entry]
            used += len(gap) + wide
        yield from _line(line, console, fits=used <= width)


def _line(pieces: Sequence[_Piece], console: Console, *, fits: bool) -> Iterator[Segment]:
    if fits:
        yield from (Segment(text, Style.parse(style) if style else None) for text, style in pieces)
        yield Segment.line()
        return
    for wrapped in console.render_lines(Text.assemble(*pieces, overflow="fold"), pad=False):
        yield from (*wrapped, Segment.line())
