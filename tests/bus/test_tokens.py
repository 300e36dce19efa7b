import pytest

from bus import tokens
from bus.messages import SessionEntry
from bus.tokens import Tokens, holds


def ann(ends_ns: int = 100) -> SessionEntry:
    """A session of ann's."""
    return SessionEntry("ann", 1, ends_ns)


def test_a_session_holds_until_its_end() -> None:
    """Its last moment is the one before; one that was stored without an end holds no more."""
    assert holds(ann(100), 99)
    assert not holds(ann(100), 100)
    assert not holds(SessionEntry("ann", 1), 0)


def test_a_new_token_ends_those_whose_time_is_over() -> None:
    """They are named once, so that the store lets go of them; other clients' stay."""
    known = Tokens()
    for key, session in {"a": ann(10), "b": ann(20), "c": ann(30), "bobs": SessionEntry("bob", 1, 5)}.items():
        assert known.put(key, session, 0) == []
    assert known.put("d", ann(90), 20) == ["a", "b"]
    assert known.get("a") is None
    assert known.get("c") == ann(30)
    assert known.get("bobs") is not None
    assert known.put("e", ann(91), 20) == []
    assert len(known) == 4


def test_too_many_tokens_end_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that registers for ever takes no more room."""
    monkeypatch.setattr(tokens, "MAX_TOKENS", 3)
    known = Tokens()
    ended = [known.put(str(number), ann(), 0) for number in range(5)]
    assert ended == [[], [], [], ["0"], ["1"]]
    assert len(known) == 3


def test_the_newest_token_stays_when_its_time_is_over() -> None:
    """It is what tells, when a client's registration is lost, that the name was somebody's."""
    known = Tokens()
    assert known.put("a", ann(10), 50) == []
    assert known.clients == {"ann"}
    assert known.get("a") == ann(10)
    assert known.put("b", ann(20), 50) == ["a"]
    assert known.clients == {"ann"}


def test_a_token_that_is_told_twice_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old one does not become the newest by it."""
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    known = Tokens()
    for key in ("a", "b", "a"):
        assert known.put(key, ann(), 0) == []
    assert known.put("c", ann(), 0) == ["a"]


def test_a_session_that_is_stored_may_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """By time, or behind as many newer ones as a client may have; those of others do not count."""
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    known = Tokens()
    assert known.has_ended(ann(10), 10)
    assert not known.has_ended(ann(10), 9)
    known.put("b", ann(20), 0)
    known.put("bobs", SessionEntry("bob", 1, 30), 0)
    assert not known.has_ended(ann(10), 0)
    known.put("c", ann(30), 0)
    assert known.has_ended(ann(10), 0)
    assert not known.has_ended(ann(20), 0)
    assert not known.has_ended(ann(25), 0)


def test_a_removed_token_is_forgotten() -> None:
    """With its client, when it was the only one; an unknown one is nothing."""
    known = Tokens()
    known.put("a", ann(), 0)
    known.remove("a")
    known.remove("a")
    assert len(known) == 0
    assert not known.clients
