"""The order ticket's endpoint: what it passes on to the client, for whom, and how many."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import msgspec
import pytest
from matchbus.v1 import matchbus_pb2 as pb
from starlette.requests import Request

from client import Client, DataLost, Instrument, OrderState, results
from exchange.runtime import dashboard, ticket, web
from exchange.runtime.ticket import GIVEN_UP_S, IDLE_S, MAX_FILLS, MAX_ORDERS, TOKEN_HEADER, Tickets
from tests.client.fake_venue import PASSWORD, FakeVenue
from tests.waiting import running, until

ALICE = {"client": "alice", "password": PASSWORD, "secret": "mine"}
QUOTE = {"symbol": "AAPL", "side": "buy", "quantity": "0.3", "price": "101.25"}


class Page:
    """Asks as the page does, with the token of its last sign-in.

    `now_s` is the endpoint's clock, `fill_count` what it hears of how many fills a client has.
    """

    def __init__(self, venue: FakeVenue) -> None:
        self.now_s = 0.0
        self.fill_count = 0
        self.tickets = Tickets(venue.address, lambda _: self.fill_count, lambda: self.now_s)
        self.address = ""
        self.token = ""

    async def ask(self, act: str, method: str = "POST", body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and content of the answer; some headers replaced, and an empty one left out.

        A body of bytes is sent as it is.
        """
        sent = {"Origin": f"http://{self.address}", TOKEN_HEADER: self.token, **headers}
        content = body if isinstance(body, bytes) else msgspec.json.encode({} if body is None else body)
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method,
                f"http://{self.address}/ticket/{act}",
                data=content,
                headers={name: value for name, value in sent.items() if value},
            ) as answer,
        ):
            is_json = answer.content_type == "application/json"
            return answer.status, await answer.json() if is_json else await answer.text()

    async def sign_in(self, **replaced: str) -> tuple[int, Any]:
        """Sign in, and keep the token."""
        status, content = await self.ask("sign-in", body={**ALICE, **replaced})
        self.token = content.get("token", "")
        return status, content

    async def account(self, since: int = 0) -> Any:
        """How we stand."""
        status, content = await self.ask("account", body={"since": since})
        assert status == 200, content
        return content

    async def fills(self, count: int) -> list[Any]:
        """All fills, once there are so many."""
        async with asyncio.timeout(10):
            while len(fills := (await self.account())["fills"]) < count:
                pass
        return list(fills)


@contextlib.asynccontextmanager
async def served(page: Page) -> AsyncIterator[Page]:
    """The page's endpoint, for as long as the body runs."""
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    app = dashboard.make_app((), "127.0.0.1", page.tickets.routes())
    async with page.tickets.kept(), running(web.serve(app, "127.0.0.1:0", listening.set_result)):
        page.address = await listening
        yield page
    assert not page.tickets._sessions, "who was signed in is signed out in the end"


@pytest.fixture
async def page(venue: FakeVenue) -> AsyncIterator[Page]:
    """A page nobody has signed in on yet."""
    async with served(Page(venue)) as page:
        yield page


@pytest.fixture
async def venue() -> AsyncIterator[FakeVenue]:
    """A venue without matching: what costs 1.00 fills, the rest stays."""
    async with FakeVenue() as venue:
        yield venue


async def test_an_order_rests_and_is_cancelled(page: Page) -> None:
    """Its answer is the engine's; it is among the open orders until it is cancelled."""
    assert (await page.sign_in())[1] == {"token": page.token, "client": "alice", "engine": 1}
    status, reply = await page.ask("submit", body=QUOTE)
    assert (status, reply["status"], reply["leaves_quantity"]) == (200, "new", "0.3")
    (order,) = (await page.account())["orders"]
    assert (order["order_id"], order["symbol"]) == (reply["order_id"], "AAPL")
    status, reply = await page.ask("cancel", body={"order_id": order["order_id"]})
    assert (status, reply["status"]) == (200, "cancelled")
    assert (await page.account())["orders"] == []


async def test_fills_and_positions_are_told(page: Page) -> None:
    """Each fill once, for who says up to where it knows them, with the position as the exchange sums it."""
    await page.sign_in()
    for _ in range(2):
        await page.ask("submit", body={**QUOTE, "price": "1.00"})
    fills = await page.fills(2)
    assert [(fill["sequence"], fill["price"], fill["quantity"]) for fill in fills] == [
        (1, "1.00", "0.3"),
        (2, "1.00", "0.3"),
    ]
    account = await page.account(since=1)
    assert [fill["sequence"] for fill in account["fills"]] == [2]
    assert account["positions"] == [
        {"symbol": "AAPL", "quantity": "-0.5", "average_price": "101.255", "realized_pnl": "0.200"}
    ]


