"""Who a client is to the venue: registering, tokens, finding the engine, deadlines, opening and closing."""

import asyncio
import time
from typing import Any

import grpc
import pytest
from matchbus.v1 import matchbus_pb2 as pb

from client import (
    AuthenticationFailed,
    Client,
    ClientClosed,
    DataLost,
    RequestInvalid,
    Unavailable,
    Venue,
    retry,
)
from tests.client.fake_venue import FakeEngine, FakeVenue
from tests.waiting import until

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def test_wrong_engine_leads_home(venue: FakeVenue) -> None:
    """A client whose home moved learns the new address at the exchange, and its order arrives there."""
    async with venue.client() as client:
        venue.home = venue.engines[1]
        assert (await client.submit("AAPL", "buy", "1", "2")).order_id >> 48 == 2
        assert client.engine == 2
    assert venue.engines[0].commands == []


async def test_lasting_unavailability_asks_for_the_address_again(venue: FakeVenue) -> None:
    """An engine that stays away sends the client back to the exchange, which names the new home."""
    async with venue.client() as client:
        await venue.engines[0].server.stop(None)
        venue.home = venue.engines[1]
        assert (await client.submit("AAPL", "buy", "1", "2")).order_id >> 48 == 2


async def test_client_follows_its_engine_to_another_process(venue: FakeVenue) -> None:
    """Where a standby took over, unanswered orders are sent again under their ids, with no registration."""
    old, successor = venue.engines[0], FakeEngine(venue, 1)
    old.silent = True
    async with venue.client() as client:
        waiting = asyncio.create_task(client.submit("AAPL", "buy", "1", "2", client_order_id="mine"))
        await until(lambda: old.commands)
        successor.orders, successor.symbols = old.orders, old.symbols
        await venue.start(successor)
        await old.server.stop(None)
        await until(lambda: venue.searches > 1)
        assert not waiting.done()
        venue.engines[0] = venue.home = successor
        result = await waiting
    assert (result.duplicate, len(successor.commands)) == (True, 1)
    assert venue.registrations == 1


async def test_client_finds_the_standby_without_the_exchange(venue: FakeVenue) -> None:
    """Where the exchange died with the engine, the client tries each standby that it was told of before."""
    standby = FakeEngine(venue, 1)
    venue.engines.append(standby)
    await venue.start(standby)
    venue.standby_addresses.append(standby.address)
    async with venue.client() as client:
        await venue.stop_exchange()
        await venue.engines[0].server.stop(None)
        venue.home = standby
        standby.break_before.extend([UNAVAILABLE] * 2)  # it does not reign yet
        assert (await client.submit("AAPL", "buy", "1", "2")).status == "new"
    assert len(standby.commands) == 1


async def test_an_engine_that_comes_back_is_found_without_the_exchange(venue: FakeVenue) -> None:
    """A client that has gone on to a standby meanwhile tries the process of before again."""
    async with venue.client(deadline_s=5) as client:
        await venue.stop_exchange()
        await venue.engines[0].server.stop(None)
        order = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await until(lambda: client._session.is_guessing)
        await venue.start(venue.engines[0])
        assert (await order).status == "new"


async def test_processes_are_tried_in_turn_with_pauses(venue: FakeVenue) -> None:
    """Where neither the exchange nor any process of the engine is there, the attempts do not rush."""
    async with venue.client(deadline_s=1) as client:
        await venue.stop_exchange()
        await venue.engines[0].server.stop(None)
        with pytest.raises(Unavailable):
            await client.open_orders()
        assert 1 < client._session.generation < 30


async def test_an_engine_that_sends_us_to_itself_is_asked_with_pauses(venue: FakeVenue) -> None:
    """Each time the client registers again, which costs the exchange a slow hash."""
    venue.engines[0].unary_failures.extend([grpc.StatusCode.FAILED_PRECONDITION] * 10_000)
    async with venue.client(deadline_s=1) as client:
        with pytest.raises(Unavailable, match="FAILED_PRECONDITION"):
            await client.open_orders()
    assert 1 < venue.registrations < 15


