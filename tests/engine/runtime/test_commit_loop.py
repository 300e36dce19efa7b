"""The commit loop, with a journal whose appends the test lets go by hand."""

import asyncio
import gc
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
from matchbus.v1 import matchbus_pb2 as pb

from bus.journal import MAX_RECORD_BYTES, MemoryJournal, PrimaryReplaced
from bus.records import Record
from engine.commands import (
    AddInstrument,
    AwayQuote,
    CancelAll,
    CancelOrder,
    Command,
    LegFill,
    LegResult,
    NewOrder,
    QueryLeg,
    ReplaceOrder,
    Uncross,
    decode,
)
from engine.digest import state_digest
from engine.events import Accepted, Answered, LegSent
from engine.runtime import commit_loop, wire
from engine.runtime.away import MAX_LEVELS, MAX_QUOTES
from engine.runtime.commit_loop import (
    AMPLE_COMMANDS,
    Batch,
    CommitLoop,
    JournalUnavailable,
    Overloaded,
    Retired,
    Submission,
)
from engine.runtime.recovery import begin_reign
from engine.state import State
from engine.terms import OrderStatus, RejectReason, Side
from tests.waiting import until

LARGEST_INT64 = 2**63 - 1
LARGEST_INT32 = 2**31 - 1
LONGEST_CLIENT = "c" * 64


class HeldJournal(MemoryJournal):
    """A memory journal whose appends wait until the test lets them go, when `held`."""

    def __init__(self) -> None:
        super().__init__(1)
        self.held = False
        self.asked: list[tuple[Command, ...]] = []
        self.fault: Exception | None = None
        self._permits = asyncio.Semaphore(0)

    async def append(self, epoch: int, time_ns: int, commands: bytes) -> int:
        """As Journal says, after `let_go`."""
        self.asked.append(decode(commands))
        if self.held:
            await self._permits.acquire()
        if self.fault is not None:
            raise self.fault
        return await super().append(epoch, time_ns, commands)

    def let_go(self) -> None:
        """Store one append."""
        self._permits.release()

    async def records(self) -> list[Record]:
        """All that is stored."""
        return [record async for record in MemoryJournal(1, self.stored).replay()]

    async def commands(self) -> list[Command]:
        """All commands stored, in order."""
        return [command for record in await self.records() for command in decode(record.commands)]

    def fall_silent(self) -> None:
        """The append in flight has had no answer for a long time."""
        self.unanswered_since = time.monotonic() - 3600
        self.trouble = "the disk is full"

    def recover(self) -> None:
        """The append in flight is stored, and every one after it at once."""
        self.unanswered_since = None
        self.held = False
        self.let_go()


class Rig:
    """One engine's commit loop with everything around it in the test's hands."""

    def __init__(self) -> None:
        self.state = State(1)
        self.journal = HeldJournal()
        self.happened: list[str] = []
        self.batches: list[Batch] = []
        self.planned: list[LegSent] = []
        self.clock_ns = 1_000
        self.attach: Callable[[Command], Command | None] = lambda command: command
        self.caught_up = asyncio.Event()
        self.caught_up.set()
        self.catch_ups = 0
        self.shown: list[asyncio.Future[None]] = []
        self.shows = False
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.release_trouble = "no room"
        self.has_peers = True
        self.delay_s = 0.0
        self.unrenewed_s = 0.0
        self.loop = CommitLoop(
            self.state,
            self.journal,
            catch_up=self._catch_up,
            attach=self._attach,
            legs_planned=self.planned.extend,
            release=self._release,
            release_trouble=lambda: self.release_trouble,
            unrenewed_s=lambda: self.unrenewed_s,
            has_peers=lambda: self.has_peers,
            delay_s=lambda: self.delay_s,
            utc_ns=lambda: self.clock_ns,
        )

    async def start(self) -> None:
        """Begin a reign and list one symbol."""
        await begin_reign(self.state, self.journal, 1, 1)
        async with self.running():
            await self.loop.submit_own(AddInstrument("AAPL", "0.01", "1"))
        self.journal.asked.clear()
        self.batches.clear()
        self.happened.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """`run` and `watch` for the length of a block; a fault of theirs fails the test."""
        tasks = [asyncio.create_task(self.loop.run()), asyncio.create_task(self.loop.watch())]
        try:
            yield tasks[0]
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    def submit(self, *commands: Command, may_take: bool = True) -> asyncio.Future[Submission]:
        """Queue commands."""
        return self.loop.submit(commands, may_take=may_take)

    async def asked(self, appends: int) -> None:
        """Wait until the journal was asked for so many appends, and all that can happen then has."""
        await until(lambda: len(self.journal.asked) >= appends)
        await quiet()

    def _attach(self, command: Command) -> Command | None:
        return self.attach(command)

    async def _catch_up(self) -> None:
        self.catch_ups += 1
        await self.caught_up.wait()

    async def _release(self, batch: Batch) -> Awaitable[None] | None:
        self.batches.append(batch)
        self.happened.append(f"release {batch.number}")
        await self.has_room.wait()
        if not self.shows:
            return None
        self.shown.append(asyncio.get_running_loop().create_future())
        return self.shown[-1]

    async def unseen(self) -> tuple[asyncio.Future[Submission], asyncio.Future[Submission]]:
        """An order that is stored and not shown to peers yet, and its repeat, which changes no book."""
        self.shows = True
        first = self.submit(order("a"))
        await until(lambda: self.shown)
        self.shows = False
        repeat = self.submit(order("a"))
        await until(lambda: len(self.batches) == 2)
        await quiet()
        return first, repeat


