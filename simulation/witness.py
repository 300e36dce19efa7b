"""The witness: what clients were told, what the streams hold and what the venue shows must be one history.

It knows nothing of the engine but the commands and the shape of the records, and decides by
`simulation.naive` what must have come of them. Pure: evidence in, checks out. A journal is its own proof of
the order of events, so all of it is one pass over each.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from bus.messages import Executions, ReportedFill
from bus.records import Chain, JournalDamaged
from engine.commands import Command, EpochStarted, NewOrder, OrderCommand, decode
from engine.terms import OrderStatus, Side
from simulation.checks import Check, Tally, uncrossed
from simulation.naive import NaiveEngine

LEG_DEADLINE_NS: Final = 5_000_000_000
"""How long a leg may be in doubt once every engine is up."""

_ENGINE_BITS: Final = 48
"""Above these bits of an order id stands its engine. The engine's own constant is on purpose not used."""

Levels = list[tuple[int, int, int]]
"""(price, quantity, order count), the best first."""


class Told(msgspec.Struct, gc=False):
    """One command of a client and what it heard. Times are one monotonic clock's; `acked_ns` 0: no answer.

    `command` is as the journal must have it, but for the away quotes, which are the engine's.
    `inferred`: the answer was lost, and the client library found out by asking how the order stands.
    `given_again`: the library gave up at its deadline, and the client gave the command anew.
    """

    command: OrderCommand
    sent_ns: int
    acked_ns: int = 0
    order_id: int = 0
    status: int = 0
    reason: int = 0
    cumulative: int = 0
    leaves: int = 0
    fills: tuple[ReportedFill, ...] = ()
    fills_omitted: int = 0
    duplicate: bool = False
    inferred: bool = False
    given_again: bool = False

    @property
    def name(self) -> str:
        """The command, in short."""
        return f"{type(self.command).__name__} {self.command.client_order_id}"


class StillOpen(msgspec.Struct, frozen=True, gc=False):
    """An order that the venue says can still trade."""

    order_id: int
    client_order_id: str
    status: int
    price: int
    quantity: int
    cumulative: int
    leaves: int
    cancelled: int


@dataclass(slots=True)
class ClientLog:
    """What one client did and saw. `followed` came while it happened, `fills` is the history at the end."""

    name: str
    engine: int
    commands: list[Told] = field(default_factory=list)
    followed: list[ReportedFill] = field(default_factory=list)
    fills: list[ReportedFill] = field(default_factory=list)
    open_orders: list[StillOpen] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """What the client library raised that no fault excuses."""


@dataclass(slots=True)
class Evidence:
    """All that is left of a run. `positions` and `best` (of the consolidated book) the exchange told."""

    journals: dict[int, list[bytes]]
    executions: dict[int, list[Executions]]
    clients: dict[str, ClientLog]
    books: dict[tuple[int, str], tuple[Levels, Levels]]
    best: dict[str, tuple[int | None, int | None]]
    positions: dict[tuple[str, str], int]
    all_up_ns: int = 0
    """UTC: from then on every process served."""


def judge(evidence: Evidence) -> list[Check]:
    """Everything that must hold, each with what is wrong."""
    journals = Check("journals are whole; no record of a replaced epoch")
    engines = {
        number: _replay(number, records, journals) for number, records in sorted(evidence.journals.items())
    }
    tally = Tally()
    for messages in evidence.executions.values():
        for message in messages:
            for report in message.reports:
                tally.add(report)
    return [
        journals,
        *_acknowledged(evidence, engines),
        _in_real_time(evidence, engines),
        _in_given_order(evidence, engines),
        _reports(evidence, engines),
        _stored_once(evidence),
        tally.gap_free(),
        tally.received({name: log.fills for name, log in evidence.clients.items()}),
        _told_fills(evidence),
        tally.quantity,
        tally.limits,
        tally.trades(),
        tally.zero_sum(),
        tally.same_positions(_all_positions(evidence)),
        _legs(engines),
        _legs_in_time(evidence, engines),
        _open_orders(evidence, engines),
        _books(evidence, engines),
        uncrossed(evidence.best),
        _no_errors(evidence),
    ]


# -- journals -------------------------------------------------------------------------------------------


