"""Inpainting counted on the shapes model: is the requested object in the masked region?

    python run.py bench inpainting             200 pictures a method: the table of docs/inpainting.md
    python run.py bench inpainting --tune      other gammas, on other pictures

Every picture is drawn and shows two objects; the box of one of them is painted anew. The prompt asks for the other one
and for an object of another colour and any shape in its place. The scorer reads the result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shapes.cases import surroundings
from shapes.drawing import draw, random_pair, random_picture
from shapes.grammar import Scene, Wanted
from shapes.scorer import read
from shapes.world import SIDE, Picture
from small_model import SmallModel, bench_parser, boot, sheet

TUNING_SEED, SCORED_SEED = 11, 12
CFG = 1.25
BATCH = 40


@dataclass(frozen=True)
class Hole:
    """A drawn picture of two objects, and what is to take the place of the first."""

    picture: Picture
    wanted: tuple[str, str]

    @property
    def caption(self) -> str:
        """Both objects that the finished picture is to show."""
        kept = self.picture.things[1]
        objects = (Wanted(*self.wanted), Wanted(kept.colour, kept.shape))
        return Scene(objects, ground=self.picture.ground).caption()

    def mask(self) -> np.ndarray:
        """1 in the box of the first object, [h w]."""
        return (~surroundings(self.picture.things[0])).astype(np.float32)


def holes(count: int, seed: int) -> list[Hole]:
    """Drawn pictures of two objects whose boxes do not meet, without the pairs that training never shows in company."""
    rng = np.random.default_rng(seed)
    made = []
    while len(made) < count:
        picture = random_picture(rng, 2, rare=False)
        old, kept = picture.things
        if not (~surroundings(old) & ~surroundings(kept)).any():
            taken = {old.colour, kept.colour}
            wanted = next(pair for pair in iter(lambda: random_pair(rng, rare=False), None) if pair[0] not in taken)
            made.append(Hole(picture, wanted))
    return made


@dataclass(frozen=True)
class Method:
    """gammas of EBCA's update under the mask, None without it; jumps (length, samples) of RePaint, None without it."""

    name: str
    gammas: tuple[float, float] | None = None
    jumps: tuple[int, int] | None = None


METHODS = [
    Method("plain"),
    Method("EBCA, the authors' gammas", (0.025, 0.025)),
    Method("RePaint", jumps=(5, 3)),
    Method("RePaint and EBCA", (0.025, 0.025), (5, 3)),
]
CANDIDATES = [Method("plain")] + [Method(f"EBCA, gammas {g}", (g, g)) for g in (0.01, 0.025, 0.05, 0.1, 0.2)]


class Painter:
    """Applies methods to holes."""

    def __init__(self, shapes: SmallModel, holes: Sequence[Hole], steps: int, seed: int):
        self._shapes, self._steps, self._seed = shapes, steps, seed
        latent = shapes.latent([draw(hole.picture) for hole in holes])
        self._latent = latent | {"noise_mask": torch.from_numpy(np.stack([hole.mask() for hole in holes]))}
        self._positive = shapes.encode([hole.caption for hole in holes])
        self._negative = shapes.encode([""] * len(holes))

    def apply(self, method: Method) -> np.ndarray:
        """The painted pictures [b h w 3]."""
        node, model = self._shapes.node, self._shapes.model
        if method.gammas:
            (model,) = node(
                "EBCAContextUpdate", model=model, gamma_attn=method.gammas[0], gamma_norm=method.gammas[1],
                start_percent=0.0, end_percent=1.0, use_noise_mask=True,
            )  # fmt: skip
        sampler = node("KSamplerSelect", sampler_name="euler")[0]
        if method.jumps:
            length, samples = method.jumps
            (sampler,) = node("EBCARePaintSampler", jump_length=length, jump_n_sample=samples, eta=0.0)
        (sigmas,) = node("BasicScheduler", model=model, scheduler="normal", steps=self._steps, denoise=1.0)
        (guider,) = node("CFGGuider", model=model, positive=self._positive, negative=self._negative, cfg=CFG)
        (noise,) = node("RandomNoise", noise_seed=self._seed)
        sampled = node(
            "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
            latent_image=self._latent,
        )[0]  # fmt: skip
        return self._shapes.decode(sampled)


def score(hole: Hole, image: np.ndarray) -> tuple[bool, bool]:
    """Whether the requested object is in the masked region, and whether the picture shows it and the other one only."""
    reading, mask, kept = read(image), hole.mask(), hole.picture.things[1]
    shown = sorted((found.colour, found.shape) for found in reading.found)
    there = any(
        (found.colour, found.shape) == hole.wanted and mask[int(found.y * SIDE), int(found.x * SIDE)]
        for found in reading.found
    )
    return there, there and reading.clear and shown == sorted([hole.wanted, (kept.colour, kept.shape)])


def count_model_calls(method: Method, steps: int) -> int:
    """Calls of the guided model for a picture."""
    import ebca_core

    return ebca_core.count_model_calls(ebca_core.repaint_levels(steps, *(method.jumps or (steps, 1))))


def main(arguments: Sequence[str]) -> int:
    parser = bench_parser(__doc__)
    parser.add_argument("--tune", action="store_true", help="try other gammas, on other pictures")
    names = [method.name for method in (*METHODS, *CANDIDATES)]
    parser.add_argument("--method", nargs="+", choices=names, metavar="NAME", help=f"only these, of {'; '.join(names)}")
    parser.add_argument("--images", type=int, default=200, help="pictures a method")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps")
    parser.add_argument("--sheet", type=Path, help="file for a picture of the first ten images with every method")
    options = parser.parse_args(arguments)
    boot(options)
    _run(options)
    return 0


def _run(options: argparse.Namespace) -> None:
    chosen = holes(options.images, TUNING_SEED if options.tune else SCORED_SEED)
    shapes = SmallModel(options.model, options.checkpoint)
    starts = range(0, len(chosen), BATCH)
    painters = [Painter(shapes, chosen[start : start + BATCH], options.steps, seed=start) for start in starts]
    print(f"{len(chosen)} pictures a method, {options.steps} steps, euler, normal, cfg {CFG}\n")
    print("| method | requested object in the masked region | and nothing else is painted | model calls per image |")
    print("|---|---|---|---|")
    shown = {"drawn": [draw(hole.picture) for hole in chosen]}
    for method in CANDIDATES if options.tune else METHODS:
        if options.method and method.name not in options.method:
            continue
        images = np.concatenate([painter.apply(method) for painter in painters])
        scores = np.array([score(hole, image) for hole, image in zip(chosen, images, strict=True)], float)
        shares = [f"{100 * p:.1f} ± {196 * (p * (1 - p) / len(scores)) ** 0.5:.1f} %" for p in scores.mean(0)]
        print(f"| {method.name} | {' | '.join(shares)} | {count_model_calls(method, options.steps)} |", flush=True)
        shown[method.name] = images
    if options.sheet:
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        sheet(shown).save(options.sheet)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
