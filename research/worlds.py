"""The worlds that small models are trained on, as the commands that count see them, and which model draws which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import shapes.captions
import shapes.scorer
import shapes.world
import things.captions
import things.scorer
import things.world


@dataclass(frozen=True)
class World:
    """What the commands have to know of one world.

    side: pixels of a picture, each way. rows: its sets of captions. scenes(row, count): what these ask for.
    verdict(image [h w 3], scene): one of `labels`, and whether the picture is `complete`; complete: what that says.
    """

    side: int
    rows: Sequence[str]
    scenes: Callable[[str, int], list]
    verdict: Callable[[np.ndarray, Any], Any]
    labels: Sequence[str]
    complete: str


@dataclass(frozen=True)
class Trained:
    """A trained model: the name of its checkpoint in demo/, and what it draws."""

    checkpoint: str
    world: World


SHAPES = World(
    side=shapes.world.SIDE,
    rows=list(shapes.captions.ROWS),
    scenes=shapes.captions.scenes,
    verdict=shapes.scorer.verdict,
    labels=shapes.scorer.LABELS,
    complete="right and in place, size, ground",
)
THINGS = World(
    side=things.world.SIDE,
    rows=things.captions.ROWS,
    scenes=things.captions.scenes,
    verdict=things.scorer.verdict,
    labels=things.scorer.LABELS,
    complete="right and in place",
)
MODELS: Mapping[str, Trained] = {
    "unet": Trained("shapes.safetensors", SHAPES),
    "transformer": Trained("shapes_transformer.safetensors", SHAPES),
    "joint": Trained("shapes_joint.safetensors", SHAPES),
    "things": Trained("things.safetensors", THINGS),
}
#: Those of the shapes world, which most commands are made for.
SHAPES_MODELS = [name for name, model in MODELS.items() if model.world is SHAPES]
