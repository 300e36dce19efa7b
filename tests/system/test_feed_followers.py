"""Whoever follows docs/feed.md holds the engine's book, in any language, also when messages get lost."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import nats
import pytest
from matchbus.v1 import matchbus_pb2 as pb
from nats.aio.msg import Msg

from bus.server import NatsServer
from tests.conftest import Connections
from tests.system.lossy import LossyWay
from tests.system.test_book_feed import command
from tests.system.venue import (
    COMMAND,
    REPOSITORY,
    Trader,
    Venue,
    eventually,
    floor,
    scaled,
    show,
)
from tests.test_readme import FEED_SUBSCRIBER

EXAMPLES = REPOSITORY / "examples"
LOSSES = scaled(3, 30)
SHARE_LOST = 0.05

README_MAIN = """
async def main():
    async for sequence, book in follow(sys.argv[1], "S373"):
        print("unsynced" if sequence < 0 else f"{sequence} {checksum(book)}")


asyncio.run(main())
"""

Place = tuple[int, int]
"""(sequence, checksum) of a book that its follower trusts."""


@dataclass(frozen=True)
class Follower:
    """A program that follows a book: how it is started, and what a line of its output says."""

    command: tuple[str | Path, ...]
    place_of: Callable[[str], Place | None]


@pytest.fixture(scope="module")
def node_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`examples/feed.mjs` with its packages beside it."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("no node or npm: the feed was not followed from Node")
    folder = tmp_path_factory.mktemp("node")
    for name in ("feed.mjs", "package.json", "package-lock.json"):
        shutil.copy(EXAMPLES / name, folder)
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    if made.returncode:
        pytest.skip(f"npm cannot fetch the packages, so the feed was not followed from Node: {made.stderr}")
    return folder / "feed.mjs"


def place_in_words(line: str) -> Place | None:
    """What the examples print: `unsynced`, or sequence and checksum first."""
    if line == "unsynced":
        return None
    sequence, checksum, *_ = line.split()
    return int(sequence), int(checksum)


def place_in_json(line: str) -> Place | None:
    """What `matchbus feed --json` prints of books: where a message led, if anywhere."""
    message = json.loads(line)
    is_trusted = message["outcome"] in {"applied", "duplicate"}
    return (message["sequence"], message["checksum"]) if is_trusted else None


async def test_the_python_example_holds_the_book(one_engine: Venue, tmp_path: Path) -> None:
    """`examples/follow_feed.py` ends with the engine's sequence and checksum though messages got lost."""
    command = (sys.executable, EXAMPLES / "follow_feed.py")
    await hold(one_engine, "S370", tmp_path, lambda url: Follower((*command, url, "S370"), place_in_words))


async def test_the_node_example_holds_the_book(one_engine: Venue, tmp_path: Path, node_example: Path) -> None:
    """`examples/feed.mjs` does the same."""
    command = ("node", node_example)
    await hold(one_engine, "S371", tmp_path, lambda url: Follower((*command, url, "S371"), place_in_words))


async def test_the_readme_holds_the_book(one_engine: Venue, tmp_path: Path) -> None:
    """The README's subscriber does the same."""
    command = (sys.executable, "-c", FEED_SUBSCRIBER.partition("async def main")[0] + README_MAIN)
    await hold(one_engine, "S373", tmp_path, lambda url: Follower((*command, url), place_in_words))


async def test_the_command_holds_the_book(one_engine: Venue, tmp_path: Path) -> None:
    """`matchbus feed` does the same; it shows what comes, so that it says nothing when nothing does."""
    command = (*COMMAND, "feed", "S372", "--json", "--all", "--exchange", one_engine.exchange)
    await hold(
        one_engine,
        "S372",
        tmp_path,
        lambda url: Follower((*command, "--nats", url), place_in_json),
        says_unsynced=False,
    )


async def hold(
    venue: Venue,
    symbol: str,
    directory: Path,
    follower_at: Callable[[str], Follower],
    *,
    says_unsynced: bool = True,
) -> None:
    """Trade at random until the follower has lost its book several times; in the end it has the engine's.

    And whatever it trusted meanwhile, at whatever sequence, was the engine's book there.
    """
    async with (
        floor(venue) as trading,
        LossyWay(venue.nats_url, share=SHARE_LOST, seed=1) as way,
        published(venue, symbol) as true_places,
    ):
        trader = await trading.trader(1)
        with following(follower_at(way.url), directory) as places:
            draw = random.Random(f"followers {symbol}")

            async def lost_often() -> bool:
                await trade(draw, trader, symbol)
                return losses(places()) >= LOSSES

            async def same() -> bool:
                await ask_for_snapshot(venue, symbol)  # `matchbus feed` shows a book when something comes
                return places()[-1:] == [place(await trader.book(symbol))]

            async def unsynced() -> bool:
                return places()[-1:] == [None]

            await eventually(lambda: first_place(places), 30, "the book was joined")
            if says_unsynced:
                way.loses_books = True
                await trade(draw, trader, symbol)
                await eventually(unsynced, 10, "a heartbeat tells of changes that did not come")
                way.loses_books = False
            await eventually(lost_often, 60, f"the book was lost {LOSSES} times")
            await eventually(same, 30, "the follower has the engine's book")
            assert set(places()) <= {None} | true_places
            show(f"{symbol}: {way.dropped} messages lost, and the book {losses(places())} times")


