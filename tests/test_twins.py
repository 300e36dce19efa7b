"""What stands twice because imports point one way (tests/test_architecture.py), and must stay alike."""

from matchbus import edge

import engine.terms
import exchange.runtime.settings
from bus import runner
from client import client, session
from client.cli import settings


def test_limits_are_the_venues() -> None:
    """What a client refuses or sends is what an engine refuses or takes."""
    assert client.MAX_CLIENT_ORDER_ID_LENGTH == engine.terms.MAX_CLIENT_ORDER_ID_LENGTH
    assert session.MAX_MESSAGE_BYTES == edge.MAX_MESSAGE_BYTES
    assert session.MAX_REPLY_BYTES == edge.MAX_REPLY_BYTES


def test_defaults_are_the_venues() -> None:
    """A trader who says nothing finds the market of an operator who said nothing."""
    assert settings.DEFAULT_PASSWORD == exchange.runtime.settings.DEFAULT_PASSWORD
    assert runner.default_listen({}, exchange.runtime.settings.DEFAULT_PORT) == settings.DEFAULT_EXCHANGE
