"""A copy of one engine's book of one symbol, built from snapshots and deltas.

Here: what a message does to the copy, and the checksum both ends compute. Not here: asking for snapshots and
an engine's signs of life (`bus.peer`), anything that waits (`bus.follower`). The source of a feed keeps its
own published state in the same class, so there is one definition of a book and of its checksum.

Invariants: a synced replica equals the source's book at `sequence`; it never goes back within an epoch;
once unsynced only a snapshot brings it back; nothing in a message can make it raise.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from itertools import chain, islice
from typing import Final
from zlib import crc32

import msgspec
from sortedcontainers import SortedDict

from bus.messages import ASK, BID, BookDelta, BookSnapshot, LevelChange

CHECKSUM_DEPTH: Final = 10
"""How many levels of each side the checksum covers."""

MAX_WAITING: Final = 256
"""Deltas kept while a snapshot is awaited; the oldest go first, a later snapshot covers them."""

_INT64_MAX: Final = 2**63 - 1

Level = tuple[int, int, int]
"""(price, quantity, order count)."""


class Outcome(Enum):
    """What a message did to a replica."""

    APPLIED = auto()
    """The book is now at the message's sequence or beyond, and synced."""
    DUPLICATE = auto()
    """Nothing new."""
    WAITING = auto()
    """Kept until a whole snapshot is there: a delta of an unsynced replica, or a part of a snapshot."""
    GAP = auto()
    """Something before it is missing: unsynced."""
    NEW_EPOCH = auto()
    """A delta of a new reign: the book is thrown away, unsynced."""
    STALE_EPOCH = auto()
    """From a replaced primary: dropped."""
    CHECKSUM = auto()
    """It does not lead to the source's book: unsynced."""
    MALFORMED = auto()
    """It says what no book can be: unsynced."""


class _Side:
    """The levels of one side, best first.

    Keys are ranks, not prices: a bid's is its negative price, so on either side the smallest is the best.
    The checksum's text is kept until a level it covers changes, and each level's part of it until that one
    does: making it is the dearest part of a delta.
    """

    __slots__ = ("_levels", "_parts", "_sign", "_text", "_text_end")

    def __init__(self, side: int, levels: Iterable[LevelChange] = ()) -> None:
        self._sign = sign = -1 if side == BID else 1
        # Sorted once for all: one by one, 60,000 levels hold up a follower for a tenth of a second.
        self._levels: SortedDict[int, Level] = SortedDict(
            {sign * level[1]: level[1:] for level in levels if level[0] == side}
        )
        self._parts: dict[int, str] = {}
        self._text = ""
        self._text_end = _INT64_MAX  # no change of a rank above this one changes the text

    def __iter__(self) -> Iterator[Level]:
        return map(self._levels.__getitem__, iter(self._levels))

    def put(self, price: int, quantity: int, order_count: int) -> None:
        """The level's new absolute value; quantity 0 removes it."""
        rank = self._sign * price
        if quantity:
            self._levels[rank] = (price, quantity, order_count)
        else:
            self._levels.pop(rank, None)
        self._parts.pop(rank, None)
        if rank <= self._text_end:
            self._text = ""

    def text(self) -> str:
        """This side's part of the checksum's text."""
        if not self._text and self._levels:
            parts = self._parts
            covered = list(islice(self._levels, CHECKSUM_DEPTH))
            self._text = "".join([parts.get(rank) or self._part(rank) for rank in covered])
            self._text_end = covered[-1] if len(covered) == CHECKSUM_DEPTH else _INT64_MAX
        return self._text

    def _part(self, rank: int) -> str:
        price, quantity, _ = self._levels[rank]
        part = self._parts[rank] = f"{price}:{quantity};"
        return part

    def best(self) -> Level | None:
        """The best level, None where the side is empty."""
        return next(iter(self), None)

    def quantity(self, price: int) -> int:
        """What stands at a price."""
        level = self._levels.get(self._sign * price)
        return 0 if level is None else level[1]


