"""The `simulation` command.

`run` (default) trades, `replay` repeats a real market, `chaos` breaks one, `audit` judges the routing of one.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc.aio
import msgspec
from matchbus.program import INTERRUPTED, ending_with
from matchbus.tls import TlsRefused
from rich.console import Console

from bus.records import JournalError
from client import MatchbusError
from client.cli.arguments import address, nats_address, not_empty
from client.cli.output import print_sheets, stdout_console
from exchange.runtime.instruments import read_instruments
from simulation import audit_command, chaos_report, report, scenario
from simulation.agents.cast import usual_mix
from simulation.audit_command import NotJudged
from simulation.bitstamp import CaptureMalformed
from simulation.chaos import ChaosOutcome, ChaosSettings, chaos
from simulation.cluster import DEFAULT_INSTRUMENTS, Cluster
from simulation.cluster_errors import ClusterError
from simulation.cluster_settings import Telemetry
from simulation.faults import Pace
from simulation.interruption import Stopped, interruptible
from simulation.nats_option import NatsAway
from simulation.operate import run_with_view
from simulation.option_types import (
    MAX_FREQUENCY,
    MAX_MINUTES,
    MAX_RATE,
    MAX_RUN_S,
    OptionRefused,
    check_writable,
    clients,
    engines,
    engines_of_environment,
    folder,
    password_of_environment,
    per_minute,
    positive,
    seconds,
    seed,
    up_to,
    whole,
    written,
)
from simulation.recording import Recording
from simulation.replay import ReplayFailed, ReplaySettings, cache_dir, fetch, left_behind, replay
from simulation.replay_report import show
from simulation.report_files import write_report
from simulation.run import Progress, RunOutcome, cut_short
from simulation.scenario import Scenario, ScenarioRefused
from simulation.staging import staged
from simulation.stderr_log import log_to_stderr
from simulation.strikes import Strikes
from simulation.venues import RunningVenue
from simulation.virtual import clock
from simulation.virtual.delays import USUAL
from simulation.virtual.venue import open_for

_Begin = Callable[[Progress], object]

_SAID: Final = (
    *(ClusterError, MatchbusError, OptionRefused, TlsRefused),
    *(ReplayFailed, CaptureMalformed, JournalError, NotJudged, ScenarioRefused),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given.insert(0, "run")
    options = parser().parse_args(given)
    console = stdout_console()
    try:
        if options.command == "run":
            return _run(options, console)
        if options.command == "chaos":
            return _chaos(options, console)
        if options.command == "audit":
            return asyncio.run(audit_command.run(options, console))
        return asyncio.run(_replay(options, console))
    except Stopped:  # nothing was checked: neither a success nor a violation
        with ending_with(INTERRUPTED):
            console.print("Stopped.")
        return INTERRUPTED
    except _SAID as error:
        print(error, file=sys.stderr)
        return 1
    except NatsAway as error:
        print(f"{error}\n  {error.hint}", file=sys.stderr)
        return 1
    except grpc.aio.AioRpcError as error:
        print(f"the exchange does not answer: {error.details()}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    top = argparse.ArgumentParser(prog="simulation", description="Simulated and real flow through a market.")
    commands = top.add_subparsers(dest="command", required=True)
    _add_run(commands)
    _add_replay(commands)
    _add_chaos(commands)
    audit_command.add_parser(commands)
    return top


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="start a market, trade on it, check it (default)")
    run.add_argument(
        "--scenario",
        metavar="FILE|NAME",
        help=f"what to run: a file, or one of {', '.join(scenario.shipped())}",
    )
    run.add_argument(
        "--report", type=folder, metavar="DIR", help="write a page with plots and the data there"
    )
    run.add_argument("--seed", type=seed, help="default: the scenario's, 1 without one")
    run.add_argument(
        "--virtual",
        action="store_true",
        help="in this process and in virtual time: the same seed gives the same market",
    )
    plain = run.add_argument_group("without a scenario")
    plain.add_argument("--engines", type=engines, help="how many (default NUM_ENGINES, 2)")
    plain.add_argument("--clients", type=clients, help="default 10")
    plain.add_argument("--symbols", type=_symbols, help="how many of the instruments (default 4)")
    plain.add_argument(
        "--frequency", type=up_to(MAX_FREQUENCY), help="steps a second of each client (default 20)"
    )
    plain.add_argument("--duration", type=up_to(MAX_RUN_S), help="seconds (default 10)")


def _add_replay(commands: Any) -> None:
    real = "30 minutes of a real market through the venue"
    again = commands.add_parser("replay", help=real, description=f"{real}, and its trades beside ours")
    again.add_argument("--engines", type=engines, default=1, help="how many (default 1)")
    again.add_argument("--limit", type=positive, default=0, help="only so many commands (default all)")
    again.add_argument("--cache", type=Path, default=cache_dir(), help="where the capture is kept")
    again.add_argument(
        "--exchange", metavar="HOST:PORT", type=address, help="a running one; without it, its own"
    )
    again.add_argument(
        "--nats",
        metavar="URL",
        type=nats_address,
        help="of that exchange's market, to check the routing between several --engines by their journals",
    )
    again.add_argument(
        "--password",
        type=not_empty,
        help="of that exchange (default PASSWORD in the environment)",
    )


def _add_chaos(commands: Any) -> None:
    strikes = "faults strike a market under load; a witness judges"
    fire = commands.add_parser("chaos", help=strikes, description=strikes)
    usual = ChaosSettings()
    so_many, default = "how many (default %(default)s)", "(default %(default)s)"
    fire.add_argument("--minutes", type=up_to(MAX_MINUTES), default=usual.minutes, help=f"of load {default}")
    fire.add_argument(
        "--seed", type=seed, default=usual.seed, help=f"the same seed, the same faults {default}"
    )
    fire.add_argument("--engines", type=engines, default=usual.engines, help=so_many)
    fire.add_argument(
        "--standbys", type=int, choices=(0, 1), default=usual.standbys, help=f"of each engine {default}"
    )
    fire.add_argument(
        "--nats-nodes", type=int, choices=(1, 3), default=usual.nats_nodes, help=f"nats-servers {default}"
    )
    fire.add_argument(
        "--snapshot-every",
        metavar="COMMANDS",
        type=positive,
        default=usual.snapshot_every,
        help=f"of an engine {default}",
    )
    fire.add_argument(
        "--clients", type=positive, default=usual.clients, help=f"at home on each engine {default}"
    )
    fire.add_argument(
        "--rate", type=up_to(MAX_RATE), default=usual.rate, help=f"commands a second, of all {default}"
    )
    for name, pace in (
        ("kills", usual.pace.kills),
        ("freezes", usual.pace.freezes),
        ("partitions", usual.pace.partitions),
    ):
        fire.add_argument(f"--{name}-per-minute", metavar="N", type=per_minute, default=pace, help=so_many)
    fire.add_argument(
        "--longest", type=seconds, default=usual.pace.longest_s, help=f"seconds of a fault {default}"
    )
    fire.add_argument("--data", type=folder, help="where everything is kept; without it, gone at the end")
    fire.add_argument("--json", type=Path, help="write the outcome there too")


def _listed() -> list[str]:
    return [entry.symbol for entry in read_instruments(DEFAULT_INSTRUMENTS)]


def _symbols(text: str) -> int:
    """How many symbols are traded: no more than there are instruments."""
    return whole(text, len(_listed()))


def _chaos(options: argparse.Namespace, console: Console) -> int:
    settings = ChaosSettings(
        minutes=options.minutes,
        seed=options.seed,
        engines=options.engines,
        standbys=options.standbys,
        nats_nodes=options.nats_nodes,
        snapshot_every=options.snapshot_every,
        clients=options.clients,
        rate=options.rate,
        pace=Pace(
            kills=options.kills_per_minute,
            freezes=options.freezes_per_minute,
            partitions=options.partitions_per_minute,
            longest_s=options.longest,
        ),
        data=options.data,
    )

    if options.json is not None:
        if options.data is not None:
            options.data.mkdir(parents=True, exist_ok=True)  # the file may be beside what is kept
        check_writable("--json", options.json)

    async def run() -> ChaosOutcome:
        async with interruptible(lambda: console.print("Stopping…")):
            return await chaos(settings, console)

    outcome = asyncio.run(run())
    try:
        if options.json is not None:
            with written("--json", options.json):
                options.json.write_text(chaos_report.document(outcome))
    finally:  # whatever became of the file, the outcome is told
        code = 0 if outcome.holds else 1
        with ending_with(code):
            print_sheets(console, *chaos_report.sheets(outcome))
            verdict = "All checks hold." if outcome.holds else f"[red]VIOLATED[/] with seed {settings.seed}"
            console.print(verdict)
    return code


def _scenario(options: argparse.Namespace) -> Scenario:
    """The scenario that was asked for, or the one that the other options describe."""
    listed = _listed()
    if options.scenario is None:
        return Scenario(
            seed=1 if options.seed is None else options.seed,
            duration_s=options.duration or 10.0,
            engines=options.engines or engines_of_environment(),
            symbols=tuple(listed[: options.symbols or 4]),
            agents=tuple(usual_mix(options.clients or 10, options.frequency or 20.0)),
        )
    for name in ("engines", "clients", "symbols", "frequency", "duration"):
        if getattr(options, name) is not None:
            raise ScenarioRefused(f"--{name} is what a scenario says: leave it out, or change the file")
    chosen = scenario.read(options.scenario, listed)
    return chosen if options.seed is None else msgspec.structs.replace(chosen, seed=options.seed)


def _run(options: argparse.Namespace, console: Console) -> int:
    chosen = _scenario(options)
    if options.virtual:
        chosen = msgspec.structs.replace(chosen, delays=chosen.delays or USUAL)  # for the report to tell
    elif chosen.delays is not None:
        raise ScenarioRefused(
            "delays are of virtual time: on processes they are the machine's own. "
            "Leave the table out, or add --virtual."
        )
    logs = folder("logs")
    recording = None if options.report is None else Recording()
    begun: list[Progress] = []
    so_far: list[RunOutcome] = []
    run_on = _run_virtual if options.virtual else _run_processes

    def stopping() -> None:
        so_far.extend(map(cut_short, begun))
        console.print("Stopping…")

    def write(outcome: RunOutcome, what: str) -> None:
        if recording is not None:
            with written("--report", options.report):
                page = write_report(options.report, chosen, outcome, recording)
            console.print(f"{what} is in {page}", soft_wrap=True, highlight=False)

    async def run() -> RunOutcome:
        async with interruptible(stopping):
            return await run_on(chosen, console, recording, logs, begun.append)

    try:
        outcome = clock.run(run) if options.virtual else asyncio.run(run())
    except Stopped:
        with ending_with(INTERRUPTED):
            for outcome in so_far:
                write(outcome, f"The report of the {outcome.duration_s:.1f} s until then")
        raise
    code = report.show(console, outcome)
    write(outcome, "The report")
    return code


async def _run_processes(
    chosen: Scenario, console: Console, recording: Recording | None, logs: Path, begin: _Begin
) -> RunOutcome:
    cluster = Cluster(
        engines=chosen.engines,
        standbys=chosen.standbys,
        password=password_of_environment(),
        telemetry=Telemetry(log_dir=logs),
    )
    async with cluster:
        print_sheets(console, report.cluster_sheet(cluster))
        plan = staged(chosen, Strikes(cluster), console.print, recording=recording, log_dir=logs)
        async with RunningVenue(cluster.exchange.address, cluster.password, nats=cluster.nats_url) as venue:
            return await run_with_view(plan, venue, console, headless=not console.is_terminal, on_start=begin)


async def _run_virtual(
    chosen: Scenario, console: Console, recording: Recording | None, logs: Path, begin: _Begin
) -> RunOutcome:
    log_to_stderr()  # its engines warn here, with the time and what it is about
    async with open_for(chosen) as venue:
        plan = staged(chosen, venue, console.print, recording=recording, log_dir=logs)
        outcome = await run_with_view(plan, venue, console, headless=True, on_start=begin)
        outcome.digests = await venue.digests()
    return outcome


async def _replay(options: argparse.Namespace, console: Console) -> int:
    if options.nats and not (options.exchange and options.engines > 1):
        raise OptionRefused("--nats counts only with --exchange and several --engines: leave it out")
    async with interruptible(lambda: console.print("Stopping…")):
        wheel = await left_behind(lambda: fetch(options.cache))
        if options.exchange:
            return await _replay_on(options, console, wheel, options.exchange, options.nats or "")
        async with Cluster(
            engines=options.engines, password=options.password or password_of_environment()
        ) as cluster:
            return await _replay_on(options, console, wheel, cluster.exchange.address, cluster.nats_url)


async def _replay_on(
    options: argparse.Namespace, console: Console, wheel: Path, exchange: str, nats: str
) -> int:
    settings = ReplaySettings(
        exchange=exchange,
        password=options.password or password_of_environment(),
        engines=options.engines,
        nats=nats,
        limit=options.limit,
    )
    return show(await replay(settings, wheel, console), options.engines, console)
