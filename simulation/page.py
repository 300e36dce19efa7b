"""The report of a run as one HTML page that needs nothing else: no host, no script, no other file. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from html import escape
from itertools import pairwise
from typing import Final, NamedTuple

from client.cli.sheets import counted
from simulation import analysis, plots
from simulation.agents.cast import kind_of
from simulation.analysis import Silence
from simulation.checks import MAX_SHOWN
from simulation.plots import Bin, Line, Mark, Span, Strip
from simulation.recording import Quote, Recording, SentOrder, StateChange
from simulation.run import RunOutcome
from simulation.scenario import Scenario

FILES: Final = {
    "quotes.csv": "best prices and depth, up to ten times a second",
    "orders.csv": "every order with its answer and latency",
    "changes.csv": "every cancel and replace with its answer, and what the venue cancelled by itself",
    "fills.csv": "both sides of every trade",
    "faults.jsonl": "every fault with its outage",
    "outcome.json": "the scenario, what it came to, and the checks",
}
"""What is written beside the page."""

_STRETCHES: Final = 40
_CURVE_POINTS: Final = 150
_COLOURS: Final = 16
_STATE_COLOURS: Final = {"live": "var(--good)", "suspect": "var(--warning)", "down": "var(--bad)"}

_STYLE: Final = """
:root { color-scheme: light dark;
  --background: #f4f5f7; --panel: #fff; --line: #e2e5ea; --text: #1b1f24; --muted: #5d6675;
  --bid: #0b7a52; --ask: #b5362f; --good: #3f9d74; --warning: #d08a10; --bad: #c9473f; --span: #c9473f26;
  --c1: #3b7de0; --c2: #d98a0b; --c3: #8759d6; --c4: #159a8c; --c5: #d6478d; --c6: #7b9c12; --c7: #1593b8;
  --c8: #96633a; --c9: #1d4a94; --c10: #8f5a00; --c11: #553097; --c12: #0a5f56; --c13: #8f2a5c;
  --c14: #50680a; --c15: #5a6675; --c16: #5c3b1e; }
@media (prefers-color-scheme: dark) { :root {
  --background: #0e1115; --panel: #151a20; --line: #262d36; --text: #e3e8ee; --muted: #96a0af;
  --bid: #53bd8b; --ask: #ea7b72; --good: #3c9a70; --warning: #e0a33a; --bad: #d9625a; --span: #ea7b7230;
  --c1: #5b98f2; --c2: #e6a93c; --c3: #a685ee; --c4: #34b5a6; --c5: #e56fa9; --c6: #9ebd3f; --c7: #3fb2d3;
  --c8: #b98357; --c9: #a9c8ff; --c10: #f7d79a; --c11: #d3c2ff; --c12: #8fe0d5; --c13: #f7b3d3;
  --c14: #d6ea94; --c15: #c3ccd8; --c16: #e0bb98; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1060px; background: var(--background); color: var(--text);
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
figure { margin: 0; padding: 10px 10px 4px; min-width: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 12px; margin-bottom: 2px; }
figcaption b { font-weight: 600; } figcaption span { color: var(--muted); white-space: nowrap; }
figcaption i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--muted); }
.grid, .axis { stroke: var(--line); fill: none; }
.mark { stroke: var(--ask); stroke-dasharray: 3 3; fill: none; }
.line { fill: none; stroke-width: 1.5; stroke-linejoin: round; } .span { fill: var(--span); }
.table { overflow-x: auto; margin-bottom: 10px; } table { border-collapse: collapse; width: 100%; }
th, td { padding: 5px 12px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--muted); font-weight: 500; white-space: normal;
  vertical-align: bottom; }
