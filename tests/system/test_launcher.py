"""What `matchbus up` does when a fault meets itself: its own certificates, what it reads, what it writes."""

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from matchbus import tls

from bus.messages import EngineEntry
from bus.provision import provision_shared
from bus.registry import engines_bucket
from bus.server import NatsServer
from client.cli.failures import Failure
from simulation import operate, ready_file
from simulation.cluster import Cluster, Work
from simulation.cluster_errors import OutOfReach
from simulation.cluster_settings import Access
from simulation.member import Member
from tests.certificates import Authority
from tests.conftest import Connections
from tests.waiting import running, until


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Who signs all certificates that are believed here."""
    return Authority(tmp_path)


@pytest.fixture
async def guarded(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster]:
    """One engine behind mutual TLS; the launcher's own certificate is called `operator`."""
    cert, key = authority.issue("operator")
    for name, path in {"CA": authority.ca, "CERT": cert, "KEY": key}.items():
        monkeypatch.setenv(f"MATCHBUS_TLS_{name}", str(path))
    files = tls.ServerFiles(*authority.issue("server"), client_ca=authority.ca)
    async with Cluster(engines=1, data_dir=tmp_path / "data", access=Access(files)) as cluster:
        yield cluster


async def strike(member: Member, restarts: int) -> None:
    """Kill a process, and wait until it has been started again, `restarts` times in all."""
    os.kill(member.pid, signal.SIGKILL)
    await until(lambda: member.restarts == restarts and member.running)


def said(caplog: pytest.LogCaptureFixture, what: str) -> int:
    """How often this was logged."""
    return sum(what in message for message in caplog.messages)


async def test_a_launcher_whose_certificate_is_half_renewed_goes_on(
    guarded: Cluster, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says once why it cannot ask, waits for the other half, and then looks after the engine as before."""
    engine, key = guarded.engines[1], tmp_path / "operator.key"
    for half in ("of another", ""):
        caplog.clear()
        restarts = engine.restarts
        key.write_text(half)
        await strike(engine, restarts + 1)
        await until(lambda: said(caplog, "engine 1 cannot be asked yet whether it is ready"))
        authority.issue("operator")
        await until(lambda: engine.ready, 20)
        assert said(caplog, "cannot be asked yet") == 1
        assert engine.restarts == restarts + 1


async def test_an_engine_that_only_the_launcher_cannot_reach_goes_on(
    guarded: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may well trade. TLS is named, once; when the launcher may ask again, it learns that all is well."""
    until_ready = Member.until_ready

    async def impatient(self: Member) -> None:
        """As it is, but with 3 s, which begin when the engine serves: its start may take longer."""
        await until(lambda: "serves at" in "".join(self.log_tail(1_000)), 60)
        await until_ready(self, deadline_s=3)

    monkeypatch.setattr(Member, "until_ready", impatient)
    engine = guarded.engines[1]
    own = [(tmp_path / f"operator.{kind}").read_bytes() for kind in ("pem", "key")]
    Authority(tmp_path, "stranger").issue("operator")
    await strike(engine, 1)
    pid = engine.pid
    await until(lambda: said(caplog, "TLS keeps us from asking whether it is ready: MATCHBUS_TLS_CA"), 70)
    with pytest.raises(OutOfReach):  # as at a first start; and once more the time is over
        await engine.until_ready()
    for kind, content in zip(("pem", "key"), own, strict=True):
        (tmp_path / f"operator.{kind}").write_bytes(content)
    await until(lambda: engine.ready, 20)
    assert (engine.pid, engine.restarts) == (pid, 1)
    assert said(caplog, "TLS keeps us from asking") == 1


def test_a_market_does_not_start_with_a_certificate_that_has_ended(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said by name and date, before anything starts; likewise of the launcher's own."""
    monkeypatch.setenv("MATCHBUS_TLS_CA", str(authority.ca))
    cert, key = map(str, authority.issue("server", ends_s=-5))
    words = ["up", "--data", str(tmp_path / "data"), "--tls-cert", cert, "--tls-key", key]
    with pytest.raises(Failure, match=r"server\.pem has ended: it was valid until"):
        operate.main(words)
    authority.issue("server")
    own = authority.issue("operator", begins_s=60)
    for name, path in zip(("CERT", "KEY"), own, strict=True):
        monkeypatch.setenv(f"MATCHBUS_TLS_{name}", str(path))
    with pytest.raises(Failure, match=r"operator\.pem is not valid yet"):
        operate.main(words)


class Followed(Cluster):
    """A market of one engine and its standby whose processes were never started, on this server."""

    def __init__(self, server: NatsServer, log: Path) -> None:
        super().__init__(engines=1, standbys=1, data_dir=log.parent)
        self.nats = [server]
        first, second = (
            Member(name, [], address, log, {})
            for name, address in (("engine 1", "127.0.0.1:1"), ("standby 1", "127.0.0.1:2"))
        )
        self.engines, self.standbys = {1: first}, {1: second}


async def test_who_reigns_is_followed_though_the_bucket_was_gone(
    own_server: NatsServer, connections: Connections, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever deleted it, the ready file names the right primaries once there is another."""
    cluster = Followed(own_server, tmp_path / "log")
    connection = await connections.open(own_server.url)
    async with running(cluster._follow_reigns()):
        for epoch, address in enumerate(("127.0.0.1:2", "127.0.0.1:1", "127.0.0.1:2"), start=1):
            await until(lambda: said(caplog, "no stream KV_engines"))
            await provision_shared(connection)
            bucket = engines_bucket(connection)
            await bucket.put("1", EngineEntry(engine=1, epoch=epoch, address=address, pid=1))
            await until(lambda address=address: cluster.engines[1].address == address)  # type: ignore[misc]  # mypy does not see the default's type
            caplog.clear()
            await connection.jetstream().delete_stream("KV_engines")
            connection = await connections.open(own_server.url)


async def test_what_looks_after_the_market_begins_again(
    own_server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault that nobody foresaw is logged with where it happened, and nothing goes on unwatched."""
    cluster, begun = Followed(own_server, tmp_path / "log"), []

    async def work(name: str) -> None:
        begun.append(name)
        if begun.count(name) < 3 and name == "faulty":
            raise ZeroDivisionError(name)
        await asyncio.Event().wait()

    works: dict[str, Work] = {name: partial(work, name) for name in ("steady", "faulty")}
    cluster._keepers = {asyncio.create_task(begin(), name=name): begin for name, begin in works.items()}
    async with running(cluster._oversee()):
        await until(lambda: begun.count("faulty") == 3)
    assert begun.count("steady") == 1
    assert said(caplog, "faulty failed, and begins again") == 2
    assert caplog.records[0].levelno == logging.CRITICAL
    assert "ZeroDivisionError" in caplog.text
    await cluster.stop()


@pytest.mark.parametrize(
    ("named", "listens", "stays"),
    [("own", True, False), ("another", True, True), ("another", False, False), ("ended", True, False)],
)
def test_only_the_ready_file_of_another_market_stays(
    tmp_path: Path, named: str, listens: bool, stays: bool
) -> None:
    """Two may have been told to write the same one; the last to start is named there.

    The number of a process that was killed may be another program's by now.
    """
    ready, own = tmp_path / "ready.json", os.getpid()
    pid = {"own": own, "another": os.getppid(), "ended": 2**22 + 1}[named]
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"nats://127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        ready.write_text(json.dumps({"nats_url": f"{url},nats://127.0.0.1:1", "nats_pid": pid}))
        ready_file.forget(ready, own)
    assert ready.exists() == stays
