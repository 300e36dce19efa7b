"""Which away quotes a command may meet, with feeds that the test fills by hand."""

from collections.abc import Iterator
from random import Random

import msgspec
import pytest

from bus.connection import Connection
from bus.messages import ASK, BID, BookSnapshot, Heartbeat, LegAnswer
from bus.peer import PeerFeed, PeerState
from bus.replica import BookReplica, Level
from engine.commands import (
    AddInstrument,
    AwayQuote,
    CancelAll,
    CancelOrder,
    Command,
    EpochStarted,
    LegFill,
    LegResult,
    NewOrder,
    ReplaceOrder,
    TakingCommand,
    Uncross,
)
from engine.events import Cancelled, LegSent
from engine.runtime import away
from engine.runtime.away import MAX_LEVELS, MAX_QUOTES, SUSPECT_AFTER_UNANSWERED, AwayView
from engine.state import State
from engine.terms import MAX_LEG_FILLS, OrderType, Side
from tests.engine.runtime.nodes import Node, tasks
from tests.feed_checksum import checksum

OWN = 5
MS = 1_000_000
Levels = tuple[tuple[int, int], ...]


def show(feed: PeerFeed, sequence: int, bids: Levels = (), asks: Levels = (), *, epoch: int = 1) -> None:
    """The feed's book of AAPL is now this one."""
    bid_levels = [(price, quantity, 1) for price, quantity in bids]
    ask_levels = [(price, quantity, 1) for price, quantity in asks]
    levels = (*((BID, *level) for level in bid_levels), *((ASK, *level) for level in ask_levels))
    snapshot = BookSnapshot(epoch, sequence, 1, 1, levels, checksum(bid_levels, ask_levels))
    feed.on_message(snapshot, "AAPL", 100 * MS)


def live_peer(number: int, bids: Levels = (), asks: Levels = (), *, epoch: int = 1) -> PeerFeed:
    """A peer whose book, at sequence 10, counts."""
    feed = PeerFeed(number)
    show(feed, 10, bids, asks, epoch=epoch)
    for beat in range(2):
        feed.on_message(Heartbeat(number, epoch, 1, beat * 100 * MS, {}), None, beat * 100 * MS)
    assert feed.state is PeerState.LIVE
    return feed


def book(side: Side, *levels: tuple[int, int]) -> tuple[Levels, Levels]:
    """Bids and asks of a book that shows these levels to an order of `side`."""
    return ((), levels) if side is Side.BUY else (levels, ())


class Setting:
    """Engine 5 with an open book and its peers."""

    def __init__(self, *peers: PeerFeed) -> None:
        self.state = State(OWN)
        self.peers = {peer.engine: peer for peer in peers}
        self.view = AwayView(OWN, self.state, self.peers)
        self.state.apply(EpochStarted(1))
        self.state.apply(AddInstrument("AAPL", "0.01", "1"))

    def seen(self, command: Command) -> tuple[AwayQuote, ...]:
        """The quotes that the command gets, and nothing else of it changed."""
        attached = self.view.attach(command)
        assert isinstance(attached, TakingCommand)
        assert msgspec.structs.replace(attached, away=()) == command
        return attached.away

    def levels(self, command: Command) -> dict[int, Levels]:
        """By peer, the levels that the command gets."""
        return {quote.engine: quote.levels for quote in self.seen(command)}


def order(side: Side, quantity: int, price: int, client: str = "alice") -> NewOrder:
    """A GTC limit order; a market order at price 0."""
    kind = OrderType.LIMIT if price else OrderType.MARKET
    return NewOrder(client, f"{side}{quantity}@{price}", "AAPL", side, kind, 1, price, quantity)


def buy(quantity: int, price: int) -> NewOrder:
    """A bid."""
    return order(Side.BUY, quantity, price)


def leg(
    quantity: int, limit: int, *, peer: int = 2, leg_id: int = 1, epoch: int = 1, side: Side = Side.BUY
) -> LegSent:
    """A leg that trades AAPL at a peer."""
    return LegSent(leg_id, peer, epoch, 7, "AAPL", int(side), limit, quantity, 0)


def answer(sequence: int, *fills: tuple[int, int], refused: bool = False) -> LegAnswer:
    """A peer's answer that filled (price, quantity)."""
    return LegAnswer(1, refused, sequence, tuple((9, price, quantity, 8, 1) for price, quantity in fills))


