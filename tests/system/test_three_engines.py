"""Three engines act as one market: the best price wherever it is, and one uncrossed book."""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from matchbus.v1 import matchbus_pb2 as pb

from engine.commands import NewOrder
from tests.reference_book import Answer, ReferenceMarket, Trade
from tests.system.reference import new_order
from tests.system.venue import Floor, Trader, Venue, eventually, floor, limit, scaled, show

SCENARIOS = scaled(80, 300)
ORDERS = 20
STORM_SYMBOLS = 6
STORM_ORDERS = scaled(150, 1500)
QUIET_DEADLINE_S = 3.0

PriceLevels = tuple[dict[int, int], dict[int, int]]
"""Quantity by price, of bids and of asks."""


def dealt(seed: int, symbol: str, clients: Sequence[str]) -> list[NewOrder]:
    """Submit-only: limit orders of several kinds and market orders."""
    draw = random.Random(f"dealt {seed}")
    orders = []
    for number in range(ORDERS):
        market = draw.random() < 0.1
        orders.append(
            NewOrder(
                client=draw.choice(clients),
                client_order_id=f"{symbol}-{number}",
                symbol=symbol,
                side=draw.choice((1, 2)),
                type=2 if market else 1,
                time_in_force=2 if draw.random() < 0.15 else 1,
                price=0 if market else draw.randint(95, 105),
                quantity=draw.choice((1, 2, 3, 5, 8, 13, 30)),
            )
        )
    return orders


def combined(books: Iterable[pb.OrderBook]) -> PriceLevels:
    """The sum of the books."""
    both: PriceLevels = ({}, {})
    for book in books:
        for side, levels in zip(both, (book.bids, book.asks), strict=True):
            for level in levels:
                side[level.price] = side.get(level.price, 0) + level.quantity
    return both


def crossed(book: PriceLevels) -> bool:
    """Whether the best bid is locked with or above the best ask."""
    bids, asks = book
    return bool(bids and asks and max(bids) >= min(asks))


async def combined_book(viewers: Sequence[Trader], symbol: str) -> PriceLevels:
    """What the engines' own books add up to; one viewer per engine."""
    return combined([await viewer.book(symbol) for viewer in viewers])


async def consolidated_book(trading: Floor, symbol: str) -> PriceLevels:
    """The exchange's consolidated book."""
    exchange = await trading.exchange()
    book = await exchange.GetConsolidatedBook(pb.GetConsolidatedBookRequest(symbol=symbol), timeout=5)
    return combined([book])


async def until_shown(trading: Floor, symbol: str, book: PriceLevels) -> None:
    """Return when this is the exchange's consolidated book."""

    async def is_shown() -> bool:
        return await consolidated_book(trading, symbol) == book

    await eventually(is_shown, QUIET_DEADLINE_S, f"the exchange shows {symbol} as it is")


async def test_orders_dealt_over_three_engines_trade_as_on_one(three_engines: Venue) -> None:
    """Every taker trades the same quantity at each price as on one engine, and the combined book is the same.

    One order at a time, each right after the reply to the one before it: whoever knows of an order trades
    with it, wherever it rests (docs/decisions/0008).
    """
    async with floor(three_engines) as trading:
        clients = {f"dealt{engine}{place}": engine for place in "ab" for engine in (1, 2, 3)}
        traders = {name: await trading.trader(engine, name) for name, engine in clients.items()}
        viewers = [traders[f"dealt{engine}a"] for engine in (1, 2, 3)]
        wrong: list[str] = []
        pending = 0
        took: list[float] = []
        for number in range(SCENARIOS):
            symbol = three_engines.symbols[number]
            model = ReferenceMarket()
            model.add_instrument(symbol)
            for order in dealt(number, symbol, list(clients)):
                began = time.perf_counter()
                reply = await traders[order.client].submit(new_order(order))
                took.append(time.perf_counter() - began)
                facts = model.execute(order)
                expected: Counter[int] = Counter()
                for fact in facts:
                    if isinstance(fact, Trade):
                        expected[fact.price] += fact.quantity
                traded: Counter[int] = Counter()
                for fill in reply.fills:
                    traded[fill.price] += fill.quantity
                pending += reply.status == pb.ORDER_STATUS_PENDING
                answer = facts[-1]
                assert isinstance(answer, Answer)
                if traded != expected or reply.status != answer.status:
                    wrong.append(f"{order}: {reply}, on one engine {facts}")
            bids, asks = model.queue(symbol, 1), model.queue(symbol, 2)
            alone: PriceLevels = ({}, {})
            for side, queue in zip(alone, (bids, asks), strict=True):
                for price, _, quantity in queue:
                    side[price] = side.get(price, 0) + quantity

            async def settled(symbol: str = symbol) -> bool:
                return not crossed(await combined_book(viewers, symbol))

            await eventually(settled, QUIET_DEADLINE_S, f"{symbol} uncrossed")
            together = await combined_book(viewers, symbol)
            if together != alone:
                wrong.append(f"{symbol}: combined {together}, alone {alone}")
            await until_shown(trading, symbol, together)
        took.sort()
        show(
            f"{len(took)} orders, {pending} pending, "
            f"p50 {took[len(took) // 2] * 1e3:.1f} ms, p99 {took[len(took) * 99 // 100] * 1e3:.1f} ms"
        )
        assert not wrong, f"{len(wrong)} differences; " + "\n".join(wrong[:5])


