"""What is counted, and the server that tells it."""

import argparse
import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bus import metrics
from bus.metrics import (
    Histogram,
    MetricsServer,
    ProcessHealth,
    add_metrics_option,
    gauge,
    histogram,
    targets_file,
)
from tests.waiting import running, until


class OneGauge(Collector):
    """Tells one number, or fails."""

    def __init__(self) -> None:
        self.value = 7.0
        self.fault: Exception | None = None

    def collect(self) -> Iterator[Metric]:
        """As Collector says."""
        if self.fault is not None:
            raise self.fault
        yield gauge("matchbus_one", "One number.", self.value)


@asynccontextmanager
async def serving(collector: Collector, caplog: pytest.LogCaptureFixture) -> AsyncIterator[str]:
    """A server on a free port; its address, as the log has it."""
    caplog.set_level(logging.INFO)
    server = asyncio.create_task(MetricsServer(collector).run("127.0.0.1:0"))
    try:
        await until(lambda: caplog.messages)
        yield caplog.messages[0].removeprefix("metrics are at http://").removesuffix("/metrics")
    finally:
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to HOST:PORT."""
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def ask(address: str, request: bytes = b"GET /metrics HTTP/1.1\r\n\r\n") -> str:
    """The whole answer; empty when the connection was cut off."""
    reader, writer = await connect(address)
    try:
        writer.write(request)
        return (await reader.read()).decode()
    except ConnectionError:
        return ""
    finally:
        writer.close()


def test_a_histogram_counts_up_to_each_bound() -> None:
    """A value equal to a bound is below it; the last bucket has all."""
    shown = Histogram((1, 2, 5))
    for value in (0.5, 1, 2, 3, 100):
        shown.observe(value)
    assert shown.buckets == [("1", 2), ("2", 3), ("5", 4), ("+Inf", 5)]
    assert shown.sum == 106.5
    sums = {sample.name: sample.value for sample in histogram("matchbus_x", "X.", shown).samples}
    assert (sums["matchbus_x_count"], sums["matchbus_x_sum"]) == (5, 106.5)


async def test_the_server_answers_with_the_numbers_of_now(caplog: pytest.LogCaptureFixture) -> None:
    """GET /metrics gives the collector's metrics and those of the process, each time anew."""
    collector = OneGauge()
    async with serving(collector, caplog) as address:
        first = await ask(address)
        collector.value = 8
        second = await ask(address, b"GET /metrics?x=1 HTTP/1.0\r\nAccept: */*\r\n\r\n")
    assert first.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
    assert "\nmatchbus_one 7.0\n" in first
    assert "\nmatchbus_one 8.0\n" in second
    assert "\nmatchbus_event_loop_lag_seconds_count " in first
    assert "\nprocess_cpu_seconds_total " in first


@pytest.mark.parametrize(
    "request_", [b"GET / HTTP/1.1\r\n\r\n", b"POST /metrics HTTP/1.1\r\n\r\n", b"\r\n\r\n"]
)
async def test_anything_else_is_not_found(caplog: pytest.LogCaptureFixture, request_: bytes) -> None:
    """There is nothing but GET /metrics."""
    async with serving(OneGauge(), caplog) as address:
        assert (await ask(address, request_)).startswith("HTTP/1.1 404 ")


async def test_a_long_request_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    """What a client sends is bounded; the next one is answered."""
    async with serving(OneGauge(), caplog) as address:
        assert await ask(address, b"GET /" + b"x" * (3 * metrics.MAX_REQUEST_BYTES)) == ""
        assert "matchbus_one 7.0" in await ask(address)


async def test_who_says_nothing_is_cut_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is kept for a short time only, whatever its client does with it."""
    monkeypatch.setattr(metrics, "PATIENCE_S", 0.05)
    async with serving(OneGauge(), caplog) as address:
        assert await ask(address, b"GET /metr") == ""


async def test_only_a_few_are_answered_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """Those above the limit are cut off, and whoever comes later is answered."""
    async with serving(OneGauge(), caplog) as address:
        held = [await connect(address) for _ in range(metrics.MAX_REQUESTS)]
        refused = 0
        async with asyncio.timeout(10):
            while not refused:  # the server learns of a connection a little later than its client
                refused += await ask(address) == ""
        for _, writer in held:
            writer.close()
        async with asyncio.timeout(10):
            while "matchbus_one 7.0" not in await ask(address):
                pass


async def test_a_bug_in_a_collector_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The one who asked gets no answer, the log the traceback, and the next one an answer."""
    collector = OneGauge()
    collector.fault = KeyError("a bug")
    async with serving(collector, caplog) as address:
        assert await ask(address) == ""
        collector.fault = None
        assert "matchbus_one 7.0" in await ask(address)
    assert "a bug" in caplog.text


async def test_a_port_in_use_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A market goes on without metrics; the log says why they are missing."""
    async with serving(OneGauge(), caplog) as address:
        await MetricsServer(OneGauge()).run(address)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"no metrics are served: cannot listen on {address}" in record.getMessage()


async def test_stopping_waits_for_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """A client that keeps its connection open does not keep the process."""
    async with asyncio.timeout(5), serving(OneGauge(), caplog) as address:
        _, writer = await connect(address)
    writer.close()


async def test_a_late_loop_and_a_collection_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wakes are counted while it runs, collections by generation; afterwards nothing listens any more."""
    monkeypatch.setattr(metrics, "LAG_PERIOD_S", 0.001)
    health = ProcessHealth()
    before = len(gc.callbacks)
    async with running(health.run()):
        await until(lambda: health.lag.buckets[-1][1] > 2)
        gc.collect(1)
        assert health.pauses[1].buckets[-1][1] == 1
        assert health.pauses[1].sum > 0
    assert len(gc.callbacks) == before


def test_targets_are_what_file_sd_reads() -> None:
    """One group for each process, named by a label."""
    assert json.loads(targets_file({"exchange": "127.0.0.1:1", "engine 1": "127.0.0.1:2"})) == [
        {"targets": ["127.0.0.1:1"], "labels": {"process": "exchange"}},
        {"targets": ["127.0.0.1:2"], "labels": {"process": "engine 1"}},
    ]


def test_metrics_are_served_only_where_they_are_asked_for() -> None:
    """Left out, the option names no address."""
    parser = argparse.ArgumentParser()
    add_metrics_option(parser)
    assert parser.parse_args([]).metrics is None
    assert parser.parse_args(["--metrics", "[::1]:0"]).metrics == "[::1]:0"


@pytest.mark.parametrize(
    "text", ["9464", ":9464", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "[::1]:" + "1" * 5000]
)
def test_an_address_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line says what is wrong before anything starts."""
    parser = argparse.ArgumentParser()
    add_metrics_option(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--metrics", text])
    assert f"{text!r:.60} is not HOST:PORT" in capsys.readouterr().err
