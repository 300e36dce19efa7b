"""The `engine` command; `engine/runtime/process.py` does the work."""

from matchbus.program import DONE, load, run_program


def main() -> int:
    """Run until SIGTERM or SIGINT, which end it with exit code 0, however early they come."""
    return run_program("engine", lambda: load("engine.runtime.process").main(), interrupted=DONE)


if __name__ == "__main__":
    raise SystemExit(main())
