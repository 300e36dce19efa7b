from pathlib import Path

import pytest

from engine.runtime.settings import parse_settings


def test_an_engine_without_a_port_of_its_own_is_told_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    """A number whose port would be above all ports needs --listen, and with it is as good as any."""
    assert parse_settings(["--number", "15485"], {}).listen.endswith(":65535")
    with pytest.raises(SystemExit):
        parse_settings(["--number", "15486"], {})
    assert "--listen HOST:PORT" in capsys.readouterr().err.splitlines()[-1]
    assert parse_settings(["--number", "60000", "--listen", "127.0.0.1:0"], {}).number == 60_000


def test_an_empty_address_is_not_the_usual_one() -> None:
    """A script whose variable is not set reads where it goes wrong: the edge refuses it."""
    assert parse_settings(["--number", "1", "--listen", ""], {}).listen == ""


def test_what_is_no_address_of_nats_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """By its name, instead of being looked for until the deadline of a start."""
    with pytest.raises(SystemExit) as refused:
        parse_settings(["--number", "1", "--nats", "http://foo"], {})
    assert refused.value.code == 2
    assert "--nats: 'http://foo' is no address of NATS" in capsys.readouterr().err


def test_engine_refuses_to_stand_by_without_a_journal(capsys: pytest.CaptureFixture[str]) -> None:
    """The command line names the two options that do not go together."""
    with pytest.raises(SystemExit):
        parse_settings(["--number", "1", "--standby", "--durability", "none"], {})
    assert (
        "--standby follows the journal, and with --durability none there is none" in capsys.readouterr().err
    )
    assert parse_settings(["--number", "1", "--standby"], {}).standby


def test_files_that_cannot_be_used_are_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A renewal that was half written when the engine started ends up in its log: the usage is no help."""
    nothing = str(tmp_path / "nothing.pem")
    with pytest.raises(SystemExit) as refused:
        parse_settings(["--number", "1", "--tls-cert", nothing, "--tls-key", nothing], {})
    assert refused.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("nothing.pem: No such file or directory")


@pytest.mark.parametrize("rate", ["0", "-1", "1.5", "many", "1000001"])
def test_a_rate_is_a_whole_number(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without one there is no limit; what is none is named with what it may be."""
    assert parse_settings(["--number", "1"], {}).orders_per_second == 0
    assert parse_settings(["--number", "1", "--orders-per-second", "1000000"], {}).orders_per_second == 10**6
    with pytest.raises(SystemExit):
        parse_settings(["--number", "1", f"--orders-per-second={rate}"], {})
    assert f"'{rate}' is not a whole number from 1 to 1,000,000" in capsys.readouterr().err
