"""The examples run as their first lines say."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from tests.client.fake_venue import FakeVenue

EXAMPLES = Path(__file__).parents[2] / "examples"


async def start(example: str, venue: FakeVenue) -> asyncio.subprocess.Process:
    """Start an example against a venue."""
    return await asyncio.create_subprocess_exec(
        sys.executable, EXAMPLES / example, venue.address, stdout=asyncio.subprocess.PIPE
    )


async def test_trade(venue: FakeVenue) -> None:
    """The trading example goes through its steps and ends well."""
    process = await start("trade.py", venue)
    async with asyncio.timeout(30):
        output, _ = await process.communicate()
    assert process.returncode == 0
    assert b"quote cancelled" in output
    assert b"taker holds" in output


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


@pytest.mark.parametrize("example", ["trade.py", "follow_fills.py"])
def test_examples_stay_short(example: str) -> None:
    """An example is read in one look."""
    assert len((EXAMPLES / example).read_text().splitlines()) < 60
