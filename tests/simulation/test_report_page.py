"""The report's page, without a market."""

import re
from decimal import Decimal
from html.parser import HTMLParser

from simulation.agents.quoters import MakerGroup
from simulation.checks import Check, FillCounts
from simulation.fundamental import FundamentalSettings, Jump
from simulation.page import page
from simulation.recording import EngineState, Quote, Recording, SentOrder, Strike
from simulation.run import Outcome
from simulation.scenario import Scenario

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


def outcome(*checks: Check) -> Outcome:
    """A run in which nobody traded."""
    return Outcome(10.0, [], list(checks), FillCounts({}, 0, 0), {})


def scenario(title: str = "") -> Scenario:
    """Ten seconds with news after one."""
    news = FundamentalSettings(jumps=(Jump(1, 10),))
    return Scenario(title=title, duration_s=10, agents=(MakerGroup(),), fundamental=news)


def recording() -> Recording:
    """A quote, an order and an engine that is killed and comes back."""
    order = SentOrder(
        *(4.9, 7.5, "c", "maker", 1, "AAPL", "buy", "limit", "gtc", Decimal(1), Decimal(1), "new", "", 1)
    )
    return Recording(
        quotes=[Quote(1.0, "AAPL", Decimal(99), Decimal(101), Decimal(5), Decimal(6), 100.0)],
        orders=[order],
        strikes=[Strike(5.0, "kill", 1, 0.0)],
        states=[EngineState(0.0, 1, "live"), EngineState(5.2, 1, "down"), EngineState(7.2, 1, "live")],
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
        *("quotes.csv", "orders.csv", "fills.csv", "faults.jsonl", "outcome.json")
    }
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_faults_are_told_and_marked() -> None:
    """The table says how long clients had no answer, charts mark the moment; news is marked at its symbol."""
    text = page(scenario(), outcome(), recording())
    assert "<td>kill E1</td><td>5.0 s</td><td></td><td>2.50 s</td>" in text
    assert "E1 gave no answer for 2.50 s" in text
    assert text.count(">kill E1</text>") > text.count(">news +10</text>") > 1


def test_what_is_violated_is_said() -> None:
    """A violated check is named at the top and in its row."""
    assert "All checks hold." in page(scenario(), outcome(Check("sums", 1)), Recording())
    text = page(scenario(), outcome(Check("sums", 1, ["1 is not 2"])), Recording())
    assert "An invariant is violated." in text
    assert "VIOLATED: 1 is not 2" in text


def test_titles_are_escaped() -> None:
    """What a scenario is called stays text."""
    assert "<script" not in page(scenario("</h1><script>"), outcome(), Recording())
