"""What three engines decided while they traded with each other, judged by their journals."""

import asyncio
import json
import random
import subprocess
import sys

from tests.system.venue import CALL_TIMEOUT_S, REPOSITORY, Trader, Venue, floor, scaled, show

ORDERS = scaled(60, 600)


async def test_no_decision_of_a_market_is_a_bug(three_engines: Venue) -> None:
    """After a storm of crossing orders on three engines `simulation audit` finds no bug and ends with 0."""
    symbols = three_engines.symbols[380:383]
    async with floor(three_engines) as trading:
        traders = [await trading.trader(engine) for engine in (1, 2, 3)]

        async def storm(trader: Trader, lane: int) -> None:
            draw = random.Random(f"audit {trader.engine} {lane}")
            for _ in range(ORDERS):
                more = {"time_in_force": draw.choice((1, 1, 2, 3))} if draw.random() < 0.8 else {}
                if not more:
                    more = {draw.choice(("do_not_route", "post_only")): True}
                side, price = draw.choice((1, 2)), draw.randint(97, 103)
                await trader.limit(draw.choice(symbols), side, price, draw.choice((1, 2, 5, 9)), **more)

        async with asyncio.TaskGroup() as group:
            for trader in traders:
                for lane in range(2):
                    group.create_task(storm(trader, lane))
    command = [sys.executable, "-m", "simulation", "audit", "--nats", three_engines.nats_url]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        timeout=CALL_TIMEOUT_S,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [entry["engine"] for entry in found["engines"]] == [1, 2, 3]
    for entry in found["engines"]:
        assert entry["legs"] > 0
        assert entry["decisions"] >= entry["with_away_quotes"] > 0
        assert entry["bugs"] == 0
    assert found["bug_examples"] == []
    show("\n".join([str(entry) for entry in found["engines"]] + found["old_view_examples"]))
