"""One NATS connection with the limits this project needs; the defaults take minutes to notice a dead server.

Here: connecting, noticing, giving up. Not here: what is sent. A connection that ends for good (nats-py does
that on an oversized message or a protocol error, without a word) tells its owner, who then ends the process:
crash-only. A bug in what takes its messages is told as such an end.
"""

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import nats.errors
from nats.aio.client import Client, Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol import parser

from bus.addresses import shown

PING_INTERVAL_S: Final = 1
MAX_PINGS_OUT: Final = 2
RECONNECT_WAIT_S: Final = 0.1
_CLOSE_S: Final = 1.0
_JETSTREAM_S: Final = 1.0
_HELD_UP_S: Final = 0.02
"""With a deadline that is noticed so late, this process was held up: by its work, a busy machine, a stop."""

_TAKING_IN_S: Final = 0.25
"""How long what came meanwhile then has to be read, at least."""

_PENDING_BYTES: Final = 2 * 1024 * 1024
_UNSENT_BYTES: Final = 64 * 1024
_LOSSES: Final = (ConnectionError, nats.errors.UnexpectedEOF)

_log: Final = logging.getLogger(__name__)

T = TypeVar("T")

# nats-py ends a subject at white space of any kind, nats-server only at a blank, a tab and an end of line: a
# message on a subject with another kind cuts the connection of who gets it, for ever if it is stored.
_WORD: Final = rb"([^ \t\r\n]+)[ \t]+"
parser.MSG_RE = re.compile(rb"\AMSG[ \t]+" + 2 * _WORD + rb"(" + _WORD + rb")?(\d+)\r\n")
parser.HMSG_RE = re.compile(rb"\AHMSG[ \t]+" + 2 * _WORD + rb"(" + _WORD + rb")?" + rb"(\d+)[ \t]+(\d+)\r\n")

# When a server ends one of nats-py's TLS sockets, asyncio complains of its own protocol: ten times a second
# while a user is not let in, and the reason is told anyway.
logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in str(record.msg))


class LastError:
    """What went wrong last while connecting: the text, or nothing."""

    def __init__(self) -> None:
        self.text = ""

    def note(self, error: Exception) -> bool:
        """As `on_error` of `connect`, which then logs nothing."""
        # Who is not let in is told why, or meets a socket that has closed before this could be read.
        if not (self.text and isinstance(error, _LOSSES)):
            self.text = str(error) or self.text
        return True


class Patience:
    """`async with Patience(5):` is around what raises TimeoutError unless it is done within so many seconds.

    An event loop that was held up past the deadline notices that before it reads its sockets, where what the
    body waits for may have lain for long: then the body has half as long again, and at least a moment.
    """

    __slots__ = ("_due_s", "_limit_s", "_timeout", "_timer")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def renew(self, limit_s: float) -> None:
        """From now on the body has so many seconds."""
        self._timer.cancel()
        self._limit_s = limit_s
        self._begin()

    def _begin(self) -> None:
        self._due_s = time.monotonic() + self._limit_s
        self._timer = asyncio.get_running_loop().call_later(self._limit_s, self._at_deadline)

    def _at_deadline(self) -> None:
        if time.monotonic() - self._due_s > _HELD_UP_S:
            more_s = max(self._limit_s / 2, _TAKING_IN_S)
            self._timer = asyncio.get_running_loop().call_later(more_s, self._give_up)
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._timeout.reschedule(asyncio.get_running_loop().time())


