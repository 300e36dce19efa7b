"""What a command line may not say is refused before anything starts, by option, value and limit."""

import pytest

from simulation import cli, operate

PACES = ("--kills-per-minute", "--freezes-per-minute", "--partitions-per-minute")
MAINS = {"simulation": cli.main, "matchbus": operate.main}


@pytest.mark.parametrize(
    ("command", "option", "values", "limit"),
    [
        *(("simulation chaos", pace, "-5 nan inf 1e300 x", "from 0 to 600") for pace in PACES),
        ("simulation chaos", "--minutes", "-1 0 nan inf 1e300", "above 0, up to 1,440"),
        ("simulation chaos", "--rate", "-1 0 nan inf 1e300", "above 0, up to 1,000,000"),
        ("simulation chaos", "--longest", "-1 0 nan inf", "finite number above 0"),
        ("simulation run", "--duration", "-1 0 nan inf", "finite number above 0"),
        ("simulation run", "--frequency", "-1 0 nan inf", "finite number above 0"),
        ("simulation run", "--clients", "-1 0 nan 1.5", "whole number from 1 on"),
        ("simulation replay", "--limit", "-1 0 nan", "whole number from 1 on"),
        ("matchbus demo", "--duration", "-1 0 nan inf", "finite number above 0"),
        ("matchbus demo", "--clients", "-1 0 nan", "whole number from 1 on"),
        ("matchbus up", "--snapshot-every", "-1 0 nan", "whole number from 1 on"),
    ],
)
def test_numbers_out_of_bounds_are_refused(
    command: str, option: str, values: str, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate, a length of time or a count that cannot be is a usage error that says what can."""
    program, *words = command.split()
    for value in values.split():
        with pytest.raises(SystemExit) as ended:
            MAINS[program]([*words, option, value])
        assert ended.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"argument {option}: {value!r} is not a" in said
        assert said.endswith(limit)


@pytest.mark.parametrize("pace", PACES)
def test_no_faults_of_a_class_can_be_asked_for(pace: str) -> None:
    """0 in a minute is never."""
    assert cli.parser().parse_args(["chaos", pace, "0"])
