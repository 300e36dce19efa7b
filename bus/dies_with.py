"""A process that dies with the one that started it, whatever kills that.

`python -I -S bus/dies_with.py PARENT_PID PROGRAM ARGUMENT...` becomes PROGRAM. The child asks for its own
death here instead of between fork and exec in the parent: there threads of gRPC make any Python code unsafe,
and a nats-server started by a busy launcher ended with a segmentation fault now and then.
"""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends (Linux only); exit if it has ended."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            raise SystemExit(1)


def dying_with_us(*command: str) -> list[str]:
    """The command that runs `command` in a process that dies with this one."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 -- the program that our caller names
