"""Retries are safe, clients cannot touch each other's orders, giving up on a call loses no order."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import pytest
from matchbus.v1 import matchbus_pb2 as pb

from tests.system.test_crashes import history
from tests.system.venue import (
    Trader,
    Venue,
    expect_status,
    first_answer,
    floor,
    fresh,
    levels,
    limit,
    scaled,
    show,
)


async def test_a_retry_gets_the_first_answer_also_after_a_kill(own_venue: Callable[..., Venue]) -> None:
    """Same content: the first answer, marked; other content: the field is named; also after kill -9."""
    venue = own_venue(engines=1)
    async with floor(venue) as trading:
        maker, taker = await trading.trader(), await trading.trader()
        await maker.limit("AAA", 2, 100, 5)
        await maker.limit("AAA", 2, 101, 5)
        orders = [
            limit("AAA", 1, 101, 7),
            limit("AAA", 1, 99, 7),
            limit("AAA", 1, 101, 30, time_in_force=2),
            limit("AAA", 1, 101, 30, time_in_force=3),
            limit("BBB", 1, 50, 4),
        ]
        answers = [await taker.submit(order) for order in orders]
        await taker.cancel(orders[4].client_order_id)
        post_only = limit("AAA", 2, 99, 1, post_only=True)
        orders.append(post_only)
        answers.append(await taker.submit(post_only))
        await maker.limit("AAA", 2, 99, 3)  # the second order has traded since: its first answer stays

        async def check() -> None:
            for order, answer in zip(orders, answers, strict=True):
                again = await taker.submit(order)
                assert again.duplicate, (order, again)
                assert first_answer(again) == answer, (again, answer)
                for entry in await taker.enter([[pb.Command(new=order)] * 3]):
                    assert entry == again
                for field, value in {
                    "price": order.price + 1,
                    "quantity": order.quantity + 1,
                    "side": 3 - order.side,
                    "symbol": "CCC",
                    "type": 2,
                    "time_in_force": 2 if order.time_in_force != 2 else 3,
                    "post_only": not order.post_only,
                    "self_trade_prevention": 2,
                    "do_not_route": True,
                }.items():
                    changed = pb.NewOrder()
                    changed.CopyFrom(order)
                    setattr(changed, field, value)
                    if field == "type":
                        changed.price = 0
                    refusal = await taker.submit(changed)
                    assert refusal.reject_reason == pb.REJECT_REASON_DUPLICATE_CLIENT_ORDER_ID, (
                        field,
                        refusal,
                    )
                    assert field in refusal.reject_text, (field, refusal.reject_text)

        await check()
        book = await taker.book("AAA")
        fills = await taker.fills()
        venue.kill(venue.engine_pid(1))
        assert await history(taker) == fills
        assert await taker.book("AAA") == book
        await check()
        assert await taker.book("AAA") == book
        assert await taker.fills() == fills


async def test_a_foreign_order_is_an_unknown_order(three_engines: Venue) -> None:
    """Another client's order cannot be seen, cancelled or replaced: the answer is that for one never made.

    Whether it rests, has traded or has ended, by calls and by OrderEntry.
    """
    async with floor(three_engines) as trading:
        owner, other = await trading.trader(1), await trading.trader(1)
        for thief in (await trading.trader(1), await trading.trader(2)):
            traded, ended, resting = [limit("S399", 1, 90, 5) for _ in range(3)]
            for order in (traded, ended, resting):
                await owner.submit(order)
            await other.limit("S399", 2, 90, 2)
            await owner.cancel(ended.client_order_id)
            for order in (traded, ended, resting):
                mine = await owner.order(order.client_order_id)
                never = mine.order_id + 1_000_000
                for identity, nothing in (
                    ({"order_id": mine.order_id}, {"order_id": never}),
                    ({"client_order_id": order.client_order_id}, {"client_order_id": "never"}),
                ):
                    tried, unknown = await meddle(thief, identity), await meddle(thief, nothing)
                    assert {reply.reject_reason for reply in tried} == {pb.REJECT_REASON_UNKNOWN_ORDER}
                    assert [anonymous(reply, identity) for reply in tried] == [
                        anonymous(reply, nothing) for reply in unknown
                    ]
                    with pytest.raises(grpc.aio.AioRpcError) as seen:
                        await thief.order(**identity)
                    with pytest.raises(grpc.aio.AioRpcError) as missing:
                        await thief.order(**nothing)
                    assert seen.value.code() == missing.value.code() == grpc.StatusCode.NOT_FOUND
                    details = (seen.value.details() or "").replace(str(*identity.values()), "")
                    assert details == (missing.value.details() or "").replace(str(*nothing.values()), "")
                assert await owner.order(order.client_order_id) == mine
            assert await thief.open_orders() == []
            assert await thief.fills() == []
            assert (await trading.positions(thief)) == {}
            assert await thief.cancel_all() == 0
            assert len(await owner.open_orders()) == 2
            mine = await owner.order(resting.client_order_id)
            same_id = await thief.submit(limit("S398", 1, 90, 5, client_order_id=resting.client_order_id))
            assert same_id.status == pb.ORDER_STATUS_NEW
            assert same_id.order_id != mine.order_id
            assert await owner.cancel_all() == 2


async def meddle(thief: Trader, identity: Mapping[str, Any]) -> list[pb.OrderReply]:
    """Cancel and replace an order, by calls and through OrderEntry."""
    commands = [
        pb.Command(cancel=pb.CancelOrderRequest(**identity)),
        pb.Command(replace=pb.ReplaceOrderRequest(price=91, quantity=5, **identity)),
    ]
    called = [await thief.cancel(**identity), await thief.replace(91, 5, **identity)]
    return [*called, *await thief.enter([commands])]


def anonymous(reply: pb.OrderReply, identity: Mapping[str, Any]) -> str:
    """A reply's text without the id that was asked for."""
    return str(reply).replace(str(*identity.values()), "ID")


