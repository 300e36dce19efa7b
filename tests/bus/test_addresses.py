"""How addresses and numbers are read and shown."""

import pytest

from bus.addresses import check_nats, host_and_port, number, shown


@pytest.mark.parametrize(
    ("text", "read"),
    [
        *(("0", 0), ("007", 7), ("9" * 60, int("9" * 60)), ("9" * 61, None), ("", None), ("-1", None)),
        *(("1_0", None), ("1.0", None), (" 1", None), ("٣", None), ("²", None)),
    ],
)
def test_whole_numbers(text: str, read: int | None) -> None:
    """Digits alone, and no more than a person types."""
    assert number(text) == read


def test_an_ipv6_address_has_brackets_before_its_port() -> None:
    """Or its last part could not be told from the port."""
    assert [host_and_port(host, 1) for host in ("127.0.0.1", "::1", "name")] == [
        "127.0.0.1:1",
        "[::1]:1",
        "name:1",
    ]


@pytest.mark.parametrize(
    "text", ["nats://127.0.0.1:4222", "tls://HOST/", "HOST", "nats://a:b@HOST,[::1]:4222"]
)
def test_addresses_of_nats(text: str) -> None:
    """As nats-py takes them, one or several."""
    check_nats(text)


@pytest.mark.parametrize("text", ["http://foo", "nats:/HOST", "nats://", "nats://a/b", "HOST,", "A, B", ""])
def test_what_is_no_address_of_nats_is_refused(text: str) -> None:
    """By name, with how to write one."""
    with pytest.raises(ValueError, match="is no address of NATS: write it like"):
        check_nats(text)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://a:b@HOST,[::1]:4222,tls://t0k3n@HOST/", "nats://HOST,[::1]:4222,tls://HOST/"),
        ("a:p@ss@HOST", "HOST"),
        ("nats://a:p/s@HOST:4222", "nats://HOST:4222"),
    ],
)
def test_addresses_of_nats_are_shown_without_what_may_be_a_password(text: str, seen: str) -> None:
    """Whichever of several servers it is for."""
    assert shown(text) == seen


def test_a_refused_address_is_told_without_its_password() -> None:
    """On a terminal others may look on."""
    with pytest.raises(ValueError, match="'nats://b/c' is no address") as refused:
        check_nats("nats://u:secret@b/c")
    assert "secret" not in str(refused.value)
