"""The commit loop among peers: what orders and answers wait for, and orders with legs out."""

import asyncio

from engine.commands import AwayQuote, CancelOrder, LegFill, LegResult, QueryLeg, ReplaceOrder, Uncross
from engine.digest import state_digest
from engine.events import Answered, LegSent
from engine.runtime.commit_loop import Submission
from engine.terms import OrderStatus
from tests.engine.runtime.rig import Rig, names, order, quiet, with_quotes
from tests.waiting import until


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
