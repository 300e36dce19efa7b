"""Session tokens: how long one holds, and how many a client has. Exchange and engines keep the same rule.

Not here: what a token looks like (`matchbus.edge`), who gives it out (`exchange.runtime.registration`).
"""

from collections.abc import KeysView
from typing import Final

from bus.messages import SessionEntry

TOKEN_LIFE_NS: Final = 24 * 3_600 * 10**9
"""How long a token opens calls, from its registration on; a stream that it opened goes on."""

MAX_TOKENS: Final = 1_000
"""How many one client may have; one more ends the oldest."""


def holds(session: SessionEntry, now_ns: int) -> bool:
    """Whether a session has not ended by `now_ns` (UTC)."""
    return now_ns < session.ends_ns


class Tokens:
    """The sessions that are stored, by key, and each client's keys from the oldest to the newest.

    A client's newest session stays when its time is over: it tells that the client was registered.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, SessionEntry] = {}
        self._keys: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def clients(self) -> KeysView[str]:
        """Who has, or had, a token."""
        return self._keys.keys()

    def get(self, key: str) -> SessionEntry | None:
        """The session of a key, also one whose time is over."""
        return self._sessions.get(key)

    def has_ended(self, session: SessionEntry, now_ns: int) -> bool:
        """Whether a session that is still stored has ended all the same, by time or as one too many."""
        if not holds(session, now_ns):
            return True
        keys = self._keys.get(session.client_id, {})
        return len(keys) >= MAX_TOKENS and all(
            session.ends_ns < self._sessions[newer].ends_ns for newer in keys
        )

    def put(self, key: str, session: SessionEntry, now_ns: int) -> list[str]:
        """Take a session in; returns the client's keys that have ended, by time or as too many."""
        self._sessions[key] = session
        keys = self._keys.setdefault(session.client_id, {})
        keys[key] = None
        ended: list[str] = []
        for oldest in keys:
            left = len(keys) - len(ended)
            if left == 1 or (left <= MAX_TOKENS and holds(self._sessions[oldest], now_ns)):
                break
            ended.append(oldest)
        for oldest in ended:
            self.remove(oldest)
        return ended

    def remove(self, key: str) -> None:
        """Forget a session, if it is known."""
        session = self._sessions.pop(key, None)
        if session is not None:
            keys = self._keys[session.client_id]
            del keys[key]
            if not keys:
                del self._keys[session.client_id]
