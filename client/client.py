"""The client: one trader's connection to the venue.

What it promises:

- Every order has a client order id before its first attempt, kept over all further ones: it is never
  entered twice, whatever breaks.
- Everything is tried again until the deadline; then `Unavailable` says so.
- Orders given while others are on their way go out together, so many tasks that await `submit` are fast.
- `fills` is the whole history: every fill once, in order, over any reconnect.

Commands of one client are sent in the order in which they were given, after a reconnect too.
`cancel_all` and the queries go their own way: await what they should come after.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from types import MappingProxyType, TracebackType
from typing import Final, Self

import grpc
from matchbus.tracing import Tracer
from matchbus.v1 import matchbus_pb2 as pb

from client import results, terms, traces
from client.errors import ClientClosed, FillGap, MatchbusError, OrderNotFound, Unavailable
from client.order_entry import HELD_UP_S, OrderEntry, Pending
from client.results import Book, Fill, OrderResult, OrderState, Position
from client.retry import Retry
from client.session import DEFAULT_DEADLINE_S, Session
from client.terms import OrderStatus, RejectReason
from client.units import Instrument, Number
from client.venue import Venue

MAX_CLIENT_ORDER_ID_LENGTH: Final = 36

_REMEMBERED_ORDERS: Final = 100_000

_LIMIT: Final = terms.ORDER_TYPE_NUMBERS["limit"]
_MARKET: Final = terms.ORDER_TYPE_NUMBERS["market"]


class Client:
    """Trade on a venue: `async with Client.connect(...) as client`. Made by `connect` only.

    One object serves any number of tasks of one event loop.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._entry: OrderEntry | None = None
        self._entry_task: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        # Unique over all runs of all programs: 64 random bits, then a counter.
        self._id_prefix = uuid.uuid4().hex[:16]
        self._id_counter = count(1)
        self._known_orders: OrderedDict[str | int, _KnownOrder] = OrderedDict()
        self._tracer: Tracer | None = None
        # Filled in anew for each order: a new message would cost nearly as much again as filling it in.
        self._submission = pb.OrderEntryRequest()
        self._new_order = self._submission.commands.add().new

    @classmethod
    def connect(
        cls,
        exchange: str,
        *,
        client_id: str,
        password: str,
        secret: str,
        preferred_engine: int = 0,
        deadline_s: float = DEFAULT_DEADLINE_S,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> Self:
        """A client that connects when entered with `async with` (or by `open`).

        `exchange` is the exchange's "host:port" (an IPv6 host in brackets; `ValueError` for anything else),
        `password` the exchange's, `secret` this client's own, bound at its first registration.
        `preferred_engine` counts at the first registration only, 0 lets the exchange choose. Each call has
        `deadline_s` seconds for all its attempts, and as long again to ask about a symbol that is new to it.
        With `credentials`, or MATCHBUS_TLS_CA in the environment (docs/security.md), the connections use TLS;
        `ValueError` says what is wrong with the files it names.
        """
        request = pb.RegisterClientRequest(
            client_id=client_id, password=password, secret=secret, preferred_engine=preferred_engine
        )
        return cls(Session(exchange, request, deadline_s=deadline_s, credentials=credentials))

    async def open(self) -> Self:
        """Register, unless that was done before. A closed client raises `ClientClosed`: make a new one.

        Raises `AuthenticationFailed`, `RequestInvalid`, `DataLost`, or `Unavailable` at the deadline.

        With MATCHBUS_TRACE in the environment, orders are traced (docs/monitoring.md); `ValueError` says what
        is wrong with it.
        """
        async with self._opening:
            if self._session.closed:
                raise ClientClosed("the client was closed: make a new one")
            if self._entry is not None:
                return self
            try:
                await self._session.open()
                self._tracer = traces.tracer()
            except BaseException:
                await self._session.close()
                raise
            self._entry = OrderEntry(self._session)
            self._entry_task = asyncio.create_task(self._entry.run())
            return self

    async def close(self) -> None:
        """Close all connections. Orders stay in the market; calls that wait raise `ClientClosed`."""
        try:
            if self._entry_task is not None:
                self._entry_task.cancel()
                await asyncio.wait((self._entry_task,))
        finally:  # whoever waits for it may be cancelled meanwhile
            await self._session.close()
            if self._tracer is not None:
                await asyncio.to_thread(self._tracer.close)
        if self._entry_task is not None and not self._entry_task.cancelled():
            self._entry_task.result()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def instruments(self) -> Mapping[str, Instrument]:
        """What can be traded, by symbol."""
        return MappingProxyType(self._session.instruments)

    @property
    def engine(self) -> int:
        """The number of our home engine: all our orders rest there."""
        return self._session.engine

    @property
    def venue(self) -> Venue:
        """What anyone may ask the venue: its engines, its instruments."""
        return Venue(self._session)

    def new_client_order_id(self) -> str:
        """An id that no order has yet, in this run or another: what `submit` takes where none is given."""
        return f"{self._id_prefix}-{next(self._id_counter)}"

    async def submit(
        self,
        symbol: str,
        side: str,
        quantity: Number,
        price: Number | None = None,
        *,
        type: str = "limit",  # noqa: A002 -- the field's word
        time_in_force: str = "gtc",
        post_only: bool = False,
        self_trade_prevention: str = "none",
        do_not_route: bool = False,
        client_order_id: str | None = None,
    ) -> OrderResult:
        """Enter an order and return the engine's answer once it has come to rest.

        `price` is a Decimal, str or int, and left out for a market order. `time_in_force`: gtc, ioc, fok.
        `post_only` is refused rather than trade at once; `do_not_route` trades at the home engine only.
        `self_trade_prevention`: none, cancel_newest, cancel_oldest, cancel_both, decrement. With a
        `client_order_id` of your own (1 to 36 printable ASCII characters) a later run can repeat the
        command safely: the same id and content gives the first answer, marked `duplicate`.

        A refused order is returned, see `OrderResult`. With status PENDING a part is out on another engine,
        and what becomes of it comes by `fills`. Raises `ValueError` for a price or quantity off the tick or
        lot, `TypeError` for a float, `UnknownSymbol`, and `Unavailable` at the deadline, when the order may
        be live. Cancelling the task that awaits this takes back an order that has not left yet; one that has
        left lives on: `order` tells by its `client_order_id`.
        """
        instrument = await self._session.instrument(symbol)
        order_type = terms.number_of(terms.ORDER_TYPE_NUMBERS, type, "type")
        if order_type == _LIMIT and price is None:
            raise ValueError("a limit order needs a price")
        if order_type == _MARKET and price is not None:
            raise ValueError("a market order has no price: leave it out, or make it a limit order with ioc")
        if client_order_id is None:
            client_order_id = self.new_client_order_id()
        else:
            check_client_order_id(client_order_id)
        order = self._new_order
        order.Clear()
        order.client_order_id = client_order_id
        order.symbol = symbol
        order.side = terms.number_of(terms.SIDE_NUMBERS, side, "side")
        order.type = order_type
        order.time_in_force = terms.number_of(terms.TIME_IN_FORCE_NUMBERS, time_in_force, "time_in_force")
        order.quantity = instrument.lots(quantity)
        if price is not None:
            order.price = instrument.ticks(price)
        if post_only:
            order.post_only = _flag(post_only, "post_only")
        if do_not_route:
            order.do_not_route = _flag(do_not_route, "do_not_route")
        if self_trade_prevention != "none":
            order.self_trade_prevention = terms.number_of(
                terms.SELF_TRADE_PREVENTION_NUMBERS, self_trade_prevention, "self_trade_prevention"
            )
        began_s = time.monotonic()
        pending = self._send(self._submission, client_order_id)
        known, made = self._known_orders, None
        if (earlier := known.get(client_order_id)) is None:
            made = known[client_order_id] = _KnownOrder(symbol)  # a replace may follow at once
        elif earlier.symbol != symbol:
            del known[client_order_id]  # one of the two is refused: a replace asks the engine which rests
        rests = False
        try:
            reply = await pending.answer
            rests = reply.leaves_quantity > 0
        finally:
            if made is not None and not rests and known.get(client_order_id) is made:
                del known[client_order_id]
        if self._tracer is not None:
            traces.note_submitted(self._tracer, began_s, pending.command, reply)
        if rests:
            self._remember(reply.order_id, client_order_id, symbol)
        return results.order_result(reply, instrument)

    async def cancel(self, *, order_id: int | None = None, client_order_id: str | None = None) -> OrderResult:
        """Cancel what is left of an order, named by one of its ids.

        A refusal with ORDER_CLOSED says that the order was finished before. When an answer was lost and
        the cancel had to be sent again, ORDER_CLOSED may be our own first attempt's doing: then the client
        asks how the order stands (`state`), and reports a cancelled one as done, marked `duplicate`.
        """
        request = pb.OrderEntryRequest()
        command = request.commands.add().cancel
        _name_order(command, order_id, client_order_id)
        pending = self._send(request, client_order_id or "")
        reply = await pending.answer
        with _having_left():
            if results.may_be_our_own_doing(reply, pending.attempts):
                state = await self._order(order_id, client_order_id, pending.deadline)
                return results.result_of_repeated_cancel(state, reply)
            return await self._result_for(reply, order_id, client_order_id, pending.deadline)

    async def replace(
        self,
        *,
        price: Number,
        quantity: Number,
        order_id: int | None = None,
        client_order_id: str | None = None,
    ) -> OrderResult:
        """Give a resting order a new price and a new total quantity, what is filled included.

        The same price and no larger quantity keeps the place in the queue; anything else goes to the back
        and may trade at once. A total at or below what is filled finishes the order. An answer that was
        lost is dealt with as in `cancel`: an order that is closed, or pending, with just this price and
        quantity was replaced, and so was one that is filled with this total or more. Replaces of one order
        go out one after the other: sent again behind a later one, an earlier one would bring its old price
        back.
        """
        deadline = asyncio.get_running_loop().time() + self._session.deadline_s
        request = pb.OrderEntryRequest()
        command = request.commands.add().replace
        _name_order(command, order_id, client_order_id)
        try:
            known = await self._known_order(order_id, client_order_id, deadline)
        except OrderNotFound as error:
            return OrderResult(
                client_order_id or "",
                order_id or 0,
                OrderStatus.REJECTED,
                RejectReason.UNKNOWN_ORDER,
                str(error),
            )
        instrument = self._session.instruments[known.symbol]
        command.price, command.quantity = instrument.ticks(price), instrument.lots(quantity)
        async with self._turn(known, client_order_id or "", deadline):
            pending = self._send(request, client_order_id or "", deadline)
            reply = await pending.answer
        if results.may_be_our_own_doing(reply, pending.attempts):
            with _having_left():
                state = await self._order(order_id, client_order_id, deadline)
            wanted = (instrument.price(command.price), instrument.quantity(command.quantity))
            return results.result_of_repeated_replace(state, reply, *wanted)
        return results.order_result(reply, instrument)

    async def cancel_all(self, symbol: str | None = None, side: str | None = None) -> int:
        """Cancel our open orders, of one symbol or side if given; return how many. Raises `UnknownSymbol`.

        After a lost answer the count is of the last attempt only.
        """
        await self._check_listed(symbol)
        request = pb.CancelAllRequest(symbol=symbol or "")
        if side is not None:
            request.side = terms.number_of(terms.SIDE_NUMBERS, side, "side")
        self._session.check_open()
        with _having_left():
            reply: pb.CancelAllReply = await self._session.ask_engine("CancelAll", request)
        return reply.count

    async def fills(self, since: int = 0, *, follow: bool = True) -> AsyncGenerator[Fill, None]:
        """Every fill of ours with a sequence above `since`, in order, each once; then new ones as they come.

        Reconnects by itself and goes on after the last fill it gave. `follow=False` ends at the newest.
        To leave the loop early, close the iterator (`contextlib.aclosing`). Raises `FillGap` if the venue
        leaves one out, `DataLost` if it has lost one, and `Unavailable` when it cannot be reached for the
        whole deadline, or, without `follow`, does not go on for so long.
        """
        session = self._session
        session.check_open()
        retry = Retry(session, session.deadline_s)
        loop = asyncio.get_running_loop()
        last, was_held_up = since, False
        with session.telling_of_close():
            while True:
                generation, began_s, brought = session.generation, loop.time(), False
                error: grpc.aio.AioRpcError | None = None
                request = pb.GetFillsRequest(since_sequence=last, follow=follow)
                call = session.home.engine.GetFills(request, metadata=session.metadata)
                try:
                    while True:
                        # Only who follows may hear nothing: a search for old fills says that it goes on.
                        async with asyncio.timeout(None if follow else retry.remaining_s) as patience:
                            batch = await call.read()
                        if not batch:  # EOF
                            break
                        brought, was_held_up = True, False
                        for message in batch.fills:
                            if message.sequence <= last:
                                continue
                            if message.sequence != last + 1:
                                raise FillGap(last + 1, message.sequence)
                            instrument = await session.instrument(message.symbol)
                            last = message.sequence
                            yield results.fill(message, instrument)
                        retry.progressed()
                    if not follow:
                        return
                except TimeoutError:
                    # In an event loop that was held up, what came meanwhile is not read yet: it is asked for
                    # once more.
                    if was_held_up or loop.time() - (patience.when() or 0.0) <= HELD_UP_S:
                        raise retry.late() from None
                    was_held_up = True
                    retry.progressed()
                    continue
                except grpc.aio.AioRpcError as broken:
                    error = broken
                finally:
                    call.cancel()
                retry.stream_ended(loop.time() - began_s, brought=brought)
                await retry.failed(error, generation)

    async def book(
        self, symbol: str, depth: int = 0, *, consolidated: bool = False, orders: bool = False
    ) -> Book:
        """A symbol's book at our home engine, or summed over all live engines; `depth` 0 means all levels.

        With `orders` each level of the home engine's book lists its orders; a consolidated book has none, so
        both together raise `ValueError`.
        """
        if consolidated:
            if orders:
                raise ValueError("a consolidated book lists no orders: leave out one of the two")
            self._session.check_open()
            return await self.venue.book(symbol, depth)
        instrument = await self._session.instrument(symbol)
        detail = pb.BOOK_DETAIL_ORDERS if orders else pb.BOOK_DETAIL_LEVELS
        message: pb.OrderBook = await self._session.ask_engine(
            "GetOrderBook", pb.GetOrderBookRequest(symbol=symbol, depth=depth, detail=detail)
        )
        return results.book(message, instrument)

    async def order(self, *, order_id: int | None = None, client_order_id: str | None = None) -> OrderState:
        """One of our orders, by one of its ids. Raises `OrderNotFound`."""
        return await self._order(order_id, client_order_id)

    async def open_orders(self, symbol: str | None = None) -> list[OrderState]:
        """Our orders that are in the market, of one symbol if given. Raises `UnknownSymbol`."""
        await self._check_listed(symbol)
        return await self._states((await self._list_open_orders(symbol or "")).orders)

    async def newest_orders(self, most: int) -> tuple[list[OrderState], int]:
        """The newest of our orders that are in the market, at most `most`, oldest first; how many more are.

        Beyond those that it returns an order costs next to nothing, and does not hold up the event loop.
        """
        messages = (await self._list_open_orders("")).orders  # oldest first
        left_out = max(0, len(messages) - most)
        return await self._states(messages[left_out:]), left_out

    async def positions(self) -> dict[str, Position]:
        """What we hold, by symbol, as the exchange sums it up from the execution reports.

        They reach it shortly after the engine has answered, within some 10 ms as a rule: a program that must
        count the last fill at once sums up `fills`. Raises `DataLost` if one is missing in the reports.
        """
        reply: pb.GetPositionsReply = await self._session.ask_exchange(
            "GetPositions", pb.GetPositionsRequest()
        )
        session = self._session
        return {
            message.symbol: results.position(message, await session.instrument(message.symbol))
            for message in reply.positions
        }

    async def _order(
        self, order_id: int | None, client_order_id: str | None, deadline: float | None = None
    ) -> OrderState:
        request = pb.GetOrderRequest()
        _name_order(request, order_id, client_order_id)
        message: pb.OrderState = await self._session.ask_engine("GetOrder", request, deadline)
        return results.order_state(message, await self._session.instrument(message.symbol))

    async def _list_open_orders(self, symbol: str) -> pb.ListOpenOrdersReply:
        request = pb.ListOpenOrdersRequest(symbol=symbol)
        reply: pb.ListOpenOrdersReply = await self._session.ask_engine("ListOpenOrders", request)
        return reply

    async def _states(self, messages: Iterable[pb.OrderState]) -> list[OrderState]:
        return [
            results.order_state(message, await self._session.instrument(message.symbol))
            for message in messages
        ]

    def _send(
        self, request: pb.OrderEntryRequest, client_order_id: str, deadline: float | None = None
    ) -> Pending:
        self._session.check_open()
        assert self._entry is not None
        return self._entry.send(request.SerializeToString(), client_order_id, deadline)

    def _remember(self, order_id: int, client_order_id: str, symbol: str) -> "_KnownOrder":
        """Keep an open order's symbol: replies and replaces by id do not tell it."""
        known = self._known_orders
        made = known.get(order_id) or known.get(client_order_id)
        if made is None or made.symbol != symbol:  # of an earlier order with this client order id
            made = _KnownOrder(symbol)
        known[order_id] = known[client_order_id] = made
        while len(known) > 2 * _REMEMBERED_ORDERS:
            known.popitem(last=False)
        return made

    @asynccontextmanager
    async def _turn(self, known: "_KnownOrder", client_order_id: str, deadline: float) -> AsyncIterator[None]:
        """While the body replaces the order, nobody else does. Raises `Unavailable` at the deadline."""
        turn = known.turn = known.turn or asyncio.Lock()
        try:
            async with asyncio.timeout_at(deadline):
                await turn.acquire()
        except TimeoutError:
            raise Unavailable(
                f"an earlier replace of the order has had no answer for {self._session.deadline_s:g} s",
                sent=False,
                client_order_id=client_order_id,
            ) from None
        try:
            yield
        finally:
            turn.release()

    async def _known_order(
        self, order_id: int | None, client_order_id: str | None, deadline: float
    ) -> "_KnownOrder":
        """One of our orders; asks the engine where it is not remembered."""
        known = self._known_orders.get(order_id or client_order_id or "")
        if known is None:
            state = await self._order(order_id, client_order_id, deadline)
            known = self._remember(state.order_id, state.client_order_id, state.symbol)
        return known

    async def _result_for(
        self, reply: pb.OrderReply, order_id: int | None, client_order_id: str | None, deadline: float
    ) -> OrderResult:
        if not (reply.cumulative_quantity or reply.leaves_quantity):
            return results.order_result(reply, None)
        known = await self._known_order(order_id, client_order_id, deadline)
        return results.order_result(reply, self._session.instruments[known.symbol])

    async def _check_listed(self, symbol: str | None) -> None:
        """Raise `UnknownSymbol` for one that the venue does not list; None stands for all."""
        if symbol is not None:
            await self._session.instrument(symbol)


class _KnownOrder:
    """What replies do not tell of an order of ours, and whose turn it is to replace it; few ever are."""

    __slots__ = ("symbol", "turn")

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.turn: asyncio.Lock | None = None


def _name_order(
    message: pb.CancelOrderRequest | pb.ReplaceOrderRequest | pb.GetOrderRequest,
    order_id: int | None,
    client_order_id: str | None,
) -> None:
    if (order_id is None) == (client_order_id is None):
        raise ValueError("name the order by order_id or by client_order_id")
    if order_id is not None:
        message.order_id = order_id
    elif client_order_id is not None:
        check_client_order_id(client_order_id)
        message.client_order_id = client_order_id


def check_client_order_id(client_order_id: str) -> None:
    """Raise `ValueError` for an id that no order can be given, `TypeError` for anything but a str."""
    if not isinstance(client_order_id, str):
        raise TypeError(f"client_order_id is of type {type(client_order_id).__name__}: write a str")
    # Here and not at the engine alone: an oversized one would break the stream for all other orders.
    fits = 1 <= len(client_order_id) <= MAX_CLIENT_ORDER_ID_LENGTH
    if not (fits and client_order_id.isascii() and client_order_id.isprintable()):
        raise ValueError(
            f"client_order_id {client_order_id!r:.60} must be 1 to {MAX_CLIENT_ORDER_ID_LENGTH}"
            " printable ASCII characters"
        )


def _flag(value: object, what: str) -> bool:
    """Raise `TypeError` for what only counts as true, such as the word "no"."""
    if value is not True:
        raise TypeError(f"{what} is {value!r:.60}: write True or False")
    return True


@contextmanager
def _having_left() -> Iterator[None]:
    """Around all that comes once a command may have left: when that fails, it may have been done."""
    try:
        yield
    except MatchbusError as error:
        error.sent = True
        raise
