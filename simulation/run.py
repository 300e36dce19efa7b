"""Runs simulated clients against a running market, then checks what came out.

Deciding is in `agents`, carrying in `trader.py`, judging in `checks.py`; here they are put together.
"""

import asyncio
import contextlib
import logging
import random
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Final

import grpc.aio
from matchbus.v1 import matchbus_pb2 as pb

from bus.messages import Executions, ReportedCancel, engine_of_id
from client import Fill, MatchbusError
from client.terms import ENGINE_STATES, OrderStatus
from client.units import Instrument
from simulation.agents.cast import Player, players, usual_mix
from simulation.checks import Check, FillCounts, Tally, count_fills, uncrossed
from simulation.first_fault import first_of
from simulation.fundamental import Fundamental
from simulation.load import as_reported
from simulation.market import MarketWatch
from simulation.recording import VENUE_CANCEL, Quote, Recording, SentChange
from simulation.trader import AgentFailed, Trader
from simulation.venues import Venue

KEPT_PERCENT: Final = 90
"""An agent that made a smaller share of the steps its rate asks for is reported."""

SETTLE_DEADLINE_S: Final = 10.0
"""How long reports, fills and books have to agree once the clients are quiet."""

LAST_FILLS: Final = 5
"""How many of the newest trades a view shows."""

_SETTLE_POLL_S: Final = 0.1
_SILENT: Final = logging.CRITICAL + 1

_log: Final = logging.getLogger(__name__)
_client_logs: Final = logging.getLogger("simulation.client")
"""Above the loggers of all clients, which have their level from it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate.

    `players` says who trades; without any it is `clients` of the usual mix, each with `frequency` steps a
    second, or all of the kind `only`. The symbols are `named_symbols`, or else the first `symbols` of all
    (0: all). `meanwhile` runs beside the clients, from their start on. A `recording` is filled.
    """

    clients: int = 6
    symbols: int = 4
    frequency: float = 20.0
    duration_s: float = 10.0
    seed: int = 1
    only: str = ""
    players: Mapping[str, Player] = field(default_factory=dict)
    named_symbols: tuple[str, ...] = ()
    fundamental: Fundamental | None = None
    meanwhile: Callable[["Progress"], Coroutine[None, None, None]] | None = None
    recording: Recording | None = None
    log_dir: Path | None = None


@dataclass(slots=True, repr=False)  # asyncio.run makes the repr of what it returns: of all recorded
class RunOutcome:
    """What a run came to. Of one that was `interrupted` nothing was checked."""

    duration_s: float
    traders: list[Trader]
    checks: list[Check]
    fills: FillCounts
    positions: dict[tuple[str, str], int]
    digests: dict[int, str] = field(default_factory=dict)
    """Of each engine's state at the end, in virtual time: the same seed gives the same."""

    interrupted: bool = False

    @property
    def holds(self) -> bool:
        """Whether it was checked, and no invariant was violated."""
        return not self.interrupted and all(check.holds for check in self.checks)

    @property
    def kinds(self) -> list[str]:
        """The kinds of the agents that could trade."""
        return list(dict.fromkeys(trader.player.kind for trader in self.traders))

    @property
    def pace_warning(self) -> str:
        """Which rates were not kept, in a sentence; empty when all were."""
        late = [one for one in self.traders if 100 * one.steps < KEPT_PERCENT * one.wanted_steps]
        if not late:
            return ""
        worst = min(late, key=lambda one: one.steps / one.wanted_steps)
        return (
            f"{len(late)} of {len(self.traders)} agents made less than {KEPT_PERCENT} % of the steps that "
            f"their rate asks for, {worst.name} {worst.steps:,} of {worst.wanted_steps:,}: each waits for "
            "its answers, and they came no faster."
        )


