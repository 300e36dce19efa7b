"""What an engine process is told: from the command line first, then the environment, then defaults."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from matchbus.program import USAGE_ERROR
from matchbus.tls import ServerFiles, TlsRefused, add_tls_options, server_files
from matchbus.tracing import add_trace_options

from bus import subjects
from bus.addresses import DEFAULT_NATS_URL, MAX_PORT
from bus.logs import LogForm, LogLevel, add_log_options
from bus.metrics import add_metrics_option
from bus.runner import default_listen, nats_address
from engine.runtime.rates import add_rate_option
from engine.runtime.snapshots import COMMANDS_PER_SNAPSHOT

DEFAULT_PORT: Final = 50050
"""Engine n listens at this port plus n unless told otherwise; from 15,486 on it has to be told."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How one engine process runs. `listen` is HOST:PORT; port 0 takes a free one."""

    number: int
    nats_url: str
    listen: str
    durable: bool
    standby: bool
    log_dir: Path | None
    state_dir: Path
    accept_loss: bool
    commands_per_snapshot: int = COMMANDS_PER_SNAPSHOT
    orders_per_second: int = 0
    """What each client may send; 0 for any number."""

    tls: ServerFiles | None = None
    metrics: str = ""
    """Where metrics are served, HOST:PORT; empty for nowhere."""

    trace: str = ""
    """The OTLP/HTTP endpoint that gets traces of orders; empty for none."""

    trace_ratio: float = 1.0
    log_format: LogForm = "text"
    log_level: LogLevel = "info"


def parse_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> EngineSettings:
    """Make settings of the command line and the environment; exits with a message when they are wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        subjects.engine_token(options.number)
    except ValueError as error:
        parser.error(str(error))
    if options.listen is None and DEFAULT_PORT + options.number > MAX_PORT:
        parser.error(
            f"engine {options.number} has no port of its own, {DEFAULT_PORT} + {options.number} being above "
            f"{MAX_PORT}: give it one with --listen HOST:PORT"
        )
    if options.standby and options.durability == "none":
        parser.error("--standby follows the journal, and with --durability none there is none")
    try:
        tls = server_files(options)
    except TlsRefused as error:  # files, not words: the usage would only hide the reason
        parser.exit(USAGE_ERROR, f"{parser.prog}: error: {error}\n")
    default = default_listen(environment, DEFAULT_PORT + options.number)
    return EngineSettings(
        number=options.number,
        nats_url=options.nats,
        listen=default if options.listen is None else options.listen,
        durable=options.durability == "journal",
        standby=options.standby,
        log_dir=options.log_dir,
        commands_per_snapshot=max(0, options.snapshot_every) or sys.maxsize,
        state_dir=options.state_dir
        or Path("data") / f"{'standby' if options.standby else 'engine'}_{options.number}",
        accept_loss=options.accept_loss,
        orders_per_second=options.orders_per_second,
        tls=tls,
        metrics=options.metrics or "",
        trace=options.trace or "",
        trace_ratio=options.trace_ratio,
        log_format=options.log_format,
        log_level=options.log_level,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="engine", description="One matching engine of a Matchbus market.")
    parser.add_argument(
        "--number", metavar="N", type=int, required=True, help="1 to 65535, unique in the market"
    )
    parser.add_argument(
        "--nats", metavar="URL", type=nats_address, default=DEFAULT_NATS_URL, help="default %(default)s"
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help=f"default 127.0.0.1:{DEFAULT_PORT} + N")
    parser.add_argument(
        "--durability",
        choices=("journal", "none"),
        default="journal",
        help="none: orders live as long as the process (default %(default)s)",
    )
    parser.add_argument(
        "--snapshot-every",
        metavar="COMMANDS",
        type=int,
        default=COMMANDS_PER_SNAPSHOT,
        help="make a snapshot after so many commands, 0: never (default %(default)s)",
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=Path,
        help="where the process keeps how far its journal was, outside NATS; no two processes share one "
        "(default data/engine_N, or data/standby_N)",
    )
    parser.add_argument(
        "--accept-loss",
        action="store_true",
        help="start although the journal has lost batches that --state-dir knows of; they are gone for good",
    )
    parser.add_argument(
        "--standby",
        action="store_true",
        help="leave the first reign to another process of this number, follow it, take over when it is gone",
    )
    add_rate_option(parser)
    add_tls_options(parser)
    add_metrics_option(parser)
    add_trace_options(parser)
    add_log_options(parser)
    parser.add_argument("--log-dir", metavar="DIR", type=Path, help="write logs to files below DIR")
    return parser
