"""One engine over gRPC trades exactly as the naive model does."""

import asyncio
import random
import time
from collections.abc import Iterator

from matchbus.v1 import matchbus_pb2 as pb

from engine.commands import CancelAll, OrderCommand
from tests.system.reference import Comparison, Flow, send, wire
from tests.system.venue import Floor, Trader, Venue, floor, scaled, show

SCENARIOS = 300
COMMANDS = scaled(20, 120)
FEED_MESSAGES = 35_000
AT_ONCE = 6


def batches(commands: list[pb.Command], seed: str, largest: int) -> Iterator[list[pb.Command]]:
    """The commands in batches of mixed size."""
    draw = random.Random(seed)
    while commands:
        size = draw.choice((1, 2, 7, 50, largest))
        yield commands[:size]
        commands = commands[size:]


async def traders_of(trading: Floor, names: tuple[str, ...]) -> dict[str, Trader]:
    """Registered traders by name."""
    return {name: await trading.trader(name=name) for name in names}


def streaks(commands: list[OrderCommand]) -> Iterator[list[OrderCommand]]:
    """Runs of commands of one client."""
    streak: list[OrderCommand] = []
    for command in commands:
        if streak and streak[0].client != command.client:
            yield streak
            streak = []
        streak.append(command)
    if streak:
        yield streak


async def test_independent_scenarios_agree_with_the_model(one_engine: Venue) -> None:
    """Statuses, fills, quantities, both views of the book and the histories are those of the model."""
    names = ("ann", "bob", "cat")
    async with floor(one_engine) as trading:
        traders = await traders_of(trading, names)
        comparison = Comparison(one_engine.symbols)
        one_symbol_at_a_time = iter(range(SCENARIOS))

        async def play(number: int) -> None:
            symbol = one_engine.symbols[number]
            flow = Flow(f"scenario {number}", symbol, names)
            draw = random.Random(f"names {number}")

            def order_id(command: OrderCommand) -> int:
                """Of the order that a command names, for half of those that have one."""
                known = comparison.ids.get((command.client, command.client_order_id), 0)
                return draw.choice((0, known))

            for streak in streaks([flow.next() for _ in range(COMMANDS)]):
                trader = traders[streak[0].client]
                if number % 2:
                    for command in streak:
                        comparison.check(command, await send(trader, command, order_id(command)))
                else:
                    replies = await trader.enter([[wire(command, order_id(command)) for command in streak]])
                    for command, reply in zip(streak, replies, strict=True):
                        comparison.check(command, reply)
                if draw.random() < 0.05:
                    side = draw.choice((0, 1, 2))
                    cancelled = await trader.cancel_all(symbol=symbol, side=side)
                    comparison.check_all(CancelAll(trader.name, symbol, side), cancelled)
            await comparison.check_books(traders["ann"], symbol)

        async def work() -> None:
            for number in one_symbol_at_a_time:
                await play(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
        assert comparison.statuses == {
            pb.ORDER_STATUS_NEW,
            pb.ORDER_STATUS_PARTIALLY_FILLED,
            pb.ORDER_STATUS_FILLED,
            pb.ORDER_STATUS_CANCELLED,
            pb.ORDER_STATUS_REJECTED,
        }
        for name, trader in traders.items():
            comparison.check_history(name, await trader.fills())
            still_open = [order.client_order_id for order in await trader.open_orders()]
            expected = {order.name[1] for order in comparison.market.resting if order.name[0] == name}
            assert len(still_open) == len(expected)
            assert set(still_open) == expected


async def test_a_long_feed_agrees_with_the_model(one_engine: Venue) -> None:
    """35,000 messages of one client, in batches of mixed size, are answered as by the model, in order."""
    symbols = one_engine.symbols[SCENARIOS : SCENARIOS + 4]
    async with floor(one_engine) as trading:
        trader = await trading.trader(name="feeder")
        flows = [Flow(f"feed {symbol}", symbol, ("feeder",), calm=True) for symbol in symbols]
        draw = random.Random("feed")
        commands = [draw.choice(flows).next() for _ in range(FEED_MESSAGES)]
        messages = list(batches([wire(command) for command in commands], "feed", 500))
        began = time.perf_counter()
        replies = await trader.enter(messages)
        seconds = time.perf_counter() - began
        show(f"{FEED_MESSAGES} messages in {len(messages)} batches: {FEED_MESSAGES / seconds:,.0f} a second")
        comparison = Comparison(symbols)
        for command, reply in zip(commands, replies, strict=True):
            comparison.check(command, reply)
        for symbol in symbols:
            await comparison.check_books(trader, symbol)
        comparison.check_history("feeder", await trader.fills())
