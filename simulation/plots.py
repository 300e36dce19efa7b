"""Draws charts as SVG text. Pure: numbers in, a string out, no styles but colours that a page defines.

Every chart has the same frame, `WIDTH` by `HEIGHT` units, and scales with its place on the page. Colours are
CSS values such as `var(--e1)`, so that a page decides what dark and light are. Points that are no finite
numbers break a line, and are left out of the scale.

    lines    over time, with moments and spans marked
    bars     stacked, over time
    counts   a histogram over a logarithmic axis
    strips   a row of coloured stretches for each name
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Final, NamedTuple, TypeGuard

WIDTH: Final = 480
HEIGHT: Final = 190
COLUMNS: Final = 200
"""A line is drawn with at most five points in each of so many columns."""

_LEFT: Final = 56
_RIGHT: Final = 12
_TOP: Final = 18
_BOTTOM: Final = 24
_TICKS_X: Final = 6
_TICKS_Y: Final = 5
_HIGHEST_STRIP: Final = 60
_LOWEST_STRIP: Final = 22
_INFINITE: Final = 1e300
"""Beyond it a scale's width would be no finite number."""

_LARGEST: Final = 1e13
_MOST_DECIMALS: Final = 12
_UNITS: Final = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))
"""From which value on, what a unit is, and its letter; 5000 is short enough."""

_LETTER: Final = 8
"""How wide a letter is at most; on a small screen a page may write larger."""

_ROUND_STEPS: Final = (1, 2, 5, 10)

Point = tuple[float, float | None]


class Line(NamedTuple):
    """A named line; a None among the values breaks it."""

    name: str
    colour: str
    points: Sequence[Point]
    dashed: bool = False


class Mark(NamedTuple):
    """A moment worth a vertical line, with a word at its top."""

    at: float
    text: str


class Span(NamedTuple):
    """A stretch of time, shaded; `title` shows under the pointer."""

    start: float
    end: float
    title: str


class Strip(NamedTuple):
    """A coloured stretch in the row of a name."""

    name: str
    start: float
    end: float
    colour: str
    title: str


class Bin(NamedTuple):
    """A stretch of an axis with a value for each name."""

    low: float
    high: float
    values: Mapping[str, float]


class Scale(NamedTuple):
    """Maps values from `low`..`high` onto units from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value lies; what is outside lies at the edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def lines(
    title: str,
    series: Sequence[Line],
    x_end: float,
    *,
    marks: Sequence[Mark] = (),
    spans: Sequence[Span] = (),
    from_zero: bool = False,
) -> str:
    """Lines over 0..`x_end`; with `from_zero` the scale of values includes 0."""
    values = [value for line in series for piece in _pieces(line.points) for _, value in piece]
    if not values:
        return _empty(title)
    x = _x_scale(0.0, x_end)
    y = _y_scale([*values, 0.0] if from_zero else values)
    drawn = [_polylines(line, x, y) for line in series]
    return _chart(title, [_spans(spans, x), _grid(x, y), *drawn, _marks(marks, x)])


def bars(
    title: str,
    bins: Sequence[Bin],
    colours: Mapping[str, str],
    *,
    marks: Sequence[Mark] = (),
    spans: Sequence[Span] = (),
) -> str:
    """Stacked bars, one for each bin, in the order of `colours`."""
    totals = [sum(one.values.values()) for one in bins]
    if not any(totals):
        return _empty(title)
    x = _x_scale(bins[0].low, bins[-1].high)
    y = _y_scale([0.0, *totals])
    drawn = "".join(bar for one in bins for bar in _stack(one, colours, x, y))
    return _chart(title, [_spans(spans, x), _grid(x, y), drawn, _marks(marks, x)])


def counts(title: str, bins: Sequence[Bin], colour: str, marks: Sequence[Mark] = ()) -> str:
    """A histogram whose bins are equally wide on a logarithmic axis; every bin's `low` is above 0."""
    filled = [one for one in bins if any(one.values.values())]
    if not filled:
        return _empty(title)
    x = _x_scale(math.log10(filled[0].low), math.log10(filled[-1].high))
    y = _y_scale([0.0, *(sum(one.values.values()) for one in filled)])
    logarithmic = [one._replace(low=math.log10(one.low), high=math.log10(one.high)) for one in filled]
    drawn = "".join(bar for one in logarithmic for bar in _stack(one, {"": colour}, x, y))
    placed = [mark._replace(at=math.log10(mark.at)) for mark in marks if mark.at > 0]
    return _chart(title, [_grid(x, y, decades=True), drawn, _marks(placed, x)])


