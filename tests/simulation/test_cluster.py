import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
from matchbus.edge import host_and_port_of

from bus import provision, subjects
from bus.child_process import ChildProcess
from bus.provision import GIB
from bus.server import NatsServer, Node
from exchange.runtime.settings import parse_settings
from simulation.cluster import Cluster
from simulation.cluster_errors import (
    ClusterError,
    DurabilityDiffers,
    EnginesMissing,
    NodesDiffer,
    NoJournal,
    PortTaken,
    ProcessFailed,
    TooManyFiles,
)
from simulation.cluster_settings import Storage
from simulation.data_directory import Durability, check_engines, check_nodes, keep_durability
from simulation.member import Member
from simulation.ports import Ports, claim_ports
from tests.bus.test_logs import fill
from tests.client.fake_venue import venue_in_a_thread
from tests.system.venue import alive
from tests.waiting import hold_up, until

ROOT = Path(__file__).resolve().parents[2]
START_DEADLINE_S = 40.0


def test_durability_is_kept_with_the_directory(tmp_path: Path) -> None:
    """The first use decides; later ones may leave it out and may not change it."""
    assert keep_durability(tmp_path, "none") == "none"
    assert keep_durability(tmp_path, None) == "none"
    with pytest.raises(DurabilityDiffers, match="--durability none"):
        keep_durability(tmp_path, "journal")


def test_durability_is_journal_unless_said_otherwise(tmp_path: Path) -> None:
    """Nobody loses orders by leaving an option out."""
    wanted: Durability | None = None
    assert keep_durability(tmp_path, wanted) == "journal"
    assert keep_durability(tmp_path, "journal") == "journal"


def test_port_in_use_is_named() -> None:
    """A port that another process listens on is refused with its number and purpose."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1, meant for exchange"):
            claim_ports("127.0.0.1", Ports(exchange=port), 1)


def test_free_ports_differ() -> None:
    """The exchange and every engine get a port of their own."""
    ports = list(claim_ports("127.0.0.1", Ports(), 3))
    assert len(set(ports)) == len(ports) == 4
    assert max(ports) < 32_768, "no outgoing connection may take one before its process listens there"


def test_standbys_have_ports_of_their_own() -> None:
    """One more free port for each engine, whatever port the engines were given."""
    ports = list(claim_ports("127.0.0.1", Ports(), 2, standbys=1))
    assert len(set(ports)) == len(ports) == 5


def test_every_process_has_a_port_for_its_metrics() -> None:
    """One more loopback port behind that of the exchange, each engine and each standby."""
    ports = list(claim_ports("127.0.0.1", Ports(), 2, standbys=1, metrics=True))
    assert len(set(ports)) == len(ports) == 10


def test_more_ports_than_files_are_refused() -> None:
    """What the limit of open files does not allow is said with what to do."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[1]), limits[1]))
    try:
        with pytest.raises(TooManyFiles, match=r"Too many open files.*fewer engines, or raise `ulimit -n`"):
            claim_ports("127.0.0.1", Ports(), 300)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_standbys_need_a_journal(tmp_path: Path) -> None:
    """Without one there is nothing to follow: the start says so before anything runs."""
    with pytest.raises(NoJournal, match="durability none"):
        async with Cluster(data_dir=tmp_path, standbys=1, storage=Storage(durability="none")):
            pass


def test_an_engine_has_one_standby_or_none() -> None:
    """More than one is refused."""
    with pytest.raises(ValueError, match="one standby or none"):
        Cluster(standbys=2)


