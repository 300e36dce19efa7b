"""Whatever a client sends: a named refusal or the documented status, nothing changed, the engine alive.

And whatever stands in the buckets.
"""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from matchbus.v1 import matchbus_pb2 as pb

from bus import messages, provision, subjects
from bus.connection import Connection
from bus.registry import Bucket, engines_bucket
from bus.server import NatsServer
from bus.stream import last_message
from engine.runtime.process import run
from engine.runtime.servicer import MAX_ENTRY_STREAMS, MAX_LISTINGS
from engine.runtime.settings import EngineSettings
from tests.bad_request import violations
from tests.system.venue import (
    CALL_TIMEOUT_S,
    Trader,
    Venue,
    eventually,
    floor,
    fresh,
    levels,
    limit,
    own_bytes,
)

MEGABYTE = "A" * 1_000_000
INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)
STRANGE = (
    "*",
    ">",
    "S0.>",
    "S0.*",
    "S 0",
    " S0",
    "S0\n",
    "S0\x00",
    "\x00",
    "$KV.sessions.>",
    "s0",
    "S0/../S1",
    "é",
    "",
)


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status a call ended with; it must not succeed."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


class Unchanged:
    """Two resting orders whose book, sequence and engine process must stay what they are."""

    def __init__(self, venue: Venue, trader: Trader, symbol: str) -> None:
        self.venue, self.trader, self.symbol = venue, trader, symbol

    async def __aenter__(self) -> None:
        await self.trader.limit(self.symbol, 1, 90, 5)
        await self.trader.limit(self.symbol, 2, 110, 5)
        self._book = await self.trader.book(self.symbol)
        self._open = await self.trader.open_orders()
        self._pid = self.venue.engine_pid(self.trader.engine)
        assert levels(self._book) == ([(90, 5, 1)], [(110, 5, 1)])

    async def __aexit__(self, *_: object) -> None:
        assert await self.trader.book(self.symbol) == self._book
        assert await self.trader.open_orders() == self._open
        assert self.venue.engine_pid(self.trader.engine) == self._pid
        assert (await self.trader.limit(self.symbol, 1, 90, 1)).status == pb.ORDER_STATUS_NEW


BROKEN: list[tuple[str, dict[str, Any]]] = [
    *(("INVALID_SIDE", {"side": value}) for value in (0, 3, -1, 2**31 - 1)),
    *(("INVALID_ORDER_TYPE", {"type": value}) for value in (0, 5, -1, 2**31 - 1)),
    *(("INVALID_TIME_IN_FORCE", {"time_in_force": value}) for value in (6, -1, -(2**31))),
    *(("INVALID_SELF_TRADE_PREVENTION", {"self_trade_prevention": value}) for value in (6, -1)),
    *(("INVALID_PRICE", {"price": value}) for value in (0, -1, INT64_MIN, INT64_MAX)),
    *(("INVALID_QUANTITY", {"quantity": value}) for value in (0, -1, INT64_MIN, INT64_MAX)),
    *(("UNKNOWN_SYMBOL", {"symbol": value}) for value in (*STRANGE, MEGABYTE, "ZZZZ", "S0" * 13)),
    *(
        ("INVALID_CLIENT_ORDER_ID", {"client_order_id": value})
        for value in ("", "x" * 37, MEGABYTE, "a\nb", "a\x00b", "é")
    ),
    ("UNSUPPORTED", {"type": 3, "stop_price": 100}),
    ("UNSUPPORTED", {"type": 4, "stop_price": 100}),
    ("UNSUPPORTED", {"time_in_force": 4}),
    ("UNSUPPORTED", {"time_in_force": 5, "expire_time_ns": INT64_MAX}),
    ("UNSUPPORTED", {"stop_price": -1}),
    ("UNSUPPORTED", {"display_quantity": INT64_MIN}),
    ("UNSUPPORTED", {"expire_time_ns": INT64_MIN}),
    ("INVALID_PRICE", {"type": 2, "price": 100}),
    ("INVALID_PRICE", {"type": 2, "price": -1}),
    ("CONFLICTING_INSTRUCTIONS", {"post_only": True, "time_in_force": 2}),
    ("CONFLICTING_INSTRUCTIONS", {"post_only": True, "time_in_force": 3}),
    ("CONFLICTING_INSTRUCTIONS", {"post_only": True, "type": 2, "price": 0}),
    ("NOTIONAL_TOO_LARGE", {"price": 10**12, "quantity": 10**12}),
]


