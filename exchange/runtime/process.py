"""One exchange process: what is wired to what, in which order it starts and how it ends.

    NATS ── provision.*   ──▶ journals made for engines
         ── instruments   ◀── instruments.toml at start; then watched
         ── engines       ──▶ who they are, where they listen
         ── clients       ──▶ how many call each engine home
         ── md.>          ──▶ FeedFollower ──▶ engine states, consolidated book, best prices in the log
         ── EXECUTIONS    ──▶ Positions (from the first message on; SERVING once they have caught up)
    gRPC ◀─▶ ExchangeServicer ──▶ Registrar ──▶ clients, sessions

Everything durable is in NATS, so a killed exchange starts again as it was. A fault that nobody here can act
on ends the process with one line that says what to do.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import grpc
import msgspec
import nats.errors
import nats.js.errors
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from matchbus.v1 import matchbus_pb2_grpc
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus import executions, messages, provision, subjects
from bus.connection import connect
from bus.executions import ExecutionsDamaged
from bus.follower import FeedFollower
from bus.messages import EngineEntry, InstrumentEntry, ProvisionReply
from bus.provision import ProvisionError
from bus.registry import Bucket, BucketUnavailable
from bus.stream import AWAY, StreamError
from exchange.directory import Directory
from exchange.positions import Positions
from exchange.runtime import views
from exchange.runtime.instruments import InstrumentsRefused, publish_instruments, read_instruments
from exchange.runtime.registration import Registrar
from exchange.runtime.servicer import ExchangeServicer
from exchange.runtime.settings import Settings, SettingsRefused, parse_settings

log = logging.getLogger("exchange")

SERVICE: Final = "matchbus.v1.Exchange"

START_DEADLINE_S: Final = 10.0
"""How long a start waits for a NATS server, and then for its JetStream."""

_RETRY_S: Final = 0.1
_STOP_GRACE_S: Final = 0.5
_CLOSE_DEADLINE_S: Final = 0.5
_BEST_PRICES_PERIOD_S: Final = 0.1
_MAX_CONCURRENT_RPCS: Final = 2_000
_SERVER_OPTIONS: Final = (
    ("grpc.max_concurrent_streams", 100),
    ("grpc.max_receive_message_length", 16 * 1024),
    ("grpc.max_send_message_length", 4 * 1024 * 1024),  # a whole book; no client takes more by default
    ("grpc.max_metadata_size", 4 * 1024),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 10_000),
    ("grpc.so_reuseport", 0),  # two exchanges must not share a port silently
)


_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class ExchangeFault(Exception):  # noqa: N818 -- the fault is named, as everywhere in this project
    """The exchange cannot go on; the text says why and what to do."""


_ENDINGS: Final = (
    ExchangeFault,
    SettingsRefused,
    InstrumentsRefused,
    ProvisionError,
    BucketUnavailable,
    ExecutionsDamaged,
    StreamError,
    nats.errors.Error,
)
"""Faults that end the process with their text alone; anything else is a bug and shows where it happened."""


class _Link:
    """What the NATS connection has to tell: it was away, it lost messages, it is closed for good."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.last_error = ""
        self.nc: Client | None = None
        self.follower: FeedFollower | None = None

    def on_reconnected(self) -> None:
        if self.follower is not None:
            self.follower.reconnected()

    def on_error(self, error: Exception) -> None:
        if self.follower is not None and self.follower.on_error(error):
            return
        self.last_error = repr(error)
        if self.nc is not None and self.nc.is_connected:  # while it is away every attempt to connect fails
            log.warning("NATS: %r", error)