th:first-child, td:first-child, .text td, .text th { text-align: left; } .text td { white-space: normal; }
ul { margin: 0; padding-left: 18px; } code { font-size: 13px; }
@media (max-width: 520px) { svg text { font-size: 15px; } th, td { padding: 5px 8px; } }
"""


class _Time(NamedTuple):
    """The time axis that most charts share: its end, what struck, and for how long clients noticed."""

    end_s: float
    marks: Sequence[Mark]
    spans: Sequence[Span]

    def with_news(self, scenario: Scenario, symbol: str) -> "_Time":
        """With the news of one symbol marked besides."""
        jumps = scenario.fundamental.jumps if scenario.fundamental else ()
        news = [Mark(jump.at_s, f"news {jump.ticks:+g}") for jump in jumps if jump.symbol in ("", symbol)]
        return self._replace(marks=[*self.marks, *news])


def page(scenario: Scenario, outcome: RunOutcome, recording: Recording) -> str:
    """The whole page."""
    title = scenario.title or "A simulated market"
    end_s = ended_s(scenario, outcome)
    faults = analysis.outages(recording.calls(), recording.strikes, recording.states, end_s)
    time = _Time(
        end_s,
        [
            Mark(strike.at_s, f"{strike.kind} E{strike.engine}")
            for strike in recording.strikes
            if not strike.missed
        ],
        [_span(fault.strike.engine, fault.silence, end_s) for fault in faults if fault.silence is not None],
    )
    verdict = (
        '<span class="holds">All checks hold.</span>'
        if outcome.holds
        else f'<span class="violated">Interrupted after {end_s:.1f} s: nothing was checked.</span>'
        if outcome.interrupted
        else '<span class="violated">An invariant is violated.</span>'
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="muted">{escape(_description(scenario))}</p><p>{verdict}</p>',
        _facts(outcome, recording),
        _engines(scenario, recording, faults, time),
        *(
            _symbol(symbol, scenario, recording, time.with_news(scenario, symbol))
            for symbol in scenario.symbols
        ),
        _trading(scenario, recording, time),
        _agents(outcome, recording, time),
        *(() if outcome.interrupted else (_checks(outcome),)),
        _files(),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - Matchbus</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def ended_s(scenario: Scenario, outcome: RunOutcome) -> float:
    """When the run ended: as planned, or where it was interrupted."""
    return outcome.duration_s if outcome.interrupted else scenario.duration_s


def _description(scenario: Scenario) -> str:
    agents = Counter[str]()
    for group in scenario.agents:
        agents[kind_of(group)] += group.count
    cast = ", ".join(f"{count} {kind}" for kind, count in agents.items())
    standbys = " with a standby each" if scenario.standbys else ""
    return (
        f"{scenario.duration_s:g} s, seed {scenario.seed}, {counted(scenario.engines, 'engine')}{standbys}, "
        f"{', '.join(scenario.symbols)}; {cast}. "
        "Times are in seconds since the clients began."
    )


def _facts(outcome: RunOutcome, recording: Recording) -> str:
    latencies = _latencies(recording.orders)
    fills = outcome.fills
    routed = 100 * fills.through_legs / fills.total if fills.total else 0.0
    facts = {
        "orders": f"{sum(trader.submitted for trader in outcome.traders):,}",
        "trades": f"{fills.total:,}",
        "routed": f"{routed:.0f} %",
        "half within": _milliseconds(analysis.percentile(latencies, 50)),
        "99 % within": _milliseconds(analysis.percentile(latencies, 99)),
        "longest wait": _milliseconds(analysis.percentile(latencies, 100)),
        "unanswered": f"{sum(trader.failures for trader in outcome.traders):,}",
    }
    return (
        '<div class="facts">'
        + "".join(
            f'<div><b>{value}</b><span class="muted">{name}</span></div>' for name, value in facts.items()
        )
        + "</div>"
    )


def _engines(scenario: Scenario, recording: Recording, faults: Sequence[analysis.Outage], time: _Time) -> str:
    names = [f"E{engine + 1}" for engine in range(scenario.engines)]
    title = "Engines as the exchange saw them"
    svg = plots.strips(title, names, _state_strips(recording.states, time.end_s), time.end_s, time.marks)
    answers = analysis.answers_by_engine(recording.orders, time.end_s, _STRETCHES)
    charts = [
        _figure(title, svg, list(_STATE_COLOURS.items())),
        _bars("Orders answered, by home engine", answers, scenario.engines, time),
    ]
    table = _faults_table(faults) if faults else ""
    return f"<h2>{'Faults and recovery' if faults else 'Engines'}</h2>{table}{_charts(charts)}"


def _faults_table(faults: Iterable[analysis.Outage]) -> str:
    rows = [
        (
            f"{fault.strike.kind} E{fault.strike.engine}{' (missed)' if fault.strike.missed else ''}",
            f"{fault.strike.at_s:.1f} s",
            f"{fault.strike.lasts_s:g} s" if fault.strike.lasts_s else "",
            _lasted(fault.silence),
            "" if fault.elsewhere_s is None else f"{fault.elsewhere_s:.2f} s",
            "" if fault.live_s is None else f"{fault.live_s - fault.strike.at_s:.1f} s",
        )
        for fault in faults
    ]
    heads = (
        "fault",
        "at",
        "lasts",
        "its clients had no answer for",
        "others had none for",
        "live again after",
    )
    return _table(heads, rows)


def _state_strips(states: Sequence[StateChange], end_s: float) -> list[Strip]:
    """Each engine's states as stretches, the last of them until the end."""
    by_engine: dict[int, list[StateChange]] = defaultdict(list)
    for state in states:
        by_engine[state.engine].append(state)
    strips = []
    for engine, known in by_engine.items():
        for state, following in pairwise([*known, StateChange(end_s, engine, "")]):
            if state.at_s < end_s:
                colour = _STATE_COLOURS.get(state.state, "var(--muted)")
                title = f"E{engine} {state.state} from {state.at_s:.1f} s"
                strips.append(
                    Strip(f"E{engine}", max(state.at_s, 0.0), min(following.at_s, end_s), colour, title)
                )
    return strips


