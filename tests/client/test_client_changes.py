"""Cancel and replace against an engine that breaks the stream at chosen points; which order an id means."""

import asyncio
import time
from decimal import Decimal
from typing import Any

import grpc
import pytest
from matchbus.v1 import matchbus_pb2 as pb

from client import ClientClosed, RejectReason, Unavailable
from tests.client.fake_venue import COARSE, FakeEngine, FakeVenue, in_flight, refusal
from tests.waiting import until

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def test_cancel_and_replace_by_either_id(venue: FakeVenue) -> None:
    """An order is replaced and cancelled by the engine's id as by the client's."""
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "1", "2")
        replaced = await client.replace(client_order_id=order.client_order_id, price="3", quantity="2")
        assert replaced.leaves_quantity == Decimal(2)
        cancelled = await client.cancel(order_id=order.order_id)
        assert (cancelled.status, cancelled.leaves_quantity) == ("cancelled", Decimal(0))
        again = await client.cancel(order_id=order.order_id)
        assert again.reject_reason is RejectReason.ORDER_CLOSED
        assert again.state is None
    assert venue.engines[0].commands[1].replace.price == 300


async def test_a_replace_may_follow_its_order_at_once(venue: FakeVenue) -> None:
    """It goes out behind the order, whose answer nobody has yet."""
    engine = venue.engines[0]
    engine.hold = asyncio.Event()
    async with venue.client() as client, asyncio.timeout(20):
        order = asyncio.create_task(client.submit("AAPL", "buy", "1", "2", client_order_id="mine"))
        await until(lambda: in_flight(client) == 1)
        replace = asyncio.create_task(client.replace(client_order_id="mine", price="3", quantity="2"))
        await until(lambda: in_flight(client) == 2 or replace.done())
        engine.hold.set()
        assert (await order).leaves_quantity == Decimal(1)
        assert (await replace).leaves_quantity == Decimal(2)


@pytest.mark.parametrize("by", ["order_id", "client_order_id"])
async def test_an_id_used_again_is_of_the_order_that_was_entered(venue: FakeVenue, by: str) -> None:
    """An order that never left leaves nothing behind: a replace has the ticks of the one that did."""
    engine = venue.engines[0]
    venue.symbols.append(COARSE)
    async with venue.client() as client:
        unsent = asyncio.create_task(client.submit("AAPL", "buy", "1", "2", client_order_id="mine"))
        await asyncio.sleep(0)
        unsent.cancel()
        await asyncio.wait((unsent,))
        assert not client._known_orders
        order = await client.submit(COARSE, "buy", "1", "2", client_order_id="mine")
        named: dict[str, Any] = {by: getattr(order, by)}
        await client.replace(**named, price="3", quantity="1")
    assert [command.WhichOneof("command") for command in engine.commands] == ["new", "replace"]
    assert engine.commands[1].replace.price == 6


async def test_an_id_used_twice_at_once_is_of_the_order_that_was_entered(venue: FakeVenue) -> None:
    """Two orders wait under one id, and the first is given up: a replace has the ticks of the second."""
    engine = venue.engines[0]
    venue.symbols.append(COARSE)
    async with venue.client() as client:
        unsent = asyncio.create_task(client.submit("AAPL", "buy", "1", "2", client_order_id="mine"))
        entered = asyncio.create_task(client.submit(COARSE, "buy", "1", "2", client_order_id="mine"))
        await asyncio.sleep(0)
        unsent.cancel()
        order = await entered
        await client.replace(order_id=order.order_id, price="3", quantity="1")
    assert engine.commands[1].replace.price == 6