async def test_giving_up_on_a_call_does_not_lose_or_repeat_the_order(one_engine: Venue) -> None:
    """After a deadline of 1 ms the order exists once or not at all; the same id tells which."""
    symbol = "S393"
    async with floor(one_engine) as trading:
        trader = await trading.trader()
        orders = [limit(symbol, 1, 50 + number % 20, 1 + number % 7) for number in range(scaled(300, 3000))]
        given_up = existing = 0

        async def hasty(order: pb.NewOrder, timeout_s: float) -> bool:
            try:
                await trader.submit(order, timeout_s=timeout_s)
            except grpc.aio.AioRpcError as error:
                expect_status(error, grpc.StatusCode.DEADLINE_EXCEEDED)
                return True
            return False

        for start in range(0, len(orders), 20):
            group = orders[start : start + 20]
            given_up += sum(
                await asyncio.gather(*(hasty(order, 0.001 + 0.0003 * n) for n, order in enumerate(group)))
            )
            retried = await asyncio.gather(*(trader.submit(order) for order in group))
            existing += sum(reply.duplicate for reply in retried)
            for order, reply in zip(group, retried, strict=True):
                assert reply.status == pb.ORDER_STATUS_NEW
                assert reply.leaves_quantity == order.quantity
        show(f"{given_up} calls given up, {existing} of {len(orders)} orders existed")
        assert given_up
        assert existing > len(orders) - given_up, "some of those given up had arrived"
        bids, asks = levels(await trader.book(symbol))
        assert asks == []
        assert sum(quantity for _, quantity, _ in bids) == sum(order.quantity for order in orders)
        assert sum(count for _, _, count in bids) == len(orders)
        assert sorted(order.client_order_id for order in await trader.open_orders(symbol)) == sorted(
            order.client_order_id for order in orders
        )


async def test_two_names_are_two_clients(one_engine: Venue) -> None:
    """The same client order id belongs to each client on its own."""
    async with floor(one_engine) as trading:
        one, other = await trading.trader(), await trading.trader()
        identity = fresh("shared")
        replies = [
            await trader.submit(limit("S392", 1, 90, 5, client_order_id=identity)) for trader in (one, other)
        ]
        assert [reply.duplicate for reply in replies] == [False, False]
        await one.cancel(identity)
        assert (await other.order(identity)).status == pb.ORDER_STATUS_NEW
