"""Which structures a book side should be made of: price keys, and the queue at one price.

Each candidate does the same seeded steps, taking turns within one run; medians of the rounds. The bisected
list and the OrderedDict, which `engine/book.py` uses, stand beside each of the others.

    python benchmarks/book_structures.py [--steps N] [--rounds N] [--seed N]
"""

import gc
import random
import time
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import msgspec
from sortedcontainers import SortedDict, SortedList

from benchmarks.figures import Figure, paired
from benchmarks.standalone import standalone

PART = "Structures of a book"
Step = tuple[int, int]
"""(what to do, with which key or order)."""

ADD, DROP, TAKE = range(3)

Candidate = Callable[[Sequence[int], Sequence[Step]], int]
"""Does the steps on what is there at first; returns what it read, so that all can be compared."""


class Sizes(msgspec.Struct, frozen=True):
    """How much is done."""

    steps: int = 50_000
    rounds: int = 9
    seed: int = 1


QUICK = Sizes(steps=2_000, rounds=3)


def key_steps(seed: int, levels: int, count: int) -> tuple[list[int], list[Step]]:
    """Price levels come and go: half of those that go are the best, emptied by a taker."""
    rng = random.Random(seed)
    spread = range(10_000 - 4 * levels, 10_000)
    present = set(rng.sample(spread, levels))
    start = sorted(present)
    steps: list[Step] = []
    while len(steps) < count:
        if len(present) < levels:
            key = rng.choice(spread)
            if key not in present:
                present.add(key)
                steps.append((ADD, key))
        elif rng.random() < 0.5:
            present.remove(max(present))
            steps.append((TAKE, 0))
        else:
            key = rng.choice(tuple(present))
            present.remove(key)
            steps.append((DROP, key))
    return start, steps


def queue_steps(seed: int, length: int, count: int) -> tuple[list[int], list[Step]]:
    """Orders join at the end; the first is filled, or any other is cancelled."""
    rng = random.Random(seed)
    start = list(range(length))
    present = list(start)
    steps: list[Step] = []
    number = length
    while len(steps) < count:
        if len(present) < length:
            present.append(number)
            steps.append((ADD, number))
            number += 1
        elif rng.random() < 0.5:
            present.pop(0)
            steps.append((TAKE, 0))
        else:
            steps.append((DROP, present.pop(rng.randrange(len(present)))))
    return start, steps


def sweep_steps(length: int) -> tuple[list[int], list[Step]]:
    """A long queue is filled from the front until nobody is left."""
    return list(range(length)), [(TAKE, 0)] * length


def bisected_list(start: Sequence[int], steps: Sequence[Step]) -> int:
    """What `engine.book.BookSide` does: the best key is the last."""
    keys, levels, read = list(start), dict.fromkeys(start, ()), 0
    for what, key in steps:
        if what == ADD:
            levels[key] = ()
            insort(keys, key)
        elif what == TAKE:
            del levels[keys.pop()]
        else:
            del levels[key]
            del keys[bisect_left(keys, key)]
        read += keys[-1]
    return read


def sorted_list(start: Sequence[int], steps: Sequence[Step]) -> int:
    """The same with a SortedList of keys."""
    keys, levels, read = SortedList(start), dict.fromkeys(start, ()), 0
    for what, key in steps:
        if what == ADD:
            levels[key] = ()
            keys.add(key)
        elif what == TAKE:
            del levels[keys.pop()]
        else:
            del levels[key]
            keys.remove(key)
        read += keys[-1]
    return read


def sorted_dict(start: Sequence[int], steps: Sequence[Step]) -> int:
    """Keys and levels in one SortedDict."""
    levels, read = SortedDict(dict.fromkeys(start, ())), 0
    for what, key in steps:
        if what == ADD:
            levels[key] = ()
        elif what == TAKE:
            levels.popitem()
        else:
            del levels[key]
        read += levels.peekitem()[0]
    return read


def ordered_dict(start: Sequence[int], steps: Sequence[Step]) -> int:
    """What `engine.book.Level` does: orders by id in the order of arrival."""
    return _queue(OrderedDict.fromkeys(start, 0), steps)


def plain_dict(start: Sequence[int], steps: Sequence[Step]) -> int:
    """The same with a dict, which remembers the order too."""
    return _queue(dict.fromkeys(start, 0), steps)


def _queue(queue: dict[int, int], steps: Sequence[Step]) -> int:
    read = 0
    for what, order in steps:
        if what == ADD:
            queue[order] = 0
        elif what == TAKE:
            first = next(iter(queue))
            del queue[first]
            read += first
        else:
            del queue[order]
    return read


def double_ended_queue(start: Sequence[int], steps: Sequence[Step]) -> int:
    """A deque has no way to one of its members but through all before it."""
    queue, read = deque(start), 0
    for what, order in steps:
        if what == ADD:
            queue.append(order)
        elif what == TAKE:
            read += queue.popleft()
        else:
            queue.remove(order)
    return read


KEYS: dict[str, Candidate] = {
    "list + bisect": bisected_list,
    "SortedList": sorted_list,
    "SortedDict": sorted_dict,
}
QUEUES: dict[str, Candidate] = {
    "OrderedDict": ordered_dict,
    "dict": plain_dict,
    "deque": double_ended_queue,
}


def measure(
    title: str,
    case: str,
    candidates: dict[str, Candidate],
    start: Sequence[int],
    steps: Sequence[Step],
    rounds: int,
) -> list[Figure]:
    """Nanoseconds a step: the first candidate, which `engine/book.py` uses, beside each other one."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    read = set()
    for _ in range(rounds):
        for name, candidate in candidates.items():
            gc.collect()
            began = time.process_time_ns()
            read.add(candidate(start, steps))
            taken[name].append((time.process_time_ns() - began) / len(steps))
    assert len(read) == 1, "the candidates do not agree"
    (used, its_times), *others = taken.items()
    return [
        paired(*(PART, f"{title}, {case}: {used}", "ns a step", its_times, name, times), lower_is_better=True)
        for name, times in others
    ]


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part: all flows of price keys and of queues."""
    seed, count = sizes.seed, sizes.steps
    keys = {f"{size:,} levels": key_steps(seed, size, count) for size in (10, 100, 2_000)}
    queues = {f"{size:,} orders": queue_steps(seed, size, count) for size in (10, 100, 2_000)}
    queues["20,000 filled from the front"] = sweep_steps(20_000)
    return [
        figure
        for title, candidates, cases in (("price keys", KEYS, keys), ("queue at one price", QUEUES, queues))
        for case, (start, steps) in cases.items()
        for figure in measure(title, case, candidates, start, steps, sizes.rounds)
    ]


if __name__ == "__main__":
    standalone(PART, __doc__, Sizes(), run, steps="", rounds="", seed="")
