"""Registration: a client's name is bound to its secret and its home engine, and a new token is given out.

Checking a secret is slow on purpose, so clients take turns, each among those of its connection: a flood of
wrong secrets hardly delays those who come by another connection, nor, on its own, a client of another name.

The binding is one create in the `clients` bucket, a compare-and-set: of two first registrations of one name
exactly one binds, and the other is then checked against what was bound.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec
from matchbus.edge import token_key
from matchbus.listings import Turns

from bus import subjects
from bus.messages import ClientEntry, EngineEntry, SessionEntry
from bus.registry import Bucket
from bus.tokens import TOKEN_LIFE_NS
from exchange import assignment, directory

T = TypeVar("T")

LIVE_ENGINE_WAIT_S: Final = 2.0
"""How long a first registration waits for the engine that it prefers, or for some one to be live: at a start
they come one after the other, and their heartbeats late."""

_LIVE_ENGINE_POLL_S: Final = 0.05
_HASH_THREADS: Final = 2
_MAX_HASHES: Final = 1_000
_RESERVED_HASHES: Final = 500
"""How many more may wait of connections of which none does: one that floods must not shut others out."""

_TOKEN_BYTES: Final = 32


class RegistrationRefused(Exception):
    """The client cannot be registered; the text says why."""


class WrongSecret(RegistrationRefused):
    """The name is bound to another secret."""


class TooManyRegistrations(RegistrationRefused):
    """More registrations wait for their secrets to be hashed than are let in."""


class RegistrationLost(RegistrationRefused):
    """What bound the name to its secret and its home is gone from the store."""


class HomeUnknown(RegistrationRefused):
    """The client's home engine is not registered with the exchange."""


class Registration(msgspec.Struct, frozen=True):
    """What a client gets: its token, and its home engine."""

    token: str
    home: EngineEntry


class Registrar:
    """Registers clients. `live_engines` tells which engines' feeds are live now."""

    def __init__(
        self,
        clients: Bucket[ClientEntry],
        sessions: Bucket[SessionEntry],
        known: directory.Directory,
        engines: Mapping[int, EngineEntry],
        live_engines: Callable[[], Collection[int]],
    ) -> None:
        self._clients = clients
        self._sessions = sessions
        self._directory = known
        self._engines = engines
        self._live_engines = live_engines
        self._hashing = ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="scrypt")
        self._hashes: Counter[str] = Counter()  # by connection
        self._turns = Turns(_HASH_THREADS)
        self._binding: Counter[int] = Counter()

    def close(self) -> None:
        """Let go of the threads; hashes that have not begun are dropped."""
        self._hashing.shutdown(wait=False, cancel_futures=True)

    async def register(
        self, client_id: str, secret: str, preferred_engine: int, connection: str
    ) -> Registration:
        """Bind the client at its first registration, check its secret at any other, and give out a token.

        `client_id` has been checked; `connection` is where the call came from. Raises `RegistrationRefused`,
        `assignment.NoHome`, or `Bucket`'s faults.
        """
        key = subjects.client_key(client_id)
        had_token = self._directory.had_token(client_id)
        entry = await self._clients.get(key)
        if entry is None and had_token:  # to bind the name anew would give its orders to anybody
            raise RegistrationLost(
                f"client {client_id} was registered, and its entry in the bucket {subjects.CLIENTS_BUCKET} is"
                " lost: restore the NATS store from a copy"
            )
        if entry is None:
            entry = await self._bind(connection, client_id, secret, preferred_engine)
        elif not await self._off_loop(connection, client_id, directory.secret_matches, secret, entry):
            raise WrongSecret(f"client {client_id} was registered with another secret")
        home = self._engines.get(entry.engine)
        if home is None:
            raise HomeUnknown(f"the home engine E{entry.engine} of client {client_id} is not registered")
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        session = SessionEntry(client_id, entry.engine, time.time_ns() + TOKEN_LIFE_NS)
        await self._sessions.put(token_key(token), session)
        return Registration(token=token, home=home)

    async def _bind(self, connection: str, client_id: str, secret: str, preferred_engine: int) -> ClientEntry:
        key = subjects.client_key(client_id)
        salt = secrets.token_bytes(directory.SALT_BYTES)
        secret_hash = await self._off_loop(connection, client_id, directory.hash_secret, secret, salt)
        home = await self._choose_home(preferred_engine)
        entry = ClientEntry(client_id=client_id, salt=salt.hex(), secret_hash=secret_hash, engine=home)
        # Counted before it is stored, or clients that come together would all go to the same engine.
        self._binding[home] += 1
        try:
            if await self._clients.create(key, entry):
                self._directory.put(key, entry)
                return entry
        finally:
            self._binding[home] -= 1
        bound = await self._clients.get(key)
        if bound is None or not await self._off_loop(
            connection, client_id, directory.secret_matches, secret, bound
        ):
            raise WrongSecret(f"client {client_id} was registered with another secret at the same time")
        return bound

    async def _choose_home(self, preferred_engine: int) -> int:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LIVE_ENGINE_WAIT_S
        while True:
            try:
                return assignment.choose_home(
                    preferred_engine,
                    self._engines.keys(),
                    self._live_engines(),
                    self._directory.clients_per_engine() + self._binding,
                )
            except assignment.NoHome:
                if not self._engines or loop.time() >= deadline:
                    raise
            await asyncio.sleep(_LIVE_ENGINE_POLL_S)

    async def _off_loop(
        self, connection: str, client_id: str, function: Callable[..., T], *arguments: object
    ) -> T:
        waiting = self._hashes.total()
        if waiting >= _MAX_HASHES + (0 if self._hashes[connection] else _RESERVED_HASHES):
            raise TooManyRegistrations(f"{waiting} registrations are waiting; try again soon")
        self._hashes[connection] += 1
        try:
            async with self._turns.of(connection, client_id):
                return await asyncio.get_running_loop().run_in_executor(self._hashing, function, *arguments)
        finally:
            self._hashes[connection] -= 1
            if not self._hashes[connection]:
                del self._hashes[connection]
