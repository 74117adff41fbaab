"""A panel with curves over a common axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import ImageDraw

from .canvas import FAINT, INK, Colour, font

LEFT, RIGHT, TOP, BOTTOM = 84, 26, 40, 54
TEXT = 20
DASH = 7

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """Values at places 0, 1, 2, ...; NaN leaves a gap."""

    name: str
    values: Sequence[float]
    colour: Colour
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves under a title. places: tick labels of the x axis at 0, 1, 2, ...; axis: its name.

    from_zero: whether the y axis includes 0.
    """

    title: str
    axis: str
    places: Sequence[str]
    curves: Sequence[Curve]
    from_zero: bool = False

    def draw(self, pen: ImageDraw.ImageDraw, left: int, top: int, width: int, height: int) -> None:
        box = (left + LEFT, top + TOP, left + width - RIGHT, top + height - BOTTOM)
        values = [value for curve in self.curves for value in curve.values if math.isfinite(value)]
        low, high = _range(values, self.from_zero)
        pen.text((box[0], top + 8), self.title, INK, font(TEXT + 2))
        self._draw_axes(pen, box, low, high)
        pen.text(((box[0] + box[2]) / 2, top + height - 4), self.axis, INK, font(TEXT - 2), anchor="mb")
        for curve in self.curves:
            self._draw_curve(pen, curve, box, low, high)
        empty = dict.fromkeys(c.name for c in self.curves if not any(math.isfinite(value) for value in c.values))
        if empty:
            middle = ((box[0] + box[2]) / 2, box[3] - 6)
            pen.text(middle, f"no values: {', '.join(empty)}", INK, font(TEXT - 4), anchor="mb")
        pen.rectangle(box, outline=INK)

    def _draw_axes(self, pen: ImageDraw.ImageDraw, box: tuple, low: float, high: float) -> None:
        step = _tick_step(low, high)
        for number in range(math.ceil(low / step), math.floor(high / step) + 1):
            y = _between(number * step, low, high, box[3], box[1])
            pen.line([(box[0], y), (box[2], y)], FAINT)
            pen.text((box[0] - 8, y), _written(number * step, step), INK, font(TEXT - 2), anchor="rm")
        room = len(self.places) * 60 / (box[2] - box[0])
        every = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, len(self.places)) if step >= room)
        for place in range(0, len(self.places), every):
            pen.text((self._x(place, box), box[3] + 8), self.places[place], INK, font(TEXT - 2), anchor="mt")

    def _x(self, place: int, box: tuple) -> float:
        return _between(place, 0, max(1, len(self.places) - 1), box[0], box[2])

    def _draw_curve(self, pen: ImageDraw.ImageDraw, curve: Curve, box: tuple, low: float, high: float) -> None:
        points = [
            (self._x(place, box), _between(value, low, high, box[3], box[1])) if math.isfinite(value) else None
            for place, value in enumerate(curve.values)
        ]
        for stretch in _stretches(points):
            line(pen, stretch, curve.colour, curve.dashed)
            if len(stretch) == 1:
                (x, y) = stretch[0]
                pen.ellipse([x - 3, y - 3, x + 3, y + 3], curve.colour)


def line(pen: ImageDraw.ImageDraw, points: Sequence[Point], colour: Colour, dashed: bool) -> None:
    """A line through the points. Dashes continue across points, so that they are visible however close these are."""
    gone = 0.0
    for start, end in pairwise(points):
        length = math.dist(start, end)
        for begin, stop in _dashes(gone, length) if dashed else [(0.0, length)]:
            ends = (
                [tuple(s + (e - s) * at / length for s, e in zip(start, end)) for at in (begin, stop)] if length else []
            )
            pen.line(ends, colour, 2)
        gone += length


def _dashes(gone: float, length: float) -> list[tuple[float, float]]:
    """The intervals of the next `length` of a dashed line that are drawn, after `gone` of it."""
    first = math.floor(gone / (2 * DASH))
    starts = [2 * DASH * number - gone for number in range(first, math.ceil((gone + length) / (2 * DASH)))]
    return [(max(0.0, s), min(length, s + DASH)) for s in starts if s + DASH > 0 and s < length]


def _stretches(points: Sequence[Point | None]) -> list[list[Point]]:
    """The runs of points between gaps."""
    found: list[list[Point]] = [[]]
    for point in points:
        if point is None:
            found.append([])
        else:
            found[-1].append(point)
    return [stretch for stretch in found if stretch]


def _between(value: float, low: float, high: float, at_low: float, at_high: float) -> float:
    return at_low + (value - low) / (high - low) * (at_high - at_low)


def _range(values: Sequence[float], from_zero: bool) -> tuple[float, float]:
    """A range around the values, with a margin and never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low, high = (min(low, 0.0), max(high, 0.0)) if from_zero else (low, high)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _tick_step(low: float, high: float) -> float:
    """A round number, about a quarter of the range."""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    return min((unit * m for m in (1, 2, 5, 10)), key=lambda one: abs(one - rough))


def _written(tick: float, step: float) -> str:
    """The label of a tick, with the decimals that the step between ticks needs."""
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{tick:,.{places}f}" if places <= 4 and abs(tick) < 1e6 else f"{tick:.3g}"
