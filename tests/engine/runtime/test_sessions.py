"""Whose token a call carries."""

import asyncio
from typing import NoReturn, cast

import grpc
import pytest
from matchbus.edge import Context, token_key

from bus import tokens
from bus.messages import EngineEntry, SessionEntry
from bus.registry import Bucket, BucketUnavailable
from engine.runtime.sessions import MAX_LOOKUPS, Sessions
from tests.waiting import until

HERE, ELSEWHERE = 1, 2
ENDS_NS = 1_000


class Ended(Exception):
    """The call was ended with a status."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(f"{code.name}: {text}")


class Call:
    """A call with this metadata."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """As gRPC has it."""
        return self._metadata

    async def abort(self, code: grpc.StatusCode, text: str) -> NoReturn:
        """As gRPC has it."""
        raise Ended(code, text)


class Table:
    """Takes the place of the bucket of sessions."""

    def __init__(self) -> None:
        self.sessions: dict[str, SessionEntry] = {}
        self.gets: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.away = False
        self.forgotten: list[str] = []

    async def get(self, key: str) -> SessionEntry | None:
        """As Bucket says."""
        self.gets.append(key)
        await self.answers.wait()
        if self.away:
            raise BucketUnavailable("no answer")
        return self.sessions.get(key)

    def forget(self, key: str) -> None:
        """As Bucket says."""
        self.forgotten.append(key)


class Door:
    """The sessions of engine 1 and what they know."""

    def __init__(self) -> None:
        self.table = Table()
        self.engines: dict[int, EngineEntry] = {}
        self.now_ns = 0
        self.sessions = Sessions(
            HERE, cast("Bucket[SessionEntry]", self.table), self.engines, lambda: self.now_ns
        )

    def register(self, token: str, client: str, engine: int = HERE) -> None:
        """The exchange stored a session."""
        self.table.sessions[token_key(token)] = SessionEntry(client, engine, ENDS_NS)

    async def enter(self, token: str) -> str:
        """The client that a call with this token is let in as."""
        call = Call(("user-agent", "x"), ("authorization", f"Bearer {token}"))
        return await self.sessions.client_of(cast("Context", call))


@pytest.fixture
async def door() -> Door:
    """Alice is known; Bob is at home elsewhere."""
    made = Door()
    made.register("alices", "alice")
    made.register("bobs", "bob", ELSEWHERE)
    for key, session in made.table.sessions.items():
        made.sessions.note(key, session)
    return made


async def test_a_known_token_needs_no_lookup(door: Door) -> None:
    """The watch told of it."""
    assert await door.enter("alices") == "alice"
    assert door.table.gets == []


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", "alices"),),
        (("authorization", "Bearer "),),
        (("authorization", "Basic alices"),),
        (("token", "Bearer alices"),),
    ],
    ids=str,
)
async def test_without_a_token_nobody_enters(door: Door, metadata: tuple[tuple[str, str], ...]) -> None:
    """And nothing is looked up for it."""
    with pytest.raises(Ended, match=r"UNAUTHENTICATED: .*authorization: Bearer <token>"):
        await door.sessions.client_of(cast("Context", Call(*metadata)))
    assert door.table.gets == []


async def test_an_unknown_token_is_refused(door: Door) -> None:
    """Not even the stored form of a token is one."""
    for token in ("mallorys", token_key("alices"), "alices2"):
        with pytest.raises(Ended, match="UNAUTHENTICATED: unknown or ended token; register again"):
            await door.enter(token)


async def test_a_guest_is_sent_home(door: Door) -> None:
    """With the address of its engine, or where to ask for it."""
    with pytest.raises(Ended, match=r"FAILED_PRECONDITION: client bob is at home on engine 2.*ListEngines"):
        await door.enter("bobs")
    door.engines[ELSEWHERE] = EngineEntry(ELSEWHERE, 1, "127.0.0.1:50052", 1)
    with pytest.raises(Ended, match=r"FAILED_PRECONDITION: .*address 127\.0\.0\.1:50052"):
        await door.enter("bobs")


async def test_a_token_may_come_before_the_news_of_it(door: Door) -> None:
    """It is looked up, once; a guest's too."""
    door.register("carols", "carol")
    assert await door.enter("carols") == "carol"
    assert await door.enter("carols") == "carol"
    assert door.table.gets == [token_key("carols")]
    door.register("daves", "dave", ELSEWHERE)
    with pytest.raises(Ended, match="FAILED_PRECONDITION"):
        await door.enter("daves")


