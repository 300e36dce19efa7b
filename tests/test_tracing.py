"""Spans on their way to a collector: sampled alike by all, never in the way of who notes them."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from matchbus import tracing
from matchbus.tracing import JOURNAL, SUBMIT, Span, Tracer, TracingUnusable

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is not installed")

from matchbus import otlp

from tests.system.collector import collector

HIGHEST: Final = 2**64 - 1
"""The largest order id: engine 65535's."""


@contextmanager
def silent_collector() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1/traces"


@contextmanager
def tracer_to(url: str, ratio: float = 1.0) -> Iterator[Tracer]:
    """A tracer that is closed at the end."""
    tracer = Tracer(url, ratio, "test")
    try:
        yield tracer
    finally:
        tracer.close()


def span(order_id: int) -> Span:
    """Any span."""
    return Span(order_id, *JOURNAL, SUBMIT, 1, 2, {"batch": 7})


def sampled(ratio: float, engine: int) -> int:
    """How many of an engine's first 10,000 orders have a trace."""
    with tracer_to("http://127.0.0.1:9", ratio) as tracer:
        return sum(tracer.samples((engine << 48) + number) for number in range(1, 10_001))


@pytest.mark.parametrize("engine", [1, 2, 65_535])
@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (0.01, 100), (0.5, 5_000), (1.0, 10_000)])
def test_the_share_of_orders_is_as_asked(ratio: float, expected: int, engine: int) -> None:
    """On any engine, and evenly enough to be about right for few orders too."""
    assert sampled(ratio, engine) == pytest.approx(expected, abs=2)


def test_no_order_has_no_trace() -> None:
    """A refusal without an order has the id 0, and is nobody's."""
    with tracer_to("http://127.0.0.1:9") as tracer:
        assert not tracer.samples(0)


def test_what_waits_is_sent_at_the_end() -> None:
    """A short command's span gets out, with the ids and attributes that it had, for the largest id too."""
    with collector() as collected:
        with tracer_to(collected.url) as tracer:
            tracer.note(span(HIGHEST))
        (received,) = collected.of(HIGHEST)
    assert received.service == "test"
    assert received.attributes == {"order": str(HIGHEST), "batch": 7}
    assert received.trace == otlp.trace_id(HIGHEST).to_bytes(16, "big")
    assert received.id == otlp.span_id(HIGHEST, JOURNAL).to_bytes(8, "big")
    assert received.parent == otlp.span_id(HIGHEST, SUBMIT).to_bytes(8, "big")
    assert (received.began_ns, received.ended_ns) == (1, 2)


def test_a_full_queue_loses_spans_and_nothing_waits(caplog: pytest.LogCaptureFixture) -> None:
    """Noting goes on at once while the collector hangs, memory is bounded, and the end has a deadline."""
    with silent_collector() as url:
        tracer = Tracer(url, 1.0, "test")
        for number in range(2 * tracing.MAX_WAITING_SPANS):
            tracer.note(span(number + 1))
        assert tracer.lost >= tracing.MAX_WAITING_SPANS - tracing.MAX_SPANS_PER_REQUEST
        began = time.monotonic()
        tracer.close()
        assert time.monotonic() - began < tracing.FLUSH_DEADLINE_S + 1.0
    assert [text for text in caplog.messages if "faster than they are sent" in text]
    all_but_one_request = 2 * tracing.MAX_WAITING_SPANS - tracing.MAX_SPANS_PER_REQUEST
    assert f"{all_but_one_request} spans were lost" in caplog.messages


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"MATCHBUS_TRACE": "127.0.0.1:4318"}, "no OTLP/HTTP endpoint"),
        ({"MATCHBUS_TRACE": "http://127.0.0.1:9", "MATCHBUS_TRACE_RATIO": "2"}, "no share of orders"),
        ({"MATCHBUS_TRACE": "http://127.0.0.1:9", "MATCHBUS_TRACE_RATIO": "all"}, "no share of orders"),
    ],
)
def test_an_environment_that_makes_no_sense_is_told(
    variables: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a sentence with the value in it, and where it is from."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TracingUnusable, match=rf"^MATCHBUS_TRACE, _RATIO in the environment: .*{text}"):
        tracing.tracer_of_environment("test")


def test_nobody_traces_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable there is no tracer."""
    monkeypatch.delenv("MATCHBUS_TRACE", raising=False)
    assert tracing.tracer_of_environment("test") is None
