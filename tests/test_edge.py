"""What the gRPC edges of exchange and engines do alike."""

import asyncio
import gc
import socket
import struct
import weakref
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from matchbus.edge import (
    HANDSHAKE_TIMEOUT_MS,
    MAX_MESSAGE_BYTES,
    SERVER_OPTIONS,
    CannotListen,
    Context,
    Door,
    Edge,
    abort_bad_request,
    bearer_token,
    token_key,
)
from matchbus.v1 import matchbus_pb2, matchbus_pb2_grpc

from client.session import Link
from tests.bad_request import violations
from tests.waiting import until

SERVICE = "matchbus.v1.Exchange"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Echo(matchbus_pb2_grpc.ExchangeServicer):
    """Tells what the edge makes of a call."""

    async def RegisterClient(  # noqa: N802 -- the contract's name
        self, request: matchbus_pb2.RegisterClientRequest, context: Context
    ) -> matchbus_pb2.RegisterClientReply:
        """The token that the call carries; a bad request for the client id `bad`."""
        if request.client_id == "bad":
            await abort_bad_request(context, "client_id", "must be good")
        return matchbus_pb2.RegisterClientReply(token=bearer_token(context))


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    """An edge with one service, not started."""
    edge = Edge(SERVICE)
    door = Door(SERVICE, "not yet")
    edge.server.add_generic_rpc_handlers((door,))
    door.open_to(matchbus_pb2_grpc.add_ExchangeServicer_to_server, Echo())
    yield edge
    await edge.stop(0)


@pytest.fixture
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the started edge."""
    address = edge.bind("127.0.0.1:0")
    await edge.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel


async def registered(
    channel: grpc.aio.Channel, client_id: str = "ann", metadata: tuple[tuple[str, str], ...] = ()
) -> str:
    """Call RegisterClient; the token in the reply."""
    stub: Any = matchbus_pb2_grpc.ExchangeStub(channel)
    reply = await stub.RegisterClient(
        matchbus_pb2.RegisterClientRequest(client_id=client_id), metadata=metadata, timeout=30
    )
    return str(reply.token)


async def test_health_follows_what_the_process_says(edge: Edge, channel: grpc.aio.Channel) -> None:
    """A started edge is NOT_SERVING, as a whole and by service, until it is said to serve."""
    stub: Any = health_pb2_grpc.HealthStub(channel)

    async def states() -> list[int]:
        requests = (health_pb2.HealthCheckRequest(service=name) for name in ("", SERVICE))
        return [(await stub.Check(request, timeout=5)).status for request in requests]

    assert await states() == [NOT_SERVING] * 2
    await edge.set_serving(serving=True)
    assert await states() == [SERVING] * 2
    await edge.set_serving(serving=False)
    assert await states() == [NOT_SERVING] * 2


async def test_a_client_may_ask_every_second_whether_the_server_is_frozen(edge: Edge) -> None:
    """A stream on which nothing comes stays open while the client's keepalive asks and asks."""
    address = edge.bind("127.0.0.1:0")
    await edge.start()
    channel = Link(address, None).channel
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    watching = aiter(health_pb2_grpc.HealthStub(channel).Watch(request))
    assert (await anext(watching)).status == NOT_SERVING
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(watching), 6)  # the fourth ping used to be one too many
    await channel.close(None)


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    """A caller without the contract can find out what there is to call."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answers = [answer async for answer in call]
    listed = {service.name for service in answers[0].list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= listed


@pytest.mark.parametrize(
    ("authorization", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", ""),
        ("Bearer", ""),
        ("Bearer ", ""),
        ("", ""),
        ("abc", ""),
    ],
)
async def test_bearer_tokens(channel: grpc.aio.Channel, authorization: str, token: str) -> None:
    """A token comes from bearer metadata only."""
    assert await registered(channel, metadata=(("authorization", authorization),)) == token


async def test_no_metadata(channel: grpc.aio.Channel) -> None:
    """A call without authorization carries no token, whatever else it carries."""
    assert await registered(channel) == ""
    assert await registered(channel, metadata=(("x", "Bearer abc"),)) == ""


def test_token_keys() -> None:
    """A token is stored under its SHA-256."""
    assert token_key("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


async def test_bad_requests_name_the_field(channel: grpc.aio.Channel) -> None:
    """A bad request ends with INVALID_ARGUMENT, whose text and details name the field and the reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registered(channel, "bad")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "client_id: must be good"
    assert violations(caught.value) == [("client_id", "must be good")]


