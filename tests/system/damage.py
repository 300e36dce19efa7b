"""Damages the files of a journal at random and looks whether the start of an engine could miss it.

`python -m tests.system.damage --flips 300 --truncations 100 --tails 50 --seed 1` runs a whole campaign and
ends with a table; exit code 1 when a loss or a change went unnoticed, or an engine would hang.
`test_storage_damage.py` runs a small one.

Each case: copy a stopped nats-server's store, damage one file of the journal's stream, start a server on it,
and do what the exchange and an engine do at a start: make or check the stream, replay the journal against the
high-water mark, append one record. What passes all that must give back every record as it was written, now
and after one more crash of the server; anything less is SILENT.
"""

import argparse
import asyncio
import logging
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import nats.errors
import nats.js.errors
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bus import provision, subjects
from bus.connection import Connection, connect
from bus.journal import JetStreamJournal
from bus.provision import ProvisionError
from bus.records import JournalError
from bus.server import NatsServer, ServerError
from engine.runtime.high_water import JournalBehind, MarkedJournal

ENGINE: Final = 1
RECORDS: Final = 300
PATIENCE_S: Final = 10.0
"""How long a start may take before it counts as one that hangs."""

Stored = tuple[int, int, int, bytes]
"""Batch number, epoch, time and commands of one record."""


class Outcome(StrEnum):
    """What became of a damaged journal."""

    HARMLESS = "harmless"
    CHAIN = "journal's checks"
    MARK = "high-water mark"
    SETTINGS = "stream settings"
    SERVER = "no NATS start"
    HANGS = "HANGS"
    SILENT = "SILENT"


FAILURES: Final = frozenset({Outcome.HANGS, Outcome.SILENT})
"""A loss must be said, and an engine that does not serve must say why."""


@dataclass(frozen=True)
class Prepared:
    """A stopped store: its directory, how it was stopped and cut into files, and what was written into it."""

    directory: Path
    name: str
    records: list[Stored]


@dataclass(frozen=True)
class Case:
    """One damage and what became of it."""

    kind: str
    store: str
    what: str
    outcome: Outcome
    why: str


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """A connection as journals need it; what it reports is not of interest here."""
    connection = await connect(
        url, name="damage", on_closed=lambda: None, on_error=lambda _: True, buffered=False
    )
    try:
        yield connection
    finally:
        await connection.close()


async def prepare(directory: Path) -> list[Prepared]:
    """Fill four stores: of one file of records and of several, stopped cleanly and killed."""
    stores = []
    for blocks, max_bytes in (("one block", provision.JOURNAL_BYTES), ("several blocks", 300_000)):
        for end in ("stopped", "killed"):
            name = f"{blocks}, {end}"
            store = directory / name.replace(", ", "-").replace(" ", "-")
            records = await _fill(store, max_bytes, is_killed=end == "killed")
            stores.append(Prepared(store, name, records))
    return stores


async def _fill(directory: Path, max_bytes: int, *, is_killed: bool) -> list[Stored]:
    """Write a journal of two epochs and its mark; what was written."""
    draw = random.Random(f"records {max_bytes}")
    async with NatsServer(directory / "nats") as server:
        async with connected(server.url) as connection:
            await provision.provision_journal(connection, ENGINE, max_bytes=max_bytes)
            async with MarkedJournal(
                JetStreamJournal(connection, ENGINE), ENGINE, directory / "state"
            ) as journal:
                written = await _replay(journal)
                for number in range(1, RECORDS + 1):
                    epoch = 1 if number <= RECORDS // 2 else 2
                    commands = draw.randbytes(draw.randint(1, 500))
                    batch = await journal.append(epoch, number * 10, commands)
                    written.append((batch, epoch, number * 10, commands))
        if is_killed:
            await server.kill()
    return written


def stream_files(directory: Path) -> list[Path]:
    """The files that nats-server keeps of the journal."""
    stream = directory / "nats/data/nats/jetstream/$G/streams" / subjects.journal_stream(ENGINE)
    return sorted(path for path in stream.rglob("*") if path.is_file() and path.stat().st_size)


def damage(draw: random.Random, kind: str, directory: Path) -> str:
    """Damage one file of the stream; what was done. Half of the damage goes to the files of records."""
    files = stream_files(directory)
    blocks = [path for path in files if path.suffix == ".blk"]
    path = draw.choice(blocks if draw.random() < 0.5 else files)
    content = bytearray(path.read_bytes())
    size = len(content)
    match kind:
        case "flip":
            offset, bit = draw.randrange(size), draw.randrange(8)
            content[offset] ^= 1 << bit
            what = f"bit {bit} of byte {offset} of {size} flipped in {path.name}"
        case "truncation":
            cut = draw.randint(1, size) if draw.random() < 0.5 else draw.randint(1, min(size, 1000))
            del content[size - cut :]
            what = f"last {cut} of {size} bytes cut off {path.name}"
        case "tail":
            garbage = draw.randbytes(draw.randint(1, 5_000))
            content += garbage
            what = f"{len(garbage)} random bytes appended to {path.name}"
        case _:
            raise ValueError(f"{kind!r} is no kind of damage")
    path.write_bytes(content)
    return what


