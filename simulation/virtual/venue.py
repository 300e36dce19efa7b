"""A virtual market as simulated clients see it: engines, an exchange that follows them, accounts."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any, Final, cast

from google.protobuf.message import Message
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
from exchange.runtime.instruments import read_instruments
from exchange.runtime.servicer import position
from simulation.agents.cast import Player
from simulation.cluster import DEFAULT_INSTRUMENTS
from simulation.first_fault import first_of
from simulation.market import MarketWatch
from simulation.recording import Recording
from simulation.run import SETTLE_DEADLINE_S, Plan, RunOutcome, simulate
from simulation.scenario import Scenario, ScenarioRefused, contradictions
from simulation.staging import staged
from simulation.trader import AgentFailed
from simulation.virtual import clock
from simulation.virtual.delays import USUAL, Delays, DelaySettings
from simulation.virtual.engine import Call, ExecutionsList, VirtualEngine
from simulation.virtual.network import Life, Network

PEERS_FIRST_S: Final = 0.5
"""How long an engine that starts again waits for the others' quotes before it serves."""

_LOOK_S: Final = 0.02
_RETRY_S: Final = 0.05


class _Over(Exception):
    """Ends the tasks of a market whose clients are gone."""


class VirtualVenue:
    """Engines 1 to `engines` and an exchange; `open_venue` makes and starts one.

    It also takes what a scenario's faults do (`simulation.staging.Striking`). An engine that ends is started
    again.
    """

    def __init__(
        self, engines: int, instruments: list[InstrumentEntry], delays: Delays, group: asyncio.TaskGroup
    ) -> None:
        self.delays = delays
        self.executions = ExecutionsList(delays)
        self.instruments = {entry.symbol: _instrument(entry) for entry in instruments}
        self.positions = Positions()
        self.market = MarketWatch(self)
        self._entries = {entry.symbol: entry for entry in instruments}
        self._network = Network(delays)
        self._group = group
        self.engines = {number: self._process(number, []) for number in range(1, engines + 1)}
        """The newest process of each."""
        self._follower = FeedFollower(
            cast("NatsClient", self._network.link(Life(group))), own_engine=None, jitter=delays.jitter
        )
        self._clients: Counter[int] = Counter()
        self._thaws: dict[asyncio.Task[None], None] = {}

    async def start(self) -> None:
        """Return when every engine trades, and all see each other."""
        self._group.create_task(self._follower.run())
        self._group.create_task(self._sum_up())
        for engine in self.engines.values():
            await engine.start(self._entries)
        while not self._is_up():  # noqa: ASYNC110 -- time alone changes how feeds are seen
            await asyncio.sleep(_LOOK_S)
        for engine in self.engines.values():
            engine.serves.set()

    def _process(self, number: int, stored: list[bytes]) -> VirtualEngine:
        return VirtualEngine(number, self._network, self.executions, Life(self._group), stored)

    def _is_up(self) -> bool:
        engines = self.engines
        return are_all_there(engines, self._follower.peers, self._entries) and all(
            map(self._sees_all, engines.values())
        )

    def _sees_all(self, engine: VirtualEngine) -> bool:
        return all(engine.sees(other) for other in self.engines if other != engine.number)

    async def _sum_up(self) -> None:
        async for executions in self.executions.read():
            self.positions.apply(executions)

    def is_running(self, engine: int) -> bool:
        """As Striking says."""
        return not self.engines[engine].life.over.is_set()

    def kill(self, engine: int) -> None:
        """As Striking says."""
        ended = self.engines[engine]
        ended.life.end()
        self._group.create_task(self._start_again(ended))

    def restart(self, engine: int) -> None:
        """As Striking says; here nobody is asked first, so it is a kill."""
        self.kill(engine)

    def freeze(self, engine: int, lasts_s: float) -> None:
        """As Striking says."""
        thaw = self._group.create_task(self.engines[engine].life.freeze(lasts_s))
        self._thaws[thaw] = None
        thaw.add_done_callback(self._thaws.pop)

    async def until_thawed(self) -> None:
        """As Striking says."""
        await asyncio.gather(*self._thaws)

    async def thaw_all(self) -> None:
        """As Striking says."""
        for thaw in list(self._thaws):
            thaw.cancel()
        await asyncio.gather(*self._thaws, return_exceptions=True)

    async def _start_again(self, ended: VirtualEngine) -> None:
        await asyncio.sleep(self.delays.restart_s())
        engine = self.engines[ended.number] = self._process(ended.number, ended.journal.stored)
        engine.life.create_task(self._let_serve(engine))  # its own: it may be killed while it starts

    async def _let_serve(self, engine: VirtualEngine) -> None:
        await engine.start(self._entries)
        until_s = asyncio.get_running_loop().time() + PEERS_FIRST_S
        while not self._sees_all(engine) and asyncio.get_running_loop().time() < until_s:  # noqa: ASYNC110 -- as above
            await asyncio.sleep(_LOOK_S)
        engine.serves.set()

    async def digests(self) -> dict[int, str]:
        """Of each engine's state once all are quiet, so that their journals give the same."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_DEADLINE_S):
                while not all(engine.is_quiet for engine in self.engines.values()):  # noqa: ASYNC110 -- as above
                    await asyncio.sleep(_LOOK_S)
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
        yield VirtualAccount(name, self, home)

    async def GetConsolidatedBook(  # noqa: N802 -- the contract's
        self,
        request: pb.GetConsolidatedBookRequest,
        *,
        timeout: float,  # noqa: ASYNC109, ARG002 -- gRPC's
    ) -> pb.ConsolidatedBook:
        """As the exchange answers it."""
        await asyncio.sleep(self.delays.call_s())
        reply = pb.ConsolidatedBook()
        for _ in consolidated_book(reply, request.symbol, request.depth, self._follower.peers):
            pass
        await asyncio.sleep(self.delays.call_s())
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
        return pb.ListEnginesReply(engines=listed_engines(entries, self._follower.peers, time.monotonic_ns()))


class VirtualAccount:
    """One client of a virtual market: what simulated traders use of `client.Client`, as said there."""

    def __init__(self, name: str, venue: VirtualVenue, home: int) -> None:
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
        return self._home

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
        return results.order_result(await self._ask("SubmitOrder", request), instrument)

    async def cancel(self, *, client_order_id: str) -> OrderResult:
        """As Client says."""
        request = pb.CancelOrderRequest(client_order_id=client_order_id)
        reply, attempts = await self._send("CancelOrder", request)
        if results.may_be_our_own_doing(reply, attempts):
            return results.result_of_repeated_cancel(await self._order(client_order_id), reply)
        return results.order_result(reply, self._traded_in.get(client_order_id))

    async def replace(self, *, price: Number, quantity: Number, client_order_id: str) -> OrderResult:
        """As Client says."""
        instrument = self._traded_in[client_order_id]
        request = pb.ReplaceOrderRequest(
            client_order_id=client_order_id,
            price=instrument.ticks(price),
            quantity=instrument.lots(quantity),
        )
        reply, attempts = await self._send("ReplaceOrder", request)
        if results.may_be_our_own_doing(reply, attempts):
            wanted = (instrument.price(request.price), instrument.quantity(request.quantity))
            return results.result_of_repeated_replace(await self._order(client_order_id), reply, *wanted)
        return results.order_result(reply, instrument)

    async def fills(self, since: int = 0, *, follow: bool = True) -> AsyncGenerator[Fill, None]:
        """As Client says."""
        while True:
            home = await self._serving()
            context = Call(self._name)
            request = pb.GetFillsRequest(since_sequence=since, follow=follow)
            call = home.life.create_task(home.servicer.GetFills(request, cast("Context", context)))
            call.add_done_callback(context.end)
            try:
                while (batch := await context.written.get()) is not None:
                    await self._pass(home)
                    for message in batch.fills:
                        since = message.sequence
                        yield results.fill(message, self.instruments[message.symbol])
            finally:
                call.cancel()
            if not home.life.over.is_set():
                await call
                return

    async def open_orders(self) -> list[OrderState]:
        """As Client says."""
        reply: pb.ListOpenOrdersReply = await self._ask("ListOpenOrders", pb.ListOpenOrdersRequest())
        return [results.order_state(order, self.instruments[order.symbol]) for order in reply.orders]

    async def positions(self) -> dict[str, Position]:
        """As Client says."""
        return {
            symbol: results.position(position(symbol, holding), self.instruments[symbol])
            for symbol, holding in self._venue.positions.of(self._name)
        }

    async def _order(self, client_order_id: str) -> OrderState:
        order: pb.OrderState = await self._ask(
            "GetOrder", pb.GetOrderRequest(client_order_id=client_order_id)
        )
        return results.order_state(order, self._traded_in[client_order_id])

    async def _ask(self, method: str, request: Message) -> Any:
        answer, _ = await self._send(method, request)
        return answer

    async def _send(self, method: str, request: Message) -> tuple[Any, int]:
        """The home engine's answer, and to which attempt; a process may end before it answers."""
        attempts = 0
        while True:
            home = await self._serving()
            await self._pass(home)
            if home.life.over.is_set():
                continue
            attempts += 1
            call = home.life.create_task(getattr(home.servicer, method)(request, Call(self._name)))
            await asyncio.wait((call,))
            if not call.cancelled():
                await self._pass(home)
                if not home.life.over.is_set():
                    return call.result(), attempts

    async def _serving(self) -> VirtualEngine:
        """The home engine's process, once there is one that takes calls."""
        while True:
            home = self._venue.engines[self.engine]
            if home.takes_calls:
                return home
            await asyncio.sleep(_RETRY_S)

    async def _pass(self, home: VirtualEngine) -> None:
        """Let the time of one way between client and engine pass; longer where the engine is frozen."""
        await asyncio.sleep(self._venue.delays.call_s())
        await home.life.thawed.wait()