async def test_process_that_dies_early_shows_its_last_words(tmp_path: Path) -> None:
    """A process that ends before it is ready fails the start at once, with the end of its log."""
    member = Member(
        "engine 9",
        [sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"],
        "127.0.0.1:1",
        tmp_path / "log",
        dict(os.environ),
    )
    await member.start()
    with pytest.raises(ProcessFailed, match="engine 9 ended; its log ends with:\nno such thing"):
        await member.until_ready(deadline_s=20)


async def test_last_words_are_those_of_the_last_start(tmp_path: Path) -> None:
    """What an earlier start printed would send whoever reads it after a fault that is repaired."""
    code = "import sys; print(*sys.argv[1:], sep='')"
    member = Member("engine 9", [sys.executable, "-c", code], "127.0.0.1:1", tmp_path / "log", {})
    for word in ("an earlier fault", "this fault", ""):
        await member.start(*([word] if word else []))
        await member.wait()
        assert member.last_words() == f"; its log ends with:\n{word}"
    silent = Member("engine 9", [sys.executable, "-c", ""], "127.0.0.1:1", tmp_path / "log", {})
    await silent.start()
    await silent.wait()
    assert silent.last_words() == " and wrote nothing"


async def test_options_of_one_start_are_not_of_the_next(tmp_path: Path) -> None:
    """A loss is accepted by whoever starts a market, and by nothing that is started again unattended."""
    log, code = tmp_path / "log", "import sys; print(sys.argv[1:])"
    member = Member("engine 9", [sys.executable, "-c", code], "127.0.0.1:1", log, dict(os.environ))
    for options in (["--accept-loss"], []):
        await member.start(*options)
        assert await member.wait() == 0
    assert log.read_text().splitlines() == ["['--accept-loss']", "[]"]


async def test_who_is_silent_when_the_feeds_do_not_come_to_life_shows_its_last_words(tmp_path: Path) -> None:
    """One that stood by was ready, and may hang on its way to a reign: why is in its log alone."""
    cluster, nobody = Cluster(data_dir=tmp_path), "127.0.0.1:1"
    (tmp_path / "log").write_text("the journal is full\n")
    cluster._exchange = Member("exchange", [], nobody, tmp_path / "none", {})
    cluster.engines[1] = Member("engine 1", [], nobody, tmp_path / "log", {})
    said = "engine 1 does not serve; its log ends with:\nthe journal is full"
    with pytest.raises(ProcessFailed, match=said):
        await cluster._until_live()


async def test_feeds_that_came_to_life_while_we_were_stopped_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-Z, say, for longer than they may take: the market is not stopped again for that."""
    monkeypatch.setattr("simulation.cluster.READY_DEADLINE_S", 2.0)
    async with venue_in_a_thread() as venue:
        cluster = Cluster(data_dir=tmp_path)
        cluster._exchange = Member("exchange", [], venue.address, tmp_path / "none", {})
        cluster.engine_count = 1
        hold_up(2.5)
        await cluster._until_live()


PATIENCE_S = 1.0
READS_S = 2.5

READING = """
import asyncio
import sys
from matchbus.edge import RECOVERING_ROLE, Edge

async def main():
    edge = Edge("matchbus.v1.Exchange")
    edge.bind(sys.argv[1])
    await edge.set_role(RECOVERING_ROLE, held=True)
    await edge.start()
    await asyncio.sleep(float(sys.argv[2]))
    await edge.set_role(RECOVERING_ROLE, held=False)
    await edge.set_serving(serving=sys.argv[3] == "serves")
    await asyncio.Event().wait()

asyncio.run(main())
"""
"""A process that reads what is stored for so many seconds, and then serves or says nothing."""


def reading(log: Path, reads_s: float, then: str) -> Member:
    """Such a process at a free port, not started yet."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
    command = [sys.executable, "-c", READING, f"{host}:{port}", str(reads_s), then]
    return Member("exchange", command, f"{host}:{port}", log, dict(os.environ))


def listens(member: Member) -> bool:
    """Whether it takes connections; it must not have ended."""
    assert member.running
    with contextlib.closing(socket.socket()) as caller:
        return caller.connect_ex(host_and_port_of(member.address)) == 0


@pytest.mark.parametrize("then", ["serves", "is silent"])
async def test_a_process_that_reads_what_is_stored_has_time(tmp_path: Path, then: str) -> None:
    """It is ready when it serves, however long that took, and not when it says nothing."""
    member = reading(tmp_path / "log", READS_S, then)
    await member.start()
    try:
        await until(lambda: listens(member), START_DEADLINE_S)
        began = time.monotonic()
        if then == "serves":
            await member.until_ready(PATIENCE_S)
        else:
            with pytest.raises(ProcessFailed, match="exchange was not ready within 1 s"):
                await member.until_ready(PATIENCE_S)
        assert time.monotonic() - began > READS_S / 2
    finally:
        await member.stop()


async def test_who_was_stopped_itself_takes_nobody_for_silent(tmp_path: Path) -> None:
    """Ctrl-Z stops the launcher alone: what it waited for has long come up when it goes on."""
    member = reading(tmp_path / "log", READS_S, "serves")
    await member.start()
    try:
        await until(lambda: listens(member), START_DEADLINE_S)
        waiting = asyncio.create_task(member.until_ready(PATIENCE_S))
        await asyncio.sleep(0)
        time.sleep(READS_S + 1.0)  # noqa: ASYNC251 -- that is the test
        await waiting
        assert member.ready
    finally:
        await member.stop()


class _FullDisk(NatsServer):
    """A server that stores nothing, on a disk that has room from the third look on."""

    looks = 0
    stopped = False
    running = True

    async def is_stuck(self) -> bool:
        return not self.stopped

    def has_room(self) -> bool:
        self.looks += 1
        return self.looks > 2

    async def stop(self) -> None:
        self.stopped = True


@pytest.mark.parametrize(
    ("node", "name"),
    [(None, "nats-server"), (Node("n2", 1, ()), "nats-server n2")],
    ids=["alone", "of three"],
)
async def test_a_full_disk_is_told_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    node: Node | None,
    name: str,
) -> None:
    """While it is full: whoever looks after the market is to make room, of three disks on the right one."""
    monkeypatch.setattr("simulation.cluster._STUCK_PERIOD_S", 0)
    server = _FullDisk(tmp_path / "nats", node=node)
    helping = asyncio.create_task(Cluster(data_dir=tmp_path)._unstick_nats(server))
    await until(lambda: server.stopped)
    helping.cancel()
    assert [message.partition(";")[0] for message in caplog.messages] == [
        f"{name} stores nothing: its disk is full or cannot be written",
        f"{name} stores nothing, though there is room: the disk was full, or a write failed, which its log"
        " says",
    ]


