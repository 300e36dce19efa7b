"""A venue of one process for the client's tests: both services, scripted failures, no matching.

Orders rest unless their price is 100 ticks, which fills them at once. What the engine has taken is remembered
by client order id, as the contract demands.
"""

# ruff: noqa: D102, N802 -- the contract names the methods and says what they do

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import grpc
from matchbus.edge import SERVER_OPTIONS
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc

from client import Client

PASSWORD = "password"
FILLING_PRICE = 100
COARSE = "COARSE"
Context = Any


class FakeEngine(matchbus_pb2_grpc.MatchingEngineServicer):
    """One engine. Set the attributes to make it fail."""

    def __init__(self, venue: "FakeVenue", number: int) -> None:
        self.venue = venue
        self.number = number
        self.address = ""
        self.server: Any = None
        self.peers: set[str] = set()
        """The connections that calls have come by."""
        self.orders: dict[str, pb.OrderReply] = {}
        self.symbols: dict[str, str] = {}
        self.terms: dict[str, tuple[int, int]] = {}
        """Price and total quantity of each order, as last replaced."""
        self.commands: list[pb.Command] = []
        self.messages: list[int] = []
        self.fills: list[pb.Fill] = []
        self.fills_asked: list[int] = []
        self.new_fill = asyncio.Event()
        # For each coming OrderEntry message: the status to break the stream with, before or after it is done.
        self.break_before: deque[grpc.StatusCode | None] = deque()
        self.break_after: deque[grpc.StatusCode | None] = deque()
        self.fill_breaks: deque[int] = deque()
        self.refuses_fills_after_s: float | None = None
        self.refuses_fills_with = grpc.StatusCode.UNAVAILABLE
        self.unary_failures: deque[grpc.StatusCode] = deque()
        self.silent = False
        self.s_until_fills = 0.0
        self.s_per_question = 0.0
        self.s_left: list[float] = []
        """What was left until the deadline of each question when it came."""
        self.s_per_command = 0.0
        """How long each command of an OrderEntry message takes; they are entered when all are in."""
        self.book_sequence = 9
        self.sends_legs = False
        """Whether a replaced order waits for a leg from then on."""
        self.hold: asyncio.Event | None = None

    async def check(self, context: Context) -> None:
        self.peers.add(context.peer())
        token = dict(context.invocation_metadata()).get("authorization", "").removeprefix("Bearer ")
        if token not in self.venue.tokens:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown token")
        if self.venue.home is not self:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"home is at {self.venue.home.address}")

    async def OrderEntry(
        self, requests: AsyncIterator[pb.OrderEntryRequest], context: Context
    ) -> AsyncIterator[pb.OrderEntryResponse]:
        await self.check(context)
        async for request in requests:
            if self.hold is not None:
                await self.hold.wait()
            if self.break_before and (code := self.break_before.popleft()) is not None:
                await context.abort(code, "broken before")
            self.messages.append(len(request.commands))
            await asyncio.sleep(self.s_per_command * len(request.commands))
            replies = [self.apply(command) for command in request.commands]
            if self.break_after and (code := self.break_after.popleft()) is not None:
                await context.abort(code, "broken after")
            if not self.silent:
                yield pb.OrderEntryResponse(replies=replies)

    def apply(self, command: pb.Command) -> pb.OrderReply:
        self.commands.append(command)
        if command.HasField("new"):
            return self.enter(command.new)
        wanted = command.cancel if command.HasField("cancel") else command.replace
        order = self.find(wanted)
        if order is None:
            return refusal(pb.REJECT_REASON_UNKNOWN_ORDER)
        if not order.leaves_quantity:
            return refusal(pb.REJECT_REASON_ORDER_CLOSED)
        if command.HasField("replace") and order.status == pb.ORDER_STATUS_PENDING:
            return refusal(pb.REJECT_REASON_ORDER_PENDING)
        if command.HasField("cancel"):
            order.status, order.leaves_quantity = pb.ORDER_STATUS_CANCELLED, 0
        elif command.replace.quantity <= order.cumulative_quantity:
            order.status, order.leaves_quantity = pb.ORDER_STATUS_FILLED, 0
            self.terms[order.client_order_id] = (
                self.terms[order.client_order_id][0],
                order.cumulative_quantity,
            )
        else:
            order.leaves_quantity = command.replace.quantity
            self.terms[order.client_order_id] = (command.replace.price, command.replace.quantity)
            if self.sends_legs:
                order.status = pb.ORDER_STATUS_PENDING
        return order

    def find(self, wanted: Any) -> pb.OrderReply | None:
        for order in self.orders.values():
            if order.order_id == wanted.order_id or order.client_order_id == wanted.client_order_id:
                return order
        return None

    def enter(self, new: pb.NewOrder) -> pb.OrderReply:
        if new.client_order_id in self.orders:
            known = pb.OrderReply()
            known.CopyFrom(self.orders[new.client_order_id])
            known.duplicate = True
            return known
        if new.quantity <= 0:
            return refusal(pb.REJECT_REASON_INVALID_QUANTITY)
        filled = new.price == FILLING_PRICE
        order = pb.OrderReply(
            client_order_id=new.client_order_id,
            order_id=self.number << 48 | len(self.orders) + 1,
            status=pb.ORDER_STATUS_FILLED if filled else pb.ORDER_STATUS_NEW,
            cumulative_quantity=new.quantity if filled else 0,
            leaves_quantity=0 if filled else new.quantity,
            average_price=new.price if filled else 0,
        )
        if filled:
            order.fills.append(self.fill(new))
        self.orders[new.client_order_id] = order
        self.symbols[new.client_order_id] = new.symbol
        self.terms[new.client_order_id] = (new.price, new.quantity)
        return order

    def fill(self, new: pb.NewOrder) -> pb.Fill:
        fill = pb.Fill(
            sequence=len(self.fills) + 1,
            symbol=new.symbol,
            side=new.side,
            price=new.price,
            quantity=new.quantity,
            cumulative_quantity=new.quantity,
            liquidity=pb.LIQUIDITY_TAKER,
            engine_id=self.number,
            client_order_id=new.client_order_id,
        )
        self.fills.append(fill)
        self.new_fill.set()
        return fill

    def add_fills(self, count: int) -> None:
        for _ in range(count):
            self.fill(pb.NewOrder(symbol="AAPL", side=pb.SIDE_BUY, price=10_125, quantity=3))

    async def GetFills(self, request: pb.GetFillsRequest, context: Context) -> AsyncIterator[pb.FillBatch]:
        await self.check(context)
        self.fills_asked.append(request.since_sequence)
        if self.refuses_fills_after_s is not None:
            await asyncio.sleep(self.refuses_fills_after_s)
            await context.abort(self.refuses_fills_with, "tokens cannot be checked")
        await asyncio.sleep(self.s_until_fills)
        until = self.fill_breaks.popleft() if self.fill_breaks else None
        position = request.since_sequence
        while True:
            self.new_fill.clear()
            for fill in self.fills[position:]:
                if until is not None and position >= until:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "broken between fills")
                position += 1
                yield pb.FillBatch(fills=[fill])
            if not request.follow and not self.silent:
                return
            await self.new_fill.wait()

    async def unary(self, context: Context) -> None:
        await self.check(context)
        self.s_left.append(context.time_remaining())
        await asyncio.sleep(self.s_per_question)
        if self.unary_failures:
            await context.abort(self.unary_failures.popleft(), "scripted")

    async def GetOrder(self, request: pb.GetOrderRequest, context: Context) -> pb.OrderState:
        await self.unary(context)
        order = self.find(request)
        if order is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such order")
            raise AssertionError
        return self.state(order)

    def state(self, order: pb.OrderReply) -> pb.OrderState:
        price, quantity = self.terms[order.client_order_id]
        return pb.OrderState(
            order_id=order.order_id,
            client_order_id=order.client_order_id,
            symbol=self.symbols[order.client_order_id],
            side=pb.SIDE_BUY,
            type=pb.ORDER_TYPE_LIMIT,
            price=price,
            quantity=quantity,
            status=order.status,
            cumulative_quantity=order.cumulative_quantity,
            leaves_quantity=order.leaves_quantity,
        )

    async def ListOpenOrders(
        self, request: pb.ListOpenOrdersRequest, context: Context
    ) -> pb.ListOpenOrdersReply:
        await self.unary(context)
        return pb.ListOpenOrdersReply(
            orders=[
                self.state(order)
                for order in self.orders.values()
                if order.leaves_quantity and request.symbol in ("", self.symbols[order.client_order_id])
            ]
        )

    async def CancelAll(self, request: pb.CancelAllRequest, context: Context) -> pb.CancelAllReply:
        await self.unary(context)
        return pb.CancelAllReply(count=7 if request.side == pb.SIDE_SELL else 8)

    async def GetOrderBook(self, request: pb.GetOrderBookRequest, context: Context) -> pb.OrderBook:
        await self.unary(context)
        bids = [pb.Level(price=10_125 - step, quantity=5, order_count=2) for step in range(3)]
        if request.detail == pb.BOOK_DETAIL_ORDERS:
            bids[0].orders.add(order_id=7, quantity=5)
        return pb.OrderBook(
            symbol=request.symbol, sequence=self.book_sequence, bids=bids[: request.depth or None]
        )


