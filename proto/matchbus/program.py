"""How every command of ours begins and ends: interrupted, without room for its output, without a reader.

A reader that is gone (`| head`) ends a command quietly, with 0; with its own code where that tells what was
refused or found wrong (`ending_with`). Output for which there is no room is a failure, said on stderr.

What a command needs takes most of a second to load, and Ctrl-C may come meanwhile. So an entry is thin: it
imports this alone, and what does the work only by `load`, within `run_program`.
"""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from types import FrameType
from typing import Any, Final, TextIO

DONE: Final = 0
FAILED: Final = 1
USAGE_ERROR: Final = 2
INTERRUPTED: Final = 130


class Unread(BrokenPipeError):
    """Nobody reads what tells the same as the exit code `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(errno.EPIPE, os.strerror(errno.EPIPE))
        self.code = code


@contextlib.contextmanager
def ending_with(code: int) -> Iterator[None]:
    """Around what prints a verdict: raises `Unread` when nobody reads it."""
    try:
        yield
    except BrokenPipeError as error:
        raise Unread(code) from error
    except SystemExit as end:
        if not _of_broken_pipe(end):
            raise
        raise Unread(code) from end


def run_program(
    name: str,
    work: Callable[[], int | None],
    *,
    interrupted: int = INTERRUPTED,
    tell: Callable[[str], object] | None = None,
) -> int:
    """Do the work, which loads what it needs, and write out what it printed; the exit code.

    The work returns that, or None when it is done. `interrupted` is the code of one that Ctrl-C ended; where
    that is DONE, SIGTERM ends it so, too, until the work has a handler of its own. `tell` says on stderr why
    nothing more can be written, in another form than a line with the name.
    """
    # Not by an exception: raised while a class is made, it comes out as another one.
    _at_interrupt(lambda _number, _frame: os._exit(interrupted))
    if interrupted == DONE:
        signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(DONE))
    say = tell or (lambda text: print(f"{name}: {text}", file=sys.stderr))  # noqa: T201 -- for people
    # Closed by `>&-` it is None here; what is printed goes nowhere then.
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    try:
        code = work() or DONE
    except KeyboardInterrupt:
        code = interrupted
    except Unread as unread:
        code = unread.code
    except BrokenPipeError:  # `| head` has seen enough
        code = DONE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        code = _unwritten(say, error)
    except SystemExit as end:
        code = DONE if _of_broken_pipe(end) else int(end.code or DONE)  # else from argparse
    finally:
        _at_interrupt(signal.default_int_handler)
    return _written_out(say, code)


def load(module: str) -> Any:
    """Import what does the work. From then on Ctrl-C raises KeyboardInterrupt, which asyncio builds on."""
    # Whatever we start is another program at once. Yet gRPC would end its threads before each fork and begin
    # new ones behind it; where there may be no more threads, it never again answers or connects. It reads
    # this as it is imported, in our children too.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    loaded = import_module(module)
    _at_interrupt(signal.default_int_handler)
    return loaded


def _of_broken_pipe(end: SystemExit) -> bool:
    """Whether rich has made this of one."""
    return isinstance(end.__context__, BrokenPipeError)


def _at_interrupt(handler: Callable[[int, FrameType | None], object]) -> None:
    """Let Ctrl-C do that, unless whoever started this process has it ignored."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


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
