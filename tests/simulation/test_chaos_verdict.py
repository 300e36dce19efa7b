"""A run whose market never comes back ends with a verdict all the same."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import msgspec
import pytest
from rich.console import Console

from bus import subjects
from bus.connection import Connection
from bus.server import NatsServer
from client import FillGap, Unavailable
from client.results import Book
from client.units import Instrument
from simulation import chaos, chaos_report, cli, evidence, report
from simulation.chaos import ChaosRun
from simulation.evidence import read_evidence
from simulation.load import Acknowledgements, Loader, Middles
from simulation.witness import ClientLog, Totals
from tests.waiting import hold_up, hold_up_a_reader

INSTRUMENT = Instrument("AAPL", Decimal("0.01"), Decimal(1))


async def no_answer(*_: object, **__: object) -> NoReturn:
    """What a client hears of an engine that never serves again."""
    await asyncio.sleep(0.01)
    raise Unavailable("no answer in time")


async def no_fills(**_: object) -> AsyncIterator[NoReturn]:
    """Likewise, of a stream."""
    yield await no_answer()


async def nothing(**_: object) -> AsyncIterator[NoReturn]:
    """A history without a fill."""
    return
    yield


async def none() -> dict[str, NoReturn]:
    """No position; no order, likewise."""
    return {}


async def empty_book(symbol: str) -> Book:
    """Nothing rests."""
    return Book(symbol, 0, (), ())


def loader(**methods: object) -> Loader:
    """A client with these methods."""
    client: Any = SimpleNamespace(instruments={"AAPL": INSTRUMENT}, **methods)
    return Loader(client, ClientLog("ann", 1), Middles(["AAPL"], 1), Acknowledgements(), 1)


def test_an_engine_that_never_serves_again_is_a_violation(
    shared_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clients give their commands again for ever; the run does not wait for ever. Its exit code is 1."""

    async def never() -> bool:
        return False

    @contextlib.asynccontextmanager
    async def market(*_: object) -> AsyncIterator[object]:
        yield SimpleNamespace(
            nats=[shared_server],
            nats_url=shared_server.url,
            members=[SimpleNamespace(name="engine 1", serves=never, restarts=0)],
        )

    async def enter(*_: object) -> list[Loader]:
        return [loader(submit=no_answer, open_orders=no_answer, book=no_answer, fills=no_fills)]

    for name in ("UP_DEADLINE_S", "ANSWERS_DEADLINE_S", "QUIET_DEADLINE_S"):
        monkeypatch.setattr(chaos, name, 0.3)
    monkeypatch.setattr(chaos, "_cluster", market)
    monkeypatch.setattr(chaos, "_enter", enter)
    monkeypatch.setattr(report, "cluster_sheet", lambda _: report.checks_sheet([]))
    outcome = tmp_path / "outcome.json"
    no_faults = [f"--{kind}-per-minute=0" for kind in ("kills", "freezes", "partitions")]
    assert cli.main(["chaos", "--minutes", "0.01", *no_faults, "--json", str(outcome)]) == 1
    checks = {check["name"]: check for check in msgspec.json.decode(outcome.read_bytes())["checks"]}
    unanswered = checks["every command has an answer"]
    assert len(unanswered["violations"]) == unanswered["checked"] > 0
    assert checks["every process serves at the end"]["violations"] == ["engine 1 does not serve"]
    assert checks["what the run left can be read"]["violations"] == ["no answer in time"]


async def test_messages_that_a_stream_only_counts_are_a_violation(
    own_server: NatsServer, own_connection: Connection
) -> None:
    """The server never sends them, as after its end was cut off; the witness does not wait for ever."""
    jetstream = own_connection.jetstream()
    await jetstream.add_stream(name=subjects.EXECUTIONS_STREAM, subjects=[subjects.execution(1)])
    for _ in range(2):
        await jetstream.publish(subjects.execution(1), b"")
    await jetstream.delete_msg(subjects.EXECUTIONS_STREAM, 2)
    ann = loader(fills=nothing, open_orders=none, positions=none, book=empty_book)
    async with asyncio.timeout(30):
        _, readable = await read_evidence(own_server.url, [ann], 1, 0)
    assert readable.violations == [f"stream {subjects.EXECUTIONS_STREAM}: message 2 of 2 is gone"]


async def test_messages_that_came_while_we_were_stopped_are_read(
    own_server: NatsServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-Z, say, for longer than nats-server may be silent: the run is judged by what it left."""
    jetstream = own_connection.jetstream()
    await jetstream.add_stream(name=subjects.EXECUTIONS_STREAM, subjects=[subjects.execution(1)])
    await jetstream.publish(subjects.execution(1), b"")
    monkeypatch.setattr(evidence, "_SILENCE_S", 1.5)
    pauses = hold_up_a_reader(monkeypatch, 2.0)
    async with asyncio.timeout(30):
        assert await evidence._payloads(own_connection, subjects.EXECUTIONS_STREAM) == [b""]
    assert not list(pauses)


async def test_what_healed_while_we_were_stopped_has_healed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-Z, say, for longer than it may take: it is looked once more, and answers are read."""
    monkeypatch.setattr(chaos, "ANSWERS_DEADLINE_S", 0.5)
    said, reasons = StringIO(), ["an order waits"]
    run = cast("ChaosRun", SimpleNamespace(_console=Console(file=said)))

    async def why_not() -> str:
        return reasons.pop() if reasons else ""

    hold_up(1.0)
    assert await ChaosRun._until(run, why_not, 0.5, "no order waits") == ""
    trading = asyncio.create_task(asyncio.to_thread(time.sleep, 0.1))
    await asyncio.sleep(0)
    hold_up(1.0)
    await ChaosRun._until_answered(run, [trading])
    assert not trading.cancelled()
    assert "not within" not in said.getvalue()


async def test_a_client_whose_history_is_damaged_follows_it_no_further() -> None:
    """It does not ask again and again; what it heard is a violation, which the witness tells."""

    async def damaged(**_: object) -> AsyncIterator[NoReturn]:
        raise FillGap(1, 2)
        yield

    ann = loader(fills=damaged)
    await asyncio.wait_for(ann.follow(), 10)
    assert ann.log.errors == [f"following its fills: {FillGap(1, 2)!r}"]


def test_a_run_that_keeps_nothing_names_no_directory() -> None:
    """Its outcome as JSON says null, not the word for it; of one that keeps all, the path."""
    for data, told in ((None, None), (Path("kept"), "kept")):
        settings = chaos.ChaosSettings(data=data)
        outcome = chaos.ChaosOutcome(settings, 1.0, [], {}, Totals(*[0] * 7), 0, 0, 0, 0.0, 0.0, [])
        assert json.loads(chaos_report.document(outcome))["settings"]["data"] == told
