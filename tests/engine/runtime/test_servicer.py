"""The gRPC edge over a real commit loop; the test says when peers can see what was published."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn, cast

import grpc
import msgspec
import pytest
from matchbus.v1 import matchbus_pb2 as pb

from bus.journal import MemoryJournal
from engine.commands import AddInstrument, AwayQuote, Command, LegFill, LegResult, NewOrder
from engine.events import BookChanged, Event, Fill, LegSent
from engine.runtime import commit_loop, servicer, wire
from engine.runtime.commit_loop import CommitLoop, Submission
from engine.runtime.effects import Effects, FillBell
from engine.runtime.rates import Rates
from engine.runtime.recovery import begin_reign
from engine.runtime.servicer import MatchingEngineServicer
from engine.state import State
from engine.terms import OrderStatus, Side
from tests.waiting import hold_up, running, until

if TYPE_CHECKING:
    from matchbus.edge import Context

    from bus.executions import OldFills
    from engine.runtime.effects import Reports
    from engine.runtime.market_data import MarketData
    from engine.runtime.sessions import Sessions


class Call:
    """One call of a client, and the messages it was sent."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.batches: list[pb.FillBatch] = []

    @property
    def sequences(self) -> list[int]:
        """Of all fills it was sent."""
        return [fill.sequence for batch in self.batches for fill in batch.fills]

    async def send_initial_metadata(self, metadata: tuple[()]) -> None:
        """As gRPC has it."""

    async def write(self, batch: pb.FillBatch) -> None:
        """As gRPC has it."""
        self.batches.append(batch)

    async def abort(self, code: grpc.StatusCode, text: str) -> NoReturn:
        """As gRPC has it."""
        raise AssertionError(f"{code.name}: {text}")


class SlowReader(Call):
    """An OrderEntry stream whose client reads when the test says so."""

    def __init__(self, client: str) -> None:
        super().__init__(client)
        self.reads = asyncio.Semaphore(0)
        self.read: list[int] = []
        """How many replies each response had."""

    async def write(self, response: pb.OrderEntryResponse) -> None:  # type: ignore[override]  # another call
        """As gRPC has it."""
        await self.reads.acquire()
        self.read.append(len(response.replies))


def new_order(name: str, side: Side, quantity: int) -> pb.NewOrder:
    """An order at 100."""
    return pb.NewOrder(
        client_order_id=name,
        symbol="AAPL",
        side=side,  # type: ignore[arg-type]  # the same numbers
        type=pb.ORDER_TYPE_LIMIT,
        time_in_force=pb.TIME_IN_FORCE_GTC,
        price=100,
        quantity=quantity,
    )


