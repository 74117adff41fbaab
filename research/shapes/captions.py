"""The sets of captions that pictures are counted on: a table of a document has a row or a column for each."""
from __future__ import annotations

import numpy as np

from .drawing import arrange, draw, random_pair, random_picture
from .grammar import Scene, Wanted, describe
from .world import COLOURS, RARE, SHAPES, holds


def pairs(rng: np.random.Generator, count: int, rare: int = 0) -> Scene:
    """A scene of `count` different objects, the first `rare` of them pairs that training never shows in company."""
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count:
        pair = sorted(RARE)[rng.integers(len(RARE))] if len(chosen) < rare else random_pair(rng, rare=False)
        if pair not in chosen:
            chosen.append(pair)
    order = rng.permutation(count)
    return Scene(tuple(Wanted(*chosen[i]) for i in order))


def single(rng: np.random.Generator) -> Scene:
    """One object, every colour with every shape."""
    return Scene((Wanted(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))),))


def related(rng: np.random.Generator) -> Scene:
    """Two objects, one left of or above the other."""
    return Scene(pairs(rng, 2).objects, str(rng.choice(["left of", "above"])))


def detailed(rng: np.random.Generator) -> Scene:
    """One object whose size and ground are named, so far as they have words."""
    while True:
        picture = random_picture(rng, 1)
        scene = describe(picture, rng)
        if scene.ground and scene.objects[0].size:
            return scene


ROWS = {
    "single object": single,
    "single object, size and background named": detailed,
    "two objects": lambda rng: pairs(rng, 2),
    "two objects, left of / above": related,
    "two objects, one a rare pair": lambda rng: pairs(rng, 2, rare=1),
    "three objects": lambda rng: pairs(rng, 3),
}


def scenes(row: str, count: int) -> list[Scene]:
    """The scenes of a key of ROWS; the first n of a longer list are those of a shorter one."""
    rng = np.random.default_rng(list(ROWS).index(row))
    return [ROWS[row](rng) for _ in range(count)]


def tuning_scenes(row: str, count: int, seed: int) -> list[Scene]:
    """Other scenes of a key of ROWS; a caption may come up in both."""
    rng = np.random.default_rng([seed, list(ROWS).index(row)])
    return [ROWS[row](rng) for _ in range(count)]


def drawn(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A drawn picture [h w 3] of a scene whose objects have colours and shapes; the rest is at random."""
    pairs = [(wanted.colour, wanted.shape) for wanted in scene.objects]
    while True:
        picture = arrange(rng, pairs)
        if scene.relation is None or holds(scene.relation, *picture.things[:2]):
            return draw(picture)
