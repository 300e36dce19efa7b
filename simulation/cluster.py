"""A whole market on this machine: nats-server, the exchange and N engines as child processes.

Here: starting, waiting until each is ready, starting again what died, stopping. Not here: what the
processes do, and who asks for them (`simulation/operate.py`, tests). All listen on loopback unless another
host is given. A process that died comes back on its own port; ports are not kept from one `Cluster` to the
next on the same directory, so clients register again. With standbys an engine is two processes that take
turns: `engines` names the one that reigns, `standbys` the other, whatever they were started as.

    ClusterError
    ├── PortTaken            a port that was asked for is in use
    ├── HostRefused          the host to listen on is none of this machine's
    ├── TooManyFiles         this process may not have as many files open as so many processes need
    ├── DurabilityDiffers    the directory was made with another durability
    ├── NodesDiffer          the directory was made with another number of NATS servers
    ├── EnginesMissing       the directory has orders of an engine that was not asked for
    ├── NoJournal            standbys without a journal
    └── ProcessFailed        a process ended or was not ready in time; holds the last lines of its log
"""

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from matchbus.edge import RECOVERING_ROLE
from matchbus.v1 import matchbus_pb2, matchbus_pb2_grpc

from bus import messages, subjects
from bus.connection import connect
from bus.logs import LogForm, LogLevel
from bus.messages import EngineEntry
from bus.metrics import targets_file
from bus.process import ChildProcess
from bus.registry import Bucket
from bus.server import NatsServer, ServerError, make_nodes
from engine.runtime.high_water import FILE_NAME as MARK_FILE
from engine.runtime.process import STANDBY_ROLE
from engine.runtime.snapshots import COMMANDS_PER_SNAPSHOT
from exchange.runtime.settings import shipped_instruments

Durability = Literal["journal", "none"]

DEFAULT_INSTRUMENTS: Final = shipped_instruments()
DEFAULT_PASSWORD: Final = "password"  # noqa: S105 -- the documented default, refused off loopback
LOOPBACK: Final = "127.0.0.1"
TARGETS_FILE: Final = "prometheus.json"
"""In the data directory: where every process serves its metrics, for Prometheus' `file_sd`."""

READY_DEADLINE_S: Final = 30.0
"""How long a process may neither serve nor say what it is about."""

STOP_GRACE_S: Final = 1.5
"""How long engines and exchange have between SIGTERM and SIGKILL; nats-server has 3 s after that."""

_READY_POLL_S: Final = 0.05
_BACK_OFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
_STEADY_S: Final = 10.0
"""A process that served, or lived this long, starts its back-off from the beginning."""
_STUCK_PERIOD_S: Final = 1.0
_LOG_LINES: Final = 15

_FREE_PORTS: Final = range(15_000, 32_000)
"""Where free ports are looked for: below those that the kernel gives to outgoing connections, one of which
could come between the choice and the process that is to listen there."""

_PORT_TRIES: Final = 100

_log = logging.getLogger(__name__)


class ClusterError(Exception):
    """The market cannot be started or has stopped working."""


class PortTaken(ClusterError):
    """A port that was asked for is in use by another process."""


class HostRefused(ClusterError):
    """The host to listen on is none of this machine's."""


class TooManyFiles(ClusterError):
    """This process may not have as many files open as the market has ports."""


class DurabilityDiffers(ClusterError):
    """The data directory was made with another durability than the one asked for."""


class NodesDiffer(ClusterError):
    """The data directory was made with another number of NATS servers than the one asked for."""


class EnginesMissing(ClusterError):
    """The data directory has orders of an engine that was not asked for."""


class NoJournal(ClusterError):
    """Standbys were asked for, and there is no journal that they could follow."""


class ProcessFailed(ClusterError):
    """A process ended early or was not ready in time."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Fixed ports; 0 (and an engine without one) takes a free one."""

    nats: int = 0
    exchange: int = 0
    first_engine: int = 0
    dashboard: int = 0


