"""A real market for the system tests: `matchbus up` as a child, and traders that speak raw gRPC to it.

Nothing here uses the project's client library or launcher code: the tests know the venue from outside only.
"""

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final, Self

import grpc.aio
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc

from tests.waiting import frozen

LONG: Final = os.environ.get("MATCHBUS_LONG") == "1"
START_DEADLINE_S: Final = 40.0
STOP_DEADLINE_S: Final = 5.0
CALL_TIMEOUT_S: Final = 20.0
PASSWORD: Final = "password"
COMMAND: Final = (sys.executable, "-m", "simulation.dies_with", str(os.getpid()), "simulation.matchbus")
"""`matchbus` in a process that does not outlive the tests, whatever ends them."""
REPOSITORY: Final = Path(__file__).resolve().parents[2]

_names = itertools.count(1)


def scaled(short: int, long: int) -> int:
    """`long` with MATCHBUS_LONG=1, else `short`."""
    return long if LONG else short


def run_command(*arguments: str) -> str:
    """Run `matchbus` to its end, which must be a good one; what it printed."""
    command = [*COMMAND, *arguments]
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=CALL_TIMEOUT_S,
        check=True,
        text=True,
    ).stdout


def fresh(prefix: str) -> str:
    """A name that nobody used before in this test run."""
    return f"{prefix}{next(_names)}"


