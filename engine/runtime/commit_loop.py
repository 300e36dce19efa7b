"""The heart of an engine: sequence, apply, append, and only then let anything leave.

    clients, peers, timers ──submit──▶ queue ──▶ state machine ──▶ journal ──▶ effects, answers
                                         ▲        (one batch)    (one append)       │
                                         └──── what arrived meanwhile: next batch ──┘

While an append is in flight the queue fills, so batches grow with the load by themselves (group commit); when
the processor is what is short, they also wait a little for more (`commit_delay`).
Nothing outside sees a batch before the journal has it; `read` too waits for that.

    CommitError
    ├── Overloaded           the queue is full; nothing was taken
    ├── JournalUnavailable   the journal or the reports cannot be stored, or a read may be old; what was
    │                        under way may be stored
    └── Retired              another process takes over, or this one ends; nothing was taken
"""

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from bus import crash_points
from bus.journal import MAX_RECORD_BYTES, Journal
from engine.commands import CancelAll, CancelOrder, Command, LegResult, TakingCommand, encode
from engine.events import Answered, BookChanged, Event, LegSent
from engine.runtime import order_log, order_trace
from engine.state import State
from engine.terms import OrderStatus

MAX_QUEUED_COMMANDS: Final = 50_000
MAX_CLIENTS_SHARE: Final = 25_000
"""How many of these may be one client's: its streams are read no further, and others have room."""

RESERVE_FOR_CANCELS: Final = 1_000
"""How far a CancelOrder or CancelAll that comes alone may exceed both: however much is waiting, a client can
take its risk off."""

AMPLE_COMMANDS: Final = 100
"""A batch of this many waits for no more, and is published before it is answered even if no peer follows:
beside its commands, all else that it costs is little."""

MAX_BATCH_S: Final = 0.02
"""A batch that has computed for this long takes no more commands: heartbeats and readers get their turn."""

JOURNAL_PATIENCE_S: Final = 2.0
"""With an append unanswered for longer than this, or no room for execution reports because they cannot be
stored, new commands are refused at once."""

REIGN_PATIENCE_S: Final = 4.0
"""With nothing stored for longer than this, neither a renewal of the lease nor a batch, another process may
long have taken over: reads are refused. A restart of nats-server takes less, and whoever only reads need
not hear of it."""

_WATCH_PERIOD_S: Final = 0.1

# Upper bounds of what a command takes in a record; the edge bounds its strings (engine/runtime/wire.py), the
# away view its quotes, the state machine a leg's fills.
_COMMAND_BYTES: Final = 240
_QUOTE_BYTES: Final = 40
_LEVEL_BYTES: Final = 20
_FILL_BYTES: Final = 50

_THE_END: Final = "this process ends"
_CANCELS: Final = (CancelOrder, CancelAll)
_PENDING: Final = int(OrderStatus.PENDING)

T = TypeVar("T")


class CommitError(Exception):
    """A command was not taken, or perhaps was (JournalUnavailable alone); it may be sent again as it is."""


class Overloaded(CommitError):
    """More commands are waiting than an engine may owe."""


class JournalUnavailable(CommitError):
    """What must be stored has not been for a while."""


class Retired(CommitError):
    """This process hands over to another one, or ends."""


@dataclass(slots=True)
class Batch:
    """What one journal record holds, and what came of it.

    `settled` are orders whose legs it brought back, each with the future of those who wait for that. With
    `has_peers` there are peers, who must be able to see it before a client hears of it. By
    `time.monotonic()`: when its append began, when the journal had it, when it was shown to peers. `finished`
    are the submissions that end with it, until they are answered.
    """

    number: int
    epoch: int
    time_ns: int
    commands: list[Command] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    changes: list[BookChanged] = field(default_factory=list)
    settled: list[tuple[asyncio.Future[Answered], Answered]] = field(default_factory=list)
    has_peers: bool = False
    append_began_s: float = 0.0
    committed_s: float = 0.0
    shown_s: float = 0.0
    finished: list["_Queued"] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Submission:
    """Commands that came together, and their answers: of each command the last event.

    `settling` has, by position, the future answer of each order that still has a leg out. `answered_s` is
    when all of it was answered, by `time.monotonic()`.
    """

    commands: Sequence[Command]
    answers: list[Event | None] = field(default_factory=list)
    settling: dict[int, asyncio.Future[Answered]] = field(default_factory=dict)
    answered_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Queued:
    """A submission in the queue, and who waits for it.

    `client` sent it, if it was one. With `may_take` its commands may take what peers show. Nothing that
    `done` resolves to leads back to it: such a ring would stay, with all its commands and answers, until the
    garbage collector looks, which here is after a million orders.
    """

    submission: Submission
    done: asyncio.Future[Submission]
    client: str = ""
    is_own: bool = False
    may_take: bool = True