def _symbol(symbol: str, scenario: Scenario, recording: Recording, time: _Time) -> str:
    quotes = [quote for quote in recording.quotes if quote.symbol == symbol]
    fills = [one for one in recording.fills if one.fill.symbol == symbol]
    price = [
        Line("bid", "var(--bid)", [(quote.at_s, _float(quote.bid)) for quote in quotes]),
        Line("ask", "var(--ask)", [(quote.at_s, _float(quote.ask)) for quote in quotes]),
        Line("value", "var(--c1)", [(quote.at_s, _float(quote.value)) for quote in quotes], dashed=True),
    ]
    spread = [Line("spread", "var(--c3)", [(quote.at_s, _spread(quote)) for quote in quotes])]
    depth = [
        Line("bid", "var(--bid)", [(quote.at_s, float(quote.bid_depth)) for quote in quotes]),
        Line("ask", "var(--ask)", [(quote.at_s, float(quote.ask_depth)) for quote in quotes]),
    ]
    volume = analysis.volume_by_engine(fills, time.end_s, _STRETCHES)
    charts = [
        _lines(f"{symbol}: price", price if scenario.fundamental else price[:2], time),
        _lines(f"{symbol}: spread", spread, time, from_zero=True),
        _lines(f"{symbol}: depth of the best levels", depth, time, from_zero=True),
        _bars(f"{symbol}: value traded by engine", volume, scenario.engines, time),
    ]
    return f"<h2>{escape(symbol)}</h2>{_charts(charts)}"


def _trading(scenario: Scenario, recording: Recording, time: _Time) -> str:
    volume = analysis.volume_by_engine(recording.fills, time.end_s, _STRETCHES)
    routed = [Line("share", "var(--c3)", analysis.share_routed(recording.fills, time.end_s, _STRETCHES))]
    latencies = _latencies(recording.orders)
    over_time = [
        Line(name, colour, analysis.latency_over_time(recording.orders, time.end_s, 2 * _STRETCHES, percent))
        for name, colour, percent in (("median", "var(--c1)", 50), ("longest", "var(--c2)", 100))
    ]
    points = [
        Mark(value, text)
        for text, percent in (("50 %", 50), ("99 %", 99))
        if (value := analysis.percentile(latencies, percent)) is not None
    ]
    title = "Orders by latency from submit to answer, ms"
    histogram = plots.counts(title, analysis.latency_bins(latencies), "var(--c1)", points)
    charts = [
        _bars("Value traded by engine", volume, scenario.engines, time),
        _lines("Share of it routed to another engine, %", routed, time, from_zero=True),
        _figure(title, histogram),
        _lines("Latency over time, ms", over_time, time, from_zero=True),
    ]
    return f"<h2>Trading</h2>{_charts(charts)}"