@asynccontextmanager
async def open_venue(
    engines: int, instruments: list[InstrumentEntry], seed: int, delays: DelaySettings = USUAL
) -> AsyncGenerator[VirtualVenue, None]:
    """A market that trades, in the running event loop. Same seed and bounds, same delays."""
    with first_of(AgentFailed):
        try:
            async with asyncio.TaskGroup() as group:
                venue = VirtualVenue(engines, instruments, Delays(seed, delays), group)
                await venue.start()
                try:
                    yield venue
                finally:
                    await venue.thaw_all()  # what it held up goes on in new tasks
                group.create_task(_end())
        except* _Over:
            pass


@asynccontextmanager
async def open_for(scenario: Scenario) -> AsyncGenerator[VirtualVenue, None]:
    """The market that a scenario describes. Raises `ScenarioRefused`."""
    if scenario.standbys:
        raise ScenarioRefused(
            f"standbys is {scenario.standbys}: in virtual time nobody stands by: an engine that ends is "
            "started again. Make it 0, or leave out --virtual."
        )
    listed = read_instruments(DEFAULT_INSTRUMENTS)
    for wrong in contradictions(scenario, [entry.symbol for entry in listed]):
        raise ScenarioRefused(wrong)
    traded = [entry for entry in listed if entry.symbol in scenario.symbols]
    async with open_venue(scenario.engines, traded, scenario.seed, scenario.delays or USUAL) as venue:
        yield venue


