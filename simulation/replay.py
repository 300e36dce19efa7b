"""Real order flow through the running venue: fetches the capture, carries its commands, compares the trades.

What the capture means is in `bitstamp.py`. The wheel is fetched into the user's cache and only read there,
never installed: its code and the exchange's numbers stay out of this project.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from matchbus import tls
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc as rpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bus.messages import engine_of_id
from client.cli.settings import home
from client.cli.sheets import counted
from engine.terms import Side
from simulation import audit_command
from simulation.audit import Audit
from simulation.bitstamp import (
    LOT_SIZE,
    SYMBOL,
    TICK_SIZE,
    Cancel,
    Comparison,
    Instruction,
    Place,
    Reduce,
    Trade,
    Translation,
    compare,
    first_part,
    read_capture,
    translate,
    windows,
)
from simulation.first_fault import first_of
from simulation.nats_option import connected

REQUIREMENT: Final = "ob-analytics==0.1.0"
WHEEL: Final = "ob_analytics-0.1.0-py3-none-any.whl"

BATCH: Final = 200
"""Commands in a message, at most."""

IN_FLIGHT: Final = 8
"""Messages under way where one engine takes all."""

_FETCH_DEADLINE_S: Final = 300
_CALL_DEADLINE_S: Final = 20.0
_LEAVE_DEADLINE_S: Final = 5.0
_SETTLE_DEADLINE_S: Final = 15.0
_SETTLE_POLL_S: Final = 0.1
T = TypeVar("T")


class ReplayFailed(Exception):
    """The capture cannot be had, or the venue cannot take it."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """What to replay where; `limit` 0 means all, without `nats` the journals are not checked."""

    exchange: str
    password: str
    engines: int
    nats: str = ""
    limit: int = 0


@dataclass(slots=True)
class ReplayOutcome:
    """What the venue made of the capture."""

    comparison: Comparison
    one_sided: int
    """Trades without two equal sides: the other is of another client's order, lost, or told otherwise."""
    commands: int
    elapsed_s: float
    statuses: Counter[str]
    refusals: Counter[str]
    through_legs: int
    crossed: bool
    audits: list[Audit]


def cache_dir() -> Path:
    """Where the wheel is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache") / "matchbus"


def fetch(cache: Path) -> Path:
    """The wheel in the cache, downloaded with pip when it is not there. Raises `ReplayFailed`."""
    wheel = cache / WHEEL
    if wheel.is_file():
        return wheel
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReplayFailed(
            f"the cache {cache} cannot be made ({error.strerror}): name another with --cache"
        ) from error
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(cache), REQUIREMENT]
    try:
        done = subprocess.run(  # noqa: S603 -- our own command line
            command, capture_output=True, text=True, timeout=_FETCH_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ReplayFailed(f"pip did not download {REQUIREMENT} within {_FETCH_DEADLINE_S} s") from None
    if done.returncode or not wheel.is_file():
        raise ReplayFailed(f"pip could not download {REQUIREMENT} into {cache}:\n{done.stderr.strip()}")
    return wheel


async def left_behind(work: Callable[[], T]) -> T:
    """The result of work done in a thread that nobody waits for once this is cancelled.

    At its end a program waits for the threads of `asyncio.to_thread`, cancelled or not; reading the capture
    takes seconds, and fetching it minutes.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 -- whatever it is, it is raised where the work is awaited
            future.set_exception(error)

    future.set_running_or_notify_cancel()
    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(future)


def command_of(instruction: Instruction) -> pb.Command:
    """The instruction as the venue takes it; the capture's order id is the client order id."""
    match instruction:
        case Place():
            market = instruction.price == 0
            return pb.Command(
                new=pb.NewOrder(
                    client_order_id=instruction.order,
                    symbol=SYMBOL,
                    side=pb.SIDE_BUY if instruction.side is Side.BUY else pb.SIDE_SELL,
                    type=pb.ORDER_TYPE_MARKET if market else pb.ORDER_TYPE_LIMIT,
                    time_in_force=pb.TIME_IN_FORCE_IOC if market else pb.TIME_IN_FORCE_GTC,
                    price=instruction.price,
                    quantity=instruction.quantity,
                    post_only=instruction.post_only,
                    self_trade_prevention=pb.SELF_TRADE_PREVENTION_NONE,
                )
            )
        case Cancel():
            return pb.Command(cancel=pb.CancelOrderRequest(client_order_id=instruction.order))
        case Reduce():
            return pb.Command(
                replace=pb.ReplaceOrderRequest(
                    client_order_id=instruction.order,
                    price=instruction.price,
                    quantity=instruction.quantity,
                )
            )


