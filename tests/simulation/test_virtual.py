"""A market in virtual time: the same seed gives the same market, and what holds on processes holds there."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bus.records import decode_record
from engine.commands import decode
from exchange.runtime.instruments import read_instruments
from simulation import cli
from simulation.agents.cast import players, usual_mix
from simulation.audit import audits
from simulation.cluster import DEFAULT_INSTRUMENTS
from simulation.run import Plan, RunOutcome, simulate
from simulation.virtual import clock
from simulation.virtual.network import Delays, Link, Message, Network
from simulation.virtual.venue import VirtualVenue, open_venue

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 120.0
WINDOW_NS = 150_000_000
SYMBOLS = ("AAPL", "BTC-USD")


def trade(seed: int, *, engines: int, duration_s: float = 4.0) -> tuple[RunOutcome, VirtualVenue]:
    """Six agents on this many engines, in two symbols."""
    listed = [entry for entry in read_instruments(DEFAULT_INSTRUMENTS) if entry.symbol in SYMBOLS]
    plan = Plan(
        "", players=players(usual_mix(6, 20.0), seed), named_symbols=SYMBOLS, duration_s=duration_s, seed=seed
    )

    async def run() -> tuple[RunOutcome, VirtualVenue]:
        async with open_venue(engines, listed, seed) as venue:
            return await simulate(plan, venue=venue), venue

    return clock.run(run)


def report_of(folder: Path, seed: int, hash_seed: int) -> dict[str, bytes]:
    """The files of a report, made by the command in a process with hashes of its own."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "simulation", "run", "--virtual", "--duration", "3", "--seed", str(seed)),
            *("--engines", "3", "--report", str(folder / "out")),
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]),
            "PYTHONHASHSEED": str(hash_seed),
        },
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
    """For many seeds: every check of a run, no call in vain, and no decision that the audit calls a bug."""
    routed = 0
    for seed in seeds:
        outcome, venue = trade(seed, engines=engines)
        assert [(seed, check.violations) for check in outcome.checks if not check.holds] == []
        assert outcome.fills.total > 0
        assert [trader.failures for trader in outcome.traders if trader.failures] == []
        routed += outcome.fills.through_legs
        market = audits(venue.engines, WINDOW_NS)
        records = [
            decode_record(stored) for engine in venue.engines.values() for stored in engine.journal.stored
        ]
        for record in sorted(records, key=lambda record: record.time_ns):
            market[record.engine].add_batch(record.batch_number, record.time_ns, decode(record.commands))
        assert [(seed, bug) for audit in market.values() for bug in audit.bugs] == []
        assert [(seed, old) for audit in market.values() for old in audit.old_view_examples] == []
    assert (routed > 0) == (engines > 1)


def test_a_day_passes_at_once() -> None:
    """Waiting takes no time, and every clock of the process says how long it was."""

    async def sleep() -> tuple[float, float, int]:
        began_s, began_ns = time.monotonic(), time.time_ns()
        await asyncio.sleep(86_400)
        return time.monotonic() - began_s, time.perf_counter() - began_s, time.time_ns() - began_ns

    real_s = time.monotonic()
    assert clock.run(sleep) == (86_400.0, 86_400.0, 86_400_000_000_000)
    assert time.monotonic() - real_s < 60


def test_nobody_waits_for_ever() -> None:
    """When no timer runs and nobody can go on, that is an error, not a standstill."""

    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="everybody waits"):
        clock.run(wait)


async def test_a_link_keeps_its_order() -> None:
    """However the delays fall, messages of one link arrive in the order in which they left, either way."""
    async with asyncio.TaskGroup() as group:
        network = Network(Delays(3), group)
        sender, reader = network.link(), network.link()
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
        network = Network(Delays(3), group)
        asking, answering = network.link(), network.link()
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


async def asked(link: Link, question: bytes) -> Message:
    """The answer to a question."""
    async with asyncio.timeout(10):
        return await link.request("question", question, float("inf"))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('[[faults]]\nat_s = 1\nkind = "freeze"\nengine = 1', "faults[0] is a freeze"),
        ("standbys = 1", "standbys is 1"),
    ],
)
def test_what_needs_processes_is_refused(
    more: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what is wrong and what to do, before anything starts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(f'duration_s = 5\n{more}\n[[agents]]\nkind = "random"\n')
    if more.startswith("[["):
        (tmp_path / "my.toml").write_text(f'duration_s = 5\n[[agents]]\nkind = "random"\n{more}\n')
    assert cli.main(["run", "--virtual", "--scenario", "my.toml"]) == 1
    said = capsys.readouterr().err
    assert told in said
    assert "--virtual" in said


def test_ctrl_c_stops_it(tmp_path: Path) -> None:
    """Although time runs ahead: it says so, and ends with 130."""
    command = [sys.executable, "-m", "simulation", "run", "--virtual", "--duration", "86400"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert " of 86400 s: " in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert rest.endswith("Stopped.\n")
