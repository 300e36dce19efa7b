"""Serving the dashboard's page."""

import asyncio
import builtins
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from matchbus.edge import CannotListen

from bus.server import NatsServer
from exchange.runtime import dashboard, web
from exchange.runtime.process import run
from exchange.runtime.settings import ExchangeSettings, SettingsRefused, parse_settings
from simulation.cluster import DEFAULT_INSTRUMENTS
from tests.exchange.runtime.nodes import eventually
from tests.waiting import frozen

NATS = ("ws://127.0.0.1:1", "ws://127.0.0.1:2")
EXCHANGE = "127.0.0.1:3"


@contextlib.asynccontextmanager
async def served(listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The page's address, for as long as the body runs."""
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(dashboard.serve(listen, NATS, EXCHANGE, lambda _: 0, listening.set_result))
    await asyncio.wait((serving, listening), return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    try:
        yield f"http://{listening.result()}"
    finally:
        serving.cancel()
        begun = time.monotonic()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        assert time.monotonic() - begun < 2.0


async def get(url: str, **headers: str) -> tuple[int, str, Mapping[str, str]]:
    """Status, text and headers of an answer."""
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return answer.status, await answer.text(), answer.headers


async def is_answered(url: str) -> bool:
    """Whether there is room for one who asks."""
    return (await get(url))[0] == 200


async def test_the_page_comes_with_all_it_needs() -> None:
    """The page, its script, style and licences, and where NATS is, all from one place."""
    async with served() as url:
        for path, text in (
            ("/", "<title>Matchbus</title>"),
            ("/dashboard.js", "view.engines"),
            ("/dashboard.css", "--e1"),
            ("/LICENSES.txt", "uplot"),
        ):
            status, body, _ = await get(url + path)
            assert (status, text in body) == (200, True), path
        _, config, _ = await get(f"{url}/config.json")
        assert config == '{"nats":["ws://127.0.0.1:1","ws://127.0.0.1:2"],"ticket":true}'
        assert (await get(f"{url}/nothing"))[0] == 404


async def test_the_page_may_only_do_what_it_does() -> None:
    """Scripts come from here alone, connections go to NATS and this machine, nobody may frame or open it."""
    async with served() as url:
        _, _, headers = await get(url)
        policy = headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self';" in policy
        assert "connect-src 'self' ws://127.0.0.1:1 ws://127.0.0.1:2 http://127.0.0.1:*;" in policy
        assert "frame-ancestors 'none'" in policy
        told = {name: headers[name] for name in dashboard._HEADERS}
    assert told == {
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cross-origin-opener-policy": "same-origin",
    }


async def test_on_loopback_it_answers_to_no_other_name() -> None:
    """A page of elsewhere whose name was made to point here gets nothing."""
    async with served() as url:
        assert (await get(url, Host="evil.example"))[0] == 400
        assert (await get(url, Host="localhost"))[0] == 200


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as tried:
        tried.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no [::1]")
async def test_loopback_of_ipv6_is_as_that_of_ipv4() -> None:
    """The page has its ticket there, and answers to no other name."""
    async with served("[::1]:0") as url:
        status, config, _ = await get(f"{url}/config.json")
        assert (status, '"ticket":true' in config) == (200, True)
        for host in ("[::1]", "[::1]:80", "localhost:80", "LOCALHOST", "127.0.0.1"):
            assert (await get(url, Host=host))[0] == 200, host
        for host in ("evil.example", "evil.example:80", "[::2]:80", "[", "::1", "[::1].evil.example", ""):
            assert (await get(url, Host=host))[0] == 400, host
        async with aiohttp.ClientSession() as session:
            for origin, status in ((url, 400), ("http://evil.example", 403)):
                async with session.post(f"{url}/ticket/sign-in", headers={"Origin": origin}) as answer:
                    assert answer.status == status


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
async def test_a_connection_that_never_asks_is_closed(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Neither a silent one nor one that never ends its first request is kept."""
    monkeypatch.setattr(web, "FIRST_REQUEST_S", 0.2)
    async with served() as url:
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        writer.write(said)
        async with asyncio.timeout(2):
            assert await reader.read() == b""
        writer.close()


async def test_a_connection_that_has_asked_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be under way with an order when the time for its first request is over."""
    monkeypatch.setattr(web, "FIRST_REQUEST_S", 0.5)
    async with served() as url, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        for _ in range(2):
            writer.write(b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await reader.readuntil(b"HTTP/1.1 404 Not Found\r\n")
            await asyncio.sleep(web.FIRST_REQUEST_S)
        writer.close()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n",
        pytest.param(
            b"GET /dashboard.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100,
            marks=pytest.mark.skipif(
                not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system keeps what is never read"
            ),
        ),
    ],
)
async def test_a_connection_that_has_asked_makes_room(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Neither one whose next request never ends nor one whose answers are never read shuts others out."""
    monkeypatch.setattr(web, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(web, "SILENCE_S", 1)
    async with served() as url:
        with socket.socket() as silent:
            host, port = url.removeprefix("http://").split(":")
            await asyncio.to_thread(silent.connect, (host, int(port)))
            silent.sendall(b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert await asyncio.to_thread(silent.recv, 1)
            silent.sendall(said)
            await eventually(lambda: is_answered(url))


@pytest.mark.parametrize("asked_before", [False, True])
async def test_a_request_that_came_while_the_process_was_stopped_is_answered(*, asked_before: bool) -> None:
    """Uvloop notices that a time is over before it reads what came: an order would be lost without a word."""
    program = (
        "import uvloop; from exchange.runtime import dashboard, web; web.FIRST_REQUEST_S = web.SILENCE_S = 2;"
        "told = lambda address: print(address, flush=True);"
        "uvloop.run(dashboard.serve('127.0.0.1:0', (), '127.0.0.1:3', lambda _: 0, told))"
    )
    ask = b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
    try:
        async with asyncio.timeout(30):
            assert server.stdout is not None
            reader, writer = await asyncio.open_connection(
                *(await server.stdout.readline()).decode().strip().split(":")
            )
            if asked_before:
                writer.write(ask)
                await reader.readuntil(b"HTTP/1.1 404 Not Found\r\n")
            await asyncio.sleep(0.3)  # the server has come to rest
            async with frozen(server.pid):
                writer.write(ask)
                await asyncio.sleep(2.5)
            await reader.readuntil(b"HTTP/1.1 404 Not Found\r\n")
            writer.close()
    finally:
        server.kill()
        await server.wait()


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks when too many are open is told so and let go; who was there before is still answered."""
    monkeypatch.setattr(web, "MAX_CONNECTIONS", 1)
    ask = b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with served() as url, asyncio.timeout(10):
        address = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(*address)
        writer.write(ask)
        assert await reader.readline() == b"HTTP/1.1 404 Not Found\r\n"
        other_reader, other_writer = await asyncio.open_connection(*address)
        other_writer.write(ask)
        assert (await other_reader.read()).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        other_writer.close()
        writer.write(ask)
        await reader.readuntil(b"HTTP/1.1 404 Not Found\r\n")
        writer.close()


async def test_off_loopback_one_only_looks_on() -> None:
    """Without TLS nobody's password is asked for where others could read it."""
    async with served("0.0.0.0:0") as url:
        own = url.replace("0.0.0.0", "127.0.0.1")
        assert '"ticket":false' in (await get(f"{own}/config.json"))[1]
        async with aiohttp.ClientSession() as session, session.post(f"{own}/ticket/sign-in") as answer:
            assert answer.status == 405


async def test_a_taken_port_is_named() -> None:
    """A port in use ends the start with its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CannotListen, match=f"cannot listen on {address}"):
            async with served(address):
                pass


def test_settings_of_the_dashboard() -> None:
    """Off unless asked for; NATS is where nats.conf has it unless told otherwise."""
    assert parse_settings([], {}).dashboard == ""
    settings = parse_settings(["--dashboard", "127.0.0.1:8080"], {})
    assert (settings.dashboard, settings.websocket_urls) == ("127.0.0.1:8080", ("ws://127.0.0.1:4223",))
    settings = parse_settings(["--websocket", ",".join(NATS)], {})
    assert settings.websocket_urls == NATS
    with pytest.raises(SettingsRefused, match="--dashboard 8080 must be HOST:PORT"):
        parse_settings(["--dashboard", "8080"], {})


async def test_without_the_extra_the_exchange_says_what_to_install(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for a dashboard that it cannot serve, it ends with the way to get one."""
    import_module = builtins.__import__

    def without_starlette(name: str, *rest: Any) -> Any:
        if name == "exchange.runtime" and "dashboard" in (rest[2] or ()):
            raise ModuleNotFoundError("No module named 'starlette'", name="starlette")
        return import_module(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_starlette)
    settings = ExchangeSettings(
        own_server.url, "127.0.0.1:0", "p", Path(DEFAULT_INSTRUMENTS), None, 1, dashboard="127.0.0.1:0"
    )
    with pytest.raises(ExceptionGroup) as ended:
        await run(settings)
    assert [str(error) for error in ended.value.exceptions] == [
        "--dashboard needs starlette: pip install 'matchbus[dashboard]', or leave it out"
    ]