def strips(
    title: str, names: Sequence[str], stretches: Sequence[Strip], x_end: float, marks: Sequence[Mark] = ()
) -> str:
    """A row for each name over 0..`x_end`."""
    if not names:
        return _empty(title)
    x = _x_scale(0.0, x_end)
    high = min(max((HEIGHT - _TOP - _BOTTOM) / len(names), _LOWEST_STRIP), _HIGHEST_STRIP)
    height = max(_TOP + high * len(names) + _BOTTOM, HEIGHT)
    drawn = []
    for row, name in enumerate(names):
        top = _TOP + row * high
        drawn.append(_text(_LEFT - 8, top + high / 2 + 4, name, "end"))
        drawn += [
            _rectangle(x(one.start), top + high / 5, x(one.end), top + high * 4 / 5, one.colour, one.title)
            for one in stretches
            if one.name == name
        ]
    axis = "".join(_x_axis(x, height))
    return _chart(title, [axis, *drawn, _marks(marks, x, height)], height)


def thin(points: Sequence[Point], columns: int = COLUMNS) -> list[Point]:
    """At most five points in each column: its first, lowest, highest and last, and its first gap, in order.

    So a spike that lasted one sample stays, a gap stays a gap, and a page stays small.
    """
    if len(points) <= columns:
        return list(points)
    size = math.ceil(len(points) / columns)
    kept: list[Point] = []
    for first in range(0, len(points), size):
        column = points[first : first + size]
        known = [(value, index) for index, (_, value) in enumerate(column) if _finite(value)]
        gaps = [index for index, (_, value) in enumerate(column) if not _finite(value)]
        extremes = {min(known)[1], max(known)[1]} if known else set[int]()
        kept += [column[index] for index in sorted({0, len(column) - 1, *extremes, *gaps[:1]})]
    return kept


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values within low..high, at most `most` + 1 of them."""
    rough = (high - low) / most
    if not rough > 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in _ROUND_STEPS if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * number for number in range(first, last + 1)]


def labels(values: Sequence[float]) -> list[str]:
    """Texts of ticks: as many decimals as their step needs; k, M or G for all of them when one is large."""
    largest = max(map(abs, values), default=0.0)
    if largest >= _LARGEST:
        return [f"{value:.1e}" for value in values]
    unit, suffix = next(((unit, suffix) for least, unit, suffix in _UNITS if largest >= least), (1.0, ""))
    step = abs(values[1] - values[0]) / unit if len(values) > 1 else largest / unit
    decimals = min(max(0, -math.floor(math.log10(step) + 1e-9)), _MOST_DECIMALS) if step else 0
    return [f"{value / unit:.{decimals}f}{suffix if value else ''}" for value in values]


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and abs(value) < _INFINITE


def _x_scale(low: float, high: float) -> Scale:
    return Scale(low, high if high > low else low + 1.0, _LEFT, WIDTH - _RIGHT)


def _y_scale(values: Iterable[float]) -> Scale:
    """From the lowest to the highest, with a little room; one value alone lies in the middle."""
    known = list(values)
    low, high = min(known), max(known)
    room = (high - low) * 0.06 or abs(low) * 0.01 or 1.0
    bottom = low if low == 0 else low - room
    top = high if high == 0 > low else high + room
    return Scale(bottom, top, HEIGHT - _BOTTOM, _TOP)


def _chart(title: str, parts: Iterable[str], height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _empty(title: str) -> str:
    return _chart(title, [_text(WIDTH / 2, HEIGHT / 2, "nothing to show", "middle")])


def _grid(x: Scale, y: Scale, *, decades: bool = False) -> str:
    values = ticks(y.low, y.high, _TICKS_Y)
    drawn = []
    for value, text in zip(values, labels(values), strict=True):
        place = y(value)
        drawn.append(f'<path class="grid" d="M{x.start:g} {place:.1f}H{x.end:g}"/>')
        drawn.append(_text(x.start - 6, place + 4, text, "end"))
    return "".join([*drawn, *_x_axis(x, HEIGHT, decades=decades)])


def _x_axis(x: Scale, height: float, *, decades: bool = False) -> Iterator[str]:
    bottom = height - _BOTTOM
    yield f'<path class="axis" d="M{x.start:g} {bottom:g}H{x.end:g}"/>'
    for value, text in _decades(x) if decades else _even(x):
        yield f'<path class="axis" d="M{x(value):.1f} {bottom:g}v4"/>'
        yield _text(x(value), bottom + 17, text, "middle")


def _even(x: Scale) -> Iterator[tuple[float, str]]:
    values = ticks(x.low, x.high, _TICKS_X)
    yield from zip(values, labels(values), strict=True)


def _decades(x: Scale) -> Iterator[tuple[float, str]]:
    """1, 2 and 5 of each decade of a logarithmic axis, or its powers alone where there are many."""
    many = x.high - x.low > 2  # noqa: PLR2004 -- decades
    for exponent in range(math.floor(x.low), math.ceil(x.high) + 1):
        for factor in (1,) if many else (1, 2, 5):
            place = exponent + math.log10(factor)
            if x.low <= place <= x.high:
                yield place, f"{factor * 10.0**exponent:g}"


def _polylines(line: Line, x: Scale, y: Scale) -> str:
    """The line's pieces between its gaps; a piece of one point is a dot."""
    dashes = ' stroke-dasharray="4 3"' if line.dashed else ""
    colour = escape(line.colour)
    drawn = []
    for piece in _pieces(thin(line.points)):
        places = [(x(at), y(value)) for at, value in piece]
        if len(places) == 1:
            drawn.append(f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="2" fill="{colour}"/>')
        else:
            path = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
            drawn.append(f'<polyline class="line" points="{path}" style="stroke:{colour}"{dashes}/>')
    return f"<g><title>{escape(line.name)}</title>{''.join(drawn)}</g>"


def _pieces(points: Iterable[Point]) -> Iterator[list[tuple[float, float]]]:
    piece: list[tuple[float, float]] = []
    for at, value in points:
        if _finite(value):
            piece.append((at, value))
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _stack(one: Bin, colours: Mapping[str, str], x: Scale, y: Scale) -> Iterator[str]:
    base = 0.0
    for name, colour in colours.items():
        value = one.values.get(name, 0.0)
        if value > 0:
            title = f"{name} {value:.6g}".strip()
            left, right = x(one.low), x(one.high)
            gap = 1 if right - left > 4 else 0  # noqa: PLR2004 -- units
            yield _rectangle(left, y(base + value), right - gap, y(base), colour, title)
            base += value


def _rectangle(left: float, top: float, right: float, bottom: float, colour: str, title: str) -> str:
    width, height = max(right - left, 0.5), max(bottom - top, 0.5)
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'style="fill:{escape(colour)}"><title>{escape(title)}</title></rect>'
    )