class BookReplica:
    """One symbol's book on one engine, as far as its messages tell."""

    __slots__ = (
        "_horizon",
        "_parts",
        "_sides",
        "_waiting",
        "checksum",
        "epoch",
        "sequence",
        "symbol",
        "synced",
    )

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.epoch = 0
        self.sequence = 0
        self.synced = False
        self.checksum = 0
        # The highest sequence that a heartbeat, or a delta which had to wait, told of in this epoch: a
        # snapshot below it is out of date.
        self._horizon = 0
        self._sides = {BID: _Side(BID), ASK: _Side(ASK)}
        self._waiting: deque[BookDelta] = deque(maxlen=MAX_WAITING)
        self._parts: list[BookSnapshot] = []  # the first ones of a snapshot whose last is still to come

    def apply_delta(self, delta: BookDelta) -> Outcome:
        """Go one batch on, or say why not."""
        if delta.epoch < self.epoch:
            return Outcome.STALE_EPOCH
        if not 0 <= delta.previous_sequence < delta.sequence <= _INT64_MAX or not _is_plausible(
            delta.levels, 0
        ):
            self.lose()
            return Outcome.MALFORMED
        if delta.epoch > self.epoch:
            self.begin_epoch(delta.epoch)
            self._wait(delta)
            return Outcome.NEW_EPOCH
        if not self.synced:
            self._wait(delta)
            return Outcome.WAITING
        if delta.sequence <= self.sequence:
            return Outcome.DUPLICATE
        if delta.previous_sequence != self.sequence:
            self.synced = False
            self._wait(delta)
            return Outcome.GAP
        self._put(delta.sequence, delta.levels)
        if self.checksum != delta.checksum:
            self.lose()
            return Outcome.CHECKSUM
        return Outcome.APPLIED

    def apply_snapshot(self, snapshot: BookSnapshot) -> Outcome:
        """Start over from a whole book, then catch up with the deltas that waited for it."""
        if snapshot.epoch < self.epoch:
            return Outcome.STALE_EPOCH
        is_part = 1 <= snapshot.part <= snapshot.parts
        if not is_part or not 0 <= snapshot.sequence <= _INT64_MAX or not _is_plausible(snapshot.levels, 1):
            self.lose()
            return Outcome.MALFORMED
        if snapshot.epoch > self.epoch:
            self.begin_epoch(snapshot.epoch)
        if self.synced and (
            snapshot.sequence < self.sequence
            or (snapshot.sequence == self.sequence and snapshot.checksum == self.checksum)
        ):
            return Outcome.DUPLICATE
        whole = self._whole(snapshot)
        if whole is None:
            return Outcome.WAITING
        sides = _sides_of(whole.levels)
        if _checksum_of(sides) != snapshot.checksum:
            self.synced = False
            return Outcome.CHECKSUM
        if snapshot.sequence < self.sequence:
            return Outcome.GAP
        self._sides = sides
        self.sequence = snapshot.sequence
        self.checksum = snapshot.checksum
        return self._catch_up()

    def expect(self, sequence: int) -> bool:
        """The source says that it has reached `sequence`. False, and unsynced, when that is news."""
        self._horizon = max(self._horizon, sequence)
        if self.sequence < self._horizon:
            self.synced = False
        return self.synced

    def lose(self) -> None:
        """Messages may be missing: unsynced until the next snapshot."""
        self.synced = False
        self._waiting.clear()

    def begin_epoch(self, epoch: int) -> None:
        """A new reign: nothing known about the old one counts."""
        self.load(epoch, 0, ())
        self.synced = False

    def load(self, epoch: int, sequence: int, levels: Iterable[LevelChange]) -> None:
        """The source's own start: this is the book, no questions asked."""
        self.epoch = epoch
        self.sequence = sequence
        self._horizon = sequence
        self._sides = _sides_of(levels)
        self._waiting.clear()
        self.checksum = _checksum_of(self._sides)
        self.synced = True

    def advance(self, sequence: int, levels: Iterable[LevelChange]) -> int:
        """The source's own step: apply, and return the checksum that goes out with it."""
        self._put(sequence, levels)
        return self.checksum

    def snapshot(self, batch_number: int, time_ns: int) -> BookSnapshot:
        """The whole book as a message."""
        return BookSnapshot(
            epoch=self.epoch,
            sequence=self.sequence,
            batch_number=batch_number,
            time_ns=time_ns,
            levels=tuple(
                (side, price, quantity, order_count)
                for side in (BID, ASK)
                for price, quantity, order_count in self._sides[side]
            ),
            checksum=self.checksum,
        )

    def snapshot_parts(self, batch_number: int, time_ns: int, max_levels: int) -> list[BookSnapshot]:
        """The whole book as as many messages as it takes with at most `max_levels` levels each."""
        whole = self.snapshot(batch_number, time_ns)
        firsts = range(0, len(whole.levels) or 1, max_levels)
        return [
            msgspec.structs.replace(
                whole, levels=whole.levels[first : first + max_levels], part=part, parts=len(firsts)
            )
            for part, first in enumerate(firsts, start=1)
        ]

    def levels(self, side: int, depth: int | None = None) -> Iterator[Level]:
        """(price, quantity, order count), best first. The book must not change while this is read."""
        return islice(self._sides[side], depth)

    def best(self, side: int) -> tuple[int, int] | None:
        """(price, quantity) of the best level, None where there is none."""
        level = self._sides[side].best()
        return None if level is None else level[:2]

    def quantity(self, side: int, price: int) -> int:
        """What stands at a price, 0 where there is no level."""
        return self._sides[side].quantity(price)

    def _wait(self, delta: BookDelta) -> None:
        self._horizon = max(self._horizon, delta.sequence)
        self._waiting.append(delta)

    def _whole(self, part: BookSnapshot) -> BookSnapshot | None:
        """The whole snapshot when this is its last part; a part after a missing one counts for nothing."""
        before = self._parts[-1] if self._parts else None
        if part.part == 1:
            self._parts.clear()
        elif before is None or _place(before) != (*_place(part)[:-1], part.part - 1):
            self._parts.clear()
            return None
        self._parts.append(part)
        if part.part < part.parts:
            return None
        levels = tuple(chain.from_iterable(part.levels for part in self._parts))
        self._parts.clear()
        return msgspec.structs.replace(part, levels=levels)

    def _put(self, sequence: int, levels: Iterable[LevelChange]) -> None:
        sides = self._sides
        for side, price, quantity, order_count in levels:
            sides[side].put(price, quantity, order_count)
        self.sequence = sequence
        self.checksum = _checksum_of(sides)

    def _catch_up(self) -> Outcome:
        waiting = sorted(self._waiting, key=lambda delta: delta.sequence)
        self._waiting.clear()
        for delta in waiting:
            if delta.previous_sequence == self.sequence:
                self._put(delta.sequence, delta.levels)
                if self.checksum != delta.checksum:
                    self.lose()
                    return Outcome.CHECKSUM
            elif delta.sequence > self.sequence:
                self._waiting.append(delta)
        self.synced = self.sequence >= self._horizon
        return Outcome.APPLIED if self.synced else Outcome.GAP


def _place(part: BookSnapshot) -> tuple[int, int, int, int]:
    """Which snapshot a part belongs to, and where in it."""
    return part.epoch, part.sequence, part.parts, part.part


def _checksum_of(sides: dict[int, _Side]) -> int:
    """CRC-32 of the ASCII text of the ten best levels a side, best first.

    `price:quantity;` for each bid, then `|`, then the same for each ask.
    """
    return crc32(f"{sides[BID].text()}|{sides[ASK].text()}".encode())


def _sides_of(levels: Iterable[LevelChange]) -> dict[int, _Side]:
    levels = tuple(levels)
    return {side: _Side(side, levels) for side in (BID, ASK)}


def _is_plausible(levels: Iterable[LevelChange], smallest_quantity: int) -> bool:
    for side, price, quantity, order_count in levels:
        if side not in (BID, ASK) or not 0 < price <= _INT64_MAX:
            return False
        if not smallest_quantity <= quantity <= _INT64_MAX or not 0 <= order_count <= _INT64_MAX:
            return False
    return True
