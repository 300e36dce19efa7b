"""Who the clients are: the form of their ids, their secrets and how many call each engine home.

A secret is never kept: of it there is a salted scrypt hash. Salts come from outside: nothing here is random.
Not here: tokens (`bus.tokens`).
"""

import hashlib
import hmac
import re
from collections import Counter
from typing import Final

from bus.messages import ClientEntry
from bus.tokens import Tokens

CLIENT_ID_PATTERN: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a client id looks like; match with `fullmatch`."""

MAX_SECRET_LENGTH: Final = 1_024
"""In characters: of a client's secret, and of the exchange's password."""

SALT_BYTES: Final = 16

_SCRYPT_COST: Final = 2**14
_SCRYPT_BLOCK_SIZE: Final = 8
_SCRYPT_MEMORY: Final = 2 * 128 * _SCRYPT_COST * _SCRYPT_BLOCK_SIZE
"""In bytes. OpenSSL wants a little more than the 16 MiB used."""


def client_id_violation(client_id: str) -> str:
    """Why this is no client id; empty when it is one."""
    if CLIENT_ID_PATTERN.fullmatch(client_id) is not None:
        return ""
    return f"must be 1 to 64 of the characters A-Z a-z 0-9 . _ -, not {client_id!r:.30}"


def secret_violation(secret: str) -> str:
    """Why this is no secret or password; empty when it is one."""
    if len(secret) > MAX_SECRET_LENGTH:
        return f"must be at most {MAX_SECRET_LENGTH} characters long, not {len(secret)}"
    if "\0" in secret:  # scrypt fills a short secret up with these: to it, one more at the end is the same
        return "must have no NUL character"
    return ""


def same_text(one: str, other: str) -> bool:
    """Compare two secrets in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


def hash_secret(secret: str, salt: bytes) -> str:
    """Hash a client's secret (scrypt, in hex). Takes about 50 ms and 16 MiB, on purpose."""
    return hashlib.scrypt(
        secret.encode(),
        salt=salt,
        n=_SCRYPT_COST,
        r=_SCRYPT_BLOCK_SIZE,
        p=1,
        maxmem=_SCRYPT_MEMORY,
    ).hex()


def secret_matches(secret: str, entry: ClientEntry) -> bool:
    """Whether this is the secret that the client was bound to. As slow as `hash_secret`."""
    return hmac.compare_digest(hash_secret(secret, bytes.fromhex(entry.salt)), entry.secret_hash)


class Directory:
    """The clients there are, by bucket key, as last seen. `tokens` are what is stored of their sessions."""

    def __init__(self, tokens: Tokens) -> None:
        self._clients: dict[str, ClientEntry] = {}
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._clients)

    def put(self, key: str, entry: ClientEntry | None) -> None:
        """Take in what a bucket key holds now; None where the key is gone."""
        if entry is None:
            self._clients.pop(key, None)
        else:
            self._clients[key] = entry

    def had_token(self, client_id: str) -> bool:
        """Whether the client was registered: its entry came before its first token."""
        return client_id in self._tokens.clients

    def lost(self) -> set[str]:
        """Clients that were registered and of whom no entry is left."""
        return set(self._tokens.clients) - {entry.client_id for entry in self._clients.values()}

    def clients_per_engine(self) -> Counter[int]:
        """How many clients call each engine home; 0 for any engine not in it. Linear in the clients."""
        return Counter(entry.engine for entry in self._clients.values())
