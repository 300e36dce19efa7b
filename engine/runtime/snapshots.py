"""Snapshots of a running engine: made by a process of their own from the journal, loaded by the next start.

    journal ──▶ snapshot maker (this module as a process, at the lowest priority) ──▶ object store
                   newest snapshot + the batches since                                  │
    start   ◀── newest good snapshot, then the journal's rest ◀─────────────────────────┘

The engine itself only counts commands and starts the maker: a snapshot of a million orders costs it nothing
but some of the other core's time.
"""

import argparse
import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client

from bus import crash_points, provision
from bus.dies_with import dying_with_us
from bus.executions import ExecutionsDamaged, ExecutionsWriter
from bus.journal import JetStreamJournal, Journal
from bus.logs import LogForm, add_log_options
from bus.records import JournalDamaged, JournalError, JournalPosition
from bus.runner import NatsLink, ProcessFault, log_to, run_until_signal
from bus.snapshots import SnapshotDamaged, SnapshotEntry, SnapshotStore
from engine import snapshot
from engine.digest import state_digest
from engine.events import Event
from engine.invariants import check
from engine.runtime.recovery import replay
from engine.snapshot import NotASnapshot, OtherFormat
from engine.state import State

KEPT: Final = 2
"""The newest, and the good one before it should the newest be damaged."""

EVERYTHING: Final = (sys.maxsize, 0)
"""As far as no stream of execution reports goes."""

COMMANDS_PER_SNAPSHOT: Final = 1_000_000
"""About ten seconds of replay on a slow core."""

_LOOK_PERIOD_S: Final = 0.5
_LOOK_PATIENCE_S: Final = 5.0

MAKE_PATIENCE_S: Final = 3_600.0
"""A maker that is not done by then hangs: it is killed, and the next one begins anew."""

_LOWEST_PRIORITY: Final = 19

_log: Final = logging.getLogger("engine")


class SnapshotsOfAnotherVersion(JournalError):
    """Without its snapshots the journal is not enough, and this version cannot read them."""

    def __init__(self, engine: int, format_text: str, missing: str) -> None:
        super().__init__(
            f"the snapshots of engine {engine} were made by another version ({format_text}), and its journal"
            f" alone is not enough: {missing}. Start the version that made them"
        )


@dataclass(slots=True)
class LastOwed:
    """The last batch that had execution reports, and how many."""

    batch_number: int = 0
    count: int = 0

    def add(self, epoch: int, batch_number: int, reports: list[Event]) -> None:
        """As ReportSink says."""
        del epoch
        if reports:
            self.batch_number, self.count = batch_number, len(reports)


async def load(
    state: State,
    journal: Journal,
    store: SnapshotStore,
    published: tuple[int, int] = EVERYTHING,
    damaged: list[SnapshotEntry] | None = None,
) -> SnapshotEntry | None:
    """Bring an empty state and its journal to the newest snapshot that can be used; None without one.

    `published` is how far the stream of execution reports goes, for who reports what is owed. Those in
    `damaged` are passed over, and those found damaged are added. Raises JournalDamaged when the journal does
    not hold what a good snapshot was made from, SnapshotsOfAnotherVersion, and nats' errors.
    """
    other: OtherFormat | None = None
    try:
        entries = await store.entries()
    except nats.errors.TimeoutError:  # the server is away for a moment: nothing is known of the store
        raise
    except TimeoutError as error:
        _log.warning("snapshots are passed over, as they are not listed: %r", error)
        return None
    known_bad = [] if damaged is None else damaged
    for entry in entries:
        if entry in known_bad:
            continue
        if (entry.reported_batch, entry.reported) > published:
            _log.info("snapshot of batch %d is passed over: reports before it are owed", entry.batch_number)
            continue
        started = time.monotonic()
        _log.info("snapshot of batch %d is read", entry.batch_number)
        try:
            snapshot.restore(state, await store.get(entry))
        except (SnapshotDamaged, NotASnapshot) as damage:
            _log.warning("snapshot of batch %d is passed over: %s", entry.batch_number, damage)
            known_bad.append(entry)
            if isinstance(damage, OtherFormat):
                other = damage
            continue
        await journal.resume(_position(entry), entry.sequence)
        _log.info("snapshot of batch %d loaded in %.2f s", entry.batch_number, time.monotonic() - started)
        return entry
    if other is not None:
        try:
            await journal.lag()
        except JournalDamaged as head_is_gone:
            raise SnapshotsOfAnotherVersion(state.engine, str(other), head_is_gone.what) from head_is_gone
    return None


