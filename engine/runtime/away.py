"""What peers show, as far as an order here may count on it: the away quotes of this moment.

Only synced quotes of live peers whose legs are answered count (docs/decisions/0005, 0013). What our own legs
are taking, or took so recently that the feed has not shown it yet, counts no more: otherwise every order of a
batch would chase the same quote. The feed may show it before the leg's answer is here, and then it must not
be subtracted twice: an order would pass over what is left.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import msgspec

from bus.messages import LegAnswer, opposite
from bus.peer import PeerFeed
from bus.replica import BookReplica
from engine.book import BookSide
from engine.commands import (
    AddInstrument,
    AwayQuote,
    CancelAll,
    CancelOrder,
    Command,
    EpochStarted,
    LegResult,
    NewOrder,
    QueryLeg,
    ReplaceOrder,
    TakeLeg,
    Uncross,
)
from engine.events import LegSent
from engine.orders import Order
from engine.routing import rank
from engine.state import OutLeg, State
from engine.terms import MAX_LEG_FILLS, OrderType, Side

MAX_QUOTES: Final = 64
"""Peers quoted to one command, the best priced ones."""

MAX_LEVELS: Final = 20
"""Levels of one peer that one command carries; an order that needs more plans again with fresh quotes, and
until then does not trade beyond (`AwayQuote.cut`)."""

MAX_UNCROSSED: Final = 500
"""Resting orders that one Uncross sends legs from; another follows for those behind them."""

SUSPECT_AFTER_UNANSWERED: Final = 3
"""Questions in a row that make a peer suspect: legs or queries, of one leg or of several.

Three legs at once do it in a quarter of a second; one alone, which is queried, in little more than one.
"""

_BUY: Final = int(Side.BUY)
_MARKET: Final = int(OrderType.MARKET)

_Quoteless = CancelOrder | CancelAll | TakeLeg | QueryLeg | AddInstrument | EpochStarted
"""Commands that carry no quotes. A new kind missing both here and in `attach` is a type error there."""


@dataclass(slots=True)
class _LateFill:
    """What a leg took that the peer's feed shows only from `book_sequence` on.

    With `exhausted` the leg came back short: down to its limit the peer had nothing left.
    """

    epoch: int
    book_sequence: int
    quantity: int
    limit: int
    exhausted: bool


@dataclass(slots=True)
class _Aim:
    """A price that legs that are out aim at.

    They are to take `quantity` there; the peer shows `shown`, and would show `unshared` if they had taken
    nothing yet.
    """

    unshared: int
    shown: int
    quantity: int = 0

    @property
    def seen(self) -> int:
        """How much of it the peer's book has lost already; if to others, the leg comes back short."""
        return min(self.quantity, max(0, self.unshared - self.shown))


@dataclass(slots=True)
class _Taken:
    """What our legs take from one side of one peer's book.

    What is shown at the aims, `seen`, `late` and what follows from it are true for `as_of`: a replica's
    epoch, sequence and checksum. That stays the same during a batch of ours, so it is looked at once.
    """

    out: int = 0
    aims: dict[int, _Aim] = field(default_factory=dict)
    late: list[_LateFill] = field(default_factory=list)
    as_of: tuple[int, int, int] | None = None
    seen: int = 0
    """How much of what is out the replica has lost already."""
    late_quantity: int = 0
    exhausted_to: int | None = None
    """Down to this price the peer has nothing left."""

    def refresh(self, replica: BookReplica, side: int) -> None:
        """Bring the figures up to what the replica shows now."""
        version = replica.epoch, replica.sequence, replica.checksum
        if self.as_of == version:
            return
        self.as_of = version
        self.seen = 0
        for price, aim in self.aims.items():
            aim.shown = replica.quantity(opposite(side), price)
            self.seen += aim.seen
        self.late = [
            fill
            for fill in self.late
            if fill.epoch == replica.epoch and fill.book_sequence > replica.sequence
        ]
        self.late_quantity = sum(fill.quantity for fill in self.late)
        limits = [fill.limit for fill in self.late if fill.exhausted]
        self.exhausted_to = (max(limits) if side == _BUY else min(limits)) if limits else None


