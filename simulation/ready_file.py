"""The ready file of a market on this machine: where everything listens, for whoever has to find it.

ReadyFileUnwritable    it could be written before the start, and cannot be now
"""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from simulation.cluster import Cluster
from simulation.cluster_errors import ClusterError
from simulation.member import Member

_CONNECT_S: Final = 1.0

_log: Final = logging.getLogger(__name__)


class ReadyFileUnwritable(ClusterError):
    """The ready file could be written before the start, and cannot be now."""


def document(cluster: Cluster) -> dict[str, Any]:
    """Where everything listens and which process it is."""

    def place(member: Member) -> dict[str, str | int]:
        metrics = {"metrics": member.metrics} if member.metrics else {}
        return {"address": member.address, "pid": member.pid, **metrics}

    contents: dict[str, Any] = {
        "nats_url": cluster.nats_url,
        "nats_pid": cluster.nats[0].pid,
        "exchange": place(cluster.exchange),
        "engines": {str(number): place(member) for number, member in cluster.engines.items()},
    }
    if cluster.dashboard_url:
        contents["dashboard"] = cluster.dashboard_url
    if cluster.standbys:
        contents["standbys"] = {str(number): place(member) for number, member in cluster.standbys.items()}
    if len(cluster.nats) > 1:
        contents["nats_nodes"] = {
            server.node.name: {"url": server.url, "pid": server.pid} for server in cluster.nats if server.node
        }
    return contents


def write(path: Path, contents: Mapping[str, Any]) -> None:
    """Replace it at once, so that a reader sees all of it or nothing. Raises `ReadyFileUnwritable`."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(contents, indent=2))
        draft.replace(path)
    except OSError as error:
        raise ReadyFileUnwritable(f"the ready file {path} cannot be written: {error.strerror}") from error


def forget(path: Path, own_nats_pid: int = 0) -> None:
    """Remove a ready file of a market that has ended or is ours: nobody must take it for a living one's."""
    whatever_is_in_it = OSError, ValueError, LookupError, TypeError, OverflowError, AttributeError
    with contextlib.suppress(*whatever_is_in_it):
        found = json.loads(path.read_bytes())
        if found["nats_pid"] != own_nats_pid:
            os.kill(found["nats_pid"], 0)
            nats = urlsplit(found["nats_url"].split(",")[0])
            # Another program may have the number by now, of a nats-server that was killed.
            socket.create_connection((nats.hostname, nats.port), _CONNECT_S).close()
            return  # it runs, perhaps in the very directory that we are asked to take
    path.unlink(missing_ok=True)


def withdraw(path: Path, cluster: Cluster) -> None:
    """Remove the ready file of a market that stops."""
    try:
        forget(path, cluster.nats[0].pid)
    except OSError as error:
        _log.warning("the ready file %s stays, and the market stops: %s", path, error.strerror)
