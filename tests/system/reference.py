"""Seeded order flow, and the comparison of a venue's answers with tests/reference_book.py."""

import random
from collections import defaultdict
from collections.abc import Sequence

from matchbus.v1 import matchbus_pb2 as pb

from engine.commands import CancelAll, CancelOrder, NewOrder, OrderCommand, ReplaceOrder
from tests.reference_book import Answer, AnswerAll, Fact, Name, Prevention, ReferenceMarket, Trade
from tests.system.venue import Trader

FillFacts = tuple[int, int, Name, int, int, int]
"""Price, quantity, contra order, liquidity, cumulative, leaves."""


class Flow:
    """Random commands in one symbol around a slowly moving price."""

    def __init__(self, seed: str, symbol: str, clients: Sequence[str], *, calm: bool = False) -> None:
        self._random = random.Random(seed)
        self._symbol = symbol
        self._clients = clients
        self._middle = 1000
        self._sent: list[NewOrder] = []
        self._count = 0
        self._calm = calm

    def next(self) -> OrderCommand:
        """One more command: mostly new orders, then cancels and replaces of late ones."""
        draw = self._random.random()
        if draw < 0.55 or not self._sent:
            return self._new()
        order = self._random.choice(self._sent[-40:])
        client = self._random.choice(self._clients) if draw > 0.98 else order.client
        if draw < 0.80:
            return CancelOrder(client, 0, order.client_order_id)
        if draw < 0.96:
            return ReplaceOrder(client, 0, order.client_order_id, self._price(), self._quantity())
        if draw < 0.98:
            return order
        return CancelOrder(client, 0, order.client_order_id)

    def _new(self) -> NewOrder:
        pick = self._random.choice
        self._count += 1
        self._middle += pick((-1, 0, 0, 0, 1))
        market = self._random.random() < 0.08
        order = NewOrder(
            client=pick(self._clients),
            client_order_id=f"{self._symbol}-{self._count}",
            symbol=self._symbol,
            side=pick((1, 2)),
            type=2 if market else 1,
            time_in_force=pick((0, 1, 1, 1, 1, 2, 3)),
            price=0 if market else self._price(),
            quantity=self._quantity(),
            post_only=self._random.random() < 0.12,
            self_trade_prevention=0 if self._calm else pick((0, 1, 2, 3, 4, 5)),
        )
        self._sent.append(order)
        return order

    def _price(self) -> int:
        return self._middle + self._random.randint(-5, 5)

    def _quantity(self) -> int:
        return self._random.choice((1, 2, 3, 5, 8, 13, 20, 100))


def new_order(order: NewOrder) -> pb.NewOrder:
    """The order as it goes over the wire."""
    return pb.NewOrder(
        client_order_id=order.client_order_id,
        symbol=order.symbol,
        side=order.side,  # type: ignore[arg-type]  # enums are ints
        type=order.type,  # type: ignore[arg-type]  # an enum is an int on the wire
        time_in_force=order.time_in_force,  # type: ignore[arg-type]  # likewise
        price=order.price,
        quantity=order.quantity,
        post_only=order.post_only,
        self_trade_prevention=order.self_trade_prevention,  # type: ignore[arg-type]  # likewise
    )


def wire(command: OrderCommand, order_id: int = 0) -> pb.Command:
    """The command as an OrderEntry entry; it names its order by `order_id` unless that is 0."""
    if isinstance(command, NewOrder):
        return pb.Command(new=new_order(command))
    client_order_id = "" if order_id else command.client_order_id
    if isinstance(command, CancelOrder):
        cancel = pb.CancelOrderRequest(order_id=order_id, client_order_id=client_order_id)
        return pb.Command(cancel=cancel)
    replace = pb.ReplaceOrderRequest(
        order_id=order_id, client_order_id=client_order_id, price=command.price, quantity=command.quantity
    )
    return pb.Command(replace=replace)


async def send(trader: Trader, command: OrderCommand, order_id: int = 0) -> pb.OrderReply:
    """The command as a call of its own; it names its order by `order_id` unless that is 0."""
    if isinstance(command, NewOrder):
        return await trader.submit(new_order(command))
    client_order_id = "" if order_id else command.client_order_id
    if isinstance(command, CancelOrder):
        return await trader.cancel(client_order_id, order_id)
    return await trader.replace(command.price, command.quantity, client_order_id, order_id)


