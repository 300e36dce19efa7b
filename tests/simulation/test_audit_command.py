"""`simulation audit`: in which order it reads journals, and what it says where there is nothing to judge."""

import asyncio
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from nats.aio.client import Client
from rich.console import Console

from bus import provision, records
from bus.connection import Connection
from bus.journal import JetStreamJournal, MemoryJournal
from bus.server import NatsServer
from bus.snapshots import SnapshotStore
from engine import snapshot
from engine.commands import AddInstrument, AwayQuote, Command, EpochStarted, NewOrder, encode
from engine.runtime.snapshots import make
from simulation import audit_command, cli, nats_option
from simulation.audit import Audit
from simulation.audit_command import merged
from tests.conftest import Connections
from tests.waiting import hold_up_a_reader

MS = 1_000_000
OPENING = (EpochStarted(1), AddInstrument("AAA", "0.01", "1"))


async def audit(url: str, tmp_path: Path, *arguments: str) -> tuple[int, str, str]:
    """Run `simulation audit` as a child; exit code, output, errors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MATCHBUS_")}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulation", "audit", "--nats", url, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | {"XDG_CONFIG_HOME": str(tmp_path)},
    )
    async with asyncio.timeout(60):
        output, errors = await child.communicate()
    assert child.returncode is not None
    assert b"Traceback" not in errors
    return child.returncode, output.decode(), " ".join(errors.decode().split())


async def keep(connection: Connection, engine: int, *batches: tuple[int, list[Command]]) -> None:
    """Store the journal of an engine: its batches with their times in ms."""
    await provision.provision_journal(connection, engine, trimmable=True)
    journal = JetStreamJournal(connection, engine)
    for time_ms, commands in batches:
        await journal.append(1, time_ms * MS, encode(commands))


def order(name: str, side: int, price: int, *away: AwayQuote) -> NewOrder:
    """A limit order for 5."""
    return NewOrder(name, f"{name}-1", "AAA", side, 1, 1, price, 5, away=away)


async def test_records_are_merged_in_order_of_time() -> None:
    """Each journal keeps its order; at one time the lower engine comes first; journals end when they end."""
    times = {2: [10, 30, 30, 50], 1: [20, 30, 60], 3: []}
    journals = {engine: MemoryJournal(engine) for engine in times}
    for engine, stamps in times.items():
        for stamp in stamps:
            await journals[engine].append(1, stamp, b"")
    sources = {engine: MemoryJournal(engine, journal.stored).replay() for engine, journal in journals.items()}
    read = [(record.time_ns, record.engine, record.batch_number) async for record in merged(sources)]
    assert read == [(10, 2, 1), (20, 1, 1), (30, 1, 2), (30, 2, 2), (30, 2, 3), (50, 2, 4), (60, 1, 3)]


async def test_two_journals_are_judged_together(own_server: NatsServer, tmp_path: Path) -> None:
    """A quote that only the other journal knows is told as an old view, which is no fault: exit code 0."""
    connections = Connections()
    nats = await connections.open(own_server.url, buffered=False)
    await keep(nats, 1, (1, [*OPENING, order("here", 2, 101)]), (900, [order("taker", 1, 101)]))
    await keep(nats, 2, (1, list(OPENING)), (600, [order("there", 2, 100)]))
    as_json, with_another_window, as_text = await asyncio.gather(
        audit(own_server.url, tmp_path, "--json"),
        audit(own_server.url, tmp_path, "--window-ms", "301"),
        audit(own_server.url, tmp_path),
    )
    code, output, errors = as_json
    assert (code, errors) == (0, "")
    assert json.loads(output) == {
        "window_ms": 150,
        "engines": [
            {
                "engine": engine,
                "begins_after": 0,
                "batches": 2,
                "left_out": 0,
                "decisions": decisions,
                "with_away_quotes": 0,
                "legs": 0,
                "old_views": decisions,
                "bugs": 0,
            }
            for engine, decisions in ((1, 1), (2, 0))
        ],
        "old_view_examples": [
            "engine 1, batch 2, AAA: went to 101 while engine 2 showed 5 better, from 100 on, and got 0:"
            " the view was 300 ms old (engine 2 wrote its last batch 300 ms before)"
        ],
        "bug_examples": [],
    }
    code, output, _ = with_another_window
    assert (code, "old view:" in output, "Bugs: 0;" in output) == (0, False, True)
    code, output, _ = as_text
    assert (code, "old view: engine 1, batch 2, AAA" in output) == (0, True)
    await connections.close()


async def test_what_is_stamped_later_than_now_is_told(own_server: NatsServer, tmp_path: Path) -> None:
    """After a clock that was ahead is set back no decision is judged until its time has come."""
    connections = Connections()
    nats = await connections.open(own_server.url, buffered=False)
    ahead_ms = time.time_ns() // MS + 3_600_000
    late: list[tuple[int, list[Command]]] = [(ahead_ms, [order(name, 1, 101)]) for name in ("one", "two")]
    await keep(nats, 1, (1, [*OPENING, order("here", 2, 101)]), *late)
    await keep(nats, 2, (ahead_ms, list(OPENING)))
    code, output, errors = await audit(own_server.url, tmp_path, "--json")
    assert (code, errors) == (0, "")
    told = [(of["batches"], of["left_out"], of["decisions"]) for of in json.loads(output)["engines"]]
    assert told == [(1, 2, 0), (0, 1, 0)]
    code, output, errors = await audit(own_server.url, tmp_path)
    assert (code, errors) == (0, "")
    assert "of E1 not the newest 2: they are stamped later than now" in output
    assert "of E2 not the newest 1: they are stamped later than now" in output
    await connections.close()


async def test_an_audit_that_was_stopped_itself_goes_on(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-Z, say, while it waited for records: they come, and NATS is not told as silent."""
    connections = Connections()
    nats = await connections.open(own_server.url, buffered=False)
    for engine in (1, 2):
        await keep(nats, engine, (1, list(OPENING)))
    monkeypatch.setattr(audit_command, "PATIENCE_S", 2.0)
    pauses = hold_up_a_reader(monkeypatch, 2.5)
    market = await audit_command.read(own_server.url, audit_command.WINDOW_MS)
    assert [audit.batches for audit in market.values()] == [1, 1]
    assert not list(pauses)
    await connections.close()