async def test_an_engine_of_which_nobody_knows_is_asked_with_pauses(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise: each registration tells the address that the client has, and that is no news."""

    async def find_nothing() -> str:
        return ""

    venue.engines[0].unary_failures.extend([UNAVAILABLE] * 10_000)
    async with venue.client(deadline_s=1) as client:
        monkeypatch.setattr(client._session, "_search", find_nothing)
        with pytest.raises(Unavailable, match="UNAVAILABLE"):
            await client.open_orders()
    assert 1 < venue.registrations < 15


async def test_an_exchange_that_is_away_moves_no_engine(venue: FakeVenue) -> None:
    """A question to the exchange that nobody answers says nothing about the engine."""
    async with venue.client(deadline_s=0.5) as client:
        await venue.stop_exchange()
        with pytest.raises(Unavailable):
            await client.positions()
        assert not client._session.is_guessing


@pytest.mark.parametrize("hangs", [False, True])
async def test_one_search_is_for_all_who_wait(venue: FakeVenue, hangs: bool) -> None:
    """Many calls whose engine is away ask the exchange once, whether it answers or not."""
    venue.standby_addresses.clear()
    async with venue.client() as client:
        searches = venue.searches
        venue.hold_searches = asyncio.Event() if hangs else None
        mine = client._session
        assert all(await asyncio.gather(*(mine.find_home(mine.generation) for _ in range(10))))
    assert venue.searches == searches + 1


async def test_what_a_registration_told_is_not_left_for_a_guess(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may end while the exchange is asked in vain where the engine is."""
    async with venue.client() as client:
        mine = client._session

        search = mine._search

        async def overtaken() -> str:
            monkeypatch.setattr(mine, "_search", search)
            await mine.register_again(mine.generation)
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "away", "")

        monkeypatch.setattr(mine, "_search", overtaken)
        told = mine.home.address
        assert await mine.find_home(mine.generation)
        assert mine.home.address == told


async def test_what_the_exchange_says_is_no_guess(venue: FakeVenue) -> None:
    """Neither an address that it was asked for nor that of a registration."""
    async with venue.client() as client:
        session = client._session
        for ask in (session.find_home, session.register_again):
            session.is_guessing = True
            await ask(session.generation)
            assert not session.is_guessing


async def test_another_engine_is_not_taken_for_ours(venue: FakeVenue) -> None:
    """The exchange lists all engines of the market: neither a search nor a guess leads to one of those."""
    other = venue.engines[1]
    venue.listed_before.append(
        pb.Engine(engine=other.number, address=other.address, role=pb.ENGINE_ROLE_PRIMARY)
    )
    venue.standby_addresses.clear()
    async with venue.client() as client:
        session = client._session
        for _ in range(2):
            assert await session.find_home(session.generation)
            assert session.home.address == venue.engines[0].address
            await venue.stop_exchange()
        assert session.generation == 1


async def test_an_engine_is_found_while_a_token_is_renewed(venue: FakeVenue) -> None:
    """A registration that takes long holds up nobody whose token is good."""
    old, successor = venue.engines[0], FakeEngine(venue, 1)
    async with venue.client(deadline_s=5) as client:
        venue.hold_registrations = asyncio.Event()
        old.unary_failures.append(grpc.StatusCode.UNAUTHENTICATED)
        book = asyncio.create_task(client.book("AAPL"))
        await until(lambda: venue.registrations > 1)
        await venue.start(successor)
        await old.server.stop(None)
        venue.engines[0] = venue.home = successor
        assert (await client.submit("AAPL", "buy", "1", "2")).status == "new"
        assert not book.done()
        venue.hold_registrations.set()
        assert (await book).symbol == "AAPL"


async def test_expired_token_is_renewed_once(venue: FakeVenue) -> None:
    """A token that the engine no longer knows is replaced by registering again."""
    async with venue.client() as client:
        venue.tokens.clear()
        assert (await client.submit("AAPL", "buy", "1", "2")).status == "new"
    assert venue.registrations == 2


