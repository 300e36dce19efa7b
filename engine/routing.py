"""Where an order's quantity goes: the best price first, wherever it is shown.

At one price the home book comes first, then the larger quote, then the lower engine number. A plan is a
pure function of the home levels and the away quotes that were journaled with the command, so a replay
plans the same and an auditor can ask whether it was right.

Prices are keys of the side taken from (`engine.book`): larger is better.
"""

from collections.abc import Iterable, Iterator

import msgspec

from engine.commands import AwayQuote


class AwayLevel(msgspec.Struct, gc=False):
    """A level that a peer shows. `quantity` shrinks as legs are planned against it.

    `is_last_known`: the quote was cut here; the peer shows more, at this price or a worse one, that is not
    known.
    """

    key: int
    quantity: int
    engine: int
    epoch: int
    is_last_known: bool = False


class Step(msgspec.Struct, frozen=True, gc=False):
    """One step of a plan: take `quantity` at `key`, from an away `level` or, where that is None, at home."""

    level: AwayLevel | None
    key: int
    quantity: int


def rank(quotes: Iterable[AwayQuote], sign: int) -> list[AwayLevel]:
    """All away levels, the one to take first at the front. `sign` turns prices into keys."""
    levels = [
        AwayLevel(price * sign, quantity, quote.engine, quote.epoch, quote.cut and at == len(quote.levels))
        for quote in quotes
        for at, (price, quantity) in enumerate(quote.levels, start=1)
    ]
    levels.sort(key=lambda level: (-level.key, -level.quantity, level.engine))
    return levels


def known_to(away: Iterable[AwayLevel]) -> int | None:
    """The key down to which all that is shown elsewhere is known; None when all is. `away` is ranked."""
    return next((level.key for level in away if level.is_last_known), None)


def plan(quantity: int, worst: int, home: Iterator[tuple[int, int]], away: Iterable[AwayLevel]) -> list[Step]:
    """Divide `quantity` over the levels at least as good as `worst`, the best price first.

    `home` yields (key, quantity) best first, `away` is ranked. What no level covers is in no step.
    """
    steps: list[Step] = []
    here = next(home, None)
    for level in away:
        if level.key < worst or not quantity:
            break
        while here is not None and here[0] >= level.key and quantity:
            quantity -= _add(steps, None, here[0], min(quantity, here[1]))
            here = next(home, None)
        if quantity:
            quantity -= _add(steps, level, level.key, min(quantity, level.quantity))
    while here is not None and here[0] >= worst and quantity:
        quantity -= _add(steps, None, here[0], min(quantity, here[1]))
        here = next(home, None)
    return steps


def _add(steps: list[Step], level: AwayLevel | None, key: int, quantity: int) -> int:
    if quantity:
        steps.append(Step(level, key, quantity))
    return quantity