class Venue:
    """One `matchbus up`; `symbols` are listed with tick 0.01 and lot 1."""

    def __init__(
        self, directory: Path, *, engines: int, symbols: Iterable[str], options: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.engines = engines
        self.symbols = list(symbols)
        self._options = options
        self._ready_file = directory / "ready.json"
        self._process: subprocess.Popen[bytes] | None = None
        instruments = "".join(
            f'[[instrument]]\nsymbol = "{symbol}"\ntick_size = "0.01"\nlot_size = "1"\n\n'
            for symbol in self.symbols
        )
        (directory / "instruments.toml").write_text(instruments)

    @property
    def arguments(self) -> list[str]:
        """What `up` is told."""
        return [
            *("--engines", str(self.engines)),
            *("--data", str(self.directory / "data")),
            *("--instruments", str(self.directory / "instruments.toml")),
            *("--ready-file", str(self._ready_file)),
            *self._options,
        ]

    def start(self) -> Self:
        """Start and return when the ready file is there."""
        self._ready_file.unlink(missing_ok=True)
        with (self.directory / "up.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*COMMAND, "up", *self.arguments],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._ready_file.exists():
            assert self._process.poll() is None, f"up ended: {self.log()}"
            assert time.monotonic() < deadline, f"up is not ready: {self.log()}"
            time.sleep(0.02)
        return self

    def stop(self) -> tuple[int, float]:
        """SIGTERM; the exit code and the seconds it took. A venue that does not end is killed."""
        assert self._process is not None
        began = time.monotonic()
        self._process.terminate()
        try:
            code = self._process.wait(STOP_DEADLINE_S + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return code, time.monotonic() - began

    def kill_launcher(self) -> None:
        """Kill -9 `up` itself."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        """The end of what `up` printed."""
        return (self.directory / "up.log").read_text(errors="replace")[-3000:]

    @property
    def ready(self) -> dict[str, Any]:
        """The ready file as it is now."""
        document: dict[str, Any] = json.loads(self._ready_file.read_text())
        return document

    @property
    def exchange(self) -> str:
        """Address of the exchange."""
        return str(self.ready["exchange"]["address"])

    @property
    def nats_url(self) -> str:
        """Where nats-server listens."""
        return str(self.ready["nats_url"])

    def address(self, engine: int) -> str:
        """Address of an engine."""
        return str(self.ready["engines"][str(engine)]["address"])

    def engine_pid(self, engine: int) -> int:
        """Process id of an engine, as the ready file has it."""
        return int(self.ready["engines"][str(engine)]["pid"])

    def standby_pid(self, engine: int) -> int:
        """Process id of an engine's standby, as the ready file has it."""
        return int(self.ready["standbys"][str(engine)]["pid"])

    @property
    def exchange_pid(self) -> int:
        """Process id of the exchange, as the ready file has it."""
        return int(self.ready["exchange"]["pid"])

    @property
    def nats_pid(self) -> int:
        """Process id of nats-server, as the ready file has it."""
        return int(self.ready["nats_pid"])

    def kill(self, pid: int) -> None:
        """Kill -9 one process of this venue."""
        assert pid in (self.nats_pid, self.exchange_pid, *map(self.engine_pid, range(1, self.engines + 1)))
        os.kill(pid, signal.SIGKILL)

    def frozen(self, engine: int) -> AbstractAsyncContextManager[None]:
        """An engine stands still (SIGSTOP) while the body runs."""
        return frozen(self.engine_pid(engine))


class Trader:
    """One registered client: raw stubs and its token."""

    def __init__(self, name: str, secret: str, reply: pb.RegisterClientReply, channel: Any) -> None:
        self.name = name
        self.secret = secret
        self.engine = reply.engine
        self.token = reply.token
        self.metadata = (("authorization", f"Bearer {reply.token}"),)
        self.move(channel)

    def move(self, channel: Any) -> None:
        """Call the engine over this channel from now on."""
        self.channel = channel
        self.stub: Any = matchbus_pb2_grpc.MatchingEngineStub(channel)

    async def submit(self, order: pb.NewOrder, *, timeout_s: float = CALL_TIMEOUT_S) -> pb.OrderReply:
        """SubmitOrder."""
        reply: pb.OrderReply = await self.stub.SubmitOrder(order, metadata=self.metadata, timeout=timeout_s)
        return reply

    async def limit(self, symbol: str, side: int, price: int, quantity: int, **more: Any) -> pb.OrderReply:
        """A limit order under a fresh id."""
        reply: pb.OrderReply = await self.submit(limit(symbol, side, price, quantity, **more))
        return reply

    async def cancel(self, client_order_id: str = "", order_id: int = 0) -> pb.OrderReply:
        """CancelOrder."""
        request = pb.CancelOrderRequest(order_id=order_id, client_order_id=client_order_id)
        reply: pb.OrderReply = await self.stub.CancelOrder(
            request, metadata=self.metadata, timeout=CALL_TIMEOUT_S
        )
        return reply

    async def replace(
        self, price: int, quantity: int, client_order_id: str = "", order_id: int = 0
    ) -> pb.OrderReply:
        """ReplaceOrder."""
        request = pb.ReplaceOrderRequest(
            order_id=order_id, client_order_id=client_order_id, price=price, quantity=quantity
        )
        reply: pb.OrderReply = await self.stub.ReplaceOrder(
            request, metadata=self.metadata, timeout=CALL_TIMEOUT_S
        )
        return reply

    async def cancel_all(self, **fields: Any) -> int:
        """CancelAll; how many orders it cancelled."""
        request = pb.CancelAllRequest(**fields)
        reply = await self.stub.CancelAll(request, metadata=self.metadata, timeout=CALL_TIMEOUT_S)
        return int(reply.count)

    async def order(self, client_order_id: str = "", order_id: int = 0) -> pb.OrderState:
        """GetOrder."""
        request = pb.GetOrderRequest(order_id=order_id, client_order_id=client_order_id)
        reply: pb.OrderState = await self.stub.GetOrder(
            request, metadata=self.metadata, timeout=CALL_TIMEOUT_S
        )
        return reply

    async def open_orders(self, symbol: str = "") -> list[pb.OrderState]:
        """ListOpenOrders."""
        request = pb.ListOpenOrdersRequest(symbol=symbol)
        reply = await self.stub.ListOpenOrders(request, metadata=self.metadata, timeout=CALL_TIMEOUT_S)
        return list(reply.orders)

    async def fills(self, since: int = 0) -> list[pb.Fill]:
        """All fills above a sequence, up to now."""
        call = self.stub.GetFills(
            pb.GetFillsRequest(since_sequence=since), metadata=self.metadata, timeout=CALL_TIMEOUT_S
        )
        return [fill async for batch in call for fill in batch.fills]

    def follow(self, since: int = 0) -> Any:
        """A GetFills call that goes on."""
        request = pb.GetFillsRequest(since_sequence=since, follow=True)
        return self.stub.GetFills(request, metadata=self.metadata)

    async def book(self, symbol: str, *, detail: int = 1, scope: int = 1, depth: int = 0) -> pb.OrderBook:
        """GetOrderBook."""
        request = pb.GetOrderBookRequest(symbol=symbol, depth=depth, detail=detail, scope=scope)  # type: ignore[arg-type]  # enums are ints
        reply: pb.OrderBook = await self.stub.GetOrderBook(
            request, metadata=self.metadata, timeout=CALL_TIMEOUT_S
        )
        return reply

    async def enter(self, messages: Iterable[Sequence[pb.Command]]) -> list[pb.OrderReply]:
        """Everything through one OrderEntry stream; the replies in order."""

        async def requests() -> AsyncIterator[pb.OrderEntryRequest]:
            for commands in messages:
                yield pb.OrderEntryRequest(commands=commands)

        call = self.stub.OrderEntry(requests(), metadata=self.metadata, timeout=60.0)
        return [reply async for response in call for reply in response.replies]


class Floor:
    """Opens channels to a venue and registers traders; closes all at the end."""

    def __init__(self, venue: Venue, stack: AsyncExitStack) -> None:
        self.venue = venue
        self._stack = stack
        self._channels: dict[str, Any] = {}

    async def channel(self, address: str) -> Any:
        """The shared channel to an address."""
        if address not in self._channels:
            options = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))
            self._channels[address] = await self._stack.enter_async_context(
                grpc.aio.insecure_channel(address, options=options)
            )
        return self._channels[address]

    async def exchange(self) -> Any:
        """The exchange's stub."""
        return exchange_stub(await self.channel(self.venue.exchange))

    async def register(
        self, name: str, secret: str = "s3cret", engine: int = 0, password: str = PASSWORD
    ) -> pb.RegisterClientReply:
        """RegisterClient."""
        request = pb.RegisterClientRequest(
            client_id=name, password=password, secret=secret, preferred_engine=engine
        )
        reply: pb.RegisterClientReply = await (await self.exchange()).RegisterClient(
            request, timeout=CALL_TIMEOUT_S
        )
        return reply

    async def trader(self, engine: int = 0, name: str = "") -> Trader:
        """A client at home on this engine."""
        name = name or fresh("trader")
        reply = await self.register(name, engine=engine)
        return Trader(name, "s3cret", reply, await self.channel(reply.engine_address))

    async def follow(self, traders: Iterable[Trader]) -> None:
        """Move each trader to where the exchange says that its engine is, until cancelled."""
        exchange = await self.exchange()
        while True:
            reply = await exchange.ListEngines(pb.ListEnginesRequest(), timeout=CALL_TIMEOUT_S)
            for shown in reply.engines:
                if shown.role == pb.ENGINE_ROLE_PRIMARY:
                    channel = await self.channel(shown.address)
                    for trader in traders:
                        if trader.engine == shown.engine and trader.channel is not channel:
                            trader.move(channel)
            await asyncio.sleep(0.05)

    async def positions(self, trader: Trader) -> dict[str, int]:
        """A trader's positions by symbol, those that are not flat."""
        reply = await (await self.exchange()).GetPositions(
            pb.GetPositionsRequest(), metadata=trader.metadata, timeout=CALL_TIMEOUT_S
        )
        return {position.symbol: position.position for position in reply.positions if position.position}


@asynccontextmanager
async def floor(venue: Venue) -> AsyncIterator[Floor]:
    """The trading floor of a venue."""
    async with AsyncExitStack() as stack:
        yield Floor(venue, stack)


def exchange_stub(channel: Any) -> Any:
    """The stub of the Exchange service."""
    return matchbus_pb2_grpc.ExchangeStub(channel)


def expect_status(error: grpc.aio.AioRpcError, *expected: grpc.StatusCode) -> None:
    """Fail with the whole error when a call ended with another status than one of these."""
    assert error.code() in expected, error


def show(text: str) -> None:
    """A measurement for whoever runs pytest with -s."""
    sys.stdout.write(f"\n{text}\n")


def limit(symbol: str, side: int, price: int, quantity: int, **more: Any) -> pb.NewOrder:
    """A limit order under a fresh id unless one is given."""
    more.setdefault("client_order_id", fresh("o"))
    return pb.NewOrder(symbol=symbol, side=side, type=1, price=price, quantity=quantity, **more)  # type: ignore[arg-type]  # enums are ints


def free_port() -> int:
    """A port that nobody listens on just now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def first_answer(reply: pb.OrderReply) -> pb.OrderReply:
    """The reply without its duplicate mark."""
    copy = pb.OrderReply()
    copy.CopyFrom(reply)
    copy.duplicate = False
    return copy


async def eventually(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The first true result of an async condition; fails naming `what` after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = await condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.02)


def own_bytes(pid: int) -> int:
    """What the process has in memory that is of no file: those pages come and go as the kernel likes."""
    _, resident, of_files, *_ = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    return (int(resident) - int(of_files)) * os.sysconf("SC_PAGE_SIZE")


def levels(book: pb.OrderBook) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """(price, quantity, order count) of both sides."""
    bids = [(level.price, level.quantity, level.order_count) for level in book.bids]
    return bids, [(level.price, level.quantity, level.order_count) for level in book.asks]
