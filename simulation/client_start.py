"""Runs clients with random orders for ten seconds: `python simulation/client_start.py`, in its own terminal.

Needs a running exchange (`python simulation/exchange_start.py`) at IP_ADDR (127.0.0.1), port 50050, with the
same PASSWORD. Shows final positions; logs under `logs/client_logs`.
"""

import argparse
import sys
from pathlib import Path

# ruff: noqa: E402 -- the path must be right before anything of ours is imported
# A script's own folder comes first on the path and would hide the package of the same name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from matchbus.program import load, run_program


def _work() -> int:
    """Refuse arguments, for the environment says all; then do it."""
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    return int(load("simulation.by_hand").start_clients())


def main() -> int:
    """Run for ten seconds; the exit code."""
    return run_program("client_start.py", _work)


if __name__ == "__main__":
    raise SystemExit(main())
