"""The state machine: a sequenced command goes in, events come out.

`apply` never reads a clock, a random number or a socket, so the same commands in the same batches give the
same events and the same digest anywhere: on the primary, in a replay, on a standby. Every command is
checked first and refused whole; from the first change on nothing can fail.

A batch is what one journal record holds: `begin_batch`, `apply` for each command, `end_batch`.
"""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import Final, assert_never

import msgspec

from engine.accounts import Accounts
from engine.book import Book, BookSide
from engine.commands import (
    AddInstrument,
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
from engine.events import (
    Answered,
    BookChanged,
    CancelledAll,
    Event,
    Fill,
    LegSent,
    LegTaken,
    Listed,
    Prevented,
    Replaced,
)
from engine.market_rules import collar, fillable_at_home, refuse_by_market, refuse_crossing, worst_at_home
from engine.matching import take, within
from engine.orders import NOTHING_OWED, Order, Owed
from engine.risk import Refusal, refuse_changed_repeat, refuse_new, refuse_replace
from engine.routing import AwayLevel, known_to, plan, rank
from engine.terms import MAX_LEG_FILLS, OrderStatus, OrderType, RejectReason, Side, TimeInForce, first_id

_BUY: Final = int(Side.BUY)
_LIMIT: Final = int(OrderType.LIMIT)
_MARKET: Final = int(OrderType.MARKET)
_IOC: Final = int(TimeInForce.IOC)
_GTC: Final = int(TimeInForce.GTC)
_FOK: Final = int(TimeInForce.FOK)
_NEW: Final = int(OrderStatus.NEW)
_PENDING: Final = int(OrderStatus.PENDING)
_REJECTED: Final = int(OrderStatus.REJECTED)


@dataclass(frozen=True, slots=True)
class OutLeg:
    """A part of an order that is out at a peer: until its result comes it can trade nowhere else."""

    sent: LegSent
    order: Order


class PeerLegs:
    """What one peer's legs did here: answers to legs it may still query, in the order in which they came.

    One below `settled_below` stays as long as it stands behind one that is not.
    """

    __slots__ = ("answers", "settled_below")

    def __init__(self) -> None:
        self.answers: OrderedDict[int, LegTaken] = OrderedDict()
        self.settled_below = 0

    def settle(self, below: int) -> None:
        """Forget answers to legs below `below`; such a leg is refused from now on."""
        if below <= self.settled_below:
            return
        self.settled_below = below
        answers = self.answers
        while answers and (first := next(iter(answers))) < below:
            del answers[first]

    def remember(self, answer: LegTaken) -> None:
        """Keep an answer for as long as the peer may query its leg."""
        if answer.leg_id >= self.settled_below:
            self.answers[answer.leg_id] = answer


class State:
    """Everything one engine knows. Only `apply`, the batch marks and `engine.snapshot.restore` change it."""

    def __init__(self, engine: int) -> None:
        self.engine = engine
        self.epoch = 0
        self.batch_number = 0
        self.instruments: dict[str, AddInstrument] = {}
        self.books: dict[str, Book] = {}
        self.accounts = Accounts(engine)
        self.orders = self.accounts.orders
        self.legs: dict[int, OutLeg] = {}
        self.next_leg_id = first_id(engine)
        self.next_priority = 1
        self.peer_legs: defaultdict[int, PeerLegs] = defaultdict(PeerLegs)
        self.legs_to: dict[int, OrderedDict[int, None]] = {}  # the ids of `legs` by peer, oldest first
        self._touched: dict[str, Book] = {}

    # -- batches ------------------------------------------------------------------------------------

    def begin_batch(self, batch_number: int, time_ns: int) -> None:
        """Start a batch; its time stamps every fill in it."""
        self.batch_number = batch_number
        self.accounts.time_ns = time_ns

    def end_batch(self) -> list[BookChanged]:
        """What the batch changed in each book; each changed book's sequence went up by one."""
        changes = []
        for book in self._touched.values():
            levels = book.take_changes()
            if levels:
                book.sequence += 1
                changes.append(BookChanged(book.symbol, book.sequence, levels))
        self._touched.clear()
        if self.accounts.crowded:
            self._forget_fills()
        return changes

    def _forget_fills(self) -> None:
        """Let go of old fills, but of none that an order with legs out has to answer for."""
        accounts = self.accounts
        for account in accounts.crowded.values():
            oldest = next(iter(account.pending.values()), None)
            needed_from = oldest.mark if oldest is not None else account.traded
            accounts.forget_fills(account, needed_from, self.epoch, self.batch_number)
        accounts.crowded.clear()

    def apply(self, command: Command) -> list[Event]:
        """Apply one command; returns its events.

        The answer to a client's command stands last: an `Answered`, a `CancelledAll`, or the `Accepted` of an
        order that rests whole.
        """
        events = self.accounts.begin()
        if type(command) is NewOrder:  # most are; a match would cost a tenth of what the order itself does
            self._new(command)
            return events
        match command:
            case CancelOrder():
                self._cancel(command)
            case ReplaceOrder():
                self._replace(command)
            case CancelAll():
                self._cancel_all(command)
            case TakeLeg():
                self._take_leg(command)
            case QueryLeg():
                self._query_leg(command)
            case LegResult():
                self._leg_result(command)
            case Uncross():
                self._uncross(command)
            case AddInstrument():
                self._add_instrument(command)
            case EpochStarted():
                self.epoch = command.epoch
                self.next_leg_id = max(self.next_leg_id, command.first_leg_id)
            case _:
                assert_never(command)
        return events

    # -- orders -------------------------------------------------------------------------------------

    def _new(self, command: NewOrder) -> None:
        accounts = self.accounts
        account = accounts.by_name.get(command.client)
        if account is not None:
            known = account.orders.get(command.client_order_id)
            if known is not None:
                self._repeat(known, command)
                return
        refusal = refuse_new(command, self.books)
        if refusal is not None:
            self._refuse(command.client, command.client_order_id, refusal)
            return
        if account is None:
            account = accounts.open_account(command.client)
        symbol, side, price, quantity = command.symbol, command.side, command.price, command.quantity
        book = self.books[symbol]
        if side == _BUY:
            own_side, opposite, worst = book.bids, book.asks, -price
        else:
            own_side, opposite, worst = book.asks, book.bids, price
        order_id, mark = accounts.next_order_id, account.traded
        keys = opposite.keys
        if (
            (keys and keys[-1] >= worst)
            or command.away
            or command.type == _MARKET
            or command.time_in_force > _GTC
            or command.post_only
        ):
            order = Order(order_id, account, command, side, price, quantity, quantity, worst, mark)
            self._enter_new(order, book, opposite)
            return
        # The commonest case by far: it rests whole, and `Accepted` says all there is to answer.
        priority = self.next_priority
        order = Order(
            order_id, account, command, side, price, quantity, quantity, worst, mark, 0, 0, 0, priority
        )
        self.next_priority = priority + 1
        accounts.admit(order)
        own_side.add(order)
        self._touched[symbol] = book

    def _enter_new(self, order: Order, book: Book, opposite: BookSide) -> None:
        """A well-formed order comes that may trade at once, or must not."""
        accounts, request = self.accounts, order.request
        away = rank(request.away, opposite.sign) if request.away else []
        if away:
            order.request = request = msgspec.structs.replace(request, away=())
        if request.type == _MARKET:
            order.worst = collar(opposite, away, self.instruments[request.symbol].market_collar_bps)
        if request.post_only or request.time_in_force == _FOK:
            refusal = refuse_by_market(order, opposite, away)
            if refusal is not None:
                accounts.remember_refused(order)
                order.answer = self._refuse(request.client, request.client_order_id, refusal)
                return
        accounts.admit(order)
        self._touched[request.symbol] = book
        if request.time_in_force == _FOK and not fillable_at_home(order, opposite, away):
            accounts.cancel(order, order.quantity)
        else:
            self._enter(order, book, away)
        order.answer = self._answer(order)

    def _repeat(self, known: Order, command: NewOrder) -> None:
        """A client order id comes again: the first answer for the same order, a refusal for another."""
        refusal = refuse_changed_repeat(known.request, command)
        if refusal is not None:
            self._refuse(command.client, command.client_order_id, refusal)
            return
        first = known.answer
        if first is None:
            quantity = known.request.quantity
            first = Answered(command.client, command.client_order_id, known.id, _NEW, leaves=quantity)
        elif first.status == _PENDING:  # a cancel may have taken off what was not out
            first = self._answer_with(known, first.fills, first.prevented)
        self.accounts.events.append(msgspec.structs.replace(first, duplicate=True))

    def _cancel(self, command: CancelOrder) -> None:
        order = self.accounts.find(command.client, command.order_id, command.client_order_id)
        if order is None or not order.leaves:
            self._refuse_absent(command, order)
            return
        self._withdraw(order)
        self._answer(order)

    def _cancel_all(self, command: CancelAll) -> None:
        count = 0
        account = self.accounts.by_name.get(command.client)
        if account is not None:
            symbol, side = command.symbol, command.side
            # Side first, which costs the least to ask: most of what a client has open may not be meant. What
            # is out on a leg stays open after its cancel, and is cancelled once.
            meant = (
                order
                for order in account.open.values()
                if (not side or order.side == side)
                and (not symbol or order.request.symbol == symbol)
                and not order.cancelling
            )
            oldest = list(islice(meant, command.most or None))
            for order in oldest:
                self._withdraw(order)
            count = len(oldest)
        self.accounts.events.append(CancelledAll(command.client, count))

    def _withdraw(self, order: Order) -> None:
        """Cancel what an order has open, and what its legs bring back once they are back."""
        order.cancelling = order.reserved > 0
        if order.open:
            if order.priority:  # it rests
                book = self._touch(order.request.symbol)
                (book.bids if order.side == _BUY else book.asks).remove(order)
            self.accounts.cancel(order, order.open)

    def _replace(self, command: ReplaceOrder) -> None:
        order = self.accounts.find(command.client, command.order_id, command.client_order_id)
        if order is None or not order.leaves:
            self._refuse_absent(command, order)
            return
        refusal = refuse_replace(command) or self._refuse_replace_now(order, command)
        if refusal is not None:
            self._refuse(command.client, order.request.client_order_id, refusal, order)
            return
        book = self._touch(order.request.symbol)
        own_side = book.side(order.side)
        leaves = command.quantity - order.cumulative
        if leaves > 0 and _keeps_place(order, command):
            order.quantity = command.quantity
            self._report_replaced(order)
            own_side.reduce(order, order.open - leaves)
        elif leaves > 0:
            own_side.remove(order)
            opposite = book.opposite(order.side)
            order.price = command.price
            order.worst = command.price * opposite.sign
            order.quantity = command.quantity
            order.open = leaves
            order.priority = 0
            _mark(order)
            self._report_replaced(order)
            self._enter(order, book, rank(command.away, opposite.sign))
        else:
            own_side.remove(order)
            order.open = 0
            order.quantity = order.cumulative
            self._report_replaced(order)
            self.accounts.finish(order)
        _owe(order, self._answer(order))

    def _refuse_replace_now(self, order: Order, command: ReplaceOrder) -> Refusal | None:
        """Why the order as it stands cannot be replaced."""
        if order.reserved:
            return (
                RejectReason.ORDER_PENDING,
                f"{order.reserved} of order {order.id} are out on a leg: replace it when they are back",
            )
        leaves = command.quantity - order.cumulative
        if order.request.post_only and leaves > 0 and not _keeps_place(order, command):
            opposite = self.books[order.request.symbol].opposite(order.side)
            worst = command.price * opposite.sign
            return refuse_crossing(worst, opposite, rank(command.away, opposite.sign))
        return None

    def _report_replaced(self, order: Order) -> None:
        self.accounts.events.append(
            Replaced(order.owner.name, order.id, order.request.client_order_id, order.price, order.quantity)
        )

    def _enter(self, order: Order, book: Book, away: list[AwayLevel]) -> None:
        """Trade what can trade now, send legs where the price is better, then rest or cancel the rest."""
        opposite = book.opposite(order.side)
        locking, more_away = self._trade(order, opposite, away)
        if not order.open:
            if not order.reserved:
                self.accounts.finish(order)
        elif (
            more_away
            and order.reserved
            and (not order.priority or (opposite.keys and opposite.keys[-1] >= order.worst))
        ):
            # Whatever it is, it goes on when its legs are back, with quotes of that moment. Until then it
            # stands nowhere: it might cross the book here.
            order.priority = 0
        elif locking or _never_rests(order.request):
            self.accounts.cancel(order, order.open)
        elif order.priority:
            book.side(order.side).readmit(order)
        elif not order.reserved:  # with legs out it waits: shown now, it would cross the quote they aim at
            self._rest(order, book.side(order.side))

    def _trade(self, order: Order, opposite: BookSide, away: list[AwayLevel]) -> tuple[bool, bool]:
        """Trade what can trade now, and send legs where the price is better.

        Returns whether what is left would lock or cross an away quote that the order may not go for, and
        whether more is shown elsewhere, at prices it would take, than is known.
        """
        if not away:
            if opposite.keys and opposite.keys[-1] >= order.worst:
                take(opposite, order, order.worst, order.open, self.accounts)
            return False, False
        if order.request.do_not_route or order.request.time_in_force == _FOK:
            take(opposite, order, worst_at_home(order, away), order.open, self.accounts)
            return away[0].key >= order.worst, False
        return False, self._route(order, opposite, away)

    def _rest(self, order: Order, own_side: BookSide) -> None:
        """Put an order at the back of the queue at its price."""
        order.priority = self.next_priority
        self.next_priority += 1
        own_side.add(order)

    # -- routing ------------------------------------------------------------------------------------

    def _route(self, order: Order, opposite: BookSide, away: list[AwayLevel]) -> bool:
        """Trade at home and send legs by one plan; again while prevented self-trades leave something open.

        Returns whether more is shown elsewhere, at prices the order would take, than the plan could know.
        """
        legs: dict[int, tuple[AwayLevel, int]] = {}
        last_known = known_to(away)
        more_away = last_known is not None and last_known >= order.worst
        worst = order.worst if last_known is None else max(order.worst, last_known)
        while order.open:
            home = ((key, opposite.levels[key].quantity) for key in reversed(opposite.keys))
            steps = plan(order.open, worst, home, away)
            if not steps:
                break
            for step in steps:
                quantity = min(step.quantity, order.open)
                if step.level is None:
                    take(opposite, order, step.key, quantity, self.accounts)
                elif quantity:
                    step.level.quantity -= quantity
                    order.open -= quantity
                    order.reserved += quantity
                    _, sent = legs.get(step.level.engine, (None, 0))
                    legs[step.level.engine] = (step.level, sent + quantity)
        for worst_level, quantity in legs.values():
            self._send_leg(order, worst_level, quantity)
        return more_away

    def _send_leg(self, order: Order, level: AwayLevel, quantity: int) -> None:
        """Tell the shell to send a leg for a level, of quantity already reserved."""
        symbol = order.request.symbol
        limit = level.key * self.books[symbol].opposite(order.side).sign
        leg_id = self.next_leg_id
        self.next_leg_id += 1
        oldest = next(iter(self.legs_to.get(level.engine, ())), leg_id)
        sent = LegSent(
            leg_id,
            level.engine,
            level.epoch,
            order.id,
            symbol,
            order.side,
            limit,
            quantity,
            oldest,
        )
        self.add_leg(sent, order)
        self.accounts.events.append(sent)

    def add_leg(self, sent: LegSent, order: Order) -> None:
        """A leg of an order is out from now on."""
        # Marks move before the first leg: the lowest stays first.
        order.owner.pending.setdefault(order.id, order)
        self.legs[sent.leg_id] = OutLeg(sent, order)
        self.legs_to.setdefault(sent.peer, OrderedDict())[sent.leg_id] = None

    def _leg_result(self, command: LegResult) -> None:
        leg = self.legs.pop(command.leg_id, None)
        if leg is None:
            return  # the same answer came twice
        del self.legs_to[leg.sent.peer][command.leg_id]
        order = leg.order
        filled = sum(fill.quantity for fill in command.fills)
        sent = leg.sent.quantity
        assert filled <= sent, f"leg {command.leg_id} of {sent} was filled {filled}"
        # Fill by fill, so that each one's leaves still count what is not yet told.
        for fill in command.fills:
            order.reserved -= fill.quantity
            self.accounts.trade_away(order, leg.sent.peer, fill)
        back = sent - filled
        order.reserved -= back
        if back and order.cancelling:
            self.accounts.report_cancelled(order, back)
        elif back or (order.is_waiting and not order.reserved):
            book = self._touch(order.request.symbol)
            if order.is_resting:
                book.side(order.side).remove(order)
            order.open += back
            self._enter(order, book, rank(command.away, book.opposite(order.side).sign))
        elif not order.leaves:
            self.accounts.finish(order)
        self._settle(order)

    def _settle(self, order: Order) -> None:
        """A leg came back: complete the first answer if it still waited, and tell whoever waits."""
        accounts = self.accounts
        first = order.answer
        taken, prevented = tuple(accounts.taken), tuple(accounts.prevented)
        if first is not None and first.status == _PENDING:
            answer = self._answer_with(order, first.fills + taken, first.prevented + prevented)
            order.answer = answer
        else:
            owed = order.owed
            answer = self._answer_with(order, owed.fills + taken, owed.prevented + prevented)
            _owe(order, answer)
        if not order.reserved:
            del order.owner.pending[order.id]
            accounts.events.append(answer)

    def _take_leg(self, command: TakeLeg) -> None:
        peer = self.peer_legs[command.sender]
        known = peer.answers.get(command.leg_id)
        if known is not None:
            self.accounts.events.append(known)
            return
        peer.settle(command.settled_below)
        answer = LegTaken(command.leg_id, command.sender, command.symbol, refused=True)
        if self._leg_is_due(command, peer):
            book = self._touch(command.symbol)
            opposite = book.opposite(command.side)
            taker = Order(
                id=command.order_id,
                account=None,
                request=NewOrder(
                    "", "", command.symbol, command.side, _LIMIT, _IOC, command.limit, command.quantity
                ),
                side=command.side,
                price=command.limit,
                quantity=command.quantity,
                open=command.quantity,
                worst=command.limit * opposite.sign,
            )
            reachable = within(opposite, taker.worst, MAX_LEG_FILLS)
            take(opposite, taker, taker.worst, min(taker.open, reachable), self.accounts)
            fills = tuple(self.accounts.leg_fills)
            answer = LegTaken(command.leg_id, command.sender, command.symbol, refused=False, fills=fills)
        peer.remember(answer)
        self.accounts.events.append(answer)

    def _leg_is_due(self, command: TakeLeg, peer: PeerLegs) -> bool:
        """Whether a leg may trade: meant for this reign, not settled before, and well-formed."""
        return (
            command.peer_epoch == self.epoch
            and command.leg_id >= peer.settled_below
            and command.symbol in self.books
            and command.side in (Side.BUY, Side.SELL)
            and command.limit > 0
            and command.quantity > 0
        )

    def _query_leg(self, command: QueryLeg) -> None:
        peer = self.peer_legs[command.sender]
        answer = peer.answers.get(command.leg_id)
        if answer is None:
            # The tombstone: should the leg still arrive, this is what it finds.
            answer = LegTaken(command.leg_id, command.sender, "", refused=True)
            peer.remember(answer)
        self.accounts.events.append(answer)

    def _uncross(self, command: Uncross) -> None:
        """Send legs out of resting orders until no away quote locks or crosses the rest.

        What is out keeps its place in the queue. Orders that may not take or not route cannot do that; a
        message's delay let them rest where they would have been refused, so they are cancelled.
        """
        book = self._touch(command.symbol)
        own_side = book.side(command.side)
        ranked = rank(command.away, -own_side.sign)
        last_known = known_to(ranked)
        for level in ranked:
            if last_known is not None and level.key < last_known:
                break  # what is not known may be better; the legs' return brings another look
            while level.quantity and own_side.keys and own_side.keys[-1] >= -level.key:
                order = next(own_side.levels[own_side.keys[-1]].queue())
                if order.request.post_only or order.request.do_not_route:
                    own_side.remove(order)
                    self.accounts.cancel(order, order.open)
                    continue
                quantity = min(order.open, level.quantity)
                level.quantity -= quantity
                if not order.reserved:
                    _mark(order)
                if quantity == order.open:
                    own_side.remove(order)
                    order.open = 0
                else:
                    own_side.reduce(order, quantity)
                order.reserved += quantity
                self._send_leg(order, level, quantity)

    # -- instruments, answers -----------------------------------------------------------------------

    def list_instrument(self, instrument: AddInstrument) -> Book:
        """Let a symbol trade; its empty book."""
        self.instruments[instrument.symbol] = instrument
        book = self.books[instrument.symbol] = Book(instrument.symbol)
        return book

    def _add_instrument(self, command: AddInstrument) -> None:
        known = self.instruments.get(command.symbol)
        if known is None:
            self.list_instrument(command)
            self.accounts.events.append(Listed(command.symbol))
        else:  # sizes never change, only the collar may
            self.instruments[command.symbol] = msgspec.structs.replace(
                known, market_collar_bps=command.market_collar_bps
            )

    def _touch(self, symbol: str) -> Book:
        book = self._touched[symbol] = self.books[symbol]
        return book

    def _answer(self, order: Order) -> Answered:
        """Answer the command with the order as it stands now and what the command traded."""
        accounts = self.accounts
        answer = self._answer_with(order, tuple(accounts.taken), tuple(accounts.prevented))
        accounts.events.append(answer)
        return answer

    def _answer_with(
        self, order: Order, fills: tuple[Fill, ...], prevented: tuple[Prevented, ...]
    ) -> Answered:
        account = order.account
        assert account is not None
        return Answered(
            account.name,
            order.request.client_order_id,
            order.id,
            order.status,
            0,
            "",
            order.cumulative,
            order.open + order.reserved,
            order.value,
            fills,
            prevented,
        )

    def _refuse(
        self, client: str, client_order_id: str, refusal: Refusal, order: Order | None = None
    ) -> Answered:
        reason, text = refusal
        answer = Answered(client, client_order_id, order.id if order else 0, _REJECTED, int(reason), text)
        if order is not None:
            answer = msgspec.structs.replace(
                answer, cumulative=order.cumulative, leaves=order.leaves, value=order.value
            )
        self.accounts.events.append(answer)
        return answer

    def _refuse_absent(self, command: CancelOrder | ReplaceOrder, order: Order | None) -> None:
        """Refuse a command for an order that the client does not have, or that cannot trade any more."""
        asked = (
            f"order {command.order_id}"
            if command.order_id
            else f"client order {command.client_order_id!r:.48}"
        )
        if order is None:
            self._refuse(
                command.client,
                command.client_order_id,
                (RejectReason.UNKNOWN_ORDER, f"{asked} is not one of this client's orders"),
            )
            return
        text = f"{asked} is already {OrderStatus(order.status).name}"
        self._refuse(command.client, order.request.client_order_id, (RejectReason.ORDER_CLOSED, text), order)


def _keeps_place(order: Order, command: ReplaceOrder) -> bool:
    """Whether a replaced order keeps its place in the queue: the same price, and no more of it is open."""
    return command.price == order.price and command.quantity - order.cumulative <= order.open


def _never_rests(request: NewOrder) -> bool:
    """Whether what an order cannot trade is cancelled."""
    return request.type == _MARKET or request.time_in_force in (_IOC, _FOK)


def _mark(order: Order) -> None:
    """A command starts to trade for the order: its answer tells of fills from here on."""
    order.mark = order.owner.traded


def _owe(order: Order, answer: Answered) -> None:
    """Keep what an answer after the first one tells so far, while it waits for legs."""
    order.owed = Owed(answer.fills, answer.prevented) if order.reserved else NOTHING_OWED
