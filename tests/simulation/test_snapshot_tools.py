"""`matchbus snapshot`: what it says where it cannot do what was asked."""

import asyncio
import time
from argparse import Namespace

import pytest
from rich.console import Console

from bus import provision
from bus.connection import Connection
from bus.journal import JetStreamJournal
from bus.server import NatsServer
from bus.snapshots import SnapshotEntry
from client.cli.failures import Failure
from engine.commands import EpochStarted, encode
from engine.runtime import snapshots
from simulation import snapshot_tools
from tests.waiting import hold_up


def test_a_small_snapshot_is_not_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Its size is rounded up: none that is stored takes 0 kB."""
    entries = [SnapshotEntry(7, 1, 7, "ab", "abcd", 0, 0, 0, size) for size in (1, 1_000, 1_001)]
    snapshot_tools._show(Namespace(json=False, action="list", engine=1), Console(), entries, ["", "", ""])
    sizes = [line.split("│")[4].strip() for line in capsys.readouterr().out.splitlines() if "abcd" in line]
    assert sizes == ["1", "1", "2"]


async def test_lost_reports_are_told(own_server: NatsServer, own_connection: Connection) -> None:
    """Two good snapshots would let a journal be trimmed, had the reports of its batches been stored."""
    await provision.provision_journal(own_connection, 1, trimmable=True)
    journal = JetStreamJournal(own_connection, 1)
    options = Namespace(engine=1, nats=own_server.url, action="make", json=True)
    await journal.append(1, 1, encode([EpochStarted(1)]))
    assert await snapshot_tools.run(options, Console()) == snapshot_tools.WELL
    await journal.append(2, 2, encode([EpochStarted(2)]))
    with pytest.raises(Failure, match="no stream EXECUTIONS"):
        await snapshot_tools.run(options, Console())


async def test_a_verdict_that_was_reached_while_we_were_stopped_counts(
    own_server: NatsServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-Z, say, for longer than restoring may take: NATS is not told as silent."""
    await provision.provision_shared(own_connection)
    await provision.provision_journal(own_connection, 1)
    await JetStreamJournal(own_connection, 1).append(1, 1, encode([EpochStarted(1)]))
    options = Namespace(engine=1, nats=own_server.url, action="make", json=True)
    assert await snapshot_tools.run(options, Console()) == snapshot_tools.WELL

    async def verify(*_: object) -> str:
        hold_up(1.0)
        await asyncio.to_thread(time.sleep, 0.1)
        return ""

    monkeypatch.setattr(snapshots, "verify", verify)
    monkeypatch.setattr(snapshot_tools, "SNAPSHOT_PATIENCE_S", 0.5)
    options.action = "verify"
    assert await snapshot_tools.run(options, Console()) == snapshot_tools.WELL
