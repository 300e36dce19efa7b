"""Fills, books, orders and positions, over failures."""

import asyncio
import contextlib
import time
from decimal import Decimal
from typing import Any

import grpc
import pytest

from client import (
    AuthenticationFailed,
    ClientClosed,
    DataLost,
    FillGap,
    OrderNotFound,
    RequestInvalid,
    Unavailable,
    UnknownSymbol,
    Venue,
    retry,
    session,
)
from tests.client.fake_venue import FakeVenue, venue_in_a_thread
from tests.waiting import until


async def test_fills_come_once_over_any_break(venue: FakeVenue) -> None:
    """Streams that break between fills resume after the last one given: each fill once, in order."""
    engine = venue.engines[0]
    engine.add_fills(20)
    engine.fill_breaks.extend([3, 3, 11])
    async with venue.client() as client:
        fills = [fill async for fill in client.fills(follow=False)]
    assert [fill.sequence for fill in fills] == list(range(1, 21))
    assert engine.fills_asked == [0, 3, 3, 11]
    assert (fills[0].price, fills[0].quantity, fills[0].side) == (Decimal("101.25"), Decimal("0.3"), "buy")


async def test_fills_start_after_since(venue: FakeVenue) -> None:
    """`since` is the last sequence the caller has; what follows it is given."""
    venue.engines[0].add_fills(5)
    async with venue.client() as client:
        assert [fill.sequence async for fill in client.fills(since=3, follow=False)] == [4, 5]


async def test_fills_follow(venue: FakeVenue) -> None:
    """A followed history goes on with fills that happen later, on a restarted engine too."""
    engine = venue.engines[0]
    engine.add_fills(1)
    async with (
        asyncio.timeout(20),
        venue.client() as client,
        contextlib.aclosing(client.fills()) as fills,
    ):
        assert (await anext(fills)).sequence == 1
        later = asyncio.ensure_future(anext(fills))
        await client.submit("AAPL", "buy", "1", "1")
        assert (await later).sequence == 2
        await engine.server.stop(None)
        await venue.start(engine)
        engine.add_fills(1)
        assert (await anext(fills)).sequence == 3


@pytest.mark.parametrize("fills", [0, 1])
async def test_a_history_that_worked_has_the_whole_deadline_to_come_back(
    venue: FakeVenue, fills: int
) -> None:
    """A stream that was followed for longer than the deadline is lost, and found again."""
    engine = venue.engines[0]
    engine.add_fills(fills)
    async with (
        asyncio.timeout(20),
        venue.client(deadline_s=1) as client,
        contextlib.aclosing(client.fills()) as following,
    ):
        for sequence in range(fills):
            assert (await anext(following)).sequence == sequence + 1
        later = asyncio.ensure_future(anext(following))
        await until(lambda: engine.fills_asked)
        await asyncio.sleep(1.1)
        await engine.server.stop(None)
        await until(lambda: venue.searches > 1)
        await venue.start(engine)
        engine.add_fills(1)
        assert (await later).sequence == fills + 1


