"""A whole market on this machine: nats-server, the exchange and N engines as child processes.

Here: starting, waiting until each is ready, starting again what died, stopping. Not here: what the
processes do, and who asks for them (`simulation/operate.py`, tests). All listen on loopback unless another
host is given. A process that died comes back on its own port; ports are not kept from one `Cluster` to the
next on the same directory, so clients register again. With standbys an engine is two processes that take
turns: `engines` names the one that reigns, `standbys` the other, whatever they were started as.
"""

import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio
import nats.errors
from matchbus import tls
from matchbus.v1 import matchbus_pb2, matchbus_pb2_grpc

from bus.addresses import host_and_port
from bus.connection import Patience, connect
from bus.messages import EngineEntry
from bus.metrics import targets_file
from bus.registry import engines_bucket
from bus.server import NatsServer, ServerError, make_nodes
from bus.stream import StreamError
from exchange.runtime.settings import DEFAULT_PASSWORD, shipped_instruments
from simulation.cluster_errors import ClusterError, NoJournal, OutOfReach, ProcessFailed
from simulation.cluster_settings import Access, Storage, Telemetry
from simulation.data_directory import Durability, check_engines, check_nodes, keep_durability, keep_engines
from simulation.first_fault import first_of
from simulation.member import READY_DEADLINE_S, Member
from simulation.ports import LOOPBACK, Ports, claim_port, claim_ports

DEFAULT_INSTRUMENTS: Final = shipped_instruments()
TARGETS_FILE: Final = "prometheus.json"
"""In the data directory: where every process serves its metrics, for Prometheus' `file_sd`."""

_READY_POLL_S: Final = 0.05
_BACK_OFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
_STEADY_S: Final = 10.0
"""A process that served, or lived this long, starts its back-off from the beginning."""
_STUCK_PERIOD_S: Final = 1.0
_BEGIN_AGAIN_S: Final = 1.0

Work = Callable[[], Coroutine[Any, Any, None]]

_log: Final = logging.getLogger(__name__)