@dataclass(slots=True)
class Progress:
    """What a running simulation shows of itself."""

    market: MarketWatch
    traders: list[Trader]
    symbols: list[str]
    started: float
    plan: Plan
    last_fills: deque[tuple[str, Fill]] = field(default_factory=lambda: deque(maxlen=LAST_FILLS))
    per_engine: Counter[int] = field(default_factory=Counter)
    through_legs: int = 0
    volume: int = 0

    def note(self, trader: Trader, fill: Fill) -> None:
        """Count a fill; every trade is seen once, at its taker."""
        if self.plan.recording is not None:
            self.plan.recording.note_fill(trader.name, trader.player.kind, fill)
        if fill.liquidity == "taker":
            self.volume += self.traders[0].client.instruments[fill.symbol].lots(fill.quantity)
            self.per_engine[fill.engine] += 1
            self.through_legs += engine_of_id(fill.order_id) != fill.engine
            self.last_fills.append((trader.name, fill))

    def note_cancel(self, report: ReportedCancel) -> None:
        """Record a cancel that an engine reports."""
        if self.plan.recording is None:
            return
        self.plan.recording.reported_cancels.append(
            SentChange(
                sent_s=asyncio.get_running_loop().time() - self.started,
                answered_s=None,
                client=report.client,
                change=VENUE_CANCEL,
                order_id=report.order_id,
                price=None,
                quantity=self.traders[0].client.instruments[report.symbol].quantity(report.quantity),
                status=str(OrderStatus.CANCELLED),
                reason="",
            )
        )


async def simulate(
    plan: Plan, venue: Venue, on_start: Callable[[Progress], None] = lambda _: None
) -> RunOutcome:
    """Let the clients trade for the planned time, wait until all is quiet, and check.

    Without reports of the venue only what clients can see is checked. `on_start` gets what a live view shows.
    Raises `AgentFailed`; or what the client raises, or gRPC, when the market cannot be reached.
    """
    async with contextlib.AsyncExitStack() as stack:
        progress = await _enter(plan, venue, stack)
        tally = None
        followers: list[Coroutine[None, None, None]] = [t.follow() for t in progress.traders]
        followers.append(progress.market.run(progress.symbols))
        if (reports := venue.reports()) is not None:
            tally = Tally()
            followers.append(_collect(reports, tally, progress.note_cancel))
        with first_of(AgentFailed, MatchbusError, grpc.aio.AioRpcError):
            # A follower that fails ends the run: the group cancels this body.
            async with asyncio.TaskGroup() as group:
                following = [group.create_task(follower) for follower in followers]
                on_start(progress)
                outcome = await _trade_and_check(progress, tally)
                for task in following:
                    task.cancel()
        return outcome


async def _enter(plan: Plan, venue: Venue, stack: contextlib.AsyncExitStack) -> Progress:
    """Register every client; the stack closes them."""
    symbols = list(plan.named_symbols) or (await venue.symbols())[: plan.symbols or None]
    if not symbols:
        raise ValueError("the exchange lists no instruments")
    progress = Progress(venue.market, [], symbols, asyncio.get_running_loop().time(), plan)
    _client_logs.setLevel(logging.INFO)
    cast = plan.players or players(usual_mix(plan.clients, plan.frequency, only=plan.only), plan.seed)
    for name, player in cast.items():
        log = stack.enter_context(_client_log(name, plan.log_dir))
        client = await stack.enter_async_context(venue.account(name))
        log.info("registered as %s at engine %d", name, client.engine)
        trader = Trader(name, player, client, venue.market, symbols, log, on_fill=progress.note)
        trader.phase = random.Random(f"{plan.seed}/{name}/phase").random()
        await trader.recall()
        if plan.fundamental is not None:
            trader.value, trader.reference = plan.fundamental.value, plan.fundamental.start
        progress.traders.append(trader)
    return progress


async def _trade_and_check(progress: Progress, tally: Tally | None) -> RunOutcome:
    clock = asyncio.get_running_loop().time
    plan = progress.plan
    await progress.market.refresh(progress.symbols)
    progress.started = clock()
    if plan.recording is not None:
        _record(progress, plan.recording)
    async with asyncio.TaskGroup() as group:
        for trader in progress.traders:
            group.create_task(trader.trade(progress.started, plan.duration_s))
        group.create_task(asyncio.sleep(plan.duration_s))  # agents end when their next step would be too late
        if plan.meanwhile is not None:
            group.create_task(plan.meanwhile(progress))
    elapsed = clock() - progress.started
    checks, positions = await _settle(progress, tally)
    _log_positions(progress.traders, positions)
    if tally is not None:
        fills = count_fills([fill for fills in tally.fills.values() for fill in fills])
    else:
        fills = _fills_seen(progress)
    return RunOutcome(elapsed, progress.traders, checks, fills, positions)


