"""The `engine` command; `engine/runtime/process.py` does the work."""

from importlib import import_module

from matchbus.program import DONE, run_program


def main() -> int:
    """Run until SIGTERM or SIGINT, which end it with exit code 0, however early they come."""
    return run_program("engine", lambda: import_module("engine.runtime.process").main(), interrupted=DONE)


if __name__ == "__main__":
    raise SystemExit(main())