def trades_of(fills: Sequence[pb.Fill]) -> tuple[list[Trade], int]:
    """The trades that fills of all owners tell of, and how many executions have no two equal sides."""
    executions: defaultdict[int, list[pb.Fill]] = defaultdict(list)
    for fill in fills:
        executions[fill.execution_id].append(fill)
    trades = []
    for sides in executions.values():
        sides.sort(key=lambda fill: fill.side)
        equal = len({(fill.price, fill.quantity) for fill in sides}) == 1
        if equal and [fill.side for fill in sides] == [pb.SIDE_BUY, pb.SIDE_SELL]:
            buy, sell = sides
            trades.append(Trade(buy.client_order_id, sell.client_order_id, buy.price, buy.quantity))
    return trades, len(executions) - len(trades)


@dataclass(slots=True)
class Carrier:
    """One client's OrderEntry stream to its home engine. Replies are counted as they come.

    Whatever waits for the engine raises `ReplayFailed` when that is silent for too long.
    """

    engine: int
    stub: Any
    metadata: tuple[tuple[str, str], ...]
    statuses: Counter[int]
    refusals: Counter[int]
    on_replies: Callable[[int], None]
    _call: Any = field(init=False)
    _room: asyncio.Semaphore = field(init=False)
    _unanswered: int = field(default=0, init=False)
    _answered: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self._call = self.stub.OrderEntry(metadata=self.metadata)
        self._room = asyncio.Semaphore(IN_FLIGHT)

    async def send(self, instructions: Sequence[Instruction]) -> None:
        """Hand over a batch; waits while too many are under way."""
        await self._in_time(self._room.acquire())
        self._unanswered += 1
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # `read` says why it ended
            request = pb.OrderEntryRequest(commands=[command_of(step) for step in instructions])
            await self._in_time(self._call.write(request))

    async def drained(self) -> None:
        """Wait until everything sent is answered."""
        while self._unanswered:
            self._answered.clear()
            await self._in_time(self._answered.wait())

    async def read(self) -> None:
        """Take replies until the stream ends. Raises `ReplayFailed` when it breaks."""
        try:
            async for response in self._call:
                for reply in response.replies:
                    self.statuses[reply.status] += 1
                    if reply.reject_reason:
                        self.refusals[reply.reject_reason] += 1
                self._room.release()
                self._unanswered -= 1
                self._answered.set()
                self.on_replies(len(response.replies))
        except grpc.aio.AioRpcError as error:
            raise ReplayFailed(f"engine {self.engine} ended the stream: {error.details()}") from error

    async def close(self) -> None:
        """Say that nothing more comes, and wait until the stream ends."""
        await self._in_time(self._call.done_writing())
        await self._in_time(self._call.code())

    async def _in_time(self, waiting: Awaitable[object]) -> None:
        """Wait for what an engine that is well does soon."""
        try:
            async with asyncio.timeout(_CALL_DEADLINE_S):
                await waiting
        except TimeoutError:
            raise ReplayFailed(f"engine {self.engine} was silent for {_CALL_DEADLINE_S:g} s") from None

    async def leave(self) -> None:
        """Cancel what still rests: nobody else could, and the market may be another's."""
        with contextlib.suppress(grpc.aio.AioRpcError):  # an engine that is gone is told of elsewhere
            await self.stub.CancelAll(
                pb.CancelAllRequest(), metadata=self.metadata, timeout=_LEAVE_DEADLINE_S
            )

    async def fills(self) -> list[pb.Fill]:
        """Everything this client traded."""
        call = self.stub.GetFills(pb.GetFillsRequest(), metadata=self.metadata, timeout=_CALL_DEADLINE_S)
        try:
            return [fill async for batch in call for fill in batch.fills]
        except grpc.aio.AioRpcError as error:
            raise ReplayFailed(f"engine {self.engine} does not tell its fills: {error.details()}") from error


