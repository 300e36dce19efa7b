"""What trades in an engine during one reign: the commit loop and all that it reaches, wired to each other.

    Legs, Uncrosser ──submit──▶ CommitLoop ──▶ Effects ──▶ market data, legs, execution reports, bell
                                  ▲  └── AwayView ◀── FeedFollower ◀── md.>
    MatchingEngineServicer ─submit┘

Here: the same parts for an engine's process and for the engines of a virtual market. Not here: how a reign
begins and ends, and who may call (`engine.runtime.process`, `simulation.virtual.engine`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from nats.aio.client import Client

from bus.follower import FeedFollower
from bus.journal import Journal
from bus.peer import protected_books
from bus.replica import BookReplica
from bus.round_trip import RoundTrip
from engine.runtime.away import AwayView
from engine.runtime.commit_loop import Batch, CommitLoop
from engine.runtime.effects import Effects, FillBell, Reports
from engine.runtime.legs import Legs
from engine.runtime.listing import Listing
from engine.runtime.market_data import MarketData, books_of
from engine.runtime.uncrosser import Uncrosser
from engine.state import State


class Trading:
    """The parts that trade; nothing runs before `show_books` and `begin`. Their tasks are of `group`.

    `note` hears of each batch once its effects are let out; `unrenewed_s` and `delay_s` are as for the loop.
    """

    def __init__(
        self,
        nc: Client,
        state: State,
        journal: Journal,
        follower: FeedFollower,
        away: AwayView,
        market_data: MarketData,
        reports: Reports,
        group: asyncio.TaskGroup,
        *,
        note: Callable[[Batch], None],
        unrenewed_s: Callable[[], float],
        delay_s: Callable[[], float],
    ) -> None:
        self._state = state
        self._follower = follower
        self._market_data = market_data
        self._reports = reports
        self._group = group
        self._note = note
        self.bell = FillBell()
        self.round_trip = RoundTrip(nc)
        self.loop = CommitLoop(
            state,
            journal,
            catch_up=self._catch_up,
            attach=away.attach,
            legs_planned=away.legs_planned,
            release=self._release,
            release_trouble=lambda: reports.trouble,
            unrenewed_s=unrenewed_s,
            has_peers=lambda: bool(follower.peers),
            delay_s=delay_s,
            utc_ns=time.time_ns,  # in virtual time another one than the default, which kept the real one
        )
        self.uncrosser = Uncrosser(self.loop, away.crossing)
        self.legs = Legs(
            nc,
            state.engine,
            self.loop,
            away,
            market_data.replicas,
            group,
            catch_up=self.round_trip.make,
        )
        self.effects = Effects(
            market_data,
            reports,
            self.bell,
            send_leg=self.legs.send,
            uncross=self.uncrosser.look,
            shown=self.round_trip.make,
        )

    async def show_books(self) -> None:
        """Show every book as it stands when the reign begins."""
        state = self._state
        await self.round_trip.start()
        await self._market_data.start(
            state.epoch,
            books_of(state),
            batch_number=state.batch_number,
            time_ns=state.accounts.time_ns,
        )

    async def begin(self, listing: Listing, look_s: float | None = None) -> None:
        """Let commands be applied, then all symbols trade that are listed, and legs be carried.

        `look_s` is as for `Reports.run`.
        """
        earlier = [leg.sent for leg in self._state.legs.values()]  # before this reign sends any
        for part in (
            self.loop.run(),
            self._market_data.run(),
            self._reports.run(look_s),
            self.uncrosser.run(self._state.books),
        ):
            self._group.create_task(part)
        await listing.begin(self.loop)
        for leg in earlier:
            self.legs.resume(leg)
        await self.legs.serve()

    def on_quote(self, engine: int, symbol: str) -> None:
        """A peer's book changed: of the two engines whose orders may cross, the lower one uncrosses them."""
        if engine > self._state.engine:
            self.uncrosser.look(symbol)

    def protected_books(self, symbol: str) -> dict[int, BookReplica]:
        """The books that count: our own as published, and the synced ones of live peers."""
        books = protected_books(self._follower.peers, symbol)
        own = self._market_data.replicas.get(symbol)
        if own is not None:
            books[self._state.engine] = own
        return books

    async def _catch_up(self) -> None:
        if self._follower.peers:
            await self.round_trip.make()

    async def _release(self, batch: Batch) -> Awaitable[None] | None:
        self._market_data.note_append(batch.committed_s - batch.append_began_s)
        shown = await self.effects.release(batch)
        self._note(batch)
        return shown
