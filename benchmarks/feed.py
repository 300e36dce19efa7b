"""The book feed: from commit to a peer's book, how much a reader takes in, how long joining takes.

    python benchmarks/feed.py [--pairs N] [--seconds N] [--rates N N] [--deltas N] [--json FILE]

Commit is the moment at which nats-server's acknowledgement of the journal's append passes by: a subscriber to
`_INBOX.>` sees it when the engine does. The reader, a process of its own, notes it and when its copy of the
book has the batch's delta. Beside it stands a message of that size which goes through NATS and does nothing.
"""

import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import uvloop
from matchbus.v1 import matchbus_pb2 as pb
from nats.aio.msg import Msg
from rich.console import Console

from benchmarks.figures import Figure, alone, paired, percentile
from benchmarks.open_loop import at_rate
from benchmarks.order_entry import batched
from benchmarks.peers import SYMBOL, Peer, Venue, venue
from benchmarks.report import console
from benchmarks.standalone import standalone
from benchmarks.waiting import until
from bus import subjects
from bus.connection import connect
from bus.follower import FeedFollower
from bus.messages import ASK, BID, BookDelta, LevelChange, decode_feed, encode
from bus.peer import PeerState
from bus.replica import BookReplica
from bus.server import NatsServer
from engine.runtime.market_data import MarketData

PART: Final = "Feed"
BATCH: Final = 100
ENGINE: Final = 1
WINDOW: Final = 250
"""Deltas sent ahead of the reader's word that it has them, twice this many at most: with more, heartbeats
wait in line behind them until the reader takes the engine for dead."""
TURN_DEADLINE_S: Final = 20.0
TRIES: Final = 3
"""A reader that a busy machine held up for 300 ms loses track, and its turn is made again."""
LEVELS_CHANGED: Final = 4
JOIN_DEADLINE_S: Final = 10.0

_BARE: Final = "bench.bare"
_RAW: Final = "bench.raw"
_TAKEN: Final = "bench.taken"
_GO: Final = "bench.go"


class Sizes(msgspec.Struct, frozen=True):
    """How much is done: seconds of load a turn at each rate of orders, deltas a turn, times of joining."""

    pairs: int = 5
    seconds: float = 3.0
    rates: tuple[int, ...] = (5_000, 50_000)
    deltas: int = 50_000
    joins: int = 10


QUICK: Final = Sizes(pairs=1, seconds=0.5, rates=(5_000,), deltas=4_000, joins=1)


class NothingHeard(Exception):
    """The reader's notes do not fit together."""


class LostTrack(Exception):
    """The reader was held up for so long that it does not trust the feed."""


class Acknowledgement(msgspec.Struct):
    """What nats-server answers to an append."""

    stream: str = ""
    seq: int = 0


# ---------------------------------------------------------------- from commit to a peer's book


class Reader:
    """Notes when batches were committed and when the reader's book had them."""

    def __init__(self) -> None:
        self.committed_ns: dict[int, int] = {}
        self.batch_of: dict[int, int] = {}
        self.booked_ns: dict[int, int] = {}
        self.bare_us: list[float] = []
        self.follower: FeedFollower | None = None

    async def acknowledged(self, message: Msg) -> None:
        """An answer to somebody's request; that of a journal names its stream."""
        with suppress(msgspec.DecodeError):
            answer = msgspec.json.decode(message.data, type=Acknowledgement)
            if answer.stream == subjects.journal_stream(ENGINE):
                # In a journal that was never damaged or fenced a batch stands at its own number.
                self.committed_ns[answer.seq] = time.monotonic_ns()

    async def published(self, message: Msg) -> None:
        """A delta names its batch."""
        delta = decode_feed(message.data)
        if isinstance(delta, BookDelta):
            self.batch_of[delta.sequence] = delta.batch_number

    def changed(self, engine: int, symbol: str) -> None:
        """The reader's book took something in."""
        assert self.follower is not None
        replica = self.follower.peers[engine].replicas[symbol]
        self.booked_ns[replica.sequence] = time.monotonic_ns()

    async def bare(self, message: Msg) -> None:
        """A message that says when it was sent."""
        sent_ns = int(message.data[:20])
        self.bare_us.append((time.monotonic_ns() - sent_ns) / 1e3)

    def cut(self) -> tuple[list[float], list[float]]:
        """Microseconds from commit to book and of bare messages since the last cut."""
        times = [
            (booked - self.committed_ns[batch]) / 1e3
            for sequence, booked in self.booked_ns.items()
            if (batch := self.batch_of.get(sequence, 0)) in self.committed_ns
        ]
        bare = list(self.bare_us)
        for noted in (self.committed_ns, self.batch_of, self.booked_ns, self.bare_us):
            noted.clear()
        return times, bare


