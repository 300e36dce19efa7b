"""The exchange's process beside a real nats-server: starts, restarts, trouble and junk."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import nats.errors
import pytest
from matchbus.edge import RECOVERING_ROLE, token_key

from bus import messages, provision, subjects
from bus.connection import Connection
from bus.executions import ExecutionsReader, ExecutionsWriter
from bus.follower import FeedFollower
from bus.messages import ASK, BID, EngineEntry, Executions, InstrumentEntry, ProvisionReply, ProvisionRequest
from bus.provision import await_journal
from bus.registry import Bucket, BucketUnavailable
from bus.runner import ProcessFault
from bus.server import NatsServer
from exchange.runtime import process
from exchange.runtime.instruments import InstrumentsRefused, publish_instruments
from exchange.runtime.process import run
from exchange.runtime.settings import ExchangeSettings
from simulation.ports import claim_port
from tests.exchange.runtime.nodes import (
    DEADLINE_S,
    INSTRUMENTS,
    PASSWORD,
    Caller,
    FakeEngine,
    eventually,
    exchange,
    fill,
    refused,
)
from tests.waiting import running

if TYPE_CHECKING:
    from tests.conftest import Connections


async def test_restart_keeps_homes_and_positions(
    own_server: NatsServer, own_connection: Connection, two_engines: list[FakeEngine], tmp_path: Path
) -> None:
    """After a restart clients have their homes, tokens and positions, and fills go on counting once."""
    writer = ExecutionsWriter(own_connection, 1)
    async with exchange(own_server, tmp_path) as caller:
        token = (await caller.register("ann", preferred_engine=2)).token
        await writer.start()
        await writer.publish(
            Executions(1, 1, 1, 1, 2, (fill("ann", 1, BID, 10, 100), fill("bob", 1, ASK, 10, 100)))
        )
        await writer.publish(
            Executions(1, 1, 2, 2, 2, (fill("ann", 2, ASK, 4, 110), fill("bob", 2, BID, 4, 110)))
        )

        async def arrived() -> bool:
            return await caller.positions(token) == [("AAPL", 6, 100.0, 40, 2)]

        await eventually(arrived)

    async with exchange(own_server, tmp_path) as caller:
        assert await caller.positions(token) == [("AAPL", 6, 100.0, 40, 2)]
        assert await caller.positions(token, "AAPL") == [("AAPL", 6, 100.0, 40, 2)]
        assert (await caller.register("ann")).engine == 2
        await refused(caller.register("ann", "other"), grpc.StatusCode.PERMISSION_DENIED)
        bob = (await caller.register("bob")).token
        assert await caller.positions(bob) == [("AAPL", -6, 100.0, -40, 2)]
        cid = (await caller.register("cid")).token
        assert await caller.positions(cid) == []


async def test_what_an_operator_removes_is_gone(
    own_server: NatsServer, own_connection: Connection, two_engines: list[FakeEngine], tmp_path: Path
) -> None:
    """An engine or a symbol whose key is deleted is listed no more, and a client's name is free again."""
    two = INSTRUMENTS + INSTRUMENTS.replace("AAPL", "B.C")
    async with exchange(own_server, tmp_path, two) as caller:
        token = (await caller.register("ann", preferred_engine=1)).token
        for key in (
            "engines.2",
            f"instruments.{subjects.symbol_token('B.C')}",
            f"clients.{subjects.client_key('ann')}",
            f"sessions.{token_key(token)}",
        ):
            await own_connection.publish(f"$KV.{key}", b"", headers={"KV-Operation": "DEL"})

        async def gone() -> bool:
            engines, symbols = await caller.engines(), await caller.instruments()
            return ([e.engine for e in engines], [i.symbol for i in symbols]) == ([1], ["AAPL"])

        async def free() -> bool:
            try:
                return bool(await caller.register("ann", "another", preferred_engine=1))
            except grpc.aio.AioRpcError:
                return False

        await eventually(gone)
        await eventually(free)