async def find_lost(nc: Client, engine: int, store: SnapshotStore) -> list[SnapshotEntry]:
    """The snapshots of batches that the journal has lost. Raises nats' errors."""
    lost: list[SnapshotEntry] = []
    for entry in await store.entries():
        try:
            await JetStreamJournal(nc, engine).resume(_position(entry), entry.sequence)
        except JournalDamaged as loss:
            _log.warning("snapshot of batch %d is passed over: %s", entry.batch_number, loss.what)
            lost.append(entry)
    return lost


async def make(nc: Client, engine: int, store: SnapshotStore) -> SnapshotEntry:
    """Store a snapshot of the state at the journal's end, made from the newest good one; its entry.

    A snapshot that restores to another digest than it was made with is not good. Nothing is stored when the
    newest is of that batch. Raises as `load` does.
    """
    damaged: list[SnapshotEntry] = []
    while True:
        state, journal = State(engine), JetStreamJournal(nc, engine)
        newest = await load(state, journal, store, damaged=damaged)
        if newest is None or state_digest(state).hex() == newest.state_digest:
            break
        _log.error("snapshot of batch %d is passed over: it restores to another state", newest.batch_number)
        damaged.append(newest)
    owed = LastOwed(newest.reported_batch, newest.reported) if newest is not None else LastOwed()
    await replay(state, journal, owed)
    entry = SnapshotEntry(
        batch_number=state.batch_number,
        epoch=state.epoch,
        sequence=journal.sequence,
        record_digest=journal.position.digest.hex(),
        state_digest=state_digest(state).hex(),
        reported_batch=owed.batch_number,
        reported=owed.count,
        time_ns=time.time_ns(),
    )
    if newest is None or newest.batch_number < entry.batch_number:
        taken = snapshot.take(state)
        crash_points.reach("snapshot taken")
        await store.put(entry, taken)
        crash_points.reach("snapshot stored")
        await store.keep(KEPT, damaged)
    return entry


def _position(entry: SnapshotEntry) -> JournalPosition:
    """Where the journal was when a snapshot was made."""
    return JournalPosition(entry.batch_number, bytes.fromhex(entry.record_digest), entry.epoch)


async def verify(engine: int, store: SnapshotStore, entry: SnapshotEntry) -> str:
    """What is wrong with a snapshot, empty when it restores to what it was made from. Raises nats' errors."""
    state = State(engine)
    try:
        snapshot.restore(state, await store.get(entry))
        check(state)
    except (SnapshotDamaged, NotASnapshot, AssertionError) as error:
        return str(error)
    return "" if state_digest(state).hex() == entry.state_digest else "it restores to another digest"


async def trim(nc: Client, engine: int, store: SnapshotStore) -> int:
    """Trim the journal, if it may be trimmed, to where the oldest kept snapshot was made; the sequence, or 0.

    Only when all that are kept restore, and the reports of the batches before are stored: from then on a
    start has nothing else. Raises nats' errors, ExecutionsDamaged.
    """
    kept = await store.entries()
    if len(kept) < KEPT or not await provision.is_trimmable(nc, engine):
        return 0
    oldest = kept[-1]
    if (oldest.reported_batch, oldest.reported) > await ExecutionsWriter(nc, engine).start():
        _log.info("the journal is not trimmed: reports from before batch %d are owed", oldest.batch_number)
        return 0
    for entry in kept:
        damage = await verify(engine, store, entry)
        if damage:
            _log.warning("the journal is not trimmed: snapshot of batch %d: %s", entry.batch_number, damage)
            return 0
    await provision.trim_journal(nc, engine, oldest.sequence)
    return oldest.sequence


