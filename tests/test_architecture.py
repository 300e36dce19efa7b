"""Imports point one way, and what decides never waits, reads a clock or draws a random number.

This reads the syntax of the code, so a breach is found wherever it stands and before it runs.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PURE_BUS = (
    "bus.addresses",
    "bus.replica",
    "bus.consolidated",
    "bus.peer",
    "bus.messages",
    "bus.records",
    "bus.subjects",
    "bus.tokens",
    "bus.view_messages",
)
PURE_SIMULATION = ("simulation.plots", "simulation.analysis", "simulation.page", "simulation.recording")
MAY_IMPORT = {
    "engine": ("engine",),
    "engine.runtime": ("engine", "bus", "matchbus"),
    "bus": ("bus",),
    "exchange": ("exchange", "bus", "matchbus"),
    "exchange.runtime": ("exchange", "bus", "matchbus"),
    "exchange.runtime.ticket": ("client",),
    "client": ("client", "matchbus", *PURE_BUS),
    "client.cli": ("client", "bus.addresses", "bus.subjects"),
    "client.cli.feed": ("client", "bus"),
    "client.cli.health": ("client", "bus", "matchbus"),
    "client.cli.output": ("client", "matchbus"),
    "simulation": ("simulation", "engine", "bus", "exchange", "client", "matchbus"),
}
"""What the modules of a package may import of ours."""

OURS = {"engine", "bus", "exchange", "client", "simulation", "matchbus", "tests", "benchmarks", "examples"}
PURE_FOLDERS = ("engine", "exchange")
IMPURE = {
    "asyncio",
    "datetime",
    "grpc",
    "nats",
    "opentelemetry",
    "os",
    "prometheus_client",
    "random",
    "secrets",
    "selectors",
    "socket",
    "subprocess",
    "threading",
    "time",
    "uuid",
    "uvloop",
}
"""Modules through which the world gets in."""

ASKING = {"open", "input", "print", "id", "hash"}
"""Functions that ask the world, or answer differently in every process."""


def sources() -> Iterator[Path]:
    """Every module of ours that the rules are about."""
    for package in ("engine", "bus", "exchange", "client", "simulation"):
        yield from sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """The entry of `MAY_IMPORT` that a module falls under."""
    return max((name for name in MAY_IMPORT if f"{module}.".startswith(f"{name}.")), key=len)


def is_pure(path: Path) -> bool:
    """Whether a module only decides."""
    is_core = path.parent.name in PURE_FOLDERS and path.parent.parent == ROOT
    return is_core or module_name(path) in (*PURE_BUS, *PURE_SIMULATION)


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that the code imports, wherever the import stands; `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the packages or lies in one."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def wrong_imports(module: str, tree: ast.AST) -> list[str]:
    """Imports of ours that the module's package may not have."""
    allowed = MAY_IMPORT[package_of(module)]
    ours = [name for name in imported(tree) if name.split(".")[0] in OURS]
    wrong = [name for name in ours if not within(name, allowed)]
    if module in PURE_BUS:
        wrong += [name for name in ours if within(name, ("bus",)) and not within(name, PURE_BUS)]
    if package_of(module) in PURE_FOLDERS:
        wrong += [name for name in ours if within(name, ("engine.runtime", "exchange.runtime"))]
    return wrong


def impurities(tree: ast.AST) -> list[str]:
    """What a pure module may not have: waiting, the clock, chance, files, sockets."""
    found = [f"import {name}" for name in imported(tree) if name.split(".")[0] in IMPURE]
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await):
            found.append(f"async in line {node.lineno}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ASKING:
            found.append(f"{node.func.id}() in line {node.lineno}")
    return found


@pytest.mark.parametrize("path", list(sources()), ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    """No module imports what its package may not know."""
    assert wrong_imports(module_name(path), ast.parse(path.read_text())) == []


@pytest.mark.parametrize("path", [path for path in sources() if is_pure(path)], ids=module_name)
def test_pure_modules_only_decide(path: Path) -> None:
    """No pure module waits or asks the world; the same commands then give the same events anywhere."""
    assert impurities(ast.parse(path.read_text())) == []


def test_the_rules_are_about_something() -> None:
    """The modules that must be pure are found where they are expected."""
    pure = {module_name(path) for path in sources() if is_pure(path)}
    assert {"engine.state", "engine.matching", "engine.routing", *PURE_BUS, *PURE_SIMULATION} <= pure
    assert "engine.runtime.commit_loop" not in pure


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine.state", "from bus import messages"),
        ("engine.state", "from engine.runtime import commit_loop"),
        ("engine.state", "def f():\n    import exchange.directory"),
        ("engine.runtime.legs", "import client"),
        ("engine.runtime.legs", "import simulation.agents"),
        ("bus.journal", "from engine.commands import Command"),
        ("bus.journal", "from matchbus.v1 import matchbus_pb2"),
        ("bus.replica", "from bus.connection import connect"),
        ("exchange.directory", "from exchange.runtime import servicer"),
        ("exchange.runtime.servicer", "import engine.terms"),
        ("exchange.runtime.process", "from client import Client"),
        ("exchange.runtime.ticket", "from bus.connection import connect"),
        ("client.client", "from bus.connection import connect"),
        ("client.client", "from engine.terms import Side"),
        ("client.cli.orders", "from matchbus.v1 import matchbus_pb2"),
        ("client.cli.orders", "import simulation.matchbus"),
        ("client.cli.orders", "from bus.connection import connect"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    """The reader of imports sees each kind of breach."""
    assert wrong_imports(module, ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from time import monotonic",
        "import os.path",
        "from random import Random",
        "async def f(): pass",
        "x = open('file')",
        "def f():\n    import asyncio",
        "import socket as s",
        "import uuid",
        "from prometheus_client import Counter",
    ],
)
def test_an_impurity_is_found(source: str) -> None:
    """The reader of pure modules sees each kind of breach."""
    assert impurities(ast.parse(source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine.state", "from engine.book import Book\nimport msgspec"),
        ("engine.runtime.legs", "from engine.state import State\nfrom bus import messages"),
        ("client.client", "from matchbus.v1 import matchbus_pb2\nfrom bus import consolidated, replica"),
        ("client.cli.feed", "from bus.connection import connect\nfrom client import Client"),
        ("exchange.runtime.ticket", "from client import Client"),
        ("simulation.run", "import client.client, exchange.directory, engine.state"),
    ],
)
def test_a_right_import_is_let_through(module: str, source: str) -> None:
    """The reader of imports does not see breaches where there are none."""
    assert wrong_imports(module, ast.parse(source)) == []


def test_only_one_module_knows_opentelemetry() -> None:
    """It is an extra: whoever does not trace need not have it, and `matchbus.tracing` loads that module."""
    knowing = [
        path.name
        for path in (*sources(), *(ROOT / "proto" / "matchbus").glob("*.py"))
        if any(within(name, ("opentelemetry",)) for name in imported(ast.parse(path.read_text())))
    ]
    assert knowing == ["otlp.py"]


def raises_of_groups(tree: ast.AST) -> list[int]:
    """The lines that raise within `except*`: before 3.11.4 Python raises a group with that inside."""
    handlers = [one for node in ast.walk(tree) if isinstance(node, ast.TryStar) for one in node.handlers]
    return [node.lineno for one in handlers for node in ast.walk(one) if isinstance(node, ast.Raise)]


@pytest.mark.parametrize("path", list(sources()), ids=module_name)
def test_no_fault_comes_in_a_group_with_some_pythons_only(path: Path) -> None:
    """Whoever catches the fault would catch no group."""
    assert raises_of_groups(ast.parse(path.read_text())) == []


def test_a_fault_that_comes_in_a_group_is_found() -> None:
    """In any clause, however deep."""
    first, second = "except* KeyError:\n  pass\n", "except* ValueError:\n  if x:\n   raise\n"
    assert raises_of_groups(ast.parse(f"try:\n  f()\n{first}{second}")) == [7]


def test_no_module_of_ours_hides_a_standard_one() -> None:
    """No top-level package has the name of a standard module."""
    assert not OURS & sys.stdlib_module_names
