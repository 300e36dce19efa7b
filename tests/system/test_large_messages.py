"""What is too large for one message: commands, a book, the reports of a sweep. All of it arrives.

A record above the stream's limit is refused, and a message above the server's closes the connection for good,
so each is divided where it is made. Real processes on a real nats-server; the tests look at what it holds.
"""

import asyncio
from collections.abc import Callable

import grpc
import msgspec
import pytest
from matchbus.v1 import matchbus_pb2 as pb

from bus import messages, subjects
from bus.connection import connect
from bus.records import Record
from bus.stream import MAX_MESSAGE_BYTES, Stored, extent
from bus.stream_reader import StreamReader
from engine.commands import NewOrder, decode
from tests.system.venue import (
    CALL_TIMEOUT_S,
    Floor,
    Trader,
    Venue,
    eventually,
    expect_status,
    floor,
    levels,
    limit,
    show,
)

LONGEST_ID = 36


def long_limit(number: int, side: int, price: int, quantity: int) -> pb.Command:
    """A limit order whose strings are as long as they may be."""
    identity = str(number).rjust(LONGEST_ID, "x")
    return pb.Command(new=limit("S" * 24, side, price, quantity, client_order_id=identity))


async def stored(venue: Venue, stream: str) -> list[Stored]:
    """Everything in a stream."""
    nc = await connect(venue.nats_url, name="test", on_closed=lambda: None)
    end = (await extent(nc, stream)).last_seq
    reader = StreamReader(nc, stream)
    found: list[Stored] = []
    while reader.next_sequence <= end:
        found += await reader.read()
    await reader.close()
    await nc.close()
    return found


async def rest(trader: Trader, commands: list[pb.Command]) -> None:
    """Enter orders, twenty thousand at once, all of which must rest."""
    for first in range(0, len(commands), 20_000):
        some = commands[first : first + 20_000]
        replies = await trader.enter([some[:10_000], some[10_000:]])
        assert {reply.status for reply in replies} == {pb.ORDER_STATUS_NEW}
        assert len(replies) == len(some)


@pytest.fixture
def one_symbol(own_venue: Callable[..., Venue]) -> Venue:
    """A market of two engines and one symbol, the longest."""
    return own_venue(engines=2, symbols=("S" * 24,))


async def test_many_large_commands_at_once_are_cut_into_records(one_symbol: Venue) -> None:
    """12,000 commands come at once: no record is above the limit, each is stored once and acknowledged."""
    async with floor(one_symbol) as trading:
        traders = [await trading.trader(1, name=f"{number}".rjust(64, "c")) for number in range(4)]
        commands = [long_limit(number, 1, 10**6, 10**12) for number in range(3_000)]
        async with asyncio.TaskGroup() as group:
            for trader in traders:
                group.create_task(rest(trader, commands))
        records = await stored(one_symbol, subjects.journal_stream(1))
    sizes = [len(record.payload) for record in records]
    assert max(sizes) <= MAX_MESSAGE_BYTES
    journaled = [
        (command.client, command.client_order_id)
        for record in records
        for command in decode(msgspec.msgpack.decode(record.payload, type=Record).commands)
        if isinstance(command, NewOrder)
    ]
    assert len(journaled) == len(set(journaled)) == 12_000
    assert max(sizes) > MAX_MESSAGE_BYTES // 2, "they came at once"
    show(f"12,000 commands in {len(records)} records, the largest of {max(sizes)} bytes")


async def test_a_book_that_fits_into_no_message_is_known_everywhere(one_symbol: Venue) -> None:
    """60,000 levels: the exchange has all of them, also when it comes later, and so has the other engine."""
    async with floor(one_symbol) as trading:
        ann, bob = await trading.trader(1), await trading.trader(2)
        await rest(ann, [long_limit(number, 1, 10**11 - number, 10**6) for number in range(60_000)])
        symbol = "S" * 24
        own = await ann.book(symbol)
        assert len(own.bids) == 60_000
        assert await open_orders(trading, one_symbol, ann) == 60_000
        await eventually(lambda: shows(trading, symbol, own), 20, "the exchange has the book")
        one_symbol.kill(one_symbol.exchange_pid)
        await eventually(lambda: shows(trading, symbol, own), 20, "the exchange that came later has it")
        await eventually(lambda: sees(bob, symbol, own), 20, "engine 2 has it")
        await bob.limit(symbol, 2, 10**11, 5)
        fills = await eventually(bob.fills, 10, "an order at home on engine 2 takes the best bid")
        assert [(fill.price, fill.quantity) for fill in fills] == [(10**11, 5)]


async def open_orders(trading: Floor, venue: Venue, trader: Trader) -> int:
    """How many orders of a trader are open, asked for by somebody who takes large replies."""
    options = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.insecure_channel(venue.address(1), options=options) as channel:
        asking = Trader(trader.name, "", await trading.register(trader.name), channel)
        return len(await asking.open_orders())


async def shows(trading: Floor, symbol: str, own: pb.OrderBook) -> bool:
    """Whether the exchange's book is that of the engine."""
    request = pb.GetConsolidatedBookRequest(symbol=symbol)
    exchange = await trading.exchange()
    try:
        book = await exchange.GetConsolidatedBook(request, timeout=CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        expect_status(error, grpc.StatusCode.UNAVAILABLE)
        return False
    return bool(levels(book) == levels(own))


async def sees(trader: Trader, symbol: str, own: pb.OrderBook) -> bool:
    """Whether the trader's engine knows the book of the other."""
    return levels(await trader.book(symbol, scope=pb.BOOK_SCOPE_CONSOLIDATED)) == levels(own)


async def test_a_sweep_of_many_orders_is_reported_in_several_messages(one_symbol: Venue) -> None:
    """One order takes 40,000: histories, positions and stored reports have every fill once.

    The answer has as many as fit into a message, and says how many it leaves out.
    """
    orders = 40_000
    async with floor(one_symbol) as trading:
        ann = await trading.trader(1, name="a" * 64)
        bob = await trading.trader(1, name="b" * 64)
        await rest(ann, [long_limit(number, 1, 10**6 - number, 1) for number in range(orders)])
        reply = await bob.submit(long_limit(0, 2, 1, orders).new)
        assert (reply.status, len(reply.fills)) == (pb.ORDER_STATUS_FILLED, 8_000)
        assert reply.fills_omitted == orders - 8_000
        assert [fill.sequence for fill in await bob.fills()] == list(range(1, orders + 1))
        assert [fill.sequence for fill in await ann.fills()] == list(range(1, orders + 1))

        async def positions_follow() -> bool:
            held = [await trading.positions(trader) for trader in (ann, bob)]
            return held == [{"S" * 24: orders}, {"S" * 24: -orders}]

        await eventually(positions_follow, 10, "positions follow")
        found = await stored(one_symbol, subjects.EXECUTIONS_STREAM)
    decoded = [messages.decode_executions(message.payload) for message in found]
    fills = [
        (report.client, report.sequence)
        for message in decoded
        for report in message.reports
        if isinstance(report, messages.ReportedFill)
    ]
    assert len(fills) == len(set(fills)) == 2 * orders
    largest = max(len(message.payload) for message in found)
    assert largest <= MAX_MESSAGE_BYTES
    of_the_sweep = [message for message in decoded if message.last_batch == decoded[-1].last_batch]
    assert len(of_the_sweep) >= 2 * orders // 2_000
    show(f"{2 * orders:,} fills of one batch in {len(of_the_sweep)} messages, the largest of {largest} bytes")
