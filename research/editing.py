"""Edits of pictures that were not generated, counted on the shapes model, beside the ways without EBCA.

    python run.py bench editing                200 pictures a method: the table of docs/editing.md
    python run.py bench editing --tune         what the settings below were chosen by, on other pictures

Every picture is drawn and shows one object on a plain ground; the caption names all three. The edit adds an object of
another colour and any shape, and removes the old one. The scorer reads the result.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shapes.drawing import draw
from shapes.scorer import read
from shapes_model import Case, ShapesModel, bench_parser, boot, cases, sheet

TUNING_SEED, SCORED_SEED = 1, 2
BATCH = 40


@dataclass(frozen=True)
class Edit:
    """How EBCA edits: alphas of the new and the old object, where they begin, gammas of the new and the old object."""

    alphas: tuple[float, float]
    start: float
    gammas: tuple[float, float]


@dataclass(frozen=True)
class Method:
    """A way from a picture to its edited version.

    fixed_point_iterations: of the inversion, None for img2img. denoise: of img2img. edit: EBCA's; without one the
    prompt is `positive`. positive, negative: "caption", "new caption" or "" (empty). masked: EBCA's edits hold in the
    old object's box alone. noise_masked: the latent has that box as its noise mask as well.
    """

    name: str
    cfg: float
    fixed_point_iterations: int | None = None
    denoise: float | None = None
    edit: Edit | None = None
    positive: str = "new caption"
    negative: str = ""
    masked: bool = False
    noise_masked: bool = False


AUTHORS = Edit((0.75, 0.65), 0.5, (6e-4, 5e-4))
CAPTION = dict(positive="caption", negative="caption")


@dataclass(frozen=True)
class Tuned:
    """For one trained model, the candidates of --tune with most edits right and, among those, the least background
    change: EBCA's by the fixed-point iterations of the inversion, and the denoise of img2img."""

    edits: Mapping[int, Edit]
    denoise: float


# For the transformer only EBCA was tuned, with one fixed-point iteration at cfg 1.25; the denoise is the U-Net's. In
# joint attention nothing was tuned: strengths are the transformer's, and there is no update.
_EARLY, _JOINT = (Edit((1.6, 1.5), 0.1, gammas) for gammas in ((5e-4, 5e-4), (0.0, 0.0)))
TUNED = {
    "unet": Tuned({0: Edit((2.2, 2.1), 0.4, (5e-4, 5e-4)), 1: Edit((2.2, 2.1), 0.3, (5e-4, 5e-4))}, 0.75),
    "transformer": Tuned({0: _EARLY, 1: _EARLY}, 0.75),
    "joint": Tuned({0: _JOINT, 1: _JOINT}, 0.75),
}


def methods(tuned: Tuned) -> list[Method]:
    """The rows of the table."""
    paper, fixed_point = tuned.edits[0], tuned.edits[1]
    denoise = round(tuned.denoise - 0.05, 2)
    return [
        Method("no edit, inversion as in the paper", 1.25, 0, **CAPTION),
        Method("no edit, fixed-point inversion", 1.25, 1, **CAPTION),
        Method(f"img2img with the new prompt, denoise {denoise}", 1.25, denoise=denoise),
        Method(f"img2img with the new prompt, denoise {tuned.denoise}", 1.25, denoise=tuned.denoise),
        Method("prompt swapped, inversion as in the paper", 1.25, 0),
        Method("prompt swapped, fixed-point inversion", 1.25, 1),
        Method("EBCA, the authors' cat -> dog, inversion as in the paper", 1.25, 0, edit=AUTHORS, **CAPTION),
        Method("EBCA, tuned, inversion as in the paper", 1.25, 0, edit=paper, **CAPTION),
        Method("EBCA, tuned, fixed-point inversion", 1.25, 1, edit=fixed_point, **CAPTION),
        Method("the same, mask on the edits", 1.25, 1, edit=fixed_point, masked=True, **CAPTION),
        Method("the same, noise mask as well", 1.25, 1, edit=fixed_point, masked=True, noise_masked=True, **CAPTION),
    ]


