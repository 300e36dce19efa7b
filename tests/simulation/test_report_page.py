"""The report's page, without a market."""

import json
import re
from collections import Counter
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.units import Instrument
from simulation.agents.quoters import MakerGroup
from simulation.checks import Check, FillCounts
from simulation.fundamental import FundamentalSettings, Jump
from simulation.page import page
from simulation.recording import EngineStrike, Quote, Recording, SentOrder, StateChange
from simulation.report_files import write_report
from simulation.run import RunOutcome
from simulation.scenario import Scenario
from tests.simulation.test_analysis import trade

VOID = {"meta", "path", "polyline", "circle"}


class Outline(HTMLParser):
    """Checks that what is opened is closed, and keeps what is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.seen.append(tag)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element without content."""
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """An element ends, the one that began last."""
        assert self._open.pop() == tag

    def closed(self) -> bool:
        """Whether nothing is open."""
        return not self._open


def outcome(*checks: Check) -> RunOutcome:
    """A run in which nobody traded."""
    return RunOutcome(10.0, [], list(checks), FillCounts({}, 0, 0), {})


def scenario(title: str = "", engines: int = 2) -> Scenario:
    """Ten seconds with news after one."""
    news = FundamentalSettings(jumps=(Jump(1, 10),))
    return Scenario(title=title, duration_s=10, engines=engines, agents=(MakerGroup(),), fundamental=news)


def recording() -> Recording:
    """A quote, an order and an engine that is killed and comes back."""
    order = SentOrder(
        *(4.9, 7.5, "c", "maker", 1, "AAPL", "buy", "limit", "gtc", Decimal(1), Decimal(1), "new", "", 1)
    )
    return Recording(
        quotes=[Quote(1.0, "AAPL", *map(Decimal, (99, 101, 2, 3, 5, 6, 100)))],
        orders=[order],
        strikes=[EngineStrike(5.0, "kill", 1, 0.0)],
        states=[StateChange(0.0, 1, "live"), StateChange(5.2, 1, "down"), StateChange(7.2, 1, "live")],
    )


def test_a_page_of_nothing() -> None:
    """A run without a single quote, order or fill has a whole page, which says so where it would draw."""
    outline = Outline()
    text = page(scenario(), outcome(), Recording())
    outline.feed(text)
    assert outline.closed()
    assert text.count("nothing to show") >= 8


def test_the_page_needs_nothing_else() -> None:
    """No script, no image, no style or font of another file or host; links lead to the files beside it."""
    text = page(scenario(), outcome(), recording())
    outline = Outline()
    outline.feed(text)
    assert outline.closed()
    assert not {"script", "link", "img", "iframe"} & set(outline.seen)
    assert "url(" not in text
    assert "//" not in text
    assert set(re.findall(r'href="([^"]+)"', text)) == {
        *("quotes.csv", "orders.csv", "changes.csv", "fills.csv", "faults.jsonl", "outcome.json")
    }
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_every_engine_has_a_colour_of_its_own() -> None:
    """Of as many as a scenario may have, on a light page and on a dark one."""
    text = page(scenario(engines=16), outcome(), recording())
    colours = dict(re.findall(r"background:var\((--c\d+)\)\"></i>(E\d+)", text))
    assert list(colours.values()) == [f"E{engine}" for engine in range(1, 17)]
    assert [colour for colour in colours if len(set(re.findall(f"{colour}: (#\\w+)", text))) != 2] == []


def test_faults_are_told_and_marked() -> None:
    """The table says how long clients had no answer, charts mark the moment; news is marked at its symbol."""
    text = page(scenario(), outcome(), recording())
    assert "<td>kill E1</td><td>5.0 s</td><td></td><td>2.50 s</td><td></td><td>2.2 s</td>" in text
    assert "E1 gave no answer for 2.50 s" in text
    assert text.count(">kill E1</text>") > text.count(">news +10</text>") > 1


def test_a_fault_that_missed_is_told(tmp_path: Path) -> None:
    """A row of the page and a line of `faults.jsonl` say so, without an outage; no chart marks it."""
    kept = recording()
    kept.strikes.append(EngineStrike(6.0, "restart", 1, 0.0, missed=True))
    write_report(tmp_path, scenario(), outcome(), kept)
    text = (tmp_path / "index.html").read_text()
    assert "<td>kill E1</td><td>5.0 s</td><td></td><td>2.50 s</td><td></td><td>2.2 s</td>" in text
    assert "<td>restart E1 (missed)</td><td>6.0 s</td><td></td><td></td><td></td><td></td>" in text
    assert "<title>restart E1</title>" not in text
    struck, missed = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert (struck["missed"], struck["outage_s"], struck["live_s"]) == (False, 2.5, 7.2)
    assert (missed["missed"], missed["outage_s"], missed["live_s"]) == (True, None, None)


def test_a_fault_that_no_client_noticed(tmp_path: Path) -> None:
    """Without a client at home there, neither the table nor the charts tell an outage."""
    kept = recording()
    kept.orders.clear()
    write_report(tmp_path, scenario(), outcome(), kept)
    text = (tmp_path / "index.html").read_text()
    assert "<td>kill E1</td><td>5.0 s</td><td></td><td></td><td></td><td>2.2 s</td>" in text
    assert "gave no answer" not in text
    told = json.loads((tmp_path / "faults.jsonl").read_text())
    assert [told[name] for name in ("silent_from_s", "outage_s", "elsewhere_s")] == [None] * 3


