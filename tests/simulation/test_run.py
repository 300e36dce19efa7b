import asyncio
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast
from unittest.mock import AsyncMock, MagicMock

import grpc.aio
import pytest
from matchbus.program import INTERRUPTED, Unread, run_program
from rich.console import Console

from bus.messages import ReportedCancel, ReportedOrder
from client import Client, Fill, Unavailable
from client.terms import Liquidity, Side
from client.units import Instrument
from exchange.runtime.settings import DEFAULT_PASSWORD
from simulation import by_hand, cli, live, operate, run
from simulation.checks import Check, FillCounts
from simulation.cluster import Cluster
from simulation.market import MarketWatch
from simulation.recording import VENUE_CANCEL, Recording, SentChange, SentOrder
from simulation.run import Plan, Progress, RunOutcome, simulate
from simulation.trader import Trader
from simulation.venues import RunningVenue, Venue
from tests.client.cli.outputs import no_reader

ROOT = Path(__file__).resolve().parents[2]
NO_VENUE = cast("Venue", SimpleNamespace(reports=lambda: None))
"""Where nobody trades."""


async def simulate_on(cluster: Cluster, plan: Plan, nats: str = "") -> RunOutcome:
    """What a plan comes to on a market, whose reports are read where NATS is named."""
    async with RunningVenue(cluster.exchange.address, nats=nats) as venue:
        return await simulate(plan, venue)


async def test_simulated_market_keeps_its_invariants(tmp_path: Path) -> None:
    """All kinds of clients trade on two engines, some through legs; every check holds; logs are written."""
    async with Cluster(engines=2, data_dir=tmp_path / "data") as cluster:
        plan = Plan(clients=6, symbols=2, duration_s=4.0, frequency=30.0, log_dir=tmp_path / "logs")
        outcome = await simulate_on(cluster, plan, nats=cluster.nats_url)
    assert [check.violations for check in outcome.checks if check.violations] == []
    assert set(outcome.fills.per_engine) == {1, 2}
    assert outcome.fills.through_legs > 0
    log = (tmp_path / "logs" / "client_logs" / "random-1.log").read_text()
    for word in ("registered", "submitted", "fill 1:", "final position"):
        assert word in log


async def test_a_run_counts_what_was_traded_in_it(tmp_path: Path) -> None:
    """Clients that come back to a running market keep what they hold; their figures are of the new run."""
    async with Cluster(engines=1, data_dir=tmp_path / "data") as cluster:
        plan = Plan(clients=4, symbols=1, duration_s=1.5, frequency=40.0)
        first, second = await simulate_on(cluster, plan), await simulate_on(cluster, plan)
    assert [check.violations for check in second.checks if check.violations] == []
    assert sum(len(trader.fills) for trader in second.traders) == 2 * (first.fills.total + second.fills.total)
    assert sum(trader.fill_count for trader in second.traders) == 2 * second.fills.total
    assert first.fills.total > 0 < second.fills.total


async def test_a_run_lasts_as_long_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """However early the last agent makes its last step."""

    async def enter(plan: Plan, *_: object) -> Progress:
        market = SimpleNamespace(run=AsyncMock(), refresh=AsyncMock())
        trader = SimpleNamespace(name="a", log=None, follow=AsyncMock(), trade=AsyncMock())
        return Progress(cast("MarketWatch", market), [cast("Trader", trader)], [], 0.0, plan)

    monkeypatch.setattr(run, "_enter", enter)
    monkeypatch.setattr(run, "_settle", AsyncMock(return_value=([], {})))
    outcome = await simulate(Plan(duration_s=0.3), NO_VENUE)
    assert outcome.duration_s >= 0.3


async def test_clients_without_reports_check_quantities_and_sums(tmp_path: Path) -> None:
    """On two engines, while somebody else trades with them, who keeps a position against theirs."""

    async def take(progress: Progress) -> None:
        (symbol,) = progress.symbols
        exchange, password = cluster.exchange.address, DEFAULT_PASSWORD
        async with (
            asyncio.timeout(30),
            Client.connect(exchange, client_id="other", password=password, secret="s") as other,
        ):
            while not (await other.positions()).get(symbol):
                await other.submit(symbol, "buy", type="market", quantity="5", time_in_force="ioc")

    async with Cluster(engines=2, data_dir=tmp_path) as cluster:
        plan = Plan(clients=4, symbols=1, duration_s=2.0, meanwhile=take)
        outcome = await simulate_on(cluster, plan)
    checked = {check.name: check.checked for check in outcome.checks}
    assert [check.violations for check in outcome.checks if check.violations] == []
    assert checked["quantity of every order adds up"] > outcome.fills.total > 0
    assert checked["positions sum to zero, trades with others aside"] == 1
    assert sum(outcome.positions.values()) < 0


