"""The gRPC edge of an engine: who calls, what is asked, and faults turned into statuses.

A handler only queues commands and waits for their answers; a client that hangs up cancels the handler, never
the order. What a handler reads it reads through the commit loop, so it never shows what the journal lacks.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final, NoReturn, TypeVar, cast

import grpc
import msgspec
from google.protobuf.message import Message
from matchbus.edge import Context, abort_bad_request
from matchbus.listings import Turns, add_levels, in_slices
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc

from bus import consolidated
from bus.connection import Patience
from bus.executions import ExecutionsDamaged, OldFills
from bus.messages import ReportedFill
from bus.replica import BookReplica
from engine.book import Book
from engine.commands import CancelAll, CancelOrder, Command, OrderCommand
from engine.events import Accepted, Answered, CancelledAll, Fill
from engine.orders import Landmark, Order
from engine.runtime import order_log, order_trace, wire
from engine.runtime.commit_loop import CommitError, CommitLoop, Overloaded, Submission
from engine.runtime.effects import FillBell
from engine.runtime.rates import Rates
from engine.runtime.sessions import Sessions
from engine.terms import Side

MAX_COMMANDS_PER_MESSAGE: Final = 10_000
MAX_UNANSWERED_MESSAGES: Final = 8
"""OrderEntry messages of one stream that may wait for their answers, with as many commands together as one
message may have; then the stream is read no further."""

MAX_ENTRY_STREAMS: Final = 16
"""OrderEntry streams of one client at once: each may hold a message of megabytes that waits."""

SETTLE_PATIENCE_S: Final = 0.5
"""How long an answer waits for an order's legs before it says PENDING."""

MAX_LISTINGS: Final = 64
"""ListOpenOrders and GetOrderBook calls of one client at once: each may hold a reply of megabytes."""

MAX_FILLS_PER_BATCH: Final = 500
MAX_FILL_STREAMS: Final = 8
"""GetFills streams of one client at once."""

OLD_FILLS_PATIENCE_S: Final = 5.0
"""How long a search for old fills waits for the next message of the execution reports."""

OLD_FILLS_SIGN_S: Final = 1.0
"""After so long without any of the client's fills a search says, by an empty batch, that it goes on."""

STALLED_READER_S: Final = 5.0
"""A reader that takes nothing for this long is cut off; it comes back and goes on where it was."""

_REFUSAL_S: Final = 0.5
"""How long the refusal of such a reader may take to leave."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One OrderEntry message on its way: its commands, None for an empty one, and its parts' futures."""

    commands: Sequence[OrderCommand | None]
    parts: list[asyncio.Future[Submission]]


@dataclass(frozen=True, slots=True)
class _End:
    """The end of an OrderEntry stream: the fault or the refusal for which it is read no further.

    It has neither when its client ended it.
    """

    fault: CommitError | None = None
    refusal: str = ""


class _Unanswered:
    """The messages of one OrderEntry stream that wait for their answers."""

    def __init__(self) -> None:
        self._messages = self._commands = 0
        self._fewer = asyncio.Event()

    async def add(self, commands: int) -> None:
        """Count a message of so many commands, when there is room for it."""
        while (
            self._messages == MAX_UNANSWERED_MESSAGES or self._commands + commands > MAX_COMMANDS_PER_MESSAGE
        ):
            self._fewer.clear()
            await self._fewer.wait()
        self._messages += 1
        self._commands += commands

    def remove(self, commands: int) -> None:
        """A message of so many commands is answered."""
        self._messages -= 1
        self._commands -= commands
        self._fewer.set()