def _spans(spans: Iterable[Span], x: Scale) -> str:
    return "".join(
        f'<rect class="span" x="{x(span.start):.1f}" y="{_TOP}" '
        f'width="{max(x(span.end) - x(span.start), 1):.1f}" height="{HEIGHT - _TOP - _BOTTOM}">'
        f"<title>{escape(span.title)}</title></rect>"
        for span in spans
    )


def _marks(marks: Iterable[Mark], x: Scale, height: float = HEIGHT) -> str:
    """Vertical lines with their words; where there is no room for a word, it shows under the pointer."""
    drawn = []
    free_from = 0.0
    for mark in sorted(marks, key=lambda mark: mark.at):
        if not x.low <= mark.at <= x.high:
            continue
        place, wide = x(mark.at), len(mark.text) * _LETTER
        line = f'<path class="mark" d="M{place:.1f} {_TOP - 4}V{height - _BOTTOM:g}"/>'
        drawn.append(f"<g>{line}<title>{escape(mark.text)}</title></g>")
        left = min(place + 3, WIDTH - wide)
        if left >= free_from:
            drawn.append(_text(left, _TOP - 6, mark.text, "start"))
            free_from = left + wide
    return "".join(drawn)


def _text(across: float, down: float, text: str, anchor: str) -> str:
    return f'<text x="{across:.1f}" y="{down:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
