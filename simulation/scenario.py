"""Scenario files: who trades, on what, for how long, and what goes wrong. Pure but for reading the file.

`docs/simulation.md` has every field. Values out of bounds are refused by field, value and limit, as in

    calm.toml: agents[0].arrival.rate is 0: expected `float` > 0.0
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import inspect

from simulation.agents.cast import AnyGroup
from simulation.agents.takers import InformedGroup
from simulation.fundamental import FundamentalSettings, Seconds
from simulation.virtual.delays import USUAL, DelaySettings

SHIPPED: Final = Path(__file__).resolve().parent / "scenarios"
"""Where the scenarios are that came with Matchbus."""

_PAGE: Final = "docs/simulation.md lists every field."
_PLACE: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_STEP: Final = re.compile(r"\.(?P<field>\w+)|\[(?P<index>\d+)\]")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<field>.*)`")
_MISSING: Final = re.compile(r"Object missing required field `(?P<field>.*)`")

Engine = Annotated[int, msgspec.Meta(ge=1, le=16)]


class ScenarioRefused(Exception):
    """The scenario cannot be run; the text says which value of which field to change, and to what."""


class EngineFault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What strikes an engine: kill -9, a freeze of `lasts_s`, or a restart in order."""

    at_s: Seconds
    kind: Literal["kill", "freeze", "restart"]
    engine: Engine
    lasts_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 3.0


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole run: the market, the agents, what the symbols are worth, and the faults."""

    title: str = ""
    seed: int = 1
    duration_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 30.0
    engines: Engine = 2
    standbys: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    symbols: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("AAPL",)
    agents: Annotated[tuple[AnyGroup, ...], msgspec.Meta(min_length=1)]
    fundamental: FundamentalSettings | None = None
    faults: tuple[EngineFault, ...] = ()
    delays: DelaySettings | None = None
    """None: the usual ones in virtual time, the machine's own on processes."""


def shipped() -> list[str]:
    """The names of the scenarios that came with Matchbus."""
    return sorted(file.stem for file in SHIPPED.glob("*.toml"))


def read(name: str, listed: Sequence[str]) -> Scenario:
    """The scenario of a file, or of the name of one that came with Matchbus. `listed` is what trades.

    Raises `ScenarioRefused`.
    """
    ours = SHIPPED / f"{name}.toml"
    file = ours if name in shipped() else Path(name)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioRefused(
            f"the scenario {name!r} cannot be read: {error}. Name a file, or one of {', '.join(shipped())}"
        ) from error
    return parse(text, listed, file.name)


def parse(text: str, listed: Sequence[str], name: str = "scenario") -> Scenario:
    """Make a scenario of TOML and check it. Raises `ScenarioRefused`."""
    try:
        document = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        raise ScenarioRefused(f"{name}: this is not TOML: {error}") from error
    try:
        scenario = msgspec.convert(document, Scenario)
    except msgspec.ValidationError as error:
        raise ScenarioRefused(f"{name}: {explain(str(error), document)} {_PAGE}") from error
    for wrong in contradictions(scenario, listed):
        raise ScenarioRefused(f"{name}: {wrong}")
    return scenario


