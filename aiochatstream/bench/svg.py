"""Small plots as SVG text: axes with units, lines with whiskers, dots, steps and bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 620, 330
LEFT, RIGHT, TOP, BOTTOM = 74, 26, 34, 46
"""Pixels around what is drawn. A legend adds its lines at the top."""
LEGEND_LINE = 18
LETTER = 6.6
"""Pixels of a letter, about."""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F", "#B8A800")
"""Okabe and Ito's, which colour-blind readers can tell apart, too."""

MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "M-3.5-3.5h7v7h-7Z",
    "M0-4.8L4.4 3.4H-4.4Z",
    "M0-5L5 0L0 5L-5 0Z",
    "M-4.4-3.4H4.4L0 4.8Z",
)
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
"""The lines of a chart take a marker and a dash each, in turn: they can be told apart without colour, too."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points that belong together. ``steps`` holds each value until the next point.

    whiskers: for a line, the least and the most of what each point stands for, in the order of the points; or none.
    """

    name: str
    points: Sequence[Point]
    colour: str
    style: Literal["line", "dots", "steps"] = "line"
    whiskers: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Bar:
    """From ``begin`` to ``end`` on the x axis, in row ``row`` (0 is the top one)."""

    row: int
    begin: float
    end: float
    colour: str


@dataclass(frozen=True)
class Amount:
    """A bar from 0 to ``value``, with its name before it, and a whisker from ``low`` to ``high``."""

    name: str
    value: float
    low: float
    high: float
    colour: str


@dataclass(frozen=True)
class Axis:
    """What an axis shows. The label names the unit; ``ticks`` are on the axis, first and last at its ends.

    log: equal factors are equal lengths (base 2).
    """

    label: str
    ticks: Sequence[float]
    log: bool = False

    @classmethod
    def over(cls, label: str, values: Sequence[float]) -> Axis:
        """From 0 to a round value that is not below any of ``values``."""
        step = nice_step(max(values, default=1.0) or 1.0)
        count = max(1, math.ceil(max(values, default=1.0) / step - 1e-9))
        return cls(label, [step * number for number in range(count + 1)])

    @classmethod
    def powers(cls, label: str, values: Sequence[float]) -> Axis:
        """A logarithmic one between round values (1, 2 or 5 times a power of ten). ``values`` are above 0."""
        low, high = min(values, default=1.0), max(values, default=1.0)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 2)
        around = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        begin = max(place for place, value in enumerate(around) if value <= low * (1 + 1e-9))
        end = next(place for place, value in enumerate(around) if value >= high * (1 - 1e-9) and place > begin)
        return cls(label, around[begin : end + 1], log=True)

    def place(self, value: float) -> float:
        """Where ``value`` is on the axis: 0 is its beginning, 1 its end."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.log:
            low, high, value = math.log2(low), math.log2(high), math.log2(value)
        return (value - low) / (high - low) if high > low else 0.5


def nice_step(top: float, ticks: int = 5) -> float:
    """1, 2 or 5 times a power of ten, so that about ``ticks`` of them reach ``top``."""
    rough = top / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9)))


@dataclass(frozen=True)
class Area:
    """Where the axes meet what is drawn, in pixels from the picture's upper left corner."""

    left: float
    top: float
    right: float
    bottom: float

    def x(self, axis: Axis, value: float) -> float:
        return self.left + axis.place(value) * (self.right - self.left)

    def y(self, axis: Axis, value: float) -> float:
        return self.bottom - axis.place(value) * (self.bottom - self.top)


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """A plot of ``series``."""
    legend, height = _legend([(one.name, _sample(one, number)) for number, one in enumerate(series)])
    area = Area(LEFT, TOP + height, WIDTH - RIGHT, HEIGHT - BOTTOM - LEGEND_LINE + height)
    marks = "".join(_draw(one, number, x, y, area) for number, one in enumerate(series))
    return _frame(title, area, f"{legend}{_x_axis(x, area)}{_y_axis(y, area)}{marks}")


def bars(title: str, x: Axis, y_label: str, rows: int, drawn: Sequence[Bar], legend: Sequence[tuple[str, str]]) -> str:
    """Rows of bars over a common x axis. legend: names and colours."""
    row_height = min(12.0, max(2.0, 520 / max(rows, 1)))
    names, height = _legend(
        [(name, f'<rect x="16" y="-5" width="10" height="10" fill="{fill}"/>') for name, fill in legend]
    )
    area = Area(LEFT, TOP + height, WIDTH - RIGHT, round(TOP + height + rows * row_height))
    marks = "".join(
        f'<rect x="{area.x(x, bar.begin):.1f}" y="{area.top + bar.row * row_height:.1f}" fill="{bar.colour}" '
        f'width="{max(1.5, area.x(x, bar.end) - area.x(x, bar.begin)):.1f}" height="{row_height * 0.85:.1f}"/>'
        for bar in drawn
    )
    return _frame(title, area, f"{names}{_x_axis(x, area)}{_y_label(y_label, area)}{marks}")


