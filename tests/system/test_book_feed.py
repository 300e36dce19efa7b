"""A subscriber that knows docs/feed.md and nats-py only holds the engine's book at every sequence."""

import asyncio
import json
import random
import zlib
from typing import Any

import nats
from matchbus.v1 import matchbus_pb2 as pb
from nats.aio.msg import Msg

from tests.system.venue import Floor, Trader, Venue, eventually, floor, fresh, levels, limit, scaled, show
from tests.waiting import until

ORDERS = scaled(2_000, 20_000)


class Subscriber:
    """The rules of docs/feed.md for one symbol of one engine."""

    def __init__(self, connection: Any, engine: int, symbol: str) -> None:
        self._connection = connection
        self._engine = engine
        self._symbol = symbol
        self._subject = f"md.{engine}.book.{symbol.replace('.', '=')}"
        self.book: dict[int, dict[int, tuple[int, int]]] = {1: {}, 2: {}}
        self.epoch = self.sequence = -1
        self.joins = self.deltas = self.snapshots = self.resets = 0
        self._subscription: Any = None

    async def run(self) -> None:
        """Follow for ever."""
        while True:
            self._subscription = await self._connection.subscribe(f"md.{self._engine}.>")
            self.joins += 1
            self.sequence = -1
            await self._ask()
            async for message in self._subscription.messages:
                await self._take(message.subject, json.loads(message.data))

    async def drop(self) -> None:
        """Lose the subscription; `run` makes another."""
        await self._subscription.unsubscribe()

    async def _ask(self) -> None:
        request = json.dumps(["snapshot_request", [self._symbol]]).encode()
        await self._connection.publish(f"snapshot.{self._engine}", request)

    async def _take(self, subject: str, message: list[Any]) -> None:
        kind = message[0]
        epoch = message[2] if kind == "heartbeat" else message[1]
        if epoch < self.epoch:
            return
        if epoch > self.epoch:
            self.epoch, self.sequence = epoch, -1
        if kind == "heartbeat":
            if self.sequence < 0 or message[5].get(self._symbol, 0) > self.sequence:
                self.resets += self.sequence >= 0
                self.sequence = -1
                await self._ask()
        elif subject == self._subject:
            self._change(kind, message)

    def _change(self, kind: str, message: list[Any]) -> None:
        if kind == "snapshot":
            _, _, sequence, _, _, changes, checksum, *_ = message
            if sequence < self.sequence:
                return
            self.snapshots += 1
            self.book = {1: {}, 2: {}}
        else:
            _, _, sequence, previous, _, _, changes, checksum, *_ = message
            if sequence <= self.sequence:
                return
            if previous != self.sequence:
                self.resets += self.sequence >= 0
                self.sequence = -1
                return
            self.deltas += 1
        self.sequence = sequence
        for side, price, quantity, count in changes:
            if quantity:
                self.book[side][price] = quantity, count
            else:
                self.book[side].pop(price, None)
        assert self.checksum() == checksum, message

    def levels(self) -> list[list[tuple[int, int, int]]]:
        """(price, quantity, order count) of bids and asks, best first."""
        return [
            [(price, *self.book[side][price]) for price in sorted(self.book[side], reverse=side == 1)]
            for side in (1, 2)
        ]

    def checksum(self) -> int:
        """CRC-32 as docs/feed.md has it."""
        text = "|".join(
            "".join(f"{price}:{quantity};" for price, quantity, _ in side[:10]) for side in self.levels()
        )
        return zlib.crc32(text.encode())


