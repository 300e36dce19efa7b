"""Clients at an exchange's process: registering, tokens, homes and positions."""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from matchbus.edge import token_key
from matchbus.v1 import matchbus_pb2 as pb

from bus import subjects, tokens
from bus.connection import Connection
from bus.executions import ExecutionsReader, ExecutionsWriter
from bus.messages import ASK, BID, Executions
from bus.peer import PeerFeed, PeerState
from bus.registry import Bucket, BucketUnavailable, clients_bucket, sessions_bucket
from bus.server import NatsServer
from exchange.runtime import feeds, process, registration, servicer
from tests.exchange.runtime.nodes import (
    INSTRUMENTS,
    FakeEngine,
    eventually,
    exchange,
    fill,
    refused,
    violated_field,
)
from tests.waiting import until


async def test_a_client_gets_a_token_a_home_and_the_instruments(
    own_server: NatsServer,
    own_connection: Connection,
    two_engines: list[FakeEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client gets a token, a home, its address and the instruments; refusals have the right status."""
    async with exchange(own_server, tmp_path) as caller:
        await eventually(caller.sees_two_live_engines)
        first = await caller.register("ann")
        assert (first.engine, first.engine_address) == (1, "host:1")
        assert [i.symbol for i in first.instruments] == ["AAPL"]
        assert (await caller.register("bob", "")).engine == 2
        assert (await caller.register("cid", preferred_engine=2)).engine == 2
        again = await caller.register("ann", preferred_engine=2)
        assert again.engine == 1
        assert again.token != first.token

        sessions = sessions_bucket(own_connection)
        session = await sessions.get(hashlib.sha256(first.token.encode()).hexdigest())
        assert session is not None
        assert (session.client_id, session.engine) == ("ann", 1)
        assert 0 < session.ends_ns - time.time_ns() < tokens.TOKEN_LIFE_NS

        await refused(caller.register("ann", password="x"), grpc.StatusCode.UNAUTHENTICATED)
        await refused(caller.register("ann", "other"), grpc.StatusCode.PERMISSION_DENIED)
        await refused(caller.register("bob", "other"), grpc.StatusCode.PERMISSION_DENIED)
        error = await refused(caller.register("a b"), grpc.StatusCode.INVALID_ARGUMENT)
        assert violated_field(error) == "client_id"
        error = await refused(caller.register("dan", preferred_engine=9), grpc.StatusCode.FAILED_PRECONDITION)
        assert "E1, E2" in str(error.details())
        clients = clients_bucket(own_connection)
        await clients.remove(subjects.client_key("ann"))
        error = await refused(caller.register("ann"), grpc.StatusCode.DATA_LOSS)
        assert "client ann was registered" in str(error.details())
        monkeypatch.setattr(registration, "_MAX_HASHES", 0)
        monkeypatch.setattr(registration, "_RESERVED_HASHES", 0)
        await refused(caller.register("bob", ""), grpc.StatusCode.RESOURCE_EXHAUSTED)


async def test_tokens_end(
    own_server: NatsServer,
    two_engines: list[FakeEngine],
    tmp_path: Path,
    own_connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oldest of too many leaves the store, also at a start; so does one whose time is over."""
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    sessions = sessions_bucket(own_connection)

    async def is_stored(token: str) -> bool:
        return await sessions.get(token_key(token)) is not None

    async def is_gone(token: str) -> bool:
        return not await is_stored(token)

    async with exchange(own_server, tmp_path) as caller:
        await eventually(caller.sees_two_live_engines)
        registered = [(await caller.register("ann")).token for _ in range(3)]
        await eventually(lambda: is_gone(registered[0]))
        await refused(caller.positions(registered[0]), grpc.StatusCode.UNAUTHENTICATED)
        for token in registered[1:]:
            assert await caller.positions(token) == []
    monkeypatch.setattr(tokens, "MAX_TOKENS", 1)
    async with exchange(own_server, tmp_path) as caller:
        await eventually(lambda: is_gone(registered[1]))
        monkeypatch.setattr(registration, "TOKEN_LIFE_NS", 0)
        over = (await caller.register("bob")).token
        await refused(caller.positions(over), grpc.StatusCode.UNAUTHENTICATED)
        assert await is_stored(over), "it tells that bob was registered"
        monkeypatch.undo()
        await caller.register("bob")
        await eventually(lambda: is_gone(over))
        assert await caller.positions(registered[2]) == []


async def test_wrong_passwords_do_not_fill_the_log(
    own_server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever guesses is told of, but not line by line."""
    monkeypatch.setattr(servicer, "_TELL_S", 1_000.0)
    async with exchange(own_server, tmp_path) as caller:
        for _ in range(3):
            await refused(caller.register("ann", password="guessed"), grpc.StatusCode.UNAUTHENTICATED)
    (line,) = [line for line in caplog.messages if "wrong password" in line]
    assert line.endswith("wrong password (1 so far)")


async def test_an_ended_token_leaves_the_store_though_not_at_once(
    own_server: NatsServer,
    two_engines: list[FakeEngine],
    tmp_path: Path,
    own_connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It opens nothing. A store that takes nothing away for a while is asked again; that is logged once."""
    monkeypatch.setattr(tokens, "MAX_TOKENS", 1)
    monkeypatch.setattr(process, "_REMOVE_AGAIN_S", 0.01)
    remove, may_remove = Bucket.remove, asyncio.Event()

    async def remove_in_the_end(bucket: Bucket[Any], key: str) -> None:
        if not may_remove.is_set():
            raise BucketUnavailable("not now")
        await remove(bucket, key)

    monkeypatch.setattr(Bucket, "remove", remove_in_the_end)
    sessions = sessions_bucket(own_connection)
    async with exchange(own_server, tmp_path) as caller:
        await eventually(caller.sees_two_live_engines)
        first, second = [(await caller.register("ann")).token for _ in range(2)]

        def said() -> int:
            return sum("not now" in message for message in caplog.messages)

        async def is_gone() -> bool:
            return await sessions.get(token_key(first)) is None

        await until(said)
        await refused(caller.positions(first), grpc.StatusCode.UNAUTHENTICATED)
        assert not await is_gone()
        may_remove.set()
        await eventually(is_gone)
        assert await caller.positions(second) == []
        assert said() == 1


async def test_long_strings_are_refused_by_name(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path
) -> None:
    """A megabyte where a name, password or secret belongs is a named violation, and leaves nothing behind."""
    megabyte = "A" * 1_000_000
    async with exchange(own_server, tmp_path) as caller:
        for field, registering in (
            ("client_id", caller.register(megabyte)),
            ("password", caller.register("ann", password=megabyte)),
            ("password", caller.register("ann", password="A" * 1_025)),
            ("secret", caller.register("ann", megabyte, preferred_engine=1)),
            ("secret", caller.register("ann", "A" * 1_025)),
        ):
            error = await refused(registering, grpc.StatusCode.INVALID_ARGUMENT)
            assert violated_field(error) == field
            assert len(error.details() or "") < 100
        clients = clients_bucket(own_connection)
        assert await clients.get(subjects.client_key("ann")) is None
        await refused(caller.register("ann", password="A" * 1_024), grpc.StatusCode.UNAUTHENTICATED)
        await FakeEngine(own_connection, 7).enter()

        async def registered() -> bool:
            try:
                return (await caller.register("ann", "é" * 1_024, preferred_engine=7)).engine == 7
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION):
                    raise
                return False

        await eventually(registered)


async def test_registrations_that_come_together_bind_one_secret_and_spread_the_homes(
    own_server: NatsServer, two_engines: list[FakeEngine], tmp_path: Path
) -> None:
    """Of first registrations of one name exactly one secret binds; clients that come together are spread."""
    async with exchange(own_server, tmp_path) as caller:
        await eventually(caller.sees_two_live_engines)
        outcomes = await asyncio.gather(
            *(caller.register("ann", f"secret {n}") for n in range(4)), return_exceptions=True
        )
        refusals = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert [refusal.code() for refusal in refusals] == [grpc.StatusCode.PERMISSION_DENIED] * 3
        homes = [
            reply.engine for reply in await asyncio.gather(*(caller.register(f"c{n}") for n in range(5)))
        ]
        ann = next(outcome for outcome in outcomes if isinstance(outcome, pb.RegisterClientReply))
        assert sorted([ann.engine, *homes]) == [1, 1, 1, 2, 2, 2]


async def test_without_a_live_engine_nobody_is_given_a_home(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path
) -> None:
    """Without engines nobody can be registered; a silent one becomes a home only by name."""
    async with exchange(own_server, tmp_path) as caller:
        error = await refused(caller.register("ann"), grpc.StatusCode.UNAVAILABLE)
        assert "no engine has registered" in str(error.details())
        await FakeEngine(own_connection, 7).enter()

        async def known() -> bool:
            return [engine.engine for engine in await caller.engines()] == [7]

        await eventually(known)
        error = await refused(caller.register("ann"), grpc.StatusCode.UNAVAILABLE)
        assert "E7" in str(error.details())
        assert (await caller.register("ann", preferred_engine=7)).engine == 7


def test_only_a_live_engine_becomes_a_home() -> None:
    """One that is suspect may be dead, and one that was never heard may never have lived."""
    peers = {number: PeerFeed(number) for number in (1, 2)}
    peers[1].state, peers[2].state = PeerState.SUSPECT, PeerState.LIVE
    assert feeds.live_engines((1, 2, 3), peers) == [2]


async def test_positions_need_a_token(
    own_server: NatsServer, two_engines: list[FakeEngine], tmp_path: Path
) -> None:
    """Nobody sees positions without a token of this exchange."""
    async with exchange(own_server, tmp_path) as caller:
        token = (await caller.register("ann")).token
        await refused(caller.stub.GetPositions(pb.GetPositionsRequest()), grpc.StatusCode.UNAUTHENTICATED)
        await refused(caller.positions("nonsense"), grpc.StatusCode.UNAUTHENTICATED)
        error = await refused(caller.positions(token, "NONE"), grpc.StatusCode.INVALID_ARGUMENT)
        assert violated_field(error) == "symbol"


async def test_positions_that_are_unknown_are_not_told(
    own_server: NatsServer,
    own_connection: Connection,
    two_engines: list[FakeEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither while stored reports are still to be read, nor of a client of whom one is missing."""
    reader = ExecutionsReader(own_connection)
    monkeypatch.setattr(process, "ExecutionsReader", lambda _: reader)
    two = INSTRUMENTS + INSTRUMENTS.replace("AAPL", "MSFT")
    async with exchange(own_server, tmp_path, two) as caller:
        ann, bob = [(await caller.register(client)).token for client in ("ann", "bob")]
        reader.caught_up.clear()
        error = await refused(caller.positions(ann), grpc.StatusCode.UNAVAILABLE)
        assert "still reading" in str(error.details())
        reader.caught_up.set()
        writer = ExecutionsWriter(own_connection, 1)
        await writer.start()
        trades = (fill("ann", 1, BID, 5, 100), fill("bob", 1, ASK, 5, 100), fill("ann", 3, BID, 5, 100))
        most = 2**63 - 1
        await writer.publish(Executions(1, 1, 1, 1, 4, (*trades, fill("bob", 2, ASK, most, 1))))

        async def arrived() -> bool:
            positions = await caller.positions(bob)
            return [position[1] for position in positions] == [-most - 1]  # which the wire holds at least

        await eventually(arrived)
        assert await caller.positions(bob, "MSFT") == []
        error = await refused(caller.positions(ann), grpc.StatusCode.DATA_LOSS)
        assert "after fill 1 came 3" in str(error.details())