async def _end() -> None:
    raise _Over


def simulate_in_virtual_time(plan: Plan, *, engines: int, delays: DelaySettings = USUAL) -> RunOutcome:
    """As `simulation.run.simulate`, on a virtual market of its own: plans made alike come to the same.

    Agents remember, so each run needs a plan made anew. Not from within an event loop, as this runs one.
    Raises `AgentFailed`.
    """

    async def run() -> RunOutcome:
        async with open_venue(engines, read_instruments(DEFAULT_INSTRUMENTS), plan.seed, delays) as venue:
            outcome = await simulate(plan, venue)
            outcome.digests = await venue.digests()
            return outcome

    return clock.run(run)


def simulate_scenario(
    scenario: Scenario, *, also: Mapping[str, Player] | None = None, recording: Recording | None = None
) -> RunOutcome:
    """The run of `simulation run --virtual` with this scenario, and with these players behind its own.

    Not from within an event loop, as this runs one. Raises `ScenarioRefused` and `AgentFailed`.
    """

    async def run() -> RunOutcome:
        async with open_for(scenario) as venue:
            plan = staged(scenario, venue, print, recording=recording)
            outcome = await simulate(replace(plan, players={**plan.players, **(also or {})}), venue=venue)
            outcome.digests = await venue.digests()
            return outcome

    return clock.run(run)


def _instrument(entry: InstrumentEntry) -> Instrument:
    return instrument_of(
        pb.Instrument(
            symbol=entry.symbol,
            tick_size=entry.tick_size,
            lot_size=entry.lot_size,
            market_collar_percent=entry.market_collar_percent,
        )
    )
