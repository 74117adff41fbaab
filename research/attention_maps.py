"""How often the attention map of a word peaks on its object.

    python run.py bench attention_maps [--images N] [--threads N]

The shapes model draws two objects (demo/README.md); of the pictures that the scorer finds right, the first N count. The
peak of a word's map, as EBCA Attention Maps shows it, lies in the box of the word's own object, or, swapped, in that of
the other. Words that both objects share are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shapes.captions import scenes
from shapes.grammar import Scene
from shapes.scorer import Found, verdict
from shapes.world import SIDE
from small_model import SmallModel, bench_parser, boot, pack_module

BATCH, STEPS, CFG = 40, 25, 1.25
#: Of an object's words, those whose maps are looked at.
KINDS = {
    "colour": lambda wanted: wanted.colour,
    "shape": lambda wanted: wanted.shape,
    "colour and shape": lambda wanted: f"{wanted.colour} {wanted.shape}",
}


@dataclass(frozen=True)
class Peak:
    """One word of a right picture: whether its map peaks on its own object, and whether on the other."""

    kind: str
    on_own: bool
    on_other: bool


class Peaks:
    """The pack's own way from a trace to the map of a word."""

    def __init__(self, model: SmallModel):
        self._positions = pack_module("comfyui_binding.trace.word_positions").positions_of_words
        self._mean = pack_module("plots.word_map_sheet").mean_map
        self._model = model

    def right_pictures(self, count: int) -> Iterator[list[Peak]]:
        """The peaks of each of the first `count` right pictures."""
        found = 0
        for start in range(0, 4 * count, BATCH):
            wanted = scenes("two objects", start + BATCH)[start:]
            images, maps = self._drawn(wanted, start)
            for number, (scene, image) in enumerate(zip(wanted, images, strict=True)):
                judged = verdict(image, scene)
                if not judged.right or found == count:
                    continue
                found += 1
                boxes = [judged.reading.found[match] for match in judged.matched]
                yield list(self._peaks(scene, boxes, [grid[number] for grid in maps.by_grid], maps.weights))

    def _drawn(self, wanted: Sequence[Scene], first_seed: int):
        """Images and attention maps of a batch: a caption and a noise for each image, as plain_model.py has them."""
        model, trace = self._model.node("EBCATrace", model=self._model.model, attention_maps=True)
        seeds = list(range(first_seed, first_seed + len(wanted)))
        captions = [scene.caption() for scene in wanted]
        prompts = self._model.encode(captions), self._model.encode([""])
        images = self._model.sampled(model, *prompts, seeds, STEPS, CFG, "euler", "normal")
        return images, trace.record.maps[0]

    def _peaks(self, scene: Scene, found: Sequence[Found], by_grid, weights) -> Iterator[Peak]:
        for kind, words in KINDS.items():
            for own, other in ((0, 1), (1, 0)):
                word = words(scene.objects[own])
                if word == words(scene.objects[other]):
                    continue
                positions, _ = self._positions(self._model.clip, scene.caption(), word)
                values = self._mean(by_grid, weights, positions[word])
                yield Peak(kind, _is_in(found[own], values), _is_in(found[other], values))


def _is_in(found: Found, values: torch.Tensor) -> bool:
    """Whether the middle of the map's hottest place lies in an object's box."""
    rows, columns = values.shape
    row, column = divmod(int(values.argmax()), columns)
    x, y = (column + 0.5) * SIDE / columns, (row + 0.5) * SIDE / rows
    left, top, right, bottom = found.box(SIDE, SIDE)
    return left <= x < right and top <= y < bottom


def main(arguments: Sequence[str]) -> int:
    parser = bench_parser(__doc__, ("unet", "transformer"))  # joint attention has no trace
    parser.add_argument("--images", type=int, default=200, help="right pictures that count")
    options = parser.parse_args(arguments)
    boot(options)
    pictures = list(Peaks(SmallModel(options.model, options.checkpoint)).right_pictures(options.images))
    print(f"{len(pictures)} right pictures of two objects, euler, normal, {STEPS} steps, cfg {CFG:g}\n")
    print("| word | peak on its object | on the other (words swapped) | words |\n|---|---|---|---|")
    for kind in KINDS:
        peaks = [peak for picture in pictures for peak in picture if peak.kind == kind]
        own, other = (100 * np.mean([getattr(peak, name) for peak in peaks]) for name in ("on_own", "on_other"))
        print(f"| {kind} | {own:.1f} % | {other:.1f} % | {len(peaks)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
