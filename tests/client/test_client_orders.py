"""Submit against an engine that breaks the stream at chosen points, and what becomes of orders in doubt."""

import asyncio
import time
from decimal import Decimal
from typing import Any

import grpc
import pytest

from client import (
    AuthenticationFailed,
    ClientClosed,
    DataLost,
    MatchbusError,
    OrderRefused,
    OrderResult,
    RejectReason,
    RequestInvalid,
    Unavailable,
    UnknownSymbol,
    order_entry,
    retry,
)
from client.client import check_client_order_id
from client.order_entry import AMPLE_COMMANDS
from tests.client.fake_venue import FakeVenue, in_flight, venue_in_a_thread
from tests.waiting import until

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def test_submit_speaks_decimal_both_ways(venue: FakeVenue) -> None:
    """An order leaves in ticks and lots with all its instructions, and its answer comes back in decimals."""
    async with venue.client() as client:
        result = await client.submit(
            "AAPL", "sell", quantity="10", price="101.25", post_only=True, do_not_route=True,
            self_trade_prevention="cancel_newest", time_in_force="gtc",
        )  # fmt: skip
        assert client.engine == 1
        assert client.instruments["AAPL"].tick_size == Decimal("0.01")
    new = venue.engines[0].commands[0].new
    assert (new.price, new.quantity, new.side, new.type, new.time_in_force) == (10_125, 100, 2, 1, 1)
    assert (new.post_only, new.do_not_route, new.self_trade_prevention) == (True, True, 2)
    assert result.status == "new"
    assert result.leaves_quantity == Decimal(10)
    assert result.client_order_id == new.client_order_id
    assert not result.rejected


async def test_ids_are_new_in_every_run(venue: FakeVenue) -> None:
    """An engine would take the first order of another run for a repetition of this one's."""
    runs = [venue.client() for _ in range(2)]
    ids = {run.new_client_order_id() for run in runs for _ in range(2)}
    assert len(ids) == 4
    for client_order_id in ids:
        check_client_order_id(client_order_id)


async def test_an_answer_carries_its_fills(venue: FakeVenue) -> None:
    """What an order trades at once is in its result."""
    async with venue.client() as client:
        result = await client.submit("AAPL", "buy", quantity="0.5", price="1.00", time_in_force="ioc")
    (fill,) = result.fills
    assert (fill.price, fill.quantity, fill.liquidity, fill.engine) == (
        Decimal(1),
        Decimal("0.5"),
        "taker",
        1,
    )
    assert (result.status, result.average_price) == ("filled", Decimal(1))


async def test_refusal_is_returned_and_raised_on_demand(venue: FakeVenue) -> None:
    """A refused order comes back with its reason, and raises only when asked to."""
    async with venue.client() as client:
        result = await client.submit("AAPL", "buy", quantity=0, price=1)
    assert (result.rejected, result.reject_reason) == (True, RejectReason.INVALID_QUANTITY)
    with pytest.raises(OrderRefused, match="INVALID_QUANTITY") as caught:
        result.raise_if_refused()
    assert caught.value.result is result


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"price": 1.5}, TypeError),
        ({"price": "1.005"}, ValueError),
        ({"price": None}, ValueError),
        ({"type": "market"}, ValueError),
        ({"side": "bid"}, ValueError),
        ({"time_in_force": "good"}, ValueError),
        ({"client_order_id": "x" * 37}, ValueError),
        ({"client_order_id": "tab\t"}, ValueError),
        ({"client_order_id": "\u00e9"}, ValueError),
        ({"client_order_id": 5}, TypeError),
        ({"client_order_id": b"x"}, TypeError),
        ({"post_only": "no"}, TypeError),
        ({"do_not_route": 1}, TypeError),
        ({"symbol": "NOPE"}, UnknownSymbol),
    ],
)
async def test_what_cannot_be_sent_is_not_sent(
    venue: FakeVenue, arguments: dict[str, Any], error: type[Exception]
) -> None:
    """A mistake that the client can see raises before anything leaves."""
    order: dict[str, Any] = {"symbol": "AAPL", "side": "buy", "quantity": "1", "price": "1", **arguments}
    async with venue.client() as client:
        with pytest.raises(error):
            await client.submit(**order)
    assert venue.engines[0].commands == []


