"""Where orders stand in a book: levels, queues, places kept and lost."""

import random
import sys

import pytest

from bus.messages import opposite
from engine.book import Book, BookSide
from engine.commands import NewOrder
from engine.matching import take
from engine.orders import Order
from engine.terms import Side


def resting(number: int, side: Side, price: int, quantity: int) -> Order:
    """An order that could rest."""
    request = NewOrder("ann", str(number), "ACME", side, 1, 1, price, quantity)
    return Order(number, None, request, side, price, quantity, quantity, 0, priority=number)


def side_with(side: Side, *orders: tuple[int, int, int]) -> tuple[BookSide, dict[int, Order]]:
    """A side with orders (number, price, quantity), and the orders by number."""
    half = BookSide(side)
    made = {number: resting(number, side, price, quantity) for number, price, quantity in orders}
    for order in made.values():
        half.add(order)
    return half, made


@pytest.mark.parametrize(("side", "prices"), [(Side.BUY, [102, 101, 99]), (Side.SELL, [99, 101, 102])])
def test_levels_come_best_first(side: Side, prices: list[int]) -> None:
    """The highest bid and the lowest ask are the best."""
    half, _ = side_with(side, (1, 101, 5), (2, 99, 5), (3, 102, 5))
    assert [level.price for level in half.best_first()] == prices


def test_a_level_is_the_sum_of_its_orders() -> None:
    """Quantity and order count of a level follow every change, and an empty level is gone."""
    book = Book("ACME")
    first, second = resting(1, Side.BUY, 100, 5), resting(2, Side.BUY, 100, 7)
    book.bids.add(first)
    book.bids.add(second)
    assert list(book.levels(Side.BUY)) == [(100, 12, 2)]
    book.bids.reduce(first, 2)
    assert list(book.levels(Side.BUY)) == [(100, 10, 2)]
    assert list(book.orders(Side.BUY)) == [(100, 1, 3), (100, 2, 7)]
    book.bids.remove(first)
    assert book.best(Side.BUY) == (100, 7)
    book.bids.remove(second)
    assert book.best(Side.BUY) is None
    assert list(book.levels(Side.BUY)) == []


@pytest.mark.parametrize("side", Side)
def test_sides_know_their_opposite(side: Side) -> None:
    """Orders rest on their own side and trade with the other."""
    book = Book("ACME")
    assert book.side(side).side is side
    assert book.opposite(side) is book.side(opposite(side))


def queue_at(half: BookSide, key: int) -> list[int]:
    """The numbers of a level's orders, in order."""
    return [order.id for order in half.levels[key].queue()]


def test_a_readmitted_order_gets_its_place_back() -> None:
    """An order that was held stands again before those that came after it, and behind those before."""
    half, orders = side_with(Side.SELL, (1, 100, 5), (2, 100, 5), (3, 100, 5))
    half.remove(orders[2])
    half.readmit(orders[2])
    assert queue_at(half, -100) == [1, 2, 3]
    half.remove(orders[1])
    half.readmit(orders[1])
    assert queue_at(half, -100) == [1, 2, 3]
    assert half.levels[-100].quantity == 15


@pytest.mark.parametrize("seed", range(100))
def test_whatever_leaves_and_comes_back_the_queue_is_in_order(seed: int) -> None:
    """By priority; each order stands in it once, and the level counts it."""
    generator = random.Random(seed)
    half, orders = side_with(Side.SELL, *((number, 100, 5) for number in range(1, 31)))
    held = list[Order]()
    for number in range(31, 131):
        step = generator.random()
        if held and step < 0.45:
            half.readmit(held.pop(generator.randrange(len(held))))
        elif half.levels and step < 0.9:
            # Mostly the first one leaves, as for a leg, now and then any.
            at = 0 if generator.random() < 0.7 else generator.randrange(len(half.levels[-100]))
            order = list(half.levels[-100].queue())[at]
            half.remove(order)
            if generator.random() < 0.8:
                held.append(order)
            else:
                del orders[order.id]
        else:
            orders[number] = resting(number, Side.SELL, 100, 5)
            half.add(orders[number])
        expected = sorted(orders.keys() - {order.id for order in held})
        assert (queue_at(half, -100) if half.levels else []) == expected
        assert all(half.holds(orders[number]) for number in expected)
        assert not any(half.holds(order) for order in held)
        if expected:
            assert len(half.levels[-100]) == len(expected)
            assert half.levels[-100].quantity == 5 * len(expected)


