"""Judges every routing decision in the journals by what could be known of other engines' quotes. Pure.

A decision is a trade-through when it traded, or sent a leg, at a price worse than a quote of another engine
that it did not take whole. There are two kinds:

a bug      the quote was journaled with the decision: the engine knew it. One journal is enough to see that.
a view     the quote was not journaled with it, although the other engine's own journal says that it had stood
too old    through the whole look-back window. Seen only where the audits of a market's engines look at each
           other (`market`) and are fed all batches in order of time.

No view is called too old where the order could not have gone there anyhow: with do-not-route, with
fill-or-kill, which is judged at home, and when resting orders uncross, which they do only with engines of a
higher number. What legs that are still out may take counts as taken, as it does for the engine. Journals do
not tell whether one engine counted as live to another; so a quote of one that was away makes a view too old,
never a bug.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from engine.commands import AwayQuote, Command, EpochStarted, LegResult, NewOrder, ReplaceOrder, Uncross
from engine.events import BookChanged, Event, Fill, LegSent
from engine.state import State
from engine.terms import Liquidity, Side, TimeInForce

EXAMPLES: Final = 5
"""Old views that are described; the others are only counted."""

_NS_PER_MS: Final = 1_000_000


@dataclass(slots=True)
class Audit:
    """What the decisions of one engine's journal came to; feed it batch by batch, from the first on.

    Where the first ones are gone, `begin` with the state after them.
    """

    engine: int
    market: "Mapping[int, Audit]" = field(default_factory=dict, repr=False)
    """The audits of all engines; without them no view is compared with what others showed."""
    window_ns: int = 0
    """How long a quote must have stood to be expected in a view."""
    begins_after: int = 0
    """The batch before the first that is judged; 0 when none is missing."""
    batches: int = 0
    decisions: int = 0
    """Commands that traded at home as taker or sent legs."""
    with_away_quotes: int = 0
    """Those of them that knew away quotes."""
    legs: int = 0
    violations: list[str] = field(default_factory=list)
    """The bugs: for each decision and other engine that it went past, a line."""
    old_views: int = 0
    """Counted as bugs are."""
    old_view_examples: list[str] = field(default_factory=list)
    quoted: set[int] = field(default_factory=set)
    """The engines whose quotes decisions knew."""
    _state: State = field(init=False, repr=False)
    _stands: dict[tuple[str, int, int], tuple[int, int]] = field(default_factory=dict, repr=False)
    """By symbol, side and price: the quantity that is shown, and since when."""
    _reigns_since_ns: int = 0

    def __post_init__(self) -> None:
        self._state = State(self.engine)

    def begin(self, state: State) -> None:
        """Take what these books show as standing since the state's newest batch."""
        self._state = state
        self.begins_after = state.batch_number
        for symbol, book in state.books.items():
            for side in Side:
                for price, quantity, _ in book.levels(side):
                    self._stands[symbol, side, price] = quantity, self.last_batch_ns

    def add_batch(self, batch_number: int, time_ns: int, commands: Iterable[Command]) -> None:
        """Replay one batch and judge its decisions."""
        self._state.begin_batch(batch_number, time_ns)
        for command in commands:
            if isinstance(command, EpochStarted):
                self._reigns_since_ns = time_ns  # others throw away what they knew of the reign before
            self.judge(command, self._state.apply(command))
        self._note(self._state.end_batch(), time_ns)
        self.batches += 1

    def judge(self, command: Command, events: Sequence[Event]) -> None:
        """Judge what the batch's newest command, which was applied just now, did."""
        if not isinstance(command, NewOrder | ReplaceOrder | LegResult | Uncross):
            return
        taken = home_fills(events, self.engine)
        legs = [event for event in events if isinstance(event, LegSent)]
        if not taken and not legs:
            return
        self.decisions += 1
        self.with_away_quotes += bool(command.away)
        self.quoted.update(quote.engine for quote in command.away)
        self.legs += len(legs)
        symbol = (taken or legs)[0].symbol
        place = f"engine {self.engine}, batch {self._state.batch_number}, {symbol}: "
        known = traded_through(command.away, taken, legs)
        self.violations += [place + violation for violation in known]
        if not known:  # what was known and passed over is not excused by what was not known
            for violation in self._looked_past(command, taken, legs):
                self.old_views += 1
                if len(self.old_view_examples) < EXAMPLES:
                    self.old_view_examples.append(place + violation)

    def standing(self, symbol: str, side: int, since_ns: int) -> Iterator[tuple[int, int, int]]:
        """(price, quantity, since when) of what has been shown unchanged from `since_ns` on, best first."""
        book = self._state.books.get(symbol)
        for price, quantity, _ in book.levels(side) if book is not None else ():
            stands_since_ns = max(self._stands[symbol, side, price][1], self._reigns_since_ns)
            if stands_since_ns <= since_ns:
                yield price, quantity, stands_since_ns

    @property
    def last_batch_ns(self) -> int:
        """The time of the newest batch."""
        return self._state.accounts.time_ns

    def _note(self, changes: Iterable[BookChanged], time_ns: int) -> None:
        """Remember since when levels stand: from the batch on that brought them to their quantity."""
        for change in changes:
            for side, price, quantity, _ in change.levels:
                place = change.symbol, side, price
                if not quantity:
                    self._stands.pop(place, None)
                elif self._stands.get(place, (0, 0))[0] != quantity:
                    self._stands[place] = quantity, time_ns

    def _looked_past(self, command: Command, taken: Sequence[Fill], legs: Sequence[LegSent]) -> Iterator[str]:
        """Quotes that stood through the whole window, better than what was taken instead of them."""
        now_ns = self.last_batch_ns
        first = (taken or legs)[0]
        request = self._state.orders[first.order_id].request
        if request.do_not_route or request.time_in_force == TimeInForce.FOK:
            return
        sign = _sign(first.side)
        for number, other in self.market.items():
            if number == self.engine or (isinstance(command, Uncross) and number < self.engine):
                continue
            # At the other engine a leg takes the best price first, whatever its limit.
            instead = [sign * fill.price for fill in taken]
            instead += [sign * leg.limit for leg in legs if leg.peer != number]
            if not instead:
                continue
            levels = [
                level
                for level in other.standing(first.symbol, 3 - first.side, now_ns - self.window_ns)
                if sign * level[0] < max(instead)
            ]
            out = [
                leg.sent
                for leg in self._state.legs.values()
                if (leg.sent.peer, leg.sent.symbol, leg.sent.side) == (number, first.symbol, first.side)
            ]
            found = passed_over([(price, quantity) for price, quantity, _ in levels], out, sign)
            if found is not None:
                price, shown, got = found
                since_ns = next(since_ns for level, _, since_ns in levels if level == price)
                yield (
                    f"went to {sign * max(instead)} while engine {number} showed {shown} better, from {price}"
                    f" on, and got {got}: the view was {(now_ns - since_ns) // _NS_PER_MS:,} ms old (engine"
                    f" {number} wrote its last batch {(now_ns - other.last_batch_ns) // _NS_PER_MS:,} ms"
                    " before)"
                )


