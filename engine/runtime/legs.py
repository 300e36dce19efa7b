"""Legs between engines, carried over NATS request and reply until each has its one, final answer.

The sender never assumes: a leg without an answer is queried until the peer, perhaps in its next reign, says
what it did or that it never will (a tombstone). Until then its quantity stays reserved. The receiver
journals a leg with its result before it answers, and answers a known leg the same again.

One command may send a leg for each of very many orders. Only so many are under way to one peer at a time; the
others wait in order. Nobody knows yet of a leg that waits, and after a restart it is queried like any
other, in turns with new ones.
"""

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import crash_points, subjects
from bus.messages import (
    NO_MESSAGE,
    Leg,
    LegAnswer,
    LegQuery,
    decode_leg_answer,
    decode_route,
    encode,
    engine_of_id,
)
from bus.metrics import Histogram
from bus.replica import BookReplica
from engine.commands import LegFill, LegResult, QueryLeg, TakeLeg
from engine.events import LegSent, LegTaken
from engine.runtime import order_trace
from engine.runtime.away import AwayView
from engine.runtime.commit_loop import CommitError, CommitLoop, Submission
from engine.terms import MAX_LEG_FILLS, MAX_PRICE, MAX_SYMBOL_LENGTH, Side

ANSWER_PATIENCE_S: Final = 0.25
MAX_ANSWER_PATIENCE_S: Final = 2.0
"""How long the query of a leg waits in the end: no link may be too slow for the doubt to end."""

RETRY_S: Final = 0.1
MAX_RETRY_S: Final = 1.0
MAX_LEGS_UNDER_WAY: Final = 256
"""Legs that are on their way to one peer, or queried, at a time.

45,000 legs took 65 s with 64 at a time, 22 s with 256; with 1,024 the orders of others waited a second.
"""

REFUSED_PATIENCE_S: Final = 1.0
"""How long an order whose leg was refused waits until the quotes of the peer count again: in those of its new
reign the order may find what it was after."""

TELL_S: Final = 10.0
"""At most one line of the log in this time says that a peer's legs have no answer, and one that peers' legs
get none: each is queried again and again while a journal is full, and that may be for days."""

MAX_PENDING_LEGS: Final = 20_000
"""Legs of peers waiting to be read; one left out is queried by its sender."""

SENT_OUTCOMES: Final = ("filled", "partial", "empty", "refused")
TAKEN_OUTCOMES: Final = ("filled", "empty", "refused")
"""The engine that takes a leg counts it as filled if any part of it traded."""

_LOOK_S: Final = 0.02
_INT64_MAX: Final = 2**63 - 1
_UINT64_MAX: Final = 2**64 - 1

_log: Final = logging.getLogger("routing")


class _Told:
    """Counts what may happen very often, for a line of the log every TELL_S at most."""

    def __init__(self) -> None:
        self.since = 0
        self._told_s = -math.inf

    def count(self) -> int:
        """One more; how many since the last line when the next one is due, else 0."""
        self.since += 1
        now_s = time.monotonic()
        if now_s - self._told_s < TELL_S:
            return 0
        since, self.since, self._told_s = self.since, 0, now_s
        return since


@dataclass(slots=True)
class _Lane:
    """Our legs to one peer: how many are under way, and those that wait behind them."""

    under_way: int = 0
    waiting: deque[LegSent] = field(default_factory=deque)
    earlier: deque[LegSent] = field(default_factory=deque)
    """Those that an earlier run of this engine may have sent."""

    is_earliers_turn: bool = False
    queried: _Told = field(default_factory=_Told)

    def take(self) -> tuple[LegSent, bool] | None:
        """The next leg, and whether an earlier run may have sent it; None when none waits.

        Orders of this run wait for its legs, and only take-over or restart makes the others so many: they
        take turns.
        """
        self.is_earliers_turn = not self.is_earliers_turn
        if self.earlier and (self.is_earliers_turn or not self.waiting):
            return self.earlier.popleft(), True
        return (self.waiting.popleft(), False) if self.waiting else None


