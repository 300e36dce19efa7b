"""Outputs that take nothing, to stand for `sys.stdout`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def no_reader() -> Iterator[TextIO]:
    """A pipe whose reader has left, which the first line meets: in containers Python often writes at once."""
    reading, writing = os.pipe()
    os.close(reading)
    with _closing_quietly(os.fdopen(writing, "w", buffering=1)) as output:
        yield output


@contextmanager
def no_room() -> Iterator[TextIO]:
    """A file on a full disk."""
    with _closing_quietly(Path("/dev/full").open("w")) as output:
        yield output


@contextmanager
def _closing_quietly(output: TextIO) -> Iterator[TextIO]:
    """Close it in the end; what could not be written is still in its buffer, and goes nowhere."""
    try:
        yield output
    finally:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output.fileno())
        os.close(nowhere)
        output.close()
