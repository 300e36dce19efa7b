"""A good history passes the witness; each known-bad one is flagged by the check it is meant for."""

import ast
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bus.messages import Executions, ReportedFill
from bus.records import JournalPosition, digest_of, encode_record
from engine.commands import (
    AddInstrument,
    AwayQuote,
    CancelOrder,
    Command,
    EpochStarted,
    LegFill,
    LegResult,
    NewOrder,
    TakeLeg,
    encode,
)
from simulation.naive import NaiveEngine
from simulation.witness import ClientLog, Evidence, StillOpen, Told, judge, totals

E1, E2 = 1 << 48, 2 << 48
NEW, FILLED, CANCELLED, REJECTED = 1, 3, 4, 5
ORDER_CLOSED = 17

Batch = tuple[int, list[Command]]
"""An epoch and its commands."""


def journal(engine: int, batches: list[Batch]) -> list[bytes]:
    """The records of these batches, the n-th made at n seconds."""
    at = JournalPosition()
    records = []
    for number, (epoch, commands) in enumerate(batches, 1):
        payload = encode_record(engine, epoch, at, number * 10**9, encode(commands))
        at = JournalPosition(number, digest_of(payload), epoch)
        records.append(payload)
    return records


LEG = TakeLeg(E2 + 1, 2, 1, E2 + 1, "AAPL", 1, 100, 5, E2 + 1)
LISTED = AddInstrument("AAPL", "0.01", "1")
A1, A2, A3 = (
    NewOrder("ann", name, "AAPL", 2, 1, 1, price, quantity)
    for name, price, quantity in (("a1", 100, 5), ("a2", 105, 4), ("a3", 107, 2))
)
A2_CANCELLED = CancelOrder("ann", 0, "a2")
B1 = NewOrder("bob", "b1", "AAPL", 1, 1, 1, 100, 8)
HOME: list[Batch] = [
    (1, [EpochStarted(1), LISTED]),
    (1, [A1]),
    (1, [LEG]),
    (1, [A2]),
    (2, [EpochStarted(2)]),
    (2, [A2]),
    (2, [A2_CANCELLED]),
    (2, [A2_CANCELLED, A3]),
]
"""Engine 1: Ann sells 5 to a leg; then an order of hers is given twice and cancelled twice around a crash."""

AWAY: list[Batch] = [
    (1, [EpochStarted(1), LISTED]),
    (1, [msgspec.structs.replace(B1, away=(AwayQuote(1, 1, 1, ((100, 5),)),))]),
    (1, [LegResult(E2 + 1, (LegFill(E1 + 1, 100, 5, E1 + 1, 3 * 10**9),))]),
]
"""Engine 2: Bob buys 8, five of them by a leg to engine 1, three rest."""

ANN = ReportedFill("ann", 1, E1 + 1, E1 + 1, "a1", "AAPL", 2, 100, 5, 1, 5, 0, 1, 3 * 10**9, E2 + 1)
BOB = ReportedFill("bob", 1, E1 + 1, E2 + 1, "b1", "AAPL", 1, 100, 5, 2, 5, 3, 1, 3 * 10**9, E1 + 1)


def reports(engine: int, batches: list[Batch]) -> list[Executions]:
    """One message of execution reports for each batch that has any."""
    naive = NaiveEngine(engine)
    messages = []
    for number, (epoch, commands) in enumerate(batches, 1):
        before = len(naive.reports)
        naive.batch(number * 10**9, tuple(commands))
        made = tuple(naive.reports[before:])
        if made:
            messages.append(Executions(engine, epoch, number, number, len(made), made))
    return messages


def good() -> Evidence:
    """All that is left of a good run."""
    ann = ClientLog("ann", 1)
    ann.commands = [
        Told(A1, 10, 20, E1 + 1, NEW, 0, 0, 5),
        Told(A2, 30, 50, E1 + 2, NEW, 0, 0, 4, duplicate=True),
        Told(A2_CANCELLED, 60, 70, E1 + 2, REJECTED, ORDER_CLOSED),
        Told(A3, 80, 90, E1 + 3, NEW, 0, 0, 2),
    ]
    ann.followed, ann.fills = [ANN], [ANN]
    ann.open_orders = [StillOpen(E1 + 3, "a3", NEW, 107, 2, 0, 2, 0)]
    bob = ClientLog("bob", 2)
    bob.commands = [Told(B1, 15, 25, E2 + 1, 2, 0, 5, 3, (BOB,))]
    bob.followed, bob.fills = [BOB], [BOB]
    bob.open_orders = [StillOpen(E2 + 1, "b1", 2, 100, 8, 5, 3, 0)]
    return Evidence(
        journals={1: journal(1, HOME), 2: journal(2, AWAY)},
        executions={1: reports(1, HOME), 2: reports(2, AWAY)},
        clients={"ann": ann, "bob": bob},
        books={(1, "AAPL"): ([], [(107, 2, 1)]), (2, "AAPL"): ([(100, 3, 1)], [])},
        best={"AAPL": (100, 107)},
        positions={("ann", "AAPL"): -5, ("bob", "AAPL"): 5},
    )


