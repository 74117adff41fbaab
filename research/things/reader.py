"""The network that names what one region of a picture shows, and how regions are cut out for it."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import ndimage
from torch import nn

from .world import COLOURS, KINDS, SIDE, WORN

Array = np.ndarray

WEIGHTS = Path(__file__).with_name("scorer.safetensors")
CROP = 48  # pixels of what the network sees, each way
MIXTURE, BLOT = len(KINDS), len(KINDS) + 1  # what a region may show beside the kinds
NOTHING = len(WORN)  # the last class of what is worn
MARK = 30.0  # a pixel further than this from the ground (each channel 0..255) is not ground
REACH = 2  # pixels around a thing that belong to it: parts that lie less than twice this apart are one region
SPECK = 100  # regions of fewer pixels are dust; drawn things have 500 and more
WAIST = 6  # things that touch are parted where they are at most twice so many pixels wide
NEAR = 12 / SIDE  # boxes of pieces of one thing lie at most so far apart, in fractions of the picture's side
WIDTHS = (40, 80, 144, 208)


@dataclass(frozen=True)
class Region:
    """A connected region off the ground: its box in fractions of the picture's side, its pixels, and its cut-out.

    pixels: [h w 3] of the box, 0..255. inside: [h w], what belongs to it; marked: what of that is not ground.
    crop: float32 [4 CROP CROP]: colours, grey (0.5) outside the region; and 1 inside the region, 0 outside.
    """

    left: float
    top: float
    right: float
    bottom: float
    pixels: Array
    inside: Array
    marked: Array
    crop: Array

    @property
    def area(self) -> int:
        """Marked pixels."""
        return int(self.marked.sum())


def ground_of(pixels: Array) -> tuple[Array, float]:
    """The colour [3] along the border of pixels [h w 3], 0..255, and which share of the border has it."""
    frame = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3),
                            pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
    ground = np.median(frame, axis=0)
    return ground, float((np.linalg.norm(frame - ground, axis=-1) <= MARK).mean())


def regions(pixels: Array, ground: Array) -> list[Region]:
    """The regions of pixels [h w 3], 0..255, that are not of the ground's colour [3]; dust is left out.

    The shorter side of the pixels is SIDE.
    """
    marked = np.square(pixels - ground).sum(-1) > MARK ** 2
    grown = ndimage.binary_dilation(marked, np.ones((3, 3)), iterations=REACH)
    labels, _ = ndimage.label(grown, np.ones((3, 3)))
    return _regions(pixels, marked, labels, 0.0, 0.0)


def parts(region: Region) -> Iterator[list[Region]]:
    """Ways to part a region into things that touch or lie close: the pieces that 0 to WAIST erosions leave.

    Pieces of fewer than SPECK pixels do not count. Every other pixel goes to the nearest piece.
    """
    for times in range(WAIST + 1):
        kept = ndimage.binary_erosion(region.marked, iterations=times) if times else region.marked
        labels, _ = ndimage.label(kept, np.ones((3, 3)))
        pieces = np.flatnonzero(np.bincount(labels.ravel())[1:] >= SPECK) + 1
        if len(pieces) > 1:
            seeds = np.where(np.isin(labels, pieces), labels, 0)
            nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
            owners = np.where(region.inside, seeds[tuple(nearest)], 0)
            yield _regions(region.pixels, region.marked, owners, region.left, region.top)


def joined(pixels: Array, first: Region, second: Region) -> Region:
    """Two regions of the pixels that regions() got, as one."""
    marked, labels = np.zeros(pixels.shape[:2], bool), np.zeros(pixels.shape[:2], int)
    for region in (first, second):
        place = (slice(round(region.top * SIDE), round(region.bottom * SIDE)),
                 slice(round(region.left * SIDE), round(region.right * SIDE)))  # fmt: skip
        marked[place] |= region.marked
        labels[place] |= region.inside
    (one,) = _regions(pixels, marked, labels, 0.0, 0.0)
    return one


def are_near(first: Region, second: Region) -> bool:
    """Whether the boxes of two regions are at most NEAR apart."""
    across = max(first.left, second.left) - min(first.right, second.right)
    down = max(first.top, second.top) - min(first.bottom, second.bottom)
    return bool(np.hypot(max(across, 0.0), max(down, 0.0)) <= NEAR)


def _regions(pixels: Array, marked: Array, labels: Array, left: float, top: float) -> list[Region]:
    """The regions that labels [h w] part pixels [h w 3] into, 0 for none; left, top: of their corner. Not dust."""
    found = []
    for index, place in enumerate(ndimage.find_objects(labels), 1):
        if place is None:  # no pixel has this label
            continue
        inside = labels[place] == index
        seen = inside & marked[place]
        if seen.sum() >= SPECK:
            (above, below), (before, after) = ((side.start / SIDE, side.stop / SIDE) for side in place)
            found.append(Region(
                left + before, top + above, left + after, top + below, pixels[place], inside, seen,
                _crop(pixels[place], inside),
            ))  # fmt: skip
    return found


def _crop(pixels: Array, inside: Array) -> Array:
    """The cut-out of a Region."""
    height, width = inside.shape
    side = max(height, width)
    canvas = np.full((side, side, 4), (127.5, 127.5, 127.5, 0.0), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    part = canvas[top:top + height, left:left + width]
    part[inside, :3], part[inside, 3] = pixels[inside], 255.0
    small = Image.fromarray(canvas.round().astype(np.uint8), "RGBX").resize((CROP, CROP), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32).transpose(2, 0, 1) / 255.0


class Reader(nn.Module):
    """Cut-outs [n 4 CROP CROP] to logits: kinds, mixture and blot [n 28], worn [n 4], colours [n 11]."""

    def __init__(self):
        super().__init__()
        sizes = (4, *WIDTHS)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 5 if a == 4 else 3, stride=2, padding=2 if a == 4 else 1) for a, b in zip(sizes, WIDTHS)
        )
        self.middle = nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in (*WIDTHS, WIDTHS[-1]))
        self.place = nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 3, groups=WIDTHS[-1])  # each channel where it counts
        self.out = nn.Linear(2 * WIDTHS[-1], BLOT + 1 + NOTHING + 1 + len(COLOURS))

    def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = crops - 0.5
        for layer, norm in zip(self.layers, self.norms):
            x = torch.relu(norm(layer(x)))
        x = x + torch.relu(self.norms[-1](self.middle(x)))
        pooled = torch.cat([self.place(x).flatten(1), x.amax((2, 3))], 1)
        return self.out(pooled).split([BLOT + 1, NOTHING + 1, len(COLOURS)], 1)


@cache
def trained() -> Reader:
    """The network with the weights that train_scorer.py has written."""
    model = Reader()
    model.load_state_dict({name: value.float() for name, value in load_file(str(WEIGHTS)).items()})
    return model.eval().requires_grad_(False)