async def replay(settings: ReplaySettings, wheel: Path, console: Console) -> ReplayOutcome:
    """Carry the capture through the venue and compare.

    Raises `ReplayFailed`; where journals are to be audited, `NatsAway` at the start and whatever
    `audit_command.read` raises at the end.
    """
    statuses: Counter[int] = Counter()
    refusals: Counter[int] = Counter()
    async with contextlib.AsyncExitStack() as stack:
        is_audited = bool(settings.nats) and settings.engines > 1
        if is_audited:  # at the end; that nobody could is told now
            async with connected(settings.nats, "replay"):
                pass
        exchange = rpc.ExchangeStub(await stack.enter_async_context(tls.channel(settings.exchange)))
        resting = await _look(exchange, settings)
        with console.status("Reading the capture"):
            events, trades = await left_behind(lambda: read_capture(wheel))
            translation = await left_behind(lambda: translate(events, trades))
        instructions, expected = first_part(translation, trades, settings.limit)
        console.print(_translation_line(translation, instructions, len(trades)), highlight=False)
        if resting:
            console.print(_resting_line(resting), highlight=False)
        bar = stack.enter_context(_progress_bar(console))
        task = bar.add_task("replay", total=len(instructions), rate="")

        def advance(count: int) -> None:
            done = bar.tasks[0].completed + count
            bar.update(task, advance=count, rate=f"{done / max(time.monotonic() - started, 1e-3):,.0f}/s")

        carriers = [
            await _enter(stack, exchange, settings, number, statuses, refusals, advance)
            for number in range(1, settings.engines + 1)
        ]
        with first_of(ReplayFailed):
            async with asyncio.TaskGroup() as group:
                for carrier in carriers:
                    group.create_task(carrier.read())
                started = time.monotonic()
                await _carry(instructions, carriers)
                elapsed = time.monotonic() - started
                for carrier in carriers:
                    await carrier.close()
        fills, crossed = await _settle(carriers, exchange)
        window_ms = audit_command.WINDOW_MS
        audits = await audit_command.read(settings.nats, window_ms) if is_audited else {}
    made, one_sided = trades_of(fills)
    return ReplayOutcome(
        comparison=compare(expected, made),
        one_sided=one_sided,
        commands=len(instructions),
        elapsed_s=elapsed,
        statuses=_named(statuses, pb.OrderStatus, "ORDER_STATUS_"),
        refusals=_named(refusals, pb.RejectReason, "REJECT_REASON_"),
        through_legs=sum(
            1 for f in fills if f.liquidity == pb.LIQUIDITY_TAKER and engine_of_id(f.order_id) != f.engine_id
        ),
        crossed=crossed,
        audits=list(audits.values()),
    )


