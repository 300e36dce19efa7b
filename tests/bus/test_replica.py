"""A replica equals the source or says that it does not."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import ASK, BID, BookDelta, BookSnapshot, LevelChange, decode_feed, encode
from bus.replica import MAX_WAITING, BookReplica, Outcome
from tests.feed_checksum import checksum

Image = tuple[LevelChange, ...]


def image_of(replica: BookReplica) -> Image:
    """All levels of a book."""
    return replica.snapshot(0, 0).levels


class Source:
    """A book with a history; remembers its image at every (epoch, sequence)."""

    def __init__(self) -> None:
        self.book = BookReplica("AAPL")
        self.history: dict[tuple[int, int], Image] = {}
        self.restart(1)

    def restart(self, epoch: int) -> None:
        """A new reign over the same book."""
        self.book.load(epoch, self.book.sequence, image_of(self.book))
        self._remember()

    def change(self, levels: Image) -> BookDelta:
        """Change the book; the message that says so."""
        previous = self.book.sequence
        crc = self.book.advance(previous + 1, levels)
        self._remember()
        return BookDelta(self.book.epoch, previous + 1, previous, 1, 1, levels, crc)

    def snapshot(self) -> BookSnapshot:
        """The whole book."""
        return self.book.snapshot(1, 1)

    def parts(self) -> list[BookSnapshot]:
        """The whole book in messages of at most two levels."""
        return self.book.snapshot_parts(1, 1, 2)

    def _remember(self) -> None:
        self.history[self.book.epoch, self.book.sequence] = image_of(self.book)


def deliver(replica: BookReplica, message: BookDelta | BookSnapshot) -> Outcome:
    """Carry a message over the wire into the replica."""
    received = decode_feed(encode(message))
    if isinstance(received, BookDelta):
        return replica.apply_delta(received)
    assert isinstance(received, BookSnapshot)
    return replica.apply_snapshot(received)


def synced_pair() -> tuple[Source, BookReplica]:
    """A source with a book of two levels and a replica of it."""
    source = Source()
    source.change(((BID, 100, 5, 1), (ASK, 101, 7, 2)))
    replica = BookReplica("AAPL")
    assert deliver(replica, source.snapshot()) is Outcome.APPLIED
    return source, replica


DEEP: Image = tuple((side, price, 1, 1) for side in (BID, ASK) for price in range(1, 13))
"""Of a book as deep as this not every level is in the checksum."""

level = st.tuples(
    st.sampled_from((BID, ASK)), st.integers(1, 12), st.sampled_from((0, 0, 1, 2, 9)), st.integers(0, 3)
)
steps = st.lists(
    st.one_of(
        st.lists(level, min_size=1, max_size=4).map(tuple),
        st.sampled_from(("snapshot", "snapshot", "restart")),
    ),
    max_size=40,
)
faults = st.lists(
    st.tuples(st.sampled_from(("drop", "duplicate", "late", "lose")), st.integers(0, 120)), max_size=12
)


@given(steps, faults)
def test_a_synced_replica_equals_the_source_under_any_faults(
    history: list[Image | str], wrongs: list[tuple[str, int]]
) -> None:
    """Drops, duplicates, reordering, losses and restarts: synced means equal; a snapshot at last heals."""
    source, replica = Source(), BookReplica("AAPL")
    sent: list[BookDelta | BookSnapshot] = [source.change(DEEP)]
    for step in history:
        if step == "restart":
            source.restart(source.book.epoch + 1)
            sent += source.parts()
        elif step == "snapshot":
            sent += source.parts()
        else:
            assert not isinstance(step, str)
            sent.append(source.change(step))
    losses = set()
    for kind, at in wrongs:
        if at >= len(sent):
            continue
        if kind == "drop":
            del sent[at]
        elif kind == "duplicate":
            sent.insert(min(at * 2, len(sent)), sent[at])
        elif kind == "late":
            sent.insert(min(at + 5, len(sent)), sent.pop(at))
        else:
            losses.add(at)
    reached = (0, 0)
    for number, message in enumerate(sent):
        if number in losses:
            replica.lose()
        deliver(replica, message)
        if replica.synced:
            assert image_of(replica) == source.history[replica.epoch, replica.sequence]
            assert (replica.epoch, replica.sequence) >= reached, "went back"
            reached = (replica.epoch, replica.sequence)
    for part in source.parts():
        deliver(replica, part)
    assert replica.synced
    assert image_of(replica) == image_of(source.book)
    assert (replica.epoch, replica.sequence) == (source.book.epoch, source.book.sequence)


def test_without_faults_every_delta_applies() -> None:
    """In order, each delta is applied and the books agree at every sequence."""
    source, replica = synced_pair()
    for quantity in (3, 0, 8):
        assert deliver(replica, source.change(((BID, 99, quantity, 1),))) is Outcome.APPLIED
        assert image_of(replica) == image_of(source.book)


def test_a_gap_unsyncs_and_the_waiting_deltas_follow_the_snapshot() -> None:
    """A missing delta is never guessed over; what came after it is used once a snapshot fills the hole."""
    source, replica = synced_pair()
    source.change(((BID, 98, 1, 1),))
    snapshot = source.snapshot()
    after = source.change(((BID, 97, 1, 1),))
    assert deliver(replica, after) is Outcome.GAP
    assert not replica.synced
    late = source.change(((BID, 96, 1, 1),))
    assert deliver(replica, source.change(((BID, 95, 1, 1),))) is Outcome.WAITING
    assert deliver(replica, late) is Outcome.WAITING
    assert deliver(replica, snapshot) is Outcome.APPLIED
    assert image_of(replica) == image_of(source.book)


def test_waiting_deltas_follow_the_first_snapshot_that_leads_to_them() -> None:
    """One that leaves a hole before them does not use them up."""
    source, replica = synced_pair()
    snapshots = []
    for price in (98, 97):
        source.change(((BID, price, 1, 1),))
        snapshots.append(source.snapshot())
    assert deliver(replica, source.change(((BID, 96, 1, 1),))) is Outcome.GAP
    assert deliver(replica, snapshots[0]) is Outcome.GAP
    assert deliver(replica, snapshots[1]) is Outcome.APPLIED
    assert image_of(replica) == image_of(source.book)


def test_a_delta_that_begins_before_the_book_is_not_guessed_over() -> None:
    """Only one that begins where the book is leads on."""
    source, replica = synced_pair()
    source.change(((BID, 98, 1, 1),))
    assert deliver(replica, source.snapshot()) is Outcome.APPLIED
    delta = source.change(((BID, 97, 1, 1),))
    overlapping = BookDelta(1, delta.sequence, replica.sequence - 1, 1, 1, delta.levels, delta.checksum)
    assert deliver(replica, overlapping) is Outcome.GAP
    assert not replica.synced


def test_a_snapshot_older_than_what_was_seen_does_not_sync() -> None:
    """A late snapshot cannot hide that newer deltas are missing, nor does the book go back to it."""
    source, replica = synced_pair()
    older = source.snapshot()
    assert deliver(replica, source.change(((BID, 99, 1, 1),))) is Outcome.APPLIED
    old, reached = source.snapshot(), image_of(replica)
    source.change(((BID, 98, 1, 1),))
    missing = source.snapshot()
    assert deliver(replica, source.change(((BID, 97, 1, 1),))) is Outcome.GAP
    assert [deliver(replica, late) for late in (old, older)] == [Outcome.GAP] * 2
    assert not replica.synced
    assert (replica.sequence, image_of(replica)) == (old.sequence, reached)
    assert deliver(replica, missing) is Outcome.APPLIED
    assert image_of(replica) == image_of(source.book)


def test_what_the_source_announces_unsyncs_when_it_is_news() -> None:
    """A lost last delta shows as soon as the source names a higher sequence."""
    source, replica = synced_pair()
    assert replica.expect(source.book.sequence)
    source.change(((BID, 98, 1, 1),))
    assert not replica.expect(source.book.sequence)
    assert deliver(replica, source.snapshot()) is Outcome.APPLIED


def test_duplicates_change_nothing() -> None:
    """A delta or snapshot seen before is dropped."""
    source, replica = synced_pair()
    delta = source.change(((BID, 99, 5, 1),))
    assert deliver(replica, delta) is Outcome.APPLIED
    assert deliver(replica, delta) is Outcome.DUPLICATE
    assert deliver(replica, source.snapshot()) is Outcome.DUPLICATE
    assert replica.synced


def test_a_snapshot_of_another_book_at_the_same_sequence_counts() -> None:
    """It is what the source has."""
    source, replica = synced_pair()
    levels = ((BID, 100, 6, 1),)
    other = BookSnapshot(1, replica.sequence, 1, 1, levels, checksum([levels[0][1:]], ()))
    assert deliver(replica, other) is Outcome.APPLIED
    assert image_of(replica) == levels
    assert deliver(replica, source.snapshot()) is Outcome.APPLIED


def test_a_new_epoch_throws_the_book_away_and_an_old_one_is_dropped() -> None:
    """Nothing of a replaced primary is used, whatever comes first of the new one."""
    source, replica = synced_pair()
    zombies = source.change(((BID, 99, 5, 1),)), source.snapshot()
    source.restart(2)
    begun = source.snapshot()
    assert deliver(replica, source.change(((BID, 98, 5, 1),))) is Outcome.NEW_EPOCH
    assert not replica.synced
    assert image_of(replica) == ()
    for zombie in zombies:
        assert deliver(replica, zombie) is Outcome.STALE_EPOCH
    assert deliver(replica, begun) is Outcome.APPLIED, "the delta that came before it waits for it"
    assert (replica.epoch, image_of(replica)) == (2, image_of(source.book))
    for zombie in zombies:
        assert deliver(replica, zombie) is Outcome.STALE_EPOCH
    assert replica.synced


def test_a_wrong_checksum_unsyncs() -> None:
    """A delta or a snapshot that leads elsewhere than at the source is noticed."""
    source, replica = synced_pair()
    delta = source.change(((BID, 99, 5, 1),))
    wrong = BookDelta(1, delta.sequence, delta.previous_sequence, 1, 1, ((BID, 99, 6, 1),), delta.checksum)
    assert deliver(replica, wrong) is Outcome.CHECKSUM
    assert not replica.synced
    good = source.snapshot()
    bad = BookSnapshot(1, good.sequence, 1, 1, good.levels[1:], good.checksum)
    assert deliver(replica, bad) is Outcome.CHECKSUM
    assert deliver(replica, good) is Outcome.APPLIED
    source.change(((BID, 98, 5, 1),))
    later = source.snapshot()
    bad = BookSnapshot(1, later.sequence, 1, 1, later.levels[1:], later.checksum)
    assert deliver(replica, bad) is Outcome.CHECKSUM
    assert not replica.synced


def test_a_wrong_delta_that_waited_unsyncs() -> None:
    """It is not taken for good because a snapshot had to come first."""
    source, replica = synced_pair()
    replica.lose()
    snapshot, delta = source.snapshot(), source.change(((BID, 99, 5, 1),))
    wrong = BookDelta(1, delta.sequence, delta.previous_sequence, 1, 1, ((BID, 99, 6, 1),), delta.checksum)
    assert deliver(replica, wrong) is Outcome.WAITING
    assert deliver(replica, snapshot) is Outcome.CHECKSUM
    assert not replica.synced


def large_pair() -> tuple[Source, BookReplica, list[BookSnapshot]]:
    """A source with a book of seven levels, an unsynced replica of it, and its snapshot in three parts."""
    source = Source()
    source.change(
        (*((BID, 100 - rank, 5, 1) for rank in range(4)), *((ASK, 101 + rank, 7, 2) for rank in range(3)))
    )
    return source, BookReplica("AAPL"), source.book.snapshot_parts(1, 1, 3)


def test_a_snapshot_in_parts_counts_when_it_is_whole() -> None:
    """No part is taken for the book; deltas that come between the parts are applied after the last."""
    source, replica, parts = large_pair()
    assert [len(part.levels) for part in parts] == [3, 3, 1]
    assert deliver(replica, parts[0]) is Outcome.WAITING
    assert deliver(replica, parts[1]) is Outcome.WAITING
    deliver(replica, source.change(((BID, 100, 0, 0),)))
    assert not replica.synced
    assert deliver(replica, parts[2]) is Outcome.APPLIED
    assert image_of(replica) == image_of(source.book)
    assert deliver(replica, parts[0]) is Outcome.DUPLICATE


def test_an_empty_book_is_one_part() -> None:
    """It is told like any other: a peer would wait for ever for a snapshot of nothing."""
    (part,) = BookReplica("AAPL").snapshot_parts(1, 1, 3)
    assert (part.levels, part.part, part.parts) == ((), 1, 1)


@pytest.mark.parametrize("lost", range(3))
def test_a_snapshot_with_a_missing_part_counts_for_nothing(lost: int) -> None:
    """Whichever part is lost; the next snapshot that is whole brings the book back."""
    source, replica, parts = large_pair()
    for number, part in enumerate(parts):
        if number != lost:
            assert deliver(replica, part) is Outcome.WAITING
    assert not replica.synced
    outcomes = [deliver(replica, part) for part in parts]
    assert outcomes == [Outcome.WAITING, Outcome.WAITING, Outcome.APPLIED]
    assert image_of(replica) == image_of(source.book)


def test_a_snapshot_that_begins_anew_is_whole_by_itself() -> None:
    """Nothing is left of the one that was not finished, not even a level that has gone since."""
    source, replica, parts = large_pair()
    assert deliver(replica, parts[0]) is Outcome.WAITING
    source.change(((BID, 98, 0, 0),))
    for part in source.book.snapshot_parts(1, 1, 3):
        deliver(replica, part)
    assert replica.synced
    assert image_of(replica) == image_of(source.book)


def test_parts_of_two_snapshots_are_no_book() -> None:
    """A part of another sequence or epoch does not continue what was begun."""
    source, replica, parts = large_pair()
    source.change(((BID, 90, 1, 1),))
    later = source.book.snapshot_parts(1, 1, 3)
    source.restart(2)
    reign = source.book.snapshot_parts(1, 1, 3)
    for mixed in ((parts[0], later[1], parts[2]), (later[0], reign[1], reign[2])):
        assert [deliver(replica, part) for part in mixed] == [Outcome.WAITING] * 3
    assert not replica.synced


@pytest.mark.parametrize(("part", "parts"), [(0, 1), (2, 1), (-1, -1), (0, 0)])
def test_impossible_parts_are_refused(part: int, parts: int) -> None:
    """Parts are counted from one up."""
    _, replica = synced_pair()
    assert replica.apply_snapshot(BookSnapshot(1, 2, 1, 1, (), 0, part, parts)) is Outcome.MALFORMED


@pytest.mark.parametrize(
    "levels",
    [((3, 1, 1, 1),), ((BID, 0, 1, 1),), ((BID, 1, -1, 1),), ((BID, 1, 1, -1),), ((ASK, 10**5000, 1, 1),)],
)
def test_impossible_levels_are_refused(levels: Image) -> None:
    """What no book can hold unsyncs and raises nothing."""
    _, replica = synced_pair()
    assert replica.apply_delta(BookDelta(1, 2, 1, 1, 1, levels, 0)) is Outcome.MALFORMED
    assert not replica.synced
    assert replica.apply_snapshot(BookSnapshot(1, 2, 1, 1, levels, 0)) is Outcome.MALFORMED


def test_no_level_of_a_whole_book_is_empty() -> None:
    """Only a delta has one, which takes it out of the book."""
    _, replica = synced_pair()
    assert replica.apply_snapshot(BookSnapshot(1, 2, 1, 1, ((BID, 1, 0, 1),), 0)) is Outcome.MALFORMED


def test_impossible_sequences_are_refused() -> None:
    """A delta must lead forward from a sequence that exists."""
    _, replica = synced_pair()
    assert replica.apply_delta(BookDelta(1, 2, 2, 1, 1, (), 0)) is Outcome.MALFORMED
    assert replica.apply_delta(BookDelta(1, 2, -1, 1, 1, (), 0)) is Outcome.MALFORMED
    assert replica.apply_delta(BookDelta(1, 2**63, 1, 1, 1, (), 0)) is Outcome.MALFORMED


def test_waiting_deltas_are_bounded_and_a_later_snapshot_covers_the_dropped_ones() -> None:
    """An unsynced replica does not grow without end, and still syncs."""
    source, replica = synced_pair()
    replica.lose()
    first = source.snapshot()
    deltas = [source.change(((BID, 99, quantity, 1),)) for quantity in range(1, MAX_WAITING + 50)]
    for delta in deltas[:-10]:
        deliver(replica, delta)
    assert deliver(replica, first) is Outcome.GAP
    assert deliver(replica, source.snapshot()) is Outcome.APPLIED
    assert image_of(replica) == image_of(source.book)


def test_levels_are_best_first_with_a_depth() -> None:
    """Bids from the highest price down, asks from the lowest up."""
    replica = BookReplica("AAPL")
    replica.load(1, 1, ((BID, 99, 1, 1), (BID, 100, 2, 1), (ASK, 103, 4, 2), (ASK, 101, 3, 1)))
    assert list(replica.levels(BID)) == [(100, 2, 1), (99, 1, 1)]
    assert list(replica.levels(ASK, 1)) == [(101, 3, 1)]
    assert replica.best(BID) == (100, 2)
    assert replica.best(ASK) == (101, 3)
    assert BookReplica("X").best(BID) is None


def test_the_checksum_covers_ten_levels_a_side() -> None:
    """The text is price:quantity; best first, bids, a bar, asks."""
    replica = BookReplica("AAPL")
    replica.load(1, 1, [(BID, 100 - rank, rank + 1, 1) for rank in range(12)])
    text = "".join(f"{100 - rank}:{rank + 1};" for rank in range(10)) + "|"
    assert replica.checksum == zlib.crc32(text.encode())
    replica.load(1, 1, ())
    assert replica.checksum == zlib.crc32(b"|")


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from((BID, ASK)), st.integers(1, 40), st.integers(0, 3), st.just(1)))
    )
)
def test_the_kept_checksum_is_the_defined_one(history: list[list[LevelChange]]) -> None:
    """Whatever changes, at the top or below the tenth level, the replica's checksum is that of its levels."""
    replica = BookReplica("AAPL")
    replica.load(1, 0, ())
    for sequence, levels in enumerate(history, 1):
        replica.advance(sequence, levels)
        assert replica.checksum == checksum(replica.levels(BID), replica.levels(ASK))


@pytest.mark.parametrize("rank", range(12))
def test_the_kept_checksum_follows_a_change_at_any_depth(rank: int) -> None:
    """The tenth level counts, the eleventh does not, and a level that moves up into the ten does."""
    replica = BookReplica("AAPL")
    replica.load(1, 0, tuple((ASK, 100 + step, 5, 1) for step in range(12)))
    for sequence, quantity in enumerate((7, 0, 3), 1):
        replica.advance(sequence, ((ASK, 100 + rank, quantity, 1),))
        assert replica.checksum == checksum(replica.levels(BID), replica.levels(ASK))
