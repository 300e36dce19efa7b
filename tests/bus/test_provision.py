"""Streams and buckets."""

import asyncio
from functools import partial
from unittest.mock import AsyncMock

import pytest
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType
from nats.js.errors import BadRequestError

from bus import messages, provision, subjects
from bus.connection import Connection
from bus.provision import GIB, ConfigurationMismatch, NotProvisioned, StoreTooSmall


async def test_provisioning_may_be_repeated(nats_connection: Connection, engine: int) -> None:
    """A second start finds everything as it made it."""
    for _ in range(2):
        await provision.provision_shared(nats_connection)
        await provision.provision_journal(nats_connection, engine)


async def test_the_journal_keeps_everything(nats_connection: Connection, engine: int) -> None:
    """A journal is on file, refuses what is new when full, and cannot be deleted from or purged."""
    await provision.provision_journal(nats_connection, engine)
    config = (await nats_connection.jetstream().stream_info(subjects.journal_stream(engine))).config
    assert config.storage == StorageType.FILE
    assert config.discard == DiscardPolicy.NEW
    assert config.subjects == [subjects.journal(engine)]
    assert config.max_bytes == provision.JOURNAL_BYTES
    assert not config.max_age
    assert config.deny_delete
    assert config.deny_purge


async def test_buckets_are_what_other_clients_expect(nats_connection: Connection) -> None:
    """nats-py's own key-value client reads and writes the buckets, one value a key."""
    await provision.provision_shared(nats_connection)
    for bucket in provision.BUCKETS:
        values = await nats_connection.jetstream().key_value(bucket)
        await values.put("key", b"1")
        await values.put("key", b"2")
        assert (await values.get("key")).value == b"2"
        assert (await values.status()).history == 1


async def test_other_settings_are_refused(nats_connection: Connection, engine: int) -> None:
    """A journal that would drop its head is not used; the error names setting, stored and wanted value."""
    await nats_connection.jetstream().add_stream(
        name=subjects.journal_stream(engine), subjects=[subjects.journal(engine)], discard=DiscardPolicy.OLD
    )
    for attempt in (
        provision.provision_journal(nats_connection, engine),
        provision.await_journal(nats_connection, engine, 1),
    ):
        with pytest.raises(ConfigurationMismatch, match="discard is old and must be new"):
            await attempt


async def test_a_stream_may_grow_and_never_shrinks(own_connection: Connection) -> None:
    """A later start with more room lets a stream become as large, one with less does not change it."""

    async def limit(stream: str) -> int | None:
        return (await own_connection.jetstream().stream_info(stream)).config.max_bytes

    for executions, journal, expected in ((2_000, 3_000, (2_000, 3_000)), (4_000, 5_000, (4_000, 5_000))):
        await provision.provision_shared(own_connection, executions_bytes=executions)
        await provision.provision_journal(own_connection, 1, max_bytes=journal)
        await provision.provision_shared(own_connection, executions_bytes=1_000)
        await provision.provision_journal(own_connection, 1, max_bytes=1_000)
        assert (await limit(subjects.EXECUTIONS_STREAM), await limit(subjects.journal_stream(1))) == expected
    await provision.provision_journal(own_connection, 2, max_bytes=9_000)
    await provision.adjust_journals(own_connection, 7_000, trimmable=False)
    assert await limit(subjects.journal_stream(1)) == 7_000
    assert await limit(subjects.journal_stream(2)) == 9_000
    assert await limit(subjects.EXECUTIONS_STREAM) == 4_000
    await provision.await_shared(own_connection, 1)
    await provision.await_journal(own_connection, 1, 1)


async def test_whether_journals_are_trimmed_is_chosen_once(own_connection: Connection) -> None:
    """Further ones are made as those that there are; where one keeps everything, none is to be trimmed."""
    start = partial(provision.adjust_journals, own_connection, 7_000)
    assert not await start(trimmable=False)
    assert await start(trimmable=True)
    await provision.provision_journal(own_connection, 1, max_bytes=5_000, trimmable=True)
    assert await start(trimmable=False)
    assert await start(trimmable=True)
    await provision.provision_journal(own_connection, 2, max_bytes=5_000)
    with pytest.raises(ConfigurationMismatch, match=r"JOURNAL_2 .* keep everything.*Start without --trim"):
        await start(trimmable=True)
    assert not await start(trimmable=False)


async def test_how_full_streams_are(own_connection: Connection) -> None:
    """Of journals and reports, which have a limit, also of more than NATS lists at once; of no bucket."""
    await provision.provision_shared(own_connection, executions_bytes=5_000)
    await provision.provision_journal(own_connection, 1, max_bytes=4_000)
    before = await provision.stream_sizes(own_connection)
    assert before == {"EXECUTIONS": (0, 5_000), "JOURNAL_1": (0, 4_000)}
    await own_connection.jetstream().publish(subjects.journal(1), bytes(1_000))
    after = await provision.stream_sizes(own_connection)
    assert 1_000 < after["JOURNAL_1"].used < 1_200
    await asyncio.gather(
        *(
            own_connection.jetstream().add_stream(name=f"S{number}", subjects=[f"s.{number}"], max_bytes=1)
            for number in range(300)
        )
    )
    assert len(await provision.stream_sizes(own_connection)) == 302


async def test_an_engine_asks_the_exchange(nats_connection: Connection, engine: int) -> None:
    """An engine without a journal asks, and goes on when the exchange has made it."""

    async def answer(request: Msg) -> None:
        asked = messages.decode_provision_request(request.data)
        await provision.provision_journal(nats_connection, asked.engine)
        await request.respond(messages.encode(messages.ProvisionReply()))

    await nats_connection.subscribe(subjects.PROVISION_SUBJECTS, cb=answer)
    await provision.await_journal(nats_connection, engine, 3)
    assert await nats_connection.jetstream().stream_info(subjects.journal_stream(engine))


async def test_an_engine_waits_for_the_exchange(nats_connection: Connection, engine: int) -> None:
    """An engine that is started before the exchange goes on when the journal appears."""
    waiting = asyncio.create_task(provision.await_journal(nats_connection, engine, 5))
    await asyncio.wait([waiting], timeout=0.2)
    assert not waiting.done()
    await provision.provision_journal(nats_connection, engine)
    await waiting


async def test_an_engine_gives_up_at_its_deadline(nats_connection: Connection, engine: int) -> None:
    """Without an exchange the error says so after the deadline."""
    with pytest.raises(NotProvisioned, match="no exchange is running"):
        await provision.await_journal(nats_connection, engine, 0.2)


async def test_a_refusal_of_the_exchange_is_passed_on(nats_connection: Connection, engine: int) -> None:
    """What the exchange says against the journal ends the engine's start at once."""

    async def refuse(request: Msg) -> None:
        await request.respond(messages.encode(messages.ProvisionReply("another max_bytes")))

    await nats_connection.subscribe(subjects.provision(engine), cb=refuse)
    with pytest.raises(ConfigurationMismatch, match="another max_bytes"):
        await provision.await_journal(nats_connection, engine, 3)


async def test_an_answer_that_is_none_is_asked_for_again(nats_connection: Connection, engine: int) -> None:
    """Whoever answers with junk does not end the engine's start; at its deadline the error says so."""

    async def answer(request: Msg) -> None:
        await request.respond(b"\xff")

    await nats_connection.subscribe(subjects.provision(engine), cb=answer)
    with pytest.raises(NotProvisioned, match="what answers is no exchange"):
        await provision.await_journal(nats_connection, engine, 0.2)


async def test_many_engines_fit(own_connection: Connection) -> None:
    """What streams reserve does not depend on the free disk: sixteen engines start on any machine."""
    await provision.provision_shared(own_connection)
    for number in range(1, 17):
        await provision.provision_journal(own_connection, number)


async def test_a_journal_that_does_not_fit_is_refused_by_name(own_connection: Connection) -> None:
    """Neither a new one nor one that is to grow: it would be asked for in vain for ever."""
    await provision.provision_journal(own_connection, 1, max_bytes=600 * GIB)
    for attempt in (
        provision.provision_journal(own_connection, 2, max_bytes=600 * GIB),
        provision.adjust_journals(own_connection, 2_000 * GIB, trimmable=False),
    ):
        with pytest.raises(StoreTooSmall, match=r"JOURNAL_\d of \d+ bytes and .*--journal-gib"):
            await attempt


async def test_a_journal_that_no_server_of_a_cluster_has_room_for_is_refused_by_name(
    own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster says it in words alone: under the same number it refuses what no server suits."""
    reasons = {"no suitable peers": BadRequestError, "no suitable peers, insufficient storage": StoreTooSmall}
    for reason, told in reasons.items():
        error = BadRequestError(code=400, err_code=10_005, description=reason)
        monkeypatch.setattr(JetStreamContext, "add_stream", AsyncMock(side_effect=error))
        with pytest.raises(told):
            await provision.provision_journal(own_connection, 1)


async def test_an_engine_waits_for_what_all_share(
    own_connection: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on when the exchange has made all buckets; what is missing it says meanwhile and in the end."""
    monkeypatch.setattr(provision, "_TELL_S", 0.05)
    with pytest.raises(NotProvisioned, match="no stream EXECUTIONS"):
        await provision.await_shared(own_connection, 0.25)
    assert "waiting: there is no stream EXECUTIONS: an exchange makes it at its start" in caplog.text
    waiting = asyncio.create_task(provision.await_shared(own_connection, 5))
    await provision.provision_shared(own_connection)
    await waiting
