"""Who may connect to NATS, and what who looks on may do there."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import msgspec
import pytest
from nats.aio.msg import Msg

from bus import subjects
from bus.connection import Connection
from bus.server import NatsServer, find_nats_conf, find_nats_server
from tests.waiting import until

if TYPE_CHECKING:
    from tests.conftest import Connections

ORIGIN = "http://127.0.0.1:8080"
VISIBLE = ("view.book.AAPL", subjects.VIEW_ENGINES, "nbbo.AAPL", "md.1.heartbeat")
HIDDEN = (
    ">",
    "md.>",
    "md.1.book.AAPL",
    "execution.*",
    "journal.1",
    "route.1",
    "$KV.sessions.>",
    "$JS.API.>",
    "_INBOX.>",
    "snapshot.1",
)


class Viewer:
    """One that looks on, in the protocol's own words, and all that the server said to it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self.heard = ""

    async def say(self, *lines: str) -> str:
        """Send lines and a PING; all that was heard from the beginning, up to the answer or the end."""
        await self._socket.send_bytes("".join(f"{line}\r\n" for line in (*lines, "PING")).encode())
        return await self.hear("PONG", self.heard.count("PONG") + 1)

    async def hear(self, text: str, times: int = 1) -> str:
        """All that was heard, once the text is in it so many times, or the connection was ended."""
        async with asyncio.timeout(5):
            while self.heard.count(text) < times:
                message = await self._socket.receive()
                if message.type is not aiohttp.WSMsgType.BINARY:
                    break
                self.heard += message.data.decode()
        return self.heard


@asynccontextmanager
async def viewer(url: str, **credentials: str) -> AsyncIterator[Viewer]:
    """Connect as a page does."""
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
        looking = Viewer(socket)
        options = json.dumps({"verbose": False, "protocol": 1, **credentials})
        await looking.say(f"CONNECT {options}")
        yield looking


@pytest.mark.parametrize("credentials", [{}, {"user": "viewer", "pass": "viewer"}])
async def test_a_viewer_sees_views_and_signs_of_life(
    shared_server: NatsServer, nats_connection: Connection, credentials: dict[str, str]
) -> None:
    """By WebSocket, with the viewer's name or none, all that is meant for it arrives."""
    async with viewer(shared_server.websocket_url, **credentials) as looking:
        await looking.say("SUB view.> 1", "SUB nbbo.> 2", f"SUB {subjects.HEARTBEATS} 3")
        for subject in VISIBLE:
            await nats_connection.publish(subject, b"to be seen")
        heard = await looking.hear("to be seen", len(VISIBLE))
        assert "-ERR" not in heard
        assert [subject for subject in VISIBLE if f"MSG {subject} " in heard] == list(VISIBLE)


@pytest.mark.parametrize("subject", HIDDEN)
async def test_a_viewer_sees_nothing_else(shared_server: NatsServer, subject: str) -> None:
    """A subscription to anything else is refused by name."""
    async with viewer(shared_server.websocket_url) as looking:
        heard = await looking.say(f"SUB {subject} 1")
        assert f"-ERR 'Permissions Violation for Subscription to \"{subject}\"'" in heard


@pytest.mark.parametrize("subject", ["view.engines", "route.1", "snapshot.1", "$JS.API.INFO", "_INBOX.a"])
async def test_a_viewer_publishes_nothing(
    shared_server: NatsServer, nats_connection: Connection, subject: str
) -> None:
    """What a viewer publishes is refused by name and reaches nobody."""
    received: list[Msg] = []

    async def note(message: Msg) -> None:
        received.append(message)

    await nats_connection.subscribe(subject, cb=note)
    await nats_connection.flush()
    async with viewer(shared_server.websocket_url) as looking:
        heard = await looking.say(f"PUB {subject} 6\r\nforged")
        assert f"-ERR 'Permissions Violation for Publish to \"{subject}\"'" in heard
    await nats_connection.flush()
    assert received == []


async def test_the_viewer_does_not_come_by_tcp(shared_server: NatsServer) -> None:
    """The name that everybody knows is for WebSockets."""
    reader, writer = await asyncio.open_connection("127.0.0.1", shared_server.port)
    writer.write(b'CONNECT {"user": "viewer", "pass": "viewer"}\r\nPING\r\n')
    heard = (await reader.read()).decode()
    assert "-ERR 'Authorization Violation'" in heard
    assert "PONG" not in heard
    writer.close()
    await writer.wait_closed()