async def test_symbol_listed_after_registration(venue: FakeVenue) -> None:
    """A symbol that was listed later is learned at its first order."""
    async with venue.client() as client:
        venue.symbols.append("NEW")
        assert (await client.submit("NEW", "buy", "1", "2")).status == "new"


async def test_orders_of_many_tasks_share_messages(venue: FakeVenue) -> None:
    """Orders that wait at the same time go out together, each gets its own answer, in order."""
    engine = venue.engines[0]
    async with venue.client() as client:
        results = await asyncio.gather(
            *(client.submit("AAPL", "buy", "1", "2", client_order_id=f"o{number}") for number in range(1_000))
        )
        assert engine.messages == [256, 256, 256, 232]
        await asyncio.gather(*(client.submit("AAPL", "buy", "1", "2") for _ in range(512)))
    assert engine.messages[4:] == [256, 256], "however soon the full ones were answered"
    assert [result.client_order_id for result in results] == [f"o{number}" for number in range(1_000)]
    assert [it.new.client_order_id for it in engine.commands[:1_000]] == [f"o{n}" for n in range(1_000)]


async def test_few_orders_wait_for_the_answer_before_them(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a message is under way, what is queued becomes one message, and goes with its answer."""
    monkeypatch.setattr(order_entry, "PATIENCE_S", 60.0)
    engine = venue.engines[0]
    engine.hold = asyncio.Event()
    async with venue.client() as client, asyncio.timeout(20):
        orders = [asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))]
        await until(lambda: in_flight(client) == 1)
        for _ in range(AMPLE_COMMANDS - 1):
            orders.append(asyncio.create_task(client.submit("AAPL", "buy", "1", "2")))
            await asyncio.sleep(0)
        engine.hold.set()
        assert all([(await order).status == "new" for order in orders])
    assert engine.messages == [1, AMPLE_COMMANDS - 1]


@pytest.mark.parametrize("deadline_s", [20.0, float("inf")])
async def test_an_answer_that_does_not_come_holds_up_nobody_for_long(
    venue: FakeVenue, deadline_s: float
) -> None:
    """An order whose legs are out has no answer yet: the next order leaves all the same."""
    engine = venue.engines[0]
    engine.hold = asyncio.Event()
    async with venue.client(deadline_s=deadline_s) as client, asyncio.timeout(20):
        first = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await until(lambda: in_flight(client) == 1)
        second = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await until(lambda: in_flight(client) == 2)
        engine.hold.set()
        assert [(await order).status for order in (first, second)] == ["new", "new"]


async def test_orders_that_keep_coming_hold_up_none(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that is queued has waited long enough, however short a time ago the last one came."""
    monkeypatch.setattr(order_entry, "PATIENCE_S", 0.2)
    engine = venue.engines[0]
    engine.hold = asyncio.Event()
    async with venue.client() as client, asyncio.timeout(20):
        orders = [asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))]
        await until(lambda: in_flight(client) == 1)
        while in_flight(client) == 1:
            orders.append(asyncio.create_task(client.submit("AAPL", "buy", "1", "2")))
            await asyncio.sleep(0.02)
        assert len(orders) < AMPLE_COMMANDS / 2
        engine.hold.set()
        assert all([(await order).status == "new" for order in orders])


async def test_messages_in_flight_are_bounded(venue: FakeVenue) -> None:
    """While the engine answers nothing, at most four messages are out; the rest waits and goes on after."""
    engine = venue.engines[0]
    engine.hold = asyncio.Event()
    async with venue.client() as client, asyncio.timeout(20):
        orders = [asyncio.create_task(client.submit("AAPL", "buy", "1", "2")) for _ in range(5 * 256)]
        await until(lambda: in_flight(client) == 4)
        assert len(client._entry._queue) == 256  # type: ignore[union-attr]  # it is connected
        engine.hold.set()
        assert all([(await order).status == "new" for order in orders])


