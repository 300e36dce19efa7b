"""How an engine comes back: replay the whole journal, then begin a new reign.

Replaying applies exactly what was applied before, so state, digest, events and book sequences are the same.
What the journal has and EXECUTIONS has not yet is reported again from here; nothing else leaves in a replay.
"""

import asyncio
import logging
import time
from typing import Final, NamedTuple

from bus import crash_points
from bus.journal import Journal
from engine.commands import EpochStarted, decode, encode
from engine.runtime.effects import REPORTED, Reports
from engine.state import State

_PROGRESS_PERIOD_S: Final = 1.0
_YIELD_PERIOD_S: Final = 0.02

_log: Final = logging.getLogger("engine")


class Replayed(NamedTuple):
    """How many commands were replayed; the last batch that had execution reports, and how many it had."""

    commands: int
    reported: tuple[int, int]


async def replay(
    state: State, journal: Journal, reports: Reports | None = None, *, reported: tuple[int, int] = (0, 0)
) -> Replayed:
    """Bring a state to where the journal ends. Raises JournalError.

    `reported` is the last batch before that had execution reports, and how many.
    """
    commands_replayed = 0
    started = told = yielded = time.monotonic()
    async for record in journal.replay():
        state.begin_batch(record.batch_number, record.time_ns)
        events = []
        for command in decode(record.commands):
            events += state.apply(command)
            commands_replayed += 1
        state.end_batch()
        owed = [event for event in events if type(event) in REPORTED]
        if owed:
            reported = record.batch_number, len(owed)
            if reports is not None:
                reports.add(record.epoch, record.batch_number, owed)
        now = time.monotonic()
        if now - yielded > _YIELD_PERIOD_S:
            await asyncio.sleep(0)  # the connection lives on the same loop: starved, the server cuts it off
            yielded = now
        if now - told > _PROGRESS_PERIOD_S:
            told = now
            _log.info("replayed %d batches, %d commands", record.batch_number, commands_replayed)
    _log.info(
        "recovered batch %d of epoch %d: %d commands in %.2f s",
        state.batch_number,
        state.epoch,
        commands_replayed,
        time.monotonic() - started,
    )
    crash_points.reach("replay ended")
    return Replayed(commands_replayed, reported)


async def begin_reign(state: State, journal: Journal, epoch: int, time_ns: int) -> None:
    """Make `epoch` ours: its first record fences off whoever reigned before. Raises JournalError."""
    command = EpochStarted(epoch)
    time_ns = max(time_ns, state.accounts.time_ns)
    state.begin_batch(journal.position.batch_number + 1, time_ns)
    state.apply(command)
    state.end_batch()
    crash_points.reach("reign about to begin")
    await journal.append(epoch, time_ns, encode([command]))
    crash_points.reach("reign begun")
