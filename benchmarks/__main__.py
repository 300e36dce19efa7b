"""`python -m benchmarks`; `benchmarks/suite.py` does the work."""

from importlib import import_module

from matchbus.program import run_program

if __name__ == "__main__":
    raise SystemExit(run_program("benchmarks", lambda: import_module("benchmarks.suite").main()))
