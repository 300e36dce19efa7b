"""The tables that people read: what runs where, what a run came to, what its checks say."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from exchange.runtime.instruments import read_instruments
from simulation.checks import MAX_SHOWN, Check, FillCounts
from simulation.cluster import DEFAULT_PASSWORD, Cluster
from simulation.run import Outcome


def cluster_table(cluster: Cluster) -> Table:
    """What runs where."""
    table = Table(title="Matchbus", title_justify="left")
    for column in ("process", "address", "pid", *(["metrics"] if cluster.exchange.metrics else [])):
        table.add_column(column)
    for server in cluster.nats:
        name = f"nats-server {server.node.name}" if server.node else "nats-server"
        table.add_row(name, server.url, str(server.pid))
    for member in cluster.members:
        metrics = [member.metrics] if member.metrics else []
        table.add_row(member.name, member.address, str(member.pid), *metrics)
    if cluster.dashboard_url:
        table.add_row("dashboard", cluster.dashboard_url, str(cluster.exchange.pid))
    table.caption = f"store: {cluster.data_dir}"
    return table


def first_steps(cluster: Cluster) -> list[str]:
    """The two commands that a newcomer types next."""
    first = read_instruments(cluster.instruments)[0]
    price, quantity = 10_000 * Decimal(first.tick_size), 10 * Decimal(first.lot_size)
    password = "" if cluster.password == DEFAULT_PASSWORD else " --password PASSWORD"
    return [
        f"matchbus register alice --exchange {cluster.exchange.address} --nats {cluster.nats_url}{password}",
        f"matchbus submit buy {quantity:f} {first.symbol} {price:f}",
    ]


def clients_table(outcome: Outcome) -> Table:
    """What every client did."""
    table = Table(title=f"Clients after {outcome.duration_s:.1f} s", title_justify="left")
    for column in ("client", "home", "orders", "refused", "cancels", "replaces", "fills"):
        table.add_column(column, justify="left" if column == "client" else "right")
    for trader in outcome.traders:
        table.add_row(
            *(trader.name, f"E{trader.client.engine}", str(trader.submitted)),
            *(str(trader.refusals.total()), str(trader.cancels), str(trader.replaces)),
            str(trader.fill_count),
        )
    return table


def positions_table(outcome: Outcome) -> Table:
    """What every client holds; a trade only moves lots between clients, so the sums are zero."""
    table = Table(title="Final positions in lots", title_justify="left", show_footer=True)
    symbols = sorted({symbol for _, symbol in outcome.positions})
    table.add_column("client", "sum")
    for symbol in symbols:
        total = sum(lots for (_, held), lots in outcome.positions.items() if held == symbol)
        table.add_column(symbol, str(total), justify="right")
    for trader in outcome.traders:
        held = [outcome.positions.get((trader.name, symbol), 0) for symbol in symbols]
        table.add_row(trader.name, *(f"{lots:+d}" for lots in held))
    return table


def fills_table(fills: FillCounts) -> Table:
    """Where the trades were made."""
    table = Table(title="Trades", title_justify="left")
    table.add_column("where")
    table.add_column("trades", justify="right")
    for engine, count in fills.per_engine.items():
        table.add_row(f"on engine {engine}", str(count))
    table.add_section()
    table.add_row("all", str(fills.total))
    table.add_row("through legs to another engine", str(fills.through_legs))
    table.add_row("volume in lots", str(fills.volume))
    return table


def checks_table(checks: Iterable[Check]) -> Table:
    """Which invariants hold."""
    table = Table(title="Checks", title_justify="left")
    table.add_column("invariant")
    table.add_column("checked", justify="right")
    table.add_column("result")
    for check in checks:
        shown = "\n".join(check.violations[:MAX_SHOWN])
        more = len(check.violations) - MAX_SHOWN
        text = "[green]holds[/]" if check.holds else f"[red]VIOLATED[/] {shown}"
        table.add_row(check.name, str(check.checked), text + (f"\nand {more} more" if more > 0 else ""))
    return table


def outcome_tables(outcome: Outcome) -> RenderableType:
    """The whole summary of a run."""
    return Group(
        clients_table(outcome),
        positions_table(outcome),
        fills_table(outcome.fills),
        checks_table(outcome.checks),
    )


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """The summary of a run for a program."""
    return {
        "holds": outcome.holds,
        "duration_s": outcome.duration_s,
        "clients": [
            {
                "client_id": trader.name,
                "engine": trader.client.engine,
                "orders": trader.submitted,
                "refused": trader.refusals.total(),
                "fills": trader.fill_count,
                "unanswered": trader.failures,
            }
            for trader in outcome.traders
        ],
        "trades_per_engine": {str(engine): count for engine, count in outcome.fills.per_engine.items()},
        "trades_through_legs": outcome.fills.through_legs,
        "checks": [
            {"name": check.name, "checked": check.checked, "violations": check.violations}
            for check in outcome.checks
        ],
    }


def show(console: Console, outcome: Outcome) -> int:
    """Print the summary; the exit code: 1 when an invariant is violated."""
    console.print(outcome_tables(outcome))
    failures = sum(trader.failures for trader in outcome.traders)
    if failures:
        console.print(f"{failures} commands got no answer.")
    console.print("All checks hold." if outcome.holds else "[red]An invariant is violated.[/]")
    return 0 if outcome.holds else 1
