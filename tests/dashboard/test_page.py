"""The dashboard in a real Chromium, over a real market: what a person would see and press."""

import asyncio
import contextlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bus import subjects
from bus.messages import InstrumentEntry, encode
from bus.registry import instruments_bucket
from bus.view_messages import TradesView
from client import Client
from simulation.cluster import Cluster
from simulation.controls import running_controls
from tests.waiting import frozen, until

if TYPE_CHECKING:
    from tests.conftest import Connections

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
NOBODY_LISTENS = {"nats": ["ws://127.0.0.1:1"], "ticket": True}
LONG_MS = 20_000
RECOVERY_S = 3.0
UNTIL = """([state, epoch, shares]) => new Promise((resolve) => {
    const look = () => {
        const {dataset} = document.querySelector(".card[data-engine='1']");
        const isSo = dataset.state === state && dataset.epoch === epoch
            && document.querySelector("#asks tr:last-child .shares").title === shares;
        isSo ? resolve() : setTimeout(look, 5);
    };
    look();
})"""
"""Until the card of engine 1 and the best ask are like this: looks more often than Playwright does."""

NOTE_TEXTS = """() => {
    const {prototype} = CanvasRenderingContext2D, {fillText} = prototype;
    globalThis.written = [];
    prototype.fillText = function (text, ...rest) {
        if (this.canvas.closest("#candles")) {
            written.push(text);
        }
        fillText.call(this, text, ...rest);
    };
}"""
COLOURED = """(id) => {
    const [canvas, plot] = ["canvas", ".u-over"].map((name) => document.querySelector(`#${id} ${name}`));
    const left = (plot.getBoundingClientRect().left - canvas.getBoundingClientRect().left) * devicePixelRatio;
    const {width, data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const counts = {prices: 0, plot: 0};
    for (let at = 0; at < data.length; at += 4) {
        const [red, green, blue, alpha] = data.slice(at, at + 4);
        if (alpha > 128 && Math.max(red, green, blue) - Math.min(red, green, blue) > 60) {
            counts[(at / 4) % width < left ? "prices" : "plot"] += 1;
        }
    }
    return counts;
}"""
"""How many pixels of a chart's plot, and of the prices beside it, have a colour: candles and lines do."""
SET_BACK = "() => { const {now} = Date; Date.now = () => now() - 3600_000; }"

NOTE_CUT = """() => {
    const {prototype} = CanvasRenderingContext2D, {fillText} = prototype;
    globalThis.drawn = {whole: [], cut: []};
    prototype.fillText = function (text, x, ...rest) {
        const {width} = this.measureText(text);
        const left = x - width * ({right: 1, center: 0.5}[this.textAlign] ?? 0);
        if (this.canvas.closest(".chart")) {
            drawn[left < 0 || left + width > this.canvas.width ? "cut" : "whole"].push(text);
        }
        fillText.call(this, text, x, ...rest);
    };
}"""
CUT = """() => [...document.querySelectorAll("#ladder td, #order .field input")]
    .filter(({scrollWidth, clientWidth}) => scrollWidth > clientWidth)
    .map(({textContent, value}) => value ?? textContent)"""


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


async def test_the_list_of_symbols_is_taken_once_until_there_is_a_new_one(
    market: Market, connections: "Connections"
) -> None:
    """It is long where there are many: the page hears it again when one is new, and shows that one."""
    heard: Counter[bytes] = Counter()

    def count(frame: str | bytes) -> None:
        heard.update(re.findall(rb"MSG (view\.\w+) ", frame if isinstance(frame, bytes) else frame.encode()))

    nc = await connections.open(market.cluster.nats_url)
    async with opened(market.url) as (page, complaints):
        page.on("websocket", lambda socket: socket.on("framereceived", count))
        await page.reload()
        await until(lambda: heard[b"view.symbols"])
        listed_at = heard[b"view.engines"]
        await until(lambda: heard[b"view.engines"] >= listed_at + 10)  # four a second, and a list each second
        assert heard[b"view.symbols"] == 1
        bucket = instruments_bucket(nc)
        assert await bucket.create("NEW", InstrumentEntry("NEW", "0.01", "1"))
        await expect(page.locator("#symbols input[value=NEW]")).to_have_count(1, timeout=LONG_MS)
        assert heard[b"view.symbols"] == 2
        assert complaints == []


