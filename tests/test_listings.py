"""Long replies are made in turns, between other work."""

import asyncio
import time
from collections.abc import Iterator

from matchbus.listings import SLICE_S, Turns, in_slices


async def test_who_asks_for_many_waits_behind_who_asks_for_one() -> None:
    """One is made at a time, and of each client one waits for that."""
    turns, made, running = Turns(), list[str](), 0

    async def make(client: str, number: int) -> None:
        nonlocal running
        async with turns.of(client):
            running += 1
            assert running == 1
            await asyncio.sleep(0)
            made.append(f"{client}{number}")
            running -= 1

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(make("many", number))
        group.create_task(make("one", 0))
    assert made == ["many0", "one0", "many1", "many2"]


async def test_turns_are_shared_between_connections_and_then_on_each() -> None:
    """A client waits neither behind another connection's many, nor behind one name's many on its own."""
    turns, made, running, together = Turns(2), list[str](), 0, 0

    async def make(connection: str, client: str) -> None:
        nonlocal running, together
        async with turns.of(connection, client):
            running += 1
            together = max(together, running)
            await asyncio.sleep(0)
            made.append(f"{connection} {client}")
            running -= 1

    async with asyncio.TaskGroup() as group:
        for connection in ("a", "b"):
            for _ in range(20):
                group.create_task(make(connection, "many"))
        group.create_task(make("a", "one"))
        group.create_task(make("c", "many"))
    assert together == 2
    assert made.index("c many") < 8
    assert made.index("a one") < 12
    assert not turns._own


async def test_a_turn_that_is_given_up_holds_up_nobody() -> None:
    """Nor does one whose block fails; nothing is kept of clients that want no more."""
    turns = Turns()
    holding = asyncio.Event()

    async def hold() -> None:
        async with turns.of("ann"):
            holding.set()
            await asyncio.Event().wait()

    async def want(client: str) -> str:
        async with turns.of(client):
            return client

    held = asyncio.create_task(hold())
    await holding.wait()
    impatient, patient = (asyncio.create_task(want(client)) for client in ("ann", "bob"))
    await asyncio.sleep(0)
    impatient.cancel()
    held.cancel()
    assert await patient == "bob"
    assert await want("ann") == "ann"
    assert not turns._own


async def test_all_else_has_its_turn_between_slices() -> None:
    """Steps that take long in all are taken in many slices, short ones at once."""
    turns = 0

    async def beat() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def steps(count: int) -> Iterator[None]:
        for _ in range(count):
            time.sleep(SLICE_S / 4)  # work, which yields to nobody
            yield

    beating = asyncio.create_task(beat())
    await in_slices(steps(80))
    assert turns > 10
    before = turns
    await in_slices(iter([None, None]))
    assert turns == before
    beating.cancel()
