"""What a market on this machine may be told besides its size: what it keeps, what it reports, who comes in.

Here: these settings, and as which options they reach its processes. Not here: the processes
(`simulation/cluster.py`).
"""

import os
from dataclasses import dataclass
from pathlib import Path

from matchbus import tls

from bus.logs import LogForm, LogLevel
from engine.runtime.snapshots import COMMANDS_PER_SNAPSHOT
from simulation.cluster_errors import ClientsDiffer
from simulation.data_directory import Durability


@dataclass(frozen=True, slots=True)
class Storage:
    """What is kept of a market, and how much of it."""

    durability: Durability | None = None
    """None: as the data directory was made with, "journal" at first. It cannot be changed later."""

    nats_nodes: int = 1
    """How many nats-servers there are, 1 or 3: three keep every stream threefold, and any two go on."""

    snapshot_every: int = COMMANDS_PER_SNAPSHOT
    """An engine makes a snapshot after so many commands."""

    trim_journals: bool = False
    """Whether journals lose what stands before the oldest kept snapshot."""

    accept_loss: bool = False
    """Whether engines start although a journal has lost batches; not when they are started again."""

    journal_gib: int | None = None
    """How large each journal may become; None leaves that to the exchange."""

    executions_gib: int | None = None
    """Likewise for all execution reports together."""

    @property
    def exchange_options(self) -> list[str]:
        """What the exchange is told of it on its command line."""
        return [
            *("--replicas", str(self.nats_nodes)),
            *(["--trim-journals"] if self.trim_journals else []),
            *(["--journal-gib", str(self.journal_gib)] if self.journal_gib else []),
            *(["--executions-gib", str(self.executions_gib)] if self.executions_gib else []),
        ]


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What the processes tell about themselves, and where."""

    log_dir: Path | None = None
    """Where each component writes a log file, if anywhere."""

    log_format: LogForm = "text"
    log_level: LogLevel = "info"
    metrics: bool = False
    """Whether each process serves its metrics, on loopback; `TARGETS_FILE` tells Prometheus where."""

    trace: str = ""
    """The OTLP/HTTP endpoint that engines send traces of orders to; empty for none."""

    trace_ratio: float = 1.0
    """The share of orders that are traced."""

    @property
    def log_options(self) -> list[str]:
        """What every process is told of its logs on its command line."""
        folder = [] if self.log_dir is None else ["--log-dir", str(self.log_dir)]
        return ["--log-format", self.log_format, "--log-level", self.log_level, *folder]

    @property
    def trace_options(self) -> list[str]:
        """What engines are told of traces on theirs."""
        return ["--trace", self.trace, "--trace-ratio", str(self.trace_ratio)] if self.trace else []


@dataclass(frozen=True, slots=True)
class Access:
    """How clients come in."""

    files: tls.ServerFiles | None = None
    """The certificate that exchange and engines show, and whether they demand one; None for no TLS."""

    orders_per_second: int = 0
    """How many an engine takes from each client; 0 for any number."""

    @property
    def options(self) -> list[str]:
        """What every process is told of it on its command line."""
        return [] if self.files is None else self.files.arguments()

    @property
    def engine_options(self) -> list[str]:
        """What engines are told besides."""
        return ["--orders-per-second", str(self.orders_per_second)] if self.orders_per_second else []

    def check(self) -> None:
        """Raise `ClientsDiffer` if this process, which goes by the environment, could not call the market."""
        try:
            speaks_tls = tls.client_credentials() is not None
        except tls.TlsRefused as error:
            raise ClientsDiffer(str(error)) from error
        if self.files is not None and not speaks_tls:
            raise ClientsDiffer(
                f"with --tls-cert, say in {tls.CA_VARIABLE} which file vouches for {self.files.cert}: this "
                "command and all clients need it"
            )
        demands_certificate = self.files is not None and self.files.client_ca is not None
        if demands_certificate and not os.environ.get(tls.CERT_VARIABLE):
            raise ClientsDiffer(
                f"with --tls-client-ca, name a certificate and its key in {tls.CERT_VARIABLE} and "
                f"{tls.KEY_VARIABLE}: this command and all clients need one"
            )
        if self.files is None and speaks_tls:
            raise ClientsDiffer(
                f"{tls.CA_VARIABLE} is set, so clients speak TLS and this market would not: unset it, or give"
                " --tls-cert and --tls-key"
            )