@pytest.mark.parametrize(
    ("stores", "wanted", "refusal"),
    [
        ((), 1, None),
        ((), 3, None),
        (("nats",), 1, None),
        (("nats",), 3, "was made with --nats-nodes 1, not 3"),
        (("nats_n1", "nats_n2", "nats_n3"), 3, None),
        (("nats_n1", "nats_n2", "nats_n3"), 1, "was made with --nats-nodes 3, not 1"),
        (("nats_n2", "nats_n3"), 3, None),
        (("nats_n1", "nats_n2", "nats_n2.damaged", "nats_n3"), 3, None),
        (("nats_n2", "nats_n2.damaged"), 3, "two of the three NATS stores in .* are gone"),
    ],
)
def test_one_of_three_stores_may_be_gone(
    tmp_path: Path, stores: tuple[str, ...], wanted: int, refusal: str | None
) -> None:
    """Whatever stands beside them. A start with another number of NATS servers would see none of them."""
    for store in stores:
        (tmp_path / store).mkdir()
    with pytest.raises(NodesDiffer, match=refusal) if refusal else contextlib.nullcontext():
        check_nodes(tmp_path, wanted)


def test_engines_with_orders_are_not_left_out(tmp_path: Path) -> None:
    """A directory that was made with more engines is refused; with fewer it may grow."""
    for number in (1, 2, 3, "copy"):
        (tmp_path / f"engine_{number}").mkdir()
        (tmp_path / f"engine_{number}" / "high_water.json").touch()
    check_engines(tmp_path, 3)
    check_engines(tmp_path, 4)
    with pytest.raises(EnginesMissing, match="orders of engine 3: start with --engines 3"):
        check_engines(tmp_path, 2)


async def test_engines_without_a_journal_are_not_left_out_either(tmp_path: Path) -> None:
    """Their orders are gone, and clients are still at home there; a start that failed does not count."""
    storage = Storage(durability="none")
    nothing = tmp_path / "nothing.toml"
    with pytest.raises(ClusterError, match="no instruments file"):
        async with Cluster(engines=3, data_dir=tmp_path, storage=storage, instruments=nothing):
            pass
    async with Cluster(engines=2, data_dir=tmp_path, storage=storage):
        pass
    with pytest.raises(EnginesMissing, match="clients and orders of engine 2: start with --engines 2"):
        async with Cluster(engines=1, data_dir=tmp_path, storage=storage):
            pass