@pytest.mark.parametrize("after_s", [0.0, 0.1])
async def test_a_history_that_is_refused_is_given_up(
    venue: FakeVenue, after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that refuses the stream each time is away, even one that takes long to say so."""
    monkeypatch.setattr(retry, "_SHORT_LIFE_S", 0.05)
    engine = venue.engines[0]
    engine.refuses_fills_after_s = after_s
    async with asyncio.timeout(10), venue.client(deadline_s=0.5) as client:
        with pytest.raises(Unavailable, match=r"0\.5 s.*tokens cannot be checked"):
            await anext(client.fills())
    assert len(engine.fills_asked) > 1


async def test_streams_that_bring_nothing_count_only_so_often(venue: FakeVenue) -> None:
    """Three in a row leave the whole deadline for the next one; what one has brought ends the row."""
    async with venue.client() as client:
        attempts = retry.Retry(client._session, 20)

        def leaves_time(*, brought: bool) -> bool:
            attempts._deadline = 0.0
            attempts.stream_ended(2.0, brought=brought)
            return attempts.remaining_s > 0

        for _ in range(2):
            assert [leaves_time(brought=False) for _ in range(4)] == [True, True, True, False]
            assert leaves_time(brought=True)


@pytest.mark.parametrize("fills", [0, 2])
async def test_a_history_that_does_not_go_on_is_given_up(venue: FakeVenue, fills: int) -> None:
    """An engine that does not say whether there are more has the deadline for it, at each fill anew.

    What failed before the last fill is no reason.
    """
    engine = venue.engines[0]
    engine.add_fills(fills)
    engine.fill_breaks.extend([1] * (fills > 1))
    engine.silent = True
    async with (
        asyncio.timeout(20),
        venue.client(deadline_s=0.5) as client,
        contextlib.aclosing(client.fills(follow=False)) as history,
    ):
        for sequence in range(fills):
            assert (await anext(history)).sequence == sequence + 1
            await asyncio.sleep(0.6)  # what the reader does is no time of the engine's
        with pytest.raises(Unavailable, match=r"no answer within 0\.5 s$"):
            await anext(history)
    assert not engine.fill_breaks


async def test_fills_that_came_while_the_loop_was_held_up_count() -> None:
    """Past the deadline too: a program that computes for long reads its history all the same."""
    async with venue_in_a_thread() as venue, venue.client(deadline_s=0.5) as client:
        engine = venue.engines[0]
        engine.add_fills(2)
        engine.s_until_fills = 0.3
        history = client.fills(follow=False)
        first = asyncio.ensure_future(anext(history))
        await until(lambda: engine.fills_asked)
        time.sleep(1)  # noqa: ASYNC251 -- that is the test
        sequences = [(await first).sequence, *[fill.sequence async for fill in history]]
    assert sequences == [1, 2]


async def test_a_history_is_given_up_however_often_the_loop_is_held_up(venue: FakeVenue) -> None:
    """Once more is enough where nothing comes."""
    venue.engines[0].silent = True
    async with venue.client(deadline_s=0.3) as client, asyncio.timeout(10):
        first = asyncio.ensure_future(anext(client.fills(follow=False)))
        await until(lambda: venue.engines[0].fills_asked)
        while not first.done():
            time.sleep(0.5)  # noqa: ASYNC251 -- that is the test
            await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await first


async def test_overload_is_not_answered_with_registrations(venue: FakeVenue) -> None:
    """A new token mends nothing where the engine has too much to do: it is tried again with the old one."""
    engine = venue.engines[0]
    engine.refuses_fills_after_s, engine.refuses_fills_with = 0.0, grpc.StatusCode.RESOURCE_EXHAUSTED
    async with asyncio.timeout(20), venue.client(deadline_s=2) as client:
        with pytest.raises(Unavailable, match="RESOURCE_EXHAUSTED"):
            await anext(client.fills())
        engine.unary_failures.extend([grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNKNOWN] * 2)
        assert await client.open_orders() == []
    assert len(engine.fills_asked) > 3
    assert venue.registrations == 1


async def test_missing_fill_is_an_error(venue: FakeVenue) -> None:
    """A hole in the history is never passed over."""
    engine = venue.engines[0]
    engine.add_fills(5)
    del engine.fills[2]
    async with venue.client() as client:
        with pytest.raises(FillGap) as caught:
            _ = [fill async for fill in client.fills(follow=False)]
    assert (caught.value.expected, caught.value.received) == (3, 4)


async def test_repeated_fill_is_left_out(venue: FakeVenue) -> None:
    """A venue that repeats a fill does not make the client repeat it."""
    engine = venue.engines[0]
    engine.add_fills(3)
    engine.fills.insert(1, engine.fills[0])
    async with venue.client() as client:
        assert [fill.sequence async for fill in client.fills(follow=False)] == [1, 2, 3]


async def test_closing_ends_a_followed_history(venue: FakeVenue) -> None:
    """A task that follows the fills learns that the client was closed."""
    client = await venue.client().open()
    following = asyncio.ensure_future(anext(client.fills()))
    await until(lambda: venue.engines[0].fills_asked)
    await client.close()
    with pytest.raises(ClientClosed):
        await following


async def test_a_reader_that_is_cancelled_ends_as_cancelled(venue: FakeVenue) -> None:
    """Also where the client is closed at the same time: its own user has ended it."""
    async with venue.client() as client:
        reading = asyncio.create_task(anext(client.fills()))
        await until(lambda: venue.engines[0].fills_asked)
        client._session.closed = True
        reading.cancel()
        await asyncio.wait((reading,))
    assert reading.cancelled()


async def test_closing_ends_a_history_that_looks_for_its_engine(venue: FakeVenue) -> None:
    """So does a task whose stream is lost, while it asks where its engine is: nobody has cancelled it."""
    client = await venue.client().open()
    following = asyncio.ensure_future(anext(client.fills()))
    await until(lambda: venue.engines[0].fills_asked)
    venue.hold_searches, searches = asyncio.Event(), venue.searches
    await venue.engines[0].server.stop(None)
    await until(lambda: venue.searches > searches)
    await client.close()
    with pytest.raises(ClientClosed):
        await following


async def test_fills_follow_a_moved_home(venue: FakeVenue) -> None:
    """A history whose engine moved is read at the new one."""
    async with venue.client() as client:
        venue.home = venue.engines[1]
        venue.home.add_fills(2)
        assert [fill.engine async for fill in client.fills(follow=False)] == [2, 2]


async def test_single_calls_are_repeated(venue: FakeVenue) -> None:
    """A query survives overload, a lost token and a moved home."""
    codes = [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE]
    async with venue.client() as client:
        venue.engines[0].unary_failures.extend(codes)
        assert await client.cancel_all() == 8
        venue.tokens.clear()
        assert await client.cancel_all(side="sell") == 7
        venue.home = venue.engines[1]
        assert await client.cancel_all() == 8


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, RequestInvalid),
        (grpc.StatusCode.UNIMPLEMENTED, RequestInvalid),
        (grpc.StatusCode.NOT_FOUND, OrderNotFound),
        (grpc.StatusCode.PERMISSION_DENIED, AuthenticationFailed),
        (grpc.StatusCode.DATA_LOSS, DataLost),
    ],
)
async def test_what_no_repetition_would_mend_is_asked_once(
    venue: FakeVenue, code: grpc.StatusCode, error: type[Exception]
) -> None:
    """It raises what the venue says, though the next question has an answer."""
    venue.engines[0].unary_failures.append(code)
    async with venue.client() as client:
        with pytest.raises(error, match="scripted"):
            await client.open_orders()
        assert await client.open_orders() == []


async def test_a_reply_above_its_limit_is_asked_for_once(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code alone would mean an engine that has too much to do just now."""
    asked = 0

    async def too_large(context: grpc.aio.ServicerContext[Any, Any]) -> None:
        nonlocal asked
        asked += 1
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER: Sent message larger than max (77 vs. 67)"
        )

    monkeypatch.setattr(venue.engines[0], "unary", too_large)
    async with venue.client() as client:
        with pytest.raises(RequestInvalid, match="larger than max"):
            await client.open_orders()
    assert asked == 1


