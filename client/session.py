"""Who we are to the venue and where we are at home: registration, channels, single calls.

How each survives its failures is in `Retry`.
"""

import asyncio
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from matchbus import tls
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc

from bus.addresses import MAX_PORT
from client.errors import ClientClosed, UnknownSymbol
from client.retry import Retry, final
from client.units import Instrument, instrument

_log: Final = logging.getLogger(__name__)

MAX_MESSAGE_BYTES: Final = 4 * 2**20
MAX_REPLY_BYTES: Final = 64 * 2**20
"""A client may have more open orders, and a book more levels, than 4 MiB hold."""

DEFAULT_DEADLINE_S: Final = 30.0
"""How long a call may take with all its attempts, where its user did not say."""

_LONGEST_CALL_S: Final = 86_400.0
"""What one attempt is given at most: gRPC takes a much larger number for none at all."""

SEARCH_TIMEOUT_S: Final = 1.0
"""How long the exchange has to say where an engine is."""

_CHANNEL_OPTIONS: Final = (
    # A frozen engine is noticed in 2.5 s; the engines let clients ask this often (matchbus.edge).
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 1_500),
    ("grpc.http2.ping_timeout_ms", 1_500),  # of other pings, behind which those of keepalive wait
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),  # a venue is reached directly, whatever the browser uses
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
)

_OWN_CONNECTION: Final = ("grpc.use_local_subchannel_pool", 1)
"""Each client has one to its engine: sharing it, many would run out of calls (matchbus.edge)."""

