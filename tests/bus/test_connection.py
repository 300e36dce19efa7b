"""The NATS connection."""

import asyncio
import logging
import os
import signal
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import nats.errors
import pytest
import uvloop
from nats.aio.msg import Msg

from bus.connection import Connection, Patience, connect, has_jetstream, heed_cancellation
from bus.server import NatsServer
from bus.stream import AWAY
from simulation.virtual import clock
from tests.waiting import freeze, frozen, until

if TYPE_CHECKING:
    from tests.conftest import Connections


async def _opened(
    server: NatsServer, *, buffered: bool = True
) -> tuple[Connection, list[str], asyncio.Event]:
    """A connection, what it reported, and an event that is set at each report."""
    said: list[str] = []
    reported = asyncio.Event()

    def note(what: str) -> None:
        said.append(what)
        reported.set()

    connection = await connect(
        server.url,
        name="test",
        on_closed=lambda: note("closed"),
        on_reconnected=lambda: note("reconnected"),
        on_error=lambda _error: None,
        buffered=buffered,
    )
    return connection, said, reported


async def test_it_comes_back_after_a_restart(own_server: NatsServer) -> None:
    """After a kill and a start the owner hears of the reconnect, and requests work again."""
    connection, said, reported = await _opened(own_server)
    await own_server.kill()
    await own_server.start()
    async with asyncio.timeout(10):
        await reported.wait()
    assert said == ["reconnected"]
    await connection.jetstream().account_info()
    await connection.close()
    assert said == ["reconnected"], "the owner's own close is no loss"


async def test_who_waits_to_publish_can_be_cancelled(own_server: NatsServer) -> None:
    """A publish waits while the server takes nothing; cancelled, it does not go on as if nothing was."""
    connection, _, _ = await _opened(own_server)
    published = 0

    async def publish() -> None:
        nonlocal published
        while True:
            await connection.publish("anything", bytes(1_000_000))
            published += 1

    await freeze(own_server.pid)
    try:
        publishing = asyncio.create_task(publish())
        seen = -1
        while seen != published:  # until it waits
            seen = published
            await asyncio.sleep(0.2)
        assert not publishing.done()
        publishing.cancel()
        await asyncio.wait((publishing,), timeout=1)
        assert publishing.cancelled()
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    await connection.close()


async def test_a_frozen_server_is_noticed(own_server: NatsServer) -> None:
    """A server that keeps its socket but answers nothing counts as away after at most 4 s."""
    connection, said, reported = await _opened(own_server)
    await freeze(own_server.pid)
    await until(lambda: not connection.is_connected, 4)
    os.kill(own_server.pid, signal.SIGCONT)
    async with asyncio.timeout(4):
        await reported.wait()
    assert said == ["reconnected"]
    await connection.close()


async def test_a_frozen_server_that_takes_no_more_is_left(tmp_path: Path) -> None:
    """With its socket full of bytes that will never leave, a connection still goes to another server."""
    async with NatsServer(tmp_path / "one") as one, NatsServer(tmp_path / "two") as two:
        connection = await connect(f"{one.url},{two.url}", name="test", on_closed=lambda: None)
        await freeze(one.pid)
        try:
            filling = asyncio.create_task(_fill(connection))
            await until(lambda: _is_connected_to(connection, two), 15)
            filling.cancel()
            await connection.close()
        finally:
            os.kill(one.pid, signal.SIGCONT)


async def test_all_are_on_the_first_server_that_answers(tmp_path: Path, connections: "Connections") -> None:
    """While it is away they are on the next; one that is lost comes back to the first."""

    def all_are_on(server: NatsServer) -> bool:
        return all(_is_connected_to(connection, server) for connection in opened)

    async with NatsServer(tmp_path / "one") as one, NatsServer(tmp_path / "two") as two:
        url = f"{one.url},{two.url}"
        opened = [await connections.open(url) for _ in range(8)]
        assert all_are_on(one)
        opened[0]._abort()
        await until(lambda: not opened[0].is_connected)
        await until(lambda: all_are_on(one))
        await one.kill()
        await until(lambda: all_are_on(two))
        await one.start()
        await two.kill()
        await until(lambda: all_are_on(one))