class Exchange:
    """The parts of one exchange on one NATS connection, and the tasks that keep them up to date."""

    def __init__(self, settings: Settings, nc: Client, link: _Link) -> None:
        self._settings = settings
        self._nc = nc
        self._link = link
        self._engines: dict[int, EngineEntry] = {}
        self._instruments: dict[str, InstrumentEntry] = {}
        self._directory = Directory()
        self._positions = Positions()
        self._executions = executions.read(nc)
        self._feed_log = views.FeedLog()
        self._follower = FeedFollower(
            nc, own_engine=None, on_change=self._feed_log.note, on_state=self._feed_log.on_state
        )
        link.follower = self._follower
        self._clients_bucket = Bucket(nc, subjects.CLIENTS_BUCKET, messages.decode_client)
        self._engines_bucket = Bucket(nc, subjects.ENGINES_BUCKET, messages.decode_engine)
        self._instruments_bucket = Bucket(nc, subjects.INSTRUMENTS_BUCKET, messages.decode_instrument)
        self._sessions_bucket = Bucket(nc, subjects.SESSIONS_BUCKET, messages.decode_session)
        self._registrar = Registrar(
            self._clients_bucket,
            self._sessions_bucket,
            self._directory,
            self._engines,
            lambda: views.live_engines(self._engines, self._follower.peers),
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs lack it

    async def run(self, entries: list[InstrumentEntry], listening: Callable[[str], None]) -> None:
        """Serve until cancelled; `listening` is told the address as soon as calls are taken.

        Raises a group of the faults that end an exchange.
        """
        await publish_instruments(self._instruments_bucket, entries)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        server = self._make_server()
        address = _bind(server, self._settings.listen)
        try:
            async with asyncio.TaskGroup() as group:
                filled = self._start_watches(group)
                group.create_task(self._follower.run())
                group.create_task(self._follow_executions())
                group.create_task(self._write_best_prices())
                group.create_task(self._answer_provision_requests())
                group.create_task(self._end_when_closed())
                for bucket in filled:
                    await bucket.wait()
                await server.start()
                log.info("exchange listens at %s", address)
                listening(address)
                await self._executions.caught_up.wait()
                await self._set_health(health_pb2.HealthCheckResponse.SERVING)
                log.info(
                    "exchange is ready: %d instruments, %d engines, %d clients",
                    len(self._instruments),
                    len(self._engines),
                    len(self._directory),
                )
        finally:
            await self._health.enter_graceful_shutdown()
            await server.stop(_STOP_GRACE_S)
            self._registrar.close()
            log.info("exchange at %s has stopped", address)

    def _make_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=_SERVER_OPTIONS, maximum_concurrent_rpcs=_MAX_CONCURRENT_RPCS)
        servicer = ExchangeServicer(
            password=self._settings.password,
            registrar=self._registrar,
            sessions=self._sessions_bucket,
            instruments=self._instruments,
            positions=self._positions,
            caught_up=self._executions.caught_up.is_set,
            list_engines=lambda: views.engine_views(self._engines, self._follower.peers, time.monotonic_ns()),
            consolidated_book=lambda symbol, depth: views.consolidated_book(
                symbol, depth, self._follower.peers
            ),
        )
        matchbus_pb2_grpc.add_ExchangeServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    def _start_watches(self, group: asyncio.TaskGroup) -> list[asyncio.Event]:
        """Follow the buckets; the events are set when what is in them now is known."""
        filled = [asyncio.Event() for _ in range(3)]
        group.create_task(self._clients_bucket.watch(self._directory.put, filled=filled[0]))
        group.create_task(self._engines_bucket.watch(self._on_engine, filled=filled[1]))
        group.create_task(self._instruments_bucket.watch(self._on_instrument, filled=filled[2]))
        return filled

    def _on_engine(self, key: str, entry: EngineEntry | None) -> None:
        if entry is None:
            self._engines.pop(int(key), None)
        elif self._engines.get(entry.engine) != entry:
            self._engines[entry.engine] = entry
            log.info("engine E%d is at %s in epoch %d", entry.engine, entry.address, entry.epoch)

    def _on_instrument(self, key: str, entry: InstrumentEntry | None) -> None:
        if entry is None:
            self._instruments.pop(subjects.symbol_of(key), None)
        else:
            self._instruments[entry.symbol] = entry

    async def _follow_executions(self) -> None:
        async for message in self._executions:
            for client in self._positions.apply(message):
                log.error("the positions of client %s are unknown: %s", client, self._positions.gap(client))

    async def _write_best_prices(self) -> None:
        while True:
            self._feed_log.write(self._follower.peers)
            await asyncio.sleep(_BEST_PRICES_PERIOD_S)

    async def _answer_provision_requests(self) -> None:
        requests = await self._nc.subscribe(subjects.PROVISION_SUBJECTS)
        async for request in requests.messages:
            try:
                error = await self._provision_journal(request)
            except nats.errors.Error as fault:
                # No answer: the engine asks again, an error would end it.
                log.warning("cannot make the journal that %s asks for just now: %r", request.subject, fault)
                continue
            if request.reply:
                await self._nc.publish(request.reply, messages.encode(ProvisionReply(error)))

    async def _provision_journal(self, request: Msg) -> str:
        """Make the journal that is asked for; why not, when that is for good."""
        try:
            engine = messages.decode_provision_request(request.data).engine
            if request.subject != subjects.provision(engine):
                return f"the request on {request.subject} is for engine {engine}"
            await provision.provision_journal(self._nc, engine)
        except (msgspec.MsgspecError, ValueError, ProvisionError) as error:
            log.warning("refused to make a journal: %s", error)
            return str(error)
        log.info("the journal of E%d is there", engine)
        return ""

    async def _end_when_closed(self) -> None:
        await self._link.closed.wait()
        raise ExchangeFault(
            f"the connection to {self._settings.nats_url} is closed for good; nothing is lost, start again"
        )

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)