async def quiet() -> None:
    """Let everything run that can run without the test."""
    for _ in range(20):
        await asyncio.sleep(0)


async def stored(done: asyncio.Future[Submission], run: asyncio.Task[None]) -> None:
    """Wait for the journal to have all of a submission; the loop must not have ended."""
    waiting: set[asyncio.Future[Any]] = {done, run}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert not run.done(), run.exception()


def order(name: str, price: int = 100, side: Side = Side.BUY, quantity: int = 1) -> NewOrder:
    """A GTC limit order of alice."""
    return NewOrder("alice", name, "AAPL", side, 1, 1, price, quantity)


def names(commands: Iterable[Command]) -> list[str]:
    """The client order ids of new orders."""
    return [command.client_order_id for command in commands if isinstance(command, NewOrder)]


def largest_orders(count: int, character: str = "x") -> list[Command]:
    """Orders as large as the edge lets through, each string made of one character."""
    request = pb.NewOrder(
        client_order_id=character * 1_000,
        symbol=character * 1_000,
        side=LARGEST_INT32,  # type: ignore[arg-type]  # any enum value comes over the wire
        type=LARGEST_INT32,  # type: ignore[arg-type]  # likewise
        time_in_force=LARGEST_INT32,  # type: ignore[arg-type]  # likewise
        price=LARGEST_INT64,
        quantity=LARGEST_INT64,
        stop_price=LARGEST_INT64,
        display_quantity=LARGEST_INT64,
        post_only=True,
        self_trade_prevention=LARGEST_INT32,  # type: ignore[arg-type]  # likewise
        expire_time_ns=LARGEST_INT64,
        do_not_route=True,
    )
    return [wire.new_order(LONGEST_CLIENT, request)] * count


def quotes(peers: int, levels: int) -> tuple[AwayQuote, ...]:
    """Quotes with numbers as long as they get."""
    return tuple(
        AwayQuote(
            60_000 + peer, 2**40, 2**40, tuple((10**12 - step, LARGEST_INT64) for step in range(levels))
        )
        for peer in range(peers)
    )


def with_quotes(away: tuple[AwayQuote, ...]) -> Callable[[Command], Command]:
    """What `attach` does when the peers show `away`."""
    return lambda command: (
        msgspec.structs.replace(command, away=away) if isinstance(command, NewOrder | LegResult) else command
    )


@pytest.fixture
async def rig() -> Rig:
    """An engine in its first reign that trades AAPL."""
    made = Rig()
    await made.start()
    return made


