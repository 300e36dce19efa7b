"""Runs the exchange and the engines: `python simulation/exchange_start.py`, in a terminal of its own.

NUM_ENGINES (2), PASSWORD and IP_ADDR (127.0.0.1) in the environment; ports 50050 and 50051 upwards; logs
under `logs/`. Ctrl-C stops all.
"""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Final

# ruff: noqa: E402 -- the path must be right before anything of ours is imported
# A script's own folder comes first on the path and would hide the package of the same name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from client.cli.output import stdout_console
from simulation.cluster import DEFAULT_PASSWORD, Cluster, ClusterError, Ports
from simulation.operate import serve
from simulation.option_types import OptionRefused, engines_of_environment

EXCHANGE_PORT: Final = 50050
FIRST_ENGINE_PORT: Final = 50051


def main() -> int:
    """Run until stopped; the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        cluster = Cluster(
            engines=engines_of_environment(),
            password=os.environ.get("PASSWORD", DEFAULT_PASSWORD),
            host=os.environ.get("IP_ADDR", "127.0.0.1"),
            ports=Ports(exchange=EXCHANGE_PORT, first_engine=FIRST_ENGINE_PORT),
            log_dir=Path("logs"),
        )
        return asyncio.run(serve(cluster, stdout_console()))
    except (ClusterError, OptionRefused) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
