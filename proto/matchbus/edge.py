"""What the gRPC edges of the exchange and of the engines do alike: limits, health, tokens, refusals.

Not here: what any call means, certificates. Imports nothing of ours but `matchbus.tls` and the contract.
"""

import asyncio
import errno
import functools
import hashlib
import logging
import socket
import traceback
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.rpc import (  # type: ignore[import-untyped]  # generated, ships no types
    code_pb2,
    error_details_pb2,
    status_pb2,
)
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the stubs lack it
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from matchbus.tls import ServerFiles, server_credentials
from matchbus.v1 import matchbus_pb2

Context = grpc.aio.ServicerContext[Any, Any]

MAX_CONCURRENT_RPCS: Final = 2_000
MAX_CONCURRENT_STREAMS: Final = MAX_CONCURRENT_RPCS
"""Calls at once on one connection. gRPC counts some that have ended, and resets what comes beyond."""

MAX_PENDING_RPCS: Final = 10_000
"""Calls that came and were not accepted yet. gRPC ends what comes beyond as CANCELLED; by default it begins
with that at a thousand, which a few clients can send at once."""

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""Room for a batch of 10,000 commands and its answers; it is also what clients take by default."""

MAX_REPLY_BYTES: Final = 64 * 1024 * 1024
"""Room for all open orders of a client, or a very deep book; a client has to say that it takes so much."""

HANDSHAKE_TIMEOUT_MS: Final = 5_000
"""How long a new connection may take to start speaking HTTP/2; gRPC itself would wait two minutes."""

STOP_GRACE_S: Final = 0.5
"""How long calls under way may go on when a process ends."""

SERVER_OPTIONS: Final = (
    ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
    ("grpc.server.max_pending_requests", MAX_PENDING_RPCS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_RPCS),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_REPLY_BYTES),
    ("grpc.max_metadata_size", 4 * 1024),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),  # clients ask every second: is it frozen?
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
    ("grpc.max_connection_idle_ms", 300_000),  # a connection without calls; clients come back by themselves
    # What a stalled reader can make the server hold, besides its own bounded batch.
    ("grpc.http2.write_buffer_size", 64 * 1024),
    ("grpc.so_reuseport", 0),  # two servers must not share a port silently
)

RECOVERING_ROLE: Final = "matchbus.v1/recovering"
"""What a process is for the health service while it reads what is stored, which may take minutes."""

STANDBY_ROLE: Final = "matchbus.v1.MatchingEngine/standby"
"""What an engine is for the health service while it follows another's journal."""

_BEARER: Final = "bearer "
_GRPC_LOG: Final = logging.getLogger("grpc._cython.cygrpc")


class CannotListen(OSError):
    """The address cannot be listened on; the text says which and why."""


class Door(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # it has none
    """The calls of one service: refused until `open_to` names who answers them, and after `shut`.

    A process that stands by has to say so to those who call it, before it has anything that could answer.
    """

    def __init__(self, service: str, refusal: str) -> None:
        self._prefix = f"/{service}/"
        self._refusal = refusal
        self._why: Callable[[], str] = lambda: ""
        self._methods: dict[str, Any] = {}

    def open_to(self, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        """Let a servicer answer; `add_to_server` is the generated function for it."""
        add_to_server(servicer, self)

    def shut(self, refusal: str, why: Callable[[], str] = lambda: "") -> None:
        """Refuse new calls with this text and what `why` says when they come; those under way go on."""
        self._refusal, self._why = refusal, why
        self._methods = {}

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Take the place of a server for the generated code."""
        self._methods = {f"/{service}/{name}": _letting_go(handler) for name, handler in handlers.items()}

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        """Take the place of a server for the generated code, which gives the handlers in this way too."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Find what answers a call; None for a call of another service."""
        if self._methods or not details.method.startswith(self._prefix):
            return self._methods.get(details.method)
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    async def _refuse(self, requests: Any, context: Context) -> None:
        del requests
        why = self._why()
        await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._refusal}: {why}" if why else self._refusal)


def _letting_go(handler: Any) -> Any:
    """A method whose calls let go of all they held when they fail.

    gRPC leaves every call that is refused or hung up as a reference cycle with the frames of its handler, and
    so with a request of up to 4 MiB, for a collector that is seldom at work.
    """
    kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
    [(kind, act)] = [(kind, act) for kind in kinds if (act := getattr(handler, kind)) is not None]

    @functools.wraps(act)
    async def call(request: Any, context: Context) -> Any:
        try:
            return await act(request, context)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            del request
            raise

    return handler._replace(**{kind: call})


class _KnownMethods(cygrpc.AioServer):  # type: ignore[misc]  # likewise
    """The part of gRPC's server that takes calls; this one takes only calls of registered methods.

    gRPC decodes the name of any other method where a failure ends all taking of calls: a name that is no
    text, which anybody may send, would leave the process deaf.
    """

    async def _request_call(self) -> NoReturn:
        """Refuse every call of a method that nobody registered; gRPC waits for one to answer, in vain."""
        loop = asyncio.get_running_loop()
        refusals: set[asyncio.Task[None]] = set()
        while True:
            call = await super()._request_call()
            context = cygrpc._ServicerContext(call, None, None, loop)  # noqa: SLF001 -- gRPC has no public way
            refusal = context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
            ending = loop.create_task(
                cygrpc._schedule_rpc_coro(refusal, call, loop, "unknown")  # noqa: SLF001 -- likewise
            )
            refusals.add(ending)
            ending.add_done_callback(refusals.discard)
            del call, context, refusal, ending  # else they would be held until the next one comes


def _make_server() -> grpc.aio.Server:
    # gRPC lets nobody choose the class of that part.
    usual, cygrpc.AioServer = cygrpc.AioServer, _KnownMethods
    try:
        return grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS)
    finally:
        cygrpc.AioServer = usual


