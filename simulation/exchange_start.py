"""Runs the exchange and the engines: `python simulation/exchange_start.py`, in a terminal of its own.

NUM_ENGINES (2), PASSWORD and IP_ADDR (127.0.0.1) in the environment; ports 50050 and 50051 upwards; logs
under `logs/`. Ctrl-C stops all.
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
    return int(load("simulation.by_hand").start_exchange())


def main() -> int:
    """Run until stopped; the exit code."""
    return run_program("exchange_start.py", _work)


if __name__ == "__main__":
    raise SystemExit(main())
