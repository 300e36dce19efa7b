"""The lease of an engine number, on a real server: its time to live is the server's."""

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

import pytest

from bus import provision
from bus.connection import Connection
from bus.lease import DEAD_S, NEWCOMER_S, RENEW_S, TTL_S, Lease, LeaseLost, _Turn
from bus.messages import LeaseEntry, decode_lease, encode
from bus.registry import Bucket
from bus.server import NatsServer
from bus.stream import Ack, ApiFault, Publisher, Stored, last_message
from bus.subjects import LEASES_BUCKET, bucket_stream, bucket_subject, engine_token
from tests.waiting import frozen, running, until

if TYPE_CHECKING:
    from tests.conftest import Connections

SOON_S = 1.0
"""What a claim may take beyond what it has to wait for, on a busy machine."""

AT_ONCE_S = TTL_S / 2
"""A claim that took no longer waited for no lease to run out."""


@pytest.fixture
async def ready(nats_connection: Connection) -> Connection:
    """A connection to a server with the buckets."""
    await provision.provision_shared(nats_connection)
    return nats_connection


@pytest.fixture
async def rivals(ready: Connection, engine: int) -> tuple[Lease, Lease]:
    """Two processes of one engine."""
    return lease_of(ready, engine, "first"), lease_of(ready, engine, "second")


def lease_of(connection: Connection, engine: int, holder: str) -> Lease:
    """One process's hold."""
    return Lease(connection, LeaseEntry(engine, holder, f"127.0.0.1:{len(holder)}", len(holder)))


async def holder_of(lease: Lease) -> LeaseEntry | None:
    """Who holds a lease, as anybody can see it."""
    bucket = Bucket(lease._nc, LEASES_BUCKET, decode_lease)
    return await bucket.get(engine_token(lease.entry.engine))


async def _lapsed() -> None:
    """The holder hears that others may have held the lease."""


async def test_a_free_lease_is_taken_and_says_by_whom(rivals: tuple[Lease, Lease]) -> None:
    """Nobody holds it, then the first does, and the second is told so."""
    first, second = rivals
    assert await holder_of(first) is None
    assert await first.acquire()
    assert await holder_of(second) == first.entry
    assert not await second.acquire()
    assert await first.acquire(), "it is the holder's own"


async def test_of_many_claimants_exactly_one_wins(
    own_server: NatsServer, connections: "Connections", engine: int
) -> None:
    """Several processes claim a free lease at once, each on a connection of its own."""
    opened = [await connections.open(own_server.url) for _ in range(5)]
    await provision.provision_shared(opened[0])
    leases = [lease_of(connection, engine, f"process {n}") for n, connection in enumerate(opened)]
    won = await asyncio.gather(*(lease.acquire() for lease in leases))
    assert sum(won) == 1
    assert await holder_of(leases[0]) == leases[won.index(True)].entry


async def test_what_is_renewed_stays(rivals: tuple[Lease, Lease]) -> None:
    """For three times its life nobody else gets it."""
    first, second = rivals
    assert await first.acquire()
    async with running(first.keep(_lapsed), second.claim()) as tasks:
        await asyncio.wait(tasks, timeout=3 * TTL_S, return_when=asyncio.FIRST_COMPLETED)
        assert not any(task.done() for task in tasks)
        assert await holder_of(second) == first.entry


async def test_what_nobody_renews_is_free_after_its_life(rivals: tuple[Lease, Lease]) -> None:
    """The second gets it about a second after the last renewal, not before."""
    first, second = rivals
    assert await first.acquire()
    await asyncio.sleep(RENEW_S)  # the life counts from the last renewal, not from the first
    began = time.monotonic()
    assert await first.renew()
    async with asyncio.timeout(5):
        await second.claim()
    assert TTL_S - 0.05 <= time.monotonic() - began <= TTL_S + SOON_S
    assert await holder_of(first) == second.entry


async def test_what_the_server_keeps_is_taken_from_who_does_not_renew(
    ready: Connection, rivals: tuple[Lease, Lease]
) -> None:
    """Without a life, as if the server's clock had been ahead when it was stored; a renewed one stays."""
    first, second = rivals
    subject = bucket_subject(LEASES_BUCKET, engine_token(first.entry.engine))
    await ready.jetstream().publish(subject, encode(first.entry))
    claiming = asyncio.create_task(second.claim())
    for _ in range(4):
        await asyncio.wait((claiming,), timeout=DEAD_S / 3)
        assert not claiming.done()
        renewed = time.monotonic()
        await ready.jetstream().publish(subject, encode(first.entry))
    await asyncio.wait_for(claiming, 2 * DEAD_S)
    assert DEAD_S <= time.monotonic() - renewed <= DEAD_S + SOON_S
    assert await holder_of(first) == second.entry


