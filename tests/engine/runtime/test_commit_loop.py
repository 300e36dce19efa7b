"""The commit loop: what makes a batch, what a record holds, who may queue, and who is answered when."""

import asyncio
import gc

import pytest
from matchbus.v1 import matchbus_pb2 as pb

from bus.journal import MAX_RECORD_BYTES, PrimaryReplaced
from engine.commands import AwayQuote, CancelAll, CancelOrder, Command, LegFill, LegResult, QueryLeg
from engine.events import Accepted, Answered
from engine.runtime import commit_loop, wire
from engine.runtime.away import MAX_LEVELS, MAX_QUOTES
from engine.runtime.commit_loop import AMPLE_COMMANDS, JournalUnavailable, Overloaded, Submission
from engine.terms import OrderStatus, RejectReason, Side
from tests.engine.runtime.rig import Rig, names, order, quiet, stored, with_quotes
from tests.waiting import until

LARGEST_INT64 = 2**63 - 1
LARGEST_INT32 = 2**31 - 1
LONGEST_CLIENT = "c" * 64


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
