"""How an agent is driven, without a market."""

import asyncio
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from client import MatchbusError
from simulation.agents.arrivals import Steady
from simulation.agents.cast import Player
from simulation.agents.terms import Cancel, Intent, View
from simulation.trader import Trader


class Canceller:
    """Sends one command at each step."""

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """Whatever it sees."""
        assert not views
        return [Cancel("none")]


@pytest.mark.parametrize(("answer_s", "kept"), [(0.0, True), (0.1, False)])
async def test_steps_are_counted_with_those_that_were_wanted(answer_s: float, kept: bool) -> None:
    """A rate of 20 for a second wants 20 steps; with answers that take a tenth there is time for half."""

    async def cancel(**_: object) -> None:
        await asyncio.sleep(answer_s)
        raise MatchbusError

    player, client = Player("canceller", Canceller(), Steady(20)), cast("Any", SimpleNamespace(cancel=cancel))
    trader = Trader("c", player, client, cast("Any", None), [], logging.getLogger("unheard"))
    await trader.trade(asyncio.get_running_loop().time(), 1.0)
    assert 19 <= trader.wanted_steps <= 21
    assert (trader.steps > 18) == kept