async def test_query_gives_up_at_the_deadline(venue: FakeVenue) -> None:
    """A query whose engine stays away raises within the deadline and says what failed last."""
    async with venue.client(deadline_s=0.5) as client:
        await venue.engines[0].server.stop(None)
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable, match=r"0\.5 s"):
                await client.book("AAPL")


async def test_the_search_for_an_engine_ends_at_the_deadline(venue: FakeVenue) -> None:
    """A query whose engine is away, and whose exchange does not say where it is now, is not late for that."""
    async with venue.client(deadline_s=0.3) as client:
        venue.hold_searches = asyncio.Event()
        await venue.engines[0].server.stop(None)
        began_s = time.monotonic()
        with pytest.raises(Unavailable, match=r"0\.3 s, last failure: UNAVAILABLE"):
            await client.book("AAPL")
        assert time.monotonic() - began_s < session.SEARCH_TIMEOUT_S


async def test_books(venue: FakeVenue) -> None:
    """The home book comes with its sequence and depth, the consolidated one with each engine's share."""
    async with venue.client() as client:
        home = await client.book("AAPL", depth=2)
        everywhere = await client.book("AAPL", consolidated=True)
    assert (home.sequence, len(home.bids), home.best_ask) == (9, 2, None)
    assert home.best_bid is not None
    assert (home.best_bid.price, home.best_bid.quantity) == (Decimal("101.25"), Decimal("0.5"))
    assert [(share.engine, share.quantity) for share in everywhere.asks[0].engines] == [(2, Decimal("0.5"))]