class SnapshotMaker:
    """Starts the maker's process after every so many commands; one at a time.

    `store` is where it looks what was made.
    """

    def __init__(
        self,
        engine: int,
        nats_url: str,
        *,
        commands_per_snapshot: int,
        store: SnapshotStore,
        log_format: LogForm = "text",
    ) -> None:
        # A maker that outlived its engine would wait for a journal that may never be there again.
        self._command = dying_with_us(sys.executable, "-m", "engine.runtime.snapshots")
        self._command += ["--number", str(engine), "--nats", nats_url, "--log-format", log_format]
        self._commands_per_snapshot = commands_per_snapshot
        self._store = store
        self.commands = 0
        """Commands in the journal since the newest snapshot, as far as this process knows."""
        self._asked = 0  # how many of them there were when the next one was last asked for
        self.newest: SnapshotEntry | None = None
        """The newest snapshot that this process knows of."""
        self.failures = 0
        self._is_news = True

    def note(self, commands: int) -> None:
        """Count commands that were added to the journal."""
        self.commands += commands

    def note_followed(self, commands: int) -> None:
        """Count commands of a predecessor that made its own snapshots, as often as this process would."""
        self.note(commands % self._commands_per_snapshot)

    async def run(self) -> None:
        """Make snapshots as they fall due, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_PERIOD_S)
            if self.commands - self._asked >= self._commands_per_snapshot:
                self._asked = self.commands
                await self._make()
            if self._is_news:
                await self._look()

    async def _look(self) -> None:
        """Note the newest snapshot there is; while NATS is away it is looked for again."""
        with suppress(nats.errors.Error, msgspec.MsgspecError, TimeoutError):
            async with asyncio.timeout(_LOOK_PATIENCE_S):
                self.newest = next(iter(await self._store.entries()), None)
                self._is_news = False

    async def _make(self) -> None:
        # By subprocess and in a thread: it starts a child without copying this process's page tables.
        try:
            process = await asyncio.to_thread(subprocess.Popen, self._command, stdin=subprocess.DEVNULL)
        except OSError as error:  # too many files or processes: the engine can do without a snapshot
            self.failures += 1
            _log.warning("no snapshot was made: its maker was not started: %s", error)
            return
        try:
            async with asyncio.timeout(MAKE_PATIENCE_S):
                while process.poll() is None:  # noqa: ASYNC110 -- nobody tells of its end without a thread
                    await asyncio.sleep(_LOOK_PERIOD_S)
        except TimeoutError:
            _log.warning("a snapshot is not made within %g s: its maker is killed", MAKE_PATIENCE_S)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
        code = await asyncio.to_thread(process.wait)
        if not code:
            self._is_news = True
            self.commands -= self._asked
            self._asked = 0
        else:
            self.failures += 1
            _log.warning("no snapshot was made: its maker ended with code %d", code)


async def _run(number: int, nats_url: str) -> None:
    with suppress(OSError):
        os.nice(_LOWEST_PRIORITY)
    link = NatsLink(nats_url)
    try:
        nc = await link.open(f"engine-{number}-snapshots")
        started = time.monotonic()
        store = SnapshotStore(nc, number)
        entry = await make(nc, number, store)
        _log.info("snapshot of batch %d made in %.1f s", entry.batch_number, time.monotonic() - started)
        if first := await trim(nc, number, store):
            _log.info("the journal begins at stream sequence %d now", first)
    finally:
        await link.close()


_FAULTS: Final = (
    ProcessFault,
    JournalError,
    ExecutionsDamaged,
    nats.errors.Error,
    OSError,
)


def main() -> None:
    """Make one snapshot, in the process that the engine starts for it."""

    def start() -> Coroutine[Any, Any, None]:
        parser = argparse.ArgumentParser(prog="engine.runtime.snapshots")
        parser.add_argument("--number", type=int, required=True)
        parser.add_argument("--nats", required=True)
        add_log_options(parser)
        options = parser.parse_args()
        log_to(None, form=options.log_format, level=options.log_level)
        return _run(options.number, options.nats)

    run_until_signal("snapshot maker", start, _FAULTS)


if __name__ == "__main__":
    main()
