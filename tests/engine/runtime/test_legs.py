"""Legs between two engines, or an engine and a peer of the test's own making, over a real nats-server."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import subjects
from bus.connection import Connection, connect
from bus.messages import Leg, LegAnswer, LegQuery, decode_leg_answer, decode_route, encode
from bus.server import NatsServer
from engine.commands import Command, LegResult, NewOrder, QueryLeg, TakeLeg
from engine.events import Accepted, Answered, LegSent
from engine.invariants import check
from engine.runtime import legs
from engine.runtime.commit_loop import JournalUnavailable, Overloaded, Submission
from engine.runtime.recovery import begin_reign
from engine.terms import MAX_LEG_FILLS, MAX_PRICE, OrderStatus, Side
from tests.engine.runtime.nodes import Node, Peer, tasks
from tests.waiting import until

FILL = (5 << 48, 100, 2, 6 << 48, 77)
"""(execution id, price, quantity, contra order id, time) as a peer tells it."""


async def settled(submission: Submission) -> Answered:
    """The answer once the order's legs are back."""
    first = submission.answers[0]
    assert isinstance(first, Answered)
    assert first.status == OrderStatus.PENDING
    return await asyncio.wait_for(submission.settling[0], 5)


def query_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no answer is queried again ten times as soon as in a market, and twenty in the end."""
    monkeypatch.setattr(legs, "ANSWER_PATIENCE_S", 0.025)
    monkeypatch.setattr(legs, "MAX_ANSWER_PATIENCE_S", 0.1)
    monkeypatch.setattr(legs, "RETRY_S", 0.01)
    monkeypatch.setattr(legs, "MAX_RETRY_S", 0.05)


def answers(
    *fills: tuple[int, int, int, int, int], refused: bool = False
) -> Callable[[Leg | LegQuery], bytes]:
    """A peer's true answer to whatever leg it is asked about."""
    return lambda question: encode(LegAnswer(question.leg_id, refused, 9, fills))


@asynccontextmanager
async def two_engines(
    nc: Client, engine: int, other: int, *, serve: bool = True
) -> AsyncIterator[tuple[Node, Node]]:
    """Two engines that have begun to reign; the second offers 5 at 100, and the first sees it."""
    async with tasks() as group:
        home, away = (Node(number, nc, group) for number in (engine, other))
        await home.start()
        await away.start(serve=serve)
        await away.rest("bob", Side.SELL, 5, 100)
        home.see(other, (100, 5))
        yield home, away


@asynccontextmanager
async def engine_and_peer(
    nc: Client, engine: int, other: int, *answers: Callable[[Leg | LegQuery], bytes | None]
) -> AsyncIterator[tuple[Node, Peer]]:
    """An engine that has begun to reign, and a peer that gives these answers; the first sees nothing yet."""
    async with tasks() as group:
        peer = Peer(nc, other, *answers)
        await peer.serve()
        home = Node(engine, nc, group)
        await home.start()
        yield home, peer


async def test_a_leg_trades_at_the_peer(nats_connection: Connection, engine: int, other: int) -> None:
    """Both parties have their fill, each at its own home, of one execution; both journals tell why."""
    async with two_engines(nats_connection, engine, other) as (home, away):
        answer = await settled(await home.rest("alice", Side.BUY, 5, 101))
        assert (answer.status, answer.cumulative, answer.value) == (OrderStatus.FILLED, 5, 500)
        (took,), (gave,) = home.fills, away.fills
        assert (took.client, took.engine, took.price, took.quantity) == ("alice", other, 100, 5)
        assert (gave.client, gave.engine, gave.price, gave.quantity) == ("bob", other, 100, 5)
        assert took.execution_id == gave.execution_id
        assert (took.contra_order_id, gave.contra_order_id) == (gave.order_id, took.order_id)
        assert took.time_ns == gave.time_ns
        (taken,) = await away.commands(TakeLeg)
        (sent,) = home.sent
        named = {name: getattr(sent, name) for name in LegSent.__struct_fields__ if name != "peer"}
        assert msgspec.structs.asdict(taken) == {**named, "sender": engine}
        assert len(await home.commands(LegResult)) == 1
        assert (home.legs.sent, away.legs.taken, home.legs.questions) == ({"filled": 1}, {"filled": 1}, 0)
        assert (home.catch_ups, away.catch_ups) == (1, 1), "orders wait for quotes, not legs nor results"
        check(home.state)
        check(away.state)


