"""What the pages say is what happens: their Python runs, links lead somewhere."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import nats
import pytest
from nats.aio.client import Client as Nats

from client import Client
from simulation.cluster import Cluster
from tests.waiting import frozen

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS: list[str] = re.findall(r"```python\n(.*?)```\n", README, re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEADLINE_S = 20.0


def block(marker: str) -> str:
    """The one Python block that contains the marker."""
    (found,) = [text for text in BLOCKS if marker in text]
    return found


CLIENT_EXAMPLE = block("from client import")
FEED_SUBSCRIBER = block("nats.connect")


@pytest.fixture
async def venue() -> AsyncIterator[Cluster]:
    """A running market of two engines."""
    async with Cluster(engines=2) as cluster:
        yield cluster


async def test_client_example(venue: Cluster) -> None:
    """The client example prints what the README says, on a market that was just started."""
    assert "127.0.0.1:50050" in CLIENT_EXAMPLE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CLIENT_EXAMPLE.replace("127.0.0.1:50050", venue.exchange.address)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    shown = README[README.index(CLIENT_EXAMPLE) + len(CLIENT_EXAMPLE) :].split("\n\n")[1]
    assert output.decode().splitlines() == [line.strip() for line in shown.splitlines()]


async def test_feed_subscriber(venue: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subscriber's book equals the engine's: joined late, followed, after a silence and a restart."""
    subscriber = ModuleType("subscriber")
    exec(compile(FEED_SUBSCRIBER, "README.md", "exec"), subscriber.__dict__)
    closing = AsyncExitStack()

    async def connect(
        url: str, open_connection: Callable[..., Awaitable[Nats]] = nats.connect, **terms: int
    ) -> Nats:
        """The subscriber's connection ends with its process; here it would try to reconnect for ever."""
        connection = await open_connection(url, **terms)
        closing.push_async_callback(connection.close)
        return connection

    monkeypatch.setattr(nats, "connect", connect)
    async with (
        closing,
        Client.connect(
            venue.exchange.address, client_id="ann", password=venue.password, secret="s", preferred_engine=1
        ) as client,
    ):
        await trade(client, 0)
        async with aclosing(subscriber.follow(venue.nats_url, "AAPL")) as books:
            await until_equal(books, client)
            await trade(client, 1)
            await until_equal(books, client)
            async with frozen(venue.engines[1].pid), asyncio.timeout(DEADLINE_S):
                while (await anext(books))[0] != -1:
                    pass
            await venue.engines[1].stop()  # it is back so soon that its silence may not show
            await trade(client, 2)  # waits until the engine serves again
            await until_equal(books, client)


async def trade(client: Client, step: int) -> None:
    """Change the book on both sides: new levels, longer queues, cancels and trades."""
    rested = [
        await client.submit("AAPL", side, quantity=1 + number, price=price)
        for number in range(13)
        for side, price in (("buy", Decimal(100 + step) - number), ("sell", Decimal(110 + step) + number))
    ]
    for result in rested[::5]:
        await client.cancel(order_id=result.order_id)
    await client.submit("AAPL", "buy", quantity=4, price="112.00")


async def until_equal(books: AsyncIterator[tuple[int, dict[int, dict[int, int]]]], client: Client) -> None:
    """Follow until the subscriber has reached the engine's book, which must then be the same."""
    engine = await client.book("AAPL")
    instrument = client.instruments["AAPL"]
    async with asyncio.timeout(DEADLINE_S):
        sequence, book = await anext(books)
        while sequence < engine.sequence:
            sequence, book = await anext(books)
    assert sequence == engine.sequence
    for side, levels in ((1, engine.bids), (2, engine.asks)):
        assert book[side] == {
            instrument.ticks(level.price): instrument.lots(level.quantity) for level in levels
        }


def test_examples_stay_short() -> None:
    """The client example is about a dozen lines, the subscriber's own part at most thirty."""
    subscriber = FEED_SUBSCRIBER.partition("async def main")[0]
    for code, most in ((CLIENT_EXAMPLE, 16), (subscriber, 30)):
        assert len([line for line in code.splitlines() if line]) <= most


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file that is there."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_picture_needs_nothing_from_elsewhere() -> None:
    """It is well-formed, says in words what it shows, and loads nothing."""
    picture = ET.parse(ROOT / "docs" / "images" / "architecture.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert picture.findtext(f"{space}title")
    assert picture.findtext(f"{space}desc")
    assert not [name for element in picture.iter() for name in element.attrib if "href" in name]


def test_the_index_has_every_page() -> None:
    """Whatever stands in docs is reached from docs/README.md."""
    index = ROOT / "docs" / "README.md"
    targets = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index.read_text())}
    assert {page for page in (ROOT / "docs").rglob("*.md") if page != index} <= targets


def test_trading_by_hand(venue: Cluster, tmp_path: Path) -> None:
    """The commands that the README types by hand print what stands there, but for the market's addresses."""
    steps = README.partition("**Trade by hand**")[2].partition("Then `matchbus")[0]
    lines = [line.removeprefix("    ") for line in steps.splitlines() if line.startswith("    ")]
    assert lines.pop(0) == "$ matchbus up"
    exchange, nats = re.search(r"--exchange (\S+) --nats (\S+)", steps).groups()  # type: ignore[union-attr]  # it is there, or the test fails
    shown = []
    for command in (line for line in lines if line.startswith("$ matchbus ")):
        words = command.replace(exchange, venue.exchange.address).replace(nats, venue.nats_url).split()[2:]
        shown.append(command)
        done = subprocess.run(
            [sys.executable, "-m", "simulation.matchbus", *words],
            cwd=ROOT,
            env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        )
        shown += done.stdout.replace(venue.exchange.address, exchange).splitlines()
    assert shown == lines
