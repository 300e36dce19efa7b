"""What each client holds, from the execution reports of all engines.

A holding is three integers: lots, cash and cost. `cash` is what came in less what was paid, in ticks x lots.
`cost` is what the open lots cost by the average-price method, signed like the lots, in billionths of a
tick x lot: closing part of a position takes its share of the cost along, and that share is rounded (half to
even) to a billionth. Realized profit is cash + cost, rounded (half to even) to whole ticks x lots only where
it is shown. The rounding of a share moves between realized and unrealized profit and is never lost: their
sum is cash + lots x mark, so over all clients it is exactly zero at any mark price.

Fees are kept beside and are in none of these numbers.

Invariants: a client's fills are taken in order of their sequence, each once; a flat holding has no cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bus.messages import Executions, ReportedFill

COST_UNIT: Final = 10**9
"""Parts of a tick x lot in which cost is kept."""

INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)

_BUY: Final = 1


def saturate(number: int) -> int:
    """The nearest number that an int64 of the contract can carry."""
    return max(INT64_MIN, min(INT64_MAX, number))


def divide_half_even(dividend: int, divisor: int) -> int:
    """Divide, rounded to the nearest integer, a tie to the even one. `divisor` is above 0."""
    quotient, remainder = divmod(dividend, divisor)
    doubled = 2 * remainder
    return quotient + (doubled > divisor or (doubled == divisor and quotient % 2 == 1))


@dataclass(slots=True)
class Holding:
    """One client's position in one symbol."""

    lots: int = 0
    cash: int = 0
    cost: int = 0
    fees: int = 0

    def trade(self, lots: int, price: int) -> None:
        """Buy `lots` at `price`; a negative number sells."""
        self.cash -= lots * price
        if self.lots * lots < 0:
            closed = min(abs(lots), abs(self.lots))
            self.cost -= divide_half_even(self.cost * closed, abs(self.lots))
            opened = (abs(lots) - closed) * (1 if lots > 0 else -1)
        else:
            opened = lots
        self.cost += opened * price * COST_UNIT
        self.lots += lots

    @property
    def average_price(self) -> float:
        """Ticks paid or received per open lot, for display; 0 when flat."""
        return self.cost / (self.lots * COST_UNIT) if self.lots else 0.0

    @property
    def realized(self) -> int:
        """Profit of the closed lots in ticks x lots, rounded half to even, without fees."""
        return divide_half_even(self.cash * COST_UNIT + self.cost, COST_UNIT)


@dataclass(frozen=True, slots=True)
class FillGap:
    """A client's fills are known up to one sequence; the next one seen was not its successor."""

    last_sequence: int
    next_sequence: int


class Positions:
    """The holdings of every client."""

    def __init__(self) -> None:
        self._holdings: dict[str, dict[str, Holding]] = {}
        self._last: dict[str, tuple[int, int]] = {}  # epoch and sequence of the newest fill
        self._gaps: dict[str, FillGap] = {}

    def apply(self, executions: Executions) -> list[str]:
        """Take in the fills of one message; a fill seen before changes nothing.

        An engine that lost its memory gives sequences out again in a later epoch. Where they begin at 1, so
        do the client's positions; what else comes again has a lost fill before it, which is a gap.

        Returns the clients in whose fills a gap has just shown. Their positions are unknown from then on:
        a wrong position is worse than none.
        """
        return [
            report.client
            for report in executions.reports
            if type(report) is ReportedFill and not self._apply_fill(report, executions.epoch)
        ]

    def _apply_fill(self, fill: ReportedFill, epoch: int) -> bool:
        last_epoch, last_sequence = self._last.get(fill.client, (0, 0))
        if fill.sequence == 1 and epoch > last_epoch:
            last_sequence = 0
            self._holdings.pop(fill.client, None)
            self._gaps.pop(fill.client, None)
        if fill.client in self._gaps or (fill.sequence <= last_sequence and epoch == last_epoch):
            return True
        if fill.sequence != last_sequence + 1:
            self._gaps[fill.client] = FillGap(last_sequence=last_sequence, next_sequence=fill.sequence)
            return False
        self._last[fill.client] = epoch, fill.sequence
        holding = self._holdings.setdefault(fill.client, {}).setdefault(fill.symbol, Holding())
        holding.trade(fill.quantity if fill.side == _BUY else -fill.quantity, fill.price)
        holding.fees += fill.fee
        return True

    def gap(self, client: str) -> FillGap | None:
        """The gap in this client's fills, if there is one."""
        return self._gaps.get(client)

    @property
    def gap_count(self) -> int:
        """How many clients' fills have a gap."""
        return len(self._gaps)

    def fill_count(self, client: str) -> int:
        """How many fills of this client are in its positions, or were before a gap."""
        return self._last.get(client, (0, 0))[1]

    def of(self, client: str, symbol: str = "") -> Sequence[tuple[str, Holding]]:
        """A client's holdings in order of their symbols, only one symbol's unless empty."""
        holdings = self._holdings.get(client, {})
        if symbol:
            return [(symbol, holdings[symbol])] if symbol in holdings else []
        return sorted(holdings.items())
