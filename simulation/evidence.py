"""Reads what a run under faults left: what clients can ask for, the journals and the execution reports.

Not here: what must hold of it (`simulation/witness.py`).
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import nats.errors

from bus import subjects
from bus.connection import Connection
from bus.messages import Executions, ReportedFill, decode_executions
from bus.stream import StreamError, extent
from bus.stream_reader import StreamReader
from client import Client, MatchbusError
from client.results import Book
from simulation.checks import Check
from simulation.load import Loader
from simulation.nats_option import NatsAway, connected
from simulation.witness import ClientLog, Evidence, Levels

QUIET_DEADLINE_S: Final = 30.0
"""How long positions, books and reports may take to agree once the clients are quiet."""

_POLL_S: Final = 0.05
_LOOK_S: Final = 1.0
"""How long a stream may bring nothing before the witness looks whether what comes next is there."""

_SILENCE_S: Final = 30.0
"""How long nats-server may take to be there again after all is quiet."""


async def read_evidence(
    nats_url: str, loaders: Sequence[Loader], engines: int, all_up_ns: int
) -> tuple[Evidence, Check]:
    """Read everything there is, again while the reports lack what clients have seen.

    Where something does not answer, the check says so and the evidence is what the clients wrote down.
    """
    check = Check("what the run left can be read", checked=1)
    try:
        async with connected(nats_url, "witness") as nc:
            deadline = time.monotonic() + QUIET_DEADLINE_S
            while True:
                evidence = await _read(nc, loaders, engines, all_up_ns)
                reported = sum(
                    type(one) is ReportedFill
                    for messages in evidence.executions.values()
                    for message in messages
                    for one in message.reports
                )
                seen = sum(len(log.fills) for log in evidence.clients.values())
                if reported == seen or time.monotonic() > deadline:
                    return evidence, check
                await asyncio.sleep(_POLL_S)
    except (MatchbusError, NatsAway, StreamError, nats.errors.Error) as error:
        check.violations.append(str(error))
        return Evidence({}, {}, _clients(loaders), {}, {}, {}), check


def _clients(loaders: Sequence[Loader]) -> dict[str, ClientLog]:
    return {loader.log.name: loader.log for loader in loaders}


async def _read(nc: Connection, loaders: Sequence[Loader], engines: int, all_up_ns: int) -> Evidence:
    positions: dict[tuple[str, str], int] = {}
    for loader in loaders:
        instruments = loader.client.instruments
        for symbol, position in (await loader.close_books()).items():
            positions[loader.log.name, symbol] = instruments[symbol].lots(position.quantity)
    numbers = range(1, engines + 1)
    books: dict[tuple[int, str], tuple[Levels, Levels]] = {}
    for symbol in loaders[0].middles.prices:
        for loader in loaders[:engines]:  # one at home on each
            books[loader.log.engine, symbol] = _levels(await loader.client.book(symbol), loader.client)
    executions: dict[int, list[Executions]] = {number: [] for number in numbers}
    for payload in await _payloads(nc, subjects.EXECUTIONS_STREAM):
        message = decode_executions(payload)
        executions[message.engine].append(message)
    return Evidence(
        journals={number: await _payloads(nc, subjects.journal_stream(number)) for number in numbers},
        executions=executions,
        clients=_clients(loaders),
        books=books,
        best=await best_prices(loaders),
        positions=positions,
        all_up_ns=all_up_ns,
    )


async def best_prices(loaders: Sequence[Loader]) -> dict[str, tuple[int | None, int | None]]:
    """The best bid and ask of each symbol over the books of all engines.

    Each engine is asked: the exchange's sum leaves out one that it does not see live yet.
    """
    homes = {loader.log.engine: loader.client for loader in loaders}
    best: dict[str, tuple[int | None, int | None]] = {}
    for symbol in loaders[0].middles.prices:
        books = [_levels(await client.book(symbol), client) for client in homes.values()]
        best[symbol] = (
            max((bids[0][0] for bids, _ in books if bids), default=None),
            min((asks[0][0] for _, asks in books if asks), default=None),
        )
    return best


def _levels(book: Book, client: Client) -> tuple[Levels, Levels]:
    instrument = client.instruments[book.symbol]
    bids, asks = (
        [
            (instrument.ticks(level.price), instrument.lots(level.quantity), level.order_count)
            for level in side
        ]
        for side in (book.bids, book.asks)
    )
    return bids, asks


async def _payloads(nc: Connection, stream: str) -> list[bytes]:
    """Every message of a stream as it stands now. Raises `StreamError` when one is gone, or none comes."""
    end = (await extent(nc, stream)).last_seq
    reader = StreamReader(nc, stream)
    payloads: list[bytes] = []
    quiet_looks = 0  # by the clock what came while we were held up would count as silence, unread
    try:
        while len(payloads) < end:
            arrived = await reader.read(_LOOK_S)
            payloads += [stored.payload for stored in arrived]
            quiet_looks = 0 if arrived else quiet_looks + 1
            if quiet_looks * _LOOK_S > _SILENCE_S:
                raise StreamError(f"stream {stream}: nothing has come for {_SILENCE_S:g} s")
            if not arrived and await reader.is_next_lost():
                raise StreamError(f"stream {stream}: message {reader.next_sequence} of {end} is gone")
    finally:
        await reader.close()
    return payloads
