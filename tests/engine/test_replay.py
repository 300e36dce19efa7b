"""The same batches, through the bytes of the journal, give the same events and the same digest."""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import pytest

from engine import commands
from engine.commands import EpochStarted, TakeLeg
from engine.digest import state_digest
from engine.events import BookChanged, Event, Prevented
from engine.orders import Landmark, Order, Owed
from engine.state import State
from engine.terms import Side
from tests.engine.flow import SYMBOLS, busy_venue
from tests.engine.venue import Venue, apply_batch, restored
from tests.engine.world import SYMBOL, World, limit_order


def replay(batches: Sequence[bytes]) -> tuple[list[Event], list[bytes]]:
    """What a fresh engine says to the batches of a journal: its events, and its digest after each batch."""
    state = State(1)
    events: list[Event] = []
    digests = []
    for number, batch in enumerate(batches, start=1):
        applied, changes = apply_batch(state, number, commands.decode(batch))
        for more in applied:
            events.extend(more)
        events.extend(changes)
        digests.append(state_digest(state))
    return events, digests


@pytest.fixture(scope="module")
def venue() -> Venue:
    """An engine after a few thousand random commands."""
    return busy_venue(77, batches=120)


def test_replay_gives_the_same_events_and_digest(venue: Venue) -> None:
    """Events, book sequences and digest after a replay are those of the first run."""
    events, digests = replay([commands.encode(batch) for batch in venue.batches])
    assert events == venue.events
    assert digests[-1] == state_digest(venue.state)


def test_no_other_bytes_are_commands() -> None:
    """Bytes that are no batch are refused with an error, not guessed at."""
    with pytest.raises(msgspec.ValidationError):
        commands.decode(msgspec.msgpack.encode([["no such kind", 1]]))
    with pytest.raises(msgspec.DecodeError):
        commands.decode(commands.encode([EpochStarted(1)])[:-1])


def test_replicas_follow_the_book_changes(venue: Venue) -> None:
    """Applying every BookChanged in turn to empty books gives the engine's books; sequences have no gaps."""
    books: dict[str, dict[tuple[int, int], tuple[int, int]]] = {symbol: {} for symbol in SYMBOLS}
    sequences = dict.fromkeys(SYMBOLS, 0)
    for event in venue.events:
        if not isinstance(event, BookChanged):
            continue
        sequences[event.symbol] += 1
        assert event.sequence == sequences[event.symbol]
        for side, price, quantity, order_count in event.levels:
            assert (quantity > 0) == (order_count > 0)
            books[event.symbol].pop((side, price), None)
            if quantity:
                books[event.symbol][side, price] = quantity, order_count
    for symbol, levels in books.items():
        book = venue.state.books[symbol]
        assert book.sequence == sequences[symbol]
        for side in Side:
            replica = [(price, *level) for (at, price), level in levels.items() if at == side]
            replica.sort(reverse=side is Side.BUY)
            assert replica == list(book.levels(side))
            assert book.best(side) == (replica[0][:2] if replica else None)


def busy() -> State:
    """An engine with legs out, an answer to a peer's leg, bids and asks, open and finished orders."""
    world = World(2)
    world.submit(2, limit_order("b", Side.SELL, 5, 100))
    world.submit(1, limit_order("bid", Side.BUY, 1, 90))
    world.submit(1, limit_order("done", Side.SELL, 2, 101))
    world.submit(1, limit_order("ask", Side.SELL, 3, 104))
    world.submit(1, limit_order("taker", Side.BUY, 9, 102))
    world.apply(1, TakeLeg(2 << 48, 2, 1, 7, SYMBOL, Side.BUY, 104, 1, 0))
    return world.nodes[1].state


def order_of(state: State, client: str) -> Order:
    """The one order of a client."""
    return state.accounts.by_name[client].orders[client]


def change(owner: Callable[[State], object], name: str, state: State) -> None:
    """Make a number one larger, a flag the other one."""
    value = getattr(owner(state), name)
    setattr(owner(state), name, not value if isinstance(value, bool) else value + 1)


PREVENTED = Prevented("taker", SYMBOL, 2, 1, 102, 1, 1)
ORDER = "id price quantity open worst mark reserved cumulative value priority cancelling refused"
OWNERS: dict[str, tuple[Callable[[State], object], str]] = {
    "state": (lambda state: state, "engine epoch batch_number next_leg_id next_priority"),
    "accounts": (lambda state: state.accounts, "time_ns next_order_id next_execution_id"),
    "account": (lambda state: state.accounts.by_name["taker"], "traded"),
    "open order": (lambda state: order_of(state, "taker"), ORDER),
    "finished order": (lambda state: order_of(state, "done"), ORDER),
    "book": (lambda state: state.books[SYMBOL], "sequence"),
    "peer's legs": (lambda state: state.peer_legs[2], "settled_below"),
}
CHANGES: dict[str, Callable[[State], object]] = {
    f"{what}: {name}": partial(change, owner, name)
    for what, (owner, names) in OWNERS.items()
    for name in names.split()
} | {
    "instrument": lambda state: state.instruments.popitem(),
    "leg": lambda state: state.legs.popitem(),
    "peer's answer": lambda state: state.peer_legs[2].answers.popitem(),
    "bids": lambda state: state.books[SYMBOL].bids.remove(order_of(state, "bid")),
    "asks": lambda state: state.books[SYMBOL].asks.remove(order_of(state, "ask")),
    "client order id": lambda state: state.accounts.by_name["done"].orders.popitem(),
    "fill": lambda state: state.accounts.by_name["taker"].fills.pop(),
    "landmark": lambda state: state.accounts.by_name["taker"].landmarks.append(Landmark(0, 1, 1)),
    "request": lambda state: setattr(order_of(state, "bid"), "request", order_of(state, "ask").request),
    "first answer": lambda state: setattr(order_of(state, "taker"), "answer", None),
    "prevented": lambda state: setattr(order_of(state, "taker"), "owed", Owed((), (PREVENTED,))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_digest_sees_every_fact(name: str) -> None:
    """A divergence shows at the batch where it happens, whatever it is in."""
    state = busy()
    copy = restored(state)
    assert state_digest(copy) == state_digest(state)
    CHANGES[name](copy)
    assert state_digest(copy) != state_digest(state)
