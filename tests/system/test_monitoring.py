"""Metrics and logs of a real market: what docs/monitoring.md and the dashboard say is what there is.

One market of two engines with a standby each, in which an order at home on engine 1 trades on engine 2.
"""

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from matchbus.v1 import matchbus_pb2 as pb
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.system.venue import REPOSITORY, Venue, eventually, floor, limit, run_command

PAGE: Final = (REPOSITORY / "docs" / "monitoring.md").read_text()
DASHBOARD: Final = json.loads((REPOSITORY / "docs" / "grafana.json").read_text())
ROW: Final = re.compile(r"^\| `(\w+)` \| (\w+) \| ([\w, ]+) \|([`\w, ]*)\| (.*) \|$", re.MULTILINE)
NAME: Final = re.compile(r"\b(?:matchbus|process)_\w+")
DEADLINE_S: Final = 60.0
OPTIONS: Final = (
    *("--standbys", "1", "--metrics", "--snapshot-every", "1"),
    *("--log-level", "debug", "--log-format", "json"),
)

ASIDE: Final = ("reply", "report stored")
"""Steps that may come earlier or later than others."""

Scrape = dict[str, Metric]
"""Families by name."""


class Documented(NamedTuple):
    """One row of the page's table."""

    type: str
    of: frozenset[str]
    labels: frozenset[str]
    text: str


class Watched(NamedTuple):
    """A market, the order that went from its engine 1 to engine 2, and then every process's metrics."""

    venue: Venue
    order_id: int
    scrapes: dict[str, Scrape]


def documented() -> dict[str, Documented]:
    """The page's table."""
    return {
        name: Documented(kind, frozenset(of.split(", ")), frozenset(re.findall(r"\w+", labels)), text)
        for name, kind, of, labels, text in ROW.findall(PAGE)
    }


def scrape(address: str) -> Scrape:
    """All families of one process; a counter's name as it is shown, with `_total`."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=DEADLINE_S) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {name_of(family): family for family in families}


def name_of(family: Metric) -> str:
    """A family's name in the table."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def labels_of(family: Metric) -> frozenset[str]:
    """The labels that a family's samples have."""
    return frozenset(label for sample in family.samples for label in sample.labels) - {"le"}


