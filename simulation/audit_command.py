"""`simulation audit`: judges the routing decisions of a market by the journals of all its engines together.

Here: finding the journals, reading them in one order of time, telling what came of it. What is judged, and
how: `simulation/audit.py`. It changes nothing, and the market may run meanwhile.

Exit codes: 0 no bug, 1 a bug, or a journal is damaged, 2 nothing was judged: no NATS, no journals, or not all
of them.
"""

import argparse
import asyncio
import contextlib
import heapq
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import nats.errors
from matchbus.program import ending_with
from nats.aio.client import Client
from rich.console import Console

from bus import provision, subjects
from bus.addresses import shown
from bus.connection import Patience
from bus.journal import JetStreamJournal, JournalTrimmed
from bus.peer import LIVE_NS
from bus.records import JournalDamaged, JournalTooNew, Record
from bus.snapshots import SnapshotStore
from bus.stream import extent
from client.cli.output import print_sheets
from client.cli.settings import SettingsError
from client.cli.sheets import Sheet
from engine.runtime.snapshots import SnapshotsOfAnotherVersion, load
from engine.state import State
from simulation.audit import EXAMPLES, Audit, audits
from simulation.interruption import interruptible
from simulation.journal_tools import commands_of, progress
from simulation.nats_option import PATIENCE_S, NatsAway, add_nats_option, connected, nats_url, unhurried
from simulation.option_types import positive

NO_BUG: Final = 0
FAULTY: Final = 1
NOT_JUDGED: Final = 2

WINDOW_MS: Final = LIVE_NS // 1_000_000
"""The newest heartbeat of a peer that counts as live is no older than this, and what was published before it
came before it. So all that a live peer published longer ago is known."""

_NS_PER_MS: Final = 1_000_000
_SETTLE_S: Final = 0.25


class NotJudged(Exception):
    """There is nothing to judge, or not all of it; the text says what is missing and what to do."""


def add_parser(commands: Any) -> None:
    """Add `audit` to the sub-commands of `simulation`."""
    what = (
        "replay the journals of a running market and report each decision that traded at a worse price than"
        " another engine showed: bugs, and old views; exit code 0 no bug, 1 a bug or a damaged"
        " journal, 2 nothing to judge"
    )
    judge = commands.add_parser("audit", help="judge the routing of a running market", description=what)
    add_nats_option(judge)
    judge.add_argument(
        "--window-ms",
        metavar="MS",
        type=positive,
        default=WINDOW_MS,
        help="how long a quote must have stood to count as missed (default %(default)s)",
    )
    judge.add_argument("--json", action="store_true", help="JSON instead of a table")


async def run(options: argparse.Namespace, console: Console) -> int:
    """Run it; the exit code."""
    try:
        url = nats_url(options.nats)
        async with interruptible():
            market = await read(url, options.window_ms)
    except (JournalTrimmed, JournalTooNew, SnapshotsOfAnotherVersion) as error:
        print(error, file=sys.stderr)
        return NOT_JUDGED
    except JournalDamaged as error:
        print(error, file=sys.stderr)
        return FAULTY
    except (SettingsError, NatsAway) as error:
        print(f"{error}\n  {error.hint}", file=sys.stderr)
        return NOT_JUDGED
    except NotJudged as error:
        print(error, file=sys.stderr)
        return NOT_JUDGED
    code = FAULTY if any(audit.bugs for audit in market.values()) else NO_BUG
    with ending_with(code):
        if options.json:
            print(json.dumps(document(market, options.window_ms)))
        else:
            _show(market, options.window_ms, console)
    return code


async def read(url: str, window_ms: int) -> dict[int, Audit]:
    """The audits of all engines that have a journal at `url`, fed with all that was stamped until now.

    Raises NatsAway, NotJudged, JournalDamaged, SnapshotsOfAnotherVersion.
    """
    try:
        async with (
            connected(url, "simulation-audit") as nc,
            Patience(PATIENCE_S) as patience,
        ):
            return await _read(nc, url, window_ms, patience)
    except (TimeoutError, nats.errors.Error) as error:
        raise NatsAway(url, error) from error