def broken(symbol: str, changes: dict[str, Any]) -> pb.NewOrder:
    """A good order with something wrong."""
    good = {
        "symbol": symbol,
        "side": 1,
        "price": 100,
        "quantity": 5,
        "type": 1,
        "client_order_id": fresh("junk"),
    }
    return pb.NewOrder(**{**good, **changes})


def refused(reply: pb.OrderReply, reason: str) -> bool:
    """A named refusal with a text that is short, whatever was sent."""
    return (
        reply.status == pb.ORDER_STATUS_REJECTED
        and pb.RejectReason.Name(reply.reject_reason) == f"REJECT_REASON_{reason}"
        and 0 < len(reply.reject_text) < 300
        and len(reply.client_order_id) < 100
    )


async def test_broken_orders_are_refused_by_name_and_change_nothing(one_engine: Venue) -> None:
    """Each wrong field has its own reason, as a call and in OrderEntry, where replies keep their order."""
    symbol = "S399"
    async with floor(one_engine) as trading:
        trader = await trading.trader()
        async with Unchanged(one_engine, trader, symbol):
            for reason, changes in BROKEN:
                reply = await trader.submit(broken(symbol, changes))
                assert refused(reply, reason), (reason, changes.keys(), str(reply)[:500])
            nothing = pb.NewOrder()
            assert refused(await trader.submit(nothing), "INVALID_CLIENT_ORDER_ID")
            (entered,) = await trader.enter([[pb.Command(new=nothing)]])
            assert refused(entered, "INVALID_CLIENT_ORDER_ID")
            large = [(reason, changes) for reason, changes in BROKEN if MEGABYTE in changes.values()]
            messages = [[pb.Command(new=broken(symbol, changes))] for _, changes in large]
            for (reason, _), entered in zip(large, await trader.enter(messages), strict=True):
                assert refused(entered, reason), (reason, str(entered)[:500])
            small = [entry for entry in BROKEN if entry not in large]
            commands: list[pb.Command] = []
            for _, changes in small:
                commands += [pb.Command(new=broken(symbol, changes)), pb.Command()]
            replies = await trader.enter([commands, [], commands])
            assert len(replies) == 2 * len(commands)
            for position, reply in enumerate(replies):
                reason = "EMPTY_COMMAND" if position % 2 else small[position // 2 % len(small)][0]
                assert refused(reply, reason), (position, reason, reply)


async def test_broken_cancels_and_replaces_are_refused_by_name(one_engine: Venue) -> None:
    """Unknown ids, megabytes and extreme numbers change nothing."""
    symbol = "S398"
    async with floor(one_engine) as trading:
        trader = await trading.trader()
        async with Unchanged(one_engine, trader, symbol):
            mine = (await trader.open_orders(symbol))[0]
            for identity in (
                {},
                {"client_order_id": MEGABYTE},
                {"order_id": 2**64 - 1},
                {"client_order_id": "*"},
            ):
                assert refused(await trader.cancel(**identity), "UNKNOWN_ORDER")
                assert refused(await trader.replace(100, 5, **identity), "UNKNOWN_ORDER")
                commands = [
                    pb.Command(cancel=pb.CancelOrderRequest(**identity)),
                    pb.Command(replace=pb.ReplaceOrderRequest(price=100, quantity=5, **identity)),
                ]
                for entered in await trader.enter([[command] for command in commands]):
                    assert refused(entered, "UNKNOWN_ORDER")
                code, _ = await status_of(trader.order(**identity))
                assert code == grpc.StatusCode.NOT_FOUND
            for price, quantity, reason in (
                (0, 5, "INVALID_PRICE"),
                (INT64_MIN, 5, "INVALID_PRICE"),
                (INT64_MAX, 5, "INVALID_PRICE"),
                (90, 0, "INVALID_QUANTITY"),
                (90, INT64_MIN, "INVALID_QUANTITY"),
                (90, INT64_MAX, "INVALID_QUANTITY"),
                (10**12, 10**12, "NOTIONAL_TOO_LARGE"),
            ):
                reply = await trader.replace(price, quantity, order_id=mine.order_id)
                assert refused(reply, reason), reply


async def test_requests_that_are_no_order_get_invalid_argument(one_engine: Venue) -> None:
    """Queries with wrong fields end with INVALID_ARGUMENT and name the field in BadRequest details."""
    async with floor(one_engine) as trading:
        trader = await trading.trader()
        async with Unchanged(one_engine, trader, "S397"):
            calls = [
                *((trader.book(symbol), "symbol") for symbol in (*STRANGE, MEGABYTE)),
                (trader.book("S0", depth=-1), "depth"),
                (trader.book("S0", detail=9), "detail"),
                (trader.book("S0", scope=9), "scope"),
                (trader.fills(-1), "since_sequence"),
                (trader.fills(INT64_MIN), "since_sequence"),
                *((trader.open_orders(symbol), "symbol") for symbol in (*STRANGE[:-1], MEGABYTE)),
                *((trader.cancel_all(symbol=symbol), "symbol") for symbol in (*STRANGE[:-1], MEGABYTE)),
                (trader.cancel_all(side=7), "side"),
            ]
            for call, field in calls:
                assert await violation(call) == field
            assert await trader.fills(INT64_MAX) == []
            assert len((await trader.book("S397", depth=2**31 - 1)).bids) == 1


async def violation(call: Any) -> str:
    """The field that the BadRequest details of a call's INVALID_ARGUMENT name, in a text that stays short."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value
    assert len(caught.value.details() or "") < 300
    ((field, _),) = violations(caught.value)
    return field


METHODS = (
    "SubmitOrder",
    "CancelOrder",
    "ReplaceOrder",
    "CancelAll",
    "GetOrder",
    "ListOpenOrders",
    "GetOrderBook",
)
GARBAGE = (b"\xff" * 100, b"\x08", bytes(range(256)) * 50, b"\x0a\xff\xff\xff\xff\x0f", b"\x00" * 1000)


async def test_garbage_bytes_do_not_hurt(one_engine: Venue) -> None:
    """Bytes that are no protobuf, unknown methods and oversized messages end the call, not the engine."""
    async with floor(one_engine) as trading:
        trader = await trading.trader()
        async with Unchanged(one_engine, trader, "S396"):
            for method in METHODS:
                raw = trader.channel.unary_unary(f"/matchbus.v1.MatchingEngine/{method}")
                for garbage in GARBAGE:
                    code, _ = await status_of(raw(garbage, metadata=trader.metadata, timeout=CALL_TIMEOUT_S))
                    assert code != grpc.StatusCode.DEADLINE_EXCEEDED
            for channel in (trader.channel, await trading.channel(one_engine.exchange)):
                for unknown in (b"/matchbus.v1.MatchingEngine/Nope", b"/matchbus.v1.Exchange/\xff", b"\xff"):
                    code, _ = await status_of(channel.unary_unary(unknown)(b"", timeout=CALL_TIMEOUT_S))
                    assert code == grpc.StatusCode.UNIMPLEMENTED
            assert await trading.positions(trader) == {}, "the exchange answers, too"
            code, _ = await status_of(trader.submit(broken("S396", {"client_order_id": "x" * 5_000_000})))
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED

            async def junk() -> AsyncIterator[bytes]:
                yield pb.OrderEntryRequest(commands=[pb.Command()]).SerializeToString()
                yield b"\xff" * 50

            entry = trader.channel.stream_stream("/matchbus.v1.MatchingEngine/OrderEntry")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [_ async for _ in entry(junk(), metadata=trader.metadata, timeout=CALL_TIMEOUT_S)]
            assert caught.value.code() != grpc.StatusCode.DEADLINE_EXCEEDED

            async def empty() -> AsyncIterator[pb.OrderEntryRequest]:
                for _ in range(50):
                    yield pb.OrderEntryRequest()

            call = trader.stub.OrderEntry(empty(), metadata=trader.metadata, timeout=CALL_TIMEOUT_S)
            answers = [answer async for answer in call]
            assert answers == [pb.OrderEntryResponse()] * 50


async def test_callers_without_a_good_token_are_turned_away(one_engine: Venue) -> None:
    """No token, junk tokens and half tokens end every call with UNAUTHENTICATED."""
    async with floor(one_engine) as trading:
        trader = await trading.trader()
        async with Unchanged(one_engine, trader, "S395"):
            credentials: list[tuple[tuple[str, str], ...]] = [
                (),
                (("authorization", ""),),
                (("authorization", "Bearer "),),
                (("authorization", "Bearer nope"),),
                (("authorization", f"Basic {trader.token}"),),
                (("authorization", trader.token),),
                (("authorization", f"Bearer {trader.token[:-1]}"),),
                (("authorization", f"Bearer {trader.token}x"),),
                (("authorization", "Bearer *"),),
                (("authorization", "Bearer >.>"),),
            ]
            order = limit("S395", 1, 95, 1)
            requests = {
                "SubmitOrder": order,
                "CancelOrder": pb.CancelOrderRequest(),
                "ReplaceOrder": pb.ReplaceOrderRequest(),
                "CancelAll": pb.CancelAllRequest(),
                "GetOrder": pb.GetOrderRequest(),
                "ListOpenOrders": pb.ListOpenOrdersRequest(),
                "GetOrderBook": pb.GetOrderBookRequest(symbol="S395"),
            }
            for metadata in credentials:
                for method, request in requests.items():
                    call = getattr(trader.stub, method)(request, metadata=metadata, timeout=CALL_TIMEOUT_S)
                    assert (await status_of(call))[0] == grpc.StatusCode.UNAUTHENTICATED, (method, metadata)
                follow = pb.GetFillsRequest(follow=True)
                for stream in (
                    trader.stub.GetFills(follow, metadata=metadata, timeout=CALL_TIMEOUT_S),
                    trader.stub.OrderEntry(metadata=metadata, timeout=CALL_TIMEOUT_S),
                ):
                    assert (await status_of(stream.read()))[0] == grpc.StatusCode.UNAUTHENTICATED
                exchange = await trading.exchange()
                call = exchange.GetPositions(
                    pb.GetPositionsRequest(), metadata=metadata, timeout=CALL_TIMEOUT_S
                )
                assert (await status_of(call))[0] == grpc.StatusCode.UNAUTHENTICATED
            huge = trader.stub.SubmitOrder(
                order, metadata=(("authorization", "Bearer " + "x" * 100_000),), timeout=CALL_TIMEOUT_S
            )
            assert (await status_of(huge))[0] in (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                grpc.StatusCode.UNAUTHENTICATED,
            )


async def test_one_client_cannot_take_all_streams(one_engine: Venue) -> None:
    """Of OrderEntry streams it has 16; one whose replies it does not read is cut off, and makes room."""
    refused = [pb.Command(new=pb.NewOrder(client_order_id="x" * 36))] * 10_000

    async def flood() -> AsyncIterator[pb.OrderEntryRequest]:
        while True:
            yield pb.OrderEntryRequest(commands=refused)

    async with floor(one_engine) as trading:
        greedy, other = await trading.trader(1), await trading.trader(1)
        calls = [greedy.stub.OrderEntry(metadata=greedy.metadata) for _ in range(MAX_ENTRY_STREAMS - 1)]
        for call in calls:
            await call.write(pb.OrderEntryRequest())
            assert await call.read() == pb.OrderEntryResponse()
        stalled = greedy.stub.OrderEntry(flood(), metadata=greedy.metadata)
        assert len((await stalled.read()).replies) == 10_000
        code, details = await status_of(greedy.enter([]))
        assert (code, details) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"{MAX_ENTRY_STREAMS} OrderEntry streams of this client are open: close one",
        )
        assert (await other.limit("S380", pb.SIDE_BUY, 1, 1)).status == pb.ORDER_STATUS_NEW

        async def comes_in() -> bool:
            call = greedy.stub.OrderEntry(metadata=greedy.metadata, timeout=CALL_TIMEOUT_S)
            await call.done_writing()
            return await call.code() is grpc.StatusCode.OK

        await eventually(comes_in, 30, "the stalled stream is cut off")
        stalled.cancel()


async def test_long_lists_leave_orders_room(one_engine: Venue) -> None:
    """However many long lists a client asks for: another's order does not wait for all of them."""
    async with floor(one_engine) as trading:
        greedy, other = await trading.trader(1), await trading.trader(1)
        count, symbol = 3_000, "S381"
        await greedy.enter([[pb.Command(new=limit(symbol, pb.SIDE_BUY, 1, 1)) for _ in range(count)]])
        calls = [
            asyncio.ensure_future(
                greedy.stub.ListOpenOrders(
                    pb.ListOpenOrdersRequest(), metadata=greedy.metadata, timeout=6 * CALL_TIMEOUT_S
                )
            )
            for _ in range(2 * MAX_LISTINGS)
        ]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert (await other.limit(symbol, pb.SIDE_BUY, 2, 1)).status == pb.ORDER_STATUS_NEW
        assert sum(call.done() and call.exception() is None for call in calls) < MAX_LISTINGS // 2
        ended = await asyncio.gather(*calls, return_exceptions=True)
        refused = {str(end.details()) for end in ended if isinstance(end, grpc.aio.AioRpcError)}
        assert refused == {"64 listings of this client are open: close one"}
        listed = [len(end.orders) for end in ended if isinstance(end, pb.ListOpenOrdersReply)]
        assert set(listed) == {count}
        assert len(listed) >= MAX_LISTINGS
        assert len(await greedy.open_orders()) == count


async def test_another_engine_names_the_home_address(three_engines: Venue) -> None:
    """A client that calls an engine that is not its home hears where its home is."""
    async with floor(three_engines) as trading:
        trader = await trading.trader(2)
        for wrong in (1, 3):
            channel = await trading.channel(three_engines.address(wrong))
            guest = Trader(trader.name, trader.secret, await trading.register(trader.name), channel)
            for call in (
                guest.limit("S0", 1, 90, 5),
                guest.cancel("x"),
                guest.fills(),
                guest.open_orders(),
                guest.book("S0"),
                guest.stub.OrderEntry(metadata=guest.metadata, timeout=CALL_TIMEOUT_S).read(),
            ):
                code, details = await status_of(call)
                assert code == grpc.StatusCode.FAILED_PRECONDITION
                assert three_engines.address(2) in details


async def test_registration_keeps_name_secret_and_home(three_engines: Venue) -> None:
    """The password opens the exchange, the secret the name; the home stays, wherever one asks to go."""
    async with floor(three_engines) as trading:
        name = fresh("registered")
        code, _ = await status_of(trading.register(name, password="wrong"))
        assert code == grpc.StatusCode.UNAUTHENTICATED
        first = await trading.register(name, engine=3)
        assert (first.engine, first.engine_address) == (3, three_engines.address(3))
        assert [instrument.symbol for instrument in first.instruments] == sorted(three_engines.symbols)
        code, _ = await status_of(trading.register(name, secret="other", engine=3))
        assert code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
        again = await trading.register(name)
        assert again.engine == 3
        assert again.token
        homes = set[int]()
        async with asyncio.timeout(20):
            while homes != {1, 2, 3}:  # the least loaded first, so in the end all
                homes.add((await trading.register(fresh("spread"))).engine)
        code, _ = await status_of(trading.register(fresh("far"), engine=9))
        assert code in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.UNAVAILABLE,
        )
        for junk in ("", MEGABYTE, "a\x00b", "*\n", "x" * 1000):
            assert await violation(trading.register(junk)) == "client_id", junk[:20]
        assert await violation(trading.register(fresh("secretive"), secret=MEGABYTE)) == "secret"
        assert await violation(trading.register(fresh("passing"), password=MEGABYTE)) == "password"
        for engine in (-1, 65_536, -(2**31)):
            code, _ = await status_of(trading.register(fresh("nowhere"), engine=engine))
            assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
        exchange = await trading.exchange()
        for symbol in (*STRANGE, MEGABYTE):
            call = exchange.GetConsolidatedBook(
                pb.GetConsolidatedBookRequest(symbol=symbol), timeout=CALL_TIMEOUT_S
            )
            assert await violation(call) == "symbol"
        trader = await trading.trader()
        for symbol in (*STRANGE[:-1], MEGABYTE):
            call = exchange.GetPositions(
                pb.GetPositionsRequest(symbol=symbol), metadata=trader.metadata, timeout=CALL_TIMEOUT_S
            )
            assert await violation(call) == "symbol"


