"""The tables of a document, from what `compare.py` has sampled."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from alignment.columns import Columns, Labels, change, percent
from alignment.image_statistics import ImageStatistics, distance
from alignment.results import Cell, Results, time_key
from alignment.settings import PLAIN, STUDIES, Method
from worlds import MODELS


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

    world = MODELS[model].world
    wanted = {captions: cell(PLAIN, captions).scenes() for captions in columns.main}
    reference, others = (
        {captions: ImageStatistics.of(world.drawn(scenes, seed), world.palette) for captions, scenes in wanted.items()}
        for seed in (1, 2)
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


def document_of(options: argparse.Namespace, kept: Path | None, *changing: str) -> Path | None:
    """The file that gets the tables: --document, or the one that is kept, if there is one and no option is given that
    changes what its tables hold."""
    changed = [name for name in changing if getattr(options, name) is not None]
    if options.document or not (kept and changed):
        return options.document or kept
    print(f"With --{changed[0]} the tables are only printed: name a copy of {kept.name} with --document.", flush=True)
    return None


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what stands between the two comments that carry this name."""
    begin, end = f"<!-- {name}: written by the command above -->", f"<!-- end of {name} -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"Expected the comments '{begin}' and '{end}' in {path}: put them where the table belongs.")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
