"""`matchbus journal`: what it says about a whole journal, a damaged one and none."""

import asyncio
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import pytest
from matchbus.program import USAGE_ERROR, Unread
from rich.console import Console

from bus import provision, records, subjects
from bus.connection import Connection
from bus.journal import JetStreamJournal
from bus.records import JournalPosition, Record, encode_record
from bus.server import NatsServer
from bus.snapshots import SnapshotStore
from client.cli.failures import Failure
from engine import snapshot
from engine.commands import AddInstrument, CancelOrder, Command, EpochStarted, NewOrder, encode
from engine.digest import state_digest
from engine.runtime.snapshots import make
from engine.state import State
from simulation import journal_tools, matchbus, nats_option
from simulation.nats_option import NOTHING_FOUND
from tests.client.cli.outputs import no_reader
from tests.waiting import hold_up_a_reader

ACTIONS = ("verify", "dump", "digest")
COMMANDS: list[list[Command]] = [
    [EpochStarted(1)],
    [AddInstrument("AAA", "0.01", "1")],
    [NewOrder("ann", "a1", "AAA", 1, 1, 1, 100, 5), NewOrder("bob", "b1", "AAA", 2, 1, 1, 100, 2)],
    [CancelOrder("ann", 0, "a1")],
]


@pytest.fixture
async def journal(nats_connection: Connection, engine: int) -> JetStreamJournal:
    """A journal with a few real commands, a second epoch and a zombie's record behind it."""
    await provision.provision_journal(nats_connection, engine)
    written = JetStreamJournal(nats_connection, engine)
    zombie = JournalPosition()
    for number, commands in enumerate(COMMANDS, 1):
        zombie = written.position
        await written.append(1, number * 10, encode(commands))
    await written.append(2, 50, encode([EpochStarted(2)]))
    await force(nats_connection, engine, encode_record(engine, 1, zombie, 60, encode([EpochStarted(1)])))
    return written


@pytest.fixture
async def trimmable(nats_connection: Connection, engine: int) -> JetStreamJournal:
    """A journal with a few real commands, which may be trimmed."""
    await provision.provision_journal(nats_connection, engine, trimmable=True)
    written = JetStreamJournal(nats_connection, engine)
    for number, commands in enumerate(COMMANDS, 1):
        await written.append(1, number * 10, encode(commands))
    return written


async def force(connection: Connection, engine: int, payload: bytes) -> None:
    """Store a record as a writer without manners would."""
    await connection.jetstream().publish(subjects.journal(engine), payload)


async def tool(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run `matchbus journal` as a child; exit code, output, errors."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simulation.matchbus", "journal", *arguments),
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, errors = await child.communicate()
    assert child.returncode is not None
    return child.returncode, output.decode(), errors.decode()


async def test_a_whole_journal_is_counted(
    shared_server: NatsServer, journal: JetStreamJournal, engine: int
) -> None:
    """`verify` tells records, batches, commands, epochs, ignored records, last digest, and exits with 0."""
    where = (str(engine), "--nats", shared_server.url)
    as_json, as_text = await asyncio.gather(tool("verify", *where, "--json"), tool("verify", *where))
    code, output, errors = as_json
    assert (code, errors) == (0, "")
    assert json.loads(output) == {
        "engine": engine,
        "stream": f"JOURNAL_{engine}",
        "records": 6,
        "batches": 5,
        "first_batch": 1,
        "commands": 6,
        "epochs": [1, 2],
        "replaced_records": 1,
        "last_batch": 5,
        "last_digest": journal.position.digest.hex(),
        "damaged_at": 0,
        "damage": "",
    }
    code, output, errors = as_text
    assert (code, errors) == (0, "")
    assert "2 (1 to 2)" in output
    assert "none" in output


