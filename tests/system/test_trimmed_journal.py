"""A market whose journals are trimmed: what was acknowledged is there, after kills and another start."""

import asyncio
import json
from collections.abc import Callable
from functools import partial

import pytest

from bus import subjects
from bus.connection import connect
from bus.stream import extent
from tests.system.test_crashes import Load, everything, history
from tests.system.venue import Venue, alive, eventually, floor, run_command, show
from tests.waiting import until

OPTIONS = ("--trim-journals", "--snapshot-every", "100")


@pytest.mark.timeout(240)
async def test_nothing_acknowledged_is_lost_with_the_head_of_a_journal(
    own_venue: Callable[..., Venue],
) -> None:
    """Journals begin at snapshots, again and again, under load; engines are killed, then all at once.

    Then all is stopped and started again.
    """
    venue = own_venue(engines=2, options=OPTIONS)
    async with floor(venue) as trading:
        traders = [await trading.trader(engine) for engine in (1, 1, 2, 2)]
        load = Load(traders)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run())
            first = 1
            for engine in (1, 2, 1):
                first = await trimmed_beyond(venue, engine, first if engine == 1 else 1)
                await eventually(partial(load.are_under_way, engine), 10, "a command waits for its answer")
                venue.kill(venue.engine_pid(engine))
                for trader in traders:
                    await history(trader)  # so both engines serve again
            await eventually(partial(load.are_under_way, 1), 10, "a command waits for its answer")
            pids = [venue.nats_pid, venue.exchange_pid, venue.engine_pid(1), venue.engine_pid(2)]
            venue.kill_launcher()  # the rest dies with it: a power cut
            await until(lambda: not any(map(alive, pids)))
            await asyncio.to_thread(venue.start)
            for trader in traders:
                trader.move(await trading.channel(venue.address(trader.engine)))
                await history(trader)
            await load.acknowledged(100)
            load.stop()
        before = await everything(trading, load, traders)
        for number in ("1", "2"):
            found = json.loads(run_command("journal", "verify", number, "--json", "--nats", venue.nats_url))
            assert found["first_batch"] > 1
            assert found["batches"] == found["last_batch"] - found["first_batch"] + 1
            digest = json.loads(run_command("journal", "digest", number, "--json", "--nats", venue.nats_url))
            assert digest["batch_number"] == found["last_batch"]
        show(f"{len(load.answers)} orders acknowledged; journal 1 began at {first} in the end")
    venue.stop()
    venue.start()
    async with floor(venue) as trading:
        again = [await trading.trader(name=trader.name) for trader in traders]
        load.sent = {
            identity: (again[traders.index(trader)], order) for identity, (trader, order) in load.sent.items()
        }
        assert await everything(trading, load, again) == before


async def trimmed_beyond(venue: Venue, engine: int, first: int) -> int:
    """Wait until a journal begins later than at this sequence; where it begins then."""
    nc = await connect(venue.nats_url, name="test", on_closed=lambda: None)

    async def trimmed() -> int:
        begins = (await extent(nc, subjects.journal_stream(engine))).first_seq
        return begins if begins > first else 0

    try:
        return int(await eventually(trimmed, 40, f"the journal of E{engine} begins after {first}"))
    finally:
        await nc.close()
