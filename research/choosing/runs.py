"""The runs that were recorded: a line of results.jsonl for each method, set of captions and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment.results import Cell, Results
from alignment.settings import AWAY_HIGHEST, EXCITE_HIGHER, HIGHEST, Method

PATH = Path(__file__).with_name("results.jsonl")
SETTINGS = {"cfg 3": HIGHEST, "EBCA": AWAY_HIGHEST, "Attend-and-Excite": EXCITE_HIGHER}
#: Captions of a set.
IMAGES = {
    "three objects": 500, "two objects": 250, "two objects, one a rare pair": 250, "two objects, left of / above": 250,
}  # fmt: skip
#: Of the ten calls, those whose scores are kept, and the one that choices are made after.
CALLS, CHOICE = (3, 4, 5, 6, 8, 10), 5
#: Between the seeds of one caption's noises.
STRIDE = 10_000
#: The scores of the maps' mean over all calls, which is what EBCA Trace keeps.
MEAN = "mean of all calls"


@dataclass(frozen=True)
class RunCell(Cell):
    """A cell of the alignment benchmark under one of several noises; noise 0 is the benchmark's own."""

    noise: int = 0

    def seeds(self) -> list[int]:
        return [seed + STRIDE * self.noise for seed in super().seeds()]


def cell(method: Method, captions: str, images: int, noise: int, is_tuning: bool = False) -> RunCell:
    return RunCell(captions, method.kind, method.settings, is_tuning, images, noise=noise)


def kept(scores: np.ndarray) -> list[int]:
    """Scores [b] in thousandths, as the results file keeps them."""
    return [round(1000 * float(score)) for score in scores]


@dataclass(frozen=True)
class Runs:
    """Of a method on a set of captions: letters [caption, noise]; scores {name: {call or MEAN: [caption, noise]}}."""

    letters: np.ndarray
    scores: Mapping[str, Mapping[int | str, np.ndarray]]

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> Runs:
        """lines: of the results, one for each noise."""
        letters = np.array([list(line["labels"]) for line in lines]).T

        def column(name: str, call: str) -> np.ndarray:
            return np.array([line["scores"][name][call] for line in lines]).T / 1000

        scores = {
            name: {call if call == MEAN else int(call): column(name, call) for call in calls}
            for name, calls in lines[0]["scores"].items()
        }
        return cls(letters, scores)

    @property
    def right(self) -> np.ndarray:
        """1 for all that was asked for and nothing else [caption, noise]."""
        return np.isin(self.letters, ["r", "R"]).astype(float)

    @property
    def noises(self) -> int:
        return self.letters.shape[1]


def recorded(
    results: Results, method: Method, captions: str, images: int, noises: int, is_tuning: bool = False
) -> Runs | None:
    """All noises that there are of the first `noises`; None without the first."""
    keys = [cell(method, captions, images, noise, is_tuning).key for noise in range(noises)]
    lines = [line for line in map(results.get, keys) if line]
    return Runs.of(lines) if lines else None
