"""The gRPC edge of the exchange: checks requests, asks the parts, and alone turns their faults into statuses.

RegisterClient wants the exchange's password, GetPositions a client's token; the rest is public, as the
market data is.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import grpc
import nats.errors
from matchbus.edge import Context, abort_bad_request, refuse_token, require_token, token_key
from matchbus.listings import Turns, in_slices
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc

from bus.messages import InstrumentEntry, SessionEntry
from bus.registry import Bucket, BucketUnavailable
from bus.stream import StreamError
from bus.tokens import Tokens
from exchange import assignment, directory
from exchange.positions import Holding, Positions, saturate
from exchange.runtime import registration

_log: Final = logging.getLogger("exchange")

_AWAY: Final = (BucketUnavailable, StreamError, nats.errors.Error)
REGISTRATION_OUTCOMES: Final = ("registered", "malformed", "wrong_password", "refused", "unavailable")
_TELL_S: Final = 1.0
_STORAGE_AWAY: Final = "the exchange cannot reach its storage just now; try again"


class ExchangeServicer(matchbus_pb2_grpc.ExchangeServicer):
    """Answers the calls of service Exchange.

    `caught_up` tells whether the positions hold everything that was stored when the exchange started.
    """

    def __init__(
        self,
        *,
        password: str,
        registrar: registration.Registrar,
        sessions: Bucket[SessionEntry],
        tokens: Tokens,
        instruments: Mapping[str, InstrumentEntry],
        positions: Positions,
        caught_up: Callable[[], bool],
        list_engines: Callable[[], list[pb.Engine]],
        consolidated_book: Callable[[pb.ConsolidatedBook, str, int], Iterator[None]],
    ) -> None:
        self._password = password
        self._registrar = registrar
        self._sessions = sessions
        self._tokens = tokens
        self._instruments = instruments
        self._positions = positions
        self._caught_up = caught_up
        self._list_engines = list_engines
        self._consolidated_book = consolidated_book
        self._turns = Turns()
        self._tell_again_s = 0.0
        self.registrations: Counter[str] = Counter()
        """Calls of RegisterClient by outcome, one of `REGISTRATION_OUTCOMES`."""

    async def RegisterClient(
        self, request: pb.RegisterClientRequest, context: Context
    ) -> pb.RegisterClientReply:
        """Bind a client's name to its secret and its home engine, and give out a token."""
        for field, violation in (
            ("client_id", directory.client_id_violation(request.client_id)),
            ("password", directory.secret_violation(request.password)),
            ("secret", directory.secret_violation(request.secret)),
        ):
            if violation:
                self.registrations["malformed"] += 1
                await abort_bad_request(context, field, violation)
        if not directory.same_text(request.password, self._password):
            self.registrations["wrong_password"] += 1
            self._tell_wrong_password(context.peer())
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong password")
        try:
            registered = await self._registrar.register(
                request.client_id, request.secret, request.preferred_engine, context.peer()
            )
        except (registration.RegistrationRefused, assignment.NoHome) as refusal:
            self.registrations["refused"] += 1
            _log.warning("refused to register client %s: %s", request.client_id, refusal)
            await context.abort(_status_of(refusal), str(refusal))
        except _AWAY as fault:
            self.registrations["unavailable"] += 1
            _log.warning("cannot register client %s: %r", request.client_id, fault)
            await context.abort(grpc.StatusCode.UNAVAILABLE, _STORAGE_AWAY)
        self.registrations["registered"] += 1
        home = registered.home
        _log.info("registered client %s, home engine E%d at %s", request.client_id, home.engine, home.address)
        return pb.RegisterClientReply(
            token=registered.token,
            engine=home.engine,
            engine_address=home.address,
            instruments=self._list_instruments(),
        )

    async def ListInstruments(
        self, request: pb.ListInstrumentsRequest, context: Context
    ) -> pb.ListInstrumentsReply:
        """List what trades, in order of the symbols."""
        del request, context
        return pb.ListInstrumentsReply(instruments=self._list_instruments())

    async def ListEngines(self, request: pb.ListEnginesRequest, context: Context) -> pb.ListEnginesReply:
        """List the registered engines and how the exchange sees their feeds, then the standbys."""
        del request, context
        return pb.ListEnginesReply(engines=self._list_engines())

    async def GetPositions(self, request: pb.GetPositionsRequest, context: Context) -> pb.GetPositionsReply:
        """List the caller's positions, flat ones included; numbers saturate at the ends of int64."""
        client = await self._client_of(context)
        if request.symbol:
            await self._check_symbol(request.symbol, context)
        if not self._caught_up():
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "the exchange is still reading execution reports; try again"
            )
        gap = self._positions.gap(client)
        if gap is not None:
            await context.abort(
                grpc.StatusCode.DATA_LOSS,
                f"positions of {client} are unknown: after fill {gap.last_sequence} came {gap.next_sequence}",
            )
        return pb.GetPositionsReply(
            positions=[
                position(symbol, holding) for symbol, holding in self._positions.of(client, request.symbol)
            ]
        )

    async def GetConsolidatedBook(
        self, request: pb.GetConsolidatedBookRequest, context: Context
    ) -> pb.ConsolidatedBook:
        """Sum one symbol's book over the live engines; `depth` levels a side, all of them when 0."""
        await self._check_symbol(request.symbol, context)
        if request.depth < 0:
            await abort_bad_request(context, "depth", f"{request.depth} must be 0 (all levels) or more")
        reply = pb.ConsolidatedBook()
        async with self._turns.of(context.peer()):
            await in_slices(self._consolidated_book(reply, request.symbol, request.depth))
        return reply

    def _list_instruments(self) -> list[pb.Instrument]:
        return [
            pb.Instrument(
                symbol=entry.symbol,
                tick_size=entry.tick_size,
                lot_size=entry.lot_size,
                market_collar_percent=entry.market_collar_percent,
            )
            for _, entry in sorted(self._instruments.items())
        ]

    def _tell_wrong_password(self, peer: str) -> None:
        """One line a second at most: anybody may ask, and the log is on a disk."""
        now_s = time.monotonic()
        if now_s >= self._tell_again_s:
            self._tell_again_s = now_s + _TELL_S
            so_far = self.registrations["wrong_password"]
            _log.warning("refused a registration from %s: wrong password (%d so far)", peer, so_far)

    async def _check_symbol(self, symbol: str, context: Context) -> None:
        if symbol not in self._instruments:
            await abort_bad_request(context, "symbol", f"{symbol!r:.60} is not in the instrument list")

    async def _client_of(self, context: Context) -> str:
        """The client whose token the call carries; ends the call when it is nobody's."""
        token = await require_token(context)
        try:
            session = await self._sessions.get(token_key(token))
        except _AWAY as fault:
            _log.debug("cannot look a token up: %r", fault)
            await context.abort(grpc.StatusCode.UNAVAILABLE, _STORAGE_AWAY)
        # One too many is stored for a while after it has ended.
        if session is None or self._tokens.has_ended(session, time.time_ns()):
            await refuse_token(context)
        return session.client_id


def position(symbol: str, holding: Holding) -> pb.Position:
    """A holding as its client sees it; numbers saturate at the ends of int64."""
    return pb.Position(
        symbol=symbol,
        position=saturate(holding.lots),
        average_price=holding.average_price,
        realized_pnl=saturate(holding.realized),
        fees=saturate(holding.fees),
    )


def _status_of(refusal: registration.RegistrationRefused | assignment.NoHome) -> grpc.StatusCode:
    match refusal:
        case registration.WrongSecret():
            return grpc.StatusCode.PERMISSION_DENIED
        case registration.RegistrationLost():
            return grpc.StatusCode.DATA_LOSS
        case registration.TooManyRegistrations():
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        case assignment.UnknownEngine():
            return grpc.StatusCode.FAILED_PRECONDITION
        case _:
            return grpc.StatusCode.UNAVAILABLE
