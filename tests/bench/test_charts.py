"""Charts: valid, deterministic SVG with labelled axes, in light and dark."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from aiochatstream.bench.charts import (
    COLOURS,
    DARK,
    Axis,
    Bar,
    Chart,
    Series,
    Span,
    bar_chart,
    line_chart,
    timeline,
)
from aiochatstream.extras import MissingExtra
from tests.processes import PYTHON

TEXT = "{http://www.w3.org/2000/svg}text"

LINES = [
    Series("ours & <theirs>", [(1, 20), (4, 64)], COLOURS[0], [(10, 40), (60, 70)]),
    Series("without errors", [(1, 30)], COLOURS[1]),
    Series("without points", [], COLOURS[2]),
]
BARS = [Bar("first", 1.5, 1, 2, COLOURS[0]), Bar("second", 2000, 2000, 2000, COLOURS[1])]
SPANS = [Span(0, 0, 1, COLOURS[0]), Span(1, 0.5, 0.5, COLOURS[3])]

CHARTS: dict[str, tuple[Callable[[], Chart], set[str]]] = {
    "lines": (lambda: line_chart("Title", Axis("x, s"), Axis("y, ms"), LINES), {"x, s", "y, ms", "ours & <theirs>"}),
    "log": (
        lambda: line_chart("Title", Axis("users", log=True, ticks=[1, 2, 4]), Axis("y, ms", log=True), LINES),
        {"users", "1", "2", "4", "y, ms", "20", "50"},
    ),
    "steps": (lambda: line_chart("Title", Axis("x, s"), Axis("y, ms"), LINES[1:], style="steps"), {"x, s", "y, ms"}),
    "dots": (lambda: line_chart("Title", Axis("x, s"), Axis("y, ms"), LINES[1:], style="dots"), {"x, s", "y, ms"}),
    "no points": (lambda: line_chart("Title", Axis("x, s"), Axis("y, ms"), []), {"x, s", "y, ms"}),
    "bars": (lambda: bar_chart("Title", "x, s", BARS), {"x, s", "first", "second", "1.5", "2,000"}),
    "no bars": (lambda: bar_chart("Title", "x, s", []), {"x, s"}),
    "timeline": (
        lambda: timeline("Title", Axis("x, s"), Axis("rows"), SPANS, [("queued", COLOURS[0]), ("failed", COLOURS[3])]),
        {"x, s", "rows", "queued", "failed"},
    ),
    "no spans": (lambda: timeline("Title", Axis("x, s"), Axis("rows"), [], [("queued", COLOURS[0])]), {"x, s", "rows"}),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_valid_svg_with_title_and_labels(name: str) -> None:
    draw, texts = CHARTS[name]
    chart = draw()
    root = ElementTree.fromstring(chart.svg)  # noqa: S314 - our own
    assert chart.title == root.findtext("{http://www.w3.org/2000/svg}title") == "Title"
    assert {element.text for element in root.iter(TEXT)} >= {"Title", *texts}
    assert "nan" not in chart.svg


@pytest.mark.parametrize("name", CHARTS)
def test_the_same_values_give_the_same_svg(name: str) -> None:
    draw, _ = CHARTS[name]
    assert draw() == draw()


def test_whiskers_span_the_ranges() -> None:
    def whisker(low: float, high: float) -> int:
        line = Series("", [(1, 50)], COLOURS[0], [(low, high)])
        return line_chart("", Axis("x"), Axis("y"), [line]).svg.count("LineCollection")

    assert whisker(40, 60) == 1
    assert whisker(50, 50) == 0


def test_a_dark_viewer_gets_replaced_colours() -> None:
    svg = line_chart("Title", Axis("x"), Axis("y"), LINES).svg
    rules = svg.partition("@media (prefers-color-scheme: dark) {")[2].partition("</style>")[0]
    for light, dark in DARK.items():
        assert f'[style*="fill: {light}"] {{ fill: {dark} !important }}' in rules
        assert f"fill: {light}" in svg.replace(rules, "") or f"stroke: {light}" in svg.replace(rules, "")


def test_a_missing_matplotlib_is_an_error_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install 'aiochatstream\[bench\]'"):
        bar_chart("", "", [])


def test_matplotlib_is_imported_only_for_drawing() -> None:
    code = "import aiochatstream.bench.command, sys; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([PYTHON, "-c", code], check=True)
