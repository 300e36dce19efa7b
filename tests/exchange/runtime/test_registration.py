import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any

import pytest

from bus.messages import ClientEntry, EngineEntry, SessionEntry
from bus.registry import BucketUnavailable
from bus.tokens import Tokens
from exchange import directory as directories
from exchange.assignment import NoEngineLives, UnknownEngine
from exchange.directory import Directory
from exchange.runtime import registration
from exchange.runtime.registration import (
    HomeUnknown,
    Registrar,
    RegistrationLost,
    TooManyRegistrations,
    WrongSecret,
)

ENGINES = {engine: EngineEntry(engine, 1, f"host:{engine}", 1) for engine in (1, 2)}


class MemoryBucket:
    """A bucket in memory whose creates all wait until `callers` of them are under way."""

    def __init__(self, callers: int = 1) -> None:
        self.values: dict[str, Any] = {}
        self.fault: Exception | None = None
        self._together = callers
        self._released = asyncio.Event()

    async def get(self, key: str) -> Any:
        """The value of a key."""
        return self.values.get(key)

    async def put(self, key: str, value: Any) -> None:
        """Set a key."""
        self.values[key] = value

    async def create(self, key: str, value: Any) -> bool:
        """Set a key that has no value."""
        self._together -= 1
        if self._together <= 0:
            self._released.set()
        await self._released.wait()
        if self.fault is not None:
            raise self.fault
        return self.values.setdefault(key, value) is value


def registrar(
    clients: MemoryBucket,
    directory: Directory,
    engines: Mapping[int, EngineEntry] = ENGINES,
    live_engines: Callable[[], Collection[int]] = ENGINES.keys,
) -> Registrar:
    """A registrar with two live engines, or others."""
    sessions: Any = MemoryBucket()
    bucket: Any = clients
    return Registrar(bucket, sessions, directory, engines, live_engines)


async def test_clients_that_come_together_are_spread() -> None:
    """Homes are counted from the moment they are chosen, not only when they are stored."""
    clients = MemoryBucket(callers=6)
    registering = registrar(clients, Directory(Tokens()))
    outcomes = await asyncio.gather(*(registering.register(f"c{n}", "", 0, "here") for n in range(6)))
    assert sorted(outcome.home.engine for outcome in outcomes) == [1, 1, 1, 2, 2, 2]
    registering.close()


