"""Round trips: what they prove about messages between two connections of one real nats-server."""

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from nats.aio.msg import Msg

from bus.round_trip import PATIENCE_S, RoundTrip
from bus.server import NatsServer
from tests.waiting import freeze

if TYPE_CHECKING:
    from bus.connection import Connection
    from tests.conftest import Connections

ROUNDS = 200
SUBJECT = "test.causal"


async def trips_over(connection: "Connection") -> RoundTrip:
    """Round trips that can be made."""
    trips = RoundTrip(connection)
    await trips.start()
    await connection.flush()
    return trips


async def test_who_hears_of_it_has_seen_all_before_it(
    shared_server: NatsServer, connections: "Connections"
) -> None:
    """A publishes and makes its trip; then B makes its own: B has been given all that A published."""
    a, b = [await connections.open(shared_server.url) for _ in range(2)]
    seen: list[bytes] = []

    async def see(message: Msg) -> None:
        seen.append(message.data)

    await b.subscribe(SUBJECT, cb=see)
    a_trips, b_trips = await trips_over(a), await trips_over(b)
    for number in range(ROUNDS):
        seen.clear()
        sent = [b"%d %d" % (number, place) for place in range(number % 50 + 1)]
        for payload in sent:
            await a.publish(SUBJECT, payload)
        await a_trips.make()
        await b_trips.make()
        assert seen == sent
    assert connections.errors == []


async def test_trips_overlap(shared_server: NatsServer, connections: "Connections") -> None:
    """Many at once come back one by one, each to the one who made it."""
    trips = await trips_over(await connections.open(shared_server.url))
    started = time.monotonic()
    ended: list[int] = []

    async def make(number: int) -> None:
        await trips.make()
        ended.append(number)

    await asyncio.gather(*map(make, range(50)))
    assert ended == list(range(50))
    assert time.monotonic() - started < PATIENCE_S, "none was given up"


async def test_a_trip_that_is_given_up_harms_no_other(
    shared_server: NatsServer, connections: "Connections"
) -> None:
    """Its message comes back to nobody."""
    trips = await trips_over(await connections.open(shared_server.url))
    impatient = asyncio.create_task(trips.make())
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait([impatient])
    await asyncio.wait_for(trips.make(), PATIENCE_S / 2)
    assert connections.errors == []


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "gone"])
async def test_nobody_waits_for_a_server_that_is_away(
    own_server: NatsServer, connections: "Connections", frozen: bool
) -> None:
    """Within its patience a trip ends by itself; when the server is back, trips are proof again."""
    connection = await connections.open(own_server.url)
    trips = await trips_over(connection)
    if frozen:
        await freeze(own_server.pid)
    else:
        await own_server.kill()
    started = time.monotonic()
    try:
        await asyncio.gather(*(trips.make() for _ in range(10)))
        took_s = time.monotonic() - started
    finally:
        if frozen:
            os.kill(own_server.pid, signal.SIGCONT)
        else:
            await own_server.start()
    assert took_s < PATIENCE_S + 0.5
    if frozen:
        assert took_s >= PATIENCE_S * 0.9
    async with asyncio.timeout(5):
        while not connection.is_connected:  # noqa: ASYNC110 -- nats-py tells it to one owner only
            await asyncio.sleep(0.01)
    await asyncio.wait_for(connection.flush(), 5)
    started = time.monotonic()
    await trips.make()
    assert time.monotonic() - started < PATIENCE_S


async def test_a_loop_that_was_held_up_still_reads_what_came(
    shared_server: NatsServer, connections: "Connections"
) -> None:
    """What came before the message must be read too before anybody judges: the trip is not given up."""
    trips = await trips_over(await connections.open(shared_server.url))
    trip = asyncio.create_task(trips.make())
    await asyncio.sleep(0)
    (back,) = trips._under_way.values()
    time.sleep(PATIENCE_S + 0.2)  # noqa: ASYNC251 -- the loop is to stand still
    await trip
    assert back.exception() is None


async def test_a_closed_connection_makes_no_trips(
    shared_server: NatsServer, connections: "Connections"
) -> None:
    """Its owner ends the process; meanwhile nobody waits and nothing is raised."""
    connection = await connections.open(shared_server.url)
    trips = await trips_over(connection)
    await connection.close()
    await asyncio.wait_for(trips.make(), PATIENCE_S * 2)
