"""Writes docs/reference.md from what the code says: `make reference`, or `python -m tests.reference_page`.

The contract's comments, the docstrings of subjects and messages, and the statuses that servicers end calls
with are read from the source. So the page says nothing that is not there, and `tests/test_reference.py` fails
when it is out of date. The table of refusals in docs/trading.md is made of the same comments.
"""

import ast
import inspect
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from matchbus import edge

from bus import consolidated, messages, records, replica, subjects, view_messages
from engine import commands
from engine.runtime import process, sessions
from engine.runtime import servicer as engine_servicer
from exchange import assignment
from exchange.runtime import registration
from exchange.runtime import servicer as exchange_servicer

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "reference.md"
TRADING: Final = ROOT / "docs" / "trading.md"
CONTRACT: Final = "matchbus/v1/matchbus.proto"

SERVICERS: Final[dict[str, tuple[ModuleType, ...]]] = {
    "Exchange": (exchange_servicer, edge),
    "MatchingEngine": (engine_servicer, sessions, edge),
}
"""Where the calls of a service end with a status."""

_SCALARS: Final = {
    value.number: value.name.removeprefix("TYPE_").lower()
    for value in FieldDescriptorProto.Type.DESCRIPTOR.values
}

_SAMPLES: Final[dict[str, Any]] = {"engine": 4711, "symbol": "SYMBOL", "bucket": "BUCKET", "key": "KEY"}
"""What a function of bus/subjects.py is given to see how it spells."""

_STANDS_FOR: Final = {"4711": "<n>", "SYMBOL": "<SYMBOL>", "BUCKET": "<bucket>", "KEY": "<key>"}

_REFUSAL: Final = re.compile(r"(?P<means>.*)\. Do: (?P<do>.*)\.")
_REFUSAL_ROWS: Final = re.compile(
    r"(?<=\| reason \| it means \| what to do \|\n\|---\|---\|---\|\n)(\|.*\|\n)+"
)


Field = tuple[str, str, str, str]
"""(name, type, default, meaning) of a field of a message on NATS."""


@dataclass(frozen=True)
class Refusal:
    """What a RejectReason means, and what to do about it."""

    number: int
    name: str
    means: str
    do: str


@dataclass(frozen=True)
class Ending:
    """One way in which a call ends with a status: `text` with an ellipsis for what varies."""

    status: str
    text: str
    calls: tuple[str, ...]


