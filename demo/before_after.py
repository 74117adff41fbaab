"""Pictures with and without EBCA, by a real ComfyUI server, on the shapes model. `python run.py demo` calls this.

Two files of `workflows/` run through the server's API as their twins (devtools/twins.py says what a twin is): several
concepts in one prompt, and an edit. The scorer reads every picture; if the edit is not there the exit code is 1.

The seeds are fixed and were chosen for the picture. --count says how it goes with others:

    python run.py demo --count 40        a batch of 40 pictures of each kind, counted
"""

from __future__ import annotations

import argparse
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

REPO = Path(__file__).absolute().parents[1]
if __name__ == "__main__":
    sys.path += [str(REPO), str(REPO / "research")]  # for devtools and shapes, which whoever imports this file has

from devtools import twins  # noqa: E402
from devtools.server import Server  # noqa: E402
from devtools.workflows import Prompt  # noqa: E402
from shapes.scorer import Reading, read, verdict  # noqa: E402

SIDE, MARGIN, COLUMN, ROW = 320, 20, 440, 420  # of the sheet, in pixels


@dataclass(frozen=True)
class Scenario:
    """The twin of a workflow file or of a variant; its prompts and strengths are in devtools/twins.py."""

    title: str
    label: str  # of the pictures with EBCA; the others have the prompt
    workflow: str
    seed: int
    wanted: str  # what the picture with EBCA is to show, a caption of the grammar
    must_succeed: bool  # whether the demo fails if it does not


SCENARIOS = (
    Scenario(
        title="Several concepts in one prompt",
        label="with EBCA Context Update",
        workflow="several concepts, as in the paper",
        seed=124,
        wanted="a purple square and a yellow star",
        must_succeed=False,
    ),
    Scenario(
        title="An edit while the picture is made",
        label="with EBCA: add blue circle, remove red square",
        workflow="EBCA 03 Add and remove (SD 1.5)",
        seed=3,
        wanted="a blue circle",
        must_succeed=True,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """The pictures of a scenario [b h w 3], 0..1, without and with EBCA."""

    scenario: Scenario
    prompt: str
    plain: np.ndarray
    edited: np.ndarray

    def kinds(self) -> dict[str, np.ndarray]:
        """The pictures by their labels."""
        return {f"without EBCA: {self.prompt}": self.plain, self.scenario.label: self.edited}


def run(server: Server, scenario: Scenario, count: int) -> Outcome:
    """Run a scenario's workflow file as its twin, for a batch of `count` pictures."""
    changes = {("PrimitiveInt", "value"): scenario.seed, ("EmptyLatentImage", "batch_size"): count}
    prompt = twins.twin_of(scenario.workflow, server.object_info(), changes)
    files = twins.shown(server, prompt, timeout=120 + 60 * count)
    plain, edited = (_decoded(files[title]) for title in ("Without EBCA", "With EBCA"))
    return Outcome(scenario, _prompt_text(prompt), plain, edited)


def _prompt_text(prompt: Prompt) -> str:
    """What the node with the title Prompt says."""
    inputs = next(node["inputs"] for node in prompt.values() if node["_meta"]["title"] == "Prompt")
    return inputs.get("text", inputs.get("value"))


def _decoded(files: list[bytes]) -> np.ndarray:
    """Picture files as [b h w 3], 0..1."""
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), np.float32) / 255 for file in files])


def described(reading: Reading) -> str:
    """What the scorer read, in words."""
    names = sorted(f"{found.colour} {found.shape}" for found in reading.found)
    names += ["something unclear"] if reading.blots else []
    return ", ".join(names) or "nothing"


def sheet(outcomes: list[Outcome]) -> Image.Image:
    """A row for each scenario: the first picture of each kind, enlarged, with what it is and what the scorer read."""
    image = Image.new("RGB", (MARGIN + 2 * COLUMN, MARGIN + ROW * len(outcomes)), "white")
    for index, outcome in enumerate(outcomes):
        _write(image, MARGIN, MARGIN + index * ROW, outcome.scenario.title, "black", 19)
        for column, (label, images) in enumerate(outcome.kinds().items()):
            _draw_picture(image, MARGIN + column * COLUMN, MARGIN + index * ROW + 30, images[0], label)
    return image


def _draw_picture(image: Image.Image, left: int, top: int, pixels: np.ndarray, label: str) -> None:
    picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
    image.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
    ImageDraw.Draw(image).rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline="grey")
    _write(image, left, top + SIDE + 6, label, "black", 16)
    _write(image, left, top + SIDE + 28, f"the scorer reads: {described(read(pixels))}", "dimgrey", 14)


def _write(image: Image.Image, left: int, top: int, text: str, colour: str, size: int) -> None:
    ImageDraw.Draw(image).text((left, top), text, colour, ImageFont.load_default(size))


def report(outcome: Outcome) -> bool:
    """Print what the scorer read; whether the first picture with EBCA is as it must be."""
    scenario = outcome.scenario
    print(f"\n{scenario.title}. Prompt: {outcome.prompt}. Wanted with EBCA: {scenario.wanted}.")
    for label, images in outcome.kinds().items():
        right = [verdict(image, scenario.wanted).right for image in images]
        print(f"  {label}: {described(read(images[0]))}")
        if len(images) > 1:
            print(f"    {sum(right)} of {len(right)} pictures show {scenario.wanted} and nothing else")
    passed = verdict(outcome.edited[0], scenario.wanted).right or not scenario.must_succeed
    if not passed:
        print(f"  FAILED: expected {scenario.wanted} and nothing else, saw {described(read(outcome.edited[0]))}.")
    return passed


def main(argv: list[str] | None = None) -> int:
    """Run the scenarios and write the sheet; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder with ComfyUI's main.py")
    parser.add_argument("--out", type=Path, default=REPO / "output", help="folder for the picture")
    parser.add_argument("--count", type=int, default=1, help="pictures of each kind; the sheet shows the first")
    parser.add_argument("--checkpoint", type=Path, default=REPO / "demo" / "shapes.safetensors", help="a shapes model")
    options = parser.parse_args(argv)
    if options.count < 1:
        parser.error(f"--count: expected 1 or more, but got {options.count}")
    if not options.checkpoint.is_file():
        print(f"Expected the shapes model at {options.checkpoint}, found no file. Train it: python research/train.py")
        return 1
    print("Starting ComfyUI ...", flush=True)
    with twins.shapes_server(options.comfyui, options.checkpoint) as server:
        print("Sampling ...", flush=True)
        outcomes = [run(server, scenario, options.count) for scenario in SCENARIOS]
    picture = options.out / "before_after.png"
    options.out.mkdir(parents=True, exist_ok=True)
    sheet(outcomes).save(picture)
    passed = [report(outcome) for outcome in outcomes]
    print(f"\nThe picture: {picture}")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