class AwayView:
    """The quotes of one engine's peers. `peers` is kept up to date by the feed follower."""

    def __init__(self, engine: int, state: State, peers: Mapping[int, PeerFeed]) -> None:
        self._engine = engine
        self._state = state
        self._peers = peers
        self._taken: dict[tuple[int, str, int], _Taken] = {}
        self._aimed: dict[int, list[tuple[int, int]]] = {}
        """By leg that is out and was planned here, price and quantity of what it aims at."""
        self._unanswered: dict[int, int] = {}
        """By peer, the questions in vain since its last answer."""

    def attach(self, command: Command) -> Command | None:
        """The command with the quotes it may meet; None for an Uncross with nothing left to uncross."""
        match command:
            case NewOrder():
                if command.symbol not in self._state.books or command.side not in (1, 2):
                    return command  # it will be refused
                limit = None if command.type == _MARKET else command.price
                return self._with_quotes(command, command.symbol, command.side, limit, command.quantity)
            case ReplaceOrder():
                order = self._state.accounts.find(command.client, command.order_id, command.client_order_id)
                if order is None:
                    return command
                return self._for_order(command, order, command.price, command.quantity)
            case LegResult():
                leg = self._state.legs.get(command.leg_id)
                if leg is None or not _leaves_something(leg, command):
                    return command
                return self._for_order(command, leg.order, leg.order.price, leg.order.quantity)
            case Uncross():
                return self._for_uncross(command)
            case _:
                quoteless: _Quoteless = command
                return quoteless

    def crossing(self, symbol: str) -> list[int]:
        """The sides whose best price here is locked or crossed by a quote of a peer with a higher number."""
        book = self._state.books.get(symbol)
        if book is None:
            return []
        sides = []
        for side in (int(Side.BUY), int(Side.SELL)):
            best = book.best(side)
            if best is not None and any(self._quotes(symbol, side, best[0], 1, above=self._engine)):
                sides.append(side)
        return sides

    def legs_planned(self, legs: Sequence[LegSent]) -> None:
        """Legs of one command are to leave: what they aim at is spoken for."""
        by_place: dict[tuple[int, str, int], list[LegSent]] = {}
        for leg in legs:
            by_place.setdefault((leg.peer, leg.symbol, leg.side), []).append(leg)
        for place, together in by_place.items():
            self._aim(place, together)
            self._taken[place].out += sum(leg.quantity for leg in together)

    def _aim(self, place: tuple[int, str, int], legs: list[LegSent]) -> None:
        """Let legs aim at what is not taken of one side of a book, in one walk for all of them."""
        taken = self._taken.setdefault(place, _Taken())
        number, symbol, side = place
        peer = self._peers.get(number)
        replica = peer.protected(symbol) if peer is not None else None
        levels: Iterator[tuple[int, int]] = iter(())
        if replica is not None:
            limits = [leg.limit for leg in legs]
            worst = max(limits) if side == _BUY else min(limits)
            levels = self._untaken(replica, place, worst, sum(leg.quantity for leg in legs))
        price, shown = next(levels, (0, 0))
        for leg in legs:
            left, aimed = leg.quantity, self._aimed.setdefault(leg.leg_id, [])
            while left and shown and _reaches(side, leg.limit, price):
                quantity = min(shown, left)
                shown -= quantity
                left -= quantity
                aim = taken.aims.get(price)
                if aim is None:
                    assert replica is not None
                    now = replica.quantity(opposite(side), price)
                    aim = taken.aims[price] = _Aim(now, now)
                aim.unshared = aim.shown + aim.seen  # others may have added some
                aim.quantity += quantity
                aimed.append((price, quantity))
                if not shown:
                    price, shown = next(levels, (0, 0))

    def leg_answered(self, leg: LegSent, answer: LegAnswer) -> None:
        """A leg is back: until the feed shows it, subtract what it took."""
        self._unanswered.pop(leg.peer, None)
        taken = self._taken.setdefault((leg.peer, leg.symbol, leg.side), _Taken())
        taken.as_of = None
        filled = sum(quantity for _, _, quantity, _, _ in answer.fills)
        aimed = self._aimed.pop(leg.leg_id, None)
        if aimed is not None:
            taken.out -= leg.quantity
            for _, price, quantity, *_ in answer.fills:  # which may be better ones than it aimed at
                if price in taken.aims:
                    taken.aims[price].unshared -= quantity
        for price, quantity in aimed or ():
            aim = taken.aims[price]
            aim.quantity -= quantity
            if not aim.quantity:
                del taken.aims[price]
        exhausted = not answer.refused and filled < leg.quantity and len(answer.fills) < MAX_LEG_FILLS
        if filled or exhausted:
            taken.late.append(
                _LateFill(leg.peer_epoch, answer.book_sequence, filled, leg.limit, exhausted=exhausted)
            )

    def leg_unanswered(self, peer: int) -> None:
        """A leg, or the query of one, got no answer in time."""
        self._unanswered[peer] = self._unanswered.get(peer, 0) + 1

    def is_suspect(self, peer: int) -> bool:
        """Whether the peer let too many legs wait; it stays so until it answers one.

        It always can: a leg without an answer is queried until it has one (`engine/runtime/legs.py`).
        """
        return self._unanswered.get(peer, 0) >= SUSPECT_AFTER_UNANSWERED

    def counts(self, peer: int, symbol: str) -> bool:
        """Whether what a peer shows of a symbol counts: the book is synced, the peer is live and answers."""
        return self._book(peer, symbol) is not None

    def _book(self, peer: int, symbol: str) -> BookReplica | None:
        """The peer's book of a symbol, if it counts."""
        feed = self._peers.get(peer)
        return feed.protected(symbol) if feed is not None and not self.is_suspect(peer) else None

    def _for_order(
        self, command: ReplaceOrder | LegResult, order: Order, price: int, quantity: int
    ) -> NewOrder | ReplaceOrder | LegResult:
        request = order.request
        limit = None if request.type == _MARKET else price
        return self._with_quotes(command, request.symbol, order.side, limit, quantity)

    def _with_quotes(
        self,
        command: NewOrder | ReplaceOrder | LegResult,
        symbol: str,
        side: int,
        limit: int | None,
        quantity: int,
    ) -> NewOrder | ReplaceOrder | LegResult:
        quotes = self._best_quotes(symbol, side, limit, quantity)
        return msgspec.structs.replace(command, away=quotes) if quotes else command

    def _for_uncross(self, command: Uncross) -> Uncross | None:
        own_side = self._state.books[command.symbol].side(command.side)
        if not own_side.keys:
            return None
        best = own_side.keys[-1] * own_side.sign
        quotes = self._best_quotes(command.symbol, command.side, best, 2**63, above=self._engine)
        if not quotes:
            return None
        worst = min(quote.levels[0][0] * own_side.sign for quote in quotes)
        quotes = _first_of(quotes, _free_to_leave(own_side, worst, MAX_UNCROSSED), -own_side.sign)
        return Uncross(command.symbol, command.side, quotes)

    def _best_quotes(
        self, symbol: str, side: int, limit: int | None, quantity: int, *, above: int = 0
    ) -> tuple[AwayQuote, ...]:
        """As `_quotes`, but never more than a record has room for."""
        quotes = list(self._quotes(symbol, side, limit, quantity, above=above))
        if len(quotes) > MAX_QUOTES:
            sign = 1 if side == _BUY else -1
            quotes.sort(key=lambda quote: sign * quote.levels[0][0])
            del quotes[MAX_QUOTES:]
            # Those left out show nothing better than the last one's best price: no more is known than that.
            quotes[-1] = msgspec.structs.replace(quotes[-1], levels=quotes[-1].levels[:1], cut=True)
        return tuple(quotes)

    def _quotes(
        self, symbol: str, side: int, limit: int | None, quantity: int, *, above: int
    ) -> Iterator[AwayQuote]:
        """What an order of `side` could take at `limit` or better from peers numbered above `above`."""
        other_side = opposite(side)
        for number in self._peers:
            replica = self._book(number, symbol)
            if replica is None or number <= above:
                continue
            best = replica.best(other_side)
            if best is None or not _reaches(side, limit, best[0]):
                continue
            untaken = self._untaken(replica, (number, symbol, side), limit, quantity)
            levels = tuple(islice(untaken, MAX_LEVELS + 1))
            if levels:
                cut = len(levels) > MAX_LEVELS
                yield AwayQuote(number, replica.epoch, replica.sequence, levels[:MAX_LEVELS], cut)

    def _untaken(
        self, replica: BookReplica, place: tuple[int, str, int], limit: int | None, quantity: int
    ) -> Iterator[tuple[int, int]]:
        """The replica's levels less what our legs take of them, until `quantity` is covered."""
        side = place[2]
        taken = self._taken.get(place)
        spoken_for, exhausted_to = 0, None
        if taken is not None:
            taken.refresh(replica, side)
            spoken_for = taken.out + taken.late_quantity - taken.seen
            exhausted_to = taken.exhausted_to
        for price, shown, _ in replica.levels(opposite(side)):
            if not _reaches(side, limit, price) or quantity <= 0:
                return
            if exhausted_to is not None and _reaches(side, exhausted_to, price):
                spoken_for = max(0, spoken_for - shown)
                continue
            left = shown - spoken_for
            spoken_for = max(0, -left)
            if left > 0:
                quantity -= left
                yield price, left


