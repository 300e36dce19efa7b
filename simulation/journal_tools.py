"""`matchbus journal`: looks into the journal of one engine, even while the engine runs; changes nothing.

verify   reads all of it and checks what every reader checks: format, checksum, chain, numbers, epochs
dump     prints its batches
digest   replays it and prints batch number, epoch and digest of the state at its end

Of a journal that was trimmed `verify` and `dump` read what is left, and `digest` begins at a snapshot.

Exit codes: 0 the journal is whole as far as it was read, 1 it is damaged or gone, 2 NATS is unreachable, the
engine never ran here with one, or it was trimmed while it was read.
A journal that lost its end is shorter, but whole: only its engine knows that it was longer
(`engine/runtime/high_water.py`).
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import nats.errors
from matchbus.program import ending_with
from nats.aio.client import Client
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bus import addresses, subjects
from bus.connection import Patience
from bus.journal import JetStreamJournal
from bus.records import JournalDamaged, JournalTooNew, Record
from bus.snapshots import SnapshotStore
from bus.stream import AWAY, Extent, StreamMissing, extent
from client.cli.failures import Failure, Misuse
from client.cli.output import print_sheets
from client.cli.sheets import Cell, Sheet, counted
from engine.commands import Command, decode
from engine.digest import state_digest
from engine.runtime.snapshots import SnapshotsOfAnotherVersion, load
from engine.state import State
from simulation.nats_option import (
    NOTHING_FOUND,
    PATIENCE_S,
    NatsAway,
    NeverRan,
    add_engine_options,
    connected,
    unhurried,
)

WHOLE: Final = 0
DAMAGED: Final = 1

_QUIET_S: Final = 1.0
_NS: Final = 1_000_000_000

Each = Callable[[Record, tuple[Command, ...]], None]


class TrimmedMeanwhile(Failure):
    """The journal lost its head while it was read, as it may: nothing is known of the rest."""

    code = NOTHING_FOUND

    def __init__(self, stream: str, first: int) -> None:
        super().__init__(
            f"{stream} was trimmed while it was read: it begins at {first} now", "run the same command again"
        )


class OfAnotherVersion(Failure):
    """This version cannot read it, which is no damage."""

    code = NOTHING_FOUND


@dataclass(slots=True)
class Findings:
    """What one reading of a journal found; `damage` is empty, and `damaged_at` 0, when it is whole."""

    engine: int
    stream: str
    records: int = 0
    """All records that were read, those of replaced epochs included."""
    batches: int = 0
    first_batch: int = 0
    commands: int = 0
    epochs: list[int] = field(default_factory=list)
    replaced_records: int = 0
    last_batch: int = 0
    last_digest: str = ""
    damaged_at: int = 0
    damage: str = ""

    @property
    def code(self) -> int:
        """The exit code."""
        return DAMAGED if self.damage else WHOLE


def add_parser(commands: Any) -> None:
    """Add `journal` and its three commands to the sub-commands of `matchbus`."""
    looks = "look into the journal of an engine"
    journal = commands.add_parser("journal", help=looks, description=looks)
    actions = journal.add_subparsers(dest="action", required=True)
    for name, what in (
        ("verify", "read the whole journal and check it; exit code 0 whole, 1 damaged, 2 cannot tell"),
        ("dump", "print the batches"),
        ("digest", "replay the journal and print batch number, epoch and digest of the state"),
    ):
        action = actions.add_parser(name, help=what, description=what)
        add_engine_options(action, instead_of="text")
        if name == "dump":
            action.add_argument("--from", dest="first", metavar="N", type=_batch, default=1, help="default 1")
            action.add_argument("--to", dest="last", metavar="N", type=_batch, help="default: the last one")


def _batch(text: str) -> int:
    number = addresses.number(text)
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is no batch number: they count from 1")
    return number


async def run(options: argparse.Namespace, console: Console) -> int:
    """Run one of the three; the exit code. Raises `Failure`."""
    return await {"verify": _verify, "dump": _dump, "digest": _digest}[options.action](options, console)


async def read(
    url: str, engine: int, each: Each, last: int | None = None, *, state: State | None = None
) -> Findings:
    """Read a journal from its first record to batch `last` (None: to its end as it is now), or its damage.

    Where the journal was trimmed, a `state` is brought to the newest snapshot, and reading begins there.
    Raises `NatsAway`, `NeverRan`, `TrimmedMeanwhile` and `OfAnotherVersion`.
    """
    findings = Findings(engine, subjects.journal_stream(engine))
    try:
        async with (
            connected(url, f"journal-tools-{engine}") as nc,
            Patience(PATIENCE_S) as patience,
        ):
            await _read(nc, findings, each, last, patience, state)
    except (TimeoutError, nats.errors.Error) as error:
        raise NatsAway(url, error) from error
    return findings


async def _read(
    nc: Client,
    findings: Findings,
    each: Each,
    last: int | None,
    patience: Patience,
    state: State | None,
) -> None:
    journal = JetStreamJournal(nc, findings.engine)
    before = await _extent(nc, findings.stream)
    try:
        await journal.skip_trimmed()
        if state is not None and journal.sequence:
            journal = JetStreamJournal(nc, findings.engine)
            with unhurried(patience):
                await load(state, journal, SnapshotStore(nc, findings.engine))
        with progress(findings.stream, max(0, before.last_seq - journal.sequence)) as tell:
            async with contextlib.aclosing(journal.replay()) as records:
                async for record in records:
                    if last is not None and record.batch_number > last:
                        break
                    commands = commands_of(record, journal.sequence)
                    each(record, commands)
                    patience.renew(PATIENCE_S)
                    findings.batches += 1
                    findings.first_batch = findings.first_batch or record.batch_number
                    findings.commands += len(commands)
                    findings.last_batch = record.batch_number
                    findings.last_digest = journal.position.digest.hex()
                    if record.epoch not in findings.epochs[-1:]:
                        findings.epochs.append(record.epoch)
                    tell(findings.batches)
    except (JournalTooNew, SnapshotsOfAnotherVersion) as error:
        raise OfAnotherVersion(str(error)) from error
    except JournalDamaged as error:
        if isinstance(error.__cause__, StreamMissing) and not await _has_snapshots(nc, findings.engine):
            raise NeverRan(findings.engine) from error
        # The journal itself knows of a trim (JournalTrimmed) only where it has read something before it.
        first = (await _extent(nc, findings.stream)).first_seq
        if first > before.first_seq > 0 and first > journal.sequence + 1:
            raise TrimmedMeanwhile(findings.stream, first) from error
        findings.damaged_at, findings.damage = error.sequence, error.what
    findings.replaced_records = journal.replaced_records
    findings.records = findings.batches + findings.replaced_records


async def _has_snapshots(nc: Client, engine: int) -> bool:
    """Whether the engine ran here: then a journal that is missing has been lost."""
    try:
        await extent(nc, subjects.object_stream(subjects.snapshots_bucket(engine)))
    except StreamMissing:
        return False
    return True


async def _extent(nc: Client, stream: str) -> Extent:
    """What there is to read; all 0 when that cannot be told."""
    with contextlib.suppress(*AWAY, StreamMissing):
        return await extent(nc, stream)
    return Extent(0, 0)


def commands_of(record: Record, sequence: int) -> tuple[Command, ...]:
    """The commands of the record at this stream sequence. Raises JournalDamaged."""
    try:
        return decode(record.commands)
    except msgspec.MsgspecError as error:
        what = f"the commands of batch {record.batch_number} cannot be read: {error}"
        raise JournalDamaged(record.engine, sequence, what) from error


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show on the terminal how far the reading is, once it takes more than a second.

    The body tells how many records it has read; a `total` of 0 is unknown.
    """
    columns = (TextColumn("reading {task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=total or None)
    due = time.monotonic() + _QUIET_S

    def tell(completed: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + 0.1
            bar.start()
            bar.update(task, completed=completed)

    try:
        yield tell
    finally:
        if bar.live.is_started:  # else the end of it would be an empty line
            bar.stop()


async def _verify(options: argparse.Namespace, console: Console) -> int:
    findings = await read(options.nats, options.engine, lambda _record, _commands: None)
    if options.json:
        with ending_with(findings.code):
            print(json.dumps(asdict(findings)))
        return findings.code
    rows: list[tuple[Cell, ...]] = [
        ("stream", findings.stream),
        ("records", f"{findings.records:,}"),
        ("batches", f"{findings.batches:,}{_since(findings.first_batch)}"),
        ("commands", f"{findings.commands:,}"),
        ("epochs", _span(findings.epochs)),
        ("replaced records ignored", f"{findings.replaced_records:,}"),
        ("last batch", f"{findings.last_batch} ({findings.last_digest or 'no record'})"),
        ("first damage", f"{_where(findings)}: {findings.damage}" if findings.damage else "none"),
    ]
    with ending_with(findings.code):
        print_sheets(console, Sheet(f"Journal of engine {findings.engine}", ("what", "found"), rows))
    return findings.code


def _where(findings: Findings) -> str:
    return f"stream sequence {findings.damaged_at}"


def _since(first_batch: int) -> str:
    return f", from {first_batch} on: the rest was trimmed" if first_batch > 1 else ""


def _span(epochs: list[int]) -> str:
    return f"{len(epochs)} ({epochs[0]} to {epochs[-1]})" if epochs else "0"


async def _dump(options: argparse.Namespace, _console: Console) -> int:
    if options.last is not None and options.last < options.first:
        raise Misuse(
            f"there is no batch from {options.first} to {options.last}", "--from names the lower of the two"
        )
    show = _show_json if options.json else _show

    def each(record: Record, commands: tuple[Command, ...]) -> None:
        if record.batch_number >= options.first:
            show(record, commands)

    findings = await read(options.nats, options.engine, each, options.last)
    _check_whole(findings)
    if findings.last_batch < options.first:
        end = f" to {options.last}" if options.last is not None else " on"
        print(f"{findings.stream} has no batch from {options.first}{end}", file=sys.stderr)
    return WHOLE


def _show(record: Record, commands: tuple[Command, ...]) -> None:
    seconds, ns = divmod(record.time_ns, _NS)
    time_utc = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{ns:09d}"
    size = counted(len(commands), "command")
    print(f"batch {record.batch_number}  epoch {record.epoch}  {time_utc} UTC  {size}")
    for command in commands:
        print(f"    {command}")


def _show_json(record: Record, commands: tuple[Command, ...]) -> None:
    line = {
        "batch_number": record.batch_number,
        "epoch": record.epoch,
        "time_ns": record.time_ns,
        "previous_digest": record.previous_digest.hex(),
        "commands": [
            {"command": type(command).__name__, **msgspec.structs.asdict(command)} for command in commands
        ],
    }
    print(msgspec.json.encode(line).decode())


async def _digest(options: argparse.Namespace, _console: Console) -> int:
    state = State(options.engine)

    def each(record: Record, commands: tuple[Command, ...]) -> None:
        state.begin_batch(record.batch_number, record.time_ns)
        for command in commands:
            state.apply(command)
        state.end_batch()

    findings = await read(options.nats, options.engine, each, state=state)
    _check_whole(findings)
    found = {"batch_number": state.batch_number, "epoch": state.epoch, "digest": state_digest(state).hex()}
    if options.json:
        print(json.dumps({"engine": options.engine, **found}))
    else:
        print(" ".join(f"{name} {value}" for name, value in found.items()))
    return WHOLE


def _check_whole(findings: Findings) -> None:
    """Raise `Failure` for damage."""
    if findings.damage:
        raise Failure(
            f"{findings.stream} is damaged at {_where(findings)}: {findings.damage}."
            f" Whole before it: {counted(findings.batches, 'batch', 'batches')}."
        )
