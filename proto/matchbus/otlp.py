"""Spans of orders as OpenTelemetry has them: their ids, and the collector that takes them.

Nothing but `matchbus/tracing.py` loads this, and only when somebody traces: it needs the extra `otel`.
"""

import logging
import random
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from matchbus.tracing import Place, Span

REQUEST_TIMEOUT_S: Final = 2.0

_KINDS: Final = {
    "submit": SpanKind.CLIENT,
    "journal": SpanKind.SERVER,
    "leg": SpanKind.CLIENT,
    "leg taken": SpanKind.SERVER,
}
"""Where one process asks another; the other spans are within one."""

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


class Collector:
    """An OTLP/HTTP endpoint. `send` waits for it, so it belongs in a thread."""

    def __init__(self, url: str, service: str) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # `Tracer` says it, once
        self._exporter = OTLPSpanExporter(endpoint=url, timeout=REQUEST_TIMEOUT_S)
        self._resource = Resource.create({"service.namespace": "matchbus", "service.name": service})

    def send(self, spans: Sequence[Span]) -> bool:
        """Whether the collector took them."""
        made = [_made(span, self._resource) for span in spans]
        return self._exporter.export(made) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """Let a `send` that is under way try no more."""
        self._exporter.shutdown()


def trace_id(order_id: int) -> int:
    """The trace of an order."""
    return _digest(f"order {order_id}", 16)


def span_id(order_id: int, place: Place) -> int:
    """A span that others hang under, as all who know its order and place know it."""
    return _digest(f"order {order_id} {place}", 8)


def _digest(text: str, size: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest(), "big")


def _made(span: Span, resource: Resource) -> ReadableSpan:
    if span.number is None:
        own_id = random.getrandbits(64)  # nothing hangs under it, so nobody else needs to know
    else:
        own_id = span_id(span.order_id, (span.name, span.number))
    trace = trace_id(span.order_id)
    parent = None if span.parent is None else span_id(span.order_id, span.parent)
    return ReadableSpan(
        span.name,
        SpanContext(trace, own_id, is_remote=False, trace_flags=_SAMPLED),
        None if parent is None else SpanContext(trace, parent, is_remote=True, trace_flags=_SAMPLED),
        resource,
        # As text, because no integer of OTLP holds an order id with its highest bit set.
        {"matchbus.order": str(span.order_id)}
        | {f"matchbus.{name}": value for name, value in span.attributes.items()},
        kind=_KINDS.get(span.name, SpanKind.INTERNAL),
        start_time=span.began_ns,
        end_time=span.ended_ns,
    )