async def test_a_close_ends_what_reconnects(own_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that comes together with a refusal; for ever it would keep a process from ending."""
    connection, _, _ = await _opened(own_server)
    closing: list[asyncio.Task[None]] = []

    async def refused(**_: object) -> None:
        reconnecting = connection._reconnection_task
        assert reconnecting is not None
        reconnecting.cancel()  # as `close` does
        closing.append(reconnecting)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio, "open_connection", refused)
    await own_server.kill()
    await until(lambda: bool(closing))
    await asyncio.wait((closing[0],), timeout=1)
    assert closing[0].done()
    monkeypatch.undo()
    await connection.close()


@pytest.mark.parametrize("line", [b"INFO", b"PONG"])
async def test_a_close_that_comes_together_with_an_answer(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """Whichever it is, the connection is closed, and nothing of it goes on."""
    connection, _, _ = await _opened(own_server)
    closing: list[asyncio.Task[None]] = []
    read = asyncio.StreamReader.readline

    async def readline(reader: asyncio.StreamReader) -> bytes:
        said = await read(reader)
        if line in said and not closing:
            closing.append(asyncio.create_task(connection.close()))
        return said

    monkeypatch.setattr(asyncio.StreamReader, "readline", readline)
    connection._abort()
    await until(lambda: bool(closing))
    await closing[0]
    await until(lambda: connection.is_closed and asyncio.all_tasks() == {asyncio.current_task()})


async def test_who_closes_can_be_cancelled(own_server: NatsServer) -> None:
    """While the server is away, too, when nats-py waits for its own task and forgets a cancellation."""
    connection, _, _ = await _opened(own_server)
    await own_server.kill()
    await until(lambda: connection._reconnection_task_future is not None)
    closing = asyncio.create_task(connection.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait((closing,))
    assert closing.cancelled()
    assert connection.is_closed


@pytest.mark.parametrize("line", [b"INFO", b"PONG"])
async def test_a_connect_that_is_cancelled_together_with_an_answer(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """Whichever it is, nothing of it goes on."""
    read = asyncio.StreamReader.readline

    async def readline(reader: asyncio.StreamReader) -> bytes:
        said = await read(reader)
        if line in said:
            connecting.cancel()
        return said

    monkeypatch.setattr(asyncio.StreamReader, "readline", readline)
    connecting = asyncio.create_task(connect(own_server.url, name="test", on_closed=lambda: None))
    await asyncio.wait((connecting,))
    assert connecting.cancelled()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


async def test_it_stays_where_it_was_sent(tmp_path: Path) -> None:
    """Cut off there it comes back there; when that server dies, the first one comes first again."""
    async with NatsServer(tmp_path / "one") as one, NatsServer(tmp_path / "two") as two:
        said = asyncio.Event()
        connection = await connect(
            f"{one.url},{two.url}", name="test", on_closed=lambda: None, on_reconnected=said.set
        )

        async def comes_back_to(server: NatsServer) -> None:
            async with asyncio.timeout(10):
                await said.wait()
            said.clear()
            assert _is_connected_to(connection, server)

        await connection.move_to(two.url)
        await comes_back_to(two)
        connection._abort()
        await comes_back_to(two)
        await two.kill()
        await comes_back_to(one)
        await two.start()
        connection._abort()
        await comes_back_to(one)
        await connection.close()


async def test_a_loss_names_the_server_and_no_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells which of several was lost, and which the connection went to."""
    caplog.set_level(logging.INFO, "bus.connection")
    said = asyncio.Event()
    async with NatsServer(tmp_path / "one") as one, NatsServer(tmp_path / "two") as two:
        url = ",".join(server.url.replace("//", "//venue:venue@") for server in (one, two))
        connection = await connect(url, name="test", on_closed=lambda: None, on_reconnected=said.set)
        await one.kill()
        async with asyncio.timeout(10):
            await said.wait()
        await connection.close()
    assert caplog.messages == [
        f"test: lost the connection to {one.url}",
        f"test: connected to {two.url} again",
    ]


async def test_a_question_to_a_frozen_server_leaves_nothing_behind(own_server: NatsServer) -> None:
    """It ends after a second, and its socket is closed."""
    assert await has_jetstream(own_server.url)
    before = _open_files()
    async with frozen(own_server.pid):
        for _ in range(3):
            assert not await has_jetstream(own_server.url)
        await until(lambda: _open_files() == before)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_closing_does_not_wait_for_a_frozen_server(own_server: NatsServer) -> None:
    """A close while the socket is full ends, though the server takes nothing."""
    connection, _, _ = await _opened(own_server)
    await freeze(own_server.pid)
    try:
        filling = asyncio.create_task(_fill(connection))
        await until(lambda: connection.pending_data_size > 0)
        async with asyncio.timeout(3):
            await connection.close()
        filling.cancel()
    finally:
        os.kill(own_server.pid, signal.SIGCONT)


def _is_connected_to(connection: Connection, server: NatsServer) -> bool:
    url = connection.connected_url
    return url is not None and url.netloc == server.url.removeprefix("nats://")


async def _fill(connection: Connection) -> None:
    """Publish until a publish waits, and on."""
    while True:
        await connection.publish("anything", bytes(1_000_000))


@pytest.mark.parametrize("first_line", [True, False], ids=["behind the first line", "instead of a line"])
def test_a_reset_in_the_middle_of_a_reconnect(tmp_path: Path, *, first_line: bool) -> None:
    """Under uvloop, too, where a write into such a socket is a RuntimeError: it connects again."""

    async def reset_once() -> None:
        async with NatsServer(tmp_path) as server, _Door(server.port) as door:
            connection = await connect(f"nats://127.0.0.1:{door.port}", name="test", on_closed=lambda: None)
            door.refuse_next(after_first_line=first_line)
            door.cut()
            await until(lambda: connection.stats["reconnects"] == 1)
            assert door.refused == 1
            await connection.close()

    uvloop.run(reset_once())


class _Door:
    """Passes connections on to a port; the next one may be reset, or be told what no server says."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.refused = 0
        self._inner = port
        self._refuse: bool | None = None
        self._through: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def refuse_next(self, *, after_first_line: bool) -> None:
        """The next connection gets the server's first line, or nonsense for it, and a reset."""
        self._refuse = after_first_line

    def cut(self) -> None:
        """Reset what is connected."""
        for writer in self._through:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, to_inner = await asyncio.open_connection("127.0.0.1", self._inner)
        self._through += (writer, to_inner)
        if self._refuse is None:
            await asyncio.gather(_pipe(reader, to_inner), _pipe(inner, writer))
            return
        first_line, self._refuse = self._refuse, None
        self.refused += 1
        writer.write(await inner.readline() if first_line else b"INFO\r\n")
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while part := await reader.read(65_536):
            writer.write(part)


async def _heard(server: NatsServer, frames: bytes) -> list[Msg]:
    """The two messages under `junk.` that a stranger publishes by these bytes, without a complaint."""
    connection, said, _ = await _opened(server)
    subscription = await connection.subscribe("junk.*")
    await connection.flush()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n' + frames)
    received = [await subscription.next_msg(2) for _ in range(2)]
    assert said == []
    writer.close()
    await connection.close()
    return received


async def test_a_subject_that_is_no_text_stops_nothing(own_server: NatsServer) -> None:
    """It arrives with what it has for text; what comes after it arrives too."""
    received = await _heard(own_server, b"PUB junk.\xff 5\r\nhello\r\nPUB junk.next 3\r\nyou\r\n")
    assert [message.data for message in received] == [b"hello", b"you"]
    assert received[1].subject == "junk.next"


@pytest.mark.parametrize(
    "headers",
    [b"\x00", b"xx\r\n\r\n", b"NATS/1.0", b"NATS/1.0 \xff\xff\xff\r\n\r\n"],
)
async def test_headers_that_are_none_stop_nothing(own_server: NatsServer, headers: bytes) -> None:
    """The message arrives without them; what comes after it arrives too."""
    junk = b"HPUB junk.a %d %d\r\n%shello\r\n" % (len(headers), len(headers) + 5, headers)
    received = await _heard(own_server, junk + b"PUB junk.b 3\r\nyou\r\n")
    assert [(message.data, message.headers) for message in received] == [(b"hello", None), (b"you", None)]


@pytest.mark.parametrize("space", [b"\v", b"\f"])
async def test_white_space_within_a_subject_stops_nothing(own_server: NatsServer, space: bytes) -> None:
    """nats-server takes it for any other character; so does who gets it."""
    place = b"junk.A" + space + b"7"
    plain = b"PUB %s %s 5\r\nhello\r\n" % (place, place)
    with_headers = b"HPUB %s %s 12 17\r\nNATS/1.0\r\n\r\nagain\r\n" % (place, place)
    received = await _heard(own_server, plain + with_headers)
    assert [message.data for message in received] == [b"hello", b"again"]
    assert {message.subject for message in received} == {place.decode()}


async def test_a_close_by_the_server_is_told(shared_server: NatsServer) -> None:
    """When nats-py gives a connection up for good, which a fatal protocol error does, its owner is called."""
    connection, said, reported = await _opened(shared_server)
    await connection._send_command(b"BROKEN\r\n")
    await connection._flush_pending()
    async with asyncio.timeout(2):
        await reported.wait()
    assert said == ["closed"]
    assert connection.is_closed


async def test_unbuffered_publishes_fail_while_the_server_is_away(own_server: NatsServer) -> None:
    """Without a buffer nothing published during an outage can leave after it, and no question is kept."""
    connection, _, _ = await _opened(own_server, buffered=False)
    await connection.jetstream().account_info()
    await own_server.kill()
    await until(lambda: not connection.is_connected)
    with pytest.raises(nats.errors.OutboundBufferLimitError):
        await connection.publish("anything", b"")
    with pytest.raises(nats.errors.OutboundBufferLimitError):
        await connection.request("anything", b"")
    assert not connection._resp_map
    await connection.close()


async def test_an_answer_that_came_while_the_loop_was_held_up_counts(nats_connection: Connection) -> None:
    """It waits to be read when the event loop goes on: who answered in time is not told as silent."""
    await nats_connection.request("$JS.API.INFO")  # the first one waits to have an inbox
    asking = asyncio.create_task(nats_connection.request("$JS.API.INFO", timeout=0.2))
    await asyncio.sleep(0)
    assert nats_connection._resp_map, "it has left"
    time.sleep(0.4)  # noqa: ASYNC251 -- the loop is to stand still
    assert (await asking).data


async def test_a_question_that_nobody_answers_ends(nats_connection: Connection) -> None:
    """As nats-py's, once the event loop was held up a little later, however often it is held up."""

    async def say_nothing(_: Msg) -> None: ...

    await nats_connection.subscribe("silence", cb=say_nothing)
    with pytest.raises(nats.errors.TimeoutError):
        await nats_connection.request("silence", timeout=0.1)
    asking = asyncio.create_task(nats_connection.request("silence", timeout=0.1))
    async with asyncio.timeout(10):
        while not asking.done():
            await asyncio.sleep(0)
            time.sleep(0.15)  # noqa: ASYNC251 -- likewise
    with pytest.raises(nats.errors.TimeoutError):
        await asking
    assert not nats_connection._resp_map


async def test_patience_that_is_renewed_begins_anew() -> None:
    """What goes on has as long as it takes; from the last word on it is limited."""
    words = 0

    async def go_on() -> None:
        nonlocal words
        async with Patience(60) as patience:
            for words in range(1, 5):  # noqa: B007 -- it tells how far this came
                patience.renew(0.3)
                await asyncio.sleep(0.1)
            await asyncio.Event().wait()

    going = asyncio.create_task(go_on())
    ended, _ = await asyncio.wait((going,), timeout=10)
    assert ended
    assert isinstance(going.exception(), TimeoutError)
    assert words == 4


@pytest.mark.parametrize(
    ("limit_s", "held_up_s", "ends_s"),
    [(10.0, 0.0, 10.0), (10.0, 9.0, 10.0), (10.0, 12.0, 17.0), (0.1, 2.0, 2.25)],
    ids=["never held up", "not past the deadline", "half as long again", "at least a moment"],
)
def test_patience_is_longer_only_for_who_was_held_up(limit_s: float, held_up_s: float, ends_s: float) -> None:
    """Past the deadline: what came meanwhile is read then. Nobody else waits longer than was said."""

    async def waits_s() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, clock.VirtualLoop)
        with suppress(TimeoutError):
            async with Patience(limit_s):
                loop._jumping.now_s += held_up_s
                await asyncio.Event().wait()
        return loop.time()

    assert clock.run(waits_s) == pytest.approx(ends_s)