class Contract:
    """The gRPC contract with its comments."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "contract"
            options = (f"-I{ROOT / 'proto'}", "--include_source_info", f"--descriptor_set_out={out}")
            subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, CONTRACT], check=True)
            (self.file,) = FileDescriptorSet.FromString(out.read_bytes()).file
        self._comments = {
            tuple(place.path): " ".join(f"{place.leading_comments} {place.trailing_comments}".split())
            for place in self.file.source_code_info.location
        }

    def comment(self, *path: int) -> str:
        """What is said of the thing at a path of field numbers and places; empty where nothing is."""
        return self._comments.get(path, "")

    def enums(self) -> Iterator[tuple[str, str, list[tuple[int, str, str]]]]:
        """Name, comment, and (number, name, comment) of each value."""
        for index, enum in enumerate(self.file.enum_type):
            path = (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, index)
            values_path = (*path, EnumDescriptorProto.VALUE_FIELD_NUMBER)
            values = [
                (value.number, value.name, self.comment(*values_path, place))
                for place, value in enumerate(enum.value)
            ]
            yield enum.name, self.comment(*path), values

    def messages(self) -> Iterator[tuple[str, str, list[tuple[int, str, str, str]]]]:
        """Name, comment, and (number, name, type, comment) of each field."""
        for index, message in enumerate(self.file.message_type):
            path = (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, index)
            fields_path = (*path, DescriptorProto.FIELD_FIELD_NUMBER)
            fields = [
                (field.number, field.name, _type_of(field), self.comment(*fields_path, place))
                for place, field in enumerate(message.field)
            ]
            yield message.name, self.comment(*path), fields

    def services(self) -> Iterator[tuple[str, str, list[tuple[str, str, str, str]]]]:
        """Name, comment, and (name, request, reply, comment) of each call."""
        for index, service in enumerate(self.file.service):
            path = (FileDescriptorProto.SERVICE_FIELD_NUMBER, index)
            calls_path = (*path, ServiceDescriptorProto.METHOD_FIELD_NUMBER)
            calls = [
                (
                    call.name,
                    _streamed(call.input_type, is_stream=call.client_streaming),
                    _streamed(call.output_type, is_stream=call.server_streaming),
                    self.comment(*calls_path, place),
                )
                for place, call in enumerate(service.method)
            ]
            yield service.name, self.comment(*path), calls

    def refusals(self) -> list[Refusal]:
        """Every RejectReason but the one that is none. Raises ValueError when one does not say what to do."""
        (values,) = [values for name, _, values in self.enums() if name == "RejectReason"]
        return [
            Refusal(number, name.removeprefix("REJECT_REASON_"), *_refusal_in(name, comment))
            for number, name, comment in values
            if number
        ]


def _refusal_in(name: str, comment: str) -> tuple[str, str]:
    found = _REFUSAL.fullmatch(comment)
    if found is None:
        raise ValueError(f"{name} needs a comment that says what it means, and `Do:` what to do: {comment!r}")
    return found["means"][0].lower() + found["means"][1:], found["do"]


def _type_of(field: FieldDescriptorProto) -> str:
    name = _link(field.type_name) if field.type_name else _SCALARS[field.type]
    return f"repeated {name}" if field.label == field.LABEL_REPEATED else name


def _streamed(type_name: str, *, is_stream: bool) -> str:
    return f"stream of {_link(type_name)}" if is_stream else _link(type_name)


def _link(type_name: str) -> str:
    name = type_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})"


# -- statuses ------------------------------------------------------------------------------------------


def endings(modules: Sequence[ModuleType], calls: Sequence[str]) -> list[Ending]:
    """Every way in which the calls of a servicer end, as its source has them, in order of the statuses."""
    functions = {
        node.name: (node, module)
        for module in modules
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    reached: dict[tuple[str, str], list[str]] = {}
    for call in calls:
        for function in _reached(call, {name: node for name, (node, _) in functions.items()}):
            node, module = functions[function]
            for status, text in _aborts(node, vars(module)):
                reached.setdefault((status, text), []).append(call)
    return sorted(
        (Ending(status, text, tuple(dict.fromkeys(by))) for (status, text), by in reached.items()),
        key=lambda ending: (ending.status, ending.text),
    )


@cache
def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _reached(start: str, functions: dict[str, Any]) -> list[str]:
    """The functions of ours that a function calls, directly or not, and itself."""
    found = [start]
    for name in found:
        for node in ast.walk(functions[name]):
            if not isinstance(node, ast.Call):
                continue
            called = getattr(node.func, "attr", "") or getattr(node.func, "id", "")
            if called in functions and called not in found:
                found.append(called)
    return found


def _aborts(function: ast.AST, names: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The (status, text) of each `context.abort` and `abort_bad_request` that stands in a function."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        match node:
            case ast.Call(func=ast.Attribute(attr="abort"), args=[ast.Attribute(attr=status), text]):
                yield status, _shown(text, names)
            case ast.Call(
                func=ast.Attribute(attr="abort"), args=[ast.Call(func=ast.Name(id="_status_of")), _]
            ):
                yield from _registration_refusals()
            case ast.Call(func=ast.Name(id="abort_bad_request"), args=[_, field, text]):
                yield "INVALID_ARGUMENT", f"{_shown(field, names)}: {_shown(text, names)}"


def closed_doors() -> Iterator[str]:
    """What an engine's process says to every call while it does not reign."""
    for node in ast.walk(_tree(process)):
        match node:
            case (
                ast.Call(func=ast.Name(id="Door"), args=[_, text])
                | ast.Call(func=ast.Attribute(attr="shut"), args=[text, *_])
            ):
                yield _shown(text, {})


def _shown(text: ast.expr, names: dict[str, Any]) -> str:
    """A text with its constants, and an ellipsis for each part that is known only when it happens."""
    match text:
        case ast.Constant(value=value):
            return str(value)
        case ast.Name(id=name) if isinstance(names.get(name), str | int | float):
            return f"{names[name]:,}" if isinstance(names[name], int) else str(names[name])
        case ast.JoinedStr(values=parts):
            return "".join(_shown(part, names) for part in parts)
        case ast.FormattedValue(value=value):
            return _shown(value, names)
        case _:
            return "…"


def _registration_refusals() -> Iterator[tuple[str, str]]:
    for family in (registration.RegistrationRefused, assignment.NoHome):
        for kind in family.__subclasses__():
            yield exchange_servicer._status_of(kind()).name, _sentence(inspect.getdoc(kind))


# -- NATS ----------------------------------------------------------------------------------------------


def subject_rows() -> list[tuple[str, str, str]]:
    """(spelling, name in bus/subjects.py, meaning) of every subject, stream and bucket."""
    rows = []
    for node in _tree(subjects).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(spelling))):
                rows.append((spelling, name, constants(subjects).get(name, "")))
            case ast.FunctionDef(name=name) if not name.endswith(("_token", "_of", "_key")):
                spelling = getattr(subjects, name)(*(_SAMPLES[argument.arg] for argument in node.args.args))
                for sample, stands_for in _STANDS_FOR.items():
                    spelling = spelling.replace(sample, stands_for)
                rows.append((spelling, name, _sentence(ast.get_docstring(node))))
    return rows


