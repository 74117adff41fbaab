"""Edits of pictures that were not generated, counted on a small model, beside the ways without EBCA.

    python run.py bench editing                    200 pictures a method: the table of docs/editing.md
    python run.py bench editing --tune             what the settings below were chosen by, on other pictures
    python run.py bench editing --model things     the paper's edits, of pictures in a style that no model has seen:
                                                   500 a method, and 80 of what masks and other details change

Every picture is drawn. In the shapes world it shows one object on a plain ground, and the caption names all three; the
edit adds an object of another colour and any shape, and removes the old one. Edits of the things world: edits.py. The
scorer reads the result. Results are kept in research/editing.jsonl, a line for each method and edit, by their exact
settings: what is there is not sampled again, so the command can be stopped and started at any time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignment.compare import framed
from alignment.report import document_of, write_between
from alignment.results import Results
from authors_edits import Edit
from bootstrap import mean_of
from edits import OBJECT, PAPER, Case, EditKind
from small_model import REPO, SmallModel, bench_parser, boot, in_precision, sheet
from worlds import MODELS

TUNING_SEED, SCORED_SEED = 1, 2
TUNING_IMAGES = 40
STEPS = 25
BATCH = 40
SHOWN = 10  # pictures of a sheet's row
RESULTS = Path(__file__).with_suffix(".jsonl")


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


CAPTION = dict(positive="caption", negative="caption")
EXACT, SWAPPED = "EBCA, tuned, fixed-point inversion", "prompt swapped, fixed-point inversion"
CAPTIONED = f"{EXACT}, the caption as negative prompt"
NOISE_MASK, BOTH_MASKS = "noise mask", "both masks"


@dataclass(frozen=True)
class Tuned:
    """For one trained model and kind of edit, the candidates of --tune with most edits right and, among those, the
    least background change.

    edits: EBCA's, by the fixed-point iterations of the inversion; without 0 iterations, of EBCA's edits only the
    authors' is made with the paper's inversion. denoise: of img2img. negative: EBCA's negative prompt, as in Method.
    """

    edits: Mapping[int, Edit]
    denoise: float
    negative: str = "caption"


@dataclass(frozen=True)
class Study:
    """What is edited with one trained model.

    tuned: for each of the kinds. alphas, starts, cfgs, negatives: of EBCA in --tune. images: pictures a method;
    varied_images: of the rows of is_varied, where these have fewer and a table of their own. document: in docs/, for
    the tables; None where they are only printed. tuning_precision: of inversion and sampling in --tune, as in
    small_model.in_precision; float32 elsewhere.
    """

    kinds: Mapping[str, EditKind]
    tuned: Mapping[str, Tuned]
    starts: Sequence[float]
    alphas: Sequence[tuple[float, float]] = ((1.2, 1.1), (1.6, 1.5), (2.2, 2.1))
    cfgs: Sequence[float] = (1.0, 1.25, 3.0)
    negatives: Sequence[str] = ("caption",)
    images: int = 200
    varied_images: int | None = None
    document: str | None = None
    tuning_precision: torch.dtype = torch.float32


# For the transformer only EBCA was tuned, with one fixed-point iteration at cfg 1.25; the denoise is the U-Net's. In
# joint attention nothing was tuned: strengths are the transformer's, and there is no update. On the things model EBCA
# was tuned with one fixed-point iteration.
_LATE, _LATER = (Edit((2.2, 2.1), start, (5e-4, 5e-4)) for start in (0.3, 0.4))
_EARLY, _JOINT = (Edit((1.6, 1.5), 0.1, gammas) for gammas in ((5e-4, 5e-4), (0.0, 0.0)))
_FROM_10, _FROM_30 = (Edit((0.75, 0.65), start, (5e-4, 5e-4)) for start in (0.1, 0.3))
_STRONG_FROM_30 = Edit((1.2, 1.1), 0.3, (5e-4, 5e-4))
_CFG = MODELS["things"].world.cfg
STUDIES = {
    "unet": Study(OBJECT, {"object": Tuned({0: _LATER, 1: _LATE}, 0.75)}, (0.3, 0.4)),
    "transformer": Study(OBJECT, {"object": Tuned({0: _EARLY, 1: _EARLY}, 0.75)}, (0.1, 0.2, 0.3)),
    "joint": Study(OBJECT, {"object": Tuned({0: _JOINT, 1: _JOINT}, 0.75)}, (0.1, 0.2, 0.3)),
    "things": Study(
        PAPER,
        {
            "cat_to_dog": Tuned({1: _FROM_30}, 0.6, negative=""),
            "cat_with_glasses": Tuned({1: _FROM_10}, 0.65, negative=""),
            "horse_to_zebra": Tuned({1: _FROM_10}, 0.8, negative=""),
            "animal_to_goat": Tuned({1: _STRONG_FROM_30}, 0.75, negative=""),
        },
        starts=(0.1, 0.3, 0.5), cfgs=(_CFG,), negatives=("caption", ""),
        alphas=((0.4, 0.3), (0.75, 0.65), (1.2, 1.1), (0.4, 0.0), (0.75, 0.0), (1.2, 0.0)),
        images=500, varied_images=80, document="things.md", tuning_precision=torch.bfloat16,
    ),
}  # fmt: skip


def methods(kind: EditKind, tuned: Tuned, cfg: float) -> list[Method]:
    """The rows of the table."""
    paper, fixed_point = tuned.edits.get(0), tuned.edits[1]
    denoise = round(tuned.denoise - 0.05, 2)
    authors, untuned = kind.authors
    prompts = CAPTION | {"negative": tuned.negative}
    img2img = Method(_img2img(tuned.denoise), cfg, denoise=tuned.denoise)
    swapped, exact = Method(SWAPPED, cfg, 1), Method(EXACT, cfg, 1, edit=fixed_point, **prompts)
    rows = [
        paper and Method("no edit, inversion as in the paper", cfg, 0, **CAPTION),
        Method("no edit, fixed-point inversion", cfg, 1, **CAPTION),
        Method(_img2img(denoise), cfg, denoise=denoise),
        img2img,
        paper and Method("prompt swapped, inversion as in the paper", cfg, 0),
        swapped,
        Method(f"EBCA, the authors' {authors}, inversion as in the paper", cfg, 0, edit=untuned, **CAPTION),
        paper and Method("EBCA, tuned, inversion as in the paper", cfg, 0, edit=paper, **prompts),
        exact,
    ]
    captioned = [replace(exact, name=CAPTIONED, negative="caption")] if tuned.negative != "caption" else []
    rows += [*captioned, replace(exact, name=f"{EXACT}, mask on the edits", masked=True)]
    for row in (img2img, swapped, exact, *captioned):
        masks = BOTH_MASKS if row.edit else NOISE_MASK
        rows.append(replace(row, name=f"{row.name}, {masks}", masked=row.edit is not None, noise_masked=True))
    return [row for row in rows if row]


def is_varied(method: Method) -> bool:
    """Whether a row shows what masks, the caption as negative prompt or the inversion alone change."""
    return method.noise_masked or method.masked or method.name == CAPTIONED or method.name.startswith("no edit")


def _img2img(denoise: float) -> str:
    return f"img2img with the new prompt, denoise {denoise}"


def candidates(study: Study, cfg: float) -> Iterator[Method]:
    """What --tune tries for each kind of edit: the ways without EBCA, and EBCA."""
    for strength, denoise in product(dict.fromkeys((cfg, 3.0, 6.0)), (0.6, 0.65, 0.7, 0.75, 0.8)):
        yield Method(f"img2img {denoise}, cfg {strength:g}", strength, denoise=denoise)
    for strength, inversion, negative in product(dict.fromkeys((cfg, 3.0)), (0, 1), ("", "caption")):
        said = f"swap, cfg {strength:g}, inversion {inversion}, negative '{negative}'"
        yield Method(said, strength, inversion, negative=negative)
    for negative, strength, inversion, alphas, start in product(
        study.negatives, study.cfgs, (0, 1), study.alphas, study.starts
    ):
        edit = Edit(alphas, start, (5e-4, 5e-4))
        said = f"EBCA, cfg {strength:g}, inversion {inversion}, {alphas} from {start}, negative '{negative}'"
        yield Method(said, strength, inversion, edit=edit, **CAPTION | {"negative": negative})
    negative, alphas = study.negatives[-1], study.alphas[1]
    for gamma in (0.0, 2e-3):
        edit = Edit(alphas, 0.3, (gamma, gamma))
        said = f"EBCA, inversion 1, {alphas} from 0.3, negative '{negative}', gammas {gamma}"
        yield Method(said, cfg, 1, edit=edit, **CAPTION | {"negative": negative})


def score(cases: Sequence[Case], images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The marks [n m] of edited images [h w 3], and the background change of each [n]: the mean absolute difference
    outside the old object's box, of values 0..1."""
    marks = [case.marks(image) for case, image in zip(cases, images, strict=True)]
    moved = [np.abs(image - case.image)[case.outside].mean() for case, image in zip(cases, images)]
    return np.array(marks, float), np.array(moved, float)


