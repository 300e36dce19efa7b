"""Ports of this machine for the processes of a market: those that were asked for, or free ones."""

import contextlib
import errno
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from simulation.cluster_errors import HostRefused, PortTaken, TooManyFiles

LOOPBACK: Final = "127.0.0.1"

_FREE_PORTS: Final = range(15_000, 32_000)
"""Where free ports are looked for: below those that the kernel gives to outgoing connections, one of which
could come between the choice and the process that is to listen there."""

_PORT_TRIES: Final = 100


@dataclass(frozen=True, slots=True)
class Ports:
    """Fixed ports; 0 takes a free one."""

    exchange: int = 0
    first_engine: int = 0
    dashboard: int = 0


def claim_ports(
    host: str, wanted: Ports, engines: int, standbys: int = 0, *, metrics: bool = False
) -> Iterator[int]:
    """The ports of the exchange, the engines and their standbys, in this order.

    `standbys` is how many each engine has, and they take free ports. With `metrics` a free loopback port
    follows that of each process.

    Raises `PortTaken` naming the port when one that was asked for is in use: gRPC would share it silently.
    Raises `HostRefused` and `TooManyFiles`.
    """
    asked = [
        ("exchange", wanted.exchange),
        *((f"engine {n + 1}", wanted.first_engine and wanted.first_engine + n) for n in range(engines)),
        *((f"standby {n + 1}", 0) for n in range(engines * standbys)),
    ]
    taken = []
    with contextlib.ExitStack() as held:  # all at once, or one could be given out twice
        for name, port in asked:
            claimed = held.enter_context(contextlib.closing(_socket(host)))
            _bind(claimed, host, port, name)
            taken.append(claimed.getsockname()[1])
            if metrics:
                claimed = held.enter_context(contextlib.closing(_socket(LOOPBACK)))
                _bind(claimed, LOOPBACK, 0, f"the metrics of {name}")
                taken.append(claimed.getsockname()[1])
    return iter(taken)


def claim_port(host: str, port: int, name: str) -> int:
    """The port if it can be used, a free one where it is 0. Raises `PortTaken`."""
    with contextlib.closing(_socket(host)) as claimed:
        _bind(claimed, host, port, name)
        return int(claimed.getsockname()[1])


def _socket(host: str) -> socket.socket:
    try:
        return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:  # a machine without IPv6
            raise _host_refused(host, error) from error
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
            raise _host_refused(host, error) from error
        raise PortTaken(
            f"port {port} on {host}, meant for {name}, cannot be used: {error.strerror}. "
            "Is another market running?"
        ) from error


def _host_refused(host: str, error: OSError) -> HostRefused:
    return HostRefused(f"{host!r} is no address of this machine to listen on: {error.strerror}")
