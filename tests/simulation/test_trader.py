"""How an agent is driven, without a market."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bus.messages import ReportedOrder
from client import Fill, MatchbusError, OrderResult, Unavailable, terms
from client.terms import Liquidity, OrderStatus, RejectReason
from client.units import Instrument
from engine.terms import OrderType, Side, TimeInForce
from simulation.agents.arrivals import Steady
from simulation.agents.cast import Player
from simulation.agents.terms import Agent, Cancel, Intent, Replace, Submit, View
from simulation.recording import SentChange
from simulation.trader import AgentFailed, Trader
from tests.waiting import running, until


def trader_of(agent: Agent, rate: float, **calls: object) -> Trader:
    """Steps so often, on an empty market, with a client that has these calls."""
    instruments = {"AAPL": Instrument("AAPL", Decimal("0.01"), Decimal(1))}
    client = cast("Any", SimpleNamespace(instruments=instruments, engine=1, **calls))
    market = cast("Any", SimpleNamespace(quotes=lambda _: (None, None), engine_quotes=lambda *_: ()))
    player = Player("tested", agent, Steady(rate))
    return Trader("c", player, client, market, ["AAPL"], logging.getLogger("unheard"))


class Canceller:
    """Sends one command at each step."""

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """Whatever it sees."""
        assert views
        return [Cancel("none")]


@pytest.mark.parametrize(("answer_s", "kept"), [(0.0, True), (0.1, False)])
async def test_steps_are_counted_with_those_that_were_wanted(answer_s: float, kept: bool) -> None:
    """A rate of 20 for a second wants 20 steps; with answers that take a tenth there is time for half."""

    async def cancel(**_: object) -> None:
        await asyncio.sleep(answer_s)
        raise MatchbusError

    trader = trader_of(Canceller(), 20, cancel=cancel)
    changes: list[SentChange] = []
    trader.on_change = changes.append
    await trader.trade(asyncio.get_running_loop().time(), 1.0)
    assert {(one.change, one.latency_ms, one.status) for one in changes} == {("cancel", None, "")}
    assert 19 <= trader.wanted_steps <= 21
    assert (trader.steps > 18) == kept


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, "KeyError"),
        ({"": -1.0}, "its next step"),
        ({"": float("nan")}, "its next step"),
        ({"": None}, "TypeError"),
    ],
)
async def test_an_arrival_that_fails_is_the_agents_failure(answers: dict[str, Any], said: str) -> None:
    """Whether it raises, or says no time, or to step before now: in virtual time that would never end."""
    trader = trader_of(Canceller(), 20)
    trader.player = Player("tested", Canceller(), SimpleNamespace(wait_s=lambda: answers[""]))
    async with asyncio.timeout(10):
        with pytest.raises(AgentFailed, match=rf"^agent c \(tested\) after .*: {said}"):
            await trader.trade(asyncio.get_running_loop().time(), 1.0)


async def test_fills_are_followed_past_the_deadline_of_the_client() -> None:
    """An engine may be frozen for longer: what it fills afterwards is collected, each fill once."""
    asked_since: list[int] = []

    async def fills(since: int) -> AsyncGenerator[Fill, None]:
        asked_since.append(since)
        for sequence in range(since + 1, 3 if since else 2):
            trade = ("AAPL", terms.Side.BUY, Decimal(1), Decimal(5), Liquidity.MAKER, Decimal(5), Decimal(0))
            yield Fill(sequence, sequence, 7, "a", *trade, 1, 1, Decimal(0), 8)
        if len(asked_since) == 1:
            raise Unavailable("no answer within 30 s")
        await asyncio.sleep(60)

    trader = trader_of(Canceller(), 20, fills=fills)
    async with running(trader.follow()) as (following,):
        await until(lambda: following.done() or len(trader.fills) > 1)
    assert [fill.sequence for fill in trader.fills] == [1, 2]
    assert asked_since == [0, 1]


class Submitter:
    """Sends three orders at its first step."""

    def __init__(self) -> None:
        self._orders: list[Intent] = [
            Submit("AAPL", Side.BUY, OrderType.LIMIT, TimeInForce.GTC, 100, 5) for _ in range(3)
        ]

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """Whatever it sees."""
        assert views
        orders, self._orders = self._orders, []
        return orders


async def test_only_orders_that_were_taken_count_as_acknowledged() -> None:
    """Not one that was refused, and not one that had no answer; none the less all were submitted."""
    rejected, reason = OrderStatus.REJECTED, RejectReason.POST_ONLY_WOULD_CROSS
    answers: deque[OrderResult | Unavailable] = deque(
        [OrderResult("a", 0, rejected, reason), Unavailable("late"), OrderResult("c", 7, OrderStatus.NEW)]
    )

    async def submit(*_: object, **__: object) -> OrderResult:
        answer = answers.popleft()
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    trader = trader_of(Submitter(), 20, submit=submit)
    await trader.trade(asyncio.get_running_loop().time(), 0.2)
    assert trader.acknowledged == {7: ReportedOrder("c", 7, "c", "AAPL", 1, 1, 1, 100, 5)}
    assert (trader.submitted, trader.refusals.total(), trader.failures) == (3, 1, 1)


@pytest.mark.parametrize(
    ("reason", "seen"),
    [
        (RejectReason.POST_ONLY_WOULD_CROSS, True),
        (RejectReason.ORDER_PENDING, True),
        (RejectReason.ORDER_CLOSED, False),
        (RejectReason.UNKNOWN_ORDER, False),
    ],
)
async def test_an_order_whose_replace_was_refused_is_there_as_before(
    reason: RejectReason, seen: bool
) -> None:
    """Its agent still sees it, unless that is why it was refused. What had traded counts in the new total."""
    views: list[View] = []

    class Replacer:
        """Sends an order, then asks for another price, then looks."""

        def decide(self, at_step: Sequence[View]) -> list[Intent]:
            """The next of these."""
            (view,) = at_step
            views.append(view)
            if len(views) == 1:
                return [Submit("AAPL", Side.BUY, OrderType.LIMIT, TimeInForce.GTC, 100, 5)]
            return [Replace(order.client_order_id, 101, 5) for order in view.open_orders if len(views) == 2]

    async def submit(*_: object, **__: object) -> OrderResult:
        return OrderResult("a", 7, OrderStatus.NEW, leaves_quantity=Decimal(5))

    async def refuse(**_: object) -> OrderResult:
        return OrderResult("a", 7, OrderStatus.REJECTED, reason)

    async def fills(**_: object) -> AsyncGenerator[Fill, None]:
        for sequence in (1, 2):
            trade = ("AAPL", terms.Side.BUY, Decimal(1), Decimal(1), Liquidity.TAKER)
            yield Fill(sequence, sequence, 7, "a", *trade, Decimal(sequence), Decimal(5), 1, 1, Decimal(0), 8)
        await asyncio.sleep(60)

    trader = trader_of(Replacer(), 100, submit=submit, replace=refuse, fills=fills)
    changes: list[SentChange] = []
    trader.on_change = changes.append
    async with running(trader.follow()):
        await until(lambda: len(trader.fills) > 1)
        async with running(trader.trade(asyncio.get_running_loop().time(), 60.0)):
            await until(lambda: len(views) > 2)
    assert trader.replaces == 1
    (change,) = changes
    assert (change.change, change.order_id, change.reason) == ("replace", 7, str(reason))
    assert (change.price, change.quantity) == (Decimal("1.01"), Decimal(5 + 2))
    assert [order.price for order in views[2].open_orders] == ([100] if seen else [])
