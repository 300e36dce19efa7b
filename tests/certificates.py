"""Certificates of authorities that exist for one test."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """A certificate authority; its own certificate is `ca` in the directory, under its name."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._ca = trustme.CA()
        self.ca = directory / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *, begins_s: float = -3_600, ends_s: float = 3_600) -> tuple[Path, Path]:
        """A certificate for this machine's loopback, and its key, in files of that name.

        It is valid from `begins_s` until `ends_s` seconds after now.
        """
        now = datetime.now(UTC)
        issued = self._ca.issue_cert(
            *("127.0.0.1", "localhost"),
            not_before=now + timedelta(seconds=begins_s),
            not_after=now + timedelta(seconds=ends_s),
        )
        cert, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        cert.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        return cert, key


def self_signed(cert: Path, key: Path, purpose: x509.ObjectIdentifier, *, ends_s: float = 3_600) -> None:
    """A certificate for this machine's loopback that is for this purpose alone, and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "self-signed")])
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(seconds=ends_s))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .sign(private, hashes.SHA256())
    )
    cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
