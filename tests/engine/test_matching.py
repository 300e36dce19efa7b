"""Random commands: the engine, the naive model, a replay and a reader of the feed agree.

RANDOM_COMMANDS sets how many commands are tried (100,000 unless set), RANDOM_SEED the first seed.
"""

import os
import random
from collections import Counter
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bus.messages import BookDelta, BookSnapshot
from bus.replica import BookReplica, Outcome
from engine import commands as journaled
from engine.book import Book, BookSide
from engine.commands import CancelAll, CancelOrder, NewOrder, OrderCommand, ReplaceOrder
from engine.digest import state_digest
from engine.events import BookChanged
from engine.invariants import check
from engine.matching import can_take
from engine.orders import Order
from engine.state import State
from engine.terms import OrderStatus, OrderType, RejectReason, SelfTradePrevention, Side, TimeInForce
from tests.engine.flow import CLIENTS, SYMBOLS, Flow, listed_venue
from tests.engine.venue import Venue, apply_batch
from tests.feed_checksum import checksum
from tests.reference_book import Answer, ReferenceMarket

COMMANDS = int(os.environ.get("RANDOM_COMMANDS", "100000"))
FIRST_SEED = int(os.environ.get("RANDOM_SEED", "1"))
STREAM = 10_000
"""Commands of one seed."""

BATCH_SIZES = (1, 1, 2, 5, 40)
"""In turn."""


def venue_and_model() -> tuple[Venue, ReferenceMarket]:
    """An engine and a model with the same instruments."""
    model = ReferenceMarket()
    for symbol, collar_bps in SYMBOLS.items():
        model.add_instrument(symbol, collar_bps)
    return listed_venue(), model


def by_order_id(command: OrderCommand | CancelAll, venue: Venue) -> OrderCommand | CancelAll:
    """The same command naming its order by the engine's id, whoever that order belongs to."""
    if not isinstance(command, CancelOrder | ReplaceOrder):
        return command
    names = ((client, command.client_order_id) for client in CLIENTS)
    order_id = next((venue.order_ids[name] for name in names if name in venue.order_ids), 0)
    return msgspec.structs.replace(command, order_id=order_id)


def assert_same_books(venue: Venue, model: ReferenceMarket, symbols: Iterable[str] = SYMBOLS) -> None:
    """Both have the same orders in the same queues."""
    for symbol in symbols:
        for side in Side:
            assert venue.queue(symbol, side) == model.queue(symbol, side)


class Reader:
    """One replica a symbol, at the end of a line that loses, repeats and delays what the books tell."""

    def __init__(self, seed: int) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self._replicas = {symbol: BookReplica(symbol) for symbol in SYMBOLS}
        self._late: dict[str, BookDelta] = {}
        self._random = random.Random(f"line {seed}")

    def take(self, change: BookChanged, book: Book) -> None:
        """What the line makes of a change that has just led to this book."""
        replica = self._replicas[change.symbol]
        crc = checksum(book.levels(Side.BUY), book.levels(Side.SELL))
        delta = BookDelta(1, change.sequence, change.sequence - 1, 1, 1, change.levels, crc)
        fate = self._random.choices(("once", "twice", "lost", "late"), (90, 4, 2, 4))[0]
        arriving = {"once": [delta], "twice": [delta, delta]}.get(fate, [])
        if change.symbol in self._late:
            arriving.append(self._late.pop(change.symbol))
        if fate == "late":
            self._late[change.symbol] = delta
        for arrived in arriving:
            self.outcomes[replica.apply_delta(arrived)] += 1
        if replica.synced and replica.sequence == book.sequence:
            assert_same_levels(replica, book)

    def heartbeat(self, books: dict[str, Book]) -> None:
        """Each replica hears how far its book is; one that is behind gets a snapshot, and has the book."""
        for symbol, replica in self._replicas.items():
            book = books[symbol]
            if not replica.expect(book.sequence):
                levels = tuple((int(side), *level) for side in Side for level in book.levels(side))
                crc = checksum(book.levels(Side.BUY), book.levels(Side.SELL))
                replica.apply_snapshot(BookSnapshot(1, book.sequence, 1, 1, levels, crc))
            assert replica.synced
            assert replica.sequence == book.sequence
            assert_same_levels(replica, book)


