"""What holds for every example; what each does is tried where the market it needs is."""

import asyncio
import json
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import nats
import pytest
from nats.aio.client import Client as Nats

from bus.server import NatsServer
from tests.conftest import Connections
from tests.waiting import until

ROOT = Path(__file__).parent.parent
EXAMPLES = [path for path in sorted((ROOT / "examples").iterdir()) if path.suffix in {".py", ".mjs", ".sh"}]
MOST_LINES = 59
LONGEST_LINE = 110


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_read_in_one_look(example: Path) -> None:
    """No example has sixty lines or more, nor a line that has to be scrolled for."""
    lines = example.read_text().splitlines()
    assert len(lines) <= MOST_LINES
    assert max(len(re.sub(r"  # (noqa|type): .*", "", line)) for line in lines) <= LONGEST_LINE


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_has_a_test_and_a_page(example: Path) -> None:
    """Some other test names it, and so does a page."""
    for folder, pattern in (("tests", "test_*.py"), ("docs", "*.md")):
        files = [path for path in (ROOT / folder).rglob(pattern) if path != Path(__file__)]
        assert any(example.name in path.read_text() for path in files), folder


def ended(*command: Path | str) -> subprocess.CompletedProcess[str]:
    """A command that fails at once, or soon."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "name",
    ["drop_copy.py", "follow_feed.py", "market_maker.py", "raw_grpc.py", "trade.py", "write_an_agent.py"],
)
def test_without_arguments_an_example_says_what_it_takes(name: str) -> None:
    """It is what stands at its head."""
    done = ended(sys.executable, ROOT / "examples" / name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] in (ROOT / "examples" / name).read_text()
    assert "127.0.0.1:" in done.stderr or "HOST:PORT" in done.stderr


def test_without_arguments_the_script_says_what_it_takes() -> None:
    """It is one line, without the shell's account of where it stands in the script."""
    done = ended(ROOT / "examples" / "trade.sh")
    assert done.stderr == "usage: trade.sh 127.0.0.1:50050 nats://127.0.0.1:4222 [symbol]\n"
    assert done.returncode == 2


def test_without_a_market_an_example_says_so_in_a_line() -> None:
    """No account of a library's inside comes before it. Some wait for NATS: all are run at once."""
    examples = [
        ("drop_copy.py", "nats://127.0.0.1:1"),
        ("follow_feed.py", "nats://127.0.0.1:1", "AAPL"),
        ("follow_fills.py", "127.0.0.1"),
        ("market_maker.py", "127.0.0.1", "AAPL", "1"),
        ("raw_grpc.py", "127.0.0.1:1", "AAPL"),
        ("trade.py", "127.0.0.1"),
        ("write_an_agent.py", "127.0.0.1:1"),
    ]
    with ThreadPoolExecutor(len(examples)) as threads:
        ends = threads.map(
            lambda words: ended(sys.executable, ROOT / "examples" / words[0], *words[1:]), examples
        )
    for done in ends:
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done


def follower(program: dict[str, Any], url: str) -> asyncio.Task[Any]:
    """What follows AAPL in the program that a page or an example shows."""
    if "follow" in program:
        return asyncio.create_task(anext(program["follow"](url, "AAPL")))
    return asyncio.create_task(program["main"](url, "AAPL"))


@pytest.mark.parametrize("page", ["README.md", "examples/follow_feed.py"])
async def test_a_follower_outlasts_nats_being_away(
    page: str, own_server: NatsServer, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py gives up after sixty attempts, in two minutes: it does not, and asks for the book again."""
    failures: list[Exception] = []
    opened: list[Nats] = []

    async def note(error: Exception) -> None:
        failures.append(error)

    async def hasty(url: str, open_connection: Any = nats.connect, **terms: Any) -> Nats:
        nc: Nats = await open_connection(url, **terms | {"reconnect_time_wait": 0.001, "error_cb": note})
        opened.append(nc)
        return nc

    monkeypatch.setattr(nats, "connect", hasty)
    text = (ROOT / page).read_text()
    shown = re.search(r"```python\n([^`]*nats\.connect.*?)```", text, re.DOTALL)
    source = shown[1] if shown else text.partition("\ntry:\n    run(")[0]
    program: dict[str, Any] = {"__name__": "follower"}
    exec(source, program)
    following = follower(program, own_server.url)
    try:
        await until(lambda: opened)
        await own_server.kill()
        await until(lambda: len(failures) > 70 or following.done(), 30)
        assert not following.done(), following.exception()
        await own_server.start()
        nc = await connections.open(own_server.url)
        asked = await nc.subscribe("snapshot.1")
        async with asyncio.timeout(20):
            while not asked.pending_msgs:
                await nc.publish("md.1.heartbeat", json.dumps(["heartbeat", 1, 1, 0, 0, {}]).encode())
                await asyncio.sleep(0.05)
        assert b"AAPL" in (await asked.next_msg()).data
    finally:
        following.cancel()
        await asyncio.wait((following,))
        for connection in opened:
            await connection.close()


async def test_the_drop_copy_follower_outlasts_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """nats-py tells of one by its own error, or by asyncio's if the server answers in the last moment."""
    reader = AsyncMock()
    reader.fetch.side_effect = [nats.errors.TimeoutError(), TimeoutError(), [], asyncio.CancelledError()]
    stream = Mock(pull_subscribe=AsyncMock(return_value=reader))
    monkeypatch.setattr(nats, "connect", AsyncMock(return_value=Mock(jetstream=Mock(return_value=stream))))
    main = runpy.run_path(str(ROOT / "examples" / "drop_copy.py"))["main"]
    with pytest.raises(asyncio.CancelledError):
        await main("nats://127.0.0.1:1", 0)
    assert reader.fetch.await_count == 4


def test_the_lock_file_names_no_registry() -> None:
    """Whoever runs the Node example takes its packages from a registry of their own."""
    assert "resolved" not in (ROOT / "examples" / "package-lock.json").read_text()