async def test_one_registration_is_for_all_whose_token_is_refused(venue: FakeVenue) -> None:
    """Many calls that are refused at once register once."""
    async with venue.client() as client:
        venue.tokens.clear()
        await asyncio.gather(*(client.book("AAPL") for _ in range(10)))
    assert venue.registrations == 2


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, AuthenticationFailed),
        (grpc.StatusCode.PERMISSION_DENIED, AuthenticationFailed),
        (grpc.StatusCode.DATA_LOSS, DataLost),
    ],
)
async def test_a_client_that_is_no_longer_known_gives_up(
    venue: FakeVenue, code: grpc.StatusCode, error: type[Exception]
) -> None:
    """Its token has ended, and the exchange does not give it another: to ask again would not help."""
    async with venue.client() as client:
        venue.tokens.clear()
        venue.failures.append(code)
        with pytest.raises(error, match="scripted"):
            await client.open_orders()


async def test_token_that_stays_unknown_fails(venue: FakeVenue) -> None:
    """When a new token does not help, the orders fail as unauthenticated instead of trying for ever."""
    async with venue.client() as client:
        venue.tokens.clear()
        venue.accepts = False
        with pytest.raises(AuthenticationFailed):
            await client.submit("AAPL", "buy", "1", "2")
        venue.accepts = True
        venue.tokens.clear()
        assert (await client.submit("AAPL", "buy", "1", "2")).status == "new"