class Taken:
    """A ledger that remembers whom an order met."""

    def __init__(self) -> None:
        self.makers: list[int] = []

    def trade(self, taker: Order, maker: Order, price: int, quantity: int) -> None:
        """A trade."""
        self.makers.append(maker.id)
        taker.open -= quantity

    def prevent(self, taker: Order, maker: Order, quantity: int) -> None:
        """Nobody here is anybody's client."""
        raise AssertionError(taker, maker, quantity)

    def cancel(self, order: Order, quantity: int) -> None:
        """Likewise."""
        raise AssertionError(order, quantity)


def test_takers_between_those_that_come_back_pay_for_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands at one price that come back one by one, slightly out of order, none is looked at twice."""
    looks = 0

    class Counted(Order):
        """An order that counts how often its priority is asked for."""

        def __getattribute__(self, name: str) -> object:
            nonlocal looks
            looks += name == "priority"
            return super().__getattribute__(name)

    monkeypatch.setattr(sys.modules[__name__], "Order", Counted)
    half, orders = side_with(Side.SELL, *((number, 100, 2) for number in range(1, 2_001)))
    for number in range(1, 1_001):
        half.remove(orders[number])
    looks = 0
    ledger = Taken()
    for number in range(1, 1_001, 2):
        for back in (number + 1, number):
            half.readmit(orders[back])
        taker = Order(9_999, None, orders[1].request, Side.BUY, 100, 1, 1, -100)
        take(half, taker, -100, 1, ledger)
    assert ledger.makers == [number for number in range(1, 251) for _ in range(2)]
    assert looks < 10_000
    assert queue_at(half, -100)[:3] == [251, 252, 253]


def test_changes_are_absolute_and_told_once() -> None:
    """Each touched level is told with its values now, 0 where it is gone, bids first; then no more."""
    book = Book("ACME")
    gone = resting(1, Side.BUY, 99, 5)
    book.bids.add(gone)
    book.bids.add(resting(2, Side.BUY, 100, 5))
    book.asks.add(resting(3, Side.SELL, 101, 4))
    book.asks.add(resting(4, Side.SELL, 101, 4))
    book.bids.remove(gone)
    assert book.take_changes() == ((1, 100, 5, 1), (1, 99, 0, 0), (2, 101, 8, 2))
    assert book.take_changes() == ()


def test_a_change_counts_those_that_came_back_and_those_that_stayed() -> None:
    """The order count of a level is that of all who stand there."""
    book = Book("ACME")
    first, second = resting(1, Side.SELL, 100, 5), resting(2, Side.SELL, 100, 5)
    book.asks.add(first)
    book.asks.add(second)
    book.asks.remove(first)
    book.asks.readmit(first)
    assert book.take_changes() == ((2, 100, 10, 2),)


@pytest.mark.parametrize("side", Side)
def test_keys_stay_sorted(side: Side) -> None:
    """Whatever is added and removed, levels are found and stand in order."""
    source = random.Random(5)
    half = BookSide(side)
    orders: list[Order] = []
    for number in range(1, 2000):
        if orders and source.random() < 0.48:
            half.remove(orders.pop(source.randrange(len(orders))))
        else:
            orders.append(resting(number, side, source.randint(1, 60), source.randint(1, 9)))
            half.add(orders[-1])
        assert half.keys == sorted({order.price * half.sign for order in orders})
    assert sum(level.quantity for level in half.best_first()) == sum(order.open for order in orders)
