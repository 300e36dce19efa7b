"""One measurement in a process of its own: none inherits threads, memory or event loop of the one before."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class ChildFailed(Exception):
    """The process ended without a result; what it printed says why."""


def in_child(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What a function of a module returns. Raises `ChildFailed`."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_run, args=(theirs, function, arguments, named))
    process.start()
    theirs.close()
    try:
        result: T = ours.recv()
    except EOFError:
        process.join()
        raise ChildFailed(f"{function.__module__} ended with code {process.exitcode}") from None
    finally:
        if process.is_alive():
            process.join(timeout=30)
            process.kill()
        process.join()
    return result


def _run(
    result: Connection,
    function: Callable[..., object],
    arguments: tuple[object, ...],
    named: dict[str, object],
) -> None:
    result.send(function(*arguments, **named))
