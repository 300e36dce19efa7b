"""Where tools look for a market: which server is none of its, and how long it may be silent."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from bus.server import find_nats_server
from simulation import audit_command
from simulation.handover import hand_over
from simulation.nats_option import PATIENCE_S, NatsAway, connected, unhurried
from tests.waiting import until


@pytest.fixture
async def plain_nats(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a nats-server that keeps nothing."""
    options = ("--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", tmp_path)
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


async def test_loading_a_snapshot_is_no_silence() -> None:
    """NATS is waited for as long as that takes; afterwards its silence counts anew."""
    async with asyncio.timeout(0.05) as patience:
        with unhurried(patience):
            await asyncio.sleep(0.2)
        until_s = patience.when()
        assert until_s is not None
        assert 0 < until_s - asyncio.get_running_loop().time() <= PATIENCE_S