def violated(evidence: Evidence) -> set[str]:
    """Names of the checks that do not hold."""
    return {check.name for check in judge(evidence) if not check.holds}


def test_a_good_history_passes_and_everything_is_looked_at() -> None:
    """No check finds anything, and none had nothing to check."""
    checks = judge(good())
    assert [check.violations for check in checks if check.violations] == []
    assert [check.name for check in checks if not check.checked] == []
    assert (totals(good()).fills, totals(good()).trades_through_legs, totals(good()).repeated) == (2, 1, 1)


def change(fill: ReportedFill, **fields: object) -> ReportedFill:
    """A fill with other fields."""
    return msgspec.structs.replace(fill, **fields)


def lost_ack(evidence: Evidence) -> None:
    """Ann was told that an order rests of which no journal knows."""
    lost = msgspec.structs.replace(A1, client_order_id="a9")
    evidence.clients["ann"].commands.append(Told(lost, 95, 99, E1 + 9, NEW, 0, 0, 1))


def other_content(evidence: Evidence) -> None:
    """What stands in the journal as Ann's a3 is for another quantity than she sent."""
    evidence.clients["ann"].commands[3].command = msgspec.structs.replace(A3, quantity=1)


def lost_tail(evidence: Evidence) -> None:
    """The journal lost its last record; it is whole all the same."""
    evidence.journals[1].pop()


def wrong_outcome(evidence: Evidence) -> None:
    """Ann was told that her order was filled when it rested."""
    evidence.clients["ann"].commands[0].status = FILLED


def cancelled_twice(evidence: Evidence) -> None:
    """Ann was told of a refusal that no attempt had."""
    evidence.clients["ann"].commands[2].reason = 16


def accepted_with_a_reason(evidence: Evidence) -> None:
    """Ann's order rests, and she was told why it was refused."""
    evidence.clients["ann"].commands[0].reason = ORDER_CLOSED


def fills_left_out(evidence: Evidence) -> None:
    """Bob's answer counts five lots and shows no fill."""
    evidence.clients["bob"].commands[0].fills = ()


def fill_of_another_order(evidence: Evidence) -> None:
    """The answer to Ann's cancel shows a fill of another order of hers."""
    evidence.clients["ann"].commands[2].fills = (ANN,)


def ack_order_inversion(evidence: Evidence) -> None:
    """a3 was answered before a1 was sent, and stands behind it in the journal."""
    told = evidence.clients["ann"].commands[3]
    told.sent_ns, told.acked_ns = 1, 5


def overtaken(evidence: Evidence) -> None:
    """a3 was given before a2, which was answered later and stands before it."""
    told = evidence.clients["ann"].commands
    told[1], told[3] = told[3], told[1]


def doubled_fill(evidence: Evidence) -> None:
    """Ann's history has one trade twice."""
    evidence.clients["ann"].fills.append(change(ANN, sequence=2))


def gap(evidence: Evidence) -> None:
    """Ann's history begins with number 2, in GetFills and in the reports."""
    with_report(evidence, 1, ANN, change(ANN, sequence=2))


def lost_fill(evidence: Evidence) -> None:
    """Bob saw a fill that his history no longer has."""
    evidence.clients["bob"].fills = []


def changed_fill(evidence: Evidence) -> None:
    """Bob's answer told of another price than his history."""
    evidence.clients["bob"].commands[0].fills = (change(BOB, price=99),)


def followed_nothing(evidence: Evidence) -> None:
    """The stream that Ann follows fell silent before her fill."""
    evidence.clients["ann"].followed = []


def followed_out_of_order(evidence: Evidence) -> None:
    """What Ann followed is not the beginning of her history."""
    evidence.clients["ann"].followed = [change(ANN, sequence=2)]


def with_report(evidence: Evidence, engine: int, fill: ReportedFill, other: ReportedFill) -> None:
    """A fill is another one in the stream and in its client's history."""
    messages = evidence.executions[engine]
    for index, message in enumerate(messages):
        made = tuple(other if report == fill else report for report in message.reports)
        messages[index] = msgspec.structs.replace(message, reports=made)
    evidence.clients[fill.client].fills = [other]