async def test_a_killed_engine_comes_back_in_a_higher_epoch(
    market: Market, record_property: Callable[[str, object], None]
) -> None:
    """The button kills it, card and ladder say so, and in under three seconds both are right again."""
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
        await page.evaluate(UNTIL, ["down", "1", "E2 5"])
        await page.evaluate(UNTIL, ["live", "2", "E1 10, E2 5"])
        recovery_s = time.monotonic() - begun
        record_property("recovery_s", round(recovery_s, 2))
        assert recovery_s < RECOVERY_S
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
        async with frozen(market.cluster.exchange.pid):
            await expect(page.locator("#notice")).to_be_visible(timeout=LONG_MS)
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


@pytest.mark.parametrize("width", [320, 1280])
async def test_long_numbers_are_shown_whole(market: Market, width: int) -> None:
    """On the ladder, in the form, below it and beside the charts: one that is cut reads as another number."""
    await market.alice.submit("BTC-USD", "sell", quantity="0.00000012", price="151234567.5")
    await market.alice.submit("BTC-USD", "buy", quantity="0.00000012", price="151234566.5")
    async with opened(market.url, viewport={"width": width, "height": 900}) as (page, complaints):
        await page.evaluate(NOTE_CUT)
        await page.get_by_role("button", name="trade as the demo user").click()
        await page.locator("#symbols label", has_text="BTC-USD").click()
        await level(page, "151234567.5").click(timeout=LONG_MS)
        await page.locator("[name=quantity]").fill("0.00000001", timeout=LONG_MS)
        await page.keyboard.press("Enter")
        await expect(page.locator("#ticket-said")).to_have_text(
            re.compile(r"0\.00000001 filled at 151234567\.5$"), timeout=LONG_MS
        )
        await expect(page.locator("#candles")).to_have_attribute("data-candles", "1", timeout=LONG_MS)
        await expect(page.locator("#spread > .uplot")).to_be_visible(timeout=LONG_MS)
        assert await page.evaluate(CUT) == []
        drawn = await page.evaluate("drawn")
        assert drawn["cut"] == []
        assert any(text.startswith("15123456") for text in drawn["whole"])
        begins = [await page.locator(f"#{name} .u-over").bounding_box() for name in ("price", "spread")]
        assert len({box and (box["x"], box["width"]) for box in begins}) == 1
        assert complaints == []


async def test_trading_by_hand(market: Market) -> None:
    """A price is taken from the ladder; the order is marked there, and gone when it is cancelled."""
    async with opened(market.url) as (page, complaints):
        await page.get_by_role("button", name="trade as the demo user").click()
        await expect(page.locator("#trader")).to_contain_text("demo, at home on E", timeout=LONG_MS)
        await level(page, "189.40").click(timeout=LONG_MS)
        await expect(page.locator("[name=price]")).to_have_value("189.40")
        await expect(page.locator("[name=quantity]")).to_be_focused()
        await page.keyboard.type("3")
        await page.keyboard.press("Enter")
        await expect(page.locator("#ticket-said")).to_have_text(
            "new: buy 3 AAPL at 189.40, 3 left", timeout=LONG_MS
        )
        await expect(level(page, "189.40").locator(".own")).to_have_text("you 3", timeout=LONG_MS)
        await expect(level(page, "189.40").locator("td").nth(1)).to_have_text("10", timeout=LONG_MS)
        await expect(level(page, "189.40").locator("td.shares")).to_have_accessible_name(
            re.compile("^you 3: E")
        )
        await expect(page.locator("#orders tbody tr")).to_contain_text("3 of 3")
        await page.get_by_role("button", name="cancel order").click()
        await expect(page.locator("#orders tbody tr")).to_have_count(0, timeout=LONG_MS)
        await expect(level(page, "189.40").locator("td").nth(1)).to_have_text("7", timeout=LONG_MS)
        await expect(page.locator("#ladder .own:not(:empty)")).to_have_count(0)
        assert complaints == []