class Editor:
    """Applies methods to pictures; an inversion is made once for all methods that want the same."""

    def __init__(self, small: SmallModel, cases: Sequence[Case], steps: int, precision: torch.dtype):
        self._small, self._steps, self._precision = small, steps, precision
        self._latent = small.latent([case.image for case in cases])
        self._prompts = {
            "caption": small.encode([case.before for case in cases]),
            "new caption": small.encode([case.after for case in cases]),
            "": small.encode([""] * len(cases)),
        }
        self._things = [small.encode(texts) for texts in
                        ([case.added for case in cases], [case.removed for case in cases])]  # fmt: skip
        self._mask = torch.from_numpy(np.stack([~case.outside for case in cases])).float()
        self._inverted: dict[int, tuple] = {}

    def apply(self, method: Method) -> np.ndarray:
        """The edited pictures [b h w 3]. The VAE is as precise as for the original, from which they are measured."""
        with in_precision(self._precision):
            edited = self._edited(method)
        return self._small.decode(edited)

    def _edited(self, method: Method) -> dict[str, Tensor]:
        """The LATENT of the edited pictures."""
        small, model = self._small, self._small.model
        positive, negative = self._prompts[method.positive], self._prompts[method.negative]
        settings = dict(steps=self._steps, cfg=method.cfg, sampler_name="euler", scheduler="normal")
        latent = self._latent | {"noise_mask": self._mask} if method.noise_masked else self._latent
        if method.denoise is not None:
            return small.node(
                "KSampler", model=model, seed=0, positive=positive, negative=negative, latent_image=latent,
                denoise=method.denoise, **settings,
            )[0]  # fmt: skip
        inverted = self._invert(method.fixed_point_iterations)
        if method.edit is not None:
            model = self._composed(method.edit, self._mask if method.masked else None)
        if method.noise_masked:
            return small.sample_custom(model, inverted[1], latent, positive, negative, **settings)
        return small.sample_inverted(model, inverted, self._latent, positive, negative, **settings)

    def _invert(self, fixed_point_iterations: int) -> tuple:
        if fixed_point_iterations not in self._inverted:
            self._inverted[fixed_point_iterations] = self._small.invert(
                self._prompts["caption"], self._latent, self._steps, fixed_point_iterations=fixed_point_iterations
            )
        return self._inverted[fixed_point_iterations]

    def _composed(self, edit: Edit, mask: Tensor | None):
        node = self._small.node
        edits, gamma_start = {}, edit.start if edit.gamma_start is None else edit.gamma_start
        for i, direction in enumerate(("add", "remove")):
            if edit.alphas[i] == 0:
                continue
            (edits[f"edit{i}"],) = node(
                "EBCAEditContext", conditioning=self._things[i], direction=direction, alpha=edit.alphas[i],
                start_percent=edit.start, end_percent=1.0, gamma_attn=edit.gammas[i], gamma_norm=edit.gammas[i],
                gamma_start_percent=gamma_start, gamma_end_percent=1.0, mask=mask,
            )  # fmt: skip
        return node("EBCACompose", model=self._small.model, edits=edits)[0]


