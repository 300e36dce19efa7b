import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from bus.addresses import DEFAULT_NATS_URL
from client import AuthenticationFailed, Client
from client.cli.desk import Desk
from client.cli.main import find, run
from client.cli.output import Output
from client.cli.settings import (
    DEFAULT_EXCHANGE,
    Context,
    Contexts,
    SettingsError,
    changing,
    contexts_file,
    load,
    resolve,
)
from tests.client.fake_venue import FakeVenue

ALICE = Context("ctx:1", "nats://ctx", "alice", "hers", "pw")
BOB = Context("ctx:2", "", "bob", "his", "")
KEPT = Contexts("alice", {"alice": ALICE, "bob": BOB})


@pytest.mark.parametrize(
    ("key", "default", "kept"),
    [
        ("exchange", DEFAULT_EXCHANGE, "ctx:1"),
        ("nats", DEFAULT_NATS_URL, "nats://ctx"),
        ("client_id", "", "alice"),
        ("secret", "", "hers"),
        ("password", "password", "pw"),
    ],
)
def test_option_before_environment_before_context_before_default(key: str, default: str, kept: str) -> None:
    """Each value is taken from the first place that has it, and the place is remembered."""
    variable, option = f"MATCHBUS_{key.upper()}", f"--{key.replace('_', '-')}"
    environment, options = {variable: "env"}, {key: "opt"}
    cases: list[tuple[dict[str, str], dict[str, str], Contexts, str, str]] = [
        ({}, {}, Contexts(), default, "default"),
        ({}, {}, KEPT, kept, "from context alice"),
        ({}, environment, KEPT, "env", f"from {variable}"),
        (options, environment, KEPT, "opt", f"from {option}"),
    ]
    for typed, surrounding, contexts, value, source in cases:
        settings = resolve(typed, surrounding, contexts)
        assert (getattr(settings, key), settings.source(key)) == (value, source)


def test_what_was_not_typed_does_not_count() -> None:
    """An option that argparse left at None, or an empty variable, stands for nothing."""
    settings = resolve({"exchange": None}, {"MATCHBUS_EXCHANGE": ""}, KEPT)
    assert settings.exchange == "ctx:1"


def test_the_context_is_chosen_by_option_then_environment_then_use() -> None:
    """--context wins over MATCHBUS_CONTEXT, which wins over the one in use."""
    assert resolve({}, {}, KEPT).client_id == "alice"
    assert resolve({}, {"MATCHBUS_CONTEXT": "bob"}, KEPT).client_id == "bob"
    assert resolve({"context": "alice"}, {"MATCHBUS_CONTEXT": "bob"}, KEPT).client_id == "alice"
    assert resolve({}, {"MATCHBUS_CONTEXT": "bob"}, KEPT).nats == DEFAULT_NATS_URL  # bob has none of his own


def test_an_unknown_context_names_those_there_are() -> None:
    """Whoever mistypes a context sees the right ones."""
    with pytest.raises(SettingsError, match="'carol'") as caught:
        resolve({"context": "carol"}, {}, KEPT)
    assert "alice, bob" in caught.value.hint


def test_nobody_is_registered_without_name_or_secret() -> None:
    """Trading needs both; what is missing and how to get it is said."""
    with pytest.raises(SettingsError, match="nobody") as caught:
        resolve({}, {}, Contexts()).check_registered()
    assert "matchbus register" in caught.value.hint
    with pytest.raises(SettingsError, match=r"secret of 'zoe' \(from --client-id\)"):
        resolve({"client_id": "zoe"}, {}, Contexts()).check_registered()
    resolve({}, {}, KEPT).check_registered()


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", "1_0", "٣"])
def test_a_timeout_must_be_a_time(text: str) -> None:
    """A timeout that is no time is refused with its value."""
    with pytest.raises(SettingsError, match=text):
        resolve({"timeout": text}, {}, Contexts())
    assert resolve({"timeout": "2.5"}, {}, Contexts()).timeout_s == 2.5


