"""The tables of docs/alignment.md, from what `compare.py` has sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignment.image_statistics import ImageStatistics, distance, drawn
from alignment.results import Cell, Results, time_key
from alignment.settings import PLAIN, STUDIES, Method
from bootstrap import Estimate, mean_of

Labels = Mapping[str, str]
"""{set of captions: a letter for each picture}"""

ERRORS = {"missing": "m", "swapped": "s", "extra": "e", "unreadable": "u"}


def is_right(labels: str) -> np.ndarray:
    """1 for each picture that shows what was asked for and nothing else, wherever it lies."""
    return np.array([letter in "rR" for letter in labels], float)


def change(labels: Labels, plain: Labels) -> Estimate:
    """The share of right pictures, less the plain model's on the same captions and noise: mean over the sets."""
    return mean_of([is_right(labels[name]) - is_right(plain[name]) for name in labels])


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
        titles = ["method", *self.sets, *place, *mean, *ERRORS, "image statistics", "time"]
        return "| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|"

    def row(self, name: str, labels: Labels, plain: Labels, statistics: str, time: str) -> str:
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
        return "| " + " | ".join([*cells, statistics, time]) + " |"

    def _change(self, sets: Sequence[str], labels: Labels, plain: Labels) -> Estimate:
        return change({captions: labels[captions] for captions in sets}, plain)


def against(labels: Labels, others: Labels) -> str:
    """Changes against another method than plain, in every set of captions that both have been sampled for."""
    sets = [captions for captions in labels if captions in others]
    each = [f"{captions} {percent(change({captions: labels[captions]}, others))}" for captions in sets]
    if len(sets) > 1:
        each.append(f"together {percent(change({captions: labels[captions] for captions in sets}, others))}")
    return ", ".join(each)


def mean_distance(found: Mapping[str, ImageStatistics], references: Mapping[str, ImageStatistics]) -> float:
    """Distance of pictures to drawn ones in their statistics, mean over the sets of captions."""
    return float(np.mean([distance(found[captions], references[captions]) for captions in references]))


def table(
    results: Results, methods: Sequence[Method], columns: Columns, is_tuning: bool, images: int, model: str
) -> str:
    """A line for each method that has been sampled, beside plain, which is the first; then the study's pairs."""

    def cell(method: Method, captions: str) -> Cell:
        return Cell(captions, method.kind, method.settings, is_tuning, images, model)

    wanted = {captions: cell(PLAIN, captions).scenes() for captions in columns.main}
    reference, others = (
        {captions: ImageStatistics.of(drawn(scenes, seed)) for captions, scenes in wanted.items()} for seed in (1, 2)
    )
    lines, all_labels = [columns.header()], {}
    for method in methods:
        found = {captions: results.get(cell(method, captions).key) for captions in columns.sets}
        labels = {captions: line["labels"] for captions, line in found.items() if line}
        all_labels[method.name] = labels
        statistics = {captions: ImageStatistics(np.array(line["mean"]), np.array(line["covariance"]))
                      for captions, line in found.items() if line and captions in reference}  # fmt: skip
        far = f"{mean_distance(statistics, reference):.2f}" if len(statistics) == len(reference) else "-"
        timed = results.get(time_key(method, model))
        if labels:
            time = "1" if method is PLAIN else f"{np.median(timed['ratios']):.2f}" if timed else "-"
            lines.append(columns.row(method.name, labels, all_labels[PLAIN.name], far, time))
    floor = mean_distance(others, reference)
    lines.append(f"\nImage statistics of other drawn pictures of the same captions: {floor:.2f}.")
    for ours, other in STUDIES[model].compared:
        if all_labels.get(ours.name) and all_labels.get(other.name):
            compared = against(all_labels[ours.name], all_labels[other.name])
            lines.append(f"\n{ours.name} against {other.name}: {compared}.")
    return "\n".join(lines)


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what stands between the two comments that carry this name."""
    begin, end = f"<!-- {name}: written by the command above -->", f"<!-- end of {name} -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"Expected the comments '{begin}' and '{end}' in {path}: put them where the table belongs.")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
