"""What an engine counts of its batches."""

from engine.commands import CancelOrder, NewOrder, QueryLeg
from engine.events import BookChanged
from engine.runtime.commit_loop import Batch
from engine.runtime.metrics import CommitCounts


def batch(*, changed: bool) -> Batch:
    """Two orders and a cancel, appended in 2 ms and shown 3 ms later."""
    order = NewOrder("alice", "c1", "AAPL", 1, 1, 1, 100, 5)
    return Batch(
        7,
        1,
        99,
        commands=[order, order, CancelOrder("alice", 0, "c1")],
        changes=[BookChanged("AAPL", 1, ())] if changed else [],
        append_began_s=1.0,
        committed_s=1.002,
        shown_s=1.005,
    )


def test_batches_are_counted_by_kind_size_and_time() -> None:
    """Only a batch that changed a book has a time to the feed."""
    counts = CommitCounts()
    counts.note(batch(changed=True))
    counts.note(batch(changed=False))
    assert (counts.commands[NewOrder], counts.commands[CancelOrder], counts.commands[QueryLeg]) == (4, 2, 0)
    assert dict(counts.sizes.buckets)["2"] == 0
    assert dict(counts.sizes.buckets)["5"] == 2
    assert dict(counts.appends.buckets)["0.0025"] == 2
    assert round(counts.appends.sum, 6) == 0.004
    assert counts.to_feed.buckets[-1] == ("+Inf", 1)
    assert round(counts.to_feed.sum, 6) == 0.003
