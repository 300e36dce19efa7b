"""The tables that people read: what runs where, what a run came to, what its checks say."""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from matchbus import tls
from matchbus.program import ending_with
from rich.console import Console

from client.cli.output import print_sheets
from client.cli.sheets import Cell, Sheet, counted
from exchange.runtime.instruments import read_instruments
from exchange.runtime.settings import DEFAULT_PASSWORD
from simulation.checks import MAX_SHOWN, Check, FillCounts
from simulation.cluster import Cluster
from simulation.run import RunOutcome
from simulation.trader import Trader


def cluster_sheet(cluster: Cluster) -> Sheet:
    """What runs where."""
    metrics = ("metrics",) if cluster.exchange.metrics else ()
    sheet = Sheet("Matchbus", ("process", "address", "pid", *metrics), note=f"store: {cluster.data_dir}")

    def add(process: str, address: str, pid: int, served: str = "") -> None:
        sheet.rows.append((process, address, str(pid), *((served,) if metrics else ())))

    for server in cluster.nats:
        add(server.name, server.url, server.pid)
    for member in cluster.members:
        add(member.name, member.address, member.pid, member.metrics)
    if cluster.dashboard_url:
        add("dashboard", cluster.dashboard_url, cluster.exchange.pid)
    return sheet


def first_steps(cluster: Cluster) -> list[str]:
    """The two commands that a newcomer types next; before them, what they need in the environment for TLS."""
    first = read_instruments(cluster.instruments)[0]
    price, quantity = 10_000 * Decimal(first.tick_size), 10 * Decimal(first.lot_size)
    password = "" if cluster.password == DEFAULT_PASSWORD else " --password PASSWORD"
    return [
        *(f"export {name}={shlex.quote(str(path))}" for name, path in tls.told().items()),
        f"matchbus register alice --exchange {cluster.exchange.address} --nats {cluster.nats_url}{password}",
        f"matchbus submit buy {quantity:f} {first.symbol} {price:f}",
    ]


def clients_sheet(outcome: RunOutcome) -> Sheet:
    """What every client did."""
    return Sheet(
        f"Clients after {outcome.duration_s:.1f} s",
        ("client", ">home", ">orders", ">refusals", ">cancels", ">replaces", ">fills"),
        [
            (
                *(trader.name, f"E{trader.client.engine}", str(trader.submitted)),
                *(str(trader.refusals.total()), str(trader.cancels), str(trader.replaces)),
                str(trader.fill_count),
            )
            for trader in outcome.traders
        ],
    )


def positions_sheet(outcome: RunOutcome) -> Sheet:
    """What every client holds; a trade only moves lots between clients, so the sums are zero."""
    symbols = sorted({symbol for _, symbol in outcome.positions})
    sheet = Sheet("Final positions in lots", ("client", *(f">{symbol}" for symbol in symbols)))
    for trader in outcome.traders:
        held = [outcome.positions.get((trader.name, symbol), 0) for symbol in symbols]
        sheet.rows.append((trader.name, *(f"{lots:+d}" for lots in held)))
    sums: Counter[str] = Counter()
    for (_, symbol), lots in outcome.positions.items():
        sums[symbol] += lots
    sheet.rows.append(("sum", *(str(sums[symbol]) for symbol in symbols)))
    return sheet


def fills_sheet(fills: FillCounts) -> Sheet:
    """Where the trades were made."""
    counts = {
        **{f"on engine {engine}": count for engine, count in fills.per_engine.items()},
        "all": fills.total,
        "through legs to another engine": fills.through_legs,
        "volume in lots": fills.volume,
    }
    return Sheet("Trades", ("where", ">trades"), [(where, str(count)) for where, count in counts.items()])


def checks_sheet(checks: Iterable[Check]) -> Sheet:
    """Which invariants hold."""
    return Sheet(
        "Checks",
        ("invariant", ">checked", "result"),
        [(check.name, str(check.checked), _result(check)) for check in checks],
    )


def _result(check: Check) -> Cell:
    if check.holds:
        return "holds", "green"
    more = len(check.violations) - MAX_SHOWN
    rest = [f"and {more} more"] if more > 0 else []
    return "\n".join(["VIOLATED", *check.violations[:MAX_SHOWN], *rest]), "red"


def digests_sheet(digests: Mapping[int, str]) -> Sheet:
    """What the same seed gives again."""
    return Sheet(
        "The same seed ends in the same states",
        ("engine", "digest"),
        [(f"E{engine}", digest) for engine, digest in digests.items()],
    )


def outcome_sheets(outcome: RunOutcome) -> list[Sheet]:
    """The whole summary of a run."""
    return [
        clients_sheet(outcome),
        positions_sheet(outcome),
        fills_sheet(outcome.fills),
        *([digests_sheet(outcome.digests)] if outcome.digests else []),
        checks_sheet(outcome.checks),
    ]


def outcome_document(outcome: RunOutcome) -> dict[str, Any]:
    """The summary of a run for a program."""
    return {
        "holds": outcome.holds,
        "interrupted": outcome.interrupted,
        "duration_s": outcome.duration_s,
        "clients": [
            {
                "client_id": trader.name,
                "engine": trader.client.engine,
                "steps": trader.steps,
                "wanted_steps": trader.wanted_steps,
                "orders": trader.submitted,
                "refused": trader.refusals.total(),
                "fills": trader.fill_count,
                "unanswered": trader.failures,
                "positions": _positions(trader, outcome),
            }
            for trader in outcome.traders
        ],
        "trades_per_engine": {str(engine): count for engine, count in outcome.fills.per_engine.items()},
        "trades_through_legs": outcome.fills.through_legs,
        "digests": {str(engine): digest for engine, digest in outcome.digests.items()},
        "checks": [
            {"name": check.name, "checked": check.checked, "violations": check.violations}
            for check in outcome.checks
        ],
    }


def _positions(trader: Trader, outcome: RunOutcome) -> dict[str, str]:
    """What a client holds of each symbol it could trade, in the symbol's units."""
    held = {symbol: outcome.positions.get((trader.name, symbol), 0) for symbol in trader.symbols}
    instruments = trader.client.instruments
    return {symbol: f"{instruments[symbol].quantity(lots):f}" for symbol, lots in held.items()}


def show(console: Console, outcome: RunOutcome) -> int:
    """Print the summary; the exit code: 1 when an invariant is violated."""
    code = 0 if outcome.holds else 1
    with ending_with(code):
        print_sheets(console, *outcome_sheets(outcome))
        failures = sum(trader.failures for trader in outcome.traders)
        if failures:
            console.print(f"{counted(failures, 'command')} got no answer.")
        if outcome.pace_warning:
            console.print(outcome.pace_warning, highlight=False)
        console.print("All checks hold." if outcome.holds else "[red]An invariant is violated.[/]")
    return code
