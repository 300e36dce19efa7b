"""An engine whose journal was lost does not trade on what is left, unless it is told to."""

import contextlib
import os
import shutil
from functools import partial
from pathlib import Path

import grpc
import pytest

from bus import provision, subjects
from bus.connection import Connection, connect
from bus.messages import decode_executions
from bus.server import NatsServer
from bus.snapshots import SnapshotEntry, SnapshotStore
from bus.stream import StreamError, extent
from bus.stream_reader import StreamReader
from engine.runtime import snapshots
from engine.runtime.high_water import FILE_NAME, read_mark
from simulation.cluster import Cluster
from simulation.cluster_errors import ProcessFailed
from simulation.cluster_settings import Storage
from tests.system.engine_process import (
    EngineProcess,
    ann,
    engine_process,
    is_serving,
    list_symbol_and_session,
)
from tests.system.venue import eventually


async def make_streams(url: str, *, trimmable: bool = False) -> None:
    """What an exchange makes on a NATS store that is empty or not."""
    nc = await connect(url, name="test", on_closed=lambda: None)
    await provision.provision_shared(nc)
    await provision.provision_journal(nc, 1, trimmable=trimmable)
    await list_symbol_and_session(nc)
    await nc.close()


async def trade(url: str, directory: Path, *options: str) -> tuple[list[str], str]:
    """One engine's life: it serves, takes three orders and stops; the orders open then, and its log."""
    async with (
        engine_process(url, directory, *options) as engine,
        grpc.aio.insecure_channel(engine.address) as channel,
    ):
        await eventually(partial(is_serving, engine.address), 15, "the engine serves")
        trader = ann(channel, engine.address)
        for _ in range(3):
            await trader.limit("AAA", 1, 100, 1)
        orders = [order.client_order_id for order in await trader.open_orders()]
    return orders, engine.log()


async def reported(nc: Connection) -> int:
    """How many reports are stored; a reign begins with a message that has none."""
    reader, count = StreamReader(nc, subjects.EXECUTIONS_STREAM), 0
    end = (await extent(nc, subjects.EXECUTIONS_STREAM)).last_seq
    while reader.next_sequence <= end:
        count += sum(len(decode_executions(stored.payload).reports) for stored in await reader.read())
    await reader.close()
    return count


def marked_epoch(directory: Path) -> int:
    """The epoch of the last reign, as the engine itself remembers."""
    mark = read_mark(directory / "state" / FILE_NAME, 1)
    assert mark is not None
    return mark.epoch


async def test_a_lost_journal_is_refused_until_the_loss_is_accepted(tmp_path: Path) -> None:
    """A start on an emptied NATS store ends with 1 and one line; a copy put back serves all orders again."""
    server = NatsServer(tmp_path / "nats")
    async with server:
        await make_streams(server.url)
        before, _ = await trade(server.url, tmp_path)
        mark = read_mark(tmp_path / "state" / FILE_NAME, 1)
        assert mark is not None
        await server.stop()
        shutil.move(tmp_path / "nats/data", tmp_path / "copy")
        await server.start()
        await make_streams(server.url)
        engine = EngineProcess(server.url, tmp_path)
        await engine.start()
        assert await engine.code(within_s=15) == 1
        (line,) = [line for line in engine.log().splitlines() if "CRITICAL" in line]
        for words in (
            "stream JOURNAL_1 has lost batches",
            f"missing, 1 to {mark.batch_number}",
            str(tmp_path / "state" / FILE_NAME),
            "Restore the NATS store from a copy",
            "--accept-loss",
        ):
            assert words in line
        assert "Traceback" not in engine.log()

        await server.stop()
        shutil.rmtree(tmp_path / "nats/data")
        shutil.move(tmp_path / "copy", tmp_path / "nats/data")
        await server.start()
        again, _ = await trade(server.url, tmp_path)
        assert again[:3] == before
        assert len(again) == 6
        assert marked_epoch(tmp_path) == 2

        await server.stop()
        shutil.rmtree(tmp_path / "nats/data")
        await server.start()
        await make_streams(server.url)
        left, log = await trade(server.url, tmp_path, "--accept-loss")
        assert "LOSS ACCEPTED" in log
        assert len(left) == 3
        assert marked_epoch(tmp_path) == 3, "peers and clients have seen the first two"
        _, log = await trade(server.url, tmp_path)
        assert "LOSS" not in log


