"""What stands twice because imports point one way (tests/test_architecture.py), and must stay alike."""

import argparse

import pytest
from matchbus import edge

import engine.terms
import exchange.runtime.settings
from bus import connection, runner, subjects
from client import client, session
from client.cli import arguments, settings


def test_limits_are_the_venues() -> None:
    """What a client refuses or sends is what an engine refuses or takes."""
    assert client.MAX_CLIENT_ORDER_ID_LENGTH == engine.terms.MAX_CLIENT_ORDER_ID_LENGTH
    assert session.MAX_MESSAGE_BYTES == edge.MAX_MESSAGE_BYTES
    assert session.MAX_REPLY_BYTES == edge.MAX_REPLY_BYTES
    assert arguments._SYMBOL.pattern == subjects.SYMBOL_PATTERN.pattern
    assert session._MAX_PORT == runner.MAX_PORT


def test_defaults_are_the_venues() -> None:
    """A trader who says nothing finds the market of an operator who said nothing."""
    assert settings.DEFAULT_NATS == runner.DEFAULT_NATS_URL
    assert settings.DEFAULT_PASSWORD == exchange.runtime.settings.DEFAULT_PASSWORD
    assert runner.default_listen({}, exchange.runtime.settings.DEFAULT_PORT) == settings.DEFAULT_EXCHANGE


@pytest.mark.parametrize("text", ["0", "007", "9" * 60, "9" * 61, "", "-1", "1_0", "1.0", " 1", "٣", "²"])
def test_whole_numbers_are_read_alike(text: str) -> None:
    """By the commands of traders and of operators."""
    assert arguments._up_to(text, 10**60) == runner.number(text)


@pytest.mark.parametrize(
    "text", ["nats://127.0.0.1:4222", "tls://HOST/", "HOST", "nats://a:b@HOST,[::1]:4222"]
)
def test_addresses_of_nats_are_read_alike(text: str) -> None:
    """By the commands of traders and of operators."""
    settings.check_nats(text)
    assert runner.nats_address(text) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://a:b@HOST,[::1]:4222,tls://t0k3n@HOST/", "nats://HOST,[::1]:4222,tls://HOST/"),
        ("a:p@ss@HOST", "HOST"),
        ("nats://a:p/s@HOST:4222", "nats://HOST:4222"),
    ],
)
def test_addresses_of_nats_are_shown_alike(text: str, seen: str) -> None:
    """Without what may be a password."""
    assert (connection.shown(text), settings.shown_nats(text)) == (seen, seen)


@pytest.mark.parametrize("text", ["http://foo", "nats:/HOST", "nats://", "nats://a/b", "HOST,", "A, B", ""])
def test_what_is_no_address_of_nats_is_refused_alike(text: str) -> None:
    """In the same words."""
    with pytest.raises(ValueError, match="is no address of NATS") as trader:
        settings.check_nats(text)
    with pytest.raises(argparse.ArgumentTypeError) as operator:
        runner.nats_address(text)
    assert str(operator.value) == str(trader.value)