async def run(settings: Settings, listening: Callable[[str], None]) -> None:
    """Run an exchange until cancelled. Raises one of the faults that end it, or a group of them."""
    entries = read_instruments(settings.instruments)
    link = _Link()
    nc = link.nc = await _connect(settings.nats_url, link)
    try:
        await _provision(nc)
        await Exchange(settings, nc, link).run(entries, listening)
    finally:
        # A connection that is away cannot send what it has pending; uvloop says so with a RuntimeError.
        with suppress(TimeoutError, RuntimeError):
            async with asyncio.timeout(_CLOSE_DEADLINE_S):
                await nc.close()


def main() -> None:
    """Run the `exchange` command."""
    try:
        settings = parse_settings(sys.argv[1:], os.environ)
        _configure_logging(settings.log_dir)
        uvloop.run(_run_until_signal(settings))
    except* _ENDINGS as faults:
        for text in _texts(faults):
            log.critical("exchange ends: %s", text)
            print(f"exchange: {text}", file=sys.stderr)  # noqa: T201  # the log may go to a file
        sys.exit(1)


async def _run_until_signal(settings: Settings) -> None:
    running = asyncio.create_task(run(settings, lambda _: None))
    stopping = asyncio.Event()

    def stop() -> None:
        if not stopping.is_set():
            stopping.set()
            running.cancel()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop)
    try:
        await running
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise


async def _connect(url: str, link: _Link) -> Client:
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            return await connect(
                url,
                name="exchange",
                on_closed=link.closed.set,
                on_reconnected=link.on_reconnected,
                on_error=link.on_error,
            )
    except TimeoutError as error:
        raise ExchangeFault(
            f"no NATS server answers at {url} ({link.last_error}): start one (nats-server -c nats.conf) "
            "or name another by --nats"
        ) from error


async def _provision(nc: Client) -> None:
    """Make what all share, as soon as JetStream answers: it comes up a little after the server."""
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            while True:
                try:
                    return await provision.provision_shared(nc)
                except (*AWAY, nats.js.errors.ServiceUnavailableError):
                    await asyncio.sleep(_RETRY_S)
    except TimeoutError as error:
        raise ExchangeFault(
            "the NATS server answers but its JetStream does not: start it with nats.conf, and see its log"
        ) from error


def _bind(server: grpc.aio.Server, listen: str) -> str:
    """Take the address; returns it with the port that was taken."""
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise ExchangeFault(
            f"cannot listen on {listen}: it is in use (by another exchange?) or no address of this machine"
        ) from error
    return f"{listen.rpartition(':')[0]}:{port}"


def _configure_logging(log_dir: Path | None) -> None:
    """Log to DIR/exchange_logs/exchange.log and only warnings to the terminal; without DIR all to it."""
    terminal = logging.StreamHandler()
    handlers: list[logging.Handler] = [terminal]
    if log_dir is not None:
        terminal.setLevel(logging.WARNING)
        try:
            folder = log_dir / "exchange_logs"
            folder.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(folder / "exchange.log", encoding="utf-8"))
        except OSError as error:
            raise SettingsRefused(f"cannot write logs to {log_dir}: {error}") from error
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT, handlers=handlers, force=True)


def _texts(faults: BaseExceptionGroup[Exception]) -> Iterator[str]:
    for fault in faults.exceptions:
        if isinstance(fault, BaseExceptionGroup):
            yield from _texts(fault)
        else:
            yield str(fault) or repr(fault)


if __name__ == "__main__":
    main()
