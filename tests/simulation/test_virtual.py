"""A market in virtual time: the same seed gives the same market, and what holds on processes holds there."""

import asyncio
import contextlib
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from bus.records import Chain
from client import Fill, OrderResult
from client.terms import OrderStatus
from engine.commands import decode
from engine.digest import state_digest
from engine.state import State
from engine.terms import OrderType, Side, TimeInForce
from exchange.runtime.instruments import read_instruments
from simulation import cli
from simulation.agents.arrivals import Steady
from simulation.agents.cast import Player, players, usual_mix
from simulation.agents.terms import Cancel, Intent, Submit, View
from simulation.audit import audits
from simulation.cluster import DEFAULT_INSTRUMENTS
from simulation.recording import Recording, SentOrder, TimedFill
from simulation.run import Plan, RunOutcome, simulate
from simulation.scenario import EngineFault, Scenario, ScenarioRefused, parse
from simulation.staging import staged
from simulation.trader import AgentFailed
from simulation.virtual import clock
from simulation.virtual.delays import USUAL, Delays, DelaySettings
from simulation.virtual.engine import DelayedJournal
from simulation.virtual.network import Life, Link, Message, Network
from simulation.virtual.venue import (
    VirtualVenue,
    open_venue,
    simulate_in_virtual_time,
    simulate_scenario,
)

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}
DEADLINE_S = 120.0
WINDOW_NS = 2_500_000
"""Longer than an append and two ways through the network take: by then a quote is known everywhere."""

SYMBOLS = ("AAPL", "BTC-USD")


def trade(
    seed: int,
    *,
    engines: int,
    duration_s: float = 4.0,
    faults: Sequence[EngineFault] = (),
    delays: DelaySettings = USUAL,
) -> tuple[RunOutcome, VirtualVenue]:
    """Six agents on this many engines, in two symbols; once all is quiet no leg is out."""
    listed = [entry for entry in read_instruments(DEFAULT_INSTRUMENTS) if entry.symbol in SYMBOLS]
    scenario = Scenario(
        seed=seed,
        duration_s=duration_s,
        engines=engines,
        symbols=SYMBOLS,
        agents=tuple(usual_mix(6, 20.0)),
        faults=tuple(faults),
    )

    async def run() -> tuple[RunOutcome, VirtualVenue]:
        async with open_venue(engines, listed, seed, delays) as venue:
            outcome = await simulate(staged(scenario, venue, print), venue)
            outcome.digests = await venue.digests()
            assert all(engine.is_quiet for engine in venue.engines.values()), seed
            return outcome, venue

    return clock.run(run)


def check(seed: int, outcome: RunOutcome, venue: VirtualVenue) -> list[str]:
    """Every check of the run, no call in vain; replayed, the journals give the same states, and no bug.

    Returns what the audit says of old views.
    """
    assert [(seed, check.violations) for check in outcome.checks if not check.holds] == []
    assert [(seed, trader.name) for trader in outcome.traders if trader.failures] == []
    market, records = audits(venue.engines, WINDOW_NS), []
    for number, engine in venue.engines.items():
        chain, state = Chain(number), State(number)
        for sequence, stored in enumerate(engine.journal.stored, start=1):
            record = chain.accept(sequence, stored)
            assert record is not None
            records.append(record)
            state.begin_batch(record.batch_number, record.time_ns)
            for command in decode(record.commands):
                state.apply(command)
            state.end_batch()
        assert state_digest(state).hex() == outcome.digests[number], (seed, number)
    for record in sorted(records, key=lambda record: record.time_ns):
        market[record.engine].add_batch(record.batch_number, record.time_ns, decode(record.commands))
    assert [(seed, bug) for audit in market.values() for bug in audit.bugs] == []
    return [old for audit in market.values() for old in audit.old_view_examples]