async def _look(exchange: Any, settings: ReplaySettings) -> int:
    """How many orders rest in the book of a market that can take the capture. Raises `ReplayFailed`."""
    try:
        listing = await exchange.ListInstruments(pb.ListInstrumentsRequest(), timeout=_CALL_DEADLINE_S)
        listed = {i.symbol: (i.tick_size, i.lot_size) for i in listing.instruments}
        if SYMBOL not in listed:
            raise ReplayFailed(f"the exchange does not list {SYMBOL}")
        if [float(size) for size in listed[SYMBOL]] != [float(TICK_SIZE), float(LOT_SIZE)]:
            raise ReplayFailed(f"{SYMBOL} must trade in ticks of {TICK_SIZE} and lots of {LOT_SIZE} there")
        request = pb.GetConsolidatedBookRequest(symbol=SYMBOL)
        book = await exchange.GetConsolidatedBook(request, timeout=_CALL_DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise ReplayFailed(f"the exchange at {settings.exchange} refuses: {error.details()}") from error
        raise ReplayFailed(
            f"no exchange answers at {settings.exchange} ({error.details()}): "
            "name one that runs by --exchange HOST:PORT, or leave it out"
        ) from error
    return sum(level.order_count for level in (*book.bids, *book.asks))


async def _enter(
    stack: contextlib.AsyncExitStack,
    exchange: Any,
    settings: ReplaySettings,
    number: int,
    statuses: Counter[int],
    refusals: Counter[int],
    advance: Callable[[int], None],
) -> Carrier:
    """Register a client at home on this engine. A fresh id each time: order ids are used once per client."""
    request = pb.RegisterClientRequest(
        client_id=f"replay-{number}-{secrets.token_hex(6)}",
        password=settings.password,
        secret=secrets.token_hex(16),
        preferred_engine=number,
    )
    try:
        home = await exchange.RegisterClient(request, timeout=_CALL_DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        raise ReplayFailed(
            f"the exchange at {settings.exchange} does not register us: {error.details()}"
        ) from error
    if home.engine != number:
        raise ReplayFailed(f"engine {number} is not there to be a home")
    channel = await stack.enter_async_context(tls.channel(home.engine_address))
    carrier = Carrier(
        engine=number,
        stub=rpc.MatchingEngineStub(channel),
        metadata=(("authorization", f"Bearer {home.token}"),),
        statuses=statuses,
        refusals=refusals,
        on_replies=advance,
    )
    stack.push_async_callback(carrier.leave)
    return carrier


async def _carry(instructions: Sequence[Instruction], carriers: Sequence[Carrier]) -> None:
    """Send everything in file order.

    One engine: its stream keeps the order. Several: orders are dealt round robin, what belongs to an order
    follows it, and the next window starts when the one before is answered, so that only commands which do
    not touch each other are under way together.
    """
    if len(carriers) == 1:
        for batch in _batches(instructions, BATCH):
            await carriers[0].send(batch)
        await carriers[0].drained()
        return
    homes = deal(instructions, len(carriers))
    for window in windows(instructions, BATCH):
        parts: defaultdict[int, list[Instruction]] = defaultdict(list)
        for step in window:
            parts[homes[step.order]].append(step)
        for index, part in parts.items():
            await carriers[index].send(part)
        for index in parts:
            await carriers[index].drained()


def deal(instructions: Sequence[Instruction], engines: int) -> dict[str, int]:
    """Which engine (from 0) each order goes to: round robin in the order of arrival."""
    placed = (step.order for step in instructions if isinstance(step, Place))
    return {order: index % engines for index, order in enumerate(placed)}


def _batches(instructions: Sequence[Instruction], size: int) -> Iterator[list[Instruction]]:
    steps = iter(instructions)
    while batch := list(islice(steps, size)):
        yield batch


async def _settle(carriers: Sequence[Carrier], exchange: Any) -> tuple[list[pb.Fill], bool]:
    """All fills, once both sides of every trade are there and the books are uncrossed, or the time is up."""
    deadline = time.monotonic() + _SETTLE_DEADLINE_S
    while True:
        fills = [fill for carrier in carriers for fill in await carrier.fills()]
        request = pb.GetConsolidatedBookRequest(symbol=SYMBOL, depth=1)
        book = await exchange.GetConsolidatedBook(request, timeout=_CALL_DEADLINE_S)
        crossed = bool(book.bids and book.asks and book.bids[0].price >= book.asks[0].price)
        if (trades_of(fills)[1] == 0 and not crossed) or time.monotonic() > deadline:
            return fills, crossed
        await asyncio.sleep(_SETTLE_POLL_S)


def _named(counts: Counter[int], words: Any, prefix: str) -> Counter[str]:
    return Counter(
        {words.Name(number).removeprefix(prefix).lower(): count for number, count in counts.items()}
    )


def _translation_line(translation: Translation, instructions: Sequence[Instruction], trades: int) -> str:
    placed = sum(isinstance(step, Place) for step in instructions)
    return (
        f"{counted(len(instructions), 'command')} ({counted(placed, 'order')}) of"
        f" {len(translation.instructions)}, {trades} trades in the capture;"
        f" left out: {len(translation.ghosts)} ghosts and"
        f" {len(translation.outside_limits)} orders below one tick or above the largest quantity,"
        " none of which traded"
    )


def _resting_line(resting: int) -> str:
    return (
        f"The book of {SYMBOL} is not empty: {counted(resting, 'order')} of others in it. What trades with"
        " these has one side only here, so trades of the capture may be missed and extra ones made with"
        " nothing wrong in the market. For a comparison that counts leave out --exchange."
    )


def _progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )
