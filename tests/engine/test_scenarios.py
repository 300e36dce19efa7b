"""The rules of trading as small tables (tests/scenarios/*.txt), on the engine and on the reference model.

A scenario is

    scenario  A title
    given     sell A 5@101, sell B 5@100, collar 500 bps
    when      buy C 8@101 IOC
    then      trade C/B 5@100
              trade C/A 3@101
              C FILLED, filled 8 for 803, left 0
              book  sell A 2@101

Commands, separated by commas:

    buy|sell NAME QUANTITY@PRICE|market [IOC|FOK] [post-only] [stp MODE] [by CLIENT] [on SYMBOL]
    cancel NAME [by CLIENT]
    replace NAME QUANTITY@PRICE [by CLIENT]
    cancel-all CLIENT [buy|sell] [on SYMBOL]
    collar NUMBER bps                        (only in the first `given`)

An order's name is its client order id and, unless `by` says otherwise, its client. `then` says everything
that happened since the `when` above it, and the book afterwards. Run with REWRITE_SCENARIOS=1 to rewrite
every `then` with what the engine does, and review the difference.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from engine.commands import CancelAll, CancelOrder, NewOrder, OrderCommand, ReplaceOrder
from engine.invariants import check
from engine.terms import OrderStatus, OrderType, RejectReason, SelfTradePrevention, Side, TimeInForce
from tests.engine.venue import Venue
from tests.reference_book import (
    Answer,
    AnswerAll,
    Cancellation,
    Fact,
    Name,
    Prevention,
    ReferenceMarket,
    Trade,
)

FOLDER = Path(__file__).parent.parent / "scenarios"
INDENT = " " * 10
SYMBOLS = ("ACME", "BOLT")
"""The symbols of every scenario; orders are for the first one unless they say otherwise."""


class Market(Protocol):
    """What runs a scenario: the engine or the reference model."""

    def add_instrument(self, symbol: str, market_collar_bps: int = 0) -> None:
        """Start trading in a symbol."""

    def execute(self, command: OrderCommand | CancelAll) -> list[Fact]:
        """Carry out one command."""

    def queue(self, symbol: str, side: int) -> list[tuple[int, Name, int]]:
        """(price, order, open quantity) of one side in the order in which they would trade."""


@dataclass
class Step:
    """A `given`, which expects nothing, or a `when` and what must follow."""

    word: str
    commands: list[str]
    expected: list[str] = field(default_factory=list)


@dataclass
class Scenario:
    """One table: `lines` is its text, comments included."""

    title: str
    lines: list[str]
    steps: list[Step]


def read(path: Path) -> Iterator[Scenario]:
    """Every scenario of a file. What stands before the first one is its introduction."""
    blocks: list[list[str]] = [[]]
    for line in path.read_text().splitlines():
        if line.startswith("scenario"):
            blocks.append([])
        blocks[-1].append(line)
    for lines in blocks[1:]:
        steps: list[Step] = []
        for line in lines[1:]:
            word, text = line[:10].strip(), line[10:].strip()
            if not text or line.startswith("#"):
                continue
            if word in ("given", "when"):
                steps.append(Step(word, text.split(", ")))
            elif word == "then" or (not word and steps[-1].word == "when"):
                steps[-1].expected.append(text)
            else:
                raise ValueError(f"{path.name}: {line!r} is no line of a scenario")
        yield Scenario(lines[0][10:].strip(), lines, steps)


class Desk:
    """Carries out the commands of one scenario on a market and says what happened in words."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.clients: dict[str, str] = {}

    def run(self, steps: list[Step]) -> Iterator[list[str]]:
        """What happened in each `when`."""
        collar = next((command for step in steps for command in step.commands if "collar" in command), None)
        self.market.add_instrument(SYMBOLS[0], int(collar.split()[1]) if collar else 0)
        self.market.add_instrument(SYMBOLS[1])
        for step in steps:
            commands = [self._parse(text) for text in step.commands if text != collar]
            facts = [fact for command in commands for fact in self.market.execute(command)]
            if step.word == "when":
                yield [*(words(fact) for fact in facts), *self._book()]
            else:
                refused = [fact for fact in facts if isinstance(fact, Answer) and fact.reason]
                assert not refused, "what is given must be so"

    def _parse(self, text: str) -> OrderCommand | CancelAll:
        verb, name, *rest = text.split()
        options = Options(rest)
        symbol = options.after("on", "")
        if verb == "cancel-all":
            side = next((Side[word.upper()] for word in ("buy", "sell") if options.has(word)), 0)
            return CancelAll(name, symbol, int(side))
        client = options.after("by", self.clients.get(name, name))
        if verb == "cancel":
            return CancelOrder(client, 0, name)
        self.clients.setdefault(name, client)
        quantity, price = rest[0].split("@")
        if verb == "replace":
            return ReplaceOrder(client, 0, name, int(price), int(quantity))
        mode = options.after("stp", "unspecified").replace("-", "_").upper()
        return NewOrder(
            client,
            name,
            symbol or SYMBOLS[0],
            Side[verb.upper()],
            OrderType.MARKET if price == "market" else OrderType.LIMIT,
            next((TimeInForce[word] for word in ("IOC", "FOK") if options.has(word)), TimeInForce.GTC),
            0 if price == "market" else int(price),
            int(quantity),
            post_only=options.has("post-only"),
            self_trade_prevention=SelfTradePrevention[mode],
        )

    def _book(self) -> list[str]:
        lines = []
        for symbol in SYMBOLS:
            where = "" if symbol == SYMBOLS[0] else f"{symbol} "
            for side in Side:
                queue = self.market.queue(symbol, side)
                orders = ", ".join(f"{name[1]} {quantity}@{price}" for price, name, quantity in queue)
                if orders:
                    lines.append(f"book  {where}{side.name.lower():5}{orders}")
        return lines or ["book  empty"]