async def _read(url: str, pipe: Connection) -> None:
    reader = Reader()
    nc = await connect(url, name="reader", on_closed=lambda: None)
    reader.follower = FeedFollower(nc, own_engine=None, on_change=reader.changed)
    following = asyncio.create_task(reader.follower.run())
    await nc.subscribe("_INBOX.>", cb=reader.acknowledged)
    await nc.subscribe(subjects.book(ENGINE, SYMBOL), cb=reader.published)
    await nc.subscribe(_BARE, cb=reader.bare)
    await until(lambda: has_book(reader.follower), JOIN_DEADLINE_S)
    pipe.send(True)
    while await asyncio.to_thread(pipe.recv):
        pipe.send(reader.cut())
    following.cancel()
    await nc.close()


def has_book(follower: FeedFollower | None) -> bool:
    """Whether the follower holds the engine's book and trusts it."""
    feed = follower.peers.get(ENGINE) if follower else None
    return feed is not None and feed.protected(SYMBOL) is not None


def _run_reader(url: str, pipe: Connection) -> None:
    uvloop.run(_read(url, pipe))


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[Callable[[], Awaitable[tuple[list[float], list[float]]]]]:
    """A reader in a process of its own; gives what cuts its notes."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run_reader, args=(url, theirs))
    process.start()
    theirs.close()  # else nobody would hear of the process's end

    async def cut() -> tuple[list[float], list[float]]:
        ours.send(True)
        noted: tuple[list[float], list[float]] = await asyncio.to_thread(ours.recv)
        return noted

    try:
        await asyncio.to_thread(ours.recv)
        yield cut
        ours.send(False)
        await asyncio.to_thread(process.join, 5)
    finally:
        process.kill()
        process.join()


async def orders_at(peer: Peer, per_second: float, seconds: float) -> float:
    """Send batches at this rate of orders over one stream; orders a second that were answered."""
    messages = batched(round(per_second * seconds / BATCH) * BATCH, BATCH)
    call = peer.stub.OrderEntry(metadata=peer.metadata)

    async def answers() -> int:
        return sum([len(response.replies) async for response in call])

    reading_answers = asyncio.create_task(answers())
    began = time.perf_counter()
    writing = asyncio.Lock()

    async def send(message: pb.OrderEntryRequest) -> None:
        async with writing:
            await call.write(message)

    await at_rate(send, messages, per_second / BATCH)
    await call.done_writing()
    answered = await reading_answers
    return answered / (time.perf_counter() - began)


async def commit_to_book(market: Venue, sizes: Sizes, output: Console) -> list[Figure]:
    """Turns of orders, and of bare messages as often as those made batches."""
    figures = []
    nc = await connect(market.cluster.nats_url, name="bare", on_closed=lambda: None)
    peer = await market.client(ENGINE)
    size = len(encode(made_deltas(1)[0]))

    async def publish(_: int) -> None:
        await nc.publish(_BARE, f"{time.monotonic_ns():020}".encode().ljust(size))

    async with reading(market.cluster.nats_url) as cut:
        for per_second in sizes.rates:
            turns: list[list[float]] = []
            bare_turns: list[list[float]] = []
            reached = []
            for turn in range(sizes.pairs):
                with output.status(f"commit to book, {per_second:,} orders/s, turn {turn + 1}"):
                    reached.append(await orders_at(peer, per_second, sizes.seconds))
                    times, _ = await cut()
                    await at_rate(
                        publish, range(round(per_second * sizes.seconds / BATCH)), per_second / BATCH
                    )
                    _, bare = await cut()
                if not times:
                    raise NothingHeard(
                        "no batch was both acknowledged and seen: is the journal's inbox another?"
                    )
                turns.append(sorted(times))
                bare_turns.append(sorted(bare))
            name = f"commit to a peer's book, {per_second:,} orders/s"
            figures += [
                paired(
                    *(PART, name, f"µs, {label}", [percentile(times, share) for times in turns]),
                    *("bare NATS message", [percentile(times, share) for times in bare_turns]),
                    lower_is_better=True,
                )
                for label, share in (("p50", 0.5), ("p99", 0.99))
            ]
            figures.append(alone(PART, name, "orders/s reached", reached))
    await nc.close()
    return figures


# ---------------------------------------------------------------- deltas a second


def made_deltas(count: int) -> list[BookDelta]:
    """Deltas of one book that each change a few of 200 levels, in order, with right checksums."""
    replica = BookReplica(SYMBOL)
    replica.load(1, 0, ())
    made = []
    for sequence in range(1, count + 1):
        levels: list[LevelChange] = []
        for change in range(LEVELS_CHANGED):
            number = sequence * LEVELS_CHANGED + change
            side = ASK if number % 2 else BID
            away = 1 + number * 7919 % 100
            price = 10_000 + away if side == ASK else 10_000 - away
            levels.append((side, price, number % 50, 1 if number % 50 else 0))
        made.append(
            BookDelta(
                epoch=1,
                sequence=sequence,
                previous_sequence=sequence - 1,
                batch_number=sequence,
                time_ns=0,
                levels=tuple(levels),
                checksum=replica.advance(sequence, levels),
            )
        )
    return made


async def _publish(url: str, count: int) -> None:
    """An engine's feed of one book: its heartbeats are real, its deltas were made beforehand."""
    payloads = [encode(delta) for delta in made_deltas(count)]
    nc = await connect(url, name="publisher", on_closed=lambda: None)
    market = MarketData(nc, ENGINE)
    await market.start(1, {SYMBOL: (0, ())})
    beating = asyncio.create_task(market.run())
    taken = asyncio.Semaphore(2)

    async def free(_: Msg) -> None:
        taken.release()

    async def send(subject: str) -> None:
        for start in range(0, count, WINDOW):
            await taken.acquire()
            for payload in payloads[start : start + WINDOW]:
                await nc.publish(subject, payload)
            await asyncio.sleep(0)

    async def go(message: Msg) -> None:
        sending.append(asyncio.create_task(send(message.data.decode())))

    sending: list[asyncio.Task[None]] = []
    await nc.subscribe(_TAKEN, cb=free)
    await nc.subscribe(_GO, cb=go)
    try:
        await asyncio.Event().wait()
    finally:
        beating.cancel()