async def heed_cancellation(waiting: Awaitable[T]) -> T:
    """Await what nats-py does; cancelled meanwhile, the task ends, whatever comes of it.

    nats-py swallows a cancellation while it flushes, and `asyncio.wait_for` of Python 3.11, with which it
    waits for answers and for sockets, forgets one that comes together with the answer. A task that asks,
    publishes or reconnects for ever would then never end, nor a process or a take-over that waits for its
    end.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()  # what cleans up after a cancellation may ask too
    try:
        return await waiting
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


class Connection(Client):
    """A nats-py client that knows whether its owner closed it, and which servers come first."""

    def __init__(self, servers: list[str], on_bug: Callable[[], None]) -> None:
        super().__init__()
        self.closed_by_owner = False
        self._on_bug = on_bug
        self._servers = servers
        self._home = servers[0]

    @property
    def pending_data_size(self) -> int:
        """Bytes that were published and have not left, whether nats-py holds them or the socket."""
        socket = self._socket
        return self._pending_data_size + (socket.get_write_buffer_size() if socket is not None else 0)

    async def connect(self, *servers: Any, **terms: Any) -> None:
        """As nats-py's; cancelled while a server says nothing, it leaves no socket behind."""
        try:
            await super().connect(*servers, **terms)
        except asyncio.CancelledError:
            self._abort()
            raise

    async def subscribe(self, *place: Any, **terms: Any) -> Subscription:
        """As nats-py's, which goes on whatever a callback raises; but a bug there is told as the end."""
        cb: Any = terms.get("cb")

        async def take(msg: Msg) -> None:
            try:
                await cb(msg)
            except (OSError, nats.errors.Error):  # NATS is away, say, which nats-py reports
                raise
            except Exception:  # noqa: BLE001 -- nobody awaits the task that it would end
                name = self.options["name"]
                _log.exception("%s: %.80r met a bug, so the connection counts as closed", name, msg.subject)
                self._on_bug()
                raise asyncio.CancelledError from None  # at which nats-py ends this subscription's task

        if cb is not None:
            terms["cb"] = take
        return await super().subscribe(*place, **terms)

    @property
    def server(self) -> str:
        """The server that it is on or, while it is on none, was on last, as it may be shown."""
        assert self._current_server is not None, "the first connection comes first"
        return shown(self._current_server.uri.geturl())

    def is_on(self, server: str) -> bool:
        """Whether it is connected to this one of its servers."""
        return self.connected_url == self._parse_server_uri(server)

    async def move_to(self, server: str) -> None:
        """Leave for this one of its servers, as after a loss. It comes first until it is lost itself."""
        self._begin_at(server)
        await self.force_reconnect()

    def _begin_at(self, server: str) -> None:
        self._home = server
        self.set_server_pool(sorted(self._servers, key=lambda one: one != server))

    async def close(self) -> None:
        """Close for good; `on_closed` is not called, because the owner knows.

        What is pending goes out first, for a second at most; while the server is away it is dropped, as
        nobody could take it.
        """
        self.closed_by_owner = True
        # nats-py would write it even into a dead socket, at which uvloop raises RuntimeError in the middle of
        # the close.
        if self.is_connected and self._transport is not None:
            with suppress(RuntimeError):  # the socket died just now
                self._transport.writelines(self._pending)
        self._pending = []
        self._pending_data_size = 0
        giving_up = asyncio.get_running_loop().call_later(_CLOSE_S, self._abort)
        try:
            await heed_cancellation(super().close())
        finally:
            giving_up.cancel()

    async def _connect_to_server(self, s: Srv) -> None:
        if self._transport is not None:
            # nats-py forgets a socket on which a frozen server said nothing.
            self._transport.close()  # type: ignore[no-untyped-call]  # nats-py gives it no types
        await heed_cancellation(super()._connect_to_server(s))

    async def _process_op_err(self, e: Exception) -> None:
        if self.is_connected and isinstance(e, _LOSSES):
            # nats-py goes on behind the server that it has lost, which is right only for one that is silent.
            self._begin_at(self._home if self.is_on(self._home) else self._servers[0])
        await super()._process_op_err(e)

    async def _attempt_reconnect(self) -> None:
        # nats-py first waits until the socket has closed: for ever, when a frozen server leaves bytes in it.
        # And cancelled there, by a close, it would take down that close with it.
        self._abort()
        if self._reading_task is not None:  # what still arrives would be read together with what comes next
            self._reading_task.cancel()
        if self._transport is not None:
            with suppress(OSError):
                await asyncio.shield(self._transport.wait_closed())  # type: ignore[no-untyped-call]  # likewise
        await super()._attempt_reconnect()

    async def _process_connect_init(self) -> None:
        try:
            await heed_cancellation(super()._process_connect_init())
        except (OSError, nats.errors.Error):
            raise
        except asyncio.CancelledError:
            # One that comes together with the server's answer nats-py forgets: it has begun to read, and
            # would connect again, for ever.
            for begun in (self._reading_task, self._ping_interval_task, self._flusher_task):
                if begun is not None:
                    begun.cancel()
            if self.closed_by_owner:
                self._status = Client.CLOSED
            raise
        except Exception as error:
            # A socket that is reset between two lines, or something that is no nats-server, may cause any
            # exception, and nats-py would never try again.
            raise nats.errors.Error(f"the server does not answer as one: {error!r}") from error

    async def _process_headers(self, headers: Any) -> Any:
        try:
            return await super()._process_headers(headers)
        except Exception:  # noqa: BLE001 -- nats-server passes on any bytes; nats-py would stop reading
            return None

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Any:
        try:
            return super()._build_message(sid, subject, reply, data, headers)
        except UnicodeDecodeError:  # likewise
            subject, reply = (text.decode(errors="replace").encode() for text in (subject, reply))
            return super()._build_message(sid, subject, reply, data, headers)

    def _abort(self) -> None:
        """Close the socket now, whatever is still in it."""
        if (socket := self._socket) is not None:
            socket.abort()

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109 -- as nats-py's
        *others: Any,
        **terms: Any,
    ) -> Msg:
        """As nats-py's, with which all of JetStream asks; a task that is cancelled meanwhile ends."""
        if self.is_reconnecting and not self._max_pending_size:
            raise nats.errors.OutboundBufferLimitError  # nats-py would, too, and keep the question for ever
        try:
            async with Patience(timeout):  # nats-py's own would give up what came while we were held up
                return await heed_cancellation(super().request(subject, payload, math.inf, *others, **terms))
        except TimeoutError:
            raise nats.errors.TimeoutError from None

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        """As nats-py's; but what the socket takes it gets now, not when a task of nats-py's has woken."""
        socket = self._socket if self.is_connected else None
        if socket is not None and socket.is_closing():
            # The server is gone, which nats-py's reader hears some turns later; until then a write into the
            # dead socket would raise RuntimeError, out of any publish and any question.
            await self._process_op_err(ConnectionResetError("the socket has closed"))
            socket = None
        if (
            socket is None
            or force_flush
            or not self._pending
            or socket.get_write_buffer_size() >= _UNSENT_BYTES
        ):
            return await heed_cancellation(super()._flush_pending(force_flush))
        socket.writelines(self._pending)
        self._pending = []
        self._pending_data_size = 0
        return None

    @property
    def _socket(self) -> asyncio.WriteTransport | None:
        """Where bytes leave; None before the first connection."""
        writer = getattr(self._transport, "_io_writer", None)
        return writer.transport if writer is not None else None


