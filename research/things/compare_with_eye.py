"""Three hundred pictures of the things model, read by scorer and eye; of the last hundred, docs/things_scorer.png.

    .host/venv/bin/python research/things/compare_with_eye.py --comfyui .host/ComfyUI-0.30.0

The eye saw pictures and captions, and not what the scorer says. It said of each picture whether all that the caption
asks for is there and nothing else, in outlines that a person recognises; of the last hundred, whether a person who
knows the kinds of things would name what is there as the caption does. The first two hundreds guided changes of the
scorer; the last did not.
"""
from __future__ import annotations

import argparse
import hashlib
import sys
import textwrap
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
#: Of each hundred, by the number of its first image of each set: the pictures of which the eye said no, counted over
#: the sets.
NOT_RIGHT = {
    100: {8, 25, 26, 32, 33, 35, 38, 53, 58, 64, 71, 74, 81, 82, 84, 85, 86, 87, 89, 90, 91, 92, 93, 95},
    125: {0, 6, 15, 33, 34, 36, 38, 39, 40, 45, 49, 51, 52, 53, 55, 56, 60, 64, 69, 72, 75, 82, 84, 85, 86, 90, 92, 96,
          97, 98, 99},
    150: {15, 43, 49, 50, 51, 56, 59, 75, 76, 79, 87, 92, 96, 97},
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
        raise SystemExit("The eye has seen pictures of another model: look at those of this one, and set NOT_RIGHT.")
    sampler = plain_model.Sampler("things", checkpoint)
    *_, last = [compare(sampler, first, not_right) for first, not_right in NOT_RIGHT.items()]
    sheet(*last).save(SHEET, optimize=True)


def compare(sampler: plain_model.Sampler, first: int, not_right: set[int]) -> tuple[list, list, list, list[bool]]:
    """Prints how often scorer and eye agree on a hundred; its scenes, pictures, verdicts, and whether right by eye."""
    scenes, pictures = [], []
    for name in SETS:
        some, seeds = THINGS.scenes(name, first + COUNT)[first:], range(first, first + COUNT)
        with torch.autocast("cpu", torch.bfloat16):  # as the alignment bench samples
            pictures += [*sampler.images([s.caption() for s in some], [*seeds], cfg=THINGS.cfg, **THINGS.sampler)]
        scenes += some
    verdicts = [THINGS.verdict(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    by_eye = [number not in not_right for number in range(len(pictures))]
    agree = [verdict.complete == right for verdict, right in zip(verdicts, by_eye, strict=True)]
    stricter = sum(right and not verdict.complete for verdict, right in zip(verdicts, by_eye, strict=True))
    print(f"images {first} to {first + COUNT - 1} of each set: the two agree in {sum(agree)} of {len(pictures)}; in "
          f"{stricter} of the others the scorer is stricter")
    for start, name in enumerate(SETS):
        part = slice(start * COUNT, (start + 1) * COUNT)
        by_scorer = sum(verdict.complete for verdict in verdicts[part])
        print(f"  {name}: {sum(by_eye[part])} of {COUNT} right by eye, {by_scorer} by the scorer; "
              f"they agree in {sum(agree[part])}")
    return scenes, pictures, verdicts, by_eye


def sheet(scenes: list, pictures: list[np.ndarray], verdicts: list, by_eye: list[bool]) -> Image.Image:
    """The pictures with their captions, what the eye said and what the scorer said; red where they differ."""
    columns = 10
    page = Image.new("RGB", (columns * (TILE + 6), -(-len(pictures) // columns) * (TILE + TEXT)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(9)
    for number, (scene, picture, verdict, right) in enumerate(zip(scenes, pictures, verdicts, by_eye, strict=True)):
        left, top = number % columns * (TILE + 6), number // columns * (TILE + TEXT)
        page.paste(Image.fromarray((picture * 255).round().astype(np.uint8)), (left, top))
        said = f"eye: {'right' if right else 'not right'}\nscorer: {verdict.label}"
        pen.text((left, top + TILE + 2), textwrap.fill(scene.caption(), 24), "black", font)
        pen.text((left, top + TILE + 27), said, GREEN if verdict.complete == right else RED, font)
    return page


if __name__ == "__main__":
    main()