def cut_short(progress: Progress) -> RunOutcome:
    """What a run has come to that is interrupted now, by what its clients were told."""
    elapsed = min(asyncio.get_running_loop().time() - progress.started, progress.plan.duration_s)
    positions = {
        (trader.name, symbol): lots
        for trader in progress.traders
        for symbol, lots in trader.positions().items()
    }
    return RunOutcome(elapsed, progress.traders, [], _fills_seen(progress), positions, interrupted=True)


def _fills_seen(progress: Progress) -> FillCounts:
    """Of the trades whose taker was told."""
    return FillCounts(dict(sorted(progress.per_engine.items())), progress.through_legs, progress.volume)


def _record(progress: Progress, recording: Recording) -> None:
    """Record everything that is noticed from now on, with its time."""
    clock = asyncio.get_running_loop().time
    recording.started_ns = time.time_ns()
    instruments = progress.traders[0].client.instruments

    def note_book(book: pb.ConsolidatedBook) -> None:
        at_s = clock() - progress.started
        if at_s > progress.plan.duration_s:  # while the run settles its agents are gone
            return
        fundamental = progress.plan.fundamental
        value = None if fundamental is None else fundamental.value(book.symbol, at_s)
        recording.quotes.append(_quote(book, instruments[book.symbol], at_s, value))

    def note_engines(engines: list[pb.Engine]) -> None:
        for engine in engines:
            if engine.role != pb.ENGINE_ROLE_STANDBY:
                state = ENGINE_STATES.get(engine.state)
                recording.note_state(clock() - progress.started, engine.engine, str(state or "unknown"))

    progress.market.on_book = note_book
    progress.market.on_engines = note_engines
    for trader in progress.traders:
        trader.on_order = recording.orders.append
        trader.on_change = recording.changes.append


def _quote(book: pb.ConsolidatedBook, instrument: Instrument, at_s: float, value: float | None) -> Quote:
    return Quote(
        at_s=at_s,
        symbol=book.symbol,
        bid=instrument.price(book.bids[0].price) if book.bids else None,
        ask=instrument.price(book.asks[0].price) if book.asks else None,
        bid_quantity=instrument.quantity(book.bids[0].quantity if book.bids else 0),
        ask_quantity=instrument.quantity(book.asks[0].quantity if book.asks else 0),
        bid_depth=instrument.quantity(sum(level.quantity for level in book.bids)),
        ask_depth=instrument.quantity(sum(level.quantity for level in book.asks)),
        value=None if value is None else Decimal(f"{value:.2f}") * instrument.tick_size,
    )


async def _collect(
    reports: AsyncIterator[Executions], tally: Tally, on_cancel: Callable[[ReportedCancel], None]
) -> None:
    async for message in reports:
        for report in message.reports:
            tally.add(report)
            if isinstance(report, ReportedCancel):
                on_cancel(report)


