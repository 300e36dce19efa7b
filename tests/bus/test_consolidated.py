"""The consolidated book is the sum of its engines."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from bus.consolidated import Share, copied, levels, nbbo
from bus.messages import ASK, BID, LevelChange
from bus.replica import BookReplica


def book(*changes: LevelChange) -> BookReplica:
    """One engine's book."""
    replica = BookReplica("AAPL")
    replica.load(1, 1, changes)
    return replica


def test_levels_are_summed_with_each_engines_share() -> None:
    """One level per price, best first, shares by engine number."""
    replicas = {
        2: book((BID, 100, 5, 1), (BID, 98, 1, 1)),
        1: book((BID, 100, 3, 2), (BID, 99, 4, 1), (ASK, 105, 1, 1)),
    }
    best, second, third = levels(replicas, BID)
    assert (best.price, best.quantity, best.order_count) == (100, 8, 3)
    assert best.shares == (Share(1, 3, 2), Share(2, 5, 1))
    assert (second.price, third.price) == (99, 98)
    assert [level.price for level in levels(replicas, BID, 2)] == [100, 99]


def test_nbbo_takes_the_best_of_all_engines() -> None:
    """Best bid and ask may come from different engines; an empty side is None."""
    quote = nbbo({1: book((BID, 100, 5, 1)), 2: book((BID, 99, 1, 1), (ASK, 103, 2, 1))})
    assert quote.bid is not None
    assert (quote.bid.price, quote.bid.shares) == (100, (Share(1, 5, 1),))
    assert quote.ask is not None
    assert quote.ask.price == 103
    assert nbbo({}) == (None, None)


def test_a_sum_is_at_most_what_the_contract_carries() -> None:
    """Each engine's part fits an int64; their sum need not."""
    most = 2**63 - 1
    (level,) = levels({number: book((BID, 100, most, most)) for number in (1, 2)}, BID)
    assert (level.quantity, level.order_count) == (most, most)


def test_copied_levels_are_those_of_the_moment() -> None:
    """What changes in the replicas before they are read is not in them."""
    replica = book((BID, 100, 5, 1), (BID, 99, 4, 1), (BID, 98, 3, 1))
    copy = copied({1: replica}, BID, 2)
    replica.advance(2, ((BID, 99, 0, 0), (BID, 100, 7, 1)))
    assert [(level.price, level.quantity) for level in copy] == [(100, 5), (99, 4)]


@given(
    st.dictionaries(
        st.integers(1, 4),
        st.lists(
            st.tuples(st.sampled_from((BID, ASK)), st.integers(1, 20), st.integers(1, 9), st.integers(1, 3))
        ),
    )
)
def test_sums_agree_with_a_plain_count(books: dict[int, list[LevelChange]]) -> None:
    """Whatever the books, every price has exactly its total, in order."""
    replicas = {engine: book(*changes) for engine, changes in books.items()}
    for side in (BID, ASK):
        expected: dict[int, int] = defaultdict(int)
        for replica in replicas.values():
            for price, quantity, _ in replica.levels(side):
                expected[price] += quantity
        merged = [(level.price, level.quantity) for level in levels(replicas, side)]
        assert merged == sorted(expected.items(), reverse=side == BID)