#: Where the edits of --tune begin.
STARTS = {"unet": (0.3, 0.4), "transformer": (0.1, 0.2, 0.3), "joint": (0.1, 0.2, 0.3)}


def candidates(starts: Sequence[float]) -> Iterator[Method]:
    """What --tune tries: the ways without EBCA, and EBCA."""
    for cfg, denoise in product((1.25, 3.0, 6.0), (0.6, 0.65, 0.7, 0.75, 0.8)):
        yield Method(f"img2img {denoise}", cfg, denoise=denoise)
    for cfg, inversion, negative in product((1.25, 3.0), (0, 1), ("", "caption")):
        yield Method(f"swap, inversion {inversion}, negative '{negative}'", cfg, inversion, negative=negative)
    alphas = ((1.2, 1.1), (1.6, 1.5), (2.2, 2.1))
    for cfg, inversion, alpha, start in product((1.0, 1.25, 3.0), (0, 1), alphas, starts):
        edit = Edit(alpha, start, (5e-4, 5e-4))
        name = f"EBCA, cfg {cfg:g}, inversion {inversion}, {alpha} from {start}"
        yield Method(name, cfg, inversion, edit=edit, **CAPTION)
    for gamma in (0.0, 2e-3):
        edit = Edit((1.6, 1.5), 0.3, (gamma, gamma))
        yield Method(f"EBCA, inversion 1, gammas {gamma}", 1.25, 1, edit=edit, **CAPTION)


@dataclass(frozen=True)
class Score:
    """Shares of pictures; background: mean absolute difference outside the old object's box, of values 0..1."""

    new: float
    gone: float
    both: float
    nothing_else: float
    background: float


def score(cases: Sequence[Case], originals: Sequence[np.ndarray], images: Sequence[np.ndarray]) -> Score:
    """What the scorer reads in edited images [h w 3]."""
    rows = []
    for case, original, image in zip(cases, originals, images, strict=True):
        reading = read(image)
        shown = [(found.colour, found.shape) for found in reading.found]
        new, gone = case.new in shown, case.old not in shown
        moved = np.abs(image - original)[case.background()].mean()
        rows.append((new, gone, new and gone, shown == [case.new] and reading.clear, moved))
    return Score(*np.mean(rows, axis=0, dtype=float).tolist())


