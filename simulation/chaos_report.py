"""What a run of `simulation chaos` came to, as tables and as JSON."""

import json
import statistics
from dataclasses import asdict

from client.cli.sheets import Sheet
from simulation import report
from simulation.chaos import ChaosOutcome
from simulation.faults import Kind


def sheets(outcome: ChaosOutcome) -> list[Sheet]:
    """The whole outcome."""
    return [_faults_sheet(outcome), _totals_sheet(outcome), report.checks_sheet(outcome.checks)]


def _faults_sheet(outcome: ChaosOutcome) -> Sheet:
    sheet = Sheet(
        "Faults",
        ("kind", ">struck", ">missed", ">measured", ">median outage", ">worst outage"),
        note="Outage: the longest time without any answer to the clients of the target, or of any engine "
        "where it is none. Measured where nothing else had silenced them before.",
    )
    for kind, struck, missed, outages in _by_kind(outcome):
        median, worst = (
            (f"{statistics.median(outages):.2f} s", f"{max(outages):.2f} s") if outages else ("", "")
        )
        sheet.rows.append((str(kind), str(struck), str(missed), str(len(outages)), median, worst))
    return sheet


def _by_kind(outcome: ChaosOutcome) -> list[tuple[Kind, int, int, list[float]]]:
    rows = []
    for kind in Kind:
        strikes = [strike for strike in outcome.strikes if strike.fault.kind is kind]
        missed = sum(strike.missed for strike in strikes)
        if strikes:
            rows.append((kind, len(strikes) - missed, missed, outcome.outages_s.get(kind, [])))
    return rows


def _totals_sheet(outcome: ChaosOutcome) -> Sheet:
    return Sheet(
        "Load",
        ("what", ">count"),
        [
            (name, f"{value:,.2f}" if isinstance(value, float) else f"{value:,}")
            for name, value in _figures(outcome).items()
        ],
    )


def _figures(outcome: ChaosOutcome) -> dict[str, int | float]:
    total = outcome.totals
    return {
        "seconds of trading": outcome.trading_s,
        "commands": total.commands,
        "commands a second": total.commands / outcome.trading_s,
        "acknowledged": total.acknowledged,
        "of them refused": total.refused,
        "of them recognised retries": total.repeated,
        "deadlines that ran out, then given again": outcome.unavailable,
        "held back while too many waited": outcome.held_back,
        "fills": total.fills,
        "of them through legs": total.trades_through_legs,
        "journal records": total.records,
        "processes that ended by themselves": outcome.ended_by_themselves,
        "seconds from all up until no order waited for a leg": outcome.settled_s,
        "seconds from all up until no consolidated book was crossed": outcome.uncrossed_s,
        "violations": sum(len(check.violations) for check in outcome.checks),
    }


def document(outcome: ChaosOutcome) -> str:
    """The same as JSON."""
    return json.dumps(
        {
            "seed": outcome.settings.seed,
            "settings": asdict(outcome.settings),
            "figures": _figures(outcome),
            "faults": [
                {
                    "kind": kind,
                    "struck": struck,
                    "missed": missed,
                    "outages_s": [round(s, 3) for s in outages],
                }
                for kind, struck, missed, outages in _by_kind(outcome)
            ],
            "schedule": [{**asdict(strike.fault), "missed": strike.missed} for strike in outcome.strikes],
            "checks": [asdict(check) for check in outcome.checks],
            "holds": outcome.holds,
        },
        indent=2,
        default=str,  # for the path of the data
    )