async def test_what_a_leg_could_not_get_rests_at_home(
    nats_connection: Connection, engine: int, other: int
) -> None:
    """A quote that was gone is not chased: the feed may show it a while longer."""
    async with two_engines(nats_connection, engine, other) as (home, away):
        home.see(other, (100, 8), sequence=0)
        answer = await settled(await home.rest("alice", Side.BUY, 8, 101))
        assert (answer.status, answer.cumulative, answer.leaves) == (OrderStatus.PARTIALLY_FILLED, 5, 3)
        assert len(home.sent) == 1
        assert home.state.books["AAPL"].best(Side.BUY) == (101, 3)
        assert away.state.books["AAPL"].best(Side.SELL) is None


async def test_a_quote_is_handed_out_once_in_a_batch(
    nats_connection: Connection, engine: int, other: int
) -> None:
    """The second of two orders that come together knows that the first one's leg takes it all."""
    async with two_engines(nats_connection, engine, other) as (home, _):
        both = [NewOrder(name, name, "AAPL", Side.BUY, 1, 2, 101, 5) for name in ("ann", "ben")]
        submission = await home.loop.submit(both)
        assert [leg.quantity for leg in home.sent] == [5]
        assert (await settled(submission)).status == OrderStatus.FILLED
        last = submission.answers[1]
        assert isinstance(last, Answered)
        assert (last.status, last.cumulative) == (OrderStatus.CANCELLED, 0)


async def test_a_leg_that_meets_very_many_orders_comes_in_parts(
    nats_connection: Connection, engine: int, other: int
) -> None:
    """One answer tells of a bounded number of fills; the rest is planned again until the order is filled."""
    async with two_engines(nats_connection, engine, other) as (home, away):
        quantity = 2 * MAX_LEG_FILLS + 50
        await away.loop.submit(
            [NewOrder("bob", f"b{n}", "AAPL", 2, 1, 1, 101, 1) for n in range(2 * MAX_LEG_FILLS + 45)]
        )
        home.see(other, (100, 5), (101, quantity - 5))
        answer = await settled(await home.rest("alice", Side.BUY, quantity, 101))
        assert (answer.status, answer.cumulative) == (OrderStatus.FILLED, quantity)
        first, second = MAX_LEG_FILLS + 4, 2 * MAX_LEG_FILLS + 4  # one of the fills is of 5
        assert [leg.quantity for leg in home.sent] == [quantity, quantity - first, quantity - second]
        assert away.state.books["AAPL"].best(Side.SELL) is None
        check(home.state)
        check(away.state)