class MatchingEngineServicer(matchbus_pb2_grpc.MatchingEngineServicer):
    """Answers the calls of service MatchingEngine.

    `books_of` gives a symbol's books that count, by engine number.
    """

    def __init__(
        self,
        loop: CommitLoop,
        sessions: Sessions,
        bell: FillBell,
        books_of: Callable[[str], Mapping[int, BookReplica]],
        old_fills: OldFills,
        rates: Rates,
    ) -> None:
        self._loop = loop
        self._sessions = sessions
        self._bell = bell
        self._books_of = books_of
        self._old_fills = old_fills
        self.rates = rates
        self.empty_commands = 0
        """How many commands of OrderEntry messages were empty."""
        self._fill_streams: Counter[str] = Counter()
        self._entry_streams: Counter[str] = Counter()
        self._listings: Counter[str] = Counter()
        self._turns = Turns()

    @property
    def open_streams(self) -> dict[str, int]:
        """How many calls that go on are open, by their name in the contract."""
        return {
            "OrderEntry": self._entry_streams.total(),
            "GetFills": self._fill_streams.total(),
        }

    @property
    def streaming_clients(self) -> int:
        """How many clients have such a call open."""
        return len(self._entry_streams.keys() | self._fill_streams.keys())

    async def SubmitOrder(self, request: pb.NewOrder, context: Context) -> pb.OrderReply:
        """Take an order; answers when it has come to rest."""
        client = await self._sessions.client_of(context)
        return await self._answer_one(wire.new_order(client, request), context)

    async def CancelOrder(self, request: pb.CancelOrderRequest, context: Context) -> pb.OrderReply:
        """Cancel what is left of an order."""
        client = await self._sessions.client_of(context)
        return await self._answer_one(wire.cancel_order(client, request), context)

    async def ReplaceOrder(self, request: pb.ReplaceOrderRequest, context: Context) -> pb.OrderReply:
        """Give an order a new price and total quantity."""
        client = await self._sessions.client_of(context)
        return await self._answer_one(wire.replace_order(client, request), context)

    async def CancelAll(self, request: pb.CancelAllRequest, context: Context) -> pb.CancelAllReply:
        """Cancel the caller's open orders."""
        client = await self._sessions.client_of(context)
        if request.side not in (0, *Side):
            await abort_bad_request(context, "side", f"{request.side} is no side: leave it 0 for both")
        if request.symbol and request.symbol not in self._loop.state.books:
            await _abort_unlisted(context, request.symbol)
        cancelling = asyncio.create_task(_cancel_all(self._loop, client, wire.cancel_all(client, request)))
        try:
            count = await asyncio.shield(cancelling)  # no less is cancelled where the caller gives up
        except CommitError as fault:
            await _abort_untaken(context, fault)
        return pb.CancelAllReply(count=count)

    async def OrderEntry(
        self, request_iterator: AsyncIterator[pb.OrderEntryRequest], context: Context
    ) -> None:
        """Take commands by the message and answer each message with one, in order."""
        client = await self._sessions.client_of(context)
        await _open_call(self._entry_streams, client, MAX_ENTRY_STREAMS, "OrderEntry streams", context)
        waiting: asyncio.Queue[_Entry | _End] = asyncio.Queue()
        unanswered = _Unanswered()
        reading = asyncio.create_task(self._read_entries(client, request_iterator, unanswered, waiting))
        try:
            await context.send_initial_metadata(())  # some wait for it before they send anything
            while isinstance(entry := await waiting.get(), _Entry):
                commands = len(entry.commands)
                response = await self._respond(entry, context)
                del entry  # it may be megabytes, and its reader slow
                await _write(response, context, "send what has no answer again, with the same ids")
                del response  # the next one may be long in coming
                unanswered.remove(commands)
            if entry.fault is not None:
                await _abort_untaken(context, entry.fault)
            if entry.refusal:
                await abort_bad_request(context, "commands", entry.refusal)
            await reading
        finally:
            _close_call(self._entry_streams, client)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading

    async def GetFills(self, request: pb.GetFillsRequest, context: Context) -> None:
        """Send the caller's fills above a sequence, then, if asked, every new one."""
        client = await self._sessions.client_of(context)
        if request.since_sequence < 0:
            await abort_bad_request(context, "since_sequence", f"{request.since_sequence} must be 0 or more")
        await _open_call(self._fill_streams, client, MAX_FILL_STREAMS, "GetFills streams", context)
        try:
            await context.send_initial_metadata(())  # the first fill may be long in coming
            with self._bell.listen(client) as rung:
                await self._send_fills(
                    client, request.since_sequence, rung if request.follow else None, context
                )
        finally:
            _close_call(self._fill_streams, client)

    async def GetOrder(self, request: pb.GetOrderRequest, context: Context) -> pb.OrderState:
        """Show one of the caller's orders."""
        client = await self._sessions.client_of(context)
        accounts = self._loop.state.accounts

        def find() -> pb.OrderState | None:
            order = accounts.find(client, request.order_id, request.client_order_id)
            return None if order is None else wire.order_state(order)

        found = await self._read(find, context)
        if found is None:
            asked = request.order_id or f"{request.client_order_id!r:.48}"
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"order {asked} is not one of this client's orders"
            )
        return found

    async def ListOpenOrders(
        self, request: pb.ListOpenOrdersRequest, context: Context
    ) -> pb.ListOpenOrdersReply:
        """Show the caller's orders that can still trade, oldest first."""
        client = await self._sessions.client_of(context)
        if request.symbol and request.symbol not in self._loop.state.books:
            await _abort_unlisted(context, request.symbol)
        by_name, reply = self._loop.state.accounts.by_name, pb.ListOpenOrdersReply()

        def listed() -> Iterator[None]:
            account = by_name.get(client)
            return _list_orders(reply, request.symbol, account.open.values() if account is not None else ())

        await self._list(listed, client, context)
        return reply

    async def GetOrderBook(self, request: pb.GetOrderBookRequest, context: Context) -> pb.OrderBook:
        """Show a book: this engine's, by level or order by order, or all live engines' together."""
        client = await self._sessions.client_of(context)
        book = self._loop.state.books.get(request.symbol)
        if book is None:
            await _abort_unlisted(context, request.symbol)
        if request.depth < 0:
            await abort_bad_request(context, "depth", f"{request.depth} must be 0 (all levels) or more")
        if request.detail not in pb.BookDetail.values():
            await abort_bad_request(context, "detail", f"{request.detail} must be LEVELS (1) or ORDERS (2)")
        if request.scope not in pb.BookScope.values():
            await abort_bad_request(
                context, "scope", f"{request.scope} must be ENGINE (1) or CONSOLIDATED (2)"
            )
        is_consolidated = request.scope == pb.BOOK_SCOPE_CONSOLIDATED
        with_orders = request.detail == pb.BOOK_DETAIL_ORDERS
        if is_consolidated and with_orders:
            await abort_bad_request(context, "detail", "a consolidated book has levels, no orders")
        depth, reply = request.depth or None, pb.OrderBook(symbol=request.symbol)

        def shown() -> Iterator[None]:
            if is_consolidated:
                return _consolidated(reply, self._books_of(request.symbol), depth)
            return _engine_book(reply, book, depth, with_orders=with_orders)

        await self._list(shown, client, context)
        return reply

    # -- one command ----------------------------------------------------------------------------------

    async def _answer_one(self, command: OrderCommand, context: Context) -> pb.OrderReply:
        if (wait_s := self.rates.take(command.client, (command,))) > 0:
            self.rates.refused += 1
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self.rates.per_second} orders a second are a client's limit: try again in {wait_s:.3f} s",
            )
        submission = await self._submit(command, command.client, context)
        return wire.order_reply(pb.OrderReply(), (await _answers([submission]))[0])

    async def _submit(self, command: Command, client: str, context: Context) -> Submission:
        try:
            done = self._loop.submit([command], client=client)
        except CommitError as fault:
            await _abort_untaken(context, fault)
        return await self._committed(done, context)

    async def _committed(self, done: asyncio.Future[Submission], context: Context) -> Submission:
        try:
            return await done
        except CommitError as fault:
            await _abort_untaken(context, fault)

    async def _respond(self, entry: _Entry, context: Context) -> pb.OrderEntryResponse:
        submissions = [await self._committed(part, context) for part in entry.parts]
        return wire.order_entry_response(entry.commands, await _answers(submissions))

    async def _read(self, query: Callable[[], T], context: Context) -> T:
        try:
            return await self._loop.read(query)
        except CommitError as fault:
            await _abort_untaken(context, fault)

    async def _list(self, query: Callable[[], Iterator[None]], client: str, context: Context) -> None:
        """Make what may be long: `query` copies what the steps that it returns then put into the reply."""
        await _open_call(self._listings, client, MAX_LISTINGS, "listings", context)
        context.add_done_callback(lambda _: _close_call(self._listings, client))  # type: ignore[arg-type]  # stubs
        async with self._turns.of(client):
            await in_slices(await self._read(query, context))

    async def _read_entries(
        self,
        client: str,
        messages: AsyncIterator[pb.OrderEntryRequest],
        unanswered: _Unanswered,
        waiting: asyncio.Queue[_Entry | _End],
    ) -> None:
        """Queue the commands of each message, while there is room, up to one that cannot be taken."""
        end = _End()
        try:
            async for message in messages:
                count = len(message.commands)
                if count > MAX_COMMANDS_PER_MESSAGE:
                    end = _End(refusal=f"{count} in one message, {MAX_COMMANDS_PER_MESSAGE} is the limit")
                    return
                commands = wire.order_commands(client, message)
                self.empty_commands += commands.count(None)
                del message  # it may be megabytes, and have to wait
                await unanswered.add(len(commands))
                parts = []
                for part in self.rates.parts(commands):
                    await self.rates.pace(client, part)
                    await self._loop.wait_for_share(client, len(part))
                    parts.append(
                        self._loop.submit([command for command in part if command is not None], client=client)
                    )
                waiting.put_nowait(_Entry(commands, parts))
                del commands, parts, part  # the next message may be long in coming
        except CommitError as fault:
            end = _End(fault=fault)
        finally:
            waiting.put_nowait(end)

    async def _send_fills(
        self, client: str, since: int, rung: asyncio.Event | None, context: Context
    ) -> None:
        """Write fills above `since` that may be seen; follow while the bell rings, or end without one."""
        by_name = self._loop.state.accounts.by_name

        def newer() -> list[Fill] | Landmark:
            account = by_name.get(client)
            if account is None:
                return []
            if since < account.forgotten:
                return account.landmark(since)
            first = since - account.forgotten
            count = min(self._bell.visible(client, account.traded) - since, MAX_FILLS_PER_BATCH)
            return account.fills[first : first + max(count, 0)]

        while True:
            if rung is not None:
                rung.clear()
            found = await self._read(newer, context)
            if isinstance(found, Landmark):
                since = await self._send_old_fills(client, since, found, context)
            elif found:
                await _write_fills(found, context)
                since += len(found)
            elif rung is None:
                return
            else:
                await rung.wait()

    async def _send_old_fills(self, client: str, since: int, landmark: Landmark, context: Context) -> int:
        """Write fills above `since` from the execution reports up to those at hand; the last one's number."""
        account = self._loop.state.accounts.by_name[client]
        reading = self._old_fills.read(client, since, landmark.epoch, landmark.batch_number)
        wrote_s = time.monotonic()
        try:
            async with contextlib.aclosing(reading) as messages:
                while since < account.forgotten:
                    async with Patience(OLD_FILLS_PATIENCE_S):
                        fills = await anext(messages)
                    for first in range(0, len(fills), MAX_FILLS_PER_BATCH):
                        await _write_fills(fills[first : first + MAX_FILLS_PER_BATCH], context)
                    if fills:
                        since = fills[-1].sequence
                    elif time.monotonic() - wrote_s > OLD_FILLS_SIGN_S:
                        await _write_fills((), context)
                    else:
                        continue
                    wrote_s = time.monotonic()
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE,
                f"fills after {since} are in the execution reports, which do not come now: try again",
            )
        except ExecutionsDamaged as fault:
            await context.abort(grpc.StatusCode.DATA_LOSS, f"{fault}; see docs/reliability.md")
        return since


