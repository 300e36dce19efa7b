"""register, context: who trades, and where this is kept."""

import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from client.cli import settings as kept
from client.cli.arguments import Parser, whole
from client.cli.command import Command, Options
from client.cli.desk import Desk
from client.cli.failures import DONE, Misuse, some_of
from client.cli.settings import CONTEXT_NAME, Context, Contexts
from client.cli.sheets import Sheet

_SECRET_BYTES: Final = 18
_KEPT: Final = ("exchange", "nats", "client_id", "secret", "password")
_HIDDEN: Final = "(kept)"


def _arrange_register(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="the client id; default: that of the context")
    parser.add_argument(
        "--engine", metavar="N", type=whole, default=0, help="the home engine to ask for; default: any"
    )


async def register(options: Options, desk: Desk) -> int:
    """Register a client and keep it as the context in use.

    The context is named as the client unless --context says otherwise. A client that is known here keeps its
    secret; a new one gets a random one.
    """
    file = kept.contexts_file(os.environ)
    contexts = kept.load(file)
    who = options.name or options.client_id or os.environ.get("MATCHBUS_CLIENT_ID", "")
    given = vars(options) | {"client_id": who, "context": None}
    name = options.context or os.environ.get("MATCHBUS_CONTEXT") or who or contexts.current
    if not name:
        raise Misuse("who is to be registered?", "`matchbus register NAME`, with a name of your choice")
    _check_name(name)
    known = contexts.contexts.get(name, Context())
    # A second trader at the same venue: addresses come from the context in use where there is no own one.
    at = contexts.contexts.get(contexts.current, Context())
    base = msgspec.structs.replace(
        known,
        exchange=known.exchange or at.exchange,
        nats=known.nats or at.nats,
        password=known.password or at.password,
        client_id=known.client_id or name,
    )
    environment = {key: value for key, value in os.environ.items() if key != "MATCHBUS_CONTEXT"}
    settings = kept.resolve(given, environment, Contexts(name, {name: base}))
    if not settings.secret or (settings.client_id != known.client_id and settings.secret == known.secret):
        settings = replace(
            settings,
            secret=secrets.token_urlsafe(_SECRET_BYTES),
            sources={**settings.sources, "secret": "a new one"},
        )
    desk.settings = settings
    client = await desk.client(preferred_engine=options.engine)
    contexts.contexts[name] = Context(
        settings.exchange, settings.nats, settings.client_id, settings.secret, settings.password
    )
    contexts.current = name
    kept.save(file, contexts)
    symbols = sorted(client.instruments)
    answer = {
        "client_id": settings.client_id,
        "engine": client.engine,
        "exchange": settings.exchange,
        "nats": settings.nats,
        "context": name,
        "symbols": symbols,
    }
    lines = [f"{settings.client_id} is registered at {settings.exchange}, at home on E{client.engine}."]
    if options.engine not in (0, client.engine):
        lines.append(
            f"  E{options.engine} was asked for, but a client keeps the home of its first registration."
        )
    lines.append(f"Kept as context {name}, which is now in use. Traded here: {some_of(symbols)}.")
    desk.output.answer(answer, *lines)
    return DONE


def _arrange_context(parser: Parser) -> None:
    parser.add_argument("action", choices=("list", "use", "show", "set", "remove"))
    parser.add_argument("name", metavar="NAME", nargs="?", help="default: the context in use")
    parser.add_argument("--secrets", action="store_true", help="with show: secret and password too")


async def context(options: Options, desk: Desk) -> int:
    """List, use, show, change or remove what is kept."""
    file = kept.contexts_file(os.environ)
    contexts = kept.load(file)
    name = options.name or options.context or os.environ.get("MATCHBUS_CONTEXT") or contexts.current
    if options.action == "list":
        return _list(desk, file, contexts)
    if options.action in ("use", "remove") and not options.name:
        raise Misuse(f"which context to {options.action}?", f"`matchbus context {options.action} NAME`")
    if not name:
        raise kept.SettingsError("there is no context yet", kept.HOW_TO_REGISTER)
    match options.action:
        case "show":
            return _show(desk, name, contexts, with_secrets=options.secrets)
        case "use":
            chosen = contexts.get(name)
            contexts.current = name
            text = f"{name} is in use: {chosen.client_id or 'nobody'} at {_place(chosen)}."
        case "set":
            text = _set(options, name, contexts)
        case _:
            contexts.get(name)
            del contexts.contexts[name]
            if contexts.current == name:
                contexts.current = ""
            text = f"{name} is removed. Its orders, if any, stay in the market."
    kept.save(file, contexts)
    desk.output.answer({"context": name, "current": contexts.current}, text)
    return DONE


def _list(desk: Desk, file: Path, contexts: Contexts) -> int:
    names = sorted(contexts.contexts)
    found = [_document(name, contexts) for name in names]
    sheet = Sheet("Contexts", ("", "name", "client", "exchange", "NATS"), note=str(file))
    for document in found:
        mark = "*" if document["current"] else ""
        sheet.rows.append(
            (mark, document["name"], document["client_id"], document["exchange"], document["nats"])
        )
    desk.output.table(found, lambda: sheet, nothing=f"no contexts yet: {kept.HOW_TO_REGISTER}")
    return DONE


def _show(desk: Desk, name: str, contexts: Contexts, *, with_secrets: bool) -> int:
    document = _document(name, contexts)
    chosen = contexts.get(name)
    hidden = {"secret": _HIDDEN if chosen.secret else "", "password": _HIDDEN if chosen.password else ""}
    if with_secrets:
        document |= {"secret": chosen.secret, "password": chosen.password}
    rows: list[tuple[Any, ...]] = [
        (key.replace("_", " "), "yes" if value is True else "no" if value is False else value)
        for key, value in (document | (hidden if not with_secrets else {})).items()
    ]
    desk.output.table([document], lambda: Sheet(f"Context {name}", ("setting", "value"), rows))
    return DONE


def _set(options: Options, name: str, contexts: Contexts) -> str:
    _check_name(name)
    changes = {key: getattr(options, key) for key in _KEPT if getattr(options, key) is not None}
    if not changes:
        ways = ", ".join(f"--{key.replace('_', '-')}" for key in _KEPT)
        raise Misuse(f"nothing to set in context {name}", f"give one or more of {ways}")
    contexts.contexts[name] = msgspec.structs.replace(contexts.contexts.get(name, Context()), **changes)
    contexts.current = contexts.current or name
    return f"{name} is changed: {', '.join(sorted(changes))}."


def _document(name: str, contexts: Contexts) -> dict[str, Any]:
    chosen = contexts.get(name)
    return {
        "name": name,
        "current": name == contexts.current,
        "client_id": chosen.client_id,
        "exchange": chosen.exchange,
        "nats": chosen.nats,
    }


def _place(chosen: Context) -> str:
    return chosen.exchange or kept.DEFAULT_EXCHANGE


def _check_name(name: str) -> None:
    if CONTEXT_NAME.fullmatch(name) is None:
        raise Misuse(
            f"{name!r} is no name for a context", "letters, digits, `.`, `_` and `-`: give one by --context"
        )


COMMANDS: Final = (
    Command("register", "Register a client, and keep it as the context in use.", _arrange_register, register),
    Command(
        "context", "List, use, show, set or remove the contexts that are kept.", _arrange_context, context
    ),
)
