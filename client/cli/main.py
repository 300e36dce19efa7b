"""Finds a command, reads its words, runs it at a desk, and turns how it went into an exit code.

0   done; also when Ctrl-C or SIGTERM ended what goes on until then
1   refused or failed
2   typed wrongly
130 interrupted before it was done
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from importlib import import_module
from typing import Final

from client.cli.arguments import HelpShown
from client.cli.command import Command, Options
from client.cli.desk import EXPLAINED, Desk
from client.cli.failures import DONE, INTERRUPTED, Failure
from client.cli.output import Output

MODULES: Final = {
    "register": "account",
    "context": "account",
    "submit": "orders",
    "cancel": "orders",
    "replace": "orders",
    "orders": "orders",
    "fills": "holdings",
    "positions": "holdings",
    "book": "market",
    "engines": "market",
    "status": "health",
    "feed": "feed",
    "trade": "prompt",
}
"""Where each command is. Only its module is loaded: not all need NATS, and few a prompt."""


def main(name: str, words: Sequence[str]) -> int:
    """Run one command; the exit code."""
    output = Output(as_json="--json" in words)
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")

    def read_and_run() -> int:
        command = find(name)
        return asyncio.run(run(command, command.parser().read(words), output))

    return told(output, read_and_run)


def told(output: Output, run: Callable[[], int]) -> int:
    """Run a command; the exit code. The failure that it may raise is said on stderr."""
    try:
        return run()
    except HelpShown:
        return DONE
    except Failure as failure:
        output.failure(failure)
        return failure.code


def find(name: str) -> Command:
    """The command of that name."""
    module = import_module(f"client.cli.{MODULES[name]}")
    commands: Sequence[Command] = module.COMMANDS
    return next(command for command in commands if command.name == name)


async def run(command: Command, options: Options, output: Output) -> int:
    """Run a command that was read; the exit code. What it raises is explained on stderr."""
    async with Desk(vars(options), os.environ, output) as desk:
        try:
            return await _carry_out(command, options, desk)
        except EXPLAINED as error:
            failure = await desk.explain(error)
            output.failure(failure)
            return failure.code


async def _carry_out(command: Command, options: Options, desk: Desk) -> int:
    if not (command.changes or command.goes_on(options)):
        return await command.run(options, desk)  # any signal ends it at once
    async with _until_stopped():
        return await command.run(options, desk)
    return DONE if command.goes_on(options) else INTERRUPTED


@contextlib.asynccontextmanager
async def _until_stopped() -> AsyncIterator[None]:
    """Cancel the body at Ctrl-C or SIGTERM; what comes behind it goes on.

    A body that is in the middle of something raises `Interrupted` instead.
    """
    loop, body, stopped = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
    assert body is not None

    def stop() -> None:
        stopped.set()
        body.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
    finally:
        if stopped.is_set():
            body.uncancel()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