async def test_many_junk_tokens_do_not_slow_a_good_client(one_engine: Venue) -> None:
    """A flood of unknown tokens is turned away while a good client trades on."""
    async with floor(one_engine) as trading:
        trader = await trading.trader()

        async def flood(number: int) -> None:
            call = trader.stub.SubmitOrder(
                limit("S394", 1, 90, 1),
                metadata=(("authorization", f"Bearer {number}"),),
                timeout=CALL_TIMEOUT_S,
            )
            code, _ = await status_of(call)
            assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED)

        async with asyncio.TaskGroup() as group:
            junk = [group.create_task(flood(number)) for number in range(300)]
            await asyncio.wait(junk, return_when=asyncio.FIRST_COMPLETED)  # until then none has been sent
            began = time.perf_counter()
            assert (await trader.limit("S394", 1, 90, 1)).status == pb.ORDER_STATUS_NEW
            assert time.perf_counter() - began < 2


NO_TEXT = b'{"address":"\xff","client_id":"\xff","symbol":"\xff"}'
BUCKETS = ("engines", "sessions", "instruments")
GOOD = {"symbol": "X", "tick_size": "1", "lot_size": "1"}
BUCKET_JUNK: list[tuple[str, bytes, dict[str, str] | None]] = [
    *((f"$KV.{bucket}.x", b'{"x":' + b"[" * 100_000, None) for bucket in BUCKETS),
    *((f"$KV.{bucket}.y", NO_TEXT, None) for bucket in BUCKETS),
    ("$KV.engines.abc", b"", {"KV-Operation": "DEL"}),
    *(
        (f"$KV.instruments.{key}", messages.encode(GOOD | fields), None)
        for key, fields in {
            "a": {"symbol": "a b*>"},
            "b": {"tick_size": "1" * 300_000},
            "c": {"lot_size": "0.00"},
            "d": {"market_collar_percent": "x"},
            "e": {"market_collar_percent": "1e40"},
        }.items()
    ),
    ("$KV.leases.1", b"hello", None),
]