def value(scraped: Scrape, name: str, **labels: str) -> float:
    """One sample."""
    (found,) = [
        sample.value
        for family in scraped.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return found


async def trade(venue: Venue) -> int:
    """Let an order at home on engine 1 trade on engine 2; its id."""
    async with floor(venue) as trading:
        seller, buyer = await trading.trader(2), await trading.trader(1)

        async def quoted() -> bool:
            return bool((await buyer.book("AAA", scope=pb.BOOK_SCOPE_CONSOLIDATED)).asks)

        await seller.limit("AAA", pb.SIDE_SELL, 100, 5)
        await eventually(quoted, DEADLINE_S, "engine 1 sees the quote of engine 2")
        reply = await buyer.limit("AAA", pb.SIDE_BUY, 100, 5)
        fills = await eventually(buyer.fills, DEADLINE_S, "the leg is back")
        assert [fill.engine_id for fill in fills] == [2]
        refused = await buyer.limit("AAA", pb.SIDE_BUY, 0, 5)
        assert refused.reject_reason == pb.REJECT_REASON_INVALID_PRICE
        (refused,) = await buyer.enter([[pb.Command()]])
        assert refused.reject_reason == pb.REJECT_REASON_EMPTY_COMMAND
        return reply.order_id


def scrape_all(venue: Venue) -> dict[str, Scrape]:
    """Every process by its name in Prometheus' targets, once each engine knows of a snapshot."""
    targets = json.loads((venue.directory / "data" / "prometheus.json").read_text())
    deadline = time.monotonic() + DEADLINE_S
    while True:
        scrapes = {target["labels"]["process"]: scrape(*target["targets"]) for target in targets}
        if all("matchbus_snapshot_size_bytes" in scrapes[f"engine {number}"] for number in (1, 2)):
            return scrapes
        assert time.monotonic() < deadline, "no snapshot was made"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The market of these tests."""
    venue = Venue(tmp_path_factory.mktemp("watched"), engines=2, symbols=("AAA", "BBB"), options=OPTIONS)
    try:
        venue.start()
        order_id = asyncio.run(trade(venue))
        yield Watched(venue, order_id, scrape_all(venue))
    finally:
        venue.stop()


def test_the_page_names_every_metric_and_no_other(watched: Watched) -> None:
    """Name, type, labels and text are those of a real scrape, and so is which process has it."""
    table = documented()
    told: dict[str, set[str]] = {}
    for process, scraped in watched.scrapes.items():
        kind = process.split()[0]
        for name, family in scraped.items():
            row = table[name]
            told.setdefault(name, set()).add(kind)
            assert row.type == family.type, name
            assert labels_of(family) <= row.labels, name
            assert name.startswith("process_") or row.text == family.documentation, name
    for name, row in table.items():
        kinds = {"exchange", "engine", "standby"} if row.of == {"all"} else row.of
        assert kinds == told.get(name, set()), name
        families = [scraped[name] for scraped in watched.scrapes.values() if name in scraped]
        assert row.labels == frozenset().union(*map(labels_of, families)), name


def test_the_dashboard_asks_for_what_there_is(watched: Watched) -> None:
    """Every metric in a query of docs/grafana.json, and in the page's rules, is a sample of a real scrape."""
    there = {
        sample.name
        for scraped in watched.scrapes.values()
        for family in scraped.values()
        for sample in family.samples
    }
    queries = [target["expr"] for panel in panels(DASHBOARD) for target in panel.get("targets", ())]
    assert len(queries) > 20
    for query in queries:
        assert NAME.findall(query), query
        assert set(NAME.findall(query)) <= there, query
    rules = re.findall(r"^ +expr: (.*)$", PAGE, re.MULTILINE)
    assert len(rules) == 5
    assert {name for rule in rules for name in NAME.findall(rule)} <= there


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """All panels, those in rows too."""
    return [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", ()))]


def test_the_numbers_are_those_of_the_trade(watched: Watched) -> None:
    """Commands, legs, trades, refusals and roles stand where they happened."""
    one, two = watched.scrapes["engine 1"], watched.scrapes["engine 2"]
    assert value(one, "matchbus_legs_sent_total", outcome="filled") == 1
    assert value(two, "matchbus_legs_taken_total", outcome="filled") == 1
    assert (value(one, "matchbus_trades_total"), value(two, "matchbus_trades_total")) == (0, 1)
    assert value(one, "matchbus_commands_total", kind="new") == 2
    assert value(two, "matchbus_commands_total", kind="leg") == 1
    assert value(one, "matchbus_refusals_total", reason="invalid_price") == 1
    assert value(one, "matchbus_refusals_total", reason="empty_command") == 1
    assert value(one, "matchbus_leg_seconds_count") == 1
    states = ("live", "suspect", "down")  # a busy machine makes any of them
    assert sum(value(one, "matchbus_peer_state", peer="2", state=state) for state in states) == 1
    assert value(one, "matchbus_role", role="primary") == 1
    assert value(one, "matchbus_serving") == 1
    assert value(one, "matchbus_append_seconds_count") == value(one, "matchbus_batch_commands_count") > 0
    assert value(watched.scrapes["standby 1"], "matchbus_role", role="standby") == 1
    assert sum(value(watched.scrapes["exchange"], "matchbus_engines", state=state) for state in states) == 2
    assert value(watched.scrapes["exchange"], "matchbus_registrations_total", outcome="registered") == 2
    assert value(watched.scrapes["exchange"], "matchbus_stream_limit_bytes", stream="EXECUTIONS") == 2**34
    place = watched.venue.ready["engines"]["1"]["metrics"]
    assert f"http://{place}/metrics" in (log_file(watched.venue, 1)).read_text()


def test_no_label_is_made_by_a_client(watched: Watched) -> None:
    """Labels are few, and none holds a client's name, an order id or a symbol."""
    shown = {
        label
        for scraped in watched.scrapes.values()
        for family in scraped.values()
        for sample in family.samples
        for label in sample.labels.values()
    }
    assert not any(re.search(r"trader|AAA|\d{6}", label) for label in shown)


def log_file(venue: Venue, engine: int) -> Path:
    """What an engine printed."""
    return venue.directory / "data" / "output" / f"engine_{engine}.log"


def grep(venue: Venue, engine: int, order_id: int) -> list[dict[str, Any]]:
    """The lines of an engine that have the id, as `grep` finds them."""
    lines = log_file(venue, engine).read_text().splitlines()
    return [json.loads(line) for line in lines if str(order_id) in line]


def events_of(lines: list[dict[str, Any]], *events: str) -> list[str]:
    """Which of these events the lines tell, in their order."""
    return [line["event"] for line in lines if line["event"] in events]


def test_an_order_is_followed_by_its_id_through_both_engines(watched: Watched) -> None:
    """From sequencing over the leg and the peer's trade to reply and report, in the order of the steps."""
    deadline = time.monotonic() + DEADLINE_S
    while len(events_of(home := grep(watched.venue, 1, watched.order_id), *ASIDE)) < 3:
        assert time.monotonic() < deadline, home
        time.sleep(0.05)
    peer = grep(watched.venue, 2, watched.order_id)
    steps = [
        "order sequenced",
        "order committed",
        "order answered",  # pending
        "leg sent",
        "leg answered",
        "trade",
        "order answered",
    ]
    assert events_of(home, *steps) == steps
    assert sorted(events_of(home, *ASIDE)) == ["reply", "report stored", "report stored"]
    assert events_of(peer, *steps, "leg sequenced", "leg taken") == ["leg sequenced", "trade", "leg taken"]
    (sent,) = [line for line in home if line["event"] == "leg sent"]
    (taken,) = [line for line in peer if line["event"] == "leg taken"]
    assert (sent["leg"], sent["peer"], taken["filled"]) == (taken["leg"], 2, 5)
    (made,) = [line for line in peer if line["event"] == "trade"]
    assert made["contra_order"] == watched.order_id
    assert {line["report"] for line in home if line["event"] == "report stored"} == {"accepted", "fill"}


def test_a_standby_that_took_over_says_so_where_it_was(watched: Watched) -> None:
    """Its metrics stay at their address, and change with its role."""
    place = watched.venue.ready["standbys"]["1"]["metrics"]
    assert run_command("handover", "1", "--nats", watched.venue.nats_url)
    reigning = scrape(place)
    assert value(reigning, "matchbus_role", role="primary") == 1
    assert value(reigning, "matchbus_role", role="standby") == 0
    assert value(reigning, "matchbus_epoch") == 2
    assert "matchbus_standby_lag_batches" not in reigning


def test_every_line_of_every_process_is_json(watched: Watched) -> None:
    """Time, level, logger and event are in each."""
    logs = {path.name: path for path in (watched.venue.directory / "data" / "output").glob("*.log")}
    del logs["nats-server.log"]
    processes = ("engine_1", "engine_2", "standby_1", "standby_2", "exchange")
    assert logs.keys() == {f"{process}.log" for process in processes}
    for path in logs.values():
        for line in path.read_text().splitlines():
            assert json.loads(line).keys() >= {"time", "level", "logger", "event"}


async def test_an_engine_short_of_processor_time_lets_batches_wait(tmp_path: Path) -> None:
    """Under a flood of orders the delay of batches shows; with time to spare it is gone."""
    venue = Venue(tmp_path, engines=1, symbols=("AAA",), options=("--metrics",))
    try:
        venue.start()
        place = venue.ready["engines"]["1"]["metrics"]
        async with floor(venue) as trading:
            trader = await trading.trader()

            async def delay_after(messages: int, size: int) -> float:
                """The delay once so many messages of so many resting orders are answered."""
                orders = [pb.Command(new=limit("AAA", pb.SIDE_SELL, 100, 1)) for _ in range(messages * size)]
                await trader.enter(orders[at : at + size] for at in range(0, len(orders), size))
                return value(scrape(place), "matchbus_batch_delay_seconds")

            async def is_delayed() -> bool:
                return await delay_after(messages=100, size=100) > 0

            async def is_not() -> bool:
                return await delay_after(messages=1, size=1) == 0

            await eventually(is_delayed, DEADLINE_S, "the flood makes batches wait")
            await eventually(is_not, DEADLINE_S, "nothing waits any more")
    finally:
        venue.stop()


async def test_no_order_waits_long_for_the_garbage_collector(tmp_path: Path) -> None:
    """With orders by the message and one by one, collections are many and short: less than 5 ms.

    Three of four are asked to: they count by the clock, and a busy machine may take the processor from one.
    """
    venue = Venue(tmp_path, engines=1, symbols=("AAA",), options=("--metrics",))
    try:
        venue.start()
        async with floor(venue) as trading:
            trader = await trading.trader()
            made = [pb.Command(new=limit("AAA", pb.SIDE_SELL, 100, 1)) for _ in range(40_000)]
            await trader.enter(made[at : at + 100] for at in range(0, len(made), 100))
            for _ in range(80):
                await asyncio.gather(*(trader.limit("AAA", pb.SIDE_BUY, 100, 1) for _ in range(50)))
        scraped = scrape(venue.ready["engines"]["1"]["metrics"])
    finally:
        venue.stop()
    counts = {
        bound: sum(
            value(scraped, "matchbus_gc_pause_seconds_bucket", generation=generation, le=bound)
            for generation in ("0", "1")  # the rest is the one before the engine serves
        )
        for bound in ("0.005", "+Inf")
    }
    assert counts["+Inf"] > 10
    assert counts["0.005"] > 0.75 * counts["+Inf"], scraped["matchbus_gc_pause_seconds"]
