"""feed: one symbol's market data as it comes over NATS, from every engine, a line a message.

The rules are those of docs/feed.md: one subscription an engine, sequences and checksums are checked
(`bus.replica`), and after a loss a snapshot is asked for again. What came of a message stands at its end.
"""

import asyncio
import time
from decimal import Decimal
from typing import Any, Final

import nats.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from bus import subjects
from bus.addresses import shown
from bus.connection import connect
from bus.messages import (
    ASK,
    BID,
    NO_MESSAGE,
    BookDelta,
    BookSnapshot,
    FeedMessage,
    Heartbeat,
    SnapshotRequest,
    Trades,
    decode_feed,
    encode,
)
from bus.replica import BookReplica, Outcome
from client import Instrument
from client.cli.arguments import Parser, symbol
from client.cli.command import Command, Options
from client.cli.desk import Desk, check_traded, exchange_asked
from client.cli.failures import DONE, Failure
from client.cli.output import Output
from client.cli.settings import Settings
from client.cli.sheets import time_utc
from client.terms import SIDES

_WORDS: Final = {BID: "bid", ASK: "ask"}
_ASK_AGAIN_S: Final = 0.2


def _arrange(parser: Parser) -> None:
    parser.add_argument("symbol", metavar="SYMBOL", type=symbol)
    parser.add_argument("--all", action="store_true", help="snapshots too that say nothing new")


async def feed(options: Options, desk: Desk) -> int:
    """Follow the feed until interrupted."""
    settings = desk.settings
    url = settings.checked_nats()
    async with desk.output.waiting("asking the exchange for the instrument"), exchange_asked():
        instruments = await desk.venue().instruments()
    check_traded(options.symbol, instruments)
    async with desk.output.waiting(f"connecting to {shown(url)}"):
        try:
            async with asyncio.timeout(settings.timeout_s):
                nc = await connect(url, name="feed", on_closed=lambda: None)
        except (OSError, nats.errors.Error) as error:
            raise _nats_away(settings) from error
    try:
        await _follow(nc, Tape(instruments[options.symbol], desk.output, repeats=options.all), desk)
    finally:
        await nc.close()
    return DONE


def _nats_away(settings: Settings) -> Failure:
    return Failure(
        f"no NATS answers at {shown(settings.nats)} ({settings.source('nats')})",
        "name the market's by --nats, or keep it by `matchbus context set NAME --nats URL`",
    )


async def _follow(nc: Nats, tape: "Tape", desk: Desk) -> None:
    """Find engines by their heartbeats and follow each by a subscription of its own.

    Says which are silent. Raises what printing raises.
    """
    settings = desk.settings
    found: set[int] = set()
    heard: set[int] = set()
    # What a callback raises would go to the log.
    unprinted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def discover(msg: Msg) -> None:
        engine = subjects.engine_of(msg.subject)
        if not engine:
            return
        heard.add(engine)
        if engine not in found:
            found.add(engine)
            await nc.subscribe(subjects.feed(engine), cb=receive)

    async def receive(msg: Msg) -> None:
        try:
            engine = tape.receive(msg.subject, msg.data, time.monotonic())
        except (OSError, Failure) as error:
            if not unprinted.done():
                unprinted.set_exception(error)
            return
        if engine is not None:
            request = encode(SnapshotRequest((tape.instrument.symbol,)))
            await nc.publish(subjects.snapshot_request(engine), request)

    await nc.subscribe(subjects.HEARTBEATS, cb=discover)
    while True:
        heard.clear()
        for _ in range(2):  # what has come while a line could not be printed is taken in the second half
            await asyncio.wait((unprinted,), timeout=settings.timeout_s / 2)
        if unprinted.done():
            return unprinted.result()
        silent = found - heard
        if silent or not found:
            names = ", ".join(f"E{engine}" for engine in sorted(silent)) or "any engine"
            quiet = Failure(f"nothing has come from {names} for {settings.timeout_s:g} s")
            await desk.tell_away(quiet if nc.is_connected else _nats_away(settings))


