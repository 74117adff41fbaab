"""What a table says of the pictures that methods have made: its columns, and shares and changes with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bootstrap import Estimate, mean_of

Labels = Mapping[str, str]
"""{set of captions: a letter for each picture}"""


RIGHT = "rR"  # letters of pictures that show what was asked for and nothing else


def is_one_of(labels: str, letters: str) -> np.ndarray:
    """1 for each picture that has one of these letters."""
    return np.array([letter in letters for letter in labels], float)


def is_right(labels: str) -> np.ndarray:
    """1 for each picture that shows what was asked for and nothing else, wherever it lies."""
    return is_one_of(labels, RIGHT)


def change(labels: Labels, others: Labels, letters: str = RIGHT) -> Estimate:
    """The share of pictures with these letters, less another method's on the same captions and noise: mean over the
    sets."""
    return mean_of([is_one_of(labels[name], letters) - is_one_of(others[name], letters) for name in labels])


def share(labels: str, letters: str) -> float:
    return sum(letter in letters for letter in labels) / len(labels)


def percent(estimate: Estimate) -> str:
    """+1.2 (-0.4 to +2.8), in bold if the interval leaves zero out."""
    text = estimate.text("+.1f", 100)
    return f"**{text}**" if estimate.is_clear else text


@dataclass(frozen=True)
class Columns:
    """sets: of captions, a column each; main: those that the columns after them are the mean of; errors: {title of a
    column: letter}; place: the set whose captions say where things are, if there is one."""

    sets: Sequence[str]
    main: Sequence[str]
    errors: Mapping[str, str]
    place: str | None = None

    def header(self) -> str:
        place = [f"{self.place}: in place too"] if self.place else []
        mean = ["mean change"] if len(self.sets) > 1 else []
        titles = ["method", *self.sets, *place, *mean, *self.errors, "image statistics", "time"]
        return "| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|"

    def row(self, name: str, labels: Labels, plain: Labels, statistics: str, time: str) -> str:
        """A line of the table; a dash for what has not been sampled."""
        is_plain, is_whole = labels == plain, all(captions in labels for captions in self.main)
        cells = [name]
        for captions in self.sets:
            if captions not in labels:
                cells.append("-")
                continue
            right = f"{100 * share(labels[captions], RIGHT):.1f} %"
            cells.append(right if is_plain else f"{right}, {percent(self._change([captions], labels, plain))}")
        if self.place:
            cells.append(f"{100 * share(labels[self.place], 'R'):.1f} %" if self.place in labels else "-")
        if len(self.sets) > 1:
            cells.append(percent(self._change(self.main, labels, plain)) if is_whole and not is_plain else "-")
        for letter in self.errors.values():
            shares = [share(labels[captions], letter) for captions in self.main if captions in labels]
            cells.append(f"{100 * np.mean(shares):.1f} %" if is_whole else "-")
        return "| " + " | ".join([*cells, statistics, time]) + " |"

    def _change(self, sets: Sequence[str], labels: Labels, plain: Labels) -> Estimate:
        return change({captions: labels[captions] for captions in sets}, plain)
