"""Lets people trade on the dashboard's page: HTTP in front of the ordinary Python client.

    POST /ticket/sign-in    {client, password, secret}       ──▶ {token, client, engine}
    POST /ticket/submit     {symbol, side, quantity, price…} ──▶ the engine's answer
    POST /ticket/cancel     {order_id}                       ──▶ the engine's answer
    POST /ticket/account    {since}                          ──▶ open orders, newest fills, positions
    POST /ticket/sign-out

Signing in gives a token, which the page keeps in its memory and sends in a header: a page from elsewhere can
neither know nor send it, and is refused for its origin. A refused order is an answer with the engine's
words; what is no order at all is answered with `error`. Numbers are decimal strings, ids too.

Invariants: at most `MAX_SESSIONS` are signed in, and none for longer than `IDLE_S` without a word; what one
request makes the exchange read or answer is bounded. There is no TLS here, so it is for loopback only
(docs/decisions/0011-ticket-in-the-exchange.md). Needs the extra `dashboard`.
"""

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from client import (
    AuthenticationFailed,
    Client,
    DataLost,
    Fill,
    MatchbusError,
    OrderResult,
    OrderState,
    Position,
)
from client import Unavailable as VenueUnavailable

TOKEN_HEADER: Final = "x-matchbus-ticket"  # noqa: S105 -- the name of the header
MAX_SESSIONS: Final = 16
IDLE_S: Final = 300.0
"""A page in the background speaks once a minute, one that is closed never again."""

GIVEN_UP_S: Final = 10.0
"""Where too many are signed in, one that was silent for this long makes room."""

DEADLINE_S: Final = 5.0
"""How long the venue has for an answer."""

SWEEP_S: Final = 5.0
AWAY_PAUSE_S: Final = 1.0
WELL_S: Final = 30.0
"""A stream of fills that has not failed for so long is there: one that cannot be had is told of sooner."""

MAX_ORDERS: Final = 100
MAX_FILLS: Final = 50

_MAX_BODY_BYTES: Final = 8_192
BODY_PATIENCE_S: Final = 10.0
"""How long a request's body may take to come."""

_TOKEN_BYTES: Final = 24

T = TypeVar("T")

_Act = Callable[[Request], Awaitable[dict[str, Any]]]


class SignIn(msgspec.Struct, frozen=True):
    """Who wants to trade: the exchange's password, and the client's own secret."""

    client: str
    password: str
    secret: str


class Submit(msgspec.Struct, frozen=True):
    """An order, in the words of `Client.submit`."""

    symbol: str
    side: str
    quantity: str
    price: str | None = None
    type: str = "limit"
    time_in_force: str = "gtc"
    post_only: bool = False
    client_order_id: str | None = None


class Cancel(msgspec.Struct, frozen=True):
    """Which order is to go."""

    order_id: str


class ShowAccount(msgspec.Struct, frozen=True):
    """Asks how we stand, with the fills after number `since`."""

    since: int = 0


