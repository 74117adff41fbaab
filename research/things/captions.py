"""The sets of captions that pictures are counted on: a table of a document has a row or a column for each.

Three of them are the prompts of Attend-and-Excite, as often as is asked for, each time with other noise.
"""
from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from .grammar import Scene, Wanted, parse, wanted_of
from .scenes import arrange, draw, random_thing
from .world import ANIMALS, COLOURS, OBJECTS, TRAINED, Thing, holds

PROMPTS = Path(__file__).parents[1] / "data" / "attend_and_excite_prompts.json"
#: The sets that are prompts of the file, by its own names, and what the things of each are.
SPLITS: dict[str, tuple[str, tuple[Sequence[str], ...]]] = {
    "animal-animal": ("animals", (ANIMALS, ANIMALS)),
    "animal-object": ("animals_objects", (ANIMALS, OBJECTS)),
    "object-object": ("objects", (OBJECTS, OBJECTS)),
}


@cache
def prompts(split: str) -> tuple[Scene, ...]:
    """The scenes of a split's prompts, in the order of the file."""
    name, _ = SPLITS[split]
    return tuple(map(parse, json.loads(PROMPTS.read_text())["prompts"][name]))


def single(rng: np.random.Generator) -> Scene:
    """One thing; an object in any colour."""
    return Scene((_wanted(rng, (*ANIMALS, *OBJECTS)),))


def coloured(rng: np.random.Generator) -> Scene:
    """One object and its colour."""
    return Scene((_wanted(rng, OBJECTS, has_colour=True),))


def several(rng: np.random.Generator, count: int) -> Scene:
    """Different things as training has them: objects with a colour, animals that may wear something."""
    things = []
    while len(things) < count:
        things.append(random_thing(rng, things))
    return Scene(tuple(map(wanted_of, things)))


def related(rng: np.random.Generator) -> Scene:
    """Two things, one left of or above the other."""
    return Scene(several(rng, 2).things, str(rng.choice(["left of", "above"])))


RANDOM = {
    "one thing": single,
    "one coloured object": coloured,
    "two things, left of / above": related,
    "three things": lambda rng: several(rng, 3),
}
ROWS = ("one thing", "one coloured object", *SPLITS, "two things, left of / above", "three things")


def scenes(row: str, count: int) -> list[Scene]:
    """The scenes of one of ROWS; the first n of a longer list are those of a shorter one."""
    if row in SPLITS:
        return list(itertools.islice(itertools.cycle(prompts(row)), count))
    rng = np.random.default_rng(list(RANDOM).index(row))
    return [RANDOM[row](rng) for _ in range(count)]


def tuning_scenes(split: str, count: int, seed: int) -> list[Scene]:
    """Two things as in a split, but no two that one of the 276 prompts has, in whatever order."""
    asked = {frozenset(scene.things) for name in SPLITS for scene in prompts(name)}
    rng = np.random.default_rng([seed, list(SPLITS).index(split)])
    made: list[Scene] = []
    while len(made) < count:
        things = tuple(_wanted(rng, kinds, has_colour=True) for kinds in SPLITS[split][1])
        if things[0].kind != things[1].kind and frozenset(things) not in asked:
            made.append(Scene(things))
    return made


def _wanted(rng: np.random.Generator, kinds: Sequence[str], has_colour: bool = False) -> Wanted:
    """A thing of one of the kinds; has_colour: with a colour, if it is an object."""
    kind = kinds[rng.integers(len(kinds))]
    colours = list(COLOURS)
    return Wanted(kind, colours[rng.integers(len(colours))] if has_colour and kind in OBJECTS else None)


def drawn(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A drawn picture [h w 3] of a scene in one of the styles of training; what the scene leaves open is at random."""
    colours = list(COLOURS)
    things = [
        Thing(wanted.kind, wanted.colour or (colours[rng.integers(len(colours))] if wanted.kind in OBJECTS else None),
              wanted.worn, 0.5, 0.5, 0.5, bool(rng.random() < 0.5))
        for wanted in scene.things
    ]  # fmt: skip
    while True:
        picture = arrange(rng, things, TRAINED[rng.integers(len(TRAINED))])
        if scene.relation is None or holds(scene.relation, *picture.things[:2]):
            return draw(picture)
