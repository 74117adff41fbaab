"""Choosing among runs by one place each: what it predicts, and what is gained by it at what cost.

    python run.py bench choosing               samples what is missing, writes docs/choosing.md and choosing.png
    python run.py bench choosing --tune        what the score was chosen by, on other captions and noise
    python run.py bench choosing --report      only writes the tables, from what there is
    python run.py bench choosing --time        the time of a score, beside that of a call of the model
    python run.py bench choosing --model transformer      the same on the other trained model

Runs are those of `bench alignment`, under several noises. Their scores are kept in research/choosing/results.jsonl;
what is there is not sampled again, so the command can be stopped and started at any time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO / "research"))

from alignment.columns import share  # noqa: E402
from alignment.compare import BATCH  # noqa: E402
from alignment.report import document_of, write_between  # noqa: E402
from alignment.results import PATH as ALIGNMENT  # noqa: E402
from alignment.results import Results  # noqa: E402
from alignment.settings import UNET, Method  # noqa: E402
from choosing import report  # noqa: E402
from choosing.runs import PATH, PreviewCell, RunCell, cell, kept  # noqa: E402
from choosing.scores import one_place, scores_of  # noqa: E402
from choosing.settings import (  # noqa: E402
    CALLS,
    CHOSEN,
    FINE,
    MANY_CAPTIONS,
    MANY_IMAGES,
    MANY_NOISES,
    MEAN,
    PREVIEWED_CAPTIONS,
    PREVIEWED_IMAGES,
    STUDIES,
    TUNED,
    TUNING_IMAGES,
    TUNING_NOISES,
    Setting,
    Study,
)
from shapes.grammar import Scene  # noqa: E402
from shapes.scorer import Verdict, verdict  # noqa: E402
from shapes.world import SIDE  # noqa: E402
from small_model import SmallModel, bench_parser, boot  # noqa: E402
from worlds import SHAPES  # noqa: E402

if TYPE_CHECKING:
    from choosing.recording import Recorded

DOCUMENT = REPO / "docs" / "choosing.md"
NOISES = 4  # pictures of a caption
#: The picture: of which captions and verdicts, how many of each, in how many columns and colours.
PICTURED, SHOWN, COLUMNS, PALETTE = "three objects", 100, 20, 48
VERDICTS = {"all right": "rR"} | {name: SHAPES.errors[name] for name in ("missing", "extra", "unreadable", "swapped")}
GAP, TITLE = 3, 26  # pixels around each picture, and of a title's line
TIMED_CALLS = 3


def batches(shapes: SmallModel, one: RunCell, method: Method) -> Iterator[tuple[Recorded, list[Verdict]]]:
    """Sample a cell: its batches, and the verdict on each picture."""
    from choosing.recording import record

    wanted, seeds = one.scenes(), one.seeds()
    for start in range(0, one.images, BATCH):
        part = slice(start, start + BATCH)
        found = record(shapes, method, wanted[part], seeds[part], preview_steps(one), one.is_tuning)
        yield found, [verdict(image, scene) for image, scene in zip(found.images, wanted[part], strict=True)]


def preview_steps(one: RunCell) -> int:
    return one.preview_steps if isinstance(one, PreviewCell) else 0


def run(shapes: SmallModel, one: RunCell, method: Method) -> dict[str, Any]:
    """Sample a cell: a letter for each picture, and its scores in thousandths."""
    letters, scores, calls = "", {}, (preview_steps(one),) if preview_steps(one) else CALLS
    for found, verdicts in batches(shapes, one, method):
        letters += "".join(map(SHAPES.letter, verdicts))
        add(scores, found, calls, one.is_tuning)
    return {"labels": letters, "scores": scores}


def add(scores: dict[str, dict[str, list[int]]], found: Recorded, calls: Sequence[int], is_tuning: bool) -> None:
    """Append a batch's scores: {name: {call or MEAN: one for each picture}}."""
    for name, values in scores_of(found, is_tuning).items():
        for call in calls:
            scores.setdefault(name, {}).setdefault(str(call), []).extend(kept(values[:, call - 1]))
    mean = one_place(found.attention[FINE].mean(1, keepdims=True))
    scores[CHOSEN].setdefault(MEAN, []).extend(kept(mean[:, 0]))