def test_an_address_that_is_none_of_nats_is_named_with_its_source() -> None:
    """In the environment and in a context too, and only to a command that needs it."""
    settings = resolve({}, {"MATCHBUS_NATS": "http://foo"}, KEPT)
    with pytest.raises(SettingsError, match=r"'http://foo' is no address of NATS: .* \(from MATCHBUS_NATS\)"):
        settings.checked_nats()


def test_an_address_that_is_none_of_an_exchange_is_named_with_its_source() -> None:
    """Likewise."""
    settings = resolve({}, {"MATCHBUS_EXCHANGE": "foo"}, KEPT)
    with pytest.raises(SettingsError, match=r"'foo' is no address: .* \(from MATCHBUS_EXCHANGE\)"):
        settings.checked_exchange()
    with pytest.raises(SettingsError, match="from MATCHBUS_EXCHANGE"):
        Desk({}, {"MATCHBUS_EXCHANGE": "foo"}, Output(as_json=True)).venue()


def test_secrets_do_not_show_in_a_log() -> None:
    """Printing settings shows neither secret nor password."""
    shown = repr(resolve({}, {}, KEPT))
    assert "hers" not in shown
    assert "pw" not in shown


def keep(file: Path, contexts: Contexts) -> None:
    """Have this kept, whatever was."""
    with changing(file) as kept:
        kept.current, kept.contexts = contexts.current, contexts.contexts


def test_contexts_come_back_as_they_were(tmp_path: Path) -> None:
    """What is saved is loaded; only the owner may read it, whatever the umask or an older file says."""
    file = tmp_path / "deep" / "contexts.json"
    assert load(file) == Contexts()
    keep(file, KEPT)
    file.chmod(0o644)
    keep(file, KEPT)
    assert load(file) == KEPT
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert sorted(file.parent.iterdir()) == [file.with_name(".contexts.json.lock"), file]


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    """Many that change contexts at once lose nothing of each other's; who fails half-way changes nothing."""
    file = tmp_path / "contexts.json"
    names = [f"c{number}" for number in range(100)]

    def add(name: str) -> None:
        with changing(file) as contexts:
            contexts.contexts[name] = ALICE

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, names))
    with pytest.raises(SettingsError), changing(file) as contexts:
        contexts.get(contexts.contexts.popitem()[0])
    assert sorted(load(file).contexts) == sorted(names)


async def register(*words: str) -> int:
    """`matchbus register` with these words; the exit code."""
    command = find("register")
    return await run(command, command.parser().read(words), Output(as_json=False))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the contexts of this test are kept; Alice is registered already."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "matchbus" / "contexts.json"
    keep(file, Contexts("alice", {"alice": ALICE}))
    return file


@pytest.mark.parametrize(
    ("words", "seen"),
    [("list", "nats://there"), ("show", "nats://there"), ("show --secrets", "nats://venue:pw@there")],
)
async def test_a_password_of_nats_is_a_secret(
    file: Path, capsys: pytest.CaptureFixture[str], words: str, seen: str
) -> None:
    """As those of the client: it is told when asked for."""
    keep(file, Contexts("alice", {"alice": Context(nats="nats://venue:pw@there")}))
    command = find("context")
    assert await run(command, command.parser().read([*words.split(), "--json"]), Output(as_json=True)) == 0
    assert json.loads(capsys.readouterr().out)["nats"] == seen


@pytest.mark.usefixtures("file")
async def test_a_list_of_contexts_is_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    """A name behind `context list` is typed wrongly."""
    command = find("context")
    options = command.parser().read(["list", "alice"])
    assert await run(command, options, Output(as_json=False)) == 2
    said = capsys.readouterr()
    assert (said.out, "'alice' was given" in said.err) == ("", True)


