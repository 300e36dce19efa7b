"""The dashboard in a real Chromium, over a real market: what a person would see and press."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client import Client
from simulation.cluster import Cluster
from simulation.controls import running_controls

playwright_api = pytest.importorskip(
    "playwright.async_api", reason="the dashboard was not tested in a browser: no Playwright (`make browser`)"
)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="the dashboard was not tested in a browser: no chromium on the PATH, none named in CHROMIUM",
    ),
    pytest.mark.timeout(180),
]

expect = playwright_api.expect
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LONG_MS = 20_000


@contextlib.asynccontextmanager
async def opened(url: str, **options: object) -> AsyncIterator[tuple[Any, list[str]]]:
    """The page in a browser of its own, and all that it complains of."""
    complaints: list[str] = []
    async with playwright_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = await browser.new_page(**options)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        await page.goto(url)
        await expect(page.locator("#connection")).to_have_text("connected", timeout=LONG_MS)
        try:
            yield page, complaints
        finally:
            await browser.close()


@dataclass
class Market:
    """A market with a dashboard, and two clients, one at home on each engine."""

    cluster: Cluster
    url: str
    alice: Client
    bob: Client


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[Market]:
    """Engine 1 has 10 lots for sale at 189.52, engine 2 has 5, and bids 7 at 189.40."""
    async with (
        Cluster(data_dir=tmp_path, dashboard=True) as cluster,
        running_controls(cluster) as controls,
        client(cluster, "alice", 1) as alice,
        client(cluster, "bob", 2) as bob,
    ):
        await alice.submit("AAPL", "sell", quantity="10", price="189.52")
        await bob.submit("AAPL", "sell", quantity="5", price="189.52")
        await bob.submit("AAPL", "buy", quantity="7", price="189.40")
        yield Market(cluster, controls.page_url, alice, bob)


def client(cluster: Cluster, name: str, engine: int) -> contextlib.AbstractAsyncContextManager[Client]:
    """A client at home on that engine."""
    return Client.connect(
        cluster.exchange.address,
        client_id=name,
        password=cluster.password,
        secret=name,
        preferred_engine=engine,
    )


def level(page: Any, price: str) -> Any:
    """The row of the ladder at that price."""
    return page.locator("#ladder tbody tr").filter(has=page.locator("td.price", has_text=price))


async def test_the_page_shows_the_market(market: Market) -> None:
    """Levels with each engine's share, the spread, a routed trade, both engines; and no complaint."""
    async with opened(market.url) as (page, complaints):
        await expect(level(page, "189.52").locator("td").nth(1)).to_have_text("15", timeout=LONG_MS)
        await expect(level(page, "189.52").locator("td.shares")).to_have_attribute("title", "E1 10, E2 5")
        await expect(level(page, "189.40").locator("td.shares")).to_have_attribute("title", "E2 7")
        await expect(page.locator("#middle")).to_contain_text("spread 0.12")
        for engine in (1, 2):
            card = page.locator(f".card[data-engine='{engine}']")
            await expect(card).to_have_attribute("data-state", "live")
            await expect(card).to_have_attribute("data-role", "primary")
        await market.bob.submit("AAPL", "buy", quantity="8", price="189.52")
        await expect(page.locator("#tape tr.routed")).to_contain_text(
            re.compile("189.52.*buys.*E2.*E1"), timeout=LONG_MS
        )
        await expect(level(page, "189.52").locator("td.shares")).to_have_attribute("title", "E1 7")
        await expect(page.locator("#price-now")).to_have_text("189.40 / 189.52")
        assert complaints == []


async def test_another_symbol_is_chosen_by_key(market: Market) -> None:
    """The arrow keys go through the symbols, and the ladder follows."""
    await market.alice.submit("AMZN", "buy", quantity="3", price="55.05")
    async with opened(market.url) as (page, complaints):
        await expect(level(page, "189.52")).to_have_count(1, timeout=LONG_MS)
        await page.locator("input[value=AAPL]").focus()
        await page.keyboard.press("ArrowRight")
        await expect(level(page, "55.05").locator("td").nth(1)).to_have_text("3", timeout=LONG_MS)
        await expect(level(page, "189.52")).to_have_count(0)
        assert complaints == []