def fill(shapes: SmallModel, results: Results, cells: Sequence[tuple[RunCell, str, Method]]) -> None:
    """Sample what is missing."""
    missing = [(one, *of) for one, *of in cells if results.get(one.key) is None]
    for number, (one, setting, method) in enumerate(missing, 1):
        found = run(shapes, one, method)
        results.add(one.key, **found)
        steps = f", {preview_steps(one)} steps" if preview_steps(one) else ""
        right = 100 * share(found["labels"], "rR")
        print(f"{number:3} of {len(missing)}  {one.captions}, {setting}{steps}, noise {one.noise}: {right:.1f} %",
              flush=True)  # fmt: skip


def picture(shapes: SmallModel, results: Results, options: argparse.Namespace, path: Path) -> None:
    """Pictures of the first setting by their verdict, each block from the highest score at the end to the lowest.

    A verdict that has not even a row is left out; there is no picture without any.
    """
    method = next(iter(STUDIES[options.model].settings.values())).method
    images = options.images or STUDIES[options.model].images[PICTURED]
    cells = [cell(method, PICTURED, images, noise, model=options.model) for noise in range(options.noises)]
    drawn = {name: list(with_verdict(results, cells, letters)) for name, letters in VERDICTS.items()}
    blocks = [of_verdict(shapes, of, method, name) for name, of in drawn.items() if len(of) >= COLUMNS]
    if not blocks:
        return
    whole = Image.new("RGB", (blocks[0].width, sum(block.height for block in blocks)), "white")
    for number, block in enumerate(blocks):
        whole.paste(block, (0, sum(earlier.height for earlier in blocks[:number])))
    whole.quantize(PALETTE).save(path, optimize=True)


def of_verdict(shapes: SmallModel, drawn: Sequence[tuple[Scene, int]], method: Method, name: str) -> Image.Image:
    """The first SHOWN pictures that have a verdict again, under its name and the scores of the first and the last."""
    from choosing.recording import record

    found: list[tuple[float, np.ndarray]] = []
    for start in range(0, len(drawn), BATCH):
        scenes, seeds = zip(*drawn[start : start + BATCH], strict=True)
        batch = record(shapes, method, scenes, seeds)
        scores = scores_of(batch, is_tuning=False)[CHOSEN][:, -1]
        judged = [SHAPES.letter(verdict(image, scene)) for image, scene in zip(batch.images, scenes, strict=True)]
        # in another batch than the recorded one, rounding changes some of the pictures
        found += [(score, image) for score, image, of in zip(scores, batch.images, judged) if of in VERDICTS[name]]
        if len(found) >= SHOWN:
            break
    ranked = sorted(found[:SHOWN], key=lambda one: -one[0])
    title = f"{name}: {len(ranked)} images, score {ranked[0][0]:.2f} to {ranked[-1][0]:.2f}"
    return block([image for _, image in ranked], title)


def with_verdict(results: Results, cells: Sequence[RunCell], letters: str) -> Iterator[tuple[Scene, int]]:
    """Scene and seed of the recorded pictures that have a verdict."""
    for one in cells:
        line = results.get(one.key)
        of = zip(line["labels"], one.scenes(), one.seeds(), strict=True) if line else ()
        yield from ((scene, seed) for label, scene, seed in of if label in letters)


