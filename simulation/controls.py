"""What the dashboard of a demo can do besides: HTTP on loopback, for those who hold this launch's token.

    POST /engines/<n>/kill      SIGKILL to the process that reigns as engine n
    POST /engines/<n>/freeze    SIGSTOP, and SIGCONT after FREEZE_S
    POST /engines/<n>/restart   SIGTERM
    POST /trader                who may sign in at the order ticket, as {client, password, secret}

Whatever ends is started again by the `Cluster`, as always. Nothing happens without the token, which is in a
header that no page from elsewhere can know or send: its browser asks first, and is told no. The name by which
the endpoint was reached and the page that reaches it are checked besides. Needs the extra `dashboard`.
"""

import asyncio
import contextlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from exchange.runtime import web
from simulation.cluster import Cluster
from simulation.ports import LOOPBACK
from simulation.strikes import Strikes

TOKEN_HEADER: Final = "x-matchbus-token"  # noqa: S105 -- the name of the header
FREEZE_S: Final = 3.0
TRADER: Final = "demo"
"""The client that a visitor of the page trades as."""

_TOKEN_BYTES: Final = 24

_SHOWN: Final = 20
"""How much of a name that names nothing is repeated."""

_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409


_Act = Callable[[Request], tuple[int, str]]


class Controls:
    """Strikes engines of a running market. `token` is what a page needs, drawn anew at every start."""

    def __init__(self, cluster: Cluster) -> None:
        self.token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._secret = secrets.token_urlsafe(_TOKEN_BYTES)
        self.address = ""
        self.strikes = Strikes(cluster)
        self._cluster = cluster

    @property
    def page_url(self) -> str:
        """The dashboard's address that brings the token: browsers send what stands after # to nobody."""
        return f"{self._cluster.dashboard_url}/#controls={self.address.rpartition(':')[2]}.{self.token}"

    def make_app(self) -> Starlette:
        """The endpoint."""
        return Starlette(
            routes=[
                Route(path, self._answering(act), methods=["POST", "OPTIONS"])
                for path, act in (
                    ("/engines/{engine:str}/{action:str}", self._strike),
                    ("/trader", self._introduce),
                )
            ]
        )

    async def serve(self, listening: asyncio.Future[str]) -> None:
        """Serve on a free loopback port until cancelled."""
        await web.serve(self.make_app(), f"{LOOPBACK}:0", listening.set_result)

    def _answering(self, act: _Act) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            origin = self._origin_of(request)
            if origin is None:
                return PlainTextResponse("Not from there.", _FORBIDDEN)
            headers = {
                "access-control-allow-origin": origin,
                "access-control-allow-headers": TOKEN_HEADER,
                "access-control-allow-methods": "POST",
                "vary": "origin",
            }
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
            token = request.headers.get(TOKEN_HEADER, "")
            if not hmac.compare_digest(token.encode(), self.token.encode()):
                text = "The token is another one: open the address that this launch has printed."
                return PlainTextResponse(text, _FORBIDDEN, headers)
            status, text = act(request)
            return PlainTextResponse(text, status, headers)

        return answer

    def _origin_of(self, request: Request) -> str | None:
        """Which page asks, where it is the dashboard's and reached us by our own address; else None."""
        origin = request.headers.get("origin", "")
        is_ours = origin in self._cluster.origins and request.headers.get("host") == self.address
        return origin if is_ours else None

    def _strike(self, request: Request) -> tuple[int, str]:
        name, action = request.path_params["engine"], request.path_params["action"]
        # Found by its name, because Python reads no number of thousands of digits.
        engine = {str(number): number for number in self._cluster.engines}.get(name)
        strike = _ACTIONS.get(action)
        if strike is None or engine is None:
            return _NOT_FOUND, f"There is no engine {name[:_SHOWN]}, or nothing called {action[:_SHOWN]}."
        member = self._cluster.engines[engine]
        if not member.running:
            return _CONFLICT, f"Engine {engine} is being started again just now."
        return 200, strike(self, engine, member.pid)

    def _introduce(self, _: Request) -> tuple[int, str]:
        who = {"client": TRADER, "password": self._cluster.password, "secret": self._secret}
        return 200, json.dumps(who)

    def _kill(self, engine: int, pid: int) -> str:
        self.strikes.kill(engine)
        return f"Killed engine {engine}, process {pid}."

    def _freeze(self, engine: int, pid: int) -> str:
        self.strikes.freeze(engine, FREEZE_S)
        return f"Froze engine {engine}, process {pid}, for {FREEZE_S:g} s."

    def _restart(self, engine: int, pid: int) -> str:
        self.strikes.restart(engine)
        return f"Asked engine {engine}, process {pid}, to end; it is started again."


_ACTIONS: Final[dict[str, Callable[[Controls, int, int], str]]] = {
    "kill": Controls._kill,  # noqa: SLF001 -- a table of the class's own
    "freeze": Controls._freeze,  # noqa: SLF001 -- likewise
    "restart": Controls._restart,  # noqa: SLF001 -- likewise
}


@contextlib.asynccontextmanager
async def running_controls(cluster: Cluster) -> AsyncIterator[Controls]:
    """The endpoint of a started market, for as long as the body runs."""
    controls = Controls(cluster)
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(controls.serve(listening))
    try:
        await asyncio.wait((serving, listening), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        controls.address = listening.result()
        yield controls
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        await controls.strikes.thaw_all()