async def _read(nc: Client, url: str, window_ms: int, patience: Patience) -> dict[int, Audit]:
    engines = await provision.journaled_engines(nc)
    if not engines:
        raise NotJudged(
            f"the server at {shown(url)} has no journal: name a market's server by --nats; a market that runs"
            " with --durability none leaves nothing to judge"
        )
    market = audits(engines, window_ms * _NS_PER_MS)
    journals = {engine: JetStreamJournal(nc, engine) for engine in engines}
    total = 0
    ends: dict[int, int] = {}
    for engine, journal in journals.items():
        found = await extent(nc, subjects.journal_stream(engine))
        if found.first_seq > 1:
            with unhurried(patience):
                await _begin_at_snapshot(nc, market[engine], journal)
        ends[engine] = found.last_seq
        total += found.last_seq - journal.sequence
    # Journals are read to slightly different ends. What was stamped before now is in all of them soon.
    until_ns = time.time_ns()
    await asyncio.sleep(_SETTLE_S)
    with progress(f"{len(engines)} journals", total) as tell:
        async with contextlib.AsyncExitStack() as stack:
            sources = {
                engine: await stack.enter_async_context(contextlib.aclosing(journal.replay()))
                for engine, journal in journals.items()
            }
            done = 0
            async for record in merged(sources):
                patience.renew(PATIENCE_S)
                if record.time_ns > until_ns:
                    break
                commands = commands_of(record, journals[record.engine].sequence)
                market[record.engine].add_batch(record.batch_number, record.time_ns, commands)
                done += 1
                tell(done)
            for engine, journal in journals.items():
                if journal.position.batch_number > market[engine].last_batch:  # it was read, and is too late
                    market[engine].left_out = max(0, ends[engine] - journal.sequence + 1)
    read_from = {
        engine for engine, audit in market.items() if audit.batches or audit.begins_after or audit.left_out
    }
    missing = {engine for audit in market.values() for engine in audit.quoted} - read_from
    if missing:
        names = ", ".join(subjects.journal_stream(engine) for engine in sorted(missing))
        raise NotJudged(
            f"the server at {shown(url)} has nothing of {names}, though other engines knew quotes from there."
            " Restore the NATS store from a copy that has all journals"
        )
    return market


async def _begin_at_snapshot(nc: Client, audit: Audit, journal: JetStreamJournal) -> None:
    """Begin where an engine would: the head of the journal was trimmed, and the newest snapshot has it."""
    state = State(audit.engine)
    if await load(state, journal, SnapshotStore(nc, audit.engine)) is None:
        stream = subjects.journal_stream(audit.engine)
        raise NotJudged(
            f"{stream} was trimmed, and no snapshot of engine {audit.engine} can be read that has what is"
            " missing. Restore the NATS store from a copy that has one"
        )
    audit.begin(state)


async def merged(journals: Mapping[int, AsyncIterator[Record]]) -> AsyncIterator[Record]:
    """The records of all journals in order of time; at the same time the lower engine number comes first."""
    heads: list[tuple[int, int, Record]] = []

    async def advance(engine: int) -> None:
        record = await anext(journals[engine], None)
        if record is not None:
            heapq.heappush(heads, (record.time_ns, engine, record))

    for engine in journals:
        await advance(engine)
    while heads:
        _, engine, record = heapq.heappop(heads)
        yield record
        await advance(engine)


def document(market: Mapping[int, Audit], window_ms: int) -> dict[str, Any]:
    """The outcome as JSON."""
    bugs, old_views = _examples(market)
    return {
        "window_ms": window_ms,
        "engines": [
            {
                "engine": engine,
                "begins_after": audit.begins_after,
                "batches": audit.batches,
                "left_out": audit.left_out,
                "decisions": audit.decisions,
                "with_away_quotes": audit.with_away_quotes,
                "legs": audit.legs,
                "old_views": audit.old_views,
                "bugs": len(audit.bugs),
            }
            for engine, audit in market.items()
        ],
        "old_view_examples": old_views,
        "bug_examples": bugs,
    }


def _examples(market: Mapping[int, Audit]) -> tuple[list[str], list[str]]:
    """A few bugs, and a few old views."""
    bugs = [bug for audit in market.values() for bug in audit.bugs]
    old_views = [view for audit in market.values() for view in audit.old_view_examples]
    return bugs[:EXAMPLES], old_views[:EXAMPLES]


def _show(market: Mapping[int, Audit], window_ms: int, console: Console) -> None:
    columns = ("engine", ">batches", ">decisions", ">with away quotes", ">legs", ">old views", ">bugs")
    trimmed = [
        f"of E{engine} only what came after batch {audit.begins_after:,}: its journal was trimmed"
        for engine, audit in market.items()
        if audit.begins_after
    ]
    ahead = [
        f"of E{engine} not the newest {audit.left_out:,}: they are stamped later than now by this machine's"
        " clock, so that one or the engine's was wrong; audit again when the time has come"
        for engine, audit in market.items()
        if audit.left_out
    ]
    sheet = Sheet("Routing, by the journals of all engines", columns, note="; ".join([*trimmed, *ahead]))
    for engine, audit in market.items():
        counts = (audit.batches, audit.decisions, audit.with_away_quotes, audit.legs, audit.old_views)
        sheet.rows.append((f"E{engine}", *(f"{count:,}" for count in (*counts, len(audit.bugs)))))
    print_sheets(console, sheet)
    bugs, old_views = _examples(market)
    for name, lines in (("old view", old_views), ("bug", bugs)):
        for line in lines:
            console.print(f"{name}: {line}", highlight=False, soft_wrap=True)
    found = sum(len(audit.bugs) for audit in market.values())
    old = sum(audit.old_views for audit in market.values())
    console.print(
        f"Bugs: {found:,}; each is a better quote that the engine knew and did not take. Views that were old:"
        f" {old:,}; there a better quote had stood for {window_ms:,} ms or more, and nothing says that the"
        " engine knew of it.",
        highlight=False,
        soft_wrap=True,
    )