def evaluations(method: Method, steps: int) -> int:
    """How often the model sees a picture, the two prompts of a guided call counted apart."""
    iterations = method.fixed_point_iterations
    inversion = 0 if iterations is None else steps if iterations == 0 else 1 + steps * iterations
    return inversion + (1 if method.cfg == 1 else 2) * steps


@dataclass(frozen=True)
class Bench:
    """One kind of edit with one trained model: its cases, and the results that there are."""

    model: str
    name: str
    images: int
    seed: int
    steps: int
    results: Results
    precision: torch.dtype = torch.float32

    @property
    def kind(self) -> EditKind:
        return STUDIES[self.model].kinds[self.name]

    def editor(self, small: SmallModel, cases: Sequence[Case]) -> Editor:
        return Editor(small, cases, self.steps, self.precision)

    def cases(self) -> list[Case]:
        return self.kind.cases(self.images, self.seed)

    def key(self, method: Method) -> str:
        """Results in float32 do not name their precision."""
        settings = {name: value for name, value in asdict(method).items() if name != "name"}
        of = {name: getattr(self, name) for name in ("model", "name", "images", "seed", "steps")}
        named = {} if self.precision == torch.float32 else {"precision": self._precision_name}
        return json.dumps(of | named | {"method": settings}, sort_keys=True)

    def fill(self, small: SmallModel, tried: Sequence[Method]) -> None:
        """Sample what is missing."""
        missing = [method for method in tried if self.results.get(self.key(method)) is None]
        cases = self.cases() if missing else []
        editors = [self.editor(small, cases[at : at + BATCH]) for at in range(0, len(cases), BATCH)]
        for method in missing:
            marks, moved = score(cases, np.concatenate([editor.apply(method) for editor in editors]))
            kept = ["".join("-" if np.isnan(mark) else str(int(mark)) for mark in column) for column in marks.T]
            self.results.add(self.key(method), marks=kept, moved=[round(float(value), 5) for value in moved])
            print(self.row(method), flush=True)

    def marks(self, method: Method) -> list[np.ndarray] | None:
        """Of each picture: the marks, UNASKED where they do not apply, and the background change."""
        found = self.results.get(self.key(method))
        if found is None:
            return None
        columns = [[np.nan if mark == "-" else float(mark) for mark in column] for column in found["marks"]]
        return [np.array(column) for column in (*columns, found["moved"])]

    def row(self, method: Method) -> str:
        *marks, moved = self.marks(method)
        cells = [_percent(mark) for mark in marks]
        calls = evaluations(method, self.steps)
        return f"| {method.name} | {' | '.join(cells)} | {moved.mean():.4f} | {calls} | {method.cfg:g} |"

    def conditions(self) -> str:
        return f"{self.images} pictures a method, {self.steps} steps, euler, normal, {self._precision_name}"

    @property
    def _precision_name(self) -> str:
        return str(self.precision).removeprefix("torch.")

    def table(self, tried: Sequence[Method]) -> str:
        """A line for each method that has been sampled, then EBCA compared with others that have the same masks."""
        titles = ["method", *self.kind.marks, "background change", "calls", "cfg"]
        lines = ["| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|"]
        there = {method.name: method for method in tried if self.marks(method)}
        lines += [self.row(method) for method in there.values()]
        others = [method for name, method in there.items() if name.startswith(("img2img", SWAPPED, CAPTIONED))]
        for name in (EXACT, f"{EXACT}, {BOTH_MASKS}", f"{CAPTIONED}, {BOTH_MASKS}"):
            if ours := there.get(name):
                rivals = [method for method in others if method.noise_masked == ours.noise_masked and method != ours]
                lines += [self._against(ours, method) for method in rivals]
        return "\n".join(lines)

    def _against(self, ours: Method, other: Method) -> str:
        """Differences on the same pictures."""
        *marks, moved = [a - b for a, b in zip(self.marks(ours), self.marks(other), strict=True)]
        cells = [f"{name} {_percent(mark, sign='+')}" for name, mark in zip(self.kind.marks, marks)]
        change = f"background change {mean_of([moved]).text('+.4f')}"
        return f"\n{ours.name} against {other.name}: {', '.join([*cells, change])}."


