"""Where answers are printed: stdout for answers, stderr for failures and for what only a watcher needs.

`rich` is loaded only when a table, a spinner or a live view is drawn: `--json` and one-line answers start
faster without it.
"""

import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from matchbus.program import ending_with

from client.cli.failures import DONE, Failure
from client.cli.sheets import Sheet, plain

if TYPE_CHECKING:
    from rich.console import Console

_TOLD_AT_MOST: Final = 1_000
"""Characters of an answer that a failure tells: a book may have thousands of levels."""

QUIET_S: Final = 1.0
"""What takes longer than this shows that it is under way."""

_WIDE: Final = 240
"""Columns of a table that goes into a file or a pipe: nothing is to be folded there."""


class Output:
    """Prints the answers of one command, as JSON lines or for people."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str) -> None:
        """A sentence for people; nothing in JSON."""
        if not self.as_json:
            _write(text)

    def answer(self, answer: Any, *lines: str, code: int = DONE) -> None:
        """One answer: an object in JSON, else the lines. `code` is the exit code, also when unread."""
        with ending_with(code):
            _write(json.dumps(plain(answer)) if self.as_json else "\n".join(lines))

    def table(self, answers: Sequence[Any], sheet: Callable[[], Sheet], *, nothing: str = "") -> None:
        """Many answers: an object a line in JSON, else a table, or `nothing` when there are none."""
        if self.as_json:
            for answer in answers:
                self.answer(answer)
        elif answers or not nothing:
            self.sheets(sheet())
        else:
            self.line(nothing)

    def sheets(self, *sheets: Sheet, code: int = DONE) -> None:
        """Draw tables, which have that exit code."""
        with _writing(), ending_with(code):
            print_sheets(stdout_console(), *sheets)
            sys.stdout.flush()

    def failure(self, failure: Failure) -> None:
        """Say on stderr what went wrong and what to do."""
        if self.as_json:
            text = json.dumps({"error": failure.text, "hint": failure.hint})
        else:
            text = f"matchbus: {failure.text}" + (f"\n  {failure.hint}" if failure.hint else "")
        with contextlib.suppress(BrokenPipeError):  # nobody reads it: the exit code still tells
            print(text, file=sys.stderr, flush=True)

    @contextlib.asynccontextmanager
    async def waiting(self, what: str) -> AsyncIterator[Callable[[str], None]]:
        """Show a spinner on the terminal while the body runs, once that takes longer than QUIET_S.

        Yields what changes its text. The body must wait, not work: a spinner that nobody turns stands still.
        """
        if not sys.stderr.isatty():
            yield lambda _: None
            return
        from rich.console import Console  # noqa: PLC0415 -- see the module's docstring

        status = Console(stderr=True).status(what)
        spinning = asyncio.get_running_loop().call_later(QUIET_S, status.start)
        try:
            yield status.update
        finally:
            spinning.cancel()
            status.stop()

    @contextlib.contextmanager
    def watching(self) -> Iterator[Callable[[Any, Callable[[], Sheet]], None]]:
        """Yield what shows one state of something that changes.

        In JSON, and where no terminal is, a state is printed when it differs from the last; on a terminal it
        replaces the last.
        """
        shown: list[Any] = []

        def news(answer: Any) -> bool:
            """Whether it differs from the last."""
            before, shown[:] = list(shown), [plain(answer)]
            return before != shown

        if self.as_json or not sys.stdout.isatty():

            def show(answer: Any, sheet: Callable[[], Sheet]) -> None:
                if news(answer):
                    self.table([answer], sheet)

            yield show
            return
        from rich.live import Live  # noqa: PLC0415 -- see the module's docstring

        from client.cli.drawing import drawn  # noqa: PLC0415 -- likewise

        with Live(console=stdout_console(), auto_refresh=False) as live:

            def redraw(answer: Any, sheet: Callable[[], Sheet]) -> None:
                if news(answer):
                    live.update(drawn(sheet(), live.console), refresh=True)

            yield redraw


def _write(text: str) -> None:
    """Write an answer to stdout; a `Failure` tells it where it cannot be written: it may be an order's."""
    with _writing(f"the answer is: {text:.{_TOLD_AT_MOST}}"):
        print(text, flush=True)


@contextlib.contextmanager
def _writing(hint: str = "make room, and ask again") -> Iterator[None]:
    """Around what goes to stdout: that nothing can be written there is a `Failure`."""
    try:
        yield
    except BrokenPipeError:  # none: `| head` has seen enough
        raise
    except OSError as error:
        raise Failure(f"the answer cannot be written: {error.strerror}", hint) from error


def print_sheets(console: "Console", *sheets: Sheet) -> None:
    """Draw tables as wide as the console is."""
    from client.cli.drawing import drawn  # noqa: PLC0415 -- see the module's docstring

    for sheet in sheets:
        console.print(drawn(sheet, console))


def stdout_console() -> "Console":
    """What draws on stdout; from here on a character that its encoding lacks is a `?` there.

    Such a character may stand in the name of a directory, in a live view or in a spinner: none is a reason to
    end a market.
    """
    from rich.console import Console  # noqa: PLC0415 -- see the module's docstring

    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    wide = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _WIDE
    return Console(highlight=False, width=wide)
