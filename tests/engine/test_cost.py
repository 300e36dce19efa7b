"""What a command costs does not grow with what it has nothing to do with. Work is counted, not timed."""

import msgspec
import pytest

from benchmarks.slices import bytecodes
from engine.commands import AddInstrument, AwayQuote, EpochStarted, LegFill, LegResult, NewOrder, Uncross
from engine.events import LegSent
from engine.state import State
from engine.terms import SelfTradePrevention, Side

SYMBOL = "ACME"
FEW, MANY = 20, 1_000
PEER = 2 << 48


def opened() -> State:
    """An engine with one instrument, in its first batch."""
    state = State(1)
    state.begin_batch(1, 1)
    state.apply(EpochStarted(1))
    state.apply(AddInstrument(SYMBOL, "0.01", "1"))
    return state


def cost_of_a_leg_result(others: int, *, is_uncrossed: bool) -> int:
    """Bytecodes for the last of a client's legs to come back, which were out together and all filled."""
    state = opened()
    quote = AwayQuote(2, 1, 1, ((100, others + 1),))
    legs: list[int] = []
    for number in range(others + 1):
        away = () if is_uncrossed else (quote,)
        order = NewOrder("ann", f"o{number}", SYMBOL, Side.BUY, 1, 1, 100, 1, away=away)
        legs += [event.leg_id for event in state.apply(order) if isinstance(event, LegSent)]
    if is_uncrossed:
        events = state.apply(Uncross(SYMBOL, Side.BUY, (quote,)))
        legs += [event.leg_id for event in events if isinstance(event, LegSent)]
    assert len(legs) == others + 1
    *before, last = (
        LegResult(leg_id, (LegFill(PEER + number, 100, 1, PEER, 1),)) for number, leg_id in enumerate(legs)
    )
    for result in before:
        state.apply(result)
    return bytecodes(lambda: state.apply(last))


@pytest.mark.parametrize("is_uncrossed", [False, True])
def test_a_leg_result_costs_what_its_order_did(*, is_uncrossed: bool) -> None:
    """However much the client's other orders traded while the leg was out."""
    few, many = (cost_of_a_leg_result(others, is_uncrossed=is_uncrossed) for others in (FEW, MANY))
    assert many <= few + few // 10


def test_the_end_of_a_batch_costs_nothing_for_each_leg_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose old fills cannot be forgotten yet may have any number of legs out."""
    monkeypatch.setattr("engine.accounts.REMEMBERED_FILLS", 2)

    def cost(legs: int) -> int:
        state = opened()
        quote = AwayQuote(2, 1, 1, ((100, 1),))
        for number in range(legs):
            state.apply(NewOrder("ann", f"o{number}", SYMBOL, Side.BUY, 1, 1, 100, 1, away=(quote,)))
        state.apply(NewOrder("bob", "ask", SYMBOL, Side.SELL, 1, 1, 101, 10))
        for number in range(10):
            state.apply(NewOrder("ann", f"home{number}", SYMBOL, Side.BUY, 1, 1, 101, 1))
        assert state.accounts.crowded
        return bytecodes(state.end_batch)

    assert cost(MANY) == cost(FEW)


@pytest.mark.parametrize("prevention", list(SelfTradePrevention)[2:])  # with less it trades
@pytest.mark.parametrize("more", [1, 0, -1])
def test_fill_or_kill_costs_nothing_for_each_own_order(more: int, prevention: SelfTradePrevention) -> None:
    """A client that has the whole level may ask again and again for about what is there."""

    def cost(orders: int) -> int:
        state = opened()

        def ask(name: str, quantity: int) -> None:
            order = NewOrder("ann", name, SYMBOL, Side.BUY, 1, 3, 100, quantity)
            state.apply(msgspec.structs.replace(order, self_trade_prevention=prevention))

        for number in range(orders):
            state.apply(NewOrder("ann", f"o{number}", SYMBOL, Side.SELL, 1, 1, 100, 1))
        ask("first", orders)  # the level may count once what each client has
        state.apply(NewOrder("ann", "more", SYMBOL, Side.SELL, 1, 1, 100, 1))
        return bytecodes(lambda: ask("second", orders + 1 + more))

    few, many = cost(FEW), cost(MANY)
    assert many <= few + few // 10
