"""Draws pictures of the shapes world with smooth edges, at any resolution, and invents them at random."""
from __future__ import annotations

import math

import numpy as np

from .world import COLOURS, GROUNDS, RARE, SHAPES, SIDE, SIZES, Picture, Thing

Array = np.ndarray
EDGE = 1 / 32  # width of an object's soft edge, in fractions of the side: two pixels of SIDE


def _star(u: Array, v: Array) -> Array:
    outer, inner, step = 1.05, 0.45, math.pi / 5
    angle = np.abs((np.arctan2(u, -v) + step) % (2 * step) - step)  # folds five points onto one half point
    radius = np.hypot(u, v)
    ex, ey = inner * math.cos(step) - outer, inner * math.sin(step)
    return ((radius * np.cos(angle) - outer) * ey - radius * np.sin(angle) * ex) / math.hypot(ex, ey)


def _cross(u: Array, v: Array) -> Array:
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 0.95, b - 0.32), np.maximum(a - 0.32, b - 0.95))


# Distance to the outline in units of the radius, negative inside; exact but for corners.
_OUTLINES = {
    "circle": lambda u, v: np.hypot(u, v) - 0.95,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.85,
    "triangle": lambda u, v: np.maximum(v - 0.75, (1.75 * np.abs(u) - 0.95 * (v + 1.0)) / math.hypot(1.75, 0.95)),
    "cross": _cross,
    "star": _star,
}


def coverage(shape: str, x: float, y: float, radius: float, height: int = SIDE, width: int = SIDE) -> Array:
    """How far the shape covers each pixel [h w], 0..1. x, y and radius in fractions of the shorter side."""
    side = min(height, width)
    u = ((np.arange(width, dtype=np.float32) + 0.5) / side - x) / radius
    v = ((np.arange(height, dtype=np.float32) + 0.5) / side - y) / radius
    return np.clip(0.5 - _OUTLINES[shape](u[None, :], v[:, None]) * (radius / EDGE), 0.0, 1.0)


def draw(picture: Picture, side: int = SIDE) -> Array:
    """The picture as float32 [h w 3] in 0..1, side x side pixels."""
    image = np.broadcast_to(np.float32(GROUNDS[picture.ground]), (side, side, 3)).copy()
    for thing in picture.things:
        alpha = coverage(thing.shape, thing.x, thing.y, thing.radius, side, side)[..., None]
        image += alpha * (np.float32(COLOURS[thing.colour]) - image)
    return image / 255.0


def random_pair(rng: np.random.Generator, rare: bool) -> tuple[str, str]:
    """A colour and a shape; with rare=False never one of RARE."""
    while True:
        pair = (str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)))
        if rare or pair not in RARE:
            return pair


def random_picture(rng: np.random.Generator, count: int, rare: bool | None = None) -> Picture:
    """`count` objects of different colour-shape pairs, apart from each other and from the border.

    rare: whether RARE pairs may occur; by default only where the object is alone, as in training.
    """
    rare = count == 1 if rare is None else rare
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        pair = random_pair(rng, rare)
        if pair not in pairs:
            pairs.append(pair)
    return arrange(rng, pairs)


def arrange(rng: np.random.Generator, pairs: list[tuple[str, str]]) -> Picture:
    """The pairs, apart from each other and from the border, with places, sizes and a ground at random."""
    ground = str(rng.choice(list(GROUNDS), p=[0.5, 0.25, 0.25]))
    while True:
        things = _place(rng, pairs)
        if things:
            return Picture(tuple(things), ground)


def _place(rng: np.random.Generator, pairs: list[tuple[str, str]]) -> list[Thing] | None:
    """One attempt to put the pairs down with random sizes; None where they do not fit."""
    things: list[Thing] = []
    for colour, shape in pairs:
        size = str(rng.choice(list(SIZES), p=[0.2, 0.6, 0.2]))
        radius = float(rng.uniform(*SIZES[size]))
        for _ in range(20):
            x, y = (float(rng.uniform(radius + 0.04, 0.96 - radius)) for _ in range(2))
            if all(math.hypot(x - o.x, y - o.y) >= 1.05 * (radius + o.radius) + 0.04 for o in things):
                things.append(Thing(colour, shape, x, y, radius))
                break
        else:
            return None
    return things