async def test_of_two_who_take_a_dead_lease_one_has_it(
    ready: Connection, rivals: tuple[Lease, Lease]
) -> None:
    """What the faster one wrote is not what the other one saw."""
    first, second = rivals
    subject = bucket_subject(LEASES_BUCKET, engine_token(first.entry.engine))
    await ready.jetstream().publish(subject, encode(LeaseEntry(first.entry.engine, "dead", "127.0.0.1:1", 1)))
    dead = await last_message(ready, bucket_stream(LEASES_BUCKET), subject)
    assert not await first.acquire()
    assert await first.acquire(dead)
    assert not await second.acquire(dead)
    assert await holder_of(second) == first.entry


async def test_a_released_lease_is_free_at_once(rivals: tuple[Lease, Lease]) -> None:
    """Who waits for it has it long before it would have expired."""
    first, second = rivals
    assert await first.acquire()
    claiming = asyncio.create_task(second.claim())
    await asyncio.wait((claiming,), timeout=0.1)
    assert not claiming.done()
    began = time.monotonic()
    await first.release()
    await asyncio.wait_for(claiming, 5)
    assert time.monotonic() - began < AT_ONCE_S
    assert await holder_of(first) == second.entry


async def test_a_renewal_that_was_under_way_does_not_keep_a_released_lease(
    rivals: tuple[Lease, Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored while the lease is let go, between the look and the write."""
    first, second = rivals
    assert await first.acquire()
    newest = first._newest

    async def newest_before_the_renewal() -> Stored | None:
        stored = await newest()
        monkeypatch.undo()
        assert await first.renew()
        return stored

    monkeypatch.setattr(first, "_newest", newest_before_the_renewal)
    await first.release()
    assert await holder_of(second) is None


async def test_the_log_says_why_the_server_refuses_a_lease(
    own_connection: Connection, engine: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody gave the bucket a limit: said once, not with every attempt; and when it waits no longer."""
    await provision.provision_shared(own_connection)
    jetstream = own_connection.jetstream()
    config = (await jetstream.stream_info(bucket_stream(LEASES_BUCKET))).config
    config.max_bytes = 10
    await jetstream.update_stream(config)
    taking = asyncio.create_task(lease_of(own_connection, engine, "first").acquire())
    await until(lambda: f"the lease of E{engine} waits: maximum bytes exceeded" in caplog.text)
    config.max_bytes = -1
    await jetstream.update_stream(config)
    async with asyncio.timeout(10):
        assert await taking
    assert caplog.messages.count(f"the lease of E{engine} waits no longer") == 1
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("claims", [False, True])
async def test_the_log_says_that_the_server_is_silent(
    own_server: NatsServer, own_connection: Connection, caplog: pytest.LogCaptureFixture, claims: bool
) -> None:
    """A damaged bucket may never answer: who waits for it, to renew or to claim the lease, says so."""
    await provision.provision_shared(own_connection)
    lease = lease_of(own_connection, 1, "first")
    async with frozen(own_server.pid):
        waiting = asyncio.create_task(lease.claim() if claims else lease.renew())
        await until(lambda: "the lease of E1 waits: its bucket does not answer" in caplog.text)
    await asyncio.wait_for(waiting, 10)
    assert "the lease of E1 waits no longer" in caplog.text


async def test_releasing_anothers_lease_changes_nothing(rivals: tuple[Lease, Lease]) -> None:
    """A process that lost it does not take it from its successor."""
    first, second = rivals
    assert await first.acquire()
    await second.release()
    assert await holder_of(second) == first.entry


async def test_its_age_counts_from_the_sending_of_what_was_stored(
    rivals: tuple[Lease, Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from the answer, which may be late; and what is refused renews nothing."""
    first, _ = rivals
    attempt, late_s = Publisher.attempt, 0.1

    async def refused(*_: object) -> Ack:
        return Ack(error=ApiFault(err_code=10_071))

    async def answered_late(publisher: Publisher, *message: Any) -> Ack | None:
        answer = await attempt(publisher, *message)
        await asyncio.sleep(late_s)
        return answer

    monkeypatch.setattr(Publisher, "attempt", refused)
    assert not await first.acquire(), "another one was faster"
    assert first.unrenewed_s == math.inf
    monkeypatch.setattr(Publisher, "attempt", answered_late)
    for keep in (first.acquire, first.renew):
        began = time.monotonic()
        assert await keep()
        assert late_s <= first.unrenewed_s <= time.monotonic() - began


async def test_a_renewal_after_a_loss_says_so(rivals: tuple[Lease, Lease]) -> None:
    """The error names who holds it now, and the holder keeps it."""
    first, second = rivals
    assert await first.acquire()
    await asyncio.wait_for(second.claim(), 5)
    with pytest.raises(LeaseLost, match=r"process 6 at 127\.0\.0\.1:6 holds the lease") as lost:
        await first.renew()
    assert lost.value.holder == second.entry
    assert await holder_of(first) == second.entry


async def test_an_expired_lease_that_nobody_took_is_kept(rivals: tuple[Lease, Lease]) -> None:
    """A process that could not renew for a while need not end for it, but is told that it had lapsed."""
    first, second = rivals
    assert await first.acquire()
    async with asyncio.timeout(5):
        while await holder_of(second) is not None:  # noqa: ASYNC110 -- the server lets it expire
            await asyncio.sleep(0.02)
    assert not await first.renew()
    assert await holder_of(second) == first.entry
    assert first.unrenewed_s > TTL_S, "others may have held it until now"
    assert await first.renew()
    assert first.unrenewed_s < TTL_S


async def test_who_keeps_a_lease_hears_that_it_lapsed(rivals: tuple[Lease, Lease]) -> None:
    """Another may have reigned meanwhile, which only the journal can tell."""
    first, second = rivals
    assert await first.acquire()
    await first.release()
    heard = asyncio.Event()

    async def lapsed() -> None:
        heard.set()

    async with running(first.keep(lapsed)):
        await asyncio.wait_for(heard.wait(), 5)
        assert await holder_of(second) == first.entry


async def test_a_lease_found_free_is_told_of_though_an_answer_is_lost(
    rivals: tuple[Lease, Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the renewal finds when it looks again is its own attempt, and others may have held it before."""
    first, _ = rivals
    assert await first.acquire()
    await first.release()
    attempt = Publisher.attempt

    async def losing(publisher: Publisher, *message: Any) -> None:
        await attempt(publisher, *message)
        monkeypatch.undo()

    monkeypatch.setattr(Publisher, "attempt", losing)
    assert not await first.renew()
    assert await first.renew()


async def test_the_first_claim_is_left_to_others_for_a_while(rivals: tuple[Lease, Lease]) -> None:
    """Nobody held it: a standby waits as long as it was told to. Somebody did: only for that."""
    first, second = rivals
    began = time.monotonic()
    await second.claim(leave_first_s=0.5)
    assert time.monotonic() - began >= 0.5
    claiming = asyncio.create_task(first.claim(leave_first_s=60))
    await asyncio.wait((claiming,), timeout=0.1)
    await second.release()
    await asyncio.wait_for(claiming, 5)


async def spoil(connection: Connection, engine: int) -> None:
    """Put what is no lease, and would never expire, in its place."""
    await connection.jetstream().publish(bucket_subject(LEASES_BUCKET, engine_token(engine)), b"hello")


async def test_who_reigns_writes_over_junk(ready: Connection, rivals: tuple[Lease, Lease]) -> None:
    """What is no lease is nobody's: a standby leaves its holder the time to renew, which says it lapsed."""
    first, second = rivals
    assert await first.acquire()
    async with running(second.claim()) as (claiming,):
        await asyncio.wait((claiming,), timeout=0.1)
        await spoil(ready, first.entry.engine)
        assert await holder_of(first) is None
        await asyncio.wait((claiming,), timeout=RENEW_S)
        assert not await first.renew()
        assert await holder_of(second) == first.entry
        assert await first.renew()
        assert not claiming.done()


async def test_junk_is_taken_when_nobody_reigns(ready: Connection, rivals: tuple[Lease, Lease]) -> None:
    """It has no life that could end, so a standby that waits takes it after the life of a lease."""
    first, second = rivals
    assert await first.acquire()
    claiming = asyncio.create_task(second.claim())
    await asyncio.wait((claiming,), timeout=0.1)
    began = time.monotonic()
    await spoil(ready, first.entry.engine)
    await asyncio.wait_for(claiming, 5)
    assert TTL_S - 0.05 <= time.monotonic() - began <= TTL_S + SOON_S
    assert await holder_of(first) == second.entry


@pytest.mark.parametrize("comes", ["before the lease runs out", "when it has just run out"])
async def test_who_waits_longer_comes_first(
    rivals: tuple[Lease, Lease],
    connections: "Connections",
    shared_server: NatsServer,
    engine: int,
    comes: str,
) -> None:
    """A standby takes a lapsed lease before a process that has just been started again."""
    standby, reigning = rivals
    assert await reigning.acquire()
    reign = asyncio.create_task(reigning.keep(_lapsed))
    waiting = asyncio.create_task(standby.claim())
    await asyncio.wait((waiting,), timeout=2 * TTL_S)
    opened = await connections.open(shared_server.url, buffered=False)
    late = lease_of(opened, engine, "newcomer")
    if comes == "before the lease runs out":
        newcomer = asyncio.create_task(late.claim())
        await asyncio.wait((newcomer,), timeout=0.1)
        reign.cancel()
    else:
        reign.cancel()
        while await holder_of(late) == reigning.entry:  # noqa: ASYNC110 -- the server lets it expire
            await asyncio.sleep(0.001)
        newcomer = asyncio.create_task(late.claim(leave_first_s=NEWCOMER_S))
    await asyncio.wait((waiting, newcomer), timeout=5, return_when=asyncio.FIRST_COMPLETED)
    assert (waiting.done(), newcomer.done()) == (True, False)
    assert await holder_of(standby) == standby.entry
    newcomer.cancel()


async def after_an_outage(
    server: NatsServer, connections: "Connections", engine: int, outage_s: float
) -> tuple[Lease, Lease, asyncio.Task[None]]:
    """The one who reigned and the one who claims, and its claim, as both are connected again."""
    opened = [await connections.open(server.url, buffered=False) for _ in range(2)]
    await provision.provision_shared(opened[0])
    first, second = lease_of(opened[0], engine, "first"), lease_of(opened[1], engine, "second")
    assert await first.acquire()
    claiming = asyncio.create_task(second.claim())
    await asyncio.wait((claiming,), timeout=0.1)
    await server.kill()
    await asyncio.wait((claiming,), timeout=outage_s)
    await server.start()
    await until(lambda: all(connection.is_connected for connection in opened))
    return first, second, claiming


async def test_what_was_let_go_is_taken_at_once_after_an_outage(
    own_server: NatsServer, connections: "Connections", engine: int
) -> None:
    """The time that is left to who reigned is for renewing: who lets go of the lease needs none."""
    first, second, claiming = await after_an_outage(own_server, connections, engine, TTL_S)
    assert await first.acquire()
    assert not claiming.done()
    began = time.monotonic()
    await first.release()
    await asyncio.wait_for(claiming, 5)
    assert time.monotonic() - began < AT_ONCE_S
    assert await holder_of(first) == second.entry


async def test_after_an_outage_the_holder_renews_first(
    own_server: NatsServer, connections: "Connections", engine: int
) -> None:
    """NATS was away for longer than a lease lives: who waits leaves the one who reigned the time to renew."""
    first, second, claiming = await after_an_outage(own_server, connections, engine, 1.5 * TTL_S)
    await asyncio.wait((claiming,), timeout=0.6 * TTL_S)
    assert not claiming.done()
    assert not await first.renew(), "it had run out"
    assert await holder_of(second) == first.entry
    await asyncio.wait_for(claiming, 5)
    assert await holder_of(first) == second.entry


def test_an_outage_is_no_silence_of_the_holder() -> None:
    """Nobody could renew: what the server still shows is dead only after it could have been renewed."""
    held = Stored(5, "", encode(LeaseEntry(1, "first", "127.0.0.1:1", 1)))
    turn = _Turn(began=0.0, leave_first_s=0.0)
    assert not turn.has_come(held, 0.0)
    turn.was_away(100.0)
    assert not turn.has_come(held, 100.0 + DEAD_S)
    assert turn.has_come(held, 100.1 + DEAD_S)


def test_only_a_lease_that_nobody_has_held_is_left_to_others() -> None:
    """Once somebody was seen to hold it, its end counts from when it ran out; after an outage that waits."""
    held = Stored(5, "", encode(LeaseEntry(1, "first", "127.0.0.1:1", 1)))
    turn = _Turn(began=0.0, leave_first_s=60.0)
    assert not turn.has_come(None, 1.0)
    assert not turn.has_come(held, 2.0)
    assert not turn.has_come(None, 3.0)
    assert turn.has_come(None, 3.0 + NEWCOMER_S)
    turn.was_away(100.0)
    for since_s, has_come in ((0.0, False), (0.9 * TTL_S, False), (TTL_S, True)):
        assert turn.has_come(None, 100.0 + since_s) is has_come