async def test_one_press_is_one_order(market: Market) -> None:
    """However long Enter is held down, in a field or on the button, and where the button is clicked twice."""
    sent: list[str] = []

    async def note(route: Any) -> None:
        sent.append(route.request.post_data_json["quantity"])
        await route.continue_()

    async with opened(market.url) as (page, complaints):
        await page.route("**/ticket/submit", note)
        await page.get_by_role("button", name="trade as the demo user").click()
        quantity, send = page.locator("[name=quantity]"), page.locator("#send")
        await page.locator("[name=price]").fill("189.40", timeout=LONG_MS)
        for lots, pressed in (("3", quantity), ("4", send)):
            await quantity.fill(lots)
            await pressed.focus()
            for _ in range(5):
                await page.keyboard.down("Enter")
            await page.keyboard.up("Enter")
        await quantity.fill("5")
        await send.dblclick()
        await quantity.fill("6")
        await send.press("Enter")
        await expect(level(page, "189.40").locator(".own")).to_have_text("you 18", timeout=LONG_MS)
        assert sent == ["3", "4", "5", "6"]
        assert complaints == []


async def test_small_and_fractional_quantities_are_written_as_they_are(market: Market) -> None:
    """Own orders add up to what a person would say, and one lot of many decimals is neither zero nor 1e-8."""
    await market.alice.submit("BTC-USD", "sell", quantity="0.00000005", price="60000.1")
    async with opened(market.url) as (page, complaints):
        await page.get_by_role("button", name="trade as the demo user").click()
        await expect(page.locator("#account")).to_be_visible(timeout=LONG_MS)
        await page.locator("#symbols label", has_text="BTC-USD").click()
        quantity, price, said = (
            page.locator(name) for name in ("[name=quantity]", "[name=price]", "#ticket-said")
        )
        await price.fill("59999.0")
        for part in ("0.1", "0.2"):
            await quantity.fill(part)
            await quantity.press("Enter")
            await expect(said).to_have_text(
                f"new: buy {part} BTC-USD at 59999.0, {part} left", timeout=LONG_MS
            )
        await expect(level(page, "59999.0").locator(".own")).to_have_text("you 0.3", timeout=LONG_MS)
        await expect(level(page, "59999.0").locator("td").nth(1)).to_have_text("0.3000")

        await price.fill("59998.0")
        await quantity.fill("")
        await quantity.press("ArrowUp")
        await expect(quantity).to_have_value("0.00000001")
        await quantity.press("Enter")
        await expect(said).to_have_text(
            "new: buy 0.00000001 BTC-USD at 59998.0, 0.00000001 left", timeout=LONG_MS
        )
        one_lot = level(page, "59998.0")
        await expect(one_lot.locator(".own")).to_have_text("you 0.00000001", timeout=LONG_MS)
        await expect(one_lot.locator("td").nth(1)).to_have_text("0.00000001")
        await expect(one_lot.locator("td.shares")).to_have_attribute("title", re.compile("^E. 0.00000001$"))

        await market.bob.submit("BTC-USD", "buy", quantity="0.00000002", price="60000.1")
        await expect(page.locator("#tape tbody td").nth(2)).to_have_text("0.00000002", timeout=LONG_MS)
        assert complaints == []


async def test_own_fills_are_told_and_marked(market: Market) -> None:
    """A market order's fill is in the list, the position, and marked on the tape; one of others is not."""
    async with opened(market.url) as (page, complaints):
        await page.get_by_role("button", name="trade as the demo user").click()
        await page.locator("[name=quantity]").fill("4", timeout=LONG_MS)
        await page.locator("[name=type]").select_option("market")
        await expect(page.locator("[name=price]")).to_be_disabled()
        await page.locator("#send").click()
        await expect(page.locator("#ticket-said")).to_contain_text("4 filled at 189.52", timeout=LONG_MS)
        await expect(page.locator("#fills tbody tr")).to_have_count(1, timeout=LONG_MS)
        await expect(page.locator("#fills tbody tr")).to_contain_text("taker on E")
        own = page.locator("#tape").get_by_role("cell", name="yours")
        await expect(own).to_have_count(1, timeout=LONG_MS)
        await expect(page.locator("#positions tbody tr")).to_have_text(
            re.compile("AAPL.*4.*189.52"), timeout=LONG_MS
        )
        await market.bob.submit("AAPL", "buy", quantity="1", price="189.52")
        await expect(page.locator("#tape tbody tr")).to_have_count(2, timeout=LONG_MS)
        await expect(own).to_have_count(1)
        assert complaints == []