@pytest.fixture
def small_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that hold four commands."""
    monkeypatch.setattr(commit_loop, "MAX_RECORD_BYTES", 5 * commit_loop._COMMAND_BYTES)


async def test_nothing_leaves_before_the_journal_has_it(rig: Rig) -> None:
    """No answer, no effect and no read before the append is acknowledged; then effects before answers."""
    rig.journal.held = True
    async with rig.running():
        done = rig.submit(order("a"))
        done.add_done_callback(lambda _: rig.happened.append("answer"))
        await rig.asked(1)
        read = asyncio.create_task(rig.loop.read(lambda: list(rig.state.orders)))
        read.add_done_callback(lambda _: rig.happened.append("read"))
        await quiet()
        assert rig.happened == []
        rig.journal.let_go()
        answers = (await done).answers
        orders = await read
    assert rig.happened[:2] == ["release 3", "answer"]
    assert [type(answer) for answer in answers] == [Accepted]
    assert len(orders) == 1


async def test_a_read_that_fails_is_its_readers_trouble(rig: Rig) -> None:
    """The commit loop goes on."""

    def fail() -> None:
        raise ValueError("a number that no message holds")

    rig.journal.held = True
    async with rig.running():
        done = rig.submit(order("a"))
        await rig.asked(1)
        failing, reading = (asyncio.create_task(rig.loop.read(query)) for query in (fail, lambda: None))
        await quiet()
        rig.journal.let_go()
        await done
        with pytest.raises(ValueError, match="a number"):
            await failing
        await reading


async def test_a_reader_that_gave_up_harms_nobody(rig: Rig) -> None:
    """Its answer is dropped, the other readers get theirs."""
    rig.journal.held = True
    async with rig.running():
        done = rig.submit(order("a"))
        await rig.asked(1)
        impatient, patient = (asyncio.create_task(rig.loop.read(lambda: 7)) for _ in range(2))
        await quiet()
        impatient.cancel()
        rig.journal.let_go()
        await done
        assert await patient == 7


async def test_what_arrives_during_an_append_is_the_next_batch(rig: Rig) -> None:
    """One append in flight at a time, and one record for all that came meanwhile, in the order it came."""
    rig.journal.held = True
    async with rig.running():
        first = rig.submit(order("a"))
        await rig.asked(1)
        later = [rig.submit(order(name)) for name in "bcd"]
        await quiet()
        assert len(rig.journal.asked) == 1
        rig.journal.let_go()
        await first
        await rig.asked(2)
        assert not any(done.done() for done in later)
        rig.journal.let_go()
        await asyncio.gather(*later)
    assert [names(asked) for asked in rig.journal.asked] == [["a"], ["b", "c", "d"]]
    assert [batch.number for batch in rig.batches] == [3, 4]


async def test_it_is_idle_once_effects_are_out(rig: Rig) -> None:
    """Not while a batch is on its way to the journal, nor while it is let out: a hand-over waits for both."""
    rig.journal.held = True
    rig.has_room.clear()
    async with rig.running():
        await quiet()
        assert rig.loop.is_idle
        done = rig.submit(order("a"))
        await rig.asked(1)
        assert not rig.loop.is_idle
        rig.journal.let_go()
        await until(lambda: rig.batches)
        await quiet()
        assert not rig.loop.is_idle
        rig.has_room.set()
        await done
        await quiet()
        assert rig.loop.is_idle


async def test_a_small_batch_waits_for_more_while_told_to(rig: Rig) -> None:
    """Commands that come one by one during the delay share a record, which leaves once it is ample."""
    rig.delay_s = 3600.0
    given = [f"o{number}" for number in range(AMPLE_COMMANDS)]
    answers = []
    async with rig.running():
        for name in given:
            assert rig.journal.asked == []
            answers.append(rig.submit(order(name)))
            await quiet()
        await asyncio.gather(*answers)
    assert [names(commands) for commands in rig.journal.asked] == [given]


async def test_a_small_batch_waits_no_longer_than_told(rig: Rig) -> None:
    """When nothing more comes, a command is stored all the same."""
    rig.delay_s = 0.001
    async with rig.running():
        assert (await rig.submit(order("o1"))).answers
    assert rig.loop.batch_delay_s == rig.delay_s


async def test_what_was_answered_is_let_go_at_once(rig: Rig) -> None:
    """Nothing of a command is left for the garbage collector, for whose work every command would wait."""
    given = [f"o{number}" for number in range(10)]
    gc.collect()  # what other tests have left
    async with rig.running():
        gc.disable()
        try:
            for name in (*given, "last"):  # of the last batch the loop may still have something
                await rig.submit(order(name))
            alive = [one for one in gc.get_objects() if type(one) is Submission]
        finally:
            gc.enable()
    assert not {name for submission in alive for name in names(submission.commands)} & set(given)


async def test_each_command_is_answered_by_its_last_event(rig: Rig) -> None:
    """Answers stand in the order of the commands, whatever each came to."""
    async with rig.running():
        submission = await rig.submit(
            order("a"), order("", 5), order("b", 100, Side.SELL), CancelOrder("alice", 0, "nobody")
        )
    rests, refused, trades, unknown = submission.answers
    assert isinstance(rests, Accepted)
    assert isinstance(refused, Answered)
    assert refused.reject_reason == RejectReason.INVALID_CLIENT_ORDER_ID
    assert isinstance(trades, Answered)
    assert (trades.client_order_id, trades.status) == ("b", OrderStatus.FILLED)
    assert isinstance(unknown, Answered)
    assert unknown.reject_reason == RejectReason.UNKNOWN_ORDER


@pytest.mark.parametrize("character", ["x", "é", "語", "\U0001f600"])
async def test_records_of_the_largest_commands_fit(rig: Rig, character: str) -> None:
    """However long a client's strings are in bytes, no record is larger than the journal takes."""
    async with rig.running() as run:
        done = rig.submit(*largest_orders(2_500, character))
        await stored(done, run)
    records = await rig.journal.records()
    assert len(records) > 3
    assert all(len(record.commands) <= MAX_RECORD_BYTES for record in records)


@pytest.mark.parametrize(
    ("peers", "levels"), [(1, 1), (3, 20), (30, 20), (100, 20), (MAX_QUOTES, 1), (MAX_QUOTES, MAX_LEVELS)]
)
async def test_records_with_away_quotes_fit(rig: Rig, peers: int, levels: int) -> None:
    """What peers show goes into the record too, and is counted; no command is lost, doubled or moved."""
    rig.attach = with_quotes(quotes(peers, levels))
    commands = [order(f"{number}", 1) for number in range(300)]
    async with rig.running() as run:
        done = rig.submit(*commands)
        await stored(done, run)
    records = await rig.journal.records()
    assert all(len(record.commands) <= MAX_RECORD_BYTES for record in records)
    assert names(await rig.journal.commands()) == names(commands)


@pytest.mark.parametrize("has_peers", [True, False])
async def test_records_with_results_of_legs_fit(rig: Rig, *, has_peers: bool) -> None:
    """A leg may bring back hundreds of fills: they are counted as well, also when its peer is gone."""
    rig.has_peers = has_peers
    fills = tuple(
        LegFill((2 << 48) + number, 10**12, 10**12, (2 << 48) + number, 2**60) for number in range(500)
    )
    async with rig.running() as run:
        results = [rig.loop.submit_own(LegResult(leg, fills)) for leg in range(40)]
        await stored(results[-1], run)
    assert all(len(record.commands) <= MAX_RECORD_BYTES for record in await rig.journal.records())


