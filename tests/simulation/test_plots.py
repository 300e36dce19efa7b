"""Charts as SVG text: well formed, within their frame, true to their numbers."""

import math
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation import plots
from simulation.plots import HEIGHT, WIDTH, Bin, Line, Mark, Point, Span, Strip

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ET.Element:
    """The chart as a tree; raises where it is not well formed."""
    return ET.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def texts(svg: str) -> list[str]:
    """Everything that is written in a chart."""
    return [element.text or "" for element in parsed(svg).iter(f"{SVG}text")]


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    """The points of every line, in units of the chart."""
    found = [element.attrib["points"] for element in parsed(svg).iter(f"{SVG}polyline")]
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())] for line in found]


def one_line(points: list[Point], *, from_zero: bool = False) -> str:
    """A chart of one line over ten seconds."""
    return plots.lines("title", [Line("line", "red", points)], 10.0, from_zero=from_zero)


def test_axes_have_round_ticks() -> None:
    """Ticks are round numbers within the scale; 0 is shown where it was asked for."""
    svg = one_line([(0.0, 12.0), (10.0, 19.0)], from_zero=True)
    assert texts(svg) == ["0", "5", "10", "15", "20", "0", "2", "4", "6", "8", "10"]


def test_a_line_goes_where_its_numbers_say() -> None:
    """Later is further right, more is further up, equal steps are equally long."""
    ((first, second, third),) = polylines(one_line([(0.0, 1.0), (5.0, 2.0), (10.0, 3.0)]))
    assert first[0] < second[0] < third[0]
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], abs=0.11)
    assert first[1] - second[1] == pytest.approx(second[1] - third[1], abs=0.11)
    assert first[1] > second[1]


def test_gaps_stay_gaps() -> None:
    """A missing value breaks the line, and a point alone between two is a dot."""
    svg = one_line([(0.0, 1.0), (1.0, 1.0), (2.0, None), (3.0, 5.0), (4.0, math.nan), (5.0, 1.0), (6.0, 2.0)])
    assert [len(line) for line in polylines(svg)] == [2, 2]
    assert len(list(parsed(svg).iter(f"{SVG}circle"))) == 1


def test_a_short_gap_among_many_points_stays_a_gap() -> None:
    """It lies within one column of the points that are left out."""
    points: list[Point] = [(index / 300, None if 1502 <= index < 1509 else 1.0) for index in range(3_000)]
    assert len(polylines(one_line(points))) == 2


@pytest.mark.parametrize(
    "svg",
    [
        plots.lines("t", [], 10.0),
        one_line([]),
        one_line([(1.0, None), (2.0, math.inf)]),
        plots.bars("t", [], {}),
        plots.bars("t", [Bin(0, 1, {})], {"E1": "red"}),
        plots.counts("t", [], "red"),
        plots.strips("t", [], [], 10.0),
    ],
)
def test_nothing_to_show_says_so(svg: str) -> None:
    """Without a number there is no axis, but a word."""
    assert texts(svg) == ["nothing to show"]


def test_one_point() -> None:
    """A single value is a dot in the frame, with a scale around it."""
    svg = one_line([(5.0, 100.0)])
    (dot,) = parsed(svg).iter(f"{SVG}circle")
    assert 0 < float(dot.attrib["cx"]) < WIDTH
    assert 0 < float(dot.attrib["cy"]) < HEIGHT
    assert "100.0" in texts(svg)


numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(st.floats(-10, 20), st.none() | numbers), max_size=60), st.booleans())
def test_whatever_the_numbers_the_chart_stays_in_its_frame(points: list[Point], from_zero: bool) -> None:
    """Huge, tiny, equal and impossible values give a well-formed chart, and no point outside of it."""
    for line in polylines(one_line(points, from_zero=from_zero)):
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)


