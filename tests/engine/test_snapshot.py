"""A restored state is the state that was taken, and goes on as it would have."""

import msgspec
import pytest

from engine import commands, invariants, snapshot
from engine.digest import state_digest
from engine.snapshot import FORMAT, NotASnapshot
from engine.state import State
from engine.terms import MAX_PRICE
from tests.engine.flow import busy_venue
from tests.engine.venue import Venue, apply_batch, restored


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("remembered_fills", [5, 10_000])
def test_a_snapshot_after_any_batch_rolls_forward_to_the_same(
    seed: int, remembered_fills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken anywhere, it has the same digest; the next batch gives the same events and the same digest."""
    monkeypatch.setattr("engine.accounts.REMEMBERED_FILLS", remembered_fills)
    state = State(1)
    for number, batch in enumerate(busy_venue(seed, batches=40).batches, start=1):
        copy = restored(state)
        assert state_digest(copy) == state_digest(state)
        invariants.check(copy)
        encoded = commands.encode(batch)
        applied = apply_batch(copy, number, commands.decode(encoded))
        assert applied == apply_batch(state, number, commands.decode(encoded))
        assert state_digest(copy) == state_digest(state)


def test_a_snapshot_of_a_restored_state_is_the_same_bytes() -> None:
    """Nothing is lost on the way, and nothing depends on how the state came about."""
    state = busy_venue(7, batches=40).state
    assert snapshot.take(restored(state)) == snapshot.take(state)


def test_orders_with_legs_out_come_back_in_order_of_their_marks() -> None:
    """The lowest first, though its order came later: fills are let go of only up to there."""
    venue = Venue()
    venue.add_instrument("ACME", 0)
    away = tuple(commands.AwayQuote(2, 1, 1, ((price, 5),)) for price in (90, 95))
    venue.apply_batch(
        [
            commands.NewOrder("b", "rests", "ACME", 1, 1, 1, 90, 5),
            commands.NewOrder("b", "takes", "ACME", 1, 1, 1, 95, 5, away=away[1:]),
            commands.NewOrder("s", "s", "ACME", 2, 1, 1, 90, 1),
            commands.Uncross("ACME", 1, away[:1]),
        ]
    )
    pending = venue.state.accounts.by_name["b"].pending
    assert [order.request.client_order_id for order in pending.values()] == ["takes", "rests"]
    assert list(restored(venue.state).accounts.by_name["b"].pending) == list(pending)


def test_an_order_worth_more_than_any_integer_of_an_encoding() -> None:
    """One that sells at any price, into the highest ones: its value is right after a restore too."""
    venue = Venue()
    venue.add_instrument("ACME", 0)
    for number in range(5):
        venue.execute(commands.NewOrder("b", f"b{number}", "ACME", 1, 1, 1, MAX_PRICE, 4_611_686))
    venue.execute(commands.NewOrder("s", "s", "ACME", 2, 1, 1, 1, 23_058_430))
    copy = restored(venue.state)
    assert state_digest(copy) == state_digest(venue.state)
    for state in (venue.state, copy):
        sold = state.accounts.by_name["s"].orders["s"]
        assert sold.answer is not None
        assert sold.value == sold.answer.value == 23_058_430 * MAX_PRICE > 2**64


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda whole: whole[:-1], "no snapshot"),
        (lambda whole: b"", "no snapshot"),
        (
            lambda whole: msgspec.msgpack.encode([9, "of another kind altogether"]),
            "format 9, this version reads",
        ),
        (
            lambda whole: msgspec.msgpack.encode([FORMAT, 2, *msgspec.msgpack.decode(whole)[2:]]),
            "of engine 2",
        ),
    ],
    ids=["cut", "empty", "other format", "other engine"],
)
def test_other_bytes_are_refused_by_name(damage: "object", why: str) -> None:
    """And leave the state as empty as it was."""
    assert callable(damage)
    empty = State(1)
    with pytest.raises(NotASnapshot, match=why):
        snapshot.restore(empty, damage(snapshot.take(busy_venue(1, batches=40).state)))
    assert state_digest(empty) == state_digest(State(1))
