"""A scenario on a real market, and the report of it."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from matchbus.program import INTERRUPTED

from simulation import cli, report_files
from simulation.page import FILES
from simulation.recording import VENUE_CANCEL

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 90.0
SCENARIO = """
title = "Short and rough"
seed = 5
duration_s = 6
symbols = ["MSFT", "BTC-USD"]
fundamental = { volatility = 3, jumps = [{ at_s = 3, ticks = 20, symbol = "MSFT" }] }

[[agents]]
kind = "maker"
count = 2

[[agents]]
kind = "random"
count = 4
arrival = { kind = "hawkes", rate = 15 }

[[agents]]
kind = "informed"

[[agents]]
kind = "arbitrage"

[[faults]]
at_s = 2
kind = "kill"
engine = 1
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a report, made by the command as a user types it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "rough.toml").write_text(SCENARIO)
    script = str(ROOT / "simulation" / "simulation.py")
    done = subprocess.run(
        [sys.executable, script, "--scenario", "rough.toml", "--report", "out/report"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The report is in out/report/index.html" in done.stdout
    return folder / "out" / "report"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_reports_what_happened_until_then(number: signal.Signals, tmp_path: Path) -> None:
    """Hours of it are not lost, and nobody takes it for a run that was checked."""
    (tmp_path / "rough.toml").write_text(SCENARIO.replace("duration_s = 6", "duration_s = 600"))
    script = str(ROOT / "simulation" / "simulation.py")
    with subprocess.Popen(
        [sys.executable, script, "--scenario", "rough.toml", "--report", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])},
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        deadline = Timer(DEADLINE_S, run.kill)
        deadline.start()
        try:
            trades = any(re.search(r"of 600 s: .* [1-9]\d* trades", line) for line in run.stdout)
            run.send_signal(number)
            told = run.communicate()[0]
        finally:
            deadline.cancel()
            run.kill()
    assert trades
    assert run.returncode == INTERRUPTED
    assert re.search(r"The report of the \d+\.\d s until then is in out/index.html\nStopped.\n$", told), told
    out = tmp_path / "out"
    outcome = json.loads((out / "outcome.json").read_text())
    assert (outcome["holds"], outcome["interrupted"], outcome["checks"]) == (False, True, [])
    assert outcome["scenario"]["duration_s"] == 600
    assert 0 < sum(outcome["trades_per_engine"].values()) <= len(rows(out / "fills.csv"))
    page = (out / report_files.PAGE).read_text()
    assert f"Interrupted after {outcome['duration_s']:.1f} s: nothing was checked." in page


def rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by column."""
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_everything_is_written(written: Path) -> None:
    """The page and each of the files that it names."""
    assert {file.name for file in written.iterdir()} == {report_files.PAGE, *FILES}
    assert "Short and rough" in (written / report_files.PAGE).read_text()


def test_the_files_agree_with_the_outcome(written: Path) -> None:
    """Orders and fills are as many as the checks saw, and all positions sum to zero."""
    outcome: dict[str, Any] = json.loads((written / "outcome.json").read_text())
    assert outcome["holds"] is True
    assert outcome["scenario"]["title"] == "Short and rough"
    assert outcome["matchbus_version"] == version("matchbus")
    assert len(rows(written / "orders.csv")) == sum(client["orders"] for client in outcome["clients"])
    fills = rows(written / "fills.csv")
    assert len(fills) == sum(client["fills"] for client in outcome["clients"]) > 0
    since_ns = [int(fill["timestamp_ns"]) - int(fills[0]["timestamp_ns"]) for fill in fills]
    since_s = [float(fill["time_s"]) - float(fills[0]["time_s"]) for fill in fills]
    assert [ns / 1e9 for ns in since_ns] == pytest.approx(since_s, abs=2e-6)
    held: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for fill in fills:
        held[fill["client"], fill["symbol"]] += Decimal(fill["quantity"]) * (
            1 if fill["side"] == "buy" else -1
        )
    for symbol in ("MSFT", "BTC-USD"):
        told = {client["client_id"]: Decimal(client["positions"][symbol]) for client in outcome["clients"]}
        assert told == {name: held.pop((name, symbol), 0) for name in told}
        assert sum(told.values()) == 0
    assert not held
    assert sum(outcome["profit"].values()) == pytest.approx(0, abs=1e-3)
    assert 0 < outcome["latency_ms"]["p50"] <= outcome["latency_ms"]["longest"]
    routed = [fill for fill in fills if fill["routed"] == "1" and fill["liquidity"] == "taker"]
    assert len(routed) == outcome["trades_through_legs"]


def test_the_files_hold_the_whole_flow(written: Path) -> None:
    """Each change names its order, and no fill is at a price that neither order nor replace allows."""
    orders = {order["order_id"]: order for order in rows(written / "orders.csv")}
    changes = rows(written / "changes.csv")
    assert {change["change"] for change in changes} - {VENUE_CANCEL} == {"cancel", "replace"}
    assert {order["post_only"] for order in orders.values() if order["kind"] == "maker"} == {"1"}
    assert {change["order_id"] for change in changes} <= orders.keys()
    sent = [row["sent_s"] for row in (*orders.values(), *changes)]
    assert all(re.fullmatch(r"\d+\.\d{6}", one) for one in sent), "calls of one millisecond have an order"
    allowed: dict[str, list[Decimal]] = defaultdict(list)
    for row in (*orders.values(), *changes):
        if row["price"] and not row["reason"]:
            allowed[row["order_id"]].append(Decimal(row["price"]))
    for fill in rows(written / "fills.csv"):
        if limits := allowed[fill["order_id"]]:
            price = Decimal(fill["price"])
            assert price <= max(limits) if fill["side"] == "buy" else price >= min(limits)


def test_quotes_are_of_the_scenarios_symbols(written: Path) -> None:
    """Both symbols were watched, with their values, for as long as the run lasted."""
    quotes = rows(written / "quotes.csv")
    assert {quote["symbol"] for quote in quotes} == {"MSFT", "BTC-USD"}
    assert all(float(quote["value"]) > 0 for quote in quotes)
    assert all(0 <= float(quote["time_s"]) <= 6 for quote in quotes)
    for side in ("bid", "ask"):
        assert all(bool(quote[side]) == (float(quote[f"{side}_quantity"]) > 0) for quote in quotes)
        assert all(float(quote[f"{side}_quantity"]) <= float(quote[f"{side}_depth"]) for quote in quotes)


def test_the_fault_is_told(written: Path) -> None:
    """The kill struck when it should, and its clients' silence began then or later."""
    (fault,) = [json.loads(line) for line in (written / "faults.jsonl").read_text().splitlines()]
    assert (fault["kind"], fault["engine"]) == ("kill", 1)
    assert fault["silent_from_s"] >= fault["time_s"] >= 2.0


@pytest.mark.parametrize(
    ("file", "columns"),
    [
        ("quotes.csv", report_files.QUOTE_COLUMNS),
        ("orders.csv", report_files.ORDER_COLUMNS),
        ("changes.csv", report_files.CHANGE_COLUMNS),
        ("fills.csv", report_files.FILL_COLUMNS),
        ("faults.jsonl", None),
    ],
)
def test_every_column_is_documented(written: Path, file: str, columns: tuple[str, ...] | None) -> None:
    """docs/simulation.md has a row for each column of a file, in its order."""
    if columns is None:
        columns = tuple(json.loads((written / file).read_text().splitlines()[0]))
    text = (ROOT / "docs" / "simulation.md").read_text().partition(f"`{file}`\n")[2].partition("\n\n`")[0]
    named = [
        name
        for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    ]
    assert tuple(named) == columns


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--scenario", "noon"], "'noon' cannot be read"),
        (["--scenario", "calm", "--engines", "3"], "--engines is what a scenario says"),
    ],
)
def test_what_cannot_be_run_is_said(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused scenario ends the command with 1 and one line, before anything starts."""
    assert cli.main(["run", *arguments]) == 1
    assert why in capsys.readouterr().err