async def _stubborn(log: Path) -> ChildProcess:
    """A child that does not end on SIGTERM."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)"
    stubborn = ChildProcess(log, grace_s=0.2)
    await stubborn.launch(sys.executable, "-c", f"{code}; time.sleep(60)")
    await until(lambda: bool(log.read_text()))
    return stubborn


async def test_stopping_ends_a_process_that_ignores_it(tmp_path: Path) -> None:
    """A process that does not end on SIGTERM is killed after the grace."""
    stubborn = await _stubborn(tmp_path / "log")
    await stubborn.stop()
    assert await stubborn.wait() == -signal.SIGKILL


async def test_a_process_that_cannot_end_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for a dead disk ends by no signal: a stop does not wait for it, and names it."""
    stubborn = await _stubborn(tmp_path / "log")
    with monkeypatch.context() as stuck:
        stuck.setattr(asyncio.subprocess.Process, "kill", lambda _: None)
        stuck.setattr(f"{ChildProcess.__module__}._KILLED_S", 0.1)
        await stubborn.stop()
    assert f"process {stubborn.pid} does not end" in caplog.text
    await stubborn.kill()
    assert await stubborn.wait() == -signal.SIGKILL


async def test_missing_instruments_stop_the_start(tmp_path: Path) -> None:
    """A market without an instruments file does not start, and says which file it wanted."""
    with pytest.raises(ClusterError, match=r"no instruments file .*nothing\.toml"):
        async with Cluster(data_dir=tmp_path, instruments=tmp_path / "nothing.toml"):
            pass


def test_the_exchange_is_told_how_much_room_there_is() -> None:
    """Each size by its option, and of one that was left out nothing."""
    for journal, executions in ((5, 17), (6, None), (None, 18), (None, None)):
        options = Storage(journal_gib=journal, executions_gib=executions).exchange_options
        settings = parse_settings(options, {})
        assert settings.journal_bytes == (journal * GIB if journal else provision.JOURNAL_BYTES)
        assert settings.executions_bytes == (executions * GIB if executions else provision.EXECUTIONS_BYTES)


async def test_a_second_start_may_give_more_room(tmp_path: Path) -> None:
    """A journal grows to what it is given, a new one begins there; what is left out does not shrink."""

    async def limits(url: str, *streams: str) -> list[int | None]:
        connection = await nats.connect(url)
        jetstream = connection.jetstream()
        found = [(await jetstream.stream_info(stream)).config.max_bytes for stream in streams]
        await connection.close()
        return found

    async with NatsServer(tmp_path / "nats") as server:  # a first start, as far as it counts here
        connection = await nats.connect(server.url)
        await provision.provision_shared(connection, executions_bytes=17 * GIB)
        await provision.provision_journal(connection, 1, max_bytes=5 * GIB)
        await connection.close()
    streams = (subjects.journal_stream(1), subjects.journal_stream(2), subjects.EXECUTIONS_STREAM)
    async with Cluster(engines=2, data_dir=tmp_path, storage=Storage(journal_gib=6)) as cluster:
        assert await limits(cluster.nats_url, *streams) == [6 * GIB, 6 * GIB, 17 * GIB]