def report_of(folder: Path, seed: int, hash_seed: int) -> dict[str, bytes]:
    """The files of a report, made by the command in a process with hashes of its own."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "simulation", "run", "--virtual", "--duration", "3", "--seed", str(seed)),
            *("--engines", "3", "--report", str(folder / "out")),
        ],
        cwd=folder,
        env={**ENVIRONMENT, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All checks hold." in done.stdout
    return {file.name: file.read_bytes() for file in (folder / "out").iterdir()}


def test_the_same_seed_gives_the_same_market(tmp_path: Path) -> None:
    """Byte for byte, whatever the process and its hashes; another seed gives another one."""
    folders = [tmp_path / name for name in ("first", "again", "other")]
    for folder in folders:
        folder.mkdir()
    first = report_of(folders[0], 7, hash_seed=1)
    assert first == report_of(folders[1], 7, hash_seed=2)
    other = report_of(folders[2], 8, hash_seed=1)
    assert first.keys() == other.keys()
    assert first["fills.csv"] != other["fills.csv"]


@pytest.mark.parametrize(("engines", "seeds"), [(1, range(2)), (2, range(6)), (4, range(3))])
def test_all_that_is_checked_holds(engines: int, seeds: range) -> None:
    """For many seeds; without faults no decision passes over a quote that stood for long, either."""
    routed = 0
    for seed in seeds:
        outcome, venue = trade(seed, engines=engines)
        assert (seed, check(seed, outcome, venue)) == (seed, [])
        assert outcome.fills.total > 0
        routed += outcome.fills.through_legs
    assert (routed > 0) == (engines > 1)


SLOWEST = DelaySettings(
    link_ms=(100.0, 100.0), call_ms=(500.0, 500.0), append_ms=(500.0, 500.0), restart_ms=(60_000.0, 60_000.0)
)


@pytest.mark.parametrize("faults", [(), (EngineFault(at_s=2.0, kind="kill", engine=1),)])
@pytest.mark.parametrize(
    "delays", [SLOWEST, DelaySettings(link_ms=(0.0, 100.0)), DelaySettings(*[(0, 0)] * 4)]
)
def test_all_that_is_checked_holds_whatever_the_delays(
    delays: DelaySettings, faults: Sequence[EngineFault]
) -> None:
    """Up to the longest that a scenario may say, and down to none."""
    for seed in range(2):
        check(seed, *trade(seed, engines=2, faults=faults, delays=delays))


@pytest.mark.parametrize(
    ("delays", "engines", "took_ms"),
    [
        (DelaySettings(call_ms=(7.0, 7.0), append_ms=(20.0, 20.0)), 1, 7 + 20 + 7),
        (
            DelaySettings(link_ms=(3.0, 3.0), call_ms=(7.0, 7.0), append_ms=(20.0, 20.0)),
            2,
            7 + 2 * 3 + 20 + 2 * 3 + 7,  # catch up, append, shown: docs/decisions/0008-causal-market.md
        ),
    ],
)
def test_an_answer_takes_the_delays_of_its_way(delays: DelaySettings, engines: int, took_ms: float) -> None:
    """To the engine, two round trips where there are peers, the append, and back."""

    async def ask() -> float:
        listed = read_instruments(DEFAULT_INSTRUMENTS)
        async with open_venue(engines, listed, 1, delays) as venue, venue.account("a") as account:
            began_s = asyncio.get_running_loop().time()
            await account.submit("AAPL", "buy", 1, "9.00")
            return asyncio.get_running_loop().time() - began_s

    assert clock.run(ask) * 1_000 == pytest.approx(took_ms, abs=0.1)


def test_a_restart_takes_what_is_said() -> None:
    """From the end of one process to the start of the next."""

    async def kill() -> float:
        listed = read_instruments(DEFAULT_INSTRUMENTS)
        async with open_venue(1, listed, 1, DelaySettings(restart_ms=(5_000.0, 5_000.0))) as venue:
            began_s = asyncio.get_running_loop().time()
            venue.kill(1)
            while not venue.is_running(1):  # noqa: ASYNC110 -- nobody tells
                await asyncio.sleep(0.001)
            return asyncio.get_running_loop().time() - began_s

    assert clock.run(kill) == pytest.approx(5, abs=0.01)


def test_the_usual_delays_draw_as_ever() -> None:
    """The same floats of a seed, or figures of before could not be run again."""
    delays, drawn = Delays(7), random.Random("7/delays")
    for draw, bounds_s in (
        (delays.link_s, (0.000_05, 0.000_25)),
        (delays.call_s, (0.000_15, 0.000_6)),
        (delays.append_s, (0.000_3, 0.001_5)),
        (delays.restart_s, (0.8, 1.6)),
    ):
        for _ in range(100):
            assert draw() == drawn.uniform(*bounds_s)


def test_a_report_tells_the_delays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual ones where a scenario says none; what it tells makes the same market again."""
    monkeypatch.chdir(tmp_path)
    text = 'duration_s = 2\n[[agents]]\nkind = "random"\ncount = 4\n'
    digests = []
    for more, delays in (("", USUAL), ("[delays]\nlink_ms = [2, 30]\n", DelaySettings(link_ms=(2.0, 30.0)))):
        (tmp_path / "my.toml").write_text(text + more)
        assert cli.main(["run", "--virtual", "--scenario", "my.toml", "--report", "out"]) == 0
        told = json.loads((tmp_path / "out" / "outcome.json").read_text())
        digests.append(told["digests"])
        scenario = msgspec.convert(told["scenario"], Scenario)
        assert scenario.delays == delays
        assert simulate_scenario(scenario).digests == simulate_scenario(parse(text + more, SYMBOLS)).digests
        plan = Plan(players=players(scenario.agents, 1), named_symbols=("AAPL",), duration_s=2.0)
        assert simulate_in_virtual_time(plan, engines=2, delays=delays).fills.total > 0
    assert digests[0] != digests[1]