async def test_one_of_two_first_registrations_binds() -> None:
    """Of two first registrations at once with other secrets one is refused; it does not count as a client."""
    clients, directory = MemoryBucket(callers=2), Directory(Tokens())
    registering = registrar(clients, directory)
    outcomes = await asyncio.gather(
        registering.register("ann", "a", 0, "here"),
        registering.register("ann", "b", 0, "here"),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Registration", WrongSecret.__name__]
    assert sum(directory.clients_per_engine().values()) == 1
    registering.close()


async def test_a_first_registration_that_is_repeated_at_once_succeeds() -> None:
    """The slower one finds the name bound, to its own secret."""
    registering = registrar(MemoryBucket(callers=2), Directory(Tokens()))
    first, again = await asyncio.gather(*(registering.register("ann", "a", 0, "here") for _ in range(2)))
    assert first.home == again.home
    registering.close()


async def test_a_first_registration_waits_for_a_live_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a start heartbeats come late. Where there are no engines nothing is waited for."""
    monkeypatch.setattr(registration, "LIVE_ENGINE_WAIT_S", 1_000.0)
    looks = iter([(), (), (2,)])
    registering = registrar(MemoryBucket(), Directory(Tokens()), live_engines=lambda: next(looks))
    nowhere = registrar(MemoryBucket(), Directory(Tokens()), {}, tuple)
    async with asyncio.timeout(20):
        assert (await registering.register("ann", "a", 0, "here")).home.engine == 2
        with pytest.raises(NoEngineLives):
            await nowhere.register("ann", "a", 0, "here")
    registering.close()
    nowhere.close()


async def test_a_first_registration_waits_for_the_engine_that_it_prefers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a start engines come one after the other; one that never comes is refused by name."""
    monkeypatch.setattr(registration, "LIVE_ENGINE_WAIT_S", 1_000.0)
    engines = dict(ENGINES)
    late = engines.pop(2)
    registering = registrar(MemoryBucket(), Directory(Tokens()), engines)
    waiting = asyncio.create_task(registering.register("ann", "a", 2, "here"))
    await asyncio.wait((waiting,), timeout=0.3)
    engines[2] = late
    assert (await asyncio.wait_for(waiting, 20)).home.engine == 2
    monkeypatch.setattr(registration, "LIVE_ENGINE_WAIT_S", 0.0)
    with pytest.raises(UnknownEngine, match=r"no engine 3; there are: E1, E2"):
        await registering.register("bob", "b", 3, "here")
    registering.close()


async def test_a_home_that_is_not_there_is_not_replaced() -> None:
    """A client's orders and fills are at its own engine: no other can stand in for it."""
    engines = dict(ENGINES)
    registering = registrar(MemoryBucket(), Directory(Tokens()), engines)
    assert (await registering.register("ann", "a", 2, "here")).home.engine == 2
    del engines[2]
    with pytest.raises(HomeUnknown, match="E2 of client ann"):
        await registering.register("ann", "a", 0, "here")
    registering.close()


async def test_a_name_whose_entry_is_lost_is_nobodys() -> None:
    """Its old token tells that it was bound once: nobody else may have its orders now."""
    clients, tokens = MemoryBucket(), Tokens()
    directory = Directory(tokens)
    registering = registrar(clients, directory)
    tokens.put("key", SessionEntry("ann", 2), 0)
    assert directory.lost() == {"ann"}
    with pytest.raises(RegistrationLost, match=r"client ann was registered, and .* is lost: restore"):
        await registering.register("ann", "another", 0, "here")
    await registering.register("bob", "b", 0, "here")
    assert directory.lost() == {"ann"}
    registering.close()


async def test_a_name_that_is_bound_just_now_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first token may be seen right after its entry was looked for in vain."""
    clients, tokens = MemoryBucket(), Tokens()
    registering = registrar(clients, Directory(tokens))

    async def get(key: str) -> Any:
        entry = clients.values.get(key)
        tokens.put("key", SessionEntry("ann", 1), 0)
        return entry

    monkeypatch.setattr(clients, "get", get)
    assert (await registering.register("ann", "a", 0, "here")).token
    registering.close()


async def test_a_failed_registration_does_not_count() -> None:
    """When the bucket gives no answer no client is counted: the next one is the first."""
    clients, directory = MemoryBucket(), Directory(Tokens())
    clients.fault = BucketUnavailable("away")
    registering = registrar(clients, directory)
    with pytest.raises(BucketUnavailable):
        await registering.register("ann", "a", 0, "here")
    clients.fault = None
    assert (await registering.register("bob", "b", 0, "here")).home.engine == 1
    registering.close()


class HeldHashes:
    """Checks of secrets that wait until they are let go; they end in the order of `secrets`."""

    def __init__(self) -> None:
        self.secrets: list[str] = []
        self.held = threading.Event()

    def matches(self, secret: str, entry: ClientEntry) -> bool:
        """Whether the secret is the right one."""
        assert self.held.wait(60)
        self.secrets.append(secret)
        return secret == "right"


@pytest.fixture
async def flooded(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Registrar, HeldHashes]]:
    """A registrar of ann and bob, who are registered, whose hashes are held."""
    registering, hashes = registrar(MemoryBucket(), Directory(Tokens())), HeldHashes()
    for client in ("ann", "bob"):
        await registering.register(client, "right", 0, "here")
    monkeypatch.setattr(directories, "secret_matches", hashes.matches)
    yield registering, hashes
    hashes.held.set()
    registering.close()


async def test_a_flood_of_wrong_secrets_does_not_shut_clients_out(
    flooded: tuple[Registrar, HeldHashes],
) -> None:
    """Not its own victim on another connection, nor another client on the same one."""
    registering, hashes = flooded
    flood = [asyncio.create_task(registering.register("ann", "wrong", 0, "flood")) for _ in range(100)]
    await asyncio.sleep(0)
    right = [
        asyncio.create_task(registering.register("ann", "right", 0, "another")),
        asyncio.create_task(registering.register("bob", "right", 0, "flood")),
    ]
    await asyncio.sleep(0)
    hashes.held.set()
    for registered in right:
        assert (await registered).token
    assert hashes.secrets.count("wrong") < 20
    for refused in flood:
        refused.cancel()
    await asyncio.wait(flood)


async def test_a_flood_leaves_room_to_wait(
    flooded: tuple[Registrar, HeldHashes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection of which none waits has a reserve, which is bounded too."""
    registering, hashes = flooded
    monkeypatch.setattr(registration, "_MAX_HASHES", 3)
    monkeypatch.setattr(registration, "_RESERVED_HASHES", 1)
    flood = [asyncio.create_task(registering.register("ann", "wrong", 0, "flood")) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyRegistrations, match="3 registrations are waiting"):
        await registering.register("ann", "wrong", 0, "flood")
    right = asyncio.create_task(registering.register("ann", "right", 0, "another"))
    await asyncio.sleep(0)
    with pytest.raises(TooManyRegistrations, match="4 registrations are waiting"):
        await registering.register("bob", "right", 0, "a third")
    hashes.held.set()
    assert (await right).token
    await asyncio.wait(flood)
    assert (await registering.register("bob", "right", 0, "a third")).token
    assert not registering._hashes, "nothing is kept of connections that come and go"
