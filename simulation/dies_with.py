"""Runs a module as `python -m` does, in a process that dies with the one that started it.

`python -m simulation.dies_with PARENT_PID MODULE ARGUMENT...`; `bus/dies_with.py` does the same for other
programs.
"""

import runpy
import sys

from bus.dies_with import die_with

if __name__ == "__main__":
    parent, module, *arguments = sys.argv[1:]
    die_with(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
