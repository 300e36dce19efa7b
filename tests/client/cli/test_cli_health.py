"""`matchbus status`: whether an engine takes orders is what it says itself."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from matchbus.edge import Edge

from client import EngineRole, EngineState, EngineStatus
from client.cli import health
from client.cli.command import Options
from client.cli.desk import Desk
from client.cli.health import _GONE, _SILENT, _nats, _refuses, _venue_sheet
from client.cli.output import Output


async def test_only_an_engine_that_says_so_takes_orders() -> None:
    """Its feed may be live all the while; of one that does not answer its log need not say why."""
    edge = Edge("matchbus.v1.MatchingEngine")
    address = edge.bind("127.0.0.1:0")
    await edge.start()
    assert await _refuses(engine_at(address)) == "does not serve: its log says why"
    assert await _refuses(engine_at(address, "no room")) == "does not serve: no room"
    down = msgspec.structs.replace(engine_at(address, "no heartbeat heard"), state=EngineState.DOWN)
    assert await _refuses(down) == "does not serve: its log says why"
    await edge.set_serving(serving=True)
    assert await _refuses(engine_at(address)) == ""
    await edge.stop()
    assert await _refuses(engine_at(address)) == _GONE
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        host, port = frozen.getsockname()
        assert await _refuses(engine_at(f"{host}:{port}")) == _SILENT


@pytest.mark.parametrize(
    ("url", "timeout_s", "why"),
    [
        ("http://127.0.0.1:4222", 600, "'http://127.0.0.1:4222' is no address of NATS"),
        ("nats://me:pw@127.0.0.1:1", 0.5, "no NATS answers there"),
    ],
)
async def test_a_wrong_address_of_nats_is_told(url: str, timeout_s: float, why: str) -> None:
    """One that cannot be an address at once, one where nobody is when the time is over."""
    async with asyncio.timeout(20):
        seen = await _nats(url, timeout_s)
    assert (seen["url"], seen["reachable"], seen["version"]) == (url.replace("me:pw@", ""), False, "")
    assert seen["error"].startswith(why)


def test_an_engine_that_takes_no_orders_stands_out() -> None:
    """With its number and where it is, beside exchange and NATS."""
    well = {"error": "", "round_trip_ms": 1.0, "version": "2.15.1", "streams": 3}
    venue = well | {"address": "x"}, well | {"url": "y"}
    sheet = _venue_sheet(*venue, {engine_at("127.0.0.1:50053"): "does not serve"}, None)
    assert ("E2", "127.0.0.1:50053", ("does not serve", "red")) in sheet.rows


@pytest.mark.parametrize(
    ("states", "refuses", "registered", "code"),
    [
        (["live"], "", None, 0),
        (["live", "live"], "", True, 0),
        ([], "", None, 1),
        (["live", "suspect"], "", None, 1),
        (["live"], "no room", None, 1),
        (["live"], "", False, 1),
    ],
)
async def test_a_venue_is_well_when_all_its_parts_are(
    states: list[str],
    refuses: str,
    registered: bool | None,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There is an engine, all are live and take orders, and who is registered here is known."""
    standby = EngineStatus(2, EngineRole.STANDBY, None, 1, "there", 0, 7, 0, "stands by")
    engines = [msgspec.structs.replace(engine_at("there"), state=EngineState(state)) for state in states]
    client = None if registered is None else {"client_id": "ann", "registered": registered}

    def seen(answer: Any) -> Callable[..., Awaitable[Any]]:
        async def see(*_: Any, **__: Any) -> Any:
            return answer

        return see

    monkeypatch.setattr(health, "_exchange", seen(({"reachable": True}, [*engines, standby])))
    monkeypatch.setattr(health, "_nats", seen({"reachable": True}))
    monkeypatch.setattr(health, "_refuses", seen(refuses))
    monkeypatch.setattr(health, "_client", seen((client, [])))
    async with Desk({}, {"XDG_CONFIG_HOME": str(tmp_path)}, Output(as_json=True)) as desk:
        assert await health.status(Options(), desk) == code
    assert json.loads(capsys.readouterr().out)["well"] is (code == 0)


def engine_at(address: str, reason: str = "") -> EngineStatus:
    """Engine 2, live."""
    return EngineStatus(2, EngineRole.PRIMARY, EngineState.LIVE, 1, address, 0, 7, 0, reason)
