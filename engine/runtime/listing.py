"""Which symbols are listed, and how one comes to trade here: by a command, as everything does.

Symbols are never taken off while the market lives, and their sizes never change: prices and quantities in the
journal are counted in them.
"""

import asyncio
from decimal import Decimal
from typing import Final

from bus import subjects
from bus.messages import InstrumentEntry
from bus.runner import ProcessFault
from engine.commands import AddInstrument
from engine.runtime.commit_loop import CommitLoop, Submission
from engine.state import State

_BPS_PER_PERCENT: Final = 100


class Listing:
    """The symbols that the bucket of instruments has, for one engine's state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._entries: dict[str, InstrumentEntry] = {}
        self._loop: CommitLoop | None = None

    def note(self, _: str, entry: InstrumentEntry | None) -> None:
        """The bucket has a symbol: it trades as soon as symbols do. Raises as `check_sizes` does."""
        if entry is None:
            return
        self._entries[entry.symbol] = entry
        if self._loop is not None:
            self._list(self._loop, entry)

    def check_sizes(self) -> None:
        """Raise ProcessFault for a symbol listed in other sizes than its prices and quantities count."""
        for entry in self._entries.values():
            self._check_sizes(entry)

    async def begin(self, loop: CommitLoop) -> None:
        """Let symbols trade from now on; return when those do that are listed.

        Raises as `check_sizes` does.
        """
        self._loop = loop
        listings = [self._list(loop, entry) for entry in self._entries.values()]
        await asyncio.gather(*(listing for listing in listings if listing is not None))

    def _list(self, loop: CommitLoop, entry: InstrumentEntry) -> asyncio.Future[Submission] | None:
        """Let a symbol trade, with its collar; the future, if it does not yet, resolves when it does."""
        self._check_sizes(entry)
        collar_bps = int(Decimal(entry.market_collar_percent or "0") * _BPS_PER_PERCENT)
        known = self._state.instruments.get(entry.symbol)
        if known is not None and known.market_collar_bps == collar_bps:
            return None
        return loop.submit_own(AddInstrument(entry.symbol, entry.tick_size, entry.lot_size, collar_bps))

    def _check_sizes(self, entry: InstrumentEntry) -> None:
        known = self._state.instruments.get(entry.symbol)
        if known is not None and _sizes(entry) != _sizes(known):
            raise ProcessFault(_other_sizes(self._state.engine, entry, known))


def _sizes(instrument: AddInstrument | InstrumentEntry) -> tuple[Decimal, Decimal]:
    """Tick and lot size as numbers: 0.1 and 0.10 are the same."""
    return Decimal(instrument.tick_size), Decimal(instrument.lot_size)


def _other_sizes(number: int, listed: InstrumentEntry, known: AddInstrument) -> str:
    """Why an engine must not trade a symbol, and what to do: clients would take its prices for others."""
    bucket = subjects.bucket_stream(subjects.INSTRUMENTS_BUCKET)
    return (
        f"{listed.symbol} is listed with tick size {listed.tick_size} and lot size {listed.lot_size}, but the"
        f" journal of E{number} counts it in ticks of {known.tick_size} and lots of {known.lot_size}. Restore"
        " the NATS store from a copy; or stop everything, put the old sizes into the instruments file, move"
        f" the directory of stream {bucket} out of the store, and start again"
    )
