"""What exists in the things world: its kinds, styles, colours and grounds, and one thing or picture made of them.

Lengths are fractions of the picture's side; x goes right, y goes down.
"""
from __future__ import annotations

from dataclasses import dataclass

SIDE = 128  # pixels the model is trained on

#: The animals and the objects of Attend-and-Excite's prompts. Two animals more are what edits turn others into.
WEARERS: tuple[str, ...] = (
    "cat", "dog", "bird", "bear", "lion", "horse", "elephant", "monkey", "frog", "turtle", "rabbit", "mouse",
)
ANIMALS: tuple[str, ...] = (*WEARERS, "zebra", "goat")
OBJECTS: tuple[str, ...] = (
    "backpack", "glasses", "crown", "suitcase", "chair", "balloon", "bow", "car", "bowl", "bench", "clock", "apple",
)
KINDS: tuple[str, ...] = (*ANIMALS, *OBJECTS)
WORN: tuple[str, ...] = ("glasses", "bow", "crown")  # what the animals of WEARERS may wear, in its own colours

STYLES: tuple[str, ...] = ("noto", "twemoji", "emojione", "fluent")
HELD_OUT = "emojione"  # the style that no model is trained on: its scenes stand for real pictures
TRAINED: tuple[str, ...] = tuple(style for style in STYLES if style != HELD_OUT)

COLOURS: dict[str, tuple[int, int, int]] = {  # of objects; an animal has the colours of its drawing
    "red": (216, 38, 44),
    "orange": (250, 136, 20),
    "yellow": (250, 220, 50),
    "green": (48, 150, 60),
    "blue": (40, 90, 220),
    "purple": (130, 50, 175),
    "pink": (250, 130, 185),
    "brown": (125, 75, 42),
    "gray": (140, 140, 140),
    "white": (247, 247, 247),
    "black": (38, 38, 42),
}
GROUNDS: dict[str, tuple[int, int, int]] = {  # far from COLOURS and from the main colours of all drawings
    "teal": (120, 190, 180), "lime": (195, 225, 130), "dusk": (110, 110, 170), "navy": (50, 65, 110),
}

# Size of a thing, the longer side of its box, by the number of things in the picture.
SIZES: dict[int, tuple[float, float]] = {1: (0.40, 0.70), 2: (0.34, 0.50), 3: (0.32, 0.42)}


@dataclass(frozen=True)
class Thing:
    """One thing as drawn: what it is, and the centre and the longer side of its box.

    colour: one of COLOURS, or None for an animal. worn: one of WORN, or None. mirrored: left and right swapped.
    """

    kind: str
    colour: str | None
    worn: str | None
    x: float
    y: float
    size: float
    mirrored: bool = False


@dataclass(frozen=True)
class Picture:
    """Things of one style that do not overlap, on a plain ground."""

    things: tuple[Thing, ...]
    style: str
    ground: str


def holds(relation: str, first, second) -> bool:
    """Whether `first` lies clearly left of, or above, `second` (anything with x and y), and more so than otherwise."""
    dx, dy = second.x - first.x, second.y - first.y
    along, across = (dx, dy) if relation == "left of" else (dy, dx)
    return along >= 0.12 and along >= abs(across)
