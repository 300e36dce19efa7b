"""What `exchange_start.py` and `client_start.py` do, each in a terminal of its own: a market, and clients.

Both go by the environment alone: NUM_ENGINES, PASSWORD, IP_ADDR.
"""

import asyncio
import os
import secrets
import sys
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
from matchbus.program import INTERRUPTED, ending_with
from matchbus.tls import TlsRefused
from rich.console import Console

from bus.addresses import host_and_port
from client import MatchbusError, Unavailable, Venue
from client.cli.desk import exchange_asked
from client.cli.failures import ExchangeAway, reason_of
from client.cli.output import stdout_console
from client.session import check_address
from simulation import report
from simulation.cluster import Cluster
from simulation.cluster_errors import ClusterError, HostRefused
from simulation.cluster_settings import Telemetry
from simulation.interruption import Stopped, interruptible
from simulation.operate import run_with_view, serve
from simulation.option_types import OptionRefused, engines_of_environment, password_of_environment
from simulation.ports import LOOPBACK, Ports
from simulation.run import Plan
from simulation.stderr_log import log_to_stderr
from simulation.venues import RunningVenue

EXCHANGE_PORT: Final = 50050
FIRST_ENGINE_PORT: Final = 50051
LOGS: Final = Path("logs")
CLIENTS: Final = 4
DURATION_S: Final = 10.0
START_DEADLINE_S: Final = 10.0
"""How long an exchange that is started together with its clients may take."""

_FIRST_LOOK_S: Final = 1.0


def start_exchange() -> int:
    """Run the exchange and the engines until stopped; the exit code."""
    log_to_stderr()
    try:
        cluster = Cluster(
            engines=engines_of_environment(),
            password=password_of_environment(),
            host=_host(),
            ports=Ports(exchange=EXCHANGE_PORT, first_engine=FIRST_ENGINE_PORT),
            telemetry=Telemetry(log_dir=LOGS),
        )
        return asyncio.run(serve(cluster, stdout_console()))
    except HostRefused as error:
        print(f"IP_ADDR in the environment: {error}", file=sys.stderr)
    except (ClusterError, OptionRefused) as error:
        print(error, file=sys.stderr)
    return 1


def start_clients() -> int:
    """Let clients trade for ten seconds; the exit code."""
    exchange = host_and_port(_host(), EXCHANGE_PORT)
    try:
        check_address(exchange)
    except ValueError:
        print(
            f"IP_ADDR in the environment: {_host()!r:.60} is no host: write it like 127.0.0.1 or ::1",
            file=sys.stderr,
        )
        return 1
    try:
        return asyncio.run(_trade(exchange, stdout_console()))
    except ExchangeAway as away:
        print(
            f"No exchange answers at {exchange} ({reason_of(away.cause)}): start it with "
            "`python simulation/exchange_start.py`, or name the host of one by IP_ADDR",
            file=sys.stderr,
        )
    except (MatchbusError, TlsRefused) as error:
        print(error, file=sys.stderr)
    except grpc.aio.AioRpcError as error:
        print(f"The exchange at {exchange} does not go on: {error.details()}", file=sys.stderr)
    return 1


def _host() -> str:
    return os.environ.get("IP_ADDR") or LOOPBACK


async def _await_exchange(exchange: str, console: Console) -> None:
    """Wait for one that is just starting, and say so. Raises `ExchangeAway`."""
    try:
        async with Venue.connect(exchange, deadline_s=_FIRST_LOOK_S) as venue:
            await venue.instruments()
    except Unavailable:
        waiting = f"No exchange answers at {exchange} yet: waiting up to {START_DEADLINE_S:g} s for it"
        console.print(waiting, highlight=False)
        with console.status("Waiting"):
            async with exchange_asked(), Venue.connect(exchange, deadline_s=START_DEADLINE_S) as venue:
                await venue.instruments()


async def _trade(exchange: str, console: Console) -> int:
    plan = Plan(
        clients=CLIENTS,
        duration_s=DURATION_S,
        seed=secrets.randbits(32),
        only="random",
        log_dir=LOGS,
    )
    try:
        async with interruptible():
            await _await_exchange(exchange, console)
            async with RunningVenue(exchange, password_of_environment()) as venue:
                outcome = await run_with_view(plan, venue, console, headless=True)
    except Stopped:
        with ending_with(INTERRUPTED):
            console.print("Stopped.")
        return INTERRUPTED
    return report.show(console, outcome)
