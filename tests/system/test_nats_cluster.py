"""Three nats-servers keep every stream threefold: the one that leads a journal dies, and nothing is lost."""

import os
import signal
from pathlib import Path

import pytest

from bus import provision, subjects
from bus.connection import Connection
from bus.server import NatsServer
from bus.stream import AWAY
from simulation.cluster import Cluster
from simulation.cluster_errors import NodesDiffer
from simulation.cluster_settings import Storage
from tests.system.test_take_over import open_market
from tests.system.venue import eventually, scaled, show
from tests.waiting import frozen

DEADLINE_S = 60.0
"""Of an order: NATS needs four to nine seconds to choose another leader."""

KILLS = scaled(2, 10)


async def leader(nc: Connection, stream: str, servers: list[NatsServer]) -> NatsServer:
    """The server that leads a stream, as soon as both others have all that it has."""
    found: list[NatsServer] = []

    async def known() -> bool:
        try:
            cluster = (await nc.jetstream(timeout=0.5).stream_info(stream)).cluster
        except AWAY:
            return False
        replicas = cluster.replicas if cluster and cluster.replicas else []
        found[:] = [one for one in servers if cluster and one.node and one.node.name == cluster.leader]
        return bool(found) and len(replicas) == 2 and all(replica.current for replica in replicas)

    await eventually(known, 30, f"{stream} has a leader and two followers")
    return found[0]


@pytest.mark.timeout(400)
async def test_the_leader_of_a_journal_dies_under_load(tmp_path: Path) -> None:
    """Killed, and then frozen: what was acknowledged is there, once, and trading goes on by itself."""
    journal = subjects.journal_stream(1)
    async with (
        Cluster(engines=2, standbys=1, storage=Storage(nats_nodes=3), data_dir=tmp_path) as cluster,
        open_market(cluster, deadline_s=DEADLINE_S) as market,
    ):
        for stream in (journal, subjects.EXECUTIONS_STREAM, provision.bucket_stream("sessions")):
            assert (await market.nc.jetstream().stream_info(stream)).config.num_replicas == 3
        outages = []
        async with market.load.running():
            await market.load.acknowledged(200)
            for _ in range(KILLS):
                victim = await leader(market.nc, journal, cluster.nats)
                os.kill(victim.pid, signal.SIGKILL)
                outages.append(await market.first_answer_s())
            pid = (await leader(market.nc, journal, cluster.nats)).pid
            async with frozen(pid):
                outages.append(await market.first_answer_s())
            await market.load.acknowledged(200)
        show(
            f"{len(market.load.answers)} orders acknowledged; the next one after the leader was killed: "
            + ", ".join(f"{outage:.1f} s" for outage in outages[:-1])
            + f"; frozen: {outages[-1]:.1f} s"
        )
        await market.everything()
    with pytest.raises(NodesDiffer, match="--nats-nodes 3, not 1"):
        await Cluster(engines=2, data_dir=tmp_path).start()
