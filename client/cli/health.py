"""status: whether the venue is there, as seen from here."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

import grpc
import nats.errors
import nats.js.errors
from grpc_health.v1 import health_pb2, health_pb2_grpc
from matchbus import tls

from bus.addresses import check_nats, shown
from bus.connection import Connection, LastError, connect
from client import EngineRole, EngineState, EngineStatus, MatchbusError, Position
from client.cli.arguments import Parser
from client.cli.command import Command, Options
from client.cli.desk import Desk, exchange_asked
from client.cli.failures import DONE, REFUSED
from client.cli.settings import SettingsError
from client.cli.sheets import Cell, Sheet, engines_sheet, positions_sheet

_HEALTH_TIMEOUT_S: Final = 2.0
_GONE: Final = "nobody listens there: its process has ended, and its log says why"
_SILENT: Final = (
    "does not answer: frozen, overloaded or cut off, of which its log may say nothing. If it stays so, "
    "kill -9 its process: the next one goes on with all that is stored"
)

_AWAY: Final = (OSError, nats.errors.Error)


def _arrange(parser: Parser) -> None:
    del parser


async def status(options: Options, desk: Desk) -> int:
    """Show exchange, NATS, engines, and own positions when somebody is registered."""
    del options
    settings = desk.settings
    async with desk.output.waiting("looking at the venue"):
        (exchange, engines), bus = await asyncio.gather(
            _exchange(desk), _nats(settings.nats, settings.timeout_s)
        )
        client, positions = await _client(desk, reachable=exchange["reachable"])
        primaries = [engine for engine in engines if engine.role is EngineRole.PRIMARY]
        reasons = await asyncio.gather(*map(_refuses, primaries))
    refusing = {engine: reason for engine, reason in zip(primaries, reasons, strict=True) if reason}
    well = (
        exchange["reachable"]
        and bus["reachable"]
        and bool(primaries)
        and all(engine.state is EngineState.LIVE for engine in primaries)
        and not refusing
        and (client is None or client["registered"])
    )
    document = {
        "well": well,
        "exchange": exchange,
        "nats": bus,
        "engines": engines,
        "refusing": [engine.engine for engine in refusing],
        "client": None if client is None else client | {"positions": positions},
    }
    code = DONE if well else REFUSED
    if desk.output.as_json:
        desk.output.answer(document, code=code)
    else:
        sheets = [_venue_sheet(exchange, bus, refusing, client), engines_sheet(engines)]
        sheets += [positions_sheet(positions)] if positions else []
        desk.output.sheets(*sheets, code=code)
    return code


async def _exchange(desk: Desk) -> tuple[dict[str, Any], list[EngineStatus]]:
    seen: dict[str, Any] = {"address": desk.settings.exchange, "reachable": False, "error": ""}
    venue = desk.venue()
    try:
        async with exchange_asked():
            await venue.engines()  # the first call also connects
            began = time.monotonic()
            engines = await venue.engines()
    except MatchbusError as error:
        failure = await desk.explain(error)
        return seen | {"round_trip_ms": None, "error": f"{failure.text}; {failure.hint}"}, []
    return seen | {"reachable": True, "round_trip_ms": _ms_since(began)}, engines


async def _refuses(engine: EngineStatus) -> str:
    """Why an engine does not serve, or nothing: its feed may be live while its journal has no room."""
    async with tls.channel(engine.address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return _SILENT
            if "refused" in str(error.details()):
                return _GONE
            return f"does not say whether it takes orders: {error.details()}"
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    reason = engine.reason if engine.state is EngineState.LIVE else ""  # else that of its feed
    return f"does not serve: {reason or 'its log says why'}"


async def _nats(url: str, timeout_s: float) -> dict[str, Any]:
    seen: dict[str, Any] = {"url": shown(url), "reachable": False}
    last_error = LastError()
    nc: Connection | None = None
    nothing = {"round_trip_ms": None, "version": "", "streams": None}
    try:
        check_nats(url)
        async with asyncio.timeout(timeout_s):
            nc = await connect(url, name="status", on_closed=lambda: None, on_error=last_error.note)
            try:
                began = time.monotonic()
                await nc.flush()
                round_trip_ms = _ms_since(began)
                streams = (await nc.jetstream().account_info()).streams
                server = nc.connected_server_version
                version = f"{server.major}.{server.minor}.{server.patch}"
            finally:
                await nc.close()
    except ValueError as error:
        return seen | nothing | {"error": str(error)}
    except _AWAY as error:
        if nc is None:
            text, why = "no NATS answers there", str(error) or last_error.text
            hint = "name another by --nats, or keep it by `matchbus context set NAME --nats URL`"
        elif isinstance(error, nats.js.errors.ServiceUnavailableError):
            text, why, hint = "the NATS server there has no JetStream", "", "name a market's by --nats"
        else:
            text, why = "JetStream does not answer there", str(error)
            hint = "of three servers two must run; or name another by --nats"
        return seen | nothing | {"error": f"{text}{f' ({why})' if why else ''}: {hint}"}
    found = {"round_trip_ms": round_trip_ms, "version": version, "streams": streams, "error": ""}
    return seen | {"reachable": True} | found


async def _client(desk: Desk, *, reachable: bool) -> tuple[dict[str, Any] | None, list[Position]]:
    """Who is registered here, None for nobody, and what is held."""
    settings = desk.settings
    if not settings.client_id:
        return None, []
    seen: dict[str, Any] = {"client_id": settings.client_id, "registered": False, "engine": None, "error": ""}
    if not reachable:
        return seen | {"error": "cannot be told while the exchange is away"}, []
    try:
        client = await desk.client()
        async with exchange_asked():
            positions = list((await client.positions()).values())
    except (MatchbusError, SettingsError) as error:
        failure = await desk.explain(error)
        return seen | {"error": f"{failure.text}; {failure.hint}"}, []
    return seen | {"registered": True, "engine": client.engine}, positions


def _venue_sheet(
    exchange: dict[str, Any],
    bus: dict[str, Any],
    refusing: Mapping[EngineStatus, str],
    client: dict[str, Any] | None,
) -> Sheet:
    def verdict(part: dict[str, Any], well: str) -> Cell:
        return (well, "green") if not part["error"] else (str(part["error"]), "red")

    rows: list[tuple[Cell, ...]] = [
        ("exchange", exchange["address"], verdict(exchange, f"answers in {exchange['round_trip_ms']} ms")),
        (
            "NATS",
            bus["url"],
            verdict(
                bus,
                f"answers in {bus['round_trip_ms']} ms, version {bus['version']}, {bus['streams']} streams",
            ),
        ),
    ]
    rows += [(f"E{engine.engine}", engine.address, (reason, "red")) for engine, reason in refusing.items()]
    if client is None:
        rows.append(("client", "nobody", "register with `matchbus register NAME`"))
    else:
        rows.append(
            ("client", client["client_id"], verdict(client, f"registered, at home on E{client['engine']}"))
        )
    return Sheet("Venue", ("part", "where", "state"), rows)


def _ms_since(began: float) -> float:
    return round((time.monotonic() - began) * 1e3, 1)


COMMANDS: Final = (
    Command(
        "status", "Show whether exchange, NATS and engines are there, and what you hold.", _arrange, status
    ),
)
