"""A ratchet: what the code costs, as ratios to things that do not change, may not grow by more than 15 %.

    python -m benchmarks --check      compare with benchmarks/kept.json; exit with 1 if worse
    python -m benchmarks --keep 10    measure ten times and keep the ratios that are steady

Only ratios are compared, never times: to the least book that matches, to a bare echo, to the standard
library. Kept are those whose own spread over the runs is at most `STEADY`; the others are written down with
theirs. A ratio that seems worse is measured again, up to `MEASURES` times in all, and fails when it was worse
each time: a busy moment of the machine is not a slower program.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import books, order_entry, slices
from benchmarks.child import in_child
from benchmarks.figures import Figure, median, paired, rounded, spread
from benchmarks.report import Machine, machine

KEPT: Final = Path(__file__).resolve().parent / "kept.json"
ALLOWED: Final = 0.15
STEADY: Final = 0.07
MEASURES: Final = 4

_RESTING: Final = 50_000
_PAIRS: Final = 10


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One steady ratio: the median of the runs, and how far from it the farthest run was."""

    ratio: float
    spread: float
    lower_is_better: bool


class KeptRatios(msgspec.Struct, frozen=True, kw_only=True):
    """What `--keep` wrote. `unsteady` has the spread of each ratio that is not compared."""

    made_on: Machine
    runs: int
    steady: dict[str, Kept]
    unsteady: dict[str, float]


class NothingKept(Exception):
    """There is no file of kept ratios, or it has another form."""


# ---------------------------------------------------------------- judging, pure


def worsening(kept: Kept, measured: float) -> float:
    """By what share a ratio is worse than the kept one; negative when it is better."""
    return measured / kept.ratio - 1 if kept.lower_is_better else kept.ratio / measured - 1


def suspicious(kept: Mapping[str, Kept], measured: Mapping[str, float]) -> list[str]:
    """Kept ratios that are worse by more than is allowed, or were not measured at all."""
    return [
        key for key, ratio in kept.items() if key not in measured or worsening(ratio, measured[key]) > ALLOWED
    ]


def best_of(
    kept: Mapping[str, Kept], one: Mapping[str, float], other: Mapping[str, float]
) -> dict[str, float]:
    """Of two measurements of each kept ratio the better one."""
    better = dict(one)
    for key, ratio in other.items():
        if key not in better or (
            key in kept and worsening(kept[key], ratio) < worsening(kept[key], better[key])
        ):
            better[key] = ratio
    return better


def steady_ones(runs: Sequence[Mapping[str, Figure]]) -> tuple[dict[str, Kept], dict[str, float]]:
    """Which ratios are steady over the runs, and the spread of those that are not."""
    steady: dict[str, Kept] = {}
    unsteady: dict[str, float] = {}
    for key, figure in runs[0].items():
        ratios = [ratio for run in runs if key in run and (ratio := run[key].ratio) is not None]
        its_spread = rounded(spread(ratios))
        if len(ratios) == len(runs) and its_spread <= STEADY:
            steady[key] = Kept(
                ratio=rounded(median(ratios)), spread=its_spread, lower_is_better=figure.lower_is_better
            )
        else:
            unsteady[key] = its_spread
    return steady, unsteady


# ---------------------------------------------------------------- measuring


def memory() -> list[Figure]:
    """Bytes of a resting order beside the least book's."""
    turns: dict[str, list[float]] = {"engine": [], "book": [], "least": []}
    with books.flow_file(1, 1) as file:
        for layer, made in turns.items():
            with books.Worker(layer, file) as worker:
                made.append(worker.ask("memory", orders=_RESTING, seconds=books.WHOLE_S)["bytes"])
    return [
        paired(
            *("Memory", layer, "bytes a resting order", turns[layer], "least", turns["least"]),
            lower_is_better=True,
        )
        for layer in ("engine", "book")
    ]


