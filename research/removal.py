"""Removes one of the two objects that a caption names, counted: by EBCA at cfg 1 and by a negative prompt.

    python run.py bench removal --model joint              the table of docs/editing.md
    python run.py bench removal --model joint --tune       what the settings were chosen by, on other captions and noise

The prompt is the whole caption; what is to be removed is its second object, by its own words. A picture is right if it
shows the first object and nothing else. All methods take turns, batch by batch, with the same noise.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from alignment.compare import BATCH
from alignment.results import Cell
from bootstrap import mean_of
from shapes.grammar import Scene
from shapes.scorer import read, verdict
from small_model import SmallModel, bench_parser, boot, in_precision
from worlds import SHAPES

IMAGES, TUNING_IMAGES = 200, 60


@dataclass(frozen=True)
class Method:
    """prompt: "caption", or "kept object" alone; has_negative: whether the unwanted object is the negative prompt.

    alpha: of EBCA's removal of the unwanted object, 0 for none; norm_limit: that of EBCA Compose.
    """

    name: str
    cfg: float = 1.0
    prompt: str = "caption"
    has_negative: bool = False
    alpha: float = 0.0
    norm_limit: float = 0.0


def _removed(alpha: float, norm_limit: float = 0.0) -> Method:
    name = f"EBCA, removed at {alpha:g}{f', norm limit {norm_limit:g}' if norm_limit else ''}, cfg 1"
    return Method(name, alpha=alpha, norm_limit=norm_limit)


def _negative(cfg: float) -> Method:
    return Method(f"negative prompt, cfg {cfg:g}", cfg, has_negative=True)


PLAIN = Method("plain, cfg 1")
ALPHAS, LIMITS, CFGS = (0.2, 0.35, 0.5, 0.65, 0.75), (1.25, 2.0), (1.5, 2.0, 3.0, 4.0)
CANDIDATES = [
    PLAIN,
    *(_negative(cfg) for cfg in CFGS),
    *(_removed(alpha) for alpha in ALPHAS),
    *(_removed(alpha, limit) for alpha in ALPHAS[2:] for limit in LIMITS),
]
METHODS = [
    PLAIN,
    Method("without the object in the prompt, cfg 1", prompt="kept object"),
    _negative(2.0),
    _negative(3.0),
    _removed(0.5),
    _removed(0.75),
    _removed(0.75, 1.25),
]


def sample(shapes: SmallModel, method: Method, scenes: Sequence[Scene], seeds: Sequence[int]) -> np.ndarray:
    """Pictures [b h w 3] of a batch."""
    kept, unwanted = ([scene.objects[i].words() for scene in scenes] for i in (0, 1))
    prompts = {"caption": [scene.caption() for scene in scenes], "kept object": kept}
    model, empty = shapes.model, shapes.encode([""])
    if method.alpha:
        (edit,) = shapes.node(
            "EBCAEditContext", conditioning=shapes.encode(unwanted), direction="remove", alpha=method.alpha,
            start_percent=0.0, end_percent=1.0, gamma_attn=0.0, gamma_norm=0.0, gamma_start_percent=0.0,
            gamma_end_percent=1.0,
        )  # fmt: skip
        (model,) = shapes.node("EBCACompose", model=model, edits={"edit0": edit}, norm_limit=method.norm_limit)
    negative = shapes.encode(unwanted) if method.has_negative else empty
    with torch.no_grad(), in_precision(torch.bfloat16):
        return shapes.sampled(
            model, shapes.encode(prompts[method.prompt]), negative, list(seeds), cfg=method.cfg, **SHAPES.sampler
        )


def score(scene: Scene, image: np.ndarray) -> tuple[bool, bool, bool]:
    """Whether a picture shows the first object and nothing else; whether it shows that one; whether not the other."""
    kept, unwanted = scene.objects
    shown = [(found.colour, found.shape) for found in read(image).found]
    right = verdict(image, replace(scene, objects=(kept,))).right
    return right, (kept.colour, kept.shape) in shown, (unwanted.colour, unwanted.shape) not in shown


def main(arguments: Sequence[str]) -> int:
    parser = bench_parser(__doc__)
    parser.add_argument("--tune", action="store_true", help="try more settings, on other captions and noise")
    parser.add_argument("--images", type=int, help=f"pictures a method, {IMAGES} by default, fewer with --tune")
    options = parser.parse_args(arguments)
    boot(options)
    methods = CANDIDATES if options.tune else METHODS
    count = options.images or (TUNING_IMAGES if options.tune else IMAGES)
    cell = Cell("two objects", "removal", {}, options.tune, count, options.model)
    _run(SmallModel(options.model, options.checkpoint), methods, cell)
    return 0


def _run(shapes: SmallModel, methods: Sequence[Method], cell: Cell) -> None:
    scenes, seeds = cell.scenes(), cell.seeds()
    scores: dict[Method, list] = {method: [] for method in methods}
    seconds = dict.fromkeys(methods, 0.0)
    for start in range(0, cell.images, BATCH):
        part = slice(start, start + BATCH)
        for method in methods:
            began = time.process_time()
            images = sample(shapes, method, scenes[part], seeds[part])
            seconds[method] += time.process_time() - began
            scores[method] += [score(scene, image) for scene, image in zip(scenes[part], images, strict=True)]
    print("{} pictures a method, {name}, {scheduler}, {steps} steps\n".format(cell.images, **SHAPES.sampler))
    print("| method | only the first object | first object there | second object gone | time |\n|---|---|---|---|---|")
    for method in methods:
        shares = [mean_of([column]) for column in np.array(scores[method], float).T]
        shown = [s.text(".1f", 100, " %") for s in shares]
        print(f"| {method.name} | {' | '.join(shown)} | {seconds[method] / seconds[methods[0]]:.2f} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