class Member(ChildProcess):
    """The exchange or one engine: a child process with a name, an address and a log."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        address: str,
        log_file: Path,
        environment: dict[str, str],
        metrics: str = "",
        *,
        may_stand_by: bool = False,
    ) -> None:
        super().__init__(log_file, STOP_GRACE_S)
        self.name = name
        self.address = address
        self.metrics = metrics
        """Where its metrics are, HOST:PORT; empty for nowhere."""
        self.restarts = 0
        self.ready = False
        self._may_stand_by = may_stand_by
        self._command = command
        self._environment = environment

    async def start(self) -> None:
        """Start the child without waiting for it."""
        self.ready = False
        await self.launch(*self._command, environment=self._environment)

    async def until_ready(self, deadline_s: float = READY_DEADLINE_S) -> None:
        """Return when the process serves or, where it may, stands by.

        While it reads what is stored, or waits for the lease of an engine, it has all the time it takes.
        Raises `ProcessFailed` when it ends, or says nothing of this for `deadline_s`.
        """
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(deadline_s) as patience,
                grpc.aio.insecure_channel(self.address) as channel,
            ):
                health = health_pb2_grpc.HealthStub(channel)
                while not await _serves(health, ""):
                    if not self.running:
                        raise ProcessFailed(f"{self.name} ended{self._last_words()}")
                    stands_by = await _serves(health, STANDBY_ROLE)
                    if stands_by and self._may_stand_by:
                        break
                    if stands_by or await _serves(health, RECOVERING_ROLE):
                        patience.reschedule(loop.time() + deadline_s)
                    await asyncio.sleep(_READY_POLL_S)
        except TimeoutError:
            raise ProcessFailed(
                f"{self.name} was not ready within {deadline_s:g} s{self._last_words()}"
            ) from None
        self.ready = True

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_file.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            return "; its log ends with:\n" + "\n".join(lines) if lines else " and wrote nothing"
        return ""


async def _serves(health: health_pb2_grpc.HealthStub, service: str) -> bool:
    """Whether a process says SERVING of a service."""
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        answer = await health.Check(request, timeout=1.0, wait_for_ready=False)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class Cluster:
    """A running market; `async with Cluster(engines=2) as cluster` starts it and stops it within 5 s.

    Without `data_dir` everything lives in a temporary directory and is gone afterwards. With it, a second
    `Cluster` on the same directory finds every acknowledged order again, and `durability` (None: as before,
    "journal" at first) must be the same. `log_dir` makes the processes write one file a component there;
    `log_format` and `log_level` are those of the processes.
    `nats_nodes` is how many nats-servers there are, 1 or 3: three keep every stream threefold, and any two of
    them go on. `standbys` is how many processes stand by for each engine, 0 or 1. An engine makes a snapshot
    after `snapshot_every` commands; with `trim_journals` its journal loses what stands before the oldest kept
    one. Each journal may become `journal_gib` large and all execution reports `executions_gib`, in GiB; None
    leaves that to the exchange.
    With `dashboard` the exchange serves that, on loopback whatever the host; with `metrics` each process
    serves its own there, and `TARGETS_FILE` in the directory tells Prometheus where. Engines send traces of
    the share `trace_ratio` of orders to the OTLP/HTTP endpoint `trace`, if there is one.
    `on_change` is called after anything got a new process id, or another process reigns. `nats_url_of` is
    given a process's name and `nats_url`, and says where that process is to connect: to a proxy in between,
    say.
    """

    def __init__(
        self,
        *,
        engines: int = 2,
        standbys: int = 0,
        nats_nodes: int = 1,
        snapshot_every: int = COMMANDS_PER_SNAPSHOT,
        trim_journals: bool = False,
        journal_gib: int | None = None,
        executions_gib: int | None = None,
        data_dir: Path | None = None,
        instruments: Path = DEFAULT_INSTRUMENTS,
        durability: Durability | None = None,
        password: str = DEFAULT_PASSWORD,
        host: str = "127.0.0.1",
        ports: Ports | None = None,
        log_dir: Path | None = None,
        log_format: LogForm = "text",
        log_level: LogLevel = "info",
        dashboard: bool = False,
        metrics: bool = False,
        trace: str = "",
        trace_ratio: float = 1.0,
        on_change: Callable[[], None] = lambda: None,
        nats_url_of: Callable[[str, str], str] = lambda _name, url: url,
    ) -> None:
        if engines < 1:
            raise ValueError("a market needs at least one engine")
        if standbys not in (0, 1):
            raise ValueError("an engine has one standby or none")
        if nats_nodes not in (1, 3):
            raise ValueError("there is one nats-server, or there are three")
        self.engine_count = engines
        self.standby_count = standbys
        self.instruments = instruments
        self.password = password
        self.host = host
        self.engines: dict[int, Member] = {}
        self.standbys: dict[int, Member] = {}
        self._wanted_durability = durability
        self._ports = ports or Ports()
        self._log_dir = log_dir
        self._log_options = ["--log-format", log_format, "--log-level", log_level]
        self._has_dashboard = dashboard
        self._has_metrics = metrics
        self._trace_options = ["--trace", trace, "--trace-ratio", str(trace_ratio)] if trace else []
        self.dashboard_url = ""
        self._on_change = on_change
        self._nats_url_of = nats_url_of
        self._temporary = (
            tempfile.TemporaryDirectory(prefix="matchbus-", ignore_cleanup_errors=True)
            if data_dir is None
            else None
        )
        self.data_dir = (data_dir or Path(self._temporary.name if self._temporary else "")).resolve()
        self.nats: list[NatsServer] = []
        self._nats_nodes = nats_nodes
        self._snapshot_every = snapshot_every
        self._trim_journals = trim_journals
        self._size_options = [
            *(["--journal-gib", str(journal_gib)] if journal_gib else []),
            *(["--executions-gib", str(executions_gib)] if executions_gib else []),
        ]
        self._keepers: list[asyncio.Task[None]] = []
        self._exchange: Member | None = None

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
        self.data_dir.mkdir(parents=True, exist_ok=True)
        durability = keep_durability(self.data_dir, self._wanted_durability)
        if self.standby_count and durability == "none":
            raise NoJournal("standbys follow the journal, and with --durability none there is none")
        if durability == "journal":
            check_engines(self.data_dir, self.engine_count)
        ports = claim_ports(
            self.host, self._ports, self.engine_count, self.standby_count, metrics=self._has_metrics
        )
        if self._has_dashboard:
            self.dashboard_url = (
                f"http://{LOOPBACK}:{claim_port(LOOPBACK, self._ports.dashboard, 'dashboard')}"
            )
        output = self.data_dir / "output"
        output.mkdir(exist_ok=True)
        self.nats = self._nats_servers(next(ports), output)
        try:
            async with asyncio.TaskGroup() as group:
                for server in self.nats:
                    group.create_task(server.start())
        except* (ServerError, OSError) as failures:
            raise ProcessFailed(str(failures.exceptions[0])) from failures
        self._build_members(ports, durability, output)
        if self._has_metrics:
            targets = targets_file({member.name: member.metrics for member in self.members})
            (self.data_dir / TARGETS_FILE).write_bytes(targets)
        else:
            (self.data_dir / TARGETS_FILE).unlink(missing_ok=True)
        for member in self.members:
            await member.start()
        try:
            async with asyncio.TaskGroup() as group:
                for member in self.members:
                    group.create_task(member.until_ready())
        except* ProcessFailed as failures:
            raise failures.exceptions[0] from None
        await self._until_live()
        self._keepers = [
            *(asyncio.create_task(self._keep_nats(server)) for server in self.nats),
            *(asyncio.create_task(self._unstick_nats(server)) for server in self.nats),
            *(asyncio.create_task(self._keep(member)) for member in self.members),
        ]
        if self.standby_count:
            self._keepers.append(asyncio.create_task(self._follow_reigns()))

    def _nats_servers(self, port: int, output: Path) -> list[NatsServer]:
        """As many as were asked for; the first listens at `port`, the others at free ones."""
        check_nodes(self.data_dir, self._nats_nodes)
        if self._nats_nodes == 1:
            return [
                NatsServer(
                    self.data_dir / "nats",
                    port=port,
                    log_file=output / "nats-server.log",
                    origins=self._origins,
                )
            ]
        return [
            NatsServer(
                self.data_dir / f"nats_{node.name}",
                port=port if index == 0 else 0,
                log_file=output / f"nats-server_{node.name}.log",
                node=node,
                origins=self._origins,
            )
            for index, node in enumerate(make_nodes(self._nats_nodes))
        ]

    @property
    def _origins(self) -> list[str]:
        """Which pages may connect to NATS: the dashboard's, by either name of this machine."""
        return (
            [self.dashboard_url, self.dashboard_url.replace(LOOPBACK, "localhost")]
            if self.dashboard_url
            else []
        )

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
                asyncio.timeout(READY_DEADLINE_S),
                grpc.aio.insecure_channel(self.exchange.address) as channel,
            ):
                stub = matchbus_pb2_grpc.ExchangeStub(channel)  # type: ignore[no-untyped-call]
                while True:
                    engines = (await stub.ListEngines(matchbus_pb2.ListEnginesRequest())).engines
                    live = sum(engine.state == matchbus_pb2.ENGINE_STATE_LIVE for engine in engines)
                    waiting = sum(engine.role == matchbus_pb2.ENGINE_ROLE_STANDBY for engine in engines)
                    if live >= self.engine_count and waiting >= self.engine_count * self.standby_count:
                        return
                    await asyncio.sleep(_READY_POLL_S)
        except (TimeoutError, grpc.aio.AioRpcError) as error:
            raise ProcessFailed(
                f"not every engine's feed came to life: {error or 'no answer in time'}"
            ) from error

    def _build_members(self, ports: Iterator[int], durability: Durability, output: Path) -> None:
        logs = self._log_options + ([] if self._log_dir is None else ["--log-dir", str(self._log_dir)])

        # Not on the command line, where every user of the machine could read it.
        environment = {**os.environ, "PASSWORD": self.password}

        def member(name: str, module: str, *arguments: str) -> Member:
            address = f"{self.host}:{next(ports)}"
            metrics = f"{LOOPBACK}:{next(ports)}" if self._has_metrics else ""
            command = [sys.executable, "-m", "simulation.child", str(os.getpid()), module]
            nats_url = self._nats_url_of(name, self.nats_url)
            command += ["--nats", nats_url, "--listen", address, *arguments, *logs]
            command += ["--metrics", metrics] if metrics else []
            log_file = output / f"{name.replace(' ', '_')}.log"
            return Member(
                name,
                command,
                address,
                log_file,
                environment,
                metrics,
                may_stand_by=bool(self.standby_count) and name != "exchange",
            )

        self._exchange = member(
            "exchange",
            "exchange.runtime.process",
            *("--instruments", str(self.instruments.resolve())),
            *("--replicas", str(self._nats_nodes)),
            *(["--trim-journals"] if self._trim_journals else []),
            *self._size_options,
            *self._dashboard_options(),
        )
        numbers = range(1, self.engine_count + 1)
        for number in numbers:
            self.engines[number] = member(
                f"engine {number}",
                "engine.runtime.process",
                *("--number", str(number)),
                *("--durability", durability),
                *("--snapshot-every", str(self._snapshot_every)),
                *("--state-dir", str(self.data_dir / f"engine_{number}")),
                *self._trace_options,
            )
        for number in numbers if self.standby_count else ():
            self.standbys[number] = member(
                f"standby {number}",
                "engine.runtime.process",
                *("--number", str(number), "--standby"),
                *("--snapshot-every", str(self._snapshot_every)),
                *("--state-dir", str(self.data_dir / f"standby_{number}")),
                *self._trace_options,
            )

    async def stop(self) -> None:
        """Stop everything within 5 s: engines and exchange first, then nats-server."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers = []
        await asyncio.gather(*(member.stop() for member in self.members))
        await asyncio.gather(*(server.stop() for server in self.nats))
        if self._temporary is not None:
            self._temporary.cleanup()

    async def _keep(self, member: Member) -> None:
        """Start the process again whenever it ends, on the same port, ever more slowly while it fails."""
        failures = 0
        while True:
            started = time.monotonic()
            code = await member.wait()
            steady = member.ready or time.monotonic() - started > _STEADY_S
            member.ready = False
            failures = 0 if steady else failures + 1
            pause = _BACK_OFF_S[min(failures, len(_BACK_OFF_S)) - 1] if failures else 0.0
            _log.warning("%s ended with code %d; it starts again in %.1f s", member.name, code, pause)
            await asyncio.sleep(pause)
            try:
                await member.start()
                member.restarts += 1
                self._on_change()
                await member.until_ready()
            except OSError as error:  # its log cannot be opened, say, or there is no memory
                _log.warning("%s cannot be started: %s", member.name, error)
            except ProcessFailed as error:
                # Ended: the next turn starts it again. Silent: it is replaced.
                _log.warning("%s", error)
                await member.stop()
            else:
                _log.warning("%s is ready again as process %d", member.name, member.pid)

    async def _follow_reigns(self) -> None:
        """Keep `engines` naming the process that reigns, as the engines themselves say in their bucket."""

        def note(_: str, entry: EngineEntry | None) -> None:
            waiting = self.standbys.get(entry.engine) if entry is not None else None
            if entry is None or waiting is None or waiting.address != entry.address:
                return
            self.standbys[entry.engine], self.engines[entry.engine] = self.engines[entry.engine], waiting
            _log.warning("%s reigns as engine %d in epoch %d", waiting.name, entry.engine, entry.epoch)
            self._on_change()

        nc = await connect(self.nats_url, name="cluster", on_closed=lambda: None)
        try:
            await Bucket(nc, subjects.ENGINES_BUCKET, messages.decode_engine).watch(note)
        finally:
            await nc.close()

    async def _keep_nats(self, server: NatsServer) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            code = await server.wait()
            failures = 0 if time.monotonic() - started > _STEADY_S else failures + 1
            pause = _BACK_OFF_S[min(failures, len(_BACK_OFF_S)) - 1] if failures else 0.0
            _log.warning("nats-server ended with code %d; it starts again in %.1f s", code, pause)
            await asyncio.sleep(pause)
            try:
                await server.restart()
            except (ServerError, OSError) as error:
                _log.warning("nats-server cannot be started: %s", error)
            else:
                self._on_change()

    async def _unstick_nats(self, server: NatsServer) -> None:
        """Stop a nats-server whose full disk has room again; it is started again at once."""
        while True:
            await asyncio.sleep(_STUCK_PERIOD_S)
            if server.running and await server.is_stuck():
                _log.warning("nats-server found its disk full and has room now: it is started again")
                await server.stop()


def keep_durability(data_dir: Path, wanted: Durability | None) -> Durability:
    """The durability of a data directory, kept in it from its first use on.

    `wanted` None means as before, "journal" at first. Raises `DurabilityDiffers`.
    """
    kept_in = data_dir / "durability"
    if not kept_in.exists():
        durability: Durability = wanted or "journal"
        kept_in.write_text(f"{durability}\n")
        return durability
    kept = kept_in.read_text().strip()
    durability = "none" if kept == "none" else "journal"
    if wanted is not None and wanted != durability:
        raise DurabilityDiffers(f"{data_dir} was made with --durability {durability}, not {wanted}")
    return durability


def check_nodes(data_dir: Path, wanted: int) -> None:
    """Raise `NodesDiffer` when a data directory holds the stores of another number of NATS servers."""
    kept = len(list(data_dir.glob("nats_n*"))) or int((data_dir / "nats").exists()) or wanted
    if kept != wanted:
        raise NodesDiffer(f"{data_dir} was made with --nats-nodes {kept}, not {wanted}")


def check_engines(data_dir: Path, wanted: int) -> None:
    """Raise `EnginesMissing` when a data directory holds more engines: nobody could reach their orders."""
    marks = data_dir.glob(f"engine_*/{MARK_FILE}")
    kept = max((subjects.number_of(mark.parent.name.removeprefix("engine_")) for mark in marks), default=0)
    if kept > wanted:
        raise EnginesMissing(
            f"{data_dir} has the orders of {kept} engines; with --engines {wanted} nobody could reach"
            f" those of engine {wanted + 1}{' and above' if kept > wanted + 1 else ''}:"
            f" start with --engines {kept}"
        )


def claim_ports(
    host: str, wanted: Ports, engines: int, standbys: int = 0, *, metrics: bool = False
) -> Iterator[int]:
    """The ports of nats-server (0: it takes a free one itself), the exchange, the engines, their standbys.

    In this order; `standbys` is how many each engine has, and they take free ports. With `metrics` a free
    loopback port follows that of each process but nats-server.

    Raises `PortTaken` naming the port when one that was asked for is in use: gRPC would share it silently.
    Raises `HostRefused` and `TooManyFiles`.
    """
    asked = [
        ("exchange", wanted.exchange),
        *((f"engine {n + 1}", wanted.first_engine and wanted.first_engine + n) for n in range(engines)),
        *((f"standby {n + 1}", 0) for n in range(engines * standbys)),
    ]
    if wanted.nats:
        with contextlib.closing(socket.socket()) as probe:
            _bind(probe, "127.0.0.1", wanted.nats, "nats-server")
    taken = [wanted.nats]
    with contextlib.ExitStack() as held:  # all at once, or one could be given out twice
        for name, port in asked:
            claimed = held.enter_context(contextlib.closing(_socket()))
            _bind(claimed, host, port, name)
            taken.append(claimed.getsockname()[1])
            if metrics:
                claimed = held.enter_context(contextlib.closing(_socket()))
                _bind(claimed, LOOPBACK, 0, f"the metrics of {name}")
                taken.append(claimed.getsockname()[1])
    return iter(taken)


def claim_port(host: str, port: int, name: str) -> int:
    """The port if it can be used, a free one where it is 0. Raises `PortTaken`."""
    with contextlib.closing(socket.socket()) as claimed:
        _bind(claimed, host, port, name)
        return int(claimed.getsockname()[1])


def _socket() -> socket.socket:
    try:
        return socket.socket()
    except OSError as error:
        raise TooManyFiles(
            f"no more ports can be held open: {error.strerror}. Ask for fewer engines, or raise `ulimit -n`"
        ) from error


def _bind(claimed: socket.socket, host: str, port: int, name: str) -> None:
    for _ in range(_PORT_TRIES if not port else 0):
        with contextlib.suppress(OSError):
            claimed.bind((host, _FREE_PORTS.start + secrets.randbelow(len(_FREE_PORTS))))
            return
    # Connections of a process that just ended may linger on its port; only a listener is in the way.
    claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        claimed.bind((host, port))
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise HostRefused(
                f"{host!r} is no address of this machine to listen on: {error.strerror}"
            ) from error
        raise PortTaken(
            f"port {port} on {host}, meant for {name}, cannot be used: {error.strerror}. "
            "Is another market running?"
        ) from error