async def trade(draw: random.Random, trader: Trader, symbol: str) -> None:
    """Change the book by a few orders near the middle."""
    await trader.enter([[command(draw, symbol)] for _ in range(4)])


@asynccontextmanager
async def published(venue: Venue, symbol: str) -> AsyncIterator[set[Place]]:
    """Collect where each delta and snapshot of engine 1 led, over a connection that loses nothing."""
    places: set[Place] = set()

    async def note(message: Msg) -> None:
        kind, _, sequence, *fields = json.loads(message.data)
        places.add((sequence, fields[4 if kind == "delta" else 3]))

    connection = await nats.connect(venue.nats_url)
    try:
        await connection.subscribe(f"md.1.book.{symbol}", cb=note)
        await connection.flush()
        yield places
    finally:
        await connection.close()


async def ask_for_snapshot(venue: Venue, symbol: str) -> None:
    """Anyone may."""
    connection = await nats.connect(venue.nats_url)
    await connection.publish("snapshot.1", json.dumps(["snapshot_request", [symbol]]).encode())
    await connection.drain()


@contextmanager
def following(follower: Follower, directory: Path) -> Iterator[Callable[[], list[Place | None]]]:
    """Run a follower; gives what tells where its book stood, line by line."""
    output = directory / "output"

    def places() -> list[Place | None]:
        assert process.poll() is None, (directory / "errors").read_text()
        lines = output.read_text().rpartition("\n")[0].splitlines()
        return [follower.place_of(line) for line in lines if '"kind": "trade"' not in line]

    with output.open("wb") as out, (directory / "errors").open("wb") as errors:
        process = subprocess.Popen(
            follower.command,
            cwd=REPOSITORY,
            env=os.environ | {"XDG_CONFIG_HOME": str(directory), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
        )
    try:
        yield places
    finally:
        process.kill()
        process.wait()


async def first_place(places: Callable[[], list[Place | None]]) -> bool:
    """Whether the follower has had the book once."""
    return any(places())


def losses(places: Sequence[Place | None]) -> int:
    """How often the book was there and then was not."""
    return sum(before is not None and now is None for before, now in itertools.pairwise(places))


@pytest.mark.parametrize("example", ["follow_feed.py", "feed.mjs"])
async def test_what_comes_between_the_parts_of_a_snapshot_goes_on_top(
    example: str,
    shared_server: NatsServer,
    connections: Connections,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """A delta between two parts waits; a part without the one before, and a lower epoch, do not count.

    Nor does it matter that no double holds the delta's quantity.
    """
    node = ("node", request.getfixturevalue("node_example")) if example == "feed.mjs" else ()
    command = (*(node or (sys.executable, EXAMPLES / example)), shared_server.url, "B.C", "4712")
    connection = await connections.open(shared_server.url)
    joins = await connection.subscribe("snapshot.4712")

    async def send(*message: object) -> None:
        await connection.publish("md.4712.book.B=C", json.dumps(message).encode())

    async def beat(sequence: int) -> None:
        heartbeat = ["heartbeat", 4712, 3, 1, time.monotonic_ns(), {"B.C": sequence}]
        await connection.publish("md.4712.heartbeat", json.dumps(heartbeat).encode())

    whole = zlib.crc32(b"9:5;8:3;|11:2;")
    enormous = 2**53 + 1
    after = zlib.crc32(f"9:{enormous};8:3;|11:2;".encode())
    with following(Follower(command, place_in_words), tmp_path) as places:
        await joins.next_msg(timeout=20)

        async def holds() -> bool:
            await beat(8)
            await send("snapshot", 3, 6, 1, 0, [[2, 11, 2, 1]], whole, 2, 2)
            await send("snapshot", 3, 7, 1, 0, [[1, 9, 5, 1], [1, 8, 3, 1]], whole, 1, 2)
            await send("delta", 3, 8, 7, 2, 0, [[1, 9, enormous, 1]], after)
            await send("snapshot", 2, 9, 1, 0, [], zlib.crc32(b"|"), 1, 1)
            await send("snapshot", 3, 7, 1, 0, [[2, 11, 2, 1]], whole, 2, 2)
            return (8, after) in places()

        await eventually(holds, 20, "the book is whole")
        assert set(places()) <= {None, (7, whole), (8, after)}


def place(book: pb.OrderBook) -> Place:
    """Sequence and checksum of the engine's book, as docs/feed.md has it."""
    text = "|".join(
        "".join(f"{level.price}:{level.quantity};" for level in side[:10]) for side in (book.bids, book.asks)
    )
    return book.sequence, zlib.crc32(text.encode())


def test_an_example_of_a_checksum() -> None:
    """The checksum that books are compared by is the one that docs/feed.md works out."""
    bids = [pb.Level(price=18950, quantity=300), pb.Level(price=18949, quantity=1200)]
    book = pb.OrderBook(sequence=3, bids=bids, asks=[pb.Level(price=18952, quantity=50)])
    assert place(book) == (3, 3337965009)
