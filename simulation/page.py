"""The report of a run as one HTML page that needs nothing else: no host, no script, no other file. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import Final

from simulation import analysis, plots
from simulation.checks import MAX_SHOWN
from simulation.plots import Line, Mark, Span, Strip
from simulation.recording import EngineState, Quote, Recording, SentOrder
from simulation.run import Outcome
from simulation.scenario import Scenario

FILES: Final = {
    "quotes.csv": "best prices and depth, ten times a second",
    "orders.csv": "every order with its answer and latency",
    "fills.csv": "both sides of every trade",
    "faults.jsonl": "every fault with its outage",
    "outcome.json": "the scenario, what it came to, and the checks",
}
"""What is written beside the page."""

_STRETCHES: Final = 40
_CURVE_POINTS: Final = 150
_COLOURS: Final = 8
_STATE_COLOURS: Final = {"live": "var(--good)", "suspect": "var(--warning)", "down": "var(--bad)"}

_STYLE: Final = """
:root { color-scheme: light dark;
  --background: #f4f5f7; --panel: #fff; --line: #e2e5ea; --text: #1b1f24; --muted: #5d6675;
  --bid: #0b7a52; --ask: #b5362f; --good: #3f9d74; --warning: #d08a10; --bad: #c9473f; --span: #c9473f26;
  --c1: #3b7de0; --c2: #d98a0b; --c3: #8759d6; --c4: #159a8c; --c5: #d6478d; --c6: #7b9c12; --c7: #1593b8;
  --c8: #96633a; }
@media (prefers-color-scheme: dark) { :root {
  --background: #0e1115; --panel: #151a20; --line: #262d36; --text: #e3e8ee; --muted: #96a0af;
  --bid: #53bd8b; --ask: #ea7b72; --good: #3c9a70; --warning: #e0a33a; --bad: #d9625a; --span: #ea7b7230;
  --c1: #5b98f2; --c2: #e6a93c; --c3: #a685ee; --c4: #34b5a6; --c5: #e56fa9; --c6: #9ebd3f; --c7: #3fb2d3;
  --c8: #b98357; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1400px; background: var(--background); color: var(--text);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums; }
h1 { font-size: 22px; margin: 0 0 2px; } h2 { font-size: 16px; margin: 26px 0 8px; }
p { margin: 0 0 6px; } .muted { color: var(--muted); }
.holds, .violated { font-weight: 600; } .holds { color: var(--bid); } .violated { color: var(--ask); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 8px;
  margin: 14px 0; }
.facts div, figure, .table { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; }
.facts div { padding: 8px 12px; } .facts b { display: block; font-size: 19px; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 10px; }
figure { margin: 0; padding: 10px 10px 4px; min-width: 0; } figure.wide { grid-column: 1 / -1; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 12px; margin-bottom: 2px; }
figcaption b { font-weight: 600; } figcaption span { color: var(--muted); white-space: nowrap; }
figcaption i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
svg { display: block; width: 100%; height: auto; } figure.wide svg { max-width: 900px; }
svg text { font-size: 12px; fill: var(--muted); }
.grid, .axis { stroke: var(--line); fill: none; }
.mark { stroke: var(--ask); stroke-dasharray: 3 3; fill: none; }
.line { fill: none; stroke-width: 1.5; stroke-linejoin: round; } .span { fill: var(--span); }
.table { overflow-x: auto; margin-bottom: 10px; } table { border-collapse: collapse; width: 100%; }
th, td { padding: 5px 12px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--muted); font-weight: 500; }
th:first-child, td:first-child, .text td, .text th { text-align: left; } .text td { white-space: normal; }
ul { margin: 0; padding-left: 18px; } code { font-size: 13px; }
"""


def page(scenario: Scenario, outcome: Outcome, recording: Recording) -> str:
    """The whole page."""
    title = scenario.title or "A simulated market"
    faults = analysis.outages(recording.orders, recording.strikes, recording.states, scenario.duration_s)
    marks = [Mark(strike.at_s, f"{strike.kind} E{strike.engine}") for strike in recording.strikes]
    spans = [_span(fault, scenario.duration_s) for fault in faults]
    verdict = (
        '<span class="holds">All checks hold.</span>'
        if outcome.holds
        else '<span class="violated">An invariant is violated.</span>'
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="muted">{escape(_description(scenario))}</p><p>{verdict}</p>',
        _facts(outcome, recording),
        _faults(scenario, recording, faults, marks),
        *(_symbol(symbol, recording, scenario.duration_s, marks, spans) for symbol in scenario.symbols),
        _trading(recording, scenario, marks, spans),
        _agents(scenario, outcome, recording, marks, spans),
        _checks(outcome),
        _files(),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - Matchbus</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _description(scenario: Scenario) -> str:
    agents = Counter[str]()
    for group in scenario.agents:
        agents[str(group.__struct_config__.tag)] += group.count
    cast = ", ".join(f"{count} {kind}" for kind, count in agents.items())
    standbys = " with a standby each" if scenario.standbys else ""
    return (
        f"{scenario.duration_s:g} s, seed {scenario.seed}, {scenario.engines} engines{standbys}, "
        f"{', '.join(scenario.symbols)}; {cast}"
    )


def _facts(outcome: Outcome, recording: Recording) -> str:
    latencies = _latencies(recording.orders)
    fills = outcome.fills
    routed = 100 * fills.through_legs / fills.total if fills.total else 0.0
    facts = {
        "orders": f"{sum(trader.submitted for trader in outcome.traders):,}",
        "trades": f"{fills.total:,}",
        "of them routed": f"{routed:.0f} %",
        "latency, median": _milliseconds(analysis.percentile(latencies, 50)),
        "latency, 99 %": _milliseconds(analysis.percentile(latencies, 99)),
        "longest latency": _milliseconds(analysis.percentile(latencies, 100)),
        "without an answer": f"{sum(trader.failures for trader in outcome.traders):,}",
    }
    return (
        '<div class="facts">'
        + "".join(
            f'<div><b>{value}</b><span class="muted">{name}</span></div>' for name, value in facts.items()
        )
        + "</div>"
    )


def _faults(
    scenario: Scenario, recording: Recording, faults: Sequence[analysis.Outage], marks: Sequence[Mark]
) -> str:
    if not faults:
        return ""
    names = [f"E{engine + 1}" for engine in range(scenario.engines)]
    stretches = _state_strips(recording.states, scenario.duration_s)
    rows = [
        (
            f"{fault.strike.kind} E{fault.strike.engine}",
            f"{fault.strike.at_s:.1f} s",
            f"{fault.strike.lasts_s:g} s" if fault.strike.lasts_s else "",
            "until the end" if fault.lasted_s is None else f"{fault.lasted_s:.2f} s",
            f"{fault.elsewhere_s:.2f} s",
            "" if fault.live_s is None else f"{fault.live_s - fault.strike.at_s:.1f} s",
        )
        for fault in faults
    ]
    heads = (
        *("fault", "at", "lasts", "outage as its clients saw it", "longest silence elsewhere"),
        "live for the exchange after",
    )
    title = "Engines as the exchange saw them, seconds"
    svg = plots.strips(title, names, stretches, scenario.duration_s, marks)
    chart = _figure(title, svg, list(_STATE_COLOURS.items()), wide=True)
    return f'<h2>Faults and recovery</h2>{_table(heads, rows)}<div class="charts">{chart}</div>'


def _state_strips(states: Sequence[EngineState], end_s: float) -> list[Strip]:
    """Each engine's states as stretches, the last of them until the end."""
    by_engine: dict[int, list[EngineState]] = defaultdict(list)
    for state in states:
        by_engine[state.engine].append(state)
    strips = []
    for engine, known in by_engine.items():
        for state, following in pairwise([*known, EngineState(end_s, engine, "")]):
            if state.at_s < end_s:
                colour = _STATE_COLOURS.get(state.state, "var(--muted)")
                title = f"E{engine} {state.state} from {state.at_s:.1f} s"
                strips.append(
                    Strip(f"E{engine}", max(state.at_s, 0.0), min(following.at_s, end_s), colour, title)
                )
    return strips


def _symbol(
    symbol: str, recording: Recording, end_s: float, marks: Sequence[Mark], spans: Sequence[Span]
) -> str:
    quotes = [quote for quote in recording.quotes if quote.symbol == symbol and quote.at_s <= end_s]
    bid = Line("bid", "var(--bid)", [(quote.at_s, _float(quote.bid)) for quote in quotes])
    ask = Line("ask", "var(--ask)", [(quote.at_s, _float(quote.ask)) for quote in quotes])
    value = Line("value", "var(--c1)", [(quote.at_s, quote.value) for quote in quotes], dashed=True)
    price = [bid, ask, value] if any(quote.value is not None for quote in quotes) else [bid, ask]
    spread = [Line("spread", "var(--c3)", [(quote.at_s, _spread(quote)) for quote in quotes])]
    depth = [
        Line("bid", "var(--bid)", [(quote.at_s, float(quote.bid_depth)) for quote in quotes]),
        Line("ask", "var(--ask)", [(quote.at_s, float(quote.ask_depth)) for quote in quotes]),
    ]
    charts = [
        _lines(f"{symbol}: price", price, end_s, marks, spans),
        _lines(f"{symbol}: spread", spread, end_s, marks, spans, from_zero=True),
        _lines(f"{symbol}: depth of the best levels", depth, end_s, marks, spans, from_zero=True),
    ]
    return f'<h2>{escape(symbol)}</h2><div class="charts">{"".join(charts)}</div>'


def _trading(recording: Recording, scenario: Scenario, marks: Sequence[Mark], spans: Sequence[Span]) -> str:
    end_s = scenario.duration_s
    colours = {f"E{engine + 1}": _colour(engine) for engine in range(scenario.engines)}
    volume = analysis.volume_by_engine(recording.fills, end_s, _STRETCHES)
    routed = [Line("share", "var(--c3)", analysis.share_routed(recording.fills, end_s, _STRETCHES))]
    latencies = _latencies(recording.orders)
    over_time = [
        Line(name, colour, analysis.latency_over_time(recording.orders, end_s, 2 * _STRETCHES, percent))
        for name, colour, percent in (("median", "var(--c1)", 50), ("longest", "var(--c2)", 100))
    ]
    points = [
        Mark(value, text)
        for text, percent in (("50 %", 50), ("99 %", 99))
        if (value := analysis.percentile(latencies, percent)) is not None
    ]
    title, latency_title = "Value traded by engine", "Latency from submit to answer, ms"
    charts = [
        _figure(title, plots.bars(title, volume, colours, marks=marks, spans=spans), list(colours.items())),
        _lines("Share of it routed to another engine, %", routed, end_s, marks, spans, from_zero=True),
        _figure(
            f"{latency_title}: orders",
            plots.counts(latency_title, analysis.latency_bins(latencies), "var(--c1)", points),
        ),
        _lines(f"{latency_title}: over time", over_time, end_s, marks, spans, from_zero=True),
    ]
    return f'<h2>Trading</h2><div class="charts">{"".join(charts)}</div>'


def _agents(
    scenario: Scenario, outcome: Outcome, recording: Recording, marks: Sequence[Mark], spans: Sequence[Span]
) -> str:
    curves = analysis.profit_by_kind(recording.fills, scenario.duration_s, _CURVE_POINTS)
    kinds = list(dict.fromkeys(trader.player.kind for trader in outcome.traders))
    lines = [Line(kind, _colour(kinds.index(kind)), curve) for kind, curve in curves.items()]
    volumes: Counter[str] = Counter()
    for one in recording.fills:
        volumes[one.kind] += round(analysis.value_of(one))
    rows = []
    for kind in kinds:
        traders = [trader for trader in outcome.traders if trader.player.kind == kind]
        profit = curves[kind][-1][1] if kind in curves else 0.0
        rows.append(
            (
                *(kind, str(len(traders)), f"{sum(trader.submitted for trader in traders):,}"),
                f"{sum(trader.refusals.total() for trader in traders):,}",
                f"{sum(trader.cancels + trader.replaces for trader in traders):,}",
                *(f"{sum(len(trader.fills) for trader in traders):,}", f"{volumes[kind]:,}"),
                f"{profit or 0.0:+,.2f}",
            )
        )
    heads = ("agents", "clients", "orders", "refused", "changes", "fills", "value traded", "profit")
    title = "Profit by kind of agent, holdings at last prices"
    chart = _lines(title, lines, scenario.duration_s, marks, spans, from_zero=True, wide=True)
    return f'<h2>Agents</h2>{_table(heads, rows)}<div class="charts">{chart}</div>'


def _checks(outcome: Outcome) -> str:
    rows = []
    for check in outcome.checks:
        shown = "; ".join(check.violations[:MAX_SHOWN])
        rows.append((check.name, f"{check.checked:,}", "holds" if check.holds else f"VIOLATED: {shown}"))
    return "<h2>Checks</h2>" + _table(("invariant", "checked", "result"), rows, text=True)


def _files() -> str:
    listed = "".join(
        f'<li><a href="{name}"><code>{name}</code></a>: {what}</li>' for name, what in FILES.items()
    )
    return f"<h2>Data</h2><ul>{listed}</ul>"


def _lines(
    title: str,
    series: Sequence[Line],
    end_s: float,
    marks: Sequence[Mark],
    spans: Sequence[Span],
    *,
    from_zero: bool = False,
    wide: bool = False,
) -> str:
    svg = plots.lines(title, series, end_s, marks=marks, spans=spans, from_zero=from_zero)
    return _figure(title, svg, [(line.name, line.colour) for line in series], wide=wide)


def _figure(title: str, svg: str, legend: Sequence[tuple[str, str]] = (), *, wide: bool = False) -> str:
    """A chart under its title and, where it has more than one name, what colour is which."""
    shown = legend if len(legend) > 1 else ()
    names = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in shown
    )
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}><figcaption><b>{escape(title)}</b>{names}</figcaption>{svg}</figure>"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]], *, text: bool = False) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    kind = ' class="text"' if text else ""
    return (
        f'<div class="table"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _span(fault: analysis.Outage, end_s: float) -> Span:
    until_s = end_s if fault.until_s is None else fault.until_s
    title = f"E{fault.strike.engine} gave no answer for {until_s - fault.since_s:.2f} s"
    return Span(fault.since_s, min(until_s, end_s), title)


def _latencies(orders: Iterable[SentOrder]) -> list[float]:
    return [order.latency_ms for order in orders if order.latency_ms is not None]


def _colour(index: int) -> str:
    return f"var(--c{index % _COLOURS + 1})"


def _spread(quote: Quote) -> float | None:
    return None if quote.bid is None or quote.ask is None else float(quote.ask - quote.bid)


def _float(value: object) -> float | None:
    return None if value is None else float(str(value))


def _milliseconds(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g} ms" if value < 1_000 else f"{value / 1_000:.2f} s"  # noqa: PLR2004