def _agents(outcome: RunOutcome, recording: Recording, time: _Time) -> str:
    books = analysis.books_by_kind(outcome.kinds, recording.fills, time.end_s, _CURVE_POINTS)
    traded: dict[str, float] = defaultdict(float)
    for one in recording.fills:
        traded[one.kind] += analysis.value_of(one)
    rows = []
    for kind, book in books.items():
        traders = [trader for trader in outcome.traders if trader.player.kind == kind]
        profit = book.profit[-1][1]
        sums = (
            sum(trader.steps for trader in traders),
            sum(trader.wanted_steps for trader in traders),
            sum(trader.submitted for trader in traders),
            sum(trader.refusals.total() for trader in traders),
            sum(trader.cancels + trader.replaces for trader in traders),
            sum(trader.fill_count for trader in traders),
        )
        numbers = (f"{number:,}" for number in (len(traders), *sums))
        rows.append((kind, *numbers, f"{_shortened(traded[kind]):,f}", f"{_shortened(profit):+,f}"))
    heads = (
        *("agents", "clients", "steps", "steps wanted", "orders", "refusals", "changes", "fills"),
        *("value traded", "profit"),
    )
    coloured = [(kind, _colour(index), book) for index, (kind, book) in enumerate(books.items())]
    profits = [Line(kind, colour, book.profit) for kind, colour, book in coloured]
    worths = [Line(kind, colour, book.worth) for kind, colour, book in coloured]
    charts = [
        _lines("Profit, holdings at last prices", profits, time, from_zero=True),
        _lines("Value of holdings", worths, time, from_zero=True),
    ]
    warning = f"<p>{escape(outcome.pace_warning)}</p>" if outcome.pace_warning else ""
    return f"<h2>Agents</h2>{warning}{_table(heads, rows)}{_charts(charts)}"


def _checks(outcome: RunOutcome) -> str:
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


def _lines(title: str, series: Sequence[Line], time: _Time, *, from_zero: bool = False) -> str:
    svg = plots.lines(title, series, time.end_s, marks=time.marks, spans=time.spans, from_zero=from_zero)
    return _figure(title, svg, [(line.name, line.colour) for line in series])


def _bars(title: str, bins: Sequence[Bin], engines: int, time: _Time) -> str:
    colours = {f"E{engine + 1}": _colour(engine) for engine in range(engines)}
    svg = plots.bars(title, bins, colours, marks=time.marks, spans=time.spans)
    return _figure(title, svg, list(colours.items()))


def _figure(title: str, svg: str, legend: Sequence[tuple[str, str]] = ()) -> str:
    """A chart under its title and, where it has more than one name, what colour is which."""
    shown = legend if len(legend) > 1 else ()
    names = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in shown
    )
    return f"<figure><figcaption><b>{escape(title)}</b>{names}</figcaption>{svg}</figure>"


def _charts(charts: Iterable[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]], *, text: bool = False) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    kind = ' class="text"' if text else ""
    return (
        f'<div class="table"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _span(engine: int, silence: Silence, end_s: float) -> Span:
    lasted_s = silence.within(end_s)
    return Span(silence.since_s, silence.since_s + lasted_s, f"E{engine} gave no answer for {lasted_s:.2f} s")


def _lasted(silence: Silence | None) -> str:
    if silence is None:
        return ""
    return "until the end" if silence.lasted_s is None else f"{silence.lasted_s:.2f} s"


def _latencies(orders: Iterable[SentOrder]) -> list[float]:
    return [order.latency_ms for order in orders if order.latency_ms is not None]


def _colour(index: int) -> str:
    return f"var(--c{index % _COLOURS + 1})"


def _spread(quote: Quote) -> float | None:
    return None if quote.bid is None or quote.ask is None else float(quote.ask - quote.bid)


def _float(value: object) -> float | None:
    return None if value is None else float(str(value))


def _shortened(value: float) -> Decimal:
    """To significant digits, not to decimals: of some symbols a lot is worth less than a millionth."""
    return Decimal(f"{value:.9g}")


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.3g} ms" if value < 1_000 else f"{value / 1_000:.2f} s"  # noqa: PLR2004 -- units