async def _open_call(calls: Counter[str], client: str, most: int, what: str, context: Context) -> None:
    """Count one more open call of the client; end the call when it has as many as it may."""
    if calls[client] >= most:
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"{most} {what} of this client are open: close one"
        )
    calls[client] += 1


def _close_call(calls: Counter[str], client: str) -> None:
    """One call fewer of the client is open."""
    calls[client] -= 1
    if not calls[client]:
        del calls[client]


async def _write_fills(fills: Sequence[Fill | ReportedFill], context: Context) -> None:
    await _write(wire.fill_batch(fills), context, "ask again since your last sequence")


async def _write(message: Message, context: Context, how_to_go_on: str) -> None:
    """Send a message to a reader that takes it."""
    try:
        async with Patience(STALLED_READER_S):
            await context.write(message)
    except TimeoutError:
        # The refusal stands behind what is not read, so gRPC may wait for the reader to send it. We do not.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REFUSAL_S):
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"nothing was read for {STALLED_READER_S:g} s: {how_to_go_on}",
                )
        raise asyncio.CancelledError from None  # as if the client had hung up


async def _abort_unlisted(context: Context, symbol: str) -> NoReturn:
    """End a call about a symbol that does not trade here."""
    await abort_bad_request(context, "symbol", f"{symbol!r:.60} is not listed")