def over_fill(evidence: Evidence) -> None:
    """Ann's order of 5 was filled 6."""
    with_report(evidence, 1, ANN, change(ANN, quantity=6, cumulative=6, leaves=-1))


def unequal_sides(evidence: Evidence) -> None:
    """Bob's side of the trade has another price than Ann's."""
    with_report(evidence, 2, BOB, change(BOB, price=99))


def beyond_the_limit(evidence: Evidence) -> None:
    """Ann sold below her limit."""
    with_report(evidence, 1, ANN, change(ANN, price=98))


def report_stored_twice(evidence: Evidence) -> None:
    """The stream has a message of engine 1 twice."""
    evidence.executions[1].append(evidence.executions[1][-1])


def report_missing(evidence: Evidence) -> None:
    """The stream lacks the last message of engine 1."""
    evidence.executions[1].pop()


def zombie(evidence: Evidence) -> None:
    """A record of epoch 1 stands behind the first of epoch 2."""
    whole = journal(1, HOME)
    before = JournalPosition(4, digest_of(whole[3]), 1)
    late = encode_record(1, 1, before, 10**10, encode([NewOrder("ann", "a4", "AAPL", 2, 1, 1, 107, 1)]))
    evidence.journals[1].insert(5, late)


def epoch_without_beginning(evidence: Evidence) -> None:
    """Records of epoch 2 stand there without the one that begins it."""
    batches = [batch for batch in HOME if batch[1] != [EpochStarted(2)]]
    evidence.journals[1] = journal(1, batches)


def broken_chain(evidence: Evidence) -> None:
    """A record is gone from the middle."""
    del evidence.journals[1][3]


def flipped_bit(evidence: Evidence) -> None:
    """A bit of a record is another."""
    record = bytearray(evidence.journals[1][1])
    record[-20] ^= 1
    evidence.journals[1][1] = bytes(record)


def crossed(evidence: Evidence) -> None:
    """The consolidated book is locked."""
    evidence.best["AAPL"] = (107, 107)


def another_book(evidence: Evidence) -> None:
    """Engine 2 shows more than rests there."""
    evidence.books[2, "AAPL"] = ([(100, 4, 1)], [])


def position_mismatch(evidence: Evidence) -> None:
    """The exchange says that Bob has 6."""
    evidence.positions["bob", "AAPL"] = 6


def position_missing(evidence: Evidence) -> None:
    """The exchange knows no position of Bob."""
    del evidence.positions["bob", "AAPL"]


def leg_in_doubt(evidence: Evidence) -> None:
    """The result of Bob's leg never came home."""
    evidence.journals[2] = journal(2, AWAY[:2])


def leg_lost_at_home(evidence: Evidence) -> None:
    """Engine 2 booked nothing of what its leg took at engine 1."""
    evidence.journals[2] = journal(2, [*AWAY[:2], (1, [LegResult(E2 + 1, ())])])


def leg_never_sent(evidence: Evidence) -> None:
    """Engine 1 took more for a leg than it was sent for."""
    more = msgspec.structs.replace(LEG, quantity=9)
    evidence.journals[1] = journal(1, [*HOME[:2], (1, [more]), *HOME[3:]])


def leg_without_a_trade(evidence: Evidence, came: TakeLeg) -> None:
    """Bob's leg came to engine 1 like this, before anything rested there."""
    evidence.journals[1] = journal(1, [HOME[0], (1, [came]), HOME[1], *HOME[3:]])
    evidence.journals[2] = journal(2, [*AWAY[:2], (1, [LegResult(E2 + 1, ())])])


def leg_of_the_other_side(evidence: Evidence) -> None:
    """A leg that was to buy came to sell, and both ends know of no trade."""
    leg_without_a_trade(evidence, msgspec.structs.replace(LEG, side=2))


def leg_in_another_symbol(evidence: Evidence) -> None:
    """A leg came in another symbol than it was sent in, and both ends know of no trade."""
    leg_without_a_trade(evidence, msgspec.structs.replace(LEG, symbol="MSFT"))


def slow_leg(evidence: Evidence) -> None:
    """The leg's result came long after every engine was up."""
    nothing: list[Batch] = [(1, [LISTED])] * 9
    evidence.journals[2] = journal(2, [*AWAY[:2], *nothing, AWAY[2]])


def order_lost(evidence: Evidence) -> None:
    """The venue no longer knows an order of Ann's that rests."""
    evidence.clients["ann"].open_orders = []


