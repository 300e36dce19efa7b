"""A cluster in which one answer comes from a server that has just woken, and believes that it still leads."""

import pytest
from msgspec.structs import replace
from nats.aio.client import Client

import bus.stream
from bus.stream import Extent, Stored


def wakes(monkeypatch: pytest.MonkeyPatch, answers: int = 1) -> list[None]:
    """The next `answers` questions for a message are answered so: there is none; the answers still to come.

    How far the stream goes, another server says, which leads it.
    """
    ask, get = bus.stream.extent, bus.stream._get
    behind: list[None] = [None] * answers

    async def extent(nc: Client, stream: str) -> Extent:
        return replace(await ask(nc, stream), replicas=3)

    async def message(nc: Client, stream: str, question: dict[str, int | str]) -> Stored | None:
        return behind.pop() if behind else await get(nc, stream, question)

    monkeypatch.setattr(bus.stream, "extent", extent)
    monkeypatch.setattr(bus.stream, "_get", message)
    return behind