async def _abort_untaken(context: Context, fault: CommitError) -> NoReturn:
    """End a call whose commands were not taken, or not for certain."""
    if isinstance(fault, Overloaded):
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{fault}; slow down")
    await context.abort(grpc.StatusCode.UNAVAILABLE, f"{fault}; try again with the same ids")


async def _cancel_all(loop: CommitLoop, client: str, command: CancelAll) -> int:
    """Cancel all that is meant, by as many commands as it takes; how many orders. Raises CommitError."""
    count, more = 0, True
    while more:
        answer = (await loop.submit([command], client=client)).answers[0]
        assert isinstance(answer, CancelledAll)
        count += answer.count
        more = answer.count == command.most
    return count


async def _answers(submissions: Sequence[Submission]) -> list[Answered | Accepted]:
    """The answers, each when its order has come to rest or has had its time for that."""
    settling = [future for submission in submissions for future in submission.settling.values()]
    if settling:
        patience_s = submissions[-1].answered_s + SETTLE_PATIENCE_S - time.monotonic()
        await asyncio.wait(settling, timeout=max(patience_s, 0))
    answers: list[Answered | Accepted] = []
    for submission in submissions:
        to_orders = cast("list[Answered | Accepted]", submission.answers)  # there are no others
        for position, future in submission.settling.items():
            pending = to_orders[position]
            if future.done():
                duplicate = type(pending) is Answered and pending.duplicate
                settled = msgspec.structs.replace(future.result(), duplicate=duplicate)
                if type(submission.commands[position]) is CancelOrder:  # another command traded it
                    settled = msgspec.structs.replace(settled, fills=(), prevented=())
                to_orders[position] = settled
        answers += to_orders
    order_log.replied(answers)
    order_trace.replied(answers)
    return answers


