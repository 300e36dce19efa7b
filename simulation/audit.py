"""Checks every routing decision in an engine's journal against the away quotes journaled with it. Pure.

A decision is a trade-through when it traded, or sent a leg, at a price worse than an away quote that it knew
and did not take whole.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engine.commands import AwayQuote, Command, LegResult, NewOrder, ReplaceOrder, Uncross
from engine.events import Event, Fill, LegSent
from engine.state import State
from engine.terms import Liquidity, Side


@dataclass(slots=True)
class Audit:
    """What the decisions of one engine's journal came to; feed it batch by batch, from the first on."""

    engine: int
    decisions: int = 0
    """Commands that traded at home as taker or sent legs."""
    with_away_quotes: int = 0
    """Those of them that knew away quotes."""
    legs: int = 0
    violations: list[str] = field(default_factory=list)
    _state: State = field(init=False)

    def __post_init__(self) -> None:
        self._state = State(self.engine)

    def add_batch(self, batch_number: int, time_ns: int, commands: Iterable[Command]) -> None:
        """Replay one batch and judge its decisions."""
        self._state.begin_batch(batch_number, time_ns)
        for command in commands:
            events = self._state.apply(command)
            self._judge(batch_number, command, events)
        self._state.end_batch()

    def _judge(self, batch_number: int, command: Command, events: Sequence[Event]) -> None:
        if not isinstance(command, NewOrder | ReplaceOrder | LegResult | Uncross):
            return
        taken = home_fills(events, self.engine)
        legs = [event for event in events if isinstance(event, LegSent)]
        if not taken and not legs:
            return
        self.decisions += 1
        self.with_away_quotes += bool(command.away)
        self.legs += len(legs)
        self.violations += [
            f"engine {self.engine}, batch {batch_number}: {violation}"
            for violation in traded_through(command.away, taken, legs)
        ]


def home_fills(events: Iterable[Event], engine: int) -> list[Fill]:
    """The fills that orders took on their own engine."""
    return [
        event
        for event in events
        if isinstance(event, Fill) and event.liquidity == Liquidity.TAKER and event.engine == engine
    ]


def traded_through(away: Iterable[AwayQuote], taken: Sequence[Fill], legs: Sequence[LegSent]) -> list[str]:
    """Away quotes better than the worst price that was traded or sent for, and not taken whole by legs.

    Of a peer's levels a leg takes those that its limit reaches.
    """
    prices = [fill.price for fill in taken] + [leg.limit for leg in legs]
    if not prices:
        return []
    side = taken[0].side if taken else legs[0].side
    worst = max(prices) if side == Side.BUY else min(prices)
    sign = 1 if side == Side.BUY else -1
    violations = []
    for quote in away:
        better = [(price, shown) for price, shown in quote.levels if sign * price < sign * worst]
        for price, _ in better:
            shown = sum(shown for level, shown in better if sign * level >= sign * price)
            got = sum(
                leg.quantity for leg in legs if leg.peer == quote.engine and sign * leg.limit >= sign * price
            )
            if shown > got:
                violations.append(
                    f"went to {worst} while engine {quote.engine} showed {shown} better, from {price} on, "
                    f"and got {got}"
                )
                break
    return violations
