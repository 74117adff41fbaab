"""Drawn pictures of one object, and another object for each: what edits and inversions are counted on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .drawing import random_picture
from .grammar import Scene, Wanted
from .world import COLOURS, SHAPES, SIDE, Picture, Thing

MARGIN = 2  # pixels that belong to the object around its box: its soft edge


@dataclass(frozen=True)
class ObjectCase:
    """A drawn picture and the colours and shapes of its object and of the one that is to take its place."""

    picture: Picture
    old: tuple[str, str]
    new: tuple[str, str]

    def caption(self, thing: tuple[str, str]) -> str:
        """The caption of the picture if it showed `thing`."""
        return Scene((Wanted(*thing),), ground=self.picture.ground).caption()

    def background(self) -> np.ndarray:
        """Where the picture does not show its object, [h w]."""
        return surroundings(self.picture.things[0])


def surroundings(thing: Thing) -> np.ndarray:
    """All of the picture but a thing's box and MARGIN pixels around it, [h w]."""
    reach = 1.05 * thing.radius + MARGIN / SIDE
    left, right = (np.clip(round((thing.x + side * reach) * SIDE), 0, SIDE) for side in (-1, 1))
    top, bottom = (np.clip(round((thing.y + side * reach) * SIDE), 0, SIDE) for side in (-1, 1))
    outside = np.ones((SIDE, SIDE), bool)
    outside[top:bottom, left:right] = False
    return outside


def cases(count: int, seed: int) -> list[ObjectCase]:
    """Drawn pictures of one object, and another object for each."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        picture = random_picture(rng, 1)
        (thing,) = picture.things
        colour = str(rng.choice([colour for colour in COLOURS if colour != thing.colour]))
        made.append(ObjectCase(picture, (thing.colour, thing.shape), (colour, str(rng.choice(SHAPES)))))
    return made
