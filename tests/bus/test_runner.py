"""How a process starts, logs and ends."""

import asyncio
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nats.errors
import pytest
from nats.aio.msg import Msg

from bus import runner
from bus.runner import NatsLink, ProcessFault
from bus.server import NatsServer, find_nats_conf
from tests.bus.test_logs import fill
from tests.waiting import freeze, hold_up, until

PROGRAM = """
import asyncio, logging, resource, sys, time
from pathlib import Path
from nats.errors import ConnectionClosedError
from bus.runner import NatsLink, Parts, ProcessFault, log_to, run_until_signal

LOGS = Path(sys.argv[1])

async def wait():
    try:
        print("up", flush=True)
        await asyncio.Event().wait()
    finally:
        print("cleaned up", flush=True)

async def fail(error):
    raise error

async def fail_twice():
    async with asyncio.TaskGroup() as outer:
        outer.create_task(fail(ExceptionGroup("inner", [ProcessFault("no luck"), ValueError("bad luck")])))
        outer.create_task(fail(ProcessFault("no luck")))

async def go_on():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def fail_beside_one_who_goes_on(body):
    async with Parts() as group:
        group.create_task(go_on())
        await asyncio.sleep(0)
        if body == "fails":
            raise ProcessFault("no luck")
        group.create_task(fail(ProcessFault("no luck")))
        if body == "waits":
            await asyncio.Event().wait()

async def block_at_the_end():
    try:
        print("up", flush=True)
        await asyncio.Event().wait()
    finally:
        time.sleep(60)

async def leave_a_thread():
    threads = asyncio.create_task(asyncio.to_thread(time.sleep, 60))
    await wait()

async def leave_a_task():
    left = asyncio.create_task(go_on())
    await asyncio.sleep(0)

async def follow(url):
    link = NatsLink(url)
    try:
        nc = await link.open("test")
        await nc.subscribe("anything")
        print("up", flush=True)
        await link.end_when_closed()
    finally:
        await link.close()

async def say_the_last_word():
    try:
        print("up", flush=True)
        await asyncio.Event().wait()
    finally:
        logging.getLogger("other").warning("a last word")

async def show_limit():
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

async def note():
    logging.getLogger("routing").debug("a detail")
    logging.getLogger("other").debug("a detail of another")
    logging.getLogger("routing").info("a leg")
    logging.getLogger("other").info("a note")
    logging.getLogger("other").warning("a worry")
"""


def command(start: str, *arguments: str) -> list[str]:
    """A process whose `start` is this expression."""
    run = f"run_until_signal('test', lambda: {start}, (ProcessFault, ValueError, ConnectionClosedError))\n"
    return [sys.executable, "-c", PROGRAM + run, *arguments]