class Legs:
    """Both ends of the legs of one engine.

    `replicas` are this engine's own books as published. `catch_up` returns when all is here that NATS had for
    this engine when it was called.
    """

    def __init__(
        self,
        nc: Client,
        engine: int,
        loop: CommitLoop,
        away: AwayView,
        replicas: dict[str, BookReplica],
        group: asyncio.TaskGroup,
        *,
        catch_up: Callable[[], Awaitable[None]],
    ) -> None:
        self._nc = nc
        self._engine = engine
        self._loop = loop
        self._away = away
        self._replicas = replicas
        self._group = group
        self._catch_up = catch_up
        self._lanes: dict[int, _Lane] = {}
        self.sent: Counter[str] = Counter()
        """Our legs that are back, by outcome."""
        self.taken: Counter[str] = Counter()
        """Peers' legs that were answered, by outcome."""
        self.questions = 0
        """How often a leg without an answer was queried."""
        self._left_out = _Told()  # legs of peers
        self.waits = Histogram()
        """Seconds from when a leg left, or was first queried, to its answer."""

    async def serve(self) -> None:
        """Start to take legs of peers."""
        await self._nc.subscribe(
            subjects.route(self._engine), cb=self._on_request, pending_msgs_limit=MAX_PENDING_LEGS
        )

    def send(self, leg: LegSent) -> None:
        """Carry a leg that the journal has."""
        lane = self._lane_to(leg.peer)
        lane.waiting.append(leg)
        self._carry_more(lane)

    def resume(self, leg: LegSent) -> None:
        """Query a leg that an earlier run of this engine sent, or was to send.

        What the peer shows is not reduced by it. The peer has its result already, and the feed shows that; or
        never heard of it, and buries it; or it is under way: whatever the earlier run published comes before
        our query, so the leg can take something only within the first round trip. An order that goes for
        the same quote then comes back short and is planned again, which costs time. Subtracting the leg would
        cost orders a better price until its lane is empty: nothing tells the few legs that may still take
        something from the very many that only wait for our query.
        """
        lane = self._lane_to(leg.peer)
        lane.earlier.append(leg)
        self._carry_more(lane)

    def _lane_to(self, peer: int) -> _Lane:
        return self._lanes.setdefault(peer, _Lane())

    def _carry_more(self, lane: _Lane) -> None:
        if lane.under_way < MAX_LEGS_UNDER_WAY:
            lane.under_way += 1
            self._group.create_task(self._carry_on(lane))

    async def _carry_on(self, lane: _Lane) -> None:
        """Carry one leg after the other until none waits."""
        while (taken := lane.take()) is not None:
            leg, is_resumed = taken
            await self._carry(lane, leg, is_resumed=is_resumed)
            if self._loop.retired:
                break  # the next reign queries those that wait; this one would have to last for them
        lane.under_way -= 1

    async def _carry(self, lane: _Lane, leg: LegSent, *, is_resumed: bool) -> None:
        """Ask until there is an answer, then let the state machine know."""
        query = encode(LegQuery(leg.leg_id, self._engine))
        await self._connected()
        crash_points.reach("leg about to leave")
        left_s = time.monotonic()
        answer = await self._ask(leg, query if is_resumed else self._message(leg), ANSWER_PATIENCE_S)
        wait_s, patience_s = RETRY_S, ANSWER_PATIENCE_S
        while answer is None:
            crash_points.reach("leg queried")
            self._away.leg_unanswered(leg.peer)
            self.questions += 1
            if questions := lane.queried.count():
                fields = {**_named(leg), "questions": questions}
                _log.warning("legs have no answer: querying them, this one among others", extra=fields)
            await asyncio.sleep(wait_s)
            await self._connected()
            answer = await self._ask(leg, query, patience_s)
            wait_s = min(2 * wait_s, MAX_RETRY_S)
            patience_s = min(2 * patience_s, MAX_ANSWER_PATIENCE_S)
        crash_points.reach("leg answered")
        self._away.leg_answered(leg, answer)
        fills = tuple(LegFill(*fill) for fill in answer.fills)
        filled = sum(fill.quantity for fill in fills)
        outcome = _outcome(filled, leg.quantity, refused=answer.refused)
        self.sent[outcome] += 1
        self.waits.observe(time.monotonic() - left_s)
        _log.debug("leg answered", extra={**_named(leg), "filled": filled, "quantity": leg.quantity})
        order_trace.leg_answered(leg, left_s, outcome, filled)
        if answer.refused:
            await self._await_quotes(leg)
        # Only then does the next leg leave: or results would fill the queue in front of clients' orders.
        await self._loop.submit_own(LegResult(leg.leg_id, fills))

    async def _await_quotes(self, leg: LegSent) -> None:
        """Wait a while until what the peer shows counts."""
        until_s = time.monotonic() + REFUSED_PATIENCE_S
        while not self._away.counts(leg.peer, leg.symbol) and time.monotonic() < until_s:  # noqa: ASYNC110 -- time may end it
            await asyncio.sleep(_LOOK_S)

    async def _connected(self) -> None:
        """Wait until questions can leave: asked meanwhile, they would all leave together afterwards."""
        while not self._nc.is_connected:  # noqa: ASYNC110 -- nats-py tells only the connection's owner
            await asyncio.sleep(RETRY_S)

    def _message(self, leg: LegSent) -> bytes:
        """The leg as it leaves."""
        _log.debug(
            "leg sent",
            extra={
                **_named(leg),
                "side": Side(leg.side).name,
                "quantity": leg.quantity,
                "symbol": leg.symbol,
                "limit": leg.limit,
            },
        )
        return encode(
            Leg(
                leg.leg_id,
                self._engine,
                leg.peer_epoch,
                leg.order_id,
                leg.symbol,
                leg.side,
                leg.limit,
                leg.quantity,
                leg.settled_below,
            )
        )

    async def _ask(self, leg: LegSent, message: bytes, patience_s: float) -> LegAnswer | None:
        """One request; None when there is no answer in time, or none that can be the leg's."""
        request = self._nc.request(subjects.route(leg.peer), message, timeout=math.inf)
        asking = asyncio.ensure_future(request)
        try:
            await asyncio.wait((asking,), timeout=patience_s)
            if not asking.done():  # its answer may be waiting to be read: this engine may have been held up
                await self._catch_up()
            if not asking.done():
                return None
            answer = decode_leg_answer(asking.result().data)
        except (TimeoutError, nats.errors.Error):
            return None
        except NO_MESSAGE as error:
            _log.error("E%d sent something that is not an answer to leg %d: %s", leg.peer, leg.leg_id, error)
            return None
        finally:
            asking.cancel()
        if not _fits(leg, answer):
            _log.error("E%d sent an impossible answer to leg %d: %r", leg.peer, leg.leg_id, answer)
            return None
        return answer

    async def _on_request(self, request: Msg) -> None:
        try:
            message = decode_route(request.data)
        except NO_MESSAGE as error:
            _log.warning("ignored a message that is not a leg: %s", error)
            return
        if not request.reply or not _is_plausible(message):
            _log.warning("ignored an impossible leg: %.200r", message)
            return
        command: TakeLeg | QueryLeg
        if isinstance(message, LegQuery):
            command = QueryLeg(message.leg_id, message.sender)
        else:
            command = TakeLeg(*(getattr(message, name) for name in TakeLeg.__struct_fields__))
        crash_points.reach("leg received")
        try:
            done = self._loop.submit([command], may_take=False)
        except CommitError as fault:
            self._tell_left_out(message, fault)
            return
        answering = self._answer(request.reply, message, done)
        try:
            self._group.create_task(answering)
        except RuntimeError:  # the engine ends, and the group takes no more: queried, the next reign answers
            answering.close()

    def _tell_left_out(self, message: Leg | LegQuery, fault: CommitError) -> None:
        """Log that legs of peers are not taken, or not stored yet, naming one of them."""
        if left_out := self._left_out.count():
            fields = {"leg": message.leg_id, "peer": message.sender, "left_out": left_out}
            _log.warning(
                "legs of peers are left without an answer, this one among others: %s", fault, extra=fields
            )

    async def _answer(self, reply: str, message: Leg | LegQuery, done: asyncio.Future[Submission]) -> None:
        """Answer a peer once the journal has the result."""
        try:
            taken = (await done).answers[0]
        except CommitError as fault:
            self._tell_left_out(message, fault)
            return
        assert isinstance(taken, LegTaken)
        crash_points.reach("leg journaled")
        replica = self._replicas.get(taken.symbol)
        fills = tuple(
            (fill.execution_id, fill.price, fill.quantity, fill.contra_order_id, fill.time_ns)
            for fill in taken.fills
        )
        self.taken["refused" if taken.refused else "filled" if fills else "empty"] += 1
        answer = LegAnswer(taken.leg_id, taken.refused, replica.sequence if replica else 0, fills)
        try:
            await self._nc.publish(reply, encode(answer))
            crash_points.reach("leg answer sent")
        except nats.errors.Error as error:
            _log.warning("leg %d is answered later: %r", taken.leg_id, error)