class Edge:
    """One gRPC server with health and reflection: NOT_SERVING until `set_serving` says otherwise."""

    def __init__(self, service: str) -> None:
        _GRPC_LOG.addFilter(_is_ours)
        self.server = _make_server()
        for name in (service, health.SERVICE_NAME):
            methods = matchbus_pb2.DESCRIPTOR.pool.FindServiceByName(name).methods_by_name
            # Who answers them, doors say.
            self.server.add_registered_method_handlers(  # type: ignore[attr-defined]  # the stubs lack it
                name, dict.fromkeys(methods)
            )
        self._services = ("", service)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs lack it
        door = Door(health.SERVICE_NAME, "")
        door.open_to(health_pb2_grpc.add_HealthServicer_to_server, self._health)
        self.server.add_generic_rpc_handlers((door,))
        reflection.enable_server_reflection(
            (service, health.SERVICE_NAME, reflection.SERVICE_NAME), self.server
        )

    def bind(self, listen: str, tls: ServerFiles | None = None) -> str:
        """Take the address; returns it with the port that was taken. Raises CannotListen, TlsRefused."""
        _refuse_unusable(listen)
        try:
            if tls is None:
                port = self.server.add_insecure_port(listen)
            else:
                port = self.server.add_secure_port(listen, server_credentials(tls))
        except RuntimeError as error:
            raise CannotListen(f"cannot listen on {listen}: {error}") from error
        return f"{listen.rpartition(':')[0]}:{port}"

    async def start(self) -> None:
        """Answer calls at the address taken."""
        await self.set_serving(serving=False)
        await self.server.start()

    async def set_serving(self, *, serving: bool) -> None:
        """Say by the health service whether calls are worth making."""
        states = health_pb2.HealthCheckResponse
        for service in self._services:
            await self._health.set(service, states.SERVING if serving else states.NOT_SERVING)

    async def set_role(self, name: str, *, held: bool) -> None:
        """Say by the health service whether the process has a role, under that role's name."""
        states = health_pb2.HealthCheckResponse
        await self._health.set(name, states.SERVING if held else states.NOT_SERVING)

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Refuse new calls and give those under way some time."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a failure that gRPC logs is a fault of ours: what is no message or no text is the caller's."""
    return record.exc_info is None or not isinstance(record.exc_info[1], DecodeError | UnicodeDecodeError)


def _refuse_unusable(listen: str) -> None:
    """Try the address out, because gRPC tells the reason only in lines of its own on the terminal."""
    try:
        host, port = host_and_port_of(listen)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # Connections of a process that just ended may linger on its port; only a listener is in the way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        why = "another process uses it" if error.errno == errno.EADDRINUSE else error.strerror
        raise CannotListen(f"cannot listen on {listen}: {why}") from error
    except (ValueError, OverflowError) as error:
        raise CannotListen(f"cannot listen on {listen}: it must be HOST:PORT") from error


def host_and_port_of(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, without the brackets of an IPv6 address. Raises ValueError."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def bearer_token(context: Context) -> str:
    """The token in the metadata `authorization: Bearer <token>`; empty when there is none."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            text = str(value)
            return text[len(_BEARER) :].strip() if text[: len(_BEARER)].lower() == _BEARER else ""
    return ""


def token_key(token: str) -> str:
    """Under which key a token's session is stored: the token itself is stored nowhere."""
    return hashlib.sha256(token.encode()).hexdigest()


async def require_token(context: Context) -> str:
    """The token that the call carries; ends the call when it carries none."""
    token = bearer_token(context)
    if not token:
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED,
            "this call needs the metadata `authorization: Bearer <token>`, from RegisterClient",
        )
    return token


async def refuse_token(context: Context) -> NoReturn:
    """End a call whose token nobody has, or which has ended."""
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown or ended token; register again")


async def refuse_token_ended_at(context: Context, ended: datetime, now: datetime) -> NoReturn:
    """End a call whose token has ended by our clock. It is another's that set its end, so both are told."""
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        f"the token ended at {ended:%Y-%m-%d %H:%M:%S} UTC, and it is {now:%Y-%m-%d %H:%M:%S} here; register"
        " again, and if that token has ended too, set the clocks of exchange and engine right",
    )


async def abort_bad_request(context: Context, field: str, description: str) -> NoReturn:
    """End a call that is no request at all, naming the field (google.rpc.BadRequest)."""
    bad_request = error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field=field, description=description)]
    )
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=f"{field}: {description}")
    status.details.add().Pack(bad_request)
    rich = rpc_status.to_status(status)
    await context.abort(rich.code, rich.details, rich.trailing_metadata)
