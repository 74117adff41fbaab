"""How well pictures follow their captions: EBCA beside the baselines on a small model, counted by a scorer.

    python run.py bench alignment              samples what is missing, writes docs/alignment.md and alignment.png
    python run.py bench alignment --tune       what the settings were chosen by, on other captions and noise
    python run.py bench alignment --report     only writes the table, from what there is
    python run.py bench alignment --model transformer      the same on another trained model
    python run.py bench alignment --model things           on Attend-and-Excite's prompts: docs/things.md

All models of the shapes world together: what each part of the method changes, in docs/alignment_parts.png.

Every method gets the same captions and the same noise. Results are kept in research/alignment/ (results.jsonl, or
things.jsonl), a line for each method and set of captions, by their exact settings: what is there is not sampled again,
so the command can be stopped and started at any time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO / "research"))

from alignment import claims, parts_figure  # noqa: E402
from alignment.columns import RIGHT, share  # noqa: E402
from alignment.image_statistics import ImageStatistics  # noqa: E402
from alignment.report import document_of, table, write_between  # noqa: E402
from alignment.results import PATH, ROUNDS, TIMED_IMAGES, Cell, Results, time_key  # noqa: E402
from alignment.settings import IMAGES, PLAIN, STUDIES, Method  # noqa: E402
from small_model import SmallModel, bench_parser, boot, sheet  # noqa: E402
from worlds import MODELS  # noqa: E402

BATCH = 10  # of larger ones ComfyUI samples the two prompts apart where memory is short, which NAG cannot
COLUMNS = 10  # of the figure
DOCS = REPO / "docs"


def sample(small: SmallModel, method: Method, scenes: Sequence[Any], seeds: Sequence[int]) -> np.ndarray:
    """Pictures [b h w 3] of a batch."""
    from alignment.methods import guided, pictures

    with torch.no_grad():
        return pictures(small, guided(small, method, scenes), seeds)


def run(small: SmallModel, cell: Cell, method: Method) -> dict[str, Any]:
    """Sample a cell: a letter for each picture, their image statistics, CPU seconds a picture."""
    wanted, seeds = cell.scenes(), cell.seeds()
    images, began = [], time.process_time()
    for start in range(0, cell.images, BATCH):
        part = slice(start, start + BATCH)
        images.extend(sample(small, method, wanted[part], seeds[part]))
    took = time.process_time() - began
    world = cell.world
    letters = "".join(world.letter(world.verdict(image, scene)) for image, scene in zip(images, wanted, strict=True))
    found = ImageStatistics.of(images, world.palette)
    return {
        "labels": letters, "seconds": round(took / cell.images, 4), "mean": rounded(found.mean),
        "covariance": [rounded(row) for row in found.covariance],
    }  # fmt: skip


def rounded(values: np.ndarray) -> list[float]:
    """Six digits: what the results file keeps."""
    return [float(f"{value:.6g}") for value in values]


def times(small: SmallModel, method: Method) -> list[float]:
    """CPU time of a small batch over that of the plain model, both in turn."""
    timed = Cell(STUDIES[small.name].scored.sets[0], "plain", {}, True, TIMED_IMAGES, small.name)
    scenes, seeds = timed.scenes(), timed.seeds()
    both = [lambda one=one: sample(small, one, scenes, seeds) for one in (method, PLAIN)]
    for way in both:
        way()
    pairs = [[cpu_seconds(way) for way in both] for _ in range(ROUNDS)]
    return [round(ours / plain, 4) for ours, plain in pairs]


def cpu_seconds(function: Callable[[], Any]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def fill(small: SmallModel, results: Results, cells: Sequence[tuple[Cell, Method]]) -> None:
    """Sample what is missing, unless its code was removed."""
    absent = [(cell, method) for cell, method in cells if results.get(cell.key) is None]
    missing = [(cell, method) for cell, method in absent if not method.is_recorded_only]
    if len(missing) < len(absent):
        left_out = "; ".join(method.name for _, method in absent if method.is_recorded_only)
        print(f"Left out, because their code was removed and the results lack them: {left_out}.")
    for number, (cell, method) in enumerate(missing, 1):
        results.add(cell.key, **run(small, cell, method))
        found = results.get(cell.key)
        print(
            f"{number:3} of {len(missing)}  {cell.captions:30} {method.name:50} "
            f"{100 * share(found['labels'], RIGHT):5.1f} %  {found['seconds']:.3f} s", flush=True,
        )  # fmt: skip


def picture(small: SmallModel, methods: Sequence[Method], path: Path) -> None:
    """The first pictures of the main sets with every method, framed by whether they are right."""
    shown, heads = {}, []
    sets, verdict = STUDIES[small.name].scored.main, small.world.verdict
    for captions in sets:
        cell = Cell(captions, "plain", {}, False, COLUMNS // len(sets), small.name)
        heads += [scene.caption() for scene in cell.scenes()]
        for method in methods:
            images = sample(small, method, cell.scenes(), cell.seeds())
            marked = [framed(image, verdict(image, scene).right) for image, scene in zip(images, cell.scenes())]
            shown.setdefault(method.name, []).extend(marked)
    sheet(shown, len(heads), heads=heads).save(path)


def framed(image: np.ndarray, is_right: bool) -> np.ndarray:
    """With a frame two pixels wide: green if all is right, else red."""
    out = np.pad(image, ((3, 3), (3, 3), (0, 0)), constant_values=1.0)
    colour = (0.1, 0.65, 0.25) if is_right else (0.85, 0.1, 0.1)
    for line in (out[:2], out[-2:], out[:, :2], out[:, -2:]):
        line[...] = colour
    return out


def main(arguments: Sequence[str]) -> int:
    parser = bench_parser(__doc__, MODELS)
    parser.add_argument("--tune", action="store_true", help="the candidates, on other captions and noise")
    parser.add_argument("--report", action="store_true", help="sample nothing")
    parser.add_argument("--captions", nargs="+", metavar="SET", help="sample only these sets of captions")
    parser.add_argument("--method", nargs="+", default=[""], help="only plain and methods with such text in their name")
    parser.add_argument("--images", type=int, help="pictures a cell (default: as many as the model's tables have)")
    parser.add_argument("--results", type=Path, help="file of the results (default: that of the model's world)")
    parser.add_argument(
        "--document", type=Path,
        help="file that gets the table (default: the model's in docs/, without --images, --results and --checkpoint)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    study = STUDIES[options.model]
    methods, columns = (study.candidates, study.tuning) if options.tune else (study.methods, study.scored)
    if unknown := set(options.captions or ()) - set(columns.sets):
        parser.error(f"there is no set {', '.join(sorted(unknown))}: expected some of {'; '.join(columns.sets)}")
    images = options.images or (study.tuning_images if options.tune else study.images)
    document = document_of(options, DOCS / study.document, "images", "results", "checkpoint")
    results = Results(options.results or PATH.with_name(study.results))
    if not options.report:
        boot(options)
        small = SmallModel(options.model, options.checkpoint)
        chosen = [m for m in methods if m is PLAIN or any(text in m.name for text in options.method)]
        fill(small, results, [
            (Cell(captions, method.kind, method.settings, options.tune, images, options.model), method)
            for captions in options.captions or columns.sets for method in chosen
        ])  # fmt: skip
        if not (options.tune or options.captions or options.method != [""]):
            for method in methods:
                if method is not PLAIN and results.get(time_key(method, options.model)) is None:
                    results.add(time_key(method, options.model), ratios=times(small, method))
            if document:
                picture(small, study.figure, document.with_name(f"{document.stem}{study.picture}.png"))
    text = table(results, methods, columns, options.tune, images, options.model)
    print(text)
    if document:
        write_tables(document, text, results, images, options)
    return 0


def write_tables(document: Path, text: str, results: Results, images: int, options: argparse.Namespace) -> None:
    """The table of the command, what is found on other models by the same results, and the figure of the parts."""
    study = STUDIES[options.model]
    write_between(document, study.comments + ("candidates" if options.tune else "scores"), text)
    if options.model == claims.REPEATED_ON and not options.tune:
        shapes = claims.Sampled(Results(PATH), IMAGES)
        write_between(document, "claims", claims.table(shapes, claims.Sampled(results, images)))
    shown = parts_figure.rows(results, study.scored.main, IMAGES)
    if shown and not options.tune and images == IMAGES:
        title = f"Change in correct images, in percentage points ({IMAGES} images of {study.pictured} each)"
        parts = parts_figure.figure(shown, title).quantize(32)
        parts.save(document.with_name(f"{document.stem}_parts.png"), optimize=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
