"""The client's part of a trace: one span for each order, if the environment asks for it."""

import pytest

from tests.client.fake_venue import FakeVenue

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is not installed")

from tests.system.collector import collector


async def test_a_submit_is_a_root(venue: FakeVenue, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what was asked and what came of it, and is sent before the client is closed."""
    with collector() as collected:
        monkeypatch.setenv("MATCHBUS_TRACE", collected.url)
        async with venue.client() as client:
            result = await client.submit("AAPL", "sell", quantity="10", price="101.25")
        (span,) = collected.of(result.order_id)
    assert (span.service, span.name, span.parent) == ("matchbus-client", "submit", b"")
    said = [span.attributes[name] for name in ("symbol", "side", "price", "quantity", "status")]
    assert said == ["AAPL", "SELL", 10_125, 100, "NEW"]
    assert span.attributes["client_order_id"] == result.client_order_id
    assert span.began_ns <= span.ended_ns


async def test_an_order_that_is_not_sampled_has_no_span(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of 0 is nobody."""
    with collector() as collected:
        monkeypatch.setenv("MATCHBUS_TRACE", collected.url)
        monkeypatch.setenv("MATCHBUS_TRACE_RATIO", "0")
        async with venue.client() as client:
            await client.submit("AAPL", "sell", quantity="10", price="101.25")
    assert collected.spans == []


async def test_a_variable_that_makes_no_sense_is_told(
    venue: FakeVenue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the `ValueError` that `open` announces."""
    monkeypatch.setenv("MATCHBUS_TRACE", "127.0.0.1:4318")
    with pytest.raises(ValueError, match="no OTLP/HTTP endpoint"):
        await venue.client().open()
