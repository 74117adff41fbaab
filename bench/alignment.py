"""How well pictures follow their captions: EBCA beside its rivals on the shapes model, counted by the exact scorer.

    python run.py bench alignment              samples what is missing, writes docs/alignment.md and alignment.png
    python run.py bench alignment --tune       what the settings were chosen by, on other captions and noise
    python run.py bench alignment --report     only writes the table, from what there is

Every method gets the same captions and the same noise. Results are kept in bench/alignment_results.jsonl, a line for
each method and set of captions, by their exact settings: what is there is not sampled again, so the command can be
stopped and started at any time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPO = Path(__file__).resolve().parents[1]
sys.path += [str(REPO), str(REPO / "demo")]

from measure import ROWS, scenes  # noqa: E402
from measures import seconds  # noqa: E402

from alignment_report import Columns, against, mean_distance, share, write_between  # noqa: E402
from alignment_settings import CANDIDATES, CFG, COMPARED, FIGURE, METHODS, PLAIN, SAMPLER, Method  # noqa: E402
from looks import Looks, drawn  # noqa: E402
from shapes.grammar import Scene  # noqa: E402
from shapes.scorer import LABELS, Verdict, verdict  # noqa: E402
from shapes_model import ShapesModel, bench_parser, boot, sheet  # noqa: E402

RESULTS = REPO / "bench" / "alignment_results.jsonl"
SETS = ("two objects", "three objects", "two objects, one a rare pair", "two objects, left of / above")
IMAGES, TUNING_IMAGES = 500, 200
BATCH = 10  # of larger ones ComfyUI samples the two prompts apart where memory is short, which NAG cannot
COLUMNS = 10  # of the figure
ROUNDS = 7  # of timing
SCORED = Columns(SETS, SETS[:2], SETS[3])
TUNING = Columns(SETS[1:2], SETS[1:2], None)
DOCUMENT = REPO / "docs" / "alignment.md"
TUNING_SEED = 10**6  # no noise of the tuning pictures is one of the scored ones; a caption may come up again
#: A letter for each picture: the labels of the scorer, and R where place fits the caption as well.
LETTERS = dict(zip(LABELS, "rmseu", strict=True))


@dataclass(frozen=True)
class Cell:
    """One method on one set of captions: all that its pictures depend on."""

    captions: str
    kind: str
    settings: dict[str, Any]
    is_tuning: bool
    images: int

    @property
    def key(self) -> str:
        return json.dumps({"sampler": SAMPLER, "cfg": CFG, **vars(self)}, sort_keys=True)

    def scenes(self) -> list[Scene]:
        if not self.is_tuning:
            return scenes(self.captions, self.images)
        rng = np.random.default_rng([TUNING_SEED, list(ROWS).index(self.captions)])
        return [ROWS[self.captions](rng) for _ in range(self.images)]

    def seeds(self) -> list[int]:
        first = TUNING_SEED if self.is_tuning else 0
        return list(range(first, first + self.images))


TIMED = Cell(SETS[0], "plain", {}, True, 10)


class Results:
    """A file with a line for each finished piece of work."""

    def __init__(self, path: Path):
        self._path = path
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # a line that was cut off
            path.write_text(whole)
        self._found = {json.dumps(line["of"], sort_keys=True): line for line in map(json.loads, whole.splitlines())}

    def get(self, key: str) -> dict[str, Any] | None:
        return self._found.get(key)

    def add(self, key: str, **found: Any) -> None:
        line = {"of": json.loads(key), **found}
        self._found[key] = line
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def letter(found: Verdict) -> str:
    return "R" if found.complete else LETTERS[found.label]


def sample(shapes: ShapesModel, method: Method, scenes: Sequence[Scene], seeds: Sequence[int]) -> np.ndarray:
    """Pictures [b h w 3] of a batch."""
    from alignment_methods import guided

    with torch.no_grad():
        way = guided(shapes, method, scenes)
        with way.around, torch.autocast("cpu", way.precision, enabled=way.precision != torch.float32):
            return shapes.sampled(
                way.model, way.positive, shapes.encode([""]), list(seeds), cfg=way.cfg, **way.sampler
            )


def run(shapes: ShapesModel, cell: Cell, method: Method) -> dict[str, Any]:
    """Sample a cell: a letter for each picture, the statistics of their looks, CPU seconds a picture."""
    wanted, seeds = cell.scenes(), cell.seeds()
    images, began = [], time.process_time()
    for start in range(0, cell.images, BATCH):
        part = slice(start, start + BATCH)
        images.extend(sample(shapes, method, wanted[part], seeds[part]))
    took = time.process_time() - began
    letters = "".join(letter(verdict(image, scene)) for image, scene in zip(images, wanted, strict=True))
    looks = Looks.of(images)
    return {
        "labels": letters, "seconds": round(took / cell.images, 4), "mean": rounded(looks.mean),
        "covariance": [rounded(row) for row in looks.covariance],
    }  # fmt: skip


def rounded(values: np.ndarray) -> list[float]:
    """Six digits: what the results file keeps."""
    return [float(f"{value:.6g}") for value in values]


def times(shapes: ShapesModel, method: Method) -> list[float]:
    """CPU time of a small batch over that of the plain model, both in turn."""
    scenes, seeds = TIMED.scenes(), TIMED.seeds()
    both = [lambda one=one: sample(shapes, one, scenes, seeds) for one in (method, PLAIN)]
    for way in both:
        way()
    pairs = [[seconds(way, 1).cpu for way in both] for _ in range(ROUNDS)]
    return [round(ours / plain, 4) for ours, plain in pairs]


def fill(shapes: ShapesModel, results: Results, cells: Sequence[tuple[Cell, Method]]) -> None:
    """Sample what is missing."""
    missing = [(cell, method) for cell, method in cells if results.get(cell.key) is None]
    for number, (cell, method) in enumerate(missing, 1):
        results.add(cell.key, **run(shapes, cell, method))
        found = results.get(cell.key)
        print(
            f"{number:3} of {len(missing)}  {cell.captions:30} {method.name:50} "
            f"{100 * share(found['labels'], 'rR'):5.1f} %  {found['seconds']:.3f} s", flush=True,
        )  # fmt: skip


def time_key(method: Method) -> str:
    timed = {"sampler": SAMPLER, "images": TIMED.images, "rounds": ROUNDS}
    return json.dumps({"time": method.kind, "settings": method.settings, **timed}, sort_keys=True)


def table(results: Results, methods: Sequence[Method], columns: Columns, is_tuning: bool, images: int) -> str:
    """A line for each method that has been sampled, beside plain, which is the first; then COMPARED."""

    def cell(method: Method, captions: str) -> Cell:
        return Cell(captions, method.kind, method.settings, is_tuning, images)

    wanted = {captions: cell(PLAIN, captions).scenes() for captions in columns.main}
    reference, other = ({captions: Looks.of(drawn(scenes, seed)) for captions, scenes in wanted.items()}
                        for seed in (1, 2))  # fmt: skip
    lines, all_labels = [columns.header()], {}
    for method in methods:
        found = {captions: results.get(cell(method, captions).key) for captions in columns.sets}
        labels = {captions: line["labels"] for captions, line in found.items() if line}
        all_labels[method.name] = labels
        looks = {captions: Looks(np.array(line["mean"]), np.array(line["covariance"]))
                 for captions, line in found.items() if line and captions in reference}  # fmt: skip
        distance = f"{mean_distance(looks, reference):.2f}" if len(looks) == len(reference) else "-"
        timed = results.get(time_key(method))
        if labels:
            time = "1" if method is PLAIN else f"{np.median(timed['ratios']):.2f}" if timed else "-"
            lines.append(columns.row(method.name, labels, all_labels[PLAIN.name], distance, time))
    lines.append(f"\nLooks of other drawn pictures of the same captions: {mean_distance(other, reference):.2f}.")
    for ours, other in COMPARED:
        if all_labels.get(ours.name) and all_labels.get(other.name):
            compared = against(all_labels[ours.name], all_labels[other.name])
            lines.append(f"\n{ours.name} against {other.name}: {compared}.")
    return "\n".join(lines)


def picture(shapes: ShapesModel, methods: Sequence[Method], path: Path) -> None:
    """The first pictures of two sets with every method, framed where they are not right."""
    shown, heads = {}, []
    for captions in SETS[:2]:
        cell = Cell(captions, "plain", {}, False, COLUMNS // 2)
        heads += [scene.caption() for scene in cell.scenes()]
        for method in methods:
            images = sample(shapes, method, cell.scenes(), cell.seeds())
            marked = [framed(image, verdict(image, scene).right) for image, scene in zip(images, cell.scenes())]
            shown.setdefault(method.name, []).extend(marked)
    sheet(shown, COLUMNS, scale=2, heads=heads).save(path)


def framed(image: np.ndarray, is_right: bool) -> np.ndarray:
    """With a frame two pixels wide: green if all is right, else red."""
    out = np.pad(image, ((3, 3), (3, 3), (0, 0)), constant_values=1.0)
    colour = (0.1, 0.65, 0.25) if is_right else (0.85, 0.1, 0.1)
    for line in (out[:2], out[-2:], out[:, :2], out[:, -2:]):
        line[...] = colour
    return out


def main(arguments: Sequence[str]) -> int:
    parser = bench_parser(__doc__)
    parser.add_argument("--tune", action="store_true", help="the candidates, on other captions and noise")
    parser.add_argument("--report", action="store_true", help="sample nothing")
    parser.add_argument("--captions", nargs="+", choices=SETS, metavar="SET", help="sample only these sets of captions")
    parser.add_argument("--method", nargs="+", default=[""], help="only plain and methods with such text in their name")
    parser.add_argument("--images", type=int, help=f"pictures a cell: {IMAGES}, with --tune {TUNING_IMAGES}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="file that gets the table")
    options = parser.parse_args(arguments)
    boot(options)
    methods, columns = (CANDIDATES, TUNING) if options.tune else (METHODS, SCORED)
    images = options.images or (TUNING_IMAGES if options.tune else IMAGES)
    results = Results(options.results)
    if not options.report:
        shapes = ShapesModel()
        chosen = [m for m in methods if m is PLAIN or any(text in m.name for text in options.method)]
        fill(shapes, results, [
            (Cell(captions, method.kind, method.settings, options.tune, images), method)
            for captions in options.captions or columns.sets for method in chosen
        ])  # fmt: skip
        if not (options.tune or options.captions or options.method != [""]):
            for method in methods:
                if method is not PLAIN and results.get(time_key(method)) is None:
                    results.add(time_key(method), ratios=times(shapes, method))
            picture(shapes, FIGURE, options.document.with_suffix(".png"))
    text = table(results, methods, columns, options.tune, images)
    print(text)
    write_between(options.document, "candidates" if options.tune else "scores", text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