def _named(leg: LegSent) -> dict[str, int]:
    """The fields by which a log line names a leg."""
    return {"order": leg.order_id, "leg": leg.leg_id, "peer": leg.peer}


def _outcome(filled: int, quantity: int, *, refused: bool) -> str:
    """What came of a leg, in one of `SENT_OUTCOMES`."""
    if refused:
        return "refused"
    if not filled:
        return "empty"
    return "filled" if filled == quantity else "partial"


def _is_plausible(message: Leg | LegQuery) -> bool:
    """Whether a message has a sender of its leg, and numbers and names that a journal record can hold."""
    if not 1 <= message.sender <= subjects.MAX_ENGINE or engine_of_id(message.leg_id) != message.sender:
        return False
    if isinstance(message, LegQuery):
        return True
    numbers = (message.peer_epoch, message.side, message.limit, message.quantity)
    return (
        all(0 <= number <= _INT64_MAX for number in numbers)
        and 0 <= message.order_id <= _UINT64_MAX
        and 0 <= message.settled_below <= _UINT64_MAX
        and len(message.symbol) <= MAX_SYMBOL_LENGTH
    )


def _fits(leg: LegSent, answer: LegAnswer) -> bool:
    """Whether this can be the answer to the leg: its id, no more than it asked, none worse than its limit."""
    sign = 1 if leg.side == Side.BUY else -1
    return (
        answer.leg_id == leg.leg_id
        and 0 <= answer.book_sequence <= _INT64_MAX
        and len(answer.fills) <= MAX_LEG_FILLS
        and all(0 <= number <= _UINT64_MAX for fill in answer.fills for number in fill)
        and sum(quantity for _, _, quantity, _, _ in answer.fills) <= leg.quantity
        and all(
            0 < price <= MAX_PRICE
            and sign * price <= sign * leg.limit
            and quantity > 0
            and time_ns <= _INT64_MAX
            for _, price, quantity, _, time_ns in answer.fills
        )
    )