async def test_a_journal_that_lost_what_was_reported_is_refused_without_a_mark(tmp_path: Path) -> None:
    """Execution reports tell of the lost batches; with the loss accepted, new batches are reported again."""
    async with NatsServer(tmp_path / "nats") as server:
        await make_streams(server.url)
        nc = await connect(server.url, name="test", on_closed=lambda: None)

        async def order_and_report(*options: str) -> int:
            known = await reported(nc)
            async with engine_process(server.url, tmp_path, *options) as engine:
                await eventually(partial(is_serving, engine.address), 15, "the engine serves")
                async with grpc.aio.insecure_channel(engine.address) as channel:
                    await ann(channel, engine.address).limit("AAA", 1, 100, 1)

                async def more() -> bool:
                    return await reported(nc) > known

                await eventually(more, 5, "the order is reported")
            return await reported(nc)

        assert await order_and_report() == 1
        await nc.jetstream().delete_stream(subjects.journal_stream(1))
        await make_streams(server.url)
        shutil.rmtree(tmp_path / "state")
        engine = EngineProcess(server.url, tmp_path)
        await engine.start()
        assert await engine.code(within_s=15) == 1
        assert "behind what is reported in stream EXECUTIONS" in engine.log()
        assert "was reported" in engine.log()

        assert await order_and_report("--accept-loss") == 2
        await nc.close()


@pytest.mark.parametrize("is_trimmed", [False, True])
async def test_snapshots_of_lost_batches_go_only_with_a_start(tmp_path: Path, is_trimmed: bool) -> None:
    """The journal put back is older than both snapshots; where it was trimmed, no start is possible."""
    server = NatsServer(tmp_path / "nats")

    async def order_and_make(times: int) -> list[SnapshotEntry]:
        """Trade, and make a snapshot after each order; what is kept in the end."""
        nc = await connect(server.url, name="test", on_closed=lambda: None)
        store = SnapshotStore(nc, 1)
        async with (
            engine_process(server.url, tmp_path) as engine,
            grpc.aio.insecure_channel(engine.address) as channel,
        ):
            await eventually(partial(is_serving, engine.address), 15, "the engine serves")
            for _ in range(times):
                await ann(channel, engine.address).limit("AAA", 1, 100, 1)
                await snapshots.make(nc, 1, store)
            if is_trimmed:
                await eventually(partial(snapshots.trim, nc, 1, store), 15, "the journal is trimmed")
        kept = await store.entries()
        await nc.close()
        return kept

    async with server:
        await make_streams(server.url, trimmable=is_trimmed)
        await order_and_make(2)
        await server.stop()
        (stream,) = (tmp_path / "nats/data").rglob(f"streams/{subjects.journal_stream(1)}")
        shutil.copytree(stream, tmp_path / "copy")
        await server.start()
        lost = await order_and_make(2)
        await server.stop()
        shutil.rmtree(stream)
        shutil.copytree(tmp_path / "copy", stream)
        await server.start()
        if is_trimmed:
            engine = EngineProcess(server.url, tmp_path, "--accept-loss")
            await engine.start()
            assert await engine.code(within_s=60) == 1
            assert "has what stood before" in engine.log()
        else:
            _, log = await trade(server.url, tmp_path, "--accept-loss")
            assert "LOSS ACCEPTED" in log
        nc = await connect(server.url, name="test", on_closed=lambda: None)
        assert await SnapshotStore(nc, 1).entries() == (lost if is_trimmed else [])
        await nc.close()


