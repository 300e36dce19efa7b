"""Several engines without a network: the test carries every leg by hand, and may lose or repeat it."""

import itertools
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import msgspec

from bus.messages import opposite
from engine.commands import (
    AddInstrument,
    AwayQuote,
    Command,
    EpochStarted,
    LegResult,
    NewOrder,
    QueryLeg,
    ReplaceOrder,
    TakeLeg,
    Uncross,
)
from engine.events import Answered, Event, Fill, LegSent, LegTaken
from engine.state import State
from engine.terms import Liquidity, OrderType, Side
from tests.engine.venue import answer_of, apply_batch

SYMBOL = "ACME"
ANY_BUY = 10**15


@dataclass
class Parcel:
    """A message on its way: a leg or query to a peer, or an answer back to its sender."""

    sender: int
    to: int
    content: TakeLeg | QueryLeg | LegTaken


@dataclass
class Node:
    """One engine of the world, with all that went in and came out."""

    state: State
    batches: list[list[Command]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


class World:
    """Engines 1 to `count`, the parcels between them, and what each leg of theirs was.

    A command carries at most `most_levels` of each peer.
    """

    def __init__(self, count: int, *, most_levels: int = 1_000) -> None:
        self.most_levels = most_levels
        self.nodes = {number: Node(State(number)) for number in range(1, count + 1)}
        self.parcels: list[Parcel] = []
        self.sent: dict[int, LegSent] = {}
        for number in self.nodes:
            self.apply(number, EpochStarted(1))
            self.apply(number, AddInstrument(SYMBOL, "0.01", "1"))

    def apply(self, number: int, command: Command) -> list[Event]:
        """Apply one command at one engine; legs it sends become parcels."""
        node = self.nodes[number]
        applied, changes = apply_batch(node.state, len(node.batches) + 1, [command])
        node.batches.append([command])
        node.events += [*applied[0], *changes]
        for event in applied[0]:
            if isinstance(event, LegSent):
                self.sent[event.leg_id] = event
                self.parcels.append(Parcel(number, event.peer, take_leg(number, event)))
        return applied[0]

    def away(self, number: int, side: int, limit: int) -> tuple[AwayQuote, ...]:
        """What the peers show, to an order of `side` at engine `number`."""
        quotes = []
        for peer, node in self.nodes.items():
            if peer != number:
                book = node.state.books[SYMBOL]
                levels = tuple(
                    (price, quantity)
                    for price, quantity, _ in book.levels(opposite(side))
                    if (price <= limit if side == Side.BUY else price >= limit)
                )
                if levels:
                    cut = len(levels) > self.most_levels
                    shown = levels[: self.most_levels]
                    quotes.append(AwayQuote(peer, node.state.epoch, book.sequence, shown, cut))
        return tuple(quotes)

    def submit(self, number: int, order: NewOrder) -> list[Event]:
        """Send an order to its home engine, which sees what the peers show."""
        limit = order.price
        if order.type == OrderType.MARKET:
            limit = ANY_BUY if order.side == Side.BUY else 0
        away = self.away(number, order.side, limit)
        return self.apply(number, msgspec.structs.replace(order, away=away))

    def replace(self, number: int, client: str, order_id: int, price: int, quantity: int) -> list[Event]:
        """Send new terms for an order to its home engine."""
        side = self.nodes[number].state.orders[order_id].side
        away = self.away(number, side, price)
        return self.apply(number, ReplaceOrder(client, order_id, "", price, quantity, away))

    def deliver(self, parcel: Parcel) -> None:
        """Let a parcel arrive. It must have been taken out of `parcels`, unless it is to arrive again."""
        content = parcel.content
        if not isinstance(content, LegTaken):
            answers = [event for event in self.apply(parcel.to, content) if isinstance(event, LegTaken)]
            assert len(answers) == 1, "every leg and every query has one answer"
            self.parcels.append(Parcel(parcel.to, parcel.sender, answers[0]))
            return
        order = self.nodes[parcel.to].state.orders[self.sent[content.leg_id].order_id]
        limit = order.price
        if order.request.type == OrderType.MARKET:
            limit = ANY_BUY if order.side == Side.BUY else 0
        away = self.away(parcel.to, order.side, limit)
        self.apply(parcel.to, LegResult(content.leg_id, content.fills, away))

    def deliver_all(self) -> None:
        """Let everything arrive, the first sent first, until nothing is on its way."""
        for _ in range(10_000):
            if not self.parcels:
                return
            self.deliver(self.parcels.pop(0))
        raise AssertionError("parcels without end")

    def query_open_legs(self) -> None:
        """Every engine queries each leg it has no result for."""
        for number, node in self.nodes.items():
            for leg_id, leg in node.state.legs.items():
                self.parcels.append(Parcel(number, leg.sent.peer, QueryLeg(leg_id, number)))

    def settle(self) -> None:
        """Let everything arrive, query what was lost, and uncross, until all is quiet."""
        for _ in range(1_000):
            self.deliver_all()
            self.query_open_legs()
            if not self.parcels and not self.uncross():
                return
        raise AssertionError("the engines never come to rest")

    def uncross(self) -> bool:
        """Let each engine take what locks or crosses its orders at peers with a higher number."""
        for number, node in self.nodes.items():
            for side in Side:
                best = node.state.books[SYMBOL].best(side)
                if best is None:
                    continue
                away = tuple(quote for quote in self.away(number, side, best[0]) if quote.engine > number)
                if away:
                    self.apply(number, Uncross(SYMBOL, side, away))
                    return True
        return False

    def restart(self, number: int) -> None:
        """A new reign begins at one engine: it refuses legs aimed at the one before."""
        self.apply(number, EpochStarted(self.nodes[number].state.epoch + 1))

    def combined(self, side: int) -> list[tuple[int, int]]:
        """(price, quantity) over all engines, best first."""
        levels: Counter[int] = Counter()
        for node in self.nodes.values():
            for price, quantity, _ in node.state.books[SYMBOL].levels(side):
                levels[price] += quantity
        return sorted(levels.items(), reverse=side == Side.BUY)

    def fills(self) -> list[Fill]:
        """All fills of all engines."""
        nodes = self.nodes.values()
        return [event for node in nodes for event in node.events if isinstance(event, Fill)]

    def taken(self) -> dict[tuple[str, int], int]:
        """Quantity by taker's client order id and price."""
        total: dict[tuple[str, int], int] = defaultdict(int)
        for fill in self.fills():
            if fill.liquidity == Liquidity.TAKER:
                total[fill.client_order_id, fill.price] += fill.quantity
        return dict(total)

    def last_answers(self) -> dict[int, Answered]:
        """The last answer of each order."""
        events = itertools.chain.from_iterable(node.events for node in self.nodes.values())
        answers = (
            event
            for event in map(answer_of, events)
            if isinstance(event, Answered) and not event.reject_reason
        )
        return {answer.order_id: answer for answer in answers if not answer.duplicate}


def take_leg(sender: int, leg: LegSent) -> TakeLeg:
    """The leg as the peer gets it."""
    return TakeLeg(
        leg.leg_id,
        sender,
        leg.peer_epoch,
        leg.order_id,
        leg.symbol,
        leg.side,
        leg.limit,
        leg.quantity,
        leg.settled_below,
    )


def limit_order(name: str, side: Side, quantity: int, price: int, **terms: object) -> NewOrder:
    """A GTC limit order of a client of the same name; a market order where the price is 0."""
    order = NewOrder(name, name, SYMBOL, side, 1 if price else 2, 1, price, quantity)
    return msgspec.structs.replace(order, **terms)


def random_order(source: random.Random, name: str) -> NewOrder:
    """An order near the middle; one in ten is a market order, one in five IOC."""
    return limit_order(
        name,
        source.choice((Side.BUY, Side.SELL)),
        source.randint(1, 20),
        0 if source.random() < 0.1 else source.randint(95, 105),
        time_in_force=2 if source.random() < 0.2 else 1,
        client=f"client{source.randrange(6)}",
    )


def random_terms(source: random.Random, order: NewOrder) -> NewOrder:
    """The order, sometimes FOK, post-only, not to be routed, or kept from trading with its own client."""
    order = msgspec.structs.replace(
        order, do_not_route=source.random() < 0.1, self_trade_prevention=source.randrange(6)
    )
    draw = source.random()
    if draw < 0.1:
        return msgspec.structs.replace(order, time_in_force=3)
    if draw < 0.2 and order.price:
        return msgspec.structs.replace(order, time_in_force=1, post_only=True)
    return order
