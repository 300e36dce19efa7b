"""A virtual market as simulated clients see it: engines, an exchange that follows them, accounts."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Final, cast

from matchbus.edge import Context
from matchbus.v1 import matchbus_pb2 as pb
from nats.aio.client import Client as NatsClient

from bus.follower import FeedFollower
from bus.messages import EngineEntry, Executions, InstrumentEntry
from client import Fill, OrderResult, OrderState, Position, results, terms
from client.units import Instrument, Number
from client.units import instrument as instrument_of
from exchange.assignment import choose_home
from exchange.positions import Positions
from exchange.runtime.feeds import are_all_there, consolidated_book, listed_engines
from exchange.runtime.servicer import position
from simulation.market import MarketWatch
from simulation.virtual import clock
from simulation.virtual.engine import Call, ExecutionsList, VirtualEngine, call_of
from simulation.virtual.network import CALL_S, Delays, Network

_LOOK_S: Final = 0.02


class _Over(Exception):
    """Ends the tasks of a market whose clients are gone."""


class VirtualVenue:
    """Engines 1 to `engines` and an exchange; `open_venue` makes and starts one."""

    def __init__(
        self, engines: int, instruments: list[InstrumentEntry], delays: Delays, group: asyncio.TaskGroup
    ) -> None:
        network = Network(delays, group)
        self.delays = delays
        self.executions = ExecutionsList(delays)
        self.engines = {
            number: VirtualEngine(number, network, self.executions, group) for number in range(1, engines + 1)
        }
        self.instruments = {entry.symbol: _instrument(entry) for entry in instruments}
        self.positions = Positions()
        self.market = MarketWatch(self)
        self._entries = {entry.symbol: entry for entry in instruments}
        self._follower = FeedFollower(
            cast("NatsClient", network.link()), own_engine=None, jitter=delays.jitter
        )
        self._clients: Counter[int] = Counter()
        self._group = group

    async def start(self) -> None:
        """Return when every engine trades, and all see each other."""
        self._group.create_task(self._follower.run())
        self._group.create_task(self._sum_up())
        for engine in self.engines.values():
            await engine.start(self._entries)
        while not self._is_up():  # noqa: ASYNC110 -- time alone changes how feeds are seen
            await asyncio.sleep(_LOOK_S)

    def _is_up(self) -> bool:
        engines = self.engines
        return are_all_there(engines, self._follower.peers, self._entries) and all(
            engine.sees(other) for engine in engines.values() for other in engines if other != engine.number
        )

    async def _sum_up(self) -> None:
        async for executions in self.executions.read():
            self.positions.apply(executions)

    @property
    def digests(self) -> dict[int, str]:
        """Of each engine's state as it is now."""
        return {number: engine.digest for number, engine in self.engines.items()}

    async def symbols(self) -> list[str]:
        """As Venue says."""
        return list(self._entries)

    def reports(self) -> AsyncIterator[Executions]:
        """As Venue says."""
        return self.executions.read()

    @asynccontextmanager
    async def account(self, name: str) -> AsyncGenerator["VirtualAccount", None]:
        """As Venue says."""
        home = choose_home(0, self.engines, self.engines, self._clients)
        self._clients[home] += 1
        yield VirtualAccount(name, self, self.engines[home])

    async def GetConsolidatedBook(  # noqa: N802 -- the contract's
        self,
        request: pb.GetConsolidatedBookRequest,
        *,
        timeout: float,  # noqa: ASYNC109, ARG002 -- gRPC's
    ) -> pb.ConsolidatedBook:
        """As the exchange answers it."""
        await asyncio.sleep(self.delays.draw(CALL_S))
        reply = pb.ConsolidatedBook()
        for _ in consolidated_book(reply, request.symbol, request.depth, self._follower.peers):
            pass
        await asyncio.sleep(self.delays.draw(CALL_S))
        return reply

    async def ListEngines(  # noqa: N802 -- likewise
        self,
        request: pb.ListEnginesRequest,  # noqa: ARG002
        *,
        timeout: float,  # noqa: ASYNC109, ARG002
    ) -> pb.ListEnginesReply:
        """As the exchange answers it."""
        entries = {
            number: EngineEntry(number, engine.state.epoch, "", 0) for number, engine in self.engines.items()
        }
        return pb.ListEnginesReply(
            engines=listed_engines(entries, self._follower.peers, clock.monotonic_ns())
        )


