"""Charts as SVG, drawn by matplotlib. The same values give the same SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aiochatstream.extras import requires_extra
from aiochatstream.terminal import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 6.5, 3.2
"""Inches of a chart without its legend. Texts have 9 points."""

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#7f7f7f", "#b8a800")
"""Palette of Okabe and Ito, distinguishable by colour-blind readers."""

INK, PAPER, GRID = "#222222", "#ffffff", "#dddddd"
DARK = {INK: "#e6e6e6", PAPER: "#16181c", GRID: "#3d4046", COLOURS[0]: "#2b92d6"}
"""Replacements in a dark colour scheme. The other colours suit both schemes."""

MARKERS = ("o", "s", "^", "D", "v")
DASHES = ("-", "--", ":", "-.")
"""Markers and line styles of successive series, which distinguish them without colour."""

RC_PARAMS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "aiochatstream",
    "font.family": "sans-serif",
    "font.sans-serif": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}

Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A finished chart: its title, and the text of an SVG file."""

    title: str
    svg: str


@dataclass(frozen=True)
class Series:
    """Points of one line or one set of dots.

    ranges: lowest and highest value behind each point, drawn as error bars; or nothing.
    """

    name: str
    points: Sequence[Point]
    colour: str
    ranges: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Axis:
    """Label with the unit, scale and ticks of an axis. A linear axis starts at 0; ticks are optional."""

    label: str
    log: bool = False
    ticks: Sequence[float] = ()


@dataclass(frozen=True)
class Bar:
    """A horizontal bar from 0 to ``value``, with an error bar from ``low`` to ``high``."""

    name: str
    value: float
    low: float
    high: float
    colour: str


@dataclass(frozen=True)
class Span:
    """A stretch from ``start`` to ``end`` in row ``row`` of a timeline. Row 0 is at the top."""

    row: int
    start: float
    end: float
    colour: str


def require_matplotlib() -> None:
    """Raise MissingExtra if matplotlib is missing."""
    with requires_extra("bench"):
        import matplotlib  # noqa: F401 - slow to import


def line_chart(
    title: str, x: Axis, y: Axis, series: Sequence[Series], *, style: Literal["lines", "steps", "dots"] = "lines"
) -> Chart:
    """Return a chart of ``series``. Steps keep each value until the next point."""

    def draw(axes: Axes) -> None:
        for number, line in enumerate(series):
            values = [value for _, value in line.points]
            axes.errorbar(
                [place for place, _ in line.points],
                values,
                _errors(values, line.ranges),
                label=line.name,
                color=line.colour,
                alpha=0.6 if style == "dots" else None,
                marker="" if style == "steps" else MARKERS[number % len(MARKERS)],
                markersize=2.5 if style == "dots" else 4.5,
                linestyle="" if style == "dots" else DASHES[number % len(DASHES)],
                drawstyle="steps-post" if style == "steps" else "default",
                capsize=3,
                elinewidth=0.8,
            )
        _set_scale(axes, "x", x)
        _set_scale(axes, "y", y)

    return _chart(title, draw)


def bar_chart(title: str, label: str, bars: Sequence[Bar]) -> Chart:
    """Return a chart with a row for each of ``bars``: its name, the bar and its value."""

    def draw(axes: Axes) -> None:
        values = [bar.value for bar in bars]
        drawn = axes.barh(
            range(len(bars)),
            values,
            height=0.65,
            color=[bar.colour for bar in bars],
            xerr=_errors(values, [(bar.low, bar.high) for bar in bars]),
            error_kw={"ecolor": INK, "elinewidth": 0.8, "capsize": 3},
        )
        axes.bar_label(drawn, [_number(value) for value in values], padding=4)
        axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        _set_scale(axes, "x", Axis(label), margin=0.15)

    return _chart(title, draw, height=0.9 + 0.27 * len(bars))


def timeline(title: str, x: Axis, rows: Axis, spans: Sequence[Span], legend: Sequence[tuple[str, str]]) -> Chart:
    """Return a chart of ``spans``. ``legend`` has the names and colours of their kinds."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.barh(
            [span.row for span in spans],
            [span.end - span.start for span in spans],
            left=[span.start for span in spans],
            height=0.85,
            color=[span.colour for span in spans],
            edgecolor=[span.colour for span in spans],  # makes a span of no width visible
            linewidth=0.5,
        )
        for name, colour in legend:
            axes.bar(0, 0, color=colour, label=name)
        _set_scale(axes, "x", x)
        _set_scale(axes, "y", rows)
        axes.set_ylim(max((span.row for span in spans), default=0) + 0.5, -0.5)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="y")

    count = 1 + max((span.row for span in spans), default=0)
    return _chart(title, draw, height=1.2 + min(6.0, 0.12 * count))


def _chart(title: str, draw: Callable[[Axes], None], *, height: float = HEIGHT) -> Chart:
    require_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    file = io.StringIO()
    with style.context(["default", RC_PARAMS]):
        figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08))
        axes = figure.subplots()
        axes.set_title(one_line(title, 80))
        draw(axes)
        _, names = axes.get_legend_handles_labels()
        if names:
            columns = max(1, min(len(names), 100 // (8 + max(map(len, names)))))
            figure.legend(loc="outside lower left", ncols=columns)
            figure.set_figheight(height + 0.2 * math.ceil(len(names) / columns))
        figure.savefig(file, format="svg", metadata={"Title": title, "Creator": None, "Date": None})
    return Chart(title, file.getvalue().replace("</style>", f"{_dark_style()}</style>", 1))


def _dark_style() -> str:
    rules = "".join(
        f'[style*="{part}: {light}"] {{ {part}: {dark} !important }} '
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme: dark) {{ {rules}}}"


def _set_scale(axes: Axes, name: Literal["x", "y"], scale: Axis, margin: float = 0.05) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis = axes.xaxis if name == "x" else axes.yaxis
    set_scale, set_limits = (axes.set_xscale, axes.set_xlim) if name == "x" else (axes.set_yscale, axes.set_ylim)
    axis.set_label_text(scale.label)
    if scale.log:
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        highest = axes.dataLim.xmax if name == "x" else axes.dataLim.ymax
        set_limits(0, highest * (1 + margin) if 0 < highest < math.inf else 1)
    if scale.ticks:
        axis.set_ticks(scale.ticks)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))


def _errors(values: Sequence[float], ranges: Sequence[tuple[float, float]]) -> list[list[float]] | None:
    """Return the distances to the lowest and highest values; None if no range has an extent."""
    if all(low == high for low, high in ranges):
        return None
    low = [value - low for value, (low, _) in zip(values, ranges, strict=True)]
    high = [high - value for value, (_, high) in zip(values, ranges, strict=True)]
    return [low, high]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