async def test_a_token_is_renewed_again_after_an_order_that_was_abandoned(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier order had to renew, whose answer nobody saw, does not count against the next one."""
    monkeypatch.setattr(retry, "TOKEN_GRACE_S", 0.0)
    engine = venue.engines[0]
    engine.silent = True
    async with venue.client() as client:
        venue.tokens.clear()
        abandoned = asyncio.create_task(client.submit("AAPL", "buy", "1", "2"))
        await until(lambda: engine.commands)
        abandoned.cancel()
        entry = client._entry
        assert entry is not None
        await engine.server.stop(None)
        await until(lambda: entry._reader is None)
        await venue.start(engine)
        venue.tokens.clear()
        engine.silent = False
        assert (await client.submit("AAPL", "buy", "1", "2")).status == "new"
    assert venue.registrations == 3


async def test_a_token_that_cannot_be_renewed_yet_is_tried_until_the_deadline(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the exchange is away an ended token is no reason to give up, for orders and questions alike."""
    monkeypatch.setattr(retry, "TOKEN_GRACE_S", 0.0)
    async with venue.client() as client:
        venue.tokens.clear()
        venue.failures.extend([UNAVAILABLE] * 6)
        order, book = await asyncio.gather(client.submit("AAPL", "buy", "1", "2"), client.book("AAPL"))
        assert (order.status, book.symbol) == ("new", "AAPL")
    assert venue.registrations == 2
    assert not venue.failures
    async with venue.client(deadline_s=0.5) as client:
        venue.tokens.clear()
        await venue.stop_exchange()
        with pytest.raises(Unavailable, match="last failure: UNAUTHENTICATED"):
            await client.submit("AAPL", "buy", "1", "2")
        with pytest.raises(Unavailable, match="last failure: UNAUTHENTICATED"):
            await client.book("AAPL")


async def test_failures_that_were_overcome_do_not_add_up(venue: FakeVenue) -> None:
    """INTERNAL twice in a row is a reason to register again; with an answer between them it is none."""
    venue.engines[0].break_after.extend([grpc.StatusCode.INTERNAL, None] * 2)
    async with venue.client() as client:
        for _ in range(2):
            await client.submit("AAPL", "buy", "1", "2")
    assert venue.registrations == 1


@pytest.mark.parametrize("code", [UNAVAILABLE, grpc.StatusCode.INTERNAL])
@pytest.mark.parametrize("failures", [1, 2])
async def test_a_client_registers_again_after_a_second_failure(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch, code: grpc.StatusCode, failures: int
) -> None:
    """Where the exchange knows no home, or gRPC may hide a refusal; once alone it costs no slow hash."""

    async def find_nothing() -> str:
        return ""

    async with venue.client() as client:
        monkeypatch.setattr(client._session, "_search", find_nothing)
        venue.engines[0].unary_failures.extend([code] * failures)
        assert await client.open_orders() == []
    assert venue.registrations == failures


async def test_wrong_password_fails_at_once(venue: FakeVenue) -> None:
    """Registration with a wrong password raises, and leaves nothing open."""
    client = venue.client(password="other")
    with pytest.raises(AuthenticationFailed, match="wrong password"):
        await client.open()
    assert client._session.closed


async def test_a_home_that_cannot_be_given_fails_at_once(venue: FakeVenue) -> None:
    """An engine was asked for that is none of the exchange's."""
    venue.failures.append(grpc.StatusCode.FAILED_PRECONDITION)
    with pytest.raises(RequestInvalid, match="scripted"):
        await venue.client().open()


async def test_a_registration_needs_no_search(venue: FakeVenue) -> None:
    """Where an exchange lets a client in and then hangs, the client has all that it needs."""
    venue.hold_searches = asyncio.Event()
    async with venue.client(deadline_s=0.5) as client:
        assert (await client.submit("AAPL", "buy", "1", "2")).status == "new"


async def test_registration_waits_for_the_exchange(venue: FakeVenue) -> None:
    """An exchange that is not there yet is tried again."""
    venue.failures.extend([UNAVAILABLE] * 3)
    async with venue.client() as client:
        assert client.engine == 1


async def test_a_registration_waits_its_turn_until_the_deadline(venue: FakeVenue) -> None:
    """An exchange that has much to do is asked once: asked again, it would begin anew."""
    venue.hold_registrations = asyncio.Event()
    began_s = time.monotonic()
    with pytest.raises(Unavailable, match="last failure: DEADLINE_EXCEEDED"):
        await venue.client(deadline_s=6).open()
    assert venue.registrations == 1
    assert time.monotonic() - began_s < 7


async def test_a_token_that_is_renewed_late_is_waited_for_until_the_deadline(venue: FakeVenue) -> None:
    """Nor is an exchange that hangs waited for longer, when a token has ended."""
    async with venue.client(deadline_s=1.2) as client:
        venue.tokens.clear()
        venue.hold_registrations = asyncio.Event()
        began_s = time.monotonic()
        with pytest.raises(Unavailable, match="last failure: UNAUTHENTICATED"):
            await client.book("AAPL")
    assert venue.registrations == 2
    assert time.monotonic() - began_s < 3


async def test_a_deadline_does_not_hide_why_it_was_reached(venue: FakeVenue) -> None:
    """The last attempt is cut short by the deadline: what those before it were answered is told."""
    venue.failures.append(UNAVAILABLE)
    venue.hold_registrations = asyncio.Event()
    with pytest.raises(Unavailable, match="last failure: UNAVAILABLE: scripted"):
        await venue.client(deadline_s=0.5).open()
    assert venue.registrations == 1


async def test_how_long_an_attempt_took_counts_from_the_one_before_it(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or after some seconds of failures the deadline would always hide why."""
    monkeypatch.setattr(retry, "TELLING_S", 0.8)
    venue.failures.extend([UNAVAILABLE] * 4)  # whose pauses are at least 0.375 s
    venue.hold_registrations = asyncio.Event()
    with pytest.raises(Unavailable, match="last failure: UNAVAILABLE: scripted"):
        await venue.client(deadline_s=1).open()


async def test_an_exchange_that_hangs_is_not_told_as_one_that_is_away(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that had no answer for long says more than the one before it."""
    monkeypatch.setattr(retry, "TELLING_S", 0.1)
    venue.failures.append(UNAVAILABLE)
    venue.hold_registrations = asyncio.Event()
    with pytest.raises(Unavailable, match="last failure: DEADLINE_EXCEEDED"):
        await venue.client(deadline_s=1).open()


async def test_a_client_is_opened_once(venue: FakeVenue) -> None:
    """Opened again it is the same; closed, it is not opened any more, and asks nothing."""
    async with await venue.client().open() as client:
        assert (await client.submit("AAPL", "buy", "1", "2")).status == "new"
        assert len(_order_entries()) == 1
    for call in (client.open, client.venue.engines, client.positions, client.cancel_all):
        with pytest.raises(ClientClosed):
            await call()
    assert not _order_entries()


async def test_a_client_is_opened_once_by_many_tasks(venue: FakeVenue) -> None:
    """Tasks that open it at once share one registration and one stream, which ends with the client."""
    client = venue.client()
    first, second = await asyncio.gather(client.open(), client.open())
    assert first is second is client
    assert (venue.registrations, len(_order_entries())) == (1, 1)
    await client.close()
    assert not _order_entries()


async def test_clients_of_one_process_share_no_connection(venue: FakeVenue) -> None:
    """A venue takes only so many calls at once on each: many clients would take them from each other."""
    async with venue.client() as one, venue.client() as other:
        for client in (one, other):
            await client.submit("AAPL", "buy", "1", "2")
            await client.open_orders()
    assert len(venue.engines[0].peers) == 2


async def test_closing_ends_a_registration(venue: FakeVenue) -> None:
    """A task that opens a client learns that another closed it."""
    venue.hold_registrations = asyncio.Event()
    client = venue.client()
    opening = asyncio.create_task(client.open())
    await until(lambda: venue.registrations)
    await client.close()
    with pytest.raises(ClientClosed):
        await opening


async def test_a_registration_that_ends_with_the_client_opens_nothing(venue: FakeVenue) -> None:
    """The last answer to `open` may come when the client is closed already."""
    venue.hold_searches = asyncio.Event()
    client = venue.client()
    opening = asyncio.create_task(client.open())
    await until(lambda: venue.searches)
    client._session.closed = True
    venue.hold_searches.set()
    with pytest.raises(ClientClosed):
        await opening
    assert not _order_entries()


def _order_entries() -> list[asyncio.Task[Any]]:
    """The tasks that keep an OrderEntry stream."""
    return [task for task in asyncio.all_tasks() if "OrderEntry.run" in repr(task.get_coro())]


@pytest.mark.parametrize("deadline_s", [float("inf"), 1e10])
async def test_a_deadline_that_never_comes(venue: FakeVenue, deadline_s: float) -> None:
    """Calls are answered all the same, though gRPC does not take such a number."""
    async with venue.client(deadline_s=deadline_s) as client, asyncio.timeout(5):
        assert await client.open_orders() == []
        assert (await client.submit("AAPL", "buy", "1", "2")).status == "new"


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan")])
def test_a_deadline_that_is_none_is_refused(deadline_s: float) -> None:
    """The error names its value."""
    with pytest.raises(ValueError, match=rf"deadline_s {deadline_s} must be more than 0"):
        Client.connect("127.0.0.1:1", client_id="a", password="b", secret="c", deadline_s=deadline_s)


@pytest.mark.parametrize(
    "address",
    [
        *("", "localhost", ":50050", "localhost:", "localhost:0", "localhost:65536", "localhost:x", "a b:1"),
        *("::1:50050", "[::1]", "http://localhost:50050", "localhost:\uff15\uff10", "localhost:50050/"),
        *("[localhost:1]:2", "[127.0.0.1:50050]:50050"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """At once, where a client is made and where a venue is."""
    with pytest.raises(ValueError, match="is no address: write it like 127"):
        Client.connect(address, client_id="a", password="b", secret="c")
    with pytest.raises(ValueError, match="is no address: write it like 127"):
        Venue.connect(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "[::1]:65535", "[fe80::1%eth0]:50050", "venue-1.example:50050"]
)
def test_an_address_may_be_a_number_or_a_name(address: str) -> None:
    """IPv4, IPv6 in brackets, and names are taken."""
    Client.connect(address, client_id="a", password="b", secret="c")
    Venue.connect(address)


async def test_a_name_that_somebody_else_has_says_what_to_do(venue: FakeVenue) -> None:
    """The error says what to do, as the venue's own text does not."""
    venue.failures.append(grpc.StatusCode.PERMISSION_DENIED)
    with pytest.raises(AuthenticationFailed, match="scripted: use that secret, or another client id"):
        await venue.client().open()


async def test_a_registration_that_is_lost_is_not_tried_again(venue: FakeVenue) -> None:
    """The exchange does not know us any more, and says so."""
    async with venue.client() as client:
        venue.tokens.clear()
        venue.failures.append(grpc.StatusCode.DATA_LOSS)
        with pytest.raises(DataLost):
            await client.open_orders()
    venue.failures.append(grpc.StatusCode.DATA_LOSS)
    with pytest.raises(DataLost):
        await venue.client().open()
    assert venue.registrations == 1
