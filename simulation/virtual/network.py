"""In the place of NATS: carries messages between links, each with a delay drawn from the seed.

Like one nats-server it keeps the order of each link, either way, and loses nothing; a subscription's messages
are taken one after the other. Nothing is stored here: journals and execution reports are lists in memory.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Final, NamedTuple

LINK_S: Final = (0.000_05, 0.000_25)
"""From a process to the server, or from there to a process: the shortest and the longest time."""

CALL_S: Final = (0.000_15, 0.000_6)
"""From a client to its engine, and back."""

APPEND_S: Final = (0.000_3, 0.001_5)
"""Until a batch, or a message of execution reports, is stored."""

MAX_PAYLOAD_BYTES: Final = 1_048_576
"""As nats-server has it."""

_APART_S: Final = 1e-6
"""What keeps two messages on one link in their order."""


class Delays:
    """All delays of one market, drawn from its seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"{seed}/delays")

    def draw(self, bounds: tuple[float, float]) -> float:
        """Seconds between the two."""
        return self._random.uniform(*bounds)

    def jitter(self) -> float:
        """What spreads the requests of followers: from 0 up to 1."""
        return self._random.random()


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
        group: asyncio.TaskGroup,
    ) -> None:
        self._link = link
        self._group = group
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
            self._taking = self._group.create_task(self._take_all())

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


class Network:
    """One server and its links. A fault of whoever takes a message ends the `group`."""

    def __init__(self, delays: Delays, group: asyncio.TaskGroup) -> None:
        self.delays = delays
        self.group = group
        self._links: list[Link] = []
        self._inboxes = count(1)

    def link(self) -> "Link":
        """Connect one more process."""
        link = Link(self)
        self._links.append(link)
        return link

    def new_inbox(self) -> str:
        """A subject that nobody else has."""
        return f"_INBOX.{next(self._inboxes)}"

    def route(self, message: Message) -> None:
        """A message has come to the server: it leaves for all who want it."""
        for link in self._links:
            wanting = list(link.wanting(message.subject))
            if wanting:
                link.arrive(message, wanting)


class Link:
    """One process's connection, as nats-py's client has it."""

    is_connected = True
    is_closed = False
    pending_data_size = 0
    max_payload = MAX_PAYLOAD_BYTES

    def __init__(self, network: Network) -> None:
        self.subscriptions: list[Subscription] = []
        self.stats = {"reconnects": 0}
        self._network = network
        self._up_s = self._down_s = 0.0  # when the newest message each way arrives
        self._answers: dict[str, asyncio.Future[Message]] = {}

    def new_inbox(self) -> str:
        """As nats-py has it."""
        return self._network.new_inbox()

    async def subscribe(
        self, subject: str, *, cb: Callable[[Message], Awaitable[None]], **_limits: int
    ) -> Subscription:
        """As nats-py has it; queues are not limited, as nobody is slow here."""
        subscription = Subscription(self, subject, cb, self._network.group)
        self.subscriptions.append(subscription)
        return subscription

    async def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        """As nats-py has it."""
        self._up_s = self._arrival_s(self._up_s)
        message = Message(subject, payload, reply)
        asyncio.get_running_loop().call_at(self._up_s, self._network.route, message)

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

    def wanting(self, subject: str) -> Iterator[Callable[[Message], None]]:
        """Who on this link wants messages of a subject."""
        if subject in self._answers:
            yield self._answer
        for subscription in self.subscriptions:
            if subscription.fits(subject):
                yield subscription.deliver

    def arrive(self, message: Message, wanting: list[Callable[[Message], None]]) -> None:
        """Let a message come down the link."""
        self._down_s = self._arrival_s(self._down_s)
        for take in wanting:
            asyncio.get_running_loop().call_at(self._down_s, take, message)

    def _answer(self, message: Message) -> None:
        answer = self._answers.get(message.subject)
        if answer is not None and not answer.done():
            answer.set_result(message)

    def _arrival_s(self, earlier_s: float) -> float:
        now_s = asyncio.get_running_loop().time()
        return max(now_s + self._network.delays.draw(LINK_S), earlier_s + _APART_S)
