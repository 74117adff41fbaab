"""The tables of docs/alignment.md, from the results of `alignment.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from looks import Looks, distance
from paired import Estimate, mean_of

Labels = Mapping[str, str]
"""{set of captions: a letter for each picture}"""

ERRORS = {"missing": "m", "swapped": "s", "extra": "e", "unreadable": "u"}


def is_right(labels: str) -> np.ndarray:
    """1 for each picture that shows what was asked for and nothing else, wherever it lies."""
    return np.array([letter in "rR" for letter in labels], float)


def is_placed(labels: str) -> np.ndarray:
    """1 for each picture that is right and has everything in its place."""
    return np.array([letter == "R" for letter in labels], float)


def change(labels: Labels, plain: Labels, score: Callable[[str], np.ndarray] = is_right) -> Estimate:
    """The score's mean over sets of captions, less the plain model's on the same captions and noise."""
    return mean_of([score(labels[name]) - score(plain[name]) for name in labels])


def share(labels: str, letters: str) -> float:
    return sum(letter in letters for letter in labels) / len(labels)


def percent(estimate: Estimate) -> str:
    """+1.2 (-0.4 to +2.8), in bold if the interval leaves zero out."""
    text = f"{100 * estimate.mean:+.1f} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
    return f"**{text}**" if estimate.is_clear else text


@dataclass(frozen=True)
class Columns:
    """sets: of captions, a column each; main: those that the columns after them are the mean of; place: the set whose
    captions say where things are, if there is one."""

    sets: Sequence[str]
    main: Sequence[str]
    place: str | None

    def header(self) -> str:
        place = [f"{self.place}: in place too"] if self.place else []
        mean = ["mean change"] if len(self.sets) > 1 else []
        titles = ["method", *self.sets, *place, *mean, *ERRORS, "looks", "time"]
        return "| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|"

    def row(self, name: str, labels: Labels, plain: Labels, looks: str, time: str) -> str:
        """A line of the table; a dash for what has not been sampled."""
        is_plain, is_whole = labels == plain, all(captions in labels for captions in self.main)
        cells = [name]
        for captions in self.sets:
            if captions not in labels:
                cells.append("-")
                continue
            right = f"{100 * share(labels[captions], 'rR'):.1f} %"
            cells.append(right if is_plain else f"{right}, {percent(self._change([captions], labels, plain))}")
        if self.place:
            cells.append(f"{100 * share(labels[self.place], 'R'):.1f} %" if self.place in labels else "-")
        if len(self.sets) > 1:
            cells.append(percent(self._change(self.main, labels, plain)) if is_whole and not is_plain else "-")
        for letter in ERRORS.values():
            shares = [share(labels[captions], letter) for captions in self.main if captions in labels]
            cells.append(f"{100 * np.mean(shares):.1f} %" if is_whole else "-")
        return "| " + " | ".join([*cells, looks, time]) + " |"

    def _change(self, sets: Sequence[str], labels: Labels, plain: Labels) -> Estimate:
        return change({captions: labels[captions] for captions in sets}, plain)


def against(labels: Labels, others: Labels) -> str:
    """Changes against another method than plain, in every set of captions that both have been sampled for."""
    sets = [captions for captions in labels if captions in others]
    each = [f"{captions} {percent(change({captions: labels[captions]}, others))}" for captions in sets]
    if len(sets) > 1:
        each.append(f"together {percent(change({captions: labels[captions] for captions in sets}, others))}")
    return ", ".join(each)


def mean_distance(looks: Mapping[str, Looks], references: Mapping[str, Looks]) -> float:
    """How far pictures look from drawn ones, mean over the sets of captions."""
    return float(np.mean([distance(looks[captions], references[captions]) for captions in references]))


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what stands between the two comments that carry this name."""
    begin, end = f"<!-- {name}: written by the command above -->", f"<!-- end of {name} -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"Expected the comments '{begin}' and '{end}' in {path}: put them where the table belongs.")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