ASKS: Levels = ((100, 3), (101, 4), (103, 5))
BIDS: Levels = ((99, 3), (98, 4), (96, 5))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (order(Side.BUY, 99, 99), ()),
        (order(Side.BUY, 99, 100), ASKS[:1]),
        (order(Side.BUY, 99, 102), ASKS[:2]),
        (order(Side.BUY, 99, 103), ASKS),
        (order(Side.BUY, 99, 0), ASKS),
        (order(Side.SELL, 99, 100), ()),
        (order(Side.SELL, 99, 99), BIDS[:1]),
        (order(Side.SELL, 99, 97), BIDS[:2]),
        (order(Side.SELL, 99, 0), BIDS),
        (order(Side.BUY, 2, 103), ASKS[:1]),
        (order(Side.BUY, 3, 103), ASKS[:1]),
        (order(Side.BUY, 4, 103), ASKS[:2]),
        (order(Side.SELL, 8, 1), BIDS),
    ],
    ids=str,
)
def test_quotes_reach_the_limit_and_cover_the_quantity(command: NewOrder, expected: Levels) -> None:
    """Only as good as the limit, the best first, and none once the quantity is covered."""
    setting = Setting(live_peer(2, BIDS, ASKS, epoch=7))
    quotes = setting.seen(command)
    assert quotes == ((AwayQuote(2, 7, 10, expected),) if expected else ())


def test_every_peer_is_asked_for_the_whole_quantity() -> None:
    """Which of them it goes to is for the state machine to plan."""
    setting = Setting(live_peer(2, asks=ASKS), live_peer(9, asks=((100, 50),)))
    assert setting.levels(buy(5, 101)) == {2: ((100, 3), (101, 4)), 9: ((100, 50),)}


def test_a_command_carries_a_bounded_number_of_levels() -> None:
    """The best ones."""
    asks = tuple((100 + step, 1) for step in range(MAX_LEVELS + 5))
    setting = Setting(live_peer(2, asks=asks))
    assert setting.seen(buy(10_000, 10_000)) == (AwayQuote(2, 1, 10, asks[:MAX_LEVELS], cut=True),)
    for whole in (buy(MAX_LEVELS, 10_000), buy(10_000, 100 + MAX_LEVELS - 1)):
        assert setting.seen(whole) == (AwayQuote(2, 1, 10, asks[:MAX_LEVELS]),)


def test_what_own_legs_take_hides_nothing_behind_it() -> None:
    """With the first levels all spoken for, a command gets the next ones."""
    asks = tuple((100 + step, 1) for step in range(MAX_LEVELS + 5))
    setting = Setting(live_peer(2, asks=asks))
    setting.view.legs_planned([leg(MAX_LEVELS, 100 + MAX_LEVELS)])
    assert setting.levels(buy(10_000, 10_000)) == {2: asks[MAX_LEVELS:]}


def test_a_replace_gets_quotes_for_its_new_quantity() -> None:
    """What the order had before does not matter."""
    setting = Setting(live_peer(2, asks=ASKS))
    setting.state.apply(buy(1, 90))
    replace = ReplaceOrder("alice", max(setting.state.orders), "", 103, 9)
    assert setting.levels(replace) == {2: ASKS}


@pytest.mark.parametrize("side", Side)
def test_a_command_carries_a_bounded_number_of_quotes(side: Side) -> None:
    """Of very many peers the best priced ones, for a buyer as for a seller."""
    prices = [1_000 + step * 37 % 101 for step in range(MAX_QUOTES + 30)]
    peers = [live_peer(10 + place, ((price, 1),), ((price + 500, 1),)) for place, price in enumerate(prices)]
    setting = Setting(*peers)
    offset, best_first = (500, sorted(prices)) if side is Side.BUY else (0, sorted(prices, reverse=True))
    quotes = setting.seen(order(side, 10_000, 0))
    assert sorted(quote.levels[0][0] - offset for quote in quotes) == sorted(best_first[:MAX_QUOTES])
    assert [quote.levels[0][0] - offset for quote in quotes if quote.cut] == [best_first[MAX_QUOTES - 1]]


