"""The `simulation` command; `simulation/cli.py` does the work."""

from collections.abc import Sequence

from matchbus.program import load, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    return run_program("simulation", lambda: load("simulation.cli").main(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
