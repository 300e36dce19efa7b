"""The engine seen as the reference model is seen: one command in, the facts it caused out.

On the way it checks what the model cannot say: both sides of a trade agree, histories have no gaps, the
answer repeats what was traded, and quantities add up.
"""

from collections.abc import Sequence

from engine import snapshot
from engine.commands import AddInstrument, CancelAll, Command, EpochStarted, OrderCommand
from engine.events import (
    Accepted,
    Answered,
    BookChanged,
    Cancelled,
    CancelledAll,
    Event,
    Fill,
    Prevented,
    Replaced,
)
from engine.state import State
from engine.terms import Liquidity, OrderStatus
from tests.reference_book import Answer, AnswerAll, Cancellation, Fact, Name, Prevention, Trade

BATCH_NS = 1_000_000
"""Time between two batches."""


class Venue:
    """One engine alone. Keeps every batch and event, so that they can be replayed and compared."""

    def __init__(self, engine: int = 1) -> None:
        self.state = State(engine)
        self.engine = engine
        self.batches: list[list[Command]] = []
        self.events: list[Event] = []
        self.names: dict[int, Name] = {}
        self.order_ids: dict[Name, int] = {}
        self.sequences: dict[str, int] = {}
        self.executions: set[int] = set()
        self.apply_batch([EpochStarted(1)])

    def add_instrument(self, symbol: str, market_collar_bps: int = 0) -> None:
        """Start trading in a symbol."""
        self.apply_batch([AddInstrument(symbol, "0.01", "1", market_collar_bps)])

    def execute(self, command: OrderCommand | CancelAll) -> list[Fact]:
        """Carry out one command in a batch of its own."""
        return self.execute_batch([command])[0]

    def execute_batch(self, commands: Sequence[OrderCommand | CancelAll]) -> list[list[Fact]]:
        """Carry out commands in one batch; the facts of each."""
        applied = self.apply_batch(commands)
        return [self._facts(command, events) for command, events in zip(commands, applied, strict=True)]

    def apply_batch(self, commands: Sequence[Command]) -> list[list[Event]]:
        """Apply commands in one batch; the events of each."""
        batch = list(commands)
        applied, changes = apply_batch(self.state, len(self.batches) + 1, batch)
        self.batches.append(batch)
        for events in applied:
            self.events.extend(events)
        self.events.extend(changes)
        return applied

    def queue(self, symbol: str, side: int) -> list[tuple[int, Name, int]]:
        """(price, order, open quantity) of one side in the order in which they would trade."""
        orders = self.state.books[symbol].orders(side)
        return [(price, self.names[order_id], quantity) for price, order_id, quantity in orders]

    def _facts(self, command: OrderCommand | CancelAll, events: list[Event]) -> list[Fact]:
        facts: list[Fact] = []
        waiting: dict[int, Fill] = {}
        taken: list[Fill] = []
        prevented: list[Prevented] = []
        for event in events:
            match event:
                case Accepted():
                    self._learn(event.order_id, (event.client, event.client_order_id))
                case Fill():
                    self._check_fill(event)
                    if event.liquidity == Liquidity.TAKER:
                        taken.append(event)
                    first = waiting.pop(event.execution_id, None)
                    if first is None:
                        waiting[event.execution_id] = event
                    else:
                        facts.append(self._trade(first, event))
                case Prevented():
                    prevented.append(event)
                    taker, maker = self.names[event.taker_order_id], self.names[event.maker_order_id]
                    assert taker[0] == maker[0] == event.client
                    facts.append(Prevention(taker, maker, event.price, event.quantity))
                case Cancelled():
                    name = event.client, event.client_order_id
                    assert self.names[event.order_id] == name
                    facts.append(Cancellation(name, event.quantity, event.leaves))
                case Answered():
                    facts.append(self._answer(command, event, taken, prevented))
                case CancelledAll():
                    facts.append(AnswerAll(event.client, event.count))
                case Replaced():
                    assert self.names[event.order_id] == (event.client, event.client_order_id)
                case _:
                    raise AssertionError(f"no engine is near, so nobody expects {event}")
        assert not waiting, "a trade has two sides"
        if isinstance(events[-1], Accepted):
            facts.append(self._answer(command, answered(events), taken, prevented))
        return facts

    def _learn(self, order_id: int, name: Name) -> None:
        assert order_id >> 48 == self.engine
        assert self.names.setdefault(order_id, name) == name
        self.order_ids[name] = order_id

    def _check_fill(self, fill: Fill) -> None:
        self.sequences[fill.client] = self.sequences.get(fill.client, 0) + 1
        assert fill.sequence == self.sequences[fill.client], "histories have no gaps"
        assert self.names[fill.order_id] == (fill.client, fill.client_order_id)
        assert fill.engine == self.engine
        assert fill.time_ns == len(self.batches) * BATCH_NS

    def _trade(self, first: Fill, second: Fill) -> Trade:
        taker, maker = (first, second) if first.liquidity == Liquidity.TAKER else (second, first)
        assert (taker.liquidity, maker.liquidity) == (Liquidity.TAKER, Liquidity.MAKER)
        assert (taker.symbol, taker.price, taker.quantity) == (maker.symbol, maker.price, maker.quantity)
        assert taker.side + maker.side == 3
        assert (taker.contra_order_id, maker.contra_order_id) == (maker.order_id, taker.order_id)
        assert taker.execution_id not in self.executions, "an execution id is used once"
        self.executions.add(taker.execution_id)
        return Trade(
            self.names[taker.order_id],
            self.names[maker.order_id],
            taker.price,
            taker.quantity,
            (taker.cumulative, taker.leaves),
            (maker.cumulative, maker.leaves),
        )

    def _answer(
        self,
        command: OrderCommand | CancelAll,
        answered: Answered,
        taken: list[Fill],
        prevented: list[Prevented],
    ) -> Answer:
        assert not isinstance(command, CancelAll)
        name = command.client, command.client_order_id
        assert answered.client == command.client
        assert (answered.status == OrderStatus.REJECTED) == bool(answered.reject_reason)
        assert bool(answered.reject_text) == bool(answered.reject_reason), "a refusal says why"
        if answered.order_id:
            self._learn(answered.order_id, (answered.client, answered.client_order_id))
            if command.client_order_id:
                assert answered.client_order_id == command.client_order_id
        if not answered.duplicate:
            assert list(answered.fills) == taken
            assert list(answered.prevented) == prevented
        if answered.reject_reason:
            return Answer(name, answered.status, answered.reject_reason, duplicate=answered.duplicate)
        return Answer(
            (answered.client, answered.client_order_id),
            answered.status,
            0,
            answered.cumulative,
            answered.leaves,
            answered.value,
            answered.duplicate,
        )


def venue() -> Venue:
    """An engine with one instrument."""
    made = Venue()
    made.add_instrument("ACME")
    return made


def answer_of(event: Event) -> Event:
    """The answer that a command's last event stands for: `Accepted` says that the order rests whole."""
    if not isinstance(event, Accepted):
        return event
    return Answered(
        event.client, event.client_order_id, event.order_id, int(OrderStatus.NEW), leaves=event.quantity
    )


def answered(events: Sequence[Event]) -> Answered:
    """The answer that a command's events end with."""
    answer = answer_of(events[-1])
    assert isinstance(answer, Answered)
    return answer


def apply_batch(
    state: State, number: int, commands: Sequence[Command]
) -> tuple[list[list[Event]], list[BookChanged]]:
    """Apply one batch at the time that its number says; the events of each command, then what changed."""
    state.begin_batch(number, number * BATCH_NS)
    applied = [state.apply(command) for command in commands]
    return applied, state.end_batch()


def restored(state: State) -> State:
    """The state that a snapshot of this one gives."""
    copy = State(state.engine)
    snapshot.restore(copy, snapshot.take(state))
    return copy