async def test_what_is_told_is_bounded(page: Page, venue: FakeVenue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many orders and fills the newest are told, and how many orders are not.

    Nothing is made of those that are not told: the event loop is the exchange's.
    """
    made: list[str] = []
    order_state = results.order_state

    def counted(message: pb.OrderState, instrument: Instrument) -> OrderState:
        made.append(message.client_order_id)
        return order_state(message, instrument)

    monkeypatch.setattr(results, "order_state", counted)
    await page.sign_in()
    venue.engines[0].add_fills(MAX_FILLS + 5)
    for number in range(MAX_ORDERS + 3):
        await page.ask("submit", body={**QUOTE, "client_order_id": f"o{number}"})
    fills = await page.fills(MAX_FILLS)
    assert fills[-1]["sequence"] == MAX_FILLS + 5
    made.clear()
    account = await page.account()
    assert [order["order_id"] for order in account["orders"]] == [
        str(1 << 48 | number) for number in range(4, MAX_ORDERS + 4)
    ]
    assert account["orders_left_out"] == 3
    assert made == [f"o{number}" for number in range(3, MAX_ORDERS + 3)]


async def test_only_the_newest_fills_are_read(page: Page, venue: FakeVenue) -> None:
    """Of a long history a sign-in asks for as much as is told."""
    page.fill_count = MAX_FILLS + 5
    venue.engines[0].add_fills(MAX_FILLS + 7)
    await page.sign_in()
    async with asyncio.timeout(10):
        while not (fills := (await page.account())["fills"]) or fills[-1]["sequence"] < MAX_FILLS + 7:
            pass
    assert venue.engines[0].fills_asked == [5]


async def test_orders_and_fills_are_told_where_positions_are_unknown(
    page: Page, venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why there are no positions is told beside them."""

    async def positions(_: Client) -> None:
        raise DataLost("positions of alice are unknown")

    monkeypatch.setattr(Client, "positions", positions)
    await page.sign_in()
    venue.engines[0].add_fills(1)
    await page.ask("submit", body=QUOTE)
    assert len(await page.fills(1)) == 1
    account = await page.account()
    assert (len(account["orders"]), account["positions"]) == (1, [])
    assert account["trouble"] == "no positions: positions of alice are unknown"


async def test_a_refusal_is_told_as_it_is(page: Page) -> None:
    """The engine's reason and words; it is an answer and no error."""
    await page.sign_in()
    status, reply = await page.ask("submit", body={**QUOTE, "quantity": "0"})
    assert (status, reply["status"]) == (200, "rejected")
    assert (reply["reject_reason"], reply["reject_text"]) == (
        "invalid_quantity",
        "REJECT_REASON_INVALID_QUANTITY",
    )


async def test_the_same_order_twice_is_entered_once(page: Page) -> None:
    """A page that lost the answer sends the same id again, and hears the first answer."""
    await page.sign_in()
    order = {**QUOTE, "client_order_id": "mine-1"}
    _, first = await page.ask("submit", body=order)
    _, again = await page.ask("submit", body=order)
    assert (again["order_id"], again["duplicate"]) == (first["order_id"], True)


async def test_what_is_no_order_is_named(page: Page) -> None:
    """Nothing is sent to the venue, and the answer says what to change."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({"price": "101.255"}, "not on a tick"),
        ({"price": None}, "a limit order needs a price"),
        ({"price": "dear"}, "no number"),
        ({"symbol": "NONE"}, "not among the venue's instruments"),
        ({"time_in_force": "soon"}, "time_in_force"),
        ({"quantity": 0.3}, "Expected `str`, got `float`"),
    ]
    await page.sign_in()
    for change, text in cases:
        status, answer = await page.ask("submit", body={**QUOTE, **change})
        assert status == 400, change
        assert text in answer["error"]


async def test_a_wrong_password_signs_nobody_in(page: Page) -> None:
    """The exchange's own words come back."""
    assert await page.sign_in(password="guessed") == (401, {"error": "wrong password"})


async def test_without_a_sign_in_nothing_is_done(page: Page, venue: FakeVenue) -> None:
    """Neither without a token nor with one that was signed out."""
    assert (await page.ask("submit", body=QUOTE))[0] == 401
    await page.sign_in()
    assert (await page.ask("sign-out"))[0] == 200
    assert (await page.ask("submit", body=QUOTE))[0] == 401
    assert venue.engines[0].orders == {}


async def test_only_the_page_itself_trades(page: Page, venue: FakeVenue) -> None:
    """From elsewhere not even a right token or password does anything."""
    await page.sign_in()
    for origin in ("", "http://evil.example", "null"):
        assert (await page.ask("submit", body=QUOTE, Origin=origin))[0] == 403, origin
        assert (await page.ask("sign-in", body=ALICE, Origin=origin))[0] == 403, origin
        assert (venue.engines[0].orders, venue.registrations) == ({}, 1), origin


async def test_only_post_trades(page: Page) -> None:
    """A link does nothing, and a browser that asks for a page of elsewhere is told no."""
    for method, status in (("GET", 404), ("PUT", 405), ("OPTIONS", 405)):
        assert (await page.ask("account", method))[0] == status, method


async def test_a_body_too_large_is_not_read(page: Page) -> None:
    """No request makes the exchange keep more than an order needs."""
    assert (await page.ask("sign-in", body={**ALICE, "secret": "x" * 10_000}))[0] == 413


async def test_a_body_that_never_ends_is_not_waited_for(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends a part of an order and no more is told so."""
    monkeypatch.setattr(ticket, "BODY_PATIENCE_S", 0.2)

    async def part() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"http://{page.address}/ticket/sign-in",
            data=part(),
            headers={"Origin": f"http://{page.address}"},
            timeout=aiohttp.ClientTimeout(5),
        ) as answer,
    ):
        assert answer.status == 408


async def test_who_hangs_up_is_refused() -> None:
    """A page that goes while its order is read is nothing that the exchange would have to log."""

    async def hang_up() -> dict[str, str]:
        return {"type": "http.disconnect"}

    with pytest.raises(ticket.Refused, match="did not come whole"):
        await ticket._read(Request({"type": "http"}, hang_up), ticket.SignIn)


async def test_a_body_nested_too_deep_is_no_order(page: Page) -> None:
    """It is answered like any other that says nothing."""
    await page.sign_in()
    for act in ("sign-in", "submit", "cancel", "account"):
        status, answer = await page.ask(act, body=b'{"x":' + b"[" * 8_000)
        assert (status, list(answer)) == (400, ["error"]), act


@pytest.mark.parametrize(
    ("act", "body", "doubt"),
    [
        ("submit", {**QUOTE, "client_order_id": "other"}, "entered"),
        ("cancel", {"order_id": str(1 << 48 | 1)}, "cancelled"),
    ],
)
async def test_a_command_without_an_answer_may_have_been_done(
    page: Page, venue: FakeVenue, monkeypatch: pytest.MonkeyPatch, act: str, body: Any, doubt: str
) -> None:
    """The answer tells it, and comes within the deadline."""
    monkeypatch.setattr(ticket, "DEADLINE_S", 1.0)
    await page.sign_in()
    await page.ask("submit", body=QUOTE)
    venue.engines[0].silent = True
    async with asyncio.timeout(20):
        status, answer = await page.ask(act, body=body)
    assert status == 503
    assert answer["error"].startswith(f"The order may have been {doubt}: no answer within 1 s")


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.DATA_LOSS, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED],
)
async def test_an_order_whose_answer_is_lost_for_good_may_have_been_entered(
    page: Page, venue: FakeVenue, code: grpc.StatusCode
) -> None:
    """The page must not take it for refused: it would give the same order another id."""
    await page.sign_in()
    venue.engines[0].break_after.append(code)
    status, answer = await page.ask("submit", body=QUOTE)
    assert status == 503
    assert answer["error"].startswith("The order may have been entered: broken after")


async def test_a_venue_that_is_away_is_said_so(
    page: Page, venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that has no answer leaves nothing in doubt."""
    monkeypatch.setattr(ticket, "DEADLINE_S", 0.2)
    await page.sign_in()
    venue.engines[0].unary_failures.extend([grpc.StatusCode.RESOURCE_EXHAUSTED] * 100)
    status, answer = await page.ask("account")
    assert status == 503
    assert answer["error"].startswith("no answer within 0.2 s")


async def test_fills_go_on_when_the_engine_is_back(
    page: Page, venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it was away, fills go on after the last one that was told."""
    monkeypatch.setattr(ticket, "DEADLINE_S", 0.1)
    monkeypatch.setattr(ticket, "AWAY_PAUSE_S", 0.01)
    await page.sign_in()
    engine = venue.engines[0]
    engine.add_fills(2)
    await page.fills(2)
    await engine.server.stop(None)
    while (await page.ask("account"))[0] == 200:
        pass
    asked = len(engine.fills_asked)
    await venue.start(engine)
    engine.add_fills(1)
    await until(lambda: len(engine.fills_asked) > asked, timeout_s=10)
    async with asyncio.timeout(10):
        while (await page.ask("account"))[0] != 200:
            pass
    assert [fill["sequence"] for fill in await page.fills(3)] == [1, 2, 3]


async def test_a_hole_in_the_fills_is_told(page: Page, venue: FakeVenue) -> None:
    """Nobody should take an incomplete list for a whole one."""
    await page.sign_in()
    engine = venue.engines[0]
    engine.add_fills(1)
    engine.fills[0].sequence = 2
    async with asyncio.timeout(10):
        while not (trouble := (await page.account())["trouble"]):
            pass
    assert trouble == "fill 1 is missing: the venue went on with 2"


@pytest.mark.parametrize(("fills", "well_s"), [(1, 1_000.0), (0, 1.0)])
async def test_fills_that_cannot_be_had_are_told(
    page: Page, venue: FakeVenue, monkeypatch: pytest.MonkeyPatch, fills: int, well_s: float
) -> None:
    """Until there is one again, or the stream of them has been open for a while."""
    monkeypatch.setattr(ticket, "DEADLINE_S", 2.0)
    monkeypatch.setattr(ticket, "AWAY_PAUSE_S", 0.01)
    monkeypatch.setattr(ticket, "WELL_S", well_s)
    engine = venue.engines[0]
    engine.refuses_fills_with = grpc.StatusCode.RESOURCE_EXHAUSTED
    engine.refuses_fills_after_s = 0.0
    await page.sign_in()
    async with asyncio.timeout(20):
        while not (trouble := (await page.account())["trouble"]):
            pass
        assert trouble.startswith("no fills just now: no answer within 2 s")
        engine.refuses_fills_after_s = None
        engine.add_fills(fills)
        while (await page.account())["trouble"]:
            pass


async def test_fills_that_cannot_be_had_stay_told(
    page: Page, venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that has failed is not taken for one that has been open for a while."""
    monkeypatch.setattr(ticket, "DEADLINE_S", 1.0)
    monkeypatch.setattr(ticket, "AWAY_PAUSE_S", 60.0)
    monkeypatch.setattr(ticket, "WELL_S", 1.5)
    venue.engines[0].refuses_fills_with = grpc.StatusCode.RESOURCE_EXHAUSTED
    venue.engines[0].refuses_fills_after_s = 0.0
    await page.sign_in()
    async with asyncio.timeout(20):
        while not (await page.account())["trouble"]:
            pass
    await asyncio.sleep(ticket.WELL_S)
    assert (await page.account())["trouble"]


async def test_seats_are_bounded_and_come_free(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all taken a new one waits until another has been silent for a while, and takes its place."""
    monkeypatch.setattr(ticket, "MAX_SESSIONS", 2)
    await page.sign_in()
    first = page.token
    page.now_s = GIVEN_UP_S
    await page.sign_in()
    second = page.token
    await page.ask("account", **{TOKEN_HEADER: first})
    assert (await page.sign_in())[0] == 503
    page.now_s = 2 * GIVEN_UP_S
    await page.ask("account", **{TOKEN_HEADER: second})
    assert (await page.sign_in())[0] == 200
    assert (await page.ask("account", **{TOKEN_HEADER: first}))[0] == 401
    assert (await page.ask("account", **{TOKEN_HEADER: second}))[0] == 200


async def test_seats_are_bounded_for_those_who_come_at_once(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six who come together as many get in as others have been silent for."""
    monkeypatch.setattr(ticket, "MAX_SESSIONS", 2)
    await page.sign_in()
    await page.sign_in()
    page.now_s = GIVEN_UP_S
    answers = await asyncio.gather(*(page.sign_in() for _ in range(6)))
    assert sorted(status for status, _ in answers) == [200, 200, 503, 503, 503, 503]


async def test_who_is_silent_is_signed_out(venue: FakeVenue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that nobody uses any more ends by itself."""
    monkeypatch.setattr(ticket, "SWEEP_S", 0.001)
    async with served(Page(venue)) as page:
        await page.sign_in()
        async with asyncio.timeout(10):
            while (await page.ask("account"))[0] == 200:
                page.now_s += IDLE_S + 1