@pytest.mark.usefixtures("small_records")
async def test_a_submission_larger_than_a_record_is_answered_once(rig: Rig) -> None:
    """It spans batches, and its one future waits for the last part."""
    rig.journal.held = True
    expected = [f"o{number}" for number in range(10)]
    async with rig.running():
        done = rig.submit(*(order(name) for name in expected))
        behind = rig.submit(order("behind"))
        for part in (1, 2, 3):
            await rig.asked(part)
            assert not done.done()
            rig.journal.let_go()
        submission = await done
        await behind
    assert [names(asked) for asked in rig.journal.asked] == [
        expected[:4],
        expected[4:8],
        [*expected[8:], "behind"],
    ]
    assert [answer.client_order_id for answer in submission.answers if type(answer) is Accepted] == expected
    assert rig.loop.queued_commands == 0


async def test_a_batch_that_computes_for_long_takes_no_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little its commands weigh, the event loop gets its turn; each is answered once."""
    monkeypatch.setattr("engine.runtime.commit_loop.MAX_BATCH_S", 0.0)
    async with rig.running() as run:
        done = rig.submit(*(order(f"o{number}") for number in range(5)))
        await stored(done, run)
        assert [names(batch.commands) for batch in rig.batches] == [[f"o{number}"] for number in range(5)]
        assert len(done.result().answers) == 5


async def test_one_client_cannot_fill_the_queue(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its share is refused beyond; others, and peers' legs, have room; then it has room again."""
    monkeypatch.setattr(commit_loop, "MAX_CLIENTS_SHARE", 2)
    waiting = [rig.loop.submit([order("a"), order("b")], client="ann")]
    with pytest.raises(Overloaded, match="2 commands of this client are waiting, 2 is the limit"):
        rig.loop.submit([order("c")], client="ann")
    waiting.append(rig.loop.submit([order("d")], client="bob"))
    await rig.loop.wait_for_share("bob", 1)
    more = asyncio.create_task(rig.loop.wait_for_share("ann", 1))
    await quiet()
    assert not more.done()
    waiting += [rig.submit(order(name)) for name in "efg"]
    async with rig.running():
        await asyncio.gather(*waiting)
        await more
        await rig.loop.submit([order("c"), order("h")], client="ann")


@pytest.mark.usefixtures("small_records")
async def test_a_share_is_given_back_while_others_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that is never empty, as under load, does not use up a client's share."""
    monkeypatch.setattr(commit_loop, "MAX_CLIENTS_SHARE", 3)
    rig.journal.held = True
    async with rig.running():
        waiting = [
            rig.loop.submit([order("a"), order("b"), order("c")], client="ann"),
            rig.submit(*(order(f"o{number}") for number in range(4))),
        ]
        await rig.asked(1)
        assert rig.loop.queued_commands
        waiting.append(rig.loop.submit([order("d"), order("e"), order("f")], client="ann"))
        rig.journal.recover()
        await asyncio.gather(*waiting)


