"""TLS between clients and the gRPC edges, by configuration: without certificates there is none.

A server is told its files on the command line; whoever connects is told whom to trust by the environment, so
that every program here does it the same:

    MATCHBUS_TLS_CA       whose certificates are believed: speak TLS
    MATCHBUS_TLS_CERT     one's own certificate, for a venue that wants one
    MATCHBUS_TLS_KEY      its key

All files are PEM. Imports nothing of ours.
"""

import argparse
import contextlib
import logging
import math
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc

CA_VARIABLE: Final = "MATCHBUS_TLS_CA"
CERT_VARIABLE: Final = "MATCHBUS_TLS_CERT"
KEY_VARIABLE: Final = "MATCHBUS_TLS_KEY"

_NO_CHECK_TIME: Final = 0x20_0000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which `ssl` does not name."""

_AGAIN_S: Final = 1.0
"""How soon files that were refused are looked at again: it costs milliseconds, connections may be many."""

_FLIGHTS: Final = 3
"""How often each side of a handshake speaks, at most."""

_log: Final = logging.getLogger(__name__)


class TlsRefused(ValueError):
    """Certificates or keys cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """What a server shows, its certificate with the chain, and its key; and who signs its clients'."""

    cert: Path
    key: Path
    client_ca: Path | None = None
    """None lets every client in, with or without a certificate."""

    def arguments(self) -> list[str]:
        """The options that tell another process of these files."""
        told = ["--tls-cert", str(self.cert), "--tls-key", str(self.key)]
        return told if self.client_ca is None else [*told, "--tls-client-ca", str(self.client_ca)]


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    """The options that exchange and engines have for this."""
    group = parser.add_argument_group("TLS", "PEM files; renewed ones are taken for new connections")
    group.add_argument(
        "--tls-cert",
        metavar="FILE",
        type=Path,
        help="the server's certificate and its chain (default: no TLS)",
    )
    group.add_argument("--tls-key", metavar="FILE", type=Path, help="the key of that certificate")
    group.add_argument(
        "--tls-client-ca",
        metavar="FILE",
        type=Path,
        help="let in only clients with a certificate that one of these signed",
    )


def server_files(options: argparse.Namespace) -> ServerFiles | None:
    """The files that `add_tls_options` was told, None without any. Raises `TlsRefused`."""
    cert, key, client_ca = options.tls_cert, options.tls_key, options.tls_client_ca
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise TlsRefused("TLS needs both --tls-cert and --tls-key")
    files = ServerFiles(cert, key, client_ca)
    _configuration(files)
    return files


