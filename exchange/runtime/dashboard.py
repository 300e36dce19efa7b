"""Serves the dashboard's page; what it shows comes to a browser straight from NATS.

The page is `exchange/dashboard/page`, built from the sources beside it. It holds no secret and may be read by
anybody who reaches the port. On loopback its order ticket (`exchange.runtime.ticket`) is served beside it.
Needs the extra `dashboard`.
"""

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exchange.runtime import web
from exchange.runtime.settings import is_loopback
from exchange.runtime.ticket import Tickets

PAGE: Final = Path(__file__).resolve().parent.parent / "dashboard" / "page"

_HOST: Final = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")
_HEADERS: Final = {
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
}


def make_app(websocket_urls: Sequence[str], host: str, ticket_routes: Sequence[Route] = ()) -> Starlette:
    """The page, which is told by `/config.json` where NATS takes WebSockets and whether one can trade.

    Reached through loopback it answers to no other name, so that no page from elsewhere can pass for it.
    """

    async def config(_: Request) -> Response:
        return JSONResponse({"nats": list(websocket_urls), "ticket": bool(ticket_routes)})

    names = {host, "localhost", "127.0.0.1", "[::1]"}
    guard = [Middleware(_Guard, names=names)] if is_loopback(host) else []
    return Starlette(
        routes=[
            Route("/config.json", config),
            *ticket_routes,
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        middleware=[
            *guard,
            Middleware(_Headers, policy=content_policy(websocket_urls)),
        ],
    )


def content_policy(websocket_urls: Sequence[str]) -> str:
    """What the page may do: run its own script, and connect to NATS and to a launcher on this machine."""
    connect = " ".join(["'self'", *websocket_urls, "http://127.0.0.1:*"])
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def serve(
    listen: str,
    websocket_urls: Sequence[str],
    exchange: str,
    fill_count: Callable[[str], int],
    listening: Callable[[str], None],
) -> None:
    """Serve the page at HOST:PORT until cancelled; `listening` is told the address. Raises CannotListen.

    `exchange` is where clients register, HOST:PORT; `fill_count` tells how many fills one is known to have.
    Off loopback the page only looks on: passwords would travel in clear text.
    """
    host = listen.rpartition(":")[0]
    tickets = Tickets(exchange, fill_count)
    routes = tickets.routes() if is_loopback(host) else []
    async with tickets.kept():
        await web.serve(make_app(websocket_urls, host, routes), listen, listening)


class _Guard:
    """Lets in only those who ask for one of these names, at any port.

    Starlette's own check cannot read [::1] in all versions.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = _HOST.fullmatch(Headers(scope=scope).get("host", ""))
        app = self._app
        if asked is None or asked[1].lower() not in self._names:
            app = PlainTextResponse("Invalid host header", status_code=400)
        await app(scope, receive, send)


class _Headers:
    """Adds the headers that every answer has."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self._app = app
        headers = {**_HEADERS, "content-security-policy": policy}
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        await self._app(scope, receive, send_with_headers)
