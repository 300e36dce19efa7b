"""Small slices of several programs in turns: the steadiest ratios that a busy machine gives, and counts.

Here: what the ratchet compares. In a few milliseconds neither the clock frequency nor what neighbours do to
the cache changes much, so the ratio of two slices next to each other is good, and the median of many is
better. Bytecodes are counted, not timed: the count is the same in every run and on every machine with this
Python, but says nothing of what C code does.
"""

import gc
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import CodeType, FrameType
from typing import Any, Final

from benchmarks import core, hostile, pipeline
from benchmarks.book_worker import settled
from benchmarks.core import BookLayer, LeastLayer
from benchmarks.feed import made_deltas
from benchmarks.figures import Figure, named, paired
from benchmarks.peers import SYMBOL
from bus.messages import BookDelta, decode_feed, encode
from bus.replica import BookReplica, Outcome
from engine.commands import Command
from engine.state import State

SLICE: Final = 500
"""Operations done before the next program has its turn."""

LAYERS: Final = ("least", "book", "engine")

Batches = Sequence[Sequence[Command]]


def _layer(layer: BookLayer | LeastLayer, opening: Iterable[Command], batches: Batches) -> Iterator[float]:
    for command in opening:
        layer.apply(command)
    yield 0.0
    for batch in batches:
        began = time.process_time()
        layer.events = []
        for command in batch:
            layer.apply(command)
        yield time.process_time() - began


def _engine(opening: Iterable[Command], batches: Batches) -> Iterator[float]:
    state = State(1)
    numbers = itertools.count(1)

    def apply(batch: Iterable[Command]) -> None:
        number = next(numbers)
        state.begin_batch(number, number)
        for command in batch:
            state.apply(command)
        state.end_batch()

    apply(opening)
    yield 0.0
    for batch in batches:
        began = time.process_time()
        for start in range(0, len(batch), core.BATCH):
            apply(batch[start : start + core.BATCH])
        yield time.process_time() - began


def started(opening: Sequence[Command], batches: Batches) -> dict[str, Iterator[float]]:
    """The three layers after their opening, each ready to do its next slice."""
    programs = {
        "least": _layer(LeastLayer(), opening, batches),
        "book": _layer(BookLayer(), opening, batches),
        "engine": _engine(opening, batches),
    }
    for program in programs.values():
        next(program)
    return programs


def in_turns(programs: dict[str, Iterator[float]]) -> dict[str, list[float]]:
    """Let each do a slice, again and again; seconds of each slice."""
    taken: dict[str, list[float]] = {name: [] for name in programs}
    with settled():
        for seconds in zip(*programs.values(), strict=True):
            for name, one in zip(programs, seconds, strict=True):
                taken[name].append(one)
    return taken


def compared(part: str, name: str, unit: str, taken: dict[str, list[float]], beside: str) -> list[Figure]:
    """Every program beside one of them."""
    return [
        paired(part, f"{name}: {program}", unit, times, beside, taken[beside], lower_is_better=True)
        for program, times in taken.items()
        if program != beside
    ]


def flows(operations: int) -> dict[str, hostile.Made]:
    """The usual flow with 1 and 100 symbols, and hostile ones on which the least is not itself slow."""
    made = {}
    for symbols in (1, 100):
        flow = core.Flow(1, symbols)
        commands = flow.commands(operations)
        made[named(symbols, "symbol")] = hostile.Made(flow.opening, commands)
    sizes = hostile.Sizes(size=20_000, operations=operations)
    for name, make in hostile.FLOWS.items():
        if make is not hostile.long_queue:
            made[name] = make(sizes)
    return made


def times(operations: int) -> list[Figure]:
    """Processor time of book and engine beside the least, on each flow."""
    figures = []
    for name, flow in flows(operations).items():
        batches = [flow.operations[at : at + SLICE] for at in range(0, len(flow.operations), SLICE)]
        figures += compared("Core", name, "CPU s a slice", in_turns(started(flow.opening, batches)), "least")
    return figures


def counts(operations: int) -> list[Figure]:
    """Bytecodes an operation of book and engine beside the least, on each flow."""
    figures = []
    for name, flow in flows(operations).items():
        taken = {
            program: [bytecodes(partial(next, run)) / operations]
            for program, run in started(flow.opening, [flow.operations]).items()
        }
        figures += compared("Core", name, "bytecodes an operation", taken, "least")
    return figures


def bytecodes(function: Callable[[], object]) -> int:
    """How many bytecodes a call executes, itself and all it calls in Python."""
    collects = gc.isenabled()
    gc.disable()  # callbacks of a collection would be counted
    try:
        return _counted(function)
    finally:
        if collects:
            gc.enable()


if sys.version_info >= (3, 12):  # whose traces leave out bytecodes of functions not traced before

    def _counted(function: Callable[[], object]) -> int:
        counted = 0

        def count(_code: CodeType, _offset: int) -> None:
            nonlocal counted
            counted += 1

        tool, executed = sys.monitoring.PROFILER_ID, sys.monitoring.events.INSTRUCTION
        sys.monitoring.use_tool_id(tool, "bytecodes")
        sys.monitoring.register_callback(tool, executed, count)
        sys.monitoring.set_events(tool, executed)
        try:
            function()
        finally:
            sys.monitoring.set_events(tool, sys.monitoring.events.NO_EVENTS)
            sys.monitoring.register_callback(tool, executed, None)
            sys.monitoring.free_tool_id(tool)
        return counted

else:

    def _counted(function: Callable[[], object]) -> int:
        counted = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal counted
            if event == "call":
                frame.f_trace_opcodes, frame.f_trace_lines = True, False
            elif event == "opcode":
                counted += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            function()
        finally:
            sys.settrace(before)
        return counted


def deltas(count: int) -> list[Figure]:
    """What a reader does with a delta, beside the standard library's reading of its JSON."""
    payloads = [encode(delta) for delta in made_deltas(count)]

    def standard() -> Iterator[float]:
        for start in range(0, len(payloads), SLICE):
            began = time.process_time()
            for payload in payloads[start : start + SLICE]:
                json.loads(payload)
            yield time.process_time() - began

    def reader() -> Iterator[float]:
        replica = BookReplica(SYMBOL)
        replica.load(1, 0, ())
        for start in range(0, len(payloads), SLICE):
            began = time.process_time()
            for payload in payloads[start : start + SLICE]:
                delta = decode_feed(payload)
                assert isinstance(delta, BookDelta)
                outcome = replica.apply_delta(delta)
                assert outcome is Outcome.APPLIED
            yield time.process_time() - began

    return compared(
        "Feed", "a delta", "CPU s a slice", in_turns({"json": standard(), "reader": reader()}), "json"
    )


def way(orders: int) -> list[Figure]:
    """The path of an order from bytes to bytes beside the echo's, and its steps."""
    with settled():
        noted = list(pipeline.messages(orders))
    taken = {step: [one[step] for one in noted] for step in (pipeline.WHOLE, *pipeline.STEPS, pipeline.ECHO)}
    return compared(pipeline.PART, "an order", "CPU µs an order", taken, pipeline.ECHO)