_NO_LONGER_KNOWN: Final = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""With these the exchange says that it does not know us any more."""

_ADDRESS: Final = re.compile(
    r"(\[(?=[^\]]*:[^\]]*:)[0-9a-f:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})", re.ASCII | re.IGNORECASE
)
"""A name or an IPv4 address, or an IPv6 address in brackets; then the port."""

Metadata = tuple[tuple[str, str], ...]


class Link:
    """A channel to one address with the stubs of both services; `order_entry` takes serialised requests."""

    def __init__(
        self, address: str, credentials: grpc.ChannelCredentials | None, *options: tuple[str, int]
    ) -> None:
        self.address = address
        options = (*_CHANNEL_OPTIONS, *options)
        self.channel = (
            grpc.aio.insecure_channel(address, options=options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=options)
        )
        self.exchange: Any = matchbus_pb2_grpc.ExchangeStub(self.channel)
        self.engine: Any = matchbus_pb2_grpc.MatchingEngineStub(self.channel)
        service = pb.DESCRIPTOR.services_by_name["MatchingEngine"].full_name
        self.order_entry: Any = self.channel.stream_stream(
            f"/{service}/OrderEntry",
            request_serializer=None,
            response_deserializer=pb.OrderEntryResponse.FromString,
        )


class Session:
    """One client's registration: token, home engine, instruments.

    `generation` counts registrations and moves of the home engine; `token_generation` is what it was after
    the last registration. `is_guessing`: the last move went to another process of our engine because the
    exchange, which would know, did not answer.
    """

    def __init__(
        self,
        exchange_address: str,
        request: pb.RegisterClientRequest,
        *,
        deadline_s: float,
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        check_address(exchange_address)
        if not deadline_s > 0:
            raise ValueError(f"deadline_s {deadline_s} must be more than 0 seconds")
        self.deadline_s = deadline_s
        self.instruments: dict[str, Instrument] = {}
        self.engine = 0
        self.generation = 0
        self.token_generation = 0
        self.metadata: Metadata = ()
        self.closed = False
        self.is_guessing = False
        self._request = request
        self._credentials = tls.client_credentials() if credentials is None else credentials
        self._exchange_address = exchange_address
        self._engine_address = ""
        self._processes: list[str] = []  # addresses of our engine's processes: who reigns, who stands by
        # Kept until the end: closing a channel would cancel the calls that other tasks still have on it.
        self._links: dict[str, Link] = {}
        self._registering = asyncio.Lock()
        self._searching = asyncio.Lock()
        self._searches = 0  # that are over

    @property
    def home(self) -> Link:
        """The link to our home engine, as far as we know."""
        return self._link(self._engine_address)

    async def open(self) -> None:
        """Register for the first time.

        Raises `AuthenticationFailed`, `RequestInvalid`, `DataLost` or `Unavailable`.
        """
        retry = Retry(self, self.deadline_s)
        with self.telling_of_close():
            while not self.generation:
                try:
                    await self._register(retry.remaining_s)
                except grpc.aio.AioRpcError as error:
                    if error.code() in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.FAILED_PRECONDITION}:
                        raise final(error) from error
                    await retry.failed(error, self.generation)
        self.check_open()  # the last answer may have come together with `close`

    async def close(self) -> None:
        """Cancel what is under way and close all channels."""
        self.closed = True
        for link in self._links.values():
            await link.channel.close(None)

    async def register_again(self, generation: int) -> None:
        """Renew token and home engine, unless another task has done so since `generation`.

        An exchange that does not answer changes nothing: the engine may well be there without it.
        """
        async with self._registering:
            if self.generation != generation:
                return
            try:
                await self._register(self.deadline_s)
            except grpc.aio.AioRpcError as error:
                if error.code() in _NO_LONGER_KNOWN:
                    raise final(error) from error
                _log.info("registration failed: %s %s", error.code(), error.details())

    async def find_home(self, generation: int) -> bool:
        """Learn where our home engine is now, unless another task has done so since `generation`.

        While the exchange does not answer, the engine's processes are tried in turn. False when it answers us
        and does not know: then registering again may help.
        """
        searches = self._searches
        async with self._searching:
            # One search is for all who wait: each with its own, the last of many would wait for very long.
            if self.generation != generation or self._searches != searches:
                return True
            try:
                home = await self._search()
            except grpc.aio.AioRpcError as error:
                _log.info("the exchange does not say where E%d is: %s", self.engine, error.code())
                self._searches += 1
                if self.generation == generation:  # else a registration has told meanwhile
                    self._guess()
                return True
            self._searches += 1
            if home:
                self.is_guessing = False
                self._move(home)
            return bool(home)

    async def _search(self) -> str:
        """Ask the exchange for our engine's processes; the address of the one that reigns, or nothing."""
        stub = self._link(self._exchange_address).exchange
        reply = await stub.ListEngines(pb.ListEnginesRequest(), timeout=SEARCH_TIMEOUT_S)
        ours = [engine for engine in reply.engines if engine.engine == self.engine]
        self._processes = [engine.address for engine in ours]
        return next((engine.address for engine in ours if engine.role != pb.ENGINE_ROLE_STANDBY), "")

    def _guess(self) -> None:
        """Move on to the next process of our engine; one that only stands by says so."""
        others = [address for address in self._processes if address != self._engine_address]
        if others:
            self._processes = [*others, self._engine_address]  # whose turn it was comes last
            self.is_guessing = True
            self._move(others[0])

    def _move(self, address: str) -> None:
        if address != self._engine_address:
            _log.info("engine %d is %s at %s", self.engine, "perhaps" if self.is_guessing else "now", address)
            self._engine_address = address
            self.generation += 1

    async def ask_exchange(self, method: str, request: Message) -> Any:
        """The exchange's answer to a single call, over failures."""
        self.check_open()
        return await self._ask(method, request, at_exchange=True)

    async def ask_publicly(self, method: str, request: Message) -> Any:
        """The exchange's answer to a single call that anyone may make, registered or not, over failures."""
        return await self._ask(method, request, at_exchange=True)

    async def ask_engine(self, method: str, request: Message, deadline: float | None = None) -> Any:
        """The home engine's answer to a single call, over failures, until `deadline` if one is given."""
        self.check_open()
        return await self._ask(method, request, at_exchange=False, deadline=deadline)

    async def instrument(self, symbol: str) -> Instrument:
        """The instrument of a symbol, also of one listed since registration. Raises `UnknownSymbol`."""
        if symbol not in self.instruments:
            await self.refresh_instruments()
        if symbol not in self.instruments:
            raise UnknownSymbol(symbol)
        return self.instruments[symbol]

    async def refresh_instruments(self) -> None:
        """Bring `instruments` up to date."""
        reply = await self.ask_publicly("ListInstruments", pb.ListInstrumentsRequest())
        self._take_instruments(reply.instruments)

    def check_open(self) -> None:
        """Raise `ClientClosed` unless the client is open."""
        if self.closed or not self.generation:
            raise ClientClosed("the client is not open")

    async def _ask(
        self, method: str, request: Message, *, at_exchange: bool, deadline: float | None = None
    ) -> Any:
        left_s = self.deadline_s if deadline is None else deadline - asyncio.get_running_loop().time()
        retry = Retry(self, left_s, at_exchange=at_exchange)
        with self.telling_of_close():
            while True:
                generation = self.generation
                stub = self._link(self._exchange_address).exchange if at_exchange else self.home.engine
                try:
                    return await getattr(stub, method)(
                        request, metadata=self.metadata, timeout=min(retry.remaining_s, _LONGEST_CALL_S)
                    )
                except grpc.aio.AioRpcError as error:
                    await retry.failed(error, generation)

    @contextmanager
    def telling_of_close(self) -> Iterator[None]:
        """Around all that waits for the venue: what `close` cancelled raises `ClientClosed`.

        A task that its own user cancelled ends as cancelled.
        """
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.closed and (task is None or not task.cancelling()):
                raise ClientClosed("the client was closed while the call waited") from None
            raise

    async def _register(self, timeout_s: float) -> None:
        stub = self._link(self._exchange_address).exchange
        # The secret waits its turn to be hashed; whoever gives up early and asks again begins to wait anew.
        reply = await stub.RegisterClient(self._request, timeout=min(timeout_s, _LONGEST_CALL_S))
        if (reply.engine, reply.engine_address) != (self.engine, self._engine_address):
            _log.info("home is engine %d at %s", reply.engine, reply.engine_address)
        self.engine = reply.engine
        self._engine_address = reply.engine_address
        self.is_guessing = False
        self.metadata = (("authorization", f"Bearer {reply.token}"),)
        self._take_instruments(reply.instruments)
        self.generation += 1
        self.token_generation = self.generation
        with suppress(grpc.aio.AioRpcError):  # only needed when engine and exchange are away at once
            await self._search()

    def _take_instruments(self, messages: list[pb.Instrument]) -> None:
        self.instruments.update({message.symbol: instrument(message) for message in messages})

    def _link(self, address: str) -> Link:
        if self.closed:
            raise ClientClosed("the client is closed")
        link = self._links.get(address)
        if link is None:
            own = () if address == self._exchange_address else (_OWN_CONNECTION,)
            link = self._links[address] = Link(address, self._credentials, *own)
        return link


def check_address(address: str) -> None:
    """Raise `ValueError` for anything but HOST:PORT: gRPC would look for it until the deadline."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[2]) <= MAX_PORT:
        raise ValueError(f"{address!r:.60} is no address: write it like 127.0.0.1:50050 or [::1]:50050")
