"""Which parts are run, that each runs apart, and that one that fails does not take the others with it."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks import suite
from benchmarks.child import ChildFailed, in_child
from benchmarks.report import console, read_json
from tests.benchmarks.children import end, other_process


def test_all_parts_or_those_named() -> None:
    """Without names all of a size; a wrong name is told with the right ones."""
    assert set(suite.chosen([], quick=False, long=False)) == set(suite.PARTS)
    assert list(suite.chosen(["unary", "core"], quick=True, long=False)) == ["core", "unary"]
    with pytest.raises(ValueError, match=r"no part fed; there are .*feed"):
        suite.chosen(["fed"], quick=False, long=False)


def test_quick_leaves_out_only_what_has_no_quick_form() -> None:
    """Killing engines takes its time; all else is there."""
    assert set(suite.PARTS) - set(suite.chosen([], quick=True, long=False)) == {"take_over"}


def test_long_differs_where_there_is_more_to_see() -> None:
    """Ten million commands."""
    full, long = (suite.chosen([], quick=False, long=is_long) for is_long in (False, True))
    assert [name for name in full if full[name] is not long[name]] == ["growth"]


def test_only_a_whole_run_replaces_its_results() -> None:
    """Quick runs and runs of some parts have files of their own."""
    assert suite.default_path([], quick=False) == suite.RESULTS
    others = {suite.default_path(["core"], quick=False), suite.default_path([], quick=True)}
    assert suite.RESULTS not in others
    assert len(others) == 2


def test_tables_of_some_parts_do_not_replace_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line refuses it before anything is measured."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "core", "--write-docs"])
    with pytest.raises(SystemExit):
        suite.main()


def test_a_measurement_runs_in_a_process_of_its_own() -> None:
    """Nothing it does stays here."""
    (figure,) = in_child(other_process)
    assert figure.value != float(os.getpid())


def test_a_measurement_that_ends_early_is_told() -> None:
    """With the module and the exit code."""
    with pytest.raises(ChildFailed, match=r"children ended with code 3"):
        in_child(end)


def test_results_are_kept_when_a_part_fails(tmp_path: Path) -> None:
    """The parts before and after it are in the file, and the run says that it is not whole."""
    path = tmp_path / "results.json"
    parts = {"one": other_process, "broken": end, "other": other_process}
    results, whole = suite.measure(parts, "command", path, console())
    assert not whole
    assert len(results.figures) == 2
    assert read_json(path) == results