async def test_the_venue_does_not_come_by_websocket(shared_server: NatsServer) -> None:
    """Nor does the name of the others help who comes that way."""
    async with viewer(shared_server.websocket_url, user="venue", **{"pass": "venue"}) as looking:
        assert "-ERR 'Authorization Violation'" in looking.heard


@pytest.mark.parametrize(
    ("origin", "status"),
    [(ORIGIN, 101), ("http://127.0.0.1:8081", 403), ("http://evil.example", 403), ("", 101)],
)
async def test_only_the_named_pages_connect(tmp_path: Path, origin: str, status: int) -> None:
    """A browser's page of another origin is turned away; who is no browser names none."""
    async with NatsServer(tmp_path, origins=[ORIGIN]) as server:
        assert await handshake(server.websocket_url, origin) == status


async def test_no_page_connects_unless_named(shared_server: NatsServer) -> None:
    """Without origins every page is a stranger."""
    assert await handshake(shared_server.websocket_url, ORIGIN) == 403


async def handshake(url: str, origin: str) -> int:
    """The status of the answer to a WebSocket handshake of a page of that origin."""
    headers = {"Origin": origin} if origin else {}
    async with aiohttp.ClientSession() as session:
        try:
            async with session.ws_connect(url, headers=headers):
                return 101
        except aiohttp.WSServerHandshakeError as error:
            return error.status


@asynccontextmanager
async def server_by_hand(conf: Path) -> AsyncIterator[dict[str, list[str]]]:
    """`nats-server -c CONF` in the folder of the file, and where it listens."""
    process = await asyncio.create_subprocess_exec(
        *(find_nats_server(), "-c", conf, "--ports_file_dir", conf.parent),
        cwd=conf.parent,
        stderr=subprocess.DEVNULL,
    )
    try:
        await until(lambda: bool(read_ports(conf.parent)))
        yield read_ports(conf.parent)
    finally:
        process.terminate()
        await process.wait()


def read_ports(folder: Path) -> dict[str, list[str]]:
    """The ports file, as soon as it is whole."""
    for path in folder.glob("*.ports"):
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])
    return {}


async def test_the_settings_file_alone_works_for_everybody(
    tmp_path: Path, connections: "Connections"
) -> None:
    """By `nats-server -c nats.conf`, too, processes connect without a name and viewers look on.

    The child's own settings repeat the `websocket` block: whatever it says there must be said here.
    """
    conf = tmp_path / "nats.conf"
    text = find_nats_conf().read_text()
    for fixed in ("127.0.0.1:4222", "127.0.0.1:8222", "127.0.0.1:4223"):
        assert fixed in text
        text = text.replace(fixed, "127.0.0.1:-1")
    conf.write_text(text)
    async with (
        server_by_hand(conf) as ports,
        viewer(ports["websocket"][0]) as looking,
    ):
        venue = await connections.open(ports["nats"][0])
        await venue.jetstream().account_info()
        await looking.say("SUB view.> 1")
        await venue.publish("view.engines", b"to be seen")
        await looking.hear("to be seen")
        assert "-ERR 'Permissions Violation" in await looking.say("PUB view.engines 6\r\nforged")
        assert await handshake(ports["websocket"][0], ORIGIN) == 101
        assert await handshake(ports["websocket"][0], "http://evil.example") == 403


async def test_a_store_from_before_there_were_users_opens(tmp_path: Path, connections: "Connections") -> None:
    """Streams made by a server without users are there for the venue: the account is the same."""
    conf = tmp_path / "before.conf"
    conf.write_text('listen: 127.0.0.1:-1\njetstream { store_dir: "data/nats", sync_interval: always }\n')
    async with server_by_hand(conf) as ports:
        before = (await connections.open(ports["nats"][0])).jetstream()
        await before.add_stream(name="KEPT", subjects=["kept"])
        await before.publish("kept", b"x")
        await connections.close()
    async with NatsServer(tmp_path) as server:
        venue = (await connections.open(server.url)).jetstream()
        assert (await venue.stream_info("KEPT")).state.messages == 1


async def test_ports_of_the_child_survive_a_reload(tmp_path: Path) -> None:
    """A SIGHUP, by which users and limits of `nats.conf` can be changed, is accepted by the child."""
    async with NatsServer(tmp_path, origins=[ORIGIN]) as server:
        os.kill(server.pid, signal.SIGHUP)
        log = tmp_path / "nats-server.log"
        # The last line of a reload, good or bad; each change has one of its own before.
        await until(lambda: "server configuration" in log.read_text().partition("Trapped")[2])
        assert "Reloaded server configuration" in log.read_text()
        assert await handshake(server.websocket_url, ORIGIN) == 101
