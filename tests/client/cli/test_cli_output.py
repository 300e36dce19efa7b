import io
import json
import sys
import time
from collections.abc import Callable

import msgspec
import pytest
from rich.table import Table
from rich.text import Text

from client.cli.failures import Failure
from client.cli.output import Output, stdout_console
from client.cli.sheets import FILL_COLUMNS, Cell, Sheet, fill_cells, orders_sheet
from tests.client.cli.outputs import no_room
from tests.client.cli.test_cli_sheets import FILL, ORDER
from tests.waiting import until

SHEET = Sheet("Title", ("name", ">number"), [("[red]mine[/]", ("5", "green"))], note="below")


def test_answers_are_json_or_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """One answer is an object for a program and sentences for a person, never both."""
    Output(as_json=True).answer({"a": 1}, "one")
    Output(as_json=True).line("only for people")
    Output(as_json=False).answer({"a": 1}, "one", "two")
    assert capsys.readouterr().out == '{"a": 1}\none\ntwo\n'


def test_tables_keep_what_clients_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Names are not taken for markup, and nothing is folded where no terminal is."""
    wide = Sheet("", ("name",), [("x" * 150,)])
    Output(as_json=False).sheets(SHEET, wide)
    shown = capsys.readouterr().out
    assert "[red]mine[/]" in shown
    assert "below" in shown
    assert "x" * 150 in shown


def test_a_title_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A table that is narrower than its title does not fold it."""
    Output(as_json=False).sheets(Sheet("Final positions in lots", ("a",), [("1",)]))
    assert capsys.readouterr().out.splitlines()[0].rstrip() == "Final positions in lots"


def test_ids_and_numbers_are_whole_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words may be wrapped to the width of the terminal, ids, prices and quantities are not cut."""
    monkeypatch.setenv("COLUMNS", "80")
    number, queue = 281474976710657, "  ".join(f"{2**48 + place}:4*" for place in range(9))
    order = msgspec.structs.replace(ORDER, order_id=number, client_order_id="a6cfdb5267c447f6-1")
    fill = msgspec.structs.replace(FILL, order_id=number)
    fills = Sheet("Fills", FILL_COLUMNS, [fill_cells(fill)])
    book = Sheet("Book", (">price", "queue"), [("100.00", queue)])
    Output(as_json=False).sheets(orders_sheet([order]), fills, book)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for text in (f"order {number}", "a6cfdb5267c447f6-1", "partially filled", "price 65000.10", "left 6"):
        assert text in shown
    assert "│ 100.00 │" in shown  # what fits is a table still
    assert all(word in shown for word in queue.split())


@pytest.mark.parametrize("width", range(40, 110, 5))
def test_a_long_id_is_whole_beside_words_at_any_width(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the rest of a table can be wrapped, the longest id is not folded instead; a list has it alone."""
    monkeypatch.setenv("COLUMNS", str(width))
    digest = "abcd" * 8
    rows: list[tuple[Cell, ...]] = [("the digest of a batch", digest), ("what was found there", "some words")]
    Output(as_json=False).sheets(Sheet("Title", ("what", "found"), rows))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert any(digest in line for line in lines)


@pytest.mark.parametrize("width", [120, 60], ids=["table", "list"])
def test_many_rows_are_drawn_quickly(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What need not be wrapped is not drawn by rich, which takes several times as long."""
    monkeypatch.setenv("COLUMNS", str(width))
    sheet = orders_sheet([ORDER] * 1500)
    by_rich = Table()
    for column in sheet.columns:
        by_rich.add_column(column, width=20)
    for row in sheet.rows:
        by_rich.add_row(*(Text(cell if isinstance(cell, str) else cell[0]) for cell in row))

    def cpu_s(draw: Callable[[], None]) -> float:
        began = time.process_time()
        draw()
        return time.process_time() - began

    ours = cpu_s(lambda: Output(as_json=False).sheets(sheet))
    assert capsys.readouterr().out.count(ORDER.client_order_id) == 1500
    assert ours < cpu_s(lambda: stdout_console().print(by_rich)) / 3


def test_cells_of_any_kind_stand_in_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide characters count twice, and what would steer a terminal is left out."""
    monkeypatch.setenv("COLUMNS", "40")
    Output(as_json=False).sheets(Sheet("", ("name", ">number"), [("漢字", "5"), ("a\bb", ("17", "red"))]))
    assert capsys.readouterr().out.splitlines()[3:5] == ["│ 漢字 │      5 │", "│ ab   │     17 │"]


def test_a_character_that_the_terminal_lacks_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a `?` where it would have raised, and what the user has said about such characters holds."""
    for errors, shown in (("strict", "?"), ("backslashreplace", "\\u2192")):
        written = io.BytesIO()
        stdout = io.TextIOWrapper(written, "latin-1", errors)
        monkeypatch.setattr(sys, "stdout", stdout)
        stdout_console().print("E1 → E2")
        stdout.flush()
        assert written.getvalue().decode("latin-1") == f"E1 {shown} E2\n"


def test_a_failure_does_not_tell_a_whole_book(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells as much of an answer that cannot be written as an order's takes."""
    with no_room() as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(Failure) as failed:
            Output(as_json=True).answer({"bids": [{"price": "1"}] * 10_000})
    assert failed.value.hint.startswith('the answer is: {"bids": ')
    assert len(failed.value.hint) < 2_000


def test_no_answers_are_told_to_people_only(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty list is no line in JSON and a sentence otherwise."""
    Output(as_json=True).table([], lambda: SHEET, nothing="nothing")
    Output(as_json=False).table([], lambda: SHEET, nothing="nothing")
    assert capsys.readouterr().out == "nothing\n"


def test_failures_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """What was wrong, and below it what to do; an object in JSON."""
    Output(as_json=False).failure(Failure("wrong", "do right"))
    Output(as_json=True).failure(Failure("wrong"))
    shown = capsys.readouterr()
    text, _, last = shown.err.rstrip("\n").rpartition("\n")
    assert text == "matchbus: wrong\n  do right"
    assert json.loads(last) == {"error": "wrong", "hint": ""}
    assert shown.out == ""


def test_a_watched_thing_is_printed_when_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    """The same state twice is one line; a state that comes back is a change."""
    with Output(as_json=True).watching() as show:
        for state in (1, 1, 2, 2, 1):
            show({"state": state}, lambda: SHEET)
    assert [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()] == [1, 2, 1]


async def test_a_spinner_comes_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is quick leaves no trace on a terminal."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    began = time.monotonic()
    async with Output(as_json=False).waiting("something"):
        await until(terminal.getvalue)
    assert time.monotonic() - began >= 1
    assert "something" in terminal.getvalue()


async def test_waiting_says_nothing_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal on stderr there is no spinner in a log file."""
    async with Output(as_json=False).waiting("something") as tell:
        tell("something else")
    assert capsys.readouterr() == ("", "")
