"""`python -m benchmarks`; `benchmarks/suite.py` does the work."""

from matchbus.program import load, run_program

if __name__ == "__main__":
    raise SystemExit(run_program("benchmarks", lambda: load("benchmarks.suite").main()))
