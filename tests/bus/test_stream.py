"""Asking a stream of a cluster, whose leader may change."""

import time
from typing import cast

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

import bus.stream
from bus.stream import settled_extent


class NatsCluster:
    """Answers `STREAM.INFO` with one prepared answer after the other, the last one for ever."""

    is_connected = True
    is_closed = False

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def request(self, subject: str, timeout: float) -> Msg:  # noqa: ASYNC109 -- as in nats-py
        """The next answer."""
        assert subject == "$JS.API.STREAM.INFO.S"
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return Msg(cast("Client", self), data=answer.encode())


def ends_at(last: int, replicas: int) -> str:
    """The answer of a stream's leader."""
    return f'{{"config": {{"num_replicas": {replicas}}}, "state": {{"first_seq": 1, "last_seq": {last}}}}}'


NO_LEADER = '{"error": {"code": 503, "err_code": 10008, "description": "no leader"}}'


async def test_a_new_leader_is_asked_until_it_has_what_was_stored() -> None:
    """A cluster without a leader, and one whose leader lags, are asked again."""
    cluster = NatsCluster(NO_LEADER, ends_at(4, 3), NO_LEADER, ends_at(7, 3))
    assert (await settled_extent(cast("Client", cluster), "S", 6)).last_seq == 7


async def test_a_stream_that_stays_short_has_lost_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one server at once, in a cluster after a while: the caller hears what is there."""
    monkeypatch.setattr(bus.stream, "_STALE_S", 0.2)
    for replicas in (1, 3):
        began = time.monotonic()
        cluster = NatsCluster(ends_at(4, replicas))
        assert (await settled_extent(cast("Client", cluster), "S", 6)).last_seq == 4
        assert (time.monotonic() - began > 0.2) is (replicas == 3)
