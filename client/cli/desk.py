"""A trader's desk: settings, output and the connection that commands share, opened when first needed."""

import math
import time
from collections.abc import AsyncIterator, Container, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Self

from client import Client, MatchbusError, Unavailable, UnknownSymbol, Venue
from client.cli.failures import ExchangeAway, Failure, explain, is_silence
from client.cli.output import Output
from client.cli.settings import Settings, SettingsError, contexts_file, load, resolve

TELL_S: Final = 60.0
"""How often a command that goes on says that nobody answers."""

EXPLAINED: Final = (Failure, SettingsError, MatchbusError, ValueError)
"""What a command may raise. `ValueError`: what the library cannot send, such as a price off the tick."""


@asynccontextmanager
async def exchange_asked() -> AsyncIterator[None]:
    """Around a question to the exchange: its silence becomes `ExchangeAway`, what it answers does not."""
    try:
        yield
    except Unavailable as error:
        if not is_silence(error):
            raise
        raise ExchangeAway(error) from error


def check_traded(symbol: str | None, instruments: Container[str]) -> None:
    """Raise `UnknownSymbol` for one that is not traded here; None stands for all."""
    if symbol is not None and symbol not in instruments:
        raise UnknownSymbol(symbol)


class Desk:
    """What every command works with: `async with Desk(...) as desk`.

    `options` are what was typed. The contexts are read when the settings are first needed.
    """

    def __init__(self, options: Mapping[str, Any], environment: Mapping[str, str], output: Output) -> None:
        self.output = output
        self._options = options
        self._environment = environment
        self._client: Client | None = None
        self._venue: Venue | None = None
        self._told_away_s = -math.inf

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for opened in (self._client, self._venue):
            if opened is not None:
                await opened.close()

    @cached_property
    def settings(self) -> Settings:
        """Who trades where. Raises `SettingsError`."""
        return resolve(self._options, self._environment, load(contexts_file(self._environment)))

    async def client(self, *, preferred_engine: int = 0) -> Client:
        """The registered client. Raises `SettingsError` when nobody is, `ExchangeAway`, and the library's."""
        if self._client is None:
            settings = self.settings
            settings.check_registered()
            client = Client.connect(
                settings.checked_exchange(),
                client_id=settings.client_id,
                password=settings.password,
                secret=settings.secret,
                preferred_engine=preferred_engine,
                deadline_s=settings.timeout_s,
            )
            what = f"registering {settings.client_id} at {settings.exchange}"
            async with self.output.waiting(what), exchange_asked():
                self._client = await client.open()
        return self._client

    def venue(self) -> Venue:
        """What anyone may ask. Raises `SettingsError`; its calls `Unavailable` when the exchange is away."""
        if self._client is not None:
            return self._client.venue
        if self._venue is None:
            self._venue = Venue.connect(self.settings.checked_exchange(), deadline_s=self.settings.timeout_s)
        return self._venue

    async def tell_away(self, error: Unavailable | ExchangeAway | Failure) -> None:
        """Say that what was to go on has no answer now and is tried again."""
        if time.monotonic() - self._told_away_s >= TELL_S:
            self._told_away_s = time.monotonic()
            self.output.failure(Failure((await self.explain(error)).text, "it is tried again, until Ctrl-C"))

    async def explain(self, error: Exception) -> Failure:
        """The failure that an error means here."""
        match error:
            case Failure():
                return error
            case SettingsError():
                return Failure(str(error), error.hint)
        listed: list[str] = []
        if isinstance(error, UnknownSymbol):
            with suppress(MatchbusError):  # then the list is missing, and the error is said all the same
                listed = list(await self.venue().instruments())
        return explain(error, self.settings, listed)
