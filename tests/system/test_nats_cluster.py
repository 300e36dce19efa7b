"""Three nats-servers keep every stream threefold: one of them dies or is cut off, and nothing is lost."""

import os
import signal
from pathlib import Path

import pytest

from bus import subjects
from bus.connection import Connection
from bus.server import NatsServer, Node, make_nodes
from bus.stream import AWAY
from simulation.cluster import Cluster
from simulation.cluster_errors import NodesDiffer
from simulation.cluster_settings import Storage
from simulation.proxy import Condition, Proxy
from tests.system.disk import Disk
from tests.system.test_take_over import open_market
from tests.system.venue import eventually, scaled, show
from tests.waiting import frozen

DEADLINE_S = 120.0
"""Of an order: NATS needs four to nine seconds to choose another leader, and up to forty to be left."""

KILLS = scaled(2, 10)

NOWHERE = 1
"""A port at which nobody listens."""


class _Reached(NatsServer):
    """A node that tells the others to connect to it at a port that is not its own."""

    def __init__(self, directory: Path, node: Node, port_told: int) -> None:
        super().__init__(directory, node=node)
        self._port_told = port_told

    def _cluster_options(self) -> list[str]:
        return [*super()._cluster_options(), "--cluster_advertise", f"127.0.0.1:{self._port_told}"]


class _Divided(Cluster):
    """A market whose first nats-server connects to no other; they connect to it, through a proxy."""

    def __init__(self, way: Proxy, directory: Path) -> None:
        super().__init__(engines=2, standbys=1, storage=Storage(nats_nodes=3), data_dir=directory)
        self._way = way

    def _nats_servers(self, output: Path) -> list[NatsServer]:
        first, *others = make_nodes(3)
        self._way.upstream_port = first.port
        alone = Node(first.name, first.port, (self._way.port, NOWHERE, NOWHERE))
        routes = (self._way.port, *(node.port for node in others))
        nodes = [(alone, self._way.port), *((Node(one.name, one.port, routes), NOWHERE) for one in others)]
        return [_Reached(self.data_dir / f"nats_{node.name}", node, told) for node, told in nodes]


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
        for stream in (journal, subjects.EXECUTIONS_STREAM, subjects.bucket_stream("sessions")):
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


@pytest.mark.timeout(400)
async def test_a_disk_that_fills_under_all_three_ends_no_market(small_disk: Disk, tmp_path: Path) -> None:
    """A server of a cluster then shuts its JetStream down; with room it is started again."""
    data = tmp_path / "data"
    data.mkdir()
    for node in ("n1", "n2", "n3"):
        (small_disk.folder / node).mkdir()
        (data / f"nats_{node}").symlink_to(small_disk.folder / node)
    async with (
        Cluster(engines=2, storage=Storage(nats_nodes=3), data_dir=data) as cluster,
        open_market(cluster, deadline_s=DEADLINE_S) as market,
    ):

        async def all_are_shut_down() -> bool:
            logs = [(data / f"output/nats-server_{node}.log").read_text() for node in ("n1", "n2", "n3")]
            return all("will be DISABLED" in log for log in logs)

        async with market.load.running():
            await market.load.acknowledged(200)
            filler = small_disk.fill()
            await eventually(all_are_shut_down, 60, "no server has JetStream")
            filler.unlink()
            outage_s = await market.first_answer_s()
            await market.load.acknowledged(200)
        show(f"the next order after there was room: {outage_s:.1f} s")
        await market.everything()


@pytest.mark.timeout(400)
async def test_a_server_that_is_cut_off_from_the_others_is_left(tmp_path: Path) -> None:
    """Its clients still reach it, but it can store nothing: all go to the next, and trade on."""
    async with (
        Proxy() as way,
        _Divided(way, tmp_path) as cluster,
        open_market(cluster, deadline_s=DEADLINE_S) as market,
    ):

        async def all_went() -> bool:
            logs = [tmp_path / "output" / f"{one.name.replace(' ', '_')}.log" for one in cluster.members]
            return all(f"going to {cluster.nats[1].url}" in log.read_text() for log in logs)

        async with market.load.running():
            await market.load.acknowledged(200)
            way.degrade(to_server=Condition(hole=True), to_process=Condition(hole=True))
            outage_s = await market.first_answer_s()
            await eventually(all_went, 60, "every process went to the second server")
            await market.load.acknowledged(200)
            way.heal()
            await market.load.acknowledged(200)
        show(f"the next order after the first server was cut off: {outage_s:.1f} s")
        await market.everything()