def _leaves_something(leg: OutLeg, result: LegResult) -> bool:
    """Whether the leg's order may have something to plan again."""
    return leg.order.open > 0 or sum(fill.quantity for fill in result.fills) < leg.sent.quantity


def _free_to_leave(own_side: BookSide, worst: int, orders: int) -> int:
    """What the first so many orders at keys of `worst` or better that may send legs have open; at least 1.

    The others are cancelled by an Uncross that meets them, so what it costs to pass over them is theirs.
    """
    quantity = 0
    for level in own_side.best_first():
        if level.price * own_side.sign < worst:
            break
        for order in level.queue():
            if not (order.request.post_only or order.request.do_not_route):
                if not orders:
                    return quantity
                quantity += order.open
                orders -= 1
    return max(quantity, 1)


def _first_of(quotes: tuple[AwayQuote, ...], quantity: int, sign: int) -> tuple[AwayQuote, ...]:
    """Of all that is quoted, what would be taken first, up to `quantity`. `sign` turns prices into keys."""
    parts: dict[int, list[tuple[int, int]]] = {}
    for level in rank(quotes, sign):
        if not quantity:
            break
        part = min(level.quantity, quantity)
        quantity -= part
        parts.setdefault(level.engine, []).append((level.key * sign, part))
    return tuple(
        msgspec.structs.replace(
            quote, levels=tuple(levels), cut=quote.cut and len(levels) == len(quote.levels)
        )
        for quote in quotes
        if (levels := parts.get(quote.engine))
    )


def _reaches(side: int, limit: int | None, price: int) -> bool:
    """Whether an order of `side` with this limit may trade at `price`."""
    if limit is None:
        return True
    return price <= limit if side == _BUY else price >= limit