async def test_a_killed_engine_comes_back_in_a_higher_epoch(
    market: Market, record_property: Callable[[str, object], None]
) -> None:
    """The button kills it, its card and the ladder say so, and within seconds both are right again."""
    async with opened(market.url) as (page, complaints):
        await expect(level(page, "189.52").locator("td.shares")).to_have_attribute(
            "title", "E1 10, E2 5", timeout=LONG_MS
        )
        card = page.locator(".card[data-engine='1']")
        await expect(card).to_have_attribute("data-epoch", "1")
        pid = market.cluster.engines[1].pid
        begun = time.monotonic()
        await page.get_by_role("button", name="kill engine 1").click()
        await expect(page.locator("#said")).to_have_text(f"Killed engine 1, process {pid}.")
        await expect(card).to_have_attribute("data-state", "down", timeout=LONG_MS)
        await expect(level(page, "189.52").locator("td.shares")).to_have_attribute("title", "E2 5")
        await expect(card).to_have_attribute("data-epoch", "2", timeout=LONG_MS)
        await expect(card).to_have_attribute("data-state", "live", timeout=LONG_MS)
        await expect(level(page, "189.52").locator("td.shares")).to_have_attribute(
            "title", "E1 10, E2 5", timeout=LONG_MS
        )
        record_property("recovery_s", round(time.monotonic() - begun, 2))
        await expect(card).to_have_attribute("data-role", "primary")
        assert complaints == []


async def test_the_page_reconnects_by_itself(market: Market) -> None:
    """When nats-server is killed the page says that it is cut off, and later shows what happens again."""
    async with opened(market.url) as (page, _):
        await expect(level(page, "189.52")).to_have_count(1, timeout=LONG_MS)
        connection = page.locator("#connection")
        await market.cluster.nats[0].kill()
        await expect(connection).to_have_attribute("data-state", "away", timeout=LONG_MS)
        await expect(page.locator("body")).to_have_class(re.compile("stale"))
        await expect(connection).to_have_text("connected again", timeout=LONG_MS)
        await expect(page.locator("body")).not_to_have_class(re.compile("stale"), timeout=LONG_MS)
        async with asyncio.timeout(LONG_MS / 1000):
            await market.alice.submit("AAPL", "sell", quantity="2", price="189.60")
        await expect(level(page, "189.60").locator("td.shares")).to_have_attribute(
            "title", "E1 2", timeout=LONG_MS
        )


async def test_a_silent_exchange_is_noticed(market: Market) -> None:
    """With NATS there and the exchange gone the page says that what it shows is old."""
    async with opened(market.url) as (page, complaints):
        await expect(level(page, "189.52")).to_have_count(1, timeout=LONG_MS)
        await expect(page.locator("#notice")).to_be_hidden()
        os.kill(market.cluster.exchange.pid, signal.SIGSTOP)
        try:
            await expect(page.locator("#notice")).to_contain_text("silent for", timeout=LONG_MS)
        finally:
            os.kill(market.cluster.exchange.pid, signal.SIGCONT)
        await expect(page.locator("#notice")).to_be_hidden(timeout=LONG_MS)
        assert complaints == []


@pytest.mark.parametrize("width", [320, 390, 768])
async def test_narrow_windows_need_no_sideways_scrolling(market: Market, width: int) -> None:
    """At phone width everything is there, one below the other."""
    async with opened(market.url, viewport={"width": width, "height": 800}) as (page, complaints):
        await expect(level(page, "189.52")).to_have_count(1, timeout=LONG_MS)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        for part in ("#engines .card >> nth=1", "#ladder", "#price canvas", "#depth canvas", "#tape"):
            assert await page.locator(part).bounding_box() is not None, part
        assert complaints == []


async def test_buttons_only_with_a_token(market: Market) -> None:
    """Who opens the plain address looks on; the token is gone from the address bar of who may strike."""
    async with opened(market.cluster.dashboard_url) as (page, _):
        await expect(page.locator(".card")).to_have_count(2, timeout=LONG_MS)
        await expect(page.get_by_role("button", name="kill engine 1")).to_have_count(0)
    async with opened(market.url) as (page, _):
        await expect(page.get_by_role("button", name="kill engine 1")).to_have_count(1, timeout=LONG_MS)
        assert "#" not in page.url
