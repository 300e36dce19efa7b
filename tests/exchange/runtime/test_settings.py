import tomllib
from pathlib import Path

import pytest

import bus.server as server_module
import exchange.runtime.settings as settings_module
from bus.server import find_nats_conf
from exchange.runtime.settings import SettingsRefused, is_loopback, parse_settings, shipped_instruments


def test_defaults() -> None:
    """Without a word it listens on loopback with the default password and the instruments that came along."""
    settings = parse_settings([], {})
    assert (settings.nats_url, settings.listen, settings.password) == (
        "nats://127.0.0.1:4222",
        "127.0.0.1:50050",
        "password",
    )
    assert settings.instruments.is_file()
    assert settings.log_dir is None


def test_what_is_no_address_of_nats_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """By its name, instead of being looked for until the deadline of a start."""
    with pytest.raises(SystemExit) as refused:
        parse_settings(["--nats", "http://foo"], {})
    assert refused.value.code == 2
    assert "--nats: 'http://foo' is no address of NATS" in capsys.readouterr().err


def test_environment_and_command_line() -> None:
    """The environment stands in for what the command line does not say."""
    environment = {"PASSWORD": "p1", "IP_ADDR": "0.0.0.0"}
    assert parse_settings([], environment).listen == "0.0.0.0:50050"
    assert parse_settings([], environment).password == "p1"
    settings = parse_settings(
        ["--listen", "[::1]:0", "--password", "p2", "--instruments", "x.toml", "--log-dir", "logs"],
        environment,
    )
    assert (settings.listen, settings.password) == ("[::1]:0", "p2")
    assert (settings.instruments, settings.log_dir) == (Path("x.toml"), Path("logs"))


def test_instruments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file in the current directory comes first, then the one that came with Matchbus."""
    monkeypatch.chdir(tmp_path)
    assert parse_settings([], {}).instruments == shipped_instruments()
    (tmp_path / "instruments.toml").touch()
    assert parse_settings([], {}).instruments.resolve() == tmp_path / "instruments.toml"


def test_what_a_wheel_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel has the settings files where its modules look for them first."""
    root = Path(__file__).resolve().parents[3]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, place in wheel["force-include"].items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes((root / source).read_bytes())
    monkeypatch.setattr(settings_module, "__file__", str(tmp_path / "exchange" / "runtime" / "settings.py"))
    monkeypatch.setattr(server_module, "__file__", str(tmp_path / "bus" / "server.py"))
    assert shipped_instruments() == tmp_path / "exchange" / "instruments.toml"
    assert find_nats_conf() == tmp_path / "bus" / "nats.conf"


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "192.0.2.1", "[::]", "example.org", "[2001:db8::1]", "localhost.evil"]
)
def test_the_default_password_off_loopback(host: str) -> None:
    """Where others can reach it the default password is refused, and the text says what to do."""
    with pytest.raises(SettingsRefused, match="set PASSWORD or give --password another"):
        parse_settings(["--listen", f"{host}:50050"], {})
    with pytest.raises(SettingsRefused):
        parse_settings(["--listen", f"{host}:50050", "--password", "password"], {"PASSWORD": "other"})
    assert parse_settings(["--listen", f"{host}:50050"], {"PASSWORD": "other"}).password == "other"


def test_an_ipv6_address_from_the_environment() -> None:
    """IP_ADDR may be an IPv6 address; it is put in brackets."""
    assert parse_settings([], {"IP_ADDR": "::1"}).listen == "[::1]:50050"


@pytest.mark.parametrize(
    "listen",
    ["", "127.0.0.1", ":50050", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", f"127.0.0.1:{'1' * 5000}"],
)
def test_a_malformed_address(listen: str) -> None:
    """An address that is no HOST:PORT is refused with an example."""
    with pytest.raises(SettingsRefused, match="HOST:PORT"):
        parse_settings(["--listen", listen], {})


def test_an_empty_password() -> None:
    """An empty password is none, and does not stand for the one of the environment."""
    for arguments, password in (([], ""), (["--password", ""], "other")):
        with pytest.raises(SettingsRefused, match="empty"):
            parse_settings(arguments, {"PASSWORD": password})


@pytest.mark.parametrize("gib", ["0", "-1", "1000001", "4.5", "1e9", "nan"])
def test_an_impossible_size(gib: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What no stream could be limited to ends the command, and says which option was wrong."""
    with pytest.raises(SystemExit):
        parse_settings(["--journal-gib", gib], {})
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"argument --journal-gib: {gib!r} is not a whole number from 1 to 1,000,000" in said


def test_sizes() -> None:
    """They are given in GiB."""
    settings = parse_settings(["--journal-gib", "1", "--executions-gib", "2"], {})
    assert (settings.journal_bytes, settings.executions_bytes) == (2**30, 2**31)


def test_the_password_is_not_shown() -> None:
    """Settings that are printed or logged keep the password to themselves."""
    assert "s3cret" not in repr(parse_settings(["--password", "s3cret"], {}))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("[::]", False),
        ("localhost", True),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    """Addresses that only this machine reaches are told from all others."""
    assert is_loopback(host) is loopback


def test_a_password_that_no_client_could_send() -> None:
    """A password longer than a registration may carry is refused at the start."""
    assert parse_settings([], {"PASSWORD": "x" * 1_024}).password
    with pytest.raises(SettingsRefused, match="at most 1024 characters"):
        parse_settings([], {"PASSWORD": "x" * 1_025})