async def test_a_digest_is_whole_in_a_narrow_terminal(
    shared_server: NatsServer, journal: JetStreamJournal, engine: int
) -> None:
    """Neither its width nor an encoding with few characters cuts a digest or ends a command."""
    where = (str(engine), "--nats", shared_server.url)
    verified, (_, answer, _), digested = await asyncio.gather(
        tool("verify", *where, COLUMNS="40", PYTHONIOENCODING="latin-1"),
        tool("digest", *where, "--json"),
        tool("digest", *where, COLUMNS="20", PYTHONIOENCODING="latin-1"),
    )
    code, output, errors = verified
    assert (code, errors) == (0, "")
    assert f"({journal.position.digest.hex()})" in output.split()
    code, output, errors = digested
    assert (code, errors) == (0, "")
    assert json.loads(answer)["digest"] in output.split()


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize("action", ACTIONS)
async def test_damage_is_placed_and_explained(
    shared_server: NatsServer, nats_connection: Connection, engine: int, action: str
) -> None:
    """Each command ends with 1 and says at which stream sequence what is wrong."""
    await force(nats_connection, engine, b"garbage")
    code, output, errors = await tool(action, str(engine), "--nats", shared_server.url)
    assert code == 1
    assert "stream sequence 7: this is no record" in " ".join((output + errors).replace("│", "").split())
    assert "Traceback" not in errors


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize("as_json", [False, True])
async def test_damage_that_nobody_reads_is_the_exit_code(
    shared_server: NatsServer,
    nats_connection: Connection,
    engine: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    as_json: bool,
) -> None:
    """A verdict that goes into a pipe without a reader is none of a whole journal."""
    await force(nats_connection, engine, b"garbage")
    options = Namespace(action="verify", engine=engine, nats=shared_server.url, json=as_json)
    with no_reader() as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(Unread) as damaged:
            await journal_tools.run(options, Console())
    assert damaged.value.code == 1


async def test_commands_that_cannot_be_read_are_damage(
    shared_server: NatsServer, nats_connection: Connection, journal: JetStreamJournal, engine: int
) -> None:
    """A whole record around commands of no known kind is found, at its place."""
    await force(nats_connection, engine, encode_record(engine, 2, journal.position, 70, b"\x91\x91\xa1x"))
    code, output, _ = await tool("verify", str(engine), "--nats", shared_server.url, "--json")
    findings = json.loads(output)
    assert (code, findings["damaged_at"], findings["batches"]) == (1, 7, 5)
    assert "the commands of batch 6 cannot be read" in findings["damage"]


@pytest.mark.parametrize("action", ACTIONS)
async def test_what_a_later_version_wrote_is_no_damage(
    shared_server: NatsServer,
    nats_connection: Connection,
    journal: JetStreamJournal,
    engine: int,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
) -> None:
    """Nobody is to restore a copy over it: whoever asks with this version learns that it cannot tell."""
    with monkeypatch.context() as later:
        later.setattr(records, "FORMAT", records.FORMAT + 1)
        await force(nats_connection, engine, encode_record(engine, 2, journal.position, 70, encode([])))
    code, output, errors = await tool(action, str(engine), "--nats", shared_server.url)
    assert code == NOTHING_FOUND
    assert "is of a later version from stream sequence 7 on" in errors
    assert "damage" not in (output + errors).replace("Nothing is damaged", "")


