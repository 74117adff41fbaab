"""Pictures with and without EBCA, by a real ComfyUI server, on two small models. `python run.py demo` calls this.

    python run.py demo                  seed 0
    python run.py demo --count 6        seeds 0 to 5, all of them: docs/six_seeds.png

Two strips, one above the other, with a column for each seed: EBCA Concepts on prompts with three objects on the shapes
model, and an edit by EBCA Compose on the things model. The model's scorer reads every picture and marks it with a tick
or a cross. Neither prompts nor seeds are selected. The exit code is 1 if fewer than half of the pictures show the edit.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

REPO = Path(__file__).absolute().parents[1]
if __name__ == "__main__":
    sys.path += [str(REPO), str(REPO / "research")]  # for devtools and worlds, which whoever imports this file has

from devtools import twins  # noqa: E402
from devtools.server import Server  # noqa: E402
from devtools.workflows import Prompt  # noqa: E402
from shapes.captions import scenes  # noqa: E402
from shapes.grammar import Scene, parse  # noqa: E402
from things.grammar import wanted_of  # noqa: E402
from worlds import MODELS, Trained  # noqa: E402

SHAPES, THINGS = MODELS["unet"], MODELS["things"]
SIDE, GAP, LINE = 128, 16, 20  # of a strip, in pixels: a picture, the space between two, a line of text
GREEN, RED = "#1a7f37", "#cf222e"
OLD, NEW, START = "a cat", "a dog", 0.15  # of the edit: what it removes and adds, and where both begin


def caption(seed: int) -> str:
    """The prompt of EBCA Concepts: image number `seed` of the three-object set that docs/alignment.md counts."""
    return scenes("three objects", seed + 1)[seed].caption()


def concepts(seed: int) -> list[str]:
    """The objects of that prompt."""
    return [Scene((thing,)).caption() for thing in parse(caption(seed)).objects]


def concepts_graph(seed: int) -> Prompt:
    """A prompt without EBCA and with EBCA Concepts. Prompt, noise, sampler and cfg are those of docs/alignment.md."""
    # "a blue cross" is not found in a prompt, because "a cross" can be a mixture of two things: hence the box
    node = _node(
        "EBCAConcepts", model=MODEL, clip=CLIP, prompt=caption(seed), concepts="\n".join(concepts(seed)), strength=0.1,
        empty_prompt=0.2, end_percent=0.5,
    )  # fmt: skip
    return _graph(SHAPES, {"with": node}, ["with", 0], ["with", 1], caption(seed), seed, latent=512, cfg=3.0)


def edit_graph(seed: int) -> Prompt:
    """A cat, and the same with a dog added and the cat removed.

    Alphas and gammas are the authors' for cat -> dog. The model forms the layout early, hence the early start.
    """

    def edit(text: str, direction: str, alpha: float, gamma: float) -> dict[str, Any]:
        early = {"start_percent": START, "end_percent": 1.0, "gamma_start_percent": START, "gamma_end_percent": 1.0}
        gammas = {"gamma_attn": gamma, "gamma_norm": gamma}
        return _node("EBCAEditContext", clip=CLIP, text=text, direction=direction, alpha=alpha, **early, **gammas)

    nodes = {
        "add": edit(NEW, "add", 0.75, 0.0006),
        "remove": edit(OLD, "remove", 0.65, 0.0005),
        "with": _node("EBCACompose", model=MODEL, **{"edits.edit0": ["add", 0], "edits.edit1": ["remove", 0]}),
    }
    return _graph(THINGS, nodes, ["with", 0], ["positive", 0], OLD, seed, THINGS.world.side, THINGS.world.cfg)


def _graph(
    trained: Trained, nodes: Prompt, model: list, positive: list, prompt: str, seed: int, latent: int, cfg: float
) -> Prompt:
    """The prompt sampled without the nodes, and with the model and the positive conditioning that they give.

    The sampler is that with which the trained model is measured (research/worlds.py). latent: the empty latent's side.
    """
    sampler = trained.world.sampler
    graph = {
        "model": _node("CheckpointLoaderSimple", ckpt_name=trained.checkpoint),
        "positive": _node("CLIPTextEncode", clip=CLIP, text=prompt),
        "negative": _node("CLIPTextEncode", clip=CLIP, text=""),
        "latent": _node("EmptyLatentImage", width=latent, height=latent, batch_size=1),
        **nodes,
    }
    for name, *sources in (("plain", MODEL, ["positive", 0]), ("edited", model, positive)):
        graph[f"{name} latent"] = _node(
            "KSampler", model=sources[0], positive=sources[1], negative=["negative", 0], latent_image=["latent", 0],
            seed=seed, cfg=cfg, sampler_name=sampler["name"], scheduler=sampler["scheduler"], steps=sampler["steps"],
            denoise=1.0,
        )  # fmt: skip
        graph[f"{name} image"] = _node("VAEDecode", samples=[f"{name} latent", 0], vae=["model", 2])
        graph[name] = _node("SaveImage", images=[f"{name} image", 0], filename_prefix=f"ebca/demo_{name}")
    return graph


MODEL, CLIP = ["model", 0], ["model", 1]  # outputs of the checkpoint loader


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


@dataclass(frozen=True)
class Scenario:
    """Pictures without and with EBCA.

    model: which draws them; its world's scorer reads them. graph: the prompt for a seed. labels: of the two rows.
    wanted: what the two pictures of a seed are to show, as captions. things: what the prompt of a seed names. named: a
    thing that the scorer has found, in words.
    must_succeed: the demo fails if fewer than half of the pictures with EBCA show it.
    """

    model: Trained
    graph: Callable[[int], Prompt]
    labels: tuple[str, str]
    wanted: Callable[[int], tuple[str, str]]
    things: Callable[[int], Sequence[str]]
    named: Callable[[Any], str]
    must_succeed: bool


CONCEPTS = Scenario(
    model=SHAPES,
    graph=concepts_graph,
    labels=("without EBCA", "with EBCA Concepts"),
    wanted=lambda seed: (caption(seed), caption(seed)),
    things=concepts,
    named=lambda found: f"{found.colour} {found.shape}",
    must_succeed=False,
)
EDIT = Scenario(
    model=THINGS,
    graph=edit_graph,
    labels=("without EBCA", f"with EBCA Compose: add {NEW}, remove {OLD}"),
    wanted=lambda seed: (OLD, NEW),
    things=lambda seed: [OLD],
    named=lambda found: wanted_of(found).words(article=False),
    must_succeed=True,
)


@dataclass(frozen=True)
class Outcome:
    """The pictures of a scenario [b h w 3], 0..1, without and with EBCA; picture i has seed i."""

    scenario: Scenario
    pictures: tuple[np.ndarray, np.ndarray]

    def verdicts(self) -> tuple[list[Any], list[Any]]:
        """What the scorer finds in each picture."""
        verdict = self.scenario.model.world.verdict
        return tuple(
            [verdict(picture, self.scenario.wanted(seed)[row]) for seed, picture in enumerate(pictures)]
            for row, pictures in enumerate(self.pictures)
        )


def run(server: Server, scenario: Scenario, count: int) -> Outcome:
    """Run a scenario for seeds 0 to count - 1, one picture a run."""
    rows = ([], [])
    for seed in range(count):
        history = server.run(scenario.graph(seed), timeout=900)
        for row, node in zip(rows, ("plain", "edited"), strict=True):
            row.append(_decoded(server.images(history, node)[0]))
    return Outcome(scenario, tuple(map(np.stack, rows)))


def _decoded(file: bytes) -> np.ndarray:
    """A picture file as [h w 3], 0..1."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), np.float32) / 255