def _list_orders(reply: pb.ListOpenOrdersReply, symbol: str, orders: Iterable[Order]) -> Iterator[None]:
    copied = [copy(order) for order in orders if symbol in ("", order.request.symbol)]

    def fill() -> Iterator[None]:
        for order in copied:
            reply.orders.append(wire.order_state(order))
            yield

    return fill()


def _engine_book(reply: pb.OrderBook, book: Book, depth: int | None, *, with_orders: bool) -> Iterator[None]:
    reply.sequence = book.sequence
    copied = [
        (
            made,
            level.price,
            level.quantity,
            len(level),
            [(order.id, order.open) for order in level.queue()] if with_orders else (),
        )
        for half, made in ((book.bids, reply.bids), (book.asks, reply.asks))
        for level in islice(half.best_first(), depth)
    ]

    def fill() -> Iterator[None]:
        for made, price, quantity, order_count, orders in copied:
            level = made.add(price=price, quantity=quantity, order_count=order_count)
            for order_id, left in orders:
                level.orders.add(order_id=order_id, quantity=left)
                yield
            yield

    return fill()


def _consolidated(reply: pb.OrderBook, books: Mapping[int, BookReplica], depth: int | None) -> Iterator[None]:
    bids, asks = (consolidated.copied(books, side, depth) for side in (Side.BUY, Side.SELL))
    return chain(add_levels(reply.bids, bids), add_levels(reply.asks, asks))