async def test_a_digest_does_not_begin_at_what_another_version_made(
    shared_server: NatsServer,
    nats_connection: Connection,
    trimmable: JetStreamJournal,
    engine: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the rest was trimmed, that is said, as an engine says it."""
    with monkeypatch.context() as another:
        another.setattr(snapshot, "FORMAT", snapshot.FORMAT + 1)
        await make(nats_connection, engine, SnapshotStore(nats_connection, engine))
    await provision.trim_journal(nats_connection, engine, trimmable.sequence)
    code, output, errors = await tool("digest", str(engine), "--nats", shared_server.url)
    assert (code, output) == (NOTHING_FOUND, "")
    assert f"the snapshots of engine {engine} were made by another version" in errors
    assert "Traceback" not in errors


async def test_damage_is_placed_in_a_trimmed_journal_too(
    shared_server: NatsServer, nats_connection: Connection, engine: int, trimmable: JetStreamJournal
) -> None:
    """By its sequence in the stream, not by how many records were left before it."""
    await force(nats_connection, engine, encode_record(engine, 1, trimmable.position, 70, b"\x91\x91\xa1x"))
    await provision.trim_journal(nats_connection, engine, 3)
    findings = await journal_tools.read(shared_server.url, engine, lambda _record, _commands: None)
    assert (findings.damaged_at, findings.first_batch, findings.batches) == (5, 3, 2)


@pytest.mark.usefixtures("trimmable")
async def test_what_was_trimmed_is_not_waited_for(
    shared_server: NatsServer, nats_connection: Connection, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar on the terminal is full when all is read that is left."""
    totals: list[int] = []

    @contextmanager
    def noted(_: str, total: int) -> Iterator[Callable[[int], None]]:
        totals.append(total)
        yield lambda _: None

    await provision.trim_journal(nats_connection, engine, 3)
    monkeypatch.setattr(journal_tools, "progress", noted)
    findings = await journal_tools.read(shared_server.url, engine, lambda _record, _commands: None)
    assert totals == [findings.batches] == [2]


@pytest.mark.usefixtures("trimmable")
@pytest.mark.parametrize("action", ACTIONS)
async def test_a_journal_that_is_trimmed_meanwhile_is_not_damaged(
    shared_server: NatsServer,
    nats_connection: Connection,
    engine: int,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
) -> None:
    """That is said, with another code than that of damage."""
    replay = JetStreamJournal.replay

    async def replay_while_trimmed(self: JetStreamJournal) -> AsyncIterator[Record]:
        async for record in replay(self):
            yield record
            await provision.trim_journal(nats_connection, engine, 3)

    monkeypatch.setattr("bus.stream_reader._FETCH", 1)
    monkeypatch.setattr(JetStreamJournal, "replay", replay_while_trimmed)
    options = Namespace(action=action, engine=engine, nats=shared_server.url, json=False, first=1, last=None)
    with pytest.raises(Failure, match="was trimmed while it was read: it begins at 3 now") as failure:
        await journal_tools.run(options, Console())
    assert failure.value.code == NOTHING_FOUND


async def test_no_journal_and_a_lost_one_are_told_apart(
    shared_server: NatsServer, nats_connection: Connection, engine: int
) -> None:
    """An engine that never ran is no damage (2); a journal that is gone is (1)."""
    asked = (tool(action, str(engine), "--nats", shared_server.url) for action in ACTIONS)
    for code, output, errors in await asyncio.gather(*asked):
        assert (code, output) == (2, "")
        assert errors.startswith(f"matchbus: engine {engine} never ran here with a journal")
    await provision.provision_journal(nats_connection, engine)
    await nats_connection.jetstream().delete_stream(subjects.journal_stream(engine))
    code, output, _ = await tool("verify", str(engine), "--nats", shared_server.url, "--json")
    assert (code, json.loads(output)["damage"]) == (1, f"the server has no stream JOURNAL_{engine}")


@pytest.mark.parametrize("action", ACTIONS)
def test_a_server_that_does_not_answer_is_no_damage(
    action: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is that of an engine that never ran."""
    monkeypatch.setattr(nats_option, "PATIENCE_S", 0.2)
    assert matchbus.main(["journal", action, "1", "--nats", "nats://127.0.0.1:1"]) == NOTHING_FOUND
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 2)
    assert "no NATS server answers at nats://127.0.0.1:1" in errors


@pytest.mark.usefixtures("journal")
async def test_batches_are_dumped_readably(shared_server: NatsServer, engine: int) -> None:
    """`dump` prints each batch from N to M with its commands decoded, as text or as one JSON line each."""
    where = (str(engine), "--nats", shared_server.url)
    some, whole = await asyncio.gather(
        tool("dump", *where, "--from", "3", "--to", "4"), tool("dump", *where, "--json")
    )
    code, output, _ = some
    assert code == 0
    assert output.splitlines()[0] == "batch 3  epoch 1  1970-01-01 00:00:00.000000030 UTC  2 commands"
    assert output.count("batch ") == 2
    assert "client_order_id='b1'" in output
    code, output, _ = whole
    assert code == 0
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["batch_number"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[3]["commands"] == [
        {"command": "CancelOrder", "client": "ann", "order_id": 0, "client_order_id": "a1"}
    ]


@pytest.mark.usefixtures("journal")
async def test_a_reader_that_waits_for_its_output_is_patient(
    shared_server: NatsServer, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long `less` takes nothing: that is no silence of NATS."""
    monkeypatch.setattr(journal_tools, "PATIENCE_S", 2.0)
    monkeypatch.setattr("bus.stream_reader._FETCH", 1)

    def each(record: Record, _: object) -> None:
        if record.batch_number == 1:
            time.sleep(2.5)

    assert (await journal_tools.read(shared_server.url, engine, each)).batches == 5


@pytest.mark.usefixtures("journal")
async def test_a_reader_that_was_stopped_itself_goes_on(
    shared_server: NatsServer, engine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-Z, say, while it waited for a record: it comes, and NATS is not told as silent."""
    monkeypatch.setattr(journal_tools, "PATIENCE_S", 2.0)
    pauses = hold_up_a_reader(monkeypatch, 2.5)
    findings = await journal_tools.read(shared_server.url, engine, lambda _record, _commands: None)
    assert findings.batches == 5
    assert not list(pauses)


@pytest.mark.usefixtures("journal")
async def test_a_dump_of_nothing_is_said(shared_server: NatsServer, engine: int) -> None:
    """Where no batch is among those asked for it is said, on stderr."""
    where = (str(engine), "--nats", shared_server.url)
    cases = {
        "has no batch from 100 on": ("--from", "100"),
        "has no batch from 6 to 9": ("--from", "6", "--to", "9"),
    }
    outcomes = await asyncio.gather(*(tool("dump", *where, *bounds) for bounds in cases.values()))
    assert outcomes == [(0, "", f"JOURNAL_{engine} {said}\n") for said in cases]


@pytest.mark.usefixtures("journal")
async def test_the_digest_is_that_of_the_replayed_state(shared_server: NatsServer, engine: int) -> None:
    """`digest` gives the very digest, epoch and batch number that a state has after the same batches."""
    state = State(engine)
    batches: list[list[Command]] = [*COMMANDS, [EpochStarted(2)]]
    for number, commands in enumerate(batches, 1):
        state.begin_batch(number, number * 10)
        for command in commands:
            state.apply(command)
        state.end_batch()
    code, output, _ = await tool("digest", str(engine), "--nats", shared_server.url, "--json")
    assert code == 0
    assert json.loads(output) == {
        "engine": engine,
        "batch_number": 5,
        "epoch": 2,
        "digest": state_digest(state).hex(),
    }


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["verify", "0"], "'0' is no engine number"),
        (["verify", "65536"], "'65536' is no engine number"),
        (["verify", "x"], "'x' is no engine number"),
        (["dump", "1", "--from", "0"], "'0' is no batch number"),
        (["dump", "1", "--to", "x"], "'x' is no batch number"),
        (["dump", "1", "--from", "5", "--to", "2"], "there is no batch from 5 to 2"),
        (["burn", "1"], "'burn'"),
        ([], "action"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong argument ends the command with the value in the message."""
    assert matchbus.main(["journal", *arguments]) == USAGE_ERROR
    assert named in capsys.readouterr().err
