"""`matchbus snapshot`: what it says where it cannot do what was asked."""

from argparse import Namespace

import pytest
from rich.console import Console

from bus import provision
from bus.connection import Connection
from bus.journal import JetStreamJournal
from bus.server import NatsServer
from client.cli.failures import Failure
from engine.commands import EpochStarted, encode
from simulation import snapshot_tools


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