def bench_of(
    model: str, name: str, results: Results, is_tuning: bool, images: int | None = None, steps: int = STEPS
) -> tuple[Bench, list[Method]]:
    """What is scored of a kind of edit, or what --tune tries, and the methods. images: by default the study's."""
    study, cfg = STUDIES[model], MODELS[model].world.cfg
    if is_tuning:
        tuning = Bench(model, name, images or TUNING_IMAGES, TUNING_SEED, steps, results, study.tuning_precision)
        return tuning, list(candidates(study, cfg))
    scored = Bench(model, name, images or study.images, SCORED_SEED, steps, results)
    return scored, methods(study.kinds[name], study.tuned[name], cfg)


def tables_of(bench: Bench, tried: Sequence[Method]) -> list[tuple[Bench, list[Method]]]:
    """The tables, each with its rows: those of is_varied stand in a second one, if the study has fewer images of them,
    beside the edit that they vary."""
    study = STUDIES[bench.model]
    if study.varied_images is None or bench.images != study.images:
        return [(bench, list(tried))]
    first = [method for method in tried if not is_varied(method)]
    second = [method for method in tried if is_varied(method) or method.name == EXACT]
    return [(bench, first), (replace(bench, images=study.varied_images), second)]


def _percent(values: np.ndarray, sign: str = "") -> str:
    """The mean of what applies, with its interval; a dash where nothing does."""
    values = values[~np.isnan(values)]
    if not len(values):
        return "-"
    return mean_of([values]).text(f"{sign}.1f", 100, " %")


