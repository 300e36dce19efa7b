"""trade: many commands over one connection, typed at a prompt or read from a pipe.

A line is a command as on the command line, without `matchbus` and without what says who and where; `buy` and
`sell` stand for `submit buy` and `submit sell`. At a prompt, words are completed and fills are told as they
happen. From a pipe nothing is told but the answers; a line that fails does not stop those after it, and the
exit code is 1 if one did.
"""

import asyncio
import os
import re
import selectors
import shlex
import sys
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, redirect_stdout, suppress
from typing import Final

from client import Client, MatchbusError, OrderState, Unavailable
from client.cli import health, holdings, market, orders
from client.cli.arguments import HelpShown, Parser
from client.cli.command import Command, Options
from client.cli.desk import EXPLAINED, Desk
from client.cli.failures import DONE, REFUSED, Failure, Interrupted, Misuse
from client.cli.sheets import fill_line

LINE_COMMANDS: Final = {
    command.name: command
    for command in (*orders.COMMANDS, *holdings.COMMANDS, *market.COMMANDS, *health.COMMANDS)
}
SIDES: Final = ("buy", "sell")
ENDS: Final = ("quit", "exit")
HELP: Final = "help"
WORDS: Final = (*SIDES, *LINE_COMMANDS, HELP, ENDS[0])
"""What a line may begin with."""

AWAY_PAUSE_S: Final = 1.0
"""How long after an outage fills are asked for again."""

_LONGEST_LINE_BYTES: Final = 65_536
_OPTION: Final = re.compile(r"--[a-z][a-z-]*")
_QUANTITY_AT: Final = 2
"""Where the quantity of a `submit` stands; the symbol is behind it."""


class Ended(Exception):
    """The line asked to leave."""


def _arrange(parser: Parser) -> None:
    parser.epilog = (
        "Lines: buy 10 AAPL 100.00 [--ioc ...], sell ..., cancel ORDER_ID, replace ORDER_ID PRICE QUANTITY, "
        "orders, fills, positions, book SYMBOL, engines, status, help, quit. "
        "From a pipe: one command a line; lines that begin with # are left out."
    )


async def trade(options: Options, desk: Desk) -> int:
    """Read lines until they end; the exit code is 1 when a piped one failed."""
    del options
    client = await desk.client()
    if sys.stdin is not None and sys.stdin.isatty() and not desk.output.as_json:
        await _at_prompt(client, desk)
        return DONE
    code = DONE
    number = 0
    with suppress(Ended):
        async with aclosing(_piped_lines()) as lines:
            async for line in lines:
                number += 1
                try:
                    if await execute(line, desk, f"line {number}: ") != DONE:
                        code = REFUSED
                except BrokenPipeError as error:
                    raise Failure(
                        f"line {number}: nobody reads the answers any more",
                        "the line was carried out; what stands behind it was not, as nobody would see it",
                    ) from error
    return code


async def execute(line: str | None, desk: Desk, where: str = "") -> int:
    """Do what one line says and tell what went wrong; its exit code. None is a line too long to be read.

    Raises `Ended`, and `Interrupted` at Ctrl-C or SIGTERM: nothing after it is to be done.
    """
    try:
        # Help is no answer that a program could read.
        with redirect_stdout(sys.stderr if desk.output.as_json else sys.stdout):
            command, options = read(line)
        return DONE if command is None else await command.run(options, desk)
    except HelpShown:
        return DONE
    except asyncio.CancelledError:
        raise Interrupted(f"{where}interrupted") from None
    except Interrupted as end:
        raise Interrupted(where + end.text, end.hint) from None
    except EXPLAINED as error:
        failure = await desk.explain(error)
        desk.output.failure(Failure(where + failure.text, failure.hint))
        return failure.code


def read(line: str | None) -> tuple[Command | None, Options]:
    """What one line says: no command for an empty one. Raises `Misuse`, `HelpShown` and `Ended`."""
    if line is None:
        raise Misuse(f"longer than {_LONGEST_LINE_BYTES:,} bytes", "one command a line")
    try:
        # Only a whole line is a comment: ids may have a `#`.
        words = [] if line.lstrip().startswith("#") else shlex.split(line)
    except ValueError as error:
        raise Misuse(f"{line.strip()!r} cannot be read: {error}", "close the quotes") from error
    if not words:
        return None, Options()
    if words[0] in ENDS:
        raise Ended
    if words[0] == HELP:
        print(help_text())
        raise HelpShown
    if words[0] in SIDES:
        words.insert(0, "submit")
    command = LINE_COMMANDS.get(words[0])
    if command is None:
        raise Misuse(f"{words[0]!r} is no command here", f"one of {', '.join(WORDS)}")
    options = command.parser(alone=False).read(words[1:])
    if command.goes_on(options):
        raise Misuse(
            f"{line.strip()!r} would go on for ever",
            f"run `matchbus {line.strip()}` in a terminal of its own",
        )
    return command, options


def help_text() -> str:
    """How each command is typed."""
    usages = ["buy QUANTITY SYMBOL [PRICE] ...  the same as submit buy; sell likewise"]
    for command in LINE_COMMANDS.values():
        usage = command.parser(alone=False).format_usage().replace(" [-h]", "")
        usages.append(" ".join(usage.removeprefix("usage: matchbus ").split()))
    return "\n".join([*usages, "quit  leave; orders stay in the market"])