class Refused(Exception):
    """A request that is not carried out, with its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Tickets:
    """Everyone who trades through the page, at the exchange of this address.

    `fill_count` tells how many fills a client is known to have.
    """

    def __init__(
        self,
        exchange: str,
        fill_count: Callable[[str], int],
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exchange = exchange
        self._fill_count = fill_count
        self._monotonic_s = monotonic_s
        self._sessions: dict[str, _Session] = {}
        self._opening = 0

    def routes(self) -> list[Route]:
        """The endpoint."""
        acts = {
            "sign-in": self._sign_in,
            "sign-out": self._sign_out,
            "submit": self._submit,
            "cancel": self._cancel,
            "account": self._account,
        }
        return [
            Route(f"/ticket/{name}", _answering(act), methods=["POST"], name=name)
            for name, act in acts.items()
        ]

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Sign out everyone who is silent for too long, and all in the end."""
        sweeping = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            await asyncio.wait((sweeping,))
            await asyncio.gather(*map(self._close, list(self._sessions)))

    async def _sweep(self) -> None:
        while True:
            silent = [token for token, session in self._sessions.items() if self._silence_s(session) > IDLE_S]
            await asyncio.gather(*map(self._close, silent))
            await asyncio.sleep(SWEEP_S)

    async def _sign_in(self, request: Request) -> dict[str, Any]:
        who = await _read(request, SignIn)
        self._opening += 1  # before anything is awaited: the place is taken
        try:
            await self._make_room()
            client = await Client.connect(
                self._exchange,
                client_id=who.client,
                password=who.password,
                secret=who.secret,
                deadline_s=DEADLINE_S,
            ).open()
        finally:
            self._opening -= 1
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        since = max(0, self._fill_count(who.client) - MAX_FILLS)
        self._sessions[token] = _Session(client, self._monotonic_s(), since)
        return {"token": token, "client": who.client, "engine": client.engine}

    async def _sign_out(self, request: Request) -> dict[str, Any]:
        self._session_of(request)
        await self._close(request.headers[TOKEN_HEADER])
        return {}

    async def _submit(self, request: Request) -> dict[str, Any]:
        client = self._session_of(request).client
        order = await _read(request, Submit)
        with _in_doubt("The order may have been entered"):
            return _result(
                await client.submit(
                    order.symbol,
                    order.side,
                    order.quantity,
                    order.price,
                    type=order.type,
                    time_in_force=order.time_in_force,
                    post_only=order.post_only,
                    client_order_id=order.client_order_id,
                )
            )

    async def _cancel(self, request: Request) -> dict[str, Any]:
        client = self._session_of(request).client
        order_id = int((await _read(request, Cancel)).order_id)
        with _in_doubt("The order may have been cancelled"):
            return _result(await client.cancel(order_id=order_id))

    async def _account(self, request: Request) -> dict[str, Any]:
        session = self._session_of(request)
        since = (await _read(request, ShowAccount)).since
        (newest, left_out), (positions, trouble) = await asyncio.gather(
            session.client.newest_orders(MAX_ORDERS), _positions(session.client)
        )
        return {
            "orders": [_order(order) for order in newest],
            "orders_left_out": left_out,
            "fills": [_fill(fill) for fill in session.fills if fill.sequence > since],
            "positions": [_position(position) for _, position in sorted(positions.items())],
            "trouble": "; ".join(text for text in (session.trouble, trouble) if text),
        }

    def _session_of(self, request: Request) -> "_Session":
        session = self._sessions.get(request.headers.get(TOKEN_HEADER, ""))
        if session is None:
            raise Refused(401, "You are not signed in, or were silent for too long: sign in again.")
        session.heard_s = self._monotonic_s()
        return session

    def _silence_s(self, session: "_Session") -> float:
        return self._monotonic_s() - session.heard_s

    async def _make_room(self) -> None:
        if len(self._sessions) + self._opening <= MAX_SESSIONS:
            return
        token, session = min(self._sessions.items(), key=lambda item: item[1].heard_s, default=("", None))
        if session is None or self._silence_s(session) < GIVEN_UP_S:
            raise Refused(503, f"{MAX_SESSIONS} are signed in on this page, which is as many as can be.")
        await self._close(token)

    async def _close(self, token: str) -> None:
        session = self._sessions.pop(token, None)
        if session is not None:
            await session.close()


