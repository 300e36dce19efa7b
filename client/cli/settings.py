"""Who trades where: contexts that are kept, and what a command is told besides.

A value is taken from the first of these that has it:

    1. the option                    --exchange 127.0.0.1:50050
    2. the environment               MATCHBUS_EXCHANGE=127.0.0.1:50050
    3. the context                   --context, MATCHBUS_CONTEXT, or the one in use
    4. the default

Contexts are kept in `matchbus/contexts.json` of the user's configuration directory ($XDG_CONFIG_HOME, else
~/.config). The file holds secrets: only its owner may read it, and it is replaced whole. Whoever changes it
holds the lock beside it: commands at the same time keep each other's contexts.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from bus.addresses import DEFAULT_NATS_URL, check_nats
from client.session import check_address

DEFAULT_EXCHANGE: Final = "127.0.0.1:50050"
DEFAULT_PASSWORD: Final = "password"  # noqa: S105 -- the documented default, refused off loopback
DEFAULT_TIMEOUT: Final = "5"

CONTEXT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a context may be called; match with `fullmatch`."""

HOW_TO_REGISTER: Final = "register with `matchbus register NAME`, which keeps it for later commands"

_DEFAULTS: Final = {
    "exchange": DEFAULT_EXCHANGE,
    "nats": DEFAULT_NATS_URL,
    "client_id": "",
    "secret": "",
    "password": DEFAULT_PASSWORD,
    "timeout": DEFAULT_TIMEOUT,
}


class SettingsError(Exception):
    """What is kept or was told cannot be used; `hint` says what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


class Context(msgspec.Struct, frozen=True):
    """One trader at one venue. An empty value was never set."""

    exchange: str = ""
    nats: str = ""
    client_id: str = ""
    secret: str = ""
    password: str = ""


class Contexts(msgspec.Struct):
    """Everything that is kept; `current` is the name of the context in use, or empty."""

    current: str = ""
    contexts: dict[str, Context] = {}

    def get(self, name: str) -> Context:
        """A context that must be there. Raises `SettingsError`."""
        if name not in self.contexts:
            there = ", ".join(sorted(self.contexts)) or "none yet"
            raise SettingsError(
                f"there is no context {name!r}",
                f"choose one of those kept ({there}), or make it: `matchbus register NAME --context {name}`",
            )
        return self.contexts[name]


@dataclass(frozen=True)
class Settings:
    """What one command works with. `sources` tells where each value came from."""

    exchange: str
    nats: str
    client_id: str
    secret: str = field(repr=False)
    password: str = field(repr=False)
    timeout_s: float
    sources: Mapping[str, str]

    def source(self, name: str) -> str:
        """Where a value came from, in words."""
        return self.sources.get(name, "default")

    def checked_exchange(self) -> str:
        """Where the exchange is. Raises `SettingsError` if that is no address."""
        try:
            check_address(self.exchange)
        except ValueError as error:
            raise SettingsError(f"{error} ({self.source('exchange')})", "name it by --exchange") from None
        return self.exchange

    def checked_nats(self) -> str:
        """Where NATS is, for a command that needs it. Raises `SettingsError` if that names no server."""
        try:
            check_nats(self.nats)
        except ValueError as error:
            raise SettingsError(
                f"{error} ({self.source('nats')})",
                "name it by --nats, or keep it by `matchbus context set NAME --nats URL`",
            ) from None
        return self.nats

    def check_registered(self) -> None:
        """Raise `SettingsError` unless it is known who trades."""
        if not self.client_id:
            raise SettingsError("nobody is registered here", HOW_TO_REGISTER)
        if not self.secret:
            raise SettingsError(
                f"the secret of {self.client_id!r} ({self.source('client_id')}) is not known",
                f"{HOW_TO_REGISTER}, or give it: --secret or MATCHBUS_SECRET",
            )


def contexts_file(environment: Mapping[str, str]) -> Path:
    """Where contexts are kept."""
    base = environment.get("XDG_CONFIG_HOME", "")
    # The rules of XDG: a path that is not absolute does not count.
    directory = Path(base) if base.startswith("/") else home() / ".config"
    return directory / "matchbus" / "contexts.json"


def home() -> Path:
    """The user's home directory, or the root for a user who has none, as runtimes of containers have it."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def load(file: Path) -> Contexts:
    """What is kept; nothing when there is no file. Raises `SettingsError` for one that cannot be read."""
    try:
        contexts = msgspec.json.decode(file.read_bytes(), type=Contexts)
    except FileNotFoundError:
        return Contexts()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"the contexts in {file} cannot be read: {error}",
            "correct the file: without its secrets, kept nowhere else, no name in it can be registered again",
        ) from error
    return contexts


@contextmanager
def changing(file: Path) -> Iterator[Contexts]:
    """What is kept, for the body to change; kept again at its end, unless it raises.

    Nobody else changes it meanwhile: the body must not wait for anything. Raises `SettingsError`, before the
    body runs where nothing could be kept.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A file of its own: the contexts are replaced, and a lock on what was replaced holds nobody back.
        lock = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _not_kept(file, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise _not_kept(file, error) from error
        contexts = load(file)
        yield contexts
        _save(file, contexts)
    finally:
        os.close(lock)


def _save(file: Path, contexts: Contexts) -> None:
    """Replace the file, whose directory is there, by one that only its owner may read."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)
        # Never readable by others, not even before the first byte.
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(msgspec.json.format(msgspec.json.encode(contexts)) + b"\n")
        draft.replace(file)
    except OSError as error:
        raise _not_kept(file, error) from error


def _not_kept(file: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"the contexts cannot be kept in {file}: {error.strerror}",
        "make the directory writable, or choose another by XDG_CONFIG_HOME",
    )


def resolve(options: Mapping[str, Any], environment: Mapping[str, str], contexts: Contexts) -> Settings:
    """What a command works with.

    `options` holds what was typed, with None or nothing for what was not. Raises `SettingsError`.
    """
    name = options.get("context") or environment.get("MATCHBUS_CONTEXT", "")
    if name:
        context = contexts.get(name)
    else:
        name = contexts.current
        context = contexts.get(name) if name else Context()
    values: dict[str, str] = {}
    sources: dict[str, str] = {}
    for key, default in _DEFAULTS.items():
        variable = f"MATCHBUS_{key.upper()}"
        for value, source in (
            (options.get(key), f"from --{key.replace('_', '-')}"),
            (environment.get(variable), f"from {variable}"),
            (getattr(context, key, ""), f"from context {name}"),
            (default, "default"),
        ):
            if value:
                values[key], sources[key] = str(value), source
                break
        else:
            values[key] = ""
    return Settings(
        exchange=values["exchange"],
        nats=values["nats"],
        client_id=values["client_id"],
        secret=values["secret"],
        password=values["password"],
        timeout_s=_timeout(values["timeout"], sources["timeout"]),
        sources=sources,
    )


def seconds(text: str) -> float:
    """How long something may take. Raises `ValueError`."""
    # Python reads more than people mean here, too (`arguments.number`).
    number = float(text if text.isascii() and "_" not in text else "nan")
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


def _timeout(text: str, source: str) -> float:
    try:
        return seconds(text)
    except ValueError:
        raise SettingsError(
            f"the timeout {text!r} ({source}) is no time", "give seconds above 0, such as 5"
        ) from None