async def test_large_requests_are_refused(channel: grpc.aio.Channel) -> None:
    """A request above the limit is refused unread, and the next call is answered."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registered(channel, "x" * MAX_MESSAGE_BYTES)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await registered(channel)


@pytest.mark.parametrize(("connections", "calls"), [(1, 1_900), (6, 300)])
async def test_as_many_calls_as_are_allowed_may_come_at_once(
    edge: Edge, connections: int, calls: int
) -> None:
    """On one connection or several; left to itself gRPC ends some of them, as if somebody had hung up."""
    address = edge.bind("127.0.0.1:0")
    await edge.start()
    own = (("grpc.use_local_subchannel_pool", 1),)
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=own))
            for _ in range(connections)
        ]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        await asyncio.gather(*(registered(channel) for channel in channels for _ in range(calls)))


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("192.0.2.1:0", "Cannot assign requested address"),
        ("127.0.0.1", "must be HOST:PORT"),
        ("127.0.0.1:70000", "must be HOST:PORT"),
    ],
)
async def test_an_address_that_cannot_be_had(edge: Edge, listen: str, why: str) -> None:
    """The fault names the address and says what is wrong with it."""
    with pytest.raises(CannotListen, match=f"cannot listen on {listen}: .*{why}"):
        edge.bind(listen)


async def test_a_taken_port(edge: Edge, capfd: pytest.CaptureFixture[str]) -> None:
    """A port that another process listens on is named in the fault and nowhere else."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CannotListen, match=f"{address}: another process uses it"):
            edge.bind(address)
    assert capfd.readouterr().err == ""


async def test_a_door_refuses_until_it_is_opened_and_after_it_is_shut() -> None:
    """Unary calls and streams hear why, as UNAVAILABLE; health and other services are not its business."""
    edge = Edge(SERVICE)
    door = Door(SERVICE, "not yet")
    edge.server.add_generic_rpc_handlers((door,))
    address = edge.bind("127.0.0.1:0")
    await edge.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stream = channel.stream_stream(f"/{SERVICE}/ListEngines", None, None)
            assert await refusal(registered(channel)) == (grpc.StatusCode.UNAVAILABLE, "not yet")
            assert await refusal(anext(aiter(stream(iter([b""]))))) == (
                grpc.StatusCode.UNAVAILABLE,
                "not yet",
            )
            unknown = channel.unary_unary("/matchbus.v1.Other/Call", None, None)
            assert (await refusal(unknown(b"")))[0] is grpc.StatusCode.UNIMPLEMENTED
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
            await edge.set_role("follower", held=True)
            request = health_pb2.HealthCheckRequest(service="follower")
            assert (await health.Check(request)).status == SERVING
            await edge.set_role("follower", held=False)
            assert (await health.Check(request)).status == NOT_SERVING
            door.open_to(matchbus_pb2_grpc.add_ExchangeServicer_to_server, Echo())
            await registered(channel)
            door.shut("no more")
            assert await refusal(registered(channel)) == (grpc.StatusCode.UNAVAILABLE, "no more")
            reasons = ["the disk is full", ""]
            door.shut("wait", lambda: reasons.pop(0))
            said = [await refusal(registered(channel)) for _ in range(2)]
            assert [why for _, why in said] == ["wait: the disk is full", "wait"]
    finally:
        await edge.stop(0)


class Held:
    """What a call holds."""


