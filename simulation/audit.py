"""Judges every routing decision in the journals by what could be known of other engines' quotes. Pure.

A decision is a trade-through when it traded, or sent a leg, at a price worse than a quote of another engine
that it did not take whole. What that engine showed, its own journal says; a quote stands when its orders
have rested there through the whole look-back window, each for what is left of it. There are two kinds:

a bug      the engine knew the quote: a quote that was journaled in the same batch names a state of that book
           which had it already, and in one batch an engine sees one state of each book. So is a quote that
           was journaled with the decision itself, whatever the other journal says.
an old view
           nothing in the batch says that the engine knew the quote.

What earlier legs are out for counts as taken until the other engine's journal has answered them. From then
on its book shows what they took, and what is left of it stands for the next order. The engine that sent them
hears of it a little later, the new state of the book first, the answers after it. While a leg's answer is not
here, it is no bug to leave to it what the known state has not lost to it. For legs of earlier reigns nothing
counts as taken: they are only queried.

No view is called old where the order could not have gone there anyhow: with do-not-route, with
fill-or-kill, which is judged at home, and when resting orders uncross, which they do only with engines of a
higher number. Journals do not tell whether one engine counted as live to another, but where a quote does.

Other journals are looked at where the audits of a market's engines know each other (`market`) and are fed all
batches in order of time. An audit alone finds only quotes that were journaled with a decision.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import msgspec

from bus.messages import opposite
from engine.commands import (
    AwayQuote,
    Command,
    EpochStarted,
    LegResult,
    NewOrder,
    ReplaceOrder,
    TakingCommand,
    Uncross,
)
from engine.events import Event, Fill, LegSent, LegTaken
from engine.orders import Order
from engine.state import OutLeg, State
from engine.terms import Liquidity, Side, TimeInForce

EXAMPLES: Final = 5
"""Old views that are described; the others are only counted."""

KEPT_SEQUENCES: Final = 10_000
"""How many of a book's newest states are remembered; no decision is said to have known an older one."""

_NS_PER_MS: Final = 1_000_000
_NO_PLACE: Final = 2**63
"""Behind every order."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A command that traded at home as taker or sent legs; legs before it are numbered below `first_leg`."""

    command: TakingCommand
    taken: list[Fill]
    legs: list[LegSent]
    first_leg: int


@dataclass(slots=True)
class _Leg:
    """A leg whose answer its sender does not have, or has, but not yet the state of the book after it.

    `known_before`: when it was planned, orders with a lower place were known. `aims` is what it was meant to
    take, by price; empty when it was planned before the audit began.
    """

    sent: LegSent
    known_before: int
    aims: dict[int, int]
    is_of_earlier_reign: bool = False
    """Sent in an earlier reign than its sender's newest, which subtracts nothing for it until it is back."""
    is_answered: bool = False
    """By the peer's journal."""
    fills: list[tuple[int, int, int]] = field(default_factory=list)
    """What it took there: price, quantity, and the place of the order that it took it from."""
    shown_from: int = 0
    """The peer's book is without that from this sequence on."""
    back: int | None = None
    """What its sender knows it took, once its result is in the sender's journal."""

    def hides(self, before: int) -> int:
        """What the sender may subtract for it from orders with a place below `before`, as the peer has them.

        Not what it took of these where it was meant to: the peer no longer has that, and neither has the
        sender's copy, or it cannot tell.
        """
        if self.back is not None:
            return self.back
        if self.is_of_earlier_reign:
            return 0
        seen = dict.fromkeys(self.aims, 0)
        for price, quantity, place in self.fills:
            if price in seen and place < before:
                seen[price] += quantity
        return self.sent.quantity - sum(min(aim, seen[price]) for price, aim in self.aims.items())