def test_only_synced_books_of_live_peers_count() -> None:
    """Not one that lost a message, nor one whose heartbeats stay away, until it is whole again."""
    unsynced, late, down = (live_peer(number, asks=ASKS) for number in (2, 3, 4))
    setting = Setting(unsynced, late, down)
    assert set(setting.levels(buy(1, 100))) == {2, 3, 4}
    unsynced.lost()
    assert late.tick(300 * MS) is PeerState.SUSPECT
    assert down.tick(900 * MS) is PeerState.DOWN
    assert setting.seen(buy(1, 100)) == ()
    show(unsynced, 11, asks=ASKS)
    assert late.tick(200 * MS) is PeerState.LIVE
    assert set(setting.levels(buy(1, 100))) == {2, 3}


@pytest.mark.parametrize(
    "command",
    [
        msgspec.structs.replace(order(Side.BUY, 1, 200), symbol="NONE"),
        msgspec.structs.replace(order(Side.BUY, 1, 200), side=0),
        msgspec.structs.replace(order(Side.BUY, 1, 200), side=-7),
        msgspec.structs.replace(order(Side.BUY, 1, 200), quantity=-1),
        ReplaceOrder("alice", 77, "", 200, 5),
        LegResult(77, ()),
        CancelOrder("alice", 77),
        CancelAll("alice"),
    ],
    ids=str,
)
def test_what_takes_nothing_is_left_as_it_is(command: Command) -> None:
    """What the state machine will refuse, and what never trades, passes untouched."""
    assert Setting(live_peer(2, BIDS, ASKS)).view.attach(command) is command


def test_a_replaced_order_meets_quotes_at_its_new_price() -> None:
    """On its own side, and only for the client whose order it is."""
    setting = Setting()
    setting.state.apply(buy(5, 90))
    setting.peers[2] = live_peer(2, BIDS, ASKS)
    order_id = next(iter(setting.state.orders))
    assert setting.levels(ReplaceOrder("alice", order_id, "", 101, 9)) == {2: ASKS[:2]}
    assert setting.seen(ReplaceOrder("alice", order_id, "", 99, 9)) == ()
    assert setting.seen(ReplaceOrder("mallory", order_id, "", 101, 9)) == ()


@pytest.mark.parametrize(("price", "expected"), [(101, ASKS[:2]), (0, ASKS)])
def test_the_result_of_a_leg_is_planned_again_with_fresh_quotes(price: int, expected: Levels) -> None:
    """At the order's own limit; at any price for a market order."""
    setting = Setting(live_peer(2, BIDS, ASKS))
    command = setting.view.attach(order(Side.BUY, 9, price))
    assert command is not None
    (sent,) = (event for event in setting.state.apply(command) if isinstance(event, LegSent))
    assert setting.levels(LegResult(sent.leg_id, ())) == {2: expected}


def test_the_result_of_a_leg_that_was_filled_needs_no_quotes() -> None:
    """Nothing of its order is left to plan; unless more of it is open than the leg took."""
    for wanted, filled, is_planned in ((12, 12, False), (12, 11, True), (13, 12, True)):
        setting = Setting(live_peer(2, BIDS, ASKS))
        command = setting.view.attach(order(Side.BUY, wanted, 103))
        assert command is not None
        (sent,) = (event for event in setting.state.apply(command) if isinstance(event, LegSent))
        assert sent.quantity == 12
        result = LegResult(sent.leg_id, (LegFill(1, 100, filled, 7, 1),))
        assert bool(setting.seen(result)) == is_planned


def test_what_a_leg_takes_is_spoken_for() -> None:
    """From the moment it leaves until it is back, best levels first; on no other side, peer or symbol."""
    setting = Setting(live_peer(2, BIDS, ASKS), live_peer(3, asks=ASKS))
    setting.view.legs_planned([leg(4, 101)])
    assert setting.levels(buy(99, 103)) == {2: ((101, 3), (103, 5)), 3: ASKS}
    assert setting.levels(order(Side.SELL, 99, 96)) == {2: BIDS}
    setting.view.legs_planned([leg(20, 101, leg_id=2)])
    assert set(setting.levels(buy(99, 103))) == {3}
    setting.view.leg_answered(leg(4, 101), answer(11, refused=True))
    setting.view.leg_answered(leg(20, 101, leg_id=2), answer(11, refused=True))
    assert setting.levels(buy(99, 103))[2] == ASKS, "a refused leg took nothing and never will"


