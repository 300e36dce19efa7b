"""Scenario files: what they say, and how a wrong one is refused."""

import re
from pathlib import Path

import msgspec
import pytest
from msgspec import inspect

from simulation import scenario
from simulation.agents.arrivals import HawkesSettings
from simulation.agents.quoters import MakerGroup
from simulation.scenario import Scenario, ScenarioRefused

LISTED = ["AAPL", "MSFT"]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "simulation.md"
MAKER = '[[agents]]\nkind = "maker"\n'


def test_a_whole_scenario() -> None:
    """Every part of a file arrives in its place, with defaults for what it leaves out."""
    parsed = scenario.parse(
        """
        seed = 7
        duration_s = 20
        symbols = ["MSFT"]
        fundamental = { start = 500, jumps = [{ at_s = 3, ticks = -5 }] }

        [[agents]]
        kind = "maker"
        count = 3
        half_spread = 9
        arrival = { kind = "hawkes", branching = 0.2 }

        [[faults]]
        at_s = 5
        kind = "freeze"
        engine = 2
        lasts_s = 1
        """,
        LISTED,
    )
    assert (parsed.seed, parsed.duration_s, parsed.engines, parsed.symbols) == (7, 20, 2, ("MSFT",))
    assert parsed.agents == (MakerGroup(count=3, half_spread=9, arrival=HawkesSettings(branching=0.2)),)
    assert parsed.fundamental is not None
    assert parsed.fundamental.jumps[0].ticks == -5
    assert parsed.faults[0].lasts_s == 1


@pytest.mark.parametrize("name", scenario.shipped())
def test_shipped_scenarios_can_be_run(name: str) -> None:
    """What comes with Matchbus is accepted by its name, against the symbols that come with it."""
    assert scenario.read(name, LISTED).title


def test_three_scenarios_are_shipped() -> None:
    """A quiet market, news, and the death of an engine in the middle of the run."""
    assert scenario.shipped() == ["calm", "engine-dies-at-noon", "news-shock"]
    dies = scenario.read("engine-dies-at-noon", LISTED)
    assert ("kill", dies.duration_s / 2) in {(fault.kind, fault.at_s) for fault in dies.faults}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("seed = ", "this is not TOML"),
        ("", "agents is missing"),
        ("agents = []", "agents is []: expected `array` of length >= 1"),
        (MAKER + "count = 0", "agents[0].count is 0: expected `int` >= 1"),
        (MAKER + "half_spread = -1", "agents[0].half_spread is -1: expected `int` >= 0"),
        (MAKER + "half_spred = 1", "agents[0].half_spred is no field: did you mean half_spread?"),
        (MAKER + "xyz = 1", "agents[0].xyz is no field: known are kind, half_spread, quantity"),
        (
            MAKER + 'arrival = { kind = "steady", rate = 0 }',
            "agents[0].arrival.rate is 0: expected `float` > 0",
        ),
        (MAKER + 'arrival = { kind = "poisson", rate = nan }', "agents[0].arrival.rate is nan: expected"),
        (MAKER + 'arrival = { kind = "poisson", rate = inf }', "agents[0].arrival.rate is inf: expected"),
        (
            MAKER + 'arrival = { kind = "odd" }',
            "agents[0].arrival.kind is 'odd': expected one of steady, poisson",
        ),
        (MAKER + 'arrival = { kind = "steady", memory_s = 1 }', "known are kind, rate"),
        ('[[agents]]\nkind = "odd"', "agents[0].kind is 'odd': expected one of random, maker, momentum"),
        ("[[agents]]\ncount = 1", "agents[0].kind is missing"),
        (
            '[[agents]]\nkind = "random"\ncancel_share = 0.9\nioc_share = 0.9',
            "add up to more than 1: lower one",
        ),
        ('[[agents]]\nkind = "informed"', "fundamental is missing: informed agents know nothing without it"),
        ("duration_s = 0\n" + MAKER, "duration_s is 0: expected `float` > 0"),
        ("engines = 17\n" + MAKER, "engines is 17: expected `int` <= 16"),
        ('engines = "2"\n' + MAKER, "engines is '2': expected `int`, got `str`"),
        ("duration = 5\n" + MAKER, "duration is no field: did you mean duration_s?"),
        ('symbols = ["XYZ"]\n' + MAKER, "symbols[0] is 'XYZ': not traded here. Take some of AAPL, MSFT"),
        ('symbols = ["AAPL", "AAPL"]\n' + MAKER, "symbols[1] is 'AAPL': named before"),
        (MAKER + '[[faults]]\nkind = "kill"\nengine = 1', "faults[0].at_s is missing"),
        (MAKER + '[[faults]]\nkind = "burn"\nengine = 1\nat_s = 1', "expected one of freeze, kill, restart"),
        (MAKER + '[[faults]]\nkind = "kill"\nengine = 3\nat_s = 1', "faults[0].engine is 3: there are 2"),
        (
            MAKER + '[[faults]]\nkind = "kill"\nengine = 1\nat_s = 31',
            "faults[0].at_s is 31: the run ends after 30 s",
        ),
        (
            MAKER + "[fundamental]\njumps = [{ at_s = 30, ticks = 1 }]",
            "fundamental.jumps[0].at_s is 30: the run ends after 30 s",
        ),
        (
            MAKER + '[fundamental]\njumps = [{ at_s = 1, ticks = 1, symbol = "MSFT" }]',
            "fundamental.jumps[0].symbol is 'MSFT': not among symbols",
        ),
        (MAKER + "[delays]\nlink_ms = [-1, 1]", "delays.link_ms[0] is -1: expected `float` >= 0"),
        (MAKER + "[delays]\nlink_ms = [nan, 1]", "delays.link_ms[0] is nan: expected `float` >= 0"),
        (MAKER + "[delays]\nlink_ms = [0, 101]", "delays.link_ms[1] is 101: expected `float` <= 100"),
        (MAKER + "[delays]\ncall_ms = [0, inf]", "delays.call_ms[1] is inf: expected `float` <= 500"),
        (MAKER + "[delays]\nappend_ms = [0, 501]", "delays.append_ms[1] is 501: expected `float` <= 500"),
        (
            MAKER + "[delays]\ncall_ms = 5",
            "delays.call_ms is 5: expected `array`, got",
        ),
        (MAKER + "[delays]\nrestart_ms = [0, 60001]", "restart_ms[1] is 60001: expected `float` <= 60000"),
        (MAKER + "[delays]\ncall_ms = [1]", "delays.call_ms is [1]: expected `array` of length 2, got 1"),
        (MAKER + '[delays]\ncall_ms = [1, "2"]', "delays.call_ms[1] is '2': expected `float`, got `str`"),
        (MAKER + "[delays]\ncall = [1, 2]", "delays.call is no field: did you mean call_ms?"),
        (MAKER + "[delays]\nlink_ms = [2, 1.5]", "delays.link_ms is [2, 1.5]: the shortest comes first"),
    ],
)
def test_a_wrong_value_is_named(text: str, why: str) -> None:
    """A refusal says the field, the value, the limit or what is known, and where everything is listed."""
    with pytest.raises(ScenarioRefused, match=re.escape(why)) as refused:
        scenario.parse(text, LISTED, "file.toml")
    assert str(refused.value).startswith("file.toml: ")


