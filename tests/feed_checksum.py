"""The checksum of the feed, as docs/feed.md says it: a replica keeps parts of its text, this nothing."""

from collections.abc import Iterable
from itertools import islice
from zlib import crc32

from bus.replica import CHECKSUM_DEPTH, Level


def checksum(bids: Iterable[Level], asks: Iterable[Level]) -> int:
    """The checksum of a book with these levels, best first."""
    sides = (
        "".join(f"{price}:{quantity};" for price, quantity, _ in islice(levels, CHECKSUM_DEPTH))
        for levels in (bids, asks)
    )
    return crc32("|".join(sides).encode())