def _replay(number: int, records: Sequence[bytes], check: Check) -> NaiveEngine:
    """Read one journal, checking every record, through an engine of our own."""
    chain = Chain(number)
    engine = NaiveEngine(number)
    epoch = 0
    for sequence, payload in enumerate(records, 1):
        check.checked += 1
        try:
            record = chain.accept(sequence, payload)
        except JournalDamaged as damage:
            check.violations.append(str(damage))
            return engine
        if record is None:
            check.violations.append(f"E{number}: record {sequence} is of an epoch replaced before it")
            continue
        commands = decode(record.commands)
        if fault := _wrong_epoch(record.epoch, epoch, commands):
            check.violations.append(f"E{number}: record {sequence} {fault}")
        epoch = record.epoch
        engine.batch(record.time_ns, commands)
    return engine


def _wrong_epoch(epoch: int, before: int, commands: tuple[Command, ...]) -> str:
    """Why this record cannot be of its epoch: a reign begins with the record that says so, and only there."""
    begun = [command.epoch for command in commands if isinstance(command, EpochStarted)]
    if epoch != before and begun != [epoch]:
        return f"is of epoch {epoch}, which no record has begun"
    if epoch == before and begun:
        return f"begins epoch {begun[0]} within epoch {epoch}"
    return ""


# -- what clients were told -------------------------------------------------------------------------------


def all_answered(clients: Mapping[str, ClientLog]) -> Check:
    """Every command got its answer in the end. Not in `judge`: it holds or not without further evidence."""
    check = Check("every command has an answer")
    for log in clients.values():
        check.checked += len(log.commands)
        check.violations += [f"{log.name}: {told.name}" for told in log.commands if not told.acked_ns]
    return check


def _acknowledged(evidence: Evidence, engines: Mapping[int, NaiveEngine]) -> list[Check]:
    """Every answered command is in the journal, and its answer is one that the journal gives.

    Whether the fills in an answer are the order's, `_told_fills` asks; here they must be all of them.
    """
    present = Check("every acknowledged command is in the journal")
    outcomes = Check("every acknowledgement says what the journal says")
    for log, told in _answered(evidence):
        present.checked += 1
        attempts = engines[log.engine].attempts.get(told.command, [])
        if not attempts:
            present.violations.append(f"{told.command} is not there")
            continue
        if told.inferred:
            continue  # the answer itself was lost; the order's end is checked with the others
        outcomes.checked += 1
        possible = [outcome for attempt in attempts for outcome in attempt.outcomes]
        if told.status == OrderStatus.REJECTED:
            fits = any((one.status, one.reason) == (told.status, told.reason) for one in possible)
        else:
            said = (told.status, told.reason, told.order_id, told.cumulative, told.leaves)
            fits = any(
                (one.status, one.reason, one.order_id, one.cumulative, one.leaves) == said for one in possible
            )
        if not fits:
            outcomes.violations.append(
                f"{log.name}: {told.name} was told status {told.status}, reason "
                f"{told.reason}, {told.cumulative} filled, {told.leaves} left; the journal says {possible}"
            )
        if not _tells_fills(told):
            outcomes.violations.append(
                f"{log.name}: {told.name} was told {told.cumulative} filled of order {told.order_id}, "
                f"by the fills {told.fills}"
            )
    return [present, outcomes]


def _tells_fills(told: Told) -> bool:
    """Whether the fills in an answer are of its order and, of an order that is new, all that it counts."""
    if any(fill.order_id != told.order_id for fill in told.fills):
        return False
    is_whole = isinstance(told.command, NewOrder) and not told.fills_omitted
    return not is_whole or sum(fill.quantity for fill in told.fills) == told.cumulative


def _in_real_time(evidence: Evidence, engines: Mapping[int, NaiveEngine]) -> Check:
    """A command that was answered before another of its client was sent stands before it in the journal."""
    check = Check("the journal's order is the order clients saw")
    for log in evidence.clients.values():
        attempts = engines[log.engine].attempts
        placed = [
            (told, found[0].place)
            for told in log.commands
            if told.acked_ns and (found := attempts.get(told.command))
        ]
        by_ack = sorted(placed, key=lambda one: one[0].acked_ns)
        newest, answered = 0, 0
        for told, place in sorted(placed, key=lambda one: one[0].sent_ns):
            while by_ack[answered][0].acked_ns < told.sent_ns:
                newest = max(newest, by_ack[answered][1])
                answered += 1
            check.checked += 1
            if place < newest:
                check.violations.append(
                    f"{log.name}: {told.name} has place {place}, though {newest} was answered before it "
                    "was sent"
                )
    return check