async def test_messages_follow_the_pace_of_the_answers(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow answers halve what a message holds, down to one command; quick ones bring it back."""
    monkeypatch.setattr(order_entry, "PATIENCE_S", 60.0)  # one message at a time
    engine = venue.engines[0]
    async with venue.client() as client:

        async def messages_of_a_burst() -> list[int]:
            engine.messages.clear()
            await asyncio.gather(*(client.submit("AAPL", "buy", "1", "2") for _ in range(40)))
            return engine.messages

        with monkeypatch.context() as slow:
            slow.setattr(order_entry, "SLOW_S", -1.0)
            assert await messages_of_a_burst() == [40]
            assert await messages_of_a_burst() == [20, 10, 5, 2, 1, 1, 1]
        assert await messages_of_a_burst() == [1, 2, 4, 8, 16, 9]
        assert await messages_of_a_burst() == [32, 8]
        assert await messages_of_a_burst() == [40]


async def test_a_burst_that_outlasts_the_deadline_is_finished_by_repeating_it(venue: FakeVenue) -> None:
    """An engine that lets in so many orders a second answers a part of them each time, not never."""
    engine = venue.engines[0]
    engine.s_per_command = 0.01
    waiting = [f"o{number}" for number in range(120)]
    async with venue.client(deadline_s=0.5) as client:
        for _ in range(40):
            answers = await asyncio.gather(
                *(client.submit("AAPL", "buy", "1", "2", client_order_id=name) for name in waiting),
                return_exceptions=True,
            )
            failed = [answer for answer in answers if not isinstance(answer, OrderResult)]
            assert all(isinstance(failure, Unavailable) for failure in failed)
            waiting = [
                name for name, answer in zip(waiting, answers, strict=True) if isinstance(answer, Exception)
            ]
            if not waiting:
                break
    assert not waiting


@pytest.mark.parametrize("code", [UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL])
async def test_lost_answer_gives_the_first_answer(venue: FakeVenue, code: grpc.StatusCode) -> None:
    """A stream that breaks after the order was taken: the same order goes again, and is not entered twice."""
    engine = venue.engines[0]
    engine.break_after.append(code)
    async with venue.client() as client:
        result = await client.submit("AAPL", "buy", "1", "2")
    assert (result.status, result.duplicate) == ("new", True)
    assert [command.new.client_order_id for command in engine.commands] == [result.client_order_id] * 2
    assert len(engine.orders) == 1


@pytest.mark.parametrize("code", [UNAVAILABLE, grpc.StatusCode.INTERNAL])
async def test_stream_refused_before_its_first_write(venue: FakeVenue, code: grpc.StatusCode) -> None:
    """A stream that ends before it took an order, be it INTERNAL, behind which gRPC may hide a refusal."""
    engine = venue.engines[0]
    engine.break_before.extend([code, code])
    async with venue.client() as client:
        result = await client.submit("AAPL", "buy", "1", "2")
    assert (result.status, result.duplicate) == ("new", False)
    assert len(engine.commands) == 1


async def test_unanswered_orders_keep_their_order(venue: FakeVenue) -> None:
    """A stream that breaks between messages: what has no answer goes again in the order it was given."""
    engine = venue.engines[0]
    engine.break_before.extend([None, UNAVAILABLE, None, UNAVAILABLE])
    async with venue.client() as client:
        results = await asyncio.gather(*(client.submit("AAPL", "buy", "1", "2") for _ in range(1_000)))
    assert len({result.client_order_id for result in results}) == 1_000
    first_seen = list(dict.fromkeys(command.new.client_order_id for command in engine.commands))
    assert first_seen == [result.client_order_id for result in results]


async def test_an_unanswered_order_goes_again_with_what_came_after_it(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was the end of a message need not be the end of the next one."""
    monkeypatch.setattr(order_entry, "PATIENCE_S", 60.0)
    engine = venue.engines[0]
    engine.hold = asyncio.Event()
    engine.break_before.append(UNAVAILABLE)
    async with venue.client() as client, asyncio.timeout(20):
        first = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await until(lambda: in_flight(client) == 1)
        second = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await asyncio.sleep(0)
        engine.hold.set()
        assert [(await order).status for order in (first, second)] == ["new", "new"]
    assert engine.messages == [2]


async def test_an_engine_that_restarts_on_its_address_goes_on_serving(venue: FakeVenue) -> None:
    """The stream of the same client ended without a status, and is opened again."""
    engine = venue.engines[0]
    async with venue.client() as client:
        await client.submit("AAPL", "buy", "1", "2")
        await engine.server.stop(None)
        order = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await venue.start(engine)
        assert (await order).status == "new"


async def test_deadline_ends_the_attempts(venue: FakeVenue) -> None:
    """Without an answer until the deadline the order fails, naming its id and that it was sent."""
    venue.engines[0].silent = True
    async with venue.client(deadline_s=0.3) as client:
        with pytest.raises(Unavailable) as caught:
            await client.submit("AAPL", "buy", "1", "2", client_order_id="mine")
        assert (caught.value.sent, caught.value.client_order_id) == (True, "mine")
        venue.engines[0].silent = False
        result = await client.submit("AAPL", "buy", "1", "2", client_order_id="mine")
    assert result.duplicate


async def test_an_answer_that_came_while_the_loop_was_held_up_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the deadline too; a command that had not left by then never does."""
    monkeypatch.setattr(order_entry, "PATIENCE_S", 60.0)
    async with venue_in_a_thread() as venue, venue.client(deadline_s=0.5) as client:
        engine, entry = venue.engines[0], client._entry
        assert entry is not None
        engine.s_per_command = 0.3
        order = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await until(lambda: engine.messages == [1])
        waiting = entry.send(b"", "waiting")
        await until(lambda: not entry._wake.is_set())
        time.sleep(1)  # noqa: ASYNC251 -- that is the test
        result = await order
        with pytest.raises(Unavailable, match=r"no answer within 0\.5 s$"):
            await waiting.answer
    assert (result.status, result.duplicate, waiting.attempts) == ("new", False, 0)


async def test_an_order_does_not_leave_past_its_deadline(venue: FakeVenue) -> None:
    """One that was given just before the loop was held up: nobody expects it in the market any more."""
    async with venue.client(deadline_s=0.3) as client:
        entry = client._entry
        assert entry is not None
        await client.submit("AAPL", "buy", "1", "2")
        order = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await asyncio.sleep(0)
        assert len(entry._queue) == 1
        time.sleep(0.5)  # noqa: ASYNC251 -- that is the test
        with pytest.raises(Unavailable, match=r"no answer within 0\.3 s$") as caught:
            await order
        assert not caught.value.sent
        await client.submit("AAPL", "buy", "1", "2")
    assert venue.engines[0].messages == [1, 1]


async def test_a_loop_that_was_held_up_does_not_wait_for_ever(venue: FakeVenue) -> None:
    """What has no answer in the end is given up, however often the loop is held up."""
    venue.engines[0].silent = True
    async with venue.client(deadline_s=0.3) as client, asyncio.timeout(10):
        order = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await until(lambda: venue.engines[0].messages == [1])
        while not order.done():
            time.sleep(0.4)  # noqa: ASYNC251 -- that is the test
            await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await order


async def test_only_what_failed_since_is_a_reason(venue: FakeVenue) -> None:
    """A stream that broke before the last answer, or before the order was given, is not why it has none."""
    engine = venue.engines[0]
    engine.break_before.append(UNAVAILABLE)
    async with venue.client(deadline_s=1) as client:
        await client.submit("AAPL", "buy", "1", "2")
        engine.silent = True
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"no answer within 1 s$"):
                await client.submit("AAPL", "buy", "1", "2")
            await until(lambda: client._entry._reader is None)  # type: ignore[union-attr]  # it is connected


async def test_an_order_that_has_left_once_stays_in_doubt(venue: FakeVenue) -> None:
    """Its answer was lost, and the deadline comes before it can be sent again."""
    engine = venue.engines[0]
    engine.break_after.append(UNAVAILABLE)
    async with venue.client(deadline_s=0.7) as client:
        venue.hold_searches = asyncio.Event()
        with pytest.raises(Unavailable) as caught:
            await client.submit("AAPL", "buy", "1", "2")
        venue.hold_searches.set()
    assert caught.value.sent
    assert set(engine.orders) == {caught.value.client_order_id}


async def test_an_order_that_never_left_is_not_in_doubt(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its deadline it waited for the answer to the one before it: it cannot be in the market."""
    monkeypatch.setattr(order_entry, "PATIENCE_S", 60.0)
    venue.engines[0].silent = True
    async with venue.client() as client, asyncio.timeout(15):
        order = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await until(lambda: in_flight(client))
        entry = client._entry
        assert entry is not None
        unsent = entry.send(b"", "unsent", asyncio.get_running_loop().time() + 0.1)
        with pytest.raises(Unavailable) as caught:
            await unsent.answer
        assert not caught.value.sent
        await client.close()
        with pytest.raises(ClientClosed):
            await order


async def test_a_question_leaves_no_order_in_doubt(venue: FakeVenue) -> None:
    """What an order trades is asked first, and nobody answers: the order was not sent, and says so."""
    async with venue.client(deadline_s=0.5) as client:
        await venue.stop_exchange()
        with pytest.raises(Unavailable) as caught:
            await client.submit("NEW", "buy", "1", "2")
    assert not caught.value.sent


@pytest.mark.parametrize("call", ["cancel", "replace", "cancel_all"])
async def test_a_command_that_has_left_stays_in_doubt(venue: FakeVenue, call: str) -> None:
    """Nobody tells what became of it: it may have been done, though the last that was sent is a question."""
    engine = venue.engines[0]
    arguments: dict[str, dict[str, Any]] = {
        "cancel": {"client_order_id": "mine"},
        "replace": {"client_order_id": "mine", "price": "3", "quantity": "2"},
        "cancel_all": {},
    }
    async with venue.client(deadline_s=1) as client:
        await client.submit("AAPL", "buy", "1", "2", client_order_id="mine")
        engine.sends_legs = True
        engine.break_after.append(UNAVAILABLE)
        engine.unary_failures.extend([grpc.StatusCode.RESOURCE_EXHAUSTED] * 100)
        with pytest.raises(Unavailable) as caught:
            await getattr(client, call)(**arguments[call])
    assert caught.value.sent


async def test_request_that_makes_no_sense_is_not_repeated(venue: FakeVenue) -> None:
    """INVALID_ARGUMENT fails the commands that were sent, and the next ones go on."""
    venue.engines[0].break_before.append(grpc.StatusCode.INVALID_ARGUMENT)
    async with venue.client() as client:
        with pytest.raises(RequestInvalid, match="broken before"):
            await client.submit("AAPL", "buy", "1", "2")
        assert (await client.submit("AAPL", "buy", "1", "2")).status == "new"


async def test_an_order_that_the_venue_never_saw_makes_sense(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INVALID_ARGUMENT is said of what was sent: what waited behind it goes on, with all its attempts."""
    monkeypatch.setattr(order_entry, "PATIENCE_S", 60.0)
    monkeypatch.setattr(retry, "TOKEN_GRACE_S", 0.0)
    engine = venue.engines[0]
    engine.hold = asyncio.Event()
    engine.break_before.extend([grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED])
    async with venue.client() as client, asyncio.timeout(20):
        venue.tokens.clear()
        sent = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await until(lambda: client._session.generation > 1 and in_flight(client) == 1)
        unsent = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await asyncio.sleep(0)
        engine.hold.set()
        with pytest.raises(RequestInvalid):
            await sent
        assert (await unsent).status == "new"


async def test_closing_answers_who_waits(venue: FakeVenue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is closed tells the tasks whose orders wait which may be in, and refuses later calls."""
    monkeypatch.setattr(order_entry, "PATIENCE_S", 60.0)
    venue.engines[0].silent = True
    client = await venue.client().open()
    order = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
    await until(lambda: venue.engines[0].commands)
    unsent = asyncio.create_task(client.submit("AAPL", "buy", "1", "2", client_order_id="unsent"))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(ClientClosed) as caught:
        await order
    (entered,) = venue.engines[0].orders
    assert (caught.value.sent, caught.value.client_order_id) == (True, entered)
    with pytest.raises(ClientClosed) as caught:
        await unsent
    assert (caught.value.sent, caught.value.client_order_id) == (False, "unsent")
    with pytest.raises(ClientClosed):
        await client.submit("AAPL", "buy", "1", "2")


async def test_a_close_that_is_cancelled_closes(venue: FakeVenue) -> None:
    """Whoever closes may be in a hurry; the client is closed all the same."""
    client = await venue.client().open()
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait((closing,))
    assert closing.cancelled()
    with pytest.raises(ClientClosed, match="not open"):
        await client.open_orders()


async def test_a_bug_is_told_when_the_client_is_closed(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What broke the sending of orders does not pass for a client that was closed."""
    client = await venue.client().open()
    monkeypatch.setattr(client._entry, "_is_message_due", lambda: 1 / 0)
    for _ in range(2):  # nor does who comes later wait for what no longer runs
        with pytest.raises(ClientClosed):
            await client.submit("AAPL", "buy", "1", "2")
    with pytest.raises(ZeroDivisionError):
        await client.close()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.DATA_LOSS, DataLost),
        (grpc.StatusCode.INVALID_ARGUMENT, RequestInvalid),
        (grpc.StatusCode.PERMISSION_DENIED, AuthenticationFailed),
    ],
)
async def test_orders_that_are_given_up_keep_their_ids(
    venue: FakeVenue, code: grpc.StatusCode, error: type[MatchbusError]
) -> None:
    """Whatever ends the stream for good, each order that was on it says that it may be in."""
    venue.engines[0].break_after.append(code)
    async with venue.client() as client:
        orders = [client.submit("AAPL", "buy", "1", "2", client_order_id=name) for name in ("a", "b")]
        failures = await asyncio.gather(*orders, return_exceptions=True)
    assert [type(failure) for failure in failures] == [error] * 2
    told = [(failure.sent, failure.client_order_id) for failure in failures if isinstance(failure, error)]
    assert told == [(True, "a"), (True, "b")]


async def test_a_client_that_is_lost_gives_up_all_its_orders(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exchange does not know us any more: what was not sent yet is given up too, and says so."""
    monkeypatch.setattr(order_entry, "PATIENCE_S", 60.0)
    engine = venue.engines[0]
    engine.hold = asyncio.Event()
    engine.break_before.append(grpc.StatusCode.UNAUTHENTICATED)
    async with venue.client() as client, asyncio.timeout(20):
        venue.failures.append(grpc.StatusCode.DATA_LOSS)
        sent = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await until(lambda: in_flight(client) == 1)
        unsent = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await asyncio.sleep(0)
        engine.hold.set()
        failures = await asyncio.gather(sent, unsent, return_exceptions=True)
    assert [failure.sent for failure in failures if isinstance(failure, DataLost)] == [True, False]


async def test_cancelled_task_does_not_disturb_the_others(venue: FakeVenue) -> None:
    """A caller that stops waiting leaves every other answer with its own order."""
    engine = venue.engines[0]
    engine.hold = asyncio.Event()
    async with venue.client() as client, asyncio.timeout(20):
        orders = [
            asyncio.create_task(client.submit("AAPL", "buy", "1", "2", client_order_id=f"o{number}"))
            for number in range(600)
        ]
        entry = client._entry
        assert entry is not None
        await until(lambda: entry._sent)
        orders[1].cancel()
        orders[599].cancel()
        engine.hold.set()
        answers = await asyncio.gather(*orders, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number in {1, 599}:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert isinstance(answer, OrderResult)
            assert answer.client_order_id == f"o{number}"