def test_patience_leaves_nothing_behind() -> None:
    """What was done in time has no deadline any more, whether it was renewed or not."""
    complaints: list[object] = []

    async def be_quick() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        for renewed in (False, True):
            async with Patience(1) as patience:
                if renewed:
                    patience.renew(2)
            await asyncio.sleep(3)

    clock.run(be_quick)
    assert complaints == []


@pytest.mark.parametrize("buffered", [True, False])
def test_a_server_that_dies_while_many_publish_is_away(tmp_path: Path, *, buffered: bool) -> None:
    """Under uvloop a socket closes before its reader hears so: a publish then is one while NATS is away."""

    async def kill_under_load() -> None:
        async with NatsServer(tmp_path) as server:
            connection, said, reported = await _opened(server, buffered=buffered)
            for _ in range(3):
                reported.clear()
                async with asyncio.TaskGroup() as busy:
                    for _ in range(3):
                        busy.create_task(_publish_until_away(connection))
                        busy.create_task(_ask_until_away(connection))
                    await asyncio.sleep(0.05)
                    os.kill(server.pid, signal.SIGKILL)
                    time.sleep(0.05)  # noqa: ASYNC251 -- a busy process comes late to it
                await server.kill()
                await server.start()
                async with asyncio.timeout(5):
                    await reported.wait()
            assert said == ["reconnected"] * 3
            await connection.close()

    uvloop.run(kill_under_load())