def described(scenario: Scenario, reading: Any) -> str:
    """What the scorer reads, in words."""
    names = sorted(map(scenario.named, reading.found))
    names += ["a mixture of two"] * bool(getattr(reading, "mixtures", 0)) + ["something unclear"] * bool(reading.blots)
    return ", ".join(names) or "nothing"


def strip(outcome: Outcome) -> Image.Image:
    """A column for each seed: its prompt, and a picture of each row with the scorer's tick or cross under it."""
    count = len(outcome.pictures[0])
    things = [outcome.scenario.things(seed) for seed in range(count)]
    top, row_height = LINE * (1 + len(things[0])) + GAP, SIDE + 3 * LINE
    width = max(GAP + count * (SIDE + GAP), 2 * GAP + 8 * max(map(len, outcome.scenario.labels)))
    image = Image.new("RGB", (width, top + 2 * row_height), "white")
    for seed in range(count):
        left = GAP + seed * (SIDE + GAP)
        _write(image, left, GAP // 2, f"seed {seed}", "dimgrey")
        for line, thing in enumerate(things[seed], 1):
            _write(image, left, GAP // 2 + line * LINE, thing.split(" ", 1)[1], "black")
    for row, (label, pictures, verdicts) in enumerate(
        zip(outcome.scenario.labels, outcome.pictures, outcome.verdicts(), strict=True)
    ):
        _write(image, GAP, top + row * row_height - 2, label, "black", bold=True)
        for seed, (picture, judged) in enumerate(zip(pictures, verdicts, strict=True)):
            _draw_picture(image, GAP + seed * (SIDE + GAP), top + row * row_height + LINE, picture, judged)
    return image


def sheet(outcomes: Sequence[Outcome]) -> Image.Image:
    """The strips, one above the other."""
    strips = [strip(outcome) for outcome in outcomes]
    image = Image.new("RGB", (max(one.width for one in strips), sum(one.height for one in strips)), "white")
    for number, one in enumerate(strips):
        image.paste(one, (0, sum(before.height for before in strips[:number])))
    return image


def _draw_picture(image: Image.Image, left: int, top: int, picture: np.ndarray, judged: Any) -> None:
    whole = Image.fromarray((picture * 255).round().astype(np.uint8))
    image.paste(whole.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline="grey")
    x, y = left + 1, top + SIDE + 7
    tick, cross = [((0, 8), (5, 13), (15, 0))], [((0, 0), (12, 12)), ((0, 12), (12, 0))]
    for line in tick if judged.right else cross:
        draw.line([(x + dx, y + dy) for dx, dy in line], GREEN if judged.right else RED, 3)
    if not judged.right:
        _write(image, left + 20, top + SIDE + 4, judged.label, RED)


def _write(image: Image.Image, left: int, top: int, text: str, colour: str, bold: bool = False) -> None:
    font = ImageFont.load_default(15)
    ImageDraw.Draw(image).text((left, top), text, colour, font, stroke_width=0.5 if bold else 0, stroke_fill=colour)


def report(outcome: Outcome) -> bool:
    """Print what the scorer read; whether enough pictures with EBCA are as they must be."""
    scenario, rights = outcome.scenario, []
    for label, verdicts in zip(scenario.labels, outcome.verdicts(), strict=True):
        rights.append(sum(judged.right for judged in verdicts))
        print(f"\n{label}: {rights[-1]} of {len(verdicts)} right")
        for seed, judged in enumerate(verdicts):
            mark = "ok" if judged.right else f"x  {judged.label}"
            print(f"    seed {seed}   {described(scenario, judged.reading)}   {mark}")
    passed = not scenario.must_succeed or 2 * rights[1] >= len(outcome.pictures[1])
    if not passed:
        wanted = scenario.wanted(0)[1]
        print(f"FAILED: {wanted} and nothing else is in {rights[1]} of {len(outcome.pictures[1])} "
              "pictures with EBCA. Expected at least half.")  # fmt: skip
    return passed


def main(argv: list[str] | None = None) -> int:
    """Run the scenarios and write the strips; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder with ComfyUI's main.py")
    parser.add_argument("--out", type=Path, default=REPO / "output", help="folder for the strips")
    parser.add_argument("--count", type=int, default=1, help="how many seeds, from 0 on; all are drawn")
    parser.add_argument("--checkpoint", type=Path, default=twins.MODELS[THINGS.checkpoint], help="a things model")
    options = parser.parse_args(argv)
    if options.count < 1:
        parser.error(f"--count is {options.count}. Set it to 1 or more.")
    if not options.checkpoint.is_file():
        print(f"There is no things model at {options.checkpoint}. Train it (research/README.md).")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    print("Starting ComfyUI ...", flush=True)
    with twins.twin_server(options.comfyui, options.checkpoint) as server:
        print("Sampling ...", flush=True)
        outcomes = [run(server, scenario, options.count) for scenario in (CONCEPTS, EDIT)]
    passed = [report(outcome) for outcome in outcomes]
    picture = options.out / "before_after.png"
    sheet(outcomes).save(picture, optimize=True)
    print(f"\nThe picture: {picture}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
