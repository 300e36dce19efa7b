"""One fault of several tasks by itself."""

import asyncio

import pytest

from simulation.first_fault import first_of


async def fail(*faults: Exception) -> None:
    """Raise one fault, or several in a group."""
    raise faults[0] if len(faults) == 1 else ExceptionGroup("of its own", faults)


async def test_the_first_fault_comes_out_of_its_groups() -> None:
    """However deep it is in groups of its own, and alone."""
    with pytest.raises(KeyError, match="first"), first_of(KeyError, OSError):  # noqa: PT012
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(KeyError("first"), OSError("second")))
            group.create_task(fail(OSError("third")))


async def test_any_other_fault_stays_as_it_is() -> None:
    """It is a bug, and all of it shall be seen."""
    with pytest.raises(ExceptionGroup) as raised, first_of(KeyError):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(ValueError("a bug")))
    assert repr(raised.value.exceptions) == "(ValueError('a bug'),)"


async def test_without_a_fault_nothing_is_raised() -> None:
    """And what the body did is done."""
    done = []
    with first_of(KeyError):
        done.append(1)
    assert done