@given(st.lists(st.tuples(st.floats(0, 10), st.none() | st.floats(-1e6, 1e6)), max_size=200))
def test_thinning_keeps_the_extremes(points: list[Point]) -> None:
    """Of many points a few remain, in order, and the highest and the lowest are among them."""
    kept = plots.thin(points, columns=10)
    assert len(kept) <= 5 * 10
    known = [value for _, value in points if value is not None]
    left = [value for _, value in kept if value is not None]
    assert (not known) or (max(left), min(left)) == (max(known), min(known))
    places = iter(points)
    assert all(point in places for point in kept)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.0, 0.05, 0.1], ["0.00", "0.05", "0.10"]),
        ([99.5, 100.0, 100.5], ["99.5", "100.0", "100.5"]),
        ([0.0, 2_500.0, 5_000.0], ["0", "2500", "5000"]),
        ([-50_000.0, 0.0, 50_000.0], ["-50k", "0", "50k"]),
        ([0.0, 500_000.0, 1_000_000.0], ["0.0", "0.5M", "1.0M"]),
        ([0.0, 1e20], ["0.0e+00", "1.0e+20"]),
        ([0.0], ["0"]),
        ([], []),
    ],
)
def test_labels(values: list[float], shown: list[str]) -> None:
    """Labels have the decimals that tell ticks apart, and one unit for all of them."""
    assert plots.labels(values) == shown


def test_bars_are_stacked() -> None:
    """The parts of a bar stand on each other, in the order of the colours, as high as their values."""
    svg = plots.bars(
        "t", [Bin(0, 5, {"E1": 1.0, "E2": 3.0}), Bin(5, 10, {"E2": 2.0})], {"E1": "red", "E2": "blue"}
    )
    red, blue, _ = (element.attrib for element in parsed(svg).iter(f"{SVG}rect"))
    assert float(blue["height"]) == pytest.approx(3 * float(red["height"]), abs=0.5)
    assert float(blue["y"]) + float(blue["height"]) == pytest.approx(float(red["y"]), abs=0.2)


def test_counts_have_a_logarithmic_axis() -> None:
    """Decades are equally wide, and a mark stands at its value."""
    bins = [Bin(10.0**power, 10.0 ** (power + 1), {"": 1.0}) for power in range(4)]
    svg = plots.counts("t", bins, "red", [Mark(100.0, "half")])
    assert texts(svg)[-6:] == ["1", "10", "100", "1000", "10000", "half"]
    widths = {round(float(bar.attrib["width"])) for bar in parsed(svg).iter(f"{SVG}rect")}
    assert len(widths) == 1
    (mark,) = (path for path in parsed(svg).iter(f"{SVG}path") if path.attrib["class"] == "mark")
    half = re.match(r"M([\d.]+) ", mark.attrib["d"])
    assert half is not None
    assert float(half[1]) == pytest.approx((56 + 468) / 2, abs=0.1)


def test_strips_have_a_row_for_each_name() -> None:
    """Stretches of one name are in one row, those of another below."""
    stretches = [
        Strip("E1", 0, 4, "green", "up"),
        Strip("E1", 4, 10, "red", "down"),
        Strip("E2", 0, 10, "green", "up"),
    ]
    one, two, other = (
        bar.attrib for bar in parsed(plots.strips("t", ["E1", "E2"], stretches, 10.0)).iter(f"{SVG}rect")
    )
    assert one["y"] == two["y"]
    assert float(other["y"]) > float(one["y"]) + float(one["height"])
    assert float(two["x"]) == pytest.approx(float(one["x"]) + float(one["width"]), abs=0.2)


def test_marks_that_are_close_do_not_write_over_each_other() -> None:
    """Of words with no room one is left out; its line, and what the pointer shows, stay."""
    marks = [Mark(5.0, "kill E1"), Mark(5.1, "kill E2"), Mark(9.9, "freeze E1"), Mark(11.0, "too late")]
    svg = plots.lines("t", [Line("l", "red", [(0.0, 1.0), (10.0, 2.0)])], 10.0, marks=marks)
    assert [text for text in texts(svg) if "E" in text] == ["kill E1", "freeze E1"]
    assert svg.count('class="mark"') == 3
    assert "<title>kill E2</title>" in svg


def test_everything_written_is_escaped() -> None:
    """No name can become markup."""
    evil = '</svg><script>"&'
    marks, spans = [Mark(1.0, evil)], [Span(1.0, 2.0, evil)]
    charts = [
        plots.lines(evil, [Line(evil, evil, [(0.0, 1.0), (1.0, 2.0)])], 10.0, marks=marks, spans=spans),
        plots.bars(evil, [Bin(0, 1, {evil: 1.0})], {evil: evil}, marks=marks, spans=spans),
        plots.counts(evil, [Bin(1, 2, {"": 1.0})], evil, [Mark(1.5, evil)]),
        plots.strips(evil, [evil], [Strip(evil, 0, 1, evil, evil)], 10.0, marks),
    ]
    for svg in charts:
        assert "<script" not in svg
        assert evil in {*texts(svg), parsed(svg).attrib["aria-label"]}