async def test_many_calls_with_one_token_are_one_lookup(door: Door) -> None:
    """However many a client has out before the news of its token; one that hangs up ends no other."""
    door.register("carols", "carol")
    door.table.answers.clear()
    calls = [asyncio.create_task(door.enter("carols")) for _ in range(3 * MAX_LOOKUPS)]
    await until(lambda: bool(door.table.gets))
    calls[0].cancel()
    door.table.answers.set()
    endings = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(endings[0], asyncio.CancelledError)
    assert endings[1:] == ["carol"] * (len(calls) - 1)
    assert door.table.gets == [token_key("carols")]


async def test_news_of_a_session_count_at_once(door: Door) -> None:
    """A session that is removed opens nothing; one that moved leads to its new home."""
    door.sessions.note(token_key("bobs"), SessionEntry("bob", HERE, ENDS_NS))
    assert await door.enter("bobs") == "bob"
    del door.table.sessions[token_key("alices")]
    door.sessions.note(token_key("alices"), None)
    door.sessions.note(token_key("alices"), None)
    with pytest.raises(Ended, match="UNAUTHENTICATED"):
        await door.enter("alices")


async def test_a_token_ends(door: Door) -> None:
    """When its time is over it opens nothing, known before or looked up only now; a new one does."""
    door.now_ns = ENDS_NS - 1
    assert await door.enter("alices") == "alice"
    door.now_ns = ENDS_NS
    door.register("carols", "carol")
    for token in ("alices", "carols"):
        with pytest.raises(Ended, match="UNAUTHENTICATED: the token ended at 1970-01-01 00:00:00 UTC"):
            await door.enter(token)
    door.sessions.note(token_key("new"), SessionEntry("alice", HERE, 2 * ENDS_NS))
    assert await door.enter("new") == "alice"
    assert door.table.forgotten == [token_key("alices")]


async def test_a_token_that_ended_before_it_was_given_out_tells_of_both_clocks(door: Door) -> None:
    """The exchange's clock is a day behind ours or more: to register again does not help."""
    door.now_ns = 90_000 * 10**9
    door.sessions.note(token_key("new"), SessionEntry("alice", HERE, 86_400 * 10**9))
    told = "ended at 1970-01-02 00:00:00 UTC, and it is 1970-01-02 01:00:00 here; .*set the clocks"
    with pytest.raises(Ended, match=told):
        await door.enter("new")


async def test_a_clients_tokens_are_bounded(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer ones end the oldest, which the exchange then takes away."""
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    for token in ("second", "third"):
        door.sessions.note(token_key(token), SessionEntry("alice", HERE, ENDS_NS))
    del door.table.sessions[token_key("alices")]
    with pytest.raises(Ended, match="UNAUTHENTICATED"):
        await door.enter("alices")
    assert await door.enter("second") == await door.enter("third") == "alice"
    assert len(door.sessions) == 3


async def test_a_token_that_ended_as_one_too_many_ends_no_other(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exchange may not have taken it away yet: looked up, it is old all the same."""
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    for number, token in enumerate(("second", "third"), 1):
        door.sessions.note(token_key(token), SessionEntry("alice", HERE, ENDS_NS + number))
    assert token_key("alices") in door.table.sessions
    with pytest.raises(Ended, match="UNAUTHENTICATED"):
        await door.enter("alices")
    door.table.sessions.clear()
    assert await door.enter("second") == await door.enter("third") == "alice"


async def test_a_bucket_that_is_away_is_no_refusal(door: Door) -> None:
    """The client may try again; those who are known still enter."""
    door.table.away = True
    with pytest.raises(Ended, match=r"UNAVAILABLE: .*try again"):
        await door.enter("carols")
    assert await door.enter("alices") == "alice"


async def test_junk_tokens_cannot_swamp_the_bucket(door: Door) -> None:
    """A bounded number is looked up at once; there is room again whatever became of those."""
    door.table.answers.clear()
    calls = [asyncio.create_task(door.enter(f"junk{number}")) for number in range(MAX_LOOKUPS)]
    await until(lambda: len(door.table.gets) == MAX_LOOKUPS)
    with pytest.raises(Ended, match="RESOURCE_EXHAUSTED"):
        await door.enter("one more")
    assert len(door.table.gets) == MAX_LOOKUPS
    assert await door.enter("alices") == "alice"
    calls[0].cancel()
    door.table.answers.set()
    endings = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(ending).split(":")[0] for ending in endings[1:]] == ["UNAUTHENTICATED"] * (MAX_LOOKUPS - 1)
    door.register("carols", "carol")
    assert await door.enter("carols") == "carol"
