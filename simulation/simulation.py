"""Everything in one: `python simulation/simulation.py`, as `simulation run`; see `--help`."""

import sys
from pathlib import Path

# ruff: noqa: E402 -- the path must be right before anything of ours is imported
# A script's own folder comes first on the path and would hide the package of the same name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from simulation.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main(["run", *sys.argv[1:]]))