async def connect(
    url: str,
    *,
    name: str,
    on_closed: Callable[[], None],
    on_reconnected: Callable[[], None] | None = None,
    on_error: Callable[[Exception], object] | None = None,
    buffered: bool = True,
) -> Connection:
    """Connect, waiting until a server is there; afterwards reconnect for ever.

    `url` may name several servers of one cluster, with commas in between. The first that answers is taken,
    also after a loss: what the market promises needs everyone on one server (`bus.round_trip`). A frozen
    server is noticed in 3 s, and left. One that is cut off from the others is left by `NatsLink` alone, and
    the one that it goes to comes first until it is lost.
    `on_closed` is called when the connection is lost for good without its owner having closed it: nothing
    will ever arrive again; and when a subscription's callback meets a bug, which the log shows.
    `on_reconnected`: messages may be missing, so whatever is followed without a sequence is out of date.
    `on_error` gets what nats-py can only report, such as a dropped message; unless it answers True, the log
    gets it as a warning. `buffered=False`: a publish while the server is away raises OutboundBufferLimitError
    instead of leaving late, which the journal needs.
    """
    servers = url.split(",")
    connection = Connection(servers, on_closed)

    async def closed() -> None:
        if not connection.closed_by_owner:
            _log.error("%s: the connection to %s is closed for good", name, shown(url))
            on_closed()

    async def disconnected() -> None:
        if not connection.closed_by_owner:
            _log.warning("%s: lost the connection to %s", name, connection.server)

    async def reconnected() -> None:
        _log.info("%s: connected to %s again", name, connection.server)
        if on_reconnected is not None:
            on_reconnected()

    async def failed(error: Exception) -> None:
        if on_error is not None and on_error(error) is True:
            return
        # A loss is said above, once; while the server is away every attempt to reconnect fails.
        if connection.is_connected and not isinstance(error, _LOSSES):
            _log.warning("%s: %r", name, error)

    await connection.connect(
        servers,
        name=name,
        closed_cb=closed,
        disconnected_cb=disconnected,
        reconnected_cb=reconnected,
        error_cb=failed,
        ping_interval=PING_INTERVAL_S,
        max_outstanding_pings=MAX_PINGS_OUT,
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_WAIT_S,
        dont_randomize=True,
        pending_size=_PENDING_BYTES if buffered else 0,
    )
    return connection


async def has_jetstream(server: str) -> bool:
    """Whether JetStream answers at this server within a second, over a connection for this one question.

    In a cluster the answer is the leader's, so a server that is cut off from the others has none; one that
    led them, though, gives it for up to 20 s more.
    """
    with suppress(OSError, nats.errors.Error):  # a TimeoutError is an OSError
        async with asyncio.timeout(_JETSTREAM_S):
            connection = await connect(server, name="look", on_closed=lambda: None, on_error=lambda _: True)
            try:
                await connection.jetstream().account_info()
                return True
            finally:
                await connection.close()
    return False