class VirtualAccount:
    """One client of a virtual market: what simulated traders use of `client.Client`, as said there."""

    def __init__(self, name: str, venue: VirtualVenue, home: VirtualEngine) -> None:
        self._name = name
        self._venue = venue
        self._home = home
        self._numbers = count(1)
        self._traded_in: dict[str, Instrument] = {}

    @property
    def instruments(self) -> Mapping[str, Instrument]:
        """As Client says."""
        return self._venue.instruments

    @property
    def engine(self) -> int:
        """As Client says."""
        return self._home.number

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
    ) -> OrderResult:
        """As Client says."""
        instrument = self.instruments[symbol]
        client_order_id = f"{self._name}-{next(self._numbers)}"
        self._traded_in[client_order_id] = instrument
        request = pb.NewOrder(
            client_order_id=client_order_id,
            symbol=symbol,
            side=terms.number_of(terms.SIDE_NUMBERS, side, "side"),
            type=terms.number_of(terms.ORDER_TYPE_NUMBERS, type, "type"),
            time_in_force=terms.number_of(terms.TIME_IN_FORCE_NUMBERS, time_in_force, "time_in_force"),
            price=0 if price is None else instrument.ticks(price),
            quantity=instrument.lots(quantity),
            post_only=post_only,
            self_trade_prevention=terms.number_of(
                terms.SELF_TRADE_PREVENTION_NUMBERS, self_trade_prevention, "self_trade_prevention"
            ),
        )
        await self._pass()
        reply = await self._home.servicer.SubmitOrder(request, call_of(self._name))
        await self._pass()
        return results.order_result(reply, instrument)

    async def cancel(self, *, client_order_id: str) -> OrderResult:
        """As Client says."""
        request = pb.CancelOrderRequest(client_order_id=client_order_id)
        await self._pass()
        reply = await self._home.servicer.CancelOrder(request, call_of(self._name))
        await self._pass()
        return results.order_result(reply, self._traded_in[client_order_id])

    async def replace(self, *, price: Number, quantity: Number, client_order_id: str) -> OrderResult:
        """As Client says."""
        instrument = self._traded_in[client_order_id]
        request = pb.ReplaceOrderRequest(
            client_order_id=client_order_id,
            price=instrument.ticks(price),
            quantity=instrument.lots(quantity),
        )
        await self._pass()
        reply = await self._home.servicer.ReplaceOrder(request, call_of(self._name))
        await self._pass()
        return results.order_result(reply, instrument)

    async def fills(self, since: int = 0, *, follow: bool = True) -> AsyncGenerator[Fill, None]:
        """As Client says."""
        context = Call(self._name)
        request = pb.GetFillsRequest(since_sequence=since, follow=follow)
        call = asyncio.create_task(self._home.servicer.GetFills(request, cast("Context", context)))
        call.add_done_callback(lambda _: context.written.put_nowait(None))
        try:
            while (batch := await context.written.get()) is not None:
                await self._pass()
                for message in batch.fills:
                    yield results.fill(message, self.instruments[message.symbol])
            await call
        finally:
            call.cancel()

    async def open_orders(self) -> list[OrderState]:
        """As Client says."""
        reply = await self._home.servicer.ListOpenOrders(pb.ListOpenOrdersRequest(), call_of(self._name))
        return [results.order_state(order, self.instruments[order.symbol]) for order in reply.orders]

    async def positions(self) -> dict[str, Position]:
        """As Client says."""
        return {
            symbol: results.position(position(symbol, holding), self.instruments[symbol])
            for symbol, holding in self._venue.positions.of(self._name)
        }

    async def _pass(self) -> None:
        """Let the time of one way between client and engine pass."""
        await asyncio.sleep(self._venue.delays.draw(CALL_S))


@asynccontextmanager
async def open_venue(
    engines: int, instruments: list[InstrumentEntry], seed: int
) -> AsyncGenerator[VirtualVenue, None]:
    """A market that trades, in the running event loop. Same seed, same delays."""
    try:
        async with asyncio.TaskGroup() as group:
            venue = VirtualVenue(engines, instruments, Delays(seed), group)
            await venue.start()
            yield venue
            group.create_task(_end())
    except* _Over:
        pass


async def _end() -> None:
    raise _Over


def _instrument(entry: InstrumentEntry) -> Instrument:
    return instrument_of(
        pb.Instrument(
            symbol=entry.symbol,
            tick_size=entry.tick_size,
            lot_size=entry.lot_size,
            market_collar_percent=entry.market_collar_percent,
        )
    )
