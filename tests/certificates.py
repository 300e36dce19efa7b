"""Certificates of authorities that exist for one test."""

from pathlib import Path

import trustme


class Authority:
    """A certificate authority; its own certificate is `ca` in the directory, under its name."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._ca = trustme.CA()
        self.ca = directory / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for this machine's loopback, and its key, in files of that name."""
        issued = self._ca.issue_cert("127.0.0.1", "localhost")
        cert, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        cert.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        return cert, key
