"""The commit loop where something does not answer: the journal, the reports, the lease; and its end."""

import asyncio
import gc
import math
import time

import pytest

from engine.commands import QueryLeg
from engine.events import Accepted, Answered
from engine.runtime import commit_loop
from engine.runtime.commit_loop import JournalUnavailable, Retired
from tests.engine.runtime.rig import Rig, names, order
from tests.waiting import until


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