def fill_of(order_id: int, side: Side, contra_order_id: int, cumulative: int = 5) -> Fill:
    """Five lots of AAPL, the first fill of its client."""
    terms = ("AAPL", side, Decimal(1), Decimal(5), Liquidity.TAKER, Decimal(cumulative), Decimal(0))
    return Fill(1, 9, order_id, str(order_id), *terms, 1, 1, Decimal(0), contra_order_id)


def trader_with(name: str, acknowledged: set[int], *fills: Fill) -> Trader:
    """A client that one order is open of, with two of three lots left and none filled or cancelled."""
    order = SimpleNamespace(
        order_id=3, quantity=Decimal(3), leaves_quantity=Decimal(2), cancelled_quantity=Decimal(0)
    )
    client = SimpleNamespace(
        instruments={"AAPL": Instrument("AAPL", Decimal("0.01"), Decimal(1))},
        open_orders=AsyncMock(return_value=[order]),
    )
    return cast("Trader", SimpleNamespace(name=name, acknowledged=acknowledged, fills=fills, client=client))


def test_a_side_that_was_lost_between_clients_is_a_violation() -> None:
    """The seller of one trade heard nothing and holds what it held; a trade with a stranger is none of it."""
    buyer = trader_with("b", {1}, fill_of(1, Side.BUY, contra_order_id=2))
    check = run.check_zero_sum([buyer, trader_with("s", {2})], {("b", "AAPL"): 5, ("s", "AAPL"): 0})
    assert check.violations == ["AAPL: positions add up to 5 lots too many"]
    assert run.check_zero_sum([buyer, trader_with("s", set())], {("b", "AAPL"): 5}).holds


async def test_quantities_that_do_not_add_up_are_violations() -> None:
    """A fill that counts more than there were, and an open order that lacks a lot."""
    check = await run.check_quantity([trader_with("b", set(), fill_of(1, Side.BUY, 2, cumulative=6))])
    assert check.violations == [
        "b: fill 1 says 6 filled of order 1, its fills add up to 5",
        "b: order 3: 0 filled + 2 left + 0 cancelled is not 3",
    ]


async def test_what_the_venue_cancels_by_itself_is_recorded() -> None:
    """As a change of its own, where no answer to a client tells that the order is over."""
    statuses = {1: "new", 2: "cancelled", 3: "new", 4: "partially_filled", 5: "new", 6: "new"}
    terms = ("c", "maker", 1, "AAPL", "buy", "limit", "gtc", Decimal(1), Decimal(5))
    answers = [
        (3, "cancel", "cancelled", ""),
        (4, "replace", "cancelled", ""),
        (5, "replace", "new", ""),
        (5, "cancel", "rejected", "order_pending"),
        (6, "cancel", "", ""),  # which had no answer
    ]
    recording = Recording(
        orders=[SentOrder(0.0, 0.1, *terms, status, "", order) for order, status in statuses.items()],
        changes=[
            SentChange(0.2, 0.201, "c", change, order, None, None, *how) for order, change, *how in answers
        ],
    )
    started = asyncio.get_running_loop().time()
    plan = Plan(recording=recording)
    progress = Progress(cast("MarketWatch", None), [trader_with("c", set())], ["AAPL"], started, plan)
    for order in statuses:
        progress.note_cancel(ReportedCancel("c", order, "id", "AAPL", 5, 0))
    cancelled = [change for change in recording.all_changes() if change.change == VENUE_CANCEL]
    assert [(change.order_id, str(change.quantity)) for change in cancelled] == [(1, "5"), (5, "5"), (6, "5")]