class _Session:
    """A person who is signed in: the client, its newest fills, and when the page was last heard.

    Of the fills only those above number `since` are read.
    """

    def __init__(self, client: Client, heard_s: float, since: int) -> None:
        self.client = client
        self.heard_s = heard_s
        self.fills: deque[Fill] = deque(maxlen=MAX_FILLS)
        self.trouble = ""
        """Why no fills come; empty while they do."""
        self._since = since
        self._following = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Sign out; orders stay in the market."""
        self._following.cancel()
        await asyncio.wait((self._following,))
        await self.client.close()

    async def _follow(self) -> None:
        while True:
            since = self.fills[-1].sequence if self.fills else self._since
            well = asyncio.get_running_loop().call_later(WELL_S, self._is_well)
            try:
                async for fill in self.client.fills(since=since):
                    self._is_well()
                    self.fills.append(fill)
            except VenueUnavailable as error:
                self.trouble = f"no fills just now: {error}"
            except MatchbusError as error:
                self.trouble = str(error)
                return
            finally:
                well.cancel()
            await asyncio.sleep(AWAY_PAUSE_S)

    def _is_well(self) -> None:
        self.trouble = ""


async def _positions(client: Client) -> tuple[dict[str, Position], str]:
    """What the client holds, or why that is unknown: its orders are shown all the same."""
    try:
        return await client.positions(), ""
    except MatchbusError as error:
        return {}, f"no positions: {error}"


@contextlib.contextmanager
def _in_doubt(what: str) -> Iterator[None]:
    """Around a command: when it has left and its answer does not come, say what is then unknown."""
    try:
        yield
    except MatchbusError as error:
        if not error.sent:
            raise
        raise Refused(503, f"{what}: {error}") from error


def _answering(act: _Act) -> Callable[[Request], Awaitable[Response]]:
    """What answers a request, whatever comes of it; none from elsewhere gets as far as the act."""

    async def answer(request: Request) -> Response:
        if request.headers.get("origin") != f"http://{request.headers.get('host')}":
            return _response(403, {"error": "Not from there."})
        try:
            return _response(200, await act(request))
        except Refused as refused:
            return _response(refused.status, {"error": str(refused)})
        except AuthenticationFailed as error:
            return _response(401, {"error": str(error)})
        except (VenueUnavailable, DataLost) as error:
            return _response(503, {"error": str(error)})
        except (MatchbusError, ValueError, TypeError, msgspec.MsgspecError) as error:
            return _response(400, {"error": str(error)})

    return answer


def _response(status: int, content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def _read(request: Request, kind: type[T]) -> T:
    body = b""
    try:
        async with asyncio.timeout(BODY_PATIENCE_S):
            async for part in request.stream():
                body += part
                if len(body) > _MAX_BODY_BYTES:
                    raise Refused(413, f"No order needs more than {_MAX_BODY_BYTES} bytes.")
    except TimeoutError as error:
        raise Refused(408, f"The order did not come whole within {BODY_PATIENCE_S:g} s.") from error
    except ClientDisconnect as error:
        raise Refused(400, "The order did not come whole.") from error
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError as error:
        raise Refused(400, "No order is nested so deep.") from error


def _text(number: Decimal) -> str:
    """As people write it: no exponent."""
    return f"{number:f}"


def _result(result: OrderResult) -> dict[str, Any]:
    return {
        "order_id": str(result.order_id),
        "client_order_id": result.client_order_id,
        "status": result.status,
        "reject_reason": result.reject_reason,
        "reject_text": result.reject_text,
        "cumulative_quantity": _text(result.cumulative_quantity),
        "leaves_quantity": _text(result.leaves_quantity),
        "average_price": _text(result.average_price),
        "duplicate": result.duplicate,
    }


def _order(order: OrderState) -> dict[str, Any]:
    return {
        "order_id": str(order.order_id),
        "symbol": order.symbol,
        "side": order.side,
        "type": order.type,
        "time_in_force": order.time_in_force,
        "price": _text(order.price),
        "quantity": _text(order.quantity),
        "leaves_quantity": _text(order.leaves_quantity),
        "status": order.status,
    }


def _fill(fill: Fill) -> dict[str, Any]:
    return {
        "sequence": fill.sequence,
        "order_id": str(fill.order_id),
        "symbol": fill.symbol,
        "side": fill.side,
        "price": _text(fill.price),
        "quantity": _text(fill.quantity),
        "liquidity": fill.liquidity,
        "engine": fill.engine,
        "time_ns": fill.timestamp_ns,
    }


def _position(position: Position) -> dict[str, Any]:
    return {
        "symbol": position.symbol,
        "quantity": _text(position.quantity),
        "average_price": _text(position.average_price),
        "realized_pnl": _text(position.realized_pnl),
    }
