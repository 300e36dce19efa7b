"""Traces of orders in a real market: one tree of spans for an order, whoever sent them."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from client import Client
from tests.system.venue import COMMAND, REPOSITORY, Venue

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is not installed")

from tests.system.collector import Collector, Received, collector

DEADLINE_S: Final = 60.0
AWAY: Final = "http://127.0.0.1:9/v1/traces"
"""Where nobody listens."""

TAKER_SPANS: Final = 9
"""Those of `test_one_order_gives_one_tree`; reports are stored of the order and of its fill."""

MAKER_SPANS: Final = 6
"""A resting order has no leg."""


class Traced(NamedTuple):
    """A collector; in its market the taker went from engine 1 to engine 2, where the maker rested."""

    collected: Collector
    taker: int
    maker: int


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.02)


@contextlib.asynccontextmanager
async def trader(venue: Venue, name: str, engine: int) -> AsyncIterator[Client]:
    """A client of the library at home on an engine."""
    async with Client.connect(
        venue.exchange, client_id=name, password="password", secret=f"{name}'s own", preferred_engine=engine
    ) as client:
        yield client


async def trade(venue: Venue) -> tuple[int, int]:
    """Let an order at home on engine 1 trade on engine 2; its id, and that of the resting one."""
    async with trader(venue, "buyer", 1) as buyer, trader(venue, "seller", 2) as seller:
        resting = await seller.submit("AAA", "sell", quantity=5, price="1.00")
        result = await buyer.submit("AAA", "buy", quantity=5, price="1.00")
        async with contextlib.aclosing(buyer.fills()) as fills:
            assert (await anext(fills)).engine == 2
        return result.order_id, resting.order_id


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """The market of these tests, with client and engines that trace every order."""
    with pytest.MonkeyPatch.context() as patch, collector() as collected:
        venue = Venue(
            tmp_path_factory.mktemp("traced"),
            engines=2,
            symbols=["AAA"],
            options=("--trace", collected.url, "--trace-ratio", "1"),
        )
        try:
            venue.start()
            patch.setenv("MATCHBUS_TRACE", collected.url)
            taker, maker = asyncio.run(trade(venue))
            until(lambda: len(collected.of(taker)) >= TAKER_SPANS, "all spans are there")
            until(lambda: len(collected.of(maker)) >= MAKER_SPANS, "those of the other order too")
        finally:
            venue.stop()
        yield Traced(collected, taker, maker)


def tree(spans: list[Received]) -> dict[tuple[str, str], tuple[str, str] | None]:
    """By service and name of each span, those of the one that it hangs under."""
    by_id = {span.id: (span.service, span.name) for span in spans}
    return {(span.service, span.name): by_id[span.parent] if span.parent else None for span in spans}


def named(spans: list[Received], name: str) -> Received:
    """The one span of that name."""
    (found,) = [span for span in spans if span.name == name]
    return found


def test_one_order_gives_one_tree(traced: Traced) -> None:
    """Client, journal, leg, the peer's part, fill, reply and reports are one trace, each under its cause."""
    spans = traced.collected.of(traced.taker)
    assert len({span.trace for span in spans}) == 1
    client, home, peer = "matchbus-client", "matchbus-engine-1", "matchbus-engine-2"
    assert tree(spans) == {
        (client, "submit"): None,
        (home, "journal"): (client, "submit"),
        (home, "leg"): (home, "journal"),
        (peer, "leg taken"): (home, "leg"),
        (peer, "trade"): (peer, "leg taken"),
        (home, "fill"): (home, "journal"),
        (home, "reply"): (home, "journal"),
        (home, "report stored"): (home, "journal"),
    }


def test_a_span_says_what_happened_and_when(traced: Traced) -> None:
    """Batch, outcome, price, quantity, liquidity and engine are there; what lies within is within."""
    spans = traced.collected.of(traced.taker)
    journal, leg, fill = (named(spans, name) for name in ("journal", "leg", "fill"))
    assert journal.attributes["batch"] > 0
    assert journal.attributes["client"] == "buyer"
    assert (leg.attributes["peer"], leg.attributes["outcome"], leg.attributes["filled"]) == (2, "filled", 5)
    said = [fill.attributes[name] for name in ("engine", "price", "quantity", "liquidity", "contra_order")]
    assert said == [2, 100, 5, "TAKER", str(traced.maker)]
    assert named(spans, "reply").attributes["status"] in {"FILLED", "PENDING"}
    submit, taken = named(spans, "submit"), named(spans, "leg taken")
    for inner, outer in ((journal, submit), (taken, leg)):
        assert outer.began_ns <= inner.began_ns <= inner.ended_ns <= outer.ended_ns
    assert journal.ended_ns <= leg.began_ns


def test_the_resting_order_has_a_trace_of_its_own(traced: Traced) -> None:
    """Its fill is that of the maker, on the engine where it rested."""
    spans = traced.collected.of(traced.maker)
    assert {span.trace for span in spans}.isdisjoint(span.trace for span in traced.collected.of(traced.taker))
    fill = named(spans, "fill")
    assert (fill.service, fill.attributes["liquidity"]) == ("matchbus-engine-2", "MAKER")


def test_a_collector_that_is_away_is_nothing_but_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders trade as ever, each process says once that its spans are lost, and the market stops in time."""
    monkeypatch.setenv("MATCHBUS_TRACE", AWAY)
    venue = Venue(tmp_path, engines=2, symbols=["AAA"], options=("--trace", AWAY))
    try:
        venue.start()
        asyncio.run(trade(venue))
        log = tmp_path / "data" / "output" / "engine_1.log"
        until(lambda: "does not take spans" in log.read_text(), "the engine says so")
    finally:
        code, _ = venue.stop()
    assert code == 0
    told = log.read_text()
    assert told.count("does not take spans") == 1
    assert "Traceback" not in told


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path) -> None:
    """A market that is to trace, and cannot, does not start."""
    (tmp_path / "opentelemetry.py").write_text("")  # comes before the installed one, and has nothing in it
    ended = subprocess.run(
        [*COMMAND, "up", "--trace", AWAY],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
        text=True,
    )
    assert ended.returncode == 2
    assert "pip install 'matchbus[otel]'" in ended.stderr.splitlines()[0]


def test_nothing_loads_opentelemetry_when_nobody_traces() -> None:
    """Engine, client and the commands come without it."""
    loaded = "'opentelemetry' in sys.modules"
    probe = f"import sys, client, engine.runtime.process, simulation.operate; sys.exit({loaded})"
    subprocess.run([sys.executable, "-c", probe], cwd=REPOSITORY, timeout=DEADLINE_S, check=True)