async def test_further_journals_are_trimmed_as_those_that_are_there(
    tmp_path: Path,
) -> None:
    """A start that does not say so goes on with what the first one chose, and says it."""
    async with NatsServer(tmp_path / "nats") as server:  # a first start, as far as it counts here
        connection = await nats.connect(server.url)
        await provision.provision_shared(connection)
        await provision.provision_journal(connection, 1, trimmable=True)
        await connection.close()
    async with Cluster(engines=2, data_dir=tmp_path) as cluster:
        connection = await nats.connect(cluster.nats_url)
        assert await provision.is_trimmable(connection, 2)
        await connection.close()
        said = "\n".join(cluster.exchange.log_tail(100))
    assert "journals are trimmed, because they were made with --trim-journals" in said


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path]]:
    """`matchbus up --engines 2` as a process, and its ready file, in the directory that it makes.

    What it says on stderr is in the file `log` beside that directory.
    """
    ready = tmp_path / "data" / "ready.json"
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "simulation.matchbus", "up", "--engines", "2"),
            *("--data", str(tmp_path / "data"), "--ready-file", str(ready)),
            cwd=ROOT,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
        )
    yield process, ready
    if process.returncode is None:
        process.kill()
        await process.wait()


def read(ready: Path) -> dict[str, Any]:
    """What the ready file says."""
    document: dict[str, Any] = json.loads(ready.read_text())
    return document


async def first_document(ready: Path) -> dict[str, Any]:
    """What the ready file says, once it is there."""
    await until(ready.exists, START_DEADLINE_S)
    return read(ready)


def pids_of(document: dict[str, Any]) -> list[int]:
    """All process ids in a ready file."""
    engines = [engine["pid"] for engine in document["engines"].values()]
    return [document["nats_pid"], document["exchange"]["pid"], *engines]


async def test_up_says_where_everything_is_restarts_and_stops(
    up: tuple[asyncio.subprocess.Process, Path],
) -> None:
    """The ready file names all; a killed engine comes back under its address; SIGTERM ends all within 5 s.

    And the ready file with them.
    """
    process, ready = up
    first = await first_document(ready)
    assert set(first) == {"nats_url", "nats_pid", "exchange", "engines"}
    assert set(first["engines"]) == {"1", "2"}
    assert [set(place) for place in (first["exchange"], *first["engines"].values())] == [
        {"address", "pid"}
    ] * 3
    assert len(set(pids_of(first))) == 4
    assert all(alive(pid) for pid in pids_of(first))

    os.kill(first["engines"]["2"]["pid"], signal.SIGKILL)
    await until(lambda: read(ready) != first, START_DEADLINE_S)
    second = read(ready)
    assert second["engines"]["2"]["address"] == first["engines"]["2"]["address"]
    assert second["engines"]["2"]["pid"] != first["engines"]["2"]["pid"]
    assert second["engines"]["1"] == first["engines"]["1"]

    started = time.monotonic()
    process.terminate()
    async with asyncio.timeout(10):
        assert await process.wait() == 0
    assert time.monotonic() - started < 5
    assert not ready.exists(), "whoever waits for the next start must not find this market"
    await until(lambda: not any(map(alive, pids_of(second))))


async def test_up_goes_on_though_nobody_reads_its_log(tmp_path: Path) -> None:
    """With stderr a full pipe an engine that dies is started again all the same, and SIGTERM ends all."""
    ready = tmp_path / "data" / "ready.json"
    unread, log = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulation.matchbus", "up", "--engines", "1"),
        *("--data", str(tmp_path / "data"), "--ready-file", str(ready)),
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=log,
    )
    try:
        first = await first_document(ready)
        fill(log)
        os.kill(first["engines"]["1"]["pid"], signal.SIGKILL)
        await until(lambda: read(ready) != first, START_DEADLINE_S)
        process.terminate()
        async with asyncio.timeout(10):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(unread)
        os.close(log)


async def test_up_survives_a_log_that_cannot_be_opened(
    up: tuple[asyncio.subprocess.Process, Path],
) -> None:
    """A process that cannot be started is tried again until it can, by the same keeper."""
    _, ready = up
    first = await first_document(ready)
    output, elsewhere = ready.parent / "output", ready.parent / "elsewhere"
    output.rename(elsewhere)
    os.kill(first["engines"]["2"]["pid"], signal.SIGKILL)
    log = ready.parent.parent / "log"
    await until(lambda: log.read_text().count("cannot be started") >= 2, START_DEADLINE_S)
    assert read(ready) == first
    elsewhere.rename(output)
    await until(lambda: read(ready) != first, START_DEADLINE_S)
    assert read(ready)["engines"]["1"] == first["engines"]["1"]
    assert "begins again" not in log.read_text()
