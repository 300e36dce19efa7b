"""What it costs that the best price is on another engine: an order filled there beside one filled at home.

    python benchmarks/routing.py [--orders N] [--pairs N] [--json FILE]

Two engines. An order rests on engine 1; another takes it, given on engine 1 or, in turns, on engine 2, whose
leg goes to engine 1 and back before the client has its answer. One at a time, by SubmitOrder.
"""

import time
from typing import Final

import msgspec
import uvloop
from matchbus.v1 import matchbus_pb2 as pb
from rich.console import Console

from benchmarks.figures import Figure, alone, paired, percentile
from benchmarks.peers import Peer, orders, venue
from benchmarks.report import console
from benchmarks.standalone import standalone

PART: Final = "Routing"
PRICE: Final = 10_000
MOST_MISSED: Final = 0.2


class Sizes(msgspec.Struct, frozen=True):
    """How much is done: orders of each kind, a turn."""

    orders: int = 300
    pairs: int = 5


QUICK: Final = Sizes(orders=60, pairs=1)


class Missed(Exception):
    """Too many orders did not take what was there."""


async def take(maker: Peer, taker: Peer, made: list[pb.NewOrder]) -> tuple[list[float], int]:
    """Milliseconds of each order that took the one given just before, sorted; and how many did not."""
    times, missed = [], 0
    for rest, order in zip(made[::2], made[1::2], strict=True):
        rest.side, order.side = pb.SIDE_SELL, pb.SIDE_BUY
        rest.price = order.price = PRICE
        rest.quantity = order.quantity = 1
        order.time_in_force = pb.TIME_IN_FORCE_IOC
        resting = await maker.stub.SubmitOrder(rest, metadata=maker.metadata)
        assert resting.status == pb.ORDER_STATUS_NEW, resting
        began = time.perf_counter()
        reply = await taker.stub.SubmitOrder(order, metadata=taker.metadata)
        elapsed_ms = (time.perf_counter() - began) * 1e3
        if reply.status == pb.ORDER_STATUS_FILLED:
            times.append(elapsed_ms)
        else:
            missed += 1
            cancel = pb.CancelOrderRequest(order_id=resting.order_id)
            await maker.stub.CancelOrder(cancel, metadata=maker.metadata)
    return sorted(times), missed


async def measure(sizes: Sizes, output: Console) -> list[Figure]:
    """Turns of orders away and at home."""
    home: list[list[float]] = []
    away: list[list[float]] = []
    missed = 0
    async with venue(engines=2) as market:
        maker, at_home, elsewhere = [await market.client(engine) for engine in (1, 1, 2)]
        for turn in range(sizes.pairs + 1):
            with output.status(f"routing, turn {turn + 1} of {sizes.pairs + 1}"):
                for taker, turns in ((elsewhere, away), (at_home, home)):
                    times, its_missed = await take(maker, taker, orders(2 * sizes.orders))
                    missed += its_missed
                    if not times or its_missed > MOST_MISSED * sizes.orders:
                        raise Missed(f"{its_missed} of {sizes.orders} orders did not take what rested")
                    turns.append(times)
    figures = [
        paired(
            *(PART, "filled on another engine", f"ms, {label}"),
            [percentile(times, share) for times in away[1:]],
            *("filled at home", [percentile(times, share) for times in home[1:]]),
            lower_is_better=True,
        )
        for label, share in (("p50", 0.5), ("p99", 0.99))
    ]
    figures.append(alone(PART, "orders that missed the quote", "of all", [missed], lower_is_better=True))
    return figures


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part."""
    return uvloop.run(measure(sizes, console()))


if __name__ == "__main__":
    standalone(PART, __doc__, Sizes(), run, orders="of each kind, a turn", pairs="")