class Taken(NamedTuple):
    """What a reader took in: messages a second, and microseconds of its processor time a message."""

    per_second: float
    cpu_us: float


def _run_publisher(url: str, count: int) -> None:
    uvloop.run(_publish(url, count))


async def deltas_a_second(url: str, count: int) -> tuple[Taken, Taken]:
    """One turn with a new publisher: a reader that keeps the book, and one that only counts."""
    process = multiprocessing.get_context("spawn").Process(target=_run_publisher, args=(url, count))
    process.start()
    nc = await connect(url, name="reader", on_closed=lambda: None)
    done = asyncio.Event()
    counted = 0
    pending: set[asyncio.Task[None]] = set()

    def count_one() -> None:
        nonlocal counted
        counted += 1
        if counted % WINDOW == 0:
            task = asyncio.create_task(nc.publish(_TAKEN, b""))
            pending.add(task)
            task.add_done_callback(pending.discard)
        if counted == count:
            done.set()

    async def raw(_: Msg) -> None:
        count_one()

    async def timed(subject: str) -> Taken:
        nonlocal counted
        counted = 0
        done.clear()
        began, used = time.perf_counter(), time.process_time()
        await nc.publish(_GO, subject.encode())
        async with asyncio.timeout(TURN_DEADLINE_S):
            while not done.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(done.wait(), timeout=0.5)
                if follower.peers[ENGINE].counters.losses > losses:
                    raise LostTrack("the reader took the engine for dead: is the machine very busy?")
        return Taken(count / (time.perf_counter() - began), (time.process_time() - used) / count * 1e6)

    follower = FeedFollower(nc, own_engine=None, on_change=lambda _engine, _symbol: count_one())
    following = asyncio.create_task(follower.run())
    try:
        await until(lambda: has_book(follower), JOIN_DEADLINE_S)
        losses = follower.peers[ENGINE].counters.losses
        kept = await timed(subjects.book(ENGINE, SYMBOL))
        replica = follower.peers[ENGINE].replicas[SYMBOL]
        assert (replica.synced, replica.sequence) == (True, count), "the reader's book is not the publisher's"
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await nc.subscribe(_RAW, cb=raw)
        bare = await timed(_RAW)
    finally:
        following.cancel()
        process.kill()
        process.join()
    await nc.close()
    return kept, bare


