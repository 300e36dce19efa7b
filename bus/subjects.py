"""Every NATS subject, stream and bucket name of ours; no other module of the packages spells one.

What cannot import this spells those it needs: `nats.conf`, the dashboard's page and the examples.

A string made by a client never becomes part of a subject: an oversized or malformed one closes a nats-py
connection for good. Only symbols of the instrument list get here, and `symbol_token` checks them again.
"""

import base64
import hashlib
import re
from typing import Final

SYMBOL_PATTERN: Final = re.compile(r"[A-Z0-9][A-Z0-9._/-]{0,23}")
"""What a symbol looks like; match with `fullmatch`."""

MAX_ENGINE: Final = 65_535
_ENGINE_TOKEN: Final = re.compile(r"[1-9][0-9]{0,4}")

EXECUTIONS_STREAM: Final = "EXECUTIONS"
"""The stream of all engines' execution reports."""

EXECUTIONS_SUBJECTS: Final = "execution.*"
"""What that stream stores."""

JOURNAL_STREAM_PREFIX: Final = "JOURNAL_"
"""What the names of the engines' journals begin with."""

HEARTBEATS: Final = "md.*.heartbeat"
"""Every engine's sign of life: how engines are found."""

PROVISION_SUBJECTS: Final = "provision.*"
"""Every engine's request for its journal, which the exchange answers."""

STANDBYS: Final = "standby.*"
"""Every standby's sign of life."""

VIEW_ENGINES: Final = "view.engines"
"""The exchange's view of every process."""

VIEW_SYMBOLS: Final = "view.symbols"
"""All that trades."""

INSTRUMENTS_BUCKET: Final = "instruments"
"""What trades, by symbol; the exchange writes, engines follow."""

CLIENTS_BUCKET: Final = "clients"
"""Whose name is bound to which secret and home engine."""

SESSIONS_BUCKET: Final = "sessions"
"""Whose token is whose, by the token's digest."""

ENGINES_BUCKET: Final = "engines"
"""Where each engine's reigning process listens."""

LEASES_BUCKET: Final = "leases"
"""Which process may reign as which engine; an entry is gone a second after its last renewal."""


def symbol_token(symbol: str) -> str:
    """The symbol as one subject token or bucket key. A dot separates tokens, so it is written as `=`."""
    if SYMBOL_PATTERN.fullmatch(symbol) is None:
        raise ValueError(f"{symbol!r:.60} is no symbol: it must match {SYMBOL_PATTERN.pattern}")
    return symbol.replace(".", "=")


def symbol_of(token: str) -> str:
    """The symbol that `symbol_token` wrote as this token."""
    return token.replace("=", ".")


def engine_token(engine: int) -> str:
    """The engine number as one subject token."""
    if not 1 <= engine <= MAX_ENGINE:
        raise ValueError(f"{engine} is no engine number: it must be 1 to {MAX_ENGINE}")
    return str(engine)


def number_of(token: str) -> int:
    """The engine number that `engine_token` wrote as this token, 0 where it wrote no such one."""
    number = int(token) if _ENGINE_TOKEN.fullmatch(token) is not None else 0
    return number if number <= MAX_ENGINE else 0


def book(engine: int, symbol: str) -> str:
    """Deltas and snapshots of one engine's book, in one order."""
    return f"md.{engine_token(engine)}.book.{symbol_token(symbol)}"


def trades(engine: int, symbol: str) -> str:
    """Trades made on one engine."""
    return f"md.{engine_token(engine)}.trade.{symbol_token(symbol)}"


def heartbeat(engine: int) -> str:
    """An engine's sign of life, every 100 ms."""
    return f"md.{engine_token(engine)}.heartbeat"


def feed(engine: int) -> str:
    """All market data of one engine. Follow it with ONE subscription: two reorder against each other."""
    return f"md.{engine_token(engine)}.>"


def snapshot_request(engine: int) -> str:
    """Where an engine is asked to publish snapshots of its books on their own subjects."""
    return f"snapshot.{engine_token(engine)}"


def route(engine: int) -> str:
    """Where an engine takes legs from its peers."""
    return f"route.{engine_token(engine)}"


def execution(engine: int) -> str:
    """Where an engine's execution reports are stored."""
    return f"execution.{engine_token(engine)}"


def journal(engine: int) -> str:
    """The one subject of an engine's journal."""
    return f"journal.{engine_token(engine)}"


def journal_stream(engine: int) -> str:
    """The stream of an engine's journal."""
    return f"{JOURNAL_STREAM_PREFIX}{engine_token(engine)}"


def bucket_stream(bucket: str) -> str:
    """The stream behind a bucket."""
    return f"KV_{bucket}"


def bucket_subject(bucket: str, key: str) -> str:
    """The subject behind a bucket's key; the key `>` stands for all."""
    return f"$KV.{bucket}.{key}"


def snapshots_bucket(engine: int) -> str:
    """The object store of an engine's snapshots."""
    return f"snapshots_{engine_token(engine)}"


def object_stream(bucket: str) -> str:
    """The stream behind an object store."""
    return f"OBJ_{bucket}"


def object_chunks(bucket: str, key: str = ">") -> str:
    """The parts of one object of an object store; the key `>` stands for all."""
    return f"$O.{bucket}.C.{key}"


def object_entries(bucket: str, key: str = ">") -> str:
    """What an object store knows of one of its objects; the key `>` stands for all."""
    return f"$O.{bucket}.M.{key}"


def object_key(name: str) -> str:
    """The last token of where an object store says what it knows of one object."""
    return base64.urlsafe_b64encode(name.encode()).decode()


def provision(engine: int) -> str:
    """Where an engine asks the exchange to make its journal stream."""
    return f"provision.{engine_token(engine)}"


def standby(engine: int) -> str:
    """Where the standbys of an engine say how far they are."""
    return f"standby.{engine_token(engine)}"


def handover(engine: int) -> str:
    """Where the reigning process of an engine is asked to hand over to a standby."""
    return f"handover.{engine_token(engine)}"


def view_book(symbol: str) -> str:
    """The exchange's view of one symbol's books, conflated."""
    return f"view.book.{symbol_token(symbol)}"


def view_trades(symbol: str) -> str:
    """The exchange's view of one symbol's trades, conflated."""
    return f"view.trades.{symbol_token(symbol)}"


def nbbo(symbol: str) -> str:
    """One symbol's best bid and ask over all engines, conflated."""
    return f"nbbo.{symbol_token(symbol)}"


def engine_of(subject: str) -> int:
    """The engine number in a subject of the forms above, 0 where there is none."""
    return number_of(subject.split(".", 2)[1])


def client_key(client_id: str) -> str:
    """The bucket key of a client: a digest, because the id is the client's own string."""
    return hashlib.sha256(client_id.encode()).hexdigest()
