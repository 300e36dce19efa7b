"""In the place of NATS: carries messages between links, each with a delay drawn from the seed.

Like one nats-server it keeps the order of each link, either way, and loses nothing; a subscription's messages
are taken one after the other. Nothing is stored here: journals and execution reports are lists in memory.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from typing import Any, Final, NamedTuple, TypeVar

from simulation.virtual.delays import Delays

MAX_PAYLOAD_BYTES: Final = 1_048_576
"""As nats-server has it."""

_APART_S: Final = 1e-6
"""What keeps two messages on one link in their order."""

T = TypeVar("T")


class Message(NamedTuple):
    """As nats-py hands a message on."""

    subject: str
    data: bytes
    reply: str = ""


class Subscription:
    """One link's interest in some subjects; takes its messages one after the other."""

    def __init__(
        self,
        link: "Link",
        pattern: str,
        take: Callable[[Message], Awaitable[None]],
    ) -> None:
        self._link = link
        self._pattern = pattern.split(".")
        self._take = take
        self._waiting: deque[Message] = deque()
        self._taking: asyncio.Task[None] | None = None

    def fits(self, subject: str) -> bool:
        """Whether a subject is one of these: `*` stands for one token, `>` for all that follow."""
        tokens = subject.split(".")
        for place, wanted in enumerate(self._pattern):
            if wanted == ">":
                return len(tokens) > place
            if place == len(tokens) or wanted not in ("*", tokens[place]):
                return False
        return len(tokens) == len(self._pattern)

    def deliver(self, message: Message) -> None:
        """A message has arrived."""
        if self not in self._link.subscriptions:
            return
        self._waiting.append(message)
        if self._taking is None:
            self._taking = self._link.life.create_task(self._take_all())

    async def _take_all(self) -> None:
        try:
            while self._waiting:
                await self._take(self._waiting.popleft())
        finally:
            self._taking = None

    async def unsubscribe(self) -> None:
        """Take no more."""
        self._waiting.clear()
        self._link.subscriptions.remove(self)


class Life:
    """The tasks of one process. A fault of one ends the `group`; `end` ends them all, as SIGKILL would.

    While it `is_frozen` nothing comes to the process or leaves it, and its journal takes nothing.
    """

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.over = asyncio.Event()
        self.thawed = asyncio.Event()
        """Not set while whoever deals with this process waits for it, as it is frozen and may go on."""
        self.thawed.set()
        self._freezes = 0
        self.ways: list[_Way] = []
        """What it holds up while it is frozen."""
        self._group = group
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in order, as a set is not

    def create_task(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """As a group does."""
        task = self._group.create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    @property
    def is_frozen(self) -> bool:
        """Whether nothing passes just now; of a process that ended so, nothing ever will."""
        return self._freezes > 0

    async def freeze(self, lasts_s: float) -> None:
        """Hold everything up for a while, or until cancelled; then let it go on, in its order."""
        self._freezes += 1
        self.thawed.clear()
        try:
            await asyncio.sleep(lasts_s)
        finally:
            if not self.over.is_set():
                self._freezes -= 1
                if not self._freezes:
                    self.thawed.set()
                    for way in self.ways:
                        way.go_on()

    def end(self) -> None:
        """Nothing of it goes on, and what was held up is gone; nobody waits for that any longer."""
        self.over.set()
        self.thawed.set()
        for task in list(self._tasks):
            task.cancel()


class Network:
    """One server and its links."""

    def __init__(self, delays: Delays) -> None:
        self.delays = delays
        self._links: list[Link] = []
        self._inboxes = count(1)

    def link(self, life: Life) -> "Link":
        """Connect one more process."""
        link = Link(self, life)
        self._links.append(link)
        return link

    def new_inbox(self) -> str:
        """A subject that nobody else has."""
        return f"_INBOX.{next(self._inboxes)}"

    def route(self, message: Message) -> None:
        """A message has come to the server: it leaves for all who want it."""
        self._links = [link for link in self._links if not link.is_closed]
        for link in self._links:
            if link.wants(message.subject):
                link.arrive(message)


class Link:
    """One process's connection, as nats-py's client has it. While its process is frozen nothing passes."""

    is_connected = True
    pending_data_size = 0
    max_payload = MAX_PAYLOAD_BYTES

    def __init__(self, network: Network, life: Life) -> None:
        self.life = life
        self.subscriptions: list[Subscription] = []
        self.stats = {"reconnects": 0}
        self._network = network
        self._up = _Way(network.delays, life, network.route)
        self._down = _Way(network.delays, life, self._take)
        self._answers: dict[str, asyncio.Future[Message]] = {}

    @property
    def is_closed(self) -> bool:
        """Whether its process has ended."""
        return self.life.over.is_set()

    def new_inbox(self) -> str:
        """As nats-py has it."""
        return self._network.new_inbox()

    async def subscribe(
        self, subject: str, *, cb: Callable[[Message], Awaitable[None]], **_limits: int
    ) -> Subscription:
        """As nats-py has it; queues are not limited, as nobody is slow here."""
        subscription = Subscription(self, subject, cb)
        self.subscriptions.append(subscription)
        return subscription

    async def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        """As nats-py has it."""
        self._up.send(Message(subject, payload, reply))

    async def request(self, subject: str, payload: bytes, timeout: float) -> Message:  # noqa: ASYNC109 -- nats-py's
        """As nats-py has it, but that nobody here asks with a timeout: who waits no longer cancels it."""
        assert timeout == math.inf
        inbox = self.new_inbox()
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[inbox] = answer
        try:
            await self.publish(subject, payload, inbox)
            return await answer
        finally:
            del self._answers[inbox]

    def wants(self, subject: str) -> bool:
        """Whether messages of a subject are to come here."""
        return subject in self._answers or any(one.fits(subject) for one in self.subscriptions)

    def arrive(self, message: Message) -> None:
        """Let a message come down the link."""
        self._down.send(message)

    def _take(self, message: Message) -> None:
        if self.is_closed:
            return
        answer = self._answers.get(message.subject)
        if answer is not None and not answer.done():
            answer.set_result(message)
        for subscription in self.subscriptions:
            if subscription.fits(message.subject):
                subscription.deliver(message)


class _Way:
    """One direction of a link: messages arrive in the order in which they left."""

    def __init__(self, delays: Delays, life: Life, arrive: Callable[[Message], None]) -> None:
        self._delays = delays
        self._life = life
        self._arrive = arrive
        self._newest_s = 0.0  # when the newest message arrives
        self._under_way: deque[Message] = deque()
        self._late = 0  # how many of them should have arrived
        life.ways.append(self)

    def send(self, message: Message) -> None:
        """Let a message leave."""
        loop = asyncio.get_running_loop()
        self._newest_s = max(loop.time() + self._delays.link_s(), self._newest_s + _APART_S)
        self._under_way.append(message)
        loop.call_at(self._newest_s, self._pass_on)

    def _pass_on(self) -> None:
        self._late += 1
        if not self._life.is_frozen:
            self.go_on()

    def go_on(self) -> None:
        """Let arrive whatever should have by now."""
        while self._late:
            self._late -= 1
            self._arrive(self._under_way.popleft())
