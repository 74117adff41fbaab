"""What is measured of edited photographs, and the table of it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bootstrap import Estimate, mean_of
from clip_similarity import ClipSimilarity
from kept_scores import kept_scores
from photo_edits.graph import PHOTO, SWAPPED, WAYS, WITH
from photo_edits.networks import Lpips, StructureDistance, background_error
from photo_edits.photos import PhotoTask, opened

Pictures = tuple[Image.Image, Image.Image]  # the photo as the model got it, and the edited one


@dataclass(frozen=True)
class Measure:
    """Something measured of an edited photo.

    model: what it is measured by. of: the value, and more that is kept. percent: whether values are shares.
    masked: whether only photos with a mask have it.
    """

    name: str
    model: str
    of: Callable[[PhotoTask, Pictures], dict[str, float]]
    percent: bool = False
    masked: bool = False

    def lines(self, tasks: Sequence[PhotoTask], folder: Path) -> list[dict]:
        """A line for each picture: by photo, and of each by way."""
        return kept_scores(folder / "scores.jsonl", [
            (self._key(task, title), functools.partial(self._measure, task, title, folder))
            for task in tasks if task.mask or not self.masked for title in WAYS
        ])  # fmt: skip

    def _key(self, task: PhotoTask, title: str) -> dict[str, str]:
        mask = {"mask": hashlib.sha256(task.mask.read_bytes()).hexdigest()[:10]} if self.masked else {}
        return {"measure": self.name, "model": self.model, "photo": task.name, "picture": title, **mask}

    def _measure(self, task: PhotoTask, title: str, folder: Path) -> dict[str, float]:
        return self.of(task, (task.picture(folder, PHOTO), task.picture(folder, title)))


def clip_accuracy(folder: str) -> Measure:
    """Whether a picture is more similar to the new caption than to the old one, as in pix2pix-zero."""
    similarity = ClipSimilarity(folder)

    def of(task: PhotoTask, pictures: Pictures) -> dict[str, float]:
        old, new = similarity(pictures[1], [task.caption, task.new_caption])
        return {"value": float(new > old), "caption": old, "new caption": new}

    return Measure("CLIP accuracy", folder, of, percent=True)


def structure_distance(folder: Path) -> Measure:
    distance = StructureDistance(folder)
    return Measure("structure distance", str(folder), lambda task, pictures: {"value": distance(*pictures)})


def background(alexnet: Path, linear: Path) -> Measure:
    """LPIPS outside the mask, which is scaled and cropped as the photo was."""
    lpips = Lpips(alexnet, linear)

    def of(task: PhotoTask, pictures: Pictures) -> dict[str, float]:
        return {"value": background_error(lpips, *pictures, ImageOps.fit(opened(task.mask), pictures[0].size))}

    return Measure("background error", f"{alexnet} {linear}", of, masked=True)


def table(found: Mapping[Measure, Sequence[dict]]) -> str:
    """A row for each way, and one for what EBCA changes beside the swapped prompt; intervals are over photos."""
    columns = {
        measure: {title: np.array([line["value"] for line in lines if line["picture"] == title]) for title in WAYS}
        for measure, lines in found.items()
    }
    heads = [f"{measure.name}, {len(values[WITH])} photos" for measure, values in columns.items()]
    rows = {title: [_cell(mean_of([values[title]]), measure.percent) for measure, values in columns.items()]
            for title in WAYS}  # fmt: skip
    rows[f"{WITH} less {SWAPPED}"] = [
        _cell(mean_of([values[WITH] - values[SWAPPED]]), measure.percent, "+") for measure, values in columns.items()
    ]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


def _cell(of: Estimate, percent: bool, sign: str = "") -> str:
    return of.text(f"{sign}.1f", 100, " %") if percent else of.text(f"{sign}.4f")