async def test_a_refusal_is_shown_as_it_is(market: Market) -> None:
    """The exchange's words for a wrong password, the engine's for an order that it refuses."""
    async with opened(market.url) as (page, _):
        said = page.locator("#ticket-said")
        for password in ("guessed", market.cluster.password):
            await page.locator("[name=client]").fill("carol")
            await page.locator("[name=secret]").fill("carol's own")
            await page.locator("[name=password]").fill(password)
            await page.keyboard.press("Enter")
            if password == "guessed":
                await expect(said).to_contain_text("password", timeout=LONG_MS)
                await expect(said).to_have_attribute("data-kind", "refused")
        await expect(page.locator("#trader")).to_contain_text("carol, at home on E", timeout=LONG_MS)
        await page.locator("[name=quantity]").fill("1")
        await page.locator("[name=price]").fill("189.52")
        await page.locator("[name=post_only]").check()
        await page.keyboard.press("Enter")
        refused = await market.bob.submit("AAPL", "buy", quantity="1", price="189.52", post_only=True)
        await expect(said).to_have_text(
            f"rejected: {refused.reject_reason}: {refused.reject_text}", timeout=LONG_MS
        )
        await page.get_by_role("button", name="sign out").click()
        await expect(page.locator("#sign-in")).to_be_visible()
        await expect(page.locator("#account")).to_be_hidden()


async def test_one_signs_in_at_a_time(market: Market) -> None:
    """Who asks while another is being signed in does not get in, to be put out by the late answer."""
    asked: list[str] = []
    released = asyncio.Event()

    async def delay_the_first(route: Any) -> None:
        asked.append(route.request.post_data_json["client"])
        if len(asked) == 1:
            await released.wait()
        await route.continue_()

    async with opened(market.url) as (page, complaints):
        await page.route("**/ticket/sign-in", delay_the_first)
        for field, text in (("client", "late"), ("secret", "late"), ("password", market.cluster.password)):
            await page.locator(f"[name={field}]").fill(text, timeout=LONG_MS)
        await page.keyboard.press("Enter")
        async with page.expect_response("**/trader"):
            await page.get_by_role("button", name="trade as the demo user").click()
        released.set()
        await expect(page.locator("#trader")).to_contain_text("late, at home on E", timeout=LONG_MS)
        await page.get_by_role("button", name="sign out").click()
        await expect(page.locator("#sign-in")).to_be_visible()
        assert asked == ["late"]
        assert complaints == []


async def test_an_order_in_doubt_is_not_entered_twice(market: Market) -> None:
    """However many are in doubt, and whatever became of it: the same order again is the same order."""
    lost = iter([503, 401, 500])

    async def lose_the_answer(route: Any) -> None:
        answer = await route.fetch()
        status = next(lost, None)
        if status is None:
            await route.fulfill(response=answer)
        else:
            await route.fulfill(status=status, json={"error": f"No answer: {status}"})

    async with opened(market.url) as (page, _):
        await page.get_by_role("button", name="trade as the demo user").click()
        await page.route("**/ticket/submit", lose_the_answer)
        quantity, said = page.locator("[name=quantity]"), page.locator("#ticket-said")
        await page.locator("[name=price]").fill("189.40", timeout=LONG_MS)

        async def send(lots: str, answer: str) -> None:
            await quantity.fill(lots)
            await quantity.press("Enter")
            await expect(said).to_have_text(answer, timeout=LONG_MS)

        await send("3", "No answer: 503")
        await send("4", "No answer: 401")
        await send("4", "No answer: 500")
        await send("5", "new: buy 5 AAPL at 189.40, 5 left")
        for lots in "34":
            await send(lots, f"new: buy {lots} AAPL at 189.40 (entered before), {lots} left")
        await expect(level(page, "189.40").locator(".own")).to_have_text("you 12", timeout=LONG_MS)
        await send("3", "new: buy 3 AAPL at 189.40, 3 left")
        await expect(level(page, "189.40").locator(".own")).to_have_text("you 15", timeout=LONG_MS)