async def _publish_until_away(connection: Connection) -> None:
    while connection.is_connected:
        with suppress(*AWAY):
            await connection.publish("anything", bytes(200))
        await asyncio.sleep(0)


async def _ask_until_away(connection: Connection) -> None:
    while connection.is_connected:
        with suppress(*AWAY):
            await connection.request("nobody", timeout=0.1)
        await asyncio.sleep(0)


def test_closing_while_the_server_is_away(tmp_path: Path) -> None:
    """Under uvloop, too, a close with bytes pending ends the connection and its tasks, and raises nothing."""

    async def close_in_an_outage() -> None:
        async with NatsServer(tmp_path) as server:
            connection, said, _ = await _opened(server)
            await connection.subscribe("anything")
            await server.kill()
            await until(lambda: not connection.is_connected, 2)
            await connection.publish("anything", b"")
            await connection.close()
            assert connection.is_closed
            assert said == []
            await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    uvloop.run(close_in_an_outage())


def test_closing_in_the_moment_of_the_loss(tmp_path: Path) -> None:
    """A close right after the socket died, before anybody noticed, raises nothing either."""

    async def close_at_once() -> None:
        async with NatsServer(tmp_path) as server:
            connection, _, _ = await _opened(server)
            await connection.publish("anything", b"")
            assert connection._transport is not None
            connection._transport.close()  # type: ignore[no-untyped-call]  # of nats-py
            assert connection.is_connected
            await connection.close()
            assert connection.is_closed

    uvloop.run(close_at_once())