async def test_a_context_that_is_set_for_the_first_time_is_called_new(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So a mistyped name shows, which changes nothing of the context that was meant."""
    command = find("context")
    for name, said in (("alice", "changed"), ("alcie", "new"), ("alcie", "changed")):
        options = command.parser().read(["set", name, "--exchange", "there:1"])
        assert await run(command, options, Output(as_json=False)) == 0
        assert capsys.readouterr().out == f"{name} is {said}: exchange.\n"
    assert load(file).contexts["alcie"] == Context(exchange="there:1")


async def test_a_secret_is_kept_before_the_exchange_hears_of_it(venue: FakeVenue, file: Path) -> None:
    """A registration that may or may not have been done leaves its secret here, to be repeated with."""
    venue.failures.extend([grpc.StatusCode.UNAVAILABLE] * 100)
    words = ("dave", "--exchange", venue.address, "--password", "password")
    assert await register(*words, "--timeout", "0.1") == 1
    kept = load(file)
    assert kept.current == "alice"
    assert kept.contexts["dave"].secret
    venue.failures.clear()
    assert await register(*words) == 0
    assert load(file) == Contexts("dave", kept.contexts)


async def test_a_refused_registration_leaves_contexts_as_they_were(venue: FakeVenue, file: Path) -> None:
    """A new context is gone again, one of before has what it had, and another client's is not taken."""
    fresh = Context(exchange=venue.address)
    keep(file, Contexts("alice", {"alice": ALICE, "eve": fresh}))
    before = load(file)
    for name in ("dave", "eve", "alice"):
        words = (name, "--exchange", venue.address, "--password", "wrong", "--secret", "s")
        assert await register(*words) == 1
        assert load(file) == before
    words = ("dave", "--context", "alice", "--exchange", venue.address, "--password", "password")
    assert await register(*words) == 2
    assert load(file) == before
    assert venue.registrations == 0


async def test_a_refused_registration_takes_away_no_other(
    venue: FakeVenue, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who registers the same name meanwhile, with the right password, keeps what he has."""
    other = Context(exchange=venue.address, client_id="dave", secret="his")

    async def refused(_: Client) -> None:
        with changing(file) as contexts:
            contexts.contexts["dave"] = other
        raise AuthenticationFailed("wrong password")

    monkeypatch.setattr(Client, "open", refused)
    assert await register("dave", "--exchange", venue.address, "--password", "wrong") == 1
    assert load(file).contexts["dave"] == other


async def test_nobody_is_registered_whose_secret_cannot_be_kept(
    venue: FakeVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where contexts cannot be kept the exchange is not asked."""
    (tmp_path / "matchbus").write_text("a file where a directory should be")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert await register("dave", "--exchange", venue.address) == 1
    assert "cannot be kept" in capsys.readouterr().err
    assert venue.registrations == 0


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"contexts": {"a": 5}}', b"\xff", b'{"current": "\xff"}'])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    """A file that cannot be read is no empty one: its name and the way out are told."""
    file = tmp_path / "contexts.json"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=str(file)) as told:
        load(file)
    assert "delete" not in told.value.hint  # the secrets are kept nowhere else


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Where contexts cannot be kept, the error says where."""
    (tmp_path / "matchbus").write_text("a file where a directory should be")
    with pytest.raises(SettingsError, match="cannot be kept"):
        keep(tmp_path / "matchbus" / "contexts.json", KEPT)


def test_contexts_are_where_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """$XDG_CONFIG_HOME when it is an absolute path, else ~/.config."""
    home: dict[str, Any] = {"HOME": "/home/ann"}
    monkeypatch.setenv("HOME", "/home/ann")
    assert contexts_file({"XDG_CONFIG_HOME": "/etc/x"}) == Path("/etc/x/matchbus/contexts.json")
    for environment in (home, home | {"XDG_CONFIG_HOME": ""}, home | {"XDG_CONFIG_HOME": "relative"}):
        assert contexts_file(environment) == Path("/home/ann/.config/matchbus/contexts.json")


def test_a_user_without_a_home_directory_has_kept_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a container, who is a mere number: what needs no context works, and keeping one is refused."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 9)  # of nobody
    assert contexts_file({}) == Path("/.config/matchbus/contexts.json")
