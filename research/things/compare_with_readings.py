"""The scorer beside other readings of four hundred generated pictures; of the last hundred, docs/things_scorer.png.

    .host/venv/bin/python research/things/compare_with_readings.py --comfyui .host/ComfyUI-0.30.0

The readers are a vision-language model, not people. They saw pictures and captions, and not what the scorer says. A
picture is *named right* if one who has to name each thing with the most similar of the kinds, and objects with their
colour, would name what is there as the caption does, each once and nothing else, however badly drawn. It is
*recognised* if one would do so without the caption (of the first two hundreds: in outlines that a person recognises).
The first two hundreds guided changes of the scorer, the others did not. The last was read three times for each
question, each time without what the others said; what most of them said counts.
"""
from __future__ import annotations

import argparse
import hashlib
import sys
import textwrap
from collections.abc import Mapping, Sequence
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
CHECKPOINT = plain_model.DEMO / MODELS["things"].checkpoint
SEEN = "7bdd581ddf25"  # its digest when its pictures were read
#: Of each hundred, by the number of its first image of each set, and of each question: the pictures of which a reader
#: said no, counted over the sets, for each reader.
NOT_SO: dict[int, dict[str, Sequence[set[int]]]] = {
    100: {"recognised": [
        {8, 25, 26, 32, 33, 35, 38, 53, 58, 64, 71, 74, 81, 82, 84, 85, 86, 87, 89, 90, 91, 92, 93, 95}]},
    125: {"recognised": [
        {0, 6, 15, 33, 34, 36, 38, 39, 40, 45, 49, 51, 52, 53, 55, 56, 60, 64, 69, 72, 75, 82, 84, 85, 86, 90, 92, 96,
         97, 98, 99}]},
    150: {"recognised": [{15, 43, 49, 50, 51, 56, 59, 75, 76, 79, 87, 92, 96, 97}]},
    175: {
        "named right": [
            {26, 28, 34, 43, 48, 68, 75, 76, 77, 81, 82, 83, 84, 85, 86, 89, 91, 96},
            {26, 28, 34, 43, 48, 68, 73, 75, 76, 77, 81, 82, 83, 84, 85, 86, 89, 91, 96},
            {26, 28, 34, 43, 48, 68, 75, 76, 77, 81, 82, 83, 84, 85, 86, 89, 91, 96}],
        "recognised": [
            {2, 26, 28, 34, 35, 37, 38, 40, 43, 48, 53, 68, 73, 75, 76, 77, 81, 83, 84, 85, 86, 89, 91, 96},
            {2, 7, 26, 28, 29, 31, 34, 35, 37, 38, 40, 43, 48, 53, 60, 68, 73, 75, 76, 77, 81, 83, 84, 85, 86, 89, 91,
             93, 96, 98},
            {26, 28, 31, 34, 35, 37, 38, 40, 43, 48, 53, 60, 68, 75, 76, 77, 81, 83, 84, 85, 86, 89, 91, 96}],
    },
}  # fmt: skip
SHEET = plain_model.DEMO.parent / "docs" / "things_scorer.png"
TILE, TEXT = 128, 68
GREEN, RED = "#1a7f37", "#cf222e"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", help="folder of ComfyUI (default: COMFYUI_PATH)")
    args = parser.parse_args(argv)
    comfy_host.start(args.comfyui)
    torch.set_num_threads(1)
    check_model()
    sampler = plain_model.Sampler("things", CHECKPOINT)
    *_, last = [compare(sampler, first, not_so) for first, not_so in NOT_SO.items()]
    sheet(*last).save(SHEET, optimize=True)


def check_model() -> None:
    """Raises SystemExit if the pictures that were read are not of the model that is there."""
    if hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()[:12] != SEEN:
        raise SystemExit("What was read are pictures of another model: read those of this one, and set SEEN.")


def compare(
    sampler: plain_model.Sampler, first: int, not_so: Mapping[str, Sequence[set[int]]]
) -> tuple[list, list, list, dict[str, np.ndarray]]:
    """Prints how often scorer and readings agree on a hundred; its scenes, pictures, verdicts, and for each question
    what most readings say. not_so: of an odd number of readings."""
    scenes, pictures = [], []
    for name in SETS:
        some, seeds = THINGS.scenes(name, first + COUNT)[first:], range(first, first + COUNT)
        with torch.autocast("cpu", torch.bfloat16):  # as the alignment bench samples
            pictures += [*sampler.images([s.caption() for s in some], [*seeds], cfg=THINGS.cfg, **THINGS.sampler)]
        scenes += some
    verdicts = [THINGS.verdict(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    by_scorer = np.array([verdict.complete for verdict in verdicts])
    print(f"images {first} to {first + COUNT - 1} of each set: all right by the scorer {by_scorer.sum()}")
    by_most = {}
    for question, wrong in not_so.items():
        by_reader = np.array([[number not in one for number in range(len(pictures))] for one in wrong])
        most = by_most[question] = by_reader.mean(0) > 0.5
        agree = by_scorer == most
        print(f"  {question} {most.sum()}: scorer and readings agree in {agree.sum()} of {len(pictures)}; in "
              f"{(most & ~by_scorer).sum()} of the others the scorer is stricter")
        if len(by_reader) > 1:
            alike = [str((one == other).sum()) for one, other in combinations(by_reader, 2)]
            with_scorer = [str((one == by_scorer).sum()) for one in by_reader]
            print(f"    two readings agree in {', '.join(alike)}; the scorer with each in {', '.join(with_scorer)}")
        for start, name in enumerate(SETS):
            part = slice(start * COUNT, (start + 1) * COUNT)
            print(f"    {name}: {most[part].sum()} of {COUNT} as read, {by_scorer[part].sum()} by the scorer; they "
                  f"agree in {agree[part].sum()}")
    return scenes, pictures, verdicts, by_most


def sheet(
    scenes: list, pictures: list[np.ndarray], verdicts: list, read: Mapping[str, Sequence[bool]]
) -> Image.Image:
    """The pictures with their captions, what readers and scorer said; red where scorer and names differ."""
    columns = 10
    page = Image.new("RGB", (columns * (TILE + 6), -(-len(pictures) // columns) * (TILE + TEXT)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(9)
    for number, (scene, picture, verdict) in enumerate(zip(scenes, pictures, verdicts, strict=True)):
        left, top = number % columns * (TILE + 6), number // columns * (TILE + TEXT)
        page.paste(Image.fromarray((picture * 255).round().astype(np.uint8)), (left, top))
        said = [question if answers[number] else f"not {question}" for question, answers in read.items()]
        same = verdict.complete == read["named right"][number]
        pen.text((left, top + TILE + 2), textwrap.fill(scene.caption(), 24), "black", font)
        text = "\n".join([*said, f"scorer: {verdict.label}"])
        pen.text((left, top + TILE + 27), text, GREEN if same else RED, font)
    return page


if __name__ == "__main__":
    main()