@dataclass
class Options:
    """The words after a command."""

    rest: list[str]

    def has(self, word: str) -> bool:
        """Whether the word stands there."""
        return word in self.rest

    def after(self, word: str, default: str) -> str:
        """What follows a word."""
        return self.rest[self.rest.index(word) + 1] if word in self.rest else default


def words(fact: Fact) -> str:
    """A fact as a scenario says it."""
    match fact:
        case Trade():
            return f"trade {fact.taker[1]}/{fact.maker[1]} {fact.quantity}@{fact.price}"
        case Prevention():
            return f"prevented {fact.taker[1]}/{fact.maker[1]} {fact.quantity}@{fact.price}"
        case Cancellation():
            return f"{fact.order[1]} loses {fact.quantity}, left {fact.leaves}"
        case AnswerAll():
            return f"cancelled {fact.cancelled_orders}"
        case Answer():
            again = ", duplicate" if fact.duplicate else ""
            if fact.reason:
                return f"{fact.order[1]} REJECTED: {RejectReason(fact.reason).name}{again}"
            filled = f"filled {fact.cumulative} for {fact.value}" if fact.cumulative else "filled 0"
            return f"{fact.order[1]} {OrderStatus(fact.status).name}, {filled}, left {fact.leaves}{again}"


def rewrite(path: Path) -> None:
    """Give every `then` of a file the engine's own words."""
    text = path.read_text().splitlines()
    first = next(number for number, line in enumerate(text) if line.startswith("scenario"))
    lines = text[:first]
    for scenario in read(path):
        happened = Desk(Venue()).run(scenario.steps)
        for line in scenario.lines:
            word = line[:10].strip()
            if line.startswith("#") or word in ("scenario", "given", "when") or not line.strip():
                lines.append(line)
            if word == "when":
                first_line, *others = next(happened)
                lines.append(f"then{INDENT[4:]}{first_line}")
                lines.extend(INDENT + other for other in others)
    path.write_text("\n".join(lines) + "\n")


if os.environ.get("REWRITE_SCENARIOS"):
    for scenario_file in FOLDER.glob("*.txt"):
        rewrite(scenario_file)

SCENARIOS = [
    pytest.param(scenario, id=f"{path.stem}: {scenario.title}")
    for path in sorted(FOLDER.glob("*.txt"))
    for scenario in read(path)
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_engine_trades_as_written(scenario: Scenario) -> None:
    """The engine does exactly what the scenario says, and its state is sound afterwards."""
    venue = Venue()
    assert list(Desk(venue).run(scenario.steps)) == expectations(scenario)
    check(venue.state)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_reference_trades_as_written(scenario: Scenario) -> None:
    """The reference model, which random commands are judged by, does exactly what the scenario says."""
    assert list(Desk(ReferenceMarket()).run(scenario.steps)) == expectations(scenario)


def expectations(scenario: Scenario) -> list[list[str]]:
    """What must happen in each `when`."""
    return [step.expected for step in scenario.steps if step.word == "when"]
