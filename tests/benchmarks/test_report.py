"""Results as JSON, as a table for people, as a section of the docs."""

from pathlib import Path

import msgspec
import pytest

from benchmarks.figures import alone, missing, paired
from benchmarks.report import (
    BEGIN,
    END,
    Machine,
    MarkersMissing,
    Results,
    console,
    machine,
    markdown,
    number,
    read_json,
    show,
    with_section,
    write_json,
)

FIGURES = [
    paired("Core", "book", "operations/s", [700_000.0, 710_000.0], "least", [1_000_000.0, 1_000_000.0]),
    missing("Core", "litebook", "operations/s", "other trades: one | two"),
    alone("Recovery", "start", "s", [1.234]),
]
RESULTS = Results(
    command="python -m benchmarks",
    made_on=Machine(
        cpu="Some CPU",
        cores=2,
        system="Linux x86_64",
        python="3.11.7",
        libraries={"grpcio": "1.80.0", "absent": ""},
        commit="abc1234",
        dirty=True,
        load=0.5,
    ),
    figures=FIGURES,
)


def test_a_table_for_each_part() -> None:
    """The section says where it was made; each part has a heading and its rows in order."""
    section = markdown(RESULTS)
    assert section.startswith(
        "`python -m benchmarks` at commit abc1234 (with changes) on 2 cores of Some CPU"
    )
    assert "grpcio 1.80.0" in section
    assert "absent" not in section
    assert section.index("### Core") < section.index("### Recovery")
    assert "| book | operations/s | 705,000 | least | 1,000,000 | 0.705 |" in section
    assert "| start | s | 1.23 |  |  |  |" in section


def test_a_missing_figure_shows_its_reason_in_one_cell() -> None:
    """A bar in the reason would begin another cell."""
    row = next(line for line in markdown(RESULTS).splitlines() if "litebook" in line)
    assert row == "| litebook | operations/s | other trades: one / two |  |  |  |"


def test_only_what_is_between_the_markers_is_replaced() -> None:
    """Text by hand stays, and writing twice gives the same."""
    document = f"# By hand\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    once = with_section(document, "new")
    assert once == f"# By hand\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    assert with_section(once, "new") == once


@pytest.mark.parametrize("document", ["", BEGIN, END, f"{END}{BEGIN}"])
def test_a_document_without_both_markers_is_refused(document: str) -> None:
    """Nothing is overwritten by guess."""
    with pytest.raises(MarkersMissing):
        with_section(document, "new")


def test_the_documents_markers_are_there() -> None:
    """`--write-docs` finds its section."""
    page = Path(__file__).parents[2] / "docs" / "performance.md"
    with_section(page.read_text(), "")


def test_results_come_back_from_json(tmp_path: Path) -> None:
    """What is written is read again, with the machine it was made on."""
    path = tmp_path / "deep" / "results.json"
    write_json(path, "command", FIGURES)
    results = read_json(path)
    assert results.figures == FIGURES
    made_on, here = (msgspec.structs.replace(found, load=0.0) for found in (results.made_on, machine()))
    assert made_on == here


def test_another_file_is_no_result(tmp_path: Path) -> None:
    """The error names the file."""
    path = tmp_path / "other.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json"):
        read_json(path)


def test_a_table_for_people_shows_values_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures without a value stand below the table with their reason."""
    show("Core", FIGURES, console())
    shown = capsys.readouterr().out
    assert "705,000" in shown
    assert "litebook: other trades: one | two" in shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, ""), (0.12345, "0.123"), (99.96, "100"), (1234.5, "1,234"), (0.0, "0")]
)
def test_numbers_have_three_digits(value: float | None, shown: str) -> None:
    """More would pretend."""
    assert number(value) == shown
