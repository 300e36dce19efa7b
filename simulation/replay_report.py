"""What the venue made of a capture, for people: counts, trades that differ, and whether it is well."""

from collections.abc import Sequence
from typing import Final

from matchbus.program import ending_with
from rich.console import Console

from client.cli.output import print_sheets
from client.cli.sheets import Sheet, counted
from simulation.bitstamp import LOT_SIZE, SYMBOL, TICK_SIZE, Trade
from simulation.replay import ReplayOutcome

_SHOWN_TRADES: Final = 10


def show(outcome: ReplayOutcome, engines: int, console: Console) -> int:
    """Print what came out; the exit code: 1 when one engine did not repeat the capture, or a check failed.

    Several engines need not make the same trades, but make some, and both sides of each are told.
    """
    comparison = outcome.comparison
    wanted = comparison.matched + len(comparison.missed)
    counts = {
        "commands": f"{outcome.commands:,}",
        "commands a second": f"{outcome.commands / outcome.elapsed_s:,.0f}",
        **{f"answered {status}": f"{count:,}" for status, count in sorted(outcome.statuses.items())},
        **{f"refused: {reason}": f"{count:,}" for reason, count in sorted(outcome.refusals.items())},
        "trades matched": f"{comparison.matched} of {wanted}",
        "trades missed": str(len(comparison.missed)),
        "trades extra": str(len(comparison.extra)),
        "trades without two equal sides": str(outcome.one_sided),
        f"volume matched ({SYMBOL.partition('-')[0]})": (
            f"{comparison.matched_volume * LOT_SIZE:f} of {comparison.expected_volume * LOT_SIZE:f}"
        ),
    }
    if engines > 1:
        counts["volume at the same prices"] = f"{comparison.volume_at_price * LOT_SIZE:f}"
        counts["trades through legs"] = str(outcome.through_legs)
    title = f"Replay through {counted(engines, 'engine')}"
    note = 'docs/simulation.md says under "Real orders" why so many are refused.' if outcome.refusals else ""
    bugs = [bug for audit in outcome.audits for bug in audit.bugs]
    if engines == 1:
        failed = bool(comparison.missed or comparison.extra)
    else:
        idle = wanted > 0 and not comparison.matched and not comparison.extra
        failed = bool(bugs) or idle
    code = 1 if failed or outcome.one_sided or outcome.crossed else 0
    with ending_with(code):
        print_sheets(console, Sheet(title, ("what", ">count"), list(counts.items()), note))
        for name, trades in (("missed", comparison.missed), ("extra", comparison.extra)):
            for trade in trades[:_SHOWN_TRADES]:
                console.print(f"{name}: {_words(trade)}", highlight=False)
        if engines > 1:
            _show_audits(outcome, bugs, console)
    return code


def _words(trade: Trade) -> str:
    return (
        f"{trade.quantity * LOT_SIZE:f} {SYMBOL} @ {trade.price * TICK_SIZE:f},"
        f" buy order {trade.buy_order}, sell order {trade.sell_order}"
    )


def _show_audits(outcome: ReplayOutcome, bugs: Sequence[str], console: Console) -> None:
    """Print what came of the routing."""
    if outcome.audits:
        decisions = sum(audit.decisions for audit in outcome.audits)
        knowing = sum(audit.with_away_quotes for audit in outcome.audits)
        legs = sum(audit.legs for audit in outcome.audits)
        console.print(
            f"Trade-through: {len(bugs)}. All journals, as far as they went, were replayed through the state"
            f" machine, and each of the {decisions} decisions that traded or sent legs ({knowing} knew away"
            f" quotes, {legs} legs) was checked: no fill and no leg at a price worse than an away quote that"
            " the engine knew and did not take whole.",
            highlight=False,
        )
    else:
        console.print("Trade-through was not checked: that needs the journals (--nats).")
    for bug in bugs[:_SHOWN_TRADES]:
        console.print(bug, highlight=False)
    console.print(f"The consolidated book is {'CROSSED' if outcome.crossed else 'not crossed'}.")