def server_credentials(files: ServerFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files: a renewed certificate needs no restart. Raises `TlsRefused`."""
    seen = refused = _versions(files)  # before they are read: what changes meanwhile is read once more
    read = _configuration(files)
    refused_s = -math.inf

    def newest() -> Any:
        """What new connections get: gRPC asks at each; None leaves it as it is."""
        nonlocal seen, refused, refused_s
        versions = _versions(files)
        if versions == seen or (versions == refused and time.monotonic() - refused_s < _AGAIN_S):
            return None
        try:
            renewed = _configuration(files)
        except TlsRefused as error:  # half of a renewal, or one that this process may not read yet
            if versions != refused:  # once for each: connections may come by the thousand
                _log.error("the certificates of before go on: %s", error)
            refused, refused_s = versions, time.monotonic()
            return None
        seen = versions
        return renewed

    demands_certificate = files.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(read, newest, demands_certificate)


def client_credentials(environment: Mapping[str, str] = os.environ) -> grpc.ChannelCredentials | None:
    """What the environment says of TLS, None for none. Raises `TlsRefused`."""
    ca, cert, key = (environment.get(name, "") for name in (CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE))
    if bool(cert) != bool(key) or (cert and not ca):
        raise TlsRefused(f"{CERT_VARIABLE} needs {KEY_VARIABLE} and {CA_VARIABLE} beside it")
    if not ca:
        return None
    try:
        if not cert:
            return grpc.ssl_channel_credentials(_authorities(Path(ca)))
        _check_pair(Path(cert), Path(key))
        return grpc.ssl_channel_credentials(_authorities(Path(ca)), _read(Path(key)), _read(Path(cert)))
    except TlsRefused as error:
        raise TlsRefused(f"{CA_VARIABLE}, _CERT, _KEY in the environment: {error}") from error


def told() -> dict[str, Path]:
    """What has to be set in another terminal to connect as this process does."""
    names = (CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE)
    return {name: Path(os.environ[name]).resolve() for name in names if os.environ.get(name)}


def channel(address: str) -> grpc.aio.Channel:
    """A channel to an exchange or engine, as the environment says. Raises `TlsRefused`."""
    credentials = client_credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(address)
    return grpc.aio.secure_channel(address, credentials)


def _configuration(files: ServerFiles) -> Any:
    _check_pair(files.cert, files.key)
    authorities = None if files.client_ca is None else _authorities(files.client_ca)
    pair = _read(files.key), _read(files.cert)
    return grpc.ssl_server_certificate_configuration([pair], authorities)


def _versions(files: ServerFiles) -> list[tuple[int, int, int, int]]:
    """What changes when one of the files does, or who may read it."""
    found = []
    for path in (files.cert, files.key, files.client_ca):
        if path is not None:
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino))
    return found


def _check_pair(cert: Path, key: Path) -> None:
    """Refuse what gRPC would take, only to end every connection without a word."""
    for path in (cert, key):
        _read(path)  # which one cannot be read, ssl does not say
    try:
        first, last = _validity(cert, key)
    except ssl.SSLError as error:
        why = f" ({error.reason})" if error.reason else ""
        raise TlsRefused(f"{cert} and {key} are no certificate with its key, unencrypted{why}") from error
    except OSError as error:  # one is gone since it was read
        raise TlsRefused(f"{cert} and {key}: {error.strerror}") from error
    now = time.time()
    if now > last:
        raise TlsRefused(f"{cert} has ended: it was valid until {_date(last)}")
    if now < first:
        raise TlsRefused(f"{cert} is not valid yet: it will be from {_date(first)}")


def _validity(cert: Path, key: Path) -> tuple[float, float]:
    """From when until when a certificate is valid, as seconds since 1970.

    `ssl` decodes a certificate only for whoever was shown it and found it good for the purpose. gRPC does not
    mind the purpose, so either will do; with one that is good for neither we do without the dates.
    """
    for as_client in (False, True):
        with contextlib.suppress(ssl.SSLCertVerificationError):
            seen = _shown(cert, key, as_client=as_client)
            return ssl.cert_time_to_seconds(seen["notBefore"]), ssl.cert_time_to_seconds(seen["notAfter"])
    return -math.inf, math.inf


def _shown(cert: Path, key: Path, *, as_client: bool) -> Any:
    """What the other side of a handshake, all of it here, sees of a server's or a client's certificate.

    Whatever its dates and whoever signed it: that is for others to judge.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    for side in (server, client):
        side.load_cert_chain(cert, key, password="")
    looking = server if as_client else client
    looking.load_verify_locations(cert)
    looking.verify_mode = ssl.CERT_REQUIRED
    looking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    at_server = server.wrap_bio(to_server, to_client, server_side=True)
    at_client = client.wrap_bio(to_client, to_server)
    for _ in range(_FLIGHTS):
        for end in (at_client, at_server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return (at_server if as_client else at_client).getpeercert()


def _date(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _authorities(path: Path) -> bytes:
    text = _read(path)
    # Names beside the certificates may be in any encoding; ssl takes ASCII only.
    ascii_text = text.decode("latin-1").encode("ascii", "replace").decode("ascii")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=ascii_text)
    except (ssl.SSLError, ValueError) as error:
        raise TlsRefused(f"{path} holds no certificates") from error
    return text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsRefused(f"{path}: {error.strerror}") from error
