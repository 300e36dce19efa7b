"""Take-overs under a writer that does not know it was replaced; counts what of its gets in afterwards.

`python -m tests.system.fencing --takeovers 1000 --seed 1` runs a whole campaign; `test_fencing.py` a small
one.

In each take-over a zombie appends without a break while a successor replays the journal and claims it by the
first record of a higher epoch; both go on for a while. Then the stream itself is read, record by record:
after the successor's first record there must be none of an older epoch. The same is done with a zombie that
leaves out the expected sequence. It must leak, or the check would find nothing whatever happened.
"""

import argparse
import asyncio
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bus import provision, subjects
from bus.connection import Connection, connect
from bus.journal import JetStreamJournal, PrimaryReplaced
from bus.records import JournalPosition, Record, digest_of, encode_record
from bus.server import NatsServer
from bus.stream import extent
from bus.stream_reader import StreamReader
from tests.waiting import until

TAKEOVERS_PER_STREAM: Final = 20
DEADLINE_S: Final = 20.0
"""How long one take-over may take."""

_STREAM_BYTES: Final = 8_000_000
_MOST_BEFORE: Final = 8
_AFTER: Final = 5
"""What the successor, and a zombie that is not told, store after the claim."""


class Writer(Protocol):
    """What appends batches after the last one it knows of."""

    async def append(self, epoch: int, time_ns: int, commands: bytes) -> int:
        """Store one batch; its number."""
        ...


class UnfencedWriter:
    """Writes well-formed records, each after its last, and demands nothing of the stream."""

    def __init__(self, connection: Connection, engine: int, position: JournalPosition) -> None:
        self._jetstream = connection.jetstream()
        self._engine = engine
        self._position = position

    async def append(self, epoch: int, time_ns: int, commands: bytes) -> int:
        """Publish without the fence."""
        payload = encode_record(self._engine, epoch, self._position, time_ns, commands)
        await self._jetstream.publish(subjects.journal(self._engine), payload)
        self._position = JournalPosition(self._position.batch_number + 1, digest_of(payload), epoch)
        return self._position.batch_number


class Zombie:
    """Appends under its epoch until it hears that it was replaced, or has stored all it may."""

    def __init__(self, writer: Writer, epoch: int, draw: random.Random) -> None:
        self.stored = 0
        self.is_told = False
        self.most: int | None = None
        self._writer = writer
        self._epoch = epoch
        self._draw = draw

    async def run(self) -> None:
        """Write, now and then with a pause of up to 2 ms."""
        with suppress(PrimaryReplaced):
            while self.most is None or self.stored < self.most:
                await self._writer.append(self._epoch, 1, b"zombie %d" % self.stored)
                self.stored += 1
                if self._draw.random() < 0.5:
                    await asyncio.sleep(self._draw.random() * 0.002)
            return
        self.is_told = True


@dataclass
class Result:
    """What a campaign found."""

    takeovers: int = 0
    lost_claims: int = 0
    """Claims that a record of the zombie forestalled; the successor replayed again and claimed again."""
    zombie_records: int = 0
    told: int = 0
    """Zombies that heard that they were replaced."""
    leaks: int = 0
    """Records of a replaced epoch behind the first record of its successor."""
    leaky_takeovers: int = 0


def leaked(epochs: Sequence[int]) -> list[int]:
    """Of a stream's records, given by their epochs, those that stand behind one of a higher epoch."""
    leaks = []
    highest = 0
    for epoch in epochs:
        if epoch < highest:
            leaks.append(epoch)
        highest = max(highest, epoch)
    return leaks


