"""One OrderEntry stream that all of a client's orders share: queued during a message, then sent together.

    submit ──▶ queue ──up to 256 commands a message──▶ stream ──▶ engine
                 ▲                                        │
                 └── unanswered ones, same order, ── breaks        replies, in order ──▶ futures

Invariants: `_sent` then `_queue` is the order in which the commands were given. The first reply is for the
first of `_sent`. A command is given up only by its caller, at its deadline, or when the venue refuses the
stream for good; until then it is sent again, the same bytes, so the engine recognises it by its client
order id. The queue needs no bound of its own: it holds at most one command per waiting caller.

An engine with `--orders-per-second` answers a message when its last command is in, so messages hold half as
many commands after one that took more than a second, a single one after a command ran out of time without
its answer, and twice as many after each full one that was answered sooner.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

import grpc
from matchbus.v1 import matchbus_pb2 as pb

from client.errors import (
    AuthenticationFailed,
    ClientClosed,
    DataLost,
    MatchbusError,
    RequestInvalid,
    Unavailable,
)
from client.retry import Retry
from client.session import Session

_log: Final = logging.getLogger(__name__)

MAX_COMMANDS_PER_MESSAGE: Final = 256
MAX_MESSAGES_IN_FLIGHT: Final = 4

AMPLE_COMMANDS: Final = 128
"""So many commands are worth a message of their own while an earlier one has no answer yet. With fewer, one
message at a time is faster: each costs client and engine some thirty times what a command in it does."""

SLOW_S: Final = 1.0
"""A message that takes longer makes the next ones smaller. One that waits for its legs takes half of that."""

PATIENCE_S: Final = 0.005
"""How long a command may wait for the answer to an earlier message, which may itself wait for its legs."""

HELD_UP_S: Final = 0.1
"""With a deadline that is noticed so late, the event loop was held up: answers may have come meanwhile."""

TAKING_IN_S: Final = 0.25
"""How long the loop then has to take them in."""


class Pending:
    """A command that waits for its reply. `attempts` counts how often it was written to a stream."""

    __slots__ = ("answer", "attempts", "client_order_id", "command", "deadline", "ends_message", "queued_at")

    def __init__(
        self,
        command: bytes,
        client_order_id: str,
        answer: asyncio.Future[pb.OrderReply],
        queued_at: float,
        deadline: float,
    ) -> None:
        self.command = command
        self.client_order_id = client_order_id
        self.answer = answer
        self.queued_at = queued_at
        self.deadline = deadline
        self.attempts = 0
        self.ends_message = False


class OrderEntry:
    """Sends commands and matches replies. `run` does the work; `send` only queues."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Pending] = deque()
        self._sent: deque[Pending] = deque()
        self._in_flight: deque[tuple[int, float]] = deque()
        """Of each message that has no answer yet: how many commands it holds, and when it was written."""
        self._most_commands = MAX_COMMANDS_PER_MESSAGE
        self._wake = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # The deadline is each command's own (see _expire), so the stream itself never gives up.
        self._retry = Retry(session, float("inf"))
        self._ended = False
        self._trouble = ""

    def send(self, command: bytes, client_order_id: str, deadline: float | None = None) -> Pending:
        """Queue a command: the bytes of an `OrderEntryRequest` that holds just this one.

        Await `.answer` of what it returns. It raises `Unavailable` at the deadline, in the event loop's time;
        without one it has the session's `deadline_s` from now on.
        """
        if self._ended:
            raise ClientClosed("the client is closed")
        now = self._loop.time()
        if deadline is None:
            deadline = now + self._session.deadline_s
        pending = Pending(command, client_order_id, self._loop.create_future(), now, deadline)
        self._queue.append(pending)
        self._wake.set()
        if self._timer is not None and deadline < self._timer.when():
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._at_deadline)
        return pending

    async def run(self) -> None:
        """Keep a stream open while there is work, until cancelled."""
        try:
            while True:
                while not self._queue:
                    # Who comes next has nothing to do with what failed for those who have given up.
                    self._retry.progressed()
                    self._trouble = ""
                    self._wake.clear()
                    await self._wake.wait()
                generation = self._session.generation
                error = await self._serve_stream()
                status = "the stream ended" if error is None else f"{error.code().name}: {error.details()}"
                self._trouble = f", last failure: {status}"
                _log.info("order entry stream ended: %s", status)
                if self._queue:
                    await self._recover(error, generation)
        finally:
            self._ended = True
            if self._timer is not None:
                self._timer.cancel()
            _fail(
                chain(self._sent, self._queue), ClientClosed("the client was closed before the answer came")
            )

    async def _recover(self, error: grpc.aio.AioRpcError | None, generation: int) -> None:
        try:
            await self._retry.failed(error, generation)
        except (AuthenticationFailed, DataLost) as final:  # it is about us, not about a command
            self._give_up(list(self._queue), final)
        except RequestInvalid as final:
            # The venue does not say which command it means; the ones it never saw are not it.
            self._give_up([pending for pending in self._queue if pending.attempts], final)

    def _give_up(self, commands: list[Pending], error: MatchbusError) -> None:
        _fail(commands, error)
        self._queue = deque(pending for pending in self._queue if not pending.answer.done())
        self._retry.progressed()

    async def _serve_stream(self) -> grpc.aio.AioRpcError | None:
        """Use one stream until it ends; what it left unanswered goes back to the queue's front."""
        call = self._session.home.order_entry(metadata=self._session.metadata)
        reader = self._reader = asyncio.create_task(self._read(call))
        writer = asyncio.create_task(self._write(call))
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                # A write fails only on a stream that is over; the reader then ends too and knows why.
                if not writer.cancelled():
                    writer.result()
                await asyncio.wait((reader,))
        finally:
            reader.cancel()
            writer.cancel()
            call.cancel()
            await asyncio.wait((reader, writer))
            self._reader = None
            self._in_flight.clear()
            for pending in reversed(self._sent):
                pending.ends_message = False
                if not pending.answer.done():
                    self._queue.appendleft(pending)
            self._sent.clear()
        if reader.cancelled():
            return None
        broken = reader.exception()
        if broken is None or isinstance(broken, grpc.aio.AioRpcError):
            return broken
        raise broken

    async def _write(self, call: Any) -> None:
        queue, sent = self._queue, self._sent
        while True:
            while not self._is_message_due():
                self._wake.clear()
                due = self._loop.call_later(PATIENCE_S, self._wake.set) if queue else None
                await self._wake.wait()
                if due is not None:
                    due.cancel()
            commands: list[bytes] = []
            now = self._loop.time()
            while queue and len(commands) < self._most_commands:
                pending = queue.popleft()
                if pending.deadline <= now:  # in an event loop that was held up it is first seen here
                    self._fail_late((pending,), now)
                elif not pending.answer.done():
                    pending.attempts += 1
                    commands.append(pending.command)
                    sent.append(pending)
            if not commands:
                continue
            sent[-1].ends_message = True
            self._in_flight.append((len(commands), now))
            try:
                # Serialised protobuf messages, one after the other, are the message with all their commands.
                await call.write(b"".join(commands))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return

    def _is_message_due(self) -> bool:
        """Whether what is queued should go now."""
        queue, in_flight = self._queue, len(self._in_flight)
        if not queue or not in_flight:
            return bool(queue)
        if in_flight >= MAX_MESSAGES_IN_FLIGHT:
            return False
        return len(queue) >= AMPLE_COMMANDS or self._loop.time() - queue[0].queued_at >= PATIENCE_S

    async def _read(self, call: Any) -> None:
        sent = self._sent
        async for response in call:
            self._retry.progressed()
            self._trouble = ""
            for reply in response.replies:
                if not sent:
                    _log.error("the engine sent more replies than there were commands")
                    return
                pending = sent.popleft()
                if pending.ends_message:
                    pending.ends_message = False
                    self._learn_pace(*self._in_flight.popleft())
                    self._wake.set()
                if not pending.answer.done():
                    pending.answer.set_result(reply)

    def _learn_pace(self, commands: int, written_at: float) -> None:
        """Say how many commands the next messages hold, now that one of so many `commands` is answered."""
        if self._loop.time() - written_at > SLOW_S:
            self._most_commands = min(self._most_commands, max(1, commands // 2))
        elif commands >= self._most_commands:
            self._most_commands = min(2 * commands, MAX_COMMANDS_PER_MESSAGE)

    def _at_deadline(self) -> None:
        """Give up on commands whose time is over, unless the answers to those sent may be there unread."""
        assert self._timer is not None
        if self._loop.time() - self._timer.when() <= HELD_UP_S:
            self._expire()
            return
        self._fail_late(self._queue, self._loop.time())  # which must not leave now
        self._timer = self._loop.call_later(TAKING_IN_S, self._expire)

    def _expire(self) -> None:
        """Give up on commands whose time is over. A stream that left one unanswered is not to be trusted."""
        now = self._loop.time()
        overdue = bool(self._sent) and self._sent[0].deadline <= now
        # One that was sent with little time left says nothing about the stream.
        had_time_s = min(SLOW_S, self._session.deadline_s / 2)
        if overdue and now - self._in_flight[0][1] > had_time_s and self._reader is not None:
            self._reader.cancel()
            self._most_commands = 1
        self._fail_late(chain(self._sent, self._queue), now)
        while self._queue and self._queue[0].answer.done():
            self._queue.popleft()
        waiting = [pending.deadline for pending in chain(self._sent, self._queue) if pending.deadline > now]
        self._timer = self._loop.call_at(min(waiting), self._at_deadline) if waiting else None

    def _fail_late(self, commands: Iterable[Pending], now: float) -> None:
        for pending in commands:
            if pending.deadline <= now and not pending.answer.done():
                pending.answer.set_exception(
                    Unavailable(
                        f"no answer within {self._session.deadline_s:g} s{self._trouble}",
                        sent=pending.attempts > 0,
                        client_order_id=pending.client_order_id,
                    )
                )


def _fail(commands: Iterable[Pending], error: MatchbusError) -> None:
    for pending in commands:
        if not pending.answer.done():
            told = type(error)(*error.args)  # one for each, with the id of its own command
            told.sent, told.client_order_id = pending.attempts > 0, pending.client_order_id
            pending.answer.set_exception(told)