async def test_journals_are_made_on_request(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that asks has its journal, be it at the second try; nonsense is answered and ends nothing."""
    provision_journal, faults = provision.provision_journal, [nats.errors.TimeoutError()]

    async def provision_at_second(*arguments: Any, **options: Any) -> None:
        if faults:
            raise faults.pop()
        await provision_journal(*arguments, **options)

    monkeypatch.setattr(provision, "provision_journal", provision_at_second)
    monkeypatch.setattr(provision, "_REQUEST_TIMEOUT_S", 1.0)
    async with exchange(own_server, tmp_path) as caller:
        await await_journal(own_connection, 4, DEADLINE_S)
        for payload in (b"", b"\xff", b'["provision",5]'):
            answer = await own_connection.request(subjects.provision(4), payload, timeout=DEADLINE_S)
            assert messages.decode_provision_reply(answer.data).error
        assert await caller.is_serving()


async def test_further_journals_are_trimmed_like_the_others(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path
) -> None:
    """Whoever starts the exchange again need not say so once more."""
    await provision.provision_shared(own_connection)
    await provision.provision_journal(own_connection, 1, trimmable=True)
    async with exchange(own_server, tmp_path):
        await await_journal(own_connection, 4, DEADLINE_S)
    assert await provision.is_trimmable(own_connection, 4)


async def test_sizes_never_change(own_server: NatsServer, tmp_path: Path) -> None:
    """A file with another tick size is refused and changes nothing; collars and new symbols are taken."""
    async with exchange(own_server, tmp_path):
        pass
    other = INSTRUMENTS.replace("AAPL", "NEW") + INSTRUMENTS.replace("0.01", "0.02")
    with pytest.raises(InstrumentsRefused, match=r"AAPL has tick_size 0\.01 and the file says 0\.02"):
        async with exchange(own_server, tmp_path, other):
            pass
    more = INSTRUMENTS + 'market_collar_percent = "5"\n' + INSTRUMENTS.replace("AAPL", "B.C")
    async with exchange(own_server, tmp_path, more) as caller:
        listed = await caller.instruments()
        assert [(i.symbol, i.market_collar_percent) for i in listed] == [("AAPL", "5"), ("B.C", "")]
    async with exchange(own_server, tmp_path, INSTRUMENTS.replace("0.01", "0.010")) as caller:
        listed = await caller.instruments()
        assert [(i.symbol, i.market_collar_percent) for i in listed] == [("AAPL", ""), ("B.C", "")]


async def test_calls_hear_that_the_exchange_is_starting(
    own_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of symbols take a while, and old reports too; whoever waits is told that it is at work."""
    may_publish, may_read = asyncio.Event(), asyncio.Event()

    async def publish_late(bucket: Bucket[InstrumentEntry], entries: list[InstrumentEntry]) -> None:
        await may_publish.wait()
        await publish_instruments(bucket, entries)

    class LateReader(ExecutionsReader):
        async def __aiter__(self) -> AsyncGenerator[Executions]:
            await may_read.wait()
            async for message in super().__aiter__():
                yield message

    monkeypatch.setattr(process, "publish_instruments", publish_late)
    monkeypatch.setattr(process, "ExecutionsReader", LateReader)
    file = tmp_path / "instruments.toml"
    file.write_text(INSTRUMENTS)
    address = f"127.0.0.1:{claim_port('127.0.0.1', 0, 'exchange')}"
    caller = Caller(address)
    settings = ExchangeSettings(own_server.url, address, PASSWORD, file, None, 1)
    async with running(run(settings)), caller.channel:
        await asyncio.wait_for(caller.channel.channel_ready(), DEADLINE_S)
        await eventually(lambda: caller.is_serving(RECOVERING_ROLE))
        refusal = await refused(caller.instruments(), grpc.StatusCode.UNAVAILABLE)
        assert refusal.details() == "the exchange is starting: try again"
        may_publish.set()

        async def takes_calls() -> bool:
            with suppress(grpc.aio.AioRpcError):
                return len(await caller.instruments()) == 1
            return False

        await eventually(takes_calls)
        assert await caller.is_serving(RECOVERING_ROLE)
        assert not await caller.is_serving()
        may_read.set()
        await eventually(caller.is_serving)
        assert not await caller.is_serving(RECOVERING_ROLE)


@pytest.mark.parametrize(
    ("replicas", "what_to_do"),
    [
        (1, "start it with nats.conf, and see its log"),
        (3, "more than half of the 3 servers must run, and all"),
    ],
)
async def test_a_server_whose_jetstream_is_away_ends_a_start(
    own_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replicas: int, what_to_do: str
) -> None:
    """It is waited for a while, and then told what is amiss: of several servers, that too few may run."""

    async def away(*_: Any, **__: Any) -> None:
        raise nats.errors.TimeoutError

    monkeypatch.setattr(provision, "provision_shared", away)
    monkeypatch.setattr(process, "START_DEADLINE_S", 0.3)
    monkeypatch.setattr(process, "ELECTIONS_S", 0.3)
    file = tmp_path / "instruments.toml"
    file.write_text(INSTRUMENTS)
    settings = ExchangeSettings(own_server.url, "127.0.0.1:0", PASSWORD, file, None, replicas)
    with pytest.raises(ProcessFault, match=f"answers but its JetStream does not: {what_to_do}"):
        await run(settings)


async def test_a_start_outlasts_elections(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that has just lost a server is silent for longer than one server that starts."""
    began = asyncio.get_running_loop().time()
    provisioned = asyncio.Event()

    async def elect(*_: Any, **__: Any) -> None:
        if asyncio.get_running_loop().time() - began < 1.0:
            raise nats.errors.TimeoutError
        provisioned.set()

    async def adjust(*_: Any, **__: Any) -> bool:
        return False

    monkeypatch.setattr(provision, "provision_shared", elect)
    monkeypatch.setattr(provision, "adjust_journals", adjust)
    monkeypatch.setattr(process, "START_DEADLINE_S", 0.1)
    settings = ExchangeSettings(own_server.url, "127.0.0.1:0", PASSWORD, tmp_path / "none", None, 3)
    async with asyncio.timeout(10):
        await process._provision(own_connection, settings)
    assert provisioned.is_set()


async def test_calls_work_again_after_the_nats_server_was_killed(
    own_server: NatsServer,
    two_engines: list[FakeEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While nats-server is away calls that need it wait or say so; when it is back they work again.

    What came meanwhile is lost: all books are asked for anew.
    """
    reconnected, told = FeedFollower.reconnected, asyncio.Event()

    def note_reconnected(follower: FeedFollower) -> None:
        reconnected(follower)
        told.set()

    monkeypatch.setattr(FeedFollower, "reconnected", note_reconnected)
    async with exchange(own_server, tmp_path) as caller:
        token = (await caller.register("ann")).token
        os.kill(own_server.pid, signal.SIGKILL)
        await own_server.wait()

        async def is_not_serving() -> bool:
            return not await caller.is_serving()

        await eventually(is_not_serving)
        await own_server.restart()
        await eventually(caller.is_serving)
        assert await caller.sees_two_live_engines()

        async def works() -> bool:
            try:
                return await caller.positions(token) == [] and (await caller.register("bob")).engine > 0
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False

        await eventually(works)
        await asyncio.wait_for(told.wait(), DEADLINE_S)


async def test_a_store_that_does_not_answer_is_told(
    own_server: NatsServer, two_engines: list[FakeEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who must be looked up there can try again: it is no fault of the call."""

    async def get(bucket: Bucket[Any], key: str) -> None:
        raise BucketUnavailable(f"{bucket} {key}")

    async with exchange(own_server, tmp_path) as caller:
        token = (await caller.register("ann")).token
        monkeypatch.setattr(Bucket, "get", get)
        for call in (caller.register("ann"), caller.positions(token)):
            error = await refused(call, grpc.StatusCode.UNAVAILABLE)
            assert error.details() == "the exchange cannot reach its storage just now; try again"


HUGE = b"%d" % 10**30
DEEP = b"[" * 100_000
NO_TEXT = b'{"address":"\xff","client_id":"\xff","symbol":"\xff"}'
BUCKETS = ("engines", "clients", "instruments")
JUNK: list[tuple[str, bytes, dict[str, str] | None]] = [
    ("provision.1", DEEP, None),
    ("standby.1", DEEP, None),
    ("standby.1", b'["standby",1,"junk",1,1,1,%b]' % HUGE, None),
    ("standby.1", b'["standby",%b,"junk",1,1,1,1]' % HUGE, None),
    *((f"$KV.{bucket}.x", b'{"x":' + DEEP, None) for bucket in BUCKETS),
    *((f"$KV.{bucket}.y", NO_TEXT, None) for bucket in BUCKETS),
    ("$KV.engines.abc", b"", {"KV-Operation": "DEL"}),
    ("$KV.engines.9", b'{"engine":9,"epoch":%b,"address":"junk","pid":1}' % HUGE, None),
    ("$KV.instruments.X", b'{"symbol":"a b*>","tick_size":"1","lot_size":"1"}', None),
    ("$KV.instruments.Y", b'{"symbol":"Y","tick_size":"%b","lot_size":"1"}' % (b"1" * 300_000), None),
]


async def test_junk_from_outside_ends_nothing(
    own_server: NatsServer, two_engines: list[FakeEngine], connections: "Connections", tmp_path: Path
) -> None:
    """What is no message, and no value of a bucket, is left out, now and by the next exchange."""
    nc = await connections.open(own_server.url)
    for attempt in ("running", "started again"):
        async with exchange(own_server, tmp_path) as caller:
            for subject, payload, headers in JUNK if attempt == "running" else ():
                await nc.publish(subject, payload, headers=headers)
            await nc.publish("$KV.engines.7", messages.encode(EngineEntry(7, 1, "host:7", 1)))

            async def all_read() -> bool:
                await nc.publish("standby.2", messages.encode(messages.StandbyStatus(2, "last", 1, 1, 1, 1)))
                addresses = [engine.address for engine in await caller.engines()]
                return addresses == ["host:1", "host:2", "host:7", "last"]

            await eventually(all_read)
            reply = ProvisionReply("the request on provision.1 is for engine 2")
            answer = await nc.request("provision.1", messages.encode(ProvisionRequest(2)), timeout=5)
            assert answer.data == messages.encode(reply)
            assert [instrument.symbol for instrument in await caller.instruments()] == ["AAPL"]


def test_a_command_that_does_not_start_says_why(tmp_path: Path) -> None:
    """In one line, without a traceback."""
    command = [sys.executable, "-m", "exchange.runtime.process", "--nats", "nats://127.0.0.1:1"]
    for arguments, text in (
        (["--listen", "0.0.0.0:0"], "set PASSWORD or give --password another one"),
        (["--listen", "127.0.0.1:0", "--instruments", "nowhere.toml"], "nowhere.toml cannot be read"),
    ):
        ended = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=clean_environment(),
        )
        assert (ended.returncode, text in ended.stderr, "Traceback" in ended.stderr) == (1, True, False), (
            ended.stderr
        )


async def test_the_process_stops_in_time(own_server: NatsServer, tmp_path: Path) -> None:
    """A process writes its log, and ends within 2 s of SIGTERM with status 0."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "exchange.runtime.process", "--nats", own_server.url),
        *("--listen", "127.0.0.1:0", "--log-dir", str(tmp_path / "logs")),
        env=clean_environment(),
    )
    log_file = tmp_path / "logs" / "exchange_logs" / "exchange.log"

    async def ready() -> bool:
        assert running.returncode is None
        return log_file.exists() and "exchange is ready" in log_file.read_text()

    await eventually(ready)
    running.terminate()
    async with asyncio.timeout(2.0):
        assert await running.wait() == 0


def clean_environment() -> dict[str, str]:
    """The environment without the settings of an exchange."""
    return {name: value for name, value in os.environ.items() if name not in ("PASSWORD", "IP_ADDR")}
