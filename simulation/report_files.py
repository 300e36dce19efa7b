"""Writes the report of a run into a directory: the page, and the data as CSV, JSON and JSON Lines.

`docs/simulation.md` says what each column is.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from simulation import analysis
from simulation.page import ended_s, page
from simulation.recording import Quote, Recording, SentCall, SentChange, SentOrder, TimedFill
from simulation.report import outcome_document
from simulation.run import RunOutcome
from simulation.scenario import Scenario

PAGE: Final = "index.html"

QUOTE_COLUMNS: Final = (
    *("time_s", "symbol", "bid", "ask", "bid_quantity", "ask_quantity"),
    *("bid_depth", "ask_depth", "value"),
)
ORDER_COLUMNS: Final = (
    *("sent_s", "latency_ms", "client", "kind", "home", "symbol", "side", "type", "time_in_force"),
    *("post_only", "price", "quantity", "status", "reason", "order_id"),
)
CHANGE_COLUMNS: Final = (
    *("sent_s", "latency_ms", "client", "change", "order_id"),
    *("price", "quantity", "status", "reason"),
)
FILL_COLUMNS: Final = (
    *("time_s", "timestamp_ns", "client", "kind", "sequence", "execution_id", "order_id", "symbol", "side"),
    *("price", "quantity", "liquidity", "engine", "routed"),
)

_PERCENTILES: Final = {"p50": 50, "p99": 99, "longest": 100}


def write_report(folder: Path, scenario: Scenario, outcome: RunOutcome, recording: Recording) -> Path:
    """Write everything, over what an earlier report left there; the path of the page."""
    end_s = ended_s(scenario, outcome)
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "quotes.csv", QUOTE_COLUMNS, map(_quote_row, recording.quotes))
    orders = sorted(recording.orders, key=lambda order: order.sent_s)  # recorded when answered
    _write_csv(folder / "orders.csv", ORDER_COLUMNS, map(_order_row, orders))
    _write_csv(folder / "changes.csv", CHANGE_COLUMNS, map(_change_row, recording.all_changes()))
    _write_csv(folder / "fills.csv", FILL_COLUMNS, map(_fill_row, analysis.in_order(recording.fills)))
    outages = analysis.outages(recording.calls(), recording.strikes, recording.states, end_s)
    (folder / "faults.jsonl").write_text("".join(json.dumps(_fault(outage)) + "\n" for outage in outages))
    by_kind = analysis.books_by_kind(outcome.kinds, recording.fills, end_s, 1)
    document = {
        "matchbus_version": version("matchbus"),
        "scenario": msgspec.to_builtins(scenario),
        **outcome_document(outcome),
        "latency_ms": _latency(recording.orders),
        "profit": {kind: books.profit[-1][1] for kind, books in by_kind.items()},
    }
    (folder / "outcome.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / PAGE).write_text(page(scenario, outcome, recording), encoding="utf-8")
    return folder / PAGE


def _write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(columns)
        writer.writerows(rows)


def _quote_row(quote: Quote) -> Sequence[object]:
    value = None if quote.value is None else f"{quote.value:f}"
    return (
        *(f"{quote.at_s:.6f}", quote.symbol, quote.bid, quote.ask),
        *(f"{quote.bid_quantity:f}", f"{quote.ask_quantity:f}"),
        *(f"{quote.bid_depth:f}", f"{quote.ask_depth:f}", value),
    )


def _order_row(order: SentOrder) -> Sequence[object]:
    return (
        *(f"{order.sent_s:.6f}", _latency_ms(order), order.client, order.kind, f"E{order.engine}"),
        *(order.symbol, order.side, order.type, order.time_in_force, int(order.post_only)),
        *(order.price, f"{order.quantity:f}", order.status, order.reason, order.order_id or None),
    )


def _change_row(change: SentChange) -> Sequence[object]:
    quantity = None if change.quantity is None else f"{change.quantity:f}"
    return (
        *(f"{change.sent_s:.6f}", _latency_ms(change), change.client, change.change),
        *(change.order_id or None, change.price, quantity, change.status, change.reason),
    )


def _fill_row(one: TimedFill) -> Sequence[object]:
    fill = one.fill
    return (
        *(f"{one.at_s:.6f}", fill.timestamp_ns, one.client, one.kind),
        *(fill.sequence, fill.execution_id, fill.order_id),
        *(fill.symbol, fill.side, fill.price, f"{fill.quantity:f}", fill.liquidity, f"E{fill.engine}"),
        int(analysis.is_routed(one)),
    )


def _latency(orders: Iterable[SentOrder]) -> dict[str, float | None]:
    latencies = [order.latency_ms for order in orders if order.latency_ms is not None]
    return {name: analysis.percentile(latencies, percent) for name, percent in _PERCENTILES.items()}


def _fault(outage: analysis.Outage) -> dict[str, Any]:
    silence = outage.silence
    return {
        "time_s": round(outage.strike.at_s, 3),
        "kind": outage.strike.kind,
        "engine": outage.strike.engine,
        "lasts_s": outage.strike.lasts_s,
        "missed": outage.strike.missed,
        "silent_from_s": _milli(silence.since_s) if silence else None,
        "outage_s": _milli(silence.lasted_s) if silence else None,
        "elsewhere_s": _milli(outage.elsewhere_s),
        "live_s": _milli(outage.live_s),
    }


def _milli(value_s: float | None) -> float | None:
    """To the millisecond."""
    return None if value_s is None else round(value_s, 3)


def _latency_ms(call: SentCall) -> str | None:
    """To the microsecond; an empty cell without an answer."""
    return None if call.latency_ms is None else f"{call.latency_ms:.3f}"