MEASURED: Final[dict[str, Callable[[], list[Figure]]]] = {
    "bytecodes": partial(slices.counts, 1_000),
    "memory": memory,
    "core": partial(slices.times, 40_000),
    "delta": partial(slices.deltas, 20_000),
    "way": partial(slices.way, 40_000),
    "order_entry": partial(
        order_entry.run,
        order_entry.Sizes(orders=3_000, pairs=_PAIRS, clients=(1,), batches=(100,), tasks=()),
    ),
}


def measure(groups: Sequence[str], output: Console) -> dict[str, Figure]:
    """The figures of these groups that have a ratio to something else, by their keys."""
    made: dict[str, Figure] = {}
    for group in groups:
        with output.status(f"measuring: {group}"):
            figures = in_child(MEASURED[group])
        made |= {f"{group}: {figure.key}": figure for figure in figures if figure.ratio is not None}
    return made


def ratios(figures: Mapping[str, Figure]) -> dict[str, float]:
    """The ratios alone."""
    return {key: figure.ratio for key, figure in figures.items() if figure.ratio is not None}


def group_of(key: str) -> str:
    """Which measurement gives this ratio."""
    return key.partition(":")[0]


def minor(python: str) -> str:
    """`3.11` of `3.11.7`: another one has other bytecodes."""
    return ".".join(python.split(".")[:2])


def read_kept(path: Path = KEPT) -> KeptRatios:
    """The kept ratios. Raises `NothingKept`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeptRatios)
    except (OSError, msgspec.DecodeError) as error:
        raise NothingKept(f"no kept ratios: {error}; `python -m benchmarks --keep 10` makes them") from error


def check(output: Console) -> bool:
    """Measure, measure again what seems worse, show the table; False when something is."""
    file = read_kept()
    if minor(file.made_on.python) != minor(platform.python_version()):
        output.print(f"not compared: the kept ratios are those of Python {file.made_on.python}", style="red")
        return True
    kept = file.steady
    groups = list(dict.fromkeys(map(group_of, kept)))
    measured = ratios(measure(groups, output))
    for again in range(2, MEASURES + 1):
        worse = suspicious(kept, measured)
        if not worse:
            break
        output.print(f"measurement {again} of at most {MEASURES}: {len(worse)} seem worse", style="dim")
        measured = best_of(kept, measured, ratios(measure(list(dict.fromkeys(map(group_of, worse))), output)))
    worse = suspicious(kept, measured)
    _show(kept, measured, worse, output)
    return not worse


def _show(
    kept: Mapping[str, Kept], measured: Mapping[str, float], worse: Sequence[str], output: Console
) -> None:
    table = Table("ratio", "kept", "now", "worse by", "", title=f"At most {ALLOWED:.0%} worse is allowed")
    for key, ratio in kept.items():
        now = measured.get(key)
        by = "" if now is None else f"{worsening(ratio, now):+.1%}"
        shown = "missing" if now is None else f"{now:.3g}"
        verdict = "[red]FAILS[/red]" if key in worse else "ok"
        table.add_row(escape(key), f"{ratio.ratio:.3g}", shown, by, verdict)
    output.print(table)
    if worse:
        output.print("If the cost is meant: `python -m benchmarks --keep 10`, and say why in the commit.")


def keep(runs: int, output: Console) -> None:
    """Measure so often and write down what is steady."""
    made_on = machine()
    made = []
    for run in range(runs):
        output.print(f"run {run + 1} of {runs}")
        made.append(measure(list(MEASURED), output))
    steady, unsteady = steady_ones(made)
    kept = KeptRatios(made_on=made_on, runs=runs, steady=steady, unsteady=unsteady)
    KEPT.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")
    table = Table("ratio", "median", "spread", "kept", title=f"{runs} runs; steady is within {STEADY:.0%}")
    for key, one in steady.items():
        table.add_row(escape(key), f"{one.ratio:.3g}", f"{one.spread:.1%}", "yes")
    for key, its_spread in unsteady.items():
        table.add_row(escape(key), "", f"{its_spread:.1%}", "no")
    output.print(table)