def test_what_a_leg_took_is_subtracted_until_the_feed_shows_it() -> None:
    """The feed shows it from the answer's book sequence on."""
    peer = live_peer(2, asks=ASKS)
    setting = Setting(peer)
    setting.view.legs_planned([leg(4, 101)])
    setting.view.leg_answered(leg(4, 101), answer(12, (100, 3), (101, 1)))
    taken = ((101, 3), (103, 5))
    assert setting.levels(buy(99, 103)) == {2: taken}
    show(peer, 11, asks=((100, 3), (101, 4), (103, 5)))
    assert setting.levels(buy(99, 103)) == {2: taken}
    show(peer, 12, asks=taken)
    assert setting.levels(buy(99, 103)) == {2: taken}
    show(peer, 13, asks=ASKS)
    assert setting.levels(buy(99, 103)) == {2: ASKS}


@pytest.mark.parametrize("side", Side)
def test_what_the_feed_shows_before_the_answer_is_subtracted_once(side: Side) -> None:
    """The peer's delta comes first, its answers later: what is left of the quote counts all the while."""
    further = 101 if side is Side.BUY else 99
    peer = live_peer(2, *book(side, (100, 10), (further, 4)))
    setting = Setting(peer)
    command, left = order(side, 99, further), {2: ((100, 1), (further, 4))}
    for number in (1, 2, 3):
        setting.view.legs_planned([leg(3, 100, leg_id=number, side=side)])
    assert setting.levels(command) == left
    show(peer, 11, *book(side, (100, 7), (further, 4)))
    assert setting.levels(command) == left, "one of them is seen"
    show(peer, 12, *book(side, (100, 1), (further, 4)))
    assert setting.levels(command) == left, "all of them are"
    for number in (1, 2):
        setting.view.leg_answered(leg(3, 100, leg_id=number, side=side), answer(10 + number, (100, 3)))
        assert setting.levels(command) == left
    setting.view.leg_answered(leg(3, 100, leg_id=3, side=side), answer(12, refused=True))
    show(peer, 13, *book(side, (100, 4), (further, 4)))
    assert setting.levels(command) == {2: ((100, 4), (further, 4))}, "nothing is out any more"


class Steps:
    """How many levels of replicas were walked over and looked up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.walked = self.looked_up = 0
        levels, quantity = BookReplica.levels, BookReplica.quantity

        def walk(replica: BookReplica, side: int) -> Iterator[Level]:
            for level in levels(replica, side):
                self.walked += 1
                yield level

        def look_up(replica: BookReplica, side: int, price: int) -> int:
            self.looked_up += 1
            return quantity(replica, side, price)

        monkeypatch.setattr(BookReplica, "levels", walk)
        monkeypatch.setattr(BookReplica, "quantity", look_up)


def test_what_is_shown_at_very_many_aims_is_looked_up_once_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many commands ask; and what of it the feed shows already is subtracted once all the same."""
    asks = tuple((100 + step, 10) for step in range(2_000))
    peer = live_peer(2, asks=asks)
    setting = Setting(peer)
    setting.view.legs_planned([leg(10, price, leg_id=price) for price, _ in asks[:1_900]])
    show(peer, 11, asks=asks[950:])  # the first half of the legs traded
    steps = Steps(monkeypatch)
    for _ in range(50):
        assert setting.levels(buy(14, 9_999)) == {2: asks[1_900:1_902]}
    assert steps.looked_up == 1_900


