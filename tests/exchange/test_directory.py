import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import ClientEntry
from bus.tokens import Tokens
from exchange.directory import (
    Directory,
    client_id_violation,
    hash_secret,
    same_text,
    secret_matches,
    secret_violation,
)


def entry(secret: str, engine: int = 1) -> ClientEntry:
    """A client bound to this secret."""
    salt = b"0123456789abcdef"
    return ClientEntry(client_id="ann", salt=salt.hex(), secret_hash=hash_secret(secret, salt), engine=engine)


@pytest.mark.parametrize("client_id", ["a", "A.b_c-9", "x" * 64])
def test_client_ids(client_id: str) -> None:
    """Ids of 1 to 64 plain characters are taken."""
    assert client_id_violation(client_id) == ""


@pytest.mark.parametrize("client_id", ["", "x" * 65, "a b", "a\n", "*", "a>b", "é", "a/b", "x" * 1_000_000])
def test_other_client_ids(client_id: str) -> None:
    """Anything else is refused, the newline at the end included."""
    assert client_id_violation(client_id).endswith(f", not {client_id!r:.30}")


def test_the_length_of_secrets() -> None:
    """A secret may have up to 1,024 characters of almost any kind, also none."""
    assert secret_violation("") == secret_violation("é" * 1_024) == ""
    assert secret_violation("x" * 1_025) == "must be at most 1024 characters long, not 1025"


def test_a_secret_has_no_nul() -> None:
    """With one at its end it would be taken for the secret without."""
    assert secret_matches("own\0", entry("own")), "scrypt cannot tell them apart"
    assert "no NUL" in secret_violation("own\0")


@pytest.mark.parametrize("secret", ["", "s3cret", "pässword\0"])
def test_secrets(secret: str) -> None:
    """A secret, the empty one too, matches itself and no other; it is not in what is stored."""
    bound = entry(secret)
    assert secret_matches(secret, bound)
    assert not secret_matches(secret + "x", bound)
    assert secret not in bound.secret_hash or not secret


def test_the_salt_counts() -> None:
    """The same secret with another salt has another hash."""
    assert hash_secret("a", b"1" * 16) != hash_secret("a", b"2" * 16)


@given(st.text(), st.text())
def test_same_text(one: str, other: str) -> None:
    """The comparison in constant time is equality."""
    assert same_text(one, other) == (one == other)


def test_clients_per_engine() -> None:
    """Clients are counted where they are at home, a client that is gone or seen twice not twice."""
    directory = Directory(Tokens())
    directory.put("a", entry("", 1))
    directory.put("b", entry("", 2))
    directory.put("b", entry("", 2))
    directory.put("c", entry("", 2))
    directory.put("c", None)
    directory.put("d", None)
    assert dict(directory.clients_per_engine()) == {1: 1, 2: 1}
    assert len(directory) == 2
