"""The endpoint that strikes engines of a demo: what it does, and for whom."""

import json
import signal
from collections.abc import AsyncIterator, Mapping

import aiohttp
import pytest

import simulation.controls
from simulation.cluster import Cluster
from simulation.controls import FREEZE_S, TOKEN_HEADER, Controls, running_controls
from simulation.member import Member
from tests.waiting import is_frozen, until

PAGE = "http://127.0.0.1:8123"


@pytest.fixture
def cluster(cluster: Cluster) -> Cluster:
    """It has a page."""
    cluster.dashboard_url = PAGE
    return cluster


@pytest.fixture
async def controls(cluster: Cluster) -> AsyncIterator[Controls]:
    """The controls of it."""
    async with running_controls(cluster) as controls:
        yield controls


async def ask(
    controls: Controls, path: str, method: str = "POST", **replaced: str
) -> tuple[int, str, Mapping[str, str]]:
    """Ask as the page does, with some headers replaced; an empty one is left out."""
    headers = {"Origin": PAGE, TOKEN_HEADER: controls.token, **replaced}
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method,
            f"http://{controls.address}{path}",
            headers={name: value for name, value in headers.items() if value},
        ) as answer,
    ):
        return answer.status, await answer.text(), answer.headers


async def test_kill(controls: Controls, member: Member) -> None:
    """The process ends at once."""
    status, text, headers = await ask(controls, "/engines/1/kill")
    assert (status, text) == (200, f"Killed engine 1, process {member.pid}.")
    assert headers["access-control-allow-origin"] == PAGE
    assert await member.wait() == -signal.SIGKILL
    assert (await ask(controls, "/engines/1/kill"))[0] == 409


async def test_freeze(controls: Controls, member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process stops, and goes on by itself."""
    monkeypatch.setattr(simulation.controls, "FREEZE_S", 0.2)
    assert (await ask(controls, "/engines/1/freeze"))[0] == 200
    await until(lambda: is_frozen(member.pid))
    await until(lambda: not is_frozen(member.pid))


async def test_restart_reaches_a_frozen_process(controls: Controls, member: Member) -> None:
    """A process that hears nothing is let go on, so that it hears that it should end."""
    assert (await ask(controls, "/engines/1/freeze"))[0] == 200
    await until(lambda: is_frozen(member.pid))
    assert (await ask(controls, "/engines/1/restart"))[0] == 200
    assert await member.wait() == -signal.SIGTERM


async def test_a_frozen_process_goes_on_when_the_launcher_ends(cluster: Cluster, member: Member) -> None:
    """Nothing stays stopped behind a launcher that is gone."""
    async with running_controls(cluster) as controls:
        assert (await ask(controls, "/engines/1/freeze"))[0] == 200
        await until(lambda: is_frozen(member.pid))
    await until(lambda: not is_frozen(member.pid), timeout_s=FREEZE_S / 2)


async def test_what_there_is_not(controls: Controls, member: Member) -> None:
    """Another engine or action is not found, whatever it is called, and nothing happens."""
    for path in (
        "/engines/2/kill",
        "/engines/01/kill",
        "/engines/one/kill",
        f"/engines/{'1' * 5_000}/kill",
        "/engines/1/explode",
        f"/engines/1/{'x' * 5_000}",
    ):
        status, text, headers = await ask(controls, path)
        assert (status, text[:19]) == (404, "There is no engine "), path
        assert len(text) < 100
        assert headers["access-control-allow-origin"] == PAGE
        assert (await ask(controls, path, **{TOKEN_HEADER: "x"}))[0] == 403, path
        assert (await ask(controls, path, Origin="http://evil.example"))[0] == 403, path
        assert member.running, path


async def test_nobody_else_strikes(controls: Controls, member: Member) -> None:
    """Without this launch's token, from another page or by another name, nothing happens."""
    for replaced in (
        {TOKEN_HEADER: ""},
        {TOKEN_HEADER: "x"},
        {"Origin": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:8124"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
    ):
        assert (await ask(controls, "/engines/1/kill", **replaced))[0] == 403, replaced
        assert member.running, replaced


async def test_only_post_strikes(controls: Controls, member: Member) -> None:
    """A link or an image does nothing."""
    for method in ("GET", "PUT", "DELETE"):
        assert (await ask(controls, "/engines/1/kill", method))[0] == 405, method
        assert member.running, method


async def test_a_browser_that_asks_first_hears_who_may(controls: Controls, member: Member) -> None:
    """The dashboard's page may send the token, another one is told nothing that would let it."""
    status, _, headers = await ask(controls, "/engines/1/kill", "OPTIONS", **{TOKEN_HEADER: ""})
    assert status == 204
    assert headers["access-control-allow-origin"] == PAGE
    assert headers["access-control-allow-headers"] == TOKEN_HEADER
    status, _, headers = await ask(controls, "/engines/1/kill", "OPTIONS", Origin="http://evil.example")
    assert status == 403
    assert "access-control-allow-origin" not in headers
    assert member.running


async def test_a_visitor_is_told_who_to_trade_as(controls: Controls, cluster: Cluster) -> None:
    """A client of this launch alone, told only to who holds its token."""
    status, text, _ = await ask(controls, "/trader")
    assert status == 200
    who = json.loads(text)
    assert (who["client"], who["password"]) == ("demo", cluster.password)
    assert len(who["secret"]) >= 32
    assert (await ask(controls, "/trader", **{TOKEN_HEADER: "x"}))[0] == 403
    assert (await ask(controls, "/trader", Origin="http://evil.example"))[0] == 403


async def test_every_launch_has_a_token_of_its_own(cluster: Cluster) -> None:
    """And the address that brings it to the page names the endpoint's port."""
    one, two = Controls(cluster), Controls(cluster)
    assert one.token != two.token
    one.address = "127.0.0.1:4711"
    assert one.page_url == f"{PAGE}/#controls=4711.{one.token}"