def amounts(title: str, x: Axis, rows: Sequence[Amount]) -> str:
    """A bar for each of ``rows``, with its name on the left and its value on the right."""
    step, thick = 26, 16
    left = 20 + LETTER * max((len(row.name) for row in rows), default=0)
    area = Area(left, TOP, WIDTH - 70, TOP + step * len(rows))
    marks = ""
    for number, row in enumerate(rows):
        middle, end = area.top + step * (number + 0.5), area.x(x, row.value)
        marks += (
            f'<rect x="{left:.1f}" y="{middle - thick / 2:.1f}" width="{end - left:.1f}" height="{thick}" '
            f'fill="{row.colour}"/>'
            f'<path d="M{area.x(x, row.low):.1f} {middle:.1f}H{area.x(x, row.high):.1f}" stroke="#222"/>'
            + _text(left - 8, middle + 4, row.name, "end")
            + _text(max(end, area.x(x, row.high)) + 6, middle + 4, _number(row.value))
        )
    return _frame(title, area, _x_axis(x, area) + marks)


def _draw(series: Series, number: int, x: Axis, y: Axis, area: Area) -> str:
    places = [(area.x(x, px), area.y(y, py)) for px, py in series.points]
    colour = series.colour
    if series.style == "dots":
        opacity, radius = (0.8, 3) if len(places) < 300 else (0.4, 2)
        dots = "".join(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{radius}"/>' for px, py in places)
        return f'<g fill="{colour}" fill-opacity="{opacity}">{dots}</g>'
    if not places:
        return ""
    if series.style == "steps":
        path = f"M{places[0][0]:.1f} {places[0][1]:.1f}" + "".join(f"H{px:.1f}V{py:.1f}" for px, py in places[1:])
        return _line(path, series, number)
    whiskers = "".join(
        f"M{px - 4:.1f} {area.y(y, low):.1f}h8m-4 0V{area.y(y, high):.1f}m-4 0h8"
        for (px, _), (low, high) in zip(places, series.whiskers, strict=False)
    )
    return (
        (f'<path d="{whiskers}" stroke="{colour}" stroke-opacity="0.7" fill="none"/>' if whiskers else "")
        + _line("M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places), series, number)
        + "".join(_marker(px, py, series, number) for px, py in places)
    )


def _line(path: str, series: Series, number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    return f'<path d="{path}" fill="none" stroke="{series.colour}" stroke-width="2" stroke-dasharray="{dash}"/>'


def _marker(x: float, y: float, series: Series, number: int) -> str:
    marker = MARKERS[number % len(MARKERS)]
    return f'<path d="{marker}" fill="{series.colour}" transform="translate({x:.1f} {y:.1f})"/>'


def _sample(series: Series, number: int) -> str:
    """How it looks in a legend."""
    if series.style == "dots":
        return f'<circle cx="13" cy="0" r="3" fill="{series.colour}"/>'
    return _line("M0 0H26", series, number) + (_marker(13, 0, series, number) if series.style == "line" else "")


def _legend(samples: Sequence[tuple[str, str]]) -> tuple[str, int]:
    """Names and their samples, in as many lines as they need, and how high those are."""
    drawn, left, lines = "", float(LEFT), 1
    for name, sample in samples:
        width = 46 + LETTER * len(name)
        if left > LEFT and left + width > WIDTH:
            left, lines = float(LEFT), lines + 1
        baseline = TOP + LEGEND_LINE * (lines - 1)
        drawn += f'<g transform="translate({left:.1f} {baseline})">{sample}{_text(32, 4, name)}</g>'
        left += width
    return drawn, LEGEND_LINE * lines


def _frame(title: str, area: Area, drawn: str) -> str:
    height = round(area.bottom + BOTTOM)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(title)}">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold" fill="#222">{escape(title)}</text>'
        f"{drawn}</svg>"
    )


def _x_axis(axis: Axis, area: Area) -> str:
    lines = "".join(
        f'<path d="M{area.x(axis, tick):.1f} {area.top}V{area.bottom}" stroke="#ddd"/>'
        + _text(area.x(axis, tick), area.bottom + 17, _number(tick), "middle")
        for tick in axis.ticks
    )
    return lines + _text((area.left + area.right) / 2, area.bottom + 36, axis.label, "middle")


def _y_axis(axis: Axis, area: Area) -> str:
    lines = "".join(
        f'<path d="M{area.left} {area.y(axis, tick):.1f}H{area.right}" stroke="#ddd"/>'
        + _text(area.left - 6, area.y(axis, tick) + 4, _number(tick), "end")
        for tick in axis.ticks
    )
    return lines + _y_label(axis.label, area)


def _y_label(label: str, area: Area) -> str:
    middle = (area.top + area.bottom) / 2
    return f'<g transform="translate(16 {middle:.1f}) rotate(-90)">{_text(0, 0, label, "middle")}</g>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