@pytest.mark.parametrize("value", ["1234567.8901", "0.0000001234"])
def test_a_value_is_written_in_full(value: str, tmp_path: Path) -> None:
    """`quotes.csv` has all places of a fundamental value, and no exponent."""
    kept = recording()
    kept.quotes[0] = kept.quotes[0]._replace(value=Decimal(value))
    write_report(tmp_path, scenario(), outcome(), kept)
    _, row = (tmp_path / "quotes.csv").read_text().splitlines()
    assert row.endswith(f",{value}")


def test_orders_are_in_the_order_in_which_they_were_sent(tmp_path: Path) -> None:
    """Whichever was answered first: who joins them with the quotes by time needs them so."""
    kept = recording()
    kept.orders.append(kept.orders[0]._replace(sent_s=4.2, answered_s=8.0))
    write_report(tmp_path, scenario(), outcome(), kept)
    _, *orders = (tmp_path / "orders.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in orders] == ["4.200000", "4.900000"]


def test_positions_are_told(tmp_path: Path) -> None:
    """Of each client, in the symbol's units."""
    ended = outcome_of("a", "b")
    ended.positions["a", "AAPL"] = -1_250
    write_report(tmp_path, scenario(), ended, Recording())
    clients = json.loads((tmp_path / "outcome.json").read_text())["clients"]
    assert [client["positions"] for client in clients] == [{"AAPL": "-12.50"}, {"AAPL": "0.00"}]


def test_what_is_violated_is_said() -> None:
    """A violated check is named at the top and in its row."""
    assert "All checks hold." in page(scenario(), outcome(Check("sums", 1)), Recording())
    text = page(scenario(), outcome(Check("sums", 1, ["1 is not 2"])), Recording())
    assert "An invariant is violated." in text
    assert "VIOLATED: 1 is not 2" in text


def test_titles_are_escaped() -> None:
    """What a scenario is called stays text."""
    assert "<script" not in page(scenario("</h1><script>"), outcome(), Recording())


def outcome_of(*kinds: str) -> RunOutcome:
    """A run with a trader of each kind, as far as the page looks at it."""
    counts = {
        "steps": 9,
        "wanted_steps": 10,
        "submitted": 1,
        "cancels": 0,
        "replaces": 0,
        "failures": 0,
        "refusals": Counter[str](),
    }
    traders: list[Any] = [
        SimpleNamespace(
            name=kind,
            player=SimpleNamespace(kind=kind),
            client=SimpleNamespace(
                engine=1, instruments={"AAPL": Instrument("AAPL", Decimal(1), Decimal("0.01"))}
            ),
            symbols=["AAPL"],
            fill_count=0,
            **counts,
        )
        for kind in kinds
    ]
    return RunOutcome(10.0, traders, [], FillCounts({}, 0, 0), {})


def test_a_rate_that_was_not_kept_is_told(tmp_path: Path) -> None:
    """Steps are told with those that were asked for, and below nine tenths a sentence says whose."""
    kept, late = outcome_of("a"), outcome_of("a", "b")
    late.traders[1].wanted_steps = 11
    assert "asks for" not in page(scenario(), kept, Recording())
    sentence = "1 of 2 agents made less than 90 % of the steps that their rate asks for, b 9 of 11"
    assert sentence in page(scenario(), late, Recording())
    write_report(tmp_path, scenario(), late, Recording())
    told = json.loads((tmp_path / "outcome.json").read_text())["clients"][1]
    assert (told["steps"], told["wanted_steps"]) == (9, 11)


@pytest.mark.parametrize(
    ("quantity", "price", "later", "told", "cells"),
    [
        ("0.00000012", "1000.1", "1000.2", 1.2e-8, ("0.000120012", "+0.000000012", "-0.000000012")),
        ("30", "0.1", "0.1", 0.0, ("3", "+0", "+0")),
        ("10", "200000.50", "200001.75", 12.5, ("2,000,005", "+12.5", "-12.5")),
    ],
)
def test_profits_keep_their_digits(
    quantity: str, price: str, later: str, told: float, cells: tuple[str, str, str], tmp_path: Path
) -> None:
    """What a few of the smallest lots gain is told as well as what shares do, and nothing has no sign.

    So is who did not trade.
    """
    fills = [*trade(1.0, "a", "b", price, quantity), *trade(2.0, "c", "d", later, quantity)]
    write_report(tmp_path, scenario(), outcome_of(*"abcde"), Recording(fills=fills))
    profit = json.loads((tmp_path / "outcome.json").read_text())["profit"]
    assert profit == {"a": told, "b": -told, "c": 0.0, "d": 0.0, "e": 0.0}
    assert re.search(r"-0\.0\b", (tmp_path / "outcome.json").read_text()) is None
    text = (tmp_path / "index.html").read_text()
    value, gained, lost = cells
    for kind, last in (("a", gained), ("b", lost)):
        assert re.search(f"<td>{kind}</td>.*?<td>{value}</td><td>{re.escape(last)}</td>", text)