def order_under_another_name(evidence: Evidence) -> None:
    """The venue tells an open order of Ann's under another client order id."""
    (order,) = evidence.clients["ann"].open_orders
    evidence.clients["ann"].open_orders = [msgspec.structs.replace(order, client_order_id="a2")]


def order_still_pending(evidence: Evidence) -> None:
    """Bob's order still waits for a leg."""
    (order,) = evidence.clients["bob"].open_orders
    evidence.clients["bob"].open_orders = [msgspec.structs.replace(order, status=7)]


def unexplained_error(evidence: Evidence) -> None:
    """Ann's library raised what no fault excuses."""
    evidence.clients["ann"].errors.append("AuthenticationFailed")


BAD: list[tuple[Callable[[Evidence], None], str]] = [
    (lost_ack, "every acknowledged command is in the journal"),
    (other_content, "every acknowledged command is in the journal"),
    (lost_tail, "every acknowledged command is in the journal"),
    (wrong_outcome, "every acknowledgement says what the journal says"),
    (accepted_with_a_reason, "every acknowledgement says what the journal says"),
    (fills_left_out, "every acknowledgement says what the journal says"),
    (fill_of_another_order, "every acknowledgement says what the journal says"),
    (cancelled_twice, "every acknowledgement says what the journal says"),
    (ack_order_inversion, "the journal's order is the order clients saw"),
    (overtaken, "a client's commands stand in the order they were given"),
    (doubled_fill, "clients received exactly their fills"),
    (gap, "fill sequences have no gap and no repeat"),
    (lost_fill, "no fill that a client saw is lost or changed"),
    (changed_fill, "no fill that a client saw is lost or changed"),
    (followed_nothing, "no fill that a client saw is lost or changed"),
    (followed_out_of_order, "no fill that a client saw is lost or changed"),
    (over_fill, "quantity of every order adds up"),
    (over_fill, "every report is what price-time priority makes of the journal"),
    (unequal_sides, "every trade has two equal sides"),
    (beyond_the_limit, "no trade beyond an order's limit"),
    (over_fill, "positions sum to zero per symbol"),
    (report_stored_twice, "execution reports are stored once, in order"),
    (report_missing, "every report is what price-time priority makes of the journal"),
    (zombie, "journals are whole; no record of a replaced epoch"),
    (epoch_without_beginning, "journals are whole; no record of a replaced epoch"),
    (broken_chain, "journals are whole; no record of a replaced epoch"),
    (flipped_bit, "journals are whole; no record of a replaced epoch"),
    (crossed, "consolidated books are not crossed once quiet"),
    (another_book, "books are as the journal leaves them"),
    (position_mismatch, "the exchange's positions equal the fills"),
    (position_missing, "the exchange's positions equal the fills"),
    (leg_in_doubt, "every leg has ended, alike on both sides"),
    (leg_lost_at_home, "every leg has ended, alike on both sides"),
    (leg_never_sent, "every leg has ended, alike on both sides"),
    (leg_of_the_other_side, "every leg has ended, alike on both sides"),
    (leg_in_another_symbol, "every leg has ended, alike on both sides"),
    (slow_leg, "no leg is in doubt for 5 s once all are up"),
    (order_lost, "open orders are as the journal leaves them"),
    (lost_fill, "open orders are as the journal leaves them"),
    (order_under_another_name, "open orders are as the journal leaves them"),
    (order_still_pending, "open orders are as the journal leaves them"),
    (unexplained_error, "clients hear nothing worse than to wait"),
]


@pytest.mark.parametrize(("spoil", "name"), BAD, ids=[f"{spoil.__name__}-{name[:20]}" for spoil, name in BAD])
def test_a_bad_history_is_flagged(spoil: Callable[[Evidence], None], name: str) -> None:
    """The check that is meant for it finds what is wrong."""
    evidence = good()
    spoil(evidence)
    assert name in violated(evidence)


def test_every_check_can_fail() -> None:
    """There is a bad history for each check that a good one passes."""
    assert {check.name for check in judge(good())} == {name for _, name in BAD}


def test_the_witness_does_not_know_the_engine() -> None:
    """Neither the witness nor what it imports of ours decides with the engine's own code."""
    root = Path(__file__).parents[2]
    seen: set[str] = set()
    waiting = ["simulation.witness"]
    while waiting:
        module = waiting.pop()
        path = root / f"{module.replace('.', '/')}.py"
        if module in seen or not path.is_file():
            continue
        seen.add(module)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
    ours = {module for module in seen if module.startswith("engine.")}
    assert ours == {"engine.commands", "engine.terms"}
