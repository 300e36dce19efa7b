"""A clock that went ahead for a while: times never go back, and the engine says that they stand still."""

import asyncio
import time
from pathlib import Path

import pytest

from bus import provision
from bus.connection import Connection
from bus.journal import JetStreamJournal
from bus.registry import engines_bucket
from bus.server import NatsServer
from engine.runtime.process import run
from engine.runtime.recovery import begin_reign
from engine.runtime.settings import EngineSettings
from engine.state import State
from tests.system.venue import eventually

HOUR_S = 3_600


async def test_a_clock_behind_the_journal_is_told(
    own_server: NatsServer,
    own_connection: Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And so is that it has caught up."""
    await provision.provision_shared(own_connection)
    await provision.provision_journal(own_connection, 1)
    journal = JetStreamJournal(own_connection, 1)
    await begin_reign(State(1), journal, 1, time.time_ns() + HOUR_S * 10**9)
    settings = EngineSettings(1, own_server.url, "127.0.0.1:0", True, False, None, tmp_path / "state", False)
    running = asyncio.create_task(run(settings))

    async def told(text: str) -> bool:
        assert not running.done(), running.exception()
        return text in caplog.text

    try:
        behind = "s behind the newest batch, whose time all get now"
        await eventually(lambda: told(behind), 10, "told")
        engines = engines_bucket(own_connection)
        assert await engines.get("1") is not None
        monkeypatch.setattr(time, "time_ns", lambda: int((time.time() + HOUR_S) * 1e9))
        await eventually(lambda: told("batches have the clock's time again"), 10, "told")
    finally:
        running.cancel()
        await asyncio.wait([running])