def audits(engines: Iterable[int], window_ns: int) -> dict[int, Audit]:
    """The audits of a market's engines, by number; feed them all batches in order of time."""
    market: dict[int, Audit] = {}
    market.update((engine, Audit(engine, market, window_ns)) for engine in sorted(engines))
    return market


def home_fills(events: Iterable[Event], engine: int) -> list[Fill]:
    """The fills that orders took on their own engine."""
    return [
        event
        for event in events
        if isinstance(event, Fill) and event.liquidity == Liquidity.TAKER and event.engine == engine
    ]


def traded_through(away: Iterable[AwayQuote], taken: Sequence[Fill], legs: Sequence[LegSent]) -> list[str]:
    """Away quotes better than the worst price that was traded or sent for, and not taken whole by legs."""
    prices = [fill.price for fill in taken] + [leg.limit for leg in legs]
    if not prices:
        return []
    sign = _sign((taken or legs)[0].side)
    worst = max(sign * price for price in prices)
    violations = []
    for quote in away:
        better = [(price, shown) for price, shown in quote.levels if sign * price < worst]
        found = passed_over(better, [leg for leg in legs if leg.peer == quote.engine], sign)
        if found is not None:
            price, shown, got = found
            violations.append(
                f"went to {sign * worst} while engine {quote.engine} showed {shown} better, from {price} on, "
                f"and got {got}"
            )
    return violations


def passed_over(
    levels: Sequence[tuple[int, int]], legs: Sequence[LegSent], sign: int
) -> tuple[int, int, int] | None:
    """Whether one engine's `levels` (price, quantity), best first, are more than its legs take of them.

    Returns the first price from which on more is shown than legs get that reach it, with both quantities;
    None when legs take all. `sign` makes of a price what is larger the worse it is.
    """
    shown = sum(quantity for _, quantity in levels)
    for price, quantity in levels:
        got = sum(leg.quantity for leg in legs if sign * leg.limit >= sign * price)
        if shown > got:
            return price, shown, got
        shown -= quantity
    return None


def _sign(side: int) -> int:
    """What makes of a price that an order of `side` pays a number that is larger the worse it is."""
    return 1 if side == Side.BUY else -1