async def test_a_lost_answer_is_queried(
    nats_connection: Connection, engine: int, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leg traded, its answer never came: the query brings the same one, and it counts once."""
    async with two_engines(nats_connection, engine, other) as (home, away):
        lost: list[bytes] = []
        publish = nats_connection.publish

        async def losing(subject: str, payload: bytes = b"", **options: Any) -> None:
            if payload.startswith(b'["leg_answer"') and not lost:
                lost.append(payload)
            else:
                await publish(subject, payload, **options)

        monkeypatch.setattr(nats_connection, "publish", losing)
        answer = await settled(await home.rest("alice", Side.BUY, 5, 100))
        assert answer.status == OrderStatus.FILLED
        assert decode_leg_answer(lost[0]).fills[0][2] == 5
        assert [type(command) for command in await away.commands(TakeLeg, QueryLeg)] == [TakeLeg, QueryLeg]
        assert len(home.fills) == len(away.fills) == 1


async def test_a_leg_that_never_arrived_never_trades(
    nats_connection: Connection, engine: int, other: int
) -> None:
    """The peer, not there at first, buries it when queried; arriving late it finds its tombstone."""
    async with two_engines(nats_connection, engine, other, serve=False) as (home, away):
        submission = await home.rest("alice", Side.BUY, 5, 100)
        await until(lambda: home.legs.questions)
        (sent,) = home.sent
        home.peers.clear()
        await away.serve()
        answer = await settled(submission)
        assert (answer.status, answer.leaves) == (OrderStatus.NEW, 5)
        late = Leg(sent.leg_id, engine, 1, sent.order_id, "AAPL", sent.side, sent.limit, sent.quantity, 0)
        for _ in range(2):
            reply = await nats_connection.request(subjects.route(other), encode(late), timeout=2)
            assert decode_leg_answer(reply.data).refused
        assert away.fills == []
        assert home.legs.sent == {"refused": 1}
        assert home.legs.questions > 0
        assert away.legs.taken.keys() == {"refused"}
        assert away.state.books["AAPL"].best(Side.SELL) == (100, 5)


async def test_a_leg_that_comes_while_the_engine_ends_is_left_to_the_next_reign(
    nats_connection: Connection, engine: int, other: int
) -> None:
    """Its sender queries it until then. It makes no error, which the connection would report."""
    at_work = asyncio.Event()

    async def end_last(home: Node) -> None:
        try:
            at_work.set()
            await asyncio.Event().wait()
        finally:
            query = encode(LegQuery((other << 48) + 1, other))
            await nats_connection.publish(subjects.route(engine), query, reply=nats_connection.new_inbox())
            await until(lambda: home.loop.queued_commands)

    async with tasks() as group:
        home = Node(engine, nats_connection, group)
        await home.start()
        group.create_task(end_last(home))
        await at_work.wait()


async def test_a_leg_for_an_earlier_reign_is_refused(
    nats_connection: Connection, engine: int, other: int
) -> None:
    """What it aimed at may not be there in this one; its order goes on at home."""
    async with two_engines(nats_connection, engine, other) as (home, away):
        home.see(other, (100, 5), epoch=7)
        submission = await home.rest("alice", Side.BUY, 5, 100)
        home.peers.clear()
        assert (await settled(submission)).status == OrderStatus.NEW
        assert away.fills == []


async def test_an_order_whose_leg_was_refused_waits_for_the_quotes_of_the_new_reign(
    nats_connection: Connection, engine: int, other: int
) -> None:
    """What it was after still stands there, and beside it a worse price at home."""
    async with two_engines(nats_connection, engine, other) as (home, away):
        home.see(other, (100, 5), epoch=7)
        await home.rest("carol", Side.SELL, 5, 101)
        submission = await home.rest("alice", Side.BUY, 5, 101)
        home.peers.clear()
        await until(lambda: home.legs.sent["refused"] == 1)
        home.see(other, (100, 5))
        answer = await settled(submission)
        assert (answer.status, answer.value) == (OrderStatus.FILLED, 500)
        assert away.state.books["AAPL"].best(Side.SELL) is None


async def test_a_slow_link_does_not_keep_a_leg_in_doubt(
    nats_connection: Connection, engine: int, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer whose every answer takes longer than the first question waits is heard in the end."""
    query_soon(monkeypatch)
    async with tasks() as group:
        home = Node(engine, nats_connection, group)
        await home.start()

        async def answer_late(request: Msg) -> None:
            question = decode_route(request.data)

            async def answer() -> None:
                await asyncio.sleep(2 * legs.ANSWER_PATIENCE_S)  # the link, not a wait for anything
                await request.respond(
                    encode(LegAnswer(question.leg_id, refused=False, book_sequence=9, fills=(FILL,)))
                )

            group.create_task(answer())

        await nats_connection.subscribe(subjects.route(other), cb=answer_late)
        await nats_connection.flush()
        home.see(other, (100, 2))
        answer = await settled(await home.rest("alice", Side.BUY, 2, 100))
        assert answer.status == OrderStatus.FILLED
        assert len(home.fills) == 1


async def test_a_leg_of_an_earlier_run_is_queried(
    nats_connection: Connection, engine: int, other: int
) -> None:
    """Not sent again: after a restart the peer says what it did."""
    async with tasks() as group:
        peer = Peer(nats_connection, other, answers(FILL))
        home = Node(engine, nats_connection, group)
        await home.start()
        home.see(other, (100, 2))
        submission = await home.rest("alice", Side.BUY, 2, 100)
        await until(lambda: home.legs.questions)
        await peer.serve()
        answer = await settled(submission)
        assert answer.status == OrderStatus.FILLED
        assert isinstance(peer.asked[0], LegQuery)

        home.legs.resume(msgspec.structs.replace(home.sent[0], leg_id=(engine << 48) + 99))
        await until(lambda: len(peer.asked) == 2)
        assert peer.asked[1] == LegQuery((engine << 48) + 99, engine)


def legs_to(peer: int, engine: int, number: int) -> list[LegSent]:
    """So many legs of an engine, each buying 2."""
    return [
        LegSent((engine << 48) + place, peer, 1, place, "AAPL", int(Side.BUY), 100, 2, 0)
        for place in range(1, number + 1)
    ]


@pytest.mark.parametrize("is_resumed", [False, True], ids=["sent", "resumed"])
async def test_so_many_legs_to_a_peer_are_under_way_at_a_time(
    nats_connection: Connection,
    engine: int,
    other: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_resumed: bool,
) -> None:
    """The others wait in order, also while none is answered; every one is asked about in the end."""
    monkeypatch.setattr(legs, "MAX_LEGS_UNDER_WAY", 3)
    replies = [*[lambda _: None] * 9, *[answers(FILL)] * 20]
    async with engine_and_peer(nats_connection, engine, other, *replies) as (home, peer):
        carried = legs_to(other, engine, 10)
        before = len(asyncio.all_tasks())
        for leg in carried:
            (home.legs.resume if is_resumed else home.legs.send)(leg)
        assert len(asyncio.all_tasks()) == before + 3
        await until(lambda: len(peer.asked) == 9)
        first_three = [leg.leg_id for leg in carried[:3]]
        assert [question.leg_id for question in peer.asked[:3]] == first_three
        assert {question.leg_id for question in peer.asked} == set(first_three)
        await until(lambda: home.legs.sent == {"filled": 10})
        firsts = {question.leg_id: type(question) for question in reversed(peer.asked)}
        assert firsts == {leg.leg_id: LegQuery if is_resumed else Leg for leg in carried}
        order = dict.fromkeys(question.leg_id for question in peer.asked)
        assert list(order) == [leg.leg_id for leg in carried]
        home.legs.send(legs_to(other, engine, 11)[-1])  # when all have been carried, there is room again
        await until(lambda: home.legs.sent == {"filled": 11})


async def test_new_legs_do_not_wait_for_very_many_earlier_ones(
    nats_connection: Connection, engine: int, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave in turns with queries of those of an earlier run, each kind in order."""
    monkeypatch.setattr(legs, "MAX_LEGS_UNDER_WAY", 1)
    async with engine_and_peer(nats_connection, engine, other, *[answers(FILL)] * 10) as (home, peer):
        carried = legs_to(other, engine, 10)
        for leg in carried[:7]:
            home.legs.resume(leg)
        for leg in carried[7:]:
            home.legs.send(leg)
        await until(lambda: home.legs.sent == {"filled": 10})
        ids = [leg.leg_id for leg in carried]
        asked = [ids[at] for at in (0, 7, 1, 8, 2, 9, 3, 4, 5, 6)]
        assert [question.leg_id for question in peer.asked] == asked


async def test_legs_that_are_back_wait_for_the_journal(
    nats_connection: Connection, engine: int, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal slower than the peer owes results of no more legs than are under way."""
    monkeypatch.setattr(legs, "MAX_LEGS_UNDER_WAY", 3)
    async with tasks() as group:
        peer = Peer(nats_connection, other, *[answers(FILL)] * 10)
        await peer.serve()
        home = Node(engine, nats_connection, group)
        await begin_reign(home.state, home.journal, 1, 1)
        for leg in legs_to(other, engine, 10):
            home.legs.send(leg)
        await until(lambda: home.loop.queued_commands == 3)
        # Whatever was sent before this question comes before it, and so does its answer.
        await nats_connection.flush()
        assert len(peer.asked) == 3
        group.create_task(home.loop.run())
        await until(lambda: home.legs.sent == {"filled": 10})
        assert home.loop.queued_commands <= 3


async def test_an_engine_that_hands_over_leaves_waiting_legs_to_its_successor(
    nats_connection: Connection, engine: int, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is idle once those under way are back, however many wait."""
    monkeypatch.setattr(legs, "MAX_LEGS_UNDER_WAY", 3)
    async with engine_and_peer(nats_connection, engine, other, *[answers(FILL)] * 10) as (home, peer):
        for leg in legs_to(other, engine, 10):
            home.legs.send(leg)
        home.loop.retired = True
        await until(lambda: home.legs.sent == {"filled": 3} and home.loop.is_idle)
        await nats_connection.flush()
        assert len(peer.asked) == 3


@pytest.mark.parametrize("number", [1, 2])
async def test_a_dead_route_attracts_no_more_orders_until_it_answers(
    nats_connection: Connection, engine: int, other: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few legs do: the peer is suspect though its feed lives, and is asked on, so that it can come back."""
    query_soon(monkeypatch)
    is_back = asyncio.Event()

    def refuse(question: Leg | LegQuery) -> bytes | None:
        return answers(refused=True)(question) if is_back.is_set() else None

    async with engine_and_peer(nats_connection, engine, other, *[refuse] * 99) as (home, _):
        home.see(other, (101, 50))
        orders = [await home.rest(f"alice{place}", Side.BUY, 5, 101) for place in range(number)]
        await until(lambda: home.away.is_suspect(other))
        await until(lambda: home.legs.questions >= 4 * number)
        assert home.away.is_suspect(other), "it has still not answered"
        (answer,) = (await home.rest("carol", Side.BUY, 5, 101)).answers
        assert isinstance(answer, Accepted), "what the peer shows does not count"
        assert len(home.sent) == number
        home.peers.clear()
        is_back.set()
        for order in orders:
            assert (await settled(order)).status == OrderStatus.NEW
        assert not home.away.is_suspect(other)


async def test_unanswered_legs_are_told_of_together(
    nats_connection: Connection, engine: int, other: int, caplog: pytest.LogCaptureFixture
) -> None:
    """One line of the log a while and peer says how many questions there were, and names one leg."""
    async with tasks() as group:
        home = Node(engine, nats_connection, group)
        await home.start()
        for peer in (other, other + 1):
            for leg in legs_to(peer, engine, 5):
                home.legs.send(leg)
        with caplog.at_level(logging.WARNING, "routing"):
            await until(lambda: home.legs.questions >= 20)
        told = [vars(record) for record in caplog.records if record.name == "routing"]
        assert [line["peer"] for line in told] == [other, other + 1]
        assert [(line["leg"], line["questions"]) for line in told] == [((engine << 48) + 1, 1)] * 2


async def test_the_next_line_about_unanswered_legs_counts(
    nats_connection: Connection,
    engine: int,
    other: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has all questions since the last one."""
    async with tasks() as group:
        home = Node(engine, nats_connection, group)
        await home.start()
        for leg in legs_to(other, engine, 5):
            home.legs.send(leg)
        with caplog.at_level(logging.WARNING, "routing"):
            await until(lambda: home.legs.questions == 5)
            monkeypatch.setattr(legs, "TELL_S", 0.0)
            await until(lambda: home.legs.questions > 5)
        assert [vars(record)["questions"] for record in caplog.records][:2] == [1, 5]


class CutOff(Connection):
    """A connection that is away until `is_back`, and remembers what was asked over it; nobody answers."""

    def __init__(self) -> None:
        super().__init__(["nats://127.0.0.1:1"], on_bug=lambda: None)
        self.is_back = False
        self.looks = 0
        self.asked: list[bytes] = []

    @property
    def is_connected(self) -> bool:
        """As nats-py's."""
        self.looks += 1
        return self.is_back

    async def request(self, *question: Any, **_: Any) -> Msg:
        """Takes a question as it would leave once the server is back."""
        self.asked.append(question[1])
        raise TimeoutError


async def test_nothing_is_asked_while_nats_is_away(
    engine: int, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot leave is no question, and says nothing about the peer."""
    monkeypatch.setattr(legs, "RETRY_S", 0.001)
    connection = CutOff()
    async with tasks() as group:
        home = Node(engine, connection, group)
        for leg in legs_to(other, engine, 3):
            home.legs.send(leg)
        await until(lambda: connection.looks >= 10)
        assert connection.asked == []
        assert not home.away.is_suspect(other)
        connection.is_back = True
        await until(lambda: len({decode_route(question).leg_id for question in connection.asked}) == 3)
        connection.is_back = False
        asked = len(connection.asked)
        looks = connection.looks
        await until(lambda: connection.looks >= looks + 10)
        assert len(connection.asked) == asked
        first: dict[int, type] = {}
        for question in map(decode_route, connection.asked):
            first.setdefault(question.leg_id, type(question))
        assert list(first.values()) == [Leg] * 3


@pytest.mark.parametrize(
    "untrue",
    [
        lambda _: b"",
        lambda _: b"[" * 100_000,
        lambda _: b'["\xff"]',
        lambda question: encode(LegQuery(question.leg_id, question.sender)),
        lambda question: encode(LegAnswer(question.leg_id + 1, False, 9, (FILL,))),
        answers((5 << 48, 100, 3, 6 << 48, 77)),
        answers(FILL, (5 << 48, 100, 1, 6 << 48, 77)),
        answers((5 << 48, 101, 2, 6 << 48, 77)),
        answers((5 << 48, 0, 2, 6 << 48, 77)),
        answers((5 << 48, 100, 0, 6 << 48, 77)),
        answers((5 << 48, 100, 3, 6 << 48, 77), (5 << 48, 100, -1, 6 << 48, 77)),
        answers((5 << 48, 100, 2, 6 << 48, 2**70)),
        answers((2**70, 100, 2, 6 << 48, 77)),
        answers((-(2**70), 100, 2, 6 << 48, 77)),
    ],
    ids=[
        "empty",
        "nested",
        "no text",
        "a query",
        "another leg's",
        "too much",
        "too much in all",
        "worse than the limit",
        "for nothing",
        "of nothing",
        "less than nothing",
        "at no time",
        "of no execution",
        "of less than no execution",
    ],
)
async def test_an_answer_that_cannot_be_is_not_believed(
    nats_connection: Connection, engine: int, other: int, untrue: Callable[[Leg | LegQuery], bytes]
) -> None:
    """The leg is queried until there is one that can; nothing of the other is booked."""
    async with engine_and_peer(nats_connection, engine, other, untrue, answers(FILL)) as (home, peer):
        home.see(other, (100, 2))
        answer = await settled(await home.rest("alice", Side.BUY, 2, 100))
        assert (answer.status, answer.value) == (OrderStatus.FILLED, 200)
        assert [type(question) for question in peer.asked] == [Leg, LegQuery]
        (booked,) = home.fills
        assert (booked.execution_id, booked.contra_order_id, booked.time_ns) == (FILL[0], FILL[3], FILL[4])


async def test_a_sold_leg_is_not_filled_below_its_limit(
    nats_connection: Connection, engine: int, other: int
) -> None:
    """Worse is lower for a seller; better is welcome."""
    low, high = ((5 << 48, price, 2, 6 << 48, 77) for price in (99, 103))
    async with engine_and_peer(nats_connection, engine, other, answers(low), answers(high)) as (home, peer):
        home.legs.send(LegSent((engine << 48) + 1, other, 1, 1, "AAPL", int(Side.SELL), 100, 2, 0))
        await until(lambda: len(peer.asked) == 2)
        await until(lambda: home.number_of_records > 2)
        (result,) = await home.commands(LegResult)
        assert isinstance(result, LegResult)
        assert [fill.price for fill in result.fills] == [103]


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        (LegAnswer(1, False, 2**63 - 1, (FILL,)), True),
        (LegAnswer(1, False, 2**63, (FILL,)), False),
        (LegAnswer(1, False, -1, (FILL,)), False),
        (LegAnswer(1, False, 9, (FILL,) * MAX_LEG_FILLS), True),
        (LegAnswer(1, False, 9, (FILL,) * (MAX_LEG_FILLS + 1)), False),
        (LegAnswer(1, False, 9, ((5 << 48, MAX_PRICE, 2, 6 << 48, 77),)), True),
        (LegAnswer(1, False, 9, ((5 << 48, MAX_PRICE + 1, 2, 6 << 48, 77),)), False),
    ],
)
def test_an_answer_keeps_to_bounds_that_its_leg_does_not_set(answer: LegAnswer, fits: bool) -> None:
    """A journal holds its numbers, there are not too many fills, and even a seller has no price above all."""
    leg = LegSent(1, 2, 1, 1, "AAPL", int(Side.SELL), 100, 2 * (MAX_LEG_FILLS + 1), 0)
    assert legs._fits(leg, answer) is fits


def leg_of(
    sender: int,
    *,
    leg_id: int | None = None,
    symbol: str = "AAPL",
    quantity: int = 5,
    order_id: int = 7,
    settled_below: int = 0,
) -> Leg:
    """A leg that would buy from the book of `two_engines`."""
    identity = (sender << 48) + 1 if leg_id is None else leg_id
    return Leg(identity, sender, 1, order_id, symbol, int(Side.BUY), 100, quantity, settled_below)


@pytest.mark.parametrize(
    "junk",
    [
        lambda sender: b"",
        lambda sender: b"[" * 100_000,
        lambda sender: b'["\xff"]',
        lambda sender: b'["leg",' + b"9" * 100_000 + b"]",
        lambda sender: encode(LegAnswer(1, False, 1, ())),
        lambda sender: encode(leg_of(sender, leg_id=(sender + 1) << 48)),
        lambda sender: encode(LegQuery((sender + 1) << 48, sender)),
        lambda sender: encode(leg_of(sender, leg_id=-1)),
        lambda sender: encode(leg_of(sender, quantity=2**70)),
        lambda sender: encode(leg_of(sender, order_id=2**70)),
        lambda sender: encode(leg_of(sender, settled_below=2**70)),
        lambda sender: encode(leg_of(sender, symbol="A" * 300_000)),
        lambda sender: encode(leg_of(2**30)),
    ],
    ids=[
        "empty",
        "nested",
        "no text",
        "huge number",
        "an answer",
        "leg of another",
        "query for another",
        "negative",
        "more than can be",
        "no order's",
        "all is settled",
        "long symbol",
        "no engine's",
    ],
)
async def test_what_is_no_leg_of_its_sender_is_left_out(
    nats_connection: Connection, engine: int, other: int, junk: Callable[[int], bytes]
) -> None:
    """It trades nothing and has no answer, and the engine goes on taking legs."""
    async with two_engines(nats_connection, engine, other) as (home, away):
        inbox = nats_connection.new_inbox()
        answers = await nats_connection.subscribe(inbox)
        await nats_connection.publish(subjects.route(other), junk(engine), reply=inbox)
        answer = await settled(await home.rest("alice", Side.BUY, 5, 100))
        assert answer.status == OrderStatus.FILLED
        assert len(away.fills) == 1
        await nats_connection.publish(inbox, b"the end")
        assert (await answers.next_msg(timeout=5)).data == b"the end"


async def test_a_leg_nobody_waits_for_is_left_out(
    nats_connection: Connection, engine: int, other: int
) -> None:
    """Without a reply subject its sender could never learn what it did."""
    async with two_engines(nats_connection, engine, other) as (_, away):
        await nats_connection.publish(subjects.route(other), encode(leg_of(engine)))
        reply = await nats_connection.request(
            subjects.route(other), encode(LegQuery((engine << 48) + 2, engine)), timeout=2
        )
        assert decode_leg_answer(reply.data).refused
        assert away.fills == []
        assert await away.commands(TakeLeg) == []


async def test_a_leg_that_finds_no_room_is_left_to_be_queried(
    nats_connection: Connection, engine: int, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine with too much to do does not answer; its peer asks again, and the leg is buried."""
    async with two_engines(nats_connection, engine, other) as (home, away):
        submit = away.loop.submit
        refusals: list[Command] = []

        def busy(commands: list[Command], *, may_take: bool = True) -> Awaitable[Submission]:
            if not refusals:
                refusals.extend(commands)
                raise Overloaded("busy")
            return submit(commands, may_take=may_take)

        monkeypatch.setattr(away.loop, "submit", busy)
        submission = await home.rest("alice", Side.BUY, 5, 100)
        home.peers.clear()
        assert (await settled(submission)).status == OrderStatus.NEW
        assert [type(command) for command in refusals] == [TakeLeg]
        assert away.fills == []


async def test_an_engine_that_is_held_up_does_not_take_that_for_silence(
    shared_server: NatsServer, nats_connection: Connection, engine: int, other: int
) -> None:
    """The answers came in time and wait to be read when its event loop goes on."""
    asked, may_answer, ended = threading.Event(), threading.Event(), threading.Event()

    def answer(question: Leg | LegQuery) -> bytes:
        asked.set()
        may_answer.wait()
        return answers(FILL)(question)

    async def be_peer() -> None:
        nc = await connect(shared_server.url, name="peer", on_closed=lambda: None)
        await Peer(nc, other, *[answer] * 3).serve()
        serving.set()
        await asyncio.to_thread(ended.wait)
        await nc.close()

    serving = threading.Event()
    being_peer = asyncio.create_task(asyncio.to_thread(asyncio.run, be_peer()))
    try:
        await until(serving.is_set)
        async with tasks() as group:
            home = Node(engine, nats_connection, group)
            await home.start()
            home.see(other, (100, 6))
            orders = [await home.rest(f"alice{number}", Side.BUY, 2, 100) for number in range(3)]
            await until(asked.is_set)
            await nats_connection.flush()  # all three have left
            may_answer.set()
            time.sleep(legs.ANSWER_PATIENCE_S + 0.2)  # noqa: ASYNC251 -- the loop is to stand still
            for order in orders:
                assert (await settled(order)).status == OrderStatus.FILLED
            assert home.legs.questions == 0
    finally:
        may_answer.set()
        ended.set()
        await being_peer


async def test_an_answer_says_how_new_the_book_is(
    nats_connection: Connection, engine: int, other: int
) -> None:
    """The taker's feed has shown what the leg took once it is at this sequence."""
    async with two_engines(nats_connection, engine, other) as (_, away):
        before = away.state.books["AAPL"].sequence
        reply = await nats_connection.request(subjects.route(other), encode(leg_of(engine)), timeout=2)
        answer = decode_leg_answer(reply.data)
        assert (answer.refused, answer.book_sequence) == (False, before + 1)
        assert away.replicas["AAPL"].sequence == before + 1


@pytest.mark.parametrize("taken", [False, True], ids=["not taken", "taken and not stored"])
async def test_legs_that_are_left_out_are_told_of_together(
    nats_connection: Connection,
    engine: int,
    other: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    taken: bool,
) -> None:
    """A full journal may take no leg for days, and each is queried every few seconds: one line a while."""

    def refuse(*_: object, **__: object) -> "asyncio.Future[Submission]":
        stall = JournalUnavailable("the journal does not answer")
        if not taken:
            raise stall
        done: asyncio.Future[Submission] = asyncio.get_running_loop().create_future()
        done.set_exception(stall)
        return done

    async with tasks() as group:
        home = Node(engine, nats_connection, group)
        await home.start()
        monkeypatch.setattr(home.loop, "submit", refuse)
        query = encode(LegQuery((other << 48) + 7, other))
        with caplog.at_level(logging.WARNING, "routing"):
            for _ in range(5):
                await nats_connection.publish(subjects.route(engine), query, reply="nobody")
            await until(lambda: home.legs._left_out.since == 4)  # since the first was told
            monkeypatch.setattr(legs, "TELL_S", 0.0)
            await nats_connection.publish(subjects.route(engine), query, reply="nobody")
            await until(lambda: home.legs._left_out.since == 0)
    told = [vars(record) for record in caplog.records if record.name == "routing"]
    leg = (other << 48) + 7
    assert [(line["leg"], line["peer"], line["left_out"]) for line in told] == [
        (leg, other, 1),
        (leg, other, 5),
    ]
    assert told[0]["message"].endswith("this one among others: the journal does not answer")