def refusing_coarse(venue: FakeVenue, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine, which takes every order for COARSE to have an id that is used already."""
    engine = venue.engines[0]
    venue.symbols.append(COARSE)
    apply, twice = engine.apply, refusal(pb.REJECT_REASON_DUPLICATE_CLIENT_ORDER_ID)
    monkeypatch.setattr(engine, "apply", lambda it: twice if it.new.symbol == COARSE else apply(it))
    return engine


async def test_an_id_used_twice_at_once_is_not_of_the_order_that_was_refused(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two orders wait under one id, and the second is refused: a replace has the ticks of the first."""
    engine = refusing_coarse(venue, monkeypatch)
    async with venue.client() as client:
        order, refused = await asyncio.gather(
            *(client.submit(symbol, "buy", "1", "2", client_order_id="mine") for symbol in ("AAPL", COARSE))
        )
        assert refused.rejected
        await client.replace(order_id=order.order_id, price="3", quantity="1")
    assert engine.commands[1].replace.price == 300


async def test_an_order_under_the_id_of_one_that_rests_does_not_lend_its_ticks(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replace that is given before the refusal comes has the ticks of the order that rests."""
    engine = refusing_coarse(venue, monkeypatch)
    async with venue.client() as client:
        await client.submit("AAPL", "buy", "1", "2", client_order_id="mine")
        refused, replaced = await asyncio.gather(
            client.submit(COARSE, "buy", "1", "2", client_order_id="mine"),
            client.replace(client_order_id="mine", price="3", quantity="1"),
        )
    assert (refused.rejected, replaced.rejected) == (True, False)
    assert engine.commands[-1].replace.price == 300


async def test_refused_orders_of_one_id_leave_nothing_behind(venue: FakeVenue) -> None:
    """Each has its answer, though they waited at once and the later took the place of the earlier."""
    venue.symbols.append(COARSE)
    async with venue.client() as client:
        refused = await asyncio.gather(
            *(client.submit(symbol, "buy", 0, "2", client_order_id="mine") for symbol in ("AAPL", COARSE))
        )
        assert [result.rejected for result in refused] == [True, True]
        assert not client._known_orders


async def test_only_so_many_orders_are_remembered(venue: FakeVenue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten, and the engine is asked about it where it is replaced."""
    monkeypatch.setattr("client.client._REMEMBERED_ORDERS", 1)
    async with venue.client() as client:
        old, new = [await client.submit("AAPL", "buy", "1", "2") for _ in range(2)]
        assert set(client._known_orders) == {new.order_id, new.client_order_id}
        assert (await client.replace(order_id=old.order_id, price="3", quantity="2")).leaves_quantity == 2


async def test_a_refused_repetition_leaves_the_order_known(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another order under the id of one that rests is refused; a replace of that one asks no questions."""
    engine = venue.engines[0]
    async with venue.client() as client:
        await client.submit("AAPL", "buy", "1", "2", client_order_id="mine")
        with monkeypatch.context() as refusing:
            refusing.setattr(engine, "apply", lambda _: refusal(pb.REJECT_REASON_DUPLICATE_CLIENT_ORDER_ID))
            assert (await client.submit("AAPL", "buy", "2", "2", client_order_id="mine")).rejected
        engine.unary_failures.append(grpc.StatusCode.NOT_FOUND)
        replaced = await client.replace(client_order_id="mine", price="3", quantity="2")
    assert replaced.leaves_quantity == Decimal(2)


async def test_order_of_an_earlier_run_is_replaced_too(venue: FakeVenue) -> None:
    """The engine tells the symbol of an order that this object did not submit."""
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "1", "2")
    async with venue.client() as client:
        replaced = await client.replace(order_id=order.order_id, price="3", quantity="2")
        assert replaced.leaves_quantity == Decimal(2)
        unknown = await client.replace(order_id=99, price="3", quantity="2")
        assert unknown.reject_reason is RejectReason.UNKNOWN_ORDER


async def test_cancel_whose_answer_was_lost_counts_as_done(venue: FakeVenue) -> None:
    """A cancel that was done before its answer got lost is reported as done, not as refused."""
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "1", "2")
        venue.engines[0].break_after.append(UNAVAILABLE)
        cancelled = await client.cancel(order_id=order.order_id)
    assert (cancelled.status, cancelled.duplicate, cancelled.rejected) == ("cancelled", True, False)
    assert cancelled.state is not None


async def test_repeated_cancel_of_a_filled_order_is_refused(venue: FakeVenue) -> None:
    """A repeated cancel of an order that was filled stays a refusal and shows what was filled."""
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "1", "1")
        venue.engines[0].break_after.append(UNAVAILABLE)
        result = await client.cancel(order_id=order.order_id)
    assert result.reject_reason is RejectReason.ORDER_CLOSED
    assert result.state is not None
    assert (result.state.status, result.cumulative_quantity) == ("filled", Decimal(1))


async def test_replace_whose_answer_was_lost_counts_as_done(venue: FakeVenue) -> None:
    """A replace that was done, and whose leg is still out when it comes again, is reported as done."""
    engine = venue.engines[0]
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "1", "2")
        engine.sends_legs = True
        engine.break_after.append(UNAVAILABLE)
        replaced = await client.replace(order_id=order.order_id, price="3", quantity="2")
    assert (replaced.status, replaced.duplicate, replaced.rejected) == ("pending", True, False)
    assert replaced.leaves_quantity == Decimal(2)
    assert len(engine.commands) == 3


@pytest.mark.parametrize(("price", "quantity"), [("2", "0.3"), ("2", "0.5"), ("3", "0.5")])
async def test_replace_that_finished_its_order_counts_as_done(
    venue: FakeVenue, price: str, quantity: str
) -> None:
    """A total at or below what is filled, whose answer was lost: the order keeps its price, and is filled."""
    engine = venue.engines[0]
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "1", "2")
        engine.orders[order.client_order_id].cumulative_quantity = 5
        engine.break_after.append(UNAVAILABLE)
        replaced = await client.replace(order_id=order.order_id, price=price, quantity=quantity)
    assert (replaced.status, replaced.duplicate, replaced.rejected) == ("filled", True, False)
    assert replaced.cumulative_quantity == Decimal("0.5")
    assert len(engine.commands) == 3


async def test_repeated_replace_of_an_order_that_was_cancelled_is_refused(venue: FakeVenue) -> None:
    """Nobody replaced an order that was cancelled before more of it was filled than the replace wanted."""
    engine = venue.engines[0]
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "1", "2")
        engine.orders[order.client_order_id].cumulative_quantity = 5
        await client.cancel(order_id=order.order_id)
        engine.break_after.append(UNAVAILABLE)
        refused = await client.replace(order_id=order.order_id, price="2", quantity="0.3")
    assert refused.reject_reason is RejectReason.ORDER_CLOSED


async def test_repeated_replace_of_an_order_that_waits_is_refused(venue: FakeVenue) -> None:
    """A repeated replace of an order that has another price stays refused, for the reason that it has."""
    engine = venue.engines[0]
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "1", "2")
        engine.sends_legs = True
        await client.replace(order_id=order.order_id, price="3", quantity="2")
        engine.break_after.append(UNAVAILABLE)
        refused = await client.replace(order_id=order.order_id, price="4", quantity="2")
    assert refused.reject_reason is RejectReason.ORDER_PENDING
    assert refused.reject_text == "REJECT_REASON_ORDER_PENDING"
    assert refused.state is not None
    assert refused.state.price == Decimal(3)


async def test_an_earlier_replace_never_comes_behind_a_later_one(venue: FakeVenue) -> None:
    """Answers are lost while two replaces of an order are given: its last price is that of the second."""
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "10", "2")
        venue.engines[0].break_after += [UNAVAILABLE, None, UNAVAILABLE]
        await asyncio.gather(
            client.replace(order_id=order.order_id, price="3", quantity="10"),
            client.replace(client_order_id=order.client_order_id, price="4", quantity="10"),
        )
    prices = [command.replace.price for command in venue.engines[0].commands[1:]]
    assert prices == [300, 300, 400, 400], "each is sent again at once, and the second after the first"


async def test_replaces_wait_for_each_other_no_longer_than_the_deadline(venue: FakeVenue) -> None:
    """Those behind one that has no answer were not sent, and say so; also of an order of an earlier run."""
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "10", "2")
    venue.engines[0].silent = True
    async with venue.client(deadline_s=0.5) as client:
        began = time.monotonic()
        failures = await asyncio.gather(
            *(client.replace(order_id=order.order_id, price="3", quantity="10") for _ in range(4)),
            return_exceptions=True,
        )
        assert time.monotonic() - began < 2
        venue.engines[0].silent = False
        again = await client.replace(order_id=order.order_id, price="3", quantity="10")
        assert not again.rejected, "whose turn it was has ended with the deadline"
    sent = [failure.sent for failure in failures if isinstance(failure, Unavailable)]
    assert any(sent)
    assert sent.count(False) >= 2
    assert len(sent) == 4


async def test_a_replace_has_one_deadline(venue: FakeVenue) -> None:
    """What it has to ask first is part of it."""
    engine = venue.engines[0]
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "1", "2")
    engine.s_per_question = 0.5
    engine.hold = asyncio.Event()
    async with venue.client(deadline_s=20) as client:
        latest = asyncio.get_running_loop().time() + 20 + engine.s_per_question
        replace = asyncio.create_task(client.replace(order_id=order.order_id, price="3", quantity="2"))
        await until(lambda: in_flight(client))
        (pending,) = client._entry._sent  # type: ignore[union-attr]  # it is connected
        assert pending.deadline < latest
        engine.hold.set()
        assert not (await replace).rejected


@pytest.mark.parametrize("lost", [True, False])
async def test_a_cancel_has_one_deadline(venue: FakeVenue, lost: bool) -> None:
    """What it has to ask afterwards is part of it: how the order stands, or what one of an earlier run is."""
    engine = venue.engines[0]
    async with venue.client() as client:
        order = await client.submit("AAPL", "buy", "1", "2")
    engine.orders[order.client_order_id].cumulative_quantity = 5
    engine.s_per_command = 0.5
    if lost:
        engine.break_after.append(UNAVAILABLE)
    async with venue.client(deadline_s=20) as client:
        assert (await client.cancel(order_id=order.order_id)).duplicate is lost
    (left_s,) = engine.s_left
    assert left_s < 20 - engine.s_per_command


async def test_a_later_command_may_have_the_earlier_deadline(venue: FakeVenue) -> None:
    """Each is given up at its own."""
    venue.engines[0].silent = True
    async with venue.client() as client, asyncio.timeout(15):
        order = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await until(lambda: in_flight(client))
        entry, now = client._entry, asyncio.get_running_loop().time()
        assert entry is not None
        for later in [entry.send(b"", "later", now + left_s) for left_s in (0.1, 0.2)]:
            with pytest.raises(Unavailable):
                await later.answer
        assert not order.done()
        await client.close()
        with pytest.raises(ClientClosed):
            await order


async def test_a_command_with_little_time_left_ends_no_stream(venue: FakeVenue) -> None:
    """That it had no answer in it says nothing about the stream, on which others may be."""
    async with venue.client() as client, asyncio.timeout(15):
        entry = client._entry
        assert entry is not None
        await client.submit("AAPL", "buy", "1", "2")  # the stream is open
        venue.engines[0].silent = True
        hurried = entry.send(b"", "hurried", asyncio.get_running_loop().time() + 0.2)
        await until(lambda: in_flight(client))
        reader = entry._reader
        assert reader is not None
        with pytest.raises(Unavailable):
            await hurried.answer
        assert not reader.cancelling()


async def test_an_order_is_named_by_exactly_one_id(venue: FakeVenue) -> None:
    """A cancel with no id or both ids is a mistake, not a guess."""
    async with venue.client() as client:
        with pytest.raises(ValueError, match="order_id or by client_order_id"):
            await client.cancel()
        with pytest.raises(ValueError, match="order_id or by client_order_id"):
            await client.cancel(order_id=1, client_order_id="x")
        with pytest.raises(TypeError, match="client_order_id is of type int: write a str"):
            await client.order(client_order_id=5)  # type: ignore[arg-type]  # that is the test
