"""register, context: who trades, and where this is kept."""

import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from bus.addresses import shown
from client import AuthenticationFailed, DataLost, RequestInvalid
from client.cli import settings as kept
from client.cli.arguments import Parser, count, not_empty
from client.cli.command import Command, Options
from client.cli.desk import Desk
from client.cli.failures import DONE, Misuse, some_of
from client.cli.settings import CONTEXT_NAME, Context, Contexts, Settings
from client.cli.sheets import Sheet

_SECRET_BYTES: Final = 18
_KEPT: Final = ("exchange", "nats", "client_id", "secret", "password")
_HIDDEN: Final = "(kept)"


def _arrange_register(parser: Parser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", type=not_empty, help="the client id; default: that of the context"
    )
    parser.add_argument(
        "--engine", metavar="N", type=count, default=0, help="the home engine to ask for; default: any"
    )


async def register(options: Options, desk: Desk) -> int:
    """Register a client and keep it as the context in use.

    The context has the client's name unless --context says otherwise. A client that is known here keeps its
    secret; a new one gets a random one, which is kept before the exchange hears of it: nobody else has it.
    """
    file = kept.contexts_file(os.environ)
    with kept.changing(file) as contexts:
        name, settings = _who(options, contexts)
        chosen = Context(
            settings.checked_exchange(),
            settings.checked_nats(),
            settings.client_id,
            settings.secret,
            settings.password,
        )
        before = contexts.contexts.get(name)
        is_new = before is None or not before.secret
        if is_new:
            contexts.contexts[name] = chosen
    desk.settings = settings
    try:
        client = await desk.client(preferred_engine=options.engine)
    # Any other failure may come after the registration.
    except (AuthenticationFailed, DataLost, RequestInvalid):
        if is_new:
            _forget(file, name, chosen, before)
        raise
    with kept.changing(file) as contexts:
        contexts.contexts[name] = chosen
        contexts.current = name
    symbols = sorted(client.instruments)
    answer = {
        "client_id": settings.client_id,
        "engine": client.engine,
        "exchange": settings.exchange,
        "nats": shown(settings.nats),
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


def _who(options: Options, contexts: Contexts) -> tuple[str, Settings]:
    """Who is to be registered: the name of the context, and all that is known or made up for it."""
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
    if known.secret and settings.client_id != base.client_id:
        raise Misuse(
            f"context {name} keeps the secret of {base.client_id}, which would be lost",
            f"keep {settings.client_id} in another: --context NAME",
        )
    if not settings.secret:
        settings = replace(
            settings,
            secret=secrets.token_urlsafe(_SECRET_BYTES),
            sources={**settings.sources, "secret": "a new one"},
        )
    return name, settings


def _forget(file: Path, name: str, chosen: Context, before: Context | None) -> None:
    """Put back what a context was before its client was refused, unless somebody has changed it since."""
    with kept.changing(file) as contexts:
        if contexts.contexts.get(name) == chosen:
            del contexts.contexts[name]
            if before is not None:
                contexts.contexts[name] = before


def _arrange_context(parser: Parser) -> None:
    parser.add_argument("action", choices=("list", "use", "show", "set", "remove"))
    parser.add_argument("name", metavar="NAME", nargs="?", type=not_empty, help="default: the context in use")
    parser.add_argument("--secrets", action="store_true", help="with show: secret and password too")


async def context(options: Options, desk: Desk) -> int:
    """List, use, show, change or remove what is kept."""
    file = kept.contexts_file(os.environ)
    if options.action == "list":
        if options.name:
            raise Misuse(
                f"`context list` lists all, and {options.name!r} was given",
                f"leave it out, or `matchbus context show {options.name}`",
            )
        return _list(desk, file, kept.load(file))
    if options.action == "show":
        contexts = kept.load(file)
        return _show(desk, _named(options, contexts), contexts, with_secrets=options.secrets)
    if options.action in ("use", "remove") and not options.name:
        raise Misuse(f"which context to {options.action}?", f"`matchbus context {options.action} NAME`")
    with kept.changing(file) as contexts:
        name = _named(options, contexts)
        match options.action:
            case "use":
                chosen = contexts.get(name)
                contexts.current = name
                where = chosen.exchange or kept.DEFAULT_EXCHANGE
                text = f"{name} is in use: {chosen.client_id or 'nobody'} at {where}."
            case "set":
                text = _set(options, name, contexts)
            case _:
                contexts.get(name)
                del contexts.contexts[name]
                if contexts.current == name:
                    contexts.current = ""
                text = f"{name} is removed. Its orders, if any, stay in the market."
    desk.output.answer({"context": name, "current": contexts.current}, text)
    return DONE


def _named(options: Options, contexts: Contexts) -> str:
    """The context that is meant. Raises `SettingsError` when there is none."""
    name = options.name or options.context or os.environ.get("MATCHBUS_CONTEXT") or contexts.current
    if not name:
        raise kept.SettingsError("there is no context yet", kept.HOW_TO_REGISTER)
    return str(name)


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
        document |= {"nats": chosen.nats, "secret": chosen.secret, "password": chosen.password}
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
    word = "changed" if name in contexts.contexts else "new"  # a name that was mistyped is new
    contexts.contexts[name] = msgspec.structs.replace(contexts.contexts.get(name, Context()), **changes)
    contexts.current = contexts.current or name
    return f"{name} is {word}: {', '.join(sorted(changes))}."


def _document(name: str, contexts: Contexts) -> dict[str, Any]:
    chosen = contexts.get(name)
    return {
        "name": name,
        "current": name == contexts.current,
        "client_id": chosen.client_id,
        "exchange": chosen.exchange,
        "nats": shown(chosen.nats),
    }


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
