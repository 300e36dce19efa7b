"""What the numbers and paths on a command line may be: types for argparse, which says what they refuse.

Each refuses by value and limit, and argparse adds the option. NaN compares with nothing, so every check says
what must hold. There is a limit where a run with a larger number would never end: 1e300 less 1 is 1e300.
Whether a place can be written is found out by writing, because permissions do not tell all; nothing is left
behind.
"""

import argparse
import contextlib
import errno
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bus import addresses, runner
from client.cli.arguments import not_empty
from exchange.runtime.settings import DEFAULT_PASSWORD

MAX_ENGINES: Final = 256
"""As many as follow each other (`bus.follower.MAX_PEERS`): the quotes of more would count for nothing."""

MAX_MINUTES: Final = 1_440
"""A day, as the longest scenario."""

MAX_RATE: Final = 1_000_000
"""Commands a second: far more than a machine takes."""

MAX_RUN_S: Final = 86_400
MAX_CLIENTS: Final = 1_000
MAX_FREQUENCY: Final = 1_000
"""The bounds of a scenario: `duration_s`, the `count` of a group, the `rate` of its arrivals."""

MAX_PER_MINUTE: Final = 600
"""Faults of a class. At a faster pace nothing would have recovered before the next fault."""


class OptionRefused(argparse.ArgumentTypeError):
    """What was asked for cannot be had; the text says the value and the limit."""


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = addresses.number(text)
    if not number:
        raise OptionRefused(f"{text!r:.60} is not a whole number from 1 on")
    return number


def seed(text: str) -> int:
    """Any whole number, as in a scenario."""
    if addresses.number(text.removeprefix("-")) is None:
        raise OptionRefused(f"{text!r:.60} is not a whole number")
    return int(text)


def whole(text: str, most: int) -> int:
    """A whole number from 1 to `most`."""
    try:
        return runner.whole(text, most)
    except argparse.ArgumentTypeError as error:
        raise OptionRefused(str(error)) from None


def engines(text: str) -> int:
    """How many engines a market has on this machine."""
    return whole(text, MAX_ENGINES)


def port(text: str) -> int:
    """A TCP port to listen on."""
    return whole(text, addresses.MAX_PORT)


def password_of_environment() -> str:
    """What clients need to register, where no option says it; an empty one is refused by the exchange."""
    return os.environ.get("PASSWORD", DEFAULT_PASSWORD)


def engines_of_environment() -> int:
    """How many engines NUM_ENGINES asks for, 2 without it. Raises `OptionRefused`."""
    try:
        return engines(os.environ.get("NUM_ENGINES") or "2")
    except OptionRefused as error:
        raise OptionRefused(f"NUM_ENGINES in the environment: {error}") from error


def clients(text: str) -> int:
    """How many clients a run has."""
    return whole(text, MAX_CLIENTS)


def seconds(text: str) -> float:
    """A finite number above 0."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise OptionRefused(f"{text!r} is not a finite number above 0")
    return number


def up_to(most: float) -> Callable[[str], float]:
    """A number above 0, up to `most`."""

    def number(text: str) -> float:
        given = _number(text)
        if not 0 < given <= most:
            raise OptionRefused(f"{text!r} is not a number above 0, up to {most:,}")
        return given

    return number


def per_minute(text: str) -> float:
    """How often something happens in a minute; 0 is never."""
    number = _number(text)
    if not 0 <= number <= MAX_PER_MINUTE:
        raise OptionRefused(f"{text!r} is not a number from 0 to {MAX_PER_MINUTE}")
    return number


def file(text: str) -> Path:
    """The path of a file: an empty one would be that of the working directory."""
    return Path(not_empty(text))


def folder(text: str) -> Path:
    """A directory that can be written, or could once it is made with those above it."""
    path = Path(text)
    try:
        if not text:  # to `Path` that is the working directory, which an empty option does not mean
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        _try_to_write(next(one for one in (path, *path.parents) if os.path.lexists(one)))
    except OSError as error:
        raise OptionRefused(
            f"{text!r} cannot be written ({error.strerror}): it must be a directory, there or to be made"
        ) from error
    return path


@contextlib.contextmanager
def written(option: str, path: Path) -> Iterator[None]:
    """Write there what was tried at the start. Raises `OptionRefused` when it has become impossible."""
    try:
        yield
    except OSError as error:
        raise OptionRefused(f"{option} {path} could not be written: {error.strerror}") from error


def check_replaceable(option: str, file: Path) -> None:
    """Whether a file can be made, and replaced by one made beside it. Raises `OptionRefused`.

    No type for argparse: the directory may be one that another option has made.
    """
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _try_to_write(file.parent)
    except OSError as error:
        raise OptionRefused(
            f"{option} {file} cannot be written ({error.strerror}): "
            "name a file in a directory that is there and can be written"
        ) from error


def check_writable(option: str, file: Path) -> None:
    """Whether a file, which may be a pipe or a device, can be made or written. Raises `OptionRefused`."""
    if not os.access(file, os.F_OK) or file.is_dir():
        check_replaceable(option, file)
    elif not os.access(file, os.W_OK):
        raise OptionRefused(f"{option} {file} may not be written: name another file")


def _try_to_write(there: Path) -> None:
    with tempfile.TemporaryFile(dir=there):
        pass


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
