"""Who we are to the venue, and how every call survives its failures: registration, channels, retries.

The rules of a retry are in `Retry`, the same for order entry, fills and single calls:

    INVALID_ARGUMENT and such        raise RequestInvalid / OrderNotFound: again would not help
    DATA_LOSS                        raise DataLost: the venue knows that it cannot tell
    PERMISSION_DENIED                raise AuthenticationFailed
    UNAUTHENTICATED                  register again until there is a new token, then give the engine a second
                                     to learn it
    FAILED_PRECONDITION              wrong engine: register again to learn the right one
    UNAVAILABLE from the engine      ask the exchange where the home engine is now: another process may have
                                     taken over; go there at once, or back off a little and look again;
                                     while the exchange is away too, try the engine's processes in turn
    everything else                  back off with jitter and try again

From the second failure in a row on, an exchange that does not know the home engine, or knows no ListEngines,
is registered with again instead; so it is after INTERNAL, behind which gRPC may hide a refusal. Registering
mends nothing else, and costs the exchange a slow hash each time.
"""

import asyncio
import logging
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from matchbus import tls
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc

from client.errors import (
    AuthenticationFailed,
    ClientClosed,
    DataLost,
    OrderNotFound,
    RequestInvalid,
    Unavailable,
    UnknownSymbol,
)
from client.units import Instrument, instrument

_log: Final = logging.getLogger(__name__)

MAX_MESSAGE_BYTES: Final = 4 * 2**20
MAX_REPLY_BYTES: Final = 64 * 2**20
"""A client may have more open orders, and a book more levels, than 4 MiB hold."""

DEFAULT_DEADLINE_S: Final = 30.0
"""How long a call may take with all its attempts, where its user did not say."""

_LONGEST_CALL_S: Final = 86_400.0
"""What one attempt is given at most: gRPC takes a much larger number for none at all."""

TELLING_S: Final = 5.0
"""An attempt that had no answer for so long tells more than how those before it failed."""

SEARCH_TIMEOUT_S: Final = 1.0
"""How long the exchange has to say where an engine is."""

TOKEN_GRACE_S: Final = 1.0
"""How long an engine may refuse a token that the exchange has just given out."""

_FIRST_BACKOFF_S: Final = 0.05
_MAX_BACKOFF_S: Final = 1.0
_MAX_SEARCH_S: Final = 0.2
"""Longest pause while a standby may be taking over: that needs about a second, and asking costs little."""

_SEARCHES: Final = 20
"""Failures in a row, some three seconds, after which it is no take-over: very many clients may be waiting."""

_FAILURES_BEFORE_REGISTRATION: Final = 2

_LONG_LIFE_S: Final = 6.0
"""A stream that lived longer was not refused: an engine that cannot check a token says so after 5 s."""

_SHORT_LIFE_S: Final = 1.5
"""A stream that lived longer had reached an engine: a connection is given up after 1 s."""

_MOST_SHORT_LIVES: Final = 3
"""This many streams in a row may live less than a long life, bring nothing, and count as having worked."""

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

_USELESS_TO_REPEAT: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.DATA_LOSS,
    }
)

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

_MAX_PORT: Final = 65_535

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
        """The link to our home engine, as the last registration named it."""
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
                        raise _final(error) from error
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
                    raise _final(error) from error
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
                return error.code() is not grpc.StatusCode.UNIMPLEMENTED
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


