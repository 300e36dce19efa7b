"""Which NATS a tool asks, and about which engine: the NATS of --nats, else that of the trader's settings.

So `matchbus journal verify 1` looks at the market that `matchbus register` was told of. What keeps it from
finding anything there has an exit code of its own, because 1 says that what was found is damaged.

    NatsAway    no NATS server answers there, or one whose JetStream does not
    NeverRan    it holds nothing of this engine
"""

import argparse
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import nats.errors

from bus import addresses, subjects
from bus.addresses import DEFAULT_NATS_URL, shown
from bus.connection import Connection, LastError, Patience, connect
from client.cli.arguments import nats_address
from client.cli.failures import Failure
from client.cli.settings import contexts_file, load, resolve

_NATS_HELP: Final = f"default: MATCHBUS_NATS, that of the context in use, or {DEFAULT_NATS_URL}"
NOTHING_FOUND: Final = 2

PATIENCE_S: Final = 5.0
"""How long NATS may be silent before it counts as away."""

SNAPSHOT_PATIENCE_S: Final = 120.0
"""How long it may take to load a snapshot: some seconds for a million orders, more on a slow machine."""


class NatsAway(Failure):
    """No market's NATS server answers at this address; `why` is the last error, empty for a silence.

    If a server was `reached`, it is JetStream that does not answer.
    """

    code = NOTHING_FOUND

    def __init__(self, url: str, why: Exception | str, *, reached: bool = True) -> None:
        if isinstance(why, nats.errors.NoRespondersError):  # a server answers, JetStream does not
            super().__init__(f"the NATS server at {shown(url)} has no JetStream", "name a market's by --nats")
            return
        reason = f" ({why})" if str(why) else ""
        if reached:
            text = "JetStream does not answer"
            hint = (
                "of three servers two must run, and after a fault they may take 10 s to choose a leader; or"
                " name another by --nats"
            )
        else:
            text, hint = "no NATS server answers", "start it, or name another by --nats"
        super().__init__(f"{text} at {shown(url)}{reason}", hint)


class NeverRan(Failure):
    """This NATS has neither a journal nor snapshots of the engine."""

    code = NOTHING_FOUND

    def __init__(self, engine: int) -> None:
        super().__init__(
            f"engine {engine} never ran here with a journal: nothing is stored",
            "`matchbus engines` lists those that run; another market's NATS is named by --nats",
        )


@asynccontextmanager
async def connected(url: str, name: str) -> AsyncIterator[Connection]:
    """A connection for the body, which NATS knows by this name; JetStream is there.

    Raises `NatsAway` if it is not, or nothing answers in time.
    """
    last_error = LastError()
    try:
        async with Patience(PATIENCE_S):
            nc = await connect(url, name=name, on_closed=lambda: None, on_error=last_error.note)
    except (TimeoutError, nats.errors.Error) as error:
        raise NatsAway(url, str(error) or last_error.text, reached=False) from error
    try:
        await _check_jetstream(nc, url)
        yield nc
    finally:
        await nc.close()


async def _check_jetstream(nc: Connection, url: str) -> None:
    """Raise `NatsAway` for a server without: later questions cannot tell it from one that is starting."""
    try:
        await nc.request("$JS.API.INFO", timeout=PATIENCE_S)
    except nats.errors.Error as error:
        raise NatsAway(url, error) from error


@contextmanager
def unhurried(patience: Patience) -> Iterator[None]:
    """Let `patience` wait while the body loads a snapshot: that it hears nothing meanwhile is no silence."""
    patience.renew(SNAPSHOT_PATIENCE_S)
    yield
    patience.renew(PATIENCE_S)


def add_nats_option(command: argparse.ArgumentParser) -> None:
    """Let a command be told its NATS."""
    command.add_argument("--nats", metavar="URL", type=nats_address, help=_NATS_HELP)


def add_engine_options(command: argparse.ArgumentParser, *, instead_of: str) -> None:
    """Let a command be told an engine, its NATS, and to answer in JSON `instead_of` what it prints."""
    command.add_argument("engine", metavar="ENGINE", type=_engine_number, help="number of the engine")
    add_nats_option(command)
    command.add_argument("--json", action="store_true", help=f"JSON instead of {instead_of}")


def _engine_number(text: str) -> int:
    number = addresses.number(text)
    if number is None or not 1 <= number <= subjects.MAX_ENGINE:
        raise argparse.ArgumentTypeError(
            f"{text!r:.60} is no engine number: it must be 1 to {subjects.MAX_ENGINE}"
        )
    return number


def nats_url(given: str | None) -> str:
    """The address to ask at. Raises `SettingsError`."""
    return given or resolve({}, os.environ, load(contexts_file(os.environ))).checked_nats()