def picture(small: SmallModel, bench: Bench, tried: Sequence[Method], path: Path) -> None:
    """The first cases with every method, framed by their last mark."""
    cases = bench.cases()[:SHOWN]
    editor = bench.editor(small, cases)
    shown = {"drawn": [framed(case.image, bool(case.marks(case.image)[-1])) for case in cases]}
    for method in tried:
        shown[method.name] = [framed(image, bool(case.marks(image)[-1]))
                              for case, image in zip(cases, editor.apply(method))]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(shown, heads=[case.after for case in cases]).save(path)


def parser() -> argparse.ArgumentParser:
    made = bench_parser(__doc__, MODELS)
    made.add_argument("--tune", action="store_true", help="try many settings, on other pictures")
    made.add_argument("--report", action="store_true", help="sample nothing")
    made.add_argument("--edit", nargs="+", metavar="EDIT", help=f"only these: with things, of {', '.join(PAPER)}")
    made.add_argument("--method", nargs="+", default=[""], help="only methods with such text in their name")
    made.add_argument(
        "--images", type=int, help=f"pictures of every method: 200, of things 500 and 80, with --tune {TUNING_IMAGES}"
    )
    made.add_argument("--steps", type=int, help=f"sampling steps, by default {STEPS}")
    made.add_argument("--results", type=Path, help=f"file of the results (default: {RESULTS.name})")
    made.add_argument(
        "--document", type=Path,
        help="file that gets the tables (default: with things docs/things.md, without --images, --steps, --results and "
        "--checkpoint)",
    )  # fmt: skip
    made.add_argument("--sheet", type=Path, help="file for a picture of the first ten cases with every method")
    return made


def main(arguments: Sequence[str]) -> int:
    made = parser()
    options = made.parse_args(arguments)
    study = STUDIES[options.model]
    names = options.edit or list(study.kinds)
    if unknown := set(names) - set(study.kinds):
        made.error(f"there is no edit {', '.join(sorted(unknown))}: expected some of {', '.join(study.kinds)}")
    kept = study.document and REPO / "docs" / study.document
    document = document_of(options, kept, "images", "steps", "results", "checkpoint")
    results, small = Results(options.results or RESULTS), None
    if not options.report:
        boot(options)
        small = SmallModel(options.model, options.checkpoint)
    for name in names:
        bench, tried = bench_of(options.model, name, results, options.tune, options.images, options.steps or STEPS)
        tables, chosen = [], [method for method in tried if any(text in method.name for text in options.method)]
        for part, rows in tables_of(bench, tried):
            if small:
                part.fill(small, [method for method in rows if method in chosen])
            tables.append(f"{part.conditions()}\n\n{part.table(rows)}")
        text = "\n\n".join(tables)
        print(f"\n{name}: {text}\n")
        if document:
            write_between(document, f"{'candidates of ' if options.tune else ''}edit {name}", text)
        if small and options.sheet:
            path = options.sheet
            picture(small, bench, chosen, path if len(names) == 1 else path.with_stem(f"{path.stem}_{name}"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
