"""The live view of a run: what people see first."""

import asyncio
from collections import Counter, deque
from decimal import Decimal
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from matchbus.v1 import matchbus_pb2 as pb
from rich.console import Console

from client import Fill
from client.units import Instrument
from simulation import live
from simulation.live import fills_table, screen, watch
from simulation.run import LAST_FILLS
from simulation.virtual import clock

SYMBOLS = ["AAPL", "BTC-USD", "GOOG"]


def book(symbol: str) -> pb.ConsolidatedBook:
    """Twenty levels a side, each of two engines."""

    def level(price: int) -> pb.Level:
        engines = [pb.EngineQuantity(engine=engine, quantity=60 + engine) for engine in (1, 2)]
        return pb.Level(price=price, quantity=123, engines=engines)

    bids, asks = (
        [level(first + step * number) for number in range(20)] for first, step in ((9_999, -1), (10_000, 1))
    )
    return pb.ConsolidatedBook(symbol=symbol, bids=bids, asks=asks)


async def progress() -> Any:
    """A run that has gone on for a while."""
    instruments = {symbol: Instrument(symbol, Decimal("0.01"), Decimal(1)) for symbol in SYMBOLS}
    engines = [
        pb.Engine(engine=number, state=pb.ENGINE_STATE_LIVE, lag_ns=1_200_000, address="127.0.0.1:50051")
        for number in (1, 2)
    ]
    fill = SimpleNamespace(
        order_id=(1 << 48) + 7,
        engine=2,
        side="sell",
        quantity=Decimal(12),
        symbol="BTC-USD",
        price=Decimal("99.99"),
    )
    fills: deque[tuple[str, Fill]] = deque([("momentum-4", fill)] * LAST_FILLS)  # type: ignore[list-item]  # what is shown of one
    return SimpleNamespace(
        market=SimpleNamespace(books={symbol: book(symbol) for symbol in SYMBOLS}, engines=engines),
        traders=[SimpleNamespace(submitted=900, client=SimpleNamespace(instruments=instruments))],
        symbols=SYMBOLS,
        started=0.0,
        plan=SimpleNamespace(duration_s=120.0),
        last_fills=fills,
        per_engine=Counter({1: 326, 2: 282}),
        through_legs=277,
    )


@pytest.mark.parametrize("height", [24, 30, 60])
async def test_all_parts_fit(height: int) -> None:
    """Progress, engines, two books and trades on the smallest usual terminal; books grow with it."""
    console = Console(width=80, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(screen(await progress(), height))
    lines = captured.get().splitlines()
    assert len(lines) < height
    text = "\n".join(lines)
    for part in ("608 trades", "277 routed", "E1 live", "E2 live", "AAPL", "BTC-USD", "routed there by E1"):
        assert part in text
    assert text.count("99.99") >= 2
    assert sum("E1 61" in line for line in lines) == 2 * min(10, (height - 17) // 2)


async def test_no_number_is_cut_short_on_a_narrow_terminal() -> None:
    """Of a trade's columns, only the one in words takes more lines."""
    running = await progress()
    for _, fill in running.last_fills:
        fill.quantity = Decimal("0.00000062")
    console = Console(width=60, color_system=None)
    with console.capture() as captured:
        console.print(fills_table(running))
    assert captured.get().count("momentum-4   sell   0.00000062   BTC-USD   99.99") == LAST_FILLS


async def lines(seconds: float) -> list[str]:
    """What is shown of a run without a screen, for so long."""
    console = Console(width=120)
    with console.capture() as shown:
        watching = asyncio.create_task(watch(await progress(), console, headless=True))
        await asyncio.sleep(seconds)
        watching.cancel()
    return shown.get().splitlines()


def test_lines_of_virtual_time_come_no_faster_than_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much time passes between them; and in step with it where it is slow."""
    real_s = count()
    monkeypatch.setattr(live, "_real_s", lambda: next(real_s) / 16)
    many = clock.run(lambda: lines(200.1))
    assert 4 <= len(many) <= 8
    assert many[0].startswith("  2.0 of 120 s: ")
    real_s = count(step=2)
    monkeypatch.setattr(live, "_real_s", lambda: float(next(real_s)))
    assert len(clock.run(lambda: lines(200.1))) == 100
