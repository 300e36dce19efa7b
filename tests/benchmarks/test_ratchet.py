"""The ratchet: what counts as worse, what is steady, and that one slow moment is no failure."""

from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from benchmarks import ratchet
from benchmarks.figures import Figure
from benchmarks.ratchet import Kept, KeptRatios, NothingKept, best_of, read_kept, steady_ones, suspicious
from benchmarks.report import machine

COST = "core: cost"
RATE = "core: rate"
KEPT = {
    COST: Kept(ratio=4.0, spread=0.02, lower_is_better=True),
    RATE: Kept(ratio=0.5, spread=0.02, lower_is_better=False),
}


def figure(ratio: float) -> Figure:
    """A figure of which only the ratio matters."""
    return Figure(part="Core", name="x", unit="s", ratio=ratio, lower_is_better=True)


@pytest.mark.parametrize(
    ("measured", "worse"),
    [
        ({COST: 4.0, RATE: 0.5}, []),
        ({COST: 4.59, RATE: 0.44}, []),
        ({COST: 4.61, RATE: 0.5}, [COST]),
        ({COST: 4.0, RATE: 0.43}, [RATE]),
        ({COST: 1.0, RATE: 5.0}, []),
        ({COST: 4.0}, [RATE]),
    ],
)
def test_worse_is_more_than_fifteen_percent(measured: dict[str, float], worse: list[str]) -> None:
    """A cost may not grow and a rate may not fall beyond it; better is never wrong; missing is."""
    assert suspicious(KEPT, measured) == worse


def test_the_better_of_two_measurements_counts() -> None:
    """In each ratio's own direction, whatever else was measured."""
    first, second = {COST: 5.0, RATE: 0.5}, {COST: 4.1, RATE: 0.4, "core: new": 1.0}
    assert best_of(KEPT, first, second) == {COST: 4.1, RATE: 0.5, "core: new": 1.0}


def test_only_steady_ratios_are_kept() -> None:
    """A ratio that differs between runs, or is missing in one, is not compared; its spread is kept."""
    runs = [
        {"steady": figure(1.0), "wild": figure(1.0), "sometimes": figure(1.0)},
        {"steady": figure(1.05), "wild": figure(2.0)},
        {"steady": figure(0.95), "wild": figure(1.0), "sometimes": figure(1.0)},
    ]
    steady, unsteady = steady_ones(runs)
    assert steady == {"steady": Kept(ratio=1.0, spread=0.05, lower_is_better=True)}
    assert unsteady == {"wild": 1.0, "sometimes": 0.0}


class Machine:
    """A machine on which each measurement gives the next of some ratios."""

    def __init__(self, *ratios: float) -> None:
        self.ratios = list(ratios)
        self.asked: list[list[str]] = []

    def measure(self, groups: list[str], output: Console) -> dict[str, Figure]:
        """As benchmarks.ratchet has it."""
        self.asked.append(groups)
        return {COST: figure(self.ratios.pop(0))}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kept cost of 4."""
    ratios = KeptRatios(made_on=machine(), runs=1, steady={COST: KEPT[COST]}, unsteady={})
    monkeypatch.setattr(ratchet, "read_kept", lambda: ratios)


@pytest.mark.parametrize(
    ("ratios", "passes", "measurements"),
    [
        ([4.1], True, 1),
        ([9.0, 4.1], True, 2),
        ([9.0, 8.0, 4.5], True, 3),
        ([9.0, 8.0, 7.0, 6.0], False, 4),
    ],
)
@pytest.mark.usefixtures("kept")
def test_what_seems_worse_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, ratios: list[float], passes: bool, measurements: int
) -> None:
    """It fails only when it is worse each time, and the measuring has an end."""
    machine_ = Machine(*ratios)
    monkeypatch.setattr(ratchet, "measure", machine_.measure)
    assert ratchet.check(Console(quiet=True)) is passes
    assert machine_.asked == [["core"]] * measurements


def test_another_python_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytecodes are others; a patch release has the same."""
    made_on = msgspec.structs.replace(machine(), python="3.8.1")
    kept_there = KeptRatios(made_on=made_on, runs=1, steady={COST: KEPT[COST]}, unsteady={})
    monkeypatch.setattr(ratchet, "read_kept", lambda: kept_there)
    monkeypatch.setattr(ratchet, "measure", Machine().measure)
    assert ratchet.check(Console(quiet=True))
    assert ratchet.minor("3.11.7") == ratchet.minor("3.11.12") == "3.11"


def test_without_kept_ratios_the_way_to_them_is_told(tmp_path: Path) -> None:
    """No file, or another one: the error names the command that makes it."""
    with pytest.raises(NothingKept, match="--keep 10"):
        read_kept(tmp_path / "kept.json")
    (tmp_path / "kept.json").write_text("{}")
    with pytest.raises(NothingKept, match="--keep 10"):
        read_kept(tmp_path / "kept.json")


def test_every_kept_ratio_has_something_that_measures_it() -> None:
    """The file in the repository fits the code beside it."""
    kept = read_kept()
    assert kept.steady
    assert {ratchet.group_of(key) for key in kept.steady} <= set(ratchet.MEASURED)
    assert all(one.spread <= ratchet.STEADY for one in kept.steady.values())


def test_kept_ratios_come_back(tmp_path: Path) -> None:
    """What is written is what is read."""
    ratios = KeptRatios(made_on=machine(), runs=10, steady=KEPT, unsteady={"wild": 0.4})
    path = tmp_path / "kept.json"
    path.write_bytes(msgspec.json.encode(ratios))
    assert read_kept(path) == ratios
