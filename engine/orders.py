"""One order's life inside the engine, and the account it belongs to.

An order's quantity is always accounted for: quantity = cumulative + leaves + cancelled, where leaves =
open (in the book, or being matched) + reserved (out on legs, able to trade nowhere else).
"""

from bisect import bisect_right
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from engine.commands import NewOrder
from engine.events import Answered, Fill, Prevented
from engine.terms import OrderStatus

_NEW: Final = int(OrderStatus.NEW)
_PARTIALLY_FILLED: Final = int(OrderStatus.PARTIALLY_FILLED)
_FILLED: Final = int(OrderStatus.FILLED)
_CANCELLED: Final = int(OrderStatus.CANCELLED)
_REJECTED: Final = int(OrderStatus.REJECTED)
_PENDING: Final = int(OrderStatus.PENDING)

REMEMBERED_FINISHED_ORDERS: Final = 100_000
"""How many finished orders of a client keep their client order id and first answer."""

REMEMBERED_FILLS: Final = 10_000
"""How many of a client's newest fills stay at hand, up to twice as many; older ones are in the reports."""


class Landmark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Fills numbered above `sequence` came after batch `batch_number` of epoch `epoch`."""

    sequence: int
    epoch: int
    batch_number: int


def _dict_with_hashes() -> dict[str, "Order"]:
    """An empty dict for very many names, in which it costs little to find that one is not there.

    CPython keeps the hashes beside the entries of a dict that has once had a key that is no string. Otherwise
    it looks for them in the names it comes across, which are no longer in the processor's caches.
    """
    made: dict[Any, Any] = {None: None}
    del made[None]
    return made


@dataclass(slots=True)
class Account:
    """A client's orders and the newest part of its gap-free history of fills.

    `orders` holds every remembered order by client order id, `open` those that can still trade by order id,
    `pending` those of them with legs out, the lowest mark first, `finished` the rest in the order they
    finished. `traded` counts all fills there ever were, of which `fills` has the last; the `landmarks` say
    where to look for those before (docs/decisions/0010-old-fills.md).
    """

    name: str
    orders: dict[str, "Order"] = field(default_factory=_dict_with_hashes)
    open: dict[int, "Order"] = field(default_factory=dict)
    pending: OrderedDict[int, "Order"] = field(default_factory=OrderedDict)
    finished: deque["Order"] = field(default_factory=deque)
    fills: list[Fill] = field(default_factory=list)
    traded: int = 0
    landmarks: list[Landmark] = field(default_factory=list)

    @property
    def forgotten(self) -> int:
        """How many of the first fills are no longer at hand."""
        return self.traded - len(self.fills)

    def landmark(self, since: int) -> Landmark:
        """The last place before which no fill numbered above `since` is."""
        at = bisect_right(self.landmarks, since, key=lambda landmark: landmark.sequence)
        return self.landmarks[at - 1] if at else Landmark(0, 0, 0)


class Owed(NamedTuple):
    """What a command has taken and prevented so far while its answer waits for legs."""

    fills: tuple[Fill, ...]
    prevented: tuple[Prevented, ...]


NOTHING_OWED: Final = Owed((), ())


# gc=False: an order refers to its account and never the account's containers, and is dropped from those
# when it is forgotten, so the collector has nothing to find and need not walk a million resting orders.
class Order(msgspec.Struct, gc=False, eq=False):
    """An order as it stands. `account` is None for the taker of a peer's leg, which lives at its home engine.

    `worst` is the worst key of the opposite side (`engine.book`) that the order may trade at. `value` is
    the sum of price x quantity over its fills. `priority` orders the queue at a price; 0 before the order
    first rests. `mark` is how many fills its account had had when its last command began to trade.
    `answer` is the first answer; None stands for the commonest, NEW with nothing filled. `owed` is what the
    answer to a later command tells so far, while it waits for legs.
    """

    id: int
    account: Account | None
    request: NewOrder
    side: int
    price: int
    quantity: int
    open: int
    worst: int
    mark: int = 0
    reserved: int = 0
    cumulative: int = 0
    value: int = 0
    priority: int = 0
    cancelling: bool = False
    refused: bool = False
    answer: Answered | None = None
    owed: Owed = NOTHING_OWED

    @property
    def owner(self) -> Account:
        """Its account. Not for the taker of a peer's leg, nor where every order passes: a call costs."""
        assert self.account is not None
        return self.account

    @property
    def leaves(self) -> int:
        """What can still trade."""
        return self.open + self.reserved

    @property
    def is_resting(self) -> bool:
        """Whether it stands in the book."""
        return self.open > 0 and self.priority > 0

    @property
    def is_waiting(self) -> bool:
        """Whether it stands nowhere: what is open waits for legs to come back."""
        return self.open > 0 and not self.priority

    @property
    def cancelled(self) -> int:
        """What will never trade."""
        return self.quantity - self.cumulative - self.open - self.reserved

    @property
    def status(self) -> int:
        """Where the order stands (an `OrderStatus`), derived from its quantities."""
        if self.reserved:
            return _PENDING
        if self.open:
            return _PARTIALLY_FILLED if self.cumulative else _NEW
        if self.refused:
            return _REJECTED
        return _FILLED if self.cumulative == self.quantity else _CANCELLED


def without_value(answer: Answered | None) -> Answered | None:
    """A first answer as it is stored: its value, which its fills give, may be too large for any encoding."""
    return msgspec.structs.replace(answer, value=0) if answer is not None and answer.value else answer