class Venue:
    """Engine 1, which trades AAPL; nothing is there but what the test shows."""

    def __init__(self) -> None:
        self.state = State(1)
        self.bell = FillBell()
        self.shown: list[asyncio.Future[None]] = []
        self.holds = False
        """Whether what is published from now on is shown when the test says so, not at once."""
        self.legs: list[LegSent] = []
        self.away: tuple[AwayQuote, ...] = ()
        self.unrenewed_s = 0.0
        self.old_fills: list[list[Fill]] = []
        """What the messages of the execution reports have for a client."""
        self._journal = MemoryJournal(1)
        effects = Effects(
            cast("MarketData", self),
            cast("Reports", self),
            self.bell,
            send_leg=self.legs.append,
            uncross=lambda _: None,
            shown=self._shown,
        )
        self.loop = CommitLoop(
            self.state,
            self._journal,
            catch_up=self._catch_up,
            attach=self._attach,
            legs_planned=lambda _: None,
            release=effects.release,
            release_trouble=lambda: "",
            unrenewed_s=lambda: self.unrenewed_s,
            has_peers=lambda: True,
            delay_s=lambda: 0.0,
        )
        self.servicer = MatchingEngineServicer(
            self.loop,
            cast("Sessions", self),
            self.bell,
            lambda _: {},
            cast("OldFills", self),
            Rates(0),
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Commit for the length of a block."""
        await begin_reign(self.state, self._journal, 1, 1)
        async with running(self.loop.run()):
            await self.loop.submit_own(AddInstrument("AAPL", "0.01", "1"))
            yield

    def submit(self, client: str, side: Side, quantity: int, name: str = "") -> asyncio.Task[pb.OrderReply]:
        """An order at 100; without a name one that says how many orders there are."""
        name = name or f"{client}-{len(self.state.orders)}"
        call = cast("Context", Call(client))
        return asyncio.create_task(self.servicer.SubmitOrder(new_order(name, side, quantity), call))

    async def cancel(self, client: str, order_id: int) -> pb.OrderReply:
        """Cancel an order."""
        call = cast("Context", Call(client))
        return await self.servicer.CancelOrder(pb.CancelOrderRequest(order_id=order_id), call)

    async def fills(self, call: Call, *, follow: bool) -> None:
        """GetFills from the first one on."""
        await self.servicer.GetFills(pb.GetFillsRequest(follow=follow), cast("Context", call))

    async def fills_now(self, client: str) -> list[int]:
        """What GetFills gives to one who does not follow."""
        call = Call(client)
        await self.fills(call, follow=False)
        return call.sequences

    async def publish(
        self, epoch: int, number: int, time_ns: int, changes: Sequence[BookChanged], fills: Sequence[Fill]
    ) -> None:
        """As MarketData says."""
        await asyncio.sleep(0)

    async def add_book(self, symbol: str) -> None:
        """As MarketData says."""

    def add(self, epoch: int, batch_number: int, reports: list[Event]) -> None:
        """As Reports says."""

    async def room(self) -> None:
        """As Reports says."""

    async def read(
        self, client: str, since: int, epoch: int, batch_number: int
    ) -> AsyncGenerator[list[Fill]]:
        """As OldFills says."""
        for fills in self.old_fills:
            yield fills

    async def client_of(self, call: Call) -> str:
        """As Sessions says."""
        return call.client

    async def _catch_up(self) -> None:
        return

    def _attach(self, command: Command) -> Command:
        return (
            msgspec.structs.replace(command, away=self.away)
            if self.away and isinstance(command, NewOrder)
            else command
        )

    async def _shown(self) -> None:
        if self.holds:
            self.shown.append(asyncio.get_running_loop().create_future())
            await self.shown[-1]


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    """An open one."""
    made = Venue()
    async with made.open():
        yield made


async def test_no_fill_is_told_before_peers_can_see_it(venue: Venue) -> None:
    """Neither to a stream that follows nor to a new one, though fills before it are; then with its answer."""
    await venue.submit("bob", Side.SELL, 10)
    venue.holds = True
    bobs = Call("bob")
    following = asyncio.create_task(venue.fills(bobs, follow=True))
    first = venue.submit("ann", Side.BUY, 1)
    await until(lambda: len(venue.shown) == 1)
    second = venue.submit("ann", Side.BUY, 2)
    await until(lambda: len(venue.shown) == 2)
    assert (bobs.sequences, await venue.fills_now("bob"), await venue.fills_now("ann")) == ([], [], [])

    venue.shown[0].set_result(None)
    await first
    await until(lambda: bobs.sequences)
    assert (bobs.sequences, await venue.fills_now("bob"), await venue.fills_now("ann")) == ([1], [1], [1])

    venue.shown[1].set_result(None)
    await second
    assert (await venue.fills_now("bob"), await venue.fills_now("ann")) == ([1, 2], [1, 2])
    await until(lambda: len(bobs.sequences) == 2)
    following.cancel()


async def test_a_long_search_for_old_fills_says_that_it_goes_on(
    venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of messages without any of the client's fills are silence to it: it would give up."""
    await venue.submit("bob", Side.SELL, 10)
    for _ in range(2):
        await venue.submit("ann", Side.BUY, 1)
    at_hand = venue.state.accounts.by_name["bob"].fills
    venue.old_fills = [[], [], [at_hand.pop(0)]]
    bobs = Call("bob")
    await venue.fills(bobs, follow=False)
    assert [len(batch.fills) for batch in bobs.batches] == [1, 1]
    monkeypatch.setattr(servicer, "OLD_FILLS_SIGN_S", -1.0)
    patient = Call("bob")
    await venue.fills(patient, follow=False)
    assert [len(batch.fills) for batch in patient.batches] == [0, 0, 1, 1]
    assert patient.sequences == bobs.sequences == [1, 2]


async def test_old_fills_that_came_while_the_loop_was_held_up_are_sent(
    venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait to be read when the event loop goes on: the reports are not told as silent."""
    await venue.submit("bob", Side.SELL, 10)
    await venue.submit("ann", Side.BUY, 1)
    venue.old_fills = [[venue.state.accounts.by_name["bob"].fills.pop()]]
    read = venue.read

    async def read_meanwhile(*question: Any) -> AsyncGenerator[list[Fill]]:
        hold_up(0.8)
        await asyncio.to_thread(time.sleep, 0.1)
        async for fills in read(*question):
            yield fills

    monkeypatch.setattr(venue, "read", read_meanwhile)
    monkeypatch.setattr(servicer, "OLD_FILLS_PATIENCE_S", 0.5)
    bobs = Call("bob")
    await venue.fills(bobs, follow=False)
    assert bobs.sequences == [1]


async def test_who_follows_fills_is_sent_away_by_an_engine_that_may_have_been_replaced(
    venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor makes the next fills: a stream that stayed open would be silent for ever."""
    monkeypatch.setattr(commit_loop, "REIGN_PATIENCE_S", 0.05)
    bobs = Call("bob")
    await venue.submit("bob", Side.SELL, 10)
    await venue.submit("ann", Side.BUY, 1)
    following = asyncio.create_task(venue.fills(bobs, follow=True))
    await until(lambda: bobs.sequences == [1])
    venue.bell.ring_all()
    await asyncio.wait([following], timeout=0.1)
    assert not following.done()
    venue.unrenewed_s = 3600.0
    await until(venue.loop.doubt)
    venue.bell.ring_all()
    with pytest.raises(AssertionError, match="UNAVAILABLE: the lease of this engine is not renewed"):
        await asyncio.wait_for(following, 10)


async def test_a_batch_that_is_shown_too_soon_waits_for_those_before(venue: Venue) -> None:
    """A round trip may fail while an earlier one is still on its way: fills and answers keep their order."""
    await venue.submit("bob", Side.SELL, 10)
    venue.holds = True
    submitted = []
    for _ in range(3):
        submitted.append(venue.submit("ann", Side.BUY, 1))
        await until(lambda: len(venue.shown) == len(submitted))
    venue.shown[1].set_result(None)
    for _ in range(20):  # everything that can happen without the first
        await asyncio.sleep(0)
    assert await venue.fills_now("bob") == []
    assert not submitted[1].done()
    venue.shown[0].set_result(None)
    await submitted[1]
    assert await venue.fills_now("bob") == [1, 2]
    venue.shown[2].set_result(None)
    await submitted[2]
    assert await venue.fills_now("bob") == [1, 2, 3]


async def test_the_reply_to_a_cancel_has_no_fills(venue: Venue, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the order's legs, and what they bring the order had traded: the cancel did not."""
    monkeypatch.setattr(servicer, "SETTLE_PATIENCE_S", 0.01)
    await venue.submit("bob", Side.SELL, 4)
    venue.away = (AwayQuote(2, 1, 9, ((100, 5),)),)
    pending = await venue.submit("ann", Side.BUY, 10)
    assert (pending.status, [fill.quantity for fill in pending.fills]) == (pb.ORDER_STATUS_PENDING, [4])
    monkeypatch.setattr(servicer, "SETTLE_PATIENCE_S", 10.0)
    repeating = venue.submit("ann", Side.BUY, 10, "ann-1")
    cancelling = asyncio.create_task(venue.cancel("ann", pending.order_id))
    await until(lambda: venue.state.orders[pending.order_id].cancelling)
    (leg,) = venue.legs
    await venue.loop.submit_own(LegResult(leg.leg_id, (LegFill(2 << 48, 100, 3, 7, 1),)))
    cancelled, repeated = await cancelling, await repeating
    assert (cancelled.status, cancelled.cumulative_quantity) == (pb.ORDER_STATUS_CANCELLED, 7)
    assert list(cancelled.fills) == []
    assert [fill.quantity for fill in repeated.fills] == [4, 3]


async def test_others_have_their_turn_in_a_long_cancel_all(
    venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as many commands as it takes, and its reply counts what all of them cancelled."""
    monkeypatch.setattr(wire, "MAX_CANCELS", 2)
    await asyncio.gather(*(venue.submit("ann", Side.BUY, 10, str(number)) for number in range(5)))
    call = cast("Context", Call("ann"))
    cancelling = asyncio.create_task(venue.servicer.CancelAll(pb.CancelAllRequest(), call))
    bought = await venue.submit("bob", Side.SELL, 1)  # comes behind the first of three commands
    assert [fill.quantity for fill in bought.fills] == [1]
    assert (await cancelling).count == 5
    assert not venue.state.accounts.by_name["ann"].open


async def test_a_cancel_all_goes_on_when_its_caller_has_given_up(
    venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one command it was taken whole or not at all; a deadline that runs out still leaves none."""
    monkeypatch.setattr(wire, "MAX_CANCELS", 2)
    await asyncio.gather(*(venue.submit("ann", Side.BUY, 10, str(number)) for number in range(5)))
    venue.holds = True
    call = cast("Context", Call("ann"))
    cancelling = asyncio.create_task(venue.servicer.CancelAll(pb.CancelAllRequest(), call))
    still_open = venue.state.accounts.by_name["ann"].open
    await until(lambda: venue.shown)
    cancelling.cancel()
    await asyncio.wait([cancelling])
    assert cancelling.cancelled()
    assert len(still_open) == 3
    venue.holds = False
    venue.shown.pop().set_result(None)  # the first of three commands is answered
    await until(lambda: not still_open)


async def test_messages_of_a_stream_wait_for_their_legs_together(
    venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answers its patience after its own commit, not after the answer to the message before it."""
    monkeypatch.setattr(servicer, "SETTLE_PATIENCE_S", 1.0)
    venue.away = (AwayQuote(2, 1, 9, ((100, 5),)),)
    reader = SlowReader("ann")
    for _ in range(5):
        reader.reads.release()
    began_s = time.monotonic()
    await venue.servicer.OrderEntry(orders(5), cast("Context", reader))
    assert reader.read == [1] * 5
    assert {order.status for order in venue.state.orders.values()} == {OrderStatus.PENDING}
    assert 1.0 <= time.monotonic() - began_s < 4.0


async def orders(count: int) -> AsyncIterator[pb.OrderEntryRequest]:
    """So many OrderEntry messages of one order each, sent at once."""
    for number in range(count):
        yield pb.OrderEntryRequest(commands=[pb.Command(new=new_order(f"order {number}", Side.BUY, 1))])


async def entries(sizes: Sequence[int]) -> AsyncIterator[pb.OrderEntryRequest]:
    """OrderEntry messages of so many cancels each, sent at once."""
    for size in sizes:
        cancel = pb.Command(cancel=pb.CancelOrderRequest(client_order_id="none"))
        yield pb.OrderEntryRequest(commands=[cancel] * size)


async def test_what_waits_for_answers_on_a_stream_is_bounded(
    venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In commands as in messages, or one who reads nothing holds much memory; the largest message goes in."""
    monkeypatch.setattr(servicer, "MAX_COMMANDS_PER_MESSAGE", 5)
    monkeypatch.setattr(servicer, "MAX_UNANSWERED_MESSAGES", 3)
    monkeypatch.setattr(servicer, "STALLED_READER_S", 60.0)
    taken: list[int] = []
    submit = venue.loop.submit

    def noted(
        commands: Sequence[Command], *, client: str = "", may_take: bool = True
    ) -> asyncio.Future[Submission]:
        taken.append(len(commands))
        return submit(commands, client=client, may_take=may_take)

    monkeypatch.setattr(venue.loop, "submit", noted)
    call, sizes = SlowReader("ann"), [3, 2, 1, 5, 1, 1, 1, 1]
    entering = asyncio.create_task(venue.servicer.OrderEntry(entries(sizes), cast("Context", call)))
    for in_all in (2, 3, 3, 4, 7, 8, 8, 8, 8):
        await until(lambda: len(taken) >= in_all)  # noqa: B023 -- it is asked at once
        for _ in range(50):  # everything that can happen without the reader
            await asyncio.sleep(0)
        assert taken == sizes[:in_all]
        call.reads.release()
    await entering
    assert call.read == sizes


async def test_what_was_read_while_the_loop_was_held_up_counts(
    venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word of it waits when the event loop goes on: the reader is not told that it read nothing."""

    class ReadMeanwhile(SlowReader):
        async def write(self, response: pb.OrderEntryResponse) -> None:  # type: ignore[override]  # as above
            hold_up(0.8)
            await asyncio.to_thread(time.sleep, 0.1)
            self.read.append(len(response.replies))

    monkeypatch.setattr(servicer, "STALLED_READER_S", 0.5)
    call = ReadMeanwhile("ann")
    await venue.servicer.OrderEntry(entries([2, 1]), cast("Context", call))
    assert call.read == [2, 1]
