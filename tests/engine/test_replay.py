"""The same batches, through the bytes of the journal, give the same events and the same digest."""

import itertools
from collections.abc import Sequence

import msgspec
import pytest

from engine import commands
from engine.commands import AddInstrument, CancelOrder, Command, EpochStarted, NewOrder
from engine.digest import state_digest
from engine.events import BookChanged, Event
from engine.state import State
from engine.terms import OrderType, Side, TimeInForce
from tests.engine.flow import SYMBOLS, Flow
from tests.engine.venue import Venue, apply_batch

SIZES = (1, 7, 60)


def replay(batches: Sequence[bytes], engine: int = 1) -> tuple[list[Event], list[bytes]]:
    """What a fresh engine says to the batches of a journal: its events, and its digest after each batch."""
    state = State(engine)
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
    """An engine after a few thousand random commands in batches of several sizes."""
    venue = Venue()
    for symbol, collar_bps in SYMBOLS.items():
        venue.add_instrument(symbol, collar_bps)
    flow = Flow(77)
    for size in itertools.islice(itertools.cycle(SIZES), 120):
        venue.execute_batch(list(flow.commands(size)))
    return venue


def test_replay_gives_the_same_events_and_digest(venue: Venue) -> None:
    """Events, book sequences and digest after a replay are those of the first run."""
    events, digests = replay([commands.encode(batch) for batch in venue.batches])
    assert events == venue.events
    assert digests[-1] == state_digest(venue.state)


def test_commands_survive_the_journal(venue: Venue) -> None:
    """Decoding what was encoded gives equal commands."""
    for batch in venue.batches:
        assert list(commands.decode(commands.encode(batch))) == batch


def test_no_other_bytes_are_commands() -> None:
    """Bytes that are no batch are refused with an error, not guessed at."""
    with pytest.raises(msgspec.ValidationError):
        commands.decode(msgspec.msgpack.encode([["no such kind", 1]]))
    with pytest.raises(msgspec.DecodeError):
        commands.decode(commands.encode([EpochStarted(1)])[:-1])


def test_digest_tells_every_step_apart(venue: Venue) -> None:
    """Each batch gives another digest, so that a divergence shows at the batch where it happened."""
    _, digests = replay([commands.encode(batch) for batch in venue.batches])
    assert len(set(digests)) == len(digests)


def test_digest_tells_engines_apart(venue: Venue) -> None:
    """Two engines with the same commands have different digests: their ids differ."""
    _, digests = replay([commands.encode(batch) for batch in venue.batches], engine=2)
    assert digests[-1] != state_digest(venue.state)


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


def test_digest_sees_what_no_book_shows() -> None:
    """Two engines with equal books differ when one of them remembers a client order id more."""
    first: list[Command] = [EpochStarted(1), AddInstrument("ACME", "0.01", "1")]
    order = NewOrder("ann", "a", "ACME", Side.BUY, OrderType.LIMIT, TimeInForce.GTC, 100, 5)
    _, short = replay([commands.encode(first), commands.encode([])])
    _, long = replay([commands.encode(first), commands.encode([order, CancelOrder("ann", 0, "a")])])
    assert short[0] == long[0]
    assert short[1] != long[1]
