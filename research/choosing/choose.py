"""Choosing among runs by one place each: what it predicts, and what is gained by it at what cost.

    python run.py bench choosing               samples what is missing, writes docs/choosing.md and choosing.png
    python run.py bench choosing --tune        what the score was chosen by, on other captions and noise
    python run.py bench choosing --report      only writes the tables, from what there is
    python run.py bench choosing --time        the time of a score, beside that of a call of the model

Runs are those of `bench alignment`, under several noises. Their scores are kept in research/choosing/results.jsonl;
what is there is not sampled again, so the command can be stopped and started at any time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO / "research"))

from alignment.compare import BATCH, SETS, framed  # noqa: E402
from alignment.report import share, write_between  # noqa: E402
from alignment.results import PATH as ALIGNMENT  # noqa: E402
from alignment.results import Results, letter  # noqa: E402
from alignment.settings import UNET  # noqa: E402
from choosing import report  # noqa: E402
from choosing.runs import CALLS, IMAGES, MEAN, PATH, SETTINGS, RunCell, cell, kept  # noqa: E402
from choosing.scores import ALTERNATIVES, CHOSEN, FINE, SCORES, Score, one_place  # noqa: E402
from shapes.scorer import Verdict, verdict  # noqa: E402
from shapes_model import ShapesModel, bench_parser, boot  # noqa: E402

if TYPE_CHECKING:
    from choosing.recording import Recorded

DOCUMENT = REPO / "docs" / "choosing.md"
SHOWN, COLUMNS, PALETTE = 100, 10, 128  # pictures of the sheet, and its colours
TIMED_CALLS = 3
#: The sets of captions that each method is sampled on; Attend-and-Excite takes nearly twice the time.
SAMPLED = {"cfg 3": SETS, "EBCA": SETS, "Attend-and-Excite": SETS[1:2]}


def batches(shapes: ShapesModel, one: RunCell, setting: str) -> Iterator[tuple[Recorded, list[Verdict]]]:
    """Sample a cell: its batches, and the verdict on each picture."""
    from choosing.recording import record

    wanted, seeds = one.scenes(), one.seeds()
    for start in range(0, one.images, BATCH):
        part = slice(start, start + BATCH)
        found = record(shapes, SETTINGS[setting], wanted[part], seeds[part])
        yield found, [verdict(image, scene) for image, scene in zip(found.images, wanted[part], strict=True)]


def run(shapes: ShapesModel, one: RunCell, setting: str) -> dict[str, Any]:
    """Sample a cell: a letter for each picture, and its scores in thousandths."""
    letters, scores = "", {}
    for found, verdicts in batches(shapes, one, setting):
        letters += "".join(map(letter, verdicts))
        add(scores, found, SCORES | (ALTERNATIVES if one.is_tuning else {}))
    return {"labels": letters, "scores": scores}


def add(scores: dict[str, dict[str, list[int]]], found: Recorded, functions: Mapping[str, Score]) -> None:
    """Append a batch's scores: {name: {call or MEAN: one for each picture}}."""
    for name, function in functions.items():
        values = function(found)
        for call in CALLS:
            scores.setdefault(name, {}).setdefault(str(call), []).extend(kept(values[:, call - 1]))
    mean = one_place(found.attention[FINE].mean(1, keepdims=True))
    scores[CHOSEN].setdefault(MEAN, []).extend(kept(mean[:, 0]))


def fill(shapes: ShapesModel, results: Results, cells: Sequence[tuple[RunCell, str]]) -> None:
    """Sample what is missing."""
    missing = [(one, setting) for one, setting in cells if results.get(one.key) is None]
    for number, (one, setting) in enumerate(missing, 1):
        found = run(shapes, one, setting)
        results.add(one.key, **found)
        right = 100 * share(found["labels"], "rR")
        print(f"{number:3} of {len(missing)}  {one.captions}, {setting}, noise {one.noise}: {right:.1f} %", flush=True)


def picture(shapes: ShapesModel, path: Path) -> None:
    """Pictures of three objects, from the highest score at the end of the run to the lowest, framed by the verdict."""
    images, scores = [], []
    for found, verdicts in batches(shapes, cell(SETTINGS["cfg 3"], "three objects", SHOWN, 0), "cfg 3"):
        images += [framed(image, judged.right) for image, judged in zip(found.images, verdicts, strict=True)]
        scores += list(SCORES[CHOSEN](found)[:, -1])
    order = np.argsort(-np.array(scores), kind="stable")
    rows = [np.concatenate([images[i] for i in order[at : at + COLUMNS]], 1) for at in range(0, SHOWN, COLUMNS)]
    sheet = Image.fromarray((np.clip(np.concatenate(rows), 0, 1) * 255).round().astype(np.uint8))
    sheet.quantize(PALETTE).save(path, optimize=True)


def wanted(options: argparse.Namespace) -> Iterator[tuple[RunCell, str]]:
    """Noise after noise, so that a command that is stopped has the first ones of all."""
    tunes = options.tune
    for noise in range(report.TUNING_NOISES if tunes else options.noises):
        for captions in options.captions or (report.TUNED if tunes else SETS):
            images = report.TUNING_IMAGES if tunes else options.images or IMAGES[captions]
            for setting in options.setting or [name for name, of in SAMPLED.items() if captions in of]:
                yield cell(SETTINGS[setting], captions, images, noise, tunes), setting


def timed(options: argparse.Namespace) -> dict[str, str]:
    """{the name that the document's comments have: the table}"""
    boot(options)
    from choosing.cost import table

    return {"time": table(ShapesModel(), TIMED_CALLS)}


def counted(options: argparse.Namespace) -> dict[str, str]:
    """The tables of all runs, after those that are missing were sampled."""
    results = Results(options.results)
    if not options.report:
        boot(options)
        shapes = ShapesModel()
        fill(shapes, results, list(wanted(options)))
        if not (options.tune or options.captions or options.setting):
            picture(shapes, options.document.with_suffix(".png"))
    recordings = report.Recordings(results, Results(ALIGNMENT), options.noises, options.images)
    if options.tune:
        return {"candidates": report.candidates(recordings)}
    chosen = {f"choices, {captions}": report.choices(recordings, captions) for captions in SETS}
    return {"prediction": report.prediction(recordings, SETS), **chosen, "ranking": report.ranking(recordings, SETS)}


def main(arguments: Sequence[str]) -> int:
    parser = bench_parser(__doc__)
    parser.add_argument("--tune", action="store_true", help="the scores that were compared, on other captions")
    parser.add_argument("--report", action="store_true", help="sample nothing")
    parser.add_argument("--time", action="store_true", help="measure the time of a score, and nothing else")
    parser.add_argument("--captions", nargs="+", choices=SETS, metavar="SET", help="only sample these sets of captions")
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, metavar="SETTING", help="only sample these methods")
    parser.add_argument("--images", type=int, help="captions of every set, by default 500 or 250")
    parser.add_argument("--noises", type=int, default=4, help="pictures of a caption")
    parser.add_argument("--results", type=Path, default=PATH, help="file of the results")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="file that gets the tables")
    options = parser.parse_args(arguments)
    if options.model != UNET:
        parser.error(f"the maps are read from the layers of a U-Net, got --model {options.model}")
    for name, text in (timed if options.time else counted)(options).items():
        print(f"{name}\n\n{text}\n")
        write_between(options.document, name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
