"""How an engine comes back: replay the journal, follow it while another reigns, then begin a new reign.

Replaying applies exactly what was applied before, so state, digest, events and book sequences are the same.
What the journal has and EXECUTIONS has not yet is reported again from here; nothing else leaves in a replay.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from bus import crash_points
from bus.journal import Journal, PrimaryReplaced
from bus.records import Record
from engine.commands import EpochStarted, decode, encode
from engine.events import Event
from engine.runtime.effects import REPORTED
from engine.state import State
from engine.terms import first_id

_PROGRESS_PERIOD_S: Final = 1.0
_TURN_S: Final = 0.02
"""How long applying records may keep all else of the process waiting."""

_EPOCH_BITS: Final = 18
_LEGS_BITS: Final = 30
"""How many of the 48 bits of a leg's number count within one reign: enough for a day at 12,000 legs a second.
A longer reign runs into the next one's numbers, which then continue behind it for as long as those are
known."""

_log: Final = logging.getLogger("engine")


class ReportSink(Protocol):
    """Where the execution reports of a replay go: `engine.runtime.effects.Reports`, or a mere count."""

    def add(self, epoch: int, batch_number: int, reports: list[Event]) -> None:
        """What a batch has to report."""
        ...


async def replay(state: State, journal: Journal, reports: ReportSink) -> int:
    """Bring a state to where the journal ends; how many commands that took. Raises JournalError."""
    started = time.monotonic()
    commands_replayed = await catch_up(state, journal, reports)
    _log.info(
        "recovered batch %d of epoch %d: %d commands in %.2f s",
        state.batch_number,
        state.epoch,
        commands_replayed,
        time.monotonic() - started,
    )
    crash_points.reach("replay ended")
    return commands_replayed


async def catch_up(state: State, journal: Journal, reports: ReportSink) -> int:
    """Apply what the journal has and the state has not; how many commands. Raises JournalError."""
    commands_replayed = 0
    turned = told = time.monotonic()
    async with contextlib.aclosing(journal.replay()) as records:
        async for record in records:
            commands_replayed += _apply(state, record, reports)
            turned = await _take_turns(turned)
            if turned - told > _PROGRESS_PERIOD_S:
                told = turned
                _log.info("replayed %d batches, %d commands", record.batch_number, commands_replayed)
    return commands_replayed


async def follow(state: State, journal: Journal, reports: ReportSink, note: Callable[[int], None]) -> None:
    """Keep the state where the journal of a reigning process ends, until cancelled. Raises JournalError.

    `note` is told how many commands each batch had.
    """
    turned = time.monotonic()
    async with contextlib.aclosing(journal.tail()) as records:
        async for record in records:
            note(_apply(state, record, reports))
            turned = await _take_turns(turned)


async def _take_turns(turned: float) -> float:
    """Let the rest of the process have its turn now and then: many records may be there at once."""
    if time.monotonic() - turned < _TURN_S:
        return turned
    await asyncio.sleep(0)
    return time.monotonic()


def _apply(state: State, record: Record, reports: ReportSink) -> int:
    """Apply one batch; how many commands it had."""
    state.begin_batch(record.batch_number, record.time_ns)
    events: list[Event] = []
    commands = decode(record.commands)
    for command in commands:
        events += state.apply(command)
    state.end_batch()
    reports.add(record.epoch, record.batch_number, [event for event in events if type(event) in REPORTED])
    return len(commands)


async def begin_next_reign(state: State, journal: Journal, reports: ReportSink, newest_epoch: int) -> None:
    """Begin a reign where the journal ends, in an epoch above `newest_epoch` and all that the journal knows.

    A predecessor that was replaced without knowing it may append once more before us: that is applied too.
    Raises JournalError: PrimaryReplaced when another began a reign.
    """
    while True:
        await catch_up(state, journal, reports)
        crash_points.reach("journal applied")
        epoch = max(state.epoch, newest_epoch, journal.newest_epoch) + 1
        try:
            await begin_reign(state, journal, epoch, time.time_ns())
        except PrimaryReplaced as forestalled:
            if forestalled.other_epoch > state.epoch:
                raise
            _log.info("epoch %d cannot begin yet: %s", epoch, forestalled)
        else:
            return


async def begin_reign(state: State, journal: Journal, epoch: int, time_ns: int) -> None:
    """Make `epoch` ours: its first record fences off whoever reigned before.

    Raises JournalError, and has changed nothing of the state then.
    """
    # Epochs rise even over a loss, since the engines' bucket and the mark keep them.
    first_leg_id = first_id(state.engine) + (epoch << _LEGS_BITS) if epoch < 1 << _EPOCH_BITS else 0
    command = EpochStarted(epoch, first_leg_id)
    time_ns = max(time_ns, state.accounts.time_ns)
    crash_points.reach("reign about to begin")
    state.begin_batch(await journal.append(epoch, time_ns, encode([command])), time_ns)
    state.apply(command)
    state.end_batch()
    crash_points.reach("reign begun")