def _in_given_order(evidence: Evidence, engines: Mapping[int, NaiveEngine]) -> Check:
    """Commands of one client reach the journal in the order in which they were given, waited for or not.

    The client library promises this, over reconnects too, for what it did not give up in between.
    """
    check = Check("a client's commands stand in the order they were given")
    for log in evidence.clients.values():
        attempts = engines[log.engine].attempts
        newest = 0
        for told in log.commands:
            found = attempts.get(told.command)
            if told.given_again or not found:
                continue
            check.checked += 1
            if found[0].place < newest:
                check.violations.append(
                    f"{log.name}: {told.name} has place {found[0].place}, one given before it {newest}"
                )
            newest = max(newest, found[0].place)
    return check


def _told_fills(evidence: Evidence) -> Check:
    """No fill that a client was told of, in an answer or while it happened, is missing from its history."""
    check = Check("no fill that a client saw is lost or changed")
    for log in evidence.clients.values():
        history = {fill.sequence: fill for fill in log.fills}
        check.checked += len(log.followed)
        if log.followed != log.fills:
            check.violations.append(
                f"{log.name}: the {len(log.followed)} fills that it followed are not its history of"
                f" {len(log.fills)}"
            )
        for told in log.commands:
            for fill in told.fills:
                check.checked += 1
                if history.get(fill.sequence) != fill:
                    check.violations.append(
                        f"{log.name}: {told.name} was told {fill}, history has {history.get(fill.sequence)}"
                    )
    return check


def _no_errors(evidence: Evidence) -> Check:
    """Faults make a client wait, or give up at its deadline; it sees nothing else of them."""
    check = Check("clients hear nothing worse than to wait")
    for log in evidence.clients.values():
        check.checked += len(log.commands)
        check.violations += [f"{log.name}: {error}" for error in log.errors]
    return check


# -- streams and what the venue shows ----------------------------------------------------------------------


def _reports(evidence: Evidence, engines: Mapping[int, NaiveEngine]) -> Check:
    """The execution reports are, one by one, what the journal makes of the rules: who traded, and when."""
    check = Check("every report is what price-time priority makes of the journal")
    for number, engine in engines.items():
        stored = [report for message in evidence.executions.get(number, []) for report in message.reports]
        check.checked += len(engine.reports)
        for index, (told, due) in enumerate(zip(stored, engine.reports, strict=False)):
            if told != due:
                check.violations.append(f"E{number}: report {index} is {told}, due is {due}")
                break
        if len(stored) != len(engine.reports):
            check.violations.append(f"E{number}: {len(stored)} reports are stored, {len(engine.reports)} due")
    return check


def _stored_once(evidence: Evidence) -> Check:
    """The messages of one engine follow each other by batch and by epoch."""
    check = Check("execution reports are stored once, in order")
    for number, messages in sorted(evidence.executions.items()):
        last = (0, 0, 0)
        for message in messages:
            check.checked += 1
            place = (message.epoch, message.last_batch, message.last_reports)
            if message.epoch < last[0] or place[1:] <= last[1:]:
                check.violations.append(f"E{number}: a message up to {place} stands behind {last}")
            last = place
    return check


def _all_positions(evidence: Evidence) -> dict[tuple[str, str], int]:
    """The exchange's positions, with a flat one for every client so that none is left out."""
    return {**{(name, ""): 0 for name in evidence.clients}, **evidence.positions}


def _legs(engines: Mapping[int, NaiveEngine]) -> Check:
    """Every leg has ended, as its peer ended it, and no peer took a leg that was not sent."""
    check = Check("every leg has ended, alike on both sides")
    for number, home in engines.items():
        for leg_id, leg in home.legs.items():
            check.checked += 1
            peer = engines.get(leg.peer)
            answer = peer.answered.get(leg_id) if peer is not None else None
            if leg.fills is None:
                check.violations.append(f"leg {leg_id} of E{number} to E{leg.peer} is still in doubt")
            elif answer is None or answer[1] != leg.fills:
                check.violations.append(
                    f"leg {leg_id}: E{number} booked {leg.fills}, E{leg.peer} has {answer and answer[1]}"
                )
    sent_legs = {leg_id: leg for home in engines.values() for leg_id, leg in home.legs.items()}
    for number, receiver in engines.items():
        for leg_id, taken in receiver.taken.items():
            sent = sent_legs.get(leg_id)
            came = (taken.peer_epoch, taken.order_id, taken.symbol, taken.side, taken.limit, taken.quantity)
            if sent is None or came != sent.asked:
                check.violations.append(f"leg {leg_id} came to E{number} as {taken}, which nobody sent")
    return check