def block(images: Sequence[np.ndarray], title: str) -> Image.Image:
    """Pictures in rows of COLUMNS under a title."""
    padded = [np.pad(image, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=1.0) for image in images]
    side = SIDE + 2 * GAP
    out = Image.new("RGB", (COLUMNS * side, TITLE + -(-len(images) // COLUMNS) * side), "white")
    ImageDraw.Draw(out).text((4, 4), title, "black", ImageFont.load_default(15))
    for number, image in enumerate(padded):
        row, column = divmod(number, COLUMNS)
        one = Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8))
        out.paste(one, (column * side, TITLE + row * side))
    return out


def wanted(options: argparse.Namespace, study: Study) -> Iterator[tuple[RunCell, str, Method]]:
    """Noise after noise, so that a command that is stopped has the first ones of all."""
    for noise in range(TUNING_NOISES if options.tune else MANY_NOISES):
        for captions in options.captions or (TUNED if options.tune else study.images):
            for name, setting in study.settings.items():
                if captions in setting.sets and name in (options.setting or study.settings):
                    for images, steps in sizes(options, setting, captions, noise):
                        of = (setting.method, captions, images, noise, options.tune, options.model, steps)
                        yield cell(*of), name, setting.method


def sizes(options: argparse.Namespace, setting: Setting, captions: str, noise: int) -> list[tuple[int, int]]:
    """For each cell of a noise, how many captions it has and in how many steps it judges; 0: it is sampled in full."""
    if options.tune:
        return [(TUNING_IMAGES, 0)] if setting.is_tuned else []
    images = options.images or STUDIES[options.model].images[captions]
    if noise < min(setting.noises, options.noises):
        previews = setting.previews if captions == PREVIEWED_CAPTIONS else ()
        return [(images, 0), *((min(images, PREVIEWED_IMAGES), steps) for steps in previews)]
    has_more = setting.has_many and captions == MANY_CAPTIONS and setting.noises <= min(noise, options.noises)
    return [(min(images, MANY_IMAGES), 0)] if has_more else []


def timed(options: argparse.Namespace) -> dict[str, str]:
    """{the name that the document's comments have: the table}"""
    boot(options)
    from choosing.cost import table

    return {"time": table(SmallModel(), TIMED_CALLS)}


def counted(options: argparse.Namespace) -> dict[str, str]:
    """The tables of all runs, after those that are missing were sampled."""
    results, study = Results(options.results), STUDIES[options.model]
    if not options.report:
        boot(options)
        shapes = SmallModel(options.model, options.checkpoint)
        fill(shapes, results, list(wanted(options, study)))
        if options.document and not (options.tune or options.captions or options.setting):
            name = f"{options.document.stem}{study.picture}.png"
            picture(shapes, results, options, options.document.with_name(name))
    recordings = report.Recordings(options.model, results, Results(ALIGNMENT), options.noises, options.images)
    if options.tune:
        tables = {"candidates": report.candidates(recordings), "thresholds": report.thresholds(recordings)}
    else:
        choices = {f"choices, {captions}": report.choices(recordings, captions) for captions in study.images}
        tables = {"prediction": report.prediction(recordings), **choices, "ranking": report.ranking(recordings)}
    return {study.comments + name: table for name, table in tables.items()}


def main(arguments: Sequence[str]) -> int:
    parser = bench_parser(__doc__, STUDIES)
    parser.add_argument("--tune", action="store_true", help="the scores that were compared, on other captions")
    parser.add_argument("--report", action="store_true", help="sample nothing")
    parser.add_argument("--time", action="store_true", help="measure the time of a score, and nothing else")
    parser.add_argument("--captions", nargs="+", metavar="SET", help="only sample these sets of captions")
    parser.add_argument("--setting", nargs="+", metavar="SETTING", help="only sample these methods")
    parser.add_argument("--images", type=int, help="captions of every set, by default 500 or 250")
    parser.add_argument("--noises", type=int, help=f"pictures of a caption, by default {NOISES}")
    parser.add_argument("--results", type=Path, help=f"file of the results (default: {PATH.name})")
    parser.add_argument(
        "--document", type=Path,
        help=f"file that gets the tables (default: docs/{DOCUMENT.name}, without --images, --noises, --results and "
        "--checkpoint)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    study = STUDIES[options.model]
    for option, known in (("captions", study.images), ("setting", study.settings)):
        if unknown := set(getattr(options, option) or ()) - set(known):
            parser.error(f"--{option} is one of {', '.join(known)}, got {', '.join(unknown)}")
    if options.time and options.model != UNET:
        parser.error(f"the time is that of a U-Net's score, got --model {options.model}")
    options.document = document_of(options, DOCUMENT, "images", "noises", "results", "checkpoint")
    options.noises, options.results = options.noises or NOISES, options.results or PATH
    for name, text in (timed if options.time else counted)(options).items():
        print(f"{name}\n\n{text}\n")
        if options.document:
            write_between(options.document, name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
