"""One fault of several tasks by itself, for whoever can tell a user of it."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def first_of(*kinds: type[Exception]) -> Iterator[None]:
    """Raise the first fault of these kinds itself, out of the groups that a task group within raises."""
    fault: Exception | None = None
    try:
        yield
    except* kinds as faults:
        fault = _first(faults)
    if fault is not None:  # raised above, Python before 3.11.4 would put it into a group again
        raise fault from fault.__cause__


def _first(faults: ExceptionGroup[Exception]) -> Exception:
    fault = faults.exceptions[0]
    return _first(fault) if isinstance(fault, ExceptionGroup) else fault
