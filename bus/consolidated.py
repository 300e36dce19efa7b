"""One symbol's book over several engines: summed levels and the best prices.

Here: pure views over `BookReplica`s that the caller has chosen (synced ones of live peers, its own book).
Nothing is kept, so a view is as true as the replicas it was given at the moment it is read.
"""

from collections.abc import Iterable, Iterator, Mapping
from heapq import merge
from itertools import groupby, islice
from typing import Final, NamedTuple

from bus.messages import ASK, BID
from bus.replica import BookReplica, Level

_INT64_MAX: Final = 2**63 - 1


class Share(NamedTuple):
    """What one engine adds to a consolidated level."""

    engine: int
    quantity: int
    order_count: int


class ConsolidatedLevel(NamedTuple):
    """One price over all engines; `shares` by engine number, their sums beside it."""

    price: int
    quantity: int
    order_count: int
    shares: tuple[Share, ...]


class Nbbo(NamedTuple):
    """The best bid and ask over all engines, None where nobody shows one."""

    bid: ConsolidatedLevel | None
    ask: ConsolidatedLevel | None


def levels(
    replicas: Mapping[int, BookReplica], side: int, depth: int | None = None
) -> Iterator[ConsolidatedLevel]:
    """The side's levels summed over the engines, best first, at most `depth` of them."""
    return _merged({engine: replica.levels(side) for engine, replica in replicas.items()}, side, depth)


def copied(
    replicas: Mapping[int, BookReplica], side: int, depth: int | None = None
) -> Iterator[ConsolidatedLevel]:
    """The same levels, copied now: the replicas may change while they are read."""
    books = {engine: list(replica.levels(side, depth)) for engine, replica in replicas.items()}
    return _merged(books, side, depth)


def _merged(
    books: Mapping[int, Iterable[Level]], side: int, depth: int | None
) -> Iterator[ConsolidatedLevel]:
    sign = -1 if side == BID else 1
    ranked = merge(*(_ranked(engine, book, sign) for engine, book in books.items()))
    for rank, quotes in islice(groupby(ranked, key=lambda quote: quote[0]), depth):
        shares = tuple(share for _, share in quotes)
        yield ConsolidatedLevel(
            price=sign * rank,
            # Each fits the contract's int64; where some are not of real engines, their sum need not.
            quantity=min(sum(share.quantity for share in shares), _INT64_MAX),
            order_count=min(sum(share.order_count for share in shares), _INT64_MAX),
            shares=shares,
        )


def nbbo(replicas: Mapping[int, BookReplica]) -> Nbbo:
    """The best consolidated level of each side."""
    return Nbbo(next(levels(replicas, BID, 1), None), next(levels(replicas, ASK, 1), None))


def _ranked(engine: int, levels: Iterable[Level], sign: int) -> Iterator[tuple[int, Share]]:
    for price, quantity, order_count in levels:
        yield sign * price, Share(engine, quantity, order_count)
