"""How sheets are drawn, to the character."""

import io

import pytest
from rich.console import Console, RenderableType
from rich.table import Table

from client.cli.drawing import drawn
from client.cli.sheets import Sheet


def shown(sheet: Sheet, width: int) -> list[str]:
    """The lines on a screen of this width, without the blanks at their ends."""
    return printed(drawn(sheet, Console(width=width)), width)


def printed(what: RenderableType, width: int, encoding: str = "utf-8") -> list[str]:
    """What anything looks like there."""
    written = io.BytesIO()
    paper = io.TextIOWrapper(written, encoding)
    Console(file=paper, width=width).print(what)
    paper.flush()
    return [line.rstrip() for line in written.getvalue().decode(encoding).splitlines()]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_table_that_fits_is_as_rich_would_draw_it(encoding: str) -> None:
    """What is put together without it, for speed, looks the same, its lines too."""
    rows = [("one", "5", ""), ("", "17", "")]
    by_rich = Table()
    for name in ("name", ">number", ""):
        by_rich.add_column(name.removeprefix(">"), justify="right" if ">" in name else "left")
    for row in rows:
        by_rich.add_row(*row)
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding), width=60)
    ours = drawn(Sheet("", ("name", ">number", ""), [*rows]), console)
    assert printed(ours, 60, encoding) == printed(by_rich, 60, encoding)


def test_a_table_may_be_as_wide_as_the_screen() -> None:
    """With a column less to stand in it becomes a list."""
    sheet = Sheet("", ("a", "b"), [("12345", "6")])
    assert shown(sheet, 13)[3] == "│ 12345 │ 6 │"
    assert shown(sheet, 12) == ["a 12345  b 6"]


@pytest.mark.parametrize("width", [60, 20, 10], ids=["table", "wrapped table", "list"])
def test_a_cell_keeps_its_colour_and_its_words(width: int) -> None:
    """However it is drawn, and whatever stands in it: names are no markup."""
    sheet = Sheet("Title", ("name", "state"), [("[red]a b c[/]", ("live", "green"))], "the note")
    terminal = io.StringIO()
    console = Console(file=terminal, width=width, force_terminal=True, color_system="standard")
    console.print(drawn(sheet, console))
    assert "\x1b[32mlive" in terminal.getvalue()
    assert "\x1b[31m" not in terminal.getvalue()
    lines = shown(sheet, width)
    assert (lines[0], lines[-1]) == ("Title", "the note")
    assert "[red]a" in "".join(lines)


def test_a_cell_may_have_several_lines() -> None:
    """As a check that does not hold has; in a list they stand below each other too."""
    sheet = Sheet("", ("check", "found"), [("book", "VIOLATED\nby E1"), ("fills", "holds")])
    assert shown(sheet, 40)[3:6] == ["│ book  │ VIOLATED │", "│       │ by E1    │", "│ fills │ holds    │"]
    assert shown(sheet, 15) == ["check book", "  found", "VIOLATED", "by E1", "check fills", "  found holds"]


def test_wrapped_columns_share_what_there_is() -> None:
    """The first takes what it needs, and no later one takes that again: the id stays whole."""
    digest = "abcd" * 8
    sheet = Sheet("", ("what", "why", "id"), [("a few words", "and a few more", digest)])
    lines = shown(sheet, 60)
    assert max(map(len, lines)) <= 60
    assert any(digest in line for line in lines)
    assert lines[0].startswith("┏")


def test_a_list_takes_as_few_lines_as_it_needs() -> None:
    """A name stands by its value, what is empty is left out, and all lines but the first are indented."""
    sheet = Sheet("", ("id", "a", "b", ""), [("1" * 20, "2345", "", "6789"), ("1", "", "", "*")])
    assert shown(sheet, 24) == ["id 11111111111111111111", "  a 2345  6789", "id 1  *"]
    assert shown(sheet, 14) == ["id", "1" * 14, "1" * 6, "  a 2345  6789", "id 1  *"]
    assert shown(sheet, 13) == ["id", "1" * 13, "1" * 7, "  a 2345", "  6789", "id 1  *"]
