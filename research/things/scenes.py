"""Draws pictures of the things world, at any resolution, and invents them at random."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .drawings import drawing
from .world import ANIMALS, COLOURS, GROUNDS, OBJECTS, SIDE, SIZES, TRAINED, WEARERS, WORN, Picture, Thing

Array = np.ndarray

GAP = 0.05  # between two things, and half of it to the border
WEARING = 0.25  # share of the animals that wear something, as a rule


def extent(thing: Thing, style: str) -> tuple[float, float]:
    """Width and height of a thing's box, in fractions of the side."""
    width, height = drawing(thing.kind, style, thing.colour, thing.worn).size
    return thing.size * width / max(width, height), thing.size * height / max(width, height)


def box(thing: Thing, style: str, side: int = SIDE) -> tuple[int, int, int, int]:
    """left, top, right, bottom in pixels of a thing in a side x side picture."""
    width, height = (max(round(length * side), 1) for length in extent(thing, style))
    left, top = round(thing.x * side - width / 2), round(thing.y * side - height / 2)
    return left, top, left + width, top + height


def draw(picture: Picture, side: int = SIDE) -> Array:
    """The picture as float32 [h w 3] in 0..1, side x side pixels."""
    image = np.empty((side, side, 3), np.float32)
    image[:] = GROUNDS[picture.ground]
    for thing in picture.things:
        left, top, right, bottom = box(thing, picture.style, side)
        source = drawing(thing.kind, picture.style, thing.colour, thing.worn)
        pixels = np.asarray(source.resize((right - left, bottom - top), Image.Resampling.BOX
                                          if right - left < source.width / 2 else Image.Resampling.BILINEAR))
        pixels = pixels[:, ::-1] if thing.mirrored else pixels
        pixels = pixels[max(-top, 0):side - top, max(-left, 0):side - left].astype(np.float32)
        region = image[max(top, 0):bottom, max(left, 0):right]
        region *= 1 - pixels[..., 3:] / 255.0
        region += pixels[..., :3]
    return image / 255.0


def random_thing(rng: np.random.Generator, others: Sequence[Thing] = (), wearing: float = WEARING) -> Thing:
    """A thing of another kind than the others, without a place; nobody wears what stands in the picture by itself."""
    there = {thing.kind for thing in others} | {thing.worn for thing in others}
    kinds = [kind for kind in (ANIMALS if rng.random() < 0.55 else OBJECTS) if kind not in there]
    kind = kinds[rng.integers(len(kinds))]
    colour = list(COLOURS)[rng.integers(len(COLOURS))] if kind in OBJECTS else None
    items = [item for item in WORN if item not in there]
    worn = items[rng.integers(len(items))] if items and kind in WEARERS and rng.random() < wearing else None
    return Thing(kind, colour, worn, 0.5, 0.5, 0.5, bool(rng.random() < 0.5))


def random_picture(
    rng: np.random.Generator, count: int, styles: Sequence[str] = TRAINED, wearing: float = WEARING
) -> Picture:
    """`count` things of different kinds in one of the styles, apart from each other and from the border.

    wearing: the share of the twelve animals that wear something.
    """
    things: list[Thing] = []
    while len(things) < count:
        things.append(random_thing(rng, things, wearing))
    return arrange(rng, things, styles[rng.integers(len(styles))])


def arrange(rng: np.random.Generator, things: Sequence[Thing], style: str) -> Picture:
    """The things, apart from each other and from the border, with places, sizes and a ground at random."""
    ground = list(GROUNDS)[rng.integers(len(GROUNDS))]
    while True:
        placed = _place(rng, things, style)
        if placed:
            return Picture(tuple(placed), style, ground)


def _place(rng: np.random.Generator, things: Sequence[Thing], style: str) -> list[Thing] | None:
    """One attempt to put the things down with random sizes; None where they do not fit."""
    placed: list[tuple[Thing, float, float]] = []
    for thing in things:
        thing = Thing(thing.kind, thing.colour, thing.worn, 0.5, 0.5, float(rng.uniform(*SIZES[len(things)])),
                      thing.mirrored)
        width, height = extent(thing, style)
        for _ in range(20):
            u, v = rng.random(2)
            x, y = (GAP / 2 + length / 2 + at * (1 - GAP - length) for at, length in ((u, width), (v, height)))
            if all(abs(x - other.x) >= (width + w) / 2 + GAP or abs(y - other.y) >= (height + h) / 2 + GAP
                   for other, w, h in placed):
                thing = Thing(thing.kind, thing.colour, thing.worn, float(x), float(y), thing.size, thing.mirrored)
                placed.append((thing, width, height))
                break
        else:
            return None
    return [thing for thing, _, _ in placed]