async def test_a_trimmed_journal_is_judged_from_its_newest_snapshot_on(
    own_server: NatsServer, tmp_path: Path
) -> None:
    """What the snapshot shows stands since its batch; without one nothing is judged."""
    connections = Connections()
    nats = await connections.open(own_server.url, buffered=False)
    await keep(nats, 1, (1, [*OPENING, order("here", 2, 101)]), (900, [order("taker", 1, 101)]))
    await keep(nats, 2, (1, list(OPENING)), (600, [order("there", 2, 100)]))
    await make(nats, 2, SnapshotStore(nats, 2))
    await provision.trim_journal(nats, 2, 2)
    code, output, errors = await audit(own_server.url, tmp_path)
    assert (code, errors) == (0, "")
    assert "of E2 only what came after batch 2: its journal was trimmed" in output
    assert "old view: engine 1, batch 2, AAA" in output
    assert "the view was 300 ms old" in output
    await provision.trim_journal(nats, 1, 2)
    code, output, errors = await audit(own_server.url, tmp_path)
    assert (code, output) == (2, "")
    assert errors.startswith("JOURNAL_1 was trimmed, and no snapshot of engine 1 can be read")
    await connections.close()


async def test_what_another_version_wrote_is_not_judged(
    own_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records and its snapshots are neither a bug nor damage: exit code 2, as where one is missing."""
    connections = Connections()
    nats = await connections.open(own_server.url, buffered=False)
    await keep(nats, 1, (1, list(OPENING)), (2, []))
    with monkeypatch.context() as later:
        later.setattr(records, "FORMAT", records.FORMAT + 1)
        await keep(nats, 2, (1, list(OPENING)))
    code, output, errors = await audit(own_server.url, tmp_path)
    assert (code, output) == (2, "")
    assert errors.startswith("the journal of engine 2 is of a later version from stream sequence 1 on")
    with monkeypatch.context() as another:
        another.setattr(snapshot, "FORMAT", snapshot.FORMAT + 1)
        await make(nats, 1, SnapshotStore(nats, 1))
    await provision.trim_journal(nats, 1, 2)
    code, output, errors = await audit(own_server.url, tmp_path)
    assert (code, output) == (2, "")
    assert "the snapshots of engine 1 were made by another version" in errors
    await connections.close()


async def test_a_journal_that_is_trimmed_meanwhile_is_no_fault(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its engine made a snapshot while the audit read: nothing is judged, and the next audit may be."""
    connections = Connections()
    nats = await connections.open(own_server.url, buffered=False)
    await keep(nats, 1, (1, list(OPENING)), (1, []))
    await make(nats, 1, SnapshotStore(nats, 1))
    journal = JetStreamJournal(nats, 1)
    async for _ in journal.replay():
        pass
    for time_ms in (2, 3, 4):
        await journal.append(1, time_ms * MS, encode([]))
    await provision.trim_journal(nats, 1, 2)
    begin = audit_command._begin_at_snapshot

    async def begin_too_late(nc: Client, audit: Audit, journal: JetStreamJournal) -> None:
        await begin(nc, audit, journal)
        await provision.trim_journal(nats, 1, 4)

    monkeypatch.setattr(audit_command, "_begin_at_snapshot", begin_too_late)
    options = Namespace(nats=own_server.url, window_ms=150, json=False)
    assert await audit_command.run(options, Console()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "the journal of engine 1 was trimmed meanwhile" in said.err
    await connections.close()


async def test_what_is_missing_is_named(own_server: NatsServer, tmp_path: Path) -> None:
    """No journal, and quotes of an engine whose journal is not there end with 2, damage with 1."""
    connections = Connections()
    code, output, errors = await audit(own_server.url, tmp_path)
    assert (code, output) == (2, "")
    assert errors.startswith(f"the server at {own_server.url} has no journal")
    nats = await connections.open(own_server.url, buffered=False)
    taker = order("taker", 1, 101, AwayQuote(2, 1, 1, ((100, 5),)))
    await keep(nats, 1, (1, [*OPENING, taker]))
    code, output, errors = await audit(own_server.url, tmp_path)
    assert (code, output) == (2, "")
    assert f"the server at {own_server.url} has nothing of JOURNAL_2" in errors
    await keep(nats, 2)
    code, output, errors = await audit(own_server.url, tmp_path)
    assert (code, output) == (2, ""), "an empty journal is none"
    assert f"the server at {own_server.url} has nothing of JOURNAL_2" in errors
    await nats.jetstream().publish("journal.1", b"garbage")
    code, output, errors = await audit(own_server.url, tmp_path)
    assert (code, output) == (1, "")
    assert "journal of engine 1 is damaged at stream sequence 2" in errors
    await connections.close()


def test_a_server_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That ends with 2, too."""
    monkeypatch.setattr(nats_option, "PATIENCE_S", 0.2)
    assert cli.main(["audit", "--nats", "nats://127.0.0.1:1"]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("no NATS server answers at nats://127.0.0.1:1 (")
    assert "onnect call failed" in errors
    assert errors.endswith(")\n  start it, or name another by --nats\n")