class Audit:
    """What the decisions of one engine's journal came to; feed it batch by batch, from the first on.

    Where the first ones are gone, `begin` with the state after them. `market` has the audits of all engines;
    without them no decision is compared with what others showed. A quote must have stood for `window_ns` to
    be expected in a view.

    The *place* of a resting order grows with when it came to rest: its priority, or, when something of it had
    been away on a leg and came back, the priority that a new order would have got then.
    """

    def __init__(
        self, engine: int, market: "Mapping[int, Audit]" = MappingProxyType({}), window_ns: int = 0
    ) -> None:
        self.engine = engine
        self.market = market
        self.window_ns = window_ns
        self.begins_after = 0
        """The batch before the first that is judged; 0 when none is missing."""
        self.left_out = 0
        """Batches that were stored when the audit began and are stamped later: of a clock that was ahead."""
        self.batches = 0
        self.decisions = 0
        """Commands that traded at home as taker or sent legs."""
        self.with_away_quotes = 0
        """Those of them that knew away quotes."""
        self.legs = 0
        self.bugs: list[str] = []
        """For each decision and other engine that it went past, a line."""
        self.old_views = 0
        """Counted as bugs are."""
        self.old_view_examples: list[str] = []
        self.quoted: set[int] = set()
        """The engines whose quotes decisions knew."""
        self._state = State(engine)
        self._reigns_since_ns = 0
        self._times = array("q")
        self._places = array("q")
        """From the time of `_times` at the same index on, orders got this place or a later one."""
        self._place_after: dict[tuple[str, int], int] = {}
        """By symbol and sequence of its book: the place below which orders stood in it or had stood."""
        self._returned: dict[int, int] = {}
        """The places of orders that something came back to."""
        self._sent: dict[tuple[int, str, int], dict[int, _Leg]] = {}
        """By peer, symbol and side: by id, the legs that may still be subtracted from what the peer shows."""

    def begin(self, state: State) -> None:
        """Take what these books show as standing since the state's newest batch."""
        self._state = state
        self.begins_after = state.batch_number
        self._times.append(self.last_batch_ns)
        self._places.append(0)
        for symbol, book in state.books.items():
            self._place_after[symbol, book.sequence] = state.next_priority
        for leg in state.legs.values():
            self._legs_like(leg.sent)[leg.sent.leg_id] = _Leg(leg.sent, 0, {})

    def add_batch(self, batch_number: int, time_ns: int, commands: Iterable[Command]) -> None:
        """Replay one batch and judge its decisions."""
        state = self._state
        state.begin_batch(batch_number, time_ns)
        self._note_time(time_ns)
        views: dict[tuple[int, str], AwayQuote] = {}
        decisions: list[Decision] = []
        answers: list[LegTaken] = []
        for command in commands:
            if isinstance(command, EpochStarted):
                self._begin_reign(time_ns)
            if isinstance(command, TakingCommand) and command.away:
                self._look(command, views)
            first_leg, place = state.next_leg_id, state.next_priority
            out = state.legs.get(command.leg_id) if isinstance(command, LegResult) else None
            events = state.apply(command)
            if isinstance(command, LegResult) and out is not None:
                self._note_result(command, out, place)
            answers += [event for event in events if isinstance(event, LegTaken)]
            decision = self._decision_of(command, events, first_leg)
            if decision is not None:
                decisions.append(decision)
                self._note_legs(decision)
        for change in state.end_batch():
            self._place_after[change.symbol, change.sequence] = state.next_priority
            self._place_after.pop((change.symbol, change.sequence - KEPT_SEQUENCES), None)
        for answer in answers:
            self._note_answer(answer)
        for decision in decisions:
            self.judge(decision, views)
        self.batches += 1

    def _decision_of(self, command: Command, events: Sequence[Event], first_leg: int) -> Decision | None:
        """What a command decided that made these events; None when it decided nothing."""
        if not isinstance(command, TakingCommand):
            return None
        taken = home_fills(events, self.engine)
        legs = [event for event in events if isinstance(event, LegSent)]
        return Decision(command, taken, legs, first_leg) if taken or legs else None

    def judge(self, decision: Decision, views: Mapping[tuple[int, str], AwayQuote]) -> None:
        """Judge a decision of the newest batch; `views` are quotes from it, by engine and symbol."""
        command, taken, legs = decision.command, decision.taken, decision.legs
        self.decisions += 1
        self.with_away_quotes += bool(command.away)
        self.quoted.update(quote.engine for quote in command.away)
        self.legs += len(legs)
        symbol = (taken or legs)[0].symbol
        place = f"engine {self.engine}, batch {self._state.batch_number}, {symbol}: "
        known = traded_through(command.away, taken, legs)
        self.bugs += [place + violation for violation in known]
        if known:  # what was known and passed over is not excused by what was not known
            return
        for was_known, violation in self._looked_past(decision, views):
            if was_known:
                self.bugs.append(place + violation)
                continue
            self.old_views += 1
            if len(self.old_view_examples) < EXAMPLES:
                self.old_view_examples.append(place + violation)

    @property
    def last_batch(self) -> int:
        """The number of the newest batch; 0 before the first."""
        return self._state.batch_number

    @property
    def last_batch_ns(self) -> int:
        """The time of the newest batch."""
        return self._state.accounts.time_ns

    # -- what this engine shows -----------------------------------------------------------------------

    def standing_before(self, now_ns: int) -> int:
        """The place below which orders have stood since `now_ns` less the window, in this reign."""
        since_ns = now_ns - self.window_ns
        if since_ns < self._reigns_since_ns:
            return 0  # others throw away what they knew of the reign before
        at = bisect_right(self._times, since_ns)
        return self._places[at] if at < len(self._places) else self._state.next_priority

    def known_before(self, symbol: str, view: AwayQuote) -> int:
        """The place below which whoever had this view knew the orders; 0 when that cannot be said."""
        return (
            self._place_after.get((symbol, view.book_sequence), 0) if view.epoch == self._state.epoch else 0
        )

    def better(self, symbol: str, side: int, price: int, before: int) -> list[tuple[int, int]]:
        """(price, quantity) of orders with a place below `before`, at prices that a taker likes better."""
        book, sign = self._state.books.get(symbol), _sign(opposite(side))
        levels = []
        for level in book.side(side).best_first() if book is not None else ():
            if sign * level.price >= sign * price:
                break
            quantity = sum(order.open for order in level.queue() if self._place(order) < before)
            if quantity:
                levels.append((level.price, quantity))
        return levels

    def stands_since_ns(self, symbol: str, side: int, price: int) -> int:
        """Since when the first order at a price has stood there."""
        level = self._state.books[symbol].side(side)
        first = min(map(self._place, level.levels[price * level.sign].queue()))
        return max(self._times[bisect_right(self._places, first) - 1], self._reigns_since_ns)

    def leg_out(self, leg_id: int) -> _Leg | None:
        """A leg of this engine whose result is not in its journal yet."""
        out = self._state.legs.get(leg_id)
        return self._legs_like(out.sent).get(leg_id) if out is not None else None

    def _place(self, order: Order) -> int:
        return self._returned.get(order.id, order.priority)

    def _note_time(self, time_ns: int) -> None:
        """The batch at this time gives the next places."""
        place = self._state.next_priority
        if self._places and self._places[-1] == place:
            self._times[-1] = time_ns  # the batches since then gave none
        else:
            self._times.append(time_ns)
            self._places.append(place)

    def _note_answer(self, answer: LegTaken) -> None:
        """Let the sender's audit know of a leg that was taken or refused here, or queried."""
        sender = self.market.get(answer.sender)
        leg = sender.leg_out(answer.leg_id) if sender is not None else None
        if leg is None:
            return
        leg.is_answered = True
        book = self._state.books.get(leg.sent.symbol)
        leg.shown_from = book.sequence if book is not None else 0
        orders = self._state.orders
        makers = [orders.get(fill.contra_order_id) for fill in answer.fills]
        places = [self._place(maker) if maker is not None else _NO_PLACE for maker in makers]
        leg.fills = [
            (fill.price, fill.quantity, place) for fill, place in zip(answer.fills, places, strict=True)
        ]

    # -- what this engine knows -----------------------------------------------------------------------

    def _begin_reign(self, time_ns: int) -> None:
        self._reigns_since_ns = time_ns
        for legs in self._sent.values():
            for leg in legs.values():
                leg.is_of_earlier_reign = True

    def _look(self, command: TakingCommand, views: dict[tuple[int, str], AwayQuote]) -> None:
        """Note which states of books a command's quotes are from, and forget legs that those are after."""
        match command:
            case NewOrder() | Uncross():
                symbol = command.symbol
            case ReplaceOrder():
                order = self._state.accounts.find(command.client, command.order_id, command.client_order_id)
                symbol = order.request.symbol if order is not None else ""
            case LegResult():
                out = self._state.legs.get(command.leg_id)
                symbol = out.sent.symbol if out is not None else ""
        for quote in command.away:
            views[quote.engine, symbol] = quote
            for side in Side:
                legs = self._sent.get((quote.engine, symbol, side), {})
                seen = [
                    leg_id
                    for leg_id, leg in legs.items()
                    if leg.back is not None
                    and (leg.shown_from <= quote.book_sequence or leg.sent.peer_epoch != quote.epoch)
                ]
                for leg_id in seen:
                    del legs[leg_id]

    def _note_legs(self, decision: Decision) -> None:
        """Remember what the legs of a decision are meant to take."""
        for quote in decision.command.away:
            left = dict(quote.levels)
            other = self.market.get(quote.engine)
            for leg in decision.legs:
                if leg.peer != quote.engine or other is None:
                    continue
                aims: dict[int, int] = {}
                for price, shown in left.items():
                    aims[price] = min(shown, leg.quantity - sum(aims.values()))
                    left[price] -= aims[price]
                known_before = other.known_before(leg.symbol, quote)
                self._legs_like(leg)[leg.leg_id] = _Leg(leg, known_before, aims)

    def _note_result(self, command: LegResult, out: OutLeg, place: int) -> None:
        """A leg is back; `place` was the next to be given before."""
        leg = self._legs_like(out.sent).get(command.leg_id)
        if leg is not None:
            leg.back = sum(fill.quantity for fill in command.fills)
        if out.order.is_resting and out.order.priority < place:
            self._returned[out.order.id] = place  # with other lots than those that stood there, perhaps

    def _legs_like(self, leg: LegSent) -> dict[int, _Leg]:
        return self._sent.setdefault((leg.peer, leg.symbol, leg.side), {})

    def _looked_past(
        self, decision: Decision, views: Mapping[tuple[int, str], AwayQuote]
    ) -> Iterator[tuple[bool, str]]:
        """Quotes that stood through the whole window, better than what was taken instead of them.

        Each with whether the engine knew it.
        """
        symbol = (decision.taken or decision.legs)[0].symbol
        for number, other in self.market.items():
            if number == self.engine or (isinstance(decision.command, Uncross) and number < self.engine):
                continue
            found = self._looked_past_at(other, decision, views.get((number, symbol)))
            if found is not None:
                yield found

    def _looked_past_at(
        self, other: "Audit", decision: Decision, view: AwayQuote | None
    ) -> tuple[bool, str] | None:
        now_ns = self.last_batch_ns
        first = (decision.taken or decision.legs)[0]
        symbol, side, sign = first.symbol, first.side, _sign(first.side)
        # At the other engine a leg takes the best price first, whatever its limit.
        instead = [fill.price for fill in decision.taken]
        instead += [leg.limit for leg in decision.legs if leg.peer != other.engine]
        if not instead:
            return None
        worst = max(instead, key=lambda price: sign * price)
        own = [leg for leg in decision.legs if leg.peer == other.engine]
        sent = self._sent.get((other.engine, symbol, side), {})
        out = [leg for leg_id, leg in sent.items() if leg_id < decision.first_leg]

        def passed(before: int, earlier: list[LegSent]) -> tuple[int, int, int] | None:
            return passed_over(other.better(symbol, opposite(side), worst, before), own + earlier, sign)

        standing_before = other.standing_before(now_ns)
        unanswered = [
            leg.sent for leg in out if not (leg.is_answered or leg.is_of_earlier_reign) and leg.back is None
        ]
        found = passed(standing_before, unanswered)
        if found is None:
            return None
        text = _went_past(worst, other.engine, found)
        if view is not None:
            known = min(standing_before, other.known_before(symbol, view), *(leg.known_before for leg in out))
            hidden = [
                msgspec.structs.replace(leg.sent, limit=worst, quantity=leg.hides(known)) for leg in out
            ]
            if passed(known, hidden) is not None:
                return True, f"{text}, though it knew book {view.book_sequence} of that engine"
        request = self._state.orders[first.order_id].request
        if request.do_not_route or request.time_in_force == TimeInForce.FOK:
            return None  # it stays at home
        age_ms = (now_ns - other.stands_since_ns(symbol, opposite(side), found[0])) // _NS_PER_MS
        idle_ms = (now_ns - other.last_batch_ns) // _NS_PER_MS
        idle = f"engine {other.engine} wrote its last batch {idle_ms:,} ms before"
        return False, f"{text}: the view was {age_ms:,} ms old ({idle})"


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
            violations.append(_went_past(sign * worst, quote.engine, found))
    return violations


def passed_over(
    levels: Sequence[tuple[int, int]], legs: Sequence[LegSent], sign: int
) -> tuple[int, int, int] | None:
    """Whether one engine's `levels` (price, quantity), best first, are more than its legs take of them.

    Returns the first price from which on more is shown than legs get that reach it, with both quantities;
    None when legs take all. `sign` times a price is larger the worse the price is.
    """
    shown = sum(quantity for _, quantity in levels)
    for price, quantity in levels:
        got = sum(leg.quantity for leg in legs if sign * leg.limit >= sign * price)
        if shown > got:
            return price, shown, got
        shown -= quantity
    return None


def _went_past(worst: int, engine: int, found: tuple[int, int, int]) -> str:
    """What is said of a decision that went to the price `worst`, where `passed_over` found this."""
    price, shown, got = found
    return f"went to {worst} while engine {engine} showed {shown} better, from {price} on, and got {got}"


def _sign(side: int) -> int:
    """The sign that makes a price larger the worse it is for an order of `side`."""
    return 1 if side == Side.BUY else -1
