"""The processes started by hand, each with its own command, as the terminals of the README do it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from matchbus.v1 import matchbus_pb2 as pb

from tests.system.engine_process import is_serving
from tests.system.venue import (
    CALL_TIMEOUT_S,
    COMMAND,
    REPOSITORY,
    Trader,
    Venue,
    eventually,
    exchange_stub,
    free_port,
)

SCRIPTS = Path(sys.executable).parent


class Terminals:
    """Processes started by hand; all that are left are ended with the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[subprocess.Popen[bytes]] = []

    def run(self, *command: str, cwd: Path = REPOSITORY) -> subprocess.Popen[bytes]:
        """Start one; its output goes to a file."""
        with (self.directory / f"{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.started.append(process)
        return process

    def output(self, process: subprocess.Popen[bytes]) -> str:
        """What it printed so far."""
        return (self.directory / f"{self.started.index(process)}.log").read_text(errors="replace")

    def end(self) -> None:
        """Terminate all."""
        for process in reversed(self.started):
            if process.poll() is None:
                process.terminate()
        for process in self.started:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    """Where processes are started by hand."""
    opened = Terminals(tmp_path)
    yield opened
    opened.end()


async def services(address: str) -> set[str]:
    """What reflection lists."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5
        )
        async for answer in call:
            return {service.name for service in answer.list_services_response.service}
    return set()


def nats_server_by_hand(terminals: Terminals, port: int) -> subprocess.Popen[bytes]:
    """`nats-server -c nats.conf` with other ports."""
    configuration = (REPOSITORY / "nats.conf").read_text()
    configuration = configuration.replace("127.0.0.1:4222", f"127.0.0.1:{port}")
    for fixed in ("127.0.0.1:8222", "127.0.0.1:4223"):
        configuration = configuration.replace(fixed, f"127.0.0.1:{free_port()}")
    (terminals.directory / "by_hand.conf").write_text(configuration)
    server = os.environ.get("NATS_SERVER") or str(SCRIPTS / "nats-server")
    return terminals.run(server, "-c", "by_hand.conf", cwd=terminals.directory)


async def test_processes_by_hand_make_a_market_in_any_order(terminals: Terminals) -> None:
    """Engines wait for the exchange; all serve, list their services, trade, and end with 0 on SIGTERM."""
    port = free_port()
    url = f"nats://127.0.0.1:{port}"
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    nats_server_by_hand(terminals, port)
    made = [
        terminals.run(
            str(SCRIPTS / "engine"),
            *("--number", str(number), "--nats", url, "--listen", addresses[number]),
            *("--state-dir", str(terminals.directory / f"engine_{number}")),
        )
        for number in (1, 2)
    ]
    made.append(terminals.run(str(SCRIPTS / "exchange"), "--nats", url, "--listen", addresses[0]))
    for address in addresses:
        await eventually(partial(is_serving, address), 30, f"{address} serves")
    assert await is_serving(addresses[0], "matchbus.v1.Exchange")
    assert await is_serving(addresses[1], "matchbus.v1.MatchingEngine")
    assert "matchbus.v1.Exchange" in await services(addresses[0])
    assert {"matchbus.v1.MatchingEngine", "grpc.health.v1.Health"} <= await services(addresses[2])
    async with grpc.aio.insecure_channel(addresses[0]) as exchange_channel:
        exchange = exchange_stub(exchange_channel)

        async def all_live() -> bool:
            reply = await exchange.ListEngines(pb.ListEnginesRequest(), timeout=5)
            return {
                engine.engine: engine.address
                for engine in reply.engines
                if engine.state == pb.ENGINE_STATE_LIVE
            } == {1: addresses[1], 2: addresses[2]}

        await eventually(all_live, 10, "both engines are live")
        for engine in (1, 2):
            name = f"hand{engine}"
            reply = await exchange.RegisterClient(
                pb.RegisterClientRequest(
                    client_id=name, password="password", secret="s", preferred_engine=engine
                ),
                timeout=5,
            )
            async with grpc.aio.insecure_channel(reply.engine_address) as channel:
                trader = Trader(name, "s", reply, channel)
                answer = await trader.limit("BTC-USD", engine, 100, 3)
                assert answer.status == (pb.ORDER_STATUS_NEW if engine == 1 else pb.ORDER_STATUS_FILLED)
    for process in made:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0, terminals.output(process)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["engine"], "required: --number"),
        (["engine", "--number", "0"], "0 is no engine number"),
        (["engine", "--number", "65536"], "65536 is no engine number"),
        (["engine", "--number", "1", "--durability", "maybe"], "invalid choice: 'maybe'"),
        (["matchbus", "up", "--instruments", "no-such-file.toml"], "no instruments file no-such-file.toml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_end_with_a_message(command: list[str], said: str, terminals: Terminals) -> None:
    """A wrong option ends the command with a code that is not 0 and a message that names it, no traceback."""
    program = list(COMMAND) if command[0] == "matchbus" else [str(SCRIPTS / command[0])]
    if command[0] != "matchbus":  # should it go on, it finds no market to harm
        command = [*command, "--nats", f"nats://127.0.0.1:{free_port()}"]
    process = terminals.run(*program, *command[1:])
    assert process.wait(15) != 0
    output = terminals.output(process)
    assert said in output
    assert "Traceback" not in output


def test_another_up_leaves_the_ready_file_of_a_market_that_runs(one_engine: Venue) -> None:
    """It is refused, and whoever reads the file still finds the market."""
    first = one_engine.ready
    refused = subprocess.run(
        [*COMMAND, "up", *one_engine.arguments],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=CALL_TIMEOUT_S,
        check=False,
    )
    assert refused.returncode == 1
    assert b"another market runs" in refused.stderr
    assert one_engine.ready == first
