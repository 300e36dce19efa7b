"""How a command is typed: the options that all have, and how numbers, symbols and ids are written.

A wrong word is a `Misuse`, which a prompt survives and a command ends with.
"""

import argparse
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NoReturn

from bus import addresses
from bus.addresses import DEFAULT_NATS_URL, check_nats
from bus.subjects import SYMBOL_PATTERN
from client.cli.failures import Misuse
from client.cli.settings import (
    DEFAULT_EXCHANGE,
    DEFAULT_PASSWORD,
    DEFAULT_TIMEOUT,
    seconds,
)
from client.client import check_client_order_id
from client.session import check_address

_MAX_ORDER_ID: Final = 2**64 - 1
_MAX_SEQUENCE: Final = 2**63 - 1
_MAX_COUNT: Final = 2**31 - 1
"""What the wire holds of each (proto/matchbus/v1/matchbus.proto)."""

_MAX_DIGITS: Final = 60
"""Of a number as it is typed and as it is printed: 1e999999999 has a billion."""


class HelpShown(Exception):
    """Help was asked for and printed."""


class Parser(argparse.ArgumentParser):
    """Reads the words of one command; raises instead of ending the process, as its sub-commands do."""

    def __init__(self, prog: str, *, at_prompt: bool = False, **terms: Any) -> None:
        super().__init__(prog=prog, allow_abbrev=False, **terms)
        self._at_prompt = at_prompt
        self._usage = ""

    def add_endless(self, *names: str, what: str) -> None:
        """Add an option with which the command goes on until Ctrl-C: a prompt refuses it, and lists none."""
        self.add_argument(*names, action="store_true", help=argparse.SUPPRESS if self._at_prompt else what)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The options; options and words may come in any order. Raises `Misuse` and `HelpShown`."""
        self._usage = self._short_usage()  # while it reads, options and words are hidden from each other
        return self.parse_intermixed_args(words)

    def print_help(self, file: Any = None) -> None:
        """Print it. Raises OSError, which argparse itself drops."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        """Raise `Misuse`."""
        raise Misuse(message, self._usage or self._short_usage())

    def _short_usage(self) -> str:
        """How it is typed, without the options: all of them would be the longest part of the answer."""
        formatter = self._get_formatter()
        formatter.add_usage(None, [action for action in self._actions if not action.option_strings], ())
        usage = " ".join(formatter.format_help().split())
        text = f"{usage} [options]; `{self.prog} --help` lists the options"
        return text.replace("matchbus ", "") if self._at_prompt else text

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Raise `HelpShown`: nothing else gets here."""
        del status, message
        raise HelpShown


def add_common(parser: Parser) -> None:
    """Add the options of every command."""
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    group = parser.add_argument_group(
        "who and where", "An option comes before the environment (MATCHBUS_...), then the context, then this:"
    )
    group.add_argument(
        "--context", metavar="NAME", type=not_empty, help="the context to use; default: the one in use"
    )
    group.add_argument("--exchange", metavar="HOST:PORT", type=address, help=f"default {DEFAULT_EXCHANGE}")
    group.add_argument("--nats", metavar="URL", type=nats_address, help=f"default {DEFAULT_NATS_URL}")
    group.add_argument("--client-id", metavar="NAME", type=not_empty, help="who trades")
    group.add_argument(
        "--secret",
        metavar="S",
        type=not_empty,
        help="the client's own; others see it here, but not in MATCHBUS_SECRET",
    )
    group.add_argument(
        "--password", metavar="P", type=not_empty, help=f'the exchange\'s; default "{DEFAULT_PASSWORD}"'
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=timeout,
        help=f"how long an answer may take, default {DEFAULT_TIMEOUT}",
    )


def not_empty(text: str) -> str:
    """Any text but the empty one, which is what a script says whose variable is not set."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give a value, or leave it out")
    return text


def number(text: str) -> Decimal:
    """A decimal number. Whether a price or quantity is a good one, the venue says."""
    try:
        # Of other digits, and of the underscores between them, Python reads more than people mean.
        value = Decimal(text if text.isascii() and "_" not in text else "NaN")
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or len(text) > _MAX_DIGITS or abs(value.adjusted()) > _MAX_DIGITS:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is no number: write it like 100.25")
    return value


def symbol(text: str) -> str:
    """A symbol, in capitals."""
    capitals = text.upper()
    if SYMBOL_PATTERN.fullmatch(capitals) is None:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is no symbol: write it like AAPL or BTC-USD")
    return capitals


def order_id(text: str) -> int:
    """The number of an order."""
    number = _up_to(text, _MAX_ORDER_ID)
    if not number:
        raise argparse.ArgumentTypeError(
            f"{text!r:.60} is no order id: `matchbus orders` shows them; an id of your own goes into "
            "--client-order-id"
        )
    return number


def own_id(text: str) -> str:
    """A client order id."""
    try:
        check_client_order_id(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def address(text: str) -> str:
    """Where the exchange listens."""
    try:
        check_address(not_empty(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def nats_address(text: str) -> str:
    """Where NATS is."""
    try:
        check_nats(not_empty(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def timeout(text: str) -> float:
    """How many seconds an answer may take."""
    try:
        return seconds(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r:.60} is no time: give seconds above 0, such as 5"
        ) from None


def count(text: str) -> int:
    """A whole number from 0 on: how many, or an engine."""
    return _from_zero(text, _MAX_COUNT)


def sequence(text: str) -> int:
    """The number of a fill, or 0."""
    return _from_zero(text, _MAX_SEQUENCE)


def _from_zero(text: str, limit: int) -> int:
    number = _up_to(text, limit)
    if number is None:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is no whole number from 0 to {limit}")
    return number


def _up_to(text: str, limit: int) -> int | None:
    """The whole number that the text is; None for any other text, and above the limit."""
    given = addresses.number(text)
    return given if given is not None and given <= limit else None