async def campaign(
    directory: Path, *, takeovers: int, seed: int, fenced: bool, tell: Callable[[], None] = lambda: None
) -> Result:
    """Run so many take-overs, from zombies that keep the fence or do not."""
    result = Result()
    draw = random.Random(f"{seed} {fenced}")
    async with NatsServer(directory) as server:
        old, new = [
            await connect(server.url, name=name, on_closed=lambda: None, buffered=False)
            for name in ("zombie", "successor")
        ]
        for engine in range(1, 2 + (takeovers - 1) // TAKEOVERS_PER_STREAM):
            await provision.provision_journal(new, engine, max_bytes=_STREAM_BYTES)
            for number in range(1, 1 + min(TAKEOVERS_PER_STREAM, takeovers - result.takeovers)):
                async with asyncio.timeout(DEADLINE_S):
                    await _take_over(old, new, engine, 2 * number, draw, result, fenced=fenced)
                tell()
            leaks = leaked(await _epochs(new, engine))
            result.leaks += len(leaks)
            result.leaky_takeovers += len(set(leaks))
        await old.close()
        await new.close()
    return result


async def _take_over(
    old: Connection,
    new: Connection,
    engine: int,
    epoch: int,
    draw: random.Random,
    result: Result,
    *,
    fenced: bool,
) -> None:
    """A reign begins, writes, and is replaced under `epoch` while it goes on writing."""
    reigning = await _replayed(old, engine)
    writer = reigning if fenced else UnfencedWriter(old, engine, reigning.position)
    zombie = Zombie(writer, epoch - 1, draw)
    writing = asyncio.create_task(zombie.run())
    before = draw.randint(1, _MOST_BEFORE)
    await until(lambda: zombie.stored >= before)
    successor = await _claim(new, engine, epoch, result)
    zombie.most = None if fenced else zombie.stored + _AFTER
    try:
        for number in range(_AFTER):
            await successor.append(epoch, 2, b"successor %d" % number)
    except PrimaryReplaced:  # an unfenced zombie drives even its successor out
        assert not fenced, "a zombie with the fence wrote behind the claim"
    await writing
    result.takeovers += 1
    result.zombie_records += zombie.stored
    result.told += zombie.is_told


async def _replayed(connection: Connection, engine: int) -> JetStreamJournal:
    journal = JetStreamJournal(connection, engine)
    async for _ in journal.replay():
        pass
    return journal


async def _claim(connection: Connection, engine: int, epoch: int, result: Result) -> JetStreamJournal:
    """Replay and append the first record of an epoch, again and again until no other came before it."""
    journal = await _replayed(connection, engine)
    while True:
        try:
            await journal.append(epoch, 2, b"claim")
        except PrimaryReplaced:
            result.lost_claims += 1
            async for _ in journal.replay():
                pass
        else:
            return journal


async def _epochs(connection: Connection, engine: int) -> list[int]:
    """The epoch of every record as it stands in the stream, whatever a journal would make of it."""
    stream = subjects.journal_stream(engine)
    end = (await extent(connection, stream)).last_seq
    reader = StreamReader(connection, stream)
    epochs: list[int] = []
    while len(epochs) < end:
        epochs += [
            msgspec.msgpack.decode(stored.payload, type=Record).epoch for stored in await reader.read()
        ]
    await reader.close()
    return epochs


def report(results: dict[str, Result]) -> Table:
    """What each kind of zombie did."""
    table = Table(title="Take-overs from a zombie that goes on writing")
    columns = ("zombie", "take-overs", "claims lost first", "zombie records", "zombies told")
    for column in (*columns, "records behind the claim", "in take-overs"):
        table.add_column(column, justify="left" if column == "zombie" else "right")
    for name, result in results.items():
        counts = (result.takeovers, result.lost_claims, result.zombie_records, result.told, result.leaks)
        table.add_row(name, *map(str, counts), str(result.leaky_takeovers))
    return table


def main() -> int:
    """Run a campaign with the fence and one without; the exit code."""
    parser = argparse.ArgumentParser(description="Counts records behind a take-over.")
    parser.add_argument("--takeovers", type=int, default=1000, help="of each kind (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    options = parser.parse_args()
    console = Console()
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as directory, Progress(console=console) as progress:
        for name, fenced in (("fenced", True), ("unfenced", False)):
            task = progress.add_task(name, total=options.takeovers)
            results[name] = asyncio.run(
                campaign(
                    Path(directory) / name,
                    takeovers=options.takeovers,
                    seed=options.seed,
                    fenced=fenced,
                    tell=lambda task=task: progress.advance(task),  # type: ignore[misc]  # mypy does not see the default's type
                )
            )
    console.print(report(results))
    return int(results["fenced"].leaks > 0 or results["unfenced"].leaks == 0)


if __name__ == "__main__":
    raise SystemExit(main())
