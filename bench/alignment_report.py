"""The tables of docs/alignment.md, from the results of `alignment.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from measures import Ratio

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


def row(
    name: str, sets: Sequence[str], labels: Labels, plain: Labels, place: str | None, looks: str, time: Ratio | None
) -> str:
    """A line of the table. Sets that have not been sampled have a dash, and then there is no mean."""
    is_plain, is_whole = labels == plain, all(name in labels for name in sets)
    cells = [name]
    for captions in sets:
        if captions not in labels:
            cells.append("-")
            continue
        right = f"{100 * share(labels[captions], 'rR'):.1f} %"
        cells.append(right if is_plain else f"{right}, {percent(_one(captions, labels, plain))}")
    if place:
        cells.append(f"{100 * share(labels[place], 'R'):.1f} %" if place in labels else "-")
    cells.append(percent(change(labels, plain)) if is_whole and not is_plain else "-")
    for letters in ERRORS.values():
        cells.append(f"{100 * np.mean([share(labels[s], letters) for s in sets]):.1f} %" if is_whole else "-")
    cells += [looks, "1" if is_plain else "-" if time is None else f"{time.median:.2f}"]
    return "| " + " | ".join(cells) + " |"


def header(sets: Sequence[str], place: str | None) -> str:
    titles = ["method", *sets, *([f"{place}: in place too"] if place else []), "mean change", *ERRORS, "looks", "time"]
    return "| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|"


def _one(captions: str, labels: Labels, plain: Labels) -> Estimate:
    return change({captions: labels[captions]}, plain)


def mean_distance(looks: Mapping[str, Looks], references: Mapping[str, Looks]) -> float:
    return float(np.mean([distance(looks[name], references[name]) for name in references]))


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what stands between the two comments that carry this name."""
    begin, end = f"<!-- {name}: written by the command above -->", f"<!-- end of {name} -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"Expected the comments '{begin}' and '{end}' in {path}: put them where the table belongs.")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
