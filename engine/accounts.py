"""Who owns which order, and what each client has traded: the engine's books in the accountant's sense.

Every fill, cancellation and prevented match goes through here and becomes an event. Moving quantity between
open and reserved (legs) and replacing an order are `engine.state`'s. Client order ids are remembered with
their orders.
"""

from typing import Final

from engine.commands import LegFill
from engine.events import Accepted, Cancelled, Event, Fill, Prevented
from engine.orders import REMEMBERED_FILLS, REMEMBERED_FINISHED_ORDERS, Account, Landmark, Order
from engine.terms import Liquidity, first_id

_MAKER: Final = int(Liquidity.MAKER)
_TAKER: Final = int(Liquidity.TAKER)


class Accounts:
    """All accounts of one engine, and the facts of the command being applied.

    `events`, `taken` (fills of the command's own order), `prevented` and `leg_fills` start empty with each
    command; `time_ns` is the batch's. `crowded` are accounts due to let go of old fills.
    """

    def __init__(self, engine: int) -> None:
        self.engine = engine
        self.by_name: dict[str, Account] = {}
        self.orders: dict[int, Order] = {}
        self.next_order_id = first_id(engine)
        self.next_execution_id = first_id(engine)
        self.time_ns = 0
        self.events: list[Event] = []
        self.taken: list[Fill] = []
        self.prevented: list[Prevented] = []
        self.leg_fills: list[LegFill] = []
        self.crowded: dict[str, Account] = {}

    def begin(self) -> list[Event]:
        """Start a command; returns the list its events will stand in."""
        if self.taken or self.prevented or self.leg_fills:
            self.taken, self.prevented, self.leg_fills = [], [], []
        events: list[Event] = []
        self.events = events
        return events

    def open_account(self, client: str) -> Account:
        """Open the account of a client whose first order has come; returns it."""
        account = self.by_name[client] = Account(client)
        return account

    def admit(self, order: Order) -> None:
        """Let an order, which has the next order id, into the market, and report it."""
        order_id, account, request = order.id, order.account, order.request
        assert account is not None
        self.next_order_id = order_id + 1
        client_order_id = request.client_order_id
        self.orders[order_id] = order
        account.open[order_id] = order
        account.orders[client_order_id] = order
        self.events.append(
            Accepted(
                account.name,
                order_id,
                client_order_id,
                request.symbol,
                request.side,
                request.type,
                request.time_in_force,
                request.price,
                request.quantity,
            )
        )

    def find(self, client: str, order_id: int, client_order_id: str) -> Order | None:
        """A client's own order by either id. Another client's is not found, as if it did not exist."""
        account = self.by_name.get(client)
        if account is None:
            return None
        if order_id:
            order = self.orders.get(order_id)
            return order if order is not None and order.account is account else None
        return account.orders.get(client_order_id)

    def trade(self, taker: Order, maker: Order, price: int, quantity: int) -> None:
        """A trade of `quantity` at `price`. The maker's open quantity was lowered by the book already."""
        execution_id = self.next_execution_id
        self.next_execution_id = execution_id + 1
        taker.open -= quantity
        self._fill(maker, taker.id, price, quantity, execution_id, _MAKER, self.engine, self.time_ns)
        if not maker.open and not maker.reserved:
            self.finish(maker)
        if taker.account is None:
            self.leg_fills.append(LegFill(execution_id, price, quantity, maker.id, self.time_ns))
        else:
            self.taken.append(
                self._fill(taker, maker.id, price, quantity, execution_id, _TAKER, self.engine, self.time_ns)
            )

    def trade_away(self, order: Order, peer: int, fill: LegFill) -> None:
        """A trade that one of our legs made at a peer; its quantity has left `reserved` already."""
        self.taken.append(
            self._fill(
                order,
                fill.contra_order_id,
                fill.price,
                fill.quantity,
                fill.execution_id,
                _TAKER,
                peer,
                fill.time_ns,
            )
        )

    def prevent(self, taker: Order, maker: Order, quantity: int) -> None:
        """Record a match that self-trade prevention stopped."""
        account = taker.account
        assert account is not None
        record = Prevented(
            account.name,
            taker.request.symbol,
            taker.id,
            maker.id,
            maker.price,
            quantity,
            taker.request.self_trade_prevention,
        )
        self.prevented.append(record)
        self.events.append(record)

    def cancel(self, order: Order, quantity: int) -> None:
        """`quantity` of what an order has open will never trade. A resting order left the book already."""
        order.open -= quantity
        self.report_cancelled(order, quantity)

    def report_cancelled(self, order: Order, quantity: int) -> None:
        """Report that `quantity`, no longer open, will never trade; finish the order if that was all."""
        account = order.account
        assert account is not None
        request = order.request
        leaves = order.open + order.reserved
        self.events.append(
            Cancelled(account.name, order.id, request.client_order_id, request.symbol, quantity, leaves)
        )
        if not leaves:
            self.finish(order)

    def finish(self, order: Order) -> None:
        """Move an order that cannot trade any more to the finished ones."""
        account = order.account
        assert account is not None
        if account.open.pop(order.id, None) is not None:
            account.finished.append(order)
            if len(account.finished) > REMEMBERED_FINISHED_ORDERS:
                self._forget(account)

    def remember_refused(self, order: Order) -> None:
        """Keep the client order id of an order that never entered the market, and so has no order id."""
        account = order.account
        assert account is not None
        order.id = order.open = 0
        order.refused = True
        account.orders[order.request.client_order_id] = order
        account.finished.append(order)
        if len(account.finished) > REMEMBERED_FINISHED_ORDERS:
            self._forget(account)

    def _forget(self, account: Account) -> None:
        """Drop the order that finished longest ago."""
        oldest = account.finished.popleft()
        del account.orders[oldest.request.client_order_id]
        self.orders.pop(oldest.id, None)

    def forget_fills(self, account: Account, needed_from: int, epoch: int, batch_number: int) -> None:
        """Between two batches, let go of an account's old fills, and of none after `needed_from`."""
        count = min(len(account.fills) - REMEMBERED_FILLS, needed_from - account.forgotten)
        if count > 0:
            del account.fills[:count]
            account.landmarks.append(Landmark(account.traded, epoch, batch_number))

    def _fill(
        self,
        order: Order,
        contra_order_id: int,
        price: int,
        quantity: int,
        execution_id: int,
        liquidity: int,
        engine: int,
        time_ns: int,
    ) -> Fill:
        account = order.account
        assert account is not None
        order.cumulative += quantity
        order.value += price * quantity
        account.traded = sequence = account.traded + 1
        fills = account.fills
        request = order.request
        fill = Fill(
            account.name,
            sequence,
            execution_id,
            order.id,
            request.client_order_id,
            request.symbol,
            order.side,
            price,
            quantity,
            liquidity,
            order.cumulative,
            order.open + order.reserved,
            engine,
            time_ns,
            contra_order_id,
        )
        fills.append(fill)
        if len(fills) >= 2 * REMEMBERED_FILLS:
            self.crowded[account.name] = account
        self.events.append(fill)
        return fill
