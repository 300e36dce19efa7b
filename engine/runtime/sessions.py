"""Whose token a call carries. Tokens are known by their SHA-256 only (`matchbus.edge.token_key`)."""

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import grpc
from matchbus.edge import Context, refuse_token, refuse_token_ended_at, require_token, token_key

from bus.messages import EngineEntry, SessionEntry
from bus.registry import Bucket, BucketUnavailable
from bus.tokens import Tokens, holds

MAX_LOOKUPS: Final = 16
"""Tokens being looked up at once; more than that are refused, so that junk cannot swamp the bucket."""


class Sessions:
    """The sessions of all clients, as a watch of their bucket tells of them, and the engines' addresses."""

    def __init__(
        self,
        engine: int,
        sessions: Bucket[SessionEntry],
        engines: Mapping[int, EngineEntry],
        utc_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._engine = engine
        self._sessions = sessions
        self._engines = engines
        self._utc_ns = utc_ns
        self._known = Tokens()
        self._lookups: dict[str, asyncio.Task[SessionEntry | None]] = {}

    def __len__(self) -> int:
        """How many tokens are known."""
        return len(self._known)

    def note(self, key: str, session: SessionEntry | None) -> None:
        """The bucket has a session; None: no longer."""
        if session is None:
            self._known.remove(key)
        else:
            for ended in self._known.put(key, session, self._utc_ns()):
                self._sessions.forget(ended)

    async def client_of(self, context: Context) -> str:
        """The client whose token the call carries; ends the call when that is nobody at home here."""
        key = token_key(await require_token(context))
        session = self._known.get(key) or await self._look_up(key, context)
        await self._refuse_if_over(session, context)
        if session.engine != self._engine:
            await self._refuse_guest(session, context)
        return session.client_id

    async def _look_up(self, key: str, context: Context) -> SessionEntry:
        """Ask the bucket: a client may come with its new token before the watch tells of it."""
        lookup = self._lookups.get(key)
        if lookup is None:
            if len(self._lookups) >= MAX_LOOKUPS:
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{MAX_LOOKUPS} unknown tokens are being looked up; try again",
                )
            lookup = self._lookups[key] = asyncio.create_task(self._sessions.get(key))
            lookup.add_done_callback(lambda ended: self._forget(key, ended))
        try:
            session = await asyncio.shield(lookup)  # it is every call's with this token: none may end it
        except BucketUnavailable:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "tokens cannot be checked just now; try again")
        if session is not None:
            await self._refuse_if_over(session, context)
        # One that ended may be stored still; taken in as the newest, it would end one that holds.
        if session is None or self._known.has_ended(session, self._utc_ns()):
            await refuse_token(context)
        self.note(key, session)
        return session

    async def _refuse_if_over(self, session: SessionEntry, context: Context) -> None:
        now_ns = self._utc_ns()
        if not holds(session, now_ns):
            await refuse_token_ended_at(context, _utc(session.ends_ns), _utc(now_ns))

    def _forget(self, key: str, lookup: asyncio.Task[SessionEntry | None]) -> None:
        del self._lookups[key]
        if not lookup.cancelled():
            lookup.exception()  # whoever asked may have hung up

    async def _refuse_guest(self, session: SessionEntry, context: Context) -> None:
        home = self._engines.get(session.engine)
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"client {session.client_id} is at home on engine {session.engine}, "
            f"address {home.address if home else 'unknown: see ListEngines'}",
        )


def _utc(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns // 10**9, UTC)