@pytest.mark.parametrize(
    "entry",
    [b"hello", b'{"engine":1,"epoch":9223372036854775807,"address":"","pid":1}'],
    ids=["none", "huge"],
)
async def test_junk_in_the_buckets_ends_no_engine(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path, entry: bytes
) -> None:
    """Whatever the buckets hold, an engine that runs goes on listing what comes, and so does the next one."""
    await provision.provision_shared(own_connection)
    await provision.provision_journal(own_connection, 1)
    jetstream = own_connection.jetstream()
    engines = engines_bucket(own_connection)
    settings = EngineSettings(1, own_server.url, "127.0.0.1:0", True, False, None, tmp_path / "state", False)
    thresholds = gc.get_threshold()
    for reign in (1, 2):
        running = asyncio.create_task(run(settings))
        try:
            await _serves(engines, reign, running)
            for subject, payload, headers in BUCKET_JUNK if reign == 1 else ():
                await jetstream.publish(subject, payload, headers=headers)
            symbol = f"LAST{reign}"
            book = await own_connection.subscribe(subjects.book(1, symbol))
            listed = messages.InstrumentEntry(symbol, "1", "1")
            await jetstream.publish(f"$KV.instruments.{symbol}", messages.encode(listed))
            await book.next_msg(timeout=10)
            await eventually(partial(_is_held, own_connection), 10, "the lease is the engine's again")
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.wait([running])
            gc.set_threshold(*thresholds)  # an engine sets its own
            gc.unfreeze()
        await jetstream.publish("$KV.engines.1", entry)


async def test_large_calls_that_are_refused_leave_nothing_behind(one_engine: Venue) -> None:
    """They are cycles in gRPC, for a collector that is seldom at work: without their 4 MB each."""
    large = limit("S0", 1, 1, 1, client_order_id=4 * MEGABYTE)
    pid = one_engine.engine_pid(1)
    before = own_bytes(pid)
    async with floor(one_engine) as trading:
        stub = (await trading.trader(1)).stub
        for _ in range(60):
            code, _ = await status_of(stub.SubmitOrder(large, timeout=CALL_TIMEOUT_S))
            assert code is grpc.StatusCode.UNAUTHENTICATED
    assert own_bytes(pid) - before < 100_000_000


async def _serves(engines: Bucket[messages.EngineEntry], reign: int, running: asyncio.Task[None]) -> None:
    async def entered() -> bool:
        assert not running.done(), running.exception()
        found = await engines.get("1")
        return found is not None and found.epoch == reign

    await eventually(entered, 10, f"reign {reign} begins")


async def _is_held(connection: Connection) -> bool:
    stored = await last_message(connection, "KV_leases", "$KV.leases.1")
    return stored is not None and stored.payload not in (b"", b"hello")