class FakeVenue(matchbus_pb2_grpc.ExchangeServicer):
    """An exchange and two engines on free ports; `home` is where the exchange sends clients."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.registrations = 0
        self.searches = 0
        self.engines = [FakeEngine(self, 1), FakeEngine(self, 2)]
        self.home = self.engines[0]
        self.standby_addresses = ["127.0.0.1:1"]
        self.listed_before: list[pb.Engine] = []
        """What ListEngines tells before our home engine's processes."""
        self.symbols = ["AAPL"]
        self.accepts = True
        self.address = ""
        self.failures: deque[grpc.StatusCode] = deque()
        self.hold_registrations: asyncio.Event | None = None
        self.hold_searches: asyncio.Event | None = None
        self._server: Any = None

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        matchbus_pb2_grpc.add_ExchangeServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        for engine in self.engines:
            await self.start(engine)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for engine in self.engines:
            await engine.server.stop(None)
        await self.stop_exchange()

    async def stop_exchange(self) -> None:
        """Stop the exchange alone."""
        await self._server.stop(None)

    async def start(self, engine: FakeEngine) -> None:
        """Start an engine, where it was before if it was."""
        engine.server = grpc.aio.server(options=SERVER_OPTIONS)
        matchbus_pb2_grpc.add_MatchingEngineServicer_to_server(engine, engine.server)
        port = engine.server.add_insecure_port(engine.address or "127.0.0.1:0")
        engine.address = f"127.0.0.1:{port}"
        await engine.server.start()

    def client(self, *, deadline_s: float = 20.0, password: str = PASSWORD) -> Client:
        return Client.connect(
            self.address, client_id="alice", password=password, secret="mine", deadline_s=deadline_s
        )

    async def RegisterClient(
        self, request: pb.RegisterClientRequest, context: Context
    ) -> pb.RegisterClientReply:
        if self.failures:
            await context.abort(self.failures.popleft(), "scripted")
        if request.password != PASSWORD:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong password")
        self.registrations += 1
        if self.hold_registrations is not None:
            await self.hold_registrations.wait()
        token = f"token-{self.registrations}"
        if self.accepts:
            self.tokens.add(token)
        return pb.RegisterClientReply(
            token=token,
            engine=self.home.number,
            engine_address=self.home.address,
            instruments=[instrument(symbol) for symbol in self.symbols],
        )

    async def ListInstruments(
        self, request: pb.ListInstrumentsRequest, context: Context
    ) -> pb.ListInstrumentsReply:
        return pb.ListInstrumentsReply(instruments=[instrument(symbol) for symbol in self.symbols])

    async def ListEngines(self, request: pb.ListEnginesRequest, context: Context) -> pb.ListEnginesReply:
        self.searches += 1
        if self.hold_searches is not None:
            await self.hold_searches.wait()
        number, role = self.home.number, pb.ENGINE_ROLE_STANDBY
        standbys = [pb.Engine(engine=number, address=it, role=role) for it in self.standby_addresses]
        home = pb.Engine(
            engine=number,
            address=self.home.address,
            role=pb.ENGINE_ROLE_PRIMARY,
            state=pb.ENGINE_STATE_LIVE,
        )
        in_no_order = [*self.listed_before, *standbys[:1], home, *standbys[1:]]
        return pb.ListEnginesReply(engines=in_no_order)

    async def GetPositions(self, request: pb.GetPositionsRequest, context: Context) -> pb.GetPositionsReply:
        held = pb.Position(symbol="AAPL", position=-5, average_price=10_125.5, realized_pnl=200, fees=1)
        return pb.GetPositionsReply(positions=[held])

    async def GetConsolidatedBook(
        self, request: pb.GetConsolidatedBookRequest, context: Context
    ) -> pb.ConsolidatedBook:
        share = pb.EngineQuantity(engine=2, quantity=5, order_count=1)
        level = pb.Level(price=10_125, quantity=5, order_count=1, engines=[share])
        return pb.ConsolidatedBook(symbol=request.symbol, asks=[level])


def instrument(symbol: str) -> pb.Instrument:
    """The listing of a symbol with ticks of 0.01 and lots of 0.1; `COARSE` has ticks of 0.5."""
    return pb.Instrument(symbol=symbol, tick_size="0.5" if symbol == COARSE else "0.01", lot_size="0.1")


def refusal(reason: Any) -> pb.OrderReply:
    """The reply that refuses a command."""
    return pb.OrderReply(
        status=pb.ORDER_STATUS_REJECTED, reject_reason=reason, reject_text=pb.RejectReason.Name(reason)
    )


def in_flight(client: Client) -> int:
    """How many messages of the client have no answer yet."""
    assert client._entry is not None
    return len(client._entry._in_flight)


@asynccontextmanager
async def venue_in_a_thread() -> AsyncIterator[FakeVenue]:
    """A venue that goes on while our event loop is held up."""
    venue, loop = FakeVenue(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        async with asyncio.timeout(10):
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(venue.__aenter__(), loop))
        yield venue
        async with asyncio.timeout(10):
            await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(venue.__aexit__(None, None, None), loop)
            )
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