async def tried(url: str, count: int) -> tuple[Taken, Taken]:
    """A turn that the reader went through without losing track. Raises `LostTrack`."""
    for _ in range(TRIES - 1):
        with suppress(LostTrack):
            return await deltas_a_second(url, count)
    return await deltas_a_second(url, count)


async def sustained(sizes: Sizes, output: Console) -> list[Figure]:
    """Deltas a second that a reader takes in, checks and keeps."""
    kept: list[Taken] = []
    bare: list[Taken] = []
    count = sizes.deltas // WINDOW * WINDOW
    with tempfile.TemporaryDirectory() as directory:
        async with NatsServer(Path(directory)) as server:
            for turn in range(sizes.pairs):
                with output.status(f"{count:,} deltas, turn {turn + 1}"):
                    ours, other = await tried(server.url, count)
                kept.append(ours)
                bare.append(other)
    name = f"one reader, deltas of {LEVELS_CHANGED} levels"
    rates, costs = zip(*kept, strict=True)
    bare_rates, bare_costs = zip(*bare, strict=True)
    return [
        paired(PART, name, "deltas/s", rates, "nats-py alone", bare_rates),
        paired(
            *(PART, name, "reader CPU µs a delta", costs, "nats-py alone", bare_costs), lower_is_better=True
        ),
    ]


# ---------------------------------------------------------------- joining


async def joined_ms(url: str) -> tuple[float, float]:
    """Milliseconds until a new reader has the book, and until it trusts the engine's quotes."""
    nc = await connect(url, name="joiner", on_closed=lambda: None)
    follower = FeedFollower(nc, own_engine=None)
    began = time.perf_counter()
    following = asyncio.create_task(follower.run())
    book_ms = 0.0
    async with asyncio.timeout(JOIN_DEADLINE_S):
        while True:
            feed = follower.peers.get(ENGINE)
            replica = feed.replicas.get(SYMBOL) if feed else None
            now_ms = (time.perf_counter() - began) * 1e3
            if replica is not None and replica.synced and not book_ms:
                book_ms = now_ms
            if book_ms and feed is not None and feed.state is PeerState.LIVE:
                break
            await asyncio.sleep(0.001)
    following.cancel()
    await nc.close()
    return book_ms, now_ms


async def joining(market: Venue, sizes: Sizes, output: Console) -> list[Figure]:
    """How long a reader of a running market takes to join."""
    books, lives = [], []
    for turn in range(sizes.joins):
        with output.status(f"joining, {turn + 1} of {sizes.joins}"):
            book, live = await joined_ms(market.cluster.nats_url)
        books.append(book)
        lives.append(live)
    note = "an engine is trusted after two heartbeats, of which there is one every 100 ms"
    return [
        alone(PART, "joining, until the book is there", "ms", books, lower_is_better=True),
        alone(PART, "joining, until the engine is live", "ms", lives, lower_is_better=True, note=note),
    ]


async def measure(sizes: Sizes, output: Console) -> list[Figure]:
    """What needs a market first, then what needs only NATS."""
    async with venue() as market:
        figures = await commit_to_book(market, sizes, output)
        figures += await joining(market, sizes, output)
    return figures


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part."""
    figures = uvloop.run(measure(sizes, console()))

    return [*figures, *uvloop.run(sustained(sizes, console()))]


if __name__ == "__main__":
    standalone(
        PART,
        __doc__,
        Sizes(),
        run,
        pairs="",
        seconds="of load, a turn",
        rates="orders a second",
        deltas="a turn",
    )