def _legs_in_time(evidence: Evidence, engines: Mapping[int, NaiveEngine]) -> Check:
    """Once every engine is up, no doubt about a leg lasts."""
    check = Check(f"no leg is in doubt for {LEG_DEADLINE_NS // 10**9} s once all are up")
    for number, home in engines.items():
        for leg_id, leg in home.legs.items():
            check.checked += 1
            doubt_ns = leg.back_ns - max(leg.sent_ns, evidence.all_up_ns)
            if leg.fills is not None and doubt_ns > LEG_DEADLINE_NS:
                check.violations.append(f"leg {leg_id} of E{number} was in doubt for {doubt_ns / 1e9:.1f} s")
    return check


def _open_orders(evidence: Evidence, engines: Mapping[int, NaiveEngine]) -> Check:
    """Each client's open orders are those that the journal leaves open, with nothing out on a leg."""
    check = Check("open orders are as the journal leaves them")
    for log in evidence.clients.values():
        due = {
            order.id: (name, order.status, order.price, order.quantity, order.cumulative, order.leaves)
            for (client, name), order in engines[log.engine].orders.items()
            if client == log.name and order.leaves
        }
        told = {
            order.order_id: (
                *(order.client_order_id, order.status, order.price, order.quantity),
                *(order.cumulative, order.leaves),
            )
            for order in log.open_orders
        }
        check.checked += len(due)
        wrong = sorted(key for key in due.keys() | told.keys() if due.get(key) != told.get(key))
        check.violations += [
            f"{log.name}: order {key} is told as {told.get(key)}, due is {due.get(key)}" for key in wrong
        ]
        filled: Counter[int] = Counter()
        for fill in log.fills:
            filled[fill.order_id] += fill.quantity
        for order in log.open_orders:
            if filled[order.order_id] + order.leaves + order.cancelled != order.quantity:
                check.violations.append(f"{log.name}: the quantities of order {order.order_id} do not add up")
            if order.status == OrderStatus.PENDING:
                check.violations.append(f"{log.name}: order {order.order_id} still waits for a leg")
    return check


def _books(evidence: Evidence, engines: Mapping[int, NaiveEngine]) -> Check:
    """Each engine shows the book that its journal leaves, and no book is crossed in itself."""
    check = Check("books are as the journal leaves them")
    for (number, symbol), (bids, asks) in sorted(evidence.books.items()):
        check.checked += 1
        engine = engines[number]
        if (bids, asks) != (engine.book(symbol, Side.BUY), engine.book(symbol, Side.SELL)):
            check.violations.append(f"E{number} {symbol}: another book than the journal's")
        if bids and asks and bids[0][0] >= asks[0][0]:
            check.violations.append(f"E{number} {symbol}: bid {bids[0][0]} and ask {asks[0][0]} cross")
    return check


def _answered(evidence: Evidence) -> Iterator[tuple[ClientLog, Told]]:
    for log in evidence.clients.values():
        for told in log.commands:
            if told.acked_ns:
                yield log, told


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run came to, for people."""

    commands: int
    acknowledged: int
    refused: int
    repeated: int
    """Commands whose answer told of an earlier attempt: retries that were recognised."""
    fills: int
    trades_through_legs: int
    records: int


def totals(evidence: Evidence) -> Totals:
    """Count what is there."""
    told = [told for log in evidence.clients.values() for told in log.commands]
    fills = [fill for log in evidence.clients.values() for fill in log.fills]
    return Totals(
        commands=len(told),
        acknowledged=sum(one.acked_ns > 0 for one in told),
        refused=sum(one.reason > 0 for one in told),
        repeated=sum(one.duplicate or one.inferred for one in told),
        fills=len(fills),
        trades_through_legs=sum(fill.order_id >> _ENGINE_BITS != fill.engine for fill in fills),
        records=sum(map(len, evidence.journals.values())),
    )
