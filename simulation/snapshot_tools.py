"""`matchbus snapshot`: the snapshots of one engine, even while the engine runs.

list     what is stored, the newest first
verify   reads each and checks that it restores to the digest it was stored with
make     makes one now, from the newest and the journal's rest, and trims a journal that may be trimmed

Exit codes: 0 all is well, 1 a snapshot is damaged, 2 NATS is unreachable or has no snapshots of the engine.
"""

import argparse
import json
import math
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import nats.errors
import nats.js.errors
from matchbus.program import ending_with
from rich.console import Console

from bus.connection import Patience
from bus.executions import ExecutionsDamaged
from bus.records import JournalError
from bus.snapshots import SnapshotEntry, SnapshotStore
from client.cli.failures import Failure
from client.cli.output import print_sheets
from client.cli.sheets import Sheet
from engine.runtime import snapshots
from simulation.nats_option import SNAPSHOT_PATIENCE_S, NatsAway, NeverRan, add_engine_options, connected

WELL: Final = 0
DAMAGED: Final = 1
GOOD: Final = "good"

_NS: Final = 1_000_000_000


def add_parser(commands: Any) -> None:
    """Add `snapshot` and its commands to the sub-commands of `matchbus`."""
    does = "list, verify or make snapshots of an engine"
    top = commands.add_parser("snapshot", help=does, description=does)
    actions = top.add_subparsers(dest="action", required=True)
    for name, what in (
        ("list", "list the stored snapshots, the newest first"),
        ("verify", "restore each snapshot and compare its digest; exit code 1 when one is damaged"),
        ("make", "make a snapshot now, beside the running engine"),
    ):
        action = actions.add_parser(name, help=what, description=what)
        add_engine_options(action, instead_of="a table")


async def run(options: argparse.Namespace, console: Console) -> int:
    """Run one of them; the exit code. Raises `Failure`."""
    try:
        async with connected(options.nats, "snapshot-tools") as nc:
            store = SnapshotStore(nc, options.engine)
            if options.action == "make":
                with console.status("replaying the journal since the newest snapshot"):
                    await snapshots.make(nc, options.engine, store)
                    await snapshots.trim(nc, options.engine, store)
            entries = await store.entries()
            verdicts = [""] * len(entries)
            if options.action == "verify":
                with console.status("restoring each snapshot"):
                    for number, entry in enumerate(entries):
                        async with Patience(SNAPSHOT_PATIENCE_S):
                            verdicts[number] = await snapshots.verify(options.engine, store, entry) or GOOD
    except (JournalError, ExecutionsDamaged) as error:
        raise Failure(str(error)) from error
    except nats.js.errors.NotFoundError as error:
        raise NeverRan(options.engine) from error
    except (TimeoutError, nats.errors.Error) as error:
        raise NatsAway(options.nats, error) from error
    code = DAMAGED if any(verdict not in ("", GOOD) for verdict in verdicts) else WELL
    with ending_with(code):
        _show(options, console, entries, verdicts)
    return code


def _show(
    options: argparse.Namespace, console: Console, entries: list[SnapshotEntry], verdicts: list[str]
) -> None:
    if options.json:
        for entry, verdict in zip(entries, verdicts, strict=True):
            line = msgspec.structs.asdict(entry)
            print(json.dumps({**line, "verdict": verdict} if verdict else line))
        return
    if not entries:
        print(f"E{options.engine} has no snapshots yet")
        return
    verdict_column = ("verdict",) if options.action == "verify" else ()
    sheet = Sheet(
        f"Snapshots of E{options.engine}",
        (">batch", ">epoch", "made (UTC)", ">kB stored", "digest", *verdict_column),
    )
    for entry, verdict in zip(entries, verdicts, strict=True):
        made = datetime.fromtimestamp(entry.time_ns / _NS, UTC)
        row = [f"{entry.batch_number:,}", str(entry.epoch), f"{made:%Y-%m-%d %H:%M:%S}"]
        row += [f"{math.ceil(entry.size / 1000):,}", entry.state_digest[:12]]
        sheet.rows.append((*row, *((verdict,) if verdict else ())))
    print_sheets(console, sheet)