async def test_who_waits_for_its_share_hears_of_a_silent_journal(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream is not read on until there is room: it may not wait for that until the journal answers."""
    monkeypatch.setattr(commit_loop, "MAX_CLIENTS_SHARE", 1)
    rig.journal.held = True
    async with rig.running():
        rig.submit(order("in flight"))
        await rig.asked(1)
        rig.loop.submit([order("queued")], client="ann")
        more = asyncio.create_task(rig.loop.wait_for_share("ann", 1))
        await quiet()
        assert not more.done()
        rig.journal.fall_silent()
        await asyncio.wait_for(more, 2)
        with pytest.raises(JournalUnavailable):
            rig.loop.submit([order("next")], client="ann")
        rig.journal.recover()


@pytest.mark.parametrize("full", ["MAX_CLIENTS_SHARE", "MAX_QUEUED_COMMANDS"])
async def test_a_cancel_that_comes_alone_has_room_when_there_is_none(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    """However busy the client's streams or others are, it can take its risk off; this is bounded too."""
    monkeypatch.setattr(commit_loop, full, 2)
    monkeypatch.setattr(commit_loop, "RESERVE_FOR_CANCELS", 2)
    waiting = [rig.loop.submit([order("a"), order("b")], client="ann")]
    cancels = (CancelOrder("ann", 0, "a"), CancelAll("ann", "", 0))
    waiting += [rig.loop.submit([cancel], client="ann") for cancel in cancels]
    for untaken in ([order("c")], [cancels[0]], [cancels[1]]):
        with pytest.raises(Overloaded, match=r"4 commands .* waiting"):
            rig.loop.submit(untaken, client="ann")
    async with rig.running():
        await asyncio.gather(*waiting)
        with pytest.raises(Overloaded, match=r"0 commands .* waiting, 2 is the limit"):
            rig.loop.submit([*cancels, cancels[0]], client="ann")


async def test_a_full_queue_takes_none_of_a_submission(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused whole; what the engine owes itself is taken all the same; later there is room again."""
    monkeypatch.setattr(commit_loop, "MAX_QUEUED_COMMANDS", 3)
    first = rig.submit(order("a"), order("b"))
    with pytest.raises(Overloaded, match="2 commands are waiting, 3 is the limit"):
        rig.submit(order("c"), order("d"))
    assert rig.loop.untaken == {Overloaded: 2}
    assert rig.loop.queued_commands == 2
    own = rig.loop.submit_own(QueryLeg(2 << 48, 2))
    last = rig.loop.submit_own(QueryLeg(2 << 48, 2))
    async with rig.running():
        await asyncio.gather(first, own, last)
        await rig.submit(order("e"), order("f"), order("g"))
    assert names(await rig.journal.commands()) == ["a", "b", "e", "f", "g"]


@pytest.mark.parametrize(
    ("has_peers", "count", "answers_first"),
    [(True, 1, False), (False, 1, True), (False, AMPLE_COMMANDS - 1, True), (False, AMPLE_COMMANDS, False)],
)
async def test_answers_wait_for_effects_where_that_is_of_use(
    rig: Rig, has_peers: bool, count: int, answers_first: bool
) -> None:
    """Alone, an engine answers a small batch first; peers must see a change before its client hears of it."""
    rig.has_peers = has_peers
    async with rig.running():
        done = rig.submit(*(order(f"o{number}") for number in range(count)))
        done.add_done_callback(lambda _: rig.happened.append("answer"))
        await done
        await until(lambda: len(rig.happened) == 2)
    effects = f"release {rig.batches[-1].number}"
    assert rig.happened == (["answer", effects] if answers_first else [effects, "answer"])


async def test_a_silent_journal_is_told_to_all_who_wait(rig: Rig) -> None:
    """In flight, queued, new or reading: JournalUnavailable, with the reason.

    What the engine owes itself waits and is done later.
    """
    rig.journal.held = True
    async with rig.running():
        in_flight = rig.submit(order("in flight"))
        await rig.asked(1)
        queued = rig.submit(order("queued"))
        own = rig.loop.submit_own(QueryLeg(2 << 48, 2))
        reading = asyncio.create_task(rig.loop.read(lambda: None))
        await asyncio.sleep(0)
        rig.journal.fall_silent()
        for done in (in_flight, queued, reading, asyncio.create_task(rig.loop.read(lambda: None))):
            with pytest.raises(JournalUnavailable, match="the disk is full"):
                await asyncio.wait_for(done, 2)
        with pytest.raises(JournalUnavailable, match="the disk is full"):
            rig.submit(order("new"))
        assert not own.done()
        assert rig.loop.queued_commands == 1
        assert rig.batches == []
        rig.journal.recover()
        again = await rig.submit(order("in flight"), order("queued"))
        await own
    first, second = again.answers
    assert isinstance(first, Answered)
    assert first.duplicate, "it was stored after all"
    assert isinstance(second, Accepted)
    assert QueryLeg(2 << 48, 2) in await rig.journal.commands()


async def test_an_end_is_told_to_all_who_wait(rig: Rig) -> None:
    """In flight, queued or reading: JournalUnavailable, as it may be stored. What is new is not taken."""
    rig.journal.held = True
    async with rig.running():
        in_flight = rig.submit(order("in flight"))
        await rig.asked(1)
        queued = rig.submit(order("queued"))
        reading = asyncio.create_task(rig.loop.read(lambda: None))
        await asyncio.sleep(0)
    rig.loop.end()
    for done in (in_flight, queued, reading):
        with pytest.raises(JournalUnavailable, match="this process ends"):
            await asyncio.wait_for(done, 2)
    with pytest.raises(Retired):
        rig.submit(order("new"))
    with pytest.raises(JournalUnavailable, match="this process ends"):
        await asyncio.wait_for(rig.loop.read(lambda: None), 2)


async def test_an_end_is_told_to_who_waits_until_peers_can_see(rig: Rig) -> None:
    """What changed a book, and what waits behind it."""
    async with rig.running():
        first, repeat = await rig.unseen()
    for done in (first, repeat):
        with pytest.raises(JournalUnavailable, match="this process ends"):
            await asyncio.wait_for(done, 2)


async def test_reports_without_room_are_told_to_all_who_wait(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full stream of execution reports is as a journal that is silent; with room, all goes on.

    What the journal has can be read meanwhile.
    """
    monkeypatch.setattr(commit_loop, "JOURNAL_PATIENCE_S", 0.05)
    rig.has_room.clear()
    async with rig.running():
        committed = rig.submit(order("committed"))
        await until(lambda: bool(rig.batches))
        queued = rig.submit(order("queued"))
        for done in (committed, queued):
            with pytest.raises(JournalUnavailable, match="execution reports cannot be stored: no room"):
                await asyncio.wait_for(done, 2)
        with pytest.raises(JournalUnavailable, match="no room"):
            rig.submit(order("new"))
        assert await rig.loop.read(lambda: len(rig.state.orders)) == 1
        rig.has_room.set()
        await until(lambda: not rig.loop.trouble())
        first, second = (await rig.submit(order("committed"), order("queued"))).answers
    assert isinstance(first, Answered)
    assert first.duplicate, "the journal had it"
    assert isinstance(second, Accepted)


async def test_reports_that_are_only_many_are_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """While they are stored nobody is refused, however long there is no room for more."""
    monkeypatch.setattr(commit_loop, "JOURNAL_PATIENCE_S", 0.05)
    rig.release_trouble = ""
    rig.has_room.clear()
    async with rig.running():
        committed = rig.submit(order("committed"))
        await until(lambda: bool(rig.batches))
        queued = rig.submit(order("queued"))
        done, _ = await asyncio.wait((committed, queued), timeout=3 * commit_loop._WATCH_PERIOD_S)
        assert not done
        rig.has_room.set()
        await asyncio.gather(committed, queued, rig.submit(order("new")))


async def test_who_may_have_been_replaced_shows_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease was not renewed, nor anything stored: no read is answered, until either is."""
    monkeypatch.setattr(commit_loop, "REIGN_PATIENCE_S", 0.05)
    rig.unrenewed_s = 3600.0
    await until(rig.loop.doubt)
    async with rig.running():
        with pytest.raises(JournalUnavailable, match="another process may have taken over"):
            await rig.loop.read(lambda: None)
        rig.unrenewed_s = 0.0
        assert await rig.loop.read(lambda: len(rig.state.orders)) == 0


async def test_without_the_lease_orders_are_taken(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal's fence alone decides; its stream may have a leader while that of the lease elects one."""
    monkeypatch.setattr(commit_loop, "REIGN_PATIENCE_S", 0.2)
    rig.unrenewed_s = 3600.0
    async with rig.running():
        for number, name in enumerate("ab", 1):
            await until(rig.loop.doubt)
            assert not rig.loop.trouble()
            await rig.submit(order(name))
            assert await rig.loop.read(lambda: len(rig.state.orders)) == number


async def test_a_short_while_without_the_lease_is_nobodys_trouble(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as nats-server takes to start again; what is read is never older than the 4 s promised."""
    monkeypatch.setattr(rig.loop, "_stored_from", -math.inf)
    async with rig.running():
        rig.unrenewed_s = 4.1
        assert rig.loop.doubt()
        rig.unrenewed_s = 3.5
        assert await rig.loop.read(lambda: len(rig.state.orders)) == 0
        await rig.submit(order("a"))


async def test_what_is_stored_shows_who_reigns_as_well_as_the_lease_does(rig: Rig) -> None:
    """The lease may be the only thing that cannot be stored, while its stream elects a leader."""
    async with rig.running():
        rig.unrenewed_s = 3600.0
        await rig.submit(order("a"))
        assert await rig.loop.read(lambda: len(rig.state.orders)) == 1
        assert not rig.loop.doubt()


async def test_an_append_shows_who_reigned_when_it_began(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record may be stored long before its answer comes, and another may have taken over since."""
    monkeypatch.setattr(commit_loop, "REIGN_PATIENCE_S", 0.2)
    rig.unrenewed_s = 3600.0
    rig.journal.held = True
    async with rig.running():
        done = rig.submit(order("a"))
        await rig.asked(1)
        await asyncio.sleep(commit_loop.REIGN_PATIENCE_S)
        rig.journal.let_go()
        await done
        assert rig.loop.doubt()


async def test_a_silent_journal_is_no_error_to_those_who_left(rig: Rig) -> None:
    """A stream that ended at its first refusal leaves commands nobody waits for: nothing is logged."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    rig.journal.held = True
    async with rig.running():
        rig.submit(order("in flight"))
        await rig.asked(1)
        rig.submit(order("left alone"))
        rig.journal.fall_silent()
        await until(lambda: not rig.loop.queued_commands)
        rig.journal.recover()
    gc.collect()
    assert complaints == []


async def test_a_journal_that_is_slow_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its patience nobody hears of it."""
    looks: list[str] = []
    trouble = rig.loop.trouble

    def look() -> str:
        looks.append(trouble())
        return looks[-1]

    rig.journal.held = True
    async with rig.running():
        done = rig.submit(order("a"))
        await rig.asked(1)
        rig.journal.unanswered_since = time.monotonic() - commit_loop.JOURNAL_PATIENCE_S + 1.0
        monkeypatch.setattr(rig.loop, "trouble", look)
        await until(lambda: len(looks) >= 2)
        assert not done.done()
        second = rig.submit(order("b"))
        rig.journal.recover()
        await asyncio.gather(done, second)


@pytest.mark.usefixtures("small_records")
async def test_a_submission_that_was_begun_is_finished(rig: Rig) -> None:
    """Its waiter has given up on the silent journal, but a part may be stored: so all of it will be."""
    rig.journal.held = True
    async with rig.running():
        begun = rig.submit(*(order(f"o{number}") for number in range(6)))
        await rig.asked(1)
        untouched = rig.submit(order("untouched"))
        rig.journal.fall_silent()
        for done in (begun, untouched):
            with pytest.raises(JournalUnavailable):
                await asyncio.wait_for(done, 2)
        rig.journal.recover()
        await until(lambda: len(rig.batches) == 2)
    assert names(await rig.journal.commands()) == [f"o{number}" for number in range(6)]
    assert rig.loop.queued_commands == 0


async def test_giving_up_takes_no_command_back(rig: Rig) -> None:
    """A waiter that is cancelled, queued or in flight, changes nothing for its commands nor for others."""
    rig.journal.held = True
    async with rig.running():
        in_flight = rig.submit(order("a"))
        await rig.asked(1)
        queued, other = rig.submit(order("b")), rig.submit(order("c"))
        in_flight.cancel()
        queued.cancel()
        rig.journal.recover()
        await other
    assert names(await rig.journal.commands()) == ["a", "b", "c"]


async def test_answers_wait_until_the_batch_is_shown(rig: Rig) -> None:
    """The next batch does not: its append begins, and is stored, while the first answers still wait."""
    rig.shows = True
    async with rig.running():
        first = rig.submit(order("a"))
        await rig.asked(1)
        second = rig.submit(order("b"))
        await rig.asked(2)
        assert [batch.number for batch in rig.batches] == [3, 4]
        assert (first.done(), second.done()) == (False, False)
        rig.shown[0].set_result(None)
        await asyncio.wait_for(first, 1)
        assert not second.done()
        rig.shown[1].set_result(None)
        await asyncio.wait_for(second, 1)


async def test_an_answer_waits_for_what_it_rests_on(rig: Rig) -> None:
    """A repeat changes no book, but it says that the order rests, and peers cannot see that yet."""
    async with rig.running():
        first, repeat = await rig.unseen()
        assert not repeat.done()
        rig.shown[0].set_result(None)
        await asyncio.wait_for(asyncio.gather(first, repeat), 1)
        await asyncio.wait_for(rig.submit(order("a")), 1)


async def test_legs_do_not_wait_for_what_they_rest_on(rig: Rig) -> None:
    """Their answers leave by the same connection as the changes, behind them; a client's do not."""
    async with rig.running():
        first, _ = await rig.unseen()
        await asyncio.wait_for(rig.submit(QueryLeg(2 << 48, 2), may_take=False), 1)
        rig.shows = True
        await asyncio.wait_for(rig.submit(QueryLeg(3 << 48, 3), may_take=False), 1)
        assert not first.done()


async def test_orders_are_sequenced_after_catching_up(rig: Rig) -> None:
    """They may take what peers show, so every quote that was shown before must be here."""
    rig.caught_up.clear()
    async with rig.running():
        done = rig.submit(order("a"))
        await until(lambda: rig.catch_ups == 1)
        await quiet()
        assert rig.journal.asked == []
        assert rig.state.orders == {}
        rig.caught_up.set()
        await done


async def test_legs_and_results_do_not_wait_for_quotes(rig: Rig) -> None:
    """They take nothing from peers, and a peer waits for them."""
    rig.caught_up.clear()
    async with rig.running():
        await asyncio.wait_for(rig.submit(QueryLeg(2 << 48, 2), may_take=False), 1)
        await asyncio.wait_for(rig.loop.submit_own(LegResult(1, ())), 1)
    assert rig.catch_ups == 0


async def test_who_comes_during_the_catch_up_needs_another(rig: Rig) -> None:
    """Its quotes may be newer than those that were waited for: the batch takes only who was there before."""
    rig.caught_up.clear()
    async with rig.running():
        before = rig.submit(order("before"), order("too"))
        await until(lambda: rig.catch_ups == 1)
        after = rig.submit(order("after"))
        rig.caught_up.set()
        await asyncio.gather(before, after)
    assert rig.catch_ups == 2
    assert [names(asked) for asked in rig.journal.asked] == [["before", "too"], ["after"]]


async def test_a_command_with_nothing_left_to_do_is_no_record(rig: Rig) -> None:
    """An Uncross that finds nothing crossed is answered with None and stored nowhere, the state as before."""
    rig.attach = lambda command: None if isinstance(command, Uncross) else command
    rig.clock_ns = 9_000
    before = state_digest(rig.state)
    async with rig.running():
        submission = await asyncio.wait_for(rig.loop.submit_own(Uncross("AAPL", 1, ())), 1)
        assert submission.answers == [None]
        assert rig.journal.asked == []
        assert state_digest(rig.state) == before
        await rig.submit(order("a"))
        assert rig.batches[0].number == 3
    assert rig.loop.queued_commands == 0


async def send_leg(rig: Rig) -> tuple[Submission, LegSent]:
    """Alice buys 5 at 100, all of which only peer 2 shows."""
    rig.attach = with_quotes((AwayQuote(2, 1, 9, ((100, 5),)),))
    submission = await rig.submit(order("a", quantity=5))
    rig.attach = lambda command: command
    (leg,) = (event for batch in rig.batches for event in batch.events if isinstance(event, LegSent))
    return submission, leg


def status_of(submission: Submission) -> int:
    """Of the first answer."""
    answer = submission.answers[0]
    assert isinstance(answer, Answered)
    return answer.status


async def test_an_order_with_a_leg_out_is_answered_again(rig: Rig) -> None:
    """PENDING at once; FILLED for the first asker and for every repeat, once the journal has the result."""
    async with rig.running():
        first, leg = await send_leg(rig)
        repeat = await rig.submit(order("a", quantity=5))
        refused = await rig.submit(ReplaceOrder("alice", leg.order_id, "", 101, 5))
        assert [status_of(submission) for submission in (first, repeat, refused)] == [
            OrderStatus.PENDING,
            OrderStatus.PENDING,
            OrderStatus.REJECTED,
        ]
        waiting = [first.settling[0], repeat.settling[0]]
        assert refused.settling == {}
        await quiet()
        assert not any(future.done() for future in waiting)
        rig.journal.held = True
        rig.loop.submit_own(LegResult(leg.leg_id, (LegFill(2 << 48, 99, 5, 7, 1),)))
        await rig.asked(len(rig.journal.asked) + 1)
        assert not any(future.done() for future in waiting)
        rig.journal.recover()
        settled = await asyncio.wait_for(asyncio.gather(*waiting), 1)
        after = await rig.submit(order("a", quantity=5))
    for answer in settled:
        assert (answer.status, answer.cumulative, answer.value) == (OrderStatus.FILLED, 5, 495)
    assert status_of(after) == OrderStatus.FILLED
    assert after.settling == {}


async def test_each_pending_order_of_a_submission_settles_by_itself(rig: Rig) -> None:
    """By its position among the commands."""
    rig.attach = with_quotes((AwayQuote(2, 1, 9, ((100, 5),)),))
    async with rig.running():
        submission = await rig.submit(order("low", 50), order("a"), order("b"))
        legs = [event for batch in rig.batches for event in batch.events if isinstance(event, LegSent)]
        assert [leg.order_id for leg in legs] == [(1 << 48) + 2, (1 << 48) + 3]
        assert sorted(submission.settling) == [1, 2]
        rig.attach = lambda command: command
        await rig.loop.submit_own(LegResult(legs[1].leg_id, (LegFill(2 << 48, 100, 1, 7, 1),)))
        answer = await asyncio.wait_for(submission.settling[2], 1)
        assert (answer.client_order_id, answer.status) == ("b", OrderStatus.FILLED)
        assert not submission.settling[1].done()


async def test_an_order_whose_leg_comes_back_empty_settles_too(rig: Rig) -> None:
    """It rests, and says so."""
    async with rig.running():
        first, leg = await send_leg(rig)
        await rig.loop.submit_own(LegResult(leg.leg_id, ()))
        answer = await asyncio.wait_for(first.settling[0], 1)
    assert (answer.status, answer.leaves, answer.cumulative) == (OrderStatus.NEW, 5, 0)


async def test_the_leg_that_another_one_leads_to_is_planned_too(rig: Rig) -> None:
    """Or what its peer shows would be handed out again; until it is back too the order has no answer."""
    async with rig.running():
        first, leg = await send_leg(rig)
        rig.attach = with_quotes((AwayQuote(3, 1, 9, ((100, 5),)),))
        await rig.loop.submit_own(LegResult(leg.leg_id, ()))
        assert [planned.peer for planned in rig.planned] == [2, 3]
        assert not first.settling[0].done()
        rig.attach = lambda command: command
        await rig.loop.submit_own(LegResult(rig.planned[1].leg_id, ()))
        assert (await asyncio.wait_for(first.settling[0], 1)).status == OrderStatus.NEW


async def test_a_late_show_settles_only_its_own_batch(rig: Rig) -> None:
    """An order rests, is taken out again by an Uncross and cancelled, before its resting was shown.

    Who waits for the cancel must hear how that ended, not that the order rests.
    """
    rig.shows = True
    async with rig.running():
        rig.attach = with_quotes((AwayQuote(2, 1, 9, ((100, 5),)),))
        rig.submit(order("a", quantity=5))
        await until(lambda: len(rig.shown) == 1)
        rig.attach = lambda command: command
        (leg,) = (event for event in rig.batches[0].events if isinstance(event, LegSent))
        rig.loop.submit_own(LegResult(leg.leg_id, ()))
        await until(lambda: len(rig.shown) == 2)
        rig.loop.submit_own(Uncross("AAPL", 1, (AwayQuote(2, 1, 10, ((100, 3),)),)))
        await until(lambda: len(rig.shown) == 3)
        cancelling = rig.submit(CancelOrder("alice", leg.order_id))
        await until(lambda: len(rig.shown) == 4)
        for shown in rig.shown:
            shown.set_result(None)
            await quiet()
        cancel = await cancelling
        assert status_of(cancel) == OrderStatus.PENDING
        (again,) = (event for event in rig.batches[2].events if isinstance(event, LegSent))
        rig.shows = False
        await rig.loop.submit_own(LegResult(again.leg_id, (LegFill(2 << 48, 100, 1, 7, 1),)))
        answer = await asyncio.wait_for(cancel.settling[0], 1)
    assert (answer.status, answer.cumulative, answer.leaves) == (OrderStatus.CANCELLED, 1, 0)


async def test_time_never_goes_back(rig: Rig) -> None:
    """Where the clock steps back, batches keep the newest time there was."""
    async with rig.running():
        for clock_ns in (5_000, 4_000, 6_000):
            rig.clock_ns = clock_ns
            await rig.submit(order(str(clock_ns)))
    assert [record.time_ns for record in await rig.journal.records()][-3:] == [5_000, 5_000, 6_000]


async def test_a_replaced_engine_says_nothing_more(rig: Rig) -> None:
    """The fault ends the loop; what was not stored is neither answered nor released."""
    rig.journal.fault = PrimaryReplaced("JOURNAL_1", 3, 1, 2)
    done = rig.submit(order("a"))
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(rig.loop.run(), 1)
    assert raised.group_contains(PrimaryReplaced)
    assert not done.done()
    assert rig.batches == []