def test_delays_of_processes_are_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of delays is refused there, rather than passed over, before anything starts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text('[delays]\n[[agents]]\nkind = "random"\n')
    assert cli.main(["run", "--scenario", "my.toml"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("delays are of virtual time: ")
    assert "add --virtual" in said


def test_the_end_of_a_run_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task returned is put into words at its end: not all orders and fills, once per client."""
    worded: list[Fill] = []

    def word(fill: Fill) -> str:
        worded.append(fill)
        return ""

    monkeypatch.setattr(Fill, "__repr__", word)
    agents = players(usual_mix(3, 20.0), 1)
    plan = Plan(players=agents, named_symbols=("AAPL",), duration_s=2.0, recording=Recording())
    assert simulate_in_virtual_time(plan, engines=1).fills.total > 0
    assert worded == []


class Wanting:
    """An agent that wants the same again and again."""

    def __init__(self, decide: Callable[[], list[Any]]) -> None:
        self._decide = decide

    def decide(self, views: Sequence[View]) -> list[Intent]:
        """Whatever it sees."""
        assert views
        return self._decide()


def trade_beside(decide: Callable[[], list[Any]]) -> RunOutcome:
    """Two usual agents and this one, which is called ours."""
    agents = players(usual_mix(2, 20.0), 1)
    agents["ours"] = Player("wanting", Wanting(decide), Steady(10.0))
    return simulate_in_virtual_time(Plan(players=agents, named_symbols=("AAPL",), duration_s=1.0), engines=2)


def divide_by_zero() -> list[Any]:
    """A mistake."""
    return [1 // 0]


def ask_a_task() -> list[Any]:
    """A task of the agent's own, which was cancelled."""
    asking: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    asking.cancel()
    return asking.result()


def order(**wrong: object) -> list[Any]:
    """An order with something wrong about it."""
    terms = {"symbol": "AAPL", "side": Side.BUY, "price": 9_000, "quantity": 1, **wrong}
    return [Submit(type=OrderType.LIMIT, time_in_force=TimeInForce.GTC, **cast("Any", terms))]


@pytest.mark.parametrize(
    ("decide", "said", "why"),
    [
        (divide_by_zero, r", AAPL\) after 0\.\d{3} s: ZeroDivisionError: ", ZeroDivisionError),
        (ask_a_task, r", AAPL\) after 0\.\d{3} s: CancelledError: ", asyncio.CancelledError),
        (lambda: cast("Any", None), r", AAPL\) after 0\.\d{3} s: TypeError: 'NoneType' object", TypeError),
        (lambda: ["buy"], r"\) after 0\.\d{3} s: 'buy' is no Submit, Cancel or Replace", None),
        (lambda: order(symbol="NOPE"), r", NOPE\) after .* Submit\(symbol='NOPE'.* cannot be sent", KeyError),
        (
            lambda: order(price=90.5),
            r", AAPL\) after .* price=90\.5, .* cannot be sent: TypeError: ",
            TypeError,
        ),
        (lambda: order(side="buy"), r", AAPL\) after .* side='buy', .* cannot be sent: ", AttributeError),
    ],
)
def test_an_agent_that_fails_is_named(
    decide: Callable[[], list[Any]], said: str, why: type[BaseException] | None
) -> None:
    """With its symbol and the time, in one error; what its own code raised shows nothing but that code."""
    with pytest.raises(AgentFailed, match=r"^agent ours \(wanting" + said) as failed:
        trade_beside(decide)
    assert str(pickle.loads(pickle.dumps(failed.value))) == str(failed.value)  # out of a pool of processes
    error = failed.value.__cause__
    assert type(error) is (why or type(None))
    if isinstance(error, ZeroDivisionError):
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert frames == ["decide", "divide_by_zero"]


def test_one_more_agent_takes_nothing_of_the_others_chance() -> None:
    """Beside one that does nothing the others send and trade the same, at the same times."""

    def traded(*more: str) -> tuple[list[SentOrder], list[TimedFill], dict[int, str]]:
        agents = players(usual_mix(4, 20.0), 1)
        for name in more:
            agents[name] = Player("idle", Wanting(list), Steady(10.0))
        recording = Recording()
        plan = Plan(players=agents, named_symbols=("AAPL",), duration_s=3.0, recording=recording)
        outcome = simulate_in_virtual_time(plan, engines=2)
        assert outcome.fills.through_legs > 0
        return recording.orders, recording.fills, outcome.digests

    assert traded() == traded("idle") == traded("idle", "also-idle")


def test_steady_agents_step_beside_each_other_as_the_seed_says() -> None:
    """Seeds differ in who comes before whom, or a hundred of them would tell of one order only."""

    def steps(seed: int) -> list[tuple[float, str]]:
        stepped: list[tuple[float, str]] = []

        def step(name: str) -> list[Any]:
            stepped.append((asyncio.get_running_loop().time(), name))
            return []

        names = [f"agent-{number}" for number in range(8)]
        agents = {name: Player("idle", Wanting(partial(step, name)), Steady(1.0)) for name in names}
        plan = Plan(players=agents, named_symbols=("AAPL",), duration_s=0.999, seed=seed)
        simulate_in_virtual_time(plan, engines=1)
        assert sorted(name for _, name in stepped) == names
        assert len({at_s for at_s, _ in stepped}) == len(names)
        return stepped

    assert steps(1) == steps(1)
    assert len({tuple(name for _, name in steps(seed)) for seed in range(5)}) == 5


def test_an_agent_may_cancel_what_nobody_knows() -> None:
    """As on a market of processes: it is refused."""
    outcome = trade_beside(lambda: [Cancel("unheard-of")])
    assert outcome.holds
    assert outcome.traders[-1].refusals == {"unknown_order": outcome.traders[-1].cancels}
    assert outcome.traders[-1].cancels > 0


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_lost_when_engines_die(seed: int) -> None:
    """However they are killed and frozen in the midst of orders and legs."""
    source = random.Random(seed)
    faults = [
        EngineFault(
            source.uniform(0.2, 3.9),
            source.choice(("kill", "kill", "freeze", "restart")),
            source.randint(1, 3),
            source.choice((0.05, 0.2, 0.5, 1.0)),
        )
        for _ in range(6)
    ]
    outcome, venue = trade(seed, engines=3, faults=faults)
    check(seed, outcome, venue)
    assert outcome.fills.through_legs > 0
    assert sum(engine.state.epoch for engine in venue.engines.values()) > 3


def test_clients_wait_for_a_frozen_engine() -> None:
    """Whatever they ask, whether or not its journal is needed for it; those of other engines do not."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        listed = read_instruments(DEFAULT_INSTRUMENTS)
        async with open_venue(2, listed, 1) as venue, venue.account("a") as a, venue.account("b") as b:
            await a.submit("AAPL", "buy", 2, "9.00")
            await b.submit("AAPL", "sell", 1, "9.00")
            assert (a.engine, b.engine) == (1, 2)
            frozen_s = loop.time()
            venue.freeze(1, 2.0)
            await asyncio.sleep(0.1)

            async def first_fill() -> Fill:
                async with contextlib.aclosing(a.fills()) as fills:
                    return await anext(fills)

            async def took_s(call: Coroutine[Any, Any, object]) -> float:
                await call
                return round(loop.time() - frozen_s, 9)

            waited_s = await asyncio.gather(
                *map(took_s, (a.submit("AAPL", "buy", 1, "8.00"), a.open_orders(), first_fill())),
                took_s(b.open_orders()),
            )
            assert all(2.0 <= one < 2.1 for one in waited_s[:3]), waited_s
            assert waited_s[3] < 0.2
            assert len(await a.open_orders()) == 2

    clock.run(run)


def test_a_frozen_engine_may_die() -> None:
    """Also while it starts: its clients are served as soon as the next process does, and it never goes on."""

    async def run() -> None:
        async with open_venue(2, read_instruments(DEFAULT_INSTRUMENTS), 1) as venue, venue.account("a") as a:
            venue.freeze(1, 30.0)
            call = asyncio.create_task(a.submit("AAPL", "buy", 1, "9.00"))
            await asyncio.sleep(1.0)
            venue.kill(1)
            while not venue.is_running(1):  # noqa: ASYNC110 -- nobody tells
                await asyncio.sleep(0.000_01)
            venue.freeze(1, 30.0)  # before it has begun its reign
            await asyncio.sleep(0.000_01)
            venue.kill(1)
            async with asyncio.timeout(4.0):
                assert (await call).status == OrderStatus.NEW
            await asyncio.sleep(60.0)  # until the freezes would have been over
            async with asyncio.timeout(0.1):
                assert len(await a.open_orders()) == 1
            assert venue.engines[1].state.epoch == 2

    clock.run(run)


def test_a_change_sent_again_was_done() -> None:
    """Where the first attempt was stored and its answer lost, its client is told what it did."""

    async def run() -> None:
        async with open_venue(1, read_instruments(DEFAULT_INSTRUMENTS), 1) as venue, venue.account("a") as a:

            async def answer_lost(change: Coroutine[None, None, OrderResult]) -> OrderResult:
                stored = len(venue.engines[1].journal.stored)
                asked = asyncio.create_task(change)
                while len(venue.engines[1].journal.stored) == stored:  # noqa: ASYNC110 -- nobody tells
                    await asyncio.sleep(0.000_01)
                venue.kill(1)
                async with asyncio.timeout(4.0):
                    return await asked

            bought, sold = await a.submit("AAPL", "buy", 1, "9.00"), await a.submit("AAPL", "sell", 1, "9.01")
            replaced = await answer_lost(
                a.replace(client_order_id=sold.client_order_id, price="9.00", quantity=1)
            )
            assert (replaced.status, replaced.duplicate) == (OrderStatus.FILLED, True)
            assert (await a.cancel(client_order_id=bought.client_order_id)).rejected
            bought = await a.submit("AAPL", "buy", 1, "9.00")
            cancelled = await answer_lost(a.cancel(client_order_id=bought.client_order_id))
            assert (cancelled.status, cancelled.duplicate) == (OrderStatus.CANCELLED, True)

    clock.run(run)


def test_a_day_passes_at_once() -> None:
    """Waiting takes no time, and every clock of the process says how long it was."""

    async def sleep() -> tuple[float, float, int]:
        began_s, began_ns = time.monotonic(), time.time_ns()
        await asyncio.sleep(86_400)
        return time.monotonic() - began_s, time.perf_counter() - began_s, time.time_ns() - began_ns

    real_s = time.monotonic()
    assert clock.run(sleep) == (86_400.0, 86_400.0, 86_400_000_000_000)
    assert time.monotonic() - real_s < 60


def test_other_threads_hear_the_time_of_the_market() -> None:
    """A thread of whoever runs one may log, say: each line asks for the time."""
    heard: list[float] = []

    def hear() -> None:
        heard.extend((time.monotonic(), time.time(), time.time_ns()))

    async def sleep() -> None:
        await asyncio.sleep(60)
        thread = threading.Thread(
            target=lambda: heard.extend((time.monotonic(), time.time(), time.time_ns()))
        )
        thread.start()
        thread.join(DEADLINE_S)

    clock.run(sleep)
    start_ns = clock.START_NS
    assert heard == [60, start_ns / 1e9 + 60, start_ns + 60_000_000_000]


@pytest.mark.parametrize("another_s", [0.1, 0.3, 0.7])
def test_one_timer_more_changes_nothing_for_the_others(another_s: float) -> None:
    """Neither their times, to the last digit, nor the order of those that are due together."""

    def woken(*, ticking: bool) -> list[tuple[int, float]]:
        seen: list[tuple[int, float]] = []

        async def wake(number: int, chance: random.Random) -> None:
            for _ in range(50):
                await asyncio.sleep(chance.choice((0.1, 0.2, 0.3, 1 / 3)))
                seen.append((number, time.monotonic()))

        async def tick() -> None:
            while True:  # noqa: ASYNC110 -- a timer is what is tested
                await asyncio.sleep(another_s)

        async def run() -> None:
            ticks = asyncio.create_task(tick()) if ticking else None
            await asyncio.gather(*(wake(number, random.Random(number)) for number in range(20)))
            if ticks is not None:
                ticks.cancel()

        clock.run(run)
        return seen

    assert woken(ticking=True) == woken(ticking=False)


def test_one_market_at_a_time_rules_the_clocks() -> None:
    """A second one in a thread is refused: each would go by the other's time. Then they are free again."""
    refused: list[str] = []

    def begin() -> None:
        try:
            clock.run(lambda: asyncio.sleep(1))
        except RuntimeError as error:
            refused.append(str(error))

    async def begin_beside() -> None:
        thread = threading.Thread(target=begin)
        thread.start()
        thread.join(DEADLINE_S)

    before = time.time
    clock.run(begin_beside)
    assert [text.partition(":")[0] for text in refused] == ["one market at a time rules a process's clocks"]
    begin()
    assert len(refused) == 1
    assert time.time is before


def test_nobody_waits_for_ever() -> None:
    """When no timer runs and nobody can go on, that is an error, not a standstill."""

    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="everybody waits"):
        clock.run(wait)


async def test_a_link_keeps_its_order() -> None:
    """However the delays fall, messages of one link arrive in the order in which they left, either way."""
    async with asyncio.TaskGroup() as group:
        network, life = Network(Delays(3)), Life(group)
        sender, reader = network.link(life), network.link(life)
        heard: list[bytes] = []
        done = asyncio.Event()

        async def hear(message: Message) -> None:
            heard.append(message.data)
            if len(heard) == 200:
                done.set()

        await reader.subscribe("a.*.c", cb=hear)
        await reader.subscribe("x.>", cb=hear)
        for number in range(100):
            await sender.publish("a.b.c", str(2 * number).encode())
            await sender.publish("x.y.z", str(2 * number + 1).encode())
            await sender.publish("a.b", b"nobody's")
            await sender.publish("a.b.c.d", b"nobody's")
            await sender.publish("x", b"nobody's")
        async with asyncio.timeout(10):
            await done.wait()
    assert sorted(heard, key=int) == [str(number).encode() for number in range(200)]
    for kind in (0, 1):  # each subscription takes its own in order
        assert [int(data) for data in heard if int(data) % 2 == kind] == list(range(kind, 200, 2))


async def test_questions_and_the_end_of_a_subscription() -> None:
    """An answer comes to who asked; who has unsubscribed hears nothing, not even what was under way."""
    async with asyncio.TaskGroup() as group:
        network, life = Network(Delays(3)), Life(group)
        asking, answering = network.link(life), network.link(life)
        heard: list[bytes] = []

        async def hear(message: Message) -> None:
            heard.append(message.data)

        async def answer(message: Message) -> None:
            await answering.publish(message.reply, b"to " + message.data)

        subscription = await asking.subscribe("news", cb=hear)
        await answering.subscribe("question", cb=answer)
        await answering.publish("news", b"heard by nobody")
        await subscription.unsubscribe()
        assert (await asked(asking, b"one")).data == b"to one"
        assert (await asked(asking, b"two")).data == b"to two"
    assert heard == []


def test_freezes_that_overlap_end_together() -> None:
    """What comes meanwhile waits until the last of them is over, and then comes in its order."""
    heard: list[tuple[float, bytes]] = []

    async def freeze_twice() -> None:
        async with asyncio.TaskGroup() as group:
            network, life = Network(Delays(3)), Life(group)

            async def hear(message: Message) -> None:
                heard.append((asyncio.get_running_loop().time(), message.data))

            await network.link(life).subscribe("news", cb=hear)
            for lasts_s in (5.0, 2.0):
                group.create_task(life.freeze(lasts_s))
            for data in (b"first", b"second"):
                network.route(Message("news", data))
                await asyncio.sleep(1)

    clock.run(freeze_twice)
    assert heard == [(5.0, b"first"), (5.0, b"second")]


@pytest.mark.parametrize("frozen", [False, True])
def test_who_was_killed_hears_nothing_any_more(frozen: bool) -> None:
    """Not even what was on its way, nor what a freeze had held up."""
    heard: list[bytes] = []

    async def kill() -> None:
        async with asyncio.TaskGroup() as group:
            network, life = Network(Delays(3)), Life(group)

            async def hear(message: Message) -> None:
                heard.append(message.data)

            await network.link(life).subscribe("news", cb=hear)
            if frozen:
                group.create_task(life.freeze(2))
            await asyncio.sleep(0)
            network.route(Message("news", b"too late"))
            await asyncio.sleep(1 if frozen else 0)
            life.end()

    clock.run(kill)
    assert heard == []


@pytest.mark.parametrize("stored", [False, True])
def test_the_journal_of_a_frozen_engine_takes_and_says_nothing(stored: bool) -> None:
    """Whether a batch is on its way to the disk, or the word that it is there on its way back."""

    async def append() -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            life = Life(group)
            journal = DelayedJournal(1, [], Delays(3), life)
            appending = group.create_task(journal.append(1, 1, b"\x90"))
            while stored and not journal.stored:  # noqa: ASYNC110 -- nobody tells
                await asyncio.sleep(1e-5)
            began_s = loop.time()
            freezing = group.create_task(life.freeze(5))
            await asyncio.sleep(4)
            assert len(journal.stored) == stored
            await appending
            assert loop.time() - began_s >= 5
            await freezing

    clock.run(append)


def test_a_command_whose_answer_was_lost_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a client: the process died behind the commit, and the next one gives the first answer."""

    async def lose() -> bool:
        listed = read_instruments(DEFAULT_INSTRUMENTS)
        async with open_venue(1, listed, 3) as venue, venue.account("ann") as account:
            servicer = venue.engines[1].servicer
            submit_order = servicer.SubmitOrder

            async def answer_and_die(*call: Any) -> Any:
                answer = await submit_order(*call)
                asyncio.get_running_loop().call_soon(venue.kill, 1)
                return answer

            monkeypatch.setattr(servicer, "SubmitOrder", answer_and_die)
            return (await account.submit("AAPL", "buy", "1", "100")).duplicate

    assert clock.run(lose)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_market_may_end_while_an_engine_is_frozen(interrupted: bool) -> None:
    """In order, or with what interrupted it and nothing else."""

    async def leave() -> None:
        async with open_venue(1, read_instruments(DEFAULT_INSTRUMENTS), 3) as venue:
            venue.freeze(1, 5)
            await asyncio.sleep(1)
            if interrupted:
                raise asyncio.CancelledError

    if interrupted:
        with pytest.raises(asyncio.CancelledError):
            clock.run(leave)
    else:
        clock.run(leave)


async def asked(link: Link, question: bytes) -> Message:
    """The answer to a question."""
    async with asyncio.timeout(10):
        return await link.request("question", question, float("inf"))


def test_warnings_of_engines_say_when_and_what(tmp_path: Path) -> None:
    """On stderr in the market's time, with what they are about, such as legs that a death leaves open."""
    scenario = 'duration_s = 9\nsymbols = ["AAPL"]\n[[agents]]\nkind = "random"\ncount = 16\n'
    for at_s in (1, 3, 5, 7):  # often enough to come while a leg is out
        scenario += f'[[faults]]\nat_s = {at_s}\nkind = "freeze"\nengine = 2\nlasts_s = 1\n'
    (tmp_path / "my.toml").write_text(scenario)
    command = [sys.executable, "-m", "simulation", "run", "--virtual", "--scenario", "my.toml"]
    done = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    lines = done.stderr.splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"202[56]-.* WARNING routing: legs have no answer.* leg=\d+ peer=2 .*", line)


