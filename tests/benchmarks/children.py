"""Measurements that tests let run in processes of their own, which load this module and little else."""

import os
import sys

from benchmarks.figures import Figure, alone


def other_process() -> list[Figure]:
    """A figure that tells which process measured it."""
    return [alone("Part", "process", "pid", [float(os.getpid())])]


def end() -> list[Figure]:
    """A measurement that goes wrong."""
    sys.exit(3)