async def test_an_acknowledged_order_that_is_nowhere_is_a_violation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an engine that answered too early died: no book, fill or position lacks anything."""
    lost = ReportedOrder("ann", 7, "lost", "AAPL", 1, 1, 1, 100, 5)

    async def lose(progress: Progress) -> None:
        progress.traders[0].acknowledged[7] = lost

    monkeypatch.setattr(run, "SETTLE_DEADLINE_S", 1.0)
    async with Cluster(engines=1, data_dir=tmp_path) as cluster:
        outcome = await simulate_on(cluster, Plan(duration_s=1.0, meanwhile=lose), nats=cluster.nats_url)
    assert not outcome.holds
    checks = {check.name: check for check in outcome.checks}
    reported = checks["every acknowledged order is reported"]
    assert reported.checked > 1
    assert f"{lost} was acknowledged, None is reported" in reported.violations
    assert checks["open orders are as the reports leave them"].checked > 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "simulation.matchbus", "demo", "--duration", "2", "--headless"], "All checks hold."),
        (["-m", "simulation.matchbus", "demo", "--duration", "1", "--json"], '{"holds": true, '),
        (["-m", "simulation", "--duration", "2", "--engines", "1", "--clients", "4"], "All checks hold."),
    ],
)
async def test_commands_end_by_themselves(arguments: list[str], expected: str, tmp_path: Path) -> None:
    """Each command as written starts a market, trades, prints the summary and ends with 0."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert expected in output.decode()


