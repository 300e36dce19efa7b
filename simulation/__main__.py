"""The `simulation` command; `simulation/cli.py` does the work."""

from collections.abc import Sequence
from importlib import import_module

from matchbus.program import run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    return run_program("simulation", lambda: import_module("simulation.cli").main(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