async def test_closing_sends_what_is_pending(own_server: NatsServer) -> None:
    """What was published just before the close arrives."""
    connection, _, _ = await _opened(own_server)
    other, _, _ = await _opened(own_server)
    subscription = await other.subscribe("anything")
    await other.flush()
    for number in range(100):
        await connection.publish("anything", b"%d" % number)
    await connection.close()
    received = [int((await subscription.next_msg(2)).data) for _ in range(100)]
    assert received == list(range(100))
    await other.close()


async def test_connecting_waits_for_the_server(own_server: NatsServer) -> None:
    """A connect that begins before the server is there ends when it is."""
    await own_server.stop()
    opening = asyncio.create_task(_opened(own_server))
    await asyncio.wait([opening], timeout=0.2)
    assert not opening.done()
    await own_server.start()
    async with asyncio.timeout(2):
        connection, _, _ = await opening
    await connection.close()


@pytest.mark.parametrize("refused", [False, True])
async def test_a_cancellation_that_comes_with_the_answer_counts(refused: bool) -> None:
    """A task that asks for ever ends, though nats-py's wait is over in the same moment."""
    asked: list[asyncio.Future[None]] = []

    async def ask_for_ever() -> None:
        while True:
            asked.append(asyncio.get_running_loop().create_future())
            with suppress(ConnectionError):
                await heed_cancellation(asyncio.wait_for(asked[-1], 10))

    task = asyncio.create_task(ask_for_ever())
    await asyncio.sleep(0)
    if refused:
        asked[0].set_exception(ConnectionError())
    else:
        asked[0].set_result(None)
    task.cancel()
    await asyncio.wait([task], timeout=0.1)
    assert task.cancelled()


async def test_what_cleans_up_may_ask() -> None:
    """A task that was cancelled may still wait for an answer at its end, as for the release of a lease."""
    answered = asyncio.get_running_loop().create_future()
    answered.set_result(5)
    heard: list[int] = []

    async def clean_up_at_the_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            heard.append(await heed_cancellation(asyncio.wait_for(answered, 10)))

    task = asyncio.create_task(clean_up_at_the_end())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert heard == [5]
