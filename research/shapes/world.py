"""What exists in the shapes world: its colours, shapes, sizes and grounds, and one object or picture made of them.

Lengths are fractions of the picture's side, so that it can be drawn at any resolution; x goes right, y goes down.
"""
from __future__ import annotations

from dataclasses import dataclass

SIDE = 64  # pixels the model is trained on

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 225, 50),
    "green": (30, 150, 60),
    "blue": (40, 80, 220),
    "purple": (140, 40, 170),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "star")
GROUNDS: dict[str, tuple[int, int, int]] = {"white": (245, 245, 245), "grey": (150, 150, 150), "black": (20, 20, 20)}

# Radius of an object by its size; only small and large have a word, the gaps keep the sizes apart.
SIZES: dict[str, tuple[float, float]] = {"small": (0.14, 0.17), "medium": (0.19, 0.24), "large": (0.28, 0.34)}

# Pairs that training shows alone but never beside another object: seldom seen together, for alignment measurements.
RARE: frozenset[tuple[str, str]] = frozenset({
    ("red", "star"), ("orange", "square"), ("yellow", "cross"),
    ("green", "triangle"), ("blue", "star"), ("purple", "circle"),
})


@dataclass(frozen=True)
class Thing:
    """One object as drawn: centre (x, y) and radius in fractions of the picture's side."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def size(self) -> str:
        """The size whose range lies nearest to the radius."""
        return size_of(self.radius)


@dataclass(frozen=True)
class Picture:
    """Objects that do not overlap, on a plain ground."""

    things: tuple[Thing, ...]
    ground: str


def size_of(radius: float) -> str:
    """small, medium or large; the borders lie in the middle of the gaps between SIZES."""
    if radius < (SIZES["small"][1] + SIZES["medium"][0]) / 2:
        return "small"
    return "medium" if radius < (SIZES["medium"][1] + SIZES["large"][0]) / 2 else "large"


def holds(relation: str, first, second) -> bool:
    """Whether `first` lies clearly left of, or above, `second` (anything with x and y), and more so than otherwise."""
    dx, dy = second.x - first.x, second.y - first.y
    along, across = (dx, dy) if relation == "left of" else (dy, dx)
    return along >= 0.12 and along >= abs(across)