async def test_a_market_with_standbys_accepts_a_loss_once(tmp_path: Path) -> None:
    """The standby, which has a mark of its own, accepts it too; the next start finds nothing missing."""

    def market(*, accept_loss: bool) -> Cluster:
        return Cluster(engines=1, standbys=1, data_dir=tmp_path, storage=Storage(accept_loss=accept_loss))

    async def is_marked(kind: str) -> bool:
        return read_mark(tmp_path / f"{kind}_1" / FILE_NAME, 1) is not None

    def accepted() -> list[int]:
        logs = (tmp_path / "output" / f"{kind}_1.log" for kind in ("engine", "standby"))
        return [log.read_text().count("LOSS ACCEPTED") for log in logs]

    async with market(accept_loss=False):
        for kind in ("engine", "standby"):
            await eventually(partial(is_marked, kind), 15, f"the {kind} has a mark")
    async with NatsServer(tmp_path / "nats") as server:
        nc = await connect(server.url, name="test", on_closed=lambda: None)
        await nc.jetstream().delete_stream(subjects.journal_stream(1))
        await nc.close()
    with pytest.raises(ProcessFailed, match="start once with --accept-loss"):
        async with market(accept_loss=False):
            pass
    assert accepted() == [0, 0]
    async with market(accept_loss=True):
        once = accepted()
        assert all(once)
    async with market(accept_loss=False):
        assert accepted() == once


async def test_an_idle_engine_sees_that_its_reports_were_lost_and_stores_them_again(tmp_path: Path) -> None:
    """Nobody trades after the loss: it ends all the same, as only a restart can make them again."""
    server = NatsServer(tmp_path / "nats")
    async with server, contextlib.AsyncExitStack() as stack:
        await make_streams(server.url)
        nc = await connect(server.url, name="test", on_closed=lambda: None)

        async def order_until(engine: EngineProcess, count: int) -> None:
            async def are_stored() -> bool:
                return await reported(nc) == count

            await eventually(partial(is_serving, engine.address), 15, "the engine serves")
            async with grpc.aio.insecure_channel(engine.address) as channel:
                await ann(channel, engine.address).limit("AAA", 1, 100, 1)
            await eventually(are_stored, 15, f"{count} reports are stored")

        engine = EngineProcess(server.url, tmp_path)
        await engine.start()
        stack.push_async_callback(engine.stop)
        await order_until(engine, 1)
        await server.stop()
        (stream,) = (tmp_path / "nats/data").rglob(f"streams/{subjects.EXECUTIONS_STREAM}")
        shutil.copytree(stream, tmp_path / "copy")
        await server.start()
        await order_until(engine, 2)
        await server.kill()
        shutil.rmtree(stream)
        shutil.copytree(tmp_path / "copy", stream)
        await server.start()
        assert await engine.code(within_s=15) == 1
        assert "was stored and is gone" in engine.log()
        assert "Traceback" not in engine.log()
        assert await reported(nc) == 1
        async with engine_process(server.url, tmp_path) as again:
            await order_until(again, 3)
        await nc.close()


async def test_reports_come_again_where_the_server_counts_those_that_are_gone(tmp_path: Path) -> None:
    """New ones were stored behind the gap: as docs/reliability.md says, index and newest block go away."""
    server = NatsServer(tmp_path / "nats")
    async with server:
        await make_streams(server.url)
        await trade(server.url, tmp_path)
        await server.stop()
        (messages,) = (tmp_path / "nats/data").rglob(f"streams/{subjects.EXECUTIONS_STREAM}/msgs")
        (block,) = messages.glob("*.blk")
        os.truncate(block, block.stat().st_size - 100)
        await server.start()
        await trade(server.url, tmp_path)
        nc = await connect(server.url, name="test", on_closed=lambda: None)
        with pytest.raises(StreamError, match="missing"):
            await reported(nc)
        await server.stop()
        (messages / "index.db").unlink()
        max(messages.glob("*.blk"), key=lambda path: int(path.stem)).unlink()
        await server.start()

        async def all_are_stored() -> bool:
            return await reported(nc) == 6

        async with engine_process(server.url, tmp_path):
            await eventually(all_are_stored, 15, "the reports of all six orders are stored")
        await nc.close()
