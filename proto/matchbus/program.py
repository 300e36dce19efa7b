"""How every command of ours begins and ends: interrupted, without room for its output, without a reader.

What a command needs takes most of a second to load, and Ctrl-C may come meanwhile. So an entry is thin: it
imports this alone, and what does the work only where an interrupt is caught.
"""

import errno
import os
import sys
from collections.abc import Callable
from typing import Final, TextIO

DONE: Final = 0
FAILED: Final = 1
USAGE_ERROR: Final = 2
INTERRUPTED: Final = 130


def run_program(
    name: str,
    work: Callable[[], int | None],
    *,
    interrupted: int = INTERRUPTED,
    tell: Callable[[str], object] | None = None,
) -> int:
    """Do the work, which imports what it needs, and write out what it printed; the exit code.

    The work returns that, or None when it is done. `interrupted` is the code of one that Ctrl-C ended; `tell`
    says on stderr why nothing more can be written, in another form than a line with the name.
    """
    say = tell or (lambda text: print(f"{name}: {text}", file=sys.stderr))  # noqa: T201 -- for people
    # Closed by `>&-` it is None here; what is printed goes nowhere then.
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    try:
        code = work() or DONE
    except KeyboardInterrupt:
        code = interrupted
    except BrokenPipeError:  # `| head` has seen enough
        code = DONE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        code = _unwritten(say, error)
    except SystemExit as end:
        # From argparse, after its help or a wrong word, or from rich, which makes this of a broken pipe.
        code = DONE if isinstance(end.__context__, BrokenPipeError) else int(end.code or DONE)
    return _written_out(say, code)


def _written_out(say: Callable[[str], object], code: int) -> int:
    """The exit code, once nothing is left that the interpreter would fail to write at its end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if code == DONE and not isinstance(error, BrokenPipeError):
            return _unwritten(say, error)
    return code


def _unwritten(say: Callable[[str], object], error: OSError) -> int:
    """Say that there is no room for what was to be written; the exit code."""
    say(f"nothing more can be written: {error.strerror}")
    return FAILED


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