class Holding(matchbus_pb2_grpc.ExchangeServicer):
    """Refuses calls of clients called `bad`, and never answers others."""

    def __init__(self) -> None:
        self.held: list[weakref.ref[Held]] = []

    async def RegisterClient(  # noqa: N802 -- the contract's name
        self, request: matchbus_pb2.RegisterClientRequest, context: Context
    ) -> matchbus_pb2.RegisterClientReply:
        """Hold something meanwhile."""
        held = Held()
        self.held.append(weakref.ref(held))
        if request.client_id == "bad":
            await abort_bad_request(context, "client_id", "must be good")
        await asyncio.Event().wait()
        raise AssertionError(held)


@pytest.mark.parametrize("client_id", ["bad", "good"], ids=["refused", "hung up"])
async def test_calls_that_fail_let_go_of_what_they_held(client_id: str) -> None:
    """At once: the collector, which would find it in the end, is switched off here."""
    edge = Edge(SERVICE)
    door, holding = Door(SERVICE, "not yet"), Holding()
    edge.server.add_generic_rpc_handlers((door,))
    door.open_to(matchbus_pb2_grpc.add_ExchangeServicer_to_server, holding)
    address = edge.bind("127.0.0.1:0")
    await edge.start()
    gc.disable()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            calls = [asyncio.create_task(registered(channel, client_id)) for _ in range(5)]
            await until(lambda: len(holding.held) == len(calls))
            for call in calls if client_id == "good" else ():
                call.cancel()
            await asyncio.wait(calls)
            await until(lambda: not any(held() for held in holding.held))
    finally:
        gc.enable()
        await edge.stop(0)


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str | None]:
    """How a call ends that must not succeed."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), refused.value.details()


async def test_who_connects_and_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such connections are closed within seconds, so they do not take the files that others need."""
    option = "grpc.server_handshake_timeout_ms"
    assert (option, HANDSHAKE_TIMEOUT_MS) in SERVER_OPTIONS
    monkeypatch.setattr("matchbus.edge.SERVER_OPTIONS", tuple((dict(SERVER_OPTIONS) | {option: 300}).items()))
    edge = Edge(SERVICE)
    reader, writer = await asyncio.open_connection(*edge.bind("127.0.0.1:0").split(":"))
    await edge.start()
    try:
        async with asyncio.timeout(2 * HANDSHAKE_TIMEOUT_MS / 1_000):
            while await reader.read(1_024):
                pass
    finally:
        writer.close()
        await edge.stop(0)


@pytest.mark.parametrize("method", [b"/matchbus.v1.Exchange/Nope", b"/matchbus.v1.Exchange/\xff", b"\xff"])
async def test_a_call_of_an_unknown_method_ends_alone(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture, method: bytes
) -> None:
    """Also one whose name is no text, and many at once: the calls after it are answered."""
    unknown: Any = channel.unary_unary(method, None, None)  # type: ignore[arg-type]  # it takes bytes, too
    for _ in range(2):
        refused = await asyncio.gather(*(refusal(unknown(b"", timeout=5)) for _ in range(20)))
        assert {code for code, _ in refused} == {grpc.StatusCode.UNIMPLEMENTED}
        assert await registered(channel, metadata=(("authorization", "Bearer abc"),)) == "abc"
    assert not caplog.records


async def test_what_is_no_message_is_nothing_to_log(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    """Anybody may send it, as often as he likes: he hears of it, our log does not."""
    call: Any = channel.unary_unary(f"/{SERVICE}/RegisterClient", None, None)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(b"\xff\xff", timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNKNOWN
    assert "Error parsing message" in str(refused.value.details())
    assert not caplog.records


async def test_nor_is_metadata_that_is_no_text(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    """The client of gRPC refuses to send it, so these are the frames of HTTP/2 themselves."""
    host, port = edge.bind("127.0.0.1:0").split(":")
    await edge.start()

    def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
        return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content

    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": f"/{SERVICE}/RegisterClient".encode(),
        b":authority": b"here",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        b"x-a": b"\xff",
    }
    literals = (
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields.items()
    )
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
        writer.write(frame(1, 4, 1, b"".join(literals)) + frame(0, 1, 1, bytes(5)))
        async with asyncio.timeout(5):
            await reader.readuntil(b"grpc-status")
    finally:
        writer.close()
    assert not caplog.records