def test_a_standby_needs_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused, and says what to do, before anything starts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text('duration_s = 5\nstandbys = 1\n[[agents]]\nkind = "random"\n')
    assert cli.main(["run", "--virtual", "--scenario", "my.toml"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("standbys is 1: ")
    assert "leave out --virtual" in said


def test_ctrl_c_stops_it(tmp_path: Path) -> None:
    """Although time runs ahead: it says so, and ends with 130."""
    command = [sys.executable, "-m", "simulation", "run", "--virtual", "--duration", "86400"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert " of 86400 s: " in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert rest.endswith("Stopped.\n")


def test_the_program_of_the_page(tmp_path: Path) -> None:
    """It writes a report for each seed, with what its own agent traded."""
    page = (ROOT / "docs" / "simulation.md").read_text()
    program = next(
        block for block in re.findall(r"```python\n(.*?)```\n", page, re.DOTALL) if "also=" in block
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["1", "2", "3"]
    for seed in (1, 2, 3):
        assert ",ours-1,ours," in (tmp_path / "out" / str(seed) / "fills.csv").read_text()
        faults = (tmp_path / "out" / str(seed) / "faults.jsonl").read_text().splitlines()
        assert [json.loads(fault)["kind"] for fault in faults] == ["freeze"]


A_STRICKEN_MARKET = """
seed = 4
duration_s = 4
engines = 3
symbols = ["AAPL", "MSFT"]
[fundamental]
[[agents]]
kind = "random"
count = 3
[[agents]]
kind = "maker"
count = 2
[agents.arrival]
kind = "hawkes"
[[agents]]
kind = "informed"
count = 2
[[faults]]
at_s = 1
kind = "freeze"
engine = 2
lasts_s = 1
[[faults]]
at_s = 2
kind = "kill"
engine = 1
"""


@pytest.mark.parametrize("delays", ["", "[delays]\nlink_ms = [2, 30]\n"])
def test_a_program_runs_what_the_command_does(
    delays: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same scenario ends in the same states, though the command also wakes to show its progress."""
    monkeypatch.chdir(tmp_path)
    text = A_STRICKEN_MARKET + delays
    (tmp_path / "my.toml").write_text(text)
    assert cli.main(["run", "--virtual", "--scenario", "my.toml", "--report", "out"]) == 0
    digests = json.loads((tmp_path / "out" / "outcome.json").read_text())["digests"]
    outcome = simulate_scenario(parse(text, ["AAPL", "MSFT"]))
    assert {str(engine): digest for engine, digest in outcome.digests.items()} == digests


def test_a_scenario_that_cannot_be_run_in_virtual_time_is_refused() -> None:
    """From a program as by the command."""
    group = usual_mix(1, 20.0)[0]
    fault = EngineFault(at_s=1.0, kind="kill", engine=2)
    for wrong in (
        Scenario(agents=(group,), standbys=1),
        Scenario(agents=(group,), engines=1, faults=(fault,)),
        Scenario(agents=(group,), delays=DelaySettings(link_ms=(2.0, 1.0))),
    ):
        with pytest.raises(ScenarioRefused):
            simulate_scenario(wrong)


def test_compare_agents() -> None:
    """The example says the same each time, and something else of each quantity."""
    command = [sys.executable, str(ROOT / "examples" / "compare_agents.py"), "2"]
    first, again = (
        subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout
        for _ in range(2)
    )
    assert first == again
    lines = first.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["quantity  10", "quantity  50", "quantity 200"]
    assert len({line.partition(":")[2] for line in lines}) == 3
    done = subprocess.run([*command[:2], "many"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "compare_agents.py [SEEDS]" in done.stderr