async def test_concurrent_crossing_orders_end_uncrossed_and_conserved(three_engines: Venue) -> None:
    """After a storm on three engines at once every lot is accounted for and the market is uncrossed."""
    symbols = three_engines.symbols[-STORM_SYMBOLS:]
    async with floor(three_engines) as trading:
        traders = [await trading.trader(engine) for engine in (1, 2, 3)]
        sent: dict[str, list[pb.NewOrder]] = defaultdict(list)

        async def storm(trader: Trader, lane: int) -> None:
            draw = random.Random(f"storm {trader.engine} {lane}")
            for _ in range(STORM_ORDERS // 3):
                order = limit(
                    draw.choice(symbols),
                    draw.choice((1, 2)),
                    draw.randint(97, 103),
                    draw.choice((1, 2, 5, 9)),
                    time_in_force=draw.choice((1, 1, 1, 2)),
                )
                sent[trader.name].append(order)
                reply = await trader.submit(order)
                assert not reply.reject_reason, reply

        async with asyncio.TaskGroup() as group:
            for trader in traders:
                for lane in range(3):
                    group.create_task(storm(trader, lane))

        async def quiet() -> bool:
            open_orders = [order for trader in traders for order in await trader.open_orders()]
            if any(order.status == pb.ORDER_STATUS_PENDING for order in open_orders):
                return False
            return not any([crossed(await combined_book(traders, symbol)) for symbol in symbols])

        await eventually(quiet, QUIET_DEADLINE_S, "uncrossed and nothing pending")
        for symbol in symbols:
            together = await combined_book(traders, symbol)
            await until_shown(trading, symbol, together)
        fills = {trader.name: await trader.fills() for trader in traders}
        for trader in traders:
            await check_orders(trader, sent[trader.name], fills[trader.name])
        check_pairs([fill for history in fills.values() for fill in history])

        async def positions_agree() -> bool:
            seen: Counter[str] = Counter()
            for trader in traders:
                told = await trading.positions(trader)
                if told != net(fills[trader.name]):
                    return False
                seen.update(told)
            return not any(seen.values())

        await eventually(positions_agree, QUIET_DEADLINE_S, "positions follow the fills and sum to zero")
        away = sum(fill.order_id >> 48 != fill.engine_id for history in fills.values() for fill in history)
        show(f"{sum(map(len, fills.values()))} fills, {away} through legs")
        assert away


async def check_orders(trader: Trader, sent: Sequence[pb.NewOrder], fills: Sequence[pb.Fill]) -> None:
    """The history is gap-free, and no order has more or less than its quantity."""
    assert [fill.sequence for fill in fills] == list(range(1, len(fills) + 1))
    by_order: dict[str, list[pb.Fill]] = defaultdict(list)
    for fill in fills:
        by_order[fill.client_order_id].append(fill)
    for order in sent:
        state = await trader.order(order.client_order_id)
        cumulative = 0
        for fill in by_order[order.client_order_id]:
            cumulative += fill.quantity
            assert fill.cumulative_quantity == cumulative
            assert fill.price <= order.price if order.side == pb.SIDE_BUY else fill.price >= order.price
        assert cumulative == state.cumulative_quantity
        assert cumulative + state.leaves_quantity + state.cancelled_quantity == order.quantity


def check_pairs(fills: Sequence[pb.Fill]) -> None:
    """Every execution has one buyer and one seller who agree on everything."""
    by_execution: dict[int, list[pb.Fill]] = defaultdict(list)
    for fill in fills:
        by_execution[fill.execution_id].append(fill)
    for pair in by_execution.values():
        assert len(pair) == 2, pair
        one, other = pair
        assert {one.side, other.side} == {pb.SIDE_BUY, pb.SIDE_SELL}, pair
        assert {one.liquidity, other.liquidity} == {pb.LIQUIDITY_MAKER, pb.LIQUIDITY_TAKER}, pair
        for field in ("price", "quantity", "symbol", "engine_id"):
            assert getattr(one, field) == getattr(other, field), pair
        assert (one.order_id, other.order_id) == (other.contra_order_id, one.contra_order_id), pair


def net(fills: Sequence[pb.Fill]) -> dict[str, int]:
    """Positions that are not flat."""
    positions: Counter[str] = Counter()
    for fill in fills:
        positions[fill.symbol] += fill.quantity if fill.side == pb.SIDE_BUY else -fill.quantity
    return {symbol: lots for symbol, lots in positions.items() if lots}