async def test_logs_without_room_are_told_in_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where one cannot be written all end, and the run goes on to its verdict without a traceback."""
    folder = tmp_path / "logs" / "client_logs"
    folder.mkdir(parents=True)
    for number in (1, 2):
        (folder / f"random-{number}.log").symlink_to("/dev/full")
    async with Cluster(engines=1, data_dir=tmp_path / "data") as cluster:
        plan = Plan(clients=3, only="random", duration_s=1.0, log_dir=tmp_path / "logs")
        outcome = await simulate_on(cluster, plan)
    assert outcome.holds
    assert outcome.fills.total > 0
    told = [record.getMessage() for record in caplog.records if record.name == run.__name__]
    assert told == ["client logs end here, the run goes on: No space left on device"]
    assert "Traceback" not in capfd.readouterr().err
    assert not (folder / "random-3.log").read_text()


async def test_a_view_without_room_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the lines of a run cannot be written the run goes on, and no traceback says why."""

    async def watch(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def run(_: Plan, __: object, begin: Callable[[Progress], None]) -> RunOutcome:
        begin(cast("Progress", None))  # nobody looks at it
        await asyncio.sleep(0)
        return RunOutcome(1.0, [], [], FillCounts({}, 0, 0), {})

    monkeypatch.setattr(live, "watch", watch)
    monkeypatch.setattr(operate, "simulate", run)
    assert (await operate.run_with_view(Plan(), NO_VENUE, Console(), headless=True)).holds
    (record,) = caplog.records
    assert record.getMessage() == "the view failed, the run went on: No space left on device"
    assert record.exc_info is None


async def test_a_run_may_open_as_many_files_as_the_system_lets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand clients need more than the usual soft limit."""
    _, most = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = []

    async def look(*_: object) -> None:
        seen.append(resource.getrlimit(resource.RLIMIT_NOFILE))

    monkeypatch.setattr(operate, "simulate", look)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, most), most))
    try:
        await operate.run_with_view(Plan(), NO_VENUE, Console(), headless=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert seen == [(most, most)]


async def test_a_market_whose_nats_is_away_too_is_told_as_away() -> None:
    """NATS is waited for as long as it takes, but not before an exchange has answered."""
    async with asyncio.timeout(20):
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            async with RunningVenue("127.0.0.1:1", nats="nats://127.0.0.1:1") as venue:
                await simulate(Plan(), venue)


@pytest.mark.parametrize("nested", [False, True])
def test_a_market_that_goes_away_is_told_in_a_line(
    nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever of the tasks hears of it first, alone or in a group of its own: no traceback."""

    async def follow(*_: object) -> NoReturn:
        gone = Unavailable("the exchange gave no answer")
        raise ExceptionGroup("of its own", [gone]) if nested else gone

    async def go_on(*_: object) -> NoReturn:
        await asyncio.sleep(60)
        raise AssertionError

    async def enter(plan: Plan, *_: object) -> Progress:
        trader, market = SimpleNamespace(follow=follow), SimpleNamespace(run=go_on)
        return Progress(cast("MarketWatch", market), [cast("Trader", trader)], [], 0.0, plan)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(by_hand, "_await_exchange", AsyncMock())
    monkeypatch.setattr(run, "_enter", enter)
    monkeypatch.setattr(run, "_trade_and_check", go_on)
    assert by_hand.start_clients() == 1
    assert capsys.readouterr().err == "the exchange gave no answer\n"


def test_a_violation_that_nobody_reads_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document about many clients is longer than what Python keeps before it writes."""
    broken = Check("no trade beyond an order's limit", 1, ["a trade beyond an order's limit"])
    outcome = RunOutcome(1.0, [], [broken], FillCounts({}, 0, 0), {})
    monkeypatch.setattr(operate, "Cluster", MagicMock(return_value=MagicMock(dashboard_url="")))
    monkeypatch.setattr(operate, "RunningVenue", MagicMock())
    monkeypatch.setattr(operate, "run_with_view", AsyncMock(return_value=outcome))
    with no_reader() as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(Unread) as violated:
            operate.main(["demo", "--json", "--no-dashboard"])
    assert violated.value.code == 1


async def interrupted(*_: object, **__: object) -> NoReturn:
    """What a person ends who presses Ctrl-C."""
    signal.raise_signal(signal.SIGINT)
    await asyncio.sleep(60)
    raise AssertionError


class InterruptedCluster(Cluster):
    """A market whose start is interrupted."""

    start = interrupted


@pytest.fixture(
    params=["simulation run", "simulation replay", "simulation chaos", "matchbus demo", "client_start.py"]
)
def run_interrupted(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], int]:
    """A command that is interrupted as soon as it has begun: its exit code."""
    monkeypatch.chdir(tmp_path)
    for module in (cli, operate):
        monkeypatch.setattr(module, "Cluster", InterruptedCluster)
    monkeypatch.setattr(cli, "fetch", lambda cache: cache / "a.whl")
    monkeypatch.setattr(cli, "chaos", interrupted)
    monkeypatch.setattr(by_hand, "_await_exchange", interrupted)
    program, *rest = request.param.split()
    mains = {"simulation": cli.main, "matchbus": operate.main}
    work = partial(mains[program], rest) if rest else by_hand.start_clients
    return partial(run_program, program, work)


def test_an_interrupted_run_is_neither_held_nor_violated(
    run_interrupted: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing was checked, so the exit code is that of an interrupt, the same for all."""
    assert run_interrupted() == INTERRUPTED
    assert capsys.readouterr().out.endswith("Stopped.\n")


def test_a_run_that_is_interrupted_together_with_its_reader_is_not_done(
    run_interrupted: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends `| tee` too, and then nobody reads that it stopped."""
    with no_reader() as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run_interrupted() == INTERRUPTED


def test_clients_with_an_unusable_certificate_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the environment names is not there: no traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MATCHBUS_TLS_CA", "/nowhere/ca.pem")
    assert by_hand.start_clients() == 1
    assert capsys.readouterr().err.endswith(" environment: /nowhere/ca.pem: No such file or directory\n")


@pytest.mark.parametrize("host", ["http://here", "127.0.0.1:50050", "10.0.0.0/8"])
def test_clients_are_told_a_host(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a port; what is none is named before anything is waited for."""
    monkeypatch.setenv("IP_ADDR", host)
    assert by_hand.start_clients() == 1
    assert capsys.readouterr().err.startswith(f"IP_ADDR in the environment: {host!r} is no host: write it")


def test_clients_without_an_exchange_say_where_they_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, for it may be just starting, and once more when it has not come, with what to do."""
    monkeypatch.setattr(by_hand, "START_DEADLINE_S", 0.5)
    monkeypatch.setenv("IP_ADDR", "127.93.7.1")
    assert by_hand.start_clients() == 1
    said = capsys.readouterr()
    assert said.out == "No exchange answers at 127.93.7.1:50050 yet: waiting up to 0.5 s for it\n"
    assert said.err.startswith("No exchange answers at 127.93.7.1:50050 (no answer within 0.5 s, ")
    assert "nobody listens there): start it with" in said.err
    assert "IP_ADDR" in said.err
