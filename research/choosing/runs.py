"""The runs that were recorded: a line of results.jsonl for each method, set of captions and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment.results import Cell, Results
from alignment.settings import UNET, Method
from choosing.settings import MEAN

PATH = Path(__file__).with_name("results.jsonl")
#: Between the seeds of one caption's noises.
STRIDE = 10_000


@dataclass(frozen=True)
class RunCell(Cell):
    """A cell of the alignment benchmark under one of several noises; noise 0 is the benchmark's own."""

    noise: int = 0

    def seeds(self) -> list[int]:
        return [seed + STRIDE * self.noise for seed in super().seeds()]


@dataclass(frozen=True)
class PreviewCell(RunCell):
    """The same in runs of few steps, as EBCA Reroll's preview makes them."""

    preview_steps: int = 0


def cell(
    method: Method, captions: str, images: int, noise: int, is_tuning: bool = False, model: str = UNET, preview: int = 0
) -> RunCell:
    """preview: the steps of a run that only judges, 0 for all."""
    of = (captions, method.kind, method.settings, is_tuning, images, model, noise)
    return PreviewCell(*of, preview) if preview else RunCell(*of)


def kept(scores: np.ndarray) -> list[int]:
    """Scores [b] in thousandths, as the results file keeps them."""
    return [round(1000 * float(score)) for score in scores]


@dataclass(frozen=True)
class Runs:
    """Of a method on a set of captions: letters [caption, noise]; scores {name: {call or MEAN: [caption, noise]}}."""

    letters: np.ndarray
    scores: Mapping[str, Mapping[int | str, np.ndarray]]

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]], images: int | None = None) -> Runs:
        """lines: of the results, one for each noise; images: the captions that are read, None for all."""
        letters = np.array([list(line["labels"])[:images] for line in lines]).T

        def column(name: str, call: str) -> np.ndarray:
            return np.array([line["scores"][name][call][:images] for line in lines]).T / 1000

        scores = {
            name: {call if call == MEAN else int(call): column(name, call) for call in calls}
            for name, calls in lines[0]["scores"].items()
        }
        return cls(letters, scores)

    @property
    def right(self) -> np.ndarray:
        """1 for all that was asked for and nothing else [caption, noise]."""
        return np.isin(self.letters, ["r", "R"]).astype(float)

    def first(self, noises: int) -> Runs:
        """The same with fewer noises."""
        scores = {name: {call: of[:, :noises] for call, of in calls.items()} for name, calls in self.scores.items()}
        return Runs(self.letters[:, :noises], scores)

    @property
    def noises(self) -> int:
        return self.letters.shape[1]


def recorded(results: Results, cells: Sequence[RunCell], images: int | None = None) -> Runs | None:
    """The runs of all cells, one for each noise, that there are; None without any. images: the first ones alone."""
    lines = [line for line in (results.get(one.key) for one in cells) if line]
    return Runs.of(lines, images) if lines else None
