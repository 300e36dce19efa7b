"""Runs clients with random orders for ten seconds: `python simulation/client_start.py`, in its own terminal.

Needs a running exchange (`python simulation/exchange_start.py`) at IP_ADDR (127.0.0.1), port 50050, with the
same PASSWORD. Shows final positions; logs under `logs/client_logs`.
"""

import asyncio
import os
import secrets
import sys
from pathlib import Path
from typing import Final

# ruff: noqa: E402 -- the path must be right before anything of ours is imported
# A script's own folder comes first on the path and would hide the package of the same name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import grpc.aio
from rich.console import Console

from client import MatchbusError
from client.cli.output import stdout_console
from simulation import report
from simulation.cluster import DEFAULT_PASSWORD
from simulation.operate import Interrupted, interruptible, run_with_view
from simulation.run import Plan

EXCHANGE_PORT: Final = 50050
CLIENTS: Final = 4
DURATION_S: Final = 10.0


async def trade(console: Console) -> int:
    """Trade, then show what the clients hold; the exit code."""
    plan = Plan(
        exchange=f"{os.environ.get('IP_ADDR', '127.0.0.1')}:{EXCHANGE_PORT}",
        password=os.environ.get("PASSWORD", DEFAULT_PASSWORD),
        clients=CLIENTS,
        duration_s=DURATION_S,
        seed=secrets.randbits(32),
        only="random",
        log_dir=Path("logs"),
    )
    try:
        async with interruptible():
            outcome = await run_with_view(plan, console, headless=True)
    except Interrupted:
        console.print("Stopped.")
        return 0
    return report.show(console, outcome)


def main() -> int:
    """Run for ten seconds; the exit code."""
    try:
        return asyncio.run(trade(stdout_console()))
    except MatchbusError as error:
        print(error, file=sys.stderr)
    except grpc.aio.AioRpcError as error:
        print(
            f"The exchange does not answer ({error.details()}): start it with "
            "`python simulation/exchange_start.py`",
            file=sys.stderr,
        )
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