def test_shares_may_add_up_to_the_whole() -> None:
    """Though as floats these, added one after the other, are more than 1."""
    text = '[[agents]]\nkind = "random"\n'
    text += "cancel_share = 0.4\nreplace_share = 0.2\nmarket_share = 0.3\nioc_share = 0.1"
    assert scenario.parse(text, LISTED).agents


def test_freezes_may_overlap() -> None:
    """Those of one engine too: it goes on with the end of the last."""
    text = MAKER + "".join(f'[[faults]]\nkind = "freeze"\nengine = 1\nat_s = {at_s}\n' for at_s in (5, 3))
    assert len(scenario.parse(text, LISTED).faults) == 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The refusal names the file and the scenarios that there are."""
    with pytest.raises(ScenarioRefused, match=r"'noon\.toml' cannot be read: .*one of calm, "):
        scenario.read("noon.toml", LISTED)
    file = tmp_path / "own.toml"
    file.write_text(MAKER)
    assert scenario.read(str(file), LISTED).agents == (MakerGroup(),)


def fields(kind: inspect.Type) -> set[str]:
    """The names of all fields of a type and of what is in it."""
    match kind:
        case inspect.StructType():
            own = {field.encode_name for field in kind.fields} | (
                {kind.tag_field} if kind.tag_field else set()
            )
            return own.union(*(fields(field.type) for field in kind.fields))
        case inspect.UnionType():
            return set[str]().union(*map(fields, kind.types))
        case inspect.VarTupleType():
            return fields(kind.item_type)
        case _:
            return set()


def test_every_field_is_documented() -> None:
    """docs/simulation.md has a row for each field of a scenario, and none for what is no field."""
    documented = set(
        re.findall(
            r"^\| `(\w+)`",
            PAGE.read_text().partition("## Scenario files")[2].partition("## Report")[0],
            re.MULTILINE,
        )
    )
    assert documented == fields(inspect.type_info(Scenario))


def test_the_documented_scenario_can_be_run() -> None:
    """The example of docs/simulation.md is accepted as it stands there."""
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert scenario.parse(example, LISTED).title == "A maker that is too slow"


def test_a_scenario_can_be_told_as_json() -> None:
    """What outcome.json says of a scenario makes the same scenario again."""
    known = scenario.read("news-shock", LISTED)
    assert (
        msgspec.convert(msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(known))), Scenario)
        == known
    )
