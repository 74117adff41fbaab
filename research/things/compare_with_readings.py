"""The scorer beside other readings of four hundred generated pictures; of the last hundred, docs/things_scorer.png.

    .host/venv/bin/python research/things/compare_with_readings.py --comfyui .host/ComfyUI-0.30.0

The readers are a vision-language model, not people. They saw pictures and captions, and not what the scorer says, and
said of each picture whether all that the caption asks for is there and nothing else: of the first two hundreds, in
outlines that a person recognises; of the others, whether a person who knows the kinds of things would name what is
there as the caption does. The first two hundreds guided changes of the scorer, the others did not. The last was read
three times, each time without what the others said; what most of them said counts.
"""
from __future__ import annotations

import argparse
import hashlib
import sys
import textwrap
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.append(str(Path(__file__).resolve().parents[1]))

import comfy_host
import plain_model
from worlds import MODELS, THINGS

SETS = ("one thing", "animal-animal", "animal-object", "object-object")
COUNT = 25  # pictures of each set in a hundred
#: The checkpoint whose pictures they are.
SEEN = "7bdd581ddf25"
#: Of each hundred, by the number of its first image of each set: the pictures of which a reader said no, counted over
#: the sets, for each reader.
NOT_RIGHT: dict[int, Sequence[set[int]]] = {
    100: [{8, 25, 26, 32, 33, 35, 38, 53, 58, 64, 71, 74, 81, 82, 84, 85, 86, 87, 89, 90, 91, 92, 93, 95}],
    125: [{0, 6, 15, 33, 34, 36, 38, 39, 40, 45, 49, 51, 52, 53, 55, 56, 60, 64, 69, 72, 75, 82, 84, 85, 86, 90, 92, 96,
           97, 98, 99}],
    150: [{15, 43, 49, 50, 51, 56, 59, 75, 76, 79, 87, 92, 96, 97}],
    175: [{2, 26, 28, 34, 35, 37, 38, 40, 43, 48, 53, 68, 73, 75, 76, 77, 81, 83, 84, 85, 86, 89, 91, 96},
          {2, 7, 26, 28, 29, 31, 34, 35, 37, 38, 40, 43, 48, 53, 60, 68, 73, 75, 76, 77, 81, 83, 84, 85, 86, 89, 91, 93,
           96, 98},
          {26, 28, 31, 34, 35, 37, 38, 40, 43, 48, 53, 60, 68, 75, 76, 77, 81, 83, 84, 85, 86, 89, 91, 96}],
}  # fmt: skip
SHEET = plain_model.DEMO.parent / "docs" / "things_scorer.png"
TILE, TEXT = 128, 56
GREEN, RED = "#1a7f37", "#cf222e"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", help="folder of ComfyUI (default: COMFYUI_PATH)")
    args = parser.parse_args(argv)
    comfy_host.start(args.comfyui)
    torch.set_num_threads(1)
    checkpoint = plain_model.DEMO / MODELS["things"].checkpoint
    if hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12] != SEEN:
        raise SystemExit("What was read are pictures of another model: read those of this one, and set NOT_RIGHT.")
    sampler = plain_model.Sampler("things", checkpoint)
    *_, last = [compare(sampler, first, not_right) for first, not_right in NOT_RIGHT.items()]
    sheet(*last).save(SHEET, optimize=True)


def compare(
    sampler: plain_model.Sampler, first: int, not_right: Sequence[set[int]]
) -> tuple[list, list, list, list[bool]]:
    """Prints how often scorer and readings agree on a hundred; its scenes, pictures, verdicts, and what most readings
    say: whether all is right. not_right: of an odd number of readings."""
    scenes, pictures = [], []
    for name in SETS:
        some, seeds = THINGS.scenes(name, first + COUNT)[first:], range(first, first + COUNT)
        with torch.autocast("cpu", torch.bfloat16):  # as the alignment bench samples
            pictures += [*sampler.images([s.caption() for s in some], [*seeds], cfg=THINGS.cfg, **THINGS.sampler)]
        scenes += some
    verdicts = [THINGS.verdict(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    by_scorer = np.array([verdict.complete for verdict in verdicts])
    by_reader = np.array([[number not in wrong for number in range(len(pictures))] for wrong in not_right])
    by_most = by_reader.mean(0) > 0.5
    agree = by_scorer == by_most
    print(f"images {first} to {first + COUNT - 1} of each set: scorer and readings agree in {agree.sum()} of "
          f"{len(pictures)}; in {(by_most & ~by_scorer).sum()} of the others the scorer is stricter")
    if len(by_reader) > 1:
        alike = [str((one == other).sum()) for one, other in combinations(by_reader, 2)]
        with_scorer = [str((one == by_scorer).sum()) for one in by_reader]
        print(f"  two readings agree in {', '.join(alike)}; the scorer with each in {', '.join(with_scorer)}")
    for start, name in enumerate(SETS):
        part = slice(start * COUNT, (start + 1) * COUNT)
        print(f"  {name}: {by_most[part].sum()} of {COUNT} right as read, {by_scorer[part].sum()} by the scorer; they "
              f"agree in {agree[part].sum()}")
    return scenes, pictures, verdicts, by_most.tolist()


def sheet(scenes: list, pictures: list[np.ndarray], verdicts: list, read_as: list[bool]) -> Image.Image:
    """The pictures with their captions, what readers and scorer said; red where they differ."""
    columns = 10
    page = Image.new("RGB", (columns * (TILE + 6), -(-len(pictures) // columns) * (TILE + TEXT)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(9)
    for number, (scene, picture, verdict, right) in enumerate(zip(scenes, pictures, verdicts, read_as, strict=True)):
        left, top = number % columns * (TILE + 6), number // columns * (TILE + TEXT)
        page.paste(Image.fromarray((picture * 255).round().astype(np.uint8)), (left, top))
        said = f"read as {'right' if right else 'not right'}\nscorer: {verdict.label}"
        pen.text((left, top + TILE + 2), textwrap.fill(scene.caption(), 24), "black", font)
        pen.text((left, top + TILE + 27), said, GREEN if verdict.complete == right else RED, font)
    return page


if __name__ == "__main__":
    main()
