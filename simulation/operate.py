"""What runs and looks after a market: `up` runs one on this machine, `demo` also lets clients trade on it.

`journal` looks into the journal of an engine (`simulation/journal_tools.py`), `snapshot` shows and makes its
snapshots (`simulation/snapshot_tools.py`), `dropcopy` follows all executions (`simulation/dropcopy.py`),
`handover` lets a standby of a running market take over (`simulation/handover.py`). `admin` is the door to
what changes a market.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc.aio
from matchbus.program import INTERRUPTED, ending_with
from matchbus.tls import TlsRefused, add_tls_options, server_files
from matchbus.tracing import add_trace_options
from rich.console import Console

from bus.logs import add_log_options
from bus.runner import raise_file_limit
from client import MatchbusError
from client.cli.arguments import Parser, not_empty
from client.cli.failures import Failure, Misuse
from client.cli.output import print_sheets, stdout_console
from client.cli.settings import SettingsError
from engine.runtime.rates import add_rate_option
from engine.runtime.snapshots import COMMANDS_PER_SNAPSHOT
from exchange.runtime.settings import add_size_options
from simulation import dropcopy, handover, journal_tools, live, ready_file, report, snapshot_tools
from simulation.cluster import DEFAULT_INSTRUMENTS, Cluster
from simulation.cluster_errors import ClusterError
from simulation.cluster_settings import Access, Storage, Telemetry
from simulation.handover import HandoverFailed
from simulation.interruption import Stopped, interruptible
from simulation.nats_option import add_engine_options, nats_url
from simulation.option_types import (
    OptionRefused,
    check_replaceable,
    clients,
    engines,
    file,
    folder,
    password_of_environment,
    port,
    positive,
    seconds,
    seed,
)
from simulation.ports import Ports
from simulation.ready_file import ReadyFileUnwritable
from simulation.run import Plan, Progress, RunOutcome, simulate
from simulation.stderr_log import log_to_stderr
from simulation.venues import RunningVenue, Venue

_log: Final = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code. Raises `Failure` and `HelpShown`."""
    options = parser().parse_args(arguments)
    log_to_stderr(getattr(options, "log_format", "text"))
    console = stdout_console()
    try:
        if hasattr(options, "nats"):
            options.nats = nats_url(options.nats)
        return asyncio.run(_COMMANDS[options.command](options, console))
    except (ClusterError, MatchbusError, OptionRefused, TlsRefused) as error:
        raise Failure(str(error)) from error
    except grpc.aio.AioRpcError as error:
        raise Failure(f"the exchange does not answer: {error.details()}") from error
    except HandoverFailed as error:
        raise Failure(str(error), error.hint) from error
    except SettingsError as error:  # of where NATS is: 1 would tell of a journal that it is damaged
        raise Misuse(str(error), error.hint) from error


