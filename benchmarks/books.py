"""Our core beside the order books that PyPI has, on one seeded flow, after their trades were compared.

Each book runs in a process of its own (`benchmarks/book_worker.py`), and they take turns. A book that cannot
be installed, or that makes other trades than ours, is shown with the reason instead of a figure. Rates are
operations a second of processor time, so that what else the machine does is not counted; the time of one
operation is by the clock.

    python benchmarks/books.py [--operations N] [--pairs N] [--resting N] [--seconds N] [--json FILE]

The books live in `.venv-peers`, which `make bench` makes from `benchmarks/peer_books.txt`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from rich.console import Console

from benchmarks.book_worker import CANCEL, FIRST_ID, LIMIT, MARKET, OURS, PEERS, Operation
from benchmarks.core import MARKET as MARKET_TYPE
from benchmarks.core import Flow
from benchmarks.figures import Figure, alone, missing, named, paired
from benchmarks.report import console
from benchmarks.standalone import standalone
from engine.commands import CancelOrder, Command, NewOrder

PART: Final = "Core beside books from PyPI"
ROOT: Final = Path(__file__).resolve().parent.parent
WORKER: Final = ROOT / "benchmarks" / "book_worker.py"
PEERS_PYTHON: Final = ROOT / ".venv-peers" / "bin" / "python"
WHOLE_S: Final = 600.0
"""Ours do the whole flow, to compare it; others as far as they come in their time."""


class Sizes(msgspec.Struct, frozen=True):
    """How much is done. No request to a book takes much longer than `seconds`."""

    operations: int = 100_000
    pairs: int = 5
    resting: int = 1_000_000
    seconds: float = 10.0
    symbols: tuple[int, ...] = (1, 100)
    peers: tuple[str, ...] = tuple(PEERS)


QUICK: Final = Sizes(
    operations=4_000,
    pairs=1,
    resting=20_000,
    seconds=0.5,
    symbols=(1,),
    peers=("bourse", "orderly-chaos", "lightmatchingengine"),
)


class Refused(Exception):
    """The worker cannot run this book, or failed; the text says why."""


class Worker:
    """A book's process: one JSON request a line, one answer a line."""

    def __init__(self, book: str, flow: Path) -> None:
        python = Path(sys.executable) if book in OURS else PEERS_PYTHON
        if not python.exists():
            raise Refused(f"not installed: there is no {python.relative_to(ROOT)}, `make peers` makes it")
        self.book = book
        self._process = subprocess.Popen(
            [python, "-P", WORKER, book, flow],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        self.hello: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            self.hello = self._answer()
        except Refused as refusal:
            self.close()
            text = str(refusal)
            raise Refused(f"not installed: {text}" if "ModuleNotFound" in text else text) from None
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """One request. Raises `Refused` with what the library raised."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Refused(f"its process ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer


def operations_of(commands: Iterable[Command], known: dict[int, Operation]) -> list[Operation]:
    """The flow's commands as plain numbers; `known` collects the orders, which cancels repeat."""
    made: list[Operation] = []
    for command in commands:
        if isinstance(command, NewOrder):
            number = int(command.client_order_id[1:])
            what = MARKET if command.type == MARKET_TYPE else LIMIT
            known[number] = (
                *(what, number, int(command.symbol[1:])),
                *(command.side, command.price, command.quantity),
            )
            made.append(known[number])
        elif isinstance(command, CancelOrder):
            number = command.order_id - FIRST_ID
            made.append((CANCEL, *known[number][1:]))
    return made


@contextmanager
def flow_file(symbols: int, operations: int) -> Iterator[Path]:
    """The seeded flow of `benchmarks/core.py`, written down for the workers."""
    flow = Flow(1, symbols)
    known: dict[int, Operation] = {}
    commands = flow.commands(operations)
    content = {
        "symbols": symbols,
        "opening": operations_of(flow.opening, known),
        "operations": operations_of(commands, known),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        yield Path(file.name)


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """How a book's trades, or what rests in it, differ from ours; empty when they do not.

    Each symbol's trades have their order, but not all books tell how symbols follow one another, so trades
    are compared in the order of their takers. A slow book is compared as far as it came.
    """
    if not theirs["done"]:
        return "too slow: not even the orders at the start were done in time"
    if theirs["trades"] is None:
        return "" if theirs["live"] == ours["live"] else "other orders rest in it at the end"
    takers = sorted({trade[0] for trade in theirs["trades"]} | {0})
    mine = [tuple(trade) for trade in ours["trades"]]
    if theirs["done"] < ours["done"]:
        mine = [trade for trade in mine if trade[0] <= takers[-1]]
    its = sorted((tuple(trade) for trade in theirs["trades"]), key=lambda trade: trade[0])
    for number, (one, other) in enumerate(zip(mine, its, strict=False)):
        if one != other:
            return f"other trades: the {number + 1}. is {told(other)}, not {told(one)} by price and time"
    if len(mine) != len(its):
        return f"other trades: {len(its)} instead of {len(mine)}"
    return ""


def told(trade: Sequence[int]) -> str:
    """A trade in words."""
    taker, maker, price, quantity = trade
    return f"order {taker} with {maker}, {quantity} at {price}"


def resting_after(flow: dict[str, Any], trades: Iterable[Sequence[int]], done: int) -> list[int]:
    """Which orders rest once these trades were made and the flow's cancels were done."""
    operations = [*flow["opening"], *flow["operations"][:done]]
    left = {number: quantity for what, number, _, _, _, quantity in operations if what == LIMIT}
    for taker, maker, _, quantity in trades:
        for number in (taker, maker):
            if number in left:
                left[number] -= quantity
    for what, number, *_ in operations:
        if what == CANCEL:
            left.pop(number, None)
    return sorted(number for number, quantity in left.items() if quantity)


def measure(sizes: Sizes, output: Console) -> list[Figure]:
    """Figures for each number of symbols: rates, times of one operation, memory of a resting order."""
    figures: list[Figure] = []
    for symbols in sizes.symbols:
        with flow_file(symbols, sizes.operations) as file:
            figures += measure_flow(sizes, symbols, file, output)
    with flow_file(1, 1) as file:
        figures += measure_memory(sizes, file, output)
    return figures


def measure_flow(sizes: Sizes, symbols: int, file: Path, output: Console) -> list[Figure]:
    """Compare trades, then let the books that make ours take turns."""
    flow_name = named(symbols, "symbol")
    figures: list[Figure] = []
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        reference: dict[str, Any] = {}
        flow = json.loads(file.read_text(encoding="utf-8"))
        for book in ("engine", "book", "least", *sizes.peers):
            with output.status(f"{book}, {flow_name}: comparing trades"):
                try:
                    worker = stack.enter_context(Worker(book, file))
                    made = worker.ask("compare", seconds=WHOLE_S if book in OURS else sizes.seconds)
                    if book == "engine":
                        made["live"] = resting_after(flow, made["trades"], made["done"])
                        reference = made
                    elif differs := difference(reference, made):
                        raise Refused(differs)  # noqa: TRY301 -- one place shows all reasons
                except Refused as refusal:
                    if book in OURS:
                        raise
                    figures.append(missing(PART, f"{book}, {flow_name}", "operations/s", str(refusal)))
                else:
                    workers[book] = worker
        turns: dict[str, list[float]] = {book: [] for book in workers}
        times: dict[str, dict[str, list[float]]] = {book: {} for book in workers}
        for turn in range(sizes.pairs):
            for book, worker in workers.items():
                with output.status(f"{book}, {flow_name}: turn {turn + 1} of {sizes.pairs}"):
                    turns[book].append(worker.ask("rate", seconds=sizes.seconds)["per_second"])
                    answer = worker.ask("latency", seconds=sizes.seconds)
                    for name in ("p50", "p99", "p999"):
                        times[book].setdefault(name, []).append(answer[name])
    for book, worker in workers.items():
        if book == "book":
            continue
        note = "" if book in OURS else f"{worker.hello['version']}, trades {worker.hello['delivers']}"
        label = f"our books, {flow_name}"
        figures.append(paired(PART, label, "operations/s", turns["book"], book, turns[book], note=note))
        for name, share in (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9")):
            figures.append(
                paired(
                    *(PART, label, f"ns an operation, {share}"),
                    *(times["book"][name], book, times[book][name]),
                    lower_is_better=True,
                )
            )
    return figures


def measure_memory(sizes: Sizes, file: Path, output: Console) -> list[Figure]:
    """Bytes of a resting order, each book in a fresh process."""
    figures = []
    for book in ("engine", "book", "least", *sizes.peers):
        unit = f"bytes a resting order, {sizes.resting:,} of them"
        with output.status(f"{book}: {sizes.resting:,} resting orders"):
            try:
                with Worker(book, file) as worker:
                    answer = worker.ask("memory", orders=sizes.resting, seconds=6 * sizes.seconds)
            except Refused as refusal:
                figures.append(missing(PART, book, unit, str(refusal)))
                continue
        note = "" if answer["done"] == sizes.resting else f"at {answer['done']:,}: it was too slow for more"
        figures.append(alone(PART, book, unit, [answer["bytes"]], lower_is_better=True, note=note))
    return figures


def run(sizes: Sizes) -> list[Figure]:
    """All figures of this part."""
    return measure(sizes, console())


if __name__ == "__main__":
    standalone(
        PART,
        __doc__,
        Sizes(),
        run,
        operations="",
        pairs="",
        resting="",
        seconds="bound of one request to a book",
    )
