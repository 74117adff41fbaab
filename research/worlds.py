"""The worlds that small models are trained on, as the commands that count see them, and which model draws which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

import shapes.captions
import shapes.scorer
import shapes.texts
import shapes.world
import things.captions
import things.scorer
import things.texts
import things.world


@dataclass(frozen=True)
class World:
    """What the commands have to know of one world.

    side: pixels of a picture, each way. cfg, sampler: how pictures are made where nothing else is said.
    rows: its sets of captions. scenes(row, count): what these ask for; tuning_scenes(row, count, seed): other scenes
    of the same kind. draw(scene, rng): a drawn picture of a scene [h w 3]; palette: colours of drawn pictures, 0..255.
    texts, words: {name: function of a scene}, for methods.
    verdict(image, scene): one of `labels`, and whether the picture is `complete`; complete: what that says.
    letters: one for each label. errors: {title of a column: letter}.
    """

    side: int
    cfg: float
    sampler: Mapping[str, Any]
    rows: Sequence[str]
    scenes: Callable[[str, int], list]
    tuning_scenes: Callable[[str, int, int], list]
    draw: Callable[[Any, np.random.Generator], np.ndarray]
    palette: Sequence[tuple[int, int, int]]
    texts: Mapping[str, Callable[[Any], list[str]]]
    words: Mapping[str, Callable[[Any], Sequence[str]]]
    verdict: Callable[[np.ndarray, Any], Any]
    labels: Sequence[str]
    complete: str
    letters: str
    errors: Mapping[str, str]

    def letter(self, verdict: Any) -> str:
        """That of a picture's label, and R where all of the caption is fulfilled."""
        return "R" if verdict.complete else self.letters[self.labels.index(verdict.label)]

    def drawn(self, scenes: Sequence[Any], seed: int) -> list[np.ndarray]:
        """A drawn picture of each scene; what it leaves open is at random."""
        rng = np.random.default_rng(seed)
        return [self.draw(scene, rng) for scene in scenes]


@dataclass(frozen=True)
class Trained:
    """A trained model: the name of its checkpoint in demo/, and what it draws."""

    checkpoint: str
    world: World


def _world(package: ModuleType, steps: int, **more: Any) -> World:
    """The world of a package: modules of the same names, with the same functions. steps, more: what differs."""
    captions, texts, scorer, world = package.captions, package.texts, package.scorer, package.world
    return World(
        side=world.SIDE,
        sampler={"name": "dpmpp_2m", "scheduler": "normal", "steps": steps},
        rows=list(captions.ROWS),
        scenes=captions.scenes,
        tuning_scenes=captions.tuning_scenes,
        draw=captions.drawn,
        palette=[*world.COLOURS.values(), *world.GROUNDS.values()],
        texts=texts.TEXTS,
        words=texts.WORDS,
        verdict=scorer.verdict,
        labels=scorer.LABELS,
        **more,
    )


SHAPES = _world(
    shapes,
    steps=10,  # chosen for speed (docs/alignment.md)
    cfg=1.25,
    complete="right and in place, size, ground",
    letters="rmseu",
    errors={"missing": "m", "swapped": "s", "extra": "e", "unreadable": "u"},
)
THINGS = _world(
    things,
    steps=20,
    cfg=3.0,
    complete="right and in place",
    letters="rmxceu",
    errors={"missing": "m", "mixture": "x", "wrong colour": "c", "extra": "e", "unreadable": "u"},
)
MODELS: Mapping[str, Trained] = {
    "unet": Trained("shapes.safetensors", SHAPES),
    "transformer": Trained("shapes_transformer.safetensors", SHAPES),
    "joint": Trained("shapes_joint.safetensors", SHAPES),
    "things": Trained("things.safetensors", THINGS),
}
#: Those of the shapes world, which most commands are made for.
SHAPES_MODELS = [name for name, model in MODELS.items() if model.world is SHAPES]
