"""The `matchbus` command: finds the module that does what was asked for, and loads nothing else.

What a trader does is in `client/cli/`, what runs and looks after a market in `simulation/operate.py`.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from matchbus.program import DONE, USAGE_ERROR, load, run_program

TRADING: Final = {
    "register": "register a client, and keep it as the context in use",
    "context": "list, use, show, set or remove contexts: who trades where",
    "submit": "enter an order: submit buy 10 AAPL 100.00",
    "cancel": "cancel an order, or all",
    "replace": "give an order a new price and quantity",
    "orders": "list open orders, or show one",
    "fills": "show your fills, and follow them (-f)",
    "positions": "show what you hold",
    "trade": "trade at a prompt, or by lines from a pipe",
}
LOOKING: Final = {
    "book": "show a symbol's book, and watch it (--watch)",
    "engines": "list the engines: who reigns, who stands by",
    "status": "show whether exchange, NATS and engines are there",
    "feed": "follow a symbol's market data over NATS",
}
RUNNING: Final = {
    "up": "run nats-server, the exchange and the engines until stopped",
    "demo": "a market with simulated clients and a live view",
    "admin": "what an operator does: hand an engine over, make a snapshot",
    "handover": "let the standby of an engine take over, without a crash",
    "snapshot": "list, verify or make snapshots of an engine",
    "journal": "look into the journal of an engine",
    "dropcopy": "follow the execution reports of all engines",
    "bench": "run a benchmark of this checkout",
}
GROUPS: Final = {"Trade": TRADING, "Look": LOOKING, "Run a market": RUNNING}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def fail(text: str) -> int:
        from client.cli.failures import Failure  # noqa: PLC0415 -- not for help

        raise Failure(text)

    return run_program("matchbus", lambda: _run(words), tell=lambda text: _told(words, lambda: fail(text)))


def _told(words: list[str], run: Callable[[], int]) -> int:
    """Run what may raise a `Failure`, and say it as the words ask for; the exit code."""
    from client.cli.main import told  # noqa: PLC0415 -- not for help
    from client.cli.output import Output  # noqa: PLC0415 -- likewise

    return told(Output(as_json="--json" in words), run)


def _run(words: list[str]) -> int:
    """Run the module that does what was asked for; the exit code."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), file=sys.stdout if words else sys.stderr)
        return DONE if words else USAGE_ERROR
    if words == ["--version"]:
        from importlib.metadata import version  # noqa: PLC0415 -- for this only

        print(f"matchbus {version('matchbus')}")
        return DONE
    name, *rest = words
    # What breaks is said by the command itself; gRPC's own account would stand in the middle of its answer.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if name in TRADING or name in LOOKING:
        return int(load("client.cli.main").main(name, rest))
    return _told(words, lambda: _operate(name, words))


def _operate(name: str, words: list[str]) -> int:
    """Do what runs a market; the exit code. Raises `Failure` and `HelpShown`."""
    if name == "bench":
        return int(load("simulation.bench").main(words[1:]))
    if name in RUNNING:
        return int(load("simulation.operate").main(words))
    from client.cli.failures import Misuse  # noqa: PLC0415 -- not for help

    if name.startswith("-"):
        raise Misuse(
            f"{name} stands before the command",
            "options come behind it, as in `matchbus orders --json`; `matchbus --help` lists the commands",
        )
    raise Misuse(f"there is no command {name!r}{_nearest(name)}", "`matchbus --help` lists the commands")


def help_text() -> str:
    """All commands, by what they are for."""
    lines = [
        "usage: matchbus COMMAND ...",
        "",
        "A distributed matching engine: trade on it, look at it, run it.",
    ]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<10} {what}" for name, what in commands.items()]
    lines += ["", "`matchbus COMMAND --help` tells the rest, docs/command-line.md shows them at work."]
    return "\n".join(lines)


def _nearest(name: str) -> str:
    if name in ("buy", "sell"):  # as a line of `trade` may begin
        return f": did you mean submit {name}?"
    import difflib  # noqa: PLC0415 -- for a mistyped command only

    known = [command for commands in GROUPS.values() for command in commands]
    near = difflib.get_close_matches(name, known, 1)
    return f": did you mean {near[0]}?" if near else ""


if __name__ == "__main__":
    raise SystemExit(main())
