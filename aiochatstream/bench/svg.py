"""Small plots as SVG text: axes with units, lines, dots, steps and bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 620, 330
LEFT, RIGHT, TOP, BOTTOM = 64, 26, 52, 46

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F", "#B8A800")
"""Okabe and Ito's, which colour-blind readers can tell apart, too."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points that belong together. ``steps`` holds each value until the next point."""

    name: str
    points: Sequence[Point]
    colour: str
    style: Literal["line", "dots", "steps"] = "line"


@dataclass(frozen=True)
class Bar:
    """From ``begin`` to ``end`` on the x axis, in row ``row`` (0 is the top one)."""

    row: int
    begin: float
    end: float
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


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """A plot of ``series``."""
    marks = "".join(_draw(one, x, y) for one in series)
    return _frame(title, HEIGHT, _x_axis(x, HEIGHT) + _y_axis(y), marks, [(one.name, one.colour) for one in series])


def bars(title: str, x: Axis, y_label: str, rows: int, drawn: Sequence[Bar], legend: Sequence[tuple[str, str]]) -> str:
    """Rows of bars over a common x axis."""
    row_height = min(12.0, max(2.0, 520 / max(rows, 1)))
    height = round(TOP + BOTTOM + rows * row_height)
    marks = "".join(
        f'<rect x="{_x(x, bar.begin):.1f}" y="{TOP + bar.row * row_height:.1f}" fill="{bar.colour}" '
        f'width="{max(1.5, _x(x, bar.end) - _x(x, bar.begin)):.1f}" height="{row_height * 0.85:.1f}"/>'
        for bar in drawn
    )
    return _frame(title, height, _x_axis(x, height) + _y_label(y_label, height), marks, legend)


def _draw(series: Series, x: Axis, y: Axis) -> str:
    places = [(_x(x, px), _y(y, py)) for px, py in series.points]
    colour = series.colour
    if series.style == "dots":
        opacity, radius = (0.8, 3) if len(places) < 300 else (0.4, 2)
        dots = "".join(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{radius}"/>' for px, py in places)
        return f'<g fill="{colour}" fill-opacity="{opacity}">{dots}</g>'
    if not places:
        return ""
    if series.style == "steps":
        path = f"M{places[0][0]:.1f} {places[0][1]:.1f}" + "".join(f"H{px:.1f}V{py:.1f}" for px, py in places[1:])
        dots = ""
    else:
        path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
        dots = "".join(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"/>' for px, py in places)
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'


def _frame(title: str, height: int, axes: str, marks: str, legend: Sequence[tuple[str, str]]) -> str:
    names, place = "", LEFT
    for name, colour in legend:
        names += f'<rect x="{place}" y="33" width="10" height="10" fill="{colour}"/>'
        names += _text(place + 14, 42, name)
        place += 26 + round(6.6 * len(name))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{escape(title)}">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold" fill="#222">{escape(title)}</text>'
        f"{names}{axes}{marks}</svg>"
    )


def _x_axis(axis: Axis, height: int) -> str:
    bottom = height - BOTTOM
    lines = "".join(
        f'<path d="M{_x(axis, tick):.1f} {TOP}V{bottom}" stroke="#ddd"/>'
        + _text(_x(axis, tick), bottom + 17, _number(tick), "middle")
        for tick in axis.ticks
    )
    return lines + _text((LEFT + WIDTH - RIGHT) / 2, height - 10, axis.label, "middle")


def _y_axis(axis: Axis) -> str:
    lines = "".join(
        f'<path d="M{LEFT} {_y(axis, tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        + _text(LEFT - 6, _y(axis, tick) + 4, _number(tick), "end")
        for tick in axis.ticks
    )
    return lines + _y_label(axis.label, HEIGHT)


def _y_label(label: str, height: int) -> str:
    middle = (TOP + height - BOTTOM) / 2
    return f'<g transform="translate(16 {middle:.1f}) rotate(-90)">{_text(0, 0, label, "middle")}</g>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)
