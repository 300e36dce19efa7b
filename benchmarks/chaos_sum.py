"""Adds up the outcomes of several `simulation chaos --json FILE` runs and prints them as one table.

python benchmarks/chaos_sum.py FILE...
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SUMMED = ("seconds of trading", "commands", "acknowledged", "fills", "journal records", "violations")


def faults_table(runs: list[dict[str, Any]]) -> Table:
    """Faults by kind over all runs, and how long the clients concerned had no answer."""
    struck: defaultdict[str, int] = defaultdict(int)
    outages: defaultdict[str, list[float]] = defaultdict(list)
    for run in runs:
        for fault in run["faults"]:
            struck[fault["kind"]] += fault["struck"]
            outages[fault["kind"]] += fault["outages_s"]
    table = Table(title=f"Faults of {len(runs)} runs", title_justify="left")
    table.add_column("kind")
    for column in ("struck", "measured", "median outage", "worst outage"):
        table.add_column(column, justify="right")
    for kind, count in struck.items():
        known = outages[kind]
        times = (f"{statistics.median(known):.2f} s", f"{max(known):.2f} s") if known else ("", "")
        table.add_row(kind, str(count), str(len(known)), *times)
    return table


def load_table(runs: list[dict[str, Any]]) -> Table:
    """What went through under them."""
    table = Table(title="Load", title_justify="left")
    table.add_column("what")
    table.add_column("sum", justify="right")
    sums = {name: sum(run["figures"][name] for run in runs) for name in SUMMED}
    for name, value in sums.items():
        table.add_row(name, f"{value:,.0f}")
    table.add_row("commands a second", f"{sums['commands'] / sums['seconds of trading']:,.0f}")
    table.add_row("slowest run", f"{min(run['figures']['commands a second'] for run in runs):,.0f}")
    return table


def main() -> None:
    """Print runs with a standby for each engine and runs without apart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    by_setting: defaultdict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for file in parser.parse_args().files:
        run = json.loads(file.read_text())
        by_setting[run["settings"]["standbys"], run["settings"]["nats_nodes"]].append(run)
    console = Console()
    for (standbys, nodes), runs in sorted(by_setting.items()):
        seeds = ", ".join(str(run["seed"]) for run in runs)
        console.rule(f"standbys {standbys}, nats-servers {nodes}, seeds {seeds}")
        console.print(faults_table(runs), load_table(runs))


if __name__ == "__main__":
    main()