class Comparison:
    """One market of the model beside a venue; knows the venue's order ids by the model's names."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.market = ReferenceMarket()
        for symbol in symbols:
            self.market.add_instrument(symbol)
        self.ids: dict[Name, int] = {}
        self.names: dict[int, Name] = {}
        self.histories: defaultdict[Name, list[FillFacts]] = defaultdict(list)
        self.statuses: set[int] = set()
        self._replied: dict[Name, list[FillFacts]] = {}

    def check(self, command: OrderCommand, reply: pb.OrderReply) -> None:
        """The venue's reply to a command says what the model says."""
        facts = self.market.execute(command)
        answer = facts[-1]
        assert isinstance(answer, Answer)
        told = f"{command}\n{facts}\n{reply}"
        self.statuses.add(reply.status)
        if answer.duplicate:
            assert reply.duplicate, told
            assert self._fills(reply) == self._replied[answer.order], told
        else:
            assert not reply.duplicate, told
        assert (reply.client_order_id, reply.status) == (answer.order[1], answer.status), told
        assert reply.reject_reason == answer.reason, told
        if answer.reason:
            assert reply.reject_text, told
            assert not reply.fills, told
        else:
            assert (reply.cumulative_quantity, reply.leaves_quantity) == (answer.cumulative, answer.leaves), (
                told
            )
            average = answer.value / answer.cumulative if answer.cumulative else 0.0
            assert reply.average_price == average, told
        if isinstance(command, NewOrder) and reply.order_id:
            assert self.ids.setdefault(answer.order, reply.order_id) == reply.order_id, told
            self.names[reply.order_id] = answer.order
        if not answer.duplicate:
            expected = self._trades(facts, answer.order)
            if isinstance(command, NewOrder):
                self._replied.setdefault(answer.order, expected)
            assert self._fills(reply) == expected, told
            prevented = [
                (
                    self.names[match.taker_order_id],
                    self.names[match.maker_order_id],
                    match.price,
                    match.quantity,
                )
                for match in reply.prevented
            ]
            assert prevented == [tuple(fact) for fact in facts if isinstance(fact, Prevention)], told

    def check_all(self, command: CancelAll, cancelled: int) -> None:
        """A CancelAll cancelled as many orders as in the model."""
        assert self.market.execute(command)[-1] == AnswerAll(command.client, cancelled), command

    def _trades(self, facts: list[Fact], taker: Name) -> list[FillFacts]:
        taken: list[FillFacts] = []
        for fact in facts:
            if isinstance(fact, Trade):
                assert fact.taker == taker
                taken.append((fact.price, fact.quantity, fact.maker, pb.LIQUIDITY_TAKER, *fact.taker_after))
                self.histories[fact.taker].append(taken[-1])
                self.histories[fact.maker].append(
                    (fact.price, fact.quantity, fact.taker, pb.LIQUIDITY_MAKER, *fact.maker_after)
                )
        return taken

    def _fills(self, reply: pb.OrderReply) -> list[FillFacts]:
        return [self.facts_of(fill) for fill in reply.fills]

    def facts_of(self, fill: pb.Fill) -> FillFacts:
        """A fill in the model's words."""
        return (
            fill.price,
            fill.quantity,
            self.names[fill.contra_order_id],
            fill.liquidity,
            fill.cumulative_quantity,
            fill.leaves_quantity,
        )

    async def check_books(self, trader: Trader, symbol: str) -> None:
        """Levels and order-by-order book are those of the model."""
        by_level = await trader.book(symbol)
        by_order = await trader.book(symbol, detail=pb.BOOK_DETAIL_ORDERS)
        assert by_level.sequence == by_order.sequence
        for side, seen_levels, seen_orders in (
            (1, by_level.bids, by_order.bids),
            (2, by_level.asks, by_order.asks),
        ):
            queue = self.market.queue(symbol, side)
            grouped: dict[int, list[tuple[Name, int]]] = {}
            for price, name, quantity in queue:
                grouped.setdefault(price, []).append((name, quantity))
            expected = [
                (price, sum(quantity for _, quantity in orders), len(orders))
                for price, orders in grouped.items()
            ]
            assert [(level.price, level.quantity, level.order_count) for level in seen_levels] == expected
            assert [
                (level.price, [(self.names[order.order_id], order.quantity) for order in level.orders])
                for level in seen_orders
            ] == list(grouped.items())

    def check_history(self, client: str, fills: Sequence[pb.Fill]) -> None:
        """A client's history is gap-free and holds, order by order, the fills of the model."""
        assert [fill.sequence for fill in fills] == list(range(1, len(fills) + 1))
        seen: defaultdict[Name, list[FillFacts]] = defaultdict(list)
        for fill in fills:
            assert self.names[fill.order_id] == (client, fill.client_order_id)
            seen[client, fill.client_order_id].append(self.facts_of(fill))
        assert seen == {name: history for name, history in self.histories.items() if name[0] == client}
