"""`matchbus handover`: a planned hand-over, as its caller sees it.

The reigning process agrees, and the standby serves.

HandoverFailed   nobody handed over, or nobody was there to go on; the text says why
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import nats.errors
from grpc_health.v1 import health_pb2_grpc
from matchbus import tls
from nats.aio.client import Client
from rich.console import Console

from bus import messages, subjects
from bus.connection import Patience
from bus.messages import EngineEntry, HandoverRequest
from bus.registry import Bucket, BucketUnavailable, engines_bucket
from bus.stream import StreamError
from simulation.member import serves
from simulation.nats_option import add_engine_options, connected

ANSWER_TIMEOUT_S: Final = 10.0
"""How long the reigning process may take to finish what it has."""

SERVE_TIMEOUT_S: Final = 10.0
"""How long the standby may take to serve."""

_HOW_TO_STAND_BY: Final = (
    "start one: `matchbus up --standbys 1`, or `engine --number N --standby` beside the others"
)

_POLL_S: Final = 0.005


class HandoverFailed(Exception):
    """There was no hand-over; `hint` says what to do, where that is known."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Done:
    """Who reigned, who reigns, and the milliseconds from the request to the new one serving."""

    old: EngineEntry
    new: EngineEntry
    outage_ms: float


def add_parser(commands: Any) -> None:
    """Add `handover` to the sub-commands of `matchbus`, or of `matchbus admin`."""
    what = "let the standby of an engine take over, without a crash"
    parser = commands.add_parser("handover", help=what, description=what)
    add_engine_options(parser, instead_of="a sentence")


async def run(options: argparse.Namespace, console: Console) -> int:
    """Hand an engine over; the exit code. Raises as `hand_over` does."""
    with Console(stderr=True).status(f"handing E{options.engine} over"):
        done = await hand_over(options.nats, options.engine)
    if options.json:
        answer = {
            "engine": options.engine,
            "old_address": done.old.address,
            "new_address": done.new.address,
            "epoch": done.new.epoch,
            "outage_ms": round(done.outage_ms, 1),
        }
        print(json.dumps(answer))
        return 0
    console.print(
        f"E{options.engine} reigned at {done.old.address} and reigns at {done.new.address} in epoch "
        f"{done.new.epoch}. Outage: {done.outage_ms:.0f} ms.",
        soft_wrap=True,
    )
    return 0


async def hand_over(nats_url: str, engine: int) -> Done:
    """Have the engine handed over and return when the new process serves.

    Raises HandoverFailed, and `NatsAway` at the start.
    """
    try:
        async with connected(nats_url, "handover") as nc:
            return await _hand_over(nc, engine)
    except (BucketUnavailable, StreamError) as error:
        raise HandoverFailed(str(error)) from error


async def _hand_over(nc: Client, engine: int) -> Done:
    try:
        subject = subjects.handover(engine)
    except ValueError as error:
        raise HandoverFailed(str(error)) from error
    bucket = engines_bucket(nc)
    old = await bucket.get(str(engine))
    if old is None:
        raise HandoverFailed(f"there is no engine {engine} in this market")
    began = time.monotonic()
    try:
        answer = await nc.request(subject, messages.encode(HandoverRequest(engine)), timeout=ANSWER_TIMEOUT_S)
        refusal = messages.decode_handover_reply(answer.data).error
    except nats.errors.NoRespondersError:
        raise HandoverFailed(f"no process reigns as engine {engine} with a journal just now") from None
    except (nats.errors.Error, msgspec.MsgspecError) as fault:
        raise HandoverFailed(f"engine {engine} gave no answer: {fault}; see its log") from fault
    if refusal:
        raise HandoverFailed(refusal, _HOW_TO_STAND_BY if "no standby" in refusal else "")
    try:
        async with Patience(SERVE_TIMEOUT_S):
            new = await _successor(bucket, old)
    except TimeoutError:
        raise HandoverFailed(f"nobody serves as engine {engine} after {SERVE_TIMEOUT_S:g} s") from None
    return Done(old, new, (time.monotonic() - began) * 1e3)


async def _successor(bucket: Bucket[EngineEntry], old: EngineEntry) -> EngineEntry:
    """The entry of the next reign, once it serves."""
    new = old
    while new.epoch <= old.epoch:
        await asyncio.sleep(_POLL_S)
        new = await bucket.get(str(old.engine)) or old
    async with tls.channel(new.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while not await serves(health):  # noqa: ASYNC110 -- another process sets no event
            await asyncio.sleep(_POLL_S)
    return new
