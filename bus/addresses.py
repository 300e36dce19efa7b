"""How addresses and whole numbers are written, for the commands of operators and of traders alike. Pure."""

import re
from typing import Final

DEFAULT_NATS_URL: Final = "nats://127.0.0.1:4222"
MAX_PORT: Final = 65_535

_MAX_DIGITS: Final = 60
_NATS_SERVER: Final = re.compile(r"((nats|tls)://)?[^\s/,]+/?")


def number(text: str) -> int | None:
    """The whole number from 0 on that the text is; None for any other text."""
    # Python refuses to read thousands of digits, with a text about itself.
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else None


def host_and_port(host: str, port: int) -> str:
    """HOST:PORT, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(address: str) -> str | None:
    """The host of HOST:PORT; None for any other text."""
    host, _, port = address.rpartition(":")
    given = number(port)
    return host if host and given is not None and given <= MAX_PORT else None


def check_nats(url: str) -> None:
    """Raise `ValueError` for what names no NATS servers: nats-py would look for them until the deadline."""
    if not all(_NATS_SERVER.fullmatch(server) for server in url.split(",")):
        raise ValueError(
            f"{shown(url)!r:.60} is no address of NATS: write it like nats://127.0.0.1:4222 or "
            "tls://HOST:4222, several servers of one cluster with commas"
        )


def shown(url: str) -> str:
    """Addresses of NATS as they may be shown: what stands before an `@` may be a password."""
    return re.sub(r"(^|,)(\w+://)?[^,]*@", r"\1\2", url)
