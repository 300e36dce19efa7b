"""The examples run as their first lines say."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from bus.server import NatsServer
from tests.client.fake_venue import FakeVenue
from tests.conftest import Connections
from tests.feed_checksum import checksum

EXAMPLES = Path(__file__).parents[2] / "examples"


async def start(example: str, venue: FakeVenue, *words: str) -> asyncio.subprocess.Process:
    """Start an example against a venue."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / example), venue.address, *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_trade(venue: FakeVenue) -> None:
    """The trading example goes through its steps, and sums up fills: positions may not have them yet."""
    process = await start("trade.py", venue)
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode == 0
    assert b"quote cancelled" in output
    assert b"maker holds 0 AAPL" in output
    assert b"taker holds 0 AAPL" in output


@pytest.mark.parametrize(
    ("example", "words", "said"),
    [
        ("market_maker.py", ["AAPL", "abc"], "price 'abc' is no number that AAPL could trade at"),
        ("market_maker.py", ["AAPL", "1.005"], "price 1.005 of AAPL is not on a tick: tick size is 0.01"),
        ("market_maker.py", ["ZZZ", "1"], "'ZZZ' is not among the venue's instruments"),
        ("market_maker.py", ["AAPL", "1", "guess"], "wrong password"),
        ("trade.py", ["guess"], "wrong password"),
        ("write_an_agent.py", ["guess"], "wrong password"),
    ],
)
async def test_what_an_example_is_given_wrongly(
    example: str, words: list[str], said: str, venue: FakeVenue
) -> None:
    """It is said in one line, and the example fails."""
    process = await start(example, venue, *words)
    async with asyncio.timeout(30):
        output, errors = await process.communicate()
    assert (process.returncode, output, errors.decode()) == (1, b"", said + "\n")


async def test_follow_fills(venue: FakeVenue) -> None:
    """The following example prints every fill, new ones too, and an interrupt ends it quietly."""
    engine = venue.engines[0]
    engine.add_fills(2)
    process = await start("follow_fills.py", venue)
    assert process.stdout is not None
    async with asyncio.timeout(30):
        lines = [await process.stdout.readline() for _ in range(2)]
        engine.add_fills(1)
        lines.append(await process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert [line.split()[0] for line in lines] == [b"1", b"2", b"3"]


async def test_follow_feed(shared_server: NatsServer, connections: Connections) -> None:
    """The feed example ignores fields it does not know, and does not trust a book with another checksum.

    An interrupt ends it quietly.
    """
    nc = await connections.open(shared_server.url)
    joins = await nc.subscribe("snapshot.4711")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, EXAMPLES / "follow_feed.py", shared_server.url, "B.C", "4711"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None

    async def send(*message: object) -> None:
        await nc.publish("md.4711.book.B=C", json.dumps([*message, "later"]).encode())

    async with asyncio.timeout(30):
        await joins.next_msg(timeout=20)
        lines = [await process.stdout.readline()]
        ask, bids_and_ask = [(11, 2, 1)], [[1, 9, 5, 1, "later"], [1, 8, 3, 1], [2, 11, 2, 1]]
        await send("snapshot", 1, 7, 1, 0, bids_and_ask, checksum([(9, 5, 1), (8, 3, 1)], ask), 1, 1)
        lines.append(await process.stdout.readline())
        unknown_level = [2, 10, 0, 0]
        await send("delta", 1, 8, 7, 2, 0, [[1, 9, 0, 0], unknown_level], checksum([(8, 3, 1)], ask))
        lines.append(await process.stdout.readline())
        await send("delta", 1, 9, 8, 3, 0, [[1, 8, 4, 1]], checksum([(8, 999, 1)], ask))
        lines.append(await process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert (await process.communicate(), process.returncode) == ((b"", b""), 0)
    joined, changed = (checksum(bids, ask) for bids in ([(9, 5, 1), (8, 3, 1)], [(8, 3, 1)]))
    assert [line.decode().strip() for line in lines] == [
        "unsynced",
        f"7 {joined} (9, 5) (11, 2)",
        f"8 {changed} (8, 3) (11, 2)",
        "unsynced",
    ]