async def _settle(progress: Progress, tally: Tally | None) -> tuple[list[Check], dict[tuple[str, str], int]]:
    """Check until everything holds or the deadline is over: the last fills are on their way."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_DEADLINE_S
    while True:
        await progress.market.refresh(progress.symbols)
        positions = await _positions(progress.traders)
        quotes = {symbol: progress.market.quotes(symbol) for symbol in progress.symbols}
        checks = [uncrossed(quotes), *_own_checks(progress.traders, positions)]
        if tally is not None:
            instruments = progress.traders[0].client.instruments
            received = {
                t.name: [as_reported(t.name, fill, instruments[fill.symbol]) for fill in t.fills]
                for t in progress.traders
            }
            checks += [
                tally.acknowledged(order for t in progress.traders for order in t.acknowledged.values()),
                tally.open_orders(await _open_orders(progress.traders)),
                *(tally.quantity, tally.limits, tally.trades(), tally.zero_sum(), tally.gap_free()),
                *(tally.received(received), tally.same_positions(positions)),
            ]
        else:
            checks += [await check_quantity(progress.traders), check_zero_sum(progress.traders, positions)]
        if all(check.holds for check in checks) or loop.time() > deadline:
            return checks, positions
        await asyncio.sleep(_SETTLE_POLL_S)


def _own_checks(traders: list[Trader], positions: dict[tuple[str, str], int]) -> list[Check]:
    """What the clients can check by themselves."""
    sequences = Check("fills arrive as 1, 2, 3 and so on")
    told = Check("final positions equal the fills received")
    for trader in traders:
        sequences.checked += len(trader.fills)
        if [fill.sequence for fill in trader.fills] != list(range(1, len(trader.fills) + 1)):
            sequences.violations.append(f"{trader.name} has a gap or a repeat")
        for symbol in trader.symbols:
            told.checked += 1
            by_fills, by_exchange = trader.positions().get(symbol, 0), positions.get((trader.name, symbol), 0)
            if by_fills != by_exchange:
                told.violations.append(f"{trader.name} {symbol}: {by_exchange} told, {by_fills} by fills")
    return [sequences, told]


async def check_quantity(traders: list[Trader]) -> Check:
    """No fill and no open order says other than what the fills received add up to."""
    check = Check("quantity of every order adds up")
    for trader in traders:
        filled: defaultdict[int, Decimal] = defaultdict(Decimal)
        for fill in trader.fills:
            check.checked += 1
            filled[fill.order_id] += fill.quantity
            if filled[fill.order_id] != fill.cumulative_quantity:
                check.violations.append(
                    f"{trader.name}: fill {fill.sequence} says {fill.cumulative_quantity:f} filled of order"
                    f" {fill.order_id}, its fills add up to {filled[fill.order_id]:f}"
                )
        for order in await trader.client.open_orders():
            check.checked += 1
            parts = filled[order.order_id], order.leaves_quantity, order.cancelled_quantity
            if sum(parts) != order.quantity:
                check.violations.append(
                    f"{trader.name}: order {order.order_id}: {parts[0]:f} filled + {parts[1]:f} left"
                    f" + {parts[2]:f} cancelled is not {order.quantity:f}"
                )
    return check


def check_zero_sum(traders: list[Trader], positions: dict[tuple[str, str], int]) -> Check:
    """What the clients hold together they traded with others, who may be in the market too."""
    check = Check("positions sum to zero, trades with others aside")
    ours = {order_id for trader in traders for order_id in trader.acknowledged}
    ours |= {fill.order_id for trader in traders for fill in trader.fills}
    sums: Counter[str] = Counter()
    for (_, symbol), lots in positions.items():
        sums[symbol] += lots
    for trader in traders:
        for fill in trader.fills:
            if fill.contra_order_id not in ours:
                lots = trader.client.instruments[fill.symbol].lots(fill.quantity)
                sums[fill.symbol] -= lots if fill.side == "buy" else -lots
    for symbol, total in sorted(sums.items()):
        check.checked += 1
        if total:
            check.violations.append(f"{symbol}: positions add up to {total} lots too many")
    return check


async def _positions(traders: list[Trader]) -> dict[tuple[str, str], int]:
    """What the exchange says every client holds, in lots."""
    told: dict[tuple[str, str], int] = {}
    for trader in traders:
        for position in (await trader.client.positions()).values():
            lots = trader.client.instruments[position.symbol].lots(position.quantity)
            told[trader.name, position.symbol] = lots
    return told


async def _open_orders(traders: list[Trader]) -> dict[str, dict[int, int]]:
    """The lots that each client's engine says are left of its open orders."""
    return {
        trader.name: {
            order.order_id: trader.client.instruments[order.symbol].lots(order.leaves_quantity)
            for order in await trader.client.open_orders()
        }
        for trader in traders
    }


def _log_positions(traders: list[Trader], positions: dict[tuple[str, str], int]) -> None:
    logs = {trader.name: trader.log for trader in traders}
    for (name, symbol), lots in sorted(positions.items()):
        logs[name].info("final position in %s: %d lots", symbol, lots)


class _LogFile(logging.FileHandler):
    """A client's log. Once a disk takes no more of one, all clients' logs end, and the run goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- logging's name
        """Give up where a line cannot be written; a line that cannot be made is a bug."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        _client_logs.setLevel(_SILENT)
        _log.error("client logs end here, the run goes on: %s", error.strerror)

    def close(self) -> None:
        """Let go of the file, whether or not it takes what it did not take before."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def _client_log(name: str, log_dir: Path | None) -> Iterator[logging.Logger]:
    """The client's own logger, writing `client_logs/<name>.log` where a directory is given."""
    log = _client_logs.getChild(name)
    log.propagate = False
    if log_dir is None:
        yield log
        return
    folder = log_dir / "client_logs"
    folder.mkdir(parents=True, exist_ok=True)
    writer = _LogFile(folder / f"{name}.log")
    log.addHandler(writer)
    writer.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    try:
        yield log
    finally:
        log.removeHandler(writer)
        writer.close()