def contradictions(scenario: Scenario, listed: Sequence[str]) -> Iterable[str]:
    """What no field alone can show to be wrong, and what to do about it."""
    for index, symbol in enumerate(scenario.symbols):
        if symbol not in listed:
            yield f"symbols[{index}] is {symbol!r}: not traded here. Take some of {', '.join(listed)}."
        if symbol in scenario.symbols[:index]:
            yield f"symbols[{index}] is {symbol!r}: named before. Leave it out once."
    for index, fault in enumerate(scenario.faults):
        field = f"faults[{index}]"
        if fault.engine > scenario.engines:
            yield (
                f"{field}.engine is {fault.engine}: there are {scenario.engines}. "
                f"Name one of them, or raise engines."
            )
        if fault.at_s >= scenario.duration_s:
            yield (
                f"{field}.at_s is {fault.at_s:g}: the run ends after {scenario.duration_s:g} s. "
                "Strike earlier, or raise duration_s."
            )
    for index, jump in enumerate(scenario.fundamental.jumps if scenario.fundamental else ()):
        if jump.symbol and jump.symbol not in scenario.symbols:
            yield (
                f"fundamental.jumps[{index}].symbol is {jump.symbol!r}: not among symbols. "
                "Add it there, or leave it out for all."
            )
        if jump.at_s >= scenario.duration_s:
            yield (
                f"fundamental.jumps[{index}].at_s is {jump.at_s:g}: the run ends after "
                f"{scenario.duration_s:g} s. Let it come earlier, or raise duration_s."
            )
    for name, (shortest_ms, longest_ms) in msgspec.structs.asdict(scenario.delays or USUAL).items():
        if longest_ms < shortest_ms:
            yield f"delays.{name} is [{shortest_ms:g}, {longest_ms:g}]: the shortest comes first. Swap them."
    if scenario.fundamental is None and any(isinstance(group, InformedGroup) for group in scenario.agents):
        yield "fundamental is missing: informed agents know nothing without it. Add [fundamental]."


def explain(error: str, document: Any) -> str:
    """What msgspec found, as field, value and limit, with the names it could have been."""
    place = _PLACE.match(error)
    assert place is not None, "the pattern matches every text"
    what, path = place["what"], place["path"] or ""
    if unknown := _UNKNOWN.match(what):
        known = _names(path, document)
        nearest = difflib.get_close_matches(unknown["field"], known, 1)
        advice = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}."
        return f"{_field(path, unknown['field'])} is no field: {advice}"
    if missing := _MISSING.match(what):
        return f"{_field(path, missing['field'])} is missing: write it."
    limit = what[:1].lower() + what[1:]
    value = _value(path, document)
    if what.startswith("Invalid"):
        limit = f"expected one of {', '.join(_words(path, document))}"
    return f"{_field(path)} is {value!r:.60}: {limit}." if path else f"{limit}."


def _field(path: str, below: str = "") -> str:
    return ".".join(part for part in (path.removeprefix("."), below) if part)


def _steps(path: str) -> Iterable[str | int]:
    for step in _STEP.finditer(path):
        yield step["field"] or int(step["index"])


def _value(path: str, document: Any) -> Any:
    for step in _steps(path):
        document = document[step]
    return document


def _type_at(path: str, document: Any) -> inspect.Type:
    """The type that is expected at a place, as far as the values above it decide it."""
    kind: inspect.Type = inspect.type_info(Scenario)
    for step in _steps(path):
        kind = _chosen(kind, document)
        if isinstance(kind, inspect.StructType):
            kind = next(field.type for field in kind.fields if field.encode_name == step)
        elif isinstance(kind, inspect.VarTupleType):
            kind = kind.item_type
        document = document[step]
    return _chosen(kind, document)


def _chosen(kind: inspect.Type, value: Any) -> inspect.Type:
    """The member of a union that the value's `kind` names; a type that is no union is itself."""
    if not isinstance(kind, inspect.UnionType):
        return kind
    structs = [one for one in kind.types if isinstance(one, inspect.StructType)]
    named = value.get("kind") if isinstance(value, dict) else None
    return next((one for one in structs if one.tag in (named, None)), kind)


def _names(path: str, document: Any) -> list[str]:
    """The fields that are known at a place."""
    kind = _type_at(path, document)
    assert isinstance(kind, inspect.StructType), "only tables have fields"
    return [*([kind.tag_field] if kind.tag_field else []), *(field.encode_name for field in kind.fields)]


def _words(path: str, document: Any) -> list[str]:
    """The words that a place takes: the values of a choice, or the kinds of what it is a field of."""
    above = _type_at(path.rpartition(".")[0], document)
    if isinstance(above, inspect.UnionType):
        return [str(one.tag) for one in above.types if isinstance(one, inspect.StructType)]
    choice = _type_at(path, document)
    assert isinstance(choice, inspect.LiteralType), "nothing else has words to choose from"
    return [str(value) for value in choice.values]
