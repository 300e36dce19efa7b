"""The trace of one order: which orders have one, and how its spans reach a collector.

    client, engines ──Span──▶ bounded queue ──▶ a thread of its own ──OTLP/HTTP──▶ collector

No context travels with an order: trace id, span ids and whether an order is sampled follow from its order id
(`matchbus/otlp.py` makes the ids), so client, home engine and peers agree without telling each other. Whoever
notes a span only puts it into the queue. What a full queue does not take is lost, which is a warning once.
What the collector does not take is lost, too, with a warning each time that it stops taking spans.

Only `Tracer` needs OpenTelemetry, the extra `otel`.
"""

import argparse
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

URL_VARIABLE: Final = "MATCHBUS_TRACE"
RATIO_VARIABLE: Final = "MATCHBUS_TRACE_RATIO"

MAX_WAITING_SPANS: Final = 8_192
MAX_SPANS_PER_REQUEST: Final = 256
EXPORT_PERIOD_S: Final = 0.25
"""One request in this time, because the thread that makes it holds the interpreter: some 0.1 ms a span."""

FLUSH_DEADLINE_S: Final = 0.5
"""How long the end of a process waits for what it has not sent."""

_UINT64: Final = 2**64
# The golden ratio of 2^64: of numbers that count up, those below a bound are spread evenly.
_SPREAD: Final = 0x9E3779B97F4A7C15

_log: Final = logging.getLogger(__name__)

Place = tuple[str, int]
"""A span that others hang under: its name, and a number that tells it from others of its order."""

SUBMIT: Final[Place] = ("submit", 0)
JOURNAL: Final[Place] = ("journal", 0)


class TracingUnusable(argparse.ArgumentTypeError, ValueError):
    """What was asked for cannot be had; argparse shows the text."""


class Span(NamedTuple):
    """A part of an order's path, from `began_ns` to `ended_ns` by UTC.

    Only spans that others hang under have a `number`.
    """

    order_id: int
    name: str
    number: int | None
    parent: Place | None
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, Any]


class Tracer:
    """Sends spans to the OTLP/HTTP endpoint `url`, in the name of `service`, until `close`.

    `ratio` is the share of all orders that are sampled. Raises `TracingUnusable` without the extra.
    """

    def __init__(self, url: str, ratio: float, service: str) -> None:
        self.lost = 0
        """Spans that did not reach the collector."""
        self._url = url
        self._bound = int(ratio * _UINT64)
        self._collector = _otlp().Collector(url, service)
        self._waiting: deque[Span] = deque()
        self._is_heard = True
        self._is_late = False
        self._closing = threading.Event()
        self._worker = threading.Thread(target=self._work, name="tracing", daemon=True)
        self._worker.start()

    def samples(self, order_id: int) -> bool:
        """Whether an order has a trace; the order id 0 is no order's."""
        return 0 < (order_id * _SPREAD) % _UINT64 <= self._bound

    def note(self, span: Span) -> None:
        """Send a span soon. Never waits."""
        if len(self._waiting) < MAX_WAITING_SPANS:
            self._waiting.append(span)
            return
        self.lost += 1
        if not self._is_late:
            self._is_late = True
            _log.warning("spans come faster than they are sent, and are lost: sample fewer orders")

    def close(self) -> None:
        """Send what waits, for no longer than FLUSH_DEADLINE_S."""
        self._closing.set()
        self._worker.join(FLUSH_DEADLINE_S)
        self._collector.close()
        if self.lost or self._waiting:
            _log.warning("%d spans were lost", self.lost + len(self._waiting))

    def _work(self) -> None:
        while not self._closing.wait(EXPORT_PERIOD_S):
            if self._waiting:
                self._send_some()
        while self._waiting and self._send_some():
            pass

    def _send_some(self) -> bool:
        """Send what one request takes; whether the collector took it."""
        spans = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_SPANS_PER_REQUEST))]
        is_heard = self._collector.send(spans)
        if not is_heard:
            self.lost += len(spans)
        if is_heard != self._is_heard:
            self._is_heard = is_heard
            if is_heard:
                _log.info("the collector at %s takes spans again; %d were lost", self._url, self.lost)
            else:
                _log.warning("the collector at %s does not take spans: they are lost", self._url)
        return is_heard


def utc_ns(monotonic_s: float) -> int:
    """A moment of `time.monotonic()` as UTC."""
    return time.time_ns() - int((time.monotonic() - monotonic_s) * 1e9)


def add_trace_options(parser: argparse.ArgumentParser) -> None:
    """The options of a process that traces orders."""
    parser.add_argument(
        "--trace",
        metavar="URL",
        type=_url,
        help="send traces of orders to this OTLP/HTTP endpoint, such as http://127.0.0.1:4318/v1/traces",
    )
    parser.add_argument(
        "--trace-ratio",
        metavar="SHARE",
        type=_ratio,
        default=1.0,
        help="which share of all orders has a trace, 0 to 1; alike for all engines and clients (default 1)",
    )


def tracer_of_environment(service: str) -> Tracer | None:
    """The tracer that the environment asks for, if it does. Raises `TracingUnusable`."""
    url = os.environ.get(URL_VARIABLE, "")
    if not url:
        return None
    try:
        return Tracer(_url(url), _ratio(os.environ.get(RATIO_VARIABLE, "") or "1"), service)
    except TracingUnusable as error:
        raise TracingUnusable(f"{URL_VARIABLE}, _RATIO in the environment: {error}") from error


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise TracingUnusable(f"{text!r} is no OTLP/HTTP endpoint, such as http://127.0.0.1:4318/v1/traces")
    _otlp()
    return text


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise TracingUnusable(f"{text!r} is no share of orders, 0 to 1")
    return ratio


def _otlp() -> Any:
    """The module that needs the extra, loaded when somebody traces."""
    try:
        return import_module("matchbus.otlp")
    except ModuleNotFoundError as error:
        raise TracingUnusable(
            f"tracing needs {error.name}: pip install 'matchbus[otel]', or leave it out"
        ) from error