class Tape:
    """Prints one symbol's messages of every engine, and says when a book has to be asked for.

    Snapshots come every 1.5 s while a book changes: with `repeats` those that change nothing are printed too.
    """

    def __init__(self, instrument: Instrument, output: Output, *, repeats: bool = False) -> None:
        self.instrument = instrument
        self._repeats = repeats
        self._output = output
        self._token = subjects.symbol_token(instrument.symbol)
        self._replicas: dict[int, BookReplica] = {}
        self._asked_at: dict[int, float] = {}

    def receive(self, subject: str, payload: bytes, now_s: float) -> int | None:
        """Take one message; the engine to ask for a snapshot now, if any."""
        engine = subjects.engine_of(subject)
        replica = self._replicas.setdefault(engine, BookReplica(self.instrument.symbol))
        is_heartbeat = subject == subjects.heartbeat(engine)
        if not is_heartbeat and subject.rpartition(".")[2] != self._token:
            return None
        try:
            self._take(engine, decode_feed(payload), replica)
        except (*NO_MESSAGE, LookupError, ArithmeticError, ValueError):  # not even a side, a price or a time
            self._show(
                engine, "malformed", {"bytes": len(payload)}, f"{len(payload)} bytes that are no message"
            )
            return None
        if replica.synced or now_s - self._asked_at.get(engine, float("-inf")) < _ASK_AGAIN_S:
            return None
        self._asked_at[engine] = now_s
        return engine

    def _take(self, engine: int, message: FeedMessage, replica: BookReplica) -> None:
        match message:
            case Heartbeat():
                if message.epoch > replica.epoch:
                    replica.begin_epoch(message.epoch)
                replica.expect(message.sequences.get(self.instrument.symbol, 0))
            case BookSnapshot():
                self._show_snapshot(engine, message, replica.apply_snapshot(message), replica)
            case BookDelta():
                self._show_delta(engine, message, replica.apply_delta(message))
            case Trades():
                self._show_trades(engine, message)

    def _show_snapshot(
        self, engine: int, message: BookSnapshot, outcome: Outcome, replica: BookReplica
    ) -> None:
        if outcome is Outcome.DUPLICATE and not self._repeats:
            return
        fields = {
            "epoch": message.epoch,
            "sequence": message.sequence,
            "batch_number": message.batch_number,
            "time_ns": message.time_ns,
            "part": message.part,
            "parts": message.parts,
            "levels": self._levels(message.levels),
            "checksum": message.checksum,
            "outcome": outcome.name.lower(),
        }
        part = f" part {message.part} of {message.parts}" if message.parts > 1 else ""
        text = (
            f"{time_utc(message.time_ns)}  sequence {message.sequence}{part}  "
            f"{self._best(replica, BID)}  {self._best(replica, ASK)}"
        )
        self._show(engine, "snapshot", fields, text + _remark(outcome))

    def _show_delta(self, engine: int, message: BookDelta, outcome: Outcome) -> None:
        fields = {
            "epoch": message.epoch,
            "sequence": message.sequence,
            "previous_sequence": message.previous_sequence,
            "batch_number": message.batch_number,
            "time_ns": message.time_ns,
            "levels": self._levels(message.levels),
            "checksum": message.checksum,
            "outcome": outcome.name.lower(),
        }
        changes = "  ".join(
            f"{_WORDS[side]} {self._price(price):f} "
            + (f"x {self._quantity(quantity):f}" if quantity else "gone")
            for side, price, quantity, _ in message.levels
        )
        text = f"{time_utc(message.time_ns)}  sequence {message.sequence}  {changes}"
        self._show(engine, "delta", fields, text + _remark(outcome))

    def _show_trades(self, engine: int, message: Trades) -> None:
        for execution_id, price, quantity, side in message.trades:
            fields = {
                "epoch": message.epoch,
                "batch_number": message.batch_number,
                "time_ns": message.time_ns,
                "execution_id": execution_id,
                "price": self._price(price),
                "quantity": self._quantity(quantity),
                "taker_side": SIDES[side],
            }
            text = (
                f"{time_utc(message.time_ns)}  {self._quantity(quantity):f} at {self._price(price):f}, "
                f"the taker {'bought' if side == BID else 'sold'}"
            )
            self._show(engine, "trade", fields, text)

    def _show(self, engine: int, kind: str, fields: dict[str, Any], text: str) -> None:
        head = {"kind": kind, "engine": engine, "symbol": self.instrument.symbol}
        self._output.answer(head | fields, f"E{engine}  {kind:<8}  {text}")

    def _best(self, replica: BookReplica, side: int) -> str:
        best = replica.best(side)
        if best is None:
            return f"no {_WORDS[side]}"
        return f"{_WORDS[side]} {self._price(best[0]):f} x {self._quantity(best[1]):f}"

    def _levels(self, levels: tuple[tuple[int, int, int, int], ...]) -> list[dict[str, Any]]:
        return [
            {
                "side": SIDES[side],
                "price": self._price(price),
                "quantity": self._quantity(quantity),
                "order_count": order_count,
            }
            for side, price, quantity, order_count in levels
        ]

    def _price(self, ticks: int) -> Decimal:
        return self.instrument.price(ticks)

    def _quantity(self, lots: int) -> Decimal:
        return self.instrument.quantity(lots)


def _remark(outcome: Outcome) -> str:
    return "" if outcome is Outcome.APPLIED else f"  ({outcome.name.lower()})"


COMMANDS: Final = (
    Command(
        "feed",
        "Follow a symbol's market data over NATS: deltas, snapshots, trades.",
        _arrange,
        feed,
        lambda _: True,
    ),
)