def test_the_legs_of_one_command_are_planned_in_one_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of legs over hundreds of levels walk over each level once; each aims within its limit."""
    asks = tuple((100 + step, 40) for step in range(500))
    setting = Setting(live_peer(2, asks=asks))
    steps = Steps(monkeypatch)
    legs = [leg(4, 100 + number // 10, leg_id=number) for number in range(4_990)]
    setting.view.legs_planned(legs)
    assert steps.walked <= 500
    assert setting.levels(buy(10_000, 1_000)) == {2: asks[499:]}
    for number, sent in enumerate(legs):
        setting.view.leg_answered(sent, answer(11, (100 + number // 10, 4)))
    show(setting.peers[2], 11, asks=asks[499:])
    assert setting.levels(buy(10_000, 1_000)) == {2: asks[499:]}


def test_legs_planned_together_are_as_legs_planned_one_by_one() -> None:
    """Whatever their limits, what is shown and what is taken already."""
    for seed in range(200):
        generator = Random(seed)
        asks = tuple((price, generator.randint(1, 9)) for price in range(100, 110))
        peers = [live_peer(number, asks=asks) for number in (2, 3)]
        together, one_by_one = Setting(*peers), Setting(*peers)
        before = [leg(generator.randint(1, 20), generator.randint(100, 109), leg_id=n) for n in range(3)]
        planned = [
            leg(generator.randint(1, 9), limit, leg_id=10 + n, peer=generator.choice((2, 3)))
            for n, limit in enumerate(sorted(generator.randint(99, 110) for _ in range(8)))
        ]
        together.view.legs_planned(before)
        together.view.legs_planned(planned)
        for sent in (*before, *planned):
            one_by_one.view.legs_planned([sent])
        command = buy(1_000, 110)
        assert together.levels(command) == one_by_one.levels(command), seed
        back = generator.choice(planned)
        for setting in (together, one_by_one):
            setting.view.leg_answered(back, answer(10, refused=True))
        assert together.levels(command) == one_by_one.levels(command), seed


@pytest.mark.parametrize(("side", "shown"), [(Side.BUY, ASKS), (Side.SELL, BIDS)])
def test_each_of_the_legs_planned_together_aims_as_far_as_its_limit(side: Side, shown: Levels) -> None:
    """Once the feed shows what all of them took, before any answer, what is left counts whole."""
    peer = live_peer(2, BIDS, ASKS)
    setting = Setting(peer)
    setting.view.legs_planned(
        [leg(quantity, price, leg_id=number, side=side) for number, (price, quantity) in enumerate(shown[:2])]
    )
    show(peer, 11, *book(side, *shown[2:]))
    assert setting.levels(order(side, 99, shown[-1][0])) == {2: shown[2:]}


@pytest.mark.parametrize("side", Side)
def test_an_uncross_is_bounded(monkeypatch: pytest.MonkeyPatch, side: Side) -> None:
    """It has the best quotes of all peers for its first orders; those that may send no legs do not count."""
    monkeypatch.setattr(away, "MAX_UNCROSSED", 3)
    setting = Setting()
    sign = -1 if side is Side.BUY else 1
    at = [500 + sign * step for step in range(5)]  # the best first
    for number, (price, post_only) in enumerate(zip(at, (False, True, False, False, False), strict=True)):
        quantity = 5 if post_only else 10
        request = NewOrder("mm", f"m{number}", "AAPL", side, 1, 1, price, quantity, post_only=post_only)
        setting.state.apply(request)
    crossing = [500 + sign * step for step in (30, 20, 10)]  # the best first
    seven, eight = (crossing[0], 12), (crossing[1], 9)
    levels = {7: (seven, (crossing[2], 50)), 8: (eight, (crossing[2], 60))}
    for number, quoted in levels.items():
        setting.peers[number] = live_peer(number, *book(side, *quoted))
    quotes = setting.levels(Uncross("AAPL", side, ()))
    assert quotes == {7: (seven,), 8: (eight, (crossing[2], 9))}
    command = setting.view.attach(Uncross("AAPL", side, ()))
    assert command is not None
    sent = [event for event in setting.state.apply(command) if isinstance(event, LegSent)]
    assert sum(leg.quantity for leg in sent) == 30
    first_id = min(setting.state.orders)
    assert {leg.order_id - first_id for leg in sent} == {0, 2, 3}


def test_orders_that_may_send_no_legs_are_uncrossed_too() -> None:
    """With nothing else in front of the quote they are cancelled."""
    setting = Setting()
    setting.peers[9] = live_peer(9, asks=ASKS)
    setting.state.apply(NewOrder("mm", "m", "AAPL", Side.BUY, 1, 1, 101, 5, post_only=True))
    command = setting.view.attach(Uncross("AAPL", Side.BUY, ()))
    assert command is not None
    assert Cancelled in map(type, setting.state.apply(command))
    assert setting.view.crossing("AAPL") == []


@pytest.mark.parametrize(("quantity", "told", "cut"), [(50, 2, True), (1, 1, False)])
def test_an_uncross_knows_where_a_quote_was_cut(
    monkeypatch: pytest.MonkeyPatch, quantity: int, told: int, *, cut: bool
) -> None:
    """One that needs only a part of what it is told is as good as told all."""
    monkeypatch.setattr(away, "MAX_LEVELS", 2)
    setting = Setting()
    setting.state.apply(buy(quantity, 105))
    asks = ((100, 1), (101, 1), (102, 1))
    setting.peers[9] = live_peer(9, asks=asks)
    assert setting.seen(Uncross("AAPL", 1, ())) == (AwayQuote(9, 1, 10, asks[:told], cut=cut),)


def test_a_leg_that_finds_a_better_price_hides_nothing_at_the_one_it_was_sent_for() -> None:
    """What it took at 99 is gone there, not at 100, where the feed shows what another leg took."""
    peer = live_peer(2, asks=((100, 10),))
    setting = Setting(peer)
    for number in (1, 2):
        setting.view.legs_planned([leg(4, 100, leg_id=number)])
    show(peer, 11, asks=((99, 4), (100, 10)))
    show(peer, 12, asks=((100, 6),))
    setting.view.leg_answered(leg(4, 100, leg_id=1), answer(12, (99, 4)))
    assert setting.levels(buy(99, 101)) == {2: ((100, 6),)}


def test_the_answer_to_a_leg_of_an_earlier_run_hides_nothing() -> None:
    """It traded before any leg of this run was planned: the book was without that then already."""
    peer = live_peer(2, asks=((100, 10),))
    setting = Setting(peer)
    setting.view.legs_planned([leg(4, 100, leg_id=2)])
    show(peer, 11, asks=((100, 6),))
    setting.view.leg_answered(leg(5, 100, leg_id=1), answer(9, (100, 5)))
    assert setting.levels(buy(99, 101)) == {2: ((100, 6),)}


def test_what_others_add_between_two_legs_hides_nothing_that_is_left() -> None:
    """The book goes from 4 to 14 and, by both legs, to 2: all of what they take has been seen."""
    peer = live_peer(2, asks=((100, 4),))
    setting = Setting(peer)
    setting.view.legs_planned([leg(4, 100, leg_id=1)])
    show(peer, 11, asks=((100, 14),))
    setting.view.legs_planned([leg(8, 100, leg_id=2)])
    show(peer, 12, asks=((100, 2),))
    assert setting.levels(buy(99, 101)) == {2: ((100, 2),)}


def test_what_others_take_is_no_part_of_what_a_leg_takes() -> None:
    """The book goes from 10 to 2 while a leg takes 5 of it: no more counts than is shown."""
    peer = live_peer(2, asks=((100, 10),))
    setting = Setting(peer)
    setting.view.legs_planned([leg(5, 100)])
    show(peer, 11, asks=((100, 2),))
    assert setting.levels(buy(99, 101)) == {2: ((100, 2),)}


def test_what_one_leg_took_was_not_taken_by_another() -> None:
    """One of two is back and was seen: the other one is still to take its part of what is left."""
    peer = live_peer(2, asks=((100, 10),))
    setting = Setting(peer)
    for number in (1, 2):
        setting.view.legs_planned([leg(4, 100, leg_id=number)])
    show(peer, 11, asks=((100, 6),))
    setting.view.leg_answered(leg(4, 100, leg_id=1), answer(11, (100, 4)))
    assert setting.levels(buy(99, 101)) == {2: ((100, 2),)}


@pytest.mark.parametrize("seed", range(200))
def test_once_all_legs_are_back_the_book_counts_as_it_is_shown(seed: int) -> None:
    """Whatever came first and whatever others did there; and never more than is shown."""
    generator = Random(seed)
    book = {price: generator.randint(1, 9) for price in range(100, 105)}
    peer = live_peer(2, asks=tuple(book.items()))
    setting = Setting(peer)
    sequence, out = 10, list[LegSent]()
    for number in range(1, 30):
        quoted = setting.levels(buy(generator.randint(1, 20), generator.randint(100, 105))).get(2, ())
        assert all(quantity <= peer.replicas["AAPL"].quantity(ASK, price) for price, quantity in quoted)
        if quoted and generator.random() < 0.7:
            out.append(leg(sum(level[1] for level in quoted), quoted[-1][0], leg_id=number))
            setting.view.legs_planned([out[-1]])
        if generator.random() < 0.3:  # another one trades, or adds
            price = generator.randrange(100, 105)
            book[price] = generator.randint(0, 9)
            sequence += 1
        if out and generator.random() < 0.6:
            back = out.pop(generator.randrange(len(out)))
            fills, left = list[tuple[int, int]](), back.quantity
            for price in sorted(book):
                if price <= back.limit and (filled := min(left, book[price])):
                    fills.append((price, filled))
                    book[price] -= filled
                    left -= filled
            sequence += 1
            shown_first = generator.random() < 0.5
            if shown_first:
                show(peer, sequence, asks=tuple((price, q) for price, q in book.items() if q))
            setting.view.leg_answered(back, answer(sequence, *fills))
    for back in out:
        setting.view.leg_answered(back, answer(sequence, refused=True))
    left_over = tuple((price, quantity) for price, quantity in book.items() if quantity)
    show(peer, sequence + 1, asks=left_over)
    assert setting.levels(buy(99, 105)) == ({2: left_over} if left_over else {})


def test_several_late_fills_add_up_and_go_one_by_one() -> None:
    """Each with its own book sequence."""
    peer = live_peer(2, asks=((100, 10),))
    setting = Setting(peer)
    for number, sequence in ((1, 11), (2, 12)):
        setting.view.legs_planned([leg(3, 100, leg_id=number)])
        setting.view.leg_answered(leg(3, 100, leg_id=number), answer(sequence, (100, 3)))
    assert setting.levels(buy(99, 100)) == {2: ((100, 4),)}
    show(peer, 11, asks=((100, 7),))
    assert setting.levels(buy(99, 100)) == {2: ((100, 4),)}
    show(peer, 12, asks=((100, 4),))
    assert setting.levels(buy(99, 100)) == {2: ((100, 4),)}


def test_a_new_epoch_shows_everything() -> None:
    """Its book was made from the peer's journal, so what an earlier reign's leg took is gone from it."""
    peer = live_peer(2, asks=ASKS, epoch=6)
    setting = Setting(peer)
    setting.view.legs_planned([leg(3, 100, epoch=6)])
    setting.view.leg_answered(leg(3, 100, epoch=6), answer(10_000, (100, 3)))
    assert setting.levels(buy(99, 100)) == {}
    setting.peers[2] = live_peer(2, asks=ASKS, epoch=7)
    assert setting.levels(buy(99, 100)) == {2: ASKS[:1]}


def test_a_leg_that_came_back_short_hides_what_it_could_not_get() -> None:
    """Down to its limit the peer had nothing left, whatever an older book shows; beyond it, all counts."""
    peer = live_peer(2, asks=ASKS)
    setting = Setting(peer)
    setting.view.legs_planned([leg(7, 101)])
    setting.view.leg_answered(leg(7, 101), answer(12, (100, 1)))
    assert setting.levels(buy(99, 103)) == {2: ((103, 5),)}
    show(peer, 12, asks=((101, 2), (103, 5)))
    assert setting.levels(buy(99, 103)) == {2: ((101, 2), (103, 5))}


def test_a_leg_that_met_too_many_orders_hides_nothing() -> None:
    """It came back short because an answer has room for so many fills, not because nothing was left."""
    setting = Setting(live_peer(2, asks=((100, 2_000),)))
    setting.view.legs_planned([leg(2_000, 100)])
    setting.view.leg_answered(leg(2_000, 100), answer(12, *[(100, 1)] * MAX_LEG_FILLS))
    assert setting.levels(buy(5_000, 100)) == {2: ((100, 2_000 - MAX_LEG_FILLS),)}


@pytest.mark.parametrize(("side", "shown"), [(Side.BUY, ASKS), (Side.SELL, BIDS)])
def test_legs_that_found_nothing_hide_their_levels_too(side: Side, shown: Levels) -> None:
    """Otherwise their orders would chase the same quotes for ever."""
    setting = Setting(live_peer(2, BIDS, ASKS))
    command = order(side, 99, shown[-1][0])
    for number in (0, 1):
        price, quantity = shown[number]
        setting.view.legs_planned([leg(quantity, price, leg_id=number, side=side)])
        setting.view.leg_answered(leg(quantity, price, leg_id=number, side=side), answer(11))
        assert setting.levels(command) == {2: shown[number + 1 :]}


def test_a_peer_that_leaves_three_questions_unanswered_attracts_no_more() -> None:
    """Not fewer, and however many more; an answer clears it."""
    setting = Setting(live_peer(2, asks=ASKS), live_peer(3, asks=ASKS))
    for _ in range(SUSPECT_AFTER_UNANSWERED - 1):
        setting.view.leg_unanswered(2)
    assert set(setting.levels(buy(1, 100))) == {2, 3}
    for _ in range(10):
        setting.view.leg_unanswered(2)
        assert setting.view.is_suspect(2)
        assert set(setting.levels(buy(1, 100))) == {3}
    setting.view.legs_planned([leg(1, 100)])
    setting.view.leg_answered(leg(1, 100), answer(10, refused=True))
    assert set(setting.levels(buy(1, 100))) == {2, 3}


def test_unanswered_questions_with_an_answer_between_are_no_sign() -> None:
    """A busy peer answers late, but it answers."""
    setting = Setting(live_peer(2, asks=ASKS))
    for _ in range(5):
        for _ in range(SUSPECT_AFTER_UNANSWERED - 1):
            setting.view.leg_unanswered(2)
        assert not setting.view.is_suspect(2)
        setting.view.legs_planned([leg(1, 100)])
        setting.view.leg_answered(leg(1, 100), answer(10, refused=True))


@pytest.mark.parametrize(
    ("own", "own_price", "crossed"),
    [(Side.BUY, 99, False), (Side.BUY, 100, True), (Side.BUY, 101, True), (Side.SELL, 99, True)],
)
def test_only_higher_numbers_are_uncrossed(own: Side, own_price: int, crossed: bool) -> None:
    """Of two engines the one with the lower number acts, on a lock as on a cross; the other waits."""
    lower, higher = live_peer(2, BIDS, ASKS), live_peer(9, BIDS, ASKS)
    setting = Setting()
    setting.state.apply(order(own, 50, own_price))
    setting.peers[2] = lower
    assert setting.view.crossing("AAPL") == []
    assert setting.view.attach(Uncross("AAPL", own, ())) is None
    setting.peers[9] = higher
    assert setting.view.crossing("AAPL") == ([own] if crossed else [])
    attached = setting.view.attach(Uncross("AAPL", own, ()))
    assert (attached is not None) == crossed
    if attached is not None:
        reached = {(Side.BUY, 100): ASKS[:1], (Side.BUY, 101): ASKS[:2], (Side.SELL, 99): BIDS[:1]}
        assert attached == Uncross("AAPL", own, (AwayQuote(9, 1, 10, reached[own, own_price]),))


def test_nothing_crosses_an_empty_or_unknown_book() -> None:
    """Nor is anything left to uncross there, or without peers."""
    setting = Setting(live_peer(9, BIDS, ASKS))
    assert setting.view.crossing("AAPL") == []
    assert setting.view.crossing("NONE") == []
    assert setting.view.attach(Uncross("AAPL", 1, ())) is None
    setting.peers.clear()
    setting.state.apply(buy(1, 500))
    assert setting.view.attach(Uncross("AAPL", 1, ())) is None
    assert setting.view.attach(buy(1, 500)) == buy(1, 500)


def test_what_legs_take_already_does_not_cross() -> None:
    """The quote is spoken for: no second leg runs after it."""
    setting = Setting()
    setting.state.apply(buy(3, 100))
    setting.peers[9] = live_peer(9, asks=ASKS)
    assert setting.view.crossing("AAPL") == [Side.BUY]
    setting.view.legs_planned([leg(3, 100, peer=9)])
    assert setting.view.crossing("AAPL") == []


async def test_a_leg_of_an_earlier_run_hides_nothing(
    nats_connection: Connection, engine: int, other: int
) -> None:
    """What the peer shows after its fill counts whole, while it is asked about as afterwards."""
    async with tasks() as group:
        node = Node(engine, nats_connection, group)
        await node.start()
        node.see(other, (100, 30))
        buy = NewOrder("bob", "b", "AAPL", 1, 1, 2, 105, 40)
        shown = (AwayQuote(other, 1, 1, ((100, 30),)),)
        earlier = LegSent((engine << 48) + 1, other, 1, 7, "AAPL", int(Side.BUY), 100, 50, 0)
        node.legs.resume(earlier)
        attached = node.away.attach(buy)
        assert isinstance(attached, NewOrder)
        assert attached.away == shown
        node.away.leg_answered(earlier, LegAnswer(earlier.leg_id, refused=True, book_sequence=1, fills=()))
        node.away.legs_planned([msgspec.structs.replace(earlier, leg_id=earlier.leg_id + 1, quantity=20)])
        attached = node.away.attach(buy)
        assert isinstance(attached, NewOrder)
        assert attached.away == (AwayQuote(other, 1, 1, ((100, 10),)),), "a leg of this run is spoken for"
