"""What was sampled: a line of a file for each method and set of captions, by their exact settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.settings import UNET, Method
from json_lines import read_lines
from worlds import MODELS, World

PATH = Path(__file__).with_name("results.jsonl")
TUNING_SEED = 10**6  # no noise of the tuning pictures is one of the scored ones; a caption may come up again
TIMED_IMAGES, ROUNDS = 10, 7  # a batch whose time is compared with the plain model's, and how often


@dataclass(frozen=True)
class Cell:
    """One method on one set of captions: all that its pictures depend on."""

    captions: str
    kind: str
    settings: dict[str, Any]
    is_tuning: bool
    images: int
    #: The trained model, of settings.STUDIES.
    model: str = UNET

    @property
    def world(self) -> World:
        return MODELS[self.model].world

    @property
    def key(self) -> str:
        of = {name: value for name, value in vars(self).items() if name != "model"}
        return _key(self.model, of | {"cfg": self.world.cfg})

    def scenes(self) -> list:
        if self.is_tuning:
            return self.world.tuning_scenes(self.captions, self.images, TUNING_SEED)
        return self.world.scenes(self.captions, self.images)

    def seeds(self) -> list[int]:
        first = TUNING_SEED if self.is_tuning else 0
        return list(range(first, first + self.images))


def time_key(method: Method, model: str = UNET) -> str:
    """The key of a method's times over the plain model's."""
    timed = {"time": method.kind, "settings": method.settings, "images": TIMED_IMAGES, "rounds": ROUNDS}
    return _key(model, timed)


def _key(model: str, of: dict[str, Any]) -> str:
    """The first results are of the U-Net and do not name it."""
    named = {} if model == UNET else {"model": model}
    return json.dumps({"sampler": MODELS[model].world.sampler, **of, **named}, sort_keys=True)


class Results:
    """A file with a line for each finished piece of work."""

    def __init__(self, path: Path):
        self._path = path
        self._found = {json.dumps(line["of"], sort_keys=True): line for line in read_lines(path)}

    def get(self, key: str) -> dict[str, Any] | None:
        return self._found.get(key)

    def add(self, key: str, **found: Any) -> None:
        line = {"of": json.loads(key), **found}
        self._found[key] = line
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def labels(self, method: Method, model: str, sets: Sequence[str], images: int) -> dict[str, str] | None:
        """{set of captions: the letters of a method's scored pictures}; None where one is not sampled."""
        cells = {captions: Cell(captions, method.kind, method.settings, False, images, model) for captions in sets}
        found = {captions: self.get(cell.key) for captions, cell in cells.items()}
        return None if None in found.values() else {captions: line["labels"] for captions, line in found.items()}