class Editor:
    """Applies methods to pictures; an inversion is made once for all methods that want the same."""

    def __init__(self, shapes: ShapesModel, cases: Sequence[Case], steps: int):
        self._shapes, self._steps = shapes, steps
        self.originals = [draw(case.picture) for case in cases]
        self._latent = shapes.latent(self.originals)
        self._prompts = {
            "caption": shapes.encode([case.caption(case.old) for case in cases]),
            "new caption": shapes.encode([case.caption(case.new) for case in cases]),
            "": shapes.encode([""] * len(cases)),
        }
        self._things = [shapes.encode([" ".join(thing) for thing in things]) for things in
                        ([case.new for case in cases], [case.old for case in cases])]  # fmt: skip
        self._mask = torch.from_numpy(np.stack([~case.background() for case in cases])).float()
        self._inverted: dict[int, tuple] = {}

    def apply(self, method: Method) -> np.ndarray:
        """The edited pictures [b h w 3]."""
        shapes, model = self._shapes, self._shapes.model
        positive, negative = self._prompts[method.positive], self._prompts[method.negative]
        settings = dict(steps=self._steps, cfg=method.cfg, sampler_name="euler", scheduler="normal")
        if method.denoise is not None:
            (latent,) = shapes.node(
                "KSampler", model=model, seed=0, positive=positive, negative=negative, latent_image=self._latent,
                denoise=method.denoise, **settings,
            )  # fmt: skip
            return shapes.decode(latent)
        inverted = self._invert(method.fixed_point_iterations)
        if method.edit is not None:
            model = self._composed(method.edit, self._mask if method.masked else None)
        if method.noise_masked:
            latent = self._latent | {"noise_mask": self._mask}
            return shapes.decode(shapes.sample_custom(model, inverted[1], latent, positive, negative, **settings))
        return shapes.decode(shapes.sample_inverted(model, inverted, self._latent, positive, negative, **settings))

    def _invert(self, fixed_point_iterations: int) -> tuple:
        if fixed_point_iterations not in self._inverted:
            self._inverted[fixed_point_iterations] = self._shapes.invert(
                self._prompts["caption"], self._latent, self._steps, fixed_point_iterations=fixed_point_iterations
            )
        return self._inverted[fixed_point_iterations]

    def _composed(self, edit: Edit, mask: Tensor | None):
        node = self._shapes.node
        edits = {}
        for i, direction in enumerate(("add", "remove")):
            (edits[f"edit{i}"],) = node(
                "EBCAEditContext", conditioning=self._things[i], direction=direction, alpha=edit.alphas[i],
                start_percent=edit.start, end_percent=1.0, gamma_attn=edit.gammas[i], gamma_norm=edit.gammas[i],
                gamma_start_percent=edit.start, gamma_end_percent=1.0, mask=mask,
            )  # fmt: skip
        return node("EBCACompose", model=self._shapes.model, edits=edits)[0]


def evaluations(method: Method, steps: int) -> int:
    """How often the model sees a picture, the two prompts of a guided call counted apart."""
    iterations = method.fixed_point_iterations
    inversion = 0 if iterations is None else steps if iterations == 0 else 1 + steps * iterations
    return inversion + (1 if method.cfg == 1 else 2) * steps


def main(arguments: Sequence[str]) -> int:
    parser = bench_parser(__doc__)
    parser.add_argument("--tune", action="store_true", help="try many settings, on other pictures")
    parser.add_argument("--method", nargs="+", default=[""], help="only methods with such text in their name")
    parser.add_argument("--images", type=int, help="pictures a method, 200 by default, 40 with --tune")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps")
    parser.add_argument("--sheet", type=Path, help="file for a picture of the first ten cases with every method")
    options = parser.parse_args(arguments)
    boot(options)
    tried = candidates(STARTS[options.model]) if options.tune else methods(TUNED[options.model])
    chosen = [method for method in tried if any(text in method.name for text in options.method)]
    count, seed = (40, TUNING_SEED) if options.tune else (200, SCORED_SEED)
    _run(ShapesModel(options.model), chosen, cases(options.images or count, seed), options.steps, options.sheet)
    return 0


def _run(shapes: ShapesModel, methods: list[Method], cases: list[Case], steps: int, picture: Path | None) -> None:
    print(f"{len(cases)} pictures a method, {steps} steps, euler, normal\n")
    print("| method | new there | old gone | both | both, and nothing else | background change | calls | cfg |")
    print("|---|---|---|---|---|---|---|---|")
    editors = [Editor(shapes, cases[start : start + BATCH], steps) for start in range(0, len(cases), BATCH)]
    originals = [original for editor in editors for original in editor.originals]
    shown = {"drawn": originals}
    for method in methods:
        images = np.concatenate([editor.apply(method) for editor in editors])
        found = score(cases, originals, images)
        shares = (found.new, found.gone, found.both, found.nothing_else)
        print(
            f"| {method.name} | " + " | ".join(f"{100 * share:.1f} %" for share in shares)
            + f" | {found.background:.4f} | {evaluations(method, steps)} | {method.cfg:g} |",
            flush=True,
        )  # fmt: skip
        shown[method.name] = images
    if picture:
        picture.parent.mkdir(parents=True, exist_ok=True)
        sheet(shown).save(picture)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