async def test_a_book_lists_its_orders_where_asked(venue: FakeVenue) -> None:
    """With `orders` the home book has each order in its queue; a consolidated book has none to list."""
    async with venue.client() as client:
        (level, *_) = (await client.book("AAPL", orders=True)).bids
        assert [(order.order_id, order.quantity) for order in level.orders] == [(7, Decimal("0.5"))]
        assert (await client.book("AAPL")).bids[0].orders == ()
        with pytest.raises(ValueError, match="consolidated"):
            await client.book("AAPL", consolidated=True, orders=True)


async def test_a_venue_is_asked_without_registration(venue: FakeVenue) -> None:
    """Engines, instruments and the consolidated book need no client, and make none."""
    venue.failures.append(grpc.StatusCode.UNAVAILABLE)  # of a registration, which must not be made
    async with Venue.connect(venue.address, deadline_s=5) as public:
        standby, home = await public.engines()
        assert (standby.role, standby.state, home.role, home.state) == ("standby", None, "primary", "live")
        assert home.address == venue.home.address
        assert list(await public.instruments()) == ["AAPL"]
        assert (await public.book("AAPL")).asks[0].price == Decimal("101.25")
        with pytest.raises(UnknownSymbol):
            await public.book("NONE")
    assert venue.failures
    async with venue.client() as client:
        assert [engine.engine for engine in await client.venue.engines()] == [1, 1]


async def test_a_venue_that_is_away_is_given_up_at_the_deadline(venue: FakeVenue) -> None:
    """A public question raises `Unavailable` when nobody answers it in time."""
    await venue.stop_exchange()
    async with asyncio.timeout(5), Venue.connect(venue.address, deadline_s=0.3) as public:
        with pytest.raises(Unavailable):
            await public.engines()


async def test_orders(venue: FakeVenue) -> None:
    """One order is found by its id, open ones are listed, an unknown one is an error of its own."""
    async with venue.client() as client:
        resting = await client.submit("AAPL", "buy", "1", "2")
        await client.submit("AAPL", "buy", "1", "1")
        state = await client.order(client_order_id=resting.client_order_id)
        assert (state.order_id, state.leaves_quantity, state.time_in_force) == (
            resting.order_id,
            Decimal(1),
            "gtc",
        )
        assert await client.open_orders() == [state]
        with pytest.raises(OrderNotFound):
            await client.order(order_id=99)


async def test_orders_of_a_symbol_that_is_not_listed(venue: FakeVenue) -> None:
    """It is an error, not an empty answer: nothing is asked or cancelled. One listed meanwhile is learnt."""
    async with venue.client() as client:
        for symbol in ("ZZZ", ""):
            with pytest.raises(UnknownSymbol):
                await client.open_orders(symbol)
            with pytest.raises(UnknownSymbol):
                await client.cancel_all(symbol)
        venue.symbols.append("ZZZ")
        assert await client.open_orders("ZZZ") == []
        assert await client.cancel_all("ZZZ", "sell") == 7


async def test_positions(venue: FakeVenue) -> None:
    """Positions come in units and money, not in lots and ticks, of a symbol that is new to the client too."""
    venue.symbols.clear()
    async with venue.client() as client:
        venue.symbols.append("AAPL")
        position = (await client.positions())["AAPL"]
    assert (position.quantity, position.average_price) == (Decimal("-0.5"), Decimal("101.255"))
    assert (position.realized_pnl, position.fees) == (Decimal("0.2"), Decimal("0.001"))
