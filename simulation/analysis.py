"""Sums up a recording for its report: volume, routing, latency, profit, outages. Pure.

Times are seconds since the clients began, money is in the unit that prices are in.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from bus.messages import engine_of_id
from simulation.plots import Bin, Point
from simulation.recording import EngineStrike, SentCall, SentOrder, StateChange, TimedFill

LATENCY_BINS_A_DECADE: Final = 10
OUTAGE_WINDOW_S: Final = 20.0
"""How long after a strike a silence is put down to it, unless the engine is struck again first."""

ROUTED: Final = "routed"
AT_HOME: Final = "at home"


class Silence(NamedTuple):
    """A stretch of time in which clients waited for answers; `until_s` is None when none came any more."""

    since_s: float
    until_s: float | None

    @property
    def lasted_s(self) -> float | None:
        """How long clients had no answer."""
        return None if self.until_s is None else self.until_s - self.since_s

    def within(self, end_s: float) -> float:
        """How long it lasted up to a time."""
        return (end_s if self.until_s is None else min(self.until_s, end_s)) - self.since_s


class Outage(NamedTuple):
    """What clients noticed of a strike: the longest silence of the struck engine, and of others meanwhile.

    Either is None where no client at home there waited for an answer. `live_s` is when the exchange first saw
    the engine live again: None where it never saw it otherwise, or not again. A strike that missed has none
    of them.
    """

    strike: EngineStrike
    silence: Silence | None
    elsewhere_s: float | None
    live_s: float | None


class Books(NamedTuple):
    """One kind of agent over time: its gains, and what its holdings are worth (below 0: it is short)."""

    profit: list[tuple[float, float]]
    worth: list[tuple[float, float]]


def trades(fills: Iterable[TimedFill]) -> list[TimedFill]:
    """Every trade once, as its taker saw it."""
    return [one for one in fills if one.fill.liquidity == "taker"]


def in_order(fills: Iterable[TimedFill]) -> list[TimedFill]:
    """By time; those of one batch have the same time, and are in the order in which they were made."""
    return sorted(fills, key=lambda one: (one.at_s, one.fill.execution_id))


def value_of(one: TimedFill) -> float:
    """What was paid."""
    return float(one.fill.price * one.fill.quantity)


def is_routed(one: TimedFill) -> bool:
    """Whether an order traded on another engine than its own, through a leg."""
    return engine_of_id(one.fill.order_id) != one.fill.engine


def volume_by_engine(fills: Sequence[TimedFill], end_s: float, count: int) -> list[Bin]:
    """The value traded on each engine in each of `count` equal stretches."""
    return _binned([(one.at_s, f"E{one.fill.engine}", value_of(one)) for one in trades(fills)], end_s, count)


def answers_by_engine(orders: Iterable[SentOrder], end_s: float, count: int) -> list[Bin]:
    """How many orders were answered in each stretch, by the engine that their clients are at home on."""
    answered = [(one.answered_s, f"E{one.engine}", 1.0) for one in orders if one.answered_s is not None]
    return _binned(answered, end_s, count)


def share_routed(fills: Sequence[TimedFill], end_s: float, count: int) -> list[Point]:
    """What percentage of the value traded came through legs, at the middle of each stretch."""
    parted = [(one.at_s, ROUTED if is_routed(one) else AT_HOME, value_of(one)) for one in trades(fills)]
    points: list[Point] = []
    for stretch in _binned(parted, end_s, count):
        total = sum(stretch.values.values())
        share = 100 * stretch.values.get(ROUTED, 0.0) / total if total else None
        points.append(((stretch.low + stretch.high) / 2, share))
    return points


def latency_bins(latencies_ms: Sequence[float]) -> list[Bin]:
    """A histogram of how long answers took, its bins equally wide on a logarithmic axis."""
    places = Counter(math.floor(math.log10(max(one, 1e-3)) * LATENCY_BINS_A_DECADE) for one in latencies_ms)
    if not places:
        return []
    return [
        Bin(
            10 ** (place / LATENCY_BINS_A_DECADE),
            10 ** ((place + 1) / LATENCY_BINS_A_DECADE),
            {"": float(places[place])},
        )
        for place in range(min(places), max(places) + 1)
    ]


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least so many percent do not exceed; None without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else None


def latency_over_time(orders: Iterable[SentOrder], end_s: float, count: int, percent: float) -> list[Point]:
    """A percentile of the latency of the orders sent in each stretch."""
    width = end_s / count
    stretches: dict[int, list[float]] = defaultdict(list)
    for order in orders:
        if order.latency_ms is not None:
            stretches[_place(order.sent_s, width, count)].append(order.latency_ms)
    return [((index + 0.5) * width, percentile(stretches[index], percent)) for index in range(count)]


def books_by_kind(
    kinds: Iterable[str], fills: Iterable[TimedFill], end_s: float, count: int
) -> dict[str, Books]:
    """What each of these kinds of agents has gained and holds at the end of each stretch, at last prices.

    All kinds together gain nothing, because what one pays another gets. The sums are exact: a gain may be a
    millionth of what was paid for it.
    """
    books = {kind: Books([(0.0, 0.0)], [(0.0, 0.0)]) for kind in kinds}
    cash: dict[str, Decimal] = defaultdict(Decimal)
    held: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    last: dict[str, Decimal] = {}
    coming = iter(in_order(fills))
    one = next(coming, None)
    for index in range(count):
        until_s = end_s * (index + 1) / count
        while one is not None and (one.at_s <= until_s or index == count - 1):
            sign = 1 if one.fill.side == "buy" else -1
            cash[one.kind] -= sign * one.fill.price * one.fill.quantity
            held[one.kind, one.fill.symbol] += sign * one.fill.quantity
            last[one.fill.symbol] = one.fill.price
            one = next(coming, None)
        for kind, book in books.items():
            worth = sum((held[kind, symbol] * price for symbol, price in last.items()), Decimal())
            book.profit.append((until_s, float(cash[kind] + worth)))
            book.worth.append((until_s, float(worth)))
    return books


def outages(
    calls: Sequence[SentCall],
    strikes: Sequence[EngineStrike],
    states: Sequence[StateChange],
    end_s: float,
) -> list[Outage]:
    """What clients noticed of each strike, from the times at which they had answers."""
    struck = [strike for strike in strikes if not strike.missed]
    return [
        Outage(strike, None, None, None)
        if strike.missed
        else _outage(strike, _window_end(strike, struck, end_s), calls, states)
        for strike in sorted(strikes, key=lambda strike: strike.at_s)
    ]


def _window_end(strike: EngineStrike, strikes: Iterable[EngineStrike], end_s: float) -> float:
    again = [one.at_s for one in strikes if one.engine == strike.engine and one.at_s > strike.at_s]
    return min([strike.at_s + OUTAGE_WINDOW_S, end_s, *again])


def _outage(
    strike: EngineStrike,
    until_s: float,
    calls: Sequence[SentCall],
    states: Iterable[StateChange],
) -> Outage:
    own = [call for call in calls if call.engine == strike.engine]
    others = [call for call in calls if call.engine != strike.engine]
    silence = _longest_silence(own, strike.at_s, until_s)
    end_s = until_s if silence is None or silence.until_s is None else silence.until_s
    elsewhere = _longest_silence(others, strike.at_s, end_s)
    elsewhere_s = None if elsewhere is None else elsewhere.within(end_s)
    later = [one for one in states if one.engine == strike.engine and one.at_s >= strike.at_s]
    live_s = next((one.at_s for one in later if one.state == "live"), None)
    return Outage(strike, silence, elsewhere_s, live_s)


def _longest_silence(calls: Iterable[SentCall], start_s: float, end_s: float) -> Silence | None:
    """The one that lasted longest within a stretch; None when nobody waited in it.

    It ends with the next answer, which may come after the stretch.
    """
    silences = [
        Silence(max(since_s, start_s), until_s)
        for since_s, until_s in _silences(calls)
        if since_s <= end_s and (until_s is None or until_s > start_s)
    ]
    return max(silences, key=lambda silence: silence.within(end_s), default=None)


def _silences(calls: Iterable[SentCall]) -> Iterable[Silence]:
    """All stretches in which somebody waited and nobody had an answer.

    Who never had one waits until the answer to another call.
    """
    moments: list[tuple[float, bool, str]] = []
    for call in calls:
        moments.append((call.sent_s, True, call.client))
        if call.answered_s is not None:
            moments.append((call.answered_s, False, call.client))
    waiting: set[str] = set()
    since_s = 0.0
    for at_s, is_sent, client in sorted(moments):
        if is_sent:
            since_s = since_s if waiting else at_s
            waiting.add(client)
        else:
            yield Silence(since_s, at_s)
            since_s = at_s
            waiting.discard(client)
    if waiting:
        yield Silence(since_s, None)


def _binned(amounts: Iterable[tuple[float, str, float]], end_s: float, count: int) -> list[Bin]:
    width = end_s / count
    sums: list[dict[str, float]] = [defaultdict(float) for _ in range(count)]
    for at_s, name, amount in amounts:
        sums[_place(at_s, width, count)][name] += amount
    return [Bin(index * width, (index + 1) * width, values) for index, values in enumerate(sums)]


def _place(at_s: float, width: float, count: int) -> int:
    """Which stretch a time is in; what came just before or after the run counts to its ends."""
    return min(max(int(at_s / width), 0), count - 1)