def ended(start: str, logs: Path) -> subprocess.CompletedProcess[str]:
    """Run such a process until it ends."""
    return subprocess.run(
        command(start, str(logs)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=find_nats_conf().parent,
    )


@contextmanager
def running(start: str, logs: Path, stderr: int) -> Iterator[subprocess.Popen[str]]:
    """Such a process, once it said that it is up; killed if it still runs at the end."""
    with subprocess.Popen(
        command(start, str(logs)),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        cwd=find_nats_conf().parent,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process(number: signal.Signals, tmp_path: Path) -> None:
    """SIGTERM and Ctrl-C let the process clean up; it ends with code 0 within 2 s and without a word."""
    with running("wait()", tmp_path, subprocess.PIPE) as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=2)
    assert (process.returncode, output, errors) == (0, "cleaned up\n", "")


async def test_a_signal_ends_it_though_nats_is_frozen(own_server: NatsServer, tmp_path: Path) -> None:
    """A server that takes nothing and says nothing does not keep a process from ending within 2 s."""
    process = await asyncio.create_subprocess_exec(
        *command(f"follow({own_server.url!r})", str(tmp_path)),
        stdout=subprocess.PIPE,
        cwd=find_nats_conf().parent,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    await freeze(own_server.pid)
    try:
        process.terminate()
        async with asyncio.timeout(2):
            assert await process.wait() == 0
    finally:
        os.kill(own_server.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("start", "code"),
    [("(log_to(None), say_the_last_word())[1]", 0), ("block_at_the_end()", -signal.SIGALRM)],
)
def test_a_signal_ends_it_though_nobody_reads_its_log(tmp_path: Path, start: str, code: int) -> None:
    """With stderr a full pipe what it would log is dropped."""
    unread, log = os.pipe()
    try:
        with running(start, tmp_path, log) as process:
            fill(log)
            process.terminate()
            assert process.wait(timeout=runner.END_DEADLINE_S + 10) == code
    finally:
        os.close(unread)
        os.close(log)


def test_a_process_may_open_as_many_files_as_the_system_lets_it(tmp_path: Path) -> None:
    """Whatever soft limit it was started with."""
    _, most = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, most), most))
    try:
        process = ended("show_limit()", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert process.stdout == f"{most}\n"


def test_a_fault_ends_the_process_with_one_line(tmp_path: Path) -> None:
    """A fault ends it with code 1 and its text, once, without a traceback."""
    process = ended("fail(ProcessFault('no luck; try again'))", tmp_path)
    assert process.returncode == 1
    assert process.stderr.splitlines() == ["test ends: no luck; try again"]


def test_a_connection_that_is_closed_for_good_says_what_to_do(tmp_path: Path) -> None:
    """What nats-py says of it names neither what nor why."""
    process = ended("fail(ConnectionClosedError())", tmp_path)
    assert process.stderr.splitlines() == [
        "test ends: the connection to NATS is closed for good; nothing is lost, start again"
    ]


def test_faults_of_several_tasks(tmp_path: Path) -> None:
    """Each text is shown once, however many tasks ended by it and however deep in groups it is."""
    process = ended("(log_to(None), fail_twice())[1]", tmp_path)
    assert process.returncode == 1
    lines = [line.partition("CRITICAL ")[2] for line in process.stderr.splitlines()]
    assert sorted(lines) == ["test: test ends: bad luck", "test: test ends: no luck"]


@pytest.mark.parametrize("body", ["is done", "waits", "fails"])
def test_a_part_that_goes_on_does_not_keep_half_a_process_alive(tmp_path: Path, body: str) -> None:
    """A task that swallows its cancellation, as nats-py does, is not waited for longer than the deadline."""
    started = time.monotonic()
    process = ended(f"(log_to(None), fail_beside_one_who_goes_on({body!r}))[1]", tmp_path)
    assert process.returncode == 1
    assert time.monotonic() - started < runner.END_DEADLINE_S + 5
    assert "CRITICAL bus.runner: does not end by itself, so it is ended: " in process.stderr
    assert "go_on" in process.stderr


def test_nor_does_a_task_that_nobody_waits_for(tmp_path: Path) -> None:
    """What is left when all is done has the same deadline."""
    process = ended("leave_a_task()", tmp_path)
    assert process.returncode == 1
    assert "go_on" in process.stderr


async def test_a_process_that_is_not_ours_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that run within another program do not end it."""
    monkeypatch.setattr(runner, "END_DEADLINE_S", 0.0)
    with pytest.raises(ExceptionGroup):
        async with runner.Parts():
            raise ProcessFault
    await asyncio.sleep(0.1)  # in which it would be ended


@pytest.mark.parametrize(
    ("start", "code", "says"),
    [
        ("leave_a_thread()", 1, "does not end by itself"),
        ("block_at_the_end()", -signal.SIGALRM, "in block_at_the_end"),
    ],
)
def test_nor_does_one_who_waits_for_a_dead_disk(tmp_path: Path, start: str, code: int, says: str) -> None:
    """Told to end, a process that stands still is ended; all stacks are shown of one that cannot say why."""
    with running(start, tmp_path, subprocess.PIPE) as process:
        process.terminate()
        _, errors = process.communicate(timeout=runner.END_DEADLINE_S + 10)
    assert process.returncode == code
    assert says in errors


def test_a_bug_shows_where_it_happened(tmp_path: Path) -> None:
    """An exception that is no fault ends the process with its traceback."""
    process = ended("fail(KeyError('oops'))", tmp_path)
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "KeyError: 'oops'" in process.stderr


def test_without_a_file_the_log_goes_to_the_terminal(tmp_path: Path) -> None:
    """Everything from INFO on is on the terminal, each line once."""
    process = ended("(log_to(None), note())[1]", tmp_path)
    assert [line.partition(" INFO ")[2] for line in process.stderr.splitlines()[:2]] == [
        "routing: a leg",
        "other: a note",
    ]
    assert process.stderr.count("a worry") == 1
    assert process.returncode == 0


def test_log_files(tmp_path: Path) -> None:
    """A file has everything, one for some loggers all of theirs, the terminal the warnings, once."""
    everything, routing = tmp_path / "a" / "all.log", tmp_path / "b" / "routing.log"
    process = ended(
        "(log_to(LOGS / 'a' / 'all.log'), log_to(LOGS / 'b' / 'routing.log', 'routing'), note())[2]", tmp_path
    )
    assert [line.partition(": ")[2] for line in everything.read_text().splitlines()] == [
        "a leg",
        "a note",
        "a worry",
    ]
    assert [line.partition(": ")[2] for line in routing.read_text().splitlines()] == ["a detail", "a leg"]
    assert [line.partition(": ")[2] for line in process.stderr.splitlines()] == ["a worry"]


def test_a_fault_is_in_the_log_and_on_the_terminal(tmp_path: Path) -> None:
    """With a log file the line of a fault is in it, and still once on the terminal."""
    process = ended("(log_to(LOGS / 'all.log'), fail(ProcessFault('no luck')))[1]", tmp_path)
    assert process.stderr.count("no luck") == 1
    assert (tmp_path / "all.log").read_text().count("test ends: no luck") == 1


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """A log folder that cannot be made ends the process with one line that names it."""
    (tmp_path / "file").touch()
    process = ended("log_to(LOGS / 'file' / 'all.log')", tmp_path)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert f"cannot write the log {tmp_path / 'file' / 'all.log'}" in line


async def test_no_server(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where no server answers the fault names it, not the user, the last error and what to do; no log."""
    monkeypatch.setattr(runner, "START_DEADLINE_S", 0.5)
    with pytest.raises(
        ProcessFault, match=r"answers at nats://127\.0\.0\.1:1 \(.*onnect.*\): start one"
    ) as caught:
        await NatsLink("nats://user:secret@127.0.0.1:1").open("test")
    assert "--nats" in str(caught.value)
    assert caplog.messages == []


async def test_no_address() -> None:
    """An address that nats-py does not understand is a fault, too."""
    with pytest.raises(ProcessFault, match="cannot connect to 'nats://host:port'"):
        await NatsLink("nats://user:secret@host:port").open("test")


async def test_an_outage_is_told_once(own_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """While the server is away there is one line, not one for each attempt; the owner hears of the return."""
    caplog.set_level(logging.INFO)
    link = NatsLink(own_server.url)
    connection = await link.open("test")
    returned = asyncio.Event()
    tried: list[Exception] = []
    link.on_reconnected = returned.set
    link.on_error = tried.append
    await own_server.kill()
    await until(lambda: len(tried) > 3)
    assert caplog.messages == [f"test: lost the connection to {own_server.url}"]
    await own_server.start()
    async with asyncio.timeout(2):
        await returned.wait()
    assert caplog.messages[1:] == [f"test: connected to {own_server.url} again"]
    await link.close()
    assert connection.is_closed
    assert not link.closed.is_set()


async def test_a_reconnect_of_the_journals_connection_is_no_loss(
    own_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is followed over it; that of the other connection is told."""
    caplog.set_level(logging.INFO)
    link = NatsLink(own_server.url)
    returned = asyncio.Event()
    link.on_reconnected = returned.set
    for name, buffered in (("journal", False), ("feeds", True)):
        connection = await link.open(name, buffered=buffered)
        await connection.move_to(own_server.url)
        await until(lambda: f"{name}: connected to {own_server.url} again" in caplog.messages)  # noqa: B023 -- awaited at once
        assert returned.is_set() == buffered
    await link.close()


N1, N2, N3 = (f"nats://n{number}:4222" for number in (1, 2, 3))


class _Place:
    """Where a connection is, in place of one."""

    def __init__(self) -> None:
        self.server = N1
        self.options = {"name": "test"}

    def is_on(self, server: str) -> bool:
        return server == self.server

    async def move_to(self, server: str) -> None:
        self.server = server


class _Servers:
    """Three servers in place of real ones: what each says when it is asked for JetStream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.says = {N1: True, N2: True, N3: True}
        self.script: list[bool] = []
        self.asked: list[str] = []
        self.link = NatsLink(f"{N1},{N2},{N3}")
        monkeypatch.setattr(runner, "_ASK_S", 0.001)
        monkeypatch.setattr(runner, "has_jetstream", self.has_jetstream)
        monkeypatch.setattr(runner, "connect", self.connect)

    async def connect(self, _url: str, **_: object) -> _Place:
        return _Place()

    async def has_jetstream(self, server: str) -> bool:
        self.asked.append(server)
        if server != N1 or not self.script:
            return self.says[server]
        said = self.script.pop(0)
        if not self.script:
            self.link.closed.set()
        return said


@pytest.mark.parametrize(
    ("first", "others", "goes_to"),
    [
        ([False] * 7, (True, True), N2),
        ([False] * 7, (False, True), N3),
        ([False] * 7, (False, False), N1),
        ([False] * 6 + [True], (True, True), N1),
        ([False] * 5 + [True] + [False] * 5, (True, True), N1),
    ],
    ids=[
        "to the next",
        "to one that is not silent too",
        "nowhere",
        "it answers in the end",
        "it answers once",
    ],
)
async def test_a_server_where_jetstream_is_silent_is_left(
    monkeypatch: pytest.MonkeyPatch, first: list[bool], others: tuple[bool, bool], goes_to: str
) -> None:
    """After six questions in a row, and one more to it, all connections go to the first that answers."""
    servers = _Servers(monkeypatch)
    opened = [await servers.link.open(name) for name in ("one", "two")]
    servers.says = dict(zip((N1, N2, N3), (True, *others), strict=True))
    servers.script = first
    async with asyncio.timeout(10):
        with pytest.raises(ProcessFault):
            await servers.link.end_when_closed()
    assert [connection.is_on(goes_to) for connection in opened] == [True, True]


async def test_a_start_leaves_a_silent_server_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is ready where JetStream answers; if it does nowhere, where it was made."""
    servers = _Servers(monkeypatch)
    servers.says = {N1: False, N2: False, N3: False}
    assert (await servers.link.open("one")).is_on(N1)
    assert servers.asked == [N1] * runner._MAX_SILENT + [N1, N2, N3]
    servers.says[N2] = True
    assert (await servers.link.open("two")).is_on(N2)
    assert [connection.is_on(N2) for connection in servers.link.connections] == [True, True]


async def test_what_the_owner_deals_with_is_not_logged(
    own_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that `on_error` answers True to is its own business; any other is a warning."""
    link = NatsLink(own_server.url)
    connection = await link.open("test")
    subscription = await connection.subscribe("full", pending_msgs_limit=1)
    reports: list[bool] = []

    async def overflow(*, dealt_with: bool) -> None:
        def report(_: Exception) -> bool:
            reports.append(dealt_with)
            return dealt_with

        link.on_error = report
        for _ in range(3):
            await connection.publish("full", b"")
        await connection.flush()
        await subscription.next_msg()

    await overflow(dealt_with=True)
    assert set(reports) == {True}
    assert caplog.messages == []
    await overflow(dealt_with=False)
    assert set(reports) == {True, False}
    assert "SlowConsumer" in caplog.messages[0]
    await link.close()


async def test_a_start_that_was_held_up_still_connects(
    shared_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than the deadline: what the server said meanwhile is read."""
    monkeypatch.setattr(runner, "START_DEADLINE_S", 1.0)
    link = NatsLink(shared_server.url)
    hold_up(1.5)
    await link.open("test")
    await link.close()


async def test_a_close_for_good_ends_the_process(own_server: NatsServer) -> None:
    """A connection that is lost for good is a fault that says so."""
    link = NatsLink(own_server.url)
    connection = await link.open("test")
    await connection._send_command(b"BROKEN\r\n")
    await connection._flush_pending()
    async with asyncio.timeout(2):
        with pytest.raises(ProcessFault, match="closed for good; nothing is lost, start again"):
            await link.end_when_closed()


async def test_a_bug_in_what_takes_a_message_ends_the_process(
    own_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The log shows where it happened. An error of NATS there is a warning, as before."""
    link = NatsLink(own_server.url)
    connection = await link.open("test")
    errors = [nats.errors.NoRespondersError(), *3 * [AssertionError("oops")]]

    async def fail(_: Msg) -> None:
        raise errors.pop(0)

    await connection.subscribe("anything", cb=fail)
    await connection.publish("anything", b"")
    await until(lambda: caplog.messages)
    assert caplog.messages == ["test: NoRespondersError()"]
    assert not link.closed.is_set()
    for _ in range(3):
        await connection.publish("anything", b"")
    async with asyncio.timeout(10):
        with pytest.raises(ProcessFault):
            await link.end_when_closed()
    await connection.flush()
    assert ", in fail\n" in caplog.text
    assert caplog.text.count("AssertionError: oops") == 1  # what came behind it is left alone
    await link.close()


async def test_closing_has_a_deadline(own_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose close hangs is let go."""
    link = NatsLink(own_server.url)
    connection = await link.open("test")
    closing = connection.close

    async def hang() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(connection, "close", hang)
    began = time.monotonic()
    await link.close()
    assert time.monotonic() - began < 1
    await closing()
