"""Which NATS a tool asks: the one named by --nats, else the one of the trader's settings.

So `matchbus journal verify 1` looks at the market that `matchbus register` was told of.
"""

import os
from typing import Final

from client.cli.settings import contexts_file, load, resolve

NATS_HELP: Final = "default: MATCHBUS_NATS, that of the context in use, or nats://127.0.0.1:4222"


def nats_url(given: str) -> str:
    """The address to ask at. Raises `SettingsError`."""
    return given or resolve({}, os.environ, load(contexts_file(os.environ))).nats
