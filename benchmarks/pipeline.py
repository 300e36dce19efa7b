"""The path of an order through one engine from bytes to bytes, without waiting: what each step of it takes.

    parse      protobuf reads an OrderEntry message of 100 orders
    commands   the edge makes commands of it
    decide     the state machine applies them, one batch
    journal    the batch's record is encoded
    reply      the edge makes the reply message
    serialize  protobuf writes it

    python benchmarks/pipeline.py [--orders N] [--runs N] [--json FILE]

Beside each step, and beside the whole, stands what a bare echo of the same messages does: parse, and
serialize replies made beforehand. Processor time; what gRPC, NATS and the kernel add is in
`benchmarks/order_entry.py`.
"""

import itertools
import time
from collections.abc import Iterator
from typing import Final, cast

import msgspec
from matchbus.v1 import matchbus_pb2 as pb

from benchmarks.book_worker import settled
from benchmarks.figures import Figure, median, paired
from benchmarks.order_entry import batched
from benchmarks.peers import SYMBOL
from benchmarks.standalone import standalone
from engine.commands import AddInstrument, Command, EpochStarted, encode
from engine.events import Answered
from engine.runtime import wire
from engine.state import State

PART: Final = "Bytes to bytes"
BATCH: Final = 100
STEPS: Final = ("parse", "commands", "decide", "journal", "reply", "serialize")
WHOLE: Final = "whole way"
ECHO: Final = "echo"


class Sizes(msgspec.Struct, frozen=True):
    """How much is done: orders a run, each run with a new engine."""

    orders: int = 40_000
    runs: int = 5


QUICK: Final = Sizes(orders=4_000, runs=2)


def messages(count: int) -> Iterator[dict[str, float]]:
    """Microseconds an order of each step, of the whole way and of the echo, message after message."""
    state = State(1)
    state.begin_batch(1, 1)
    state.apply(EpochStarted(1))
    state.apply(AddInstrument(SYMBOL, "0.01", "1"))
    state.end_batch()
    reply = pb.OrderReply(
        client_order_id="0" * 16, order_id=2**48 + 1, status=pb.ORDER_STATUS_NEW, leaves_quantity=1
    )
    echoed = pb.OrderEntryResponse(replies=[reply] * BATCH)
    clock = time.process_time
    for number, message in enumerate([made.SerializeToString() for made in batched(count, BATCH)], start=2):
        marks = [clock()]
        request = pb.OrderEntryRequest.FromString(message)
        marks.append(clock())
        commands = wire.order_commands("bench", request)
        marks.append(clock())
        state.begin_batch(number, number)
        # A message of new orders only has no empty commands, and each command has an answer.
        answers = [state.apply(command)[-1] for command in cast("list[Command]", commands)]
        state.end_batch()
        marks.append(clock())
        encode(cast("list[Command]", commands))
        marks.append(clock())
        response = wire.order_entry_response(commands, cast("list[Answered]", answers))
        marks.append(clock())
        response.SerializeToString()
        marks.append(clock())
        pb.OrderEntryRequest.FromString(message)
        echoed.SerializeToString()
        marks.append(clock())
        taken = [(later - earlier) / BATCH * 1e6 for earlier, later in itertools.pairwise(marks)]
        yield {**dict(zip(STEPS, taken, strict=False)), WHOLE: sum(taken[:-1]), ECHO: taken[-1]}


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part: medians over the messages of each run."""
    turns: dict[str, list[float]] = {}
    for _ in range(sizes.runs):
        with settled():
            noted = list(messages(sizes.orders))
        for step in noted[0]:
            turns.setdefault(step, []).append(median([one[step] for one in noted]))
    return [
        paired(PART, step, "CPU µs an order", turns[step], ECHO, turns[ECHO], lower_is_better=True)
        for step in (WHOLE, *STEPS)
    ]


if __name__ == "__main__":
    standalone(PART, __doc__, Sizes(), run, orders="a run", runs="")
