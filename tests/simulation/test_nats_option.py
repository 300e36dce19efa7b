"""Where tools look for a market: which server is none of its, and how long it may be silent."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from nats.aio.msg import Msg

from bus import messages, provision, subjects
from bus.connection import Connection, Patience, connect
from bus.messages import EngineEntry, HandoverReply
from bus.registry import engines_bucket
from bus.server import NatsServer, find_nats_server
from client.cli.health import _nats
from simulation import audit_command, handover, nats_option
from simulation.handover import hand_over
from simulation.nats_option import NatsAway, connected, unhurried
from tests.certificates import Authority
from tests.waiting import hold_up, until


@asynccontextmanager
async def running_nats(tmp_path: Path, *more: str | Path) -> AsyncIterator[str]:
    """The address of a nats-server that keeps nothing, with `more` options."""
    options = ("--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", tmp_path, *more)
    server = await asyncio.create_subprocess_exec(
        find_nats_server(), *options, stderr=asyncio.subprocess.DEVNULL
    )
    ports = tmp_path / f"nats-server_{server.pid}.ports"
    try:
        await until(lambda: ports.exists() and ports.stat().st_size, 20)
        yield msgspec.json.decode(ports.read_bytes())["nats"][0]
    finally:
        server.kill()
        await server.wait()


@pytest.fixture
async def plain_nats(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a nats-server that keeps nothing."""
    async with running_nats(tmp_path) as url:
        yield url


async def test_a_server_without_jetstream_is_no_markets(plain_nats: str) -> None:
    """It is said at once what is missing: whoever waits for an answer of its JetStream waits for ever."""
    told = f"the NATS server at {plain_nats} has no JetStream"
    with pytest.raises(NatsAway, match=told):
        async with connected(plain_nats, "test"):
            pass
    with pytest.raises(NatsAway, match=told):
        await audit_command.read(plain_nats, 150)
    with pytest.raises(NatsAway, match=told):
        await hand_over(plain_nats, 1)
    seen = await _nats(plain_nats, 2)
    assert seen["error"] == "the NATS server there has no JetStream: name a market's by --nats"


async def test_a_silent_jetstream_is_no_server_that_is_away(
    plain_nats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of one server of three when the other two are gone: to start it would change nothing."""
    monkeypatch.setattr(nats_option, "PATIENCE_S", 2)
    nc = await connect(plain_nats, name="silent", on_closed=lambda: None)
    await nc.subscribe("$JS.API.INFO")
    await nc.flush()
    with pytest.raises(NatsAway, match=f"JetStream does not answer at {plain_nats}") as away:
        async with connected(plain_nats, "test"):
            pass
    assert "two must run, and after a fault they may take 10 s to choose a leader" in away.value.hint
    seen = await _nats(plain_nats, 2)
    assert seen["error"].startswith("JetStream does not answer there")
    await nc.close()


async def test_a_server_that_lets_nobody_in_says_why(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs: who starts it, or looks for another, learns nothing."""
    monkeypatch.setattr(nats_option, "PATIENCE_S", 2)
    url = own_server.url.replace("//", "//stranger:pw@")
    with pytest.raises(NatsAway, match="Authorization Violation"):
        async with connected(url, "test"):
            pass
    seen = await _nats(url, 2)
    assert "Authorization Violation" in seen["error"]


async def test_so_does_one_behind_tls_that_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Or whose users the client is none of; the log says nothing of each attempt."""
    monkeypatch.setattr(nats_option, "PATIENCE_S", 2)
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    options = ("--tls", "--tlscert", cert, "--tlskey", key, "--user", "venue", "--pass", "pw")
    async with running_nats(tmp_path, *options) as plain:
        url = plain.replace("nats://", "tls://stranger:pw@")
        with pytest.raises(NatsAway, match="CERTIFICATE_VERIFY_FAILED"):
            async with connected(url, "test"):
                pass
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        with pytest.raises(NatsAway, match="Authorization Violation"):
            async with connected(url, "test"):
                pass
    assert caplog.messages == []


async def test_who_was_stopped_itself_takes_nats_for_no_silent_one(
    shared_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-Z, say, while it connected: what NATS said meanwhile is read."""
    monkeypatch.setattr(nats_option, "PATIENCE_S", 1.0)
    hold_up(1.5)
    async with connected(shared_server.url, "test") as nc:
        assert nc.is_connected


async def test_a_hand_over_that_was_done_while_we_were_stopped_is_told(
    own_server: NatsServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-Z, say, for longer than it may take: it did not fail."""
    await provision.provision_shared(own_connection)
    old, new = (EngineEntry(1, epoch, "127.0.0.1:1", 1) for epoch in (1, 2))
    await engines_bucket(own_connection).put("1", old)

    async def agree(request: Msg) -> None:
        await request.respond(messages.encode(HandoverReply()))

    async def successor(*_: object) -> EngineEntry:
        hold_up(1.0)
        await asyncio.to_thread(time.sleep, 0.1)
        return new

    await own_connection.subscribe(subjects.handover(1), cb=agree)
    monkeypatch.setattr(handover, "_successor", successor)
    monkeypatch.setattr(handover, "SERVE_TIMEOUT_S", 0.5)
    assert (await hand_over(own_server.url, 1)).new == new


async def test_loading_a_snapshot_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """NATS is waited for as long as that takes; afterwards its silence counts anew."""
    monkeypatch.setattr(nats_option, "PATIENCE_S", 0.3)
    loaded = False

    async def load() -> None:
        nonlocal loaded
        async with Patience(0.05) as patience:
            with unhurried(patience):
                await asyncio.sleep(0.2)
            loaded = True
            await asyncio.Event().wait()

    loading = asyncio.create_task(load())
    ended, _ = await asyncio.wait((loading,), timeout=10)
    assert ended
    assert isinstance(loading.exception(), TimeoutError)
    assert loaded