class Retry:
    """The attempts of one operation: `failed` returns when the next may be made, or raises why not.

    The deadline counts from the beginning or the last `progressed`. One `at_exchange` says nothing about the
    home engine when it fails.
    """

    def __init__(self, session: Session, deadline_s: float, *, at_exchange: bool = False) -> None:
        self._session = session
        self._at_exchange = at_exchange
        self._deadline_s = deadline_s
        self._failures = 0
        self._short_lives = 0
        self._token_renewed_at: float | None = None
        self._last_failure = ""
        self._failed_at = asyncio.get_running_loop().time()
        self._deadline = self._failed_at + deadline_s

    @property
    def remaining_s(self) -> float:
        """What is left until the deadline, in seconds."""
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    def progressed(self) -> None:
        """The venue answered, or nobody waits any more: start from the beginning at the next failure."""
        self._failures = 0
        self._token_renewed_at = None
        self._last_failure = ""
        self._deadline = asyncio.get_running_loop().time() + self._deadline_s

    def late(self) -> Unavailable:
        """What to raise at the deadline."""
        why = f", last failure: {self._last_failure}" if self._last_failure else ""
        return Unavailable(f"no answer within {self._session.deadline_s:g} s{why}")

    def stream_ended(self, lived_s: float, *, brought: bool) -> None:
        """A stream is over: one that had worked leaves the whole deadline for what is tried after it.

        `brought` tells whether it had a message. One that had none may have been refused all the time: how
        long it lived tells most, and the first attempt had nothing before it that could be overrun.
        """
        if brought or lived_s > _LONG_LIFE_S:
            self._short_lives = 0
        elif self._short_lives < _MOST_SHORT_LIVES and (lived_s > _SHORT_LIFE_S or not self._failures):
            self._short_lives += 1
        else:
            return
        self.progressed()

    async def failed(self, error: grpc.aio.AioRpcError | None, generation: int) -> None:
        """Wait out a failed attempt that was made with registration `generation`.

        `error` is None for a stream that ended without saying why. Raises `RequestInvalid`,
        `OrderNotFound`, `AuthenticationFailed`, `DataLost`, or `Unavailable` at the deadline.
        """
        code = grpc.StatusCode.UNAVAILABLE if error is None else error.code()
        if error is not None and (final := self._hopeless(error)) is not None:
            raise final from error
        self._failures += 1
        away = code is grpc.StatusCode.UNAVAILABLE
        now = asyncio.get_running_loop().time()
        lasted_s, self._failed_at = now - self._failed_at, now
        # An attempt that the deadline cuts short does not say why those before it failed.
        cut_short = (
            code is grpc.StatusCode.DEADLINE_EXCEEDED
            and self.remaining_s < _FIRST_BACKOFF_S
            and lasted_s < TELLING_S
        )
        if not (cut_short and self._last_failure):
            self._last_failure = "the stream ended" if error is None else f"{code.name}: {error.details()}"
        try:
            async with asyncio.timeout(self.remaining_s):  # the exchange may be frozen too
                registered = self._session.generation and await self._look_for_cause(code, generation)
        except TimeoutError:
            raise self.late() from error
        moved = self._session.generation != generation and not self._session.is_guessing
        if moved and (self._failures == 1 or (away and not registered)):
            return
        searching = away and self._session.generation and self._failures <= _SEARCHES
        longest_s = _MAX_SEARCH_S if searching else _MAX_BACKOFF_S
        delay_s = min(longest_s, _FIRST_BACKOFF_S * 2 ** min(self._failures - 1, 10))
        delay_s *= random.uniform(0.5, 1.0)  # noqa: S311 -- spreads clients out, no secret
        if delay_s >= self.remaining_s:
            raise self.late() from error
        await asyncio.sleep(delay_s)

    async def _look_for_cause(self, code: grpc.StatusCode, generation: int) -> bool:
        """Ask the exchange for news that may explain this failure; whether we registered."""
        session, often = self._session, self._failures >= _FAILURES_BEFORE_REGISTRATION
        match code:
            case grpc.StatusCode.UNAUTHENTICATED:
                helps = self._token_renewed_at is None
            case grpc.StatusCode.UNAVAILABLE if not self._at_exchange:
                found = await session.find_home(generation)
                helps = often and not found
            case grpc.StatusCode.FAILED_PRECONDITION:
                helps = True
            case grpc.StatusCode.INTERNAL:
                helps = often
            case _:
                helps = False
        if not helps:  # to register again
            return False
        await session.register_again(generation)
        if code is grpc.StatusCode.UNAUTHENTICATED and session.token_generation > generation:
            self._token_renewed_at = asyncio.get_running_loop().time()
        return True

    def _hopeless(self, error: grpc.aio.AioRpcError) -> Exception | None:
        """What to raise for a failure that another attempt cannot mend."""
        code = error.code()
        if code in _USELESS_TO_REPEAT:
            return _final(error)
        if code is grpc.StatusCode.UNAUTHENTICATED and self._token_renewed_at is not None:
            grace_over = asyncio.get_running_loop().time() - self._token_renewed_at > TOKEN_GRACE_S
            return _final(error) if grace_over else None
        return None


def check_address(address: str) -> None:
    """Raise `ValueError` for anything but HOST:PORT: gRPC would look for it until the deadline."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[2]) <= _MAX_PORT:
        raise ValueError(f"{address!r:.60} is no address: write it like 127.0.0.1:50050 or [::1]:50050")


def _final(error: grpc.aio.AioRpcError) -> Exception:
    """The exception that says what this failure means to a user."""
    code, text = error.code(), error.details() or error.code().name
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return AuthenticationFailed(text)
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return AuthenticationFailed(f"{text}: use that secret, or another client id")
    if code is grpc.StatusCode.NOT_FOUND:
        return OrderNotFound(text)
    if code is grpc.StatusCode.DATA_LOSS:
        return DataLost(text)
    return RequestInvalid(text)