async def test_nothing_is_traded_before_there_is_a_symbol(market: Market) -> None:
    """The ticket appears with the instruments: no order is without one, no price typed early is wiped."""
    async with opened(market.url) as (page, _):
        await expect(page.locator("#ticket")).to_be_visible(timeout=LONG_MS)
        await page.route("**/config.json", lambda route: route.fulfill(json=NOBODY_LISTENS))
        await page.reload()
        await expect(page.locator("#connection")).to_contain_text("NATS is away", timeout=LONG_MS)
        await expect(page.locator("#ticket")).to_be_hidden()


async def test_an_empty_market_says_how_to_begin(tmp_path: Path) -> None:
    """Charts have no axes yet, and the book says what to do; where engines are not counted it does not."""
    async with (
        Cluster(data_dir=tmp_path, dashboard=True) as cluster,
        running_controls(cluster) as controls,
        client(cluster, "alice", 1) as alice,
        opened(controls.page_url) as (page, complaints),
    ):
        await expect(page.locator("#middle")).to_have_text(
            "No orders: use the ticket or `matchbus submit`", timeout=LONG_MS
        )
        await expect(page.locator(".chart.blank > .uplot")).to_have_count(4)
        await expect(page.locator("#price > .uplot")).to_be_hidden()
        await page.get_by_role("button", name="trade as the demo user").click()
        await expect(page.locator("[name=quantity]")).to_be_focused(timeout=LONG_MS)
        await page.locator("[name=price]").fill("100")
        await page.keyboard.press("Enter")
        await expect(page.locator("#ticket-said")).to_have_text("Enter a quantity.")
        await expect(page.locator("[name=quantity]")).to_be_focused()
        await alice.submit("AAPL", "buy", quantity="1", price="99")
        await expect(page.locator("#middle")).to_have_text("no spread", timeout=LONG_MS)
        await expect(page.locator("#price > .uplot")).to_be_visible(timeout=LONG_MS)
        async with frozen(cluster.engines[1].pid):
            await expect(level(page, "99")).to_have_count(0, timeout=LONG_MS)
            await expect(page.locator("#middle")).to_have_text("no spread")
        assert complaints == []


async def test_an_order_is_made_by_key(market: Market) -> None:
    """Arrow keys go from buy to sell, a button takes the best price, and another says what it would do."""
    async with opened(market.url) as (page, complaints):
        await page.get_by_role("button", name="trade as the demo user").click()
        await expect(page.locator("[name=quantity]")).to_be_focused(timeout=LONG_MS)
        await expect(page.locator("#send")).to_have_text("buy AAPL")
        await page.locator("[name=side][value=buy]").focus()
        await page.keyboard.press("ArrowRight")
        await expect(page.locator("#send")).to_have_text("sell AAPL")
        await expect(page.locator("#asks tr:last-child .price")).to_have_text("189.52", timeout=LONG_MS)
        await page.get_by_role("button", name="price of the best ask").press("Enter")
        await expect(page.locator("[name=price]")).to_have_value("189.52")
        assert complaints == []


async def test_candles_appear(market: Market) -> None:
    """Trades make candles of the interval that is chosen; before the first the page says that it has none."""
    async with opened(market.url) as (page, complaints):
        await expect(page.locator("#candles-note")).to_have_text("no trade since opening", timeout=LONG_MS)
        await market.bob.submit("AAPL", "buy", quantity="1", price="189.52")
        await expect(page.locator("#candles")).to_have_attribute("data-candles", "1", timeout=LONG_MS)
        second = int(time.time())
        await until(lambda: int(time.time()) > second)
        await market.bob.submit("AAPL", "buy", quantity="1", price="189.52")
        await expect(page.locator("#candles")).to_have_attribute("data-candles", "2", timeout=LONG_MS)
        await page.locator("[name=interval][value='1']").focus()
        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("ArrowRight")
        await expect(page.locator("[name=interval][value='60']")).to_be_checked()
        await expect(page.locator("#candles")).to_have_attribute("data-candles", re.compile("1|2"))
        await expect(page.locator("#candles-note")).to_have_text("since opening")
        assert complaints == []