def completions(
    before: str, symbols: Iterable[str], open_orders: Sequence[OrderState]
) -> list[tuple[str, str, str]]:
    """What the word before the cursor may become: (word, what it means, what is typed of it)."""
    words = before.split()
    typed = words.pop() if words and not before[-1].isspace() else ""
    if not words:
        found = [(word, LINE_COMMANDS[word].what if word in LINE_COMMANDS else "") for word in WORDS]
    else:
        if words[0] in SIDES:
            words.insert(0, "submit")
        found = _arguments(words, typed, symbols, open_orders)
    return [(word, what, typed) for word, what in found if word.upper().startswith(typed.upper())]


def _arguments(
    words: list[str], typed: str, symbols: Iterable[str], open_orders: Sequence[OrderState]
) -> list[tuple[str, str]]:
    """The words that may come next after these."""
    command = LINE_COMMANDS.get(words[0])
    if command is None:
        return []
    options = [(word, "") for word in _OPTION.findall(command.parser(alone=False).format_usage())]
    if typed.startswith("-"):
        return options
    if words[-1] == "--client-order-id":
        return [(shlex.quote(order.client_order_id), _short(order)) for order in open_orders]
    place = len([word for word in words if not word.startswith("-")])
    ids = [(str(order.order_id), _short(order)) for order in open_orders] if place == 1 else []
    listed = [(symbol, "") for symbol in symbols]
    match words[0]:
        case "submit":
            return (
                [(side, "") for side in SIDES]
                if place == 1
                else listed
                if place == 1 + _QUANTITY_AT
                else options
            )
        case "cancel" if "--all" in words:
            return listed
        case "cancel":
            return [*ids, *options]
        case "replace":
            return ids or options
        case "orders":
            return [*listed, *ids] if place == 1 else options
        case "book" | "fills" | "positions" if place == 1:
            return listed
        case _:
            return options


def _short(order: OrderState) -> str:
    return f"{order.side} {order.leaves_quantity:f} {order.symbol} at {order.price:f}"


async def _piped_lines() -> AsyncGenerator[str | None, None]:
    """The lines of stdin, without a thread that could not be interrupted; none where it is closed.

    None stands for one that is too long.
    """
    if sys.stdin is None:
        return
    try:
        with selectors.DefaultSelector() as probe:
            probe.register(sys.stdin, selectors.EVENT_READ)
    except PermissionError:  # a plain file or /dev/null, of which no read ever waits
        for line in sys.stdin.buffer:
            yield _text(line.removesuffix(b"\n"))
        return
    begun = b""
    while some := await _some_of(sys.stdin.fileno()):
        *lines, begun = (begun + some).split(b"\n")
        for line in lines:
            yield _text(line)
        begun = begun[: _LONGEST_LINE_BYTES + 1]  # enough to show that it is too long
    if begun:
        yield _text(begun)


async def _some_of(end: int) -> bytes:
    """What has come, once something has; nothing at the end.

    Not by a transport, which makes it non-blocking: stdout is the same open file on a terminal, and an answer
    would be lost where that is full.
    """
    loop, come = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(end, come.set)
    try:
        await come.wait()
    finally:
        loop.remove_reader(end)
    return os.read(end, _LONGEST_LINE_BYTES)


def _text(line: bytes) -> str | None:
    return None if len(line) > _LONGEST_LINE_BYTES else line.decode(errors="replace")


async def _at_prompt(client: Client, desk: Desk) -> None:
    """Read lines from a person until the end."""
    from prompt_toolkit import PromptSession  # noqa: PLC0415 -- a pipe needs no prompt
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion  # noqa: PLC0415 -- likewise
    from prompt_toolkit.document import Document  # noqa: PLC0415 -- likewise
    from prompt_toolkit.patch_stdout import patch_stdout  # noqa: PLC0415 -- likewise

    open_orders: list[OrderState] = []

    class Words(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            del complete_event
            for word, what, typed in completions(
                document.text_before_cursor, client.instruments, open_orders
            ):
                yield Completion(word, start_position=-len(typed), display_meta=what)

    session: PromptSession[str] = PromptSession(completer=Words(), complete_while_typing=False)
    print(f"{desk.settings.client_id} at home on E{client.engine}. `help` lists the commands, Tab completes.")
    last = await _last_fill(client, desk)
    with patch_stdout(raw=True):
        telling = asyncio.create_task(_tell_fills(client, last))
        try:
            while True:
                with suppress(MatchbusError):  # then Tab knows the orders of before
                    open_orders[:] = await client.open_orders()
                try:
                    # Its own handling of SIGINT would take ours away for good, and with it all that can be
                    # told of an interrupted line; on a line that is edited Ctrl-C is a key.
                    line = await session.prompt_async(
                        f"{desk.settings.client_id}@E{client.engine}> ", handle_sigint=False
                    )
                except KeyboardInterrupt:
                    if session.default_buffer.text:
                        continue
                    break
                await execute(line, desk)
        except (EOFError, Ended):
            pass
        finally:
            telling.cancel()
            await asyncio.wait((telling,))


async def _last_fill(client: Client, desk: Desk) -> int:
    """The number of our newest fill: those behind it are news."""
    last = 0
    async with desk.output.waiting("reading fills") as tell:
        async for fill in client.fills(follow=False):
            last = fill.sequence
            tell(f"reading fills: {last}")
    return last


async def _tell_fills(client: Client, last: int) -> None:
    """Say each fill behind the last one, for as long as the prompt is open, over any outage."""
    while True:
        try:
            async with aclosing(client.fills(last)) as fills:
                async for fill in fills:
                    last = fill.sequence
                    print(fill_line(fill), flush=True)
        except Unavailable:
            await asyncio.sleep(AWAY_PAUSE_S)
        except MatchbusError as error:
            print(f"new fills are no longer shown: {error}")
            return


COMMANDS: Final = (
    Command("trade", "Trade at a prompt, or by lines from a pipe.", _arrange, trade, lambda _: True),
)
