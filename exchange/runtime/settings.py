"""What an exchange process is told: from the command line first, then the environment, then defaults.

Invariant: an exchange that others can reach never has the password that everybody knows.
"""

import argparse
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from matchbus.tls import ServerFiles, TlsRefused, add_tls_options, server_files

from bus.addresses import DEFAULT_NATS_URL, host_of
from bus.logs import LogForm, LogLevel, add_log_options
from bus.metrics import add_metrics_option
from bus.provision import EXECUTIONS_BYTES, GIB, JOURNAL_BYTES
from bus.runner import default_listen, nats_address, whole
from exchange.directory import secret_violation

DEFAULT_PASSWORD: Final = "password"  # noqa: S105 -- known to all, so refused off loopback
DEFAULT_PORT: Final = 50050
DEFAULT_WEBSOCKET_URL: Final = "ws://127.0.0.1:4223"
"""Where nats.conf takes WebSockets."""

_INSTRUMENTS_FILE: Final = "instruments.toml"
_MAX_GIB: Final = 1_000_000


class SettingsRefused(Exception):
    """The process cannot be started like this; the text says what to change."""


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """How one exchange process runs. `listen` is HOST:PORT; port 0 takes a free one."""

    nats_url: str
    listen: str
    password: str = field(repr=False)
    instruments: Path
    log_dir: Path | None
    replicas: int
    """How many servers of a NATS cluster keep each stream."""

    trim_journals: bool = False
    """Whether journals lose what stands before the oldest kept snapshot."""

    journal_bytes: int = JOURNAL_BYTES
    """How large each engine's journal may become; one that may become larger already stays so."""

    executions_bytes: int = EXECUTIONS_BYTES
    """Likewise the execution reports of all engines."""

    tls: ServerFiles | None = None
    dashboard: str = ""
    """Where the dashboard is served, HOST:PORT; empty for nowhere."""

    websocket_urls: tuple[str, ...] = (DEFAULT_WEBSOCKET_URL,)
    """Where its page finds NATS."""

    metrics: str = ""
    """Where metrics are served, HOST:PORT; empty for nowhere."""

    log_format: LogForm = "text"
    log_level: LogLevel = "info"


def parse_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> ExchangeSettings:
    """Make settings of the command line and the environment. Raises `SettingsRefused`."""
    options = _parser().parse_args(arguments)
    listen = default_listen(environment, DEFAULT_PORT) if options.listen is None else options.listen
    password = (
        options.password if options.password is not None else environment.get("PASSWORD", DEFAULT_PASSWORD)
    )
    host = _host_of(listen, "--listen")
    if options.dashboard:
        _host_of(options.dashboard, "--dashboard")
    if not password:
        raise SettingsRefused("the password is empty: set PASSWORD or give --password")
    violation = secret_violation(password)
    if violation:
        raise SettingsRefused(f"the password {violation}: no client could send it")
    if password == DEFAULT_PASSWORD and not is_loopback(host):
        raise SettingsRefused(
            f"the default password is refused on {listen}, which is not a loopback address: "
            "set PASSWORD or give --password another one, or listen on 127.0.0.1"
        )
    try:
        tls = server_files(options)
    except TlsRefused as error:
        raise SettingsRefused(str(error)) from error
    return ExchangeSettings(
        nats_url=options.nats,
        listen=listen,
        password=password,
        instruments=options.instruments or _default_instruments(),
        log_dir=options.log_dir,
        replicas=options.replicas,
        trim_journals=options.trim_journals,
        journal_bytes=options.journal_gib * GIB,
        executions_bytes=options.executions_gib * GIB,
        tls=tls,
        dashboard=options.dashboard,
        websocket_urls=tuple(options.websocket.split(",")),
        metrics=options.metrics or "",
        log_format=options.log_format,
        log_level=options.log_level,
    )


def shipped_instruments() -> Path:
    """The instruments file that came with Matchbus: in this package of a wheel, at the root of a checkout."""
    package = Path(__file__).resolve().parent.parent
    in_wheel = package / _INSTRUMENTS_FILE
    return in_wheel if in_wheel.is_file() else package.parent / _INSTRUMENTS_FILE


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host; a name other than localhost counts as reachable.

    An IPv6 address may have its brackets.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="exchange",
        description="The exchange of a Matchbus market: clients, engines, instruments, positions.",
        epilog="PASSWORD and IP_ADDR in the environment stand in for --password and the host of --listen.",
    )
    parser.add_argument(
        "--nats", metavar="URL", type=nats_address, default=DEFAULT_NATS_URL, help="default %(default)s"
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help=f"default 127.0.0.1:{DEFAULT_PORT}")
    parser.add_argument(
        "--password",
        metavar="P",
        help="what clients need to register; other users of this machine can read it here: prefer PASSWORD",
    )
    parser.add_argument(
        "--instruments", metavar="FILE", type=Path, help=f"TOML file, default {_INSTRUMENTS_FILE} here"
    )
    parser.add_argument(
        "--replicas",
        type=int,
        choices=(1, 3, 5),
        default=1,
        help="how many servers of a NATS cluster keep each stream (default 1)",
    )
    parser.add_argument(
        "--trim-journals",
        action="store_true",
        help="let journals lose what stands before the oldest kept snapshot, if given at the first start; "
        "else they keep everything",
    )
    add_size_options(parser)
    add_tls_options(parser)
    parser.add_argument(
        "--dashboard",
        metavar="HOST:PORT",
        default="",
        help="serve the dashboard there; nats.conf lets the page of 127.0.0.1:8080 connect",
    )
    parser.add_argument(
        "--websocket",
        metavar="URL",
        default=DEFAULT_WEBSOCKET_URL,
        help="where the dashboard's page finds NATS, with commas between several (default %(default)s)",
    )
    add_metrics_option(parser)
    add_log_options(parser)
    parser.add_argument("--log-dir", metavar="DIR", type=Path, help="write logs to files below DIR")
    return parser


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """Let a command be told how large what is stored may become."""
    for option, what, default in (
        ("--journal-gib", "each engine's journal", JOURNAL_BYTES),
        ("--executions-gib", "the execution reports of all engines", EXECUTIONS_BYTES),
    ):
        parser.add_argument(
            option,
            metavar="N",
            type=partial(whole, most=_MAX_GIB),
            default=default // GIB,
            help=f"how large {what} may become, in GiB; a later start with more lets it grow "
            "(default %(default)s)",
        )


def _host_of(listen: str, option: str) -> str:
    host = host_of(listen)
    if host is None:
        raise SettingsRefused(f"{option} {listen} must be HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}")
    return host


def _default_instruments() -> Path:
    """The file in the current directory, or else the one that came with Matchbus."""
    here = Path(_INSTRUMENTS_FILE)
    return here if here.is_file() else shipped_instruments()