async def test_candles_keep_to_their_plot_and_their_decimals(
    market: Market, connections: "Connections"
) -> None:
    """What is older than the plot is not drawn over its prices, which are written as the symbol's are."""
    nc = await connections.open(market.cluster.nats_url)
    now_ns = time.time_ns()

    async def trade(symbol: str, tick_size: str, *prices: tuple[int, int]) -> None:
        trades = tuple((1, 1, price, 1, 1, now_ns - age_s * 10**9) for age_s, price in prices)
        await nc.publish(subjects.view_trades(symbol), encode(TradesView(symbol, tick_size, "1", trades, 0)))

    async with opened(market.url) as (page, complaints):
        await page.evaluate(NOTE_TEXTS)
        await expect(level(page, "189.52")).to_have_count(1, timeout=LONG_MS)
        await trade("BTC-USD", "0.1", (0, 600_000))
        await trade("AAPL", "0.01", (93, 18_000), (93, 19_000), (0, 18_500))
        await expect(page.locator("#candles")).to_have_attribute("data-candles", "2", timeout=LONG_MS)
        coloured = await page.evaluate(COLOURED, "candles")
        assert coloured["plot"] > 0
        assert coloured["prices"] == 0
        await page.evaluate("written.length = 0")
        await page.locator("#symbols label", has_text="BTC-USD").click()
        await expect(page.locator("#candles")).to_have_attribute("data-candles", "1", timeout=LONG_MS)
        prices = [text for text in await page.evaluate("written") if "." in text]
        assert prices
        assert all(re.fullmatch(r"\d+\.\d", text) for text in prices), prices
        assert complaints == []


async def test_prices_are_drawn_after_a_clock_was_set_back(market: Market) -> None:
    """What was drawn at times that are yet to come makes room."""
    async with opened(market.url) as (page, _):
        await expect(page.locator("#price-now")).to_have_text("189.40 / 189.52", timeout=LONG_MS)
        await page.evaluate(SET_BACK)
        await market.bob.submit("AAPL", "buy", quantity="1", price="189.41")
        await expect(page.locator("#price-now")).to_have_text("189.41 / 189.52", timeout=LONG_MS)
        async with asyncio.timeout(LONG_MS / 1000):
            while (await page.evaluate(COLOURED, "price"))["plot"] == 0:
                pass


async def test_a_card_tells_how_long_commits_take(market: Market) -> None:
    """While orders come; and nothing a second after the last."""
    async with opened(market.url) as (page, complaints):
        commit = page.locator(".card[data-engine='1'] .commit dd")
        await market.alice.submit("AAPL", "sell", quantity="1", price="189.60")
        await expect(commit).to_have_text(re.compile(r"^[\d.,]+ / [\d.,]+ ms$"), timeout=LONG_MS)
        await expect(commit).to_have_text("\N{EN DASH}", timeout=LONG_MS)
        assert complaints == []


async def test_buttons_only_with_a_token(market: Market) -> None:
    """Who opens the plain address looks on; the token is gone from the address bar of who may strike."""
    async with opened(market.cluster.dashboard_url) as (page, _):
        await expect(page.locator(".card")).to_have_count(2, timeout=LONG_MS)
        await expect(page.get_by_role("button", name="kill engine 1")).to_have_count(0)
        await expect(page.locator("#sign-in")).to_be_visible()
        await expect(page.locator("#as-demo")).to_be_hidden()
    async with opened(market.url) as (page, _):
        await expect(page.get_by_role("button", name="kill engine 1")).to_have_count(1, timeout=LONG_MS)
        assert "#" not in page.url