class CommitLoop:
    """Owns the state of one engine. `run` alone changes it; everything else only queues.

    `catch_up` returns when every quote is here that was shown before it was called; `attach` gives a command
    the away quotes of this moment (None: there is nothing left to do), and `legs_planned` hears at once of
    its legs, so that no later command meets what it takes. `release` lets a committed batch's
    effects out and waits for nothing outside but room for its reports (`release_trouble` says why they cannot
    be stored); what it returns says when all can see them. `unrenewed_s` is how long ago the engine's lease
    was renewed. While no peer is known (`has_peers`), the answers of a small batch do not wait for the other
    effects. `delay_s` says how long the next batch, if it is small, should wait for more.
    """

    def __init__(
        self,
        state: State,
        journal: Journal,
        *,
        catch_up: Callable[[], Awaitable[None]],
        attach: Callable[[Command], Command | None],
        legs_planned: Callable[[Sequence[LegSent]], None],
        release: Callable[[Batch], Awaitable[Awaitable[None] | None]],
        release_trouble: Callable[[], str],
        unrenewed_s: Callable[[], float],
        has_peers: Callable[[], bool],
        delay_s: Callable[[], float],
        utc_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.state = state
        self.journal = journal
        self.queued_commands = 0
        self.retired = False
        """Set to take no more commands of others."""
        self.closed = False
        """Set when retired and idle: what the engine still owes itself is left to the next reign."""
        self.is_appending = False
        """Set while a batch is on its way to the journal."""
        self.untaken: Counter[type[CommitError]] = Counter()
        """Commands that were not taken, by why."""
        self.batch_delay_s = 0.0
        """How long the newest batch was to wait for more commands."""
        self._catch_up = catch_up
        self._attach = attach
        self._legs_planned = legs_planned
        self._release = release
        self._release_trouble = release_trouble
        self._unrenewed_s = unrenewed_s
        self._has_peers = has_peers
        self._delay_s = delay_s
        self._utc_ns = utc_ns
        self._queue: deque[_Queued] = deque()
        self._queued_of: Counter[str] = Counter()
        self._shrunk = asyncio.Event()
        self._arrived = asyncio.Event()
        self._ample = asyncio.Event()
        self._busy = False
        self._ended = False
        self._releasing_since: float | None = None
        self._stored_from = -math.inf  # when the append of the newest stored batch began: we reigned then
        self._in_flight: list[_Queued] = []
        self._reads: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._settling: dict[int, asyncio.Future[Answered]] = {}

    def submit(
        self, commands: Sequence[Command], *, client: str = "", may_take: bool = True
    ) -> asyncio.Future[Submission]:
        """Queue commands, of a client if one sent them; the future resolves when the journal has the last.

        `may_take`: among them may be orders, which must not miss a quote of a peer. Giving up on the future
        does not take a command back. Raises CommitError, having taken none.
        """
        fault = self._why_untaken(commands, client)
        if fault is not None:
            self.untaken[type(fault)] += len(commands)
            raise fault
        done = asyncio.get_running_loop().create_future()
        return self._enqueue(_Queued(Submission(commands), done, client, may_take=may_take))

    async def wait_for_share(self, client: str, more: int) -> None:
        """Wait until so many more commands of the client are within its share of the queue."""
        while self._queued_of[client] + more > MAX_CLIENTS_SHARE:
            self._shrunk.clear()
            await self._shrunk.wait()

    def submit_own(self, command: Command) -> asyncio.Future[Submission]:
        """Queue a command that the engine owes itself, such as the result of a leg: never refused.

        Once the loop is closed it is left out, and the future never resolves.
        """
        done = asyncio.get_running_loop().create_future()
        if self.closed:
            return done
        return self._enqueue(_Queued(Submission([command]), done, is_own=True, may_take=False))

    def _why_untaken(self, commands: Sequence[Command], client: str) -> CommitError | None:
        """What more commands of a client are told; None when they are taken."""
        if self.retired:
            return Retired("this process hands over to another one, or ends")
        if trouble := self.trouble():
            return JournalUnavailable(trouble)
        more = len(commands)
        reserve = RESERVE_FOR_CANCELS if more == 1 and type(commands[0]) in _CANCELS else 0
        limit = MAX_QUEUED_COMMANDS + reserve
        if self.queued_commands + more > limit:
            return Overloaded(f"{self.queued_commands} commands are waiting, {limit} is the limit")
        queued, limit = self._queued_of[client], MAX_CLIENTS_SHARE + reserve
        if client and queued + more > limit:
            return Overloaded(f"{queued} commands of this client are waiting, {limit} is the limit")
        return None

    def _enqueue(self, queued: _Queued) -> asyncio.Future[Submission]:
        crash_points.reach("command received")
        self._queue.append(queued)
        count = len(queued.submission.commands)
        self.queued_commands += count
        self._queued_of[queued.client] += count
        self._arrived.set()
        if self.queued_commands >= AMPLE_COMMANDS:
            self._ample.set()
        return queued.done

    @property
    def is_idle(self) -> bool:
        """Whether everything that was taken is in the journal and its effects were let out."""
        return not self._queue and not self._busy

    async def read(self, query: Callable[[], T]) -> T:
        """The result of `query` on the state as the journal has it; `query` must copy what it returns.

        Raises JournalUnavailable.
        """
        if self._ended:
            raise JournalUnavailable(_THE_END)
        if doubt := self.doubt():
            raise JournalUnavailable(doubt)
        if not self.is_appending:
            return query()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._reads.append((query, answer))
        return await answer

    async def run(self) -> None:
        """Commit for ever. Raises JournalError when this engine must not go on."""
        async with asyncio.TaskGroup() as group:
            answering: asyncio.Task[None] | None = None
            while True:
                self._busy = False
                await self._arrived.wait()
                self._busy = True
                await self._gather()
                waiting = len(self._queue)
                if any(queued.may_take for queued in self._queue):
                    await self._catch_up()
                batch = self._sequence(waiting)
                crash_points.reach("batch matched")
                shown = None
                if batch.commands:
                    self.is_appending = True
                    self._in_flight = batch.finished
                    order_log.sequenced(batch.number, batch.commands, batch.events)
                    batch.append_began_s = time.monotonic()
                    await self.journal.append(batch.epoch, batch.time_ns, encode(batch.commands))
                    batch.committed_s = time.monotonic()
                    self.is_appending = False
                    self._stored_from = batch.append_began_s
                    crash_points.reach("effects begun")
                    order_log.committed(batch.number, batch.commands, batch.events)
                    order_trace.committed(batch.number, batch.append_began_s, batch.commands, batch.events)
                    batch.has_peers = self._has_peers()
                    if not batch.has_peers and len(batch.commands) < AMPLE_COMMANDS:
                        self._answer(batch)
                        await asyncio.sleep(0)  # answers leave now, the rest is nobody's to wait for
                    self._releasing_since = batch.committed_s
                    shown = await self._release(batch)
                    self._releasing_since = None
                if shown is None and (answering is None or answering.done()):
                    self._answer(batch)
                else:  # the next batch need not wait until the last one is seen, only its answers
                    _answer_legs(batch)
                    answering = group.create_task(self._answer_when(shown, answering, batch))
                while self._reads:
                    query, answer = self._reads.popleft()
                    if not answer.done():
                        _read_into(answer, query)

    async def _gather(self) -> None:
        """Let what is just arriving into this batch too, up to a full record: size makes orders cheap."""
        self.batch_delay_s = self._delay_s()
        if self.batch_delay_s and self.queued_commands < AMPLE_COMMANDS:
            self._ample.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.batch_delay_s):
                    await self._ample.wait()
        gathered = 0
        while gathered != len(self._queue) and self.queued_commands * _COMMAND_BYTES < MAX_RECORD_BYTES:
            gathered = len(self._queue)
            await asyncio.sleep(0)

    async def _answer_when(
        self, shown: Awaitable[None] | None, earlier: asyncio.Task[None] | None, batch: Batch
    ) -> None:
        """Answer in the order of the batches: what changed nothing may still say what an earlier one did."""
        try:
            if shown is not None:
                await shown
            if earlier is not None:
                await earlier
        except asyncio.CancelledError:
            _fail(batch.finished, JournalUnavailable(_THE_END))
            raise
        self._answer(batch)

    def _answer(self, batch: Batch) -> None:
        """Let those know who wait: for their commands, or for an order's legs to be back."""
        crash_points.reach("effects released")
        now_s = time.monotonic()
        for queued in batch.finished:
            queued.submission.answered_s = now_s
            if not queued.done.done():
                queued.done.set_result(queued.submission)
        for future, answer in batch.settled:
            future.set_result(answer)
        batch.finished.clear()
        batch.settled.clear()
        crash_points.reach("answers given")

    async def watch(self) -> None:
        """For ever: whenever something has gone unstored for too long, tell those who wait."""
        while True:
            await asyncio.sleep(_WATCH_PERIOD_S)
            if trouble := self.trouble():
                self._give_up(JournalUnavailable(trouble))

    def end(self) -> None:
        """Take nothing more, and tell all who wait: `run` has ended, so nothing will be stored."""
        self.retired = self._ended = True
        self._give_up(JournalUnavailable(_THE_END))

    def _give_up(self, fault: JournalUnavailable) -> None:
        """Fail all who wait; keep of the queue only what has begun or is our own.

        What is in flight may be in the journal, so its clients are told to send it again unchanged.
        """
        started = [queued for queued in self._queue if queued.submission.answers]
        _fail((*self._in_flight, *self._queue), fault)
        for _, answer in self._reads:
            if not answer.done():
                answer.set_exception(fault)
        self._reads.clear()
        own = [queued for queued in self._queue if queued.is_own]
        self._queue = deque(dict.fromkeys((*started, *own)))
        self._queued_of.clear()
        for queued in self._queue:
            self._queued_of[queued.client] += len(queued.submission.commands)
        self.queued_commands = self._queued_of.total()
        self._shrunk.set()

    def trouble(self) -> str:
        """Why nothing more is taken: what must be stored was not for a while. Empty when all is well."""
        unanswered, releasing = self.journal.unanswered_since, self._releasing_since
        if unanswered is not None and time.monotonic() - unanswered > JOURNAL_PATIENCE_S:
            return f"the journal does not answer: {self.journal.trouble}"
        if releasing is not None and time.monotonic() - releasing > JOURNAL_PATIENCE_S:
            why = self._release_trouble()  # none where they are only many: then all wait
            return why and f"the execution reports cannot be stored: {why}"
        return ""

    def doubt(self) -> str:
        """Why another process may long reign: nothing showed of late that we do. Empty when all is well.

        Commands are taken all the same: the journal is asked, and its fence decides.
        """
        unconfirmed_s = min(self._unrenewed_s(), time.monotonic() - self._stored_from)
        if unconfirmed_s > REIGN_PATIENCE_S:
            return "the lease of this engine is not renewed: another process may have taken over"
        return ""

    def _sequence(self, waiting: int) -> Batch:
        """Apply the first `waiting` submissions, up to the size of a record and for MAX_BATCH_S."""
        state, queue = self.state, self._queue
        last_time_ns = state.accounts.time_ns
        time_ns = max(self._utc_ns(), last_time_ns)
        batch = Batch(self.journal.position.batch_number + 1, state.epoch, time_ns)
        state.begin_batch(batch.number, time_ns)
        room = MAX_RECORD_BYTES
        until_s = time.monotonic() + MAX_BATCH_S
        attach, apply, has_peers = self._attach, state.apply, self._has_peers()
        applied, batch_events, finished = batch.commands, batch.events, batch.finished
        while queue and len(finished) < waiting and room > _COMMAND_BYTES:
            submission, may_take = queue[0].submission, queue[0].may_take
            commands, answers = submission.commands, submission.answers
            for asked in commands[len(answers) :] if answers else commands:
                if room <= _COMMAND_BYTES or (applied and time.monotonic() > until_s):
                    break
                command = asked
                # Without peers an order finds no quotes. All else is looked at even then: an Uncross may have
                # nothing left to do, and the fills of a leg take room.
                if has_peers or not may_take:
                    attached = attach(asked)
                    if attached is None:
                        answers.append(None)
                        continue
                    command = attached
                    if command is not asked or type(command) is LegResult:
                        room -= _extra_bytes(command)
                        if room <= _COMMAND_BYTES and applied:
                            break  # it begins the next record
                room -= _COMMAND_BYTES
                events = apply(command)
                applied.append(command)
                batch_events += events
                answer = events[-1] if events else None
                answers.append(answer)
                if type(answer) is Answered and answer.status == _PENDING:
                    submission.settling[len(answers) - 1] = self._settlement(answer.order_id)
                if command is not asked:  # it has quotes
                    self._note_legs(events)
                if self._settling and type(command) is LegResult:
                    self._settle(events, batch)
            if len(answers) < len(commands):
                break
            finished.append(self._dequeue())
        self._shrunk.set()
        if not queue:
            self._queued_of.clear()  # of clients that may never come again
            self._arrived.clear()
        if not applied:  # the journal will not hear of this batch, so the state must not either
            state.begin_batch(batch.number - 1, last_time_ns)
        batch.changes = state.end_batch()
        return batch

    def _dequeue(self) -> _Queued:
        """Take the first submission off the queue."""
        queued = self._queue.popleft()
        count = len(queued.submission.commands)
        self.queued_commands -= count
        self._queued_of[queued.client] -= count
        return queued

    def _note_legs(self, events: list[Event]) -> None:
        legs = [event for event in events if type(event) is LegSent]
        if legs:
            self._legs_planned(legs)

    def _settlement(self, order_id: int) -> asyncio.Future[Answered]:
        """The answer to come when the order's legs are back; shared by all who wait for it."""
        future = self._settling.get(order_id)
        if future is None:
            future = self._settling[order_id] = asyncio.get_running_loop().create_future()
        return future

    def _settle(self, events: list[Event], batch: Batch) -> None:
        """Note for those who wait for an order's legs the answer that a leg's result brought."""
        for event in events:
            if type(event) is Answered:
                future = self._settling.pop(event.order_id, None)
                if future is not None:
                    batch.settled.append((future, event))


def _answer_legs(batch: Batch) -> None:
    """Let those know who wait for legs, at either end: what a batch changed leaves before all they send."""
    for queued in batch.finished:
        if not queued.may_take and not queued.done.done():
            queued.done.set_result(queued.submission)


def _fail(queued: Iterable[_Queued], fault: CommitError) -> None:
    """Tell all who wait for these, but not ourselves."""
    for one in queued:
        if not one.is_own and not one.done.done():
            one.done.set_exception(fault)
            one.done.exception()  # whoever gave it may be gone: that is nothing to log


def _extra_bytes(command: Command) -> int:
    """An upper bound of what a command's quotes and fills take in a record."""
    extra = 0
    if isinstance(command, TakingCommand):
        extra += sum(_QUOTE_BYTES + _LEVEL_BYTES * len(quote.levels) for quote in command.away)
    if isinstance(command, LegResult):
        extra += _FILL_BYTES * len(command.fills)
    return extra


def _read_into(answer: asyncio.Future[object], query: Callable[[], object]) -> None:
    """A query that fails is its caller's trouble, not the loop's."""
    try:
        answer.set_result(query())
    except Exception as fault:  # noqa: BLE001 -- handed on
        answer.set_exception(fault)
