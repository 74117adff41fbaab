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


@dataclass(frozen=True)
class Curve:
    """Values at places 0, 1, 2, ...; NaN leaves a gap."""

    values: Sequence[float]
    colour: Colour
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves under a title. places: what stands at 0, 1, 2, ... of the axis below, whose meaning is `axis`."""

    title: str
    axis: str
    places: Sequence[str]
    curves: Sequence[Curve]

    def draw(self, pen: ImageDraw.ImageDraw, left: int, top: int, width: int, height: int) -> None:
        box = (left + LEFT, top + TOP, left + width - RIGHT, top + height - BOTTOM)
        low, high = _range([value for curve in self.curves for value in curve.values if math.isfinite(value)])
        pen.text((box[0], top + 8), self.title, INK, font(TEXT + 2))
        for tick in _ticks(low, high):
            y = _between(tick, low, high, box[3], box[1])
            pen.line([(box[0], y), (box[2], y)], FAINT)
            pen.text((box[0] - 8, y), _short(tick, high - low), INK, font(TEXT - 2), anchor="rm")
        room = len(self.places) * 60 / (box[2] - box[0])
        every = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, len(self.places)) if step >= room)
        for place in range(0, len(self.places), every):
            pen.text((self._x(place, box), box[3] + 8), self.places[place], INK, font(TEXT - 2), anchor="mt")
        pen.text(((box[0] + box[2]) / 2, top + height - 4), self.axis, INK, font(TEXT - 2), anchor="mb")
        for curve in self.curves:
            self._draw_curve(pen, curve, box, low, high)
        pen.rectangle(box, outline=INK)

    def _x(self, place: int, box: tuple[int, int, int, int]) -> float:
        return _between(place, 0, max(1, len(self.places) - 1), box[0], box[2])

    def _draw_curve(self, pen: ImageDraw.ImageDraw, curve: Curve, box: tuple, low: float, high: float) -> None:
        points = [
            (self._x(place, box), _between(value, low, high, box[3], box[1])) if math.isfinite(value) else None
            for place, value in enumerate(curve.values)
        ]
        for before, after in pairwise(points):
            if before and after:
                line(pen, before, after, curve)
        for place, point in enumerate(points):
            is_alone = points[max(0, place - 1) : place + 2].count(None) + (len(points) == 1) > 0
            if point and is_alone:
                pen.ellipse([point[0] - 3, point[1] - 3, point[0] + 3, point[1] + 3], curve.colour)


def line(pen: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], curve: Curve) -> None:
    if not curve.dashed:
        pen.line([start, end], curve.colour, 2)
        return
    length, dash = math.dist(start, end), 6
    for begin in range(0, math.ceil(length), 2 * dash):
        ends = [min(1.0, at / length) for at in (begin, begin + dash)]
        pen.line([tuple(s + (e - s) * at for s, e in zip(start, end)) for at in ends], curve.colour, 2)


def _between(value: float, low: float, high: float, at_low: float, at_high: float) -> float:
    return at_low + (value - low) / (high - low) * (at_high - at_low)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A range around the values, with some room and never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, four or so."""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((unit * m for m in (1, 2, 5, 10)), key=lambda one: abs(one - rough))
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(tick: float, span: float) -> str:
    """A tick's number, to as many places as the range needs."""
    if tick == 0:
        return "0"
    if not 1e-3 <= span < 1e6:
        return f"{tick:.3g}"
    places = max(0, 1 - math.floor(math.log10(span)))
    return f"{tick:,.{places}f}"