def assert_same_levels(replica: BookReplica, book: Book) -> None:
    """The replica shows the book's levels."""
    for side in Side:
        assert list(replica.levels(side)) == list(book.levels(side))


MET_ELSEWHERE = {
    RejectReason.EMPTY_COMMAND: (
        "engine/runtime/test_wire.py",
        "test_every_command_of_a_message_gets_its_reply",
    ),
    RejectReason.NOTIONAL_TOO_LARGE: ("scenarios/refusals.txt", ""),
    RejectReason.FOK_NEEDS_AWAY_LIQUIDITY: (
        "engine/test_routing.py",
        "test_fok_that_needs_a_peer_is_refused_by_name",
    ),
    RejectReason.ORDER_PENDING: ("engine/test_routing.py", "test_reserved_quantity_trades_nowhere_else"),
}
"""Refusals that no flow to one engine alone brings about; the file and the test that do."""


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + max(1, COMMANDS // STREAM)))
def test_engine_agrees_with_the_naive_model(seed: int) -> None:
    """Whatever clients send, both say the same about every command, and their books are the same.

    So is the book of a reader whose line is bad, whenever it says that it is synced; and a replay of the
    commands leads to the same state.
    """
    venue, model = venue_and_model()
    flow, reader = Flow(seed), Reader(seed)
    done = turn = 0
    seen = set()
    while done < STREAM:
        size = BATCH_SIZES[turn % len(BATCH_SIZES)]
        commands = list(flow.commands(size))
        told = len(venue.events)
        named = [by_order_id(command, venue) if turn % 2 else command for command in commands]
        for command, facts in zip(commands, venue.execute_batch(named), strict=True):
            assert facts == model.execute(command), f"seed {seed}, near command {done}: {command}"
            if isinstance(facts[-1], Answer):
                seen.add((facts[-1].status, facts[-1].reason))
        assert_same_books(venue, model)
        for event in venue.events[told:]:
            if isinstance(event, BookChanged):
                reader.take(event, venue.state.books[event.symbol])
        if turn % 5 == 4:
            reader.heartbeat(venue.state.books)
        if turn % 50 == 0:
            check(venue.state)
        done += size
        turn += 1
    check(venue.state)
    again = State(1)
    for number, batch in enumerate(venue.batches, start=1):
        apply_batch(again, number, journaled.decode(journaled.encode(batch)))
    assert state_digest(again) == state_digest(venue.state)
    never = {Outcome.STALE_EPOCH, Outcome.CHECKSUM, Outcome.MALFORMED}
    assert set(reader.outcomes) == set(Outcome) - never, "the line does its worst"
    assert {reason for _, reason in seen} == set(RejectReason) - set(MET_ELSEWHERE), (
        "the flow meets every rule"
    )
    assert {status for status, _ in seen} == set(OrderStatus) - {
        OrderStatus.EXPIRED,
        OrderStatus.PENDING,
        OrderStatus.PENDING_TRIGGER,
    }


def test_order_id_wins_over_client_order_id() -> None:
    """A command that names an order by both ids means the order id."""
    venue = Venue()
    venue.add_instrument("ACME")
    venue.execute(NewOrder("ann", "a", "ACME", Side.BUY, OrderType.LIMIT, TimeInForce.GTC, 100, 5))
    venue.execute(NewOrder("ann", "b", "ACME", Side.BUY, OrderType.LIMIT, TimeInForce.GTC, 100, 5))
    answers = venue.apply_batch([CancelOrder("ann", venue.order_ids["ann", "a"], "b")])
    assert venue.state.orders[venue.order_ids["ann", "a"]].open == 0
    assert venue.queue("ACME", Side.BUY) == [(100, ("ann", "b"), 5)]
    assert len(answers[0]) == 2


def test_fill_or_kill_gets_what_a_walk_over_the_orders_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels that count what each client has say the same as their queues, whatever happened to them."""
    monkeypatch.setattr("engine.matching.SHORT_QUEUE", 1)
    venue, _ = venue_and_model()
    flow = Flow(FIRST_SEED)
    answers: Counter[bool] = Counter()
    for number in range(4_000):
        venue.execute(flow.next())
        order = flow.sent[-1]
        book = venue.state.books.get(order.symbol)
        account = venue.state.accounts.by_name.get(order.client)
        if number % 2 or book is None or account is None or order.side not in tuple(Side):
            continue
        opposite = book.opposite(order.side)
        worst = order.price * opposite.sign
        # What it did to its own client's orders is done: of another prevention some would be in its way.
        prevention = number // 2 % len(SelfTradePrevention)
        request = msgspec.structs.replace(order, self_trade_prevention=prevention)
        taker = Order(0, account, request, order.side, order.price, order.quantity, order.quantity, worst)
        for quantity in (1, order.quantity, 3 * order.quantity):
            can = can_take(opposite, taker, worst, quantity)
            assert can == (walked(opposite, taker, worst) >= quantity)
            answers[can] += 1
        if number % 100 == 0:
            check(venue.state)
    assert min(answers[True], answers[False]) > 100
    levels = [
        level
        for book in venue.state.books.values()
        for side in Side
        for level in book.side(side).best_first()
    ]
    assert any(level.by_client for level in levels)


def walked(resting: BookSide, taker: Order, worst: int) -> int:
    """What the taker can have, order by order."""
    found = 0
    for level in resting.best_first():
        if level.price * resting.sign < worst:
            break
        for maker in level.queue():
            prevention = taker.request.self_trade_prevention
            if prevention <= SelfTradePrevention.NONE or maker.account is not taker.account:
                found += maker.open
            elif prevention != SelfTradePrevention.CANCEL_OLDEST:
                return found
    return found


class TwoMarkets(RuleBasedStateMachine):
    """Hypothesis drives the engine and the model side by side over three prices, and shrinks what differs."""

    @initialize(collar_bps=st.sampled_from((0, 5000, 10_000)))
    def open_markets(self, collar_bps: int) -> None:
        """Start both with one instrument."""
        self.venue, self.model = Venue(), ReferenceMarket()
        self.venue.add_instrument("ACME", collar_bps)
        self.model.add_instrument("ACME", collar_bps)
        self.count = 0

    def execute(self, command: OrderCommand | CancelAll) -> None:
        """Give both the same command."""
        assert self.venue.execute(command) == self.model.execute(command)

    @rule(
        client=st.sampled_from(("ann", "bob")),
        side=st.sampled_from(Side),
        order_type=st.sampled_from((OrderType.LIMIT, OrderType.LIMIT, OrderType.MARKET)),
        time_in_force=st.sampled_from((TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK)),
        price=st.integers(1, 3),
        quantity=st.integers(1, 4),
        post_only=st.booleans(),
        prevention=st.sampled_from(SelfTradePrevention),
    )
    def submit(
        self,
        *,
        client: str,
        side: Side,
        order_type: OrderType,
        time_in_force: TimeInForce,
        price: int,
        quantity: int,
        post_only: bool,
        prevention: SelfTradePrevention,
    ) -> None:
        """A new order."""
        self.count += 1
        at_once = order_type == OrderType.MARKET or time_in_force != TimeInForce.GTC
        self.execute(
            NewOrder(
                client,
                str(self.count),
                "ACME",
                side,
                order_type,
                time_in_force,
                0 if order_type == OrderType.MARKET else price,
                quantity,
                post_only=post_only and not at_once,
                self_trade_prevention=prevention,
            )
        )

    @rule(client=st.sampled_from(("ann", "bob")), back=st.integers(0, 5))
    def cancel(self, client: str, back: int) -> None:
        """Cancel one of the latest orders, the client's own or not."""
        self.execute(CancelOrder(client, 0, str(self.count - back)))

    @rule(
        client=st.sampled_from(("ann", "bob")),
        back=st.integers(0, 5),
        price=st.integers(1, 3),
        quantity=st.integers(1, 6),
    )
    def replace(self, client: str, back: int, price: int, quantity: int) -> None:
        """Replace one of the latest orders, the client's own or not."""
        self.execute(ReplaceOrder(client, 0, str(self.count - back), price, quantity))

    @rule(client=st.sampled_from(("ann", "bob")), side=st.sampled_from((0, 1, 2)))
    def cancel_all(self, client: str, side: int) -> None:
        """Cancel what a client has open."""
        self.execute(CancelAll(client, "", side))

    @invariant()
    def same(self) -> None:
        """The books are the same and the state is sound."""
        assert_same_books(self.venue, self.model, ("ACME",))
        check(self.venue.state)


TwoMarkets.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestTwoMarkets = TwoMarkets.TestCase