class Cluster:
    """A running market; `async with Cluster(engines=2) as cluster` starts it and stops it within 5 s.

    Without `data_dir` everything lives in a temporary directory and is gone afterwards. With it, a second
    `Cluster` on the same directory finds every acknowledged order again. `standbys` is how many processes
    stand by for each engine, 0 or 1. With `dashboard` the exchange serves that, on loopback whatever `host`.
    `on_change` is called after anything got a new process id, or another process reigns. `nats_url_of` is
    given a process's name and `nats_url`, and says where that process is to connect: to a proxy in between,
    say.
    """

    def __init__(
        self,
        *,
        engines: int = 2,
        standbys: int = 0,
        data_dir: Path | None = None,
        instruments: Path = DEFAULT_INSTRUMENTS,
        password: str = DEFAULT_PASSWORD,
        host: str = LOOPBACK,
        ports: Ports = Ports(),
        dashboard: bool = False,
        access: Access = Access(),
        storage: Storage = Storage(),
        telemetry: Telemetry = Telemetry(),
        on_change: Callable[[], None] = lambda: None,
        nats_url_of: Callable[[str, str], str] = lambda _name, url: url,
    ) -> None:
        if engines < 1:
            raise ValueError("a market needs at least one engine")
        if standbys not in (0, 1):
            raise ValueError("an engine has one standby or none")
        if storage.nats_nodes not in (1, 3):
            raise ValueError("there is one nats-server, or there are three")
        self.engine_count = engines
        self.standby_count = standbys
        self.instruments = instruments
        self.password = password
        self.host = host
        self.nats: list[NatsServer] = []
        self.engines: dict[int, Member] = {}
        self.standbys: dict[int, Member] = {}
        self.dashboard_url = ""
        self._ports = ports
        self._has_dashboard = dashboard
        self._access = access
        self._storage = storage
        self._telemetry = telemetry
        self._on_change = on_change
        self._nats_url_of = nats_url_of
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if data_dir is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="matchbus-", ignore_cleanup_errors=True)
            data_dir = Path(self._temporary.name)
        self.data_dir = data_dir.resolve()
        self._keepers: dict[asyncio.Task[None], Work] = {}
        self._overseer: asyncio.Task[None] | None = None
        self._exchange: Member | None = None

    @property
    def origins(self) -> list[str]:
        """From where the dashboard's page may connect, by either name of this machine."""
        return (
            [self.dashboard_url, self.dashboard_url.replace(LOOPBACK, "localhost")]
            if self.dashboard_url
            else []
        )

    @property
    def nats_url(self) -> str:
        """Where the nats-servers listen, with commas in between."""
        return ",".join(server.url for server in self.nats)

    @property
    def exchange(self) -> Member:
        """The exchange process."""
        assert self._exchange is not None, "the cluster was never started"
        return self._exchange

    @property
    def members(self) -> list[Member]:
        """The exchange, the engines and the standbys."""
        exchange = [self._exchange] if self._exchange else []
        return [*exchange, *self.engines.values(), *self.standbys.values()]

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything and return when each process says it serves. Raises `ClusterError`."""
        if not self.instruments.is_file():
            raise ClusterError(f"there is no instruments file {self.instruments}")
        self._access.check()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        durability = keep_durability(self.data_dir, self._storage.durability)
        if self.standby_count and durability == "none":
            raise NoJournal("standbys follow the journal, and with --durability none there is none")
        check_engines(self.data_dir, self.engine_count)
        ports = claim_ports(
            self.host, self._ports, self.engine_count, self.standby_count, metrics=self._telemetry.metrics
        )
        if self._has_dashboard:
            self.dashboard_url = (
                f"http://{LOOPBACK}:{claim_port(LOOPBACK, self._ports.dashboard, 'dashboard')}"
            )
        output = self.data_dir / "output"
        output.mkdir(exist_ok=True)
        self.nats = self._nats_servers(output)
        try:
            with first_of(ServerError, OSError):
                async with asyncio.TaskGroup() as group:
                    for server in self.nats:
                        group.create_task(server.start())
        except (ServerError, OSError) as failure:
            raise ProcessFailed(str(failure)) from failure
        self._build_members(ports, durability, output)
        if self._telemetry.metrics:
            targets = targets_file({member.name: member.metrics for member in self.members})
            (self.data_dir / TARGETS_FILE).write_bytes(targets)
        else:
            (self.data_dir / TARGETS_FILE).unlink(missing_ok=True)
        await self.exchange.start()
        for engine in (*self.engines.values(), *self.standbys.values()):
            await engine.start(*(["--accept-loss"] if self._storage.accept_loss else []))
        with first_of(ProcessFailed):
            async with asyncio.TaskGroup() as group:
                for member in self.members:
                    group.create_task(member.until_ready())
        await self._until_live()
        keep_engines(self.data_dir, self.engine_count)
        works: list[tuple[str, Work]] = [
            *((f"keeping {server.name}", partial(self._keep_nats, server)) for server in self.nats),
            *(
                (f"helping {one.name} after a full disk", partial(self._unstick_nats, one))
                for one in self.nats
            ),
            *((f"keeping {member.name}", partial(self._keep, member)) for member in self.members),
            *([("following who reigns", self._follow_reigns)] if self.standby_count else []),
        ]
        self._keepers = {asyncio.create_task(work(), name=name): work for name, work in works}
        self._overseer = asyncio.create_task(self._oversee())

    def _nats_servers(self, output: Path) -> list[NatsServer]:
        """As many as were asked for, each on a free port."""
        check_nodes(self.data_dir, self._storage.nats_nodes)
        if self._storage.nats_nodes == 1:
            return [
                NatsServer(self.data_dir / "nats", log_file=output / "nats-server.log", origins=self.origins)
            ]
        return [
            NatsServer(
                self.data_dir / f"nats_{node.name}",
                log_file=output / f"nats-server_{node.name}.log",
                node=node,
                origins=self.origins,
            )
            for node in make_nodes(self._storage.nats_nodes)
        ]

    def _dashboard_options(self) -> list[str]:
        if not self.dashboard_url:
            return []
        urls = ",".join(server.websocket_url for server in self.nats)
        return ["--dashboard", self.dashboard_url.removeprefix("http://"), "--websocket", urls]

    async def _until_live(self) -> None:
        """Return when the exchange sees the feed of every engine, as the engines do of each other by then.

        And when it has heard every standby.
        """
        try:
            async with (
                Patience(READY_DEADLINE_S),
                tls.channel(self.exchange.address) as channel,
            ):
                stub = matchbus_pb2_grpc.ExchangeStub(channel)
                while True:
                    engines = (await stub.ListEngines(matchbus_pb2.ListEnginesRequest())).engines
                    live = sum(engine.state == matchbus_pb2.ENGINE_STATE_LIVE for engine in engines)
                    waiting = sum(engine.role == matchbus_pb2.ENGINE_ROLE_STANDBY for engine in engines)
                    if live >= self.engine_count and waiting >= self.engine_count * self.standby_count:
                        return
                    await asyncio.sleep(_READY_POLL_S)
        except (TimeoutError, grpc.aio.AioRpcError, tls.TlsRefused) as error:
            silent = [member for member in self.members if not await member.serves()]
            raise ProcessFailed(
                f"not every engine's feed came to life: {str(error) or 'no answer in time'}"
                + "".join(f"\n{member.name} does not serve{member.last_words()}" for member in silent)
            ) from error

    def _build_members(self, ports: Iterator[int], durability: Durability, output: Path) -> None:
        # Not on the command line, where every user of the machine could read it.
        environment = {**os.environ, "PASSWORD": self.password}

        def member(name: str, module: str, *arguments: str) -> Member:
            address = host_and_port(self.host, next(ports))
            metrics = f"{LOOPBACK}:{next(ports)}" if self._telemetry.metrics else ""
            nats_url = self._nats_url_of(name, self.nats_url)
            return Member(
                name,
                [
                    *(sys.executable, "-m", "simulation.dies_with", str(os.getpid()), module),
                    *("--nats", nats_url, "--listen", address),
                    *arguments,
                    *self._access.options,
                    *self._telemetry.log_options,
                    *(["--metrics", metrics] if metrics else []),
                ],
                address,
                output / f"{name.replace(' ', '_')}.log",
                environment,
                metrics,
                may_stand_by=bool(self.standby_count) and name != "exchange",
            )

        self._exchange = member(
            "exchange",
            "exchange.runtime.process",
            *("--instruments", str(self.instruments.resolve())),
            *self._storage.exchange_options,
            *self._dashboard_options(),
        )

        def engine(kind: str, number: int, *arguments: str) -> Member:
            return member(
                f"{kind} {number}",
                "engine.runtime.process",
                *("--number", str(number), *arguments),
                *("--snapshot-every", str(self._storage.snapshot_every)),
                *self._access.engine_options,
                *("--state-dir", str(self.data_dir / f"{kind}_{number}")),
                *self._telemetry.trace_options,
            )

        numbers = range(1, self.engine_count + 1)
        for number in numbers:
            self.engines[number] = engine("engine", number, "--durability", durability)
        for number in numbers if self.standby_count else ():
            self.standbys[number] = engine("standby", number, "--standby")

    async def stop(self) -> None:
        """Stop everything within 5 s: engines and exchange first, then nats-server."""
        background = [*([self._overseer] if self._overseer else []), *self._keepers]
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        self._overseer, self._keepers = None, {}
        await asyncio.gather(*(member.stop() for member in self.members))
        await asyncio.gather(*(server.stop() for server in self.nats))
        if self._temporary is not None:
            self._temporary.cleanup()

    async def _oversee(self) -> None:
        """Begin again what keeps the market going and failed, by a fault that nobody foresaw.

        The market would otherwise go on with nobody to look after it.
        """
        while True:
            ended, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_COMPLETED)
            for keeper in ended:
                fault = None if keeper.cancelled() else keeper.exception()
                _log.critical("%s failed, and begins again", keeper.get_name(), exc_info=fault)
            await asyncio.sleep(_BEGIN_AGAIN_S)
            for keeper in ended:
                work = self._keepers.pop(keeper)
                self._keepers[asyncio.create_task(work(), name=keeper.get_name())] = work

    async def _keep(self, member: Member) -> None:
        """Start the process again whenever it ends, on the same port, ever more slowly while it fails."""
        failures = 0
        while True:
            if member.ready or not member.running:  # it may be coming up, where another keeper failed
                started = time.monotonic()
                code = await member.wait()
                steady = member.ready or time.monotonic() - started > _STEADY_S
                member.ready = False
                failures = 0 if steady else failures + 1
                pause = _pause_s(failures)
                _log.warning("%s ended with code %d; it starts again in %.1f s", member.name, code, pause)
                await asyncio.sleep(pause)
            try:
                if not member.running:
                    await member.start()
                    member.restarts += 1
                    self._on_change()
                await self._until_ready(member)
            except OSError as error:  # its log cannot be opened, say, or there is no memory
                _log.warning("%s cannot be started: %s", member.name, error)
            except ProcessFailed as error:
                # Ended: the next turn starts it again. Silent: it is replaced.
                _log.warning("%s", error)
                await member.stop()
            else:
                _log.warning("%s is ready again as process %d", member.name, member.pid)

    async def _until_ready(self, member: Member) -> None:
        """Return when a process is ready that was started again. Raises `ProcessFailed`.

        One that TLS keeps us from asking may serve its clients all the same, so it is left alone, and asked
        again until it answers or ends.
        """
        told = False
        while True:
            try:
                return await member.until_ready()
            except OutOfReach as error:
                if not told:
                    _log.warning("%s; it goes on, and is asked again", error)
                told = True

    async def _follow_reigns(self) -> None:
        """Keep `engines` naming the process that reigns, as the engines themselves say in their bucket."""

        def note(_: str, entry: EngineEntry | None) -> None:
            waiting = self.standbys.get(entry.engine) if entry is not None else None
            if entry is None or waiting is None or waiting.address != entry.address:
                return
            self.standbys[entry.engine], self.engines[entry.engine] = self.engines[entry.engine], waiting
            _log.warning("%s reigns as engine %d in epoch %d", waiting.name, entry.engine, entry.epoch)
            self._on_change()

        while True:
            try:
                nc = await connect(self.nats_url, name="cluster", on_closed=lambda: None)
                try:
                    await engines_bucket(nc).watch(note)
                finally:
                    await nc.close()
            except (StreamError, nats.errors.Error, OSError) as error:
                # Whoever deletes the bucket makes all processes end; the exchange makes another as it starts.
                _log.warning("who reigns is read again in %g s: %s", _BEGIN_AGAIN_S, error)
            await asyncio.sleep(_BEGIN_AGAIN_S)

    async def _keep_nats(self, server: NatsServer) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            code = await server.wait()
            failures = 0 if time.monotonic() - started > _STEADY_S else failures + 1
            pause = _pause_s(failures)
            _log.warning("%s ended with code %d; it starts again in %.1f s", server.name, code, pause)
            await asyncio.sleep(pause)
            try:
                await server.restart()
            except (ServerError, OSError) as error:
                _log.warning("%s cannot be started: %s", server.name, error)
            else:
                self._on_change()

    async def _unstick_nats(self, server: NatsServer) -> None:
        """Tell of a disk that is full or cannot be written, and stop the nats-server once it can be.

        It is started again, ever later if in vain.
        """
        told = False
        while True:
            await asyncio.sleep(_STUCK_PERIOD_S)
            if not (server.running and await server.is_stuck()):
                continue
            if not await asyncio.to_thread(server.has_room):
                if not told:
                    _log.warning(
                        "%s stores nothing: its disk is full or cannot be written; it is started again once"
                        " there is room",
                        server.name,
                    )
                told = True
            else:
                told = False
                _log.warning(
                    "%s stores nothing, though there is room: the disk was full, or a write failed, which its"
                    " log says; it is started again",
                    server.name,
                )
                await server.stop()


def _pause_s(failures: int) -> float:
    """How long to wait before a process is started that failed so many times in a row."""
    return _BACK_OFF_S[min(failures, len(_BACK_OFF_S)) - 1] if failures else 0.0
