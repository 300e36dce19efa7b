"""A market behind TLS that limits how fast each client may send."""

import asyncio
import time
from collections.abc import Iterator

import grpc
import pytest
from matchbus import tls
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc

from client import Client
from simulation.cluster import Cluster
from simulation.cluster_errors import ClientsDiffer
from simulation.cluster_settings import Access
from tests.certificates import Authority
from tests.system.venue import Trader, Venue, limit
from tests.waiting import until

PER_SECOND = 5


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs all certificates here."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> dict[str, str]:
    """The environment of a client that has one."""
    cert, key = authority.issue("client")
    files = {"CA": authority.ca, "CERT": cert, "KEY": key}
    return {f"MATCHBUS_TLS_{name}": str(path) for name, path in files.items()}


@pytest.fixture(scope="module")
def market(
    authority: Authority, certificate: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Venue]:
    """One engine; clients need certificates."""
    files = tls.ServerFiles(*authority.issue("server"), client_ca=authority.ca)
    options = [*files.arguments(), "--orders-per-second", str(PER_SECOND)]
    venue = Venue(tmp_path_factory.mktemp("guarded"), engines=1, symbols=["AAPL"], options=options)
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            carry(certificate, monkeypatch)
            venue.start()
        yield venue
    finally:
        venue.stop()


@pytest.fixture
def guarded(market: Venue, certificate: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Venue:
    """That market; the environment gives us a certificate."""
    carry(certificate, monkeypatch)
    return market


def carry(certificate: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whoever connects show it."""
    for name, path in certificate.items():
        monkeypatch.setenv(name, path)


async def register(venue: Venue, channel: grpc.aio.Channel, name: str) -> pb.RegisterClientReply:
    """Call RegisterClient over a channel to the exchange."""
    stub = matchbus_pb2_grpc.ExchangeStub(channel)
    request = pb.RegisterClientRequest(client_id=name, password="password", secret="s")
    reply: pb.RegisterClientReply = await stub.RegisterClient(request, timeout=5)
    assert reply.engine_address == venue.address(1)
    return reply


async def test_a_market_behind_tls(guarded: Venue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python client trades as ever; whoever shows no certificate reaches neither exchange nor engine."""
    steps = [f"    export {name}={path}\n" for name, path in tls.told().items()]
    await until(lambda: len(steps) == 3 and all(step in guarded.log() for step in steps))
    async with Client.connect(guarded.exchange, client_id="ann", password="password", secret="s") as ann:
        order = await ann.submit("AAPL", "buy", quantity=1, price="90")
        assert (await ann.cancel(order_id=order.order_id)).status == "cancelled"
    monkeypatch.delenv("MATCHBUS_TLS_CERT")
    monkeypatch.delenv("MATCHBUS_TLS_KEY")
    for address in (guarded.exchange, guarded.address(1)):
        async with tls.channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await register(guarded, channel, "bob")
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_clients_send_as_fast_as_they_may(guarded: Venue) -> None:
    """A call above the limit is refused and says when, a stream is held back; nothing holds back a cancel."""
    async with tls.channel(guarded.exchange) as exchange, tls.channel(guarded.address(1)) as engine:
        bob = Trader("bob", "s", await register(guarded, exchange, "bob"), engine)
        began = time.monotonic()
        calls = (bob.limit("AAPL", pb.SIDE_BUY, 9_000, 1) for _ in range(50 * PER_SECOND))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refusals = [refusal for refusal in outcomes if isinstance(refusal, grpc.aio.AioRpcError)]
        taken = len(outcomes) - len(refusals)
        assert PER_SECOND <= taken <= PER_SECOND * (1 + time.monotonic() - began)
        assert {refusal.code() for refusal in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "5 orders a second are a client's limit: try again in 0." in str(refusals[0].details())
        cancelled = await bob.stub.CancelAll(pb.CancelAllRequest(), metadata=bob.metadata)
        assert cancelled.count == taken
        began = time.monotonic()
        buys = [limit("AAPL", pb.SIDE_BUY, 9_000, 1) for _ in range(2 * PER_SECOND)]
        replies = await bob.enter([[pb.Command(new=buy) for buy in buys]])
        assert [reply.status for reply in replies] == [pb.ORDER_STATUS_NEW] * len(buys)
        assert time.monotonic() - began > 0.9, "one message goes in parts: it is as many orders as any other"
    async with Client.connect(guarded.exchange, client_id="ann", password="password", secret="s") as ann:
        began = time.monotonic()
        for number in range(2 * PER_SECOND):
            await ann.submit("AAPL", "buy", quantity=1, price=90 + number)
        assert time.monotonic() - began > 0.9, "two seconds' worth, one of which was there at once"
        assert await ann.cancel_all() == 2 * PER_SECOND


async def test_a_market_and_its_clients_both_speak_tls_or_neither(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything starts: they would only wait for each other."""
    files = tls.ServerFiles(*authority.issue("other-server"))
    with pytest.raises(ClientsDiffer, match=r"say in MATCHBUS_TLS_CA which file vouches for .*server\.pem"):
        async with Cluster(engines=1, access=Access(files)):
            pass
    monkeypatch.setenv("MATCHBUS_TLS_CA", str(authority.ca))
    with pytest.raises(ClientsDiffer, match="unset it, or give --tls-cert"):
        async with Cluster(engines=1):
            pass
    mutual = Access(tls.ServerFiles(files.cert, files.key, authority.ca))
    with pytest.raises(ClientsDiffer, match="and its key in MATCHBUS_TLS_CERT and MATCHBUS_TLS_KEY"):
        async with Cluster(engines=1, access=mutual):
            pass
    monkeypatch.setenv("MATCHBUS_TLS_CA", str(authority.ca) + "x")
    with pytest.raises(ClientsDiffer, match=r"_KEY in the environment: .*x: No such file"):
        async with Cluster(engines=1, access=Access(files)):
            pass