class _Parser(Parser):
    """Says of a word too many which command does not take it: argparse leaves that to the top."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return options, left


def parser() -> Parser:
    """What the command understands."""
    top = _Parser("matchbus", description="A distributed matching engine on this machine.")
    commands = top.add_subparsers(dest="command", required=True)
    _add_up(commands)
    handover.add_parser(commands)
    _add_admin(commands)
    _add_demo(commands)
    snapshot_tools.add_parser(commands)
    dropcopy.add_parser(commands)
    journal_tools.add_parser(commands)
    return top


def _add_up(commands: Any) -> None:
    runs = "run nats-server, the exchange and the engines until stopped"
    up = commands.add_parser("up", help=runs, description=f"{runs}, on loopback; what dies is started again")
    up.add_argument("--engines", type=engines, default=2, help="how many engines (default 2)")
    up.add_argument(
        "--standbys",
        type=int,
        choices=(0, 1),
        default=0,
        help="standby processes for each engine (default 0)",
    )
    up.add_argument(
        "--nats-nodes",
        type=int,
        choices=(1, 3),
        default=1,
        help="nats-servers; three keep every stream threefold, and any two go on (default 1)",
    )
    up.add_argument(
        "--snapshot-every",
        metavar="COMMANDS",
        type=positive,
        default=COMMANDS_PER_SNAPSHOT,
        help="an engine makes a snapshot after so many commands (default %(default)s)",
    )
    up.add_argument(
        "--trim-journals",
        action="store_true",
        help="let journals lose what stands before the oldest kept snapshot, if given at the first start; "
        "else they keep everything",
    )
    up.add_argument(
        "--accept-loss",
        action="store_true",
        help="start although journals have lost batches that --data knows of; they are gone for good",
    )
    add_size_options(up)
    up.add_argument(
        "--data", type=folder, help="where everything is kept; without it, all is gone when stopped"
    )
    up.add_argument("--instruments", type=file, default=DEFAULT_INSTRUMENTS, help="TOML file of the symbols")
    up.add_argument(
        "--durability",
        choices=("journal", "none"),
        help="default: that of the data directory, at first journal",
    )
    up.add_argument(
        "--password",
        type=not_empty,
        help="what clients need to register (default PASSWORD in the environment)",
    )
    add_rate_option(up)
    add_tls_options(up)
    up.add_argument("--dashboard", action="store_true", help="serve the page that shows the market")
    _add_dashboard_port(up)
    up.add_argument(
        "--metrics", action="store_true", help="serve Prometheus metrics of every process, on loopback"
    )
    add_trace_options(up)
    add_log_options(up)
    up.add_argument(
        "--ready-file",
        type=file,
        help="where to write addresses and process ids as JSON, once all are ready",
    )
    up.add_argument("--json", action="store_true", help="print what the ready file holds, in one line")


def _add_admin(commands: Any) -> None:
    does = "what an operator does to a running market"
    admin = commands.add_parser("admin", help=does, description=does)
    actions = admin.add_subparsers(dest="action", required=True)
    handover.add_parser(actions)
    makes = "make a snapshot of an engine now, beside it"
    make = actions.add_parser("snapshot", help=makes, description=makes)
    add_engine_options(make, instead_of="a table")
    make.set_defaults(action="make")


def _add_demo(commands: Any) -> None:
    shows = "a market with simulated clients and a live view"
    demo = commands.add_parser("demo", help=shows, description=f"{shows}; it checks itself at the end")
    demo.add_argument("--duration", type=seconds, default=120.0, help="seconds (default 120)")
    demo.add_argument("--headless", action="store_true", help="lines instead of the live view")
    demo.add_argument(
        "--json", action="store_true", help="the summary as one JSON object; the rest goes to stderr"
    )
    demo.add_argument("--engines", type=engines, default=2, help="how many (default 2)")
    demo.add_argument("--clients", type=clients, default=10, help="how many (default 10)")
    demo.add_argument("--standbys", type=int, choices=(0, 1), default=0, help="of each engine (default 0)")
    demo.add_argument("--seed", type=seed, default=1, help="of what the clients do (default 1)")
    demo.add_argument("--no-dashboard", action="store_true", help="do not serve the page that shows it all")
    _add_dashboard_port(demo)


def _add_dashboard_port(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dashboard-port", metavar="PORT", type=port, default=0, help="on loopback; default a free one"
    )


async def serve(
    cluster: Cluster, console: Console, ready: Path | None = None, *, as_json: bool = False
) -> int:
    """Run the market until it is stopped; the exit code."""
    try:
        async with contextlib.AsyncExitStack() as running:
            await running.enter_async_context(interruptible())
            with Console(stderr=True).status("starting nats-server, the exchange and the engines"):
                await running.enter_async_context(cluster)
            if ready is not None:
                ready_file.write(ready, ready_file.document(cluster))
                running.callback(ready_file.withdraw, ready, cluster)  # before anything that it names ends
            if as_json:
                print(json.dumps(ready_file.document(cluster)), flush=True)
            else:
                print_sheets(console, report.cluster_sheet(cluster))
                console.print("Ready. Ctrl-C stops all. Trade by hand, in another terminal:")
                for step in report.first_steps(cluster):
                    console.print(f"    {step}", soft_wrap=True, highlight=False, markup=False)
            await asyncio.Event().wait()
    except Stopped:
        if not as_json:
            console.print("Stopped.")
    return 0


async def _up(options: argparse.Namespace, console: Console) -> int:
    ready: Path | None = options.ready_file
    if ready is not None:
        if options.data is not None:
            options.data.mkdir(parents=True, exist_ok=True)  # the ready file may be in there
        check_replaceable("--ready-file", ready)
        ready_file.forget(ready)

    def tell() -> None:
        if ready is None:
            return
        try:
            ready_file.write(ready, ready_file.document(cluster))
        except ReadyFileUnwritable as error:
            _log.warning("%s; the market goes on", error)

    cluster = Cluster(
        engines=options.engines,
        standbys=options.standbys,
        data_dir=options.data,
        instruments=options.instruments,
        password=options.password or password_of_environment(),
        ports=Ports(dashboard=options.dashboard_port),
        dashboard=options.dashboard,
        access=Access(server_files(options), options.orders_per_second),
        storage=Storage(
            durability=options.durability,
            nats_nodes=options.nats_nodes,
            snapshot_every=options.snapshot_every,
            trim_journals=options.trim_journals,
            accept_loss=options.accept_loss,
            journal_gib=options.journal_gib,
            executions_gib=options.executions_gib,
        ),
        telemetry=Telemetry(
            log_format=options.log_format,
            log_level=options.log_level,
            metrics=options.metrics,
            trace=options.trace or "",
            trace_ratio=options.trace_ratio,
        ),
        on_change=tell,
    )
    return await serve(cluster, console, ready, as_json=options.json)


async def _admin(options: argparse.Namespace, console: Console) -> int:
    run = {"handover": handover.run, "make": snapshot_tools.run}[options.action]
    return await run(options, console)


async def _demo(options: argparse.Namespace, console: Console) -> int:
    view = Console(stderr=True) if options.json else console
    has_dashboard = not options.no_dashboard
    if has_dashboard and importlib.util.find_spec("uvicorn") is None:
        view.print("For a page that shows it all: pip install 'matchbus[dashboard]'", soft_wrap=True)
        has_dashboard = False
    cluster = Cluster(
        engines=options.engines,
        standbys=options.standbys,
        ports=Ports(dashboard=options.dashboard_port),
        dashboard=has_dashboard,
        telemetry=Telemetry(metrics=True),
    )

    try:
        async with interruptible(), cluster:
            print_sheets(view, report.cluster_sheet(cluster))
            plan = Plan(clients=options.clients, duration_s=options.duration, seed=options.seed)
            async with (
                _demo_page(cluster, view),
                RunningVenue(cluster.exchange.address, cluster.password, nats=cluster.nats_url) as venue,
            ):
                headless = options.headless or options.json
                outcome = await run_with_view(plan, venue, view, headless=headless)
    except Stopped:
        with ending_with(INTERRUPTED):
            view.print("Stopped.")
        return INTERRUPTED
    if options.json:
        code = 0 if outcome.holds else 1
        with ending_with(code):
            print(json.dumps(report.outcome_document(outcome)))
        return code
    return report.show(console, outcome)


@contextlib.asynccontextmanager
async def _demo_page(cluster: Cluster, console: Console) -> AsyncIterator[None]:
    """The endpoint behind the dashboard's buttons, and the address of both on the screen."""
    if not cluster.dashboard_url:
        yield
        return
    from simulation.controls import running_controls  # noqa: PLC0415 -- an extra that need not be installed

    async with running_controls(cluster) as controls:
        console.print(f"See it, and strike it: {controls.page_url}", soft_wrap=True, highlight=False)
        yield


async def run_with_view(
    plan: Plan,
    venue: Venue,
    console: Console,
    *,
    headless: bool,
    on_start: Callable[[Progress], object] = lambda _: None,
) -> RunOutcome:
    """Simulate while showing how it goes. Each client has a log and may have a connection of its own."""
    raise_file_limit()
    viewing: list[asyncio.Task[None]] = []

    def begin(progress: Progress) -> None:
        on_start(progress)
        viewing.append(asyncio.create_task(live.watch(progress, console, headless=headless)))

    try:
        return await simulate(plan, venue, begin)
    finally:
        for view in viewing:
            view.cancel()
        for ended in await asyncio.gather(*viewing, return_exceptions=True):
            if isinstance(ended, OSError):  # no room for what it shows: a traceback tells nothing more
                _log.error("the view failed, the run went on: %s", ended.strerror)
            elif isinstance(ended, Exception):
                _log.error("the view failed, the run went on", exc_info=ended)


_COMMANDS: Final = {
    "up": _up,
    "demo": _demo,
    "admin": _admin,
    "handover": handover.run,
    "journal": journal_tools.run,
    "snapshot": snapshot_tools.run,
    "dropcopy": dropcopy.run,
}
