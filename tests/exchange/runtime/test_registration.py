import asyncio
from typing import Any

import pytest

from bus.messages import EngineEntry, SessionEntry
from bus.registry import BucketUnavailable
from bus.tokens import Tokens
from exchange.directory import Directory
from exchange.runtime.registration import Registrar, RegistrationLost, WrongSecret

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


def registrar(clients: MemoryBucket, directory: Directory) -> Registrar:
    """A registrar with two live engines."""
    sessions: Any = MemoryBucket()
    bucket: Any = clients
    return Registrar(bucket, sessions, directory, ENGINES, ENGINES.keys)


async def test_clients_that_come_together_are_spread() -> None:
    """Homes are counted from the moment they are chosen, not only when they are stored."""
    clients = MemoryBucket(callers=6)
    registering = registrar(clients, Directory(Tokens()))
    outcomes = await asyncio.gather(*(registering.register(f"c{n}", "", 0) for n in range(6)))
    assert sorted(outcome.home.engine for outcome in outcomes) == [1, 1, 1, 2, 2, 2]
    registering.close()


async def test_one_of_two_first_registrations_binds() -> None:
    """Of two first registrations at once with other secrets one is refused; it does not count as a client."""
    clients, directory = MemoryBucket(callers=2), Directory(Tokens())
    registering = registrar(clients, directory)
    outcomes = await asyncio.gather(
        registering.register("ann", "a", 0), registering.register("ann", "b", 0), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Registration", WrongSecret.__name__]
    assert sum(directory.clients_per_engine().values()) == 1
    registering.close()


async def test_a_name_whose_entry_is_lost_is_nobodys() -> None:
    """Its old token tells that it was bound once: nobody else may have its orders now."""
    clients, tokens = MemoryBucket(), Tokens()
    directory = Directory(tokens)
    registering = registrar(clients, directory)
    tokens.put("key", SessionEntry("ann", 2), 0)
    assert directory.lost() == {"ann"}
    with pytest.raises(RegistrationLost, match=r"client ann was registered, and .* is lost: restore"):
        await registering.register("ann", "another", 0)
    await registering.register("bob", "b", 0)
    assert directory.lost() == {"ann"}
    registering.close()


async def test_a_failed_registration_does_not_count() -> None:
    """When the bucket gives no answer no client is counted: the next one is the first."""
    clients, directory = MemoryBucket(), Directory(Tokens())
    clients.fault = BucketUnavailable("away")
    registering = registrar(clients, directory)
    with pytest.raises(BucketUnavailable):
        await registering.register("ann", "a", 0)
    clients.fault = None
    assert (await registering.register("bob", "b", 0)).home.engine == 1
    registering.close()
