"""What the numbers and paths on a command line may be: types for argparse, which says what they refuse.

Each refuses by value and limit, and argparse adds the option. NaN compares with nothing, so every check says
what must hold. A limit stands where a larger number would never end: 1e300 less 1 is 1e300.
"""

import argparse
import math
from collections.abc import Callable
from typing import Final

MAX_MINUTES: Final = 1_440
"""A day, as the longest scenario."""

MAX_RATE: Final = 1_000_000
"""Commands a second: far more than a machine takes."""

MAX_PER_MINUTE: Final = 600
"""Faults of a class. What strikes more often finds nothing that has come back."""


class OptionRefused(argparse.ArgumentTypeError):
    """What was asked for cannot be had; the text says the value and the limit."""


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise OptionRefused(f"{text!r} is not a whole number from 1 on")
    return int(text)


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


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