async def hold(trading: Floor, symbol: str, *, drop_every: int) -> Subscriber:
    """Trade at random beside a subscriber; it ends with the engine's book at the engine's sequence."""
    traders = [await trading.trader(1) for _ in range(2)]
    draw = random.Random(f"feed {symbol}")
    connection = await nats.connect(trading.venue.nats_url)
    subscriber = Subscriber(connection, 1, symbol)
    following = asyncio.create_task(subscriber.run())

    async def same() -> bool:
        if following.done():
            following.result()
        book = await traders[0].book(symbol)
        if subscriber.sequence != book.sequence:
            return False
        assert subscriber.levels() == list(levels(book))
        return True

    try:
        for number in range(ORDERS // 20):
            commands = [command(draw, symbol) for _ in range(20)]
            await traders[number % 2].enter([commands[:1], commands[1:5], commands[5:]])
            if number % 10 == 0:
                await eventually(same, 5, f"the book of {symbol} followed")
            if drop_every and number % drop_every == drop_every - 1:
                await subscriber.drop()
        await eventually(same, 5, f"the book of {symbol} followed")
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await connection.close()
    return subscriber


def command(draw: random.Random, symbol: str) -> pb.Command:
    """A limit order near the middle."""
    order = limit(
        symbol,
        draw.choice((1, 2)),
        draw.randint(90, 110),
        draw.randint(1, 20),
        time_in_force=draw.choice((1, 1, 1, 2)),
        client_order_id=fresh("f"),
    )
    return pb.Command(new=order)


async def test_a_subscriber_holds_the_book_and_loses_nothing(one_engine: Venue) -> None:
    """After thousands of random orders the book is the engine's at its sequence, by deltas alone."""
    async with floor(one_engine) as trading:
        subscriber = await hold(trading, "S386", drop_every=0)
        show(f"{subscriber.deltas} deltas, {subscriber.snapshots} snapshots, {subscriber.resets} gaps")
        assert subscriber.deltas > ORDERS // 40
        assert subscriber.resets == 0


async def test_a_subscription_that_is_lost_and_made_again_finds_the_book(one_engine: Venue) -> None:
    """However often it joins in the middle of trading, it has the engine's book soon."""
    async with floor(one_engine) as trading:
        subscriber = await hold(trading, "S385", drop_every=7)
        show(f"{subscriber.joins} joins, {subscriber.deltas} deltas, {subscriber.snapshots} snapshots")
        assert subscriber.joins > ORDERS // 20 // 7


async def test_junk_on_the_feed_and_snapshot_subjects_is_ignored(three_engines: Venue) -> None:
    """Junk on the bus's subjects stops no engine; books and quotes stay right."""
    async with floor(three_engines) as trading:
        one, two = await trading.trader(1), await trading.trader(2)
        pids = [three_engines.engine_pid(engine) for engine in (1, 2, 3)]
        connection = await nats.connect(three_engines.nats_url)
        junk = (
            b"",
            b"\xff" * 100,
            b"[]",
            b"{}",
            b"null",
            b"[1]",
            b'["snapshot_request",[""]]',
            b"[" * 10_000,
        )
        deeper = (
            b'["snapshot_request",["*",">","NOPE",""]]',
            b'["snapshot_request",5]',
            b'["leg",1]',
            b'["leg",1,2,0,0,"S0",1,1,1,0]',
            b'["leg",9223372036854775807,99,1,1,"NOPE",7,-1,-1,0]',
            b'["leg_query",-1,-1]',
            b'["delta",99,1,0,1,1,[[1,100,5,1]],0]',
            b'["heartbeat",7,1,1,1,{}]',
            b'["heartbeat",1,"x",1,1,{}]',
            b'["snapshot",1,-5,1,1,[[9,-1,-1,-1]],0]',
        )
        subjects = (
            "snapshot.1",
            "route.1",
            "route.2",
            "md.9.heartbeat",
            "md.x.heartbeat",
            "md.99999999.heartbeat",
            "md.-1.heartbeat",
            "md.9.book.S0",
            "md.9.book.NOPE",
            "md.9.book.S384.X",
            "md.9.junk",
            "provision.1",
            "provision.x",
            "provision.99999999",
        )
        for subject in subjects:
            for message in (*junk, *deeper):
                await connection.publish(subject, message, reply=connection.new_inbox())
        await connection.flush()
        await connection.close()
        symbol = "S384"
        assert (await one.limit(symbol, 2, 100, 5)).status == pb.ORDER_STATUS_NEW
        assert await crossed_over(two, symbol)
        assert [three_engines.engine_pid(engine) for engine in (1, 2, 3)] == pids


async def test_legs_that_nobody_may_send_are_refused(three_engines: Venue) -> None:
    """An engine that nobody knows gets a refusal for each, or no answer where there is no such number."""
    of_engine_9 = 9 << 48
    impossible: list[Any] = [
        ["leg", of_engine_9 + 1, 9, 1, 0, "S0", 1, -1, 1, 0],
        ["leg", of_engine_9 + 2, 9, 1, 0, "S0", 1, 1, -1, 0],
        ["leg", of_engine_9 + 3, 9, -1, 0, "S0", 1, 1, 1, 0],
        ["leg", of_engine_9 + 4, 9, 1, 0, "S0", 1, 1, 2**63, 0],
        ["leg", of_engine_9 + 5, 9, 1, 10**26, "S0", 1, 1, 1, 0],
        ["leg", of_engine_9 + 6, 9, 1, 0, "S" * 1000, 1, 1, 1, 0],
        ["leg", of_engine_9 + 7, 8, 1, 0, "S0", 1, 1, 1, 0],
    ]
    refused: list[Any] = [
        ["leg", of_engine_9 + 11, 9, 1, 0, "NOPE", 1, 1, 1, 0],
        ["leg", of_engine_9 + 12, 9, 1, 0, "S0", 7, 1, 1, 0],
        ["leg", of_engine_9 + 13, 9, 1, 0, "S0", 1, 0, 1, 0],
        ["leg", of_engine_9 + 14, 9, 1, 0, "S0", 1, 1, 0, 0],
        ["leg", of_engine_9 + 15, 9, 99, 0, "S0", 1, 2**63 - 1, 2**63 - 1, 0],
        ["leg_query", of_engine_9 + 16, 9],
    ]
    async with floor(three_engines) as trading:
        viewers = [await trading.trader(engine) for engine in (1, 2)]
        before = [await viewer.book("S0") for viewer in viewers]
        connection = await nats.connect(three_engines.nats_url)
        inbox = connection.new_inbox()
        answers: list[Any] = []

        async def note(message: Msg) -> None:
            answers.append(json.loads(message.data)[:3])

        await connection.subscribe(inbox, cb=note)
        for subject in ("route.1", "route.2"):
            for leg in (*impossible, *refused):
                await connection.publish(subject, json.dumps(leg).encode(), reply=inbox)
        await until(lambda: len(answers) >= 2 * len(refused))
        await connection.close()
        assert sorted(answers) == sorted(["leg_answer", leg[1], True] for leg in 2 * refused)
        assert [await viewer.book("S0") for viewer in viewers] == before


async def crossed_over(taker: Trader, symbol: str) -> bool:
    """The taker finds the quote of another engine."""

    async def visible() -> bool:
        book = await taker.book(symbol, scope=pb.BOOK_SCOPE_CONSOLIDATED)
        return bool(book.asks)

    await eventually(visible, 5, "the away quote is visible")
    reply = await taker.limit(symbol, 1, 100, 5)
    return reply.status == pb.ORDER_STATUS_FILLED and reply.fills[0].engine_id == 1
