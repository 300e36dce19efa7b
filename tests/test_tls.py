"""TLS at the gRPC edges, and who is told of it how."""

import argparse
import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self
from unittest.mock import Mock

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from matchbus import tls
from matchbus.edge import Edge
from matchbus.tls import (
    CA_VARIABLE,
    CERT_VARIABLE,
    KEY_VARIABLE,
    ServerFiles,
    TlsRefused,
    add_tls_options,
    client_credentials,
    server_credentials,
    server_files,
)

from tests.certificates import Authority, self_signed

_ENDS = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Who signed the server's certificate."""
    return Authority(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    """Somebody else's authority."""
    return Authority(tmp_path, "other")


class Server:
    """An edge that answers with its health, over TLS."""

    def __init__(self, files: ServerFiles) -> None:
        self._edge = Edge("matchbus.v1.Exchange")
        self.address = self._edge.bind("127.0.0.1:0", files)

    async def __aenter__(self) -> Self:
        await self._edge.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._edge.stop(0)

    async def lets_in(self, monkeypatch: pytest.MonkeyPatch, **environment: Path) -> bool:
        """Whether it answers one who is told this by the environment."""
        with monkeypatch.context() as told:
            for name, path in environment.items():
                told.setenv(f"MATCHBUS_TLS_{name.upper()}", str(path))
            async with tls.channel(self.address) as channel:
                try:
                    await health_pb2_grpc.HealthStub(channel).Check(
                        health_pb2.HealthCheckRequest(), timeout=5
                    )
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 -- the other way is no error
                    return False
            return True


async def test_only_who_believes_the_certificate_is_answered(
    authority: Authority, other: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TLS there is no answer either; a client needs no certificate of its own."""
    async with Server(ServerFiles(*authority.issue("server"))) as server:
        assert await server.lets_in(monkeypatch, ca=authority.ca)
        assert not await server.lets_in(monkeypatch, ca=other.ca)
        assert not await server.lets_in(monkeypatch)


async def test_clients_may_need_certificates(
    authority: Authority, other: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the given authority signed."""
    mine, theirs = authority.issue("client"), other.issue("stranger")
    async with Server(ServerFiles(*authority.issue("server"), client_ca=authority.ca)) as server:
        assert await server.lets_in(monkeypatch, ca=authority.ca, cert=mine[0], key=mine[1])
        assert not await server.lets_in(monkeypatch, ca=authority.ca)
        assert not await server.lets_in(monkeypatch, ca=authority.ca, cert=theirs[0], key=theirs[1])


async def test_a_renewed_certificate_needs_no_restart(
    authority: Authority,
    other: Authority,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """New connections get it; while it is only half there, they get the one of before."""
    cert, key = authority.issue("server")
    async with Server(ServerFiles(cert, key)) as server:
        other.issue("server")
        assert await server.lets_in(monkeypatch, ca=other.ca)
        assert not await server.lets_in(monkeypatch, ca=authority.ca)
        key.write_text("half a ke")
        with caplog.at_level(logging.ERROR, tls.__name__):
            assert await server.lets_in(monkeypatch, ca=other.ca)
        assert "the certificates of before go on" in caplog.text
        key.unlink()
        assert await server.lets_in(monkeypatch, ca=other.ca)
        authority.issue("server")
        assert await server.lets_in(monkeypatch, ca=authority.ca)


async def test_a_renewal_that_is_out_of_date_is_not_taken(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server goes on with the certificate of before, and says so."""
    cert, key = authority.issue("server")
    async with Server(ServerFiles(cert, key)) as server:
        for dates, why in (
            ({"ends_s": -5}, "has ended: it was valid until"),
            ({"begins_s": 60}, "is not valid yet: it will be from"),
        ):
            authority.issue("server", **dates)
            assert await server.lets_in(monkeypatch, ca=authority.ca)
            assert f"the certificates of before go on: {cert} {why}" in caplog.text


class Renewals:
    """The certificates of a server as gRPC asks for them: at the start, and at each new connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.newest: Callable[[], object] = lambda: None
        monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", self._take)

    def _take(self, _first: object, newest: Callable[[], object], _demands_certificate: bool) -> None:
        self.newest = newest


def test_a_renewed_certificate_that_cannot_be_read_at_first_is_taken_later(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Though nothing in the files has changed since: there were no descriptors left, for one.

    It is not looked at for every connection that comes meanwhile.
    """
    cert, key = authority.issue("server")
    renewals = Renewals(monkeypatch)
    server_credentials(ServerFiles(cert, key))
    authority.issue("server")
    with monkeypatch.context() as crowded:
        read = Mock(side_effect=OSError(errno.EMFILE, "Too many open files"))
        crowded.setattr(Path, "read_bytes", read)
        assert [renewals.newest() for _ in range(3)] == [None] * 3
        assert read.call_count == 1
    monkeypatch.setattr(tls, "_AGAIN_S", 0)
    assert caplog.messages == [f"the certificates of before go on: {cert}: Too many open files"]
    assert renewals.newest() is not None
    assert renewals.newest() is None


def test_a_file_that_becomes_readable_is_another_version(authority: Authority) -> None:
    """A renewed key may be given to the server only after it is written."""
    cert, key = authority.issue("server")
    before = tls._versions(ServerFiles(cert, key))
    deadline = time.monotonic() + 5
    while tls._versions(ServerFiles(cert, key)) == before:
        assert time.monotonic() < deadline
        key.chmod(0o640)


def test_a_certificate_renewed_while_it_is_first_read_is_taken(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have read the one of before."""
    cert, key = authority.issue("server")
    renewals = Renewals(monkeypatch)
    read = tls._configuration

    def read_and_renew(files: ServerFiles) -> object:
        configuration = read(files)
        authority.issue("server")
        return configuration

    with monkeypatch.context() as starting:
        starting.setattr(tls, "_configuration", read_and_renew)
        server_credentials(ServerFiles(cert, key))
    assert renewals.newest() is not None
    assert renewals.newest() is None


async def test_authorities_may_have_names_in_any_letters(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bundles name each certificate beside it; both sides read such files."""
    authority.ca.write_bytes(
        "# F\u0151tan\u00fas\u00edtv\u00e1ny\n".encode() + authority.ca.read_bytes() + b"# \xe9\n"
    )
    cert, key = authority.issue("client")
    async with Server(ServerFiles(*authority.issue("server"), client_ca=authority.ca)) as server:
        assert await server.lets_in(monkeypatch, ca=authority.ca, cert=cert, key=key)


def test_a_file_that_vanishes_while_it_is_read_is_named(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be gone between two looks, and then is refused as any other."""
    cert, key = authority.issue("server")
    read = tls._read

    def read_and_lose(path: Path) -> bytes:
        found = read(path)
        path.unlink()
        return found

    monkeypatch.setattr(tls, "_read", read_and_lose)
    with pytest.raises(TlsRefused, match=r"server\.pem and .*server\.key: No such file"):
        server_credentials(ServerFiles(cert, key))


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    """Before anything listens; gRPC itself would take them all."""
    cert, key = authority.issue("server")
    _, another = authority.issue("another")
    junk, nothing = tmp_path / "junk.pem", tmp_path / "nothing.pem"
    junk.write_text("-----BEGIN")
    for files, why in (
        (ServerFiles(nothing, key), "nothing.pem: No such file"),
        (ServerFiles(cert, nothing), "nothing.pem: No such file"),
        (ServerFiles(cert, junk), "no certificate with its key"),
        (ServerFiles(junk, key), "no certificate with its key"),
        (ServerFiles(cert, another), r"no certificate with its key, unencrypted \(KEY_VALUES_MISMATCH\)"),
        (ServerFiles(cert, key, nothing), "nothing.pem: No such file"),
        (ServerFiles(cert, key, junk), "junk.pem holds no certificates"),
        (ServerFiles(cert, key, key), "server.key holds no certificates"),
    ):
        with pytest.raises(TlsRefused, match=why):
            server_credentials(files)


def test_a_certificate_out_of_date_is_named(authority: Authority) -> None:
    """With the date, to servers and clients alike: the other side would refuse it without saying why."""
    for dates, why in (
        ({"ends_s": -5}, r"own\.pem has ended: it was valid until 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC"),
        ({"begins_s": 60}, r"own\.pem is not valid yet: it will be from 20\d\d-"),
    ):
        cert, key = authority.issue("own", **dates)
        with pytest.raises(TlsRefused, match=why):
            server_credentials(ServerFiles(cert, key))
        told = {CA_VARIABLE: str(authority.ca), CERT_VARIABLE: str(cert), KEY_VARIABLE: str(key)}
        with pytest.raises(TlsRefused, match=why):
            client_credentials(told)


async def test_certificates_may_be_for_any_purpose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As gRPC has it; that one has ended is seen where it is for a server or a client."""
    cert, key = tmp_path / "own.pem", tmp_path / "own.key"
    for purpose in (ExtendedKeyUsageOID.EMAIL_PROTECTION, *_ENDS):
        self_signed(cert, key, purpose)
        async with Server(ServerFiles(cert, key, client_ca=cert)) as server:
            assert await server.lets_in(monkeypatch, ca=cert, cert=cert, key=key)
    for purpose in _ENDS:
        self_signed(cert, key, purpose, ends_s=-5)
        with pytest.raises(TlsRefused, match="has ended"):
            server_credentials(ServerFiles(cert, key))


def test_what_the_environment_says_is_checked(authority: Authority, tmp_path: Path) -> None:
    """A client would otherwise try for ever to connect."""
    cert, key = map(str, authority.issue("client"))
    ca, nothing = str(authority.ca), str(tmp_path / "nothing.pem")
    assert client_credentials({}) is None
    assert client_credentials({CA_VARIABLE: ca}) is not None
    assert client_credentials({CA_VARIABLE: ca, CERT_VARIABLE: cert, KEY_VARIABLE: key}) is not None
    for environment, why in (
        ({CA_VARIABLE: nothing}, "nothing.pem: No such file"),
        ({CERT_VARIABLE: cert, KEY_VARIABLE: key}, "MATCHBUS_TLS_CERT needs MATCHBUS_TLS_KEY and"),
        ({CA_VARIABLE: ca, CERT_VARIABLE: cert}, "MATCHBUS_TLS_CERT needs MATCHBUS_TLS_KEY and"),
        ({CA_VARIABLE: ca, KEY_VARIABLE: key}, "MATCHBUS_TLS_CERT needs MATCHBUS_TLS_KEY and"),
        ({CA_VARIABLE: ca, CERT_VARIABLE: cert, KEY_VARIABLE: cert}, "no certificate with its key"),
    ):
        with pytest.raises(TlsRefused, match=why):
            client_credentials(environment)


def test_options(authority: Authority) -> None:
    """What one process was told it can tell another; half of it is refused."""
    parser = argparse.ArgumentParser()
    add_tls_options(parser)
    cert, key = authority.issue("server")
    for files in (ServerFiles(cert, key), ServerFiles(cert, key, authority.ca)):
        assert server_files(parser.parse_args(files.arguments())) == files
    assert server_files(parser.parse_args([])) is None
    for half in (["--tls-cert", str(cert)], ["--tls-key", str(key)], ["--tls-client-ca", str(authority.ca)]):
        with pytest.raises(TlsRefused, match="needs both --tls-cert and --tls-key"):
            server_files(parser.parse_args(half))