async def judge(directory: Path, records: list[Stored]) -> tuple[Outcome, str]:
    """Start on a store as exchange and engine would; what comes of it, and why."""
    server = NatsServer(directory / "nats")
    try:
        await server.start()
    except ServerError as error:
        return Outcome.SERVER, str(error)
    try:
        async with asyncio.timeout(PATIENCE_S):
            more = await _start(server, directory, records)
            await server.kill()
            await server.start()
            async with connected(server.url) as connection:
                again = await _replay(JetStreamJournal(connection, ENGINE))
        if again != more:
            return Outcome.SILENT, f"after one more crash: {_difference(more, again)}"
    except _Differs as error:
        return Outcome.SILENT, str(error)
    except JournalBehind as error:
        return Outcome.MARK, str(error)
    except JournalError as error:
        return Outcome.CHAIN, str(error)
    except (ProvisionError, nats.js.errors.Error) as error:
        return Outcome.SETTINGS, str(error)
    except (TimeoutError, nats.errors.Error) as error:
        return Outcome.HANGS, repr(error)
    finally:
        await server.kill()
    return Outcome.HARMLESS, ""


class _Differs(Exception):
    """A start went well on a journal that is not what was written."""


async def _start(server: NatsServer, directory: Path, records: list[Stored]) -> list[Stored]:
    """What exchange and engine do at a start, up to the first record of the new reign; all records then."""
    async with connected(server.url) as connection:
        max_bytes = provision.JOURNAL_BYTES if "one-block" in directory.name else 300_000
        await provision.provision_journal(connection, ENGINE, max_bytes=max_bytes)
        journal = MarkedJournal(JetStreamJournal(connection, ENGINE), ENGINE, directory / "state")
        found = await _replay(journal)
        if found != records:
            raise _Differs(_difference(records, found))
        batch = await journal.append(3, 10**6, b"the next reign")
        return [*records, (batch, 3, 10**6, b"the next reign")]


async def _replay(journal: MarkedJournal | JetStreamJournal) -> list[Stored]:
    return [
        (record.batch_number, record.epoch, record.time_ns, record.commands)
        async for record in journal.replay()
    ]


def _difference(wanted: list[Stored], found: list[Stored]) -> str:
    first = next(
        (place for place, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), None
    )
    where = "" if first is None else f", the first other one is {first + 1}"
    return f"{len(found)} of {len(wanted)} records come back{where}"


async def campaign(
    directory: Path,
    stores: Sequence[Prepared] = (),
    *,
    flips: int,
    truncations: int,
    tails: int,
    seed: int,
    tell: Callable[[Case], None] = lambda _: None,
) -> list[Case]:
    """Run so many cases of each kind, on copies of stores that are made unless given.

    The same seed gives the same damage.
    """
    stores = stores or await prepare(directory)
    cases = []
    for kind, number in _plan(flips=flips, truncations=truncations, tails=tails):
        draw = random.Random(f"{seed} {kind} {number}")
        store = stores[number % len(stores)]
        copy = directory / f"{store.directory.name}-case"
        shutil.copytree(store.directory, copy)
        what = damage(draw, kind, copy)
        outcome, why = await judge(copy, store.records)
        shutil.rmtree(copy)
        cases.append(Case(kind, store.name, what, outcome, why))
        tell(cases[-1])
    return cases


def _plan(**counts: int) -> Iterator[tuple[str, int]]:
    for kinds, count in counts.items():
        for number in range(count):
            yield kinds.removesuffix("s"), number


def report(cases: list[Case]) -> Table:
    """Cases by kind of damage and outcome."""
    table = Table(title="Damage to a journal's files")
    for column in ("damage", "cases", *Outcome):
        table.add_column(column, justify="left" if column == "damage" else "right", overflow="fold")
    for kind in dict.fromkeys(case.kind for case in cases):
        counts = Counter(case.outcome for case in cases if case.kind == kind)
        table.add_row(kind, str(counts.total()), *(str(counts[outcome]) for outcome in Outcome))
    total = Counter(case.outcome for case in cases)
    table.add_row("all", str(total.total()), *(str(total[outcome]) for outcome in Outcome), style="bold")
    return table


def main() -> int:
    """Run a campaign; the exit code."""
    parser = argparse.ArgumentParser(description="Damages journals and looks who notices.")
    for name, default in (("flips", 300), ("truncations", 100), ("tails", 50), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default %(default)s")
    options = parser.parse_args()
    logging.getLogger("bus.connection").setLevel(logging.CRITICAL)
    console = Console()
    counts = {name: getattr(options, name) for name in ("flips", "truncations", "tails")}
    with tempfile.TemporaryDirectory() as directory, Progress(console=console) as progress:
        task = progress.add_task("cases", total=sum(counts.values()))

        def tell(case: Case) -> None:
            progress.advance(task)
            if case.outcome in FAILURES:
                console.print(f"{case.outcome}: {case.store}, {case.what}: {case.why}")

        cases = asyncio.run(campaign(Path(directory), **counts, seed=options.seed, tell=tell))
    console.print(report(cases))
    return int(any(case.outcome in FAILURES for case in cases))


if __name__ == "__main__":
    raise SystemExit(main())