def constants(module: ModuleType) -> dict[str, str]:
    """The names that a module assigns and describes in a string below, with those descriptions."""
    return _described(_tree(module).body)


def _described(body: list[ast.stmt]) -> dict[str, str]:
    found = {}
    for statement, following in itertools.pairwise(body):
        match statement, following:
            case (
                ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = _joined(text)
    return found


def structs(module: ModuleType) -> Iterator[tuple[type[msgspec.Struct], str, list[Field]]]:
    """Each message class of a module, its meaning, and its fields in order."""
    for node in _tree(module).body:
        if not isinstance(node, ast.ClassDef):
            continue
        described = _described(node.body)
        fields = [
            (
                statement.target.id,
                ast.unparse(statement.annotation),
                "" if statement.value is None else ast.unparse(statement.value),
                described.get(statement.target.id, ""),
            )
            for statement in node.body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        ]
        yield getattr(module, node.name), _joined(ast.get_docstring(node) or ""), fields


def _joined(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split())


def _sentence(text: str | None) -> str:
    return _joined((text or "").partition("\n\n")[0])


# -- the page ------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """A table; what separates columns is escaped in them."""
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(str(cell).replace("|", r"\|") for cell in row) + " |"


def page(contract: Contract) -> str:
    """docs/reference.md as the source has it now."""
    parts = (
        (_OPENING,),
        _services(contract),
        _messages(contract),
        _enums(contract),
        _refusals(contract),
        _subjects(),
        _nats_messages(),
        _views(),
        _journal(),
    )
    return "\n".join(line for part in parts for line in part)


_OPENING: Final = """# Reference

Made by `make reference` from the contract's comments, docstrings and the servicers: change it there. What
orders do is in [trading.md](trading.md), how to hold a book in [feed.md](feed.md).

[gRPC calls](#grpc-calls) · [messages](#messages) · [enums](#enums) · [refusals](#refusals) ·
[NATS subjects](#nats-subjects) · [messages on NATS](#messages-on-nats) · [views](#views) ·
[journal records](#journal-records)

A field without a meaning here means what its name says, in these words. Prices are integer ticks, quantities
integer lots, times nanoseconds UTC. `sequence`: of a book, per symbol and engine; of a fill, per client; from
1 without gaps. `epoch`: the reign of one process of an engine. `batch_number`: a place in its journal.
`cumulative`, `leaves`: what has traded of an order, and what still may. `order_id`: made by the order's home
engine, whose number is its top 16 bits; `client_order_id`: made by its client; `execution_id`: a trade's, the
same on both sides. `side`: 1 (buy, bids) or 2 (sell, asks). `type`, `time_in_force`, `liquidity`, `mode`: the
numbers of the [enums](#enums). `pid`: of a process, on the machine of its `address`.
"""


def _services(contract: Contract) -> Iterator[str]:
    yield """## gRPC calls

The contract is `proto/matchbus/v1/matchbus.proto`, with `proto` as the folder that imports begin at. In
JavaScript, ask for `longs: String`: times are above 2^53, and ids may be. Health checks and server reflection
(`v1alpha`) need no token.
"""
    for service, comment, calls in contract.services():
        yield f"### {service}\n\n{comment}\n"
        yield from table(
            ("call", "request", "reply", "meaning"),
            [(f"`{name}`", request, reply, text) for name, request, reply, text in calls],
        )
        yield f"\nWhat ends a call of {service} with a status; … stands for what is known only then:\n"
        names = [name for name, *_ in calls]
        rows = [
            (ending.status, ending.text, _calls_in_words(ending.calls, names))
            for ending in endings(SERVICERS[service], names)
        ]
        if service == "MatchingEngine":
            rows += [("UNAVAILABLE", text, "every call") for text in closed_doors()]
        yield from table(("status", "text", "of"), rows)
        yield ""
    yield f"""gRPC itself gives `RESOURCE_EXHAUSTED` to more than {edge.MAX_CONCURRENT_RPCS:,} calls at once
and to a message above {edge.MAX_MESSAGE_BYTES // 1024**2} MiB, `UNAVAILABLE` when nobody listens, or
to some of far more calls at once on one connection,
`DEADLINE_EXCEEDED` and `CANCELLED` for what the caller itself did, and `CANCELLED` too when the process
ends or hands over with the call under way, or when {edge.MAX_PENDING_RPCS:,} calls wait to be accepted.
`INVALID_ARGUMENT` carries
`google.rpc.BadRequest` with the field. What to do about each status is in
[trading.md](trading.md#every-grpc-status).
"""


def _calls_in_words(calls: Sequence[str], every: Sequence[str]) -> str:
    return "every call" if set(calls) == set(every) else ", ".join(f"`{call}`" for call in calls)


def _messages(contract: Contract) -> Iterator[str]:
    yield "## Messages\n"
    for name, comment, fields in contract.messages():
        yield f"### {name}\n\n{comment}\n"
        if fields:
            rows = [(number, f"`{field}`", kind, text) for number, field, kind, text in fields]
            yield from table(("number", "field", "type", "meaning"), rows)
            yield ""


def _enums(contract: Contract) -> Iterator[str]:
    yield "## Enums\n"
    for name, comment, values in contract.enums():
        if name == "RejectReason":
            yield f"### {name}\n\n{comment} See [refusals](#refusals).\n"
            continue
        yield f"### {name}\n\n{comment}\n"
        yield from table(
            ("number", "value", "meaning"), [(number, f"`{value}`", text) for number, value, text in values]
        )
        yield ""


def _refusals(contract: Contract) -> Iterator[str]:
    yield "## Refusals\n\nThe values of RejectReason start with `REJECT_REASON_`.\n"
    rows = [
        (refusal.number, f"`{refusal.name}`", refusal.means, refusal.do) for refusal in contract.refusals()
    ]
    yield from table(("number", "reason", "it means", "what to do"), rows)
    yield ""


def _subjects() -> Iterator[str]:
    yield "## NATS subjects\n\nAlso streams and buckets. In a subject the `.` of a symbol is written `=`.\n"
    yield from table(
        ("spelling", "in bus/subjects.py", "meaning"),
        [(f"`{spelled}`", f"`{name}`", text) for spelled, name, text in subject_rows()],
    )
    yield ""


def _nats_messages() -> Iterator[str]:
    yield "## Messages on NATS\n"
    yield "Arrays in JSON, a tag first; later versions may add fields at the end. A bucket's are objects.\n"
    yield from _structs(structs(messages))
    yield _alias(messages, "LevelChange")


def _journal() -> Iterator[str]:
    yield "## Journal records\n"
    yield "A record is what one message of `journal.<n>` holds: an array in MessagePack. Its `commands` are"
    yield "the bytes of an array of those below, which `matchbus journal dump` shows.\n"
    yield from _structs(one for one in structs(records) if one[0] is records.Record)
    yield from _structs(structs(commands), where=" in the journal")


def _structs(
    kinds: Iterable[tuple[type[msgspec.Struct], str, list[Field]]], where: str = ""
) -> Iterator[str]:
    """A section for each class: its meaning, and its fields by place or by key.

    `where` ends the headings of what has namesakes on the page.
    """
    for kind, meaning, fields in kinds:
        yield f"### {kind.__name__}{where}\n\n{meaning}\n"
        rows = _field_rows(fields)
        if kind.__struct_config__.array_like:
            tag = kind.__struct_config__.tag
            tagged = [(f'`"{tag}"`', "", "the tag")] if tag else []
            places = [(str(place), *row) for place, row in enumerate((*tagged, *rows))]
            yield from table(("place", "field", "type", "meaning"), places)
        else:
            yield from table(("key", "type", "meaning"), rows)
        yield ""


def _views() -> Iterator[str]:
    yield "## Views\n\nObjects in JSON; [views.md](views.md) shows one of each.\n"
    yield from _structs(structs(view_messages))
    yield _alias(view_messages, "ViewTrade")
    yield _alias(replica, "Level")
    yield f"`ConsolidatedLevel`: {_joined(consolidated.ConsolidatedLevel.__doc__ or '')}\n"


def _alias(module: ModuleType, name: str) -> str:
    return f"`{name}`: {constants(module)[name]}\n"


def _field_rows(fields: Sequence[Field]) -> list[tuple[str, str, str]]:
    return [
        (f"`{name}`", f"`{type_}`" + (f", {default} when left out" if default else ""), text)
        for name, type_, default, text in fields
    ]


def trading_page(contract: Contract) -> str:
    """docs/trading.md with the table of refusals that the contract gives."""
    rows = "".join(
        f"| {refusal.name} | {refusal.means} | {refusal.do} |\n" for refusal in contract.refusals()
    )
    text, count = _REFUSAL_ROWS.subn(lambda _: rows, TRADING.read_text())
    assert count == 1, f"{TRADING} has no table of refusals"
    return text


if __name__ == "__main__":
    source = Contract()
    PAGE.write_text(page(source))
    TRADING.write_text(trading_page(source))
